"""The embeddings in a table of PostgreSQL with pgvector.

Where an index on the old vectors would slow each update down, the new vectors go to a side table, else to a second
column. Triggers keep both right while others write. See `column` and `side`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from repstitch.addresses import Address
from repstitch.errors import InputError
from repstitch.stores.postgresql.arming import (
    arm_again,
    check_armed,
    check_trusted,
    is_armed,
    open_layout,
    tag_of_column,
)
from repstitch.stores.postgresql.catalog import choose_id, dim_of, listed, open_table, tables_with_vectors
from repstitch.stores.postgresql.checks import check_column
from repstitch.stores.postgresql.comparing import compare
from repstitch.stores.postgresql.connection import Session, check_lock, lock, quoted, raw
from repstitch.stores.postgresql.cutover import CutOverJob, roll_back
from repstitch.stores.postgresql.facts import (
    Column,
    choose_layout,
    facts_of,
    is_half,
    peak_bytes_of,
    space_in_comments,
)
from repstitch.stores.postgresql.indexing import build_indexes, search, stamp
from repstitch.stores.postgresql.job import Book, Record, find_record, find_records, side_name
from repstitch.stores.postgresql.layout import LIVE_NATIVE, Layout, retried
from repstitch.stores.postgresql.native import write_native
from repstitch.stores.postgresql.rehearsal import copied_table, drop_copies
from repstitch.stores.postgresql.remains import clean_up
from repstitch.stores.postgresql.rows import PostgresRows, Selection, one_of, sample, take
from repstitch.stores.postgresql.settings import not_null_name
from repstitch.stores.store import (
    Capabilities,
    Compared,
    CutOver,
    Facts,
    Hits,
    Migration,
    RolledBack,
    Store,
    Translate,
    Unit,
    Which,
)


class PostgresTable(Store):
    """One column of vectors of a table in PostgreSQL."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        concurrent_writers=True,
        atomic_cutover=True,
        column_in_place=True,
        writers_guard=True,
        state_kept="the comment of the new column or of the side table",
    )

    def __init__(self, address: Address, again: bool = False):
        self.address = address
        self.session = Session(address, again)
        try:
            self.table = open_table(self.session, address)
            self.vector = self._choose_vector()
            self.id = choose_id(self.session, self.table, address)
        except BaseException:
            self.session.close()
            raise
        self._layout: Layout | None = None
        self._lock_pid: int | None = None  # of the connection that has the right to work, if it is another one
        self._is_rehearsal = False

    def _choose_vector(self) -> str:
        """Return the column of vectors that the address names, or the only one that is not a job's own."""
        table, name = self.table, self.address.vector
        if name is None:
            columns_of_jobs: set[str] = set().union(
                *(r.book.own_columns for r in find_records(self.session, table) if r.book)
            )
            names = [column for column in table.vectors() if column not in columns_of_jobs]
            if len(names) != 1:
                if not names:
                    others = tables_with_vectors(self.session, table.name)
                    raise InputError(f"{table.title} has no column of vectors; {others}")
                raise InputError(
                    f"{table.title} has the columns of vectors {listed(names)}; add &vector=COLUMN to the address."
                )
            name = names[0]
        if name not in table.fields:
            for record in find_records(self.session, table, damaged_too=True):
                if record.book and record.book.vector == name and record.book.new in table.fields:
                    raise InputError(
                        f"Column {name!r} of {table.title}, which a job moves, is gone. To end the job and keep the "
                        f"new vectors, clean up with &vector={record.book.new} in the address."
                    )
        if not table.field(name).is_vector:
            raise InputError(
                f"Column {name!r} of {table.title} must be vector or halfvec; got {table.fields[name].type_text}. "
                f"Columns of vectors: {', '.join(table.vectors()) or 'none'}."
            )
        return name

    @property
    def _column(self) -> Column:
        return Column(self.session, self.table, self.vector, self.id)

    @property
    def layout(self) -> Layout:
        """The layout of the job, after `begin` or `resume`."""
        if self._layout is None:
            raise InputError(f"No job has been opened on column {self.vector!r} of {self.table.title}.")
        return self._layout

    # --- reading ------------------------------------------------------------------------------------------------------

    def rows(self) -> PostgresRows:
        """Return the rows that the address selects, at one moment."""
        return PostgresRows(self._selection(), self.address)

    def _selection(self) -> Selection:
        table = self.table
        comment = self.session.value("select obj_description({oid}::oid, 'pg_class')", oid=table.oid)
        space = space_in_comments(table, self.vector, comment)
        dim = dim_of(self.session, table, self.vector)
        return Selection(table, self.vector, self.id, self.address.where, dim, space)

    def sample(self, n: int, seed: int, columns: Sequence[str]) -> pa.Table:
        """Return n rows drawn at random, each with the same probability, without reading the whole table."""
        return sample(self.session, self._selection(), n, seed, columns)

    def take(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Return the rows with these ids, in any order. Rows that do not exist are left out."""
        return take(self.session, self._selection(), ids, columns)

    def reopen(self) -> "PostgresTable":
        """Return the same embeddings through a new connection."""
        store = PostgresTable(self.address, again=True)
        store._is_rehearsal, store._lock_pid = self._is_rehearsal, self._lock_pid
        return store

    def close(self) -> None:
        """End the connection."""
        self.session.close()

    # --- before a job -------------------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """Return what a plan must know. Writes nothing."""
        return facts_of(self._column)

    def check(self, migration: Migration) -> None:
        """Raise InputError, which says what to do, if the column cannot be moved so. Writes nothing."""
        check_column(self._column, self._in_rehearsal(migration), self.address.where)

    def describe_place(self, migration: Migration) -> str:
        """Return where the new vectors will stand until the cut-over, for people."""
        if (migration.layout or choose_layout(self._column)) == "column":
            return super().describe_place(migration)
        return f"table {side_name(self.table.name, migration.new)}"

    def describe_cut_over(self, migration: Migration) -> str:
        """Return what a cut-over changes, for people."""
        if (migration.layout or choose_layout(self._column)) == "column":
            return super().describe_cut_over(migration)
        side = side_name(self.table.name, migration.new)
        readers = f"view {migration.view} shows them" if migration.view else "readers join it"
        return (
            f"the new vectors stay in table {side}, and {readers}; writers write there, and the clean-up drops column "
            f"{self.vector}"
        )

    def peak_bytes(self, migration: Migration, facts: Facts) -> dict[str, int]:
        """Estimate the bytes that a job adds at its peak, by cause."""
        return peak_bytes_of(self._column, migration, facts)

    @contextmanager
    def rehearsal(self, n: int) -> Iterator[Store]:
        """Yield a store with a copy of n random rows that has the same indexes, and remove it at the end."""
        with copied_table(self._column, self._selection(), self.address, n, _clean_up_at) as address:
            store = PostgresTable(address, again=True)
            store._is_rehearsal = True
            try:
                yield store
            finally:
                store.close()

    def _in_rehearsal(self, migration: Migration) -> Migration:
        """Return a migration that makes no view, in a rehearsal."""
        return replace(migration, view=None, keep_names=True) if self._is_rehearsal else migration

    # --- the job ------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the right to work on this column. Raises InputError if another job on it is running."""
        with lock(self.session, self._lock_name) as is_free:
            if not is_free:
                raise InputError(
                    f"Another job is running on column {self.vector!r} of {self.table.title}; wait for it, or stop it."
                )
            self._lock_pid = self.session.pid
            try:
                yield
            finally:
                self._lock_pid = None

    @property
    def _lock_name(self) -> str:
        return f"{self.table.oid} {self.vector}"

    def job(self) -> dict[str, Any] | None:
        """Return what `save_job` has stored with the column, or None if there is no job."""
        job = find_record(self.session, self.table, self.vector)
        return job.job if job is not None else None

    def save_job(self, job: dict[str, Any]) -> None:
        """Store the state of the job in the comment of what the job has made."""
        if self._layout is None:
            self._open_layout()
        self.layout.save(job)

    def begin(self, migration: Migration, job: dict[str, Any]) -> None:
        """Make the place for the new vectors, with its triggers and the state of the job, in one transaction."""
        migration = self._in_rehearsal(migration)
        if find_record(self.session, self.table, self.vector) is not None:
            self._open_layout()
            if not is_armed(self.layout):
                retried(self.session, lambda: arm_again(self.layout))
            self.resume(migration)
            return
        self.check(migration)
        column, table = self._column, self.table
        old = table.fields[self.vector]
        book = Book(
            table=table.title,
            oid=table.oid,
            tag=tag_of_column(table, self.vector),
            vector=self.vector,
            new=migration.new,
            old=migration.old,
            dim=migration.dim,
            version=migration.version,
            layout=migration.layout or choose_layout(column),
            half=is_half(column, migration),
            keep_names=migration.keep_names,
            view=migration.view,
            not_null=not_null_name(self.session, table.oid, self.vector) if old.not_null else None,
            begun="0",
            side=side_name(table.name, migration.new),
        )

        def make() -> None:
            begun = self.session.value("select pg_current_xact_id()::xid::text")
            made = Record(json.loads(migration.space), replace(book, begun=begun), job)
            layout = open_layout(self.session, table, self.id, dim_of(self.session, table, self.vector), made)
            with layout.as_owner():
                layout.create()
                layout.save(job)

        retried(self.session, make)
        self.resume(migration)

    def resume(self, migration: Migration) -> None:
        """Prepare this instance for a job that has begun. Raises InputError if what the job needs is gone."""
        migration = self._in_rehearsal(migration)
        self._open_layout()
        book, card = asdict(self.layout.book), json.loads(migration.space)
        for name in ("dim", "version", "new", "old", "view", "layout"):
            wanted = getattr(migration, name)
            if book[name] != wanted and not (name == "layout" and wanted is None):
                raise InputError(
                    f"The job on column {self.vector!r} of {self.table.title} began with {name} {book[name]!r}; got "
                    f"{wanted!r}. Go on with the same, or clean the job up first."
                )
        if card != self.layout.record.space:
            raise InputError(f"The job on {self.table.title} moves it to another space; clean it up first.")
        if not self.layout.book.is_live:
            check_armed(self.layout)

    def _open_layout(self) -> None:
        job = find_record(self.session, self.table, self.vector)
        if job is None or job.book is None:
            raise InputError(f"There is no job on column {self.vector!r} of {self.table.title}; run it first.")
        self.table.fields = open_table(self.session, self.address).fields
        for name in {job.book.old_name} | ({job.book.new_name} if job.book.layout == "column" else set()):
            self.table.field(name)
        dim = dim_of(self.session, self.table, job.book.old_name)
        self._layout = open_layout(self.session, self.table, self.id, dim, job)
        self._layout.prepare()

    def units(self) -> list[Unit]:
        """Return the units of the first pass that are still to do: ranges of blocks."""
        if not self.layout.book.is_live:
            check_armed(self.layout)
        return self.layout.units()

    def fill(self, unit: Unit, translate: Translate) -> int:
        """Translate and write the rows of a unit that have no new vector, and return their number."""
        if self._lock_pid is not None:
            check_lock(self.session, self._lock_name, self._lock_pid)
        return self.layout.fill(unit, translate)

    def catch_up(self, translate: Translate) -> int:
        """Translate some of the rows that were written since. Return the number looked at."""
        if self.layout.book.is_live and not is_armed(self.layout):
            retried(self.session, lambda: arm_again(self.layout))
            self._open_layout()
        check_armed(self.layout)
        self.layout.prepare_rest()
        return self.layout.rest_page(translate)

    def redo(self, ids: Sequence[str]) -> int:
        """Make the new vectors of some rows be translated again, and return their number."""
        return self.layout.redo(one_of(ids, self.table.fields[self.id].type))

    def write_native(self, ids: Sequence[str], vectors: np.ndarray) -> int:
        return write_native(self.layout, ids, vectors)

    def count_rest(self, at_most: int | None = None) -> int:
        """Return the number of rows whose new vector is missing or out of date; counting may end at `at_most`."""
        return self.layout.count_rest(at_most)

    def count_only_new(self) -> int:
        relation, columns = self.layout.compared(raw("is not null"))
        query = "select count(*) from {relation} where {old} is null and {new} is not null"
        return self.session.value(query, relation=relation, **columns)

    def states(self) -> dict[str, int]:
        """Return the number of rows by the first word of their state, with "" for those that are still to do."""
        return self.layout.states()

    def index(self, progress: Callable[[float], None]) -> None:
        """Build the index of the new column with the settings of the old one, if there is one."""
        build_indexes(self.layout, progress)

    def index_stamp(self) -> str:
        """Return text that changes if the index of the new column is made anew or is no longer usable.

        It is MISSING if an index of the old column has no counterpart that is valid.
        """
        return stamp(self.layout)

    # --- verification -------------------------------------------------------------------------------------------------

    def compare(self, ids: Sequence[str] | None = None) -> Iterator[Compared]:
        """Yield all rows with an old or a new vector, in batches, at one moment; only those with `ids` if given."""
        layout = self.layout
        yield from compare(layout, self._selection(), ids)
        if ids is None and layout.book.suspect:
            layout.save(suspect=False)  # whoever compares has seen all rows, while triggers saw all changes

    def search(
        self, queries: np.ndarray, k: int, which: Which, where: str | None = None, metric: str | None = None
    ) -> Hits:
        return search(self.layout, queries, k, which, where, metric)

    # --- cut-over -----------------------------------------------------------------------------------------------------

    def cut_over(self, translate: Translate, job: dict[str, Any], max_rest: int, max_pause: float) -> CutOver:
        """Catch up the rest, make the new vectors those that readers see, and store the job, in one transaction."""
        if self.layout.book.is_live:
            self.layout.save(job)
            return CutOver(0, 0.0)
        check_trusted(self.layout)
        self.layout.save(keep_names=bool(job.get("keep_names", self.layout.book.keep_names)))
        result = CutOverJob(self.layout, job, max_pause).run(translate, max_rest)
        self._open_layout()
        return result

    def roll_back(self, job: dict[str, Any], max_pause: float) -> RolledBack:
        """Make the old vectors those that readers see again, and store the state of the job, in one transaction."""
        result = roll_back(self.layout, job, max_pause)
        self._open_layout()
        return result

    def clean_up(self) -> None:
        """Remove all that the job has made; after a cut-over the old vectors, and what the job needs no more."""
        self._layout = None
        clean_up(self.session, self.table, self.vector, self.id)
        drop_copies(self._column, self.address, _clean_up_at)

    def written_since(self, limit: int) -> np.ndarray:
        """Return the vectors (n, d) that others wrote to the readers' column since the cut-over, at most `limit`."""
        target, vector = self.layout.place
        state = quoted(self.layout.book.state_name if self.layout.book.layout == "column" else "state")
        rows = self.session.run(
            "select {vector}::{type}::real[] from {target} where starts_with({state}, {native}) "
            "and {vector} is not null limit {n}",
            vector=quoted(vector),
            type=self.table.type("vector"),
            target=target,
            state=state,
            native=LIVE_NATIVE,
            n=limit,
        )
        return np.array([vector for (vector,) in rows], np.float32).reshape(len(rows), self.layout.book.dim)


def _clean_up_at(address: Address) -> None:
    """Remove what a job has made beside a table."""
    store = PostgresTable(address, again=True)
    try:
        store.clean_up()
    finally:
        store.close()
