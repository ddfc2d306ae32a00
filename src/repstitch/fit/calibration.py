"""Calibrate the confidence of a stitcher on validation pairs, and evaluate it on held-out pairs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.normalising import cosines
from repstitch.errors import InputError
from repstitch.evaluation.scorecard_parts import CalibrationScores
from repstitch.fit.closed_form import Decomposition, canonical
from repstitch.metrics.retrieval import ranks
from repstitch.precision import exact_products
from repstitch.stitchers.confidence import (
    FOR_MATCH,
    FOR_TYPICAL,
    LEAST_ROWS,
    TINY,
    Calibration,
    take_readings,
    unusualness,
    weigh,
)
from repstitch.stitchers.maps import Map
from repstitch.text import num

POOL = 1000
LEVEL = 0.9
HITS = 10
MAX_ROWS = 10_000
BINS = 10
CURVE = 20
NEWTON_STEPS = 20
SHRINK = 0.1  # towards the mean eigenvalue, since new rows differ most where training rows hardly varied
MIN_OUTCOMES = 20  # hits, and as many misses, are needed to measure how well p_match separates them
Z = NormalDist().inv_cdf(0.975)  # half the width, in standard errors, of a 95 % interval
Pairs = tuple[Tensor, Tensor]
Directions = tuple[Tensor, Tensor, Tensor]  # the training mean, a whitening, and squared canonical correlations


@exact_products()
@torch.no_grad()
def calibrate(
    map: Map,
    decomposition: Decomposition,
    selection: Pairs,
    calibration: Pairs,
    training_targets: Tensor,
    pool: int = POOL,
) -> Calibration | None:
    """Fit the confidence measures of a map on validation pairs. Return None with fewer than 20 pairs in either half.

    `selection` and `calibration` are the two halves of validation, as normalised pairs (n, d_source), (n, d_target):
    the first was used to select the map, the second was not used before. `decomposition` is that of the training pairs,
    `training_targets` (m, d_target) are their target rows.

    The pool contains the targets of `calibration`. If they are fewer than `pool`, targets of `selection` and then
    training targets are added. If all of these together are fewer, the pool is smaller, and so is the number in the
    name of the measure (`p_match@1000`).

    `p_match` is a logistic regression. `cosine_lower` is a ridge regression fitted on `selection` and shifted to its
    conformal quantile on `calibration` (Lei et al. 2018, "Distribution-Free Predictive Inference for Regression").
    `p_typical` is a two-sided p-value, as in Nalisnick et al. 2019, "Detecting Out-of-Distribution Inputs to Deep
    Generative Models Using Typicality".
    """
    if min(len(selection[0]), len(calibration[0])) < LEAST_ROWS:
        return None
    directions = directions_of(decomposition)
    (X, Y), (x, y) = selection, (rows[:MAX_ROWS] for rows in calibration)
    chosen_on, rows = (CalibrationRows.of(map, *pairs, directions) for pairs in ((X, Y), (x, y)))
    return _fit(directions, chosen_on, rows, (Y, training_targets), pool)


@dataclass(frozen=True)
class CalibrationRows:
    """Pairs from which a confidence is fitted: `readings` (n, 4), `raw` translations and targets `Y` (n, d_target)."""

    readings: Tensor
    raw: Tensor
    Y: Tensor

    @classmethod
    def of(cls, map: Map, X: Tensor, Y: Tensor, directions: Directions) -> "CalibrationRows":
        """Translate source rows (n, d_source) that the map was not fitted to, and take their readings."""
        raw = map(X)
        return cls(take_readings(X, raw, *directions), raw, Y)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def cosines(self) -> Tensor:
        return _cosine(self.raw, self.Y)


@exact_products()
@torch.no_grad()
def calibrate_folds(
    directions: Directions, folds: Sequence[CalibrationRows], positions: Tensor | None = None, pool: int = POOL
) -> Calibration | None:
    """Fit the confidence measures of a map on the pairs that it is trained on, each read by a map without its fold.

    Each part of `folds` has pairs that its own map, fitted without them, has translated, with readings by the
    directions of that fit. New rows are read by `directions`, which must be those of one of these fits: with a few
    hundred pairs, rows are nearer to the mean of a fit with more pairs. Few pairs are enough, because none is set
    apart: the bound of the cosine is the conformal quantile of leave-one-out residuals (Barber et al. 2021, "Predictive
    Inference with the Jackknife+"). The pool has targets of these pairs only, at most `pool`: general targets are
    unlike them, so a search among those says nothing about the domain. `positions` (n,) are the ranks of the
    counterparts among all these targets by maps that saw neither; by default those of the translations. Returns None
    with fewer than 20 pairs.
    """
    rows = CalibrationRows(
        *(torch.cat([getattr(part, name) for part in folds])[:MAX_ROWS] for name in ("readings", "raw", "Y"))
    )
    return None if len(rows) < LEAST_ROWS else _fit(directions, rows, rows, (), pool, positions)


def _fit(
    directions: Directions,
    selection: CalibrationRows,
    rows: CalibrationRows,
    others: Sequence[Tensor],
    pool: int,
    positions: Tensor | None = None,
) -> Calibration:
    """Fit the measures on `rows`; the usual range of the readings, and the regression of the cosine, on `selection`.

    `positions` (n,) are the ranks of the counterparts in the gallery, by default those of the translations.
    """
    gallery = _gallery(rows.Y, others, pool)
    pool = min(pool, len(gallery))
    positions = ranks(rows.raw, gallery) if positions is None or len(positions) != len(rows) else positions
    centre, scale = selection.readings.mean(0), selection.readings.std(0).clamp(min=1e-6)
    standard_selection, standard = ((part.readings - centre) / scale for part in (selection, rows))
    low, high = standard_selection[:, FOR_MATCH].aminmax(dim=0)
    within = torch.maximum(torch.minimum(standard[:, FOR_MATCH], high), low)

    cosine = _ridge(standard_selection[:, FOR_MATCH], selection.cosines)
    margins = rows.cosines - weigh(within, cosine)
    if selection is rows:
        margins = margins / (1 - _leverage(within))
    beyond = int((1 - LEVEL) * (len(margins) + 1) + 1e-9)  # in floating point 1 − 0.9 is slightly less than 0.1
    cosine[-1] += margins.sort().values[beyond - 1]
    precision = _precision(standard_selection[:, FOR_TYPICAL])
    mean, project, shared = directions
    return Calibration(
        pool=pool,
        level=LEVEL,
        mean=mean,
        project=project,
        shared=shared,
        centre=centre,
        scale=scale,
        low=low,
        high=high,
        match=_logistic(within, hit_chance(positions, len(gallery), pool)),
        cosine=cosine,
        precision=precision,
        atypical=unusualness(standard[:, FOR_TYPICAL], precision).sort().values,
    )


def directions_of(decomposition: Decomposition) -> Directions:
    """Return the training mean, a whitening along all canonical directions, and their squared correlations."""
    fitted = canonical(decomposition, SHRINK, shrink_y=1.0)
    # The basis is completed to all source directions, because rows unlike the training data differ from it along
    # directions in which training rows hardly varied.
    axes = torch.linalg.qr(fitted.U, mode="complete")[0]
    values = decomposition.x_values
    project = (decomposition.x_vectors / (values + SHRINK * values.mean()).sqrt()) @ axes
    shared = torch.zeros_like(values)
    shared[: len(fitted.correlations)] = fitted.correlations.square()
    return decomposition.moments.x_mean.float(), project.float(), shared.float()


def _gallery(targets: Tensor, others: Sequence[Tensor], pool: int) -> Tensor:
    """Return `targets`; if they are fewer than `pool`, add rows drawn from the first of `others`, then the next."""
    missing = max(0, pool - len(targets))
    for rows in others:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:missing]
        targets, missing = torch.cat([targets, rows[order.to(rows.device)]]), missing - len(order)
    return targets


def hit_chance(positions: Tensor, gallery: int, pool: int) -> Tensor:
    """Return the probability (n,) of rank 10 or better in a random pool, from the ranks (n,) in a larger gallery.

    A pool has `pool` of the `gallery` rows, including the counterpart. In the gallery, rank − 1 rows are nearer than
    the counterpart. The number of them that a pool contains is hypergeometric.
    """
    ahead = (positions.double() - 1)[:, None].cpu()
    drawn = torch.arange(HITS, dtype=torch.float64)
    behind, left = gallery - 1 - ahead, pool - 1 - drawn
    possible = (drawn <= ahead) & (left >= 0) & (left <= behind)
    whole = _log_choose(torch.tensor(gallery - 1.0).double(), torch.tensor(pool - 1.0).double())
    chance = (_log_choose(ahead, drawn) + _log_choose(behind, left.clamp(min=0)) - whole).exp()
    return torch.where(possible, chance, torch.zeros_like(chance)).sum(1).clamp(0, 1)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """Return the logarithm of the binomial coefficient of n and k."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)


def _cosine(predicted: Tensor, Y: Tensor) -> Tensor:
    return cosines(predicted, Y.to(predicted.dtype))


def _precision(distances: Tensor) -> Tensor:
    """Return the inverse (2, 2) of the correlations of two distances, regularised in case they are collinear."""
    correlations = distances.T @ distances / len(distances)
    return torch.linalg.inv(correlations + 1e-3 * torch.eye(2).to(correlations))


def _ridge(readings: Tensor, values: Tensor) -> Tensor:
    """Fit a ridge regression with penalty 1 on standardised readings; return its weights (k + 1,), intercept last."""
    A, penalty = _design(readings)
    return torch.linalg.solve(A.T @ A + penalty, A.T @ values.double()).float()


def _leverage(readings: Tensor) -> Tensor:
    """Return the leverage (n,) of each row in `_ridge`: a residual / (1 − leverage) is that of a fit without it."""
    A, penalty = _design(readings)
    return (A @ torch.linalg.inv(A.T @ A + penalty) * A).sum(1).float()


def _logistic(readings: Tensor, chances: Tensor) -> Tensor:
    """Fit a logistic regression to probabilities `chances` (n,); return its weights (k + 1,), intercept last.

    Uses Newton's method with step halving and a standard normal prior on each weight but the intercept. The
    probabilities are smoothed by half a row, so that rows that are all hits do not give a probability of 1: Platt 1999,
    "Probabilistic Outputs for Support Vector Machines".
    """
    A, penalty = _design(readings)
    smoothed = (chances.to(A) * len(A) + 0.5) / (len(A) + 1)
    weights = torch.zeros(A.shape[1], dtype=A.dtype, device=A.device)
    weights[-1] = torch.logit(smoothed.mean())

    def loss(weights: Tensor) -> float:
        misfit = torch.nn.functional.binary_cross_entropy_with_logits(A @ weights, smoothed, reduction="sum")
        return float(misfit + weights @ penalty @ weights / 2)

    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(A @ weights)
        slope = A.T @ (p - smoothed) + penalty @ weights
        step = torch.linalg.solve((A.T * (p * (1 - p))) @ A + penalty, slope)
        while loss(weights - step) > loss(weights) and step.abs().max() > TINY:
            step = step / 2
        weights = weights - step
    return weights.float()


def _design(readings: Tensor) -> tuple[Tensor, Tensor]:
    A = torch.cat([readings, torch.ones(len(readings), 1).to(readings)], dim=1).double()
    penalty = torch.ones(A.shape[1]).to(A)
    penalty[-1] = 1e-9
    return A, penalty.diag()


@exact_products()
@torch.no_grad()
def evaluate(
    calibration: Calibration, map: Map, X: Tensor, Y: Tensor, others: Sequence[Tensor] = (), seed: int = 0
) -> CalibrationScores:
    """Evaluate the confidence measures on held-out normalised pairs X (n, d_source), Y (n, d_target).

    Each counterpart is searched for in a pool of `calibration.pool` rows, drawn with `seed` from Y and, if Y is
    smaller, from `others`. If these are still too few, the pool has all of them and `calibrated` is false.

    `ece` is the expected calibration error over ten bins with equal numbers of rows. `auroc` measures how well p_match
    ranks hits before misses (None without any hit or without any miss), with its 95 % interval. `usable` is false, with
    a `reason`, if there are fewer than 20 hits or 20 misses or if that interval reaches down to 0.5. `risk_coverage` is
    the share of misses among the most confident rows. `covered` should equal `level`; `unusual@0.05`, the share of rows
    whose p_typical is at most 0.05, should be 0.05. Raises InputError with fewer than 2 pairs.
    """
    if len(X) < 2:
        raise InputError(f"At least 2 held-out pairs are needed to evaluate a confidence; got {len(X)}.")
    random = np.random.default_rng(seed)
    if len(X) > MAX_ROWS:
        rows = torch.from_numpy(np.sort(random.permutation(len(X))[:MAX_ROWS])).to(X.device)
        X, Y = X[rows], Y[rows]
    raw = map(X)
    gallery = _gallery(Y, others, calibration.pool)
    pool = min(calibration.pool, len(gallery))
    ahead = ranks(raw, gallery).cpu().numpy() - 1
    is_hit = random.hypergeometric(ahead, len(gallery) - 1 - ahead, pool - 1) < HITS
    measures = calibration.measure(X, raw)
    p_match, lower, typical = (measures[name].cpu().double().numpy() for name in calibration.names[:3])
    order = np.argsort(p_match, kind="stable")
    bins = [
        {"predicted": float(p_match[part].mean()), "observed": float(is_hit[part].mean()), "n": len(part)}
        for part in np.array_split(order, min(BINS, len(order)))
    ]
    counts = np.ceil(np.linspace(1 / CURVE, 1, CURVE) * len(order)).astype(int)
    misses = np.cumsum(~is_hit[order[::-1]])
    scores = {
        "n": len(order),
        "pool": pool,
        "calibrated": pool == calibration.pool,
        "calibration_rows": len(calibration.atypical),
        "hits": float(is_hit.mean()),
        "ece": sum(part["n"] * abs(part["predicted"] - part["observed"]) for part in bins) / len(order),
        "bins": bins,
        **_discrimination(p_match[is_hit], p_match[~is_hit]),
        "risk_coverage": [{"coverage": float(n / len(order)), "risk": float(misses[n - 1] / n)} for n in counts],
        "level": calibration.level,
        "covered": float((_cosine(raw, Y).cpu().double().numpy() >= lower).mean()),
        "unusual@0.05": float((typical <= 0.05).mean()),
    }
    return CalibrationScores(scores)


def _discrimination(hits: np.ndarray, misses: np.ndarray) -> dict[str, Any]:
    """Measure how well p_match separates hits from misses: AUROC, its interval, and whether p_match is usable."""
    value = auroc(hits, misses)
    interval = None if value is None else list(auroc_interval(value, len(hits), len(misses)))
    reason = None
    if value is None or interval is None or min(len(hits), len(misses)) < MIN_OUTCOMES:
        reason = (
            f"p_match was tested on {len(hits)} hits and {len(misses)} misses; at least {MIN_OUTCOMES} of each are "
            "needed"
        )
    elif interval[0] <= 0.5:
        reason = (
            f"p_match is not shown to rank hits before misses better than chance: AUROC {num(value)} "
            f"[{num(interval[0])}, {num(interval[1])}], chance 0.500"
        )
    return {"auroc": value, "auroc_interval": interval, "usable": reason is None, "reason": reason}


def auroc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """Return the probability that a value of `positive` exceeds one of `negative`; a tie counts as one half.

    Returns None if either is empty.
    """
    if not len(positive) or not len(negative):
        return None
    below = np.sort(negative)
    counts = np.searchsorted(below, positive, "left") + np.searchsorted(below, positive, "right")
    return float(counts.mean() / (2 * len(below)))


def auroc_interval(value: float, n_positive: int, n_negative: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUROC `value`, measured on `n_positive` and `n_negative` rows.

    The interval contains every AUROC whose distance to `value` is at most 1.96 times its own standard error, so it
    stays inside [0, 1] and has a width above 0 for a value of 0 or 1 too. Method 5 of Newcombe 2006, "Confidence
    intervals for an effect size measure based on the Mann-Whitney statistic, part 2".
    """
    mean_rows = (n_positive + n_negative) / 2

    def excess(other: float) -> float:
        spread = 2 * mean_rows - 1 - 3 * (mean_rows - 1) / ((2 - other) * (1 + other))
        variance = other * (1 - other) / (n_positive * n_negative) * spread
        return abs(value - other) - Z * math.sqrt(variance)

    low = _bisect(excess, 0.0, value) if value > 0 else 0.0
    high = _bisect(excess, 1.0, value) if value < 1 else 1.0
    return low, high


def _bisect(function: Callable[[float], float], positive: float, negative: float) -> float:
    """Return the root between a place where the function is positive and one where it is not, by bisection.

    SciPy's solvers would add 0.4 s to the start of every training.
    """
    for _ in range(60):
        middle = (positive + negative) / 2
        if function(middle) > 0:
            positive = middle
        else:
            negative = middle
    return (positive + negative) / 2
