"""Read embeddings from Parquet, Arrow IPC, `.npy` (with ids from another file) and `.npz` (as `file.npz:key`)."""

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
from repstitch.embeddings.rows import (
    ONE_VECTOR_PER_ITEM,
    SPACE_KEY,
    Embeddings,
    EmbeddingsLike,
    Scan,
    shape_advice,
)
from repstitch.errors import InputError, one_line
from repstitch.files import check_embeddings_exist, is_file_or_pipe, split_key
from repstitch.names import FORMATS
from repstitch.spaces import Space

EXACT_INTEGERS = 2**24  # float32 represents all integers up to this one exactly
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".joblib")


def scan(
    path: str | os.PathLike[str],
    *,
    space: str | Space | None = None,
    ids: Column | None = None,
    group: Column | None = None,
) -> Scan:
    """Open embeddings without reading their rows. The file ending decides the format.

    `path` is a Parquet or Arrow file, a folder of such files, an `s3://` or `gs://` address, a `.npy` file, or
    `file.npz:key`. The vectors of a Parquet or Arrow file are in its column `vector`; `file.parquet:column` names
    another column. `space` is the name of the space, or its whole card. `ids` is an array or file with one id per row.
    `group` is a column of the file, or an array or file with one group per row. Raises InputError if the input cannot
    be read as rows of numbers.
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
            raise InputError(_format_advice(location))
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
    """Read embeddings into memory from a file, an array or a tensor.

    Args:
        source: A path, an array (n, dim), a torch tensor on any device, or `Embeddings`. A path is a Parquet or Arrow
            file, a folder of such files, an `s3://` or `gs://` address, a `.npy` file, or `file.npz:key`. The vectors
            of a Parquet or Arrow file are in its column `vector`; `file.parquet:column` names another column.
        space: The name of the space, or its whole card (`Space`), in place of that of `source`. By default the space of
            a file is the one in its card or has the name of the file, and the space of an array is called `array`.
        ids: One id per row, in place of the ids of `source`: an array, a text file with one id per line, a `.npy` file
            or `file.npz:key`.
        group: One group per row, in place of the groups of `source`: the name of a column of the file, or an array or
            file as for `ids`.

    Returns:
        The vectors with their space, ids and groups; `source` itself if it is `Embeddings` and nothing replaces its
        space, ids or groups.

    Raises:
        InputError: If `source` cannot be read as floats of shape (n, dim), if it is a masked array, or if `ids` or
            `group` does not have one entry per row.
    """
    return read_argument("The array", source, space=space, ids=ids, group=group)


def read_argument(
    subject: str,
    source: EmbeddingsLike,
    *,
    space: str | Space | None = None,
    ids: Column | None = None,
    group: Column | None = None,
) -> Embeddings:
    """Read `source` like `read`. Messages about an array call it `subject`."""
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
    """Return the values as an array; integers become float32. Raises InputError if float32 would round an integer."""
    check_unmasked(values, subject)
    try:
        array = np.asarray(_off_torch(values))
    except ValueError:
        raise InputError(f"{subject} {ONE_VECTOR_PER_ITEM}; its rows have different lengths.") from None
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{subject} {ONE_VECTOR_PER_ITEM}; it cannot be converted: {one_line(error)}") from None
    if array.dtype.kind not in "iu" or not array.size:
        return array
    if max(-int(array.min()), int(array.max())) > EXACT_INTEGERS:
        raise InputError(
            f"{subject} has integers beyond {EXACT_INTEGERS:,}, which float32 would round; convert it to floats."
        )
    return array.astype(np.float32)


def _off_torch(values: Any) -> Any:
    """Return a torch tensor as a NumPy array, and any other value unchanged.

    The tensor is detached and copied to the CPU. Float dtypes that NumPy lacks become float32.
    """
    torch = sys.modules.get("torch")  # without torch imported, no value can be a tensor
    if torch is None or not isinstance(values, torch.Tensor):
        return values
    tensor = values.detach().cpu()
    widens = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if widens else tensor).numpy()


def _float_rows(name: str, array: np.ndarray) -> np.ndarray:
    """Return the array if it contains floats of shape (n, dim); raise InputError otherwise."""
    if array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        raise InputError(
            f"{name} {ONE_VECTOR_PER_ITEM}; got {array.dtype} of shape {array.shape}.{shape_advice(array)}"
        )
    return array


def _format_advice(path: str) -> str:
    """The error message for a file whose ending is not one of the formats of embeddings."""
    ending = Path(path).suffix
    if ending.lower() in PICKLES:
        return (
            f"{path} is a pickle. Pickles are not read, because loading one can run code. Load it yourself and convert "
            'it once with `np.save("X.npy", tensor.numpy())`, or `np.save("X.npy", array)`; then pass X.npy.'
        )
    return (
        f"{path} must be one of {', '.join(FORMATS)} or a folder of Parquet files; got "
        f"{f'the ending {ending}' if ending else 'no file ending'}. Save vectors of shape (n, dim) in one of these "
        'formats, e.g. with `np.save("X.npy", X)`.'
    )


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
            keys = [name for name in names if name != "ids"]
            if not keys:
                raise InputError(f"{path} has no array of vectors; its arrays are: {', '.join(names) or 'none'}.")
            if len(keys) > 1:
                raise InputError(
                    f"{path} has several arrays: {', '.join(names)}. Name the array of vectors, e.g. {path}:{keys[0]}."
                )
            key = keys[0]
        if key not in names:
            raise InputError(f"{path} has no array {key!r}; its arrays are: {', '.join(names)}.")
        array = _float_rows(f"{path}:{key}", archive[key])
    if ids is not None and ids.shape != (len(array),):
        raise InputError(f"`ids` of {path} must have one entry per row ({len(array)}); got shape {ids.shape}.")
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
        card = None  # the card describes the column `vector` only
    space = Space.from_json(card) if card else Space(Path(path).stem, dim)
    if space.dim != dim:
        raise InputError(f"The card of {path} states {space.dim} dimensions but its vectors have {dim}.")
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
    """Open a file or a folder of files; return the dataset and its number of rows."""
    form = "ipc" if Path(path).suffix == ".arrow" or any(Path(path).glob("*.arrow")) else "parquet"
    try:
        data = pyarrow.dataset.dataset(path, format=form)
        return data, data.count_rows()
    except pa.ArrowInvalid:
        if form != "ipc":
            raise
        table = pa.ipc.open_stream(pa.memory_map(path)).read_all()  # the file may have Arrow's stream layout
        return pyarrow.dataset.dataset(table), table.num_rows


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
        pool = _is_lists(kind) and _is_lists(kind.value_type)
        advice = " Pool the vectors of each row to one vector first, e.g. by their mean." if pool else ""
        raise InputError(f"Column {column!r} of {path} must have one list of floats per row; got {kind}.{advice}")
    return kind


def _is_lists(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def _is_float_lists(kind: pa.DataType) -> bool:
    return _is_lists(kind) and pa.types.is_floating(kind.value_type)


def _vector_dim(data: pyarrow.dataset.Dataset, column: str, kind: pa.DataType, path: str) -> int:
    """Return the number of dimensions: that of the type, or else the length of the first row."""
    first = data.head(1, columns=[column])
    if not first.num_rows:
        raise InputError(f"{path} has no rows; it must have at least one vector.")
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else len(first[column][0].as_py() or [])
    if not dim:
        raise InputError(f"Column {column!r} of {path} has empty lists; every row must have a vector.")
    return dim


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


def _skip_rows(batches: Iterable[pa.RecordBatch], n: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches without the first `n` rows, and without empty batches."""
    for batch in batches:
        rest = batch.slice(min(n, batch.num_rows))
        n -= batch.num_rows - rest.num_rows
        if rest.num_rows:
            yield rest


