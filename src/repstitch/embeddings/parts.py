"""Write rows in parts, so that a job that is stopped or killed can be continued.

Finished parts are kept in `OUT.partial/` until all rows are written. They are then joined beside `OUT`, the number of
rows is compared with that of the job, and the result is renamed to `OUT`. At every moment the job is in one of three
states: nothing is written, it can be continued, or `OUT` is complete. Each part records a hash of the input that its
rows were made from, and a checksum of itself. So a part is used again only if it and the input still have the same
content.
"""

import json
import logging
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from errno import ENOENT
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa

from repstitch.errors import InputError, one_line
from repstitch.files import LOCK, check_new, locked, partial_folder, read_json, remove_whole, writing, written_whole

log = logging.getLogger(__name__)

Join = Callable[[Callable[[], Iterator[pa.Table]], Path], None]


@dataclass(frozen=True, eq=False)
class Job:
    """How rows are made.

    `settings` determine the rows together with the input; they are stored as JSON. `n_rows` is the number of rows.
    `produce(start)` yields the rows from `start` on in batches, as tuples (hash of the input, ids, vectors …).
    `input_hashes(sizes)` yields the hashes of the input of batches of these sizes, from row 0 on.
    """

    settings: dict[str, Any]
    n_rows: int
    produce: Callable[[int], Iterator[tuple]]
    input_hashes: Callable[[Sequence[int]], Iterator[str]]


@dataclass(frozen=True)
class Part:
    """A finished part: its file, its number of rows, and the hash of the input that they were made from."""

    path: Path
    n_rows: int
    input_hash: str


def write_parts(target: Path, job: Job, to_table: Callable[..., pa.Table], join: Join) -> int:
    """Write the missing parts of a job, join all parts to `target`, and return the number of rows.

    `to_table` makes a table from a batch of `job.produce` without its hash. `join` writes the tables of all parts to a
    path; each call of its first argument yields them in order. Raises InputError if another process is writing to
    `target`, if its unfinished rows belong to another job, if their folder has other files, or if the number of rows is
    not that of the job.
    """
    partial = partial_folder(target)
    with ExitStack() as stack:
        with writing(target, partial):
            _refuse_other_files(partial)
            is_alone = stack.enter_context(locked(partial))
        if not is_alone:
            raise InputError(f"Another run is writing to {partial}; wait for it, or pass another `out`.")
        is_whole = False
        try:
            check_new(target)  # another run may have finished since the path was checked
            parts = _open_partial(partial, target, job)
            _write_missing(parts, partial, target, job, to_table)
            _publish(parts, target, job.n_rows, join)
            is_whole = True
        finally:
            if is_whole or not any(partial.glob("part-*")):
                remove_whole(partial)
        return job.n_rows


def _refuse_other_files(partial: Path) -> None:
    """Raise InputError if the folder of the parts contains a file that no job wrote, because it is removed later."""
    names = sorted(path.name for path in partial.iterdir()) if partial.is_dir() else []
    others = [name for name in names if not OWN.fullmatch(name)]
    if others:
        raise InputError(
            f"{partial} must contain nothing but the unfinished rows of a job; it contains {others[0]!r}. Move it to "
            "another folder, or pass another `out`."
        )


def _open_partial(partial: Path, target: Path, job: Job) -> list[Part]:
    """Return the finished parts of a job, and remove what else a job left in the folder."""
    job_file, settings = partial / "job.json", json.dumps(job.settings, sort_keys=True)
    try:
        stored = json.dumps(read_json(job_file), sort_keys=True)
    except (FileNotFoundError, ValueError):  # it is missing, empty or incomplete
        stored = None
    others = {path for path in partial.iterdir() if path.name not in (job_file.name, LOCK)}
    if stored not in (None, settings) and any(path.name.startswith("part-") for path in others):
        raise InputError(f"{partial} {OTHER_JOB}")
    parts = _first_parts(partial) if stored == settings else []
    others -= {part.path for part in parts}
    if any(path.name.startswith("part-") for path in others):
        log.warning(
            "%s: the parts after the first %d are incomplete, or one before them is missing; they are written again.",
            partial.name,
            len(parts),
        )
    _check_input(parts, job, partial)
    with writing(target, partial):
        for path in others:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if stored != settings:
        with written_whole(job_file, named=target) as path:
            path.write_text(settings, encoding="utf-8")
    if parts:
        n_rows = sum(part.n_rows for part in parts)
        log.info("%s: continuing after the %d rows already written.", partial.name, n_rows)
    return parts


