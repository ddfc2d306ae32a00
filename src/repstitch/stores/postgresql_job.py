"""What a job keeps in the database: a comment with JSON on the new column or on the side table."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from psycopg import sql

from repstitch.errors import InputError
from repstitch.stores.postgresql_catalog import Table
from repstitch.stores.postgresql_connection import Session, compose, quoted

PREFIX = "repstitch: "
FILLING, LIVE = "filling", "cut over"
MAX_NAME_BYTES = 63


@dataclass(frozen=True)
class Book:
    """What the store must remember of a job.

    Args:
        table: The table as `schema.name`.
        tag: The number of the table and of its old column, which is part of the names of triggers and functions.
        vector: The name that readers use; `new` and `old` are the other names, as in `Migration`.
        layout: `column` or `side`.
        half: Whether the new vectors are `halfvec`.
        not_null: The name of the `not null` constraint of the old column, "" for one without a name, None for none.
        begun: The transaction that made the triggers. A row of an older transaction belongs to the first pass.
        first_pass: Whether the first pass is still to do.
        phase: FILLING, or LIVE after a cut-over.
        guard: The name of the new space, if writers must state it.
    """

    table: str
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


def side_name(table: str, new: str) -> str:
    """Return the name of the side table."""
    return shortened(table, "_" + new)


@dataclass(frozen=True)
class Record:
    """A comment of a job: the card of the new space, what the store must remember, and what `save_job` was given.

    `book` is None after the clean-up that follows a cut-over. Only the card remains then.
    """

    space: dict[str, Any]
    book: Book | None = None
    job: dict[str, Any] | None = None

    def to_comment(self) -> str:
        """Return the text of the comment."""
        content = {"space": self.space, "store": asdict(self.book) if self.book else None, "job": self.job}
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
        return Record(content.get("space") or {}, Book(**book) if book else None, content.get("job"))
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


def find_records(session: Session, table: Table) -> list[Record]:
    """Return the records of all jobs on a table."""
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
    records = (parse_comment(comment) for (comment,) in comments)
    return [record for record in records if record and record.book and record.book.table == table.title]


def write_record(session: Session, table: Table, record: Record) -> None:
    """Store a record with the new column or the side table of its job."""
    book = record.book
    assert book is not None
    if book.layout == "side":
        comment_on(session, compose("table {side}", side=table.in_schema(side_name(table.name, book.new))), record)
    else:
        comment_on(session, compose("column {T}.{N}", T=table.qualified, N=quoted(book.new_name)), record)


def comment_on(session: Session, target: sql.Composable, record: Record) -> None:
    """Write a record as the comment of a column, a table or a view."""
    session.run("comment on {target} is {comment}", target=target, comment=record.to_comment())
