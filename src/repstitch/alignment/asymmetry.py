"""How much of each of two spaces the other predicts, and what is left over."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor

from repstitch.alignment.model_scores import LEVEL, check_draws
from repstitch.errors import InputError
from repstitch.fit.closed_form import Decomposition, decompose
from repstitch.fit.spectrum import shared_spectrum
from repstitch.metrics.moments import moments
from repstitch.metrics.resample import interval, resampled_means

LEAST_ROWS, LEAST_FOLD = 20, 4
PENALTIES = np.logspace(-6, 4, 41)
LEAST_LEFT = 0.05  # of the degrees of freedom: with fewer, what is left to judge a penalty by is rounding
PRINCIPAL = 0.95


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
    the R² of the map from it is a lower bound, and the verdict says so. O(permutations · (n d² + folds · d³)) time.

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
    check_draws(permutations=permutations)
    random = torch.Generator().manual_seed(seed)
    parts = list(torch.randperm(n, generator=random).tensor_split(folds))
    with _one_thread():
        fitted = _training(x, y, parts)
        shared = shared_spectrum(fitted[0], x[parts[0]], y[parts[0]], seed=seed)
    order = torch.cat(parts)  # fold after fold, so that each is a slice
    x, y = (side[order] - side.mean(0) for side in (x, y))
    held = [slice(int(rows[0]), int(rows[-1]) + 1) for rows in torch.arange(n).tensor_split(folds)]
    x_folds = [_fold(x, rows, d.x_values, d.x_vectors) for rows, d in zip(held, fitted, strict=True)]
    y_folds = [_fold(y, rows, d.y_values, d.y_vectors) for rows, d in zip(held, fitted, strict=True)]
    products = _products(x, y, held)
    *forward, x_weights = _out_of_fold(x_folds, y, products)
    *backward, y_weights = _out_of_fold(y_folds, x, [product.T for product in products])
    errors = np.empty((n, 4))
    errors[order.numpy()] = np.column_stack([*_errors(*forward), *_errors(*backward)])
    ahead, back = _r2(errors.sum(0))
    ahead_draws, back_draws = _r2(resampled_means(errors, seed=seed))
    shuffled = []
    for _ in range(permutations):
        moved = _shuffled(held, random)
        y_moved, x_moved = y[moved], x[moved.argsort()]  # the same pairs, in the order of x and in that of y
        products = _products(x, y_moved, held)
        draws = _errors(*_out_of_fold(x_folds, y_moved, products)[:2])
        draws += _errors(*_out_of_fold(y_folds, x_moved, [product.T for product in products])[:2])
        shuffled.append(_r2(np.column_stack(draws).sum(0)))
    null_ahead, null_back = np.transpose(shuffled)
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
        "shared": shared,
        "left_over": {
            "target": _left_over(ahead, x, x_folds, x_weights, y, permutations, random),
            "source": _left_over(back, y, y_folds, y_weights, x, permutations, random),
        },
    }
    fewest = n - max(map(len, parts))
    wide = [name for name, side in ((source, x), (target, y)) if side.shape[1] >= fewest]
    return found | {"verdict": _asymmetry_verdict(found, source, target, fewest, wide)}


@dataclass(frozen=True)
class Fold:
    """One space in one fold: its `held` rows `along` the eigenvectors of the covariance of all the others.

    `rest` is how many others there are, `mean` (d,) their mean, `values` (d,) and `vectors` (d, d) the eigenvectors.
    """

    held: slice
    rest: int
    mean: Tensor
    values: Tensor
    vectors: Tensor
    along: Tensor


def _fold(rows: Tensor, held: slice, values: Tensor, vectors: Tensor) -> Fold:
    rest, mean = _others(rows, held)
    vectors = vectors.float()
    return Fold(held, rest, mean, values, vectors, (rows[held] - mean) @ vectors)


def _others(rows: Tensor, held: slice) -> tuple[int, Tensor]:
    """How many rows are not held, and their mean; all `rows` together are centred."""
    rest = len(rows) - (held.stop - held.start)
    return rest, -rows[held].sum(0) / rest


@contextmanager
def _one_thread() -> Iterator[None]:
    """For eigenvectors: with more threads, each waits for all at every step, for seconds where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _training(x: Tensor, y: Tensor, parts: list[Tensor]) -> list[Decomposition]:
    """For each fold, the decomposition of all the others."""
    each = [moments((x[rows], y[rows])) for rows in parts]
    return [decompose(reduce(add, each[:i] + each[i + 1 :])) for i in range(len(each))]


