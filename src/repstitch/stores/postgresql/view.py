"""The view through which readers read: it shows the old vectors, and after the cut-over the new ones."""

from psycopg import sql

from repstitch.errors import InputError
from repstitch.stores.postgresql.connection import Session, compose, join, quoted, raw
from repstitch.stores.postgresql.job import Record, comment_on, parse_comment
from repstitch.stores.postgresql.layout import Layout


def view_name(layout: Layout) -> sql.Identifier:
    """Return the quoted name of the view, in the schema of the table."""
    assert layout.book.view is not None
    return layout.table.in_schema(layout.book.view)


def write_view(layout: Layout, relation: sql.Composable, vector: sql.Composable) -> None:
    """Make the view, or replace it in one step: the columns of T, with `vector` in place of the readers' column.

    A view that exists keeps the names and the order of its columns, whatever those of T are called now.
    """
    book, session = layout.book, layout.session
    if book.view is None:
        return
    oid = session.oid_of(view_name(layout))
    if oid is None or book.view_columns is None:
        shown = [column for name, column in layout.table.fields.items() if name not in book.own_columns]
        numbers, names = [column.number for column in shown], [column.name for column in shown]
    else:
        numbers = book.view_columns
        names = [name for (name,) in session.run(NAMES, oid=oid)]
    sources = {column.number: name for name, column in layout.table.fields.items()}
    old = layout.table.fields[book.old_name].number
    kind = layout.table.type("halfvec" if layout.source.half else "vector")
    listed = [
        compose("{vector}::{kind} as {name}", vector=vector, kind=kind, name=quoted(name))
        if number == old
        else compose("d.{source} as {name}", source=quoted(sources[number]), name=quoted(name))
        for number, name in zip(numbers, names, strict=False)
    ]
    layout.run(
        "create or replace view {view} as select {columns} from {relation}",
        view=view_name(layout),
        columns=join(listed),
        relation=relation,
    )
    if oid is None:
        copy_grants(layout, view_name(layout), "SELECT")
    space = layout.record.space if book.is_live else {}
    comment_on(session, compose("view {view}", view=view_name(layout)), Record(space, of=book.tag))
    if numbers != book.view_columns:
        layout.save(view_columns=numbers)


NAMES = "select attname from pg_attribute where attrelid = {oid} and attnum > 0 and not attisdropped order by attnum"


def copy_grants(layout: Layout, target: sql.Identifier, *privileges: str) -> None:
    """Give those who have privileges on the table the same ones on another relation."""
    grants = layout.session.run(
        """select g.privilege_type, case when g.grantee = 0 then 'public' else quote_ident(r.rolname) end
        from pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) g
            left join pg_roles r on r.oid = g.grantee
        where c.oid = {oid} and g.privilege_type = any({privileges})
            and g.grantee <> (select relowner from pg_class where oid = {target})""",
        oid=layout.table.oid,
        privileges=list(privileges),
        target=layout.session.oid_of(target),
    )
    for privilege, role in grants:
        layout.run("grant {privilege} on {target} to {role}", privilege=raw(privilege), target=target, role=raw(role))


def drop_view(layout: Layout) -> None:
    """Drop the view, if it is that of this job."""
    if layout.book.view is not None and is_own_view(layout.session, view_name(layout), layout.book.tag):
        layout.run("drop view {view}", view=view_name(layout))


def is_own_view(session: Session, name: sql.Identifier, tag: str) -> bool:
    """Return whether there is a view of this name that the job with this tag has made."""
    return tag_of(session.value("select obj_description({oid}::oid, 'pg_class')", oid=session.oid_of(name))) == tag


def tag_of(comment: str | None) -> str | None:
    """Return the tag of the job that has made what has this comment."""
    try:
        record = parse_comment(comment)
    except InputError:
        return None
    return record.of if record else None
