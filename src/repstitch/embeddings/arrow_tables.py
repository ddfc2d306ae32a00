"""Scan embeddings in Arrow tables: the columns of vectors, ids, groups and payload of Parquet and Arrow files."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from repstitch.embeddings.ids import (
    IdColumn,
    choose_id_column,
    column_texts,
    range_index,
    say_id_column,
    type_on_the_way_out,
    warn_of_unused_ids,
    with_room,
)
from repstitch.embeddings.rows import Batch, Scan, as_float
from repstitch.embeddings.shards import is_lists, with_common_types
from repstitch.embeddings.streaming import stream
from repstitch.embeddings.tables import HEAD_ROWS
from repstitch.errors import InputError
from repstitch.files import stem_of
from repstitch.spaces import SPACE_KEY, Space

log = logging.getLogger(__name__)

ALL_COLUMNS = "all"
VECTOR = "vector"
OUTPUT_COLUMNS = ("id", VECTOR)
PIECE_BYTES = 2**21  # of vectors that are read at a time


def scan_table(
    data: pyarrow.dataset.Dataset,
    path: str,
    column: str = VECTOR,
    group: str | None = None,
    id_column: IdColumn | None = None,
    payload: Sequence[str] | str = (),
    name: str | None = None,
    card_of: str = VECTOR,
) -> Scan:
    """Scan a dataset whose vectors are in `column`. Messages call it `path`.

    `group` is the column of groups. `payload` are the names of further columns to read, or "all". `name` is the name of
    the space if no card states it; by default it is that of the file. `card_of` is the column whose space the card in
    the metadata describes. Raises InputError if the columns cannot be used.
    """
    if group == column:
        raise InputError(f"`group` must be another column of {path} than its vectors; got {group!r}.")
    _vector_type(data.schema, column, path)
    data = with_common_types(data, [column], path)
    kind = _vector_type(data.schema, column, path)
    dim = _vector_dim(data, column, kind, path)
    card = _common_card(data, path) if column == card_of else None
    space = Space.from_json(card) if card else Space(stem_of(path) if name is None else name, dim)
    if space.dim != dim:
        raise InputError(f"The card of {path} states {space.dim} dimensions but its vectors have {dim}.")
    ids_column = _common_id_column(data, path, id_column, column)
    say_id_column(ids_column, path)
    others = [name for name in data.schema.names if name not in (column, ids_column)]
    kept = _payload(others, payload, path)
    columns = list(dict.fromkeys(name for name in (column, ids_column, group, *kept) if name is not None))
    data = with_common_types(data, columns, path)
    dtype = np.float16 if kind.value_type == pa.float16() else np.float32

    n_rows = data.count_rows()

    def batch_of(vectors: np.ndarray, pieces: list[pa.RecordBatch], first_row: int) -> Batch:
        table = pa.Table.from_batches(pieces)
        ids, groups = (
            None if name is None else column_texts(table.column(name), f"Column {name!r} of {path}", first_row)
            for name in (ids_column, group)
        )
        return vectors, ids, groups, table.select(kept) if kept else None

    def rows(size: int, start: int) -> Iterator[Batch]:
        vectors, without_vectors, filled = np.empty((0, dim), dtype), [], 0
        for piece in stream(data, columns, max(1, PIECE_BYTES // (dim * vectors.itemsize)), start):
            while piece.num_rows:
                if not filled:
                    vectors = np.empty((min(size, max(n_rows - start, piece.num_rows)), dim), dtype)
                part = piece.slice(0, len(vectors) - filled)
                piece = piece.slice(part.num_rows)
                end = filled + part.num_rows
                vectors[filled:end] = _matrix(part.column(column), dim, dtype, path, start + filled)
                without_vectors.append(part.drop_columns([column]))
                filled = end
                if filled == len(vectors):
                    yield batch_of(vectors, without_vectors, start)
                    start += filled
                    vectors, without_vectors, filled = np.empty((0, dim), dtype), [], 0  # frees the rows
        if filled:
            yield batch_of(vectors[:filled], without_vectors, start)

    return Scan(
        path,
        n_rows,
        space,
        bool(card),
        ids_column is not None,
        rows,
        type_on_the_way_out(data.schema.field(ids_column).type if ids_column else None),
        pa.schema([data.schema.field(name).with_type(with_room(data.schema.field(name).type)) for name in kept]),
        tuple(name for name in others if name not in (group, *kept)),
        group is not None,
    )


def with_index(data: pyarrow.dataset.Dataset, opened: Scan, files: Sequence[str] = ()) -> Scan:
    """Return the scan of rows without ids with their numbers in the larger data frame of pandas that they come from.

    If pandas has not numbered them, or from 0 without gaps, log a warning if a column looks like ids, or if the rows
    come from several files.
    """
    numbers = _index_numbers(data)
    opened = replace(opened, has_range_index=numbers is not None)
    if numbers is None or np.array_equal(numbers, np.arange(len(numbers))):
        _warn_of_numbered_rows(data, opened, files)
        return opened
    log.info("%s: the ids are those of its pandas index.", opened.path)

    def rows(size: int, start: int) -> Iterator[Batch]:
        for vectors, _, groups, payload in opened._rows(size, start):
            ids = column_texts(pa.array(numbers[start : start + len(vectors)]), f"The index of {opened.path}")
            start += len(vectors)
            yield vectors, ids, groups, payload
            del vectors, payload  # before others are read

    return replace(opened, has_ids=True, id_type=pa.int64(), _rows=rows)


def _index_numbers(data: pyarrow.dataset.Dataset) -> np.ndarray | None:
    """Return the range indices of all files, one after another, or None if each of several begins again at 0."""
    if isinstance(data, pyarrow.dataset.FileSystemDataset):
        indices = [range_index(part.physical_schema, part.count_rows()) for part in data.get_fragments()]
    else:
        indices = [range_index(data.schema, data.count_rows())]
    ranges = [index for index in indices if index is not None]
    begin_again = len(indices) > 1 and all(index == range(len(index)) for index in ranges)
    if len(ranges) < len(indices) or begin_again:
        return None
    return np.concatenate([np.arange(index.start, index.stop, index.step, dtype=np.int64) for index in ranges])


def _warn_of_numbered_rows(data: pyarrow.dataset.Dataset, opened: Scan, files: Sequence[str]) -> None:
    columns = [*opened.left_out, *opened.payload.names]
    flat = [name for name in columns if not pa.types.is_nested(data.schema.field(name).type)]
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
        pool = is_lists(kind) and is_lists(kind.value_type)
        advice = " Pool the vectors of each row to one vector first, e.g. by their mean." if pool else ""
        raise InputError(f"Column {column!r} of {path} must have one list of floats per row; got {kind}.{advice}")
    return kind


def _is_float_lists(kind: pa.DataType) -> bool:
    return is_lists(kind) and pa.types.is_floating(kind.value_type)


def _vector_dim(data: pyarrow.dataset.Dataset, column: str, kind: pa.DataType, path: str) -> int:
    """Return the number of dimensions: that of the type, or else the length of the first row with a vector."""
    if not data.count_rows():
        raise InputError(f"{path} has no rows; it must have at least one vector.")
    if pa.types.is_fixed_size_list(kind) and kind.list_size:
        return kind.list_size
    for batch in stream(data, [column], HEAD_ROWS):
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
    """Return the names of the columns to read beside vectors, ids and groups. Raises InputError if one is missing.

    All columns are those that an output can have beside its own columns `id` and `vector`.
    """
    if isinstance(names, str) and names == ALL_COLUMNS:
        for name in (name for name in columns if name in OUTPUT_COLUMNS):
            log.warning("%s: its column %r is not copied, because the output's column %r has others.", path, name, name)
        return [name for name in columns if name not in OUTPUT_COLUMNS]
    names = [names] if isinstance(names, str) else names
    for name in names:
        if name not in columns:
            raise InputError(
                f"`columns` must be all, or some of the columns of {path} beside vectors and ids "
                f"({', '.join(columns) or 'it has none'}); got {name}."
            )
    return list(dict.fromkeys(names))


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
        return as_float(values, dtype, path, first_row)
    rows = np.full((len(column), dim), np.nan, dtype=values.dtype)
    rows[has_vector] = values
    return as_float(rows, dtype, path, first_row)
