"""Classification scores (accuracy, balanced accuracy, AUROC), each with its values on bootstrap samples of the rows."""

from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from repstitch.errors import InputError
from repstitch.metrics.resample import CELLS, DRAWS, resample_counts

MEASURES = ("accuracy", "balanced_accuracy", "auroc")


def hits(scores: np.ndarray, y: np.ndarray, top: int = 1) -> np.ndarray:
    """Return, for each row (n,), whether its true class is among the `top` highest of its scores (n, c).

    `y` (n,) are the columns of the true classes. A tie with another class counts against the row, so a row with equal
    scores for all classes is a miss.
    """
    true_scores = scores[np.arange(len(y)), y][:, None]
    return (scores >= true_scores).sum(1) <= top


def margins(scores: np.ndarray) -> np.ndarray:
    """Return each score minus the highest other score of its row (n, c). The AUROC of a class ranks all rows by it.

    Like softmax, the margin does not change if a constant is added to all scores of a row.
    """
    order = np.partition(scores, -2, axis=1)
    highest, second = order[:, -1:], order[:, -2:-1]
    return scores - np.where(scores >= highest, second, highest)


def evaluate(
    contenders: Mapping[str, np.ndarray], y: np.ndarray, seed: int = 0, top: tuple[int, ...] = (), draws: int = DRAWS
) -> dict[str, dict[str, tuple[float, np.ndarray]]]:
    """Score every classifier by every measure, on the rows and on bootstrap samples of the rows.

    `contenders` has the scores (n, c) of each classifier by name; `y` (n,) are the classes. The result has, for each
    measure and classifier, the value on the rows and the values (draws,) on the bootstrap samples. All classifiers use
    the same rows in one draw, so differences of draws are paired.

    - `accuracy`, and `top5` and so on for each of `top`: in [0, 1], higher is better; chance is the share of the class
      that is always predicted.
    - `balanced_accuracy`: the mean over classes of the recall; chance 1 / c. Brodersen et al. 2010, "The Balanced
      Accuracy and its Posterior Distribution".
    - `auroc`: the mean over classes of the probability that a row of the class has a higher margin (see `margins`) than
      a row of another class, where a tie counts half; chance 1/2. Hand and Till 2001 for one class against the rest.

    Classes that do not occur in y, or not in a draw, are left out of means over classes. A draw with a single class has
    no AUROC (NaN). O(draws · n · c) time. Raises InputError if y has fewer than two classes.
    """
    classes = np.unique(y)
    if len(classes) < 2:
        raise InputError(f"Scoring requires rows of at least two classes; got {len(classes)} in {len(y)} rows.")
    member = (y[:, None] == classes).astype(np.float64)
    results: dict[str, dict[str, tuple[float, np.ndarray]]] = {
        name: {} for name in ("accuracy", *(f"top{t}" for t in top), *MEASURES[1:])
    }
    # The first row of counts selects every row once; the others are the bootstrap samples.
    counts = np.concatenate(
        [np.ones((1, len(y)), dtype=np.int32), *(c.astype(np.int32) for c in resample_counts(len(y), draws, seed))]
    )
    sizes = counts @ member
    sizes = np.where(sizes > 0, sizes, np.nan)
    for name, scores in tqdm(
        contenders.items(), desc="scores", unit="contender", delay=1, leave=False, disable=not draws
    ):
        for t in (1, *top):
            hit = hits(scores, y, t).astype(np.float64)
            results["accuracy" if t == 1 else f"top{t}"][name] = _value_and_draws(counts @ hit / len(y))
        recalls = counts @ (hits(scores, y)[:, None] * member) / sizes
        results["balanced_accuracy"][name] = _value_and_draws(_mean(recalls, 1))
        margin = margins(scores)
        each = [_auroc(margin[:, k], member[:, i] > 0, counts) for i, k in enumerate(classes)]
        results["auroc"][name] = _value_and_draws(_mean(np.array(each), 0))
    return results


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of the finite values, or NaN if there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    return np.where(finite, values, 0.0).sum(axis) / np.where(count > 0, count, np.nan)


def _value_and_draws(values: np.ndarray) -> tuple[float, np.ndarray]:
    return float(values[0]), values[1:]


def _auroc(scores: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the AUROC of one class for each row of `counts` (draws, n); NaN if no row or every row is of the class."""
    order = np.argsort(scores, kind="stable")
    ascending, positive = scores[order], positive[order]
    starts = np.flatnonzero(np.r_[True, ascending[1:] > ascending[:-1]])  # first position of each group of equal scores
    parts = []
    for weights in np.array_split(counts, max(1, counts.size // CELLS)):
        weights = weights[:, order]
        above = np.add.reduceat(weights * positive, starts, axis=1).astype(np.float64)
        below = np.add.reduceat(weights * ~positive, starts, axis=1).astype(np.float64)
        behind = np.cumsum(below, axis=1) - below / 2
        pairs = above.sum(1) * below.sum(1)
        parts.append((above * behind).sum(1) / np.where(pairs > 0, pairs, np.nan))
    return np.concatenate(parts)
