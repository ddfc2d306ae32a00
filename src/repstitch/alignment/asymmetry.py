"""How much of each of two spaces the other predicts linearly, and what it leaves over."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repstitch.alignment.hypothesis_results import Asymmetry
from repstitch.arguments import check_positive
from repstitch.errors import InputError
from repstitch.fit.closed_form import Decomposition, decompose
from repstitch.fit.spectrum import shared_spectrum
from repstitch.metrics.moments import moments
from repstitch.metrics.resample import interval, resampled_means
from repstitch.precision import exact_products
from repstitch.records import LEVEL
from repstitch.text import num

LEAST_ROWS, LEAST_FOLD = 20, 4
PENALTIES = np.logspace(-6, 4, 41)
LEAST_LEFT = 0.05  # of the degrees of freedom: with fewer, the residual that a penalty is chosen by is rounding
PRINCIPAL = 0.95


@exact_products()
def asymmetry(
    X: np.ndarray | Tensor,
    Y: np.ndarray | Tensor,
    *,
    source: str,
    target: str,
    folds: int = 5,
    permutations: int = 20,
    seed: int = 0,
) -> Asymmetry:
    """How much of each space the other predicts linearly, and what it leaves over.

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
    x, y = _float_rows(X), _float_rows(Y)
    _check_rows(x, y, folds, permutations)
    n = len(x)
    random = torch.Generator().manual_seed(seed)
    parts = list(torch.randperm(n, generator=random).tensor_split(folds))
    with _one_thread():
        decompositions = _decompose_training_rows(x, y, parts)
        shared = shared_spectrum(decompositions[0], x[parts[0]], y[parts[0]], seed=seed)
    order = torch.cat(parts)  # fold after fold, so that each fold is a slice
    x, y = (rows[order] - rows.mean(0) for rows in (x, y))
    test_rows = [slice(int(rows[0]), int(rows[-1]) + 1) for rows in torch.arange(n).tensor_split(folds)]
    x_folds = [_fold(x, rows, d.x_values, d.x_vectors) for rows, d in zip(test_rows, decompositions, strict=True)]
    y_folds = [_fold(y, rows, d.y_values, d.y_vectors) for rows, d in zip(test_rows, decompositions, strict=True)]
    sums, x_weights, y_weights = _squared_errors(x, y, x_folds, y_folds)
    errors = np.empty((n, 4))
    errors[order.numpy()] = sums  # in the order of the caller's rows, which the resampling depends on
    forward, backward = map(float, _r2(errors.sum(0)))
    forward_draws, backward_draws = _r2(resampled_means(errors, seed=seed))
    null_forward, null_backward = _null_draws(x, y, x_folds, y_folds, permutations, random)
    result = {
        "source": source,
        "target": target,
        "n": n,
        "r2_forward": forward,
        "r2_backward": backward,
        "r2_forward_interval": interval(forward_draws),
        "r2_backward_interval": interval(backward_draws),
        "difference": forward - backward,
        "difference_interval": interval(forward_draws - backward_draws),
        "null_forward": _summarise_null(null_forward),
        "null_backward": _summarise_null(null_backward),
        "shared": shared,
        "left_over": {
            "target": _left_over(forward, x, x_folds, x_weights, y, permutations, random),
            "source": _left_over(backward, y, y_folds, y_weights, x, permutations, random),
        },
    }
    fewest = n - max(map(len, parts))
    wide = [name for name, rows in ((source, x), (target, y)) if rows.shape[1] >= fewest]
    return Asymmetry(result | {"verdict": _verdict(result, fewest, wide)})


