# pyright: strict
"""The similarity in the new space that stands for a similarity in the old one, for thresholds on search results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repstitch.evaluation.pool import TranslatedPairs
from repstitch.evaluation.relevance import CELLS, SearchRows
from repstitch.metrics.neighbours import nearest, unit
from repstitch.precision import exact_products

RESULTS = 100  # per query
MOST_QUERIES = 1_000
LEAST_QUERIES = 40
DRAWS = 100
# Quantiles of the thresholds. Most thresholds let few results through, so half of the points are near the largest.
QUANTILES = np.sort(np.concatenate([np.linspace(0, 1, 21), 1 - np.geomspace(0.04, 0.0004, 20)]))
Floats = NDArray[np.float64]


@exact_products()
def fit_score_scale(pairs: TranslatedPairs, use: str, seed: int = 0) -> dict[str, Any] | None:
    """Match the similarities of the first 100 results of held-out rows, before and after; None with too few rows.

    An old threshold and its equivalent let the same number of results a query through, over these queries. So both are
    the same quantile of the similarities of the first results, and the equivalents ascend with the thresholds. In
    corpus use the old similarities are those in the source space, and native target queries search native and
    translated rows. In query use the old similarities are those in the target space, and translated queries search
    target rows. Intervals are percentiles over resampled queries. At most 1,000 rows are used, and at least 40 needed.

    Every row is a query that searches the others.
    """
    n = min(len(pairs), MOST_QUERIES)
    if n < LEAST_QUERIES:
        return None
    rows, results = pairs.take(np.arange(n)), min(RESULTS, n - 1)
    old, new = _searches(use, rows, rows)
    if rows.similar is not None:
        new["translated"] = rows.similar[use]
    return _scale(_search(old, new, results, exclude_self=True), "rows", results, seed)


@exact_products()
def fit_query_score_scale(queries: SearchRows, documents: SearchRows, use: str, seed: int = 0) -> dict[str, Any] | None:
    """Match the similarities of the first 100 documents of real queries, before and after; None with too few queries.

    As `fit_score_scale`, with queries in place of rows. Documents that trained the map are translated better than
    others, so the queries search the others alone if these are at least 100. Queries that training used are left out.
    """
    unseen = np.flatnonzero(~queries.seen)[:MOST_QUERIES]
    if len(unseen) < LEAST_QUERIES:
        return None
    others = np.flatnonzero(~documents.seen)
    searched = documents.take(others) if len(others) >= RESULTS else documents
    results = min(RESULTS, len(searched.ids))
    old, new = _searches(use, queries.take(unseen), searched)
    return _scale(_search(old, new, results), "queries", results, seed)


def _scale(searched: "_Searched", queried_by: str, results: int, seed: int) -> dict[str, Any]:
    """Return the score scale of queries that were searched."""
    old, same, of_query = searched.old, searched.same, searched.of_query
    thresholds = np.quantile(old, QUANTILES)
    random = np.random.default_rng(seed)
    n_queries = int(of_query.max()) + 1
    counts = np.stack(
        [np.bincount(random.integers(n_queries, size=n_queries), minlength=n_queries) for _ in range(DRAWS)]
    )
    new: dict[str, dict[str, list[float]]] = {}
    for kind, similar in searched.new.items():
        matched, *drawn = _match(old, similar, thresholds, of_query, [np.ones(n_queries), *counts])
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        new[kind] = {
            "similarity": _rounded(matched),
            "low": _rounded(np.minimum(low, matched)),
            "high": _rounded(np.maximum(high, matched)),
            "same_items": _rounded(
                [np.mean(same[kind][old >= before] >= after) for before, after in zip(thresholds, matched, strict=True)]
            ),
        }
    return {
        "queried_by": queried_by,
        "old": _rounded(thresholds),
        "new": new,
        "queries": n_queries,
        "results": results,
    }


def _rounded(values: Floats | list[np.floating[Any]]) -> list[float]:
    return [round(float(value), 5) for value in values]


Searched = tuple[Tensor, Tensor] | Tensor
"""Queries (n, d) and the rows (m, d) that they search, or their similarities (n, m)."""


def _searches(
    use: str, queries: TranslatedPairs | SearchRows, rows: TranslatedPairs | SearchRows
) -> tuple[Searched, dict[str, Searched]]:
    """Return the search with the old model, and those with the new one by kind of row."""
    if use == "corpus":
        native, translated = (queries.target, rows.target), (queries.target, rows.translated)
        return (queries.source, rows.source), {"native": native, "translated": translated}
    return (queries.target, rows.target), {"translated": (queries.translated, rows.target)}


@dataclass(frozen=True)
class _Searched:
    """Similarities of first results, one entry per result: before, after, and after for the results before.

    `of_query` is the number of the query of each entry.
    """

    old: Floats
    new: dict[str, Floats]
    same: dict[str, Floats]
    of_query: NDArray[np.int_]


def _search(old: Searched, new: dict[str, Searched], k: int, exclude_self: bool = False) -> _Searched:
    """Keep the first k results of each query. With `exclude_self`, query i is row i, which is no result of it."""
    before, lists = _first_results(old, k, exclude_self)
    return _Searched(
        _flat(before),
        {kind: _flat(_first_results(search, k, exclude_self)[0]) for kind, search in new.items()},
        {kind: _flat(_similarities(search, lists)) for kind, search in new.items()},
        np.repeat(np.arange(len(lists)), k),
    )


def _first_results(search: Searched, k: int, exclude_self: bool) -> tuple[Tensor, Tensor]:
    """Return the similarities (n, k) and positions (n, k) of each query's nearest rows."""
    queries, rows = (search, None) if isinstance(search, Tensor) else map(unit, search)
    values: list[Tensor] = []
    lists: list[Tensor] = []
    step = max(1, CELLS // (queries.shape[1] if rows is None else len(rows)))
    for at in range(0, len(queries), step):
        part = torch.arange(at, min(at + step, len(queries)))
        similar = queries[part] if rows is None else queries[part] @ rows.T
        if exclude_self:
            similar[torch.arange(len(part)), part] = -2.0
        lists.append(nearest(similar, k))
        values.append(similar.gather(1, lists[-1]))
    return torch.cat(values), torch.cat(lists)


def _similarities(search: Searched, lists: Tensor) -> Tensor:
    """Return the similarities (n, k) of each query to the rows of its list (n, k)."""
    if isinstance(search, Tensor):
        return search.gather(1, lists)
    queries, rows = (unit(side) for side in search)
    return torch.stack([rows[listed] @ query for query, listed in zip(queries, lists, strict=True)])


def _flat(values: Tensor) -> Floats:
    return values.flatten().numpy().astype(np.float64)


def _match(
    before: Floats, after: Floats, thresholds: Floats, of_query: NDArray[np.int_], weights: Sequence[Floats]
) -> list[Floats]:
    """Return the similarities above which as much of `after` is as of `before` is above each threshold, by weight.

    `weights` are several weightings of the queries (q,), each of which gives one list of similarities.
    """
    of_before, of_after = np.argsort(before), np.argsort(after)
    ranks = np.searchsorted(before[of_before], thresholds)
    matched: list[Floats] = []
    for weight in weights:
        below = np.concatenate([[0.0], np.cumsum(weight[of_query[of_before]])])[ranks]
        reached = np.cumsum(weight[of_query[of_after]])
        places = np.asarray(np.searchsorted(reached, below, side="right"), dtype=np.int64)
        matched.append(after[of_after][np.minimum(places, len(after) - 1)])
    return matched
