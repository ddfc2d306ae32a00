"""The settings of a column of vectors that the new one takes over: `not null`, the storage, the statistics target."""

from repstitch.errors import InputError
from repstitch.stores.postgresql.connection import Session, quoted, raw
from repstitch.stores.postgresql.layout import Layout, retried


def copy_storage(layout: Layout) -> None:
    """Give the new vectors the storage and the statistics target of the old ones."""
    target, vector = layout.place
    storage, statistics = layout.session.run(
        """select case attstorage when 'p' then 'plain' when 'm' then 'main' when 'x' then 'extended'
            else 'external' end, coalesce(attstattarget, -1)::int
        from pg_attribute where attrelid = {oid} and attname = {name}""",
        oid=layout.table.oid,
        name=layout.book.old_name,
    )[0]
    layout.run(
        "alter table {target} alter {new} set storage {storage}, alter {new} set statistics {statistics}",
        target=target,
        new=quoted(vector),
        storage=raw(storage),
        statistics=statistics,
    )


def restore_not_null(layout: Layout, column: str) -> bool:
    """Make a column `not null`, as the old one was before the job, without a long lock.

    Returns False if a row has no vector in it.
    """
    if layout.book.not_null is None or is_not_null(layout, column):
        return True
    names = {"check": quoted(layout.label("not_null")), "column": quoted(column)}

    def drop() -> None:
        layout.run("alter table {T} drop constraint if exists {check}", **names)

    def add() -> None:
        drop()
        layout.run("alter table {T} add constraint {check} check ({column} is not null) not valid", **names)

    def replace_check() -> None:
        layout.run("alter table {T} alter column {column} set not null", **names)
        drop()
        _name_not_null(layout, column)

    try:
        retried(layout.session, add)
        layout.run("alter table {T} validate constraint {check}", **names)
        retried(layout.session, replace_check)
    except InputError:
        retried(layout.session, drop)
        return False
    return True


def is_not_null(layout: Layout, column: str) -> bool:
    """Return whether a column of the table is `not null` now."""
    return layout.session.value(
        "select attnotnull from pg_attribute where attrelid = {oid} and attname = {name}",
        oid=layout.table.oid,
        name=column,
    )


def _name_not_null(layout: Layout, column: str) -> None:
    name = not_null_name(layout.session, layout.table.oid, column)
    if layout.book.not_null and name and name != layout.book.not_null:
        layout.run(
            "alter table {T} rename constraint {name} to {wanted}",
            name=quoted(name),
            wanted=quoted(layout.book.not_null),
        )


def not_null_name(session: Session, oid: int, column: str) -> str:
    """Return the name of the `not null` constraint of a column, or "" before PostgreSQL 18, where it has none."""
    return (
        session.value(
            """select c.conname from pg_constraint c join pg_attribute a on a.attrelid = c.conrelid
            and c.conkey = array[a.attnum] where c.conrelid = {oid} and c.contype = 'n' and a.attname = {column}""",
            oid=oid,
            column=column,
        )
        or ""
    )
