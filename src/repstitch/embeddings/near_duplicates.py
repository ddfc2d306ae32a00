"""Find the pairs that nearly repeat a training pair in both spaces."""

from dataclasses import dataclass

import numpy as np
import torch

from repstitch.embeddings.cells import CellIndex, axes, cell_hashes, cells, directions
from repstitch.embeddings.pairs import Pairs
from repstitch.precision import exact_products

MOST_GAP, GAP_SHARE, LEAST_GAP = 0.01, 0.02, 1e-5
TABLES, AXES, EDGES = 4, 16, 4
WIDTH = 12  # of a cell, in distances of two rows whose gap is the limit
FARTHEST = 40 / WIDTH**2  # squared distance on the 16 directions that one in a thousand of such rows exceeds
FARTHEST_OF_ALL = 105 / WIDTH**2  # the same on the directions of all tables
BATCH_ROWS, BLOCK_ROWS, SAMPLE_ROWS = 4096, 512, 256


@exact_products()
def find_near_duplicates(pairs: Pairs, train: np.ndarray) -> np.ndarray:
    """Return a mask (n,) of the pairs outside `train` that nearly repeat a single training pair in both spaces.

    `train` has the positions of the training pairs. The gap between two rows is one minus the cosine of their unit rows
    after the training mean is subtracted. Without the subtraction, all rows of a narrow cone would look alike. Two rows
    are near if their gap is at most 0.01 and at most a fiftieth of the typical gap to the tenth nearest training row,
    so that neighbours in a crowded space do not count. Rows with a gap up to 0.00001 are near in any space.

    Rows are looked up in four tables of cells (see `cells`), and those that share a cell are compared in full. So there
    are no false near duplicates, and nearly all are found: 99 % of those whose gap is at the limit, more of nearer
    ones. O(n d) time, and O(n) memory in addition to the rows. A clump of rows in one cell is compared whole, which is
    quadratic in the rows of the clump.
    """
    near = np.zeros(len(pairs), dtype=bool)
    others = np.setdiff1d(np.arange(len(pairs)), train)
    if not len(train) or not len(others):
        return near
    sides = [_Side.of(X, train, others) for X in (pairs.X, pairs.Y)]
    telling = [side for side in sides if not side.crowded] or sides
    positions = np.concatenate([side.positions(AXES // len(telling)) for side in telling], axis=2)
    for table in range(TABLES):
        index = CellIndex.of(cell_hashes(cells(positions[train, table])))
        left = others[~near[others]]
        for at in range(0, len(left), BATCH_ROWS):
            rows = left[at : at + BATCH_ROWS]
            for _, query, match, blocks in index.candidates(positions[rows, table], EDGES):
                row, repeated = rows[query], train[match]
                close = np.square(positions[row, table] - positions[repeated, table]).sum(1) <= FARTHEST
                row, repeated = row[close], repeated[close]
                for side in sides:
                    close = side.gaps(row, repeated) <= side.limit
                    row, repeated = row[close], repeated[close]
                near[row] = True
                for some, matches in blocks:
                    row = rows[some][~near[rows[some]]]
                    near[row] = _repeat_any(row, train[matches], sides, positions)
    return near


def _repeat_any(rows: np.ndarray, repeated: np.ndarray, sides: "list[_Side]", positions: np.ndarray) -> np.ndarray:
    """Return a mask (m,) of those of `rows` that are near one of `repeated` in both spaces.

    Each is compared with each: first on the directions of all tables, then, where any of these are close, in full.
    """
    near = np.zeros(len(rows), dtype=bool)
    places = positions.reshape(len(positions), np.prod(positions.shape[1:]))
    for at in range(0, len(repeated), BLOCK_ROWS):
        others = repeated[at : at + BLOCK_ROWS]
        centre = places[others[:1]]
        to = places[others] - centre
        for start in range(0, len(rows), BLOCK_ROWS):
            left = start + np.flatnonzero(~near[start : start + BLOCK_ROWS])
            of = places[rows[left]] - centre
            close = np.square(of).sum(1)[:, None] + np.square(to).sum(1) - 2 * of @ to.T <= FARTHEST_OF_ALL
            left, some = left[close.any(1)], others[close.any(0)]
            if len(left):
                alike = [side.centred(rows[left]) @ side.centred(some).T >= 1 - side.limit for side in sides]
                near[left] = np.logical_and.reduce(alike).any(1)
    return near


@dataclass(frozen=True, eq=False)
class _Side:
    """The rows `X` (n, d) of one space. Rows with a gap up to `limit` are near.

    `mean` (d,) is the mean of the training rows at unit length. In a `crowded` space the typical row is near to ten or
    more training rows, so its cells do not tell rows apart.
    """

    X: np.ndarray
    mean: np.ndarray
    limit: float = 0.0
    crowded: bool = False

    @classmethod
    def of(cls, X: np.ndarray, train: np.ndarray, others: np.ndarray) -> "_Side":
        tiles = np.array_split(train, -(-len(train) // BATCH_ROWS))
        mean = np.mean([directions(X[tile]).mean(0) for tile in tiles], 0).astype(np.float32)
        side = cls(X, mean)
        sample = others[np.linspace(0, len(others) - 1, min(len(others), SAMPLE_ROWS)).astype(int)]
        queries = torch.from_numpy(side.centred(sample))
        k = min(10, len(train))
        cosines = [
            (queries @ torch.from_numpy(side.centred(tile)).T).topk(min(k, len(tile)), dim=1).values for tile in tiles
        ]
        typical = float((1 - torch.cat(cosines, 1).topk(k, dim=1).values[:, -1]).median())
        limit = min(max(GAP_SHARE * typical, LEAST_GAP), MOST_GAP)
        return cls(X, mean, limit, crowded=typical <= limit)

    def centred(self, rows: np.ndarray) -> np.ndarray:
        """Scale these rows (m, d) to unit length, subtract the training mean, and scale them to unit length again."""
        U = directions(self.X[rows]) - self.mean
        return U / np.maximum(np.linalg.norm(U, axis=1, keepdims=True), 1e-12)

    def gaps(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the gap (m,) between each of `rows` and the row at the same place of `others`."""
        batches = [slice(at, at + BATCH_ROWS) for at in range(0, len(rows), BATCH_ROWS)]
        cosines = [np.einsum("ij,ij->i", self.centred(rows[part]), self.centred(others[part])) for part in batches]
        return 1 - np.concatenate([np.zeros(0, np.float32), *cosines])

    def positions(self, count: int) -> np.ndarray:
        """Return all rows on `count` directions for each table, (n, TABLES, count), in widths of a cell."""
        width = WIDTH * np.sqrt(2 * self.limit)
        scaled = axes(self.X.shape[1], TABLES * count, "near duplicates") / np.float32(width)
        rows = np.arange(len(self.X))
        batches = [self.centred(rows[at : at + BATCH_ROWS]) @ scaled for at in range(0, len(rows), BATCH_ROWS)]
        return np.concatenate(batches).reshape(len(rows), TABLES, count)