def _products(x: Tensor, y: Tensor, held: list[slice]) -> list[Tensor]:
    """Σ xᵀy (d, e) over the rows of each fold."""
    return [x[rows].T @ y[rows] for rows in held]


def _out_of_fold(
    folds: list[Fold], y: Tensor, products: list[Tensor], weights: list[Tensor] | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Rows of y (n, d), each less the mean of the rows its map was fitted to, and what ridge leaves of them.

    `products` are those of the source with y, fold by fold: all less one fold's are its training rows'. Third come the
    `weights` of each fold's eigenvectors, which are chosen where they are not given.
    """
    truth, left, used = torch.empty_like(y), torch.empty_like(y), []
    whole, spread = reduce(add, products), y.square().sum()
    for i, fold in enumerate(folds):
        rows = y[fold.held]
        rest, mean = _others(y, fold.held)
        known = ((whole - products[i]) / rest).addr_(fold.mean, mean, alpha=-1)
        cross = fold.vectors.T @ known
        if weights is None:
            about = float((spread - rows.square().sum()) / rest - mean.square().sum())
            used.append(_ridge_weights(fold.values, cross, rest, about))
        else:
            used.append(weights[i])
        torch.sub(rows, mean, out=truth[fold.held])
        torch.addmm(truth[fold.held], fold.along * used[-1], cross, alpha=-1, out=left[fold.held])
    return truth, left, used


def _ridge_weights(values: Tensor, cross: Tensor, n: int, spread: float) -> Tensor:
    """1 / (λ + penalty) for each eigenvalue λ, at the penalty of least generalised cross-validation error.

    `cross` is the covariance of the eigenvectors' coordinates with the n training rows, whose mean squared distance
    from their mean is `spread`. With qᵢ the squared length of its row i, the mean squared residual is
    spread − Σ qᵢ (2wᵢ − λᵢ wᵢ²), so each penalty costs no more than a sum; there are 1 + Σ λᵢ wᵢ degrees of freedom in
    the fit.
    """
    strength = torch.linalg.vector_norm(cross, dim=1).double().square()
    penalties = torch.from_numpy(PENALTIES)[:, None] * values.mean()
    weights = torch.where(values > 0, 1 / (values + penalties), 0.0)  # nothing varies there, so nothing to weigh
    left = 1 - (1 + (values * weights).sum(1)) / n
    residual = spread - ((2 * weights - values * weights**2) * strength).sum(1)
    error = torch.where(left >= LEAST_LEFT, residual.clamp(min=0) / left**2, torch.inf)
    return weights[int(error.argmin())].float()


def _errors(truth: Tensor, left: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Squared error (n,) and squared distance from the mean (n,) of each row."""
    error, spread = (torch.linalg.vector_norm(rows, dim=1).double().square().numpy() for rows in (left, truth))
    return error, spread


def _r2(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 − error / spread both ways, of the four sums in the last axis."""
    return 1 - sums[..., 0] / sums[..., 1], 1 - sums[..., 2] / sums[..., 3]


def _shuffled(held: list[slice], random: torch.Generator) -> Tensor:
    """A random order (n,) that leaves each row in its fold: so each side's means and covariances stay as they are."""
    return torch.cat([rows.start + torch.randperm(rows.stop - rows.start, generator=random) for rows in held])


def _null_of(draws: np.ndarray) -> dict:
    return {"mean": float(draws.mean()), "high": _edge(draws)}


def _edge(draws: np.ndarray) -> float:
    """The 95 % point of a null: the order statistic that an add-one p of .05 belongs to."""
    return float(np.sort(draws)[min(len(draws), math.ceil((1 - LEVEL) * (len(draws) + 1))) - 1])


def _left_over(
    r2, source: Tensor, folds: list[Fold], weights: list[Tensor], rows: Tensor, permutations: int, random
) -> dict:
    """The variance of `rows` (n, d) that `source` left, and how many of their principal directions it predicted."""
    with _one_thread():
        values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0).reshape(rows.shape[1], -1).double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = 1 + int((values.cumsum(0) < PRINCIPAL * values.sum()).sum())
    along, held = rows @ vectors[:, :kept].float(), [fold.held for fold in folds]

    def direction_r2(along: Tensor) -> Tensor:
        truth, left, _ = _out_of_fold(folds, along, _products(source, along, held), weights)
        return 1 - left.square().sum(0) / truth.square().sum(0)

    # At the penalties that were chosen: what a direction that is not predicted looks like beside others that are.
    largest = np.array([float(direction_r2(along[_shuffled(held, random)]).max()) for _ in range(permutations)])
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
