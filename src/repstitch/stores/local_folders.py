"""What stores in local folders need: a lock that ends with the process, sizes, and free space."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repstitch.errors import InputError, one_line
from repstitch.files import locked, remove_whole

LOCK_FOLDER = ".repstitch-{}.lock"  # the folder beside a store that only one job may lock


@contextmanager
def job_lock(store: Path) -> Iterator[None]:
    """Hold the lock of the job on a store. Raises InputError if another process has it.

    The lock is on a folder beside the store, so that a cut-over can rename the store. It ends with the process.
    """
    folder = store.with_name(LOCK_FOLDER.format(store.name))
    lock = locked(folder)
    try:
        alone = lock.__enter__()
    except OSError as error:
        raise InputError(f"{store.parent} must be writable for a job: {one_line(error)}") from None
    with _exits(lock):
        if not alone:
            raise InputError(f"Another job on {store} is running; wait until it ends, or stop it.")
        try:
            yield
        finally:
            remove_whole(folder)


@contextmanager
def _exits(lock) -> Iterator[None]:
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder and its subfolders; 0 if there is no folder."""
    return sum(os.path.getsize(file) for file in folder.rglob("*") if file.is_file())


def free_bytes(path: Path) -> int:
    """Return the free space on the disk of a path."""
    return shutil.disk_usage(path).free
