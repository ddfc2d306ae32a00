"""Calibrate the confidence of a stitcher on validation pairs, and evaluate it on held-out pairs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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

POOL = 1000
LEVEL = 0.9
HITS = 10
MAX_ROWS = 10_000
BINS = 10
CURVE = 20
NEWTON_STEPS = 20
SHRINK = 0.1  # towards the mean eigenvalue: new rows differ most where training rows hardly varied
Pairs = tuple[Tensor, Tensor]


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
    """Calibrate on pairs that neither fitting nor selection used; None with fewer than 20 of them or of `selection`.

    Both are normalised pairs (n, d_source), (n, d_target); `decomposition` is that of the training pairs and
    `training_targets` (m, d_target) are theirs. The pool is made of the calibration targets, topped up with those of
    `selection`, then with training targets; where there are fewer rows than `pool` in all, that is the pool, and the
    measure's name says so. The probability is a logistic regression, the bound a ridge regression on `selection` moved
    to its conformal quantile on `calibration`: Lei et al. 2018, "Distribution-Free Predictive Inference for
    Regression". The p-value is two-sided, as in Nalisnick et al. 2019, "Detecting Out-of-Distribution Inputs to Deep
    Generative Models Using Typicality".
    """
    if min(len(selection[0]), len(calibration[0])) < LEAST_ROWS:
        return None
    (X, Y), (x, y) = selection, (rows[:MAX_ROWS] for rows in calibration)
    directions = _directions(decomposition)
    gallery = _gallery(y, (Y, training_targets), pool)
    pool = min(pool, len(gallery))
    raw_selection, raw = map(X), map(x)

    readings = take_readings(X, raw_selection, *directions)
    centre, scale = readings.mean(0), readings.std(0).clamp(min=1e-6)
    standard_selection = (readings - centre) / scale
    standard = (take_readings(x, raw, *directions) - centre) / scale
    low, high = standard_selection[:, FOR_MATCH].aminmax(dim=0)
    within = torch.maximum(torch.minimum(standard[:, FOR_MATCH], high), low)

    cosine = _ridge(standard_selection[:, FOR_MATCH], _cosine(raw_selection, Y))
    margins = _cosine(raw, y) - weigh(within, cosine)
    beyond = int((1 - LEVEL) * (len(margins) + 1) + 1e-9)  # 1 − 0.9 is a little less than a tenth
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
        match=_logistic(within, hit_chance(ranks(raw, gallery), len(gallery), pool)),
        cosine=cosine,
        precision=precision,
        atypical=unusualness(standard[:, FOR_TYPICAL], precision).sort().values,
    )


def _directions(decomposition: Decomposition) -> tuple[Tensor, Tensor, Tensor]:
    """The training mean, the whitening along all canonical directions, and their squared correlations."""
    fitted = canonical(decomposition, SHRINK, shrink_y=1.0)
    # Completed to all source directions: rows unlike the training data differ where training hardly varied.
    axes = torch.linalg.qr(fitted.U, mode="complete")[0]
    values = decomposition.x_values
    project = (decomposition.x_vectors / (values + SHRINK * values.mean()).sqrt()) @ axes
    shared = torch.zeros_like(values)
    shared[: len(fitted.correlations)] = fitted.correlations.square()
    return decomposition.moments.x_mean.float(), project.float(), shared.float()


def _gallery(targets: Tensor, others: Sequence[Tensor], pool: int) -> Tensor:
    """Targets, topped up to `pool` rows where they are fewer, from the first of `others` first."""
    missing = max(0, pool - len(targets))
    for rows in others:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:missing]
        targets, missing = torch.cat([targets, rows[order.to(rows.device)]]), missing - len(order)
    return targets


def hit_chance(positions: Tensor, gallery: int, pool: int) -> Tensor:
    """Probability (n,) of rank ten or better in a random pool of `pool`, for ranks (n,) in a gallery of at least it.

    Of the others in the gallery rank − 1 are ahead; how many of them are drawn is hypergeometric.
    """
    ahead = (positions.double() - 1)[:, None].cpu()
    drawn = torch.arange(HITS, dtype=torch.float64)
    behind, left = gallery - 1 - ahead, pool - 1 - drawn
    possible = (drawn <= ahead) & (left >= 0) & (left <= behind)
    whole = _log_choose(torch.tensor(gallery - 1.0).double(), torch.tensor(pool - 1.0).double())
    chance = (_log_choose(ahead, drawn) + _log_choose(behind, left.clamp(min=0)) - whole).exp()
    return torch.where(possible, chance, torch.zeros_like(chance)).sum(1).clamp(0, 1)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """The logarithm of the number of ways to choose k of n."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)


def _cosine(predicted: Tensor, Y: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(predicted, Y.to(predicted.dtype))


def _precision(distances: Tensor) -> Tensor:
    """The inverse of the distances' correlations, regularised for distances that always agree."""
    correlations = distances.T @ distances / len(distances)
    return torch.linalg.inv(correlations + 1e-3 * torch.eye(2).to(correlations))


def _ridge(readings: Tensor, values: Tensor) -> Tensor:
    """Weights (k + 1,), constant last, of least squares with a unit penalty on each standardised reading."""
    A, penalty = _design(readings)
    return torch.linalg.solve(A.T @ A + penalty, A.T @ values.double()).float()


def _logistic(readings: Tensor, chances: Tensor) -> Tensor:
    """Weights (k + 1,), constant last, of logistic regression on probabilities, each weight normal a priori.

    Newton's method with halved steps. The chances are smoothed by half a row, so that data of hits only give no
    certainty: Platt 1999, "Probabilistic Outputs for Support Vector Machines".
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
    """How true the measures are on held-out normalised pairs X (n, d_source), Y (n, d_target).

    Each row's counterpart is looked for in a pool of exactly `calibration.pool` rows, drawn by `seed` from Y, which is
    topped up from `others` where it is smaller; where even that is too few the pool is what there is, and `calibrated`
    is false. `ece` is the expected calibration error over ten bins of equally many rows, `auroc` how well p_match ranks
    hits before misses (None where all are one or the other), `risk_coverage` the share of misses among the most
    confident rows. `covered` should be `level`; `unusual@0.05`, the share of p_typical up to 0.05, should be 0.05.
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
        "auroc": auroc(p_match[is_hit], p_match[~is_hit]),
        "risk_coverage": [{"coverage": float(n / len(order)), "risk": float(misses[n - 1] / n)} for n in counts],
        "level": calibration.level,
        "covered": float((_cosine(raw, Y).cpu().double().numpy() >= lower).mean()),
        "unusual@0.05": float((typical <= 0.05).mean()),
    }
    return CalibrationScores(scores)


def auroc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """Probability that one of `positive` lies above one of `negative`, a tie counting half; None where one is empty."""
    if not len(positive) or not len(negative):
        return None
    below = np.sort(negative)
    counts = np.searchsorted(below, positive, "left") + np.searchsorted(below, positive, "right")
    return float(counts.mean() / (2 * len(below)))
