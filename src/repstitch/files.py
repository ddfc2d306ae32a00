"""Paths: check an output path before any work is done, write it whole or not at all; the files of the package.

Nothing here imports NumPy or torch, so the command line can refuse a path at once.
"""

import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from repstitch.errors import InputError, one_line
from repstitch.names import FORMATS

CARRIED = (".safetensors", ".npz", ".npy")
PICTURES = (".png", ".svg", ".pdf")
TABLES = (".parquet", ".csv", ".tsv")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name
DEFAULT_STITCHERS = "models/stitchers"
DEMO_MARK = "made-by-repstitch-demo"


def data_folder(name: str) -> Path:
    """The folder `models/NAME` that comes with the package: inside an installed package, or in a checkout."""
    package = Path(__file__).parent
    installed = package / "models" / name
    return installed if installed.is_dir() else package.parents[1] / "models" / name


def stitchers_folder() -> Path:
    """The folder of stitchers when none is named: `REPSTITCH_STITCHERS`, else `models/stitchers`."""
    return Path(os.environ.get("REPSTITCH_STITCHERS") or DEFAULT_STITCHERS)


def split_key(path: str, endings: Collection[str] = FORMATS) -> tuple[str, str | None]:
    """`file.npz:key` as the file and what is named in it; None where nothing is named after one of `endings`."""
    head, colon, tail = path.rpartition(":")
    return (head, tail) if colon and Path(head).suffix.lower() in endings else (path, None)


def split_column(path: str) -> tuple[str, str | None]:
    """`table.csv:column` as the file and the column; None where no column is named."""
    return split_key(path, TABLES)


def is_file_or_pipe(path: Path) -> bool:
    """Whether something that can be read like a file is there."""
    return path.exists() and not path.is_dir()


def check_embeddings_exist(path: str | os.PathLike) -> None:
    """Raise InputError where a local path of embeddings names nothing."""
    location, _ = split_key(str(path))
    if "://" not in location and not Path(location).exists():
        raise InputError(f"There is no file {location}; give the path of embeddings ({', '.join(FORMATS)}).")


def check_file_exists(path: str | os.PathLike, argument: str, content: str = "one entry a row") -> None:
    """Raise InputError where a file or pipe that an argument names is not there; `path` may end in the key of an array.

    The message says what the file must hold, its `content`.
    """
    location = Path(split_key(str(path))[0])
    if not is_file_or_pipe(location):
        raise InputError(f"`{argument}`: there is no file {location}; give a file with {content}.")


def check_items_exist(data: str | os.PathLike) -> None:
    """Raise InputError where the images or texts to embed are not there; `data` may end in the column of a table."""
    location, _ = split_column(str(data))
    if not Path(location).exists():
        raise InputError(f"`data` must be a folder, .zip, .txt or table that is here; there is no {location}.")


def check_stitcher_exists(path: str | os.PathLike) -> None:
    """Raise InputError where a stitcher's folder is not there; one on the Hugging Face Hub is not looked for."""
    if not str(path).startswith("hf://") and not Path(path).is_dir():
        on_hub = f", or hf://{path} for one on the Hugging Face Hub" if HUB_NAME.fullmatch(str(path)) else ""
        raise InputError(f"There is no stitcher {path}; give the folder of a saved stitcher{on_hub}.")


def check_demo_folder(out: str | os.PathLike) -> Path:
    """The path of a folder that the demo may replace: not there yet, empty, or made by an earlier demo."""
    folder = Path(out)
    if folder.exists() and not (folder / DEMO_MARK).exists() and any(folder.iterdir()):
        raise InputError(f"`out` {folder} exists and is not a demo's folder; give another one.")
    return folder


def check_ending(path: str | os.PathLike, endings: Sequence[str], argument: str = "out", note: str = "") -> Path:
    """The path if it ends in one of `endings`; InputError otherwise. `note` follows the endings in the message."""
    target = Path(path)
    if target.suffix not in endings:
        listed = " or ".join(part for part in (", ".join(endings[:-1]), endings[-1]) if part)
        raise InputError(f"`{argument}` must end in {listed}{note}; got {target.name!r}.")
    return target


