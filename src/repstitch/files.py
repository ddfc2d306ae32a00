"""Checks of paths, atomic writes, and the folders of the package.

Output paths are checked before any work starts. A file is written completely or not at all. Nothing here imports NumPy
or torch, so the command line can reject a path at once.
"""

import fcntl
import json
import math
import os
import re
import shutil
import stat
import tomllib
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from repstitch.errors import InputError, one_line
from repstitch.names import FORMATS

TRANSLATED = (".parquet", ".arrow", ".npy")
CARRIED = (".safetensors", ".npz", ".npy")
PICTURES = (".png", ".svg", ".pdf")
TABLES = (".parquet", ".csv", ".tsv")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name
DEFAULT_STITCHERS = "models/stitchers"
MAX_JSON_BYTES = 2**26
SCRATCH = ".repstitch-{}.tmp"  # a temporary folder
LOCK = ".repstitch.lock"  # the file that is locked in a folder that only one process may use
DEMO_MARK = "made-by-repstitch-demo"


def data_folder(name: str) -> Path:
    """Return the folder `models/NAME` of the package, whether it is installed or a source checkout."""
    package = Path(__file__).parent
    installed = package / "models" / name
    return installed if installed.is_dir() else package.parents[1] / "models" / name


def stitchers_folder() -> Path:
    """Return the default folder of stitchers: `REPSTITCH_STITCHERS` if it is set, else `models/stitchers`."""
    return Path(os.environ.get("REPSTITCH_STITCHERS") or DEFAULT_STITCHERS)


def split_key(path: str, endings: Collection[str] = FORMATS) -> tuple[str, str | None]:
    """Split `file.npz:key` into the path and the key.

    The key is None unless the part before the last colon ends in one of `endings`.
    """
    head, colon, tail = path.rpartition(":")
    return (head, tail) if colon and Path(head).suffix.lower() in endings else (path, None)


def split_column(path: str) -> tuple[str, str | None]:
    """Split `table.csv:column` into the path and the column, which is None if the path names no column."""
    return split_key(path, TABLES)


def is_file_or_pipe(path: Path) -> bool:
    """Whether the path exists and is not a folder, so that it can be read as a file."""
    return os.path.exists(path) and not path.is_dir()  # unlike `Path.exists`, it accepts names that are too long


def check_embeddings_exist(path: str | os.PathLike) -> None:
    """Raise InputError if a local path of embeddings does not exist. URLs are not checked."""
    location, _ = split_key(str(path))
    if "://" not in location and not os.path.exists(location):
        raise InputError(f"There is no file {location}; pass the path of embeddings ({', '.join(FORMATS)}).")


def check_file_exists(path: str | os.PathLike, argument: str, content: str = "one entry per row") -> None:
    """Raise InputError if the file or pipe `path` does not exist. `path` may end in the key of an array or a column.

    `content` describes the required content of the file, for the message.
    """
    location = Path(split_column(split_key(str(path))[0])[0])
    if not is_file_or_pipe(location):
        raise InputError(f"`{argument}`: there is no file {location}; pass a file with {content}.")


def check_items_exist(data: str | os.PathLike) -> None:
    """Raise InputError if the images or texts to embed do not exist. `data` may end in the column of a table."""
    location, _ = split_column(str(data))
    if not os.path.exists(location):
        raise InputError(f"`data` must be an existing folder, .zip, .txt or table; there is no {location}.")


def check_stitcher_exists(path: str | os.PathLike) -> None:
    """Raise InputError if the folder of a stitcher does not exist. Paths on the Hugging Face Hub are not checked."""
    if not str(path).startswith("hf://") and not os.path.isdir(path):
        on_hub = f", or hf://{path} for one on the Hugging Face Hub" if HUB_NAME.fullmatch(str(path)) else ""
        raise InputError(f"There is no stitcher {path}; pass the folder of a saved stitcher{on_hub}.")


def check_demo_folder(out: str | os.PathLike) -> Path:
    """Return the path of the demo's folder.

    The folder must not exist yet, be empty, or come from an earlier demo. Raises InputError otherwise.
    """
    folder = Path(out)
    if folder.exists() and not (folder / DEMO_MARK).exists() and any(folder.iterdir()):
        raise InputError(f"`out` {folder} exists and was not created by the demo; pass another folder.")
    return folder


def check_ending(path: str | os.PathLike, endings: Sequence[str], argument: str = "out", note: str = "") -> Path:
    """Return the path. Raises InputError unless it ends in one of `endings`; `note` is added to the message."""
    target = Path(path)
    if target.suffix not in endings:
        listed = " or ".join(part for part in (", ".join(endings[:-1]), endings[-1]) if part)
        raise InputError(f"`{argument}` must end in {listed}{note}; got {target.name!r}.")
    return target


