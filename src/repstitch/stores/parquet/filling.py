"""Translate the files of a folder of Parquet files that have no new file of their present content."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from repstitch.errors import InputError
from repstitch.stores.parquet.files import (
    Token,
    as_token,
    count_rows,
    is_old_file,
    list_files,
    place_copy,
    read_mark,
    remove_file,
    token_of,
)
from repstitch.stores.parquet.job import Folders
from repstitch.stores.parquet.native import native_file, native_rows_of, read_native, save_native
from repstitch.stores.parquet.translating import translate_file
from repstitch.stores.store import NATIVE, SKIPPED, TRANSLATED, Migration, Translate, Unit

CATCH_UPS = 10  # after which a cut-over gives up
CAUGHT_UP_FILES = 8  # that one call of `catch_up` translates


@dataclass(frozen=True)
class Filling:
    """The files of a job. `dims` are the numbers of dimensions of the old and the new vectors."""

    folders: Folders
    id: str
    vector: str
    dims: tuple[int, int]
    migration: Migration

    def todo(self) -> dict[str, tuple[Path, Token]]:
        """Return the files without a new file of their present content: where they are, and their tokens.

        They are files of the old folder, and strays.
        """
        sources, existing = list_files(self.folders.old), list_files(self.folders.new)
        native = self.folders.need_ledger().native
        todo = {}
        for name, token in sources.items():
            if name in existing:
                mark = read_mark(self.folders.new / name)
                if mark is None:
                    tokens = native.get(name)
                    is_stale = (
                        tokens is not None and as_token(tokens[1]) == existing[name] and as_token(tokens[0]) != token
                    )
                    if not is_stale:  # another program writes both files
                        continue
                elif mark.is_of(token, token_of(native_file(self.folders.new, name))):
                    continue
            todo[name] = self.folders.old / name, token
        return todo | {name: (self.folders.new / name, existing[name]) for name in self.strays()}

    def strays(self) -> list[str]:
        """Return the files of the new folder that an old writer wrote: their vectors have the old dimensions."""
        if self.dims[0] == self.dims[1]:
            return []
        new = self.folders.new
        return [
            name
            for name in list_files(new)
            if read_mark(new / name) is None and is_old_file(new / name, self.vector, self.dims)
        ]

    def keep_strays(self) -> list[str]:
        """Copy the strays to the old folder, where they belong, and return them."""
        strays = self.strays()
        for name in strays:
            place_copy(self.folders.new / name, self.folders.old / name)
        return strays

    def orphans(self) -> list[str]:
        """Return the translated files whose source is gone."""
        names = list_files(self.folders.new).keys() - list_files(self.folders.old).keys()
        return sorted(name for name in names if read_mark(self.folders.new / name) is not None)

    def units(self) -> list[Unit]:
        """Return the files that are still to do."""
        return [
            Unit(name, count_rows(source), (name, source, token))
            for name, (source, token) in sorted(self.todo().items())
        ]

    def fill(self, unit: Unit, translate: Translate) -> int:
        """Translate a file, unless it has changed, and return the number of rows translated."""
        name, source, token = unit.token
        if token_of(source) != token:
            return 0
        return self._translate(name, source, translate)

    def _translate(self, name: str, file: Path, translate: Translate) -> int:
        source, target = self.folders.old / name, self.folders.new / name
        if file == target:  # a stray
            place_copy(file, source)
        native, columns = native_file(self.folders.new, name), (self.id, self.vector)
        return translate_file(source, target, native, columns, self.dims[0], self.migration, translate) or 0

    def write_native(self, ids: Sequence[str], vectors: np.ndarray) -> int:
        """Keep native vectors (n, d_target) of rows, and return their number. Their files are then still to do.

        Rows of files that others write to the new folder themselves are left out.
        """
        n_rows, existing = 0, list_files(self.folders.new)
        for name in list_files(self.folders.old):
            if name in existing and read_mark(self.folders.new / name) is None:
                continue
            source, file = self.folders.old / name, native_file(self.folders.new, name)
            rows = native_rows_of(source, (self.id, self.vector), self.dims[0], ids, vectors)
            if len(rows.ids):
                save_native(file, read_native(file, self.dims[1]).without(set(rows.ids)).joined(rows))
            n_rows += len(rows.ids)
        return n_rows

    def drop_native(self, name: str, ids: Collection[str]) -> None:
        """Remove the native vectors of rows of a file, so that they are translated."""
        file = native_file(self.folders.new, name)
        if file.exists():
            save_native(file, read_native(file, self.dims[1]).without(ids))

    def catch_up(self, translate: Translate) -> int:
        """Remove files whose source is gone, translate some that changed, and return the number of their rows."""
        n_seen = 0
        for name in self.orphans():
            n_seen += count_rows(self.folders.new / name)
            remove_file(self.folders.new / name, self.folders.new)
            native_file(self.folders.new, name).unlink(missing_ok=True)
        self._note_native()
        for name, (source, _) in sorted(self.todo().items())[:CAUGHT_UP_FILES]:
            n_seen += max(1, self._translate(name, source, translate))
        return n_seen

    def _note_native(self) -> None:
        """Remember the files that others wrote to the new folder, so that a later change of their source is noticed."""
        ledger = self.folders.need_ledger()
        sources, native = list_files(self.folders.old), dict(ledger.native)
        for name, token in list_files(self.folders.new).items():
            if read_mark(self.folders.new / name) is None:
                source, tokens = sources.get(name), native.get(name)
                if tokens is None or as_token(tokens[1]) != token:
                    native[name] = [None if source is None else list(source), list(token)]
        if native != ledger.native:
            self.folders.save(replace(ledger, native=native))

    def count_rest(self, at_most: int | None = None) -> int:
        """Return the number of rows in files that are to translate or to remove."""
        files = [source for source, _ in self.todo().values()]
        files += [self.folders.new / name for name in self.orphans()]
        n_rest = 0
        for file in files:
            if at_most is not None and n_rest >= at_most:
                break
            n_rest += count_rows(file)
        return n_rest

    def states(self) -> dict[str, int]:
        """Return the number of rows by state."""
        todo, counts = self.todo(), {TRANSLATED: 0, SKIPPED: 0, NATIVE: 0, "": 0}
        for source, _ in todo.values():
            counts[""] += count_rows(source)
        for name in list_files(self.folders.new).keys() - todo.keys():
            mark = read_mark(self.folders.new / name)
            if mark is None:
                counts[NATIVE] += count_rows(self.folders.new / name)
            else:
                counts[TRANSLATED] += mark.n_translated
                counts[SKIPPED] += mark.n_skipped
                counts[NATIVE] += mark.n_native
                counts[""] += mark.n_without
        return {state: n for state, n in counts.items() if n}

    def catch_up_all(self, translate: Translate) -> int:
        """Catch up until no row is left, and return the number of rows looked at."""
        n_seen = 0
        for _ in range(CATCH_UPS):
            while n := self.catch_up(translate):
                n_seen += n
            if not self.count_rest(1):
                return n_seen
        raise InputError(f"The files of {self.folders.old} change all the time; stop the programs that write them.")
