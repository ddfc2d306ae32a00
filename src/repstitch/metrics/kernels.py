"""Centred kernel alignment, from d × d products rather than n × n kernels."""

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.null import permute_rows

WIDE = 128


def cka(X: Tensor, Y: Tensor) -> float:
    """Linear CKA: ‖Xcᵀ Yc‖² / (‖Xcᵀ Xc‖ ‖Ycᵀ Yc‖).

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned. Biased: unrelated spaces score far
    above 0 when d is not much below n (use `cka_unbiased`). Rotation, scale and translation do not matter. O(n d²)
    time, O(d²) memory. Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited".
    """
    X, Y = _centred(X, "X"), _centred(Y, "Y")
    _check_rows(X, Y, 2)
    return float((X.T @ Y).square().sum() / ((X.T @ X).norm() * (Y.T @ Y).norm()))


def cka_unbiased(X: Tensor, Y: Tensor) -> float:
    """Linear CKA with the unbiased estimate of HSIC in all three places.

    X is (n, d_x), Y is (n, d_y), rows matched, n ≥ 4. At most 1, higher is more aligned, 0 on average for unrelated
    spaces, whatever d and n. Rotation, scale and translation do not matter. O(n d²) time, O(n d) memory. Song et al.
    2012, "Feature Selection via Dependence Maximization"; Nguyen et al. 2021, "Do Wide and Deep Networks Learn the
    Same Things?".
    """
    X, Y = _centred(X, "X"), _centred(Y, "Y")
    _check_rows(X, Y, 4)
    between, x, y = _hsic(X, Y), _hsic(X, X), _hsic(Y, Y)
    if x <= 1e-12 * X.square().sum() ** 2 or y <= 1e-12 * Y.square().sum() ** 2:
        raise InputError("Unbiased CKA is not defined for so few rows of so little spread; give more rows.")
    return float(between / (x * y).sqrt())


def cka_unbiased_null(X: Tensor, Y: Tensor, draws: int, seed: int = 0) -> np.ndarray:
    """`cka_unbiased(X, Y[order])` for `draws` random orders of the rows.

    Of spaces wider than 128 dimensions each draw keeps the principal directions that make up all but a thousandth of
    the kernel's squared norm, to which the null's variance is proportional: its spread is right to a thousandth, in a
    fraction of the time.
    """
    X, Y = _centred(X, "X"), _centred(Y, "Y")
    _check_rows(X, Y, 4)
    X, Y = _leading(X), _leading(Y)
    X, Y = X / X.norm(), Y / Y.norm()  # fourth powers of the rows' size must fit float32
    scale = (_hsic(X, X) * _hsic(Y, Y)).sqrt()
    x, y = X.float(), Y.float()  # chance needs no more digits than that, and has draws to average over
    return permute_rows(lambda order: float(_hsic(x, y[order]) / scale), len(X), draws, seed)


def _hsic(X: Tensor, Y: Tensor) -> Tensor:
    """Song's unbiased HSIC of the linear kernels, times n(n − 3), without forming either kernel.

    With K̃ the kernel XXᵀ with its diagonal set to zero, tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1. Rows must
    be centred, which leaves the value as it is and keeps the terms small: a row of K̃ then sums to minus its diagonal.
    """
    n = len(X)
    k, m = X.square().sum(1), Y.square().sum(1)  # the diagonals
    both = (k * m).sum()
    return (X.T @ Y).square().sum() - both + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * both / (n - 2)


def _leading(X: Tensor, left_out: float = 1e-3) -> Tensor:
    """Wide rows in their leading principal directions: all but `left_out` of the squared norm of X Xᵀ is kept."""
    if X.shape[1] <= WIDE:
        return X
    values, vectors = torch.linalg.eigh(X.float().T @ X.float())
    squares = values.clamp(min=0).square().cumsum(0)  # ascending, so the sum is over the smallest
    return X @ vectors[:, squares > left_out * squares[-1]].double()


def _centred(X: Tensor, name: str) -> Tensor:
    X = X.double()
    largest = X.abs().max() if X.numel() else 0.0
    X = X - X.mean(0)
    if not bool(torch.isfinite(X).all()):
        raise InputError(f"`{name}` must be finite; it holds NaN or Inf.")
    if not bool((X.abs() > 1e-12 * largest).any()):  # equal rows may differ from their mean in the last digit
        raise InputError(f"`{name}` must vary; all its rows are the same.")
    return X


def _check_rows(X: Tensor, Y: Tensor, least: int) -> None:
    if len(X) != len(Y) or len(X) < least:
        raise InputError(f"`X` and `Y` must have as many rows, at least {least}; got {len(X)} and {len(Y)}.")
