"""Write embeddings as Parquet: a whole file, or a stream that can be stopped and resumed.

On disk: `id: string`, `vector: fixed_size_list<float16 | float32>[dim]`, the Space as JSON in the schema metadata.
Finished batches are stored in `OUT.partial/` until all rows are written. They are then joined inside that folder and
renamed to `OUT`, so that a run that is killed leaves only `OUT.partial/` behind.
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
from repstitch.files import check_embeddings_file, check_layers_folder, writing, written_whole
from repstitch.spaces import Space

log = logging.getLogger(__name__)

Produce = Callable[[int], Iterator[tuple]]  # takes the number of the first row, and yields batches from there on
Join = Callable[[list[Path], Path], None]


def write(out: str | os.PathLike[str], embeddings: Embeddings) -> None:
    """Write one Parquet file. It appears complete or not at all, and an existing file is never overwritten."""
    n = len(embeddings)
    ids = row_numbers(0, n) if embeddings.ids is None else embeddings.ids

    def produce(start: int) -> Iterator[tuple]:
        yield ids[start:], embeddings.vectors[start:]

    dtype = "float16" if embeddings.vectors.dtype == np.float16 else "float32"
    write_stream(out, embeddings.space, produce, job={}, resume=False, dtype=dtype)


def write_stream(
    out: str | os.PathLike[str],
    space: Space,
    produce: Produce,
    job: dict,
    resume: bool = True,
    dtype: str = "float32",
    metadata: dict[str, str] | None = None,
    measures: tuple[str, ...] = (),
) -> int:
    """Write a stream of (ids, vectors) batches to one Parquet file and return the number of rows.

    `produce(start)` yields the rows from `start` on. Each finished batch is stored in `OUT.partial/`. After a stop, the
    same call continues after the last finished batch, if `job`, which describes how the rows are made, is the same. The
    file appears under its name when all rows are written. `measures` are the names of further float32 columns; each
    batch then ends in a dict with their values.
    """
    target = check_embeddings_file(out)
    schema = _schema(space, dtype, metadata or {}, measures)

    def tables(start: int) -> Iterator[pa.Table]:
        for ids, vectors, *measure_columns in produce(start):
            columns = [pa.array(ids, pa.string()), _lists(vectors, schema)]
            columns += [pa.array(measure_columns[0][name], pa.float32()) for name in measures]
            yield pa.Table.from_arrays(columns, schema=schema)

    def join(parts: list[Path], whole: Path) -> None:
        with pq.ParquetWriter(whole, schema) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part).cast(schema))

    return _write_parts(target, tables, join, job, resume)


def write_layers(
    out: str | os.PathLike[str],
    spaces: Sequence[Space],
    produce: Produce,
    job: dict,
    dtype: str = "float32",
) -> int:
    """Write a stream of (ids, one array of vectors for each space) batches to a folder, and return the number of rows.

    Each space gets the file `OUT/NAME.parquet`. Until all rows are written, each batch is kept in `OUT.partial/` as one
    file with all its spaces. Stopping and resuming work as in `write_stream`, and the folder appears complete.
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
    """Return the rows of an array as a column of lists, with the list type of the schema."""
    list_type = schema.field("vector").type
    flat = np.ascontiguousarray(vectors, dtype=list_type.value_type.to_pandas_dtype()).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=list_type.value_type), list_type.list_size)


def _write_parts(target: Path, tables: Callable[[int], Iterator[pa.Table]], join: Join, job: dict, resume: bool) -> int:
    """Write the missing tables as parts, join all parts to `target`, and return the number of rows."""
    partial = target.with_name(target.name + ".partial")
    with _sole_writer(partial, target):
        with writing(target, partial):
            n_rows = _open_partial(partial, job, resume)
            n_parts = len(list(partial.glob("part-*.parquet")))
        for table in tables(n_rows):
            if not table.num_rows:
                continue
            with written_whole(partial / f"part-{n_parts:06d}.parquet", named=target) as path:
                pq.write_table(table, path)
            n_parts, n_rows = n_parts + 1, n_rows + table.num_rows
        with writing(target, partial):
            _publish(partial, target, join)
        return n_rows


@contextmanager
def _sole_writer(partial: Path, target: Path) -> Iterator[None]:
    """Lock the folder of parts against a second run. The lock is also released if the process is killed."""
    lock = partial.with_name(f".{partial.name}.lock")
    with writing(target, lock):
        lock_file = lock.open("w")
    with lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"Another run is writing to {partial}; wait for it, or pass another `out`.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _open_partial(partial: Path, job: dict, resume: bool) -> int:
    """Create the folder of finished parts, or open that of a stopped run; return the number of rows in it."""
    job_file, job_text = partial / "job.json", json.dumps(job, sort_keys=True)
    if partial.exists():
        if not resume or not job_file.exists() or job_file.read_text() != job_text:
            raise InputError(
                f"{partial} contains the unfinished rows of another job; remove it, or finish that job first."
            )
        for leftover in (*partial.glob("*.tmp"), *partial.glob(".part-*")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        n_rows = sum(pq.read_metadata(part).num_rows for part in partial.glob("part-*.parquet"))
        if n_rows:
            log.info("%s: continuing after the %d rows already written.", partial.name, n_rows)
        return n_rows
    partial.mkdir()
    job_file.write_text(job_text)
    return 0


def _publish(partial: Path, target: Path, join: Join) -> None:
    """Join the parts and rename the result to `target`, which must not exist yet."""
    parts = sorted(partial.glob("part-*.parquet"))
    if not parts:
        shutil.rmtree(partial)
        raise InputError(f"There are no rows to write to {target}.")
    whole = partial / "whole.tmp"
    join(parts, whole)
    if target.exists():
        raise InputError(
            f"`out` {target} was created in the meantime and is not overwritten; the rows are kept in {partial}."
        )
    os.rename(whole, target)
    shutil.rmtree(partial)
