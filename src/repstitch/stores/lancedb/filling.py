"""Translate the rows of fragments of a LanceDB table that have no right new vector, and count such rows."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import LanceFragment

from repstitch.errors import InputError
from repstitch.stores.arrow_columns import has_vector, id_texts, matrix, vector_column
from repstitch.stores.checksums import checksums
from repstitch.stores.lancedb.fragments import (
    Files,
    Written,
    commit_files,
    discard_files,
    files_with,
    key_of,
    read_rows,
    write_file,
)
from repstitch.stores.lancedb.history import History, Sums, sums_of
from repstitch.stores.lancedb.job import Columns, need_columns
from repstitch.stores.lancedb.opening import count_where, explained, open_latest, quoted
from repstitch.stores.lancedb.states import OUTDATED, Need, first_word, needs, no_checksums, split, states
from repstitch.stores.store import NATIVE, SKIPPED, Translate, Unit

UNIT_ROWS = 50_000  # small fragments are translated together, because each commit writes the list of all fragments
COMMIT_SECONDS = 2.0  # of work that is lost if the process is killed
AT_ONCE_ROWS = 10_000  # that `catch_up` looks at


@dataclass
class Batch:
    """Rows of a fragment: their old and new vectors with masks of those there are, checksums, states and needs."""

    places: np.ndarray
    old: np.ndarray
    has_old: np.ndarray
    new: np.ndarray
    has_new: np.ndarray
    old_sums: np.ndarray
    new_sums: np.ndarray
    states: pa.Array
    needs: np.ndarray
    ids: pa.Array | None = None


@dataclass
class Filling:
    """The rows of a table and what is known of them.

    `checked` are the keys of fragments in which every row was right, or was translated by this process. It is shared
    by the instances of a process.

    Args:
        path: The folder of the table.
        vector: The column of vectors that is moved.
        word: The word of the state of translated rows.
        dims: Number of dimensions of the old and the new vectors.
        history: The versions of the table.
    """

    path: Path
    vector: str
    word: str
    dims: tuple[int, int]
    history: History
    checked: set[tuple[int, Files, Files]] = field(default_factory=set)
    seen_version: int = 0  # the last version of which every row was looked at
    n_saved: int = 0  # the number of `checked` when the version in which all are right was saved

    def columns(self, dataset: lance.LanceDataset) -> Columns:
        columns = need_columns(dataset, self.vector)
        if columns.old is None:
            raise InputError(f"Column {self.vector!r} of {self.path} has no old vectors; clean up to end the job.")
        return columns

    def unchecked(self, dataset: lance.LanceDataset, columns: Columns) -> list[LanceFragment]:
        """Return the fragments that were changed since all their rows were right."""
        return [fragment for fragment in dataset.get_fragments() if key_of(fragment, columns) not in self.checked]

    def units(self) -> list[Unit]:
        """Return the fragments with rows without a state, small ones together."""
        dataset = open_latest(self.path)
        columns = self.columns(dataset)
        units: list[list[tuple[int, int]]] = []
        for fragment in self.unchecked(dataset, columns):
            n_rows = fragment.count_rows()
            if is_filled(fragment, columns) and not count_without_state(fragment, columns):
                continue
            if units and sum(n for _, n in units[-1]) + n_rows <= UNIT_ROWS:
                units[-1].append((fragment.fragment_id, n_rows))
            else:
                units.append([(fragment.fragment_id, n_rows)])
        return [self._unit(members) for members in units]

    @staticmethod
    def _unit(members: Sequence[tuple[int, int]]) -> Unit:
        first, last = members[0][0], members[-1][0]
        name = f"fragment {first}" if first == last else f"fragments {first} to {last}"
        return Unit(name, sum(n for _, n in members), tuple(fragment for fragment, _ in members))

    def fill(self, fragment_ids: Iterable[int], translate: Translate) -> int:
        """Translate the rows of fragments, commit their files together, and return the number of rows translated.

        A fragment that is gone, because others have rewritten it, is left out.
        """
        dataset = open_latest(self.path)
        columns = self.columns(dataset)
        fragments = [dataset.get_fragment(number) for number in fragment_ids]
        return self._rewrite([part for part in fragments if part is not None], columns, translate)

    def catch_up(self, translate: Translate, at_most: int | None = AT_ONCE_ROWS) -> int:
        """Look at rows of fragments that were changed, translate where needed, and return the number looked at.

        It stops after the fragment in which `at_most` rows are reached.
        """
        dataset = open_latest(self.path)
        columns = self.columns(dataset)
        unchecked = self.unchecked(dataset, columns)
        fragments, n_seen = [], 0
        for fragment in unchecked:
            if at_most is not None and n_seen >= at_most:
                break
            fragments.append(fragment)
            n_seen += fragment.count_rows()
        self._rewrite(fragments, columns, translate)
        if len(fragments) == len(unchecked):
            self.seen_version = dataset.version
        return n_seen

    def count_rest(self, dataset: lance.LanceDataset, at_most: int | None = None) -> int:
        """Return the number of rows whose new vector is missing or out of date; counting may end at `at_most`."""
        columns = self.columns(dataset)
        n_rest = 0
        for fragment in self.unchecked(dataset, columns):
            if at_most is not None and n_rest >= at_most:
                return n_rest
            if is_filled(fragment, columns):
                n_fragment = self._count(fragment, columns)
            else:
                n_fragment = count_where(fragment, f"{quoted(columns.old or '')} is not null")
            if not n_fragment and is_filled(fragment, columns):
                self.checked.add(key_of(fragment, columns))
            n_rest += n_fragment
        return n_rest

    def batches(
        self, fragment: LanceFragment, columns: Columns, id_column: str | None = None, where: str | None = None
    ) -> Iterator[Batch]:
        """Yield the rows of a fragment, or those that a condition selects, with what each needs."""
        is_new_there = is_filled(fragment, columns)
        names = [columns.old or "", *([columns.new, columns.state] if is_new_there else [])]
        names += [id_column] if id_column is not None else []
        for places, read in read_rows(fragment, names, where):
            n = len(places)
            old, has_old = matrix(read[columns.old], self.dims[0])
            old_sums = checksums(old, has_old)
            if is_new_there and read[columns.new].null_count < n:
                new, has_new = matrix(read[columns.new], self.dims[1])
                new_sums = checksums(new, has_new)
            else:
                new, has_new, new_sums = np.empty((n, 0), np.float32), np.zeros(n, bool), no_checksums(n)
            stored = read[columns.state] if is_new_there else pa.nulls(n, pa.string())
            ids = None if id_column is None else read[id_column]
            need = needs(stored, self.word, old_sums, new_sums)
            batch = Batch(places, old, has_old, new, has_new, old_sums, new_sums, stored, need, ids)
            if columns.is_cut_over:
                need[_is_readers_own(batch)] = Need.NOTHING
            yield batch

    def _count(self, fragment: LanceFragment, columns: Columns, first: bool = False) -> int:
        n_rest = 0
        for batch in self.batches(fragment, columns):
            n_rest += int(np.count_nonzero(batch.needs))
            if first and n_rest:
                break
        return n_rest

    def _rewrite(self, fragments: Sequence[LanceFragment], columns: Columns, translate: Translate) -> int:
        """Write the new vectors of those fragments that need it, and return the number of rows translated.

        They are committed together, but some seconds after the first was written at the latest. Fragments that others
        changed meanwhile are left out.
        """
        n_rows, started = 0, time.monotonic()
        waiting: list[tuple[LanceFragment, Written]] = []
        changed = self._changed(fragments, columns)
        try:
            for fragment, batches in changed:
                waiting.append((fragment, self._write(fragment, batches, columns, translate)))
                if time.monotonic() - started > COMMIT_SECONDS:
                    ready, waiting = waiting, []
                    n_rows += self._commit(ready, columns)
                    started = time.monotonic()
            ready, waiting = waiting, []
            return n_rows + self._commit(ready, columns)
        finally:
            discard_files(self.path, [written for _, written in waiting])

    def _changed(
        self, fragments: Sequence[LanceFragment], columns: Columns
    ) -> list[tuple[LanceFragment, Iterable[Batch]]]:
        """Return the fragments with rows that are not right, and their rows; the others are remembered as checked."""
        changed: list[tuple[LanceFragment, Iterable[Batch]]] = []
        unclear: dict[str, Sums] = {}
        n_kept = 0
        for fragment in fragments:
            if not is_filled(fragment, columns):
                changed.append((fragment, self.batches(fragment, columns)))
                continue
            kept, is_changed = [], False
            for batch in self.batches(fragment, columns, self.history.id):
                unclear |= unclear_rows(batch)
                is_changed |= bool(batch.needs.any())
                if n_kept < AT_ONCE_ROWS:  # there are often many small fragments, so these are read once
                    kept.append(batch)
                    n_kept += len(batch.places)
            if not is_changed:
                self.checked.add(key_of(fragment, columns))
            elif sum(len(batch.places) for batch in kept) == fragment.count_rows():
                changed.append((fragment, kept))
            else:
                changed.append((fragment, self.batches(fragment, columns, self.history.id)))
        begun = max(columns.move.begun, self.seen_version)
        outdated = self.history.outdated(unclear, begun, columns.version) if unclear else set()
        written_by_readers = self.history.readers_own(unclear, columns.cut_over_tag) if columns.is_cut_over else set()
        needed = dict.fromkeys(outdated, Need.TRANSLATION) | dict.fromkeys(written_by_readers, Need.STATE_OUTDATED)
        return [(fragment, _with_needs(batches, needed)) for fragment, batches in changed]

    def _write(
        self, fragment: LanceFragment, batches: Iterable[Batch], columns: Columns, translate: Translate
    ) -> Written:
        ids = {name: columns.ids[name] for name in (columns.new, columns.state)}
        counts: list[int] = []
        file = write_file(self.path, fragment, ids, self._translated(batches, columns, translate, counts))
        return Written(fragment.fragment_id, files_with(fragment, ids.values()), file, sum(counts))

    def _commit(self, ready: Sequence[tuple[LanceFragment, Written]], columns: Columns) -> int:
        if not ready:
            return 0
        done, dataset = commit_files(self.path, [written for _, written in ready])
        self._note_checked([fragment for fragment, _ in ready if fragment.fragment_id in done], columns, dataset)
        return sum(written.n_rows for _, written in ready if written.fragment in done)

    def _note_checked(self, fragments: Sequence[LanceFragment], columns: Columns, dataset: lance.LanceDataset) -> None:
        """Remember the fragments whose old vectors are those that were translated."""
        for before in fragments:
            after = dataset.get_fragment(before.fragment_id)
            if after is not None and key_of(after, columns)[1] == key_of(before, columns)[1]:
                self.checked.add(key_of(after, columns))

    def _translated(
        self, batches: Iterable[Batch], columns: Columns, translate: Translate, counts: list[int]
    ) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        """Yield the new vectors and states of a fragment, and add the numbers of translated rows to `counts`."""
        for batch in batches:
            todo = batch.needs == Need.TRANSLATION
            counts.append(int(np.count_nonzero(todo)))
            vectors, texts = self._whole(batch, translate) if todo.all() else self._mixed(batch, translate, todo)
            yield batch.places, pa.record_batch([vectors, texts], names=[columns.new, columns.state])

    def _whole(self, batch: Batch, translate: Translate) -> tuple[pa.Array, pa.Array]:
        new = checked_rows(translate(batch.old), self.dims[1])
        valid = has_vector(new)
        texts = states(self.word, batch.old_sums, checksums(new, valid))
        if not valid.all():
            skipped = states(SKIPPED, batch.old_sums, no_checksums(len(new)))
            texts = pa.array(np.where(valid, texts.to_numpy(False), skipped.to_numpy(False)), pa.string())
        return vector_column(new, valid), texts

    def _mixed(self, batch: Batch, translate: Translate, todo: np.ndarray) -> tuple[pa.Array, pa.Array]:
        n = len(todo)
        new = np.zeros((n, self.dims[1]), np.float32)
        valid, texts = batch.has_new.copy(), np.asarray(batch.states.to_pylist(), object)
        if batch.new.shape[1]:
            new[:] = batch.new
        if todo.any():
            new[todo] = checked_rows(translate(batch.old[todo]), self.dims[1])
            valid[todo] = has_vector(new[todo])
        valid[batch.needs == Need.REMOVAL] = False
        new_sums = checksums(new, valid)
        texts[batch.needs == Need.REMOVAL] = None
        is_readers = batch.needs == Need.STATE_OUTDATED
        texts[is_readers] = states(
            NATIVE, no_checksums(int(is_readers.sum()), OUTDATED), new_sums[is_readers]
        ).to_numpy(False)
        for word, rows in ((self.word, todo & valid), (SKIPPED, todo & ~valid), (NATIVE, batch.needs == Need.STATE)):
            texts[rows] = states(word, batch.old_sums[rows], new_sums[rows]).to_numpy(False)
        return vector_column(new, valid), pa.array(texts, pa.string())


def _is_unclear(batch: Batch) -> np.ndarray:
    """Return a mask of the rows of which both vectors have changed since their state was written."""
    unclear = (batch.needs == Need.STATE) & batch.has_old
    for row in np.flatnonzero(unclear):
        state = batch.states[row].as_py()
        unclear[row] = state is None or split(state)[1] != batch.old_sums[row].tobytes().decode()
    return unclear


def unclear_rows(batch: Batch) -> dict[str, Sums]:
    """Return the rows of which both vectors have changed, by id, with their checksums."""
    unclear = _is_unclear(batch)
    if not unclear.any() or batch.ids is None:
        return {}
    keys = id_texts(batch.ids.filter(pa.array(unclear)))
    return sums_of(keys, batch.old_sums[unclear], batch.new_sums[unclear])


def _with_needs(batches: Iterable[Batch], needed: dict[str, Need]) -> Iterator[Batch]:
    """Yield batches in which native rows with these ids need something else."""
    for batch in batches:
        if needed and batch.ids is not None:
            for row, key in enumerate(id_texts(batch.ids)):
                if key in needed and batch.needs[row] == Need.STATE:
                    batch.needs[row] = needed[key]
        yield batch


def _is_readers_own(batch: Batch) -> np.ndarray:
    """Return a mask of the rows of which only the new vector was written after the cut-over, as readers' vectors are.

    Their state stays as it is, because it tells `roll_back` that the old vector is out of date.
    """
    mask = ((batch.needs == Need.STATE) & ~_is_unclear(batch)) | (batch.needs == Need.REMOVAL)
    for row in np.flatnonzero(batch.needs == Need.TRANSLATION):
        state = batch.states[row].as_py()
        mask[row] = state is not None and split(state)[2] != batch.new_sums[row].tobytes().decode()
    return mask


def checked_rows(rows: np.ndarray, dim: int) -> np.ndarray:
    """Return translated rows as float32. Raises InputError if they do not have `dim` numbers."""
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise InputError(f"The stitcher must translate to {dim} dimensions, like the new column; got {rows.shape[1:]}.")
    return np.ascontiguousarray(rows, np.float32)


def is_filled(fragment: LanceFragment, columns: Columns) -> bool:
    """Return whether a file of the fragment has new vectors, which may be null, or states."""
    return bool(files_with(fragment, [columns.ids[columns.new], columns.ids[columns.state]]))


def count_without_state(fragment: LanceFragment, columns: Columns) -> int:
    """Return the number of rows that have no state."""
    with explained("The states of rows cannot be read"):
        return count_where(fragment, f"{quoted(columns.state)} is null")


def count_states(dataset: lance.LanceDataset, columns: Columns) -> dict[str, int]:
    """Return the number of rows by the first word of their state, with "" for those that are still to do."""
    counts: dict[str, int] = {}
    names = [columns.state]
    for fragment in dataset.get_fragments():
        if not is_filled(fragment, columns):
            counts[""] = counts.get("", 0) + fragment.count_rows()
            continue
        for _, batch in read_rows(fragment, names):
            for state in batch[columns.state].to_pylist():
                word = first_word(state)
                counts[word] = counts.get(word, 0) + 1
    return counts
