"""Cells: rows on a few fixed directions, cut into intervals, so that nearly equal rows are in neighbouring cells.

A cell is one whole number per direction. A row that is rounded, or that differs a little, stays in its cell or crosses
the edges that were nearest to it. So it is found by looking up its cell and a few neighbours, whatever the number of
rows (Lv et al. 2007, "Multi-probe LSH").
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MOST_ROWS_OF_A_CELL = 64


def directions(X: np.ndarray) -> np.ndarray:
    """Return the rows (n, d) at unit length, float32, without overflow or underflow; rows of zeros stay zeros."""
    largest = np.abs(X).max(axis=1, keepdims=True)
    X = X / np.where(largest > 0, largest, 1).astype(np.float32)
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1)


@lru_cache(maxsize=8)
def axes(dim: int, count: int, name: str) -> np.ndarray:
    """Return `count` directions (dim, count), float32, with entries of variance 1.

    They depend on the arguments only, in every release, because stitchers store what was computed with them.
    """
    entries = np.frombuffer(_octets(name, 4 * dim * count), dtype="<i4").reshape(count, dim).T
    return (entries * (np.sqrt(3) / 2**31)).astype(np.float32)


def cells(positions: np.ndarray) -> np.ndarray:
    """Return the cell (n, k) of each row. `positions` (n, k) are rows on k directions, divided by the cells' width."""
    return np.floor(positions).astype(np.int32)


def nearby_cells(positions: np.ndarray, edges: int) -> Iterator[np.ndarray]:
    """Yield 2^edges cells (n, k) of each row: its own, and those across every subset of its nearest edges."""
    own = cells(positions)
    inside = positions - own
    across = np.where(inside < 0.5, -1, 1).astype(np.int32)
    nearest = np.argpartition(np.minimum(inside, 1 - inside), edges, axis=1)[:, :edges]
    rows = np.arange(len(own))
    for crossed in itertools.product((False, True), repeat=edges):
        cell = own.copy()
        for edge in nearest.T[list(crossed)]:
            cell[rows, edge] += across[rows, edge]
        yield cell


def cell_hashes(cell: np.ndarray) -> np.ndarray:
    """Return one uint32 (n,) per cell (n, k), the same in every release."""
    factors = np.frombuffer(_octets("hashes", 8 * cell.shape[1]), dtype="<u8")
    return ((cell.astype(np.int64).view(np.uint64) @ (factors | np.uint64(1))) >> np.uint64(32)).astype(np.uint32)


@dataclass(frozen=True, eq=False)
class CellIndex:
    """Rows by their cells: the `hashes` (m,) of the cells, ascending, and how many rows each has.

    `order` (n,) are the rows, sorted by cell; those of cell j begin at `first[j]`.
    """

    order: np.ndarray
    hashes: np.ndarray
    first: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, hashes: np.ndarray) -> "CellIndex":
        """Return the index of rows whose cells have these `hashes` (n,), see `cell_hashes`."""
        order = hashes.argsort(kind="stable")
        return cls(order, *np.unique(hashes[order], return_index=True, return_counts=True))

    def candidates(self, positions: np.ndarray, edges: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield row numbers of `positions` (m, k), row numbers of the index, and the cell that the two rows share.

        Rows share a cell across `edges` edges, see `nearby_cells`. Of the rows in one cell at most 64 are taken.
        """
        if not len(self.hashes):
            return
        for cell in nearby_cells(positions, edges):
            wanted = cell_hashes(cell)
            place = np.minimum(self.hashes.searchsorted(wanted), len(self.hashes) - 1)
            count = np.where(self.hashes[place] == wanted, np.minimum(self.count[place], MOST_ROWS_OF_A_CELL), 0)
            query = np.repeat(np.arange(len(positions)), count)
            rank = np.arange(len(query)) - np.repeat(count.cumsum() - count, count)
            yield query, self.order[self.first[place[query]] + rank], cell[query]


def _octets(name: str, count: int) -> bytes:
    """Return `count` random bytes, which depend on the name only."""
    return hashlib.shake_256(f"repstitch {name}".encode()).digest(count)
