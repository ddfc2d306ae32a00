"""What a plan must know of a table in PostgreSQL."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import LiteralString

from repstitch.errors import InputError
from repstitch.stores.postgresql.catalog import Table, VectorIndex, dim_of, options_of, vector_indexes
from repstitch.stores.postgresql.column import may_pass_triggers
from repstitch.stores.postgresql.connection import Session, quoted
from repstitch.stores.postgresql.job import find_record, parse_comment
from repstitch.stores.postgresql.view import tag_of
from repstitch.stores.store import Facts, Index, Migration

INDEX_DIMS = {"vector": 2000, "halfvec": 4000}  # that hnsw and ivfflat of pgvector take
TYPE_DIMS = 16_000
LAYOUT_NAMES = {"column": "column", "side": "side table"}
PAGE_BYTES = 8192
LOGGED_KEY_BYTES = 64  # of an entry of an index of ids


@dataclass(frozen=True)
class Column:
    """A column of vectors of a table, with its ids."""

    session: Session
    table: Table
    vector: str
    id: str

    @property
    def number(self) -> int:
        """The number of the column."""
        return self.table.fields[self.vector].number

    @property
    def tag(self) -> str:
        """The tag of the job on the column, or of one that would begin."""
        record = find_record(self.session, self.table, self.vector)
        return record.book.tag if record and record.book else f"{self.table.oid}_{self.number}"

    def indexes(self) -> list[VectorIndex]:
        """Return the indexes on the column."""
        return vector_indexes(self.session, self.table.oid, self.number)


def facts_of(column: Column) -> Facts:
    """Return what a plan must know."""
    session, table = column.session, column.table
    from_rows = session.run(
        "select count(*), count(*) filter (where {V} is null) from {T}", V=quoted(column.vector), T=table.qualified
    )
    n_rows, n_without = from_rows[0]
    table_bytes, index_bytes = session.run(
        "select pg_table_size({oid}::oid::regclass), coalesce(pg_indexes_size({oid}::oid::regclass), 0)", oid=table.oid
    )[0]
    record = find_record(session, table, column.vector)
    if record is not None and record.book is not None and record.book.layout == "side":
        side = table.in_schema(record.book.side)
        index_bytes += session.value("select pg_indexes_size({oid}::oid::regclass)", oid=session.oid_of(side)) or 0
    return Facts(
        n_rows,
        n_without,
        dim_of(session, table, column.vector),
        table_bytes or 0,
        index_bytes,
        _free_bytes(session),
        tuple(
            Index(index.name, index.method, options_of(index), index.n_bytes, index.metric)
            for index in column.indexes()
        ),
        tuple(dependents(column)),
        LAYOUT_NAMES[choose_layout(column)],
    )


def choose_layout(column: Column) -> str:
    """Return `side` where an index on the old vectors would slow each update down, else `column`.

    A partial index needs the other columns of the table, and row-level security would not hold for a side table.
    """
    indexes = [index for index in column.indexes() if not index.is_expression]
    return "side" if indexes and not is_partial(indexes) and not has_row_security(column) else "column"


def is_half(column: Column, migration: Migration) -> bool:
    """Return whether the new vectors must be `halfvec`: as the old ones are, or because the index takes no more."""
    return column.table.fields[column.vector].type == "halfvec" or (
        migration.dim > INDEX_DIMS["vector"] and any(not index.is_expression for index in column.indexes())
    )


def peak_bytes_of(column: Column, migration: Migration, facts: Facts) -> dict[str, int]:
    """Estimate the bytes that a job adds at its peak."""
    half = is_half(column, migration)
    width = migration.dim * (2 if half else 4) + 8
    n_vectors = facts.n_rows - facts.n_without_vector
    new = n_vectors * (width + 40)
    peak = {"new vectors": new}
    layout = migration.layout or choose_layout(column)
    if layout == "column":
        peak["old versions of rows"] = facts.table_bytes
    for index in column.indexes():
        if index.is_expression:
            continue
        m = dict(option.split("=", 1) for option in index.options).get("m", "16")
        per_row = width + (30 + 12 * int(m) if index.method == "hnsw" else 20)
        pages = -(-n_vectors // max(1, (PAGE_BYTES - 60) // per_row))
        peak[f"index {index.name} for the new vectors"] = pages * PAGE_BYTES
    # Each page of the table is logged once, as it is first touched. New versions of rows are in all indexes again.
    rewritten = facts.table_bytes + facts.index_bytes if layout == "column" else 0
    made = sum(n for name, n in peak.items() if name != "old versions of rows")
    peak["write-ahead log"] = made + n_vectors * LOGGED_KEY_BYTES + facts.table_bytes + rewritten
    return peak


def _free_bytes(session: Session) -> int | None:
    """Return the free space of the server's disk, or None if the server is elsewhere or does not tell its folder."""
    host = session.connection.info.host
    if not (host.startswith("/") or host in ("", "127.0.0.1", "::1", "localhost")):
        return None
    try:
        folder = session.value("select setting from pg_settings where name = 'data_directory'")
        status = os.statvfs(folder)
    except (InputError, OSError, TypeError):
        return None
    return status.f_bavail * status.f_frsize


