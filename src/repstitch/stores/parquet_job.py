"""The job on a folder of Parquet files: the folder NAME.new beside it, and the state of the job in a file in it.

The state is stored twice, once for each order of the names, so that the rename of the folders changes it too.
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from repstitch.errors import InputError, one_line
from repstitch.files import read_json, remove_whole, written_whole
from repstitch.stores.local_folders import job_lock
from repstitch.stores.parquet_files import Token, list_files, read_mark
from repstitch.stores.store import Migration

STATE_FILE = "_repstitch.json"  # readers of folders leave out names that begin with an underscore


@dataclass(frozen=True)
class Ledger:
    """The state file of a job.

    Args:
        dim: Number of dimensions of the new vectors.
        version: The version of the stitcher.
        keep_names: Whether the cut-over leaves the names of the folders as they are.
        job: The state of the job while the folders have the names that they had when it began.
        job_renamed: The state of the job after the cut-over has renamed them.
        is_cut_over: Whether readers have been told to use the new folder, if the names are kept.
        native: Files that others wrote to the new folder: the tokens of the source and of the file when last seen.
        at_cut_over: The tokens of the files of the new folder at the cut-over.
    """

    dim: int
    version: str
    keep_names: bool
    job: dict[str, Any]
    job_renamed: dict[str, Any] | None = None
    is_cut_over: bool = False
    native: dict[str, list[list[int] | None]] = field(default_factory=dict)
    at_cut_over: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Folders:
    """The folder that readers use, and the two beside it that a job makes."""

    home: Path

    @property
    def pending(self) -> Path:
        """The folder of the new files before the cut-over."""
        return self.home.with_name(f"{self.home.name}.new")

    @property
    def retired(self) -> Path:
        """The folder of the old files after the cut-over."""
        return self.home.with_name(f"{self.home.name}.old")

    @property
    def is_renamed(self) -> bool:
        return (self.home / STATE_FILE).is_file()

    @property
    def new(self) -> Path:
        return self.home if self.is_renamed else self.pending

    @property
    def old(self) -> Path:
        return self.retired if self.is_renamed else self.home

    def repair(self) -> None:
        """Finish a roll-back, or undo a cut-over, that was interrupted between its two renames."""
        if self.home.exists() or not self.retired.is_dir() or not (self.pending / STATE_FILE).is_file():
            return
        with job_lock(self.home):
            if not self.home.exists():
                os.rename(self.retired, self.home)

    def ledger(self) -> Ledger | None:
        """Return the state of the job, or None if there is no job."""
        file = self.new / STATE_FILE
        try:
            return Ledger(**read_json(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{file}, the state of a job, cannot be read: {one_line(error)}") from None

    def need_ledger(self) -> Ledger:
        """Return the state of the job. Raises InputError if there is no job."""
        ledger = self.ledger()
        if ledger is None:
            raise InputError(f"There is no job on {self.home}; begin one first.")
        return ledger

    def save(self, ledger: Ledger) -> None:
        """Write the state of the job."""
        with written_whole(self.new / STATE_FILE, None) as temporary:
            temporary.write_text(json.dumps(asdict(ledger)), encoding="utf-8")

    def save_job(self, job: dict[str, Any]) -> None:
        """Store the state of the job that belongs to the present names."""
        ledger = self.need_ledger()
        self.save(replace(ledger, job_renamed=job) if self.is_renamed else replace(ledger, job=job))

    def begin(self, migration: Migration, job: dict[str, Any]) -> None:
        """Make the folder of the new files with the state of the job; if it is there, check that it fits."""
        ledger = self.ledger()
        begun = Ledger(migration.dim, migration.version, migration.keep_names, job)
        if ledger is None:
            with written_whole(self.pending, None) as temporary:
                temporary.mkdir()
                (temporary / STATE_FILE).write_text(json.dumps(asdict(begun)), encoding="utf-8")
            return
        for name in ("dim", "version"):
            is_now, wanted = getattr(ledger, name), getattr(begun, name)
            if is_now != wanted:
                raise InputError(
                    f"Another job moves {self.home} ({name} {is_now!r}, not {wanted!r}). Go on with it, or clean it up "
                    "first."
                )

    def rename(self, is_cut_over: bool) -> None:
        """Rename the folders for a cut-over, or back. For a moment, there is no folder with the readers' name."""
        steps = [(self.home, self.retired), (self.pending, self.home)]
        if not is_cut_over:
            steps = [(target, source) for source, target in reversed(steps)]
        try:
            for source, target in steps:
                os.rename(source, target)
        except OSError as error:
            raise InputError(f"{self.home} cannot be renamed: {one_line(error)}") from None

    def clean_up(self) -> None:
        """Remove the folder that is not needed any more, and the state of the job. See `Store.clean_up`."""
        ledger = self.ledger()
        if ledger is None:
            return
        new = self.new
        try:
            if not self.is_renamed and not ledger.is_cut_over:
                self._check_own()
                remove_whole(new)
            elif self.is_renamed:
                if self.retired.exists():
                    remove_whole(self.retired)
                (new / STATE_FILE).unlink()
            else:
                (new / STATE_FILE).unlink()
                remove_whole(self.home)
        except OSError as error:
            raise InputError(f"The folders of the job on {self.home} cannot be removed: {one_line(error)}") from None

    def _check_own(self) -> None:
        """Raise InputError if the new folder has files of others that would be lost."""
        foreign = [name for name in list_files(self.pending) if read_mark(self.pending / name) is None]
        lost = [name for name in foreign if not (self.home / name).exists()]
        if lost:
            raise InputError(
                f"{self.pending} has files that this job has not written ({', '.join(lost[:3])}); move them away first."
            )


def as_token(stored: list[int] | None) -> Token | None:
    """Return a token as JSON has stored it."""
    return None if stored is None else (stored[0], stored[1])
