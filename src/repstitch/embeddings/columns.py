"""Read one entry per row (ids, groups or labels) from an array or a file."""

import os
from collections.abc import Callable
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from repstitch.embeddings.ids import NO_IDS, IdColumn, column_texts, object_column, texts, without_views
from repstitch.embeddings.rows import check_unique
from repstitch.embeddings.tables import read_column_with_ids
from repstitch.errors import InputError, one_line
from repstitch.files import check_file_exists, split_column, split_key
from repstitch.lines import read_lines

Column = str | os.PathLike[str] | ArrayLike  # a file, a column of a table, or the entries themselves
Entries = Callable[[slice, np.ndarray | None], np.ndarray]  # takes a range of rows and their ids


def read_column(column: Column, n_rows: int, argument: str, rows: str = "") -> np.ndarray:
    """Return one entry per row (n,) as text, in the order of the rows; see `open_column`."""
    return texts(open_column(column, n_rows, argument, rows, NO_IDS)(slice(None), None), f"`{argument}`")


def open_column(
    column: Column, n_rows: int, argument: str, rows: str = "", id_column: IdColumn | None = None
) -> Entries:
    """Read one entry per row, and return a function from a range of rows and their ids to the entries of these rows.

    `column` is an array, a text file of lines, a `.npy` file, `file.npz:key`, or a column of a table as
    `table.csv:column`. The entries are in the order of the rows. Those of a table that has ids are matched by id; a row
    whose id is not in the table gets None. `id_column` names the column of ids if the table has it. Raises InputError,
    naming the `argument`, if the file cannot be read or the number of entries is not `n_rows`. Messages call the file
    of the rows `rows`.
    """
    location, name = split_column(str(column)) if isinstance(column, str | os.PathLike) else ("", None)
    if name is not None or location.endswith(".parquet"):
        check_file_exists(location, argument)
        table = read_column_with_ids(Path(location), name or None, argument, id_column)
        if table.num_columns == 2:
            return _by_id(table, location, argument)
        entries = object_column(table.column(0).to_pylist())
    elif location:
        entries = _load_file(str(column), argument)
    else:
        entries = np.asarray(column)
    if entries.shape != (n_rows,):
        named, of = (f" {part}" if part else "" for part in (location, rows and f"of {rows}"))
        count = f"{len(entries):,} entries" if entries.ndim == 1 else f"shape {entries.shape}"
        raise InputError(f"`{argument}`{named} must have one entry per row{of} ({n_rows:,}); got {count}.")
    return lambda part, _: entries[part]


def count_entries(path: Path, argument: str) -> int:
    """Return the number of entries in a text file of lines or a `.npy` file."""
    return np.atleast_1d(_load_file(str(path), argument)).shape[0]


def _by_id(table: pa.Table, location: str, argument: str) -> Entries:
    """Return the function of `open_column` for a table of entries and ids, whose rows without an id are not used."""
    values, ids = without_views(table).columns
    has_id = ids.is_valid().to_pylist()
    keys = column_texts(ids.drop_null(), f"Column {table.column_names[1]!r} of {location}")
    check_unique(keys, f"the table of {argument}")
    entry_of = dict(zip(keys, compress(values.to_pylist(), has_id), strict=True))

    def entries(part: slice, row_ids: np.ndarray | None) -> np.ndarray:
        if row_ids is None:
            raise InputError(
                f"`{argument}` {location} has a column of ids, but the rows have no ids; pass the ids of the rows."
            )
        if not any(key in entry_of for key in row_ids):
            first = f"the table has e.g. {keys[0]!r}" if len(keys) else "the table has none"
            raise InputError(f"`{argument}` {location} has none of the rows' ids ({first}, the rows {row_ids[0]!r}).")
        return object_column(entry_of.get(key) for key in row_ids)

    return entries


def _load_file(path: str, argument: str) -> np.ndarray:
    location, key = split_key(path)
    check_file_exists(location, argument)
    if Path(location).suffix not in (".npy", ".npz"):
        return np.array(read_lines(location, argument), dtype=object)
    try:
        loaded = np.load(location, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        if key is None and len(loaded.files) != 1:
            raise ValueError(f"name one of its arrays ({', '.join(loaded.files)}) as {location}:KEY")
        return loaded[key or loaded.files[0]]
    except Exception as error:  # the readers of damaged files raise nearly every exception
        raise InputError(f"`{argument}`: {location} cannot be read: {one_line(error)}") from None
