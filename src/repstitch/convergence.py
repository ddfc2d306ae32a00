"""Do models converge? Whether alignment rises with size, whether lineage explains it, and what one space lacks.

Three questions about the Platonic Representation Hypothesis (Huh et al. 2024), each answered with its null beside it,
as plain JSON types with a `verdict` of one sentence. "No convergence found" is an answer as good as any.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import torch
from scipy.linalg import orth
from scipy.stats import rankdata
from torch import Tensor

from repstitch.errors import InputError
from repstitch.fit.closed_form import Decomposition, decompose
from repstitch.fit.spectrum import shared_spectrum
from repstitch.metrics.resample import DRAWS, interval, resampled_means
from repstitch.moments import moments

LEVEL = 0.05
LEAST_MODELS = 5  # for a trend: four points have 24 orders, so that even a perfect one is hardly evidence
LEAST_FACTOR_MODELS = 4
LEAST_ROWS, LEAST_FOLD = 20, 4
GRID = 50
CELLS = 4_000_000  # of the permuted scores held at once
PENALTIES = np.logspace(-6, 4, 41)
LEAST_LEFT = 0.05  # of the degrees of freedom: with fewer, what is left to judge a penalty by is rounding
PRINCIPAL = 0.95
ROUNDING = 1e-9


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
    S = _pair_scores(scores, names, "scores")
    N = len(names)
    _check_length(values, N, "values")
    _check_draws(permutations=permutations, draws=draws)
    numbers = np.array(values, dtype=np.float64)
    others = np.ones(N, dtype=bool) if against is None else _named(against, names)
    alignment = _row_means(S[:, others])
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
    rho = float(_correlations(*ranks))
    orders = _orders(permutations, len(x), random)
    p = _share_as_large(np.abs(_correlations(ranks[0][orders], ranks[1])), abs(rho))
    # Alignments are taken once, from all models: a model that is drawn twice brings its point along twice, and is never
    # scored with its copy. So the interval is for models drawn anew and judged against these same others.
    drawn = random.integers(len(x), size=(draws, len(x)))
    resampled = _correlations(rankdata(x[drawn], axis=1), rankdata(y[drawn], axis=1))
    lineage = [None] * N if families is None else list(families)
    _check_length(lineage, N, "families")
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
    rho = float(_correlations(a, b))
    p = _share_as_large(np.abs(_correlations(a[orders], b)), abs(rho))
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


def control(
    scores,
    factors: Mapping[str, Sequence[str | None]],
    names: Sequence[str],
    *,
    metric: str,
    null=None,
    q=None,
    permutations: int = 9999,
    seed: int = 0,
) -> dict:
    """Is agreement explained by shared lineage, as in a monoculture?

    `scores` is (N, N) as for `trend`; `factors` holds one label a model (None: unknown) for family, objective, training
    data and the like. For each factor: mean score `within` and `between` groups; `permanova` on the distance 1 − score
    (Anderson 2001, "A New Method for Non-parametric Multivariate Analysis of Variance"; `F` is None where groups agree
    perfectly inside, `least_p` is the smallest p that so many models can give); `mantel`, the correlation of score with
    sharing the label (Mantel 1967), and `partial_mantel`, the same after both were regressed on sharing each other
    factor (Smouse, Long and Sokal 1986; residuals permuted as in Legendre 2000), which is 0 with p 1 where those
    determine the factor and None where there are none. p-values are one-sided (more alike within), from models
    permuted, add-one. PERMANOVA also answers to groups of unequal spread where their sizes differ.

    Models with unknown labels are left out of that factor (`unknown`). Where scores are missing, models are left out of
    everything, those that miss most first, until each has a score with each (`left_out`). A factor that cannot be
    judged (one group, each model its own, fewer than 4 models) stands in `cannot_be_judged` with the reason; InputError
    when that is all of them.

    `between_above_null` asks whether models that share no known label in any judged factor still agree beyond chance:
    their mean score less the mean of `null` (N, N) with a 95 % interval over models, and the share of their pairs with
    `q` (N, N) at most .05; `above` where the interval lies above 0 and more than a twentieth of the pairs pass, as far
    as each was given. None where neither was given, or no such pair exists. The verdict takes a factor to explain
    agreement where PERMANOVA's p is at most .05 (not corrected for the number of factors, which often overlap) and
    scores are higher within than between.
    """
    S = _pair_scores(scores, names, "scores")
    if not factors:
        raise InputError("`factors` must hold at least one factor, such as family; got none.")
    for factor, labels in factors.items():
        _check_length(labels, len(names), f"factors[{factor!r}]")
    _check_draws(permutations=permutations)
    kept = _complete(S)
    S = S[np.ix_(kept, kept)]
    labelled = {factor: _codes([labels[i] for i in kept]) for factor, labels in factors.items()}
    reasons = {factor: _unfit(codes) for factor, codes in labelled.items()}
    judged = {factor: codes for factor, codes in labelled.items() if reasons[factor] is None}
    unfit = {factor: reason for factor, reason in reasons.items() if reason is not None}
    if not judged:
        raise InputError(
            "`factors` must hold one with at least two groups, one of them of two models or more; "
            + "; ".join(f"{factor}: {reason}" for factor, reason in unfit.items())
            + ". Label more models."
        )
    found = {}
    for factor, codes in judged.items():
        controls = {name: others for name, others in judged.items() if name != factor}
        counts = Counter(str(factors[factor][i]) for i in kept if factors[factor][i] is not None)
        found[factor] = (
            _grouped(S, codes, permutations, seed)
            | {"partial_mantel": _partial_mantel(S, codes, controls, permutations, seed)}
            | {"groups": dict(counts), "n_models": int((codes >= 0).sum()), "unknown": int((codes < 0).sum())}
        )
    apart = np.logical_and.reduce([_pairs_apart(codes) for codes in judged.values()])
    across = None
    if null is not None or q is not None:
        chance = None if null is None else _pair_scores(null, names, "null")[np.ix_(kept, kept)]
        rates = None if q is None else _pair_scores(q, names, "q", np.max)[np.ix_(kept, kept)]
        across = _between_above_null(S, apart, chance, rates, seed)
    result = {
        "metric": metric,
        "n_models": len(kept),
        "left_out": [names[i] for i in range(len(names)) if i not in kept],
        "factors": found,
        "cannot_be_judged": unfit,
        "between_above_null": across,
    }
    return result | {"verdict": _control_verdict(result, apart.any())}


def _codes(labels: list) -> np.ndarray:
    """Group numbers (N,), −1 where the label is unknown."""
    order = {label: i for i, label in enumerate(dict.fromkeys(x for x in labels if x is not None))}
    return np.array([order.get(label, -1) for label in labels])


def _unfit(codes: np.ndarray) -> str | None:
    """Why a factor cannot be judged, if so."""
    sizes = np.bincount(codes[codes >= 0])
    if sizes.sum() < LEAST_FACTOR_MODELS:
        return f"only {sizes.sum()} models have a label, {LEAST_FACTOR_MODELS} are needed"
    if len(sizes) == 1:
        return "all models are of one group"
    return "every model is its own group" if sizes.max() == 1 else None


def _grouped(S: np.ndarray, codes: np.ndarray, permutations: int, seed: int) -> dict:
    """Means within and between groups, PERMANOVA and Mantel, from one set of permutations of the labelled models."""
    known = codes >= 0
    S, codes = S[np.ix_(known, known)], codes[known]
    n, sizes = len(codes), np.bincount(codes)
    i, j = np.triu_indices(n, 1)
    same = codes[i] == codes[j]
    score = S[i, j]
    share = np.where(same, 1 / sizes[codes[i]], 0.0)
    lean = same - same.mean()
    inside, total = ((1 - score) ** 2) @ share, ((1 - score) ** 2).sum() / n
    spread = np.linalg.norm(lean) * np.linalg.norm(score - score.mean())
    inside_draws, lean_draws = [], []
    for permuted in _permuted_pairs(S, permutations, seed):
        inside_draws.append(((1 - permuted) ** 2) @ share)
        lean_draws.append(permuted @ lean)
    perfect = inside <= ROUNDING * total
    F = None if perfect else float((total - inside) / (len(sizes) - 1) / (inside / (n - len(sizes))))
    # The total does not depend on the order of models, so F is as large as observed where the sum inside is as small.
    p = _share_as_large(-np.concatenate(inside_draws), -inside)
    within, between = float(score[same].mean()), float(score[~same].mean())
    return {
        "within": within,
        "between": between,
        "difference": within - between,
        "permanova": {
            "F": F,
            "r2": float(1 - inside / total) if total else 0.0,
            "p": p,
            "least_p": _least_p(sizes, permutations),
        },
        "mantel": {
            "r": float(score @ lean / spread) if spread > ROUNDING else 0.0,
            "p": _share_as_large(np.concatenate(lean_draws), score @ lean),
        },
    }


def _least_p(sizes: np.ndarray, permutations: int) -> float:
    """One in as many ways as there are to split the models into groups of these sizes."""
    ways = math.factorial(int(sizes.sum()))
    for factor in (*sizes, *Counter(sizes.tolist()).values()):
        ways //= math.factorial(int(factor))
    return max(1 / ways, 1 / (permutations + 1))


def _partial_mantel(
    S: np.ndarray, codes: np.ndarray, controls: dict[str, np.ndarray], permutations: int, seed: int
) -> dict | None:
    known = np.logical_and.reduce([c >= 0 for c in (codes, *controls.values())])
    if not controls or _unfit(codes[known]) is not None:
        return None
    S = S[np.ix_(known, known)]
    i, j = np.triu_indices(len(S), 1)
    same, *others = (c[known][i] == c[known][j] for c in (codes, *controls.values()))
    basis = orth(np.column_stack([np.ones(len(i)), *others]))
    without = lambda v: v - basis @ (basis.T @ v)  # noqa: E731
    score, lean = without(S[i, j]), without(same.astype(float))
    given = {"given": list(controls), "n_models": len(S)}
    left = min(np.linalg.norm(score) / max(np.linalg.norm(S[i, j]), ROUNDING), np.linalg.norm(lean))
    if left <= ROUNDING:
        return {"r": 0.0, "p": 1.0} | given
    lean /= np.linalg.norm(lean)
    residual = np.zeros_like(S)
    residual[i, j] = residual[j, i] = score
    r_draws = []
    for permuted in _permuted_pairs(residual, permutations, seed):
        # Permuted residuals are correlated with the controls again; `lean` is not, so only their length must be mended.
        rest = (permuted**2).sum(1) - ((permuted @ basis) ** 2).sum(1)
        r_draws.append(permuted @ lean / np.sqrt(np.maximum(rest, ROUNDING * (score @ score))))
    r = float(score @ lean / np.linalg.norm(score))
    return {"r": r, "p": _share_as_large(np.concatenate(r_draws), r)} | given


def _permuted_pairs(matrix: np.ndarray, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """The upper triangle (at once, pairs) of a symmetric matrix with its models permuted, in chunks."""
    i, j = np.triu_indices(len(matrix), 1)
    random = np.random.default_rng(seed)
    at_once = max(1, CELLS // len(i))
    for start in range(0, permutations, at_once):
        orders = _orders(min(at_once, permutations - start), len(matrix), random)
        yield matrix[orders[:, i], orders[:, j]]


def _pairs_apart(codes: np.ndarray) -> np.ndarray:
    """Which pairs of models (N, N) are known to be of different groups."""
    known = codes >= 0
    return (codes[:, None] != codes) & known[:, None] & known


def _between_above_null(S, apart, null: np.ndarray | None, q: np.ndarray | None, seed: int) -> dict | None:
    for given in (null, q):
        if given is not None:
            apart = apart & ~np.isnan(given)
    if not apart.any():
        return None
    found: dict = {"pairs": int(apart.sum()) // 2, "score": float(S[apart].mean())}
    above = []
    if null is not None:
        excess = np.where(apart, S - null, 0.0)
        random = np.random.default_rng(seed)
        drawn = random.multinomial(len(S), np.full(len(S), 1 / len(S)), size=DRAWS).astype(float)
        # A pair counts as often as both its models are drawn; a model and its copy are no pair.
        weights = ((drawn @ apart) * drawn).sum(1)
        means = ((drawn @ excess) * drawn).sum(1) / np.where(weights > 0, weights, np.nan)
        found |= {"null": float(null[apart].mean()), "excess": float(excess[apart].mean()), "interval": interval(means)}
        above.append(found["interval"][0] > 0)
    if q is not None:
        found["share"] = float((q[apart] <= LEVEL).mean())
        above.append(found["share"] > LEVEL)  # chance alone lets through less than that
    return found | {"above": all(above)}


def _control_verdict(result: dict, some_apart: bool) -> str:
    factors, across = result["factors"], result["between_above_null"]
    explain = [name for name, f in factors.items() if f["permanova"]["p"] <= LEVEL and f["difference"] > 0]
    figures = "; ".join(_factor_figures(name, factors[name]) for name in explain or factors)
    shared, verb = "shared " + " and ".join(explain), "explains" if len(explain) == 1 else "explain"
    nothing = "no effect of shared lineage on agreement was found"
    if not explain and all(f["permanova"]["least_p"] > LEVEL for f in factors.values()):
        nothing = f"{result['n_models']} models are too few to tell whether shared lineage explains agreement"
    if across is None:
        end = (
            "whether models of different lineage agree beyond chance was not tested"
            if some_apart
            else "no two models are known to differ in every factor, so agreement across lineages cannot be judged"
        )
        start = f"{shared} {verb} part of the agreement" if explain else nothing
        return f"{start} ({figures}); {end}."
    chance = f"mean score {across['score']:.3f}"
    if "null" in across:
        chance += f" against {across['null']:.3f} by chance"
    if "share" in across:
        chance += f", {across['share']:.0%} of {across['pairs']} pairs significant"
    if across["above"]:
        start = f"{shared} {verb} part of the agreement" if explain else nothing
        but = "but models of different lineage still" if explain else "and models of different lineage"
        return f"{start} ({figures}), {but} agree beyond chance ({chance})."
    apart = f"models of different lineage do not agree beyond chance ({chance})"
    if explain:
        return f"monoculture: {shared} {verb} what agreement there is ({figures}), and {apart}."
    return f"no convergence found: {apart}, and {nothing} ({figures})."


def _factor_figures(name: str, factor: dict) -> str:
    permanova, partial = factor["permanova"], factor["partial_mantel"]
    told = f"{name} {factor['within']:.3f} within against {factor['between']:.3f} between, R² = {permanova['r2']:.2f}, "
    told += f"p = {permanova['p']:.2g}"
    return told + (f", given the rest r = {partial['r']:.2f}, p = {partial['p']:.2g}" if partial else "")


def asymmetry(X, Y, *, source: str, target: str, folds: int = 5, permutations: int = 20, seed: int = 0) -> dict:
    """How much of each space the other predicts linearly, and what is left over.

    X is (n, d_source), Y is (n, d_target), rows matched, NumPy or torch, taken as they are. `r2_forward` is the R² of Y
    predicted from X by ridge, 1 − Σ‖y − ŷ‖² / Σ‖y − mean‖², each row by a map fitted without its fold and against the
    mean of the rows that map was fitted to; `r2_backward` of X from Y. At most 1; about 0 for unrelated spaces, below 0
    where the map does harm. Rotation, translation and scale do not matter; directions count as much as they vary. The
    penalty is chosen on the training folds by generalised cross-validation (Golub, Heath and Wahba 1979). Intervals
    resample rows with predictions fixed, differences paired. The nulls do it all again, penalty included, with
    the rows to be predicted shuffled inside folds; `high` is their 95 % point.

    `left_over` is what the other side lacks: `variance`, the share 1 − R² (at most 1) of the space's variance that a
    linear map of the other does not give at this number of rows; `directions`, how many principal directions hold 95 %
    of the variance, and `predicted`, how many of them are predicted with an R² above 0 and above the largest that
    shuffled rows give any of them, at the same penalties, in 19 of 20 draws. `shared` is
    `fit.spectrum.shared_spectrum` on the first fold. Where a space has as many dimensions as there are training rows,
    the R² of the map from it is a lower bound, and the verdict says so. O(folds · (d³ + permutations · n d²)) time.

    Raises InputError on rows that do not match, fewer than 20 rows or 4 a fold, NaN or Inf, or a constant space.
    """
    x, y = _rows(X), _rows(Y)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(f"`X` and `Y` must be matrices of as many rows; got {tuple(x.shape)} and {tuple(y.shape)}.")
    if folds < 2:
        raise InputError(f"`folds` must be at least 2; got {folds}.")
    n, least = len(x), max(LEAST_ROWS, LEAST_FOLD * folds)
    if n < least:
        raise InputError(f"`X` and `Y` must have at least {least} rows for {folds} folds; got {n}. Give more rows.")
    _check_draws(permutations=permutations)
    random = torch.Generator().manual_seed(seed)
    parts = list(torch.randperm(n, generator=random).tensor_split(folds))
    fitted = _training(x, y, parts)
    x_folds = [_fold(x, rows, d.moments.x_mean, d.x_values, d.x_vectors) for rows, d in zip(parts, fitted, strict=True)]
    y_folds = [_fold(y, rows, d.moments.y_mean, d.y_values, d.y_vectors) for rows, d in zip(parts, fitted, strict=True)]
    *forward, x_weights = _out_of_fold(x_folds, y)
    *backward, y_weights = _out_of_fold(y_folds, x)
    errors = np.column_stack([*_errors(*forward), *_errors(*backward)])
    ahead, back = _r2(errors.sum(0))
    ahead_draws, back_draws = _r2(resampled_means(errors, seed=seed))
    shuffled = []
    for _ in range(permutations):
        order = _shuffled(x_folds, random)
        draws = _errors(*_out_of_fold(x_folds, y[order])[:2]) + _errors(*_out_of_fold(y_folds, x[order])[:2])
        shuffled.append(_r2(np.column_stack(draws).sum(0)))
    null_ahead, null_back = np.transpose(shuffled)
    test = parts[0]
    found = {
        "n": n,
        "r2_forward": float(ahead),
        "r2_backward": float(back),
        "r2_forward_interval": interval(ahead_draws),
        "r2_backward_interval": interval(back_draws),
        "difference": float(ahead - back),
        "difference_interval": interval(ahead_draws - back_draws),
        "null_forward": _null_of(null_ahead),
        "null_backward": _null_of(null_back),
        "shared": shared_spectrum(fitted[0], x[test], y[test], seed=seed),
        "left_over": {
            "target": _left_over(ahead, x_folds, x_weights, y, permutations, random),
            "source": _left_over(back, y_folds, y_weights, x, permutations, random),
        },
    }
    fewest = n - max(map(len, parts))
    wide = [name for name, side in ((source, x), (target, y)) if side.shape[1] >= fewest]
    return found | {"verdict": _asymmetry_verdict(found, source, target, fewest, wide)}


@dataclass(frozen=True)
class Fold:
    """One space in one fold: all rows, less the mean of the training rows, along their covariance's eigenvectors.

    `held` and `rest` number the rows that are predicted and those that a map is fitted to.
    """

    held: Tensor
    rest: Tensor
    along: Tensor
    values: Tensor


def _fold(rows: Tensor, held: Tensor, mean: Tensor, values: Tensor, vectors: Tensor) -> Fold:
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[held] = False
    return Fold(held, kept.nonzero()[:, 0], (rows - mean.float()) @ vectors.float(), values)


def _training(x: Tensor, y: Tensor, parts: list[Tensor]) -> list[Decomposition]:
    """For each fold, the decomposition of all the others."""
    each = [moments((x[rows], y[rows])) for rows in parts]
    return [decompose(reduce(add, each[:i] + each[i + 1 :])) for i in range(len(each))]


def _out_of_fold(
    folds: list[Fold], y: Tensor, weights: list[Tensor] | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Rows of y (n, d) and their predictions by ridge, each less the mean of the rows its map was fitted to.

    Third come the `weights` of each fold's eigenvectors, which are chosen where they are not given.
    """
    truth, guess, used = torch.empty_like(y), torch.empty_like(y), []
    for i, fold in enumerate(folds):
        centred = y - y[fold.rest].mean(0)
        known = centred[fold.rest]
        cross = fold.along[fold.rest].T @ known / len(known)
        used.append(_ridge_weights(fold.values, cross, known) if weights is None else weights[i])
        guess[fold.held] = (fold.along[fold.held] * used[-1]) @ cross
        truth[fold.held] = centred[fold.held]
    return truth, guess, used


