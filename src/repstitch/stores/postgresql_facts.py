"""What a plan must know of a table in PostgreSQL, and why a column cannot be moved."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import LiteralString

from repstitch.errors import InputError
from repstitch.stores.postgresql_catalog import Table, VectorIndex, dim_of, is_unique, options_of, vector_indexes
from repstitch.stores.postgresql_column import may_pass_triggers
from repstitch.stores.postgresql_connection import Session, quoted
from repstitch.stores.postgresql_job import (
    find_record,
    find_records,
    parse_comment,
    queue_name,
    side_name,
    state_name,
)
from repstitch.stores.postgresql_view import is_own_view, tag_of
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
        "select pg_table_size({oid}::oid::regclass), pg_indexes_size({oid}::oid::regclass)", oid=table.oid
    )[0]
    layout = choose_layout(column)
    return Facts(
        n_rows,
        n_without,
        dim_of(session, table, column.vector),
        table_bytes or 0,
        index_bytes or 0,
        _free_bytes(session),
        tuple(
            Index(index.name, index.method, options_of(index), index.n_bytes, index.metric)
            for index in column.indexes()
        ),
        tuple(dependents(column)),
        LAYOUT_NAMES[layout],
    )


def choose_layout(column: Column) -> str:
    """Return `side` where an index on the old vectors would slow each update down, else `column`.

    A partial index needs the other columns of the table, and row-level security would not hold for a side table.
    """
    indexes = [index for index in column.indexes() if not index.is_expression]
    return "side" if indexes and not _partial(indexes) and not _row_security(column) else "column"


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


def _partial(indexes: list[VectorIndex]) -> bool:
    return any(index.predicate for index in indexes)


def _row_security(column: Column) -> bool:
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
        yield f"view {name} reads the column, and goes on with the old vectors after a swap of names"
    for text, sentence in DEPENDENTS:
        for (name,) in column.session.run(text, oid=column.table.oid, number=column.number):
            yield sentence.format(name)
    if not may_pass_triggers(column.session):
        for (name,) in column.session.run(TRIGGERS_OF_ROWS, oid=column.table.oid, number=column.number):
            yield f"trigger {name} fires at each row that the job fills in a second column"
    for index in column.indexes():
        if index.is_expression:
            yield f"index {index.name} is on an expression of the column; make it anew for the new vectors"


DEPENDENTS: tuple[tuple[LiteralString, str], ...] = (
    (
        """select distinct n.nspname || '.' || c.relname from pg_depend d join pg_rewrite r on r.oid = d.objid
        join pg_class c on c.oid = r.ev_class join pg_namespace n on n.oid = c.relnamespace
        where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = {oid}
            and d.refobjsubid = {number} and c.relkind = 'm' order by 1""",
        "materialised view {} contains the old vectors until it is made anew",
    ),
    (
        """select distinct r.rulename from pg_depend d join pg_rewrite r on r.oid = d.objid
        where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = {oid}
            and d.refobjsubid = {number} and r.rulename <> '_RETURN' and r.ev_class = {oid} order by 1""",
        "rule {} of the table uses the column",
    ),
    (
        """select distinct a.attname from pg_depend d join pg_attrdef f on f.oid = d.objid
        join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum
        where d.classid = 'pg_attrdef'::regclass and d.refobjid = {oid} and d.refobjsubid = {number}
            and a.attgenerated <> '' order by 1""",
        "generated column {} is computed from the old vectors",
    ),
    (
        """select distinct p.polname from pg_depend d join pg_policy p on p.oid = d.objid
        where d.classid = 'pg_policy'::regclass and d.refobjid = {oid} and d.refobjsubid = {number} order by 1""",
        "policy {} uses the column",
    ),
    (
        """select c.conname from pg_constraint c where c.conrelid = {oid} and c.contype = 'c'
            and {number} = any(c.conkey) order by 1""",
        "check constraint {} stays with the old column",
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
        "publication {} replicates the table; its subscribers need the new column too",
    ),
    (
        "select inhrelid::regclass::text from pg_inherits where inhparent = {oid} order by 1",
        "partition or child {} has the column too",
    ),
    (
        """select tgname from pg_trigger where tgrelid = {oid} and not tgisinternal and {number} = any(tgattr)
        order by 1""",
        "trigger {} fires at updates of the old column",
    ),
)
TRIGGERS_OF_ROWS: LiteralString = """select tgname from pg_trigger where tgrelid = {oid} and not tgisinternal
    and tgtype & 17 = 17 and tgattr = '' and tgenabled <> 'D' and not starts_with(tgname, 'zzz_repstitch_')
    order by 1"""


# --- what a column must be for a job ----------------------------------------------------------------------------------


def check_column(column: Column, migration: Migration, condition: str | None) -> None:
    """Raise InputError if the column cannot be moved so."""
    table = column.table
    if condition is not None:
        raise InputError("A migration moves all rows of a table: leave `where` out of the address.")
    if table.kind != "table":
        raise InputError(
            f"{table.title} is a {table.kind}, and a migration needs a plain table; "
            + ("copy its rows to one." if table.kind.startswith("part") else "name the table behind it.")
        )
    if column.session.value("select exists (select from pg_inherits where inhparent = {oid})", oid=table.oid):
        raise InputError(f"{table.title} has child tables, and a migration needs a plain table.")
    if column.session.value("select row_security_active({oid}::oid)", oid=table.oid):
        raise InputError(f"The policies of {table.title} must not hide rows from this role; connect as its owner.")
    if not is_unique(column.session, table, column.id):
        raise InputError(
            f"The ids in column {column.id!r} of {table.title} must be unique and not null, and an index must "
            f"guarantee it: add a primary key, or &id=COLUMN with such a column to the address."
        )
    if table.fields[column.vector].is_generated:
        raise InputError(f"Column {column.vector!r} of {table.title} is generated; migrate the column it is made of.")
    _check_rights(column)
    _check_dims(column, migration)
    _check_names(column, migration)
    _check_cut_over(column, migration)


def _check_rights(column: Column) -> None:
    session, table = column.session, column.table
    if session.value("select pg_is_in_recovery() or current_setting('transaction_read_only')::boolean"):
        raise InputError(
            "The database must accept writes, but this connection is read-only (a standby, or "
            "default_transaction_read_only); connect to the primary, or with a role that may write."
        )
    role, owns, creates, temporary = session.run(
        """select current_user, pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(c.relnamespace, 'CREATE'),
            has_database_privilege(current_database(), 'TEMP') from pg_class c where c.oid = {oid}""",
        oid=table.oid,
    )[0]
    if not owns:
        raise InputError(f"The role {role!r} must own {table.title} to add columns and triggers; connect as its owner.")
    if not creates:
        raise InputError(f"The role {role!r} must have the right to create in the schema {table.schema!r}; grant it.")
    if not temporary:
        raise InputError(f"The role {role!r} must have the right to make temporary tables in this database; grant it.")


def _check_dims(column: Column, migration: Migration) -> None:
    dim_of(column.session, column.table, column.vector)
    indexes = [index for index in column.indexes() if not index.is_expression]
    if column.session.connection.info.server_version < 140_000:
        raise InputError("A migration needs PostgreSQL 14 or later.")
    halfvec = column.table.type("halfvec").as_string(column.session.connection)
    if is_half(column, migration) and not column.session.value("select to_regtype({name})::oid", name=halfvec):
        raise InputError("A migration to more than 2,000 dimensions with an index needs pgvector 0.7 or later.")
    if migration.dim > TYPE_DIMS:
        raise InputError(f"A vector of pgvector has at most {TYPE_DIMS:,} dimensions; got {migration.dim:,}.")
    if indexes and migration.dim > INDEX_DIMS["halfvec"]:
        raise InputError(
            f"The index {indexes[0].name} takes at most {INDEX_DIMS['halfvec']:,} dimensions (as halfvec); got "
            f"{migration.dim:,}. Use a model with fewer dimensions, or drop the index first."
        )


def _check_names(column: Column, migration: Migration) -> None:
    """Raise InputError if a name that the job needs belongs to something else."""
    session, table = column.session, column.table
    layout = migration.layout or choose_layout(column)
    records = [record.book for record in find_records(session, table) if record.book]
    if any(book.vector == column.vector for book in records):
        return  # the names are those of this job
    swaps = layout == "column" and not migration.keep_names and migration.view is None
    wanted = [migration.new, state_name(migration.new)] if layout == "column" else []
    for name in [*wanted, *([migration.old] if swaps else [])]:
        if name in table.fields:
            raise InputError(
                f"{table.title} must not have the column {name!r} yet, because the job makes it; choose another name."
            )
    side = side_name(table.name, migration.new)
    relations = [side, queue_name(side)] if layout == "side" else []
    for name in relations:
        if session.oid_of(table.in_schema(name)):
            raise InputError(
                f"{table.schema} must not have the table {name!r} yet; choose another name for the new one."
            )


def _check_cut_over(column: Column, migration: Migration) -> None:
    """Raise InputError if the cut-over that is wanted would not bring readers to the new vectors."""
    session, table = column.session, column.table
    layout = migration.layout or choose_layout(column)
    if layout not in LAYOUT_NAMES:
        raise InputError(f"`layout` must be column or side; got {layout!r}.")
    if layout == "column" and session.value("select relispartition from pg_class where oid = {oid}", oid=table.oid):
        raise InputError(
            f"{table.title} is a partition, which takes no column of its own; a migration needs a plain table."
        )
    if session.value(
        "select attinhcount > 0 from pg_attribute where attrelid = {oid} and attnum = {number}",
        oid=table.oid,
        number=column.number,
    ):
        raise InputError(
            f"Column {column.vector!r} of {table.title} is inherited from another table, so it cannot be renamed or "
            "dropped, and a migration needs a plain table; detach the table first (alter table … no inherit …)."
        )
    if migration.view is not None:
        name = table.in_schema(migration.view)
        if session.oid_of(name) and not is_own_view(session, name, column.tag):
            raise InputError(
                f"{table.schema}.{migration.view} exists and is not a view of this job; choose another name, or drop "
                "it first if an earlier migration has left it."
            )
        if _row_security(column):
            raise InputError(
                f"{table.title} has row-level security, which a view would not keep; cut over without one."
            )
        if is_half(column, migration) != (table.fields[column.vector].type == "halfvec"):
            raise InputError(
                f"With {migration.dim:,} dimensions the new vectors are halfvec, and a view cannot change its type; "
                "keep the names (keep_names)."
            )
    if layout == "side":
        if _row_security(column):
            raise InputError(
                f"{table.title} has row-level security, which a side table would not keep; use layout column."
            )
        if _partial(column.indexes()):
            raise InputError("A partial index cannot be copied to a side table; use the layout column.")
        if migration.view is None and not migration.keep_names:
            raise InputError(
                f"The new vectors of {table.title}, which has a vector index, go to a side table, and no names can "
                "be swapped: name a view through which readers read (view), or keep the names (keep_names) and let "
                f"readers join {side_name(table.name, migration.new)}. The layout `column` swaps names; it is slower."
            )
    elif not migration.keep_names and migration.view is None:
        check_swap(column)


def check_swap(column: Column) -> None:
    """Raise InputError if a swap of names would leave views with the old vectors."""
    if views := views_on(column):
        raise InputError(
            f"The names cannot be swapped, because {', '.join(views)} would go on showing the old vectors; keep the "
            "names (keep_names) and change the views, or name a view of ours through which readers read (view)."
        )


def space_in_comments(table: Table, vector: str, comment: str | None) -> dict | None:
    """Return the card of the space that a comment of ours states for a column, on the column or on its table."""
    for text in (table.fields[vector].comment, comment):
        record = parse_comment(text)
        if record is not None and record.space:
            return record.space
    return None
