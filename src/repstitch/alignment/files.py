"""Write and read an atlas as files: `atlas.json`, and its pairs as tables."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from repstitch.alignment.report import COLUMNS
from repstitch.alignment.result import Atlas
from repstitch.errors import InputError, one_line
from repstitch.files import check_new_folder, read_json, written_whole


def write(atlas: Atlas, out: str | os.PathLike[str]) -> Path:
    """Write an atlas to a new folder, with the same files as `put`; on failure, no folder is left behind."""
    target = check_new_folder(out, "an atlas")
    with written_whole(target, parents=True) as folder:
        folder.mkdir()
        for name, write_file in _files(atlas).items():
            write_file(folder / name)
        check_new_folder(out, "an atlas")  # another process may have created it meanwhile
    return target


def put(atlas: Atlas, folder: Path) -> None:
    """Write `atlas.json`, `pairs.csv` and `pairs.parquet` (one row per pair and metric) to an existing folder.

    Existing files with these names are replaced, each atomically.
    """
    for name, write_file in _files(atlas).items():
        with written_whole(folder / name) as path:
            write_file(path)


def _files(atlas: Atlas) -> dict[str, Callable[[Path], object]]:
    """Return, for each file name of an atlas, the function that writes the file to a path."""
    pairs = atlas["pairs"]
    rows = pa.table({name: [pair[name] for pair in pairs] for name in COLUMNS if name in pairs[0]})
    return {
        "atlas.json": lambda path: path.write_text(atlas.to_json() + "\n", encoding="utf-8"),
        "pairs.csv": lambda path: pacsv.write_csv(rows, path),
        "pairs.parquet": lambda path: pq.write_table(rows, path),
    }


def read(folder: str | os.PathLike[str]) -> Atlas:
    """Read the atlas from a folder that `write` or `put` wrote; InputError if the folder has no atlas."""
    path = Path(folder) / "atlas.json"
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} must be the folder of an atlas; {path} cannot be read: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{folder} must be the folder of an atlas; its atlas.json does not contain a JSON object.")
    try:
        return Atlas.from_dict(values)
    except InputError as error:
        raise InputError(f"{folder} must be the folder of an atlas; its atlas.json is not an atlas: {error}") from None
