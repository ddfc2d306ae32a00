"""Vectors with ids and a space: read them, write them.

On disk: Parquet with `id: string` and `vector: fixed_size_list<float16 | float32>[dim]`, the Space as JSON in the
schema's metadata. Also read: Arrow IPC, `.npy` (ids in a file of their own) and `.npz` (as `file.npz:key`).
"""

import fcntl
import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from repstitch.errors import InputError, one_line
from repstitch.names import FORMATS
from repstitch.spaces import Space

log = logging.getLogger(__name__)

SPACE_KEY = b"repstitch.space"
BATCH_ROWS = 16_384
UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Embeddings:
    """Rows from one encoder: `vectors` (n, dim) float16 or float32, their `space`; optionally `ids`, `groups`,
    `labels`.

    `declared` says whether somebody stated the space (a card in the file, a flag) or it is only the file's name.
    """

    vectors: np.ndarray
    space: Space
    ids: np.ndarray | None = None
    groups: np.ndarray | None = None
    declared: bool = True
    labels: np.ndarray | None = None

    def __post_init__(self):
        if self.vectors.ndim != 2 or self.vectors.shape[1] != self.space.dim:
            raise InputError(
                f"`vectors` of space {self.space.name!r} must be (n, {self.space.dim}); got {self.vectors.shape}."
            )
        if self.vectors.dtype.kind != "f":
            raise InputError(f"`vectors` of space {self.space.name!r} must be floats; got {self.vectors.dtype}.")
        for name in ("ids", "groups", "labels"):
            if getattr(self, name) is not None:
                column = np.asarray(getattr(self, name))
                if column.shape != (len(self.vectors),):
                    raise InputError(f"`{name}` must have one entry a row ({len(self.vectors)}); got {column.shape}.")
                text = column if column.dtype.kind in "OU" else column.astype(str).astype(object)
                object.__setattr__(self, name, text)

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, rows) -> "Embeddings":
        """The rows at these positions, in that order (or where a mask is true)."""
        pick = lambda column: None if column is None else column[rows]  # noqa: E731
        columns = {name: pick(getattr(self, name)) for name in ("ids", "groups", "labels")}
        return replace(self, vectors=self.vectors[rows], **columns)


@dataclass(frozen=True)
class Scan:
    """A file of embeddings that has been opened, not read: what is in it, and its rows batch by batch."""

    path: str
    n_rows: int
    space: Space
    declared: bool
    has_ids: bool
    _rows: Callable[[int, int], Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]] = field(repr=False)

    def batches(self, rows: int = BATCH_ROWS, start: int = 0) -> Iterator[Embeddings]:
        """The rows from `start` on, in file order, at most `rows` at a time."""
        stream = self._rows(rows, start)
        while True:
            try:
                vectors, ids, groups = next(stream)
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{self.path} cannot be read to its end: {one_line(error)}") from None
            yield Embeddings(vectors, self.space, ids, groups, self.declared)

    def read(self) -> Embeddings:
        """All rows at once."""
        parts = list(self.batches())
        if not parts:
            raise InputError(f"{self.path} holds no rows.")

        def join(name: str) -> np.ndarray | None:
            columns = [getattr(part, name) for part in parts]
            return None if columns[0] is None else np.concatenate(columns)

        vectors = parts[0].vectors if len(parts) == 1 else np.concatenate([p.vectors for p in parts])
        return Embeddings(vectors, self.space, join("ids"), join("groups"), self.declared)


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
    location, key = _split_key(str(path))
    suffix = Path(location).suffix
    if "://" not in location and not Path(location).exists():
        raise InputError(f"There is no file {location}; give the path of embeddings ({', '.join(FORMATS)}).")
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


def write(out: str | os.PathLike, embeddings: Embeddings) -> None:
    """Write one Parquet file; it appears whole or not at all, and an existing file is never overwritten."""
    n = len(embeddings)
    ids = row_numbers(0, n) if embeddings.ids is None else embeddings.ids
    produce = lambda start: iter([(ids[start:], embeddings.vectors[start:])])  # noqa: E731
    dtype = "float16" if embeddings.vectors.dtype == np.float16 else "float32"
    write_stream(out, embeddings.space, produce, job={}, resume=False, dtype=dtype)


