"""Write a copy of a Parquet file with new vectors: translated ones, and native ones where there are some."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repstitch.errors import InputError
from repstitch.files import written_whole
from repstitch.spaces import SPACE_KEY
from repstitch.stores.arrow_columns import has_vector, matrix, vector_column
from repstitch.stores.checksums import checksums
from repstitch.stores.parquet.files import (
    MARK_KEY,
    VERSION_KEY,
    Mark,
    open_file,
    read_batches,
    read_errors,
    token_of,
    vector_type,
)
from repstitch.stores.parquet.native import read_native
from repstitch.stores.store import Migration, Translate


def translate_file(
    source: Path,
    target: Path,
    native_file: Path,
    columns: tuple[str, str],
    dim: int,
    migration: Migration,
    translate: Translate,
) -> int | None:
    """Write a copy of a file with translated and native vectors, and return the number of rows that have an old one.

    The copy replaces an older one when it is whole. Returns None if the source is gone. `columns` are those of ids and
    of vectors.
    """
    token, native_token = token_of(source), token_of(native_file)
    if token is None:
        return None
    (id_column, vector), native = columns, read_native(native_file, migration.dim)
    with open_file(source) as opened:
        schema, compression = opened.schema_arrow, _compression(opened)
        vector_type(schema, vector, str(source))
    field = pa.field(vector, pa.list_(pa.float32(), migration.dim), metadata=schema.field(vector).metadata)
    metadata = {**(schema.metadata or {}), SPACE_KEY: migration.space.encode(), VERSION_KEY: migration.version.encode()}
    at = schema.get_field_index(vector)
    schema = schema.set(at, field).with_metadata(metadata)
    others = [name for name in schema.names if name != vector]
    # A dictionary of vectors would only cost time.
    options: dict[str, Any] = {"compression": compression, "use_dictionary": others, "write_statistics": others}
    counts = np.zeros(4, np.int64)
    with (
        written_whole(target, None, parents=True) as temporary,
        pq.ParquetWriter(temporary, schema, **options) as writer,
    ):
        for batch in read_batches(source):
            with read_errors(source):
                rows, has_old = matrix(batch[vector], dim)
            new = _translated(rows, has_old, migration.dim, translate)
            positions = native.find(batch[id_column], checksums(rows, has_old))
            is_native = positions >= 0
            new = np.where(is_native[:, None], native.vectors[positions], new) if is_native.any() else new
            has_translation = has_old & has_vector(new) & ~is_native
            parts = has_translation, has_old & ~has_translation & ~is_native, ~has_old & ~is_native, is_native
            counts += [np.count_nonzero(part) for part in parts]
            vectors = vector_column(new, has_translation | is_native)
            arrays = [*batch.columns[:at], vectors, *batch.columns[at + 1 :]]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        mark = Mark(*token, *counts.tolist(), native=None if native_token is None else list(native_token))
        writer.add_key_value_metadata({MARK_KEY: json.dumps(asdict(mark)).encode()})
    return int(counts[0] + counts[1] + counts[3])


def _translated(rows: np.ndarray, has_old: np.ndarray, dim: int, translate: Translate) -> np.ndarray:
    """Return the translations (n, dim) of the rows that have a vector, NaN for the others."""
    if has_old.all():
        new = translate(rows)
    else:
        new = np.full((len(rows), dim), np.nan, np.float32)
        if has_old.any():
            new[has_old] = translate(rows[has_old])
    if new.shape != (len(rows), dim):
        raise InputError(f"The stitcher must translate to {dim} dimensions; got {new.shape[1:]}.")
    return new


def _compression(file: pq.ParquetFile) -> dict[str, str] | str:
    """Return how the columns of a file are compressed, for a copy of it."""
    if not file.metadata.num_row_groups:
        return "snappy"
    group = file.metadata.row_group(0)
    columns = (group.column(i) for i in range(group.num_columns))
    names = {column.path_in_schema: column.compression.lower() for column in columns}
    return {path: "none" if codec == "uncompressed" else codec for path, codec in names.items()}
