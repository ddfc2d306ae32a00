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
from itertools import compress
from typing import NamedTuple

import numpy as np

MOST_PAIRS = 64  # of rows and rows of the index in one cell that are listed one by one


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
    containing = cells(positions)
    inside = positions - containing
    across = np.where(inside < 0.5, -1, 1).astype(np.int32)
    nearest = np.argpartition(np.minimum(inside, 1 - inside), edges, axis=1)[:, :edges]
    rows = np.arange(len(containing))
    for crossed in itertools.product((False, True), repeat=edges):
        cell = containing.copy()
        for edge in nearest.T[list(crossed)]:
            cell[rows, edge] += across[rows, edge]
        yield cell


def cell_hashes(cell: np.ndarray) -> np.ndarray:
    """Return one uint32 (n,) per cell (n, k), the same in every release."""
    factors = np.frombuffer(_octets("hashes", 8 * cell.shape[1]), dtype="<u8")
    return ((cell.astype(np.int64).view(np.uint64) @ (factors | np.uint64(1))) >> np.uint64(32)).astype(np.uint32)


class Candidates(NamedTuple):
    """Rows that share a cell with rows of an index.

    `cell` (m, k) is the cell of each row that was looked up. Row `query[i]` shares it with row `match[i]` of the index.
    In each of the `blocks`, two arrays of row numbers, every row of the first shares it with every row of the second.
    """

    cell: np.ndarray
    query: np.ndarray
    match: np.ndarray
    blocks: list[tuple[np.ndarray, np.ndarray]]


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

    def candidates(self, positions: np.ndarray, edges: int) -> Iterator[Candidates]:
        """Yield the rows of the index that share a cell with rows of `positions` (m, k), across `edges` edges or fewer.

        Each row of the index in these cells is a candidate, however many a cell has: a fuller cell becomes a block.
        """
        if not len(self.hashes):
            return
        for cell in nearby_cells(positions, edges):
            wanted = cell_hashes(cell)
            place = np.minimum(self.hashes.searchsorted(wanted), len(self.hashes) - 1)
            occupied = np.flatnonzero(self.hashes[place] == wanted)
            shared, of, lookups = np.unique(place[occupied], return_inverse=True, return_counts=True)
            full = lookups * self.count[shared] > MOST_PAIRS
            few = ~full[of]
            place, count = place[occupied[few]], self.count[place[occupied[few]]]
            query = np.repeat(occupied[few], count)
            rank = np.arange(len(query)) - np.repeat(count.cumsum() - count, count)
            match = self.order[np.repeat(self.first[place], count) + rank]
            queries = np.split(occupied[of.argsort(kind="stable")], lookups.cumsum()[:-1])
            members = [self.order[self.first[j] : self.first[j] + self.count[j]] for j in shared[full]]
            yield Candidates(cell, query, match, list(zip(compress(queries, full), members, strict=True)))


def _octets(name: str, count: int) -> bytes:
    """Return `count` random bytes, which depend on the name only."""
    return hashlib.shake_256(f"repstitch {name}".encode()).digest(count)
