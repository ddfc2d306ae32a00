"""Tell from the versions of a LanceDB table which of two vectors of a row was written last.

The state of a row tells that both vectors have changed, and not whether one program wrote both, or one program wrote
both and another the old one later. The versions of the table tell it. Where they are gone, the new vector is kept,
because it is not a translation, and nothing else has it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lance
import numpy as np
from lance.fragment import LanceFragment

from repstitch.stores.arrow_columns import id_texts, matrix
from repstitch.stores.checksums import checksums
from repstitch.stores.lancedb.fragments import key_of
from repstitch.stores.lancedb.job import Columns, find_columns
from repstitch.stores.lancedb.opening import explained, id_conditions

log = logging.getLogger(__name__)

Sums = tuple[bytes, bytes]  # the checksums of the old and the new vector of a row


@dataclass(frozen=True)
class History:
    """The versions of a table since a job began. `dims` are the numbers of dimensions of the old and new vectors.

    `answers` tell of rows with certain checksums whether they are outdated, so that each row is looked up once.
    """

    path: Path
    vector: str
    id: str
    dims: tuple[int, int]
    answers: dict[tuple[str, Sums], bool] = field(default_factory=dict)

    def outdated(self, rows: dict[str, Sums], begun: int, version: int) -> set[str]:
        """Return the ids of rows whose old vector was written after the new one.

        `rows` are rows by id as they are in `version`. In the version `begun`, the new column had been added, and no
        row without an answer was like that. A row whose past versions are gone does not count as outdated; a warning
        has the number of such rows.
        """
        new = {key: sums for key, sums in rows.items() if (key, sums) not in self.answers}
        outdated, unknown = self._look_up(new, begun, version) if new else (set(), set())
        if unknown:
            log.warning(
                "%s: other programs wrote new vectors of %d rows, and the versions that tell whether the old vectors "
                "were written later are gone; these new vectors are kept.",
                self.path,
                len(unknown),
            )
        self.answers.update({(key, sums): key in outdated for key, sums in new.items()})
        return {key for key, sums in rows.items() if self.answers[key, sums]}

    def readers_own(self, rows: dict[str, Sums], cut_over: str) -> set[str]:
        """Return the ids of rows of which only the new vector was written since the version with the tag `cut_over`."""
        opened = self._open(cut_over) if rows else None
        if opened is None:
            return set()
        before = self._read(*opened, rows, opened[0].get_fragments())
        return {
            key for key, (old, new) in rows.items() if key in before and before[key][0] == old and before[key][1] != new
        }

    def _look_up(self, rows: dict[str, Sums], begun: int, version: int) -> tuple[set[str], set[str]]:
        first = begun
        base = self._open(first)
        if base is None:
            first = self._oldest(begun, version)
            base = self._open(first)
        if base is None:
            return set(), set(rows)
        dataset, columns = base
        old_files = {key_of(fragment, columns) for fragment in dataset.get_fragments()}
        before = self._read(dataset, columns, rows, dataset.get_fragments())

        def read(middle: int) -> dict[str, Sums] | None:
            opened = self._open(middle)
            if opened is None:
                return None
            recent = [part for part in opened[0].get_fragments() if key_of(part, opened[1]) not in old_files]
            return before | (self._read(*opened, rows, recent) if recent else {})

        changed = {key: sums for key, sums in rows.items() if _old(before, key) != sums[0]}
        outdated, unknown = _outdated(changed, before, first, version, read)
        if first != begun:  # the old vectors of these rows were written before the versions that there are
            unknown |= rows.keys() - changed.keys()
        return outdated, unknown

    def _oldest(self, begun: int, version: int) -> int:
        """Return the oldest version since `begun` that still exists."""
        with explained("The versions of the table cannot be listed"):
            numbers = [entry["version"] for entry in lance.dataset(str(self.path)).versions()]
        return min((number for number in numbers if begun <= number <= version), default=version)

    def _open(self, version: int | str) -> tuple[lance.LanceDataset, Columns] | None:
        """Open a version with the columns that it has, or return None if it is gone."""
        try:
            dataset = lance.dataset(str(self.path), version=version)
        except (OSError, ValueError):
            return None
        columns = find_columns(dataset, self.vector)
        return None if columns is None or columns.old is None else (dataset, columns)

    def _read(
        self, dataset: lance.LanceDataset, columns: Columns, ids: Iterable[str], fragments: Sequence[LanceFragment]
    ) -> dict[str, Sums]:
        """Return the rows with these ids in some fragments of a version."""
        names = [columns.old or "", columns.new]
        result: dict[str, Sums] = {}
        for where in id_conditions(dataset.schema, self.id, list(ids)):
            with explained("An older version of the table cannot be read"):
                scanner = dataset.scanner(columns=[self.id, *names], filter=where, fragments=fragments)
                table = scanner.to_table()
            sums = [checksums(*matrix(table[name], dim)) for name, dim in zip(names, self.dims, strict=True)]
            result |= sums_of(id_texts(table[self.id]), *sums)
        return result


def _outdated(
    rows: dict[str, Sums],
    before: dict[str, Sums] | None,
    first: int,
    last: int,
    read: Callable[[int], dict[str, Sums] | None],
) -> tuple[set[str], set[str]]:
    """Search by halves, between `first` and `last`, for the versions in which the old vectors were written.

    In `first`, whose rows are `before`, no row has its old vector of `last`. Returns the ids of the rows whose old
    vector alone was written then, and of those of which that is not known, because the version before it is gone.
    """
    if not rows:
        return set(), set()
    if last - first <= 1:
        if before is None:
            return set(), set(rows)
        return {key for key, sums in rows.items() if key in before and before[key][1] == sums[1]}, set()
    middle = (first + last) // 2
    inside = read(middle)
    earlier = {key: sums for key, sums in rows.items() if _old(inside, key) == sums[0]}
    later = {key: sums for key, sums in rows.items() if key not in earlier}
    parts = _outdated(earlier, before, first, middle, read), _outdated(later, inside, middle, last, read)
    return parts[0][0] | parts[1][0], parts[0][1] | parts[1][1]


def _old(rows: dict[str, Sums] | None, key: str) -> bytes | None:
    return rows[key][0] if rows is not None and key in rows else None


def sums_of(keys: Iterable[str], old: np.ndarray, new: np.ndarray) -> dict[str, Sums]:
    """Return checksums (n, 8) of rows by id."""
    return {key: (one.tobytes(), other.tobytes()) for key, one, other in zip(keys, old, new, strict=True)}
