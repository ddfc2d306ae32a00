"""Scan embeddings in Arrow tables: the columns of vectors, ids, groups and payload of Parquet and Arrow files."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from repstitch.embeddings.ids import (
    IdColumn,
    choose_id_column,
    column_texts,
    say_id_column,
    type_on_the_way_out,
    warn_of_unused_ids,
)
from repstitch.embeddings.rows import SPACE_KEY, Batch, Scan
from repstitch.embeddings.tables import HEAD_ROWS
from repstitch.errors import InputError
from repstitch.spaces import Space

log = logging.getLogger(__name__)

ALL_COLUMNS = "all"
VECTOR = "vector"


def scan_table(
    data: pyarrow.dataset.Dataset,
    path: str,
    column: str = VECTOR,
    group: str | None = None,
    id_column: IdColumn | None = None,
    payload: Sequence[str] | str = (),
) -> Scan:
    """Scan a dataset whose vectors are in `column`. Messages call it `path`.

    `group` is the column of groups. `payload` are the names of further columns to read, or "all". Raises InputError if
    the columns cannot be used.
    """
    kind = _vector_type(data.schema, column, path)
    dim = _vector_dim(data, column, kind, path)
    card = _common_card(data, path)
    if column != VECTOR:
        card = None  # the card describes the column `vector` only
    space = Space.from_json(card) if card else Space(Path(path).stem, dim)
    if space.dim != dim:
        raise InputError(f"The card of {path} states {space.dim} dimensions but its vectors have {dim}.")
    ids_column = _common_id_column(data, path, id_column, column)
    say_id_column(ids_column, path)
    others = [name for name in data.schema.names if name not in (column, ids_column)]
    kept = _payload(others, payload, path)
    columns = list(dict.fromkeys(name for name in (column, ids_column, group, *kept) if name))
    dtype = np.float16 if kind.value_type == pa.float16() else np.float32

    def texts(batch: pa.RecordBatch, name: str | None) -> np.ndarray | None:
        return None if name is None else column_texts(batch.column(name), f"Column {name!r} of {path}")

    def rows(size: int, start: int) -> Iterator[Batch]:
        batches = data.to_batches(columns=columns, batch_size=size, batch_readahead=2, fragment_readahead=1)
        at = start
        for batch in _skip_rows(batches, start):
            vectors = _matrix(batch.column(column), dim, dtype, path, at)
            further = pa.Table.from_batches([batch.select(kept)]) if kept else None
            yield vectors, texts(batch, ids_column), texts(batch, group), further
            at += batch.num_rows

    return Scan(
        path,
        data.count_rows(),
        space,
        bool(card),
        ids_column is not None,
        rows,
        type_on_the_way_out(data.schema.field(ids_column).type if ids_column else None),
        pa.schema([data.schema.field(name) for name in kept]),
        tuple(name for name in others if name not in (group, *kept)),
        group is not None,
    )


def warn_of_numbered_rows(data: pyarrow.dataset.Dataset, opened: Scan, files: Sequence[str]) -> None:
    """Log a warning if rows without ids have a column that looks like ids, or come from several files."""
    flat = [name for name in opened.left_out if not pa.types.is_nested(data.schema.field(name).type)]
    if flat:
        warn_of_unused_ids(data.head(HEAD_ROWS, columns=flat), opened.path)
    if len(files) > 1:
        log.warning(
            "%s: its rows have no ids and are numbered in the order of its %d files, from %s to %s.",
            opened.path,
            len(files),
            Path(files[0]).name,
            Path(files[-1]).name,
        )


def _vector_type(schema: pa.Schema, column: str, path: str) -> pa.DataType:
    """Return the type of the vector column. Raises InputError unless it contains lists of floats."""
    if not schema.names:
        raise InputError(f"{path} has no rows; it must have at least one vector.")
    if column not in schema.names:
        example = next((field.name for field in schema if _is_float_lists(field.type)), "COLUMN")
        raise InputError(
            f"{path} has no column {column!r}; its columns are: {', '.join(schema.names)}. Store each vector as a list "
            f"of floats in a column 'vector', or name another column after the path: {path}:{example}."
        )
    kind = schema.field(column).type
    if not _is_float_lists(kind):
        pool = _is_lists(kind) and _is_lists(kind.value_type)
        advice = " Pool the vectors of each row to one vector first, e.g. by their mean." if pool else ""
        raise InputError(f"Column {column!r} of {path} must have one list of floats per row; got {kind}.{advice}")
    return kind


def _is_lists(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def _is_float_lists(kind: pa.DataType) -> bool:
    return _is_lists(kind) and pa.types.is_floating(kind.value_type)


def _vector_dim(data: pyarrow.dataset.Dataset, column: str, kind: pa.DataType, path: str) -> int:
    """Return the number of dimensions: that of the type, or else the length of the first row with a vector."""
    if not data.head(1, columns=[column]).num_rows:
        raise InputError(f"{path} has no rows; it must have at least one vector.")
    if pa.types.is_fixed_size_list(kind) and kind.list_size:
        return kind.list_size
    for batch in data.to_batches(columns=[column], batch_size=HEAD_ROWS, batch_readahead=1, fragment_readahead=1):
        lengths = pc.call_function("list_value_length", [batch.column(column)])
        dims = lengths.fill_null(0).to_numpy(zero_copy_only=False)
        if dims.any():
            return int(dims[dims > 0][0])
    raise InputError(f"Column {column!r} of {path} has no vectors; at least one row must have one.")


def _common_card(data: pyarrow.dataset.Dataset, path: str) -> bytes | None:
    """Return the space card in the metadata of a file or of all files of a folder. Raises InputError if they differ."""
    card = (data.schema.metadata or {}).get(SPACE_KEY)
    if isinstance(data, pyarrow.dataset.FileSystemDataset):
        for part in data.get_fragments():
            if (part.physical_schema.metadata or {}).get(SPACE_KEY) != card:
                raise InputError(
                    f"{path} has files of several spaces ({part.path} differs); read each file separately."
                )
    return card


def _common_id_column(data: pyarrow.dataset.Dataset, path: str, id_column: IdColumn | None, column: str) -> str | None:
    """Return the column of ids of all files. Raises InputError if the files have different columns of ids."""
    chosen = choose_id_column(data.schema, path, id_column, others=(column,))
    if isinstance(data, pyarrow.dataset.FileSystemDataset):
        for part in data.get_fragments():
            if choose_id_column(part.physical_schema, part.path, id_column, others=(column,)) != chosen:
                raise InputError(
                    f"{path} has files with different columns of ids ({part.path} differs); read each file separately."
                )
    return chosen


def _payload(columns: Sequence[str], names: Sequence[str] | str, path: str) -> list[str]:
    """Return the names of the columns to read beside vectors, ids and groups. Raises InputError if one is missing."""
    if names == ALL_COLUMNS:
        return list(columns)
    for name in names:
        if name not in columns:
            raise InputError(
                f"`columns` must be all, or some of the columns of {path} beside vectors and ids "
                f"({', '.join(columns) or 'it has none'}); got {name}."
            )
    return list(dict.fromkeys(names))


def _skip_rows(batches: Iterable[pa.RecordBatch], n: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches without the first `n` rows, and without empty batches."""
    for batch in batches:
        rest = batch.slice(min(n, batch.num_rows))
        n -= batch.num_rows - rest.num_rows
        if rest.num_rows:
            yield rest


def _matrix(column: pa.Array, dim: int, dtype: type, path: str, first_row: int) -> np.ndarray:
    """Return the vectors (n, dim) of a column. A row with null or an empty list has no vector and becomes NaN."""
    lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy(zero_copy_only=False)
    has_vector = lengths > 0
    wrong = has_vector & (lengths != dim)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{path} must have {dim} numbers in every row; {int(wrong.sum())} rows have another number of them (first: "
            f"row {first_row + row} with {lengths[row]})."
        )
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)  # without the rows that have no vector
    if has_vector.all():
        return values.astype(dtype, copy=False)
    rows = np.full((len(column), dim), np.nan, dtype=dtype)
    rows[has_vector] = values
    return rows
