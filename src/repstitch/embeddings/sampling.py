"""Draw rows at random."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from repstitch.arguments import check_positive, check_seed
from repstitch.embeddings.rows import Batch, Scan, take_entries


@dataclass(frozen=True)
class Sample:
    """Which rows to draw: `n` different ones, each with the same probability, or all if there are no more.

    Args:
        n: Number of rows, at least 1.
        seed: Seed of the draw.

    Raises:
        InputError: If `n` or `seed` is no such number.
    """

    n: int
    seed: int = 0

    def __post_init__(self):
        check_positive(self.n, "`sample`")
        check_seed(self.seed)

    def positions(self, n_rows: int) -> np.ndarray:
        """Return the positions of the drawn rows among `n_rows`, in order."""
        if n_rows <= self.n:
            return np.arange(n_rows)
        return np.sort(np.random.default_rng(self.seed).choice(n_rows, self.n, replace=False, shuffle=False))


def sampled(opened: Scan, sample: Sample) -> Scan:
    """Return a scan of rows drawn at random. All rows are read, and only the drawn ones are kept."""
    positions = sample.positions(opened.n_rows)

    def rows(size: int, start: int) -> Iterator[Batch]:
        if start >= len(positions):
            return
        at = int(positions[start])
        for vectors, ids, groups, payload in opened._rows(size, at):
            drawn = positions[np.searchsorted(positions, at) : np.searchsorted(positions, at + len(vectors))] - at
            at += len(vectors)
            if len(drawn):
                part = None if payload is None else payload.take(drawn)
                yield vectors[drawn], take_entries(ids, drawn), take_entries(groups, drawn), part

    return replace(opened, n_rows=len(positions), has_range_index=opened.has_range_index and opened.has_ids, _rows=rows)


def farthest_first(vectors: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Return the positions of `n` rows that are far from each other by cosine; all rows if there are no more.

    The first is drawn at random, and each further one is the row farthest from all before: at most twice as far from
    the others as the best choice (Gonzalez 1985). O(n m d) time for m rows of d dimensions.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    n = min(n, len(unit))
    chosen = np.zeros(n, dtype=int)
    nearest = np.full(len(unit), -np.inf)
    for place in range(n):
        row = int(np.random.default_rng(seed).integers(len(unit))) if place == 0 else int(nearest.argmin())
        chosen[place] = row
        nearest = np.maximum(nearest, unit @ unit[row])
        nearest[row] = np.inf
    return chosen