def _first_parts(partial: Path) -> list[Part]:
    """Return the complete parts from part 0 on, up to the first that is missing or incomplete."""
    parts: list[Part] = []
    while True:
        path = partial / PART.format(len(parts))
        try:
            _check_content(path)
            table = _read(path)
            input_hash = table.schema.metadata[INPUT_KEY].decode()
        except Exception as error:  # damaged files raise nearly every exception
            if isinstance(error, OSError) and error.errno not in (None, ENOENT):
                raise InputError(f"{path} cannot be read: {one_line(error)}") from None
            return parts
        parts.append(Part(path, table.num_rows, input_hash))


def _check_content(path: Path) -> None:
    """Raise ValueError if a part does not end in the checksum of its content. Parts of older versions have none."""
    content, checksum = _split(path)
    if checksum and checksum != _checksum(content):
        raise ValueError(f"{path.name} must end in the checksum of its content.")


def _split(path: Path) -> tuple[pa.Buffer, bytes]:
    """Return the content of a part, which stays in the file until it is used, and the checksum after it."""
    whole = pa.memory_map(str(path)).read_buffer()
    if whole[-len(MAGIC) :].to_pybytes() == MAGIC:
        return whole, b""
    return whole[:-CHECKSUM_BYTES], whole[-CHECKSUM_BYTES:].to_pybytes()


def _checksum(content: pa.Buffer) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")


def _check_input(parts: list[Part], job: Job, partial: Path) -> None:
    """Raise InputError if the input of a finished part has other content now."""
    hashes = job.input_hashes([part.n_rows for part in parts])
    first = 0
    for part, now in zip_longest(parts, hashes):
        if now != part.input_hash:
            last = first + part.n_rows - 1
            raise InputError(f"{partial} {OTHER_JOB} Rows {first} to {last} of its input had other content.")
        first += part.n_rows


def _write_missing(parts: list[Part], partial: Path, target: Path, job: Job, to_table: Callable[..., pa.Table]) -> None:
    """Write the missing parts and add them to `parts`. Each is written while the rows of the next are made."""
    with ThreadPoolExecutor(1) as writer:
        pending: Future[Part] | None = None
        for input_hash, *batch in job.produce(sum(part.n_rows for part in parts)):
            table = to_table(*batch)
            if not table.num_rows:
                continue
            if pending is not None:
                parts.append(pending.result())
            number = len(parts)
            pending = writer.submit(_write_part, partial / PART.format(number), table, input_hash, target)
            del batch, table  # before others are made
        if pending is not None:
            parts.append(pending.result())


def _write_part(path: Path, table: pa.Table, input_hash: str, target: Path) -> Part:
    table = table.replace_schema_metadata({INPUT_KEY: input_hash})
    with written_whole(path, named=target) as temporary:
        write_arrow_file(table, temporary)
        checksum = _checksum(pa.memory_map(str(temporary)).read_buffer())
        with temporary.open("ab") as file:
            file.write(checksum)
    return Part(path, table.num_rows, input_hash)


def write_arrow_file(table: pa.Table, path: Path) -> None:
    """Write a table in Arrow's file layout, in which a column of categories has the same ones in all rows."""
    options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)


def _read(path: Path) -> pa.Table:
    """Return a part. Its columns stay in the file until they are used."""
    content, _ = _split(path)
    return pa.ipc.open_file(pa.BufferReader(content)).read_all()


def _publish(parts: list[Part], target: Path, n_rows: int, join: Join) -> None:
    """Join the parts and rename the result to `target`, which must not exist yet."""
    n_written = sum(part.n_rows for part in parts)
    if not n_written:
        raise InputError(f"There are no rows to write to {target}.")
    if n_written != n_rows:
        raise InputError(
            f"`out` {target} must have {n_rows} rows, but the input gave {n_written}; it changed while it was read. "
            "Run the same command again."
        )

    def tables() -> Iterator[pa.Table]:
        for part in parts:
            table = _read(part.path)
            if table.num_rows != part.n_rows:
                raise OSError(f"{part.path.name} changed while it was read.")
            yield table

    with writing(target, parts[0].path.parent), written_whole(target) as whole:
        join(tables, whole)
        check_new(target)


INPUT_KEY = b"repstitch.input"
PART = "part-{:06d}.arrow"
# The names of what jobs write into the folder, and of what they leave if they are killed. The last two are old names.
OWN = re.compile(
    r"job\.json|part-\d{6,}\.arrow|\.repstitch\.lock|\.repstitch-\w+\.tmp|whole\.tmp|\.part-\d{6,}\.\w+\.tmp"
)
MAGIC = b"ARROW1"  # the end of a file of Arrow
CHECKSUM_BYTES = 4
OTHER_JOB = "contains the unfinished rows of another job; remove it, or finish that job first."
