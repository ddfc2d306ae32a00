"""Read embeddings: Parquet, Arrow IPC, `.npy` (with the ids in a file of their own) and `.npz` (as `file.npz:key`)."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from repstitch.embeddings.columns import UNREADABLE, read_column
from repstitch.embeddings.rows import SPACE_KEY, Embeddings, Scan
from repstitch.errors import InputError, one_line
from repstitch.files import check_embeddings_exist, split_key
from repstitch.names import FORMATS
from repstitch.spaces import Space


def scan(
    path: str | os.PathLike,
    *,
    space: str | Space | None = None,
    ids: str | os.PathLike | None = None,
    group: str | os.PathLike | None = None,
) -> Scan:
    """Open embeddings by their extension without reading the rows.

    `path` is a Parquet or Arrow file, a folder of them, an `s3://` or `gs://` address, a `.npy`, or `file.npz:key`
    (`file.parquet:column` picks another vector column). `space` states the space: a name, or a whole card. `ids` is a
    file with one id a row, `group` a column of the file or a file with one group a row. Raises InputError on anything
    that cannot be read as rows of numbers.
    """
    location, key = split_key(str(path))
    suffix = Path(location).suffix
    check_embeddings_exist(path)
    try:
        if suffix == ".npy":
            opened = _scan_array(location, _load_array(location, None), None)
        elif suffix == ".npz":
            opened = _scan_npz(location, key)
        elif suffix in (".parquet", ".arrow") or "://" in location or Path(location).is_dir():
            opened = _scan_arrow(location, key or "vector", group)
        else:
            raise InputError(f"{location} must be one of {', '.join(FORMATS)} or a folder of Parquet files.")
    except UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{location} cannot be read as embeddings: {one_line(error)}") from None
    return _label(opened, space, ids, group)


def read(path, *, space: str | Space | None = None, ids=None, group=None) -> Embeddings:
    """Read embeddings whole; see `scan` for what can be read, besides an `Embeddings` or an array (n, dim)."""
    if isinstance(path, Embeddings):
        if space is None and ids is None and group is None:
            return path
        return _label(_scan_embeddings(path), space, ids, group).read()
    if isinstance(path, str | os.PathLike):
        return scan(path, space=space, ids=ids, group=group).read()
    array = np.asarray(path)
    opened = _scan_array("array", _as_rows("array", array), None)
    return _label(opened, space, ids, group).read()


def _load_array(path: str, key: str | None) -> np.ndarray:
    loaded = np.load(path, mmap_mode="r" if key is None else None, allow_pickle=False)
    return _as_rows(path, loaded if key is None else loaded[key])


def _as_rows(what: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        raise InputError(f"{what} must be a table of floats, (n, dim); got {array.dtype} of shape {array.shape}.")
    return array


def _scan_embeddings(held: Embeddings) -> Scan:
    def rows(size: int, start: int):
        for at in range(start, len(held), size):
            part = held.take(slice(at, at + size))
            yield part.vectors, part.ids, part.groups

    return Scan("embeddings", len(held), held.space, held.declared, held.ids is not None, rows)


def _scan_npz(path: str, key: str | None) -> Scan:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        ids = np.asarray(archive["ids"]).astype(str).astype(object) if "ids" in names and key != "ids" else None
        if key is None:
            if len(set(names) - {"ids"}) != 1:
                raise InputError(f"{path} holds several arrays; name one as {path}:KEY out of {', '.join(names)}.")
            key = next(name for name in names if name != "ids")
        if key not in names:
            raise InputError(f"{path} has no array {key!r}; it holds {', '.join(names)}.")
        array = _as_rows(f"{path}:{key}", archive[key])
    if ids is not None and ids.shape != (len(array),):
        raise InputError(f"`ids` of {path} must have one entry a row ({len(array)}); got {ids.shape}.")
    opened = _scan_array(path, array, ids)
    return replace(opened, space=replace(opened.space, name=key))


def _scan_array(path: str, array: np.ndarray, ids: np.ndarray | None) -> Scan:
    narrow = array.dtype if array.dtype in (np.float16, np.float32) else np.dtype(np.float32)

    def rows(size: int, start: int):
        for at in range(start, len(array), size):
            chunk = np.ascontiguousarray(array[at : at + size], dtype=narrow)
            yield chunk, None if ids is None else ids[at : at + size], None

    space = Space(Path(path).stem, int(array.shape[1]))
    return Scan(path, len(array), space, False, ids is not None, rows)


def _scan_arrow(path: str, column: str, group) -> Scan:
    form = "ipc" if Path(path).suffix == ".arrow" or any(Path(path).glob("*.arrow")) else "parquet"
    try:
        data = pyarrow.dataset.dataset(path, format=form)
        schema, n_rows = data.schema, data.count_rows()
    except pa.ArrowInvalid:
        if form != "ipc":
            raise
        table = pa.ipc.open_stream(pa.memory_map(path)).read_all()  # the other of Arrow's two layouts
        data, schema, n_rows = pyarrow.dataset.dataset(table), table.schema, table.num_rows
    if not schema.names:
        raise InputError(f"{path} holds no rows.")
    if column not in schema.names:
        raise InputError(
            f"{path} has no column {column!r}; it holds {', '.join(schema.names)}. Name one as {path}:COLUMN."
        )
    kind = schema.field(column).type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)) or not (
        pa.types.is_floating(kind.value_type)
    ):
        raise InputError(f"Column {column!r} of {path} must hold lists of floats; it holds {kind}.")
    card = (schema.metadata or {}).get(SPACE_KEY)
    first = data.head(1, columns=[column])
    if not first.num_rows:
        raise InputError(f"{path} holds no rows.")
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else len(first[column][0].as_py() or [])
    if not dim:
        raise InputError(f"Column {column!r} of {path} holds empty lists.")
    if isinstance(data, pyarrow.dataset.FileSystemDataset):
        for part in data.get_fragments():
            if (part.physical_schema.metadata or {}).get(SPACE_KEY) != card:
                raise InputError(f"{path} holds files of several spaces ({part.path} differs); read each on its own.")
    card = card if column == "vector" else None  # it speaks of no other column
    space = Space.from_json(card) if card else Space(Path(path).stem, dim)
    if space.dim != dim:
        raise InputError(f"The card of {path} says {space.dim} dimensions but its vectors have {dim}.")
    by_column = str(group) if group is not None and str(group) in schema.names else None
    wanted = list(dict.fromkeys([column] + [name for name in ("id", by_column) if name and name in schema.names]))
    narrow = np.float16 if kind.value_type == pa.float16() else np.float32

    def rows(size: int, start: int):
        skip = start
        for batch in data.to_batches(columns=wanted, batch_size=size, batch_readahead=2, fragment_readahead=1):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            batch, skip = batch.slice(skip), 0
            if not batch.num_rows:
                continue
            yield (
                _matrix(batch.column(column), dim, narrow, path),
                _text(batch, "id", path) if "id" in wanted else None,
                _text(batch, by_column, path) if by_column else None,
            )

    return Scan(path, n_rows, space, bool(card), "id" in wanted, rows)


def _text(batch: pa.RecordBatch, name: str, path: str) -> np.ndarray:
    column = batch.column(name)
    if column.null_count:
        raise InputError(f"{path} holds {column.null_count} rows without an entry in column {name!r}; give each one.")
    return column.cast(pa.string()).to_numpy(zero_copy_only=False)


def _matrix(column: pa.Array, dim: int, dtype, path: str) -> np.ndarray:
    if column.null_count:
        raise InputError(f"{path} holds {column.null_count} rows without a vector; remove them.")
    values = column.flatten()
    lengths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
    if values.null_count or (lengths != dim).any():
        raise InputError(f"{path} must hold rows of {dim} numbers throughout; some are shorter, longer or null.")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), dim).astype(dtype, copy=False)


def _label(opened: Scan, space: str | Space | None, ids, group) -> Scan:
    """Put on a scan what the caller stated beside the file: its space, its ids, its groups."""
    if isinstance(space, Space):
        if space.dim != opened.space.dim:
            raise InputError(
                f"`space` {space.name!r} has {space.dim} dimensions, {opened.path} has {opened.space.dim}."
            )
        opened = replace(opened, space=space, declared=True)
    elif space is not None:
        opened = replace(opened, space=replace(opened.space, name=space), declared=True)
    columns = {
        "ids": None if ids is None else read_column(ids, opened.n_rows, "ids"),
        "groups": read_column(group, opened.n_rows, "group") if _is_file(group) else None,
    }
    if all(column is None for column in columns.values()):
        return opened
    inner = opened._rows

    def rows(size: int, start: int):
        at = start
        for vectors, own_ids, own_groups in inner(size, start):
            here = slice(at, at + len(vectors))
            at += len(vectors)
            given_ids, given_groups = columns["ids"], columns["groups"]
            yield (
                vectors,
                own_ids if given_ids is None else given_ids[here],
                own_groups if given_groups is None else given_groups[here],
            )

    return replace(opened, has_ids=opened.has_ids or ids is not None, _rows=rows)


def _is_file(group) -> bool:
    return group is not None and (not isinstance(group, str) or Path(split_key(group)[0]).is_file())
