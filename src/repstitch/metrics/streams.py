"""Alignment metrics from one pass over batches of matched rows. Memory does not grow with the number of rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repstitch.metrics.kernels import check_vary, checked_self_hsic
from repstitch.metrics.matrices import check_rows
from repstitch.metrics.moments import Moments, moments
from repstitch.metrics.subspaces import (
    KEPT,
    angle,
    cca_of,
    check_predictor,
    check_room,
    linear_r2_of,
    procrustes_of,
    pwcca_of,
)

FLOOR = 1e-6  # share of the largest variance; float32 products do not resolve directions below it


@dataclass(frozen=True)
class Sums:
    """Sums over n pairs of rows, from which all metrics of `STREAMED` are computed.

    With u and v the rows minus the points `x_origin` and `y_origin`: `squares` (3,) are Σ‖u‖²‖v‖², Σ‖u‖⁴ and Σ‖v‖⁴,
    `x_weighted` (2, d_x) are Σ‖u‖² u and Σ‖v‖² u, and `y_weighted` (2, d_y) are Σ‖u‖² v and Σ‖v‖² v. All float64.
    """

    moments: Moments
    x_origin: Tensor
    y_origin: Tensor
    squares: Tensor
    x_weighted: Tensor
    y_weighted: Tensor


def sums(batches: Iterable[tuple[Any, Any]]) -> Sums:
    """Return the sums over batches (X (m, d_x), Y (m, d_y)) of matched rows, in one pass; O(n d²) time, O(d²) memory.

    Rows and their products about the mean are float32. So the metrics of canonical correlations leave out directions
    with less than a millionth of the variance of the largest one. The same metrics in memory include those directions,
    so the two differ if the variance falls off that far. Raises InputError as `moments.moments` does.
    """
    totals: dict[str, Any] = {}

    def add_weighted_sums() -> Iterator[tuple[Tensor, Tensor]]:
        for X, Y in batches:
            yield X, Y  # before they are used, because `moments` checks them
            if not len(X):
                continue
            x, y = _in_float64(X), _in_float64(Y)
            if not totals:
                totals.update(x_origin=x.mean(0), y_origin=y.mean(0), squares=0, x_weighted=0, y_weighted=0)
            u, v = x - totals["x_origin"], y - totals["y_origin"]
            k, m = u.square().sum(1), v.square().sum(1)
            weights = torch.stack([k, m])
            totals["squares"] = totals["squares"] + torch.stack([k @ m, k @ k, m @ m])
            totals["x_weighted"] = totals["x_weighted"] + weights @ u
            totals["y_weighted"] = totals["y_weighted"] + weights @ v

    whole = moments(add_weighted_sums())
    return Sums(moments=whole, **totals)


def _in_float64(rows: np.ndarray | Tensor) -> Tensor:
    """Return a batch as a float64 tensor. An array is copied, because torch warns about arrays that are read-only."""
    return rows.double() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows, dtype=np.float64))


def _cka(sums: Sums) -> float:
    m = sums.moments
    x, y = _covariances(m)
    return float(m.cov_xy.square().sum() / (x.norm() * y.norm()))


def _cka_unbiased(sums: Sums) -> float:
    m = sums.moments
    n = int(m.n)
    check_rows(n, n, 4)
    about = m.about(sums.x_origin, sums.y_origin)
    u_mean, v_mean = about.x_sum / n, about.y_sum / n
    assert about.yy is not None
    u_squares, v_squares = about.xx.trace(), about.yy.trace()  # Σ‖u‖², Σ‖v‖²
    both, xs, ys = sums.squares
    (u_x, v_x), (u_y, v_y) = sums.x_weighted, sums.y_weighted

    def centred(fourth, one, other, sum_one, sum_other, mean_one, mean_other, products) -> Tensor:
        """Return Σ‖u−a‖²‖v−b‖² from Σ‖u‖²‖v‖², Σ‖v‖² u, Σ‖u‖² v, Σ‖u‖², Σ‖v‖², the means a and b, and Σ u vᵀ."""
        p, q = mean_one @ mean_one, mean_other @ mean_other
        return (
            fourth - 2 * mean_one @ one - 2 * mean_other @ other + 4 * mean_one @ products @ mean_other
            + q * sum_one + p * sum_other - 3 * n * p * q
        )  # fmt: skip

    between = centred(both, v_x, u_y, u_squares, v_squares, u_mean, v_mean, about.xy)
    within_x = centred(xs, u_x, u_x, u_squares, u_squares, u_mean, u_mean, about.xx)
    within_y = centred(ys, v_y, v_y, v_squares, v_squares, v_mean, v_mean, about.yy)
    x_trace, y_trace = u_squares - n * u_mean @ u_mean, v_squares - n * v_mean @ v_mean

    def hsic(product: Tensor, diagonal: Tensor, left: Tensor, right: Tensor) -> float:
        return float((n * product).square().sum() - diagonal * n / (n - 2) + left * right / ((n - 1) * (n - 2)))

    x_covariance, y_covariance = _covariances(m)
    x = checked_self_hsic(hsic(x_covariance, within_x, x_trace, x_trace), float(x_trace))
    y = checked_self_hsic(hsic(y_covariance, within_y, y_trace, y_trace), float(y_trace))
    return hsic(m.cov_xy, between, x_trace, y_trace) / (x * y) ** 0.5


def _cca(sums: Sums) -> float:
    cosines, left, right = _cosines(sums.moments)
    check_room(int(sums.moments.n), len(left), len(right), "cca")
    return cca_of(cosines)


def _svcca(sums: Sums) -> float:
    cosines, left, right = _cosines(sums.moments)
    r, s = (int((axes.square().sum(1).cumsum(0) < KEPT * axes.square().sum()).sum()) + 1 for axes in (left, right))
    check_room(int(sums.moments.n), r, s, "svcca")
    return cca_of(cosines[:r, :s])


def _pwcca(sums: Sums) -> float:
    cosines, left, right = _cosines(sums.moments)
    check_room(int(sums.moments.n), len(left), len(right), "pwcca")
    return pwcca_of(cosines, left)


def _procrustes(sums: Sums) -> float:
    cosines, left, right = _cosines(sums.moments)
    return procrustes_of(cosines, left.norm(dim=1), right.norm(dim=1))


def _linear_r2(sums: Sums) -> float:
    cosines, left, right = _cosines(sums.moments)
    check_predictor(int(sums.moments.n), len(left))
    return linear_r2_of(cosines, right.norm(dim=1))


def _cosines(m: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cosines (r_x, r_y) between the principal bases of the two sides, and the axes (r, d) of each side.

    The axes are sorted by variance, largest first.
    """
    (x_scale, x_axes), (y_scale, y_axes) = (_principal(covariance) for covariance in _covariances(m))
    cosines = (x_axes @ m.cov_xy @ y_axes.T) / x_scale[:, None] / y_scale
    return cosines, x_axes * x_scale[:, None], y_axes * y_scale[:, None]


def _principal(covariance: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > FLOOR * values[-1]
    return values[kept].flip(0).sqrt(), vectors[:, kept].flip(1).T


def _covariances(m: Moments) -> tuple[Tensor, Tensor]:
    for name, covariance, mean in (("X", m.cov_xx, m.x_mean), ("Y", m.cov_yy, m.y_mean)):
        check_vary(float(covariance.trace()) ** 0.5, float(mean.norm()), torch.finfo(torch.float32).eps, name)
    return m.cov_xx, m.cov_yy


def _angular(sums: Sums) -> float:
    return angle(_procrustes(sums))


STREAMED: dict[str, Callable[[Sums], float]] = {
    "cka": _cka,
    "cka_unbiased": _cka_unbiased,
    "svcca": _svcca,
    "pwcca": _pwcca,
    "cca": _cca,
    "procrustes": _procrustes,
    "angular": _angular,
    "linear_r2": _linear_r2,
}