def _ridge_weights(values: Tensor, cross: Tensor, known: Tensor) -> Tensor:
    """1 / (λ + penalty) for each eigenvalue λ, at the penalty of least generalised cross-validation error.

    `cross` is the covariance of the eigenvectors' coordinates with the centred training rows `known`. With qᵢ the
    squared length of its row i, the mean squared residual is spread − Σ qᵢ (2wᵢ − λᵢ wᵢ²), so each penalty costs no
    more than a sum; there are 1 + Σ λᵢ wᵢ degrees of freedom in the fit.
    """
    n, spread, strength = len(known), float(known.square().sum()) / len(known), cross.double().square().sum(1)
    penalties = torch.from_numpy(PENALTIES)[:, None] * values.mean()
    weights = torch.where(values > 0, 1 / (values + penalties), 0.0)  # nothing varies there, so nothing to weigh
    left = 1 - (1 + (values * weights).sum(1)) / n
    residual = spread - ((2 * weights - values * weights**2) * strength).sum(1)
    error = torch.where(left >= LEAST_LEFT, residual.clamp(min=0) / left**2, torch.inf)
    return weights[int(error.argmin())].float()


def _errors(truth: Tensor, guess: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Squared error (n,) and squared distance from the mean (n,) of each row."""
    return (truth - guess).square().sum(1).double().numpy(), truth.square().sum(1).double().numpy()


def _r2(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 − error / spread both ways, of the four sums in the last axis."""
    return 1 - sums[..., 0] / sums[..., 1], 1 - sums[..., 2] / sums[..., 3]


def _shuffled(folds: list[Fold], random: torch.Generator) -> Tensor:
    """A random order (n,) that leaves each row in its fold: so each side's means and covariances stay as they are."""
    order = torch.empty(sum(len(fold.held) for fold in folds), dtype=torch.long)
    for fold in folds:
        order[fold.held] = fold.held[torch.randperm(len(fold.held), generator=random)]
    return order


def _null_of(draws: np.ndarray) -> dict:
    return {"mean": float(draws.mean()), "high": _edge(draws)}


def _edge(draws: np.ndarray) -> float:
    """The 95 % point of a null: the order statistic that an add-one p of .05 belongs to."""
    return float(np.sort(draws)[min(len(draws), math.ceil((1 - LEVEL) * (len(draws) + 1))) - 1])


def _left_over(r2, folds: list[Fold], weights: list[Tensor], rows: Tensor, permutations: int, random) -> dict:
    """The variance of `rows` (n, d) that was not predicted, and how many of their principal directions were."""
    values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0).reshape(rows.shape[1], -1).double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = 1 + int((values.cumsum(0) < PRINCIPAL * values.sum()).sum())
    along = rows @ vectors[:, :kept].float()

    def direction_r2(along: Tensor) -> Tensor:
        truth, guess, _ = _out_of_fold(folds, along, weights)
        return 1 - (truth - guess).square().sum(0) / truth.square().sum(0)

    # At the penalties that were chosen: what a direction that is not predicted looks like beside others that are.
    largest = np.array([float(direction_r2(along[_shuffled(folds, random)]).max()) for _ in range(permutations)])
    return {
        "variance": float(np.clip(1 - r2, 0, 1)),
        "directions": kept,
        "predicted": int((direction_r2(along) > max(0.0, _edge(largest))).sum()),
    }


