"""The layout of a second column: the new vectors stand in the table, beside a column of states.

Triggers empty the new vector of a row whose old one changes, unless the statement brings both. After the cut-over they
also empty the old vector of a row whose new one others change or empty, so that it is not filled again. The job itself
is known by the state that it writes in the same statement. A row that is still to do has neither a new vector nor a
state.
"""

import logging
import time
from typing import LiteralString

from psycopg import sql

from repstitch.stores.postgresql.catalog import Table, vector_indexes
from repstitch.stores.postgresql.connection import LockedError, Session, compose, quoted, raw
from repstitch.stores.postgresql.guard import drop_guard
from repstitch.stores.postgresql.job import Record
from repstitch.stores.postgresql.layout import Layout, Page, Trigger, word_of
from repstitch.stores.postgresql.settings import copy_storage
from repstitch.stores.postgresql.view import drop_view, write_view
from repstitch.stores.store import NATIVE, Translate, Unit, Which

ON_INSERT: LiteralString = """begin
  if new.{N} is null then new.{S} := null;
  elsif new.{S} is null then new.{S} := {native} || {checksum};
  end if;
  return new;
end"""
ON_UPDATE: LiteralString = """begin
  if new.{V} is distinct from old.{V} then
    if new.{N} is not distinct from old.{N} then
      new.{N} := null;
    end if;
    new.{S} := case when new.{N} is null then null else {native} || {checksum} end;
  elsif new.{N} is distinct from old.{N} then
    new.{S} := case when new.{N} is not null then {native} || {checksum} else {emptied} end;
    {empty_old}
  end if;
  return new;
end"""
EMPTY_OLD: LiteralString = "new.{V} := null;"  # it belongs to what the row was before
log = logging.getLogger(__name__)

INDEX_WAIT_SECONDS = 30
INDEXED_PAGE_ROWS = 512  # each update takes longer there, and others wait for the rows of a page
LOCKED_SECONDS = 0.05  # to wait where others have locked all rows that are left
TO_DO: LiteralString = "{N} is null and {V} is not null and {S} is null"


def may_pass_triggers(session: Session) -> bool:
    """Return whether this role may write rows without firing the triggers of others, such as one that sets a date."""
    if session.connection.info.server_version < 150_000:
        return session.value("select current_setting('is_superuser')::boolean")
    return session.value("select has_parameter_privilege('session_replication_role', 'SET')")