def check_new(path: str | os.PathLike, argument: str = "out") -> Path:
    """Return the path. Raises InputError if it exists already or if it cannot be created in an existing folder."""
    target = Path(path)
    try:
        exists, is_in_folder = _exists(target), target.parent.is_dir()
    except (OSError, ValueError) as error:  # no file can have the name, or a folder above it may not be read
        raise InputError(f"`{argument}` cannot be created: {one_line(error)}") from None
    if exists:
        raise InputError(
            f"`{argument}` {target} exists and is never overwritten; pass another name or remove it first."
        )
    if not is_in_folder:
        raise InputError(f"`{argument}` must be in an existing folder; there is no {target.parent}.")
    return target


def _exists(path: Path) -> bool:
    """Return whether there is a file, a folder or a link at a path. Raises ValueError on names that none can have."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_embeddings_file(out: str | os.PathLike) -> Path:
    """Return the path of a new Parquet file of embeddings. Raises InputError if the file cannot be created."""
    return check_new(check_ending(out, (".parquet",), note=", the format of embeddings"))


def check_translated_file(out: str | os.PathLike, columns: str | None = None) -> Path:
    """Return the path of a new file of translations.

    `columns` is the argument that adds columns, which an .npy file cannot have. The ids beside an .npy file may exist
    if an interrupted run can have written them. Raises InputError if a file exists or the ending is wrong.
    """
    target = check_new(check_ending(out, TRANSLATED))
    if target.suffix == ".npy":
        if columns:
            raise InputError(f"`out` must end in .parquet or .arrow with `{columns}`, because an array has no columns.")
        if not os.path.exists(partial_folder(target)):  # unlike `Path.exists`, it accepts names that are too long
            check_new(ids_beside(target))
    return target


def partial_folder(target: Path) -> Path:
    """Return the folder of the finished parts of a file that is being written."""
    return target.with_name(f"{target.name}.partial")


def stem_of(location: str) -> str:
    """Return the name of a file without its ending, or the name of a folder, also if the path is `.` or `..`."""
    path = os.path.abspath(location)
    return os.path.basename(path) if os.path.isdir(path) else Path(path).stem


def ids_beside(array: Path) -> Path:
    """Return the file of ids that is written beside an .npy file."""
    return array.with_name(f"{array.stem}.ids.txt")


def check_layers_folder(out: str | os.PathLike) -> Path:
    """Return the path of a new folder for one file of embeddings per layer. Raises InputError if it is not new."""
    if Path(out).suffix in FORMATS:
        raise InputError(f"`out` must be a folder, because one file per layer is written; got {Path(out).name!r}.")
    return check_new(out)


def check_carried_file(out: str | os.PathLike, directions: bool | None = None) -> Path:
    """Return the path of a new file for the result of a transfer.

    Raises InputError if the file exists or its ending is wrong. Only directions can be written to an .npy file, because
    they are one array. `directions` is None if it is not clear yet whether the file will contain directions; .npy is
    then accepted.
    """
    if directions or (directions is None and Path(out).suffix == ".npy"):
        return check_new(check_ending(out, CARRIED))
    return check_new(check_ending(out, CARRIED[:2], note="" if directions is False else " (or .npy for directions)"))


def check_new_folder(out: str | os.PathLike, content: str = "a stitcher") -> Path:
    """Return the path of a new folder that will contain `content`.

    Raises InputError if the name starts with a dot, if the path exists, or if the folder above it is not writable.
    Missing folders above it are created later, when the folder is written.
    """
    target = Path(out)
    if target.name in ("", ".", "..") or target.name.startswith("."):
        raise InputError(f"`out` must name a folder to create and must not start with a dot; got {str(out)!r}.")
    try:
        exists = _exists(target)
        above = next(folder for folder in target.absolute().parents if folder.exists())
    except (OSError, ValueError) as error:
        raise InputError(f"`out` cannot be created: {one_line(error)}") from None
    if exists:
        raise InputError(f"`out` {target} exists and {content} is never overwritten; pass another name.")
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise InputError(f"`out` {target} cannot be created: {above} is not a writable folder.")
    return target


def check_picture(path: str | os.PathLike, argument: str = "plot") -> Path:
    """Return the path of a plot. Raises InputError if its ending is wrong or its folder does not exist.

    An existing plot is replaced.
    """
    target = check_ending(path, PICTURES, argument)
    if os.path.isdir(target):
        raise InputError(f"`{argument}` must be a file; {target} is a folder.")
    return target if os.path.exists(target) else check_new(target, argument)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of at most `MAX_JSON_BYTES`. Raises as `check_regular` and `json.loads`."""
    check_regular(path, MAX_JSON_BYTES)
    with _shallow(path):
        return json.loads(path.read_text(encoding="utf-8"))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file, which may begin with a byte order mark. Raises as `tomllib.loads`."""
    with _shallow(path):
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))


@contextmanager
def _shallow(path: Path) -> Iterator[None]:
    """Convert the error of a parser about a file that is nested too deeply to a ValueError, as for other content."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"{path.name} must be nested less deeply.") from None