def is_partial(indexes: list[VectorIndex]) -> bool:
    """Return whether one of the indexes is only on part of the rows."""
    return any(index.predicate for index in indexes)


def has_row_security(column: Column) -> bool:
    """Return whether the table has row-level security."""
    return column.session.value("select relrowsecurity from pg_class where oid = {oid}", oid=column.table.oid)


# --- what depends on the column ---------------------------------------------------------------------------------------


def views_on(column: Column, kinds: str = "vmr") -> list[str]:
    """Return the names of the views and rules that read the column, but for the view of the job itself."""
    rows = column.session.run(
        """select distinct n.nspname || '.' || c.relname, c.relkind, obj_description(c.oid, 'pg_class')
        from pg_depend d join pg_rewrite r on r.oid = d.objid join pg_class c on c.oid = r.ev_class
            join pg_namespace n on n.oid = c.relnamespace
        where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = {oid}
            and d.refobjsubid = {number} and c.oid <> {oid} order by 1""",
        oid=column.table.oid,
        number=column.number,
    )
    tag = column.tag
    return [name for name, kind, comment in rows if kind in kinds and tag_of(comment) != tag]


def dependents(column: Column) -> Iterator[str]:
    """Yield sentences that name what depends on the column."""
    for name in views_on(column, "v"):
        yield f"view {name} reads the column, and goes on with the old vectors after a swap of names; {WAITS}"
    for text, sentence in DEPENDENTS:
        for values in column.session.run(text, oid=column.table.oid, number=column.number):
            yield sentence.format(*values)
    comment = column.table.fields[column.vector].comment
    if comment and parse_comment(comment) is None:
        yield "the comment of the column goes with the old vectors; that of the new column states its space"
    yield (
        f"only in the layout `column`: {column.table.title} has two more columns as soon as `run` begins, so `insert` "
        "and `copy` must name their columns; the layout `side` adds none"
    )
    yield (
        "only with a swap of names: prepared statements that read the column fail after the cut-over, again and again, "
        "until readers prepare them anew or open new connections; those on a view go on"
    )
    if not may_pass_triggers(column.session):
        for (name,) in column.session.run(TRIGGERS_OF_ROWS, oid=column.table.oid, number=column.number):
            yield f"trigger {name} fires at each row that the job fills in a second column"
    for index in column.indexes():
        if index.is_expression:
            yield f"index {index.name} is on an expression of the column; make it anew for the new vectors"


