# pyright: strict
"""Score a translation on held-out pairs, for each use: retrieval, true neighbours, references, controls, chance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from repstitch.embeddings.normalising import cosines
from repstitch.errors import InputError
from repstitch.evaluation.pool import (
    Pool,
    Search,
    TranslatedPairs,
    pool_of,
    scores_of_queries,
    scores_with_references,
    search_all,
)
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import RECALLS
from repstitch.evaluation.verdict import MIN_QUERIES, compare_with_references, decide, not_judged
from repstitch.metrics.alignment import measure
from repstitch.metrics.delete_one import RowScores
from repstitch.metrics.kernels import centred
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.neighbours import check_spread, knn
from repstitch.metrics.null import calibrate, random_orders, shared_weight
from repstitch.metrics.retrieval import hubness, recall
from repstitch.names import USES

MAX_POOL = 10_000


def score_pairs(
    pairs: TranslatedPairs,
    training_mean: Tensor,
    *,
    near_duplicates: np.ndarray | None = None,
    uses: Sequence[str] = USES,
    thresholds: Thresholds | None = None,
    permutations: int = 100,
    seed: int = 0,
) -> Scorecard:
    """Score translated held-out pairs against the native target rows.

    `training_mean` (d_target,) is the mean of the training targets, used as a constant translation. The pool that is
    searched has these n rows, or a fixed random 10,000 of them if there are more. `near_duplicates` (n,) marks rows
    that nearly repeat a training row; the main scores are then also computed without these queries, in the same
    gallery.

    Each use has retrieval scores with 95 % intervals over pools of as many rows (`metrics.delete_one`); recall of the
    controls (`shuffled` pairs, the `constant` mean, and a `naive` swap of untranslated rows if the dimensions agree);
    the share of true neighbours with its references, see `pool.scores_with_references`; and the verdict. Raises
    InputError with fewer than 2 pairs.
    """
    if not set(uses) <= set(USES):
        raise InputError(f"`uses` must be among {', '.join(USES)}; got {', '.join(map(repr, uses))}.")
    n = len(pairs)
    if n < 2:
        raise InputError(f"At least 2 held-out pairs are needed to score; got {n}.")
    _check_mask(near_duplicates, n)
    if n > MAX_POOL:
        rows = np.sort(np.random.default_rng(seed).permutation(n)[:MAX_POOL])
        pairs, near_duplicates = pairs.take(rows), None if near_duplicates is None else near_duplicates[rows]
    pool = pool_of(pairs)
    card: dict[str, Any] = {
        "n": n,
        "pool": len(pool),
        "k": pool.k,
        "chance": {f"recall@{r}": min(1.0, r / len(pool)) for r in RECALLS},
        "hubness_native": hubness(pool.native, len(pool)),
    }
    unreliable = _why_neighbours_are_unreliable(pool)
    query_scores: dict[str, dict[str, RowScores]] = {}
    for use in uses:
        searches = search_all(use, pool, training_mean, seed)
        query_scores[use] = scores_of_queries(searches["translated"], pool)
        card[use] = _use_scores(query_scores[use], searches, pool)
        if unreliable is None:
            card[use] |= _compare(use, searches, pool, thresholds or Thresholds())
        else:
            card[use]["verdict"] = not_judged(unreliable, thresholds or Thresholds()).to_dict()
    if near_duplicates is not None:
        card["without_near_duplicates"] = _without_near_duplicates(query_scores, near_duplicates, pool.k)
    card["reconstruction"] = _reconstruction(pairs, training_mean)
    card["alignment"] = _alignment(pool, permutations, seed)
    return Scorecard(card)


def _check_mask(near_duplicates: np.ndarray | None, n: int) -> None:
    if near_duplicates is not None and (near_duplicates.shape != (n,) or near_duplicates.dtype != bool):
        raise InputError(
            f"`near_duplicates` must have one bool for each row ({n}); got {near_duplicates.dtype} of shape "
            f"{near_duplicates.shape}."
        )


def _use_scores(query_scores: Mapping[str, RowScores], searches: Mapping[str, Search], pool: Pool) -> dict[str, Any]:
    """Return the means over queries with their intervals, and the recall of the controls."""
    translated = searches["translated"]
    assert translated.neighbours is not None
    scores: dict[str, Any] = {name: rows.mean for name, rows in query_scores.items()}
    scores["median_rank"] = float(translated.ranks.float().quantile(0.5))
    scores["hubness_skew"] = hubness(translated.neighbours[:, : pool.k], len(pool))
    scores["intervals"] = {name: rows.interval() for name, rows in query_scores.items()}
    for control in ("shuffled", "constant", "naive"):
        if control in searches:
            scores[control] = {f"recall@{r}": recall(searches[control].ranks, r) for r in RECALLS}
    return scores


def _compare(use: str, searches: dict[str, Search], pool: Pool, thresholds: Thresholds) -> dict[str, Any]:
    """Return the `references` of one use and its `verdict`."""
    rows, chance = scores_with_references(use, searches, pool)
    if thresholds.old_model == "gone":
        for by_reference in rows.values():
            del by_reference["reranked"]
    (first, first_scores), (shortlist, shortlist_scores) = (
        (measure, compare_with_references(by_reference)) for measure, by_reference in rows.items()
    )
    truth = "source" if use == "query" else "target"
    if len(pool) < MIN_QUERIES:
        few = f"{len(pool)} queries are too few for a verdict; at least {MIN_QUERIES} are needed."
        verdict = not_judged(few, thresholds)
    else:
        neighbours = f" (neighbours in the {truth} space)"
        verdict = decide(first, first_scores, shortlist, shortlist_scores, thresholds, chance[shortlist], neighbours)
    compared = {first: first_scores.to_dict(), shortlist: shortlist_scores.to_dict()}
    return {"references": {"truth": truth, "chance": chance, **compared}, "verdict": verdict.to_dict()}


def _why_neighbours_are_unreliable(pool: Pool) -> str | None:
    """Return why the neighbours in one of the spaces are arbitrary; None if they are not."""
    try:
        check_spread(pool.pairs.source, pool.k, "source")
        check_spread(pool.pairs.target, pool.k, "target")
    except InputError as error:
        return str(error)
    return None


def _without_near_duplicates(
    query_scores: Mapping[str, Mapping[str, RowScores]], near_duplicates: np.ndarray, k: int
) -> dict[str, Any]:
    """Return the main scores without the queries that nearly repeat a training row."""
    without: dict[str, Any] = {"left_out": int(near_duplicates.sum())}
    if not near_duplicates.all():
        names = (f"recall@{RECALLS[0]}", f"recall@{RECALLS[-1]}", f"overlap@{k}")
        for use, scores in query_scores.items():
            without[use] = {name: float(scores[name].values[~near_duplicates].mean()) for name in names}
    return without


def _reconstruction(pairs: TranslatedPairs, training_mean: Tensor) -> dict[str, float]:
    """Return mean cosines, R² of the map's raw output, and the spread of that output relative to the target rows."""
    target, raw = pairs.target, pairs.raw
    total = (target - target.mean(0)).square().sum()
    return {
        "cosine": float(cosines(pairs.translated, target).mean()),
        "cosine_floor": float(cosines(training_mean.expand_as(target), target).mean()),
        "r2": float(1 - (target - raw).square().sum() / total),
        "norm_ratio": float(((raw - raw.mean(0)).square().sum() / total).sqrt()),
    }


