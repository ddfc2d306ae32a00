# pyright: strict
"""The similarity in the new space that stands for a similarity in the old one, for thresholds on search results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from repstitch.errors import InputError
from repstitch.evaluation.pool import TranslatedPairs
from repstitch.metrics.neighbours import nearest, unit
from repstitch.precision import exact_products
from repstitch.records import Record, mapping, sequence, whole
from repstitch.text import num

RESULTS = 100  # per query
MOST_ROWS = 1_000
POINTS = 41
DRAWS = 100
LEAST_ROWS = 40
Floats = NDArray[np.float64]


class Equivalent(Record):
    """A similarity that lets as many results through as an old threshold, with its 95 % interval."""

    @property
    def similarity(self) -> float:
        return float(self["similarity"])

    @property
    def interval(self) -> tuple[float, float]:
        low, high = self["interval"]
        return float(low), float(high)

    @property
    def same_items(self) -> float:
        """Share of the results above the old threshold that are above the new one too."""
        return float(self["same_items"])


class ScoreScale(Record):
    """Thresholds of the old model and their equivalents in the new space, for one use.

    `old` (p,) are old similarities, ascending. `new` has one entry for each kind of row (`native` or `translated`) with
    lists `similarity`, `low`, `high` and `same_items` (p,). `results` are the results per query that were compared.
    """

    old = sequence(float)
    new = mapping(dict[str, list[float]])
    queries = whole()
    results = whole()

    def check(self) -> None:
        super().check()
        sizes = {len(values) for kinds in self.new.values() for values in kinds.values()} | {len(self.old)}
        if len(sizes) != 1 or any(later < earlier for earlier, later in zip(self.old, self.old[1:], strict=False)):
            raise InputError("'old' and 'new' of a ScoreScale must be lists of one length, and 'old' must ascend.")

    def equivalents(self, threshold: float) -> dict[str, Equivalent]:
        """Return the equivalent of an old threshold, by kind of row. Raises InputError outside the fitted range."""
        low, high = self.old[0], self.old[-1]
        if not low <= threshold <= high:
            raise InputError(
                f"`threshold` must be from {num(low)} to {num(high)}, the range of the first {self.results} results of "
                f"{self.queries} held-out queries; got {threshold}. Outside it no equivalent is known."
            )
        at = {
            kind: {name: float(np.interp(threshold, self.old, values)) for name, values in lists.items()}
            for kind, lists in self.new.items()
        }
        return {
            kind: Equivalent(
                {"similarity": v["similarity"], "interval": [v["low"], v["high"]], "same_items": v["same_items"]}
            )
            for kind, v in at.items()
        }


@exact_products()
def fit_score_scale(pairs: TranslatedPairs, use: str, seed: int = 0) -> dict[str, Any] | None:
    """Match the similarities of the first 100 results of held-out queries, before and after; None with too few rows.

    An old threshold and its equivalent let the same number of results a query through, over these queries. So both are
    the same quantile of the similarities of the first results, and the equivalents ascend with the thresholds. In
    corpus use the old similarities are those in the source space, and native target queries search native and
    translated rows. In query use the old similarities are those in the target space, and translated queries search
    target rows. Intervals are percentiles over resampled queries. At most 1,000 rows are used, and at least 40 needed.
    """
    rows = pairs.take(np.arange(min(len(pairs), MOST_ROWS)))
    if len(rows) < LEAST_ROWS:
        return None
    source, target, translated = (unit(side.float()) for side in (rows.source, rows.target, rows.translated))
    if use == "corpus":
        old, new = source @ source.T, {"native": target @ target.T, "translated": target @ translated.T}
    else:
        old, new = target @ target.T, {"translated": translated @ target.T}
    for similar in (old, *new.values()):
        similar.fill_diagonal_(-2.0)
    k = min(RESULTS, len(rows) - 1)
    lists = nearest(old, k)
    old_top = old.gather(1, lists)
    shares = np.linspace(0, 1, POINTS)
    thresholds = np.quantile(old_top.numpy().astype(np.float64), shares)
    return {
        "old": thresholds.tolist(),
        "new": {kind: _equivalents(old_top, similar, lists, thresholds, seed) for kind, similar in new.items()},
        "queries": len(rows),
        "results": k,
    }


def _equivalents(old_top: Tensor, similar: Tensor, lists: Tensor, thresholds: Floats, seed: int) -> dict[str, Any]:
    """Return the equivalents of ascending `thresholds` (p,), their intervals, and the share of the same items."""
    new_top = similar.gather(1, nearest(similar, lists.shape[1])).numpy().astype(np.float64)
    before, of_same = old_top.numpy().astype(np.float64), similar.gather(1, lists).numpy()
    matched = _match(before, new_top, thresholds)
    random = np.random.default_rng(seed)
    drawn = [random.integers(len(before), size=len(before)) for _ in range(DRAWS)]
    resampled = np.stack([_match(before[rows], new_top[rows], thresholds) for rows in drawn])
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    same = [_share(of_same[before >= old] >= new) for old, new in zip(thresholds, matched, strict=True)]
    return {
        "similarity": matched.tolist(),
        "low": np.minimum(low, matched).tolist(),
        "high": np.maximum(high, matched).tolist(),
        "same_items": same,
    }


def _match(before: Floats, after: Floats, thresholds: Floats) -> Floats:
    """Return the similarities above which as many of `after` are as of `before` are above each threshold."""
    ordered, others = np.sort(before, axis=None), np.sort(after, axis=None)
    below = np.searchsorted(ordered, thresholds, side="left") / len(ordered)
    return np.quantile(others, np.minimum(below, 1.0))


def _share(mask: Sequence[bool] | NDArray[np.bool_]) -> float:
    return float(np.mean(mask)) if len(mask) else 1.0
