"""How well scores tell classes: accuracy, balanced accuracy, AUROC, with intervals over the same resampled rows."""

from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from repstitch.errors import InputError
from repstitch.metrics.resample import CELLS, DRAWS, drawn

MEASURES = ("accuracy", "balanced_accuracy", "auroc")


def hits(scores: np.ndarray, y: np.ndarray, top: int = 1) -> np.ndarray:
    """Whether each row's own class is among the `top` highest of its scores (n, c); y (n,) are column numbers.

    A tie with another class counts against the row, so that scores which tell nothing hit nothing.
    """
    own = scores[np.arange(len(y)), y][:, None]
    return (scores >= own).sum(1) <= top


def margins(scores: np.ndarray) -> np.ndarray:
    """Each score less the highest of the row's other scores (n, c): what tells rows apart for one class.

    It ignores what is added to all scores of a row, as softmax does, and the scale that scores are on.
    """
    order = np.partition(scores, -2, axis=1)
    highest, second = order[:, -1:], order[:, -2:-1]
    return scores - np.where(scores >= highest, second, highest)


def evaluate(
    contenders: Mapping[str, np.ndarray], y: np.ndarray, seed: int = 0, top: tuple[int, ...] = (), draws: int = DRAWS
) -> dict[str, dict[str, tuple[float, np.ndarray]]]:
    """Each measure of each contender's scores (n, c) for classes y (n,): its value, and its values (draws,) on rows
    drawn again. All contenders see the same rows in one draw, so differences and ratios of draws are paired.

    - `accuracy`, and `top5` and so on for each of `top`: in [0, 1], higher is better; chance is the share of the class
      that is always said.
    - `balanced_accuracy`: the mean over classes of the share found; chance 1 / c. Brodersen et al. 2010, "The Balanced
      Accuracy and its Posterior Distribution".
    - `auroc`: the mean over classes of the probability that a row of the class has a higher margin (see `margins`) than
      a row of another, a tie counting half; chance 1/2. Hand and Till 2001 for one class against the rest.

    Classes that do not occur in y, or not in a draw, are left out of means over classes; a draw of one class alone has
    no AUROC (NaN). O(draws · n · c) time. Raises InputError on fewer than two classes in y.
    """
    there = np.unique(y)
    if len(there) < 2:
        raise InputError(f"Rows of at least two classes are needed to score; got {len(there)} in {len(y)} rows.")
    member = (y[:, None] == there).astype(np.float64)
    found: dict[str, dict[str, tuple[float, np.ndarray]]] = {
        name: {} for name in ("accuracy", *(f"top{t}" for t in top), *MEASURES[1:])
    }
    # The rows as they are, then as they were drawn again.
    counts = np.concatenate(
        [np.ones((1, len(y)), dtype=np.int32), *(c.astype(np.int32) for c in drawn(len(y), draws, seed))]
    )
    sizes = counts @ member
    sizes = np.where(sizes > 0, sizes, np.nan)
    for name, scores in tqdm(
        contenders.items(), desc="scores", unit="contender", delay=1, leave=False, disable=not draws
    ):
        for t in (1, *top):
            hit = hits(scores, y, t).astype(np.float64)
            found["accuracy" if t == 1 else f"top{t}"][name] = _parted(counts @ hit / len(y))
        shares = counts @ (hits(scores, y)[:, None] * member) / sizes
        found["balanced_accuracy"][name] = _parted(_mean(shares, 1))
        away = margins(scores)
        each = [_auroc(away[:, k], member[:, i] > 0, counts) for i, k in enumerate(there)]
        found["auroc"][name] = _parted(_mean(np.array(each), 0))
    return found


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is a number; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis)
    return np.where(known, values, 0.0).sum(axis) / np.where(count > 0, count, np.nan)


def _parted(values: np.ndarray) -> tuple[float, np.ndarray]:
    return float(values[0]), values[1:]


def _auroc(scores: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The AUROC of one class for each row of counts (draws, n); NaN where it holds no row of the class, or only
    such."""
    order = np.argsort(scores, kind="stable")
    placed, own = scores[order], positive[order]
    starts = np.flatnonzero(np.r_[True, placed[1:] > placed[:-1]])  # of each group of equal scores
    parts = []
    for weights in np.array_split(counts, max(1, counts.size // CELLS)):
        weights = weights[:, order]
        above = np.add.reduceat(weights * own, starts, axis=1).astype(np.float64)
        below = np.add.reduceat(weights * ~own, starts, axis=1).astype(np.float64)
        behind = np.cumsum(below, axis=1) - below / 2
        pairs = above.sum(1) * below.sum(1)
        parts.append((above * behind).sum(1) / np.where(pairs > 0, pairs, np.nan))
    return np.concatenate(parts)
