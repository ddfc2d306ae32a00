"""Open a Parquet or Arrow file, or the files of a folder in the order of their numbers, as one dataset."""

import base64
import json
import logging
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
from pyarrow import fs

from repstitch.errors import InputError
from repstitch.spaces import SPACE_KEY

log = logging.getLogger(__name__)

ENDINGS = (".parquet", ".arrow")
UNREAD = (".parq", ".pq", ".feather", ".ipc", ".npy", ".npz", ".csv", ".jsonl")  # of files that may contain rows
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
    endings = {Path(file).suffix.lower() for file in files} & set(ENDINGS)
    if len(endings) > 1:
        raise InputError(f"{path} must contain either .parquet or .arrow files; it has both. Read them separately.")
    if endings != {".arrow"}:
        return pyarrow.dataset.dataset(files, format=PARQUET, filesystem=filesystem), files
    if all(_has_file_layout(filesystem, file) for file in files):
        return pyarrow.dataset.dataset(files, format="ipc", filesystem=filesystem), files
    tables = [_read_arrow(filesystem, file) for file in files]
    for file, table in zip(files, tables, strict=True):
        if (table.schema.metadata or {}).get(SPACE_KEY) != (tables[0].schema.metadata or {}).get(SPACE_KEY):
            raise InputError(f"{path} has files of several spaces ({file} differs); read each file separately.")
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
    rows = [name for name in visible if Path(name).suffix.lower() in ENDINGS] or visible
    others = [name for name in visible if name not in rows and Path(name).suffix.lower() in UNREAD]
    unread = [name for name in others if Path(name).name not in ("ids.npy", f"{posixpath.basename(folder)}.ids.npy")]
    if unread:
        log.warning("%s: not read, because its other files are read: %s.", path, ", ".join(sorted(unread)))
    return [f"{folder}/{name}" for name in sorted(rows, key=natural_order)]


def with_common_types(data: pyarrow.dataset.Dataset, columns: Iterable[str], path: str) -> pyarrow.dataset.Dataset:
    """Return the dataset with, for each of the columns, a type that represents the values of all files exactly.

    Raises InputError if two files have types of different kinds, such as text and whole numbers.
    """
    if not isinstance(data, pyarrow.dataset.FileSystemDataset):
        return data
    schema, typed = data.schema, set()
    for part in data.get_fragments():
        for name in set(columns) & set(part.physical_schema.names):
            at, kind = schema.get_field_index(name), _written_type(part, name)
            kinds = (schema.field(name).type if name in typed else kind, kind)
            typed.add(name)
            common = _common_type(*kinds)
            if common is None:
                raise InputError(
                    f"{path} must have one type of column {name!r} in all files; got {kinds[0]}, and {kinds[1]} in "
                    f"{part.path}. Read each file separately."
                )
            schema = schema.set(at, schema.field(at).with_type(common))
    if schema.equals(data.schema):
        return data
    return pyarrow.dataset.FileSystemDataset(list(data.get_fragments()), schema, data.format, data.filesystem)


def _written_type(part: pyarrow.dataset.FileFragment, name: str) -> pa.DataType:
    """Return the type that a column had when the file was written. Parquet has no seconds and no dates in milliseconds.

    Arrow keeps the type that it wrote in the metadata.
    """
    kind = part.physical_schema.field(name).type
    if not pa.types.is_temporal(kind) or not isinstance(part, pyarrow.dataset.ParquetFileFragment):
        return kind
    try:
        stored = base64.b64decode(part.metadata.metadata[b"ARROW:schema"])
        written = pa.ipc.read_schema(pa.py_buffer(stored)).field(name).type
    except Exception:  # other programs write no such metadata, or may write it in any form
        return kind
    written = written.value_type if pa.types.is_dictionary(written) else written
    is_alike = written in (pa.timestamp("s", getattr(kind, "tz", None)), pa.date64(), pa.time32("s"))
    return written if is_alike and _common_type(kind, written) is not None else kind


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type to which both can be cast without a change of a value, or None if there is none."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        return _common_type(*(kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (one, other)))
    if all(pa.types.is_fixed_size_list(kind) for kind in (one, other)) and one.list_size == other.list_size:
        value = _common_type(one.value_type, other.value_type)
        return None if value is None else pa.list_(value, one.list_size)
    if all(is_lists(kind) for kind in (one, other)):
        value = _common_type(one.value_type, other.value_type)
        return None if value is None else pa.large_list(value)
    types = pa.types
    alike = (types.is_integer, types.is_floating, _is_text, types.is_decimal)
    alike += (types.is_timestamp, types.is_date, types.is_time)
    if not any(is_kind(one) and is_kind(other) for is_kind in alike):
        return None
    if _is_text(one):
        return pa.large_string()
    schemas = [pa.schema([("", kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def is_lists(kind: pa.DataType) -> bool:
    """Return whether a type is one of lists of any size."""
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


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
