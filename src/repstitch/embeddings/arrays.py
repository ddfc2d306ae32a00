"""Scan arrays: in memory, in an `.npy` file, or in an `.npz` archive (as `file.npz:key`)."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import ArrayLike

from repstitch.arguments import check_unmasked
from repstitch.embeddings.columns import Column
from repstitch.embeddings.ids import IdColumn, choose_id_column, texts
from repstitch.embeddings.rows import ONE_VECTOR_PER_ITEM, Batch, Scan, as_float, shape_advice, take_entries
from repstitch.errors import InputError, one_line
from repstitch.names import CONVERTIBLE, FORMATS
from repstitch.spaces import Space

EXACT_INTEGERS = 2**24  # float32 represents all integers up to this one exactly
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".joblib")


def as_rows(values: ArrayLike, subject: str) -> np.ndarray:
    """Return values as floats (n, dim). Raises InputError, which calls them `subject`, if they cannot be read so."""
    return _float_rows(subject, _as_array(values, subject))


def scan_array(path: str, array: np.ndarray, ids: np.ndarray | None = None, groups: np.ndarray | None = None) -> Scan:
    """Scan an array (n, dim) of floats. The name of the space is that of the path, without its ending."""
    dtype = array.dtype if array.dtype in (np.float16, np.float32) else np.dtype(np.float32)

    def rows(size: int, start: int) -> Iterator[Batch]:
        for at in range(start, len(array), size):
            chunk = np.ascontiguousarray(as_float(array[at : at + size], dtype, path, at))
            part = slice(at, at + size)
            yield chunk, take_entries(ids, part), take_entries(groups, part), None

    space = Space(Path(path).stem, int(array.shape[1]))
    return Scan(path, len(array), space, False, ids is not None, rows, has_groups=groups is not None)


def scan_array_file(
    location: str, key: str | None, id_column: IdColumn | None, columns: Sequence[str] | str, group: Column | None
) -> tuple[Scan, pyarrow.dataset.Dataset | None]:
    """Scan an `.npy` or `.npz` file, and return its unused arrays too. Raises InputError on a file of another type."""
    suffix = Path(location).suffix
    if suffix not in (".npy", ".npz"):
        raise InputError(_format_advice(location))
    if columns:
        raise InputError(f"`columns` must be columns of a Parquet or Arrow file; {location} has none.")
    if suffix == ".npz":
        return _scan_npz(location, key, id_column, group)
    if id_column:
        raise InputError(f"`id_column` must name a column, and {location} has none; pass its ids with `ids`.")
    array = _float_rows(location, np.load(location, mmap_mode="r", allow_pickle=False))
    return scan_array(location, array), None


def _scan_npz(
    path: str, key: str | None, id_column: IdColumn | None, group: Column | None
) -> tuple[Scan, pyarrow.dataset.Dataset]:
    group = group if isinstance(group, str) else None
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        schema = pa.schema([(name, pa.null()) for name in names])
        ids_key = choose_id_column(schema, path, id_column, others=(key,) if key else ())
        if key is None:
            keys = [name for name in names if name not in (ids_key, group)]
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
        ids, groups = (
            None if name is None else _entries(archive[name], f"`{name}` of {path}", len(array))
            for name in (ids_key, group if group in names else None)
        )
        others = {name: archive[name] for name in names if name not in (key, ids_key, group)}
    opened = scan_array(path, array, ids, groups)
    flat = {name: one for name, one in others.items() if one.shape == (len(array),) and one.dtype.kind in "iufSU"}
    unused = pa.table({name: pa.array(one) for name, one in flat.items()})
    opened = replace(opened, space=replace(opened.space, name=key), left_out=tuple(unused.column_names))
    return opened, pyarrow.dataset.dataset(unused)


def _entries(entries: np.ndarray, name: str, n_rows: int) -> np.ndarray:
    if entries.shape != (n_rows,):
        raise InputError(f"{name} must have one entry per row ({n_rows}); got shape {entries.shape}.")
    return texts(entries, name)


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
    """Return a torch tensor, or a list of tensors, as a NumPy array, and any other value unchanged.

    The tensor is detached and copied to the CPU. Float dtypes that NumPy lacks become float32.
    """
    torch = sys.modules.get("torch")  # without torch imported, no value can be a tensor
    if torch is None:
        return values
    is_list = isinstance(values, list | tuple) and values and all(isinstance(row, torch.Tensor) for row in values)
    tensor: Any = torch.stack([row.detach() for row in values]) if is_list else values
    if not isinstance(tensor, torch.Tensor):
        return values
    tensor = tensor.detach().cpu()
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
    advice = 'Save vectors of shape (n, dim) in one of these formats, e.g. with `np.save("X.npy", X)`.'
    if ending.lower() in CONVERTIBLE:
        advice = f"Convert it with: repstitch convert {path} --out {Path(path).stem}.parquet"
    return (
        f"{path} must be one of {', '.join(FORMATS)} or a folder of Parquet files; got "
        f"{f'the ending {ending}' if ending else 'no file ending'}. {advice}"
    )
