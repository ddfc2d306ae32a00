"""Columns of vectors and ids in Arrow tables as NumPy arrays, and back."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repstitch.errors import InputError


def is_vectors(kind: pa.DataType) -> bool:
    """Return whether a type is a fixed-size list of float32 or float16."""
    return pa.types.is_fixed_size_list(kind) and kind.value_type in (pa.float32(), pa.float16())


def matrix(column: pa.Array | pa.ChunkedArray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors (n, dim) of a column as float32, NaN where there is none, and a mask (n,) of those there are.

    Vectors of float32 without nulls are not copied. Raises InputError if a list has another length.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = pc.call_function("list_value_length", [array]).fill_null(0).to_numpy(zero_copy_only=False)
    valid = lengths > 0
    if np.any(lengths[valid] != dim):
        raise InputError(f"Every vector must have {dim} numbers; got one with another number of them.")
    values = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim).astype(np.float32, copy=False)
    if valid.all():
        return values, valid
    rows = np.full((len(array), dim), np.nan, np.float32)
    rows[valid] = values
    return rows, valid


def vector_column(rows: np.ndarray, valid: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """Return vectors (n, dim) as a column of float32, which is null where `valid` (n,) is False."""
    values = pa.array(np.ascontiguousarray(rows, np.float32).reshape(-1))
    mask = None if valid is None or valid.all() else pa.array(~valid)
    return pa.FixedSizeListArray.from_arrays(values, rows.shape[1], mask=mask)


def draw_rows(n_rows: int, n: int, seed: int, vector: str, read: Callable[[np.ndarray], pa.Table]) -> pa.Table:
    """Return n of `n_rows` rows drawn at random, without those that have no vector; all if there are no more.

    `read` reads the rows at sorted positions.
    """
    draw, size = np.random.default_rng(seed), n
    while True:
        size = min(size, n_rows)
        rows = read(np.sort(draw.choice(n_rows, size, replace=False)))
        rows = rows.filter(rows[vector].is_valid())
        if len(rows) >= n or size == n_rows:
            return rows.take(draw.permutation(len(rows))[:n])
        size = 2 * size  # some of the rows have no vector


def has_vector(rows: np.ndarray) -> np.ndarray:
    """Return a mask (n,) of the translated rows that are vectors; a row without a translation is NaN."""
    return ~np.isnan(rows[:, 0]) if rows.shape[1] else np.zeros(len(rows), bool)


def id_texts(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a column of ids (n,) as text."""
    return np.asarray(column.cast(pa.string()).to_pylist(), dtype=object)


def check_ids(read: Callable[[], Iterator[pa.Array]], name: str, place: str) -> None:
    """Raise InputError if an id is missing or occurs twice.

    `read` yields the column of ids in pieces; it is called again to name a repeated id. Memory is eight bytes a row.
    """
    hashes = []
    for piece in read():
        if piece.null_count:
            raise InputError(f"Column {name!r} of {place} must have an id in every row; some are null.")
        hashes.append(_hashes(piece))
    every = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0, np.int64)
    repeated = np.unique(every[1:][every[1:] == every[:-1]])
    if not len(repeated):
        return
    earlier: set[str] = set()
    for piece in read():
        for key in id_texts(piece.filter(pa.array(np.isin(_hashes(piece), repeated)))):
            if key in earlier:
                raise InputError(
                    f"Column {name!r} of {place} must have another id in each row; {key!r} occurs more than once. "
                    "Remove the repeats, or name another column with id=."
                )
            earlier.add(key)


def _hashes(column: pa.Array) -> np.ndarray:
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False)
    return np.fromiter(map(hash, column.to_pylist()), np.int64, len(column))


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows scaled to unit length; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows, np.float32), where=norms > 0)
