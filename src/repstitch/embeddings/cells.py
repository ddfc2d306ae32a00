"""Cells: unit rows on a few fixed directions, cut into intervals, so that nearly equal rows are in neighbouring cells.

A cell is one whole number per direction. A row that is rounded, or that differs a little, stays in its cell or crosses
the edges that were nearest to it, so it is found by looking up one cell and a few of its neighbours, whatever the
number of rows.
"""

import hashlib
import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

CROSSED = 4  # nearest edges of a row that `nearby_cells` crosses


def directions(X: np.ndarray) -> np.ndarray:
    """Return the rows (n, d) at unit length, float32, without overflow or underflow; rows of zeros stay zeros."""
    largest = np.abs(X).max(axis=1, keepdims=True)
    X = X / np.where(largest > 0, largest, 1).astype(np.float32)
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1)


@lru_cache(maxsize=8)
def axes(dim: int, count: int, name: str) -> np.ndarray:
    """Return `count` directions (dim, count), float32, with entries of variance 1.

    They depend on the arguments only, in every release, because stitchers store keys that were computed with them.
    """
    octets = hashlib.shake_256(f"repstitch {name}".encode()).digest(4 * dim * count)
    whole = np.frombuffer(octets, dtype="<i4").reshape(count, dim).T
    return (whole * (np.sqrt(3) / 2**31)).astype(np.float32)


def cells(positions: np.ndarray) -> np.ndarray:
    """Return the cell (n, k) of each row. `positions` (n, k) are rows on k directions, divided by the cells' width."""
    return np.floor(positions).astype(np.int32)


def nearby_cells(positions: np.ndarray) -> Iterator[np.ndarray]:
    """Yield 16 cells (n, k) of each row: its own, and those across every subset of its four nearest edges."""
    own = cells(positions)
    inside = positions - own
    across = np.where(inside < 0.5, -1, 1).astype(np.int32)
    nearest = np.argpartition(np.minimum(inside, 1 - inside), CROSSED, axis=1)[:, :CROSSED]
    rows = np.arange(len(own))
    for crossed in itertools.product((False, True), repeat=CROSSED):
        cell = own.copy()
        for edge in nearest.T[list(crossed)]:
            cell[rows, edge] += across[rows, edge]
        yield cell
