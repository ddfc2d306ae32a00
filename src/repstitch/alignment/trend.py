"""Test whether alignment rises with size or capability, as the Platonic Representation Hypothesis predicts.

See Huh et al. 2024, "The Platonic Representation Hypothesis".
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from repstitch.alignment.hypothesis_results import Trend
from repstitch.alignment.model_scores import (
    RESAMPLING,
    ROUNDING,
    Resampling,
    check_length,
    mask_of_names,
    pair_scores,
    permute_models,
    row_means,
    share_as_large,
)
from repstitch.errors import InputError
from repstitch.metrics.pearson import correlations
from repstitch.metrics.resample import interval
from repstitch.records import LEVEL
from repstitch.text import ends

LEAST_MODELS = 5  # four models have only 24 orders, so even a perfect trend of four would be weak evidence
GRID = 50  # the number of values at which the null band is computed


def trend(
    scores: Any,
    values: Sequence[float | None],
    names: Sequence[str],
    *,
    column: str,
    metric: str,
    families: Sequence[str | None] | None = None,
    against: Sequence[str] | None = None,
    resampling: Resampling = RESAMPLING,
) -> Trend:
    """Test whether alignment rises with a size or capability `column`, by Spearman's rank correlation over models.

    `scores` is (N, N), NaN where a pair was not scored. Both directions are averaged if both have a score; the diagonal
    is ignored. A model's alignment is its mean score with all other models, or with the models named in `against`. The
    models in `against` and the models without a value are not points of the trend, but the alignment of the others
    includes their scores. `left_out` counts the models without a value and those without a score.

    `p` is two-sided, from permutations of the values over models (add-one, so at least 1 / (permutations + 1)). The
    interval resamples models. `null_band` has, on a grid of values, the middle 95 % of straight lines fitted to
    permuted values, and the `line` fitted to the values themselves. Lines are fitted to the logarithm of the values if
    all values are positive and span at least a factor of ten.

    `within_lineage` is the same correlation within families, because larger models often also belong to other families:
    ranks are taken, centred and permuted within each family of at least two models. It is 1 if alignment rises
    strictly within every family. It is None without families, if no family has three models, or if values or
    alignments are equal within every family.

    Raises InputError on fewer than 5 models with a value and a score, or if all values or all alignments are equal.
    """
    S, N = pair_scores(scores, names, "scores"), len(names)
    check_length(values, N, "values")
    numbers = np.array(values, dtype=np.float64)
    others = np.ones(N, dtype=bool) if against is None else mask_of_names(against, names)
    alignment = row_means(S[:, others])
    candidates = np.ones(N, dtype=bool) if against is None else ~others
    valued = candidates & np.isfinite(numbers)
    points = np.flatnonzero(valued & np.isfinite(alignment))
    x, y = numbers[points], alignment[points]
    _check_points(x, y, column)
    random = np.random.default_rng(resampling.seed)
    orders = permute_models(resampling.permutations, len(x), random)
    correlation = _rank_correlation(x, y, orders, resampling.draws, random)
    lineage = [None] * N if families is None else list(families)
    check_length(lineage, N, "families")
    within = _within_lineage(x, y, [lineage[i] for i in points], resampling.permutations, random)
    return Trend(
        {
            "column": column,
            "metric": metric,
            "models": [
                {"name": names[i], "family": lineage[i], "value": float(numbers[i]), "alignment": float(alignment[i])}
                for i in points.tolist()
            ],
            **correlation,
            "n_models": len(points),
            "left_out": {"no value": int((candidates & ~valued).sum()), "no score": int(valued.sum()) - len(points)},
            "null_band": _null_band(x, y, orders),
            "against": None if against is None else list(against),
            "within_lineage": within,
            "verdict": _verdict(column, correlation, len(points), within),
        }
    )


def _check_points(x: np.ndarray, y: np.ndarray, column: str) -> None:
    if len(x) < LEAST_MODELS:
        raise InputError(
            f"A trend with {column!r} requires at least {LEAST_MODELS} models that have a score and a value of "
            f"{column!r}; got {len(x)}. Add models, or values of {column!r}."
        )
    for subject, numbers in ((f"The values of {column!r}", x), ("The alignment scores", y)):
        if np.ptp(numbers) <= ROUNDING * np.abs(numbers).max():
            raise InputError(f"{subject} must differ between models; all are {numbers.max():g}.")


def _rank_correlation(
    x: np.ndarray, y: np.ndarray, orders: np.ndarray, draws: int, random: np.random.Generator
) -> dict[str, Any]:
    """Compute Spearman's correlation, its interval over models, and its two-sided p-value from permuted `orders`."""
    ranks = rankdata(x), rankdata(y)
    rho = float(correlations(*ranks))
    p = share_as_large(np.abs(correlations(ranks[0][orders], ranks[1])), abs(rho))
    # Alignments are computed once, from all models. A model that is drawn twice contributes its point twice and is not
    # scored with its copy, so the interval is for newly drawn models that are scored with the same other models.
    drawn = random.integers(len(x), size=(draws, len(x)))
    resampled = correlations(rankdata(x[drawn], axis=1), rankdata(y[drawn], axis=1))
    return {"rank_correlation": rho, "interval": interval(resampled, n=len(x), bounds=(-1.0, 1.0)), "p": p}


