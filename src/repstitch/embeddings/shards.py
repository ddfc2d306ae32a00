"""Open a Parquet or Arrow file, or the files of a folder in the order of their numbers, as one dataset."""

import json
import posixpath
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
from pyarrow import fs

from repstitch.errors import InputError

ENDINGS = (".parquet", ".arrow")
ARROW_FILE = b"ARROW1"  # how a file begins that has Arrow's file layout, not its stream layout
# Parquet files are read part by part: with `pre_buffer`, Arrow would keep every part that it has read in memory.
PARQUET = pyarrow.dataset.ParquetFileFormat(
    default_fragment_scan_options=pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
)


def open_dataset(path: str) -> tuple[pyarrow.dataset.Dataset, list[str]]:
    """Open a file or a folder, and return the dataset with the paths of its files, in the order of the rows.

    The files of a folder and its subfolders are in natural order (`part_2` before `part_10`). Names that begin with a
    dot or underscore and unfinished outputs are left out, and so are files of other types beside .parquet and .arrow
    files. For a folder that the library datasets saved, the files and their order are those in its `state.json`. Raises
    InputError on a folder with both types of files, and on one that contains several saved datasets.
    """
    filesystem, location = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
    is_folder = filesystem.get_file_info(location).type == fs.FileType.Directory
    files = _files(filesystem, location.rstrip("/"), path) if is_folder else [location]
    endings = {Path(file).suffix for file in files} & set(ENDINGS)
    if len(endings) > 1:
        raise InputError(f"{path} must contain either .parquet or .arrow files; it has both. Read them separately.")
    if endings != {".arrow"}:
        return pyarrow.dataset.dataset(files, format=PARQUET, filesystem=filesystem), files
    if all(_has_file_layout(filesystem, file) for file in files):
        return pyarrow.dataset.dataset(files, format="ipc", filesystem=filesystem), files
    tables = [_read_arrow(filesystem, file) for file in files]
    return pyarrow.dataset.dataset(pa.concat_tables(tables)), files


def _files(filesystem: fs.FileSystem, folder: str, path: str) -> list[str]:
    """Return the files of a folder that contain its rows, in natural order."""
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    names = {posixpath.relpath(info.path, folder) for info in infos if info.type == fs.FileType.File}
    if "dataset_dict.json" in names:
        splits = sorted({name.split("/")[0] for name in names if name.endswith("/state.json")})
        raise InputError(f"{path} contains several datasets; pass one of them: {', '.join(splits)}.")
    if "state.json" in names:
        saved = _saved_files(filesystem, f"{folder}/state.json", path)
        if saved:
            return [f"{folder}/{name}" for name in saved]
    visible = [name for name in names if not any(_is_hidden(part) for part in name.split("/"))]
    rows = [name for name in visible if name.endswith(ENDINGS)] or visible
    return [f"{folder}/{name}" for name in sorted(rows, key=natural_order)]


def natural_order(name: str) -> tuple[list[int | str], str]:
    """Return a key that sorts names by the numbers in them."""
    parts = re.split(r"([0-9]+)", name)  # texts and numbers in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_")) or name.endswith((".partial", ".tmp"))


def _saved_files(filesystem: fs.FileSystem, state_file: str, path: str) -> list[str]:
    """Return the files that the `state.json` of a saved dataset lists; none if it is another program's file."""
    with filesystem.open_input_stream(state_file) as stream:
        content = stream.read()
    try:
        state = json.loads(content)
        files = [str(entry["filename"]) for entry in state["_data_files"]]
        reordered = state.get("_indices_data_files") or state.get("_indices_files")
    except Exception:  # another program's file may have any content
        return []
    if reordered:
        raise InputError(f"{path} has its rows in another order than its files; save it after `flatten_indices()`.")
    return files


def _has_file_layout(filesystem: fs.FileSystem, file: str) -> bool:
    with filesystem.open_input_file(file) as opened:
        return opened.read(len(ARROW_FILE)) == ARROW_FILE


def _read_arrow(filesystem: fs.FileSystem, file: str) -> pa.Table:
    """Read a file of either layout. A local file is mapped to memory, so uncompressed rows are not copied."""
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    source = pa.memory_map(file) if is_local else filesystem.open_input_file(file)
    if _has_file_layout(filesystem, file):
        return pa.ipc.open_file(source).read_all()
    return pa.ipc.open_stream(source).read_all()
