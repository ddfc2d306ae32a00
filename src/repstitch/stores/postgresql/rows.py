"""Read rows of a table in PostgreSQL as Arrow: whole, at one moment; some at random; some by their ids."""

import json
import uuid
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg import sql

from repstitch.errors import InputError
from repstitch.spaces import SPACE_KEY
from repstitch.stores.postgresql.catalog import KEY_TYPES, Field, Table
from repstitch.stores.postgresql.connection import Session, compose, join, quoted, raw
from repstitch.stores.postgresql.copying import FLAG, INTEGER, Vectors, decode, record, rows_of

BATCH_BYTES = 2**22
MAX_BATCH_ROWS = 4096
LINE_POINTERS = 291  # on a page of 8 kB at most; one is a row, or none
DRAWS = 20_000  # places that are looked up at once
FEW_BLOCKS = 1000  # of a table that is read whole, but for its vectors
ARROW = {
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bool": pa.bool_(),
    "bytea": pa.binary(),
}


class Selection:
    """The rows of a table that an address selects, with one column of vectors.

    Args:
        dim: The number of dimensions of `vector`.
        space: The card of the space of `vector`, if it is known.
    """

    def __init__(self, table: Table, vector: str, id_column: str, where: str | None, dim: int, space: dict | None):
        self.table, self.vector, self.id, self.space = table, vector, id_column, space
        self.condition = compose("({where})", where=raw(where)) if where else raw("true")
        self.kinds = {name: self._kind(column, dim) for name, column in table.fields.items()}

    def _kind(self, column: Field, dim: int) -> Vectors | pa.DataType:
        """Return the vectors of a column, or its type in Arrow: text for all types without an equivalent."""
        if column.is_vector and (column.name == self.vector or column.dim):
            return Vectors(dim if column.name == self.vector else column.dim or 0, column.type == "halfvec")
        return ARROW.get(column.type, pa.string())

    @property
    def schema(self) -> pa.Schema:
        """The columns, with the card of the space in the metadata."""
        fields = []
        for name, kind in self.kinds.items():
            if isinstance(kind, Vectors):
                kind = pa.list_(pa.float16() if kind.half else pa.float32(), kind.dim)
            fields.append(pa.field(name, kind))
        return pa.schema(fields, {SPACE_KEY: json.dumps(self.space).encode()} if self.space else None)

    def query(self, columns: Sequence[sql.Composable], condition: sql.Composable | None = None) -> sql.Composed:
        """Return a query of columns of the selected rows."""
        return compose(
            "select {columns} from {T} d where {selected} and {condition}",
            columns=join(columns) if columns else raw(""),
            T=self.table.qualified,
            selected=self.condition,
            condition=condition or raw("true"),
        )

    def batches(
        self, session: Session, columns: Sequence[str], condition: sql.Composable | None = None, end: str = ""
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns of the selected rows. `end` is SQL after the condition."""
        for name in columns:
            self.table.field(name)
        others = [name for name in columns if name != self.vector]
        is_plain = self.vector in columns and (not others or others == [self.id])
        read = self._plain if is_plain else self._general
        schema = pa.schema([self.schema.field(name) for name in columns], self.schema.metadata)
        yield from read(session, schema, condition, raw(end))

    def table_of(self, batches: Iterator[pa.RecordBatch], columns: Sequence[str]) -> pa.Table:
        """Return batches as a table, which has the columns even without rows."""
        return pa.Table.from_batches(
            list(batches), pa.schema([self.schema.field(name) for name in columns], self.schema.metadata)
        )

    def _plain(
        self, session: Session, schema: pa.Schema, condition: sql.Composable | None, end: sql.Composable
    ) -> Iterator[pa.RecordBatch]:
        """Read vectors, and ids if wanted, as records of fixed size. A row without a vector has a flag and zeros."""
        kind = self.kinds[self.vector]
        assert isinstance(kind, Vectors)
        has_id = self.id in schema.names
        is_whole = has_id and self.table.fields[self.id].type == "int8" and self.table.fields[self.id].not_null
        fields: dict[str, str | Vectors] = {"flag": FLAG, "vector": kind}
        listed = [
            compose("(case when {V} is null then 'n' else 'v' end)::\"char\"", V=quoted(self.vector)),
            or_zeros(self.table, quoted(self.vector), kind),
        ]
        if is_whole:
            fields["id"] = INTEGER
        if has_id:
            listed.append(compose("{I}" if is_whole else "{I}::text", I=quoted(self.id)))
        layout = record(fields)
        query = compose("{query} {end}", query=self.query(listed, condition), end=end)
        for rows in grouped(rows_of(session.copy_out(query)), batch_rows(kind)):
            records, texts = self.decoded(rows, layout)
            arrays = {self.vector: list_array(records["vector"], kind, records["flag"] == b"n")}
            if has_id:
                arrays[self.id] = pa.array(records["id"].astype(np.int64) if is_whole else texts)
            yield pa.RecordBatch.from_arrays([arrays[f.name].cast(f.type) for f in schema], schema=schema)

    def decoded(self, rows: list[bytes], layout: np.dtype) -> tuple[np.ndarray, list[str]]:
        """Return rows as records and texts. Raises InputError if their vectors have several dimensions."""
        try:
            return decode(rows, layout)
        except ValueError as error:
            raise InputError(f"Column {self.vector!r} of {self.table.title} must not have {error}.") from None

    def _general(
        self, session: Session, schema: pa.Schema, condition: sql.Composable | None, end: sql.Composable
    ) -> Iterator[pa.RecordBatch]:
        """Read columns of any types. Those without an equivalent are cast to text by the server."""
        listed, types = [], []
        for name in schema.names:
            kind, column = self.kinds[name], quoted(name)
            is_text = not isinstance(kind, Vectors) and self.table.fields[name].type not in ARROW
            listed.append(compose("{column}::text", column=column) if is_text else column)
            types.append("bytea" if isinstance(kind, Vectors) else "text" if is_text else self.table.fields[name].type)
        query = compose("{query} {end}", query=self.query(listed, condition), end=end)
        vectors = [kind for kind in self.kinds.values() if isinstance(kind, Vectors)]
        for rows in grouped(session.copy_rows(query, types), min(map(batch_rows, vectors), default=MAX_BATCH_ROWS)):
            columns = list(zip(*rows, strict=True))
            arrays = [self._array(name, values) for name, values in zip(schema.names, columns, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _array(self, name: str, values: Sequence[Any]) -> pa.Array:
        kind = self.kinds[name]
        if not isinstance(kind, Vectors):
            return pa.array(values, kind)
        size = 4 + kind.dim * np.dtype(kind.numbers).itemsize
        if any(value is not None and len(value) != size for value in values):
            raise InputError(f"Column {name!r} of {self.table.title} must not have vectors of several dimensions.")
        is_null = np.array([value is None for value in values])
        numbers = np.frombuffer(b"".join([bytes(size) if value is None else value for value in values]), np.uint8)
        vectors = numbers.reshape(len(values), size)[:, 4:].copy().view(kind.numbers)
        return list_array(vectors, kind, is_null)


class PostgresRows:
    """The rows of a selection at one moment, with the part of the interface of a dataset that reading uses.

    A connection keeps the moment, and each reading has a connection of its own, which takes it over. It ends when this
    object is no longer used.
    """

    def __init__(self, selection: Selection, address: Any):
        self._selection, self._address = selection, address
        self._keeper = Session(address, again=True)
        self._finalizer = weakref.finalize(self, self._keeper.close)
        self._keeper.run("begin isolation level repeatable read, read only")
        self._moment = self._keeper.value("select pg_export_snapshot()")
        self._n_rows: int | None = None

    @property
    def schema(self) -> pa.Schema:
        """The columns, with the card of the space in the metadata."""
        return self._selection.schema

    def count_rows(self) -> int:
        """Return the number of rows."""
        if self._n_rows is None:
            self._n_rows = self._keeper.value(
                compose("select count(*) from ({query}) rows", query=self._selection.query([]))
            )
        return self._n_rows or 0

    def head(self, num_rows: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the first rows."""
        names = list(self.schema.names if columns is None else columns)
        return self._selection.table_of(self._read(names, f"limit {int(num_rows)}"), names)

    def get_fragments(self) -> Iterator["PostgresRows"]:
        """Yield this object: the table has no parts."""
        yield self

    def to_batches(
        self, columns: Sequence[str] | None = None, schema: pa.Schema | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the columns of all rows, in the same order each time."""
        return self._read(list(self.schema.names if columns is None else columns), "")

    def _read(self, columns: list[str], end: str) -> Iterator[pa.RecordBatch]:
        session = Session(self._address, again=True)
        try:
            session.run("select set_config('search_path', {path}, false)", path=self._path())
            session.run("set synchronize_seqscans = off")
            session.run("set max_parallel_workers_per_gather = 0")
            session.run("begin isolation level repeatable read, read only")
            session.run("set transaction snapshot {moment}", moment=self._moment)
            yield from self._selection.batches(session, columns, end=end)
        finally:
            session.close()

    def _path(self) -> str:
        schema = self._selection.table.extension
        return self._keeper.value(
            "select current_setting('search_path') || ', ' || quote_ident({schema})", schema=schema
        )

    def close(self) -> None:
        """Let the moment go."""
        self._finalizer()


def sample(session: Session, selection: Selection, n: int, seed: int, columns: Sequence[str]) -> pa.Table:
    """Return n rows drawn at random, each with the same probability."""
    has_vector = compose("{V} is not null", V=quoted(selection.vector))
    places = _random_places(session, selection, n, seed) if selection.table.kind == "table" else None
    if places is not None:
        condition = compose("{V} and d.ctid = any({places}::tid[])", V=has_vector, places=places)
        return selection.table_of(selection.batches(session, columns, condition), columns)
    with session.transaction():
        session.run("set local synchronize_seqscans = off")
        session.run("set local max_parallel_workers_per_gather = 0")
        session.run("select setseed({seed})", seed=float(np.random.default_rng(seed).uniform(-1, 1)))
        batches = selection.batches(session, columns, has_vector, f"order by random() limit {int(n)}")
        return selection.table_of(batches, columns)


def _random_places(session: Session, selection: Selection, n: int, seed: int) -> list[str] | None:
    """Return the places of n rows, by looking up places at random; None if reading all of a table is less work."""
    size = session.value(
        "select pg_relation_size({oid}::oid) / current_setting('block_size')::bigint", oid=selection.table.oid
    )
    if size <= max(FEW_BLOCKS, n):
        return None
    draw, places = np.random.default_rng(seed), {}
    most = 50 * LINE_POINTERS * n
    for _ in range(0, most, DRAWS):
        blocks, offsets = draw.integers(size, size=DRAWS), draw.integers(1, LINE_POINTERS + 1, size=DRAWS)
        drawn = [f"({block},{offset})" for block, offset in zip(blocks, offsets, strict=True)]
        condition = compose("{V} is not null and d.ctid = any({drawn}::tid[])", V=quoted(selection.vector), drawn=drawn)
        present = {place for (place,) in session.run(selection.query([raw("d.ctid::text")], condition))}
        places |= dict.fromkeys(place for place in drawn if place in present)
        if len(places) >= n:
            return list(places)[:n]
    return None


def take(session: Session, selection: Selection, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Return the rows with these ids. Text that cannot be an id of this type is left out."""
    chosen = one_of(ids, selection.table.fields[selection.id].type)
    condition = compose("d.{I} {chosen}", I=quoted(selection.id), chosen=chosen)
    return selection.table_of(selection.batches(session, columns, condition), columns)


def one_of(ids: Sequence[str], kind: str) -> sql.Composed:
    """Return the condition, after the name of a column of ids, that it is one of these ids."""
    present = [text for text in ids if _can_be(text, kind)]
    return compose("= any({ids}::{kind}[])", ids=present, kind=raw(KEY_TYPES[kind]))


def _can_be(text: str, kind: str) -> bool:
    """Return whether an id of this type can have this text. Other spellings of an id are not those of the store."""
    try:
        if kind == "uuid":
            return str(uuid.UUID(text)) == text
        if kind.startswith("int"):
            half = 2 ** (8 * int(kind[3:]) - 1)
            return -half <= int(text) < half and str(int(text)) == text
        text.encode()
    except ValueError:  # of which the error of an encoding is one
        return False
    return "\0" not in text


def or_zeros(table: Table, vector: sql.Composable, kind: Vectors) -> sql.Composed:
    """Return a vector, or zeros if it is null, so that all rows have the same size."""
    zeros = "[" + ",".join("0" * kind.dim) + "]"
    name = table.type("halfvec" if kind.half else "vector")
    return compose("coalesce({vector}, {zeros}::{name})", vector=vector, zeros=zeros, name=name)


def list_array(vectors: np.ndarray, kind: Vectors, is_null: np.ndarray) -> pa.Array:
    """Return vectors (n, dim) as lists of a fixed size, null where the mask says so."""
    numbers = pa.array(np.ascontiguousarray(vectors, np.float16 if kind.half else np.float32).reshape(-1))
    if not is_null.any():
        return pa.FixedSizeListArray.from_arrays(numbers, kind.dim)
    return pa.FixedSizeListArray.from_arrays(numbers, kind.dim, mask=pa.array(is_null))


def batch_rows(kind: Vectors) -> int:
    """Return the number of rows in a batch."""
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // (4 * kind.dim)))


def grouped(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of at most `size` rows."""
    group: list[Any] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
