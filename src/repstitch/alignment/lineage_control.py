"""The control for lineage: a test of whether shared lineage explains the agreement between models."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg import orth
from scipy.stats import t

from repstitch.alignment.hypothesis_results import Control
from repstitch.alignment.model_scores import (
    LEAST_FACTOR_MODELS,
    RESAMPLING,
    ROUNDING,
    Resampling,
    check_length,
    complete,
    pair_scores,
    permute_models,
    share_as_large,
)
from repstitch.errors import InputError
from repstitch.records import LEVEL
from repstitch.text import num

CELLS = 4_000_000  # the number of permuted scores in memory at a time


def control(
    scores: Any,
    factors: Mapping[str, Sequence[str | None]],
    names: Sequence[str],
    *,
    metric: str,
    null: Any = None,
    q: Any = None,
    resampling: Resampling = RESAMPLING,
) -> Control:
    """Test whether shared lineage explains the agreement between models.

    `scores` is (N, N), as for `trend`. `factors` has one label per model (None: unknown) for each factor, such as
    family, objective or training data. The result has, for each factor:

    - `within` and `between`: the mean score of pairs within and between groups;
    - `permanova` on the distance 1 − score (Anderson 2001, "A New Method for Non-parametric Multivariate Analysis of
      Variance"). `F` is None where models of the same group agree perfectly. `least_p` is the smallest p-value that
      these group sizes and this number of permutations allow. Where group sizes differ, a small p can also come from
      groups of unequal spread;
    - `mantel`: the correlation of the score with sharing the label (Mantel 1967);
    - `partial_mantel`: the same correlation after both were regressed on sharing the labels of all other factors
      (Smouse, Long and Sokal 1986; residuals permuted as in Legendre 2000). It is 0 with p = 1 where the other factors
      determine this one, and None where there is no other factor.

    All p-values are one-sided (more similar within groups) and add-one, from permutations of the models.

    Models without a label are left out of that factor; `unknown` counts them. Where scores are missing, models are left
    out of everything, those with most missing scores first, until every pair has a score (`left_out`). A factor with
    one group, with one model per group or with fewer than 4 models cannot be tested and is listed in
    `cannot_be_judged` with the reason. Raises InputError if no factor can be tested.

    `between_above_null` states whether models that share no label in any tested factor agree beyond chance. It has the
    `excess` of their mean score over the mean of `null` (N, N) with a 95 % interval over models (jackknife, Student's
    t; Miller 1974, "The Jackknife: A Review"; None where all pairs share one model), and the `share` of these pairs
    with `q` (N, N) of at most .05. `above` is true if the interval lies above 0 and the share is larger than .05; a
    criterion whose matrix or interval is missing is ignored. `between_above_null` is None if both criteria are missing,
    or if there is no such pair. Pairs with an unknown label are not counted.

    The verdict states that a factor explains agreement if PERMANOVA's p is at most .05 and scores are higher within
    groups than between them. This p is not corrected for the number of factors, which often overlap. It is called a
    monoculture if models that share no label also do not agree beyond chance.
    """
    S = pair_scores(scores, names, "scores")
    if not factors:
        raise InputError("`factors` must contain at least one factor, such as family; got none.")
    for factor, labels in factors.items():
        check_length(labels, len(names), f"factors[{factor!r}]")
    kept = complete(S)
    S = S[np.ix_(kept, kept)]
    labelled = {factor: _codes([labels[i] for i in kept]) for factor, labels in factors.items()}
    judged, unfit = _split_by_fitness(labelled)
    effects = {}
    for factor, codes in judged.items():
        controls = {name: others for name, others in judged.items() if name != factor}
        counts = Counter(str(factors[factor][i]) for i in kept if factors[factor][i] is not None)
        effects[factor] = (
            _grouped(S, codes, resampling)
            | {"partial_mantel": _partial_mantel(S, codes, controls, resampling)}
            | {"groups": dict(counts), "n_models": int((codes >= 0).sum()), "unknown": int((codes < 0).sum())}
        )
    apart = np.logical_and.reduce([_pairs_apart(codes) for codes in judged.values()])
    across = None
    if null is not None or q is not None:
        chance = None if null is None else pair_scores(null, names, "null")[np.ix_(kept, kept)]
        rates = None if q is None else pair_scores(q, names, "q", np.max)[np.ix_(kept, kept)]
        across = _between_above_null(S, apart, chance, rates)
    result = {
        "metric": metric,
        "n_models": len(kept),
        "left_out": [names[i] for i in range(len(names)) if i not in kept],
        "factors": effects,
        "cannot_be_judged": unfit,
        "between_above_null": across,
    }
    return Control(result | {"verdict": _verdict(result, apart.any())})


def _split_by_fitness(labelled: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the factors that can be tested, and the others with the reason; InputError if no factor can be tested."""
    reasons = {factor: _unfit(codes) for factor, codes in labelled.items()}
    judged = {factor: codes for factor, codes in labelled.items() if reasons[factor] is None}
    unfit = {factor: reason for factor, reason in reasons.items() if reason is not None}
    if not judged:
        raise InputError(
            "The control for lineage requires labels that divide the models into at least two groups, one of them with "
            "at least two models; got "
            + "; ".join(f"{factor}: {reason}" for factor, reason in unfit.items())
            + ". Add labels for more models."
        )
    return judged, unfit


def _codes(labels: list) -> np.ndarray:
    """Return group numbers (N,), −1 where the label is unknown."""
    order = {label: i for i, label in enumerate(dict.fromkeys(x for x in labels if x is not None))}
    return np.array([order.get(label, -1) for label in labels])


def _unfit(codes: np.ndarray) -> str | None:
    """Return the reason why a factor cannot be tested, or None if it can."""
    sizes = np.bincount(codes[codes >= 0])
    if sizes.sum() < LEAST_FACTOR_MODELS:
        return f"only {sizes.sum()} models have a label, and at least {LEAST_FACTOR_MODELS} must have one"
    if len(sizes) == 1:
        return "all models belong to one group"
    return "every model has a different label" if sizes.max() == 1 else None


def _grouped(S: np.ndarray, codes: np.ndarray, resampling: Resampling) -> dict[str, Any]:
    """Compute means within and between groups, PERMANOVA and Mantel; both tests use the same permutations."""
    labelled = codes >= 0
    S, codes = S[np.ix_(labelled, labelled)], codes[labelled]
    n, sizes = len(codes), np.bincount(codes)
    i, j = np.triu_indices(n, 1)
    same = codes[i] == codes[j]
    score = S[i, j]
    share = np.where(same, 1 / sizes[codes[i]], 0.0)
    lean = same - same.mean()
    inside, total = ((1 - score) ** 2) @ share, ((1 - score) ** 2).sum() / n
    spread = np.linalg.norm(lean) * np.linalg.norm(score - score.mean())
    inside_draws, lean_draws = [], []
    for permuted in _permuted_pairs(S, resampling):
        inside_draws.append(((1 - permuted) ** 2) @ share)
        lean_draws.append(permuted @ lean)
    perfect = inside <= ROUNDING * total
    F = None if perfect else float((total - inside) / (len(sizes) - 1) / (inside / (n - len(sizes))))
    # The total does not depend on the order of models, so F is at least as large as observed exactly where the sum
    # inside groups is at most as large.
    p = share_as_large(-np.concatenate(inside_draws), -inside)
    within, between = float(score[same].mean()), float(score[~same].mean())
    return {
        "within": within,
        "between": between,
        "difference": within - between,
        "permanova": {
            "F": F,
            "r2": float(1 - inside / total) if total else 0.0,
            "p": p,
            "least_p": _least_p(sizes, resampling.permutations),
        },
        "mantel": {
            "r": float(score @ lean / spread) if spread > ROUNDING else 0.0,
            "p": share_as_large(np.concatenate(lean_draws), score @ lean),
        },
    }


def _least_p(sizes: np.ndarray, permutations: int) -> float:
    """Return the smallest p-value that these group sizes and this number of permutations allow."""
    ways = math.factorial(int(sizes.sum()))
    for factor in (*sizes, *Counter(sizes.tolist()).values()):
        ways //= math.factorial(int(factor))
    return max(1 / ways, 1 / (permutations + 1))


def _partial_mantel(
    S: np.ndarray, codes: np.ndarray, controls: dict[str, np.ndarray], resampling: Resampling
) -> dict[str, Any] | None:
    """Correlate score and shared label after regressing both on sharing the labels of the controls.

    Returns None without controls, or if the models that have all labels do not allow the test.
    """
    labelled = np.logical_and.reduce([c >= 0 for c in (codes, *controls.values())])
    if not controls or _unfit(codes[labelled]) is not None:
        return None
    S = S[np.ix_(labelled, labelled)]
    i, j = np.triu_indices(len(S), 1)
    same, *others = (c[labelled][i] == c[labelled][j] for c in (codes, *controls.values()))
    basis = orth(np.column_stack([np.ones(len(i)), *others]))
    score, lean = _residual(S[i, j], basis), _residual(same.astype(float), basis)
    conditions = {"given": list(controls), "n_models": len(S)}
    left = min(np.linalg.norm(score) / max(np.linalg.norm(S[i, j]), ROUNDING), np.linalg.norm(lean))
    if left <= ROUNDING:
        return {"r": 0.0, "p": 1.0} | conditions
    lean /= np.linalg.norm(lean)
    residual = np.zeros_like(S)
    residual[i, j] = residual[j, i] = score
    r_draws = []
    for permuted in _permuted_pairs(residual, resampling):
        # Permuted residuals correlate with the controls again. `lean` does not, so only the length of the residuals
        # needs a correction.
        rest = (permuted**2).sum(1) - ((permuted @ basis) ** 2).sum(1)
        r_draws.append(permuted @ lean / np.sqrt(np.maximum(rest, ROUNDING * (score @ score))))
    r = float(score @ lean / np.linalg.norm(score))
    return {"r": r, "p": share_as_large(np.concatenate(r_draws), r)} | conditions


def _residual(values: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return the residuals of a regression of the values on the columns of an orthonormal basis."""
    return values - basis @ (basis.T @ values)


def _permuted_pairs(matrix: np.ndarray, resampling: Resampling) -> Iterator[np.ndarray]:
    """Yield the upper triangles (permutations, pairs) of a symmetric matrix with its models permuted, in chunks."""
    i, j = np.triu_indices(len(matrix), 1)
    random = np.random.default_rng(resampling.seed)
    at_once = max(1, CELLS // len(i))
    for start in range(0, resampling.permutations, at_once):
        orders = permute_models(min(at_once, resampling.permutations - start), len(matrix), random)
        yield matrix[orders[:, i], orders[:, j]]


def _pairs_apart(codes: np.ndarray) -> np.ndarray:
    """Return a mask (N, N) of the pairs of models whose labels are known and differ."""
    labelled = codes >= 0
    return (codes[:, None] != codes) & labelled[:, None] & labelled


def _between_above_null(
    S: np.ndarray, apart: np.ndarray, null: np.ndarray | None, q: np.ndarray | None
) -> dict[str, Any] | None:
    """Summarise whether the pairs in the mask `apart` (N, N) agree beyond chance; None if this cannot be tested."""
    for matrix in (null, q):
        if matrix is not None:
            apart = apart & ~np.isnan(matrix)
    if not apart.any():
        return None
    summary: dict[str, Any] = {"pairs": int(apart.sum()) // 2, "score": float(S[apart].mean())}
    above = []
    if null is not None:
        excess = np.where(apart, S - null, 0.0)
        summary |= {"null": float(null[apart].mean()), "excess": float(excess[apart].mean())}
        summary["interval"] = _over_models(excess, apart)
        if summary["interval"] is not None:
            above.append(summary["interval"][0] > 0)
    if q is not None:
        summary["share"] = float((q[apart] <= LEVEL).mean())
        above.append(summary["share"] > LEVEL)  # by chance alone, the expected share is smaller
    return summary | {"above": all(above)} if above else None


def _over_models(values: np.ndarray, counted: np.ndarray) -> list[float] | None:
    """Return a 95 % interval over models for the mean of the counted pairs (N, N); None if one model is in all pairs.

    This is a jackknife, because resampling a few models with replacement gives too narrow an interval.
    """
    in_pairs = counted.any(1)
    values, counted = values[np.ix_(in_pairs, in_pairs)], counted[np.ix_(in_pairs, in_pairs)]
    n, pairs = len(values), counted.sum()
    rest = pairs - 2 * counted.sum(1)
    if not rest.all():
        return None
    mean, without = values.sum() / pairs, (values.sum() - 2 * values.sum(1)) / rest
    # If a few models are in most pairs, the estimate of the variance depends on these few, so it has fewer degrees of
    # freedom (Satterthwaite's approximation).
    weight = counted.sum(1, dtype=float) ** 2
    freedom = min(n - 1, weight.sum() ** 2 / (weight**2).sum())
    half = float(t.ppf(1 - LEVEL / 2, freedom) * np.sqrt((n - 1) * without.var()))
    return [float(mean) - half, float(mean) + half]


def _verdict(result: dict[str, Any], some_apart: bool) -> str:
    factors, across = result["factors"], result["between_above_null"]
    explain = [name for name, f in factors.items() if f["permanova"]["p"] <= LEVEL and f["difference"] > 0]
    figures = "; ".join(_factor_figures(name, factors[name]) for name in explain or factors)
    shared, verb = "shared " + " and ".join(explain), "explains" if len(explain) == 1 else "explain"
    nothing = "shared lineage has no significant effect on agreement"
    if not explain and all(f["permanova"]["least_p"] > LEVEL for f in factors.values()):
        nothing = f"{result['n_models']} models are too few to test whether shared lineage explains agreement"
    if across is None:
        end = (
            "whether models of different lineage agree beyond chance was not tested"
            if some_apart
            else "no two models have different labels in every factor, so agreement across lineages cannot be tested"
        )
        start = f"{shared} {verb} part of the agreement" if explain else nothing
        return f"{start} ({figures}); {end}."
    chance = _chance_figures(across)
    if across["above"]:
        start = f"{shared} {verb} part of the agreement" if explain else nothing
        but = "but models of different lineage still" if explain else "and models of different lineage"
        return f"{start} ({figures}), {but} agree beyond chance ({chance})."
    if _is_undecided(across):
        start = f"{shared} {verb} part of the agreement" if explain else nothing
        few = f"{result['n_models']} models are too few to tell whether models of different lineage agree beyond chance"
        return f"undecided: {few} ({chance}); {start} ({figures})."
    apart = f"models of different lineage do not agree beyond chance ({chance})"
    if explain:
        return f"monoculture: {shared} {verb} the agreement ({figures}), and {apart}."
    return f"no convergence: {apart}, and {nothing} ({figures})."


def _chance_figures(across: dict[str, Any]) -> str:
    """Return the figures that compare the agreement of models of different lineage with chance."""
    chance = f"mean score {num(across['score'])}"
    if "null" in across:
        chance += f", chance level {num(across['null'])}"
    interval = across.get("interval")
    if interval is not None:
        chance += f", above chance by {num(across['excess'])} [{num(interval[0])}, {num(interval[1])}]"
    if "share" in across:
        chance += f", {across['share']:.0%} of {across['pairs']} pairs with q ≤ {LEVEL}"
    return chance


def _is_undecided(across: dict[str, Any]) -> bool:
    """Whether many pairs score above chance, but too few models do so to conclude it for models in general."""
    interval = across.get("interval")
    return interval is not None and interval[0] <= 0 < across["excess"] and across.get("share", 0) > LEVEL


def _factor_figures(name: str, factor: dict[str, Any]) -> str:
    permanova, partial = factor["permanova"], factor["partial_mantel"]
    figures = f"{name}: mean score {num(factor['within'])} within groups, {num(factor['between'])} between groups, "
    figures += f"PERMANOVA R² = {permanova['r2']:.2f}, p = {permanova['p']:.2g}"
    return figures + (f", partial Mantel r = {partial['r']:.2f}, p = {partial['p']:.2g}" if partial else "")
