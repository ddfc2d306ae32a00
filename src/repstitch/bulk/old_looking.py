"""Tell rows of the old space from rows of the new one, if both have the same number of dimensions."""

from dataclasses import dataclass

import numpy as np

from repstitch.bulk.verification import compared, sample_ids
from repstitch.errors import InputError
from repstitch.mixing.placement import Placement
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stores.arrow_columns import unit
from repstitch.stores.store import Store

EXAMPLES = 4_000  # rows of the table to learn from
MOST_ROWS = 100_000  # rows written since the cut-over that are looked at
FALSE_ALARMS = 0.002  # share of rows of the new space that may look like the old one, on rows not learned from
SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity


@dataclass(frozen=True, eq=False)
class SpaceClassifier:
    """Linear discriminant of two spaces on rows of unit length: a row looks old if its score is above the threshold.

    `recognised` is the share of old rows, of those not learned from, that look old: near 0 if a linear discriminant
    cannot tell the spaces apart.
    """

    direction: np.ndarray
    threshold: float
    recognised: float

    def looks_old(self, rows: np.ndarray) -> np.ndarray:
        """Return a mask (n,) of the rows (n, d) that look like the old space."""
        return unit(rows) @ self.direction > self.threshold


def learn(old: np.ndarray, new: np.ndarray) -> SpaceClassifier:
    """Learn to tell rows (n, d) of the old space from rows (m, d) of the new one.

    The direction is Fisher's linear discriminant (1936) with a shrunk covariance, from half of the rows. The threshold
    is set on the other half: between the two spaces, but so that at most FALSE_ALARMS of the new rows exceed it.
    """
    old, new = unit(old), unit(new)
    rng = np.random.default_rng(0)
    old, new = old[rng.permutation(len(old))], new[rng.permutation(len(new))]
    a, b = len(old) // 2, len(new) // 2
    centred = np.concatenate([old[:a] - old[:a].mean(0), new[:b] - new[:b].mean(0)]).astype(np.float64)
    covariance = centred.T @ centred / max(1, len(centred))
    d = len(covariance)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / d * np.eye(d)
    direction = np.linalg.solve(covariance, (old[:a].mean(0) - new[:b].mean(0)).astype(np.float64))
    old_scores, new_scores = old[a:] @ direction, new[b:] @ direction
    middle = (old_scores.mean() + new_scores.mean()) / 2
    threshold = float(max(middle, np.quantile(new_scores, 1 - FALSE_ALARMS)))
    return SpaceClassifier(direction, threshold, float((old_scores > threshold).mean()))


def count_old_looking(store: Store, held_out: HeldOutRows | None, placement: Placement) -> dict[str, float] | None:
    """Count the rows written since the cut-over that look like the old space.

    Returns:
        `rows` looked at, how many of them `look_old`, and the share of old rows that is `recognised` so. None if the
        spaces have other numbers of dimensions, so that a row of the old one cannot be in the column, or if there are
        too few rows to learn from.
    """
    try:
        examples = compared(store, sample_ids(store, EXAMPLES))
    except InputError:
        return None
    if examples.old.shape[1] != examples.new.shape[1]:
        return None
    old = examples.old[np.isfinite(examples.old).all(axis=1)]
    new = examples.new[np.isfinite(examples.new).all(axis=1) & (examples.states == "translated")]
    if held_out is not None:
        new = np.concatenate([new, placement.native(held_out.vectors)])
    if min(len(old), len(new)) < 20:
        return None
    written, classifier = store.written_since(MOST_ROWS), learn(old, new)
    n_old = int(classifier.looks_old(written).sum())
    return {"rows": len(written), "look_old": n_old, "recognised": classifier.recognised}