def check_regular(path: Path, max_bytes: float = math.inf) -> None:
    """Raise ValueError unless the path is a regular file of this size. Reading others, such as pipes, may never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} must be a regular file.")
    if status.st_size > max_bytes:
        raise ValueError(f"{path.name} must have at most {max_bytes} bytes; got {status.st_size}.")


@contextmanager
def written_whole(
    target: Path, argument: str | None = "out", named: Path | None = None, parents: bool = False
) -> Iterator[Path]:
    """Yield a temporary path to write to. When the block ends, it is renamed to `target` and replaces an older file.

    The block creates a file or a folder at the temporary path. Readers see the old content or the new, never a part of
    it, also after a power failure, because the content is synced to the disk before it is renamed. If the block raises,
    the temporary path is removed. What killed processes left in the folder of `target` is removed too. With `parents`,
    missing folders above `target` are created. An OSError from writing becomes an InputError (see `writing`). If
    `target` is part of a larger output, pass that output as `named`, so that the message names it.
    """
    folder = _scratch(target.parent)
    with writing(named or target, folder, argument):
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        with locked(folder, wait=True):
            try:
                yield folder / target.name
                sync(folder / target.name)
                os.replace(folder / target.name, target)
                _sync_one(target.parent)
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def remove_whole(folder: Path) -> None:
    """Remove a folder that this process has locked. It disappears at once, also if the process is killed meanwhile."""
    removed = _scratch(folder.parent)
    os.rename(folder, removed)
    shutil.rmtree(removed, ignore_errors=True)


def sync(path: Path) -> None:
    """Write a file, or a folder with all that it contains, to the disk."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise


@contextmanager
def locked(folder: Path, wait: bool = False, required: bool = False) -> Iterator[bool]:
    """Lock a folder, which is created if it is missing. Yields False if another process has locked it.

    With `wait`, the lock is waited for. It ends with the block or with the process, and stays with a folder that is
    renamed. On a file system without locks, every process gets the lock, or none does if it is `required`.
    """
    while True:
        folder.mkdir(exist_ok=True)
        try:
            file = (folder / LOCK).open("a")
        except FileNotFoundError:  # another process has removed or renamed the folder since
            continue
        except OSError:
            with suppress(OSError):  # it is not empty, so it was not created here
                folder.rmdir()
            raise
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:  # the file system has no locks
                if required:
                    yield False
                    return
            if not _is_at(file.fileno(), folder / LOCK):
                continue
            yield True
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _scratch(parent: Path) -> Path:
    """Return the path of a new temporary folder. Its name is short, whatever the length of the name of the output."""
    return parent / SCRATCH.format(uuid.uuid4().hex[:12])


def _remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders in `parent` that killed processes left, as far as the permissions allow.

    On a file system without locks, none is removed, because other processes may be writing to them.
    """
    for left in parent.glob(SCRATCH.format("*")):
        with suppress(OSError), locked(left, required=True) as unused:
            if unused:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def writing(target: Path, temporary: Path, argument: str | None = "out") -> Iterator[None]:
    """Convert an OSError in the block to an InputError that names `target` and, unless it is None, the argument.

    An error about a file outside `temporary`, such as a file that the block reads, is raised unchanged.
    """
    try:
        yield
    except OSError as error:
        if _is_elsewhere(error.filename, temporary):
            raise
        name = f"{target}" if argument is None else f"`{argument}` {target}"
        raise InputError(f"{name} cannot be written: {one_line(error)}") from None


def _is_elsewhere(file: object, temporary: Path) -> bool:
    """Whether the file of an error is neither in the temporary path nor a folder above it.

    Errors of folders above count as errors of writing, because those folders may have to be created.
    """
    if not isinstance(file, str | bytes | os.PathLike):
        return False
    path, written = Path(os.path.abspath(os.fsdecode(file))), Path(os.path.abspath(temporary))
    return not (path.is_relative_to(written) or written.is_relative_to(path))