def _asymmetry_verdict(found: dict, source: str, target: str, rows: int, wide: list[str]) -> str:
    ahead, back = found["r2_forward"], found["r2_backward"]
    low, high = found["difference_interval"]
    beats = [
        found[f"r2_{way}"] > found[f"null_{way}"]["high"] and found[f"r2_{way}_interval"][0] > 0
        for way in ("forward", "backward")
    ]
    r2 = f"R² {source} → {target} is {ahead:.3f} and back {back:.3f}"
    note = ""
    if wide:
        few = f"fitted to {rows} rows, no more than dimensions"
        note = f" ({few}, so what {' and '.join(wide)} predicts is a lower bound)"
    if not any(beats):
        return f"neither predicts the other: {r2}, as by chance{note}."
    if low > 0 or high < 0:
        more, less = (source, target) if low > 0 else (target, source)
        left = found["left_over"]["source" if low > 0 else "target"]["variance"]
        return (
            f"{more} predicts {less} better than the reverse: R² {max(ahead, back):.3f} against {min(ahead, back):.3f} "
            f"(difference {abs(ahead - back):.3f}, 95 % interval [{min(abs(low), abs(high)):.3f}, "
            f"{max(abs(low), abs(high)):.3f}]); {less} lacks {left:.0%} of the variance of {more}{note}."
        )
    if not all(beats):
        more, less = (source, target) if beats[0] else (target, source)
        return (
            f"only {more} predicts {less} beyond chance: {r2}, but the difference could be chance "
            f"(95 % interval [{low:.3f}, {high:.3f}]){note}."
        )
    return (
        f"each predicts the other about equally: {r2} "
        f"(difference {ahead - back:.3f}, 95 % interval [{low:.3f}, {high:.3f}]){note}."
    )


