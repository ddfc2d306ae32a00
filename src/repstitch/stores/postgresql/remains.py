"""Remove what a job has made, from every state, even if a part of it or its record is gone."""

import logging
from functools import partial

from repstitch.errors import InputError
from repstitch.stores.postgresql.arming import open_layout
from repstitch.stores.postgresql.catalog import Table, dim_of, fields_of
from repstitch.stores.postgresql.connection import Session, compose, join, quoted
from repstitch.stores.postgresql.job import (
    LABEL,
    Record,
    find_records,
    guard_name,
    label_prefix,
    leave_card,
    queue_name,
)
from repstitch.stores.postgresql.layout import Layout, retried
from repstitch.stores.postgresql.settings import restore_not_null
from repstitch.stores.postgresql.view import is_own_view

log = logging.getLogger(__name__)


def clean_up(session: Session, table: Table, vector: str, id_column: str) -> None:
    """Remove all that the job on a column has made; after a cut-over the old vectors, and what is needed no more."""
    table.fields = fields_of(session, table)
    records = [record for record in find_records(session, table, damaged_too=True) if record.book]
    present = next((record for record in records if record.book and record.book.vector == vector), None)
    layout = _opened(session, table, id_column, present) if present else None
    if layout is not None and layout.book.is_live:
        retried(session, lambda: _finish(layout))
        if layout.book.layout == "column" and not restore_not_null(layout, layout.book.new_name):
            log.warning(
                "%s: column %r was `not null` before the job and is not now, because rows have no vector.",
                table.title,
                layout.book.new_name,
            )
    elif layout is not None:
        restore_not_null(layout, layout.book.old_name)
        retried(session, layout.remove)
    others = set()
    for record in records:
        assert record.book is not None
        is_whole = record.book.old_name in table.fields
        if (record is present and layout is None) or not is_whole:
            log.warning("%s: a part of what a job has made is gone; the rest is removed.", table.title)
            retried(session, partial(_remove_rest, session, table, record))
        elif record is not present:
            others.add(record.book.tag)
    retried(session, lambda: _remove_triggers(session, table, others))
    table.fields = fields_of(session, table)


def _opened(session: Session, table: Table, id_column: str, record: Record) -> Layout | None:
    """Return the layout of a job if all its columns and tables are there."""
    book = record.book
    assert book is not None
    relations = [table.in_schema(name) for name in (book.side, queue_name(book.side))] if book.layout == "side" else []
    columns = {book.old_name} | ({book.new_name, book.state_name} if book.layout == "column" else set())
    if not columns <= set(table.fields) or not all(map(session.oid_of, relations)):
        return None
    try:
        return open_layout(session, table, id_column, dim_of(session, table, book.old_name), record)
    except InputError:  # no row has an old vector any more
        return open_layout(session, table, id_column, 1, record)


def _finish(layout: Layout) -> None:
    """Remove the old vectors, and leave the card of the space with the new ones."""
    with layout.as_owner():
        layout.finish()
    leave_card(layout.session, layout.table, layout.record)


def _remove_rest(session: Session, table: Table, record: Record) -> None:
    """Remove what is left of a job, but never the only vectors that readers have."""
    book = record.book
    assert book is not None
    has_old = book.old_name in table.fields and not book.is_live
    if book.view is not None and has_old and is_own_view(session, table.in_schema(book.view), book.tag):
        session.run("drop view {view}", view=table.in_schema(book.view))
    _drop_triggers(session, table, book.tag)
    columns = [book.state_name, *([guard_name(book.vector)] if book.guard else [])] if book.layout == "column" else []
    if book.layout == "side":
        tables = [queue_name(book.side), *([book.side] if has_old else [])]
        names = join([table.in_schema(name) for name in tables])
        session.run("drop table if exists {names}", names=names)
    elif has_old:
        columns.append(book.new_name)
    if columns:
        drops = join([compose("drop column if exists {name}", name=quoted(name)) for name in columns])
        session.run("alter table {T} {drops}", T=table.qualified, drops=drops)
    if not has_old:
        leave_card(session, table, record)


def _remove_triggers(session: Session, table: Table, others: set[str]) -> None:
    """Remove triggers and functions of jobs on this table that have no record any more."""
    names = session.run(
        """select tgname from pg_trigger where tgrelid = {oid} and starts_with(tgname, {label})
        union select proname from pg_proc where starts_with(proname, {own})
            and pronamespace = (select relnamespace from pg_class where oid = {oid})""",
        oid=table.oid,
        label=LABEL,
        own=f"{LABEL}{table.oid}_",
    )
    for tag in {"_".join(name.removeprefix(LABEL).split("_")[:2]) for (name,) in names} - others:
        if not _belongs_to_finished(session, table, tag):
            _drop_triggers(session, table, tag)


def _belongs_to_finished(session: Session, table: Table, tag: str) -> bool:
    """Return whether triggers are those that keep a side table in line after its job has been cleaned up."""
    return session.value(
        "select exists (select from pg_trigger where tgrelid = {oid} and tgname = {name})",
        oid=table.oid,
        name=label_prefix(tag) + "rows",
    )


def _drop_triggers(session: Session, table: Table, tag: str) -> None:
    prefix = label_prefix(tag)
    for (name,) in session.run(
        "select proname from pg_proc where starts_with(proname, {prefix}) "
        "and pronamespace = (select relnamespace from pg_class where oid = {oid})",
        prefix=prefix,
        oid=table.oid,
    ):
        session.run("drop function if exists {name}() cascade", name=table.in_schema(name))
    session.run("drop index if exists {index}", index=table.in_schema(prefix + "rest"))
    session.run(
        "alter table {T} drop constraint if exists {check}", T=table.qualified, check=quoted(prefix + "not_null")
    )
