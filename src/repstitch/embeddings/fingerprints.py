"""Hashes of rows, of ids and of the cells of rows. They are the same in every run and on every machine."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from repstitch.embeddings.cells import axes, cells, directions, nearby_cells
from repstitch.errors import InputError

# Widths of a cell, 16 times the largest rounding error of a unit row, and more for float32, in which rows are computed.
WIDTHS = {"bfloat16": 2.0**-4, "float16": 2.0**-7, "float32": 2.0**-15}
TABLES, AXES = 2, 8  # keys of a pair, and directions of each of its rows that a key depends on
CROWDED = 1e-3  # share of pairs whose keys become equal if cells are twice as wide, beyond which cells are too wide
BATCH_ROWS = 4096


def digests(*arrays: np.ndarray) -> Iterator[bytes]:
    """Yield one 16-byte digest per row, computed over all arrays (n, …). Rows with equal bytes have equal digests."""
    for rows in zip(*arrays, strict=True):
        yield hashlib.blake2b(b"".join(row.tobytes() for row in rows), digest_size=16).digest()


def repeated_rows(*arrays: np.ndarray) -> np.ndarray:
    """Return a mask (n,) of the rows that equal an earlier row byte for byte, in all arrays (n, …)."""
    earlier: set[bytes] = set()
    repeats = np.zeros(len(arrays[0]), dtype=bool)
    for i, digest in enumerate(digests(*arrays)):
        repeats[i] = digest in earlier
        earlier.add(digest)
    return repeats


def hash_key(seed: int, key: object) -> tuple[int, int]:
    """Return two uint64 hashes of the text of a key, which depend on the seed."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def row_fingerprints(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Return one int64 (n,) per pair, a hash of its vectors. It identifies pairs whose ids changed or are missing."""
    hashes = [int.from_bytes(digest[:8], "little") for digest in digests(X, Y)]
    return np.array(hashes, dtype=np.uint64).view(np.int64)


def id_fingerprints(ids: np.ndarray) -> np.ndarray:
    """Return one int64 (n,) per id. A stitcher stores them to recognise the pairs that it was trained on."""
    return np.array([hash_key(-1, key)[0] for key in ids], dtype=np.uint64).view(np.int64)


@dataclass(frozen=True, eq=False)
class PairKeys:
    """Keys that recognise pairs (x, y) whose rows were multiplied by a positive number, or rounded, since.

    Each pair has two keys, of eight bytes. A key is a hash of the cells of x and of y (see `cells`), so it has no
    information on where a row is, and its bits cannot be turned back into a vector. `keys` (m,) are int64, ascending;
    `width` is the width of the cells.
    """

    keys: np.ndarray
    width: float

    def __post_init__(self):
        if self.keys.ndim != 1 or self.keys.dtype != np.int64:
            raise InputError(f"`keys` must be an int64 array (m,); got {self.keys.dtype} of shape {self.keys.shape}.")
        if not 0 < self.width < np.inf:
            raise InputError(f"`width` must be above 0; got {self.width}.")

    @classmethod
    def of(cls, X: np.ndarray, Y: np.ndarray) -> "PairKeys":
        """Return the keys of pairs X (n, d_source) and Y (n, d_target), in the widest cells that tell them apart.

        Cells are too wide in spaces of two or three dimensions and in very narrow cones, where other rows are as near
        as a rounded copy.
        """
        for width in WIDTHS.values():
            keys, wider = (np.unique(_keys(X, Y, factor * width)) for factor in (1, 2))
            if len(keys) - len(wider) <= CROWDED * TABLES * len(X):
                break
        return cls(keys, width)

    @property
    def precision(self) -> str | None:
        """The coarsest type of float through which rows may be rounded and still be recognised."""
        return next((name for name, width in WIDTHS.items() if width <= self.width), None)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the keys and the width as arrays by name, for a file."""
        return {"keys": self.keys, "width": np.array(self.width, dtype=np.float32)}

    def recognise(self, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """Return a mask (n,) of the pairs X (n, d_source), Y (n, d_target) that have one of the keys."""
        recognised = np.zeros(len(X), dtype=bool)
        for at in range(0, len(X), BATCH_ROWS):
            rows = slice(at, at + BATCH_ROWS)
            for positions in _positions(X[rows], Y[rows], self.width):
                for cell in nearby_cells(positions):
                    recognised[rows] |= np.isin(_cell_hashes(cell), self.keys)
        return recognised


def _keys(X: np.ndarray, Y: np.ndarray, width: float) -> np.ndarray:
    """Return the keys of all pairs, in no order."""
    parts = [slice(at, at + BATCH_ROWS) for at in range(0, len(X), BATCH_ROWS)]
    hashes = [_cell_hashes(cells(positions)) for rows in parts for positions in _positions(X[rows], Y[rows], width)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *hashes])


def _positions(X: np.ndarray, Y: np.ndarray, width: float) -> np.ndarray:
    """Return the pairs' rows on the directions of each key, (TABLES, n, 2 · AXES), in widths of a cell."""
    sides = [
        directions(rows) @ axes(rows.shape[1], TABLES * AXES, name) for rows, name in ((X, "source"), (Y, "target"))
    ]
    joined = np.concatenate([side.reshape(-1, TABLES, AXES) for side in sides], axis=2) / np.float32(width)
    return joined.swapaxes(0, 1)


def _cell_hashes(cell: np.ndarray) -> np.ndarray:
    """Return one int64 (n,) per cell (n, k)."""
    rows = np.ascontiguousarray(cell, dtype="<i4").view(f"V{4 * cell.shape[1]}").ravel().tolist()
    hashes = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(hashes, dtype="<i8").astype(np.int64)
