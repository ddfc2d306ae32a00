"""Open the layout of a job, and see that its triggers are those of this table, so that no change stays unseen."""

from repstitch.errors import InputError
from repstitch.stores.postgresql.catalog import Table, fields_of
from repstitch.stores.postgresql.column import ColumnLayout
from repstitch.stores.postgresql.connection import Session
from repstitch.stores.postgresql.guard import make_guard
from repstitch.stores.postgresql.job import Record, find_record, label_prefix
from repstitch.stores.postgresql.layout import FUNCTIONS, Layout
from repstitch.stores.postgresql.side import SideLayout

LAYOUTS: dict[str, type[Layout]] = {"column": ColumnLayout, "side": SideLayout}


def open_layout(session: Session, table: Table, id_column: str, source_dim: int, record: Record) -> Layout:
    """Return the layout of a job for the present columns of the table."""
    assert record.book is not None
    table.fields = fields_of(session, table)
    return LAYOUTS[record.book.layout](session, table, id_column, source_dim, record)


def changed_layout(layout: Layout, record: Record) -> Layout:
    """Return a layout for another state of its job."""
    return open_layout(layout.session, layout.table, layout.id, layout.source.dim, record)


def reloaded(layout: Layout) -> Layout:
    """Return a layout for the state of its job that the database has."""
    record = find_record(layout.session, layout.table, layout.book.vector)
    if record is None:
        raise InputError(f"The job on column {layout.book.vector!r} of {layout.table.title} has been removed.")
    return changed_layout(layout, record)


def tag_of_column(table: Table, name: str) -> str:
    """Return the tag of a job that begins on a column."""
    return f"{table.oid}_{table.fields[name].number}"


def is_armed(layout: Layout) -> bool:
    """Return whether all triggers of a job are on this table and fire for each write."""
    present = set(
        layout.session.run(
            "select tgname, tgrelid, tgenabled from pg_trigger where starts_with(tgname, {prefix})",
            prefix=label_prefix(layout.book.tag),
        )
    )
    return layout.book.oid == layout.table.oid and all(
        (layout.label(trigger.name), layout.session.oid_of(trigger.target), "A") in present
        for trigger in layout.triggers()
    )


def check_armed(layout: Layout) -> None:
    """Raise InputError if writers may have changed rows unseen."""
    if not is_armed(layout):
        raise InputError(
            f"Triggers of the job on {layout.table.title} are missing, disabled, or on another table, so changes may "
            "have gone unseen. Run the job again, which makes them anew, and then verify again."
        )


def check_trusted(layout: Layout) -> None:
    """Raise InputError if writers may have changed rows unseen, or if rows have not been compared since they might."""
    check_armed(layout)
    if layout.book.suspect:
        raise InputError(
            f"Triggers of the job on {layout.table.title} were missing for a while, and not all rows have been "
            "compared since. Verify again first."
        )


def arm_again(layout: Layout) -> Layout:
    """Make the triggers anew, in one transaction, and return the layout. Before a cut-over all rows are suspect then.

    Native vectors are translated, since nothing tells whether their rows have changed unseen.
    """
    session, table, book = layout.session, layout.table, layout.book
    layout.drop_functions(*FUNCTIONS)
    layout.run("drop index if exists {index}", index=layout.object_name("rest"))
    changes = {
        "table": table.title,
        "oid": table.oid,
        "tag": tag_of_column(table, book.old_name),
        "begun": session.value("select pg_current_xact_id()::xid::text"),
        "first_pass": not book.is_live,
        "suspect": not book.is_live,
    }
    if book.oid != table.oid:
        changes["view_columns"] = None
    layout.save(**changes)
    changed = changed_layout(layout, layout.record)
    with changed.as_owner():
        changed.arm()
        changed.make_triggers()
        if book.guard is not None and book.is_live:
            make_guard(changed, book.guard)
    if not book.is_live:
        changed.mistrust()
    return changed