WAITS = "the clean-up waits until it is dropped or made anew"
DEPENDENTS: tuple[tuple[LiteralString, str], ...] = (
    (
        """select distinct n.nspname || '.' || c.relname from pg_depend d join pg_rewrite r on r.oid = d.objid
        join pg_class c on c.oid = r.ev_class join pg_namespace n on n.oid = c.relnamespace
        where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = {oid}
            and d.refobjsubid = {number} and c.relkind = 'm' order by 1""",
        "materialised view {} contains the old vectors until it is made anew; " + WAITS,
    ),
    (
        """select distinct r.rulename from pg_depend d join pg_rewrite r on r.oid = d.objid
        where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = {oid}
            and d.refobjsubid = {number} and r.rulename <> '_RETURN' and r.ev_class = {oid} order by 1""",
        "rule {} of the table uses the column; " + WAITS,
    ),
    (
        """select distinct a.attname from pg_depend d join pg_attrdef f on f.oid = d.objid
        join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum
        where d.classid = 'pg_attrdef'::regclass and d.refobjid = {oid} and d.refobjsubid = {number}
            and a.attgenerated <> '' order by 1""",
        "generated column {} is computed from the old vectors; " + WAITS,
    ),
    (
        """select distinct p.polname from pg_depend d join pg_policy p on p.oid = d.objid
        where d.classid = 'pg_policy'::regclass and d.refobjid = {oid} and d.refobjsubid = {number} order by 1""",
        "policy {} uses the column; " + WAITS,
    ),
    (
        """select c.conname, (select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a
            where a.attrelid = {oid} and a.attnum = any(c.conkey))
        from pg_constraint c where c.conrelid = {oid} and c.contype <> 'n' and {number} = any(c.conkey) order by 1""",
        "constraint {} on {} stays with the old column, and the clean-up drops it with all that it demands; make it "
        "anew on the new column",
    ),
    (
        """select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam
        where i.indrelid = {oid} and m.amname not in ('hnsw', 'ivfflat') and ({number} = any(i.indkey) or exists (select
            from pg_depend d where d.objid = i.indexrelid and d.refobjid = {oid} and d.refobjsubid = {number}))
        order by 1""",
        "index {} contains the column, and the clean-up drops it; make it anew on the new column",
    ),
    (
        """select pg_get_expr(f.adbin, f.adrelid) from pg_attrdef f join pg_attribute a on a.attrelid = f.adrelid
            and a.attnum = f.adnum where f.adrelid = {oid} and f.adnum = {number} and a.attgenerated = ''""",
        "the default {} has the dimensions of the old column and stays with it; set one on the new column",
    ),
    (
        """select distinct coalesce(r.rolname, 'public') from pg_attribute a, aclexplode(a.attacl) g
        left join pg_roles r on r.oid = g.grantee where a.attrelid = {oid} and a.attnum = {number} order by 1""",
        "role {} has rights on this column only, and gets none on the new one",
    ),
    (
        """select p.pubname from pg_publication p where p.puballtables or exists (select from pg_publication_rel r
        where r.prpubid = p.oid and r.prrelid = {oid}) or exists (select from pg_publication_namespace s
        join pg_class c on c.relnamespace = s.pnnspid where s.pnpubid = p.oid and c.oid = {oid}) order by 1""",
        "publication {} replicates the table; in the layout `column`, add its two new columns to the subscribers' "
        "tables before `run`, or replication stops at the next change",
    ),
    (
        "select inhrelid::regclass::text from pg_inherits where inhparent = {oid} order by 1",
        "partition or child {} has the column too",
    ),
    (
        """select tgname from pg_trigger where tgrelid = {oid} and not tgisinternal and {number} = any(tgattr)
        order by 1""",
        "trigger {} fires at updates of the old column; " + WAITS,
    ),
)
TRIGGERS_OF_ROWS: LiteralString = """select tgname from pg_trigger where tgrelid = {oid} and not tgisinternal
    and tgtype & 17 = 17 and tgattr = '' and tgenabled <> 'D' and not starts_with(tgname, 'zzz_repstitch_')
    order by 1"""


def space_in_comments(table: Table, vector: str, comment: str | None) -> dict | None:
    """Return the card of the space that a comment of ours states for a column, on the column or on its table."""
    for text in (table.fields[vector].comment, comment):
        record = parse_comment(text)
        if record is not None and record.space:
            return record.space
    return None