class ColumnLayout(Layout):
    """A second column of vectors in the table."""

    rest_finds_all = True

    def __init__(self, session: Session, table: Table, id_column: str, source_dim: int, job: Record):
        super().__init__(session, table, id_column, source_dim, job)
        self.names |= {
            "N": quoted(self.book.new_name),
            "S": quoted(self.book.state_name),
            "rest": quoted(self.label("rest")),
        }
        self.to_do = self.compose(TO_DO)
        self.may_pass_triggers = may_pass_triggers(session)
        self._has_waited = False
        if vector_indexes(session, table.oid, table.fields[self.book.old_name].number):
            self.page_rows = INDEXED_PAGE_ROWS

    def create(self) -> None:
        """Add the two columns and the triggers."""
        self.run("alter table {T} add column {N} {type}, add column {S} text", type=self.new_type)
        copy_storage(self)
        self.arm()
        self.make_triggers()

    def triggers(self) -> list[Trigger]:
        """Return the triggers that empty new vectors."""
        target = self.table.qualified
        update = "before update on {T} for each row when (new.{S} is not distinct from old.{S})"
        return [
            Trigger("insert", self.compose("before insert on {T} for each row"), "insert", target),
            Trigger("update", self.compose(update), "update", target),
        ]

    def mistrust(self) -> None:
        """Empty native vectors of rows with an old vector, because their rows may have changed unseen."""
        self._empty(self.compose("{word} = {native} and {V} is not null", word=word_of(self.names["S"]), native=NATIVE))

    def redo(self, chosen: sql.Composable) -> int:
        """Empty the new vectors of ids that are `chosen`, where they can be translated again."""
        condition = "{I} {chosen} and ({V} is not null or {word} is distinct from {native})"
        return self._empty(self.compose(condition, chosen=chosen, word=word_of(self.names["S"]), native=NATIVE))

    def _empty(self, condition: sql.Composable) -> int:
        with self.session.transaction():
            self._pass_triggers()
            return self.session.count(
                self.compose("update {T} set {N} = null, {S} = null where {condition}", condition=condition)
            )

    def _pass_triggers(self) -> None:
        """Fire only triggers that always fire, in this transaction, if this role may."""
        if self.may_pass_triggers:
            self.session.run("set local session_replication_role = replica")

    def arm(self) -> None:
        """Write the functions of the triggers, and the view, for the present phase of the job."""
        checksum, is_live = self.checksum(self.compose("new.{N}")), self.book.is_live
        self.function("insert", self.compose(ON_INSERT, checksum=checksum))
        empty_old = self.compose(EMPTY_OLD if is_live else "")
        self.function("update", self.compose(ON_UPDATE, checksum=checksum, emptied=self.emptied, empty_old=empty_old))
        write_view(self, self.compose("{T} d"), self.compose("d.{N}" if is_live else "d.{V}"))

    @property
    def place(self) -> tuple[sql.Composable, str]:
        """The quoted table that has the new vectors, and the name of their column."""
        return self.table.qualified, self.book.new_name

    @property
    def job_writes(self) -> sql.Composed:
        """The condition, in a trigger on the new vectors, on a write of the job itself."""
        return self.compose("new.{S} is distinct from old.{S}")

    # --- filling ------------------------------------------------------------------------------------------------------

    def remaining(self) -> sql.Composed:
        """Return the condition on rows of T that the first pass must still fill: older than the triggers."""
        return self.compose("{to_do} and age(xmin) >= age({begun}::xid)", to_do=self.to_do, begun=self.book.begun)

    def fill(self, unit: Unit, translate: Translate) -> int:
        """Translate and write the rows of a range of blocks."""
        where = self.compose("{blocks} and {to_do}", blocks=self.blocks(unit), to_do=self.to_do)
        return self._write(
            self.read_page(self.compose("select ctid, xmin, {V} from {T} d where {where}", where=where)), translate
        )

    def rest_page(self, translate: Translate) -> int:
        """Translate and write some rows without a new vector, which a partial index finds."""
        with self.session.transaction():
            self.session.run("set local enable_seqscan = off")
            page = self.read_page(
                self.compose(
                    "select ctid, xmin, {V} from {T} where {to_do} limit {n}", to_do=self.to_do, n=self.page_rows
                )
            )
        if not self._write(page, translate) and len(page.rows):
            time.sleep(LOCKED_SECONDS)
        return len(page.rows)

    def _write(self, page: Page, translate: Translate) -> int:
        """Translate rows, write those that have not changed, and return their number.

        Rows that others have locked come again, so the job never waits for a writer, and cannot be in a deadlock.
        """
        if not len(page.rows):
            return 0
        content, _ = self.translated(page.rows, translate)
        with self.session.transaction():
            self._pass_triggers()
            if not self.is_in_place(page, "row exclusive"):
                return 0
            self.put_page(content)
            return self.session.count(
                self.compose(
                    """update {T} d set {N} = page.vector,
                        {S} = case when page.vector is null then {skipped} else {state} end
                    from (select d.ctid as place, page.vector from {page} page
                        join {T} d on d.ctid = page.place and d.xmin = page.transaction
                        for no key update of d skip locked) page
                    where d.ctid = page.place"""
                )
            )

    def prepare_rest(self) -> None:
        """Make the partial index that finds rows still to do, without stopping writers.

        It waits for all transactions that use the table. If one of them lasts long, the rest is found without an index.
        """
        is_valid = self.session.value(
            """select i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid
            where i.indrelid = {oid} and c.relname = {name}""",
            oid=self.table.oid,
            name=self.label("rest"),
        )
        if is_valid or self._has_waited:
            return
        self.session.run("set lock_timeout = {wait}", wait=f"{INDEX_WAIT_SECONDS * 1000:.0f}ms")
        try:
            self.run("drop index concurrently if exists {index}", index=self.object_name("rest"))
            self.run("create index concurrently {rest} on {T} ({S}) where {to_do}", to_do=self.to_do)
        except LockedError:
            self._has_waited = True
            log.info("%s: a long transaction delays the index of the rows still to do.", self.table.title)
        finally:
            self.session.run("reset lock_timeout")

    def count_rest(self, at_most: int | None) -> int:
        """Return the number of rows still to do, at most `at_most`."""
        limit = compose("limit {n}", n=at_most) if at_most is not None else compose("")
        with self.session.transaction():
            if not self.book.first_pass:
                self.session.run("set local enable_seqscan = off")
            return self.session.value(
                self.compose(
                    "select count(*) from (select from {T} where {to_do} {limit}) rest", to_do=self.to_do, limit=limit
                )
            )

    def states(self) -> dict[str, int]:
        """Return the number of rows by the first word of their state."""
        rows = self.run(
            """select coalesce({word}, ''), count(*) from {T}
            where {V} is not null or {N} is not null group by 1 order by 1""",
            word=word_of(self.names["S"]),
        )
        return dict(rows)

    # --- reading ------------------------------------------------------------------------------------------------------

    def compared(self, chosen: sql.Composable) -> tuple[sql.Composed, dict[str, sql.Composable]]:
        """Return the rows of both columns, and its columns: id, old, new, state."""
        return self.compose("(select * from {T} where {I} {chosen}) d", chosen=chosen), {
            "id": self.compose("d.{I}"),
            "old": self.compose("d.{V}"),
            "new": self.compose("d.{N}"),
            "is_orphan": raw("false"),
            "state": self.compose("d.{S}"),
        }

    def searched(self, which: Which, condition: sql.Composable) -> tuple[sql.Composed, sql.Composable]:
        """Return the relation to search, with the table as `d`, and the column of vectors in it."""
        return self.compose("(select * from {T} where {condition}) d", condition=condition), self.compose(
            "d.{V}" if which == "old" else "d.{N}"
        )

    # --- cut-over and after -------------------------------------------------------------------------------------------

    def rename(self, live: bool) -> None:
        """Swap the names of the columns, or swap them back."""
        if not self.book.swaps or live == self.book.is_live:
            return
        renames = [(self.book.vector, self.book.old), (self.book.new, self.book.vector)]
        for name, to in renames if live else [(to, name) for name, to in reversed(renames)]:
            self.run("alter table {T} rename column {name} to {to}", name=quoted(name), to=quoted(to))

    def remove(self) -> None:
        """Remove all that the job has made."""
        drop_view(self)
        drop_guard(self, column=True)
        self.drop_functions("insert", "update")
        self.run("drop index if exists {index}", index=self.object_name("rest"))
        self.run("alter table {T} drop column if exists {N}, drop column if exists {S}")

    def finish(self) -> None:
        """Remove the old vectors, the states and the triggers."""
        drop_guard(self, column=True)
        self.drop_functions("insert", "update")
        self.run("drop index if exists {index}", index=self.object_name("rest"))
        self.run("alter table {T} drop column if exists {V}, drop column if exists {S}")
