"""One entry a row (ids, groups, labels) from an array or a file."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from repstitch.errors import InputError, one_line
from repstitch.files import split_key

UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def read_column(path, n_rows: int, what: str) -> np.ndarray:
    """One entry a row as text, see `load_column`."""
    return load_column(path, n_rows, what).astype(str).astype(object)


def load_column(path, n_rows: int, what: str) -> np.ndarray:
    """One entry a row, from an array, a text file with one a line, a `.npy` or `file.npz:key`."""
    if isinstance(path, str | os.PathLike):
        location, key = split_key(str(path))
        if not Path(location).is_file():
            raise InputError(f"`{what}`: there is no file {location}; give a file with one entry a row.")
        try:
            if Path(location).suffix in (".npy", ".npz"):
                loaded = np.load(location, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    values = loaded
                elif key is None and len(loaded.files) != 1:
                    raise KeyError(f"name one array as {location}:KEY out of {', '.join(loaded.files)}")
                else:
                    values = loaded[key or loaded.files[0]]
            else:
                values = np.array(Path(location).read_text(encoding="utf-8").splitlines(), dtype=object)
        except UNREADABLE as error:
            raise InputError(f"`{what}`: {location} cannot be read: {one_line(error)}") from None
    else:
        values = np.asarray(path)
    if values.shape != (n_rows,):
        raise InputError(f"`{what}` must have one entry a row ({n_rows}); got {values.shape}.")
    return values
