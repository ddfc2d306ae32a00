"""Run a job again and again, killed at each of its calls that change files, and check what the next run makes of it.

The module is run as a program, because it forks: `python -m helpers.killing FOLDER JOB`.
"""

import builtins
import fcntl
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.jobs import job_of
from helpers.spaces import card, embeddings
from repstitch.embeddings.exporting import write_as
from repstitch.embeddings.reading import scan_argument
from repstitch.embeddings.writing import write, write_layers, write_stream

KILLED = 137
PLACES = [(os, name) for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "open")]
PLACES += [(fcntl, "flock"), (builtins, "open"), (io, "open"), (pa, "OSFile"), (pa.ipc, "new_file")]
PLACES += [(pq, "ParquetWriter"), (pq.ParquetWriter, "write_table"), (pq.ParquetWriter, "close")]


def forked(job: Callable[[Path], object], folder: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Run the job in a forked process, and return its exit status: 1 if it raises."""
    child = os.fork()
    if not child:
        try:
            prepare()
            job(folder)
        except BaseException:
            logging.exception("the job failed")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(n: int, torn: Callable[[int], int] | None = None) -> None:
    """Kill this process at its n-th call that changes files.

    With `torn`, only syncs of files are counted, and the file of the n-th is cut to `torn(its size)` bytes first.
    """
    calls = 0

    def counting(name: str, call: Callable) -> Callable:
        def counted(*args, **kwargs):
            nonlocal calls
            counts = torn is None or (name == "fsync" and not os.path.isdir(f"/proc/self/fd/{args[0]}"))
            calls += counts
            if counts and calls == n:
                if torn is not None:
                    os.truncate(f"/proc/self/fd/{args[0]}", torn(os.fstat(args[0]).st_size))
                os._exit(KILLED)
            return call(*args, **kwargs)

        return counted

    for owner, name in PLACES:
        setattr(owner, name, counting(name, getattr(owner, name)))


def check_synced() -> None:
    """Raise AssertionError at a rename to a name that stays of a file that was not synced."""
    synced = set()
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def checked(rename: Callable) -> Callable:
        def renamed(source, target, **kwargs):
            files = [Path(source), *Path(source).rglob("*")]
            assert Path(target).name.startswith(".repstitch-") or {f.stat().st_ino for f in files} <= synced, target
            return rename(source, target, **kwargs)

        return renamed

    os.fsync, os.rename, os.replace = sync, checked(os.rename), checked(os.replace)


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each file in a folder by its path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def check_next_run(job: Callable[[Path], object], folder: Path, expected: dict[str, bytes]) -> None:
    """Check that what a killed run left is whole or can be continued, and that the next run leaves nothing else."""
    outs = [folder / name for name in {path.partition("/")[0] for path in expected}]
    if all(out.exists() for out in outs):
        assert expected.items() <= content(folder).items()
        for out in outs:
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert forked(job, folder) == 0
    assert content(folder) == expected
    assert set(folder.iterdir()) == set(outs)


def killed_runs(
    job: Callable[[Path], object], folder: Path, torn: Callable[[int], int] | None = None
) -> Iterator[Path]:
    """Yield the folder of a run that was killed at its first call that changes files, then at its second …"""
    n, status = 1, KILLED
    while status == KILLED:
        run = folder / f"run-{n}"
        run.mkdir()
        status = forked(job, run, lambda n=n: kill_at(n, torn))
        if status == KILLED:
            yield run
        n += 1
    assert status == 0


def main(folder: Path, name: str) -> None:
    job = JOBS[name]
    (folder / "whole").mkdir(parents=True)
    assert forked(job, folder / "whole", check_synced) == 0
    expected, counts = content(folder / "whole"), []
    for kind, torn in TORN.items():
        runs = 0
        (folder / kind).mkdir()
        for run in killed_runs(job, folder / kind, torn):
            runs += 1
            if runs % 2:  # the run that continues is killed too
                forked(job, run, lambda n=runs: kill_at(1 + 7 * n % 31))
            check_next_run(job, run, expected)
        counts.append(f"{kind} {runs}")
    print(", ".join(counts))


ROWS = embeddings(30, 4)
SCAN = scan_argument("rows", ROWS)
TORN = {"killed": None, "empty": lambda size: 0, "half": lambda size: size // 2}
JOBS = {
    "stream": lambda folder: write_stream(folder / "out.parquet", ROWS.space, job_of(ROWS, 10)),
    "arrow": lambda folder: write_stream(folder / "out.arrow", ROWS.space, job_of(ROWS, 10)),
    "array": lambda folder: write_stream(folder / "out.npy", ROWS.space, job_of(ROWS, 10)),
    "layers": lambda folder: write_layers(folder / "out", [card("a"), card("b")], job_of(ROWS, 10, n_layers=2)),
    "write": lambda folder: write(folder / "out.parquet", ROWS),
    "convert": lambda folder: write_as(folder / "out.npy", SCAN),
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
