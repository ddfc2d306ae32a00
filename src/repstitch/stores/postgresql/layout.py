"""What both layouts of a migration in PostgreSQL share: pages of rows that are read, translated and written."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, LiteralString

import numpy as np
from psycopg import sql

from repstitch.errors import InputError
from repstitch.stores.postgresql.catalog import Table
from repstitch.stores.postgresql.connection import LockedError, Session, compose, quoted, raw
from repstitch.stores.postgresql.copying import PLACE, TRANSACTION, Vectors, decode, encode, record, rows_of
from repstitch.stores.postgresql.job import Book, Record, find_record, label_prefix, write_record
from repstitch.stores.store import NATIVE, SKIPPED, TRANSLATED, Translate, Unit, Which

PAGE_ROWS = 4096  # rows that are translated together
LOCK_TRIES = 10
BETWEEN_TRIES_SECONDS = 0.2
LONGEST_WAIT_MS = 2**31 - 1  # that PostgreSQL takes
LIVE_NATIVE = f"{NATIVE}@live"  # begins the state of a row that others have written since the cut-over
CHECKSUM_SIGNS = 8
FUNCTIONS = ("insert", "update", "change", "native", "live", "truncate", "guard_mark", "guard")


@dataclass(frozen=True)
class Page:
    """Rows (n,) with their places, transactions and old vectors, and the file of the table that the places are in."""

    rows: np.ndarray
    file: int


@dataclass(frozen=True)
class Trigger:
    """A trigger of a job. `when` is all between its name and its function, and `target` the table it is on."""

    name: str
    when: sql.Composable
    function: str
    target: sql.Identifier


class Layout(ABC):
    """The place of the new vectors of a job, with the SQL that fills it and makes it the one that readers see.

    In `compose`, the names T, V and I are the table, its old vectors and its ids, and N the new vectors.
    """

    def __init__(self, session: Session, table: Table, id_column: str, source_dim: int, job: Record):
        assert job.book is not None
        self.session, self.table, self.id, self.record, self.book = session, table, id_column, job, job.book
        old = table.fields[self.book.old_name]
        self._has_listed, self.page_rows = False, PAGE_ROWS
        self.source = Vectors(source_dim, old.type == "halfvec")
        self.target = Vectors(self.book.dim, self.book.half)
        self.new_type = table.type("halfvec" if self.book.half else "vector", self.book.dim)
        self.names: dict[str, sql.Composable] = {
            "T": table.qualified,
            "V": quoted(self.book.old_name),
            "I": quoted(id_column),
            "page": raw("pg_temp.repstitch_page"),
            "state": sql.Literal(f"{TRANSLATED}@{self.book.version}"),
            "skipped": sql.Literal(SKIPPED),
            "native": sql.Literal((LIVE_NATIVE if self.book.is_live else NATIVE) + ":"),
        }

    def compose(self, text: LiteralString, /, **values: Any) -> sql.Composed:
        """Return SQL with the names of this layout."""
        return compose(text, **(self.names | values))

    def run(self, text: LiteralString, /, **values: Any) -> list[tuple]:
        """Run SQL with the names of this layout."""
        return self.session.run(self.compose(text, **values))

    rest_finds_all: ClassVar[bool]  # whether `rest_page` finds rows that the first pass has left

    # --- what a layout defines ----------------------------------------------------------------------------------------

    @abstractmethod
    def create(self) -> None:
        """Make the place for the new vectors, with its triggers."""

    @abstractmethod
    def triggers(self) -> list[Trigger]:
        """Return the triggers that keep the new vectors right."""

    @abstractmethod
    def mistrust(self) -> None:
        """Make native vectors be translated again, because their rows may have changed unseen."""

    @abstractmethod
    def redo(self, chosen: sql.Composable) -> int:
        """Make the new vectors of ids that are `chosen` be translated again, and return the number of rows."""

    @abstractmethod
    def remaining(self) -> sql.Composed:
        """Return the condition on rows of T that the first pass must still fill, whatever page they are on."""

    @abstractmethod
    def fill(self, unit: Unit, translate: Translate) -> int:
        """Translate and write the rows of a range of blocks."""

    @abstractmethod
    def prepare_rest(self) -> None:
        """Make what finds the rest quickly, outside a transaction."""

    @abstractmethod
    def rest_page(self, translate: Translate) -> int:
        """Translate and write some rows that changed since. Return the number looked at."""

    @abstractmethod
    def count_rest(self, at_most: int | None) -> int:
        """Return the number of rows still to do, at most `at_most`."""

    @abstractmethod
    def states(self) -> dict[str, int]:
        """Return the number of rows by the first word of their state."""

    @abstractmethod
    def compared(self, chosen: sql.Composable) -> tuple[sql.Composed, dict[str, sql.Composable]]:
        """Return the join of both columns for the ids that are `chosen`, and its columns: id, old, new, state.

        `chosen` is SQL that follows the id, such as `= any(…)`.
        """

    @abstractmethod
    def searched(self, which: Which, condition: sql.Composable) -> tuple[sql.Composed, sql.Composable]:
        """Return the relation to search, with the table as `d`, and the column of vectors in it.

        `condition` is one on the rows of the table, with its columns only.
        """

    @property
    @abstractmethod
    def place(self) -> tuple[sql.Composable, str]:
        """The quoted table that has the new vectors, and the name of their column."""

    @property
    @abstractmethod
    def job_writes(self) -> sql.Composed:
        """The condition, in a trigger on the new vectors, on a write of the job itself."""

    @abstractmethod
    def arm(self) -> None:
        """Write the functions of the triggers, and the view, for the present phase of the job."""

    @abstractmethod
    def rename(self, live: bool) -> None:
        """Swap the names of the columns, or swap them back, if this layout and this job do so."""

    @abstractmethod
    def remove(self) -> None:
        """Remove all that the job has made."""

    @abstractmethod
    def finish(self) -> None:
        """Remove the old vectors, after a cut-over, and what the job needs no more."""

    # --- pages of rows ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the temporary table of this connection."""
        self.session.run("set synchronous_commit = off")
        self.run(
            "create temp table if not exists repstitch_page(place tid, transaction xid, vector {type}) "
            "on commit delete rows",
            type=self.new_type,
        )

    def units(self) -> list[Unit]:
        """Return ranges of blocks with rows of the first pass, and remember when there are none."""
        if not self.book.first_pass:
            return []
        blocks = max(
            self.session.value(
                "select pg_relation_size({oid}::oid) / current_setting('block_size')::bigint", oid=self.table.oid
            ),
            1,
        )
        n_rows = self.session.value("select reltuples::bigint from pg_class where oid = {oid}", oid=self.table.oid)
        if n_rows <= 0:
            n_rows = self.session.value("select count(*) from {T}", T=self.table.qualified)
        size = max(1, min(blocks, round(self.page_rows * blocks / max(n_rows, 1))))
        rows = self.run(
            """select block, count(*) from (select (ctid::text::point)[0]::bigint / {size} as block from {T} d
            where {remaining}) blocks group by block order by block""",
            size=size,
            remaining=self.remaining(),
        )
        if self.rest_finds_all and self._has_listed and sum(n for _, n in rows) <= PAGE_ROWS:
            rows = []  # others have locked these rows; they are left to `rest_page`
        self._has_listed = True
        if not rows:
            self.save(first_pass=False)
        return [
            Unit(f"blocks {block * size} to {block * size + size - 1}", n, (block * size, block * size + size))
            for block, n in rows
        ]

    def blocks(self, unit: Unit) -> sql.Composed:
        """Return the condition on the place of a row of T."""
        first, end = (f"({block},0)" for block in unit.token)
        return compose("d.ctid >= {first}::tid and d.ctid < {end}::tid", first=first, end=end)

    def read_page(self, query: sql.Composed) -> Page:
        """Return rows of T with their places, transactions and old vectors.

        The lock keeps the file: `vacuum full`, `cluster` and some changes of the table move the rows to another file,
        with the same transactions, so there the same place may be that of another row.
        """
        layout = record({"place": PLACE, "transaction": TRANSACTION, "vector": self.source})
        try:
            return self._read(query, layout)[0]
        except ValueError as error:
            raise InputError(
                f"Column {self.book.old_name!r} of {self.table.title} must have {self.source.dim} numbers in every "
                f"vector; it has {error}."
            ) from None

    def read_places(self, query: sql.Composed) -> tuple[Page, list[str]]:
        """Return rows of T with their places and transactions, and one text of each, such as its id."""
        return self._read(query, record({"place": PLACE, "transaction": TRANSACTION}))

    def _read(self, query: sql.Composed, layout: np.dtype) -> tuple[Page, list[str]]:
        with self.session.transaction():
            self.run("lock table {T} in access share mode")
            rows, texts = decode(list(rows_of(self.session.copy_out(query))), layout)
            return Page(rows, self._file()), texts

    def is_in_place(self, page: Page, mode: LiteralString) -> bool:
        """Return whether the rows of a page are still in the same file, and lock the table so that they stay there."""
        self.run("lock table {T} in {mode} mode", mode=raw(mode))
        return self._file() == page.file

    def _file(self) -> int:
        return self.session.value("select pg_relation_filenode({oid}::oid)::bigint", oid=self.table.oid)

    def translated(self, rows: np.ndarray, translate: Translate) -> tuple[bytes, int]:
        """Return rows translated, as a COPY, and the number of those with a translation."""
        vectors = np.asarray(translate(rows["vector"].astype(np.float32)))
        if vectors.shape != (len(rows), self.book.dim):
            raise InputError(f"The new vectors must have {self.book.dim} dimensions; got shape {vectors.shape}.")
        return encode(rows, vectors, self.book.half)

    def put_page(self, content: bytes) -> None:
        """Write a page to the temporary table, and make the planner look up each row by its place."""
        self.session.run("set local enable_hashjoin = off")
        self.session.run("set local enable_mergejoin = off")
        self.session.run("set local enable_seqscan = off")
        self.run("delete from {page}")  # a cut-over writes several pages in one transaction
        self.session.copy_in(self.names["page"], content)

    # --- parts of the two steps ---------------------------------------------------------------------------------------

    def save(self, job: dict[str, Any] | None = None, **changes: Any) -> None:
        """Store the job, and changes in what this store remembers. Other connections may have saved since."""
        saved = find_record(self.session, self.table, self.book.vector) or self.record
        self.record = saved.with_book(**changes)
        if job is not None:
            self.record = replace(self.record, job=job)
        assert self.record.book is not None
        self.book: Book = self.record.book
        write_record(self.session, self.table, self.record)

    def function(self, name: str, body: sql.Composable, definer: bool = False) -> None:
        """Make a function for triggers, or replace it. With `definer` it has the rights of the owner of the table."""
        self.run(
            """create or replace function {name}() returns trigger language plpgsql {security}
            set search_path = pg_catalog, {extension}, pg_temp as {body}""",
            name=self.object_name(name),
            security=raw("security definer" if definer else ""),
            extension=quoted(self.table.extension),
            body=body.as_string(self.session.connection),
        )

    def make_triggers(self, triggers: list[Trigger] | None = None) -> None:
        """Make the triggers, which fire for replicated rows too."""
        for trigger in triggers or self.triggers():
            names = {"name": quoted(self.label(trigger.name)), "target": trigger.target}
            function = self.object_name(trigger.function)
            self.run(
                "create trigger {name} {when} execute function {function}()",
                when=trigger.when,
                function=function,
                **names,
            )
            self.run("alter table {target} enable always trigger {name}", **names)

    @property
    def emptied(self) -> sql.Composable:
        """The state of a row whose new vector others have emptied.

        Before a cut-over there is none, so the row is translated again. After it the old vector goes too, so that the
        row is not filled again with what it was, and a roll-back counts it.
        """
        return self.names["native"] if self.book.is_live else raw("null")

    def checksum(self, vector: sql.Composable) -> sql.Composed:
        """Return the checksum of a new vector, which stands in the state of a native one."""
        send = quoted(self.table.extension, "halfvec_send" if self.book.half else "vector_send")
        return compose("left(md5({send}({vector})), {n})", send=send, vector=vector, n=CHECKSUM_SIGNS)

    @contextmanager
    def as_owner(self) -> Iterator[None]:
        """Make what is made inside belong to the owner of the table, if this role may act as the owner."""
        owner, previous = self.session.run(
            """select case when relowner <> current_user::regrole and pg_has_role(current_user, relowner, {right})
                and has_schema_privilege(relowner, relnamespace, 'CREATE') then pg_get_userbyid(relowner) end,
                current_setting('role') from pg_class where oid = {oid}""",
            oid=self.table.oid,
            right="SET" if self.session.connection.info.server_version >= 160_000 else "MEMBER",
        )[0]
        with self.session.transaction():
            if owner is not None:
                self.session.run("set local role {owner}", owner=quoted(owner))
            yield
            if owner is not None:
                self.session.run("set local role {previous}", previous=previous)

    def label(self, name: str) -> str:
        """Return the name of an object of this job."""
        return label_prefix(self.book.tag) + name

    def object_name(self, name: str) -> sql.Identifier:
        """Return the quoted name of an object of this job with its schema."""
        return self.table.in_schema(self.label(name))

    def drop_functions(self, *names: str) -> None:
        """Drop functions of this job, and the triggers that call them."""
        for name in names:
            self.run("drop function if exists {name}() cascade", name=self.object_name(name))


def word_of(state: sql.Composable) -> sql.Composed:
    """Return the first word of a state, such as `native` of `native@live:1a2b3c4d`."""
    return compose("split_part(split_part({state}, '@', 1), ':', 1)", state=state)


@contextmanager
def patient(session: Session, seconds: float = 2.0) -> Iterator[None]:
    """Run the statements inside as one transaction that waits only briefly for locks, because others wait behind it.

    Its commit is as durable as the server's setting says, unlike those of pages, which a crash may undo and a run redo.
    """
    with session.transaction():
        session.run("set local synchronous_commit to default")
        session.run("set local lock_timeout = {wait}", wait=f"{min(max(1, int(seconds * 1000)), LONGEST_WAIT_MS)}ms")
        yield


def retried(session: Session, change: Callable[[], object], seconds: float = 2.0) -> None:
    """Run a change of the table in a `patient` transaction, and try again if others hold a lock."""
    for attempt in range(LOCK_TRIES):
        try:
            with patient(session, seconds):
                change()
            return
        except LockedError:
            if attempt == LOCK_TRIES - 1:
                raise
            time.sleep(BETWEEN_TRIES_SECONDS * (attempt + 1))