def _null_band(x: np.ndarray, y: np.ndarray, orders: np.ndarray) -> dict[str, Any]:
    """Fit straight lines to the points with permuted values, and to the points themselves, on a grid of values."""
    log = bool(x.min() > 0 and x.max() >= 10 * x.min())
    grid = (np.geomspace if log else np.linspace)(x.min(), x.max(), GRID)
    places, grid_places = (np.log(x), np.log(grid)) if log else (x, grid)
    centred = places - places.mean()
    slopes = centred[np.vstack([np.arange(len(x)), orders])] @ (y - y.mean()) / (centred @ centred)
    lines = y.mean() + slopes[:, None] * (grid_places - places.mean())
    low, high = np.quantile(lines[1:], (LEVEL / 2, 1 - LEVEL / 2), axis=0)
    return {
        "value": grid.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "line": lines[0].tolist(),
        "scale": "log" if log else "linear",
    }


def _within_lineage(
    x: np.ndarray, y: np.ndarray, families: list, permutations: int, random: np.random.Generator
) -> dict[str, Any] | None:
    """Compute the correlation of ranks within families, permuted within families; None as described in `trend`."""
    sizes = {name: count for name, count in Counter(families).items() if name is not None and count > 1}
    if max(sizes.values(), default=0) < 3:
        return None
    groups = [np.array([f == name for f in families]) for name in sizes]
    x_ranks, y_ranks = (
        np.concatenate([rankdata(numbers[group]) - (group.sum() + 1) / 2 for group in groups]) for numbers in (x, y)
    )
    if not x_ranks.any() or not y_ranks.any():
        return None
    family = np.repeat(np.arange(len(groups)), list(sizes.values()))
    orders = np.argsort(family + random.random((permutations, len(x_ranks))), axis=1)  # shuffled within each family
    rho = float(correlations(x_ranks, y_ranks))
    p = share_as_large(np.abs(correlations(x_ranks[orders], y_ranks)), abs(rho))
    return {"rank_correlation": rho, "p": p, "n_models": len(x_ranks), "families": sizes}


def _verdict(column: str, correlation: dict[str, Any], n_models: int, within: dict[str, Any] | None) -> str:
    rho, (low, high), p = (correlation[key] for key in ("rank_correlation", "interval", "p"))
    direction = _direction(rho, p)
    rises = f"alignment {direction} with {column}"
    start = rises if direction else f"no significant trend of alignment with {column}"
    figures = f"(rho = {rho:.2f}, 95 % interval [{', '.join(ends(low, high, 2))}], p = {p:.2g}"
    end = ""
    if within:
        inside = _direction(within["rank_correlation"], within["p"])
        end = f"; within families alignment {inside} " if inside else "; within families there is no significant trend "
        end += f"(rho = {within['rank_correlation']:.2f}, p = {within['p']:.2g}, {within['n_models']} models)"
    return f"{start} {figures}, {n_models} models){end}."


def _direction(rho: float, p: float) -> str | None:
    return None if p > LEVEL else "rises" if rho > 0 else "falls"