def _alignment(pool: Pool, permutations: int, seed: int) -> dict[str, Any]:
    """Return each alignment metric with the target rows: of the source rows, and of the translated rows."""
    pairs = pool.pairs
    translated_neighbours = knn(pairs.translated, pairs.translated, pool.k, exclude_self=True)
    mutual_knn = {
        "before": _mutual_knn(pairs.source, "source", pool.source_neighbours[:, : pool.k], pool, permutations, seed),
        "after": _mutual_knn(pairs.translated, "translated", translated_neighbours, pool, permutations, seed),
    }
    cka = {
        "before": _cka(pairs.source, pairs.target, permutations, seed),
        "after": _cka(pairs.translated, pairs.target, permutations, seed),
    }
    return {"mutual_knn": mutual_knn, "cka_unbiased": cka}


def _mutual_knn(
    rows: Tensor, name: str, neighbours: Tensor, pool: Pool, permutations: int, seed: int
) -> dict[str, Any]:
    try:
        check_spread(rows, pool.k, name)
        check_spread(pool.pairs.target, pool.k, "target")
    except InputError as error:
        return {"refused": str(error)}
    orders = random_orders(len(neighbours), permutations, seed)
    draws = shared_weight([neighbours, pool.native], [(0, 1)], orders)[0] / neighbours.numel()
    return asdict(calibrate(float(overlap(neighbours, pool.native).mean()), draws))


def _cka(rows: Tensor, target: Tensor, permutations: int, seed: int) -> dict[str, Any]:
    try:
        spaces = [centred(rows), centred(target, name="Y")]
        scores = measure("cka_unbiased", spaces, [(0, 1)], permutations, seed).pair(0)
    except InputError as error:
        return {"refused": str(error)}
    return {name: value for name, value in scores.items() if name != "se"}
