"""Read embeddings: Parquet, Arrow IPC, `.npy` (with the ids in another file) and `.npz` (as `file.npz:key`)."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from numpy.typing import ArrayLike

from repstitch.arguments import check_unmasked, names_keywords
from repstitch.embeddings.columns import UNREADABLE, Column, read_column
from repstitch.embeddings.rows import SPACE_KEY, Embeddings, EmbeddingsLike, Scan
from repstitch.errors import InputError, one_line
from repstitch.files import check_embeddings_exist, is_file_or_pipe, split_key
from repstitch.names import FORMATS
from repstitch.spaces import Space

EXACT_INTEGERS = 2**24  # every whole number up to it is a float32


def scan(
    path: str | os.PathLike[str],
    *,
    space: str | Space | None = None,
    ids: Column | None = None,
    group: Column | None = None,
) -> Scan:
    """Open embeddings by their file ending without reading the rows.

    `path` is a Parquet or Arrow file, a folder of them, an `s3://` or `gs://` address, a `.npy`, or `file.npz:key`
    (`file.parquet:column` names another vector column). `space` states the space: its name or its whole card. `ids` is
    a file with one id a row, `group` a column of the file or a file with one group a row. Raises InputError on anything
    that cannot be read as rows of numbers.
    """
    location, key = split_key(str(path))
    suffix = Path(location).suffix
    check_embeddings_exist(path)
    try:
        if suffix == ".npy":
            opened = _scan_array(
                location, _float_rows(location, np.load(location, mmap_mode="r", allow_pickle=False)), None
            )
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
    return _override(opened, space, ids, group)


@names_keywords
def read(
    source: EmbeddingsLike,
    *,
    space: str | Space | None = None,
    ids: Column | None = None,
    group: Column | None = None,
) -> Embeddings:
    """Read embeddings into memory: from a path (see `scan`), from an array (n, dim), or from `Embeddings`.

    `space`, `ids` and `group` are as for `scan`, and replace those of the `source`. A torch tensor is read as an array,
    from any device; a masked array is refused.
    """
    return read_argument("array", source, space=space, ids=ids, group=group)


def read_argument(
    subject: str,
    source: EmbeddingsLike,
    *,
    space: str | Space | None = None,
    ids: Column | None = None,
    group: Column | None = None,
) -> Embeddings:
    """`read` of an argument that messages about an array call `subject`."""
    if isinstance(source, Embeddings):
        if space is None and ids is None and group is None:
            return source
        opened = _scan_embeddings(source)
    elif isinstance(source, str | os.PathLike):
        return scan(source, space=space, ids=ids, group=group).read()
    else:
        opened = replace(_scan_array("array", _float_rows(subject, _as_array(source, subject)), None), path=subject)
    return _override(opened, space, ids, group).read()


def _as_array(values: ArrayLike, subject: str) -> np.ndarray:
    """The values as an array, whole numbers as float32; InputError where that would round them."""
    check_unmasked(values, subject)
    try:
        array = np.asarray(_off_torch(values))
    except ValueError:
        raise InputError(f"{subject} must be a table of floats, (n, dim); its rows have different lengths.") from None
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{subject} must be a table of floats, (n, dim): {one_line(error)}") from None
    if array.dtype.kind not in "iu" or not array.size:
        return array
    if max(-int(array.min()), int(array.max())) > EXACT_INTEGERS:
        raise InputError(
            f"{subject} holds whole numbers beyond {EXACT_INTEGERS:,}, which float32 would round; convert it to floats."
        )
    return array.astype(np.float32)


def _off_torch(values: Any) -> Any:
    """A torch tensor as NumPy can read it: detached, on the CPU, floats that NumPy lacks as float32; others as is."""
    torch = sys.modules.get("torch")  # no value is a tensor before torch is imported
    if torch is None or not isinstance(values, torch.Tensor):
        return values
    tensor = values.detach().cpu()
    widens = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if widens else tensor).numpy()


def _float_rows(name: str, array: np.ndarray) -> np.ndarray:
    """The array, if it is a table of floats (n, dim); InputError otherwise."""
    if array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        raise InputError(f"{name} must be a table of floats, (n, dim); got {array.dtype} of shape {array.shape}.")
    return array


def _scan_embeddings(embeddings: Embeddings) -> Scan:
    def rows(size: int, start: int):
        for at in range(start, len(embeddings), size):
            part = embeddings.take(slice(at, at + size))
            yield part.vectors, part.ids, part.groups

    has_ids = embeddings.ids is not None
    return Scan("embeddings", len(embeddings), embeddings.space, embeddings.declared, has_ids, rows)


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
        array = _float_rows(f"{path}:{key}", archive[key])
    if ids is not None and ids.shape != (len(array),):
        raise InputError(f"`ids` of {path} must have one entry a row ({len(array)}); got {ids.shape}.")
    opened = _scan_array(path, array, ids)
    return replace(opened, space=replace(opened.space, name=key))


def _scan_array(path: str, array: np.ndarray, ids: np.ndarray | None) -> Scan:
    dtype = array.dtype if array.dtype in (np.float16, np.float32) else np.dtype(np.float32)

    def rows(size: int, start: int):
        for at in range(start, len(array), size):
            chunk = np.ascontiguousarray(array[at : at + size], dtype=dtype)
            yield chunk, None if ids is None else ids[at : at + size], None

    space = Space(Path(path).stem, int(array.shape[1]))
    return Scan(path, len(array), space, False, ids is not None, rows)


# --- Parquet and Arrow ------------------------------------------------------------------------------------------------


def _scan_arrow(path: str, column: str, group: Column | None) -> Scan:
    data, n_rows = _open_dataset(path)
    kind = _vector_type(data.schema, column, path)
    dim = _vector_dim(data, column, kind, path)
    card = _common_card(data, path)
    if column != "vector":
        card = None  # it describes no other column
    space = Space.from_json(card) if card else Space(Path(path).stem, dim)
    if space.dim != dim:
        raise InputError(f"The card of {path} says {space.dim} dimensions but its vectors have {dim}.")
    ids_column = "id" if "id" in data.schema.names else None
    group_column = str(group) if group is not None and str(group) in data.schema.names else None
    columns = list(dict.fromkeys(name for name in (column, ids_column, group_column) if name))
    dtype = np.float16 if kind.value_type == pa.float16() else np.float32

    def rows(size: int, start: int):
        batches = data.to_batches(columns=columns, batch_size=size, batch_readahead=2, fragment_readahead=1)
        for batch in _skip_rows(batches, start):
            yield (
                _matrix(batch.column(column), dim, dtype, path),
                _text(batch, ids_column, path) if ids_column else None,
                _text(batch, group_column, path) if group_column else None,
            )

    return Scan(path, n_rows, space, bool(card), ids_column is not None, rows)


def _open_dataset(path: str) -> tuple[pyarrow.dataset.Dataset, int]:
    """A file or a folder of files, and the number of rows."""
    form = "ipc" if Path(path).suffix == ".arrow" or any(Path(path).glob("*.arrow")) else "parquet"
    try:
        data = pyarrow.dataset.dataset(path, format=form)
        return data, data.count_rows()
    except pa.ArrowInvalid:
        if form != "ipc":
            raise
        table = pa.ipc.open_stream(pa.memory_map(path)).read_all()  # the other of Arrow's two layouts
        return pyarrow.dataset.dataset(table), table.num_rows


def _vector_type(schema: pa.Schema, column: str, path: str) -> pa.DataType:
    """The type of the vector column; InputError unless it holds lists of floats."""
    if not schema.names:
        raise InputError(f"{path} holds no rows.")
    if column not in schema.names:
        raise InputError(
            f"{path} has no column {column!r}; it holds {', '.join(schema.names)}. Name one as {path}:COLUMN."
        )
    kind = schema.field(column).type
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise InputError(f"Column {column!r} of {path} must hold lists of floats; it holds {kind}.")
    return kind


def _vector_dim(data: pyarrow.dataset.Dataset, column: str, kind: pa.DataType, path: str) -> int:
    """The number of dimensions: that of the type, or else that of the first row."""
    first = data.head(1, columns=[column])
    if not first.num_rows:
        raise InputError(f"{path} holds no rows.")
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else len(first[column][0].as_py() or [])
    if not dim:
        raise InputError(f"Column {column!r} of {path} holds empty lists.")
    return dim


def _common_card(data: pyarrow.dataset.Dataset, path: str) -> bytes | None:
    """The space card in the metadata of a file, or of all files of a folder; InputError where they differ."""
    card = (data.schema.metadata or {}).get(SPACE_KEY)
    if isinstance(data, pyarrow.dataset.FileSystemDataset):
        for part in data.get_fragments():
            if (part.physical_schema.metadata or {}).get(SPACE_KEY) != card:
                raise InputError(f"{path} holds files of several spaces ({part.path} differs); read each on its own.")
    return card


def _skip_rows(batches: Iterable[pa.RecordBatch], n: int) -> Iterator[pa.RecordBatch]:
    """The batches without the first `n` rows, and without empty ones."""
    for batch in batches:
        rest = batch.slice(min(n, batch.num_rows))
        n -= batch.num_rows - rest.num_rows
        if rest.num_rows:
            yield rest


def _text(batch: pa.RecordBatch, name: str, path: str) -> np.ndarray:
    column = batch.column(name)
    if column.null_count:
        raise InputError(f"{path} holds {column.null_count} rows without an entry in column {name!r}; give each one.")
    return column.cast(pa.string()).to_numpy(zero_copy_only=False)


def _matrix(column: pa.Array, dim: int, dtype: type, path: str) -> np.ndarray:
    if column.null_count:
        raise InputError(f"{path} holds {column.null_count} rows without a vector; remove them.")
    values = column.flatten()
    lengths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
    if values.null_count or (lengths != dim).any():
        raise InputError(f"{path} must hold rows of {dim} numbers throughout; some are shorter, longer or null.")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), dim).astype(dtype, copy=False)


# --- what the caller states -------------------------------------------------------------------------------------------


def _override(opened: Scan, space: str | Space | None, ids: Column | None, group: Column | None) -> Scan:
    """A scan with the space, ids and groups that the caller states, in place of those of the file."""
    if isinstance(space, Space):
        if space.dim != opened.space.dim:
            raise InputError(
                f"`space` {space.name!r} has {space.dim} dimensions, {opened.path} has {opened.space.dim}."
            )
        opened = replace(opened, space=space, declared=True)
    elif space is not None:
        opened = replace(opened, space=replace(opened.space, name=space), declared=True)
    stated_ids = None if ids is None else read_column(ids, opened.n_rows, "ids")
    stated_groups = read_column(group, opened.n_rows, "group") if group is not None and _is_column(group) else None
    if stated_ids is None and stated_groups is None:
        return opened
    file_rows = opened._rows

    def rows(size: int, start: int):
        at = start
        for vectors, file_ids, file_groups in file_rows(size, start):
            part = slice(at, at + len(vectors))
            at += len(vectors)
            yield (
                vectors,
                file_ids if stated_ids is None else stated_ids[part],
                file_groups if stated_groups is None else stated_groups[part],
            )

    return replace(opened, has_ids=opened.has_ids or ids is not None, _rows=rows)


def _is_column(group: Column) -> bool:
    """Whether `group` is an array, a file or a pipe, and not the name of a column in the file of embeddings."""
    return not isinstance(group, str) or is_file_or_pipe(Path(split_key(group)[0]))
