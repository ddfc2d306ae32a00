"""The layout of a side table: the new vectors stand in a table of their own, so that an index on the old ones costs
nothing during the fill.

A trigger on the table appends the id of each changed row to a queue, which has no unique key, so writers never wait for
each other. Each row of the side table has the number `at` of its last write, from the same sequence as the entries of
the queue. A native vector is up to date if it was written after the last change of its row, or in the same transaction.
The job is known by a number that it brings itself. A row without an old vector has a row without a vector in the side
table, so that the view of readers shows it. After the cut-over, the old vector of a row whose new one others change,
empty or remove is emptied, so that the row is not filled again with what it was.
"""

from typing import LiteralString

from psycopg import sql

from repstitch.stores.postgresql.catalog import Table
from repstitch.stores.postgresql.connection import LockedError, Session, compose, quoted, raw
from repstitch.stores.postgresql.guard import drop_guard
from repstitch.stores.postgresql.job import Record, queue_name, shortened
from repstitch.stores.postgresql.layout import LIVE_NATIVE, PAGE_ROWS, Layout, Trigger, word_of
from repstitch.stores.postgresql.settings import copy_storage
from repstitch.stores.postgresql.view import copy_grants, drop_view, write_view
from repstitch.stores.store import NATIVE, Translate, Unit, Which

ON_CHANGE: LiteralString = """begin
  {leave_own}
  if tg_op = 'UPDATE' and new.{V} is not distinct from old.{V} and new.{I} is not distinct from old.{I} then
    return null;
  end if;
  if tg_op <> 'INSERT' then insert into {C}(id) values (old.{I}); end if;
  if tg_op = 'INSERT' or (tg_op = 'UPDATE' and new.{I} is distinct from old.{I}) then
    insert into {C}(id) values (new.{I});
  end if;
  {keep_in_line}
  return null;
end"""
# The old vector is emptied because others have just written the new one: nothing is to do.
LEAVE_OWN: LiteralString = """
  if tg_op = 'UPDATE' and new.{V} is null and new.{I} is not distinct from old.{I} and exists (select from {side} s
      where s.id = new.{I} and starts_with(s.state, {native}) and s.xact = pg_current_xact_id()) then
    return null;
  end if;"""
IN_LINE: LiteralString = """
  if tg_op = 'DELETE' then delete from {side} where id = old.{I}; return null; end if;
  if tg_op = 'UPDATE' then
    if new.{V} is distinct from old.{V} then
      update {side} set vector = null, state = null, at = {next} where id = old.{I}
        and (vector is not null or state is not null) and xact is distinct from pg_current_xact_id();
    end if;
    if new.{I} is distinct from old.{I} then
      delete from {side} where id = new.{I};
      update {side} set id = new.{I}, at = {next} where id = old.{I};
    end if;
  end if;
  insert into {side}(id, at, xact) values (new.{I}, {next}, pg_current_xact_id()) on conflict (id) do nothing;"""
ON_NATIVE: LiteralString = """begin
  if tg_op = 'UPDATE' and new.vector is not distinct from old.vector then return new; end if;
  new.at := {next}; new.xact := pg_current_xact_id();
  new.state := case when new.vector is not null then {native} || {checksum} else {emptied} end;
  if new.state is null then insert into {C}(id) values (new.id); end if;
  return new;
end"""
ON_LIVE: LiteralString = """begin
  update {T} set {V} = null where {I} = coalesce(new.id, old.id) and {V} is not null and not exists (
    select from {C} c where c.id = coalesce(new.id, old.id) and (tg_op = 'DELETE' or c.xact = pg_current_xact_id()));
  return null;
end"""
# The operator has its schema in a dump, which `is distinct from` has not. The functions look closer at nulls.
MAY_DIFFER: LiteralString = "(new.{column} operator({schema}.<>) old.{column}) is not false"
ON_TRUNCATE: LiteralString = "begin truncate {side}, {C}; return null; end"
WAIT = "300ms"  # for others that write to the side table: less than the second after which one of both would be ended
KEPT: LiteralString = """(coalesce(s.state like 'native%', false) and (s.vector is not null or d.{V} is null)
    and (s.at > c.at or s.xact = c.xact))"""