def _rows(rows) -> Tensor:
    if isinstance(rows, Tensor):
        return rows.float().cpu()
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))


def _pair_scores(scores, names: Sequence[str], argument: str, both=np.mean) -> np.ndarray:
    """A symmetric (N, N) float64 matrix with NaN on the diagonal: the two directions as one."""
    S = np.array(scores, dtype=np.float64)
    N = len(names)
    if S.shape != (N, N):
        raise InputError(f"`{argument}` must be ({N}, {N}), one row a name; got {S.shape}.")
    if len(set(names)) < N:
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise InputError(f"`names` must differ from one another; {twice!r} is there twice.")
    if np.isinf(S).any():
        raise InputError(f"`{argument}` must be finite, or NaN where a pair was not measured; it holds Inf.")
    np.fill_diagonal(S, np.nan)
    other = np.where(np.isnan(S.T), S, S.T)
    own = np.where(np.isnan(S), S.T, S)
    return both([own, other], axis=0)


def _row_means(S: np.ndarray) -> np.ndarray:
    """Mean of what was measured in each row; NaN where nothing was."""
    counts = (~np.isnan(S)).sum(1)
    return np.nansum(S, axis=1) / np.where(counts > 0, counts, np.nan)


def _complete(S: np.ndarray) -> np.ndarray:
    """Positions of the models that are left when those with most scores missing have gone, until none is missing."""
    kept = np.arange(len(S))
    while True:
        missing = np.isnan(S[np.ix_(kept, kept)]).sum(1) - 1  # the diagonal is none
        if not len(kept) or not missing.any():
            break
        kept = np.delete(kept, missing.argmax())
    if len(kept) < LEAST_FACTOR_MODELS:
        raise InputError(
            f"`scores` must hold at least {LEAST_FACTOR_MODELS} models of which every pair was measured; "
            f"got {len(kept)} of {len(S)}. Measure the missing pairs."
        )
    return kept


def _named(wanted: Sequence[str], names: Sequence[str]) -> np.ndarray:
    unknown = [name for name in wanted if name not in names]
    if unknown or not len(wanted):
        raise InputError(f"`against` must name some of `names`; got {unknown[0] if unknown else 'none'!r}.")
    return np.array([name in wanted for name in names])


def _orders(draws: int, n: int, random: np.random.Generator) -> np.ndarray:
    """Random orders (draws, n) of n models."""
    return random.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; NaN where one side does not vary."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return (a * b).sum(-1) / np.where(size > 0, size, np.nan)


def _share_as_large(draws: np.ndarray, observed) -> float:
    """The add-one p-value; draws that differ from what was observed by rounding are as large."""
    return (1 + int((draws >= observed - ROUNDING * np.abs(draws).max()).sum())) / (len(draws) + 1)


def _check_length(given: Sequence, N: int, argument: str) -> None:
    if len(given) != N:
        raise InputError(f"`{argument}` must hold one entry a name ({N}); got {len(given)}.")


def _check_draws(**given: int) -> None:
    for argument, value in given.items():
        if value < 1:
            raise InputError(f"`{argument}` must be at least 1; got {value}.")
