"""What PostgreSQL's catalogue says of a table: its columns, its ids, its vectors, the indexes on them."""

import re
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql

from repstitch.addresses import Address
from repstitch.errors import InputError
from repstitch.stores.postgresql.connection import Session, compose, quoted, raw
from repstitch.text import nearest

VECTOR_TYPES = ("vector", "halfvec")
KEY_TYPES = {
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "text": "text",
    "varchar": "character varying",
    "uuid": "uuid",
}
KINDS = {"r": "table", "p": "partitioned table", "v": "view", "m": "materialised view", "f": "foreign table"}
OPERATORS = {"cosine": "<=>", "l2": "<->", "dot": "<#>", "l1": "<+>"}  # by metric
METHODS = ("hnsw", "ivfflat")
TOKENS = re.compile(r"""[Ee]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|[\w$]+|::|\s+|.""", re.DOTALL)


@dataclass(frozen=True)
class Field:
    """A column. `dim` is the number of dimensions of a column of vectors whose type states it."""

    name: str
    number: int
    type: str
    type_text: str
    is_vector: bool
    dim: int | None
    not_null: bool
    is_generated: bool
    comment: str | None


@dataclass(frozen=True)
class VectorIndex:
    """An index on a column of vectors, with what is needed to make the same one on another column."""

    oid: int
    name: str
    method: str
    operator_class: str
    options: tuple[str, ...]
    predicate: str | None
    is_valid: bool
    is_expression: bool
    n_bytes: int

    @property
    def metric(self) -> str:
        """The metric of this index: `cosine`, `l2`, `dot`, or another one of pgvector."""
        word = self.operator_class.partition("_")[2].partition("_")[0] or "cosine"
        return "dot" if word == "ip" else word


def operator_of(metric: str) -> str:
    """Return the operator of a metric, such as `<=>`."""
    if metric not in OPERATORS:
        raise InputError(f"`metric` must be {', '.join(OPERATORS)}; got {metric!r}.")
    return OPERATORS[metric]


@dataclass
class Table:
    """A table, view or other relation with vectors, as it was when it was opened."""

    oid: int
    schema: str
    name: str
    kind: str
    extension: str
    fields: dict[str, Field] = field(default_factory=dict)

    @property
    def qualified(self) -> sql.Identifier:
        """The name in its schema, quoted."""
        return quoted(self.schema, self.name)

    @property
    def title(self) -> str:
        """The name in its schema, for people."""
        return f"{self.schema}.{self.name}"

    def in_schema(self, name: str) -> sql.Identifier:
        """Return the quoted name of another object in the schema of this table."""
        return quoted(self.schema, name)

    def type(self, name: str, dim: int | None = None) -> sql.Composed:
        """Return a type of pgvector with its schema, such as `"public"."vector"(768)`."""
        dims = raw("" if dim is None else f"({int(dim)})")
        return compose("{name}{dims}", name=quoted(self.extension, name), dims=dims)

    def operator(self, name: str) -> sql.Composed:
        """Return an operator of pgvector with its schema."""
        return compose("operator({schema}.{name})", schema=quoted(self.extension), name=raw(name))

    def field(self, name: str) -> Field:
        """Return a column. Raises InputError if there is none of this name."""
        if name not in self.fields:
            near = nearest(name, self.fields)
            raise InputError(
                f"{self.title} must have the column {name!r}; it has {listed(list(self.fields))}"
                + (f". Did you mean {near[0]!r}?" if near else ".")
            )
        return self.fields[name]

    def vectors(self) -> list[str]:
        """Return the names of the columns of vectors."""
        return [name for name, column in self.fields.items() if column.is_vector]


def open_table(session: Session, address: Address) -> Table:
    """Look up the table of an address. Raises InputError if there is none, or no pgvector."""
    extension = session.value(
        "select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'"
    )
    if extension is None:
        raise InputError("The database must have the extension pgvector: run `create extension vector` in it.")
    name = quoted(*address.table_parts()).as_string(session.connection)
    rows = session.run(
        """select c.oid, n.nspname, c.relname, c.relkind from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.oid = to_regclass({name})""",
        name=name,
    )
    if not rows:
        others = tables_with_vectors(session, address.table_parts()[-1])
        raise InputError(f"The database must have the table {address.table}; {others}")
    oid, schema, relation, kind = rows[0]
    if kind not in KINDS:
        raise InputError(f"{schema}.{relation} must be a table or a view.")
    session.run(
        "select set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''), "
        "quote_ident({extension})), false)",
        extension=extension,
    )
    table = Table(oid, schema, relation, KINDS[kind], extension)
    table.fields = fields_of(session, table)
    return table


def fields_of(session: Session, table: Table) -> dict[str, Field]:
    """Return the columns of a table by name."""
    rows = session.run(
        """select a.attname, a.attnum, t.typname, format_type(a.atttypid, a.atttypmod), n.nspname, a.atttypmod,
            a.attnotnull, a.attgenerated <> '', col_description(a.attrelid, a.attnum)
        from pg_attribute a join pg_type t on t.oid = a.atttypid join pg_namespace n on n.oid = t.typnamespace
        where a.attrelid = {oid} and a.attnum > 0 and not a.attisdropped order by a.attnum""",
        oid=table.oid,
    )
    return {
        name: Field(
            name,
            number,
            type_name,
            text,
            is_vector := type_name in VECTOR_TYPES and namespace == table.extension,
            modifier if is_vector and modifier > 0 else None,
            not_null,
            generated,
            comment,
        )
        for name, number, type_name, text, namespace, modifier, not_null, generated, comment in rows
    }