def check_new(path: str | os.PathLike, argument: str = "out") -> Path:
    """The path if nothing is there yet and its folder exists; InputError otherwise."""
    target = Path(path)
    if target.exists():
        raise InputError(
            f"`{argument}` {target} exists and is never overwritten; give another name or remove it first."
        )
    if not target.parent.is_dir():
        raise InputError(f"`{argument}` must lie in a folder that exists; there is no {target.parent}.")
    return target


def check_embeddings_file(out: str | os.PathLike) -> Path:
    """The path of a new Parquet file of embeddings."""
    return check_new(check_ending(out, (".parquet",), note=", the format embeddings are written in"))


def check_layers_folder(out: str | os.PathLike) -> Path:
    """The path of a new folder that gets one file of embeddings per layer."""
    if Path(out).suffix in FORMATS:
        raise InputError(f"`out` must be a folder, for it gets a file a layer; got {Path(out).name!r}.")
    return check_new(out)


def check_carried_file(out: str | os.PathLike, directions: bool | None = None) -> Path:
    """The path of a new file for what a transfer carries; only directions, which are one array, fit into an .npy.

    `directions` is None while it is not known whether the file will hold directions; an .npy is accepted then.
    """
    if directions or (directions is None and Path(out).suffix == ".npy"):
        return check_new(check_ending(out, CARRIED))
    return check_new(check_ending(out, CARRIED[:2], note="" if directions is False else " (directions also in .npy)"))


def check_new_folder(out: str | os.PathLike, content: str = "a stitcher") -> Path:
    """The path of a new folder that will hold `content`: a plain name, not there yet, in a place that can be written.

    Folders above it that do not exist yet are created when it is written.
    """
    target = Path(out)
    if target.name in ("", ".", "..") or target.name.startswith("."):
        raise InputError(f"`out` must name a folder to create; got {str(out)!r}.")
    try:
        if target.exists() or target.is_symlink():
            raise InputError(f"`out` {target} exists and {content} is never overwritten; give another name.")
        above = next(folder for folder in target.absolute().parents if folder.exists())
    except OSError as error:
        raise InputError(f"`out` cannot be created: {one_line(error)}") from None
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise InputError(f"`out` {target} cannot be created: {above} is not a folder that can be written to.")
    return target


def check_picture(path: str | os.PathLike, argument: str = "plot") -> Path:
    """The path of a picture that can be written, in a folder that exists. An existing picture is replaced."""
    target = check_ending(path, PICTURES, argument)
    if not target.parent.is_dir():
        raise InputError(f"`{argument}` must lie in a folder that exists; there is no {target.parent}.")
    if target.is_dir():
        raise InputError(f"`{argument}` must be a file; {target} is a folder.")
    return target


@contextmanager
def written_whole(target: Path, argument: str | None = "out", named: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to; when the block ends it is renamed to `target`, replacing an older file.

    The caller creates a file or a folder there. Readers see the old content or the new, never a part. When the block
    raises, nothing is left behind; an OSError of writing becomes an InputError, as `writing` words it. `named` is the
    output that `target` is a part of.
    """
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}.tmp{target.suffix}")
    with writing(named or target, temporary, argument):
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):  # where nothing could be created, nothing can be removed
                temporary.unlink(missing_ok=True)


@contextmanager
def writing(target: Path, temporary: Path, argument: str | None = "out") -> Iterator[None]:
    """An OSError in the block becomes an InputError that names the argument, if it has one, and `target`.

    An error on a file outside `temporary`, which the block reads, is raised as it is.
    """
    try:
        yield
    except OSError as error:
        if _is_elsewhere(error.filename, temporary):
            raise
        name = f"{target}" if argument is None else f"`{argument}` {target}"
        raise InputError(f"{name} cannot be written: {one_line(error)}") from None


def _is_elsewhere(file: object, temporary: Path) -> bool:
    """Whether an error's file is neither in the temporary path nor a folder above it, which may have to be created."""
    if not isinstance(file, str | bytes | os.PathLike):
        return False
    path, written = Path(os.path.abspath(os.fsdecode(file))), Path(os.path.abspath(temporary))
    return not (path.is_relative_to(written) or written.is_relative_to(path))
