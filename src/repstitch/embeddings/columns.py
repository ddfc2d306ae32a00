"""Read one entry per row (ids, groups or labels) from an array or a file."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from repstitch.errors import InputError, one_line
from repstitch.files import check_file_exists, split_key

Column = str | os.PathLike[str] | ArrayLike  # a file, or the entries themselves
UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def read_column(column: Column, n_rows: int, argument: str) -> np.ndarray:
    """Return one entry per row (n,) as text; see `load_column`."""
    return load_column(column, n_rows, argument).astype(str).astype(object)


def load_column(column: Column, n_rows: int, argument: str) -> np.ndarray:
    """Return one entry per row (n,) from an array, a text file of lines, a `.npy` file or `file.npz:key`.

    Raises InputError, naming the `argument`, if the file cannot be read or the number of entries is not `n_rows`.
    """
    values = _load_file(column, argument) if isinstance(column, str | os.PathLike) else np.asarray(column)
    if values.shape != (n_rows,):
        raise InputError(f"`{argument}` must have one entry per row ({n_rows}); got shape {values.shape}.")
    return values


def _load_file(path: str | os.PathLike[str], argument: str) -> np.ndarray:
    location, key = split_key(str(path))
    check_file_exists(location, argument)
    try:
        if Path(location).suffix not in (".npy", ".npz"):
            return np.array(Path(location).read_text(encoding="utf-8").splitlines(), dtype=object)
        loaded = np.load(location, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        if key is None and len(loaded.files) != 1:
            raise ValueError(f"name one of its arrays ({', '.join(loaded.files)}) as {location}:KEY")
        return loaded[key or loaded.files[0]]
    except UNREADABLE as error:
        raise InputError(f"`{argument}`: {location} cannot be read: {one_line(error)}") from None