def _check_rows(x: Tensor, y: Tensor, folds: int, permutations: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(f"`X` and `Y` must be matrices of as many rows; got {tuple(x.shape)} and {tuple(y.shape)}.")
    if folds < 2:
        raise InputError(f"`folds` must be at least 2; got {folds}.")
    least = max(LEAST_ROWS, LEAST_FOLD * folds)
    if len(x) < least:
        raise InputError(
            f"`X` and `Y` must have at least {least} rows for {folds} folds; got {len(x)}. Give more rows."
        )
    check_positive(permutations, "`permutations`")


@dataclass(frozen=True)
class Fold:
    """One space in one fold: the slice of its test rows, and what is computed from its training rows, all the others.

    `mean` (d,) is the mean of the training rows, `values` (d,) and `vectors` (d, d) are the eigenvalues and
    eigenvectors of their covariance. `coordinates` are those of the test rows, less the mean, along the eigenvectors.
    """

    test: slice
    mean: Tensor
    values: Tensor
    vectors: Tensor
    coordinates: Tensor


def _fold(rows: Tensor, test: slice, values: Tensor, vectors: Tensor) -> Fold:
    _, mean = _training_rows(rows, test)
    vectors = vectors.float()
    return Fold(test, mean, values, vectors, (rows[test] - mean) @ vectors)


def _training_rows(rows: Tensor, test: slice) -> tuple[int, Tensor]:
    """The number and the mean of the rows outside the test rows; the mean of all `rows` is 0."""
    n_training = len(rows) - (test.stop - test.start)
    return n_training, -rows[test].sum(0) / n_training


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute eigenvectors with one thread: several wait for each other at every step, for seconds on shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _decompose_training_rows(x: Tensor, y: Tensor, parts: list[Tensor]) -> list[Decomposition]:
    """For each fold, the decomposition of the rows of all other folds."""
    by_fold = [moments((x[rows], y[rows])) for rows in parts]
    return [decompose(reduce(add, by_fold[:i] + by_fold[i + 1 :])) for i in range(len(by_fold))]


def _squared_errors(
    x: Tensor, y: Tensor, x_folds: list[Fold], y_folds: list[Fold]
) -> tuple[np.ndarray, list[Tensor], list[Tensor]]:
    """Squared errors and squared distances from the mean (n, 4) of y from x and of x from y, and the ridge weights."""
    products = _products(x, y, x_folds)
    *forward, x_weights = _out_of_fold(x_folds, y, products)
    *backward, y_weights = _out_of_fold(y_folds, x, [product.T for product in products])
    return np.column_stack([*_errors(*forward), *_errors(*backward)]), x_weights, y_weights


def _null_draws(
    x: Tensor, y: Tensor, x_folds: list[Fold], y_folds: list[Fold], permutations: int, random: torch.Generator
) -> np.ndarray:
    """R² forward and backward (2, permutations) with the rows to be predicted shuffled inside folds."""
    draws = []
    for _ in range(permutations):
        order = _shuffle_in_folds(x_folds, random)
        y_shuffled, x_shuffled = y[order], x[order.argsort()]  # the same pairs, in the order of x and in that of y
        products = _products(x, y_shuffled, x_folds)
        errors = _errors(*_out_of_fold(x_folds, y_shuffled, products)[:2])
        errors += _errors(*_out_of_fold(y_folds, x_shuffled, [product.T for product in products])[:2])
        draws.append(_r2(np.column_stack(errors).sum(0)))
    return np.transpose(draws)


def _products(x: Tensor, y: Tensor, folds: list[Fold]) -> list[Tensor]:
    """Σ xᵀy (d, e) over the test rows of each fold."""
    return [x[fold.test].T @ y[fold.test] for fold in folds]


def _out_of_fold(
    folds: list[Fold], y: Tensor, products: list[Tensor], weights: list[Tensor] | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Rows of y (n, d), each less the mean of the rows its map was fitted to, and the residuals of ridge.

    `products` are those of the source with y, fold by fold; the sum over all other folds is that of the training rows.
    Third come the `weights` of each fold's eigenvectors, which are chosen where they are not given.
    """
    truth, residuals, used = torch.empty_like(y), torch.empty_like(y), []
    whole, spread = reduce(add, products), y.square().sum()
    for i, fold in enumerate(folds):
        rows = y[fold.test]
        n_training, mean = _training_rows(y, fold.test)
        covariance = ((whole - products[i]) / n_training).addr_(fold.mean, mean, alpha=-1)
        cross = fold.vectors.T @ covariance
        if weights is None:
            training_spread = float((spread - rows.square().sum()) / n_training - mean.square().sum())
            used.append(_ridge_weights(fold.values, cross, n_training, training_spread))
        else:
            used.append(weights[i])
        torch.sub(rows, mean, out=truth[fold.test])
        torch.addmm(truth[fold.test], fold.coordinates * used[-1], cross, alpha=-1, out=residuals[fold.test])
    return truth, residuals, used


def _ridge_weights(values: Tensor, cross: Tensor, n: int, spread: float) -> Tensor:
    """1 / (λ + penalty) for each eigenvalue λ, at the penalty of least generalised cross-validation error.

    `cross` is the covariance of the eigenvectors' coordinates with the n training rows, whose mean squared distance
    from their mean is `spread`. With qᵢ the squared length of its row i, the mean squared residual is
    spread − Σ qᵢ (2wᵢ − λᵢ wᵢ²), so each penalty costs no more than a sum; there are 1 + Σ λᵢ wᵢ degrees of freedom in
    the fit.
    """
    strength = torch.linalg.vector_norm(cross, dim=1).double().square()
    penalties = torch.from_numpy(PENALTIES)[:, None] * values.mean()
    weights = torch.where(values > 0, 1 / (values + penalties), 0.0)  # no weight where nothing varies
    freedom_left = 1 - (1 + (values * weights).sum(1)) / n
    residual = spread - ((2 * weights - values * weights**2) * strength).sum(1)
    error = torch.where(freedom_left >= LEAST_LEFT, residual.clamp(min=0) / freedom_left**2, torch.inf)
    return weights[int(error.argmin())].float()


def _errors(truth: Tensor, residuals: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Squared error (n,) and squared distance from the mean (n,) of each row."""
    error, spread = (torch.linalg.vector_norm(rows, dim=1).double().square().numpy() for rows in (residuals, truth))
    return error, spread


def _r2(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R² forward and backward, 1 − error / spread, from the four sums in the last axis."""
    return 1 - sums[..., 0] / sums[..., 1], 1 - sums[..., 2] / sums[..., 3]


def _shuffle_in_folds(folds: list[Fold], random: torch.Generator) -> Tensor:
    """A random order (n,) that leaves each row in its fold, so that means and covariances of each side stay as is."""
    tests = [fold.test for fold in folds]
    return torch.cat([rows.start + torch.randperm(rows.stop - rows.start, generator=random) for rows in tests])


def _summarise_null(draws: np.ndarray) -> dict[str, float]:
    return {"mean": float(draws.mean()), "high": _edge(draws)}


def _edge(draws: np.ndarray) -> float:
    """The 95 % point of a null: the order statistic that an add-one p of .05 belongs to."""
    return float(np.sort(draws)[min(len(draws), math.ceil((1 - LEVEL) * (len(draws) + 1))) - 1])


def _left_over(
    r2: float,
    source: Tensor,
    folds: list[Fold],
    weights: list[Tensor],
    rows: Tensor,
    permutations: int,
    random: torch.Generator,
) -> dict[str, Any]:
    """The variance of `rows` (n, d) that `source` left, and how many of their principal directions it predicted."""
    with _one_thread():
        values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0).reshape(rows.shape[1], -1).double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = 1 + int((values.cumsum(0) < PRINCIPAL * values.sum()).sum())
    coordinates = rows @ vectors[:, :kept].float()

    def direction_r2(coordinates: Tensor) -> Tensor:
        truth, residuals, _ = _out_of_fold(folds, coordinates, _products(source, coordinates, folds), weights)
        return 1 - residuals.square().sum(0) / truth.square().sum(0)

    # At the penalties that were chosen: how a direction that is not predicted looks among others that are.
    largest = np.array(
        [float(direction_r2(coordinates[_shuffle_in_folds(folds, random)]).max()) for _ in range(permutations)]
    )
    return {
        "variance": float(np.clip(1 - r2, 0, 1)),
        "directions": kept,
        "predicted": int((direction_r2(coordinates) > max(0.0, _edge(largest))).sum()),
    }


def _verdict(result: dict[str, Any], rows: int, wide: list[str]) -> str:
    """The result in a sentence; `wide` are the sides with at least as many dimensions as training `rows`."""
    source, target = result["source"], result["target"]
    forward, backward = result["r2_forward"], result["r2_backward"]
    low, high = result["difference_interval"]
    beats = [
        result[f"r2_{way}"] > result[f"null_{way}"]["high"] and result[f"r2_{way}_interval"][0] > 0
        for way in ("forward", "backward")
    ]
    r2 = f"R² {source} → {target} is {num(forward)} and back {num(backward)}"
    note = ""
    if wide:
        few = f"fitted to {rows} rows, no more than dimensions"
        note = f" ({few}, so what {' and '.join(wide)} predicts is a lower bound)"
    if not any(beats):
        return f"neither predicts the other: {r2}, as by chance{note}."
    if low > 0 or high < 0:
        more, less = (source, target) if low > 0 else (target, source)
        left = result["left_over"]["source" if low > 0 else "target"]["variance"]
        return (
            f"{more} predicts {less} better than the reverse: R² {num(max(forward, backward))} against "
            f"{num(min(forward, backward))} (difference {num(abs(forward - backward))}, "
            f"95 % interval [{num(min(abs(low), abs(high)))}, {num(max(abs(low), abs(high)))}]); "
            f"{less} lacks {left:.0%} of the variance of {more}{note}."
        )
    if not all(beats):
        more, less = (source, target) if beats[0] else (target, source)
        return (
            f"only {more} predicts {less} beyond chance: {r2}, but the difference could be chance "
            f"(95 % interval [{num(low)}, {num(high)}]){note}."
        )
    return (
        f"each predicts the other about equally: {r2} "
        f"(difference {num(forward - backward)}, 95 % interval [{num(low)}, {num(high)}]){note}."
    )


def _float_rows(rows: np.ndarray | Tensor) -> Tensor:
    if isinstance(rows, Tensor):
        return rows.float().cpu()
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
