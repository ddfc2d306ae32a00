"""TODO fit.calibration."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.fit.closed_form import Decomposition, canonical
from repstitch.metrics.retrieval import ranks
from repstitch.stitchers.confidence import FOR_MATCH, FOR_TYPICAL, LEAST_ROWS, TINY, Confidence, read, unusual, weigh
from repstitch.stitchers.maps import Map

POOL = 1000
LEVEL = 0.9
HITS = 10
MAX_ROWS = 10_000
BINS = 10
CURVE = 20
NEWTON_STEPS = 20
SHRINK = 0.1  # towards the mean eigenvalue: unseen rows differ most where training rows hardly varied


@torch.no_grad()
def calibrate(
    map: Map,
    decomposition: Decomposition,
    select: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    targets: Tensor,
    pool: int = POOL,
) -> Confidence | None:
    """Calibrate on pairs `held` that neither fitting nor selection saw; None with fewer than 20 of them or of `select`.

    Both are normalised pairs (n, d_source), (n, d_target); `decomposition` is that of the training pairs and `targets`
    (m, d_target) are theirs. The pool is made of the held targets, topped up with those of `select`, then with training
    targets; where there are fewer rows than `pool` in all, that is the pool, and the measure's name says so. The
    probability is a logistic regression, the bound a ridge regression on `select` moved to its conformal quantile on
    `held`: Lei et al. 2018, "Distribution-Free Predictive Inference for Regression". The p-value judges both ways, as
    in Nalisnick et al. 2019, "Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality".
    """
    if min(len(select[0]), len(held[0])) < LEAST_ROWS:
        return None
    (X, Y), held_rows = select, slice(0, MAX_ROWS)
    x, y = held[0][held_rows], held[1][held_rows]
    mean, project, shared = _directions(decomposition)
    gallery = _gallery(y, (Y, targets), pool)
    pool = min(pool, len(gallery))
    bare, bare_held = map(X), map(x)
    before = read(X, bare, mean, project, shared)
    centre, scale = before.mean(0), before.std(0).clamp(min=1e-6)
    standard = lambda readings: (readings - centre) / scale  # noqa: E731
    low, high = standard(before)[:, FOR_MATCH].aminmax(dim=0)
    within = lambda readings: torch.maximum(torch.minimum(standard(readings)[:, FOR_MATCH], high), low)  # noqa: E731
    after = read(x, bare_held, mean, project, shared)
    cosine = _ridge(within(before), _cosine(bare, Y))
    margins = _cosine(bare_held, y) - weigh(within(after), cosine)
    beyond = int((1 - LEVEL) * (len(margins) + 1) + 1e-9)  # 1 − 0.9 is a little less than a tenth
    cosine[-1] += margins.sort().values[beyond - 1]
    precision = _precision(standard(before)[:, FOR_TYPICAL])
    return Confidence(
        pool=pool,
        level=LEVEL,
        mean=mean,
        project=project,
        shared=shared,
        centre=centre,
        scale=scale,
        low=low,
        high=high,
        match=_logistic(within(after), hit_chance(ranks(bare_held, gallery), len(gallery), pool)),
        cosine=cosine,
        precision=precision,
        atypical=unusual(standard(after)[:, FOR_TYPICAL], precision).sort().values,
    )


def _directions(d: Decomposition) -> tuple[Tensor, Tensor, Tensor]:
    """The training mean, the whitening along all canonical directions, and their squared correlations."""
    found = canonical(d, SHRINK, shrink_y=1.0)
    # Completed to all source directions, for what is unlike the training data shows where training hardly varied.
    whole = torch.linalg.qr(found.U, mode="complete")[0]
    project = (d.x_vectors / (d.x_values + SHRINK * d.x_values.mean()).sqrt()) @ whole
    shared = torch.zeros_like(d.x_values)
    shared[: len(found.correlations)] = found.correlations.square()
    return d.moments.x_mean.float(), project.float(), shared.float()


def _gallery(own: Tensor, others: Sequence[Tensor], pool: int) -> Tensor:
    """The rows' own targets, topped up to `pool` where they are fewer, from the first of `others` first."""
    missing = max(0, pool - len(own))
    for rows in others:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:missing]
        own, missing = torch.cat([own, rows[order.to(rows.device)]]), missing - len(order)
    return own


def hit_chance(found: Tensor, gallery: int, pool: int) -> Tensor:
    """Probability (n,) of rank ten or better in a random pool of `pool`, for ranks (n,) in a gallery of at least it.

    Of the others in the gallery `found` − 1 are ahead; how many of them are drawn is hypergeometric.
    """
    ahead = (found.double() - 1)[:, None].cpu()
    drawn = torch.arange(HITS, dtype=torch.float64)
    behind, left = gallery - 1 - ahead, pool - 1 - drawn
    possible = (drawn <= ahead) & (left >= 0) & (left <= behind)
    of = lambda n, k: torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)  # noqa: E731
    whole = of(torch.tensor(gallery - 1.0).double(), torch.tensor(pool - 1.0).double())
    chance = (of(ahead, drawn) + of(behind, left.clamp(min=0)) - whole).exp()
    return torch.where(possible, chance, torch.zeros_like(chance)).sum(1).clamp(0, 1)


