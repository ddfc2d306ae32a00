"""What a column in PostgreSQL must be for a job, and the sentences that refuse others."""

from repstitch.errors import InputError
from repstitch.stores.postgresql.catalog import dim_of, is_unique
from repstitch.stores.postgresql.connection import compose, join, quoted, raw
from repstitch.stores.postgresql.facts import (
    INDEX_DIMS,
    LAYOUT_NAMES,
    TYPE_DIMS,
    Column,
    choose_layout,
    has_row_security,
    is_half,
    is_partial,
    views_on,
)
from repstitch.stores.postgresql.job import find_records, queue_name, side_name, state_name
from repstitch.stores.postgresql.view import is_own_view
from repstitch.stores.store import Migration


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
    _check_constraints(column)
    _check_rights(column)
    _check_dims(column, migration)
    _check_names(column, migration)
    _check_cut_over(column, migration)


def _check_constraints(column: Column) -> None:
    """Raise InputError if a check would stop writers of new vectors, which leave the old one empty after a cut-over.

    Each check is tried on all rows, and on one that is all null, with the old vector empty.
    """
    session, table = column.session, column.table
    constraints = session.run(
        """select conname, pg_get_expr(conbin, conrelid) from pg_constraint
        where conrelid = {oid} and contype = 'c' and {number} = any(conkey) order by 1""",
        oid=table.oid,
        number=column.number,
    )
    values = [
        compose("case when false then {name} end as {name}" if name == column.vector else "{name}", name=quoted(name))
        for name in table.fields
    ]
    for name, text in constraints:
        if session.value(
            """select exists (select from (select {values} from (select d.* from (select) one left join {T} d on false
                union all select * from {T}) d) {name} where not ({text}))""",
            values=join(values),
            T=table.qualified,
            name=quoted(table.name),
            text=raw(text),
        ):
            raise InputError(
                f"The check {name} of {table.title} must hold for rows without an old vector, because writers of new "
                "vectors leave it empty after the cut-over: drop it; a plain `not null` in its place is dropped and "
                "restored by the job."
            )


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
    if session.value("select relispartition from pg_class where oid = {oid}", oid=table.oid):
        raise InputError(
            f"{table.title} is a partition, and a migration needs a plain table: detach it (alter table … detach "
            "partition …), move it, and after the clean-up attach it to a table partitioned by the same key whose "
            "column has the new dimensions."
        )
    if session.value(
        "select attinhcount > 0 from pg_attribute where attrelid = {oid} and attnum = {number}",
        oid=table.oid,
        number=column.number,
    ):
        raise InputError(
            f"Column {column.vector!r} of {table.title} is inherited from another table, so it cannot be renamed or "
            "dropped, and a migration needs a plain table; end the inheritance first (alter table … no inherit …)."
        )
    if migration.view is not None:
        name = table.in_schema(migration.view)
        if session.oid_of(name) and not is_own_view(session, name, column.tag):
            raise InputError(
                f"{table.schema}.{migration.view} exists and is not a view of this job; choose another name, or drop "
                "it first if an earlier migration has left it."
            )
        if has_row_security(column):
            raise InputError(
                f"{table.title} has row-level security, which a view would not keep; cut over without one."
            )
        if is_half(column, migration) != (table.fields[column.vector].type == "halfvec"):
            raise InputError(
                f"With {migration.dim:,} dimensions the new vectors are halfvec, and a view cannot change its type; "
                "keep the names (`keep_names`)."
            )
    if layout == "side":
        if has_row_security(column):
            raise InputError(
                f"{table.title} has row-level security, which a side table would not keep; use layout column."
            )
        if is_partial(column.indexes()):
            raise InputError("A partial index cannot be copied to a side table; use the layout column.")
        if migration.view is None and not migration.keep_names:
            raise InputError(
                f"The new vectors of {table.title}, which has a vector index, go to a side table, and no names can "
                "be swapped: name a view through which readers read (`view`), or keep the names (`keep_names`) and let "
                f"readers join {side_name(table.name, migration.new)}. Layout column swaps names, and is slower."
            )
    elif not migration.keep_names and migration.view is None:
        check_swap(column)


def check_swap(column: Column) -> None:
    """Raise InputError if a swap of names would leave views with the old vectors."""
    if views := views_on(column):
        raise InputError(
            f"The names cannot be swapped, because {', '.join(views)} would go on showing the old vectors; keep the "
            "names (`keep_names`) and change the views, or name a view of ours through which readers read (`view`)."
        )
