"""Native vectors of single rows. Until the job ends, a hidden file beside the new ones has those of each file.

Each stands with the checksum of the old vector that its row had, so that a row that changes is translated again.
"""

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repstitch.files import written_whole
from repstitch.stores.arrow_columns import id_texts, matrix, vector_column
from repstitch.stores.checksums import DIGITS, checksums
from repstitch.stores.parquet.files import SCRATCH, read_batches, read_errors

FOLDER = f"{SCRATCH}-native"
ID, OLD, VECTOR = "id", "old", "vector"  # columns of such a file


@dataclass(frozen=True, eq=False)
class NativeRows:
    """Native vectors (m, d) of rows of a file, with their ids and the checksums (m, 8) of their old vectors."""

    ids: np.ndarray
    old_sums: np.ndarray
    vectors: np.ndarray

    def find(self, ids: pa.Array, old_sums: np.ndarray) -> np.ndarray:
        """Return the position of the native vector of each row (n,); −1 if it has none, or if its old one changed."""
        if not len(self.ids):
            return np.full(len(old_sums), -1)
        place = {key: position for position, key in enumerate(self.ids)}
        positions = np.array([place.get(key, -1) for key in id_texts(ids)], np.int64)
        is_unchanged = (self.old_sums[positions] == old_sums).all(axis=1)
        return np.where((positions >= 0) & is_unchanged, positions, -1)

    def without(self, ids: Collection[str]) -> "NativeRows":
        """Return the rows that have none of these ids."""
        mask = np.array([key not in ids for key in self.ids], bool)
        return NativeRows(self.ids[mask], self.old_sums[mask], self.vectors[mask])

    def joined(self, others: "NativeRows") -> "NativeRows":
        """Return these rows and others."""
        pairs = ((getattr(self, name), getattr(others, name)) for name in ("ids", "old_sums", "vectors"))
        return NativeRows(*(np.concatenate(pair) for pair in pairs))


def native_file(new: Path, name: str) -> Path:
    """Return the path of the native rows of the file `name` of the folder of new files."""
    return new / FOLDER / name


def read_native(file: Path, dim: int) -> NativeRows:
    """Read the native rows of a file: none if there is no such file."""
    parts = [NativeRows(np.empty(0, object), np.empty((0, DIGITS), np.uint8), np.empty((0, dim), np.float32))]
    if file.exists():
        for batch in read_batches(file):
            with read_errors(file):
                vectors, _ = matrix(batch[VECTOR], dim)
            sums = np.frombuffer("".join(batch[OLD].to_pylist()).encode(), np.uint8).reshape(-1, DIGITS)
            parts.append(NativeRows(id_texts(batch[ID]), sums, vectors))
    return NativeRows(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "old_sums", "vectors")))


def save_native(file: Path, rows: NativeRows) -> None:
    """Write native rows in place of an older file; without any, remove it."""
    if not len(rows.ids):
        file.unlink(missing_ok=True)
        return
    sums = pa.array([checksum.tobytes().decode() for checksum in rows.old_sums], pa.string())
    columns = {ID: pa.array(rows.ids.tolist(), pa.string()), OLD: sums, VECTOR: vector_column(rows.vectors)}
    with written_whole(file, None, parents=True) as temporary:
        pq.write_table(pa.table(columns), temporary)


def native_rows_of(
    source: Path, columns: tuple[str, str], dim: int, ids: Sequence[str], vectors: np.ndarray
) -> NativeRows:
    """Return those of some native vectors that belong to rows of a file. `columns` are those of ids and of vectors."""
    place = {key: position for position, key in enumerate(ids)}
    keys: list[str] = []
    sums: list[np.ndarray] = [np.empty((0, DIGITS), np.uint8)]
    for batch in read_batches(source, columns):
        texts = id_texts(batch[columns[0]])
        inside = np.array([key in place for key in texts], bool)
        if inside.any():
            with read_errors(source):
                old, has_old = matrix(batch[columns[1]], dim)
            keys += texts[inside].tolist()
            sums.append(checksums(old, has_old)[inside])
    chosen = np.ascontiguousarray(vectors[[place[key] for key in keys]], np.float32)
    return NativeRows(np.array(keys, object), np.concatenate(sums), chosen)


def remove_native(new: Path) -> None:
    """Remove all native rows that are kept beside the new files."""
    shutil.rmtree(new / FOLDER, ignore_errors=True)