def _cosine(predicted: Tensor, Y: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(predicted, Y.to(predicted.dtype))


def _precision(distances: Tensor) -> Tensor:
    """The inverse of their correlations, eased so that distances which always agree can be told apart no further."""
    correlations = distances.T @ distances / len(distances)
    return torch.linalg.inv(correlations + 1e-3 * torch.eye(2).to(correlations))


def _ridge(readings: Tensor, values: Tensor) -> Tensor:
    """Weights (k + 1,), constant last, of least squares with a unit penalty on each standardised reading."""
    A, penalty = _design(readings)
    return torch.linalg.solve(A.T @ A + penalty, A.T @ values.double()).float()


def _logistic(readings: Tensor, chances: Tensor) -> Tensor:
    """Weights (k + 1,), constant last, of logistic regression on probabilities, each weight normal a priori.

    Newton's method with halved steps. The chances are drawn to one half by half a row's worth, so that hits only are no
    certainty: Platt 1999, "Probabilistic Outputs for Support Vector Machines".
    """
    A, penalty = _design(readings)
    wanted = (chances.to(A) * len(A) + 0.5) / (len(A) + 1)
    weights = torch.zeros(A.shape[1], dtype=A.dtype, device=A.device)
    weights[-1] = torch.logit(wanted.mean())

    def loss(weights: Tensor) -> float:
        misfit = torch.nn.functional.binary_cross_entropy_with_logits(A @ weights, wanted, reduction="sum")
        return float(misfit + weights @ penalty @ weights / 2)

    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(A @ weights)
        slope = A.T @ (p - wanted) + penalty @ weights
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


@torch.no_grad()
def evaluate(
    confidence: Confidence, map: Map, X: Tensor, Y: Tensor, others: Sequence[Tensor] = (), seed: int = 0
) -> dict:
    """How true the measures are on held-out normalised pairs X (n, d_source), Y (n, d_target), as plain JSON types.

    Each row's counterpart is looked for in a pool of exactly `confidence.pool` rows, drawn by `seed` from Y, which is
    topped up from `others` where it is smaller; where even that is too few the pool is what there is, and `calibrated`
    is false. `ece` is the expected calibration error over ten bins of equally many rows, `auroc` how well p_match ranks
    hits before misses (None where all are one or the other), `risk_coverage` the share of misses among the most
    confident rows. `covered` should be `level`; `unusual@0.05`, the share of p_typical up to 0.05, should be 0.05.
    """
    if len(X) < 2:
        raise InputError(f"At least 2 held-out pairs are needed to evaluate a confidence; got {len(X)}.")
    random = np.random.default_rng(seed)
    if len(X) > MAX_ROWS:
        keep = torch.from_numpy(np.sort(random.permutation(len(X))[:MAX_ROWS])).to(X.device)
        X, Y = X[keep], Y[keep]
    bare = map(X)
    gallery = _gallery(Y, others, confidence.pool)
    pool = min(confidence.pool, len(gallery))
    ahead = ranks(bare, gallery).cpu().numpy() - 1
    hit = random.hypergeometric(ahead, len(gallery) - 1 - ahead, pool - 1) < HITS
    measured = {name: values.cpu().double().numpy() for name, values in confidence.measure(X, bare).items()}
    p, lower, typical = (measured[name] for name in confidence.names[:3])
    order = np.argsort(p, kind="stable")
    bins = [
        {"predicted": float(p[part].mean()), "observed": float(hit[part].mean()), "n": len(part)}
        for part in np.array_split(order, min(BINS, len(order)))
    ]
    kept = np.ceil(np.linspace(1 / CURVE, 1, CURVE) * len(p)).astype(int)
    misses = np.cumsum(~hit[order[::-1]])
    return {
        "n": len(p),
        "pool": pool,
        "calibrated": pool == confidence.pool,
        "calibration_rows": len(confidence.atypical),
        "hits": float(hit.mean()),
        "ece": sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in bins) / len(p),
        "bins": bins,
        "auroc": auroc(p[hit], p[~hit]),
        "risk_coverage": [{"coverage": float(k / len(p)), "risk": float(misses[k - 1] / k)} for k in kept],
        "level": confidence.level,
        "covered": float((_cosine(bare, Y).cpu().double().numpy() >= lower).mean()),
        "unusual@0.05": float((typical <= 0.05).mean()),
    }


def auroc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """Probability that one of `positive` lies above one of `negative`, a tie counting half; None where one is empty."""
    if not len(positive) or not len(negative):
        return None
    below = np.sort(negative)
    counts = np.searchsorted(below, positive, "left") + np.searchsorted(below, positive, "right")
    return float(counts.mean() / (2 * len(below)))
