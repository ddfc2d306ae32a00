"""Score one translation on held-out pairs: what it finds, what it keeps, and what chance would give, per use."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.verdict import MIN_QUERIES, not_judged, standing, verdict
from repstitch.metrics.alignment import measure
from repstitch.metrics.kernels import centred
from repstitch.metrics.neighbour_lists import held, overlap
from repstitch.metrics.neighbours import check_spread, knn
from repstitch.metrics.null import calibrate, random_orders, shared_weight
from repstitch.metrics.resample import interval, resampled_means
from repstitch.metrics.retrieval import hubness, recall, search
from repstitch.names import USES

MAX_POOL = 10_000
RECALLS = (1, 5, 10)
SHORTLIST = 100


def score_pairs(
    X: np.ndarray,
    Y: np.ndarray,
    translated: np.ndarray,
    bare: np.ndarray,
    floor: np.ndarray,
    uses: tuple[str, ...] = USES,
    permutations: int = 100,
    seed: int = 0,
    thresholds: Thresholds | None = None,
    near: np.ndarray | None = None,
) -> dict:
    """Scores of `translated` (n, d_target) against the native rows `Y` (n, d_target), as plain JSON types.

    `X` (n, d_source) are the source rows, `bare` what the map gave before output normalisation, `floor` (d_target,) the
    training targets' mean, the constant that ignores the source. All rows are held out and normalised as the stitcher
    normalises. Retrieval is among these n rows ("pool"); of more than 10,000 a fixed random 10,000 are used. `near`
    (n,) marks rows that are near duplicates of training rows: recall and overlap are then also given without these
    queries, in the same gallery.

    Each use holds how well counterparts are found and the target's own neighbours are kept, with 95 % `intervals` over
    queries; recall of the controls (`shuffled` pairs, the `constant` floor, a `naive` swap of untranslated rows where
    the dimensions agree); what it is worth beside its `references`, see `_worth`; and the `verdict`.
    """
    if not set(uses) <= set(USES):
        raise InputError(f"`uses` must be among {', '.join(USES)}; got {', '.join(map(repr, uses))}.")
    n = len(X)
    if n < 2:
        raise InputError(f"At least 2 held-out pairs are needed to score; got {n}.")
    near = None if near is None else np.asarray(near)
    if near is not None and (near.shape != (n,) or near.dtype != bool):
        raise InputError(f"`near` must hold one bool a row ({n}); got {near.dtype} of shape {near.shape}.")
    if n > MAX_POOL:
        keep = np.sort(np.random.default_rng(seed).permutation(n)[:MAX_POOL])
        X, Y, translated, bare = X[keep], Y[keep], translated[keep], bare[keep]
        near = None if near is None else near[keep]
    x, y, t, b = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (X, Y, translated, bare))
    mean = torch.from_numpy(np.asarray(floor, dtype=np.float32))
    if not bool((y != y[0]).any()):
        raise InputError(f"The {len(y)} held-out target rows are all the same, so nothing can be scored.")
    pool = len(x)
    k, depth = min(10, pool - 1), min(SHORTLIST, pool - 1)
    own = {"source": knn(x, x, depth, own=True), "target": knn(y, y, depth, own=True)}
    native = own["target"][:, :k]
    doubt = _doubt(x, y, k)
    card: dict = {
        "n": n,
        "pool": pool,
        "k": k,
        "chance": {f"recall@{r}": min(1.0, r / pool) for r in RECALLS},
        "hubness_native": hubness(native, pool),
    }
    without: dict = {} if near is None else {"left_out": int(near.sum())}
    for use in uses:
        found = _searches(use, x, y, t, mean, depth, seed)
        placed, lists = found["translated"]
        rows = {f"recall@{r}": (placed <= r).numpy() for r in RECALLS}
        rows |= {"mrr": (1.0 / placed).numpy(), f"overlap@{k}": overlap(lists[:, :k], native).numpy()}
        spread = resampled_means(np.column_stack(list(rows.values())), seed=seed)
        card[use] = {name: float(row.mean()) for name, row in rows.items()} | {
            "median_rank": float(placed.float().quantile(0.5)),
            "hubness_skew": hubness(lists[:, :k], pool),
            "intervals": {name: interval(draws) for name, draws in zip(rows, spread.T, strict=True)},
        }
        for name in ("shuffled", "constant", "naive"):
            if name in found:
                card[use][name] = {f"recall@{r}": recall(found[name][0], r) for r in RECALLS}
        card[use] |= _worth(use, found, own, k, doubt, thresholds or Thresholds(), seed)
        if near is not None and not near.all():
            kept = (f"recall@{RECALLS[0]}", f"recall@{RECALLS[-1]}", f"overlap@{k}")
            without[use] = {name: float(rows[name][~near].mean()) for name in kept}
    if near is not None:
        card["without_near_duplicates"] = without
    card["reconstruction"] = _reconstruction(y, t, b, mean)
    translated_own = knn(t, t, k, own=True)
    card["alignment"] = {
        "mutual_knn": {
            "before": _mutual_knn(x, "source", own["source"][:, :k], y, native, k, permutations, seed),
            "after": _mutual_knn(t, "translated", translated_own, y, native, k, permutations, seed),
        },
        "cka_unbiased": {
            "before": _cka(x, y, permutations, seed),
            "after": _cka(t, y, permutations, seed),
        },
    }
    return card


def _searches(use: str, x: Tensor, y: Tensor, t: Tensor, mean: Tensor, depth: int, seed: int) -> dict[str, Any]:
    """What a use finds with the translation, and with each control in its place: the rank (n,) of each query's
    counterpart, and its nearest others (n, depth), None where all are equally near."""
    same = torch.unique(y, dim=0, return_inverse=True)[1]  # alike by the native rows: equal translations are no copies
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    stand_ins = {"translated": t, "shuffled": t[order]} | ({"naive": x} if x.shape[1] == y.shape[1] else {})
    # In a gallery of one row many times over every row ties, and a tie counts against the query.
    tied = 1 + len(y) - torch.bincount(same)[same], None
    if use == "corpus":
        return {name: search(y, rows, depth, same) for name, rows in stand_ins.items()} | {"constant": tied}
    constant = search(mean[None], y, depth, same) if bool(mean.any()) else tied
    return {name: search(rows, y, depth, same) for name, rows in stand_ins.items()} | {"constant": constant}


def _worth(
    use: str,
    found: dict[str, Any],
    own: dict[str, Tensor],
    k: int,
    doubt: str | None,
    thresholds: Thresholds,
    seed: int,
) -> dict:
    """The `references` of one use and its `verdict`.

    What a use should give back are the neighbours that full re-embedding would: in corpus use the target's own, for old
    vectors would be embedded with the target model; in query use the source's own, for it is the new model there, and
    the index would be embedded with it. So full re-embedding scores 1 (`ceiling`), and keeping the old model scores
    mutual_knn of the two spaces (`keep_old`: the old model's own neighbours). Each is scored twice: overlap@k is the
    share of the k true neighbours among the first k found, topk_in_m their share among the first m (100, or all others
    of a smaller pool), as candidates for a second stage. `references` is left out where neighbours are arbitrary.
    """
    if doubt is not None:
        return {"verdict": not_judged(doubt, thresholds)}
    truth, old = ("source", "target") if use == "query" else ("target", "source")
    pool, depth = own[truth].shape
    short = f"top{k}_in_{depth}"
    chance = {f"overlap@{k}": k / (pool - 1), short: depth / (pool - 1)}
    lists = {name: searched[1] for name, searched in found.items()} | {"keep_old": own[old], "ceiling": own[truth]}
    worth: dict = {"truth": truth, "chance": chance}
    for shown, reach in ((f"overlap@{k}", k), (short, depth)):
        worth[shown] = standing(
            {
                name: np.full(pool, chance[shown]) if seen is None else held(own[truth][:, :k], seen[:, :reach]).numpy()
                for name, seen in lists.items()
            },
            seed,
        )
    if pool < MIN_QUERIES:
        said = not_judged(f"{pool} queries are too few to judge by; at least {MIN_QUERIES} are needed.", thresholds)
    else:
        deciding, neighbours = worth[f"overlap@{k}"], f" with the {truth}'s own neighbours"
        said = verdict(f"overlap@{k}", deciding, short, worth[short], thresholds, chance[short], neighbours)
    return {"references": worth, "verdict": said}


def _doubt(x: Tensor, y: Tensor, k: int) -> str | None:
    """Why the neighbours of either space mean nothing, if they do."""
    try:
        check_spread(x, k, "source")
        check_spread(y, k, "target")
    except InputError as error:
        return str(error)
    return None


def _reconstruction(y: Tensor, t: Tensor, bare: Tensor, floor: Tensor) -> dict:
    """Cosine with its floor, R² of the bare map on centred vectors, and predicted over native spread."""
    cosine = torch.nn.functional.cosine_similarity
    centred, predicted = y - y.mean(0), bare - bare.mean(0)
    total = centred.square().sum()
    return {
        "cosine": float(cosine(t, y).mean()),
        "cosine_floor": float(cosine(floor.expand_as(y), y).mean()),
        "r2": float(1 - (y - bare).square().sum() / total),
        "norm_ratio": float((predicted.square().sum() / total).sqrt()),
    }


def _mutual_knn(
    a: Tensor, name: str, own: Tensor, y: Tensor, native: Tensor, k: int, permutations: int, seed: int
) -> dict:
    try:
        check_spread(a, k, name)
        check_spread(y, k, "target")
    except InputError as error:
        return {"refused": str(error)}
    draws = shared_weight([own, native], [(0, 1)], random_orders(len(own), permutations, seed))[0] / own.numel()
    return asdict(calibrate(float(overlap(own, native).mean()), draws))


def _cka(a: Tensor, y: Tensor, permutations: int, seed: int) -> dict:
    try:
        found = measure("cka_unbiased", [centred(a), centred(y, name="Y")], [(0, 1)], permutations, seed).pair(0)
    except InputError as error:
        return {"refused": str(error)}
    return {name: value for name, value in found.items() if name != "se"}
