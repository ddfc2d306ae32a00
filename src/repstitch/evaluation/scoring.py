# pyright: strict
"""Score a translation on held-out pairs, for each use: retrieval, true neighbours, references, controls, chance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import RECALLS
from repstitch.evaluation.verdict import MIN_QUERIES, compare_with_references, decide, not_judged
from repstitch.metrics.alignment import measure
from repstitch.metrics.kernels import centred
from repstitch.metrics.neighbour_lists import overlap, share_contained
from repstitch.metrics.neighbours import check_spread, knn
from repstitch.metrics.null import calibrate, random_orders, shared_weight
from repstitch.metrics.resample import interval, resampled_means
from repstitch.metrics.retrieval import hubness, recall, search
from repstitch.names import USES

MAX_POOL = 10_000
SHORTLIST = 100


@dataclass(frozen=True, eq=False)
class TranslatedPairs:
    """Normalised pairs and their translations, as float32 tensors.

    `source` is (n, d_source). `target`, `raw` and `translated` are (n, d_target); `raw` is the output of the map before
    the output normalisation.
    """

    source: Tensor
    target: Tensor
    raw: Tensor
    translated: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"TranslatedPairs({len(self)} pairs, {self.source.shape[1]} -> {self.target.shape[1]})"

    def take(self, rows: np.ndarray) -> "TranslatedPairs":
        return TranslatedPairs(self.source[rows], self.target[rows], self.raw[rows], self.translated[rows])


@dataclass(frozen=True, eq=False)
class _Pool:
    """The pairs that are searched, and the nearest other rows (n, depth) of each row in each of the two spaces."""

    pairs: TranslatedPairs
    source_neighbours: Tensor
    target_neighbours: Tensor
    k: int

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def depth(self) -> int:
        return self.target_neighbours.shape[1]

    @property
    def native(self) -> Tensor:
        """The k nearest other rows of each target row."""
        return self.target_neighbours[:, : self.k]


class _Search(NamedTuple):
    """The rank (n,) of each query's counterpart, and the nearest other rows (n, depth), None if all rows tie."""

    ranks: Tensor
    neighbours: Tensor | None


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

    Each use has retrieval scores with 95 % intervals over queries; recall of the controls (`shuffled` pairs, the
    `constant` mean, and a `naive` swap of untranslated rows if the dimensions agree); the share of true neighbours with
    its references, see `_compare`; and the verdict. Raises InputError with fewer than 2 pairs.
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
    pool = _pool_of(pairs)
    card: dict[str, Any] = {
        "n": n,
        "pool": len(pool),
        "k": pool.k,
        "chance": {f"recall@{r}": min(1.0, r / len(pool)) for r in RECALLS},
        "hubness_native": hubness(pool.native, len(pool)),
    }
    unreliable = _why_neighbours_are_unreliable(pool)
    query_scores: dict[str, dict[str, np.ndarray]] = {}
    for use in uses:
        searches = _searches(use, pool, training_mean, seed)
        query_scores[use] = _scores_per_query(searches["translated"], pool)
        card[use] = _use_scores(query_scores[use], searches, pool, seed)
        if unreliable is None:
            card[use] |= _compare(use, searches, pool, thresholds or Thresholds(), seed)
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


def _pool_of(pairs: TranslatedPairs) -> _Pool:
    if not bool((pairs.target != pairs.target[0]).any()):
        raise InputError(
            f"The {len(pairs)} held-out target rows are all equal, so nothing can be scored; check the target file."
        )
    k, depth = min(10, len(pairs) - 1), min(SHORTLIST, len(pairs) - 1)
    in_source, in_target = (knn(rows, rows, depth, exclude_self=True) for rows in (pairs.source, pairs.target))
    return _Pool(pairs, in_source, in_target, k)


def _searches(use: str, pool: _Pool, training_mean: Tensor, seed: int) -> dict[str, _Search]:
    """Search with the translation, and with each control in place of the translation."""
    source, target, translated = pool.pairs.source, pool.pairs.target, pool.pairs.translated
    # Copies are rows whose native target rows are equal. Equal translations of different rows are not copies.
    copies = _number_copies(target)
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(target)))
    stand_ins = {"translated": translated, "shuffled": translated[order]}
    if source.shape[1] == target.shape[1]:
        stand_ins["naive"] = source
    # If all gallery rows are equal, every row ties with the counterpart, and ties count against the query.
    constant = _Search(1 + len(target) - torch.bincount(copies)[copies], None)
    if use == "corpus":
        searches = {name: _Search(*search(target, rows, pool.depth, copies)) for name, rows in stand_ins.items()}
    else:
        searches = {name: _Search(*search(rows, target, pool.depth, copies)) for name, rows in stand_ins.items()}
        if bool(training_mean.any()):
            constant = _Search(*search(training_mean[None], target, pool.depth, copies))
    return searches | {"constant": constant}


def _number_copies(rows: Tensor) -> Tensor:
    """Return one number per row (n,), which is the same for identical rows."""
    return torch.unique(rows, dim=0, return_inverse=True)[1]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _scores_per_query(translated: _Search, pool: _Pool) -> dict[str, np.ndarray]:
    """Return the values (n,) of each score, one per query."""
    assert translated.neighbours is not None
    scores = {f"recall@{r}": (translated.ranks <= r).numpy() for r in RECALLS}
    kept = overlap(translated.neighbours[:, : pool.k], pool.native)
    return scores | {"mrr": (1.0 / translated.ranks).numpy(), f"overlap@{pool.k}": kept.numpy()}