class SideLayout(Layout):
    """A table with the new vectors beside the table."""

    rest_finds_all = False

    def __init__(self, session: Session, table: Table, id_column: str, source_dim: int, job: Record):
        super().__init__(session, table, id_column, source_dim, job)
        side = self.book.side
        self.queue_name = queue_name(side)
        sequence = table.in_schema(shortened(side, "_changes_at_seq"))
        self.side = table.in_schema(side)
        self.names |= {
            "side": self.side,
            "C": table.in_schema(self.queue_name),
            "next": compose("nextval({name}::regclass)", name=sequence.as_string(session.connection)),
            "sequence": sequence,
            "changes": raw("pg_temp.repstitch_changes"),
            "kept": compose(KEPT, V=self.names["V"]),
            "lock": sql.Literal(self.book.tag),
        }
        self.without_side = self.compose(
            "{V} is not null and not exists (select from {side} s where s.id = d.{I}) "
            "and not exists (select from {C} c where c.id = d.{I})"
        )

    def create(self) -> None:
        """Make the side table, the queue and the triggers."""
        key = self._key()
        self.run(
            "create table {side}(id {key} primary key, vector {type}, state text, at bigint, xact xid8)",
            key=key,
            type=self.new_type,
        )
        self.run("create sequence {sequence}")
        self.run(
            "create table {C}(id {key}, xact xid8 default pg_current_xact_id(), at bigint default {next})", key=key
        )
        self.run("alter table {C} replica identity full")  # publications of all tables need one
        self.run("alter sequence {sequence} owned by {C}.at")
        copy_storage(self)
        copy_grants(self, self.side, "SELECT", "INSERT", "UPDATE", "DELETE")
        self.arm()
        self.make_triggers()

    def _key(self) -> sql.Composed:
        """Return the type of the ids, with their collation, without which their index serves no join."""
        collation = self.session.value(
            """select format('%I.%I', n.nspname, c.collname) from pg_attribute a join pg_type t on t.oid = a.atttypid
            join pg_collation c on c.oid = a.attcollation join pg_namespace n on n.oid = c.collnamespace
            where a.attrelid = {oid} and a.attname = {name} and a.attcollation <> t.typcollation""",
            oid=self.table.oid,
            name=self.id,
        )
        kind = raw(self.table.fields[self.id].type_text)
        return compose("{kind} collate {name}", kind=kind, name=raw(collation)) if collation else compose("{k}", k=kind)

    def triggers(self) -> list[Trigger]:
        """Return the triggers that fill the queue, and those that know native vectors."""
        schema = quoted(self.table.extension)
        changed = self.compose(
            "after update on {T} for each row when ({may_differ} or new.{I} is distinct from old.{I})",
            may_differ=compose(MAY_DIFFER, column=self.names["V"], schema=schema),
        )
        native = self.compose(
            "before update on {side} for each row when (new.at is not distinct from old.at and {may_differ})",
            may_differ=compose(MAY_DIFFER, column=quoted("vector"), schema=schema),
        )
        live = "after insert or update on {side} for each row when (starts_with(new.state, {live}))"
        inserted = "before insert on {side} for each row when (new.at is null)"
        table = self.table.qualified
        return [
            Trigger("change", self.compose("after insert or delete on {T} for each row"), "change", table),
            Trigger("update", changed, "change", table),
            Trigger("truncate", self.compose("after truncate on {T} for each statement"), "truncate", table),
            Trigger("insert", self.compose(inserted), "native", self.side),
            Trigger("native", native, "native", self.side),
            Trigger("live", self.compose(live, live=LIVE_NATIVE), "live", self.side),
            Trigger("emptied", self.compose("after delete on {side} for each row"), "live", self.side),
        ]

    def mistrust(self) -> None:
        """Queue rows with native vectors, because they may have changed unseen."""
        self._queue(raw("is not null"), compose("{word} = {native}", word=word_of(raw("s.state")), native=NATIVE))

    def redo(self, chosen: sql.Composable) -> int:
        """Queue ids that are `chosen`. Those without a row lose their new vector then."""
        return self._queue(chosen, raw("true"))

    def _queue(self, chosen: sql.Composable, condition: sql.Composable) -> int:
        """Queue ids whose new vectors are not to be trusted. A native one stays if there is no old one to translate."""
        relation, columns = self.compared(chosen)
        return self.session.value(
            self.compose(
                """with queued as (insert into {C}(id) select {id} from {relation} where {condition}
                    and (d.{I} is null or {old} is not null or {word} is distinct from {native}) returning id),
                marked as (update {side} s set state = null from queued where queued.id = s.id)
                select count(*) from queued""",
                relation=relation,
                condition=condition,
                word=word_of(columns["state"]),
                native=NATIVE,
                id=columns["id"],
                old=columns["old"],
            )
        )

    def arm(self) -> None:
        """Write the functions of the triggers, and the view, for the present phase of the job."""
        live = self.book.is_live
        leave_own, in_line = self.compose(LEAVE_OWN if live else ""), self.compose(IN_LINE if live else "")
        native = self.compose(ON_NATIVE, checksum=self.checksum(raw("new.vector")), emptied=self.emptied)
        on_live = self.compose(ON_LIVE) if live else self.compose("begin return null; end")
        self.function("change", self.compose(ON_CHANGE, leave_own=leave_own, keep_in_line=in_line), definer=True)
        self.function("native", native, definer=True)
        self.function("truncate", self.compose(ON_TRUNCATE), definer=True)
        self.function("live", on_live, definer=True)
        if live:
            self.run("create index if not exists {name} on {C}(id)", name=quoted(shortened(self.queue_name, "_id")))
        if live:
            write_view(self, self.compose("{T} d join {side} s on s.id = d.{I}"), self.compose("s.vector"))
        else:
            write_view(self, self.compose("{T} d"), self.compose("d.{V}"))

    @property
    def place(self) -> tuple[sql.Composable, str]:
        """The quoted table that has the new vectors, and the name of their column."""
        return self.names["side"], "vector"

    @property
    def job_writes(self) -> sql.Composed:
        """The condition, in a trigger on the new vectors, on a write of the job itself."""
        return compose("new.at is distinct from old.at")

    def prepare(self) -> None:
        """Make the temporary tables of this connection."""
        super().prepare()
        self.session.run(
            "create temp table if not exists repstitch_changes(id {key}, xact xid8, at bigint) on commit delete rows",
            key=self._key(),
        )

    # --- filling ------------------------------------------------------------------------------------------------------

    def remaining(self) -> sql.Composed:
        """Return the condition on rows of T that the first pass must still fill: those not in the queue."""
        return self.compose(
            "({V} is null and not exists (select from {side} s where s.id = d.{I})) or ({rows})", rows=self.without_side
        )

    def fill(self, unit: Unit, translate: Translate) -> int:
        """Translate and write the rows of a range of blocks."""
        blocks = self.blocks(unit)
        where = self.compose("{blocks} and {without_side}", blocks=blocks, without_side=self.without_side)
        page = self.read_page(self.compose("select ctid, xmin, {V} from {T} d where {where}", where=where))
        content = self.translated(page.rows, translate)[0] if len(page.rows) else None
        try:
            with self.session.transaction():
                self.run("select pg_advisory_xact_lock_shared(hashtextextended({lock}, 1))")
                self.run("set local lock_timeout = {wait}", wait=WAIT)
                self.run(
                    """insert into {side}(id, at, xact) select d.{I}, {next}, pg_current_xact_id() from {T} d
                    where {blocks} and {V} is null on conflict (id) do nothing""",
                    blocks=blocks,
                )
                if content is None or not self.is_in_place(page, "access share"):
                    return 0
                self.put_page(content)
                return self.session.count(self.compose("{insert} on conflict (id) do nothing", insert=self._insert()))
        except LockedError:
            return 0

    def _insert(self) -> sql.Composed:
        return self.compose(
            """insert into {side} as s(id, vector, state, at, xact)
            select d.{I}, page.vector, case when page.vector is null then {skipped} else {state} end, {next},
                pg_current_xact_id()
            from {page} page join {T} d on d.ctid = page.place and d.xmin = page.transaction"""
        )

    def prepare_rest(self) -> None:
        """Do nothing: the queue is what finds the rest."""

    def rest_page(self, translate: Translate) -> int:
        """Translate and write the rows of some entries of the queue.

        No page of the first pass may be written meanwhile: it could insert a row that has been deleted here.
        """
        try:
            with self.session.transaction():
                self.run("select pg_advisory_xact_lock(hashtextextended({lock}, 1))")
                self.run("set local lock_timeout = {wait}", wait=WAIT)
                n_entries = self._take_entries()
                if n_entries:
                    self._write_entries(translate)
                return n_entries
        except LockedError:
            return 1  # the entries are in the queue again

    def _write_entries(self, translate: Translate) -> None:
        """Bring the rows of the entries up to date. A native vector that others write meanwhile stays."""
        mark = self.session.value(self.compose("select {next}"))
        newer = self.compose("(coalesce(s.state like 'native%', false) and s.at > {mark})", mark=mark)
        joined = self.compose("{changes} c join {T} d on d.{I} = c.id left join {side} s on s.id = c.id")
        upsert = self.compose(
            """on conflict (id) do update set vector = excluded.vector, state = excluded.state, at = excluded.at,
                xact = excluded.xact where not {newer}""",
            newer=newer,
        )
        self.run(
            """delete from {side} s using {changes} c
            where s.id = c.id and not {newer} and not exists (select from {T} d where d.{I} = c.id)""",
            newer=newer,
        )
        self.run(
            """insert into {side} as s(id, at, xact) select c.id, {next}, pg_current_xact_id()
            from {joined} where d.{V} is null and not {kept} {upsert}""",
            joined=joined,
            upsert=upsert,
        )
        stale = self.compose("from {joined} where d.{V} is not null and not {kept}", joined=joined)
        rows = self.read_page(self.compose("select d.ctid, d.xmin, d.{V} {stale}", stale=stale)).rows
        if len(rows):
            self.put_page(self.translated(rows, translate)[0])
            written = self.session.count(self.compose("{insert} {upsert}", insert=self._insert(), upsert=upsert))
            if written < len(rows):
                self._put_back(stale)

    def _take_entries(self) -> int:
        """Take some entries out of the queue, and return the number of ids in them.

        The rows of the table are read by later statements, so they are at least as new as the entries.
        """
        self.run("delete from {changes}")
        return self.session.count(
            self.compose(
                """with taken as (delete from {C} where ctid = any(array(select ctid from {C} limit {n}))
                    returning id, xact, at)
                insert into {changes} select distinct on (id) id, xact, at from taken order by id, at desc""",
                n=PAGE_ROWS,
            )
        )

    def _put_back(self, stale: sql.Composed) -> None:
        """Put the entries of rows back into the queue that were written between reading and writing."""
        self.run(
            "insert into {C}(id, xact, at) select c.id, c.xact, c.at {stale} "
            "and s.xact is distinct from pg_current_xact_id()",
            stale=stale,
        )

    def count_rest(self, at_most: int | None) -> int:
        """Return the number of rows still to do, at most `at_most`."""
        first_pass = self.compose("union all select {I} from {T} d where {rows}", rows=self.without_side)
        return self.session.value(
            self.compose(
                "select count(*) from (select * from (select distinct id from {C}) queue {first_pass} {limit}) rest",
                first_pass=first_pass if self.book.first_pass else compose(""),
                limit=compose("limit {n}", n=at_most) if at_most is not None else compose(""),
            )
        )

    def states(self) -> dict[str, int]:
        """Return the number of rows by the first word of their state."""
        rows = self.run(
            """select coalesce({word}, ''), count(*)
            from {T} d left join {side} s on s.id = d.{I}
            where d.{V} is not null or s.vector is not null group by 1 order by 1""",
            word=word_of(raw("s.state")),
        )
        return dict(rows)

    # --- reading ------------------------------------------------------------------------------------------------------

    def compared(self, chosen: sql.Composable) -> tuple[sql.Composed, dict[str, sql.Composable]]:
        """Return the join of both columns, and its columns: id, old, new, state."""
        relation = self.compose(
            """(select * from {T} where {I} {chosen}) d
            full join (select * from {side} where id {chosen}) s on s.id = d.{I}""",
            chosen=chosen,
        )
        return relation, {
            "id": self.compose("coalesce(d.{I}, s.id)"),
            "old": self.compose("d.{V}"),
            "new": raw("s.vector"),
            "is_orphan": self.compose("d.{I} is null"),
            "state": raw("s.state"),
        }

    def searched(self, which: Which, condition: sql.Composable) -> tuple[sql.Composed, sql.Composable]:
        """Return the relation to search, with the table as `d`, and the column of vectors in it."""
        rows = self.compose("(select * from {T} where {condition}) d", condition=condition)
        if which == "old":
            return rows, self.compose("d.{V}")
        return self.compose("{rows} join {side} s on s.id = d.{I}", rows=rows), raw("s.vector")

    # --- cut-over and after -------------------------------------------------------------------------------------------

    def rename(self, live: bool) -> None:
        """Rename nothing: readers read a view, or the side table itself."""

    def remove(self) -> None:
        """Remove all that the job has made."""
        drop_view(self)
        self._drop_triggers()
        self.run("drop table if exists {side}, {C}")

    def _drop_triggers(self) -> None:
        self.drop_functions("change", "truncate", "native", "live", "guard_mark", "guard")

    def finish(self) -> None:
        """Remove the old vectors and the queue, and keep the side table in line with the table."""
        drop_guard(self, column=True)
        self._drop_triggers()
        self.function("rows", self.compose(ROWS_IN_LINE), definer=True)
        self.function("truncate", self.compose("begin truncate {side}; return null; end"), definer=True)
        table = self.table.qualified
        self.make_triggers(
            [
                Trigger(
                    "rows", self.compose("after insert or delete or update of {I} on {T} for each row"), "rows", table
                ),
                Trigger("truncate", self.compose("after truncate on {T} for each statement"), "truncate", table),
            ]
        )
        self.run("drop table {C}")
        self.run("alter table {side} drop column state, drop column at, drop column xact")
        self.run("alter table {T} drop column if exists {V}")


ROWS_IN_LINE: LiteralString = """begin
  if tg_op = 'DELETE' then delete from {side} where id = old.{I};
  elsif tg_op = 'INSERT' then insert into {side}(id) values (new.{I}) on conflict (id) do nothing;
  else update {side} set id = new.{I} where id = old.{I};
  end if;
  return null;
end"""
