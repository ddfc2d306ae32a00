"""What a job keeps in the database: a comment with JSON on the new column or on the side table."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from psycopg import sql

from repstitch.errors import InputError
from repstitch.stores.postgresql.catalog import Table
from repstitch.stores.postgresql.connection import Session, compose, quoted

PREFIX = "repstitch: "
LABEL = "zzz_repstitch_"  # triggers fire in the order of their names, and ours are last
FILLING, LIVE = "filling", "cut over"
MAX_NAME_BYTES = 63


@dataclass(frozen=True)
class Book:
    """What the store must remember of a job.

    Args:
        table: The table as `schema.name`, and `oid`, its number when the triggers were made.
        tag: The number of the table and of its old column, which is part of the names of triggers and functions.
        vector: The name that readers use; `new` and `old` are the other names, as in `Migration`.
        layout: `column` or `side`.
        half: Whether the new vectors are `halfvec`.
        not_null: The name of the `not null` constraint of the old column, "" for one without a name, None for none.
        begun: The transaction that made the triggers. A row of an older transaction belongs to the first pass.
        first_pass: Whether the first pass is still to do.
        phase: FILLING, or LIVE after a cut-over.
        guard: The name of the new space, if writers must state it.
        side: The name of the side table.
        view_columns: The numbers of the table's columns that the view shows, in order.
        suspect: Whether triggers were missing for a while, so that all rows must be compared before a cut-over.
    """

    table: str
    oid: int
    tag: str
    vector: str
    new: str
    old: str
    dim: int
    version: str
    layout: str
    half: bool
    keep_names: bool
    view: str | None
    not_null: str | None
    begun: str
    first_pass: bool = True
    phase: str = FILLING
    guard: str | None = None
    side: str = ""
    view_columns: list[int] | None = None
    suspect: bool = False

    @property
    def swaps(self) -> bool:
        """Whether the cut-over swaps the names of two columns."""
        return self.layout == "column" and not self.keep_names and self.view is None

    @property
    def is_live(self) -> bool:
        """Whether readers see the new vectors."""
        return self.phase == LIVE

    @property
    def old_name(self) -> str:
        """The present name of the old column."""
        return self.old if self.swaps and self.is_live else self.vector

    @property
    def new_name(self) -> str:
        """The present name of the new column."""
        return self.vector if self.swaps and self.is_live else self.new

    @property
    def state_name(self) -> str:
        """The name of the column of states beside the new column."""
        return state_name(self.new)

    @property
    def own_columns(self) -> set[str]:
        """The names of the columns of the table that belong to the job and not to readers."""
        if self.layout == "side":
            return set()
        other = self.old_name if self.swaps and self.is_live else self.new_name
        return {other, self.state_name, *([guard_name(self.vector)] if self.guard else [])}


def state_name(new: str) -> str:
    """Return the name of the column of states beside a new column."""
    return shortened(new, "_state")


def guard_name(vector: str) -> str:
    """Return the name of the column in which writers state the space of a vector."""
    return shortened(vector, "_space")


def shortened(name: str, ending: str) -> str:
    """Return a name with an ending, within the length of names in PostgreSQL."""
    return name.encode()[: MAX_NAME_BYTES - len(ending)].decode(errors="ignore") + ending


def queue_name(side: str) -> str:
    """Return the name of the queue of changes beside a side table."""
    return shortened(side, "_changes")


def side_name(table: str, new: str) -> str:
    """Return the name of the side table."""
    return shortened(table, "_" + new)


@dataclass(frozen=True)
class Record:
    """A comment of a job: the card of the new space, what the store must remember, and what `save_job` was given.

    `book` is None after the clean-up that follows a cut-over. Only the card remains then. `of` is the tag of the job in
    the comments of other things that it has made, such as its view.
    """

    space: dict[str, Any]
    book: Book | None = None
    job: dict[str, Any] | None = None
    of: str | None = None

    def to_comment(self) -> str:
        """Return the text of the comment."""
        store = asdict(self.book) if self.book else None
        content = {"space": self.space, "store": store, "job": self.job, "of": self.of}
        return PREFIX + json.dumps({key: value for key, value in content.items() if value is not None})

    def with_book(self, **changes: Any) -> "Record":
        """Return the record with changes in its book."""
        return replace(self, book=replace(self.book, **changes)) if self.book else self


def parse_comment(comment: str | None) -> Record | None:
    """Return the record in a comment, or None if the comment is not one of ours."""
    if not comment or not comment.startswith(PREFIX):
        return None
    try:
        content = json.loads(comment[len(PREFIX) :])
        book = content.get("store")
        return Record(content.get("space") or {}, Book(**book) if book else None, content.get("job"), content.get("of"))
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"The comment {comment[:60]!r} … is not one that this version can read; continue with the version that "
            "began the job, or clear the comment to give the job up."
        ) from None


def find_record(session: Session, table: Table, vector: str) -> Record | None:
    """Return the record of the job on a column, by the name that readers use."""
    for record in find_records(session, table):
        if record.book is not None and record.book.vector == vector:
            return record
    return None


def find_records(session: Session, table: Table, damaged_too: bool = False) -> list[Record]:
    """Return the records of all jobs on a table. With `damaged_too`, a comment that cannot be read is passed over."""
    comments = session.run(
        """select col_description(attrelid, attnum) from pg_attribute
        where attrelid = {oid} and attnum > 0 and not attisdropped
        union all
        select d.description from pg_description d join pg_class c on c.oid = d.objoid
        where d.classoid = 'pg_class'::regclass and d.objsubid = 0 and starts_with(d.description, {prefix})
            and c.relnamespace = (select relnamespace from pg_class where oid = {oid}) and c.relkind = 'r'""",
        oid=table.oid,
        prefix=PREFIX,
    )
    records: dict[str, Record] = {}
    for (comment,) in comments:
        try:
            record = parse_comment(comment)
        except InputError:
            if not damaged_too:
                raise
            continue
        if not record or not record.book or not _is_of(session, table, record.book):
            continue
        if record.of is None or record.book.tag not in records:  # the copy counts only where the first is gone
            records[record.book.tag] = replace(record, of=None)
    return list(records.values())


def _is_of(session: Session, table: Table, book: Book) -> bool:
    """Return whether a job belongs to this table, and not to one that had its name, or whose comments it has copied."""
    return book.oid == table.oid or (
        book.table == table.title
        and not session.value(
            "select exists (select from pg_trigger where starts_with(tgname, {prefix}) and tgrelid not in ({oid}, "
            "coalesce(to_regclass({side})::oid, 0::oid)))",
            prefix=label_prefix(book.tag),
            oid=table.oid,
            side=table.in_schema(book.side).as_string(session.connection),
        )
    )


def label_prefix(tag: str) -> str:
    """Return what the names of triggers and functions of a job begin with."""
    return f"{LABEL}{tag}_"


def write_record(session: Session, table: Table, record: Record) -> None:
    """Store a record with the new column or the side table of its job, and a copy with the states or the queue."""
    book = record.book
    assert book is not None
    if book.layout == "side":
        second = compose("table {name}", name=table.in_schema(queue_name(book.side)))
    else:
        second = compose("column {T}.{N}", T=table.qualified, N=quoted(book.state_name))
    with session.transaction():
        _comment_on_new(session, table, book, record)
        comment_on(session, second, replace(record, of=book.tag))


def leave_card(session: Session, table: Table, record: Record) -> None:
    """Leave only the card of the space with the new vectors of a job that has ended, if they are there."""
    if record.book is not None:
        _comment_on_new(session, table, record.book, Record(record.space))


def _comment_on_new(session: Session, table: Table, book: Book, record: Record) -> None:
    """Write a record as the comment of the new column or of the side table, but not over one of the user."""
    if book.layout == "side":
        target = compose("table {name}", name=table.in_schema(book.side))
        present = session.run(
            "select obj_description(to_regclass({side}), 'pg_class') where to_regclass({side}) is not null",
            side=table.in_schema(book.side).as_string(session.connection),
        )
    else:
        target = compose("column {T}.{N}", T=table.qualified, N=quoted(book.new_name))
        present = session.run(
            "select col_description(attrelid, attnum) from pg_attribute where attrelid = {oid} and attname = {name}",
            oid=table.oid,
            name=book.new_name,
        )
    if present and (present[0][0] is None or present[0][0].startswith(PREFIX)):
        comment_on(session, target, record)


def comment_on(session: Session, target: sql.Composable, record: Record) -> None:
    """Write a record as the comment of a column, a table or a view."""
    session.run("comment on {target} is {comment}", target=target, comment=record.to_comment())
