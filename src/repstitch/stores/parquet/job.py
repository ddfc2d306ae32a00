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
from repstitch.stores.parquet.files import (
    STATE_FILE,
    carry_companions,
    check_companions,
    list_files,
    read_mark,
    refuse_loss,
    token_of,
)
from repstitch.stores.parquet.native import remove_native
from repstitch.stores.store import Migration


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
        carried: The tokens of the files that are not translated, of which the other folder has a copy.
    """

    dim: int
    version: str
    keep_names: bool
    job: dict[str, Any]
    job_renamed: dict[str, Any] | None = None
    is_cut_over: bool = False
    native: dict[str, list[list[int] | None]] = field(default_factory=dict)
    at_cut_over: dict[str, list[int]] = field(default_factory=dict)
    carried: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self):
        maps = self.job, self.job_renamed or {}, self.native, self.at_cut_over, self.carried
        if not (isinstance(self.dim, int) and isinstance(self.version, str) and all(isinstance(m, dict) for m in maps)):
            raise ValueError("The state of a job has fields of wrong types.")


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

    @property
    def is_between(self) -> bool:
        """Whether a cut-over or a roll-back was interrupted between its two renames."""
        return not self.home.exists() and self.retired.is_dir() and (self.pending / STATE_FILE).is_file()

    def repair(self) -> None:
        """Finish a roll-back, or undo a cut-over, that was interrupted between its two renames."""
        if not self.is_between:
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
        except OSError as error:
            raise InputError(f"{file}, the state of a job, cannot be read: {one_line(error)}") from None
        except (ValueError, TypeError):
            raise InputError(
                f"{file}, the state of a job, is damaged; put a copy of it back, or clean the job up and begin again."
            ) from None

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

    def carry(self, source: Path, target: Path) -> None:
        """Copy the files that are not translated from one folder of the job to the other."""
        ledger = self.need_ledger()
        self.save(replace(ledger, carried=carry_companions(source, target, ledger.carried)))

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
        state, is_renamed = self.new / STATE_FILE, self.is_renamed
        if not state.exists():
            return
        try:
            ledger = self.ledger()
        except InputError:  # a damaged state must not prevent its removal
            ledger = None
        removed, kept = (self.old, self.new) if is_renamed or (ledger and ledger.is_cut_over) else (self.new, self.old)
        try:
            if removed.exists():
                check_companions(removed, kept, ledger.carried if ledger else {})
                self._check_rows(removed, kept, ledger is not None)
            if kept == self.new and not is_renamed:
                state.unlink()
            if removed.exists():
                remove_whole(removed)
            remove_native(kept)  # not earlier: as long as the job has old vectors, it needs the native ones
            if is_renamed:
                state.unlink()
        except OSError as error:
            raise InputError(f"The folders of the job on {self.home} cannot be removed: {one_line(error)}") from None

    def _check_rows(self, removed: Path, kept: Path, has_ledger: bool) -> None:
        """Raise InputError if a folder that is to be removed has files of rows that would be lost.

        Without the state of the job, a file that others wrote to the new folder counts as lost unless there is a copy.
        """
        copies, names = list_files(kept), list(list_files(removed))
        if removed == self.new:
            names = [name for name in names if read_mark(removed / name) is None]
            if not has_ledger:
                refuse_loss(removed, [name for name in names if copies.get(name) != token_of(removed / name)])
        elif has_ledger:  # others may have removed files since the cut-over
            return
        refuse_loss(removed, [name for name in names if name not in copies])
