"""Write embeddings: a whole file, or a stream that can be stopped and resumed.

On disk: `id`, text or another type; `vector: fixed_size_list<float16 | float32>[dim]`; further columns; the Space as
JSON in the schema metadata. A stream is written in parts (see `parts`).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repstitch.embeddings.exporting import check_lines, fitting_columns, write_array, write_arrow
from repstitch.embeddings.ids import column_texts
from repstitch.embeddings.parts import Job, write_parts
from repstitch.embeddings.rows import Embeddings, row_numbers
from repstitch.errors import InputError
from repstitch.files import (
    TRANSLATED,
    check_embeddings_file,
    check_ending,
    check_layers_folder,
    check_new,
    written_whole,
)
from repstitch.spaces import SPACE_KEY, Space

NO_COLUMNS = pa.schema([])


def write(out: str | os.PathLike[str], embeddings: Embeddings) -> None:
    """Write one Parquet file. It appears complete or not at all, and an existing file is never overwritten."""
    target = check_embeddings_file(out)
    ids = row_numbers(0, len(embeddings)) if embeddings.ids is None else embeddings.ids
    dtype = "float16" if embeddings.vectors.dtype == np.float16 else "float32"
    payload = pa.table({}) if embeddings.payload is None else embeddings.payload
    schema = _schema(embeddings.space, dtype, columns=payload.schema)
    table = _table(schema, ids, embeddings.vectors, payload.columns)
    if not len(table):
        raise InputError(f"There are no rows to write to {target}.")
    with written_whole(target) as path:
        with fitting_columns(target), _parquet(path, schema) as writer:
            writer.write_table(table)
        check_new(target)  # another process may have created it in the meantime


def write_stream(
    out: str | os.PathLike[str],
    space: Space,
    job: Job,
    dtype: str = "float32",
    metadata: dict[str, str] | None = None,
    id_type: pa.DataType | None = None,
    columns: pa.Schema = NO_COLUMNS,
    has_ids: bool = True,
) -> int:
    """Write the rows of a job to one file (.parquet, .arrow, or .npy with its ids beside it) and return their number.

    `job.produce` yields (hash of the input, ids, vectors), and a fourth entry with the values of `columns`, if there
    are any. After a stop, the same call continues after the last finished batch, if the settings of the job and its
    input are the same. The file appears under its name when all rows are written. `id_type` is the Arrow type of the
    ids, by default text. Without `has_ids`, the ids are numbers of rows, which are not written beside an .npy file.
    """
    target = check_new(check_ending(out, TRANSLATED))
    schema = _schema(space, dtype, metadata or {}, id_type or pa.string(), columns)
    with_ids_beside = has_ids and target.suffix == ".npy"
    if target.suffix == ".parquet":
        with fitting_columns(target):
            _parquet(pa.BufferOutputStream(), schema).close()

    def to_table(ids: np.ndarray, vectors: np.ndarray, values: Sequence[Any] = ()) -> pa.Table:
        if with_ids_beside:
            check_lines(ids)
        return _table(schema, ids, vectors, values)

    def join(tables: Callable[[], Iterator[pa.Table]], whole: Path) -> None:
        parts = (table.replace_schema_metadata(schema.metadata) for table in tables())
        if target.suffix == ".npy":
            write_array(map(_ids_and_vectors, parts), job.n_rows, whole, target if with_ids_beside else None)
        elif target.suffix == ".arrow":
            write_arrow(parts, whole)
        else:
            with _parquet(whole, schema) as writer:
                for table in parts:
                    writer.write_table(table)

    return write_parts(target, job, to_table, join)


def _ids_and_vectors(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    lists = table.column("vector").combine_chunks()
    vectors = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), lists.type.list_size)
    return column_texts(table.column("id"), "`id`"), vectors


def write_layers(
    out: str | os.PathLike[str],
    spaces: Sequence[Space],
    job: Job,
    dtype: str = "float32",
    metadata: dict[str, str] | None = None,
) -> int:
    """Write the rows of a job to a folder with the file `OUT/NAME.parquet` for each space, and return their number.

    `job.produce` yields (hash of the input, ids, one array of vectors for each space). Stopping and resuming work as in
    `write_stream`, and the folder appears complete.
    """
    target = check_layers_folder(out)
    schemas = [_schema(space, dtype, metadata or {}) for space in spaces]
    names = [space.name for space in spaces]
    wide = pa.schema({"id": pa.string()} | {n: s.field("vector").type for n, s in zip(names, schemas, strict=True)})

    def to_table(ids: np.ndarray, layers: Sequence[np.ndarray]) -> pa.Table:
        lists = [_lists(vectors, schema) for vectors, schema in zip(layers, schemas, strict=True)]
        return pa.Table.from_arrays([pa.array(ids, pa.string()), *lists], schema=wide)

    def join(tables: Callable[[], Iterator[pa.Table]], whole: Path) -> None:
        whole.mkdir()
        for name, schema in zip(names, schemas, strict=True):
            with _parquet(whole / f"{name}.parquet", schema) as writer:
                for table in tables():
                    layer = table.select(["id", name]).rename_columns(["id", "vector"])
                    writer.write_table(layer.replace_schema_metadata(schema.metadata))

    return write_parts(target, job, to_table, join)


def _schema(
    space: Space,
    dtype: str,
    metadata: dict[str, str] | None = None,
    id_type: pa.DataType | None = None,
    columns: pa.Schema = NO_COLUMNS,
) -> pa.Schema:
    value = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    return pa.schema(
        [("id", id_type or pa.string()), ("vector", pa.list_(value, space.dim)), *columns],
        metadata={SPACE_KEY: space.to_json().encode()} | {k.encode(): v.encode() for k, v in (metadata or {}).items()},
    )


def _table(schema: pa.Schema, ids: np.ndarray, vectors: np.ndarray, values: Sequence[Any]) -> pa.Table:
    """Return rows as a table. `values` are those of the columns after the vectors: arrays, or columns of Arrow."""
    id_column = pa.array(ids, pa.string()).cast(schema.field("id").type)
    further = [
        value if isinstance(value, pa.Array | pa.ChunkedArray) else pa.array(value, field.type)
        for value, field in zip(values, list(schema)[2:], strict=True)
    ]
    return pa.Table.from_arrays([id_column, _lists(vectors, schema), *further], schema=schema)


def _lists(vectors: np.ndarray, schema: pa.Schema) -> pa.Array:
    """Return the rows of an array as a column of lists, with the list type of the schema."""
    list_type = schema.field("vector").type
    dtype = np.float16 if list_type.value_type == pa.float16() else np.float32
    flat = np.ascontiguousarray(vectors, dtype=dtype).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=list_type.value_type), list_type.list_size)


def _parquet(path: Path | pa.BufferOutputStream, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file for writing. Vectors get no dictionary and no statistics, which take time for nothing."""
    others: Any = [name for name in schema.names if name != "vector"]
    return pq.ParquetWriter(path, schema, use_dictionary=others, write_statistics=others)
