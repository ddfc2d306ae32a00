"""Write native vectors that a job brings, with states that say so, and leave all other rows as they are."""

from collections.abc import Iterator, Sequence

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import LanceFragment

from repstitch.errors import InputError
from repstitch.stores.arrow_columns import id_texts, vector_column
from repstitch.stores.checksums import checksums
from repstitch.stores.lancedb.filling import Batch, Filling
from repstitch.stores.lancedb.fragments import (
    Written,
    commit_files,
    discard_files,
    files_with,
    read_rows,
    write_file,
)
from repstitch.stores.lancedb.job import Columns
from repstitch.stores.lancedb.opening import open_latest
from repstitch.stores.lancedb.states import first_word, split, states
from repstitch.stores.store import NATIVE

TRIES = 30  # to write rows of fragments that others change


class NativeRows:
    """Native vectors (n, dim) by id, with their checksums (n, 8)."""

    def __init__(self, ids: Sequence[str], vectors: np.ndarray):
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.sums = checksums(self.vectors, np.ones(len(ids), bool))
        self._positions = {key: position for position, key in enumerate(ids)}

    def positions(self, ids: pa.Array) -> np.ndarray:
        """Return the position of the native vector of each id (n,), or −1."""
        return np.array([self._positions.get(key, -1) for key in id_texts(ids)], np.int64)

    def missing(self, batch: Batch, is_first: bool) -> np.ndarray:
        """Return the positions (n,) of the native vectors of rows that must still get theirs; −1 for other rows.

        After the first try only the states count, so a vector that others wrote over a native one meanwhile stays.
        """
        positions = np.full(len(batch.places), -1) if batch.ids is None else self.positions(batch.ids)
        for row in np.flatnonzero(positions >= 0):
            state, wanted = batch.states[row].as_py() or "", self.sums[positions[row]].tobytes()
            is_marked = first_word(state) == NATIVE and split(state)[2] == wanted.decode()
            if is_marked and not (is_first and batch.new_sums[row].tobytes() != wanted):
                positions[row] = -1
        return positions


def write_native(filling: Filling, ids: Sequence[str], vectors: np.ndarray) -> int:
    """Write native vectors (n, dim) of the rows with these ids, in one commit, and return the number of rows.

    Rows of fragments that others change meanwhile are written by a later commit.
    """
    native = NativeRows(ids, vectors)
    for attempt in range(TRIES):
        dataset = open_latest(filling.path)
        columns = filling.columns(dataset)
        n_rows, changed = _changed(filling, dataset, columns, native, attempt == 0)
        if not changed:
            return n_rows
        written: list[Written] = []
        try:
            for fragment in changed:
                written.append(_write(filling, fragment, columns, native, attempt == 0))
            ready, written = written, []
            commit_files(filling.path, ready)
        finally:
            discard_files(filling.path, written)
    raise InputError(f"Other programs change {filling.path} faster than native vectors are written; try again later.")


def _changed(
    filling: Filling, dataset: lance.LanceDataset, columns: Columns, native: NativeRows, is_first: bool
) -> tuple[int, list[LanceFragment]]:
    """Return the number of rows that have a native vector, and the fragments in which some lack it."""
    n_rows, changed = 0, []
    for fragment in dataset.get_fragments():
        names = [filling.history.id]
        n_inside = sum(int((native.positions(b[names[0]]) >= 0).sum()) for _, b in read_rows(fragment, names))
        n_rows += n_inside
        if n_inside and any(
            (native.missing(batch, is_first) >= 0).any()
            for batch in filling.batches(fragment, columns, filling.history.id)
        ):
            changed.append(fragment)
    return n_rows, changed


def _write(filling: Filling, fragment: LanceFragment, columns: Columns, native: NativeRows, is_first: bool) -> Written:
    ids = {name: columns.ids[name] for name in (columns.new, columns.state)}
    file = write_file(filling.path, fragment, ids, _with_native(filling, fragment, columns, native, is_first))
    return Written(fragment.fragment_id, files_with(fragment, ids.values()), file, 0)


def _with_native(
    filling: Filling, fragment: LanceFragment, columns: Columns, native: NativeRows, is_first: bool
) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    """Yield the new vectors and states of a fragment, with native vectors where they belong."""
    for batch in filling.batches(fragment, columns, filling.history.id):
        positions = native.missing(batch, is_first)
        rows = np.flatnonzero(positions >= 0)
        new = np.zeros((len(positions), filling.dims[1]), np.float32)
        if batch.new.shape[1]:
            new[batch.has_new] = batch.new[batch.has_new]
        new[rows] = native.vectors[positions[rows]]
        valid = batch.has_new.copy()
        valid[rows] = True
        texts = np.asarray(batch.states.to_pylist(), object)
        texts[rows] = states(NATIVE, batch.old_sums[rows], native.sums[positions[rows]]).to_numpy(False)
        columns_of_rows = [vector_column(new, valid), pa.array(texts, pa.string())]
        yield batch.places, pa.record_batch(columns_of_rows, names=[columns.new, columns.state])