def _use_scores(
    query_scores: Mapping[str, np.ndarray], searches: Mapping[str, _Search], pool: _Pool, seed: int
) -> dict[str, Any]:
    """Return the means over queries with their intervals, and the recall of the controls."""
    translated = searches["translated"]
    assert translated.neighbours is not None
    draws = resampled_means(np.column_stack(list(query_scores.values())), seed=seed)
    scores: dict[str, Any] = {name: float(values.mean()) for name, values in query_scores.items()}
    scores["median_rank"] = float(translated.ranks.float().quantile(0.5))
    scores["hubness_skew"] = hubness(translated.neighbours[:, : pool.k], len(pool))
    scores["intervals"] = {name: interval(means) for name, means in zip(query_scores, draws.T, strict=True)}
    for control in ("shuffled", "constant", "naive"):
        if control in searches:
            scores[control] = {f"recall@{r}": recall(searches[control].ranks, r) for r in RECALLS}
    return scores


def _compare(
    use: str, searches: Mapping[str, _Search], pool: _Pool, thresholds: Thresholds, seed: int
) -> dict[str, Any]:
    """Return the `references` of one use and its `verdict`.

    The true neighbours of a use are those that full re-embedding with the new model would find. In corpus use the new
    model is the target, so they are the target's own neighbours. In query use the new model is the source, so they are
    the source's own. Therefore full re-embedding (`ceiling`) scores 1, and keeping the old model (`keep_old`) scores
    the mutual_knn of the two spaces.

    There are two measures. overlap@k is the share of the k true neighbours that are among the first k results.
    topk_in_m is the share that are among the first m results, the candidates for a second stage. m is 100, or the
    number of other rows in a smaller pool.
    """
    truth, true, old = "target", pool.target_neighbours, pool.source_neighbours
    if use == "query":
        truth, true, old = "source", old, true
    results = {name: one.neighbours for name, one in searches.items()} | {"keep_old": old, "ceiling": true}
    first, shortlist = f"overlap@{pool.k}", f"top{pool.k}_in_{pool.depth}"
    chance = {first: pool.k / (len(pool) - 1), shortlist: pool.depth / (len(pool) - 1)}
    scores = {
        name: compare_with_references(
            {
                reference: np.full(len(pool), chance[name])
                if lists is None
                else share_contained(true[:, : pool.k], lists[:, :reach]).numpy()
                for reference, lists in results.items()
            },
            seed,
        )
        for name, reach in ((first, pool.k), (shortlist, pool.depth))
    }
    if len(pool) < MIN_QUERIES:
        few = f"{len(pool)} queries are too few for a verdict; at least {MIN_QUERIES} are needed."
        verdict = not_judged(few, thresholds)
    else:
        neighbours = f" (neighbours in the {truth} space)"
        verdict = decide(first, scores[first], shortlist, scores[shortlist], thresholds, chance[shortlist], neighbours)
    compared = {name: part.to_dict() for name, part in scores.items()}
    return {"references": {"truth": truth, "chance": chance, **compared}, "verdict": verdict.to_dict()}


def _why_neighbours_are_unreliable(pool: _Pool) -> str | None:
    """Return why the neighbours in one of the spaces are arbitrary; None if they are not."""
    try:
        check_spread(pool.pairs.source, pool.k, "source")
        check_spread(pool.pairs.target, pool.k, "target")
    except InputError as error:
        return str(error)
    return None


def _without_near_duplicates(
    query_scores: Mapping[str, Mapping[str, np.ndarray]], near_duplicates: np.ndarray, k: int
) -> dict[str, Any]:
    """Return the main scores without the queries that nearly repeat a training row."""
    without: dict[str, Any] = {"left_out": int(near_duplicates.sum())}
    if not near_duplicates.all():
        names = (f"recall@{RECALLS[0]}", f"recall@{RECALLS[-1]}", f"overlap@{k}")
        for use, scores in query_scores.items():
            without[use] = {name: float(scores[name][~near_duplicates].mean()) for name in names}
    return without


def _reconstruction(pairs: TranslatedPairs, training_mean: Tensor) -> dict[str, float]:
    """Return mean cosines, R² of the map's raw output, and the spread of that output relative to the target rows."""
    cosine = torch.nn.functional.cosine_similarity
    target, raw = pairs.target, pairs.raw
    total = (target - target.mean(0)).square().sum()
    return {
        "cosine": float(cosine(pairs.translated, target).mean()),
        "cosine_floor": float(cosine(training_mean.expand_as(target), target).mean()),
        "r2": float(1 - (target - raw).square().sum() / total),
        "norm_ratio": float(((raw - raw.mean(0)).square().sum() / total).sqrt()),
    }


def _alignment(pool: _Pool, permutations: int, seed: int) -> dict[str, Any]:
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
    rows: Tensor, name: str, neighbours: Tensor, pool: _Pool, permutations: int, seed: int
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
