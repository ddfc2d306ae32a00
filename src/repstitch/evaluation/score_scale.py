# pyright: strict
"""The similarity in the new space that stands for a similarity in the old one, for thresholds on search results."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from repstitch.evaluation.pool import TranslatedPairs
from repstitch.metrics.neighbours import nearest, unit
from repstitch.precision import exact_products

RESULTS = 100  # per query
MOST_ROWS = 1_000
POINTS = 41
DRAWS = 100
LEAST_ROWS = 40
Floats = NDArray[np.float64]


@exact_products()
def fit_score_scale(
    pairs: TranslatedPairs, use: str, folds: NDArray[np.int_] | None = None, seed: int = 0
) -> dict[str, Any] | None:
    """Match the similarities of the first 100 results of held-out queries, before and after; None with too few rows.

    An old threshold and its equivalent let the same number of results a query through, over these queries. So both are
    the same quantile of the similarities of the first results, and the equivalents ascend with the thresholds. In
    corpus use the old similarities are those in the source space, and native target queries search native and
    translated rows. In query use the old similarities are those in the target space, and translated queries search
    target rows. Intervals are percentiles over resampled queries. At most 1,000 rows are used, and at least 40 needed.

    If the rows were translated by maps fitted without their fold, each query searches the rows of its own fold (n,),
    since the maps of other folds were fitted to it, and as large a share of them as 100 of all rows.
    """
    n = min(len(pairs), MOST_ROWS)
    if n < LEAST_ROWS:
        return None
    blocks = [np.arange(n)] if folds is None else [np.flatnonzero(folds[:n] == fold) for fold in np.unique(folds[:n])]
    parts = [_search(pairs.take(rows), use, min(1.0, RESULTS / (n - 1))) for rows in blocks if len(rows) > 1]
    old = np.concatenate([part.old for part in parts])
    kinds = {kind: np.concatenate([part.new[kind] for part in parts]) for kind in parts[0].new}
    same = {kind: np.concatenate([part.same[kind] for part in parts]) for kind in parts[0].new}
    of_query = np.concatenate([part.of_query + at for at, part in _numbered(parts)])
    thresholds = np.quantile(old, np.linspace(0, 1, POINTS))
    random = np.random.default_rng(seed)
    n_queries = int(of_query.max()) + 1
    counts = np.stack(
        [np.bincount(random.integers(n_queries, size=n_queries), minlength=n_queries) for _ in range(DRAWS)]
    )
    new: dict[str, dict[str, list[float]]] = {}
    for kind, similar in kinds.items():
        matched = _match(old, similar, thresholds)
        drawn = np.stack([_match(old, similar, thresholds, draw[of_query].astype(np.float64)) for draw in counts])
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        new[kind] = {
            "similarity": _rounded(matched),
            "low": _rounded(np.minimum(low, matched)),
            "high": _rounded(np.maximum(high, matched)),
            "same_items": _rounded(
                [np.mean(same[kind][old >= before] >= after) for before, after in zip(thresholds, matched, strict=True)]
            ),
        }
    return {"old": _rounded(thresholds), "new": new, "queries": n_queries, "results": min(RESULTS, n - 1)}


def _rounded(values: Floats | list[np.floating[Any]]) -> list[float]:
    return [round(float(value), 5) for value in values]


@dataclass(frozen=True)
class _Searched:
    """Similarities of first results, one entry per result: before, after, and after for the results before.

    `of_query` is the number of the query of each entry.
    """

    old: Floats
    new: dict[str, Floats]
    same: dict[str, Floats]
    of_query: NDArray[np.int_]


def _search(pairs: TranslatedPairs, use: str, share: float) -> _Searched:
    """Search these rows with each of them, and keep the first results, a share of the rows."""
    source, target, translated = (unit(side.float()) for side in (pairs.source, pairs.target, pairs.translated))
    if use == "corpus":
        old, new = source @ source.T, {"native": target @ target.T, "translated": target @ translated.T}
    else:
        old, new = target @ target.T, {"translated": translated @ target.T}
    for similar in (old, *new.values()):
        similar.fill_diagonal_(-2.0)
    k = max(1, round(share * (len(pairs) - 1)))
    lists = nearest(old, k)
    return _Searched(
        _values(old, lists),
        {kind: _values(similar, nearest(similar, k)) for kind, similar in new.items()},
        {kind: _values(similar, lists) for kind, similar in new.items()},
        np.repeat(np.arange(len(pairs)), k),
    )


def _values(similar: Tensor, lists: Tensor) -> Floats:
    return similar.gather(1, lists).flatten().numpy().astype(np.float64)


def _numbered(parts: list[_Searched]) -> Iterator[tuple[int, _Searched]]:
    """Yield each part with the number of its first query."""
    at = 0
    for part in parts:
        yield at, part
        at += int(part.of_query.max()) + 1


def _match(before: Floats, after: Floats, thresholds: Floats, weights: Floats | None = None) -> Floats:
    """Return the similarities above which as much of `after` is as of `before` is above each threshold, by weight."""
    of_before, of_after = np.argsort(before), np.argsort(after)
    w = np.ones(len(before)) if weights is None else weights
    below = np.concatenate([[0.0], np.cumsum(w[of_before])])[np.searchsorted(before[of_before], thresholds)]
    reached = np.cumsum(w[of_after])
    places = np.asarray(np.searchsorted(reached, below * (reached[-1] / w.sum()), side="right"), dtype=np.int64)
    return after[of_after][np.minimum(places, len(after) - 1)]