def _text(batch: pa.RecordBatch, name: str, path: str) -> np.ndarray:
    column = batch.column(name)
    if column.null_count:
        raise InputError(
            f"{path} has {column.null_count} rows without an entry in column {name!r}; every row must have one."
        )
    return column.cast(pa.string()).to_numpy(zero_copy_only=False)


def _matrix(column: pa.Array, dim: int, dtype: type, path: str) -> np.ndarray:
    if column.null_count:
        raise InputError(f"{path} has {column.null_count} rows without a vector; remove them.")
    values = column.flatten()
    lengths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
    if values.null_count or (lengths != dim).any():
        raise InputError(
            f"{path} must have {dim} numbers in every row; some rows are shorter, longer or have null values."
        )
    return values.to_numpy(zero_copy_only=False).reshape(len(column), dim).astype(dtype, copy=False)


# --- space, ids and groups of the caller ------------------------------------------------------------------------------


def _override(opened: Scan, space: str | Space | None, ids: Column | None, group: Column | None) -> Scan:
    """Return the scan with the space, ids and groups of the caller in place of those of the file."""
    if isinstance(space, Space):
        if space.dim != opened.space.dim:
            raise InputError(
                f"{opened.path} has {opened.space.dim} dimensions but `space` {space.name!r} has {space.dim}."
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
    """Return whether `group` is an array, a file or a pipe, and not the name of a column in the file of embeddings."""
    return not isinstance(group, str) or is_file_or_pipe(Path(split_key(group)[0]))
