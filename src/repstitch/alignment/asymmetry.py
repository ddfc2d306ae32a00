"""How much of each of two spaces can be predicted linearly from the other, and how much cannot."""

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
# Penalties that leave a smaller share of the degrees of freedom are not chosen: their residual is mostly rounding.
LEAST_LEFT = 0.05
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
    """Measure how much of each of two spaces can be predicted linearly from the other, and how much cannot.

    `X` (n, d_source) and `Y` (n, d_target) are matched rows, NumPy or torch, and are not normalised. `r2_forward` is
    the R² of a ridge regression from X to Y, 1 − Σ‖y − ŷ‖² / Σ‖y − mean‖². Each row is predicted by a map that was
    fitted without the row's fold, and `mean` is the mean of the rows that this map was fitted to. `r2_backward` is the
    same from Y to X. R² is at most 1, about 0 for unrelated spaces, and below 0 where the map predicts worse than the
    mean. It does not change when a space is rotated, translated or scaled. Each direction counts in proportion to its
    variance. The penalty is chosen on the training folds by generalised cross-validation (Golub, Heath and Wahba 1979).
    Intervals resample rows with the predictions fixed; the interval of the difference resamples both directions
    together. `null_forward` and `null_backward` repeat the fit, including the choice of the penalty, with the predicted
    rows shuffled inside folds. Each has the `mean` over the shuffles and their 95 % point `high`.

    `left_over` describes, for each space, what the other space does not predict. `variance` is the share 1 − R² of the
    space's variance (limited to the range from 0 to 1) that a linear map from the other space does not predict at this
    number of rows. `directions` is the number of principal directions that contain 95 % of the variance. `predicted` is
    the number of these directions with an R² above 0 and above the 95 % point of the null; a draw of this null is the
    largest R² of any of the directions when rows are shuffled and the penalties stay the same.

    `shared` is the `fit.spectrum.shared_spectrum` with the first fold as test rows. Where a space has at least as many
    dimensions as there are training rows, the R² of the map from it is a lower bound, and the verdict states this.
    Takes O(permutations · (n d² + folds · d³)) time.

    Raises InputError on rows that do not match, on fewer than 20 rows or 4 per fold, on NaN or Inf, and on a space
    whose rows are all equal.
    """
    x, y = _float_rows(X), _float_rows(Y)
    _check_rows(x, y, folds, permutations)
    n = len(x)
    random = torch.Generator().manual_seed(seed)
    parts = list(torch.randperm(n, generator=random).tensor_split(folds))
    with _one_thread():
        decompositions = _decompose_training_rows(x, y, parts)
        shared = shared_spectrum(decompositions[0], x[parts[0]], y[parts[0]], seed=seed)
    order = torch.cat(parts)  # sorts rows by fold, so that each fold is a slice
    x, y = (rows[order] - rows.mean(0) for rows in (x, y))
    test_rows = [slice(int(rows[0]), int(rows[-1]) + 1) for rows in torch.arange(n).tensor_split(folds)]
    x_folds = [_fold(x, rows, d.x_values, d.x_vectors) for rows, d in zip(test_rows, decompositions, strict=True)]
    y_folds = [_fold(y, rows, d.y_values, d.y_vectors) for rows, d in zip(test_rows, decompositions, strict=True)]
    sums, x_weights, y_weights = _squared_errors(x, y, x_folds, y_folds)
    errors = np.empty((n, 4))
    errors[order.numpy()] = sums  # back in the caller's order of rows, because resampling depends on the order
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
        raise InputError(
            f"`X` and `Y` must be matrices with the same number of rows; got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if folds < 2:
        raise InputError(f"`folds` must be at least 2; got {folds}.")
    least = max(LEAST_ROWS, LEAST_FOLD * folds)
    if len(x) < least:
        raise InputError(
            f"`X` and `Y` must have at least {least} rows for {folds} folds; got {len(x)}. Pass more rows."
        )
    check_positive(permutations, "`permutations`")


@dataclass(frozen=True)
class Fold:
    """One space in one fold: the slice of its test rows, and statistics of its training rows, which are all other rows.

    `mean` (d,) is the mean of the training rows. `values` (d,) and `vectors` (d, d) are the eigenvalues and
    eigenvectors of their covariance. `coordinates` are the test rows minus the mean, in the basis of the eigenvectors.
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
    """Return the number and the mean of the rows outside the test rows. The mean of all `rows` must be 0."""
    n_training = len(rows) - (test.stop - test.start)
    return n_training, -rows[test].sum(0) / n_training


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread inside the `with` block.

    Several threads wait for each other at every step of an eigendecomposition, which takes seconds on shared cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _decompose_training_rows(x: Tensor, y: Tensor, parts: list[Tensor]) -> list[Decomposition]:
    """Return, for each fold, the decomposition of the rows of all other folds."""
    by_fold = [moments((x[rows], y[rows])) for rows in parts]
    return [decompose(reduce(add, by_fold[:i] + by_fold[i + 1 :])) for i in range(len(by_fold))]


def _squared_errors(
    x: Tensor, y: Tensor, x_folds: list[Fold], y_folds: list[Fold]
) -> tuple[np.ndarray, list[Tensor], list[Tensor]]:
    """Return errors (n, 4) and the ridge weights of each fold from x to y and from y to x.

    The columns are the squared error and the squared distance from the mean of each row of y, then of each row of x.
    """
    products = _products(x, y, x_folds)
    *forward, x_weights = _out_of_fold(x_folds, y, products)
    *backward, y_weights = _out_of_fold(y_folds, x, [product.T for product in products])
    return np.column_stack([*_errors(*forward), *_errors(*backward)]), x_weights, y_weights


def _null_draws(
    x: Tensor, y: Tensor, x_folds: list[Fold], y_folds: list[Fold], permutations: int, random: torch.Generator
) -> np.ndarray:
    """Return R² forward and backward (2, permutations) with the predicted rows shuffled inside folds."""
    draws = []
    for _ in range(permutations):
        order = _shuffle_in_folds(x_folds, random)
        y_shuffled, x_shuffled = y[order], x[order.argsort()]  # the same pairs, in the order of x and in the order of y
        products = _products(x, y_shuffled, x_folds)
        errors = _errors(*_out_of_fold(x_folds, y_shuffled, products)[:2])
        errors += _errors(*_out_of_fold(y_folds, x_shuffled, [product.T for product in products])[:2])
        draws.append(_r2(np.column_stack(errors).sum(0)))
    return np.transpose(draws)


def _products(x: Tensor, y: Tensor, folds: list[Fold]) -> list[Tensor]:
    """Return Σ xᵀy (d, e) over the test rows of each fold."""
    return [x[fold.test].T @ y[fold.test] for fold in folds]


def _out_of_fold(
    folds: list[Fold], y: Tensor, products: list[Tensor], weights: list[Tensor] | None = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the centred rows of y, the residuals of ridge regression (both (n, d)), and the weights of each fold.

    Rows are centred by the mean of the rows that their map was fitted to. `products` are the `_products` of the source
    with y; the products of a fold's training rows are the sum over all other folds. `weights` has one weight per
    eigenvector for each fold; if None, `_ridge_weights` chooses them.
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
    """Return 1 / (λ + penalty) for each eigenvalue λ, at the penalty with the least generalised cross-validation error.

    `cross` is the covariance of the eigenvectors' coordinates with the n training rows, and `spread` is the mean
    squared distance of these rows from their mean. With qᵢ the squared length of row i of `cross`, the mean squared
    residual is spread − Σ qᵢ (2wᵢ − λᵢ wᵢ²), so evaluating a penalty takes only a sum. The fit has 1 + Σ λᵢ wᵢ degrees
    of freedom.
    """
    strength = torch.linalg.vector_norm(cross, dim=1).double().square()
    penalties = torch.from_numpy(PENALTIES)[:, None] * values.mean()
    weights = torch.where(values > 0, 1 / (values + penalties), 0.0)  # weight 0 in directions without variance
    freedom_left = 1 - (1 + (values * weights).sum(1)) / n
    residual = spread - ((2 * weights - values * weights**2) * strength).sum(1)
    error = torch.where(freedom_left >= LEAST_LEFT, residual.clamp(min=0) / freedom_left**2, torch.inf)
    return weights[int(error.argmin())].float()


def _errors(truth: Tensor, residuals: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the squared error (n,) and the squared distance from the mean (n,) of each row."""
    error, spread = (torch.linalg.vector_norm(rows, dim=1).double().square().numpy() for rows in (residuals, truth))
    return error, spread


def _r2(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return R² forward and backward, 1 − error / spread, from the four sums in the last axis."""
    return 1 - sums[..., 0] / sums[..., 1], 1 - sums[..., 2] / sums[..., 3]


def _shuffle_in_folds(folds: list[Fold], random: torch.Generator) -> Tensor:
    """Return a random order (n,) that keeps each row in its fold, so that means and covariances of folds are kept."""
    tests = [fold.test for fold in folds]
    return torch.cat([rows.start + torch.randperm(rows.stop - rows.start, generator=random) for rows in tests])


def _summarise_null(draws: np.ndarray) -> dict[str, float]:
    return {"mean": float(draws.mean()), "high": _edge(draws)}


def _edge(draws: np.ndarray) -> float:
    """Return the 95 % point of a null: the order statistic whose add-one p-value is .05."""
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
    """Return how much of `rows` (n, d) is not predicted from `source`: the entries that `asymmetry` describes."""
    with _one_thread():
        values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0).reshape(rows.shape[1], -1).double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = 1 + int((values.cumsum(0) < PRINCIPAL * values.sum()).sum())
    coordinates = rows @ vectors[:, :kept].float()

    def direction_r2(coordinates: Tensor) -> Tensor:
        truth, residuals, _ = _out_of_fold(folds, coordinates, _products(source, coordinates, folds), weights)
        return 1 - residuals.square().sum(0) / truth.square().sum(0)

    # The penalties chosen for the unshuffled rows are kept. The null is then that of one direction that cannot be
    # predicted in a space whose other directions can.
    largest = np.array(
        [float(direction_r2(coordinates[_shuffle_in_folds(folds, random)]).max()) for _ in range(permutations)]
    )
    return {
        "variance": float(np.clip(1 - r2, 0, 1)),
        "directions": kept,
        "predicted": int((direction_r2(coordinates) > max(0.0, _edge(largest))).sum()),
    }


def _verdict(result: dict[str, Any], rows: int, wide: list[str]) -> str:
    """Return the result in a sentence; `wide` are the spaces with at least as many dimensions as training `rows`."""
    source, target = result["source"], result["target"]
    forward, backward = result["r2_forward"], result["r2_backward"]
    low, high = result["difference_interval"]
    beats = [
        result[f"r2_{way}"] > result[f"null_{way}"]["high"] and result[f"r2_{way}_interval"][0] > 0
        for way in ("forward", "backward")
    ]
    r2 = f"R² is {num(forward)} from {source} to {target} and {num(backward)} from {target} to {source}"
    note = ""
    if wide:
        names = " and ".join(wide)
        maps, verb, dimensions = ("map", "was", f"{names} has") if len(wide) == 1 else ("maps", "were", "both have")
        bound = f"{dimensions} at least as many dimensions, so R² is a lower bound"
        note = f" (the {maps} from {names} {verb} fitted to {rows} rows, but {bound})"
    if not any(beats):
        return f"neither space predicts the other beyond chance: {r2}{note}."
    if low > 0 or high < 0:
        more, less = (source, target) if low > 0 else (target, source)
        left = result["left_over"]["source" if low > 0 else "target"]["variance"]
        return (
            f"{more} predicts {less} better than {less} predicts {more}: R² {num(max(forward, backward))} against "
            f"{num(min(forward, backward))} (difference {num(abs(forward - backward))}, "
            f"95 % interval [{num(min(abs(low), abs(high)))}, {num(max(abs(low), abs(high)))}]); "
            f"{less} does not predict {left:.0%} of the variance of {more}{note}."
        )
    if not all(beats):
        more, less = (source, target) if beats[0] else (target, source)
        return (
            f"only {more} predicts {less} beyond chance: {r2}, but the difference is not significant "
            f"(95 % interval [{num(low)}, {num(high)}]){note}."
        )
    return (
        f"each space predicts the other about equally well: {r2} "
        f"(difference {num(forward - backward)}, 95 % interval [{num(low)}, {num(high)}]){note}."
    )


def _float_rows(rows: np.ndarray | Tensor) -> Tensor:
    if isinstance(rows, Tensor):
        return rows.float().cpu()
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
