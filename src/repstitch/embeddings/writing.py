"""Write embeddings as Parquet: a whole file, or a stream that resumes after a stop.

On disk: `id: string`, `vector: fixed_size_list<float16 | float32>[dim]`, the Space as JSON in the schema metadata.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repstitch.embeddings.rows import SPACE_KEY, Embeddings, row_numbers
from repstitch.errors import InputError
from repstitch.files import check_embeddings_file, check_layers_folder
from repstitch.spaces import Space

log = logging.getLogger(__name__)


def write(out: str | os.PathLike, embeddings: Embeddings) -> None:
    """Write one Parquet file; it appears whole or not at all, and an existing file is never overwritten."""
    n = len(embeddings)
    ids = row_numbers(0, n) if embeddings.ids is None else embeddings.ids
    produce = lambda start: iter([(ids[start:], embeddings.vectors[start:])])  # noqa: E731
    dtype = "float16" if embeddings.vectors.dtype == np.float16 else "float32"
    write_stream(out, embeddings.space, produce, job={}, resume=False, dtype=dtype)


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
    target = check_embeddings_file(out)
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
    target = check_layers_folder(out)
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
