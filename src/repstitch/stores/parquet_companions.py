"""Files of a folder that are not translated, such as a README: a job copies them, so that readers keep them."""

import os
import shutil
from pathlib import Path

from repstitch.errors import InputError, one_line
from repstitch.files import written_whole
from repstitch.stores.parquet_files import Token, as_token, list_files, token_of

STATE_FILE = "_repstitch.json"  # readers of folders leave out names that begin with an underscore
SCRATCH = ".repstitch"  # the beginning of the names of temporary files and locks


def list_companions(folder: Path) -> dict[str, Token]:
    """Return the files that are not translated, by their paths in the folder.

    Raises InputError if there is a link, because what it points to can be outside the folder.
    """
    rows, companions = list_files(folder), {}
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(SCRATCH))
        for name in [*folders, *sorted(files)]:
            path = Path(place, name)
            inner, token = str(path.relative_to(folder)), token_of(path)
            if path.is_symlink() or (name in files and token is None and path.exists()):
                raise InputError(f"{path} must be a file or a folder, not a link to one; replace it by its content.")
            if token is not None and inner not in rows and inner != STATE_FILE and not name.startswith(SCRATCH):
                companions[inner] = token
    return companions


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read: {one_line(error)}") from None


def carry_companions(source: Path, target: Path, carried: dict[str, list[int]]) -> dict[str, list[int]]:
    """Copy the companions of one folder to another, and return `carried` with their tokens.

    `carried` has the tokens of those copied before. A file that others wrote to the target is kept.
    """
    carried = dict(carried)
    for name, token in list_companions(source).items():
        existing = token_of(target / name)
        if existing not in (None, token, as_token(carried.get(name))):
            continue
        if existing != token:
            place_copy(source / name, target / name)
        carried[name] = list(token)
    return carried


def place_copy(source: Path, target: Path) -> None:
    """Link or, on another disk, copy a file with its time of change, in place of an older one."""
    with written_whole(target, None, parents=True) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # the file system has no such links
            try:
                shutil.copy2(source, temporary)
            except OSError as error:
                raise InputError(f"{source} cannot be copied to {target}: {one_line(error)}") from None


def check_companions(removed: Path, kept: Path, carried: dict[str, list[int]]) -> None:
    """Raise InputError if a folder that is to be removed has companions of which there is no copy."""
    refuse_loss(
        removed,
        [
            name
            for name, token in list_companions(removed).items()
            if token not in (token_of(kept / name), as_token(carried.get(name)))
        ],
    )


def refuse_loss(folder: Path, lost: list[str]) -> None:
    """Raise InputError if files would be lost with a folder."""
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise InputError(
            f"{folder} has files that this job has not written ({', '.join(lost[:3])}{more}); move them away first. "
            "Nothing was removed."
        )