def tables_with_vectors(session: Session, name: str) -> str:
    """Return the end of a sentence that names the tables with vectors, and one that is spelt like `name`."""
    rows = session.run(
        """select distinct c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
        join pg_type t on t.oid = a.atttypid
        where t.typname in ('vector', 'halfvec') and c.relkind in ('r', 'p', 'v', 'm', 'f') order by 1"""
    )
    names = [name for (name,) in rows]
    if not names:
        return "there is no table with vectors."
    near = [other for other in nearest(name, names) if other != name]
    return f"tables with vectors are {listed(names)}" + (f". Did you mean {near[0]!r}?" if near else ".")


def listed(names: list[str], most: int = 20) -> str:
    """Return the first names, and the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def choose_id(session: Session, table: Table, address: Address) -> str:
    """Return the column of ids: the one of the address, or the primary key.

    Raises InputError if there is none, if the key has several columns, or if its type cannot be used.
    """
    if address.id is not None:
        name = address.id
    else:
        keys = session.run(
            """select a.attname from pg_index i join pg_attribute a on a.attrelid = i.indrelid
            and a.attnum = any(i.indkey) where i.indrelid = {oid} and i.indisprimary""",
            oid=table.oid,
        )
        if not keys and table.kind.endswith(("view", "foreign table")) and "id" in table.fields:
            keys = [("id",)]
        if len(keys) != 1:
            key = f"the primary key ({', '.join(name for (name,) in keys)})" if keys else "no primary key"
            raise InputError(
                f"{table.title} must have one column of ids, but it has {key}. Add &id=COLUMN to the address with a "
                f"column that is unique and not null; if there is none, add one: alter table … add column id bigint "
                f"generated always as identity unique."
            )
        name = keys[0][0]
    column = table.field(name)
    if column.type not in KEY_TYPES:
        raise InputError(
            f"The ids in column {name!r} of {table.title} must be bigint, integer, text, varchar or uuid; got "
            f"{column.type_text}. Add &id=COLUMN to the address with another column."
        )
    return name


def is_unique(session: Session, table: Table, name: str) -> bool:
    """Return whether a unique index guarantees that no value of a column comes twice, and none is null."""
    column = table.fields[name]
    unique = session.value(
        """select count(*) from pg_index where indrelid = {oid} and indisunique and indimmediate and indisvalid
        and indpred is null and indnkeyatts = 1 and indkey[0] = {number}""",
        oid=table.oid,
        number=column.number,
    )
    return column.not_null and unique > 0


def vector_indexes(session: Session, oid: int, number: int) -> list[VectorIndex]:
    """Return the indexes on a column of vectors, valid or not, in the order of their names."""
    rows = session.run(
        """select i.indexrelid, c.relname, m.amname, o.opcname, c.reloptions, pg_get_expr(i.indpred, i.indrelid),
            i.indisvalid, i.indkey[0] = 0, pg_relation_size(c.oid)
        from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam
            join pg_opclass o on o.oid = i.indclass[0]
        where i.indrelid = {oid} and m.amname = any({methods}) and (i.indkey[0] = {number} or (i.indkey[0] = 0
            and exists (select from pg_depend d
                where d.objid = i.indexrelid and d.refobjid = {oid} and d.refobjsubid = {number})))
        order by c.relname""",
        oid=oid,
        number=number,
        methods=list(METHODS),
    )
    return [
        VectorIndex(oid_, name, method, operators, tuple(options or ()), predicate, valid, is_expression, n_bytes)
        for oid_, name, method, operators, options, predicate, valid, is_expression, n_bytes in rows
    ]


def dim_of(session: Session, table: Table, name: str) -> int:
    """Return the number of dimensions of a column: that of its type, or else of its first vector."""
    column = table.fields[name]
    dim = column.dim or session.value(
        "select {function}({V}) from {T} where {V} is not null limit 1",
        function=quoted(table.extension, "vector_dims"),
        V=quoted(name),
        T=table.qualified,
    )
    if not dim:
        raise InputError(f"Column {name!r} of {table.title} has no vectors; at least one row must have one.")
    return dim


def renamed(predicate: str, old: str, new: str, session: Session) -> sql.SQL:
    """Return a condition from the catalogue with the name of one column replaced, but not in texts, types or calls."""
    name, replacement = (session.value("select quote_ident({text})", text=text) for text in (old, new))
    parts = TOKENS.findall(predicate)
    for at, part in enumerate(parts):
        before, after = "".join(parts[max(at - 2, 0) : at]).rstrip(), "".join(parts[at + 1 : at + 2])
        if part == name and not before.endswith(("::", ".")) and after not in ("(", "."):
            parts[at] = replacement
    return raw("".join(parts))


def options_of(index: VectorIndex) -> dict[str, Any]:
    """Return the settings of an index for people: operator class, m, ef_construction, lists, predicate."""
    settings: dict[str, Any] = {"operator_class": index.operator_class}
    settings |= dict(option.split("=", 1) for option in index.options)
    if index.predicate:
        settings["where"] = index.predicate
    return settings
