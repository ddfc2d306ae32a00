"""Does alignment rise with size or capability? The convergence that the Platonic Representation Hypothesis foretells
(Huh et al. 2024), beside its null."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from repstitch.alignment.model_scores import (
    LEVEL,
    ROUNDING,
    check_draws,
    check_length,
    named,
    pair_scores,
    random_orders,
    row_means,
    share_as_large,
)
from repstitch.errors import InputError
from repstitch.metrics.pearson import correlations
from repstitch.metrics.resample import interval

LEAST_MODELS = 5  # for a trend: four points have 24 orders, so that even a perfect one is hardly evidence
GRID = 50


def trend(
    scores,
    values: Sequence[float | None],
    names: Sequence[str],
    *,
    column: str,
    metric: str,
    families: Sequence[str | None] | None = None,
    against: Sequence[str] | None = None,
    permutations: int = 9999,
    draws: int = 2000,
    seed: int = 0,
) -> dict:
    """Does alignment rise with a size or capability `column`? Spearman's rank correlation over models.

    `scores` is (N, N), NaN where not measured; the two directions are averaged where both are there, the diagonal is
    ignored. A model's alignment is its mean score with the others, or with the models named in `against`, which are
    then no points themselves. Models without a value are no points either, though others are still scored with them;
    `left_out` counts them. `p` is two-sided, from values permuted over models (add-one, so never below
    1 / (permutations + 1)); `interval` resamples models. `null_band` holds, on a grid of values, the middle 95 % of
    straight lines through permuted values, and `line`, the one through the values themselves; in log value where all
    are positive and span a factor of ten.

    `within_lineage` is the same correlation inside families, for bigger models are often of other families too: ranks
    are taken within each family of two or more and centred, and permuted within it. 1 where every family rises by
    itself; None without families or where none has three models.

    Raises InputError on fewer than 5 models with a value and a score, or where values or alignments are all equal.
    """
    S = pair_scores(scores, names, "scores")
    N = len(names)
    check_length(values, N, "values")
    check_draws(permutations=permutations, draws=draws)
    numbers = np.array(values, dtype=np.float64)
    others = np.ones(N, dtype=bool) if against is None else named(against, names)
    alignment = row_means(S[:, others])
    candidates = np.ones(N, dtype=bool) if against is None else ~others
    valued = candidates & np.isfinite(numbers)
    points = np.flatnonzero(valued & np.isfinite(alignment))
    if len(points) < LEAST_MODELS:
        raise InputError(
            f"`values` must be known for at least {LEAST_MODELS} models with a score to show a trend; "
            f"got {len(points)}. Give {column} for more models."
        )
    x, y = numbers[points], alignment[points]
    for what, array in ((f"`values` of {column}", x), ("The alignments that `scores` give", y)):
        if np.ptp(array) <= ROUNDING * np.abs(array).max():
            raise InputError(f"{what} must differ between models to show a trend; all are {array.max():g}.")
    random = np.random.default_rng(seed)
    ranks = rankdata(x), rankdata(y)
    rho = float(correlations(*ranks))
    orders = random_orders(permutations, len(x), random)
    p = share_as_large(np.abs(correlations(ranks[0][orders], ranks[1])), abs(rho))
    # Alignments are taken once, from all models: a model that is drawn twice brings its point along twice, and is never
    # scored with its copy. So the interval is for models drawn anew and judged against these same others.
    drawn = random.integers(len(x), size=(draws, len(x)))
    resampled = correlations(rankdata(x[drawn], axis=1), rankdata(y[drawn], axis=1))
    lineage = [None] * N if families is None else list(families)
    check_length(lineage, N, "families")
    within = _within_lineage(x, y, [lineage[i] for i in points], permutations, random)
    found = {
        "column": column,
        "metric": metric,
        "models": [
            {"name": names[i], "family": lineage[i], "value": float(numbers[i]), "alignment": float(alignment[i])}
            for i in points.tolist()
        ],
        "rank_correlation": rho,
        "interval": interval(resampled),
        "p": p,
        "n_models": len(points),
        "left_out": {"no value": int((candidates & ~valued).sum()), "no score": int(valued.sum()) - len(points)},
        "null_band": _null_band(x, y, orders),
        "against": None if against is None else list(against),
        "within_lineage": within,
    }
    return found | {"verdict": _trend_verdict(found)}


def _null_band(x: np.ndarray, y: np.ndarray, orders: np.ndarray) -> dict:
    log = bool(x.min() > 0 and x.max() >= 10 * x.min())
    grid = (np.geomspace if log else np.linspace)(x.min(), x.max(), GRID)
    at, places = (np.log(x), np.log(grid)) if log else (x, grid)
    centred = at - at.mean()
    slopes = centred[np.vstack([np.arange(len(x)), orders])] @ (y - y.mean()) / (centred @ centred)
    lines = y.mean() + slopes[:, None] * (places - at.mean())
    low, high = np.quantile(lines[1:], (LEVEL / 2, 1 - LEVEL / 2), axis=0)
    return {
        "value": grid.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "line": lines[0].tolist(),
        "scale": "log" if log else "linear",
    }


def _within_lineage(x, y, families: list, permutations: int, random: np.random.Generator) -> dict | None:
    sizes = {name: count for name, count in Counter(families).items() if name is not None and count > 1}
    if max(sizes.values(), default=0) < 3:
        return None
    groups = [np.array([f == name for f in families]) for name in sizes]
    a, b = (np.concatenate([rankdata(side[group]) - (group.sum() + 1) / 2 for group in groups]) for side in (x, y))
    if not a.any() or not b.any():
        return None
    family = np.repeat(np.arange(len(groups)), list(sizes.values()))
    orders = np.argsort(family + random.random((permutations, len(a))), axis=1)  # shuffled inside each family
    rho = float(correlations(a, b))
    p = share_as_large(np.abs(correlations(a[orders], b)), abs(rho))
    return {"rank_correlation": rho, "p": p, "n_models": len(a), "families": sizes}


def _trend_verdict(found: dict) -> str:
    rho, (low, high), column, within = (found[k] for k in ("rank_correlation", "interval", "column", "within_lineage"))
    way = _way(rho, found["p"])
    start = f"alignment {way} with {column}" if way else f"no convergence found: alignment does not rise with {column}"
    figures = f"(rho = {rho:.2f}, 95 % interval [{low:.2f}, {high:.2f}], p = {found['p']:.2g}"
    end = ""
    if within:
        inside = _way(within["rank_correlation"], within["p"])
        end = f"; within families it {inside or 'shows no trend'} "
        end += f"(rho = {within['rank_correlation']:.2f}, p = {within['p']:.2g}, {within['n_models']} models)"
    return f"{start} {figures}, {found['n_models']} models){end}."


def _way(rho: float, p: float) -> str | None:
    return None if p > LEVEL else "rises" if rho > 0 else "falls"