def row_numbers(start: int, stop: int) -> np.ndarray:
    """The ids of rows that came without any: their positions, as text."""
    return np.arange(start, stop).astype(str).astype(object)


def check_out(out: str | os.PathLike) -> Path:
    """The path of a Parquet file that may be written: right extension, not there yet, in a folder that exists."""
    if Path(out).suffix != ".parquet":
        raise InputError(f"`out` must end in .parquet, the format embeddings are written in; got {Path(out).name!r}.")
    return check_new(out)


def check_out_folder(out: str | os.PathLike) -> Path:
    """The path of a folder that may be made: no file's name, not there yet, in a folder that exists."""
    if Path(out).suffix in FORMATS:
        raise InputError(f"`out` must be a folder, for it gets a file a layer; got {Path(out).name!r}.")
    return check_new(out)


def check_new(out: str | os.PathLike) -> Path:
    """The path of something that may be written: not there yet, in a folder that exists."""
    target = Path(out)
    if target.exists():
        raise InputError(f"`out` {target} exists and is never overwritten; give another name or remove it first.")
    if not target.parent.is_dir():
        raise InputError(f"`out` must lie in a folder that exists; there is no {target.parent}.")
    return target


def write_stream(
    out: str | os.PathLike,
    space: Space,
    produce: Callable[[int], Iterator[tuple]],
    job: dict,
    resume: bool = True,
    dtype: str = "float32",
    metadata: dict[str, str] | None = None,
    measures: tuple[str, ...] = (),
) -> int:
    """Write a stream of (ids, vectors) batches to one Parquet file and return the number of rows.

    `produce(start)` yields the rows from `start` on. Every batch is kept in `OUT.partial/` as it is done; when the
    process is stopped, the same call goes on after the last whole batch, provided `job`, what the rows are made from,
    is the same. The file itself appears by rename when all rows are there. `measures` names float32 columns beside the
    vectors; each batch then ends in a dict that holds them.
    """
    target = check_out(out)
    schema = _schema(space, dtype, metadata or {}, measures)

    def tables(start: int) -> Iterator[pa.Table]:
        for ids, vectors, *measured in produce(start):
            columns = [pa.array(ids, pa.string()), _lists(vectors, schema)]
            columns += [pa.array(measured[0][name], pa.float32()) for name in measures]
            yield pa.Table.from_arrays(columns, schema=schema)

    def join(parts: list[Path], whole: Path) -> None:
        with pq.ParquetWriter(whole, schema) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part).cast(schema))

    return _write_parts(target, tables, join, job, resume)


def write_layers(
    out: str | os.PathLike,
    spaces: Sequence[Space],
    produce: Callable[[int], Iterator[tuple]],
    job: dict,
    dtype: str = "float32",
) -> int:
    """Write a stream of (ids, one array of vectors for each space) batches to a folder, and return the number of rows.

    Each space gets the file `OUT/NAME.parquet`. Until all rows are there, a batch lies in `OUT.partial/` with all its
    spaces in one file, so what `write_stream` says of stopping and going on holds for all of them at once, and the
    folder appears whole.
    """
    target = check_out_folder(out)
    schemas = [_schema(space, dtype, {}, ()) for space in spaces]
    names = [space.name for space in spaces]
    wide = pa.schema({"id": pa.string()} | {n: s.field("vector").type for n, s in zip(names, schemas, strict=True)})

    def tables(start: int) -> Iterator[pa.Table]:
        for ids, layers in produce(start):
            columns = [_lists(vectors, schema) for vectors, schema in zip(layers, schemas, strict=True)]
            yield pa.Table.from_arrays([pa.array(ids, pa.string()), *columns], schema=wide)

    def join(parts: list[Path], whole: Path) -> None:
        whole.mkdir(exist_ok=True)
        for name, schema in zip(names, schemas, strict=True):
            with pq.ParquetWriter(whole / f"{name}.parquet", schema) as writer:
                for part in parts:
                    table = pq.read_table(part, columns=["id", name])
                    writer.write_table(table.rename_columns(["id", "vector"]).cast(schema))

    return _write_parts(target, tables, join, job, resume=True)


def _schema(space: Space, dtype: str, metadata: dict[str, str], measures: Sequence[str]) -> pa.Schema:
    value = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    return pa.schema(
        [("id", pa.string()), ("vector", pa.list_(value, space.dim)), *((name, pa.float32()) for name in measures)],
        metadata={SPACE_KEY: space.to_json().encode()} | {k.encode(): v.encode() for k, v in metadata.items()},
    )


def _lists(vectors: np.ndarray, schema: pa.Schema) -> pa.Array:
    """The rows of an array as a column of the schema's vectors."""
    kind = schema.field("vector").type
    flat = np.ascontiguousarray(vectors, dtype=kind.value_type.to_pandas_dtype()).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=kind.value_type), kind.list_size)


def _write_parts(target: Path, tables, join, job: dict, resume: bool) -> int:
    """Keep each of the tables from the first that is not yet there, `join` them in order, publish; how many rows."""
    partial = target.with_name(target.name + ".partial")
    with _sole_writer(partial):
        done = _open_partial(partial, job, resume)
        part = len(list(partial.glob("part-*.parquet")))
        for table in tables(done):
            if not table.num_rows:
                continue
            whole = partial / f"part-{part:06d}.parquet"
            pq.write_table(table, whole.with_suffix(".tmp"))
            os.replace(whole.with_suffix(".tmp"), whole)
            part, done = part + 1, done + table.num_rows
        _publish(partial, target, join)
        return done


@contextmanager
def _sole_writer(partial: Path):
    """Hold the folder of parts against a second run; the lock goes with the process, however it ends."""
    lock = partial.with_name(f".{partial.name}.lock")
    with open(lock, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"Another run is writing to {partial}; wait for it, or give another `out`.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _open_partial(partial: Path, job: dict, resume: bool) -> int:
    """Make ready the folder of finished parts and return how many rows it holds."""
    wanted = json.dumps(job, sort_keys=True)
    if partial.exists():
        note = partial / "job.json"
        if not resume or not note.exists() or note.read_text() != wanted:
            raise InputError(
                f"{partial} holds the unfinished rows of another job; remove it, or run that job again to its end."
            )
        for leftover in partial.glob("*.tmp"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        done = sum(pq.read_metadata(p).num_rows for p in partial.glob("part-*.parquet"))
        if done:
            log.info("%s: going on after the %d rows already done.", partial.name, done)
        return done
    partial.mkdir()
    (partial / "job.json").write_text(wanted)
    return 0


def _publish(partial: Path, target: Path, join: Callable[[list[Path], Path], None]) -> None:
    parts = sorted(partial.glob("part-*.parquet"))
    if not parts:
        shutil.rmtree(partial)
        raise InputError(f"There are no rows to write to {target}.")
    whole = partial / "whole.tmp"
    join(parts, whole)
    if target.exists():
        raise InputError(f"`out` {target} appeared meanwhile and is not overwritten; the rows are kept in {partial}.")
    os.rename(whole, target)
    shutil.rmtree(partial)


def invalid_rows(X: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (n,) of the rows that cannot be used, by what is wrong with them."""
    finite = np.asarray(np.isfinite(X).all(axis=1))
    return {"NaN or Inf": ~finite, "all zeros": finite & ~np.asarray(X.any(axis=1))}


def check_unique(ids: np.ndarray, side: str) -> None:
    """Refuse ids that occur twice."""
    if len(set(ids)) < len(ids):
        seen: set = set()
        twice = next(key for key in ids if key in seen or seen.add(key))
        raise InputError(
            f"Ids must be unique; the {side} has {len(ids) - len(set(ids))} repeated (first: {twice!r}). "
            "Remove the repeats."
        )


# --- the formats ------------------------------------------------------------------------------------------------------


def _split_key(path: str) -> tuple[str, str | None]:
    head, colon, tail = path.rpartition(":")
    if colon and Path(head).suffix in FORMATS:
        return head, tail
    return path, None


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
    return group is not None and (not isinstance(group, str) or Path(_split_key(group)[0]).is_file())


def read_column(path, n_rows: int, what: str) -> np.ndarray:
    """One entry a row as text, see `load_column`."""
    return load_column(path, n_rows, what).astype(str).astype(object)


def load_column(path, n_rows: int, what: str) -> np.ndarray:
    """One entry a row, from an array, a text file with one a line, a `.npy` or `file.npz:key`."""
    if isinstance(path, str | os.PathLike):
        location, key = _split_key(str(path))
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
