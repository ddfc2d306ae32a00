"""Metrics of the subspaces that two spaces span: canonical correlations, Procrustes, linear prediction."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.kernels import centred
from repstitch.metrics.matrices import MatrixLike, check_rows, matched_matrices

KEPT = 0.99  # share of the variance that `svcca` keeps
ROUNDING = 1.2e-7  # relative rounding of float32, the usual type of rows


@dataclass(frozen=True)
class Principal:
    """The centred rows of one space as the product Q · axes.

    `basis` is Q (n, r), orthonormal; `axes` (r, d) are orthogonal. `values` (r,) are the lengths of the axes, which are
    the singular values, largest first. r is the rank. All float64.
    """

    basis: Tensor
    values: Tensor
    axes: Tensor

    def __len__(self) -> int:
        return len(self.basis)

    @cached_property
    def squares(self) -> Tensor:
        """‖x‖² of each centred row (n,)."""
        return (self.basis * self.values).square().sum(1)

    def leading(self) -> "Principal":
        """Return the part in the fewest directions that account for 99 % of the variance."""
        variance = self.values.square().cumsum(0)
        r = int((variance < KEPT * variance[-1]).sum()) + 1
        return Principal(self.basis[:, :r], self.values[:r], self.axes[:r])


def cca(X: MatrixLike, Y: MatrixLike) -> float:
    """Mean canonical correlation: mean singular value of Q_xᵀ Q_y, with Q an orthonormal basis of the centred rows.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned. Unrelated spaces score about
    .85 √(d / n) for equal d well below n. If d_x + d_y > n, some correlations are 1 for any data, so always compare the
    score with its null. Invariant to invertible linear maps and translations of either side. Raises InputError if one
    side has rank n − 1, because the score is then 1 for any data. O(n d²) time. Hotelling 1936, "Relations Between Two
    Sets of Variates".
    """
    return compare_cca(*_principal_pair(X, Y))


def svcca(X: MatrixLike, Y: MatrixLike) -> float:
    """`cca` of the fewest principal directions of each side that account for 99 % of its variance.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned. Invariant to rotation, scale and
    translation. Raises InputError as `cca` does. O(n d²) time. Raghu et al. 2017, "SVCCA: Singular Vector Canonical
    Correlation Analysis".
    """
    return compare_svcca(*_principal_pair(X, Y))


def pwcca(X: MatrixLike, Y: MatrixLike) -> float:
    """Canonical correlations weighted by how much of X each canonical variate accounts for: Σ α_i ρ_i / Σ α_i.

    α_i = Σ_j |⟨h_i, x_j⟩|, with h_i the i-th canonical variate of X and x_j the centred columns of X. X is (n, d_x), Y
    is (n, d_y), rows matched. In [0, 1], higher is more aligned. Not symmetric. Invariant to scale and translation of X
    and to invertible linear maps and translation of Y, but not to a rotation of X, because the weights sum over its
    columns. Raises InputError as `cca` does. O(n d²) time. Morcos et al. 2018, "Insights on Representational Similarity
    in Neural Networks with Canonical Correlation".
    """
    return compare_pwcca(*_principal_pair(X, Y))


def procrustes(X: MatrixLike, Y: MatrixLike) -> float:
    """Procrustes similarity: how well a rotation and scaling map one space to the other, ‖X̄ᵀ Ȳ‖* / (‖X̄‖ ‖Ȳ‖).

    The numerator is a nuclear norm, the denominator has Frobenius norms. X is (n, d_x), Y is (n, d_y), rows matched; X̄
    and Ȳ are the centred rows. In [0, 1], higher is more aligned; unrelated spaces score well above 0 unless n is far
    above d. Invariant to rotation, scale and translation. O(n d² + d³) time. Schönemann 1966, "A Generalized Solution
    of the Orthogonal Procrustes Problem".
    """
    return compare_procrustes(*_principal_pair(X, Y))


def angular(X: MatrixLike, Y: MatrixLike) -> float:
    """Angular similarity: `procrustes` as an angle, scaled to [0, 1] as 1 − 2 arccos(procrustes) / π.

    One minus the score is a metric distance between shapes. X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1],
    higher is more aligned. Invariances as for `procrustes`, and unrelated spaces score above 0 as they do there. O(n d²
    + d³) time. Williams et al. 2021, "Generalized Shape Metrics on Neural Representations".
    """
    return compare_angular(*_principal_pair(X, Y))


def linear_r2(X: MatrixLike, Y: MatrixLike) -> float:
    """Share of Y's variance that least squares predicts from X: ‖Q_xᵀ Ȳ‖² / ‖Ȳ‖².

    X is (n, d_x), Y is (n, d_y), rows matched; Q_x is an orthonormal basis of the centred rows of X, and Ȳ the centred
    rows of Y. The prediction is fitted and scored on the same rows. In [0, 1], higher is better predicted. Not
    symmetric. Unrelated spaces score d_x / (n − 1) on average. Invariant to invertible linear maps of X, to rotation
    and scale of Y, and to translation of either side. Raises InputError if X has rank n − 1, because it then predicts
    any Y. O(n d²) time. Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited".
    """
    return compare_linear_r2(*_principal_pair(X, Y))


def principal(X: Tensor, k: int = 10, name: str = "X") -> Principal:
    """Prepare rows (n, d) for all metrics of this module. Raises InputError if they are not finite or do not vary."""
    rows = centred(X, name=name).rows.double()
    basis, values, axes = torch.linalg.svd(rows, full_matrices=False)
    r = int((values > values[0] * ROUNDING * max(rows.shape) ** 0.5).sum())
    return Principal(basis[:, :r], values[:r], values[:r, None] * axes[:r])


def compare_cca(x: Principal, y: Principal) -> float:
    return cca_of(_cosines(x, y, "cca"))


def compare_svcca(x: Principal, y: Principal) -> float:
    return cca_of(_cosines(x.leading(), y.leading(), "svcca"))


def compare_pwcca(x: Principal, y: Principal) -> float:
    return pwcca_of(_cosines(x, y, "pwcca"), x.axes)


def compare_procrustes(x: Principal, y: Principal) -> float:
    check_rows(len(x), len(y), 3)
    return procrustes_of(x.basis.T @ y.basis, x.values, y.values)


def compare_angular(x: Principal, y: Principal) -> float:
    return angle(compare_procrustes(x, y))


def compare_linear_r2(x: Principal, y: Principal) -> float:
    check_rows(len(x), len(y), 3)
    check_predictor(len(x), len(x.values))
    return linear_r2_of(x.basis.T @ y.basis, y.values)


# The next functions compute scores from the cosines (r_x, r_y) between two bases. `streams` uses them as well.


def cca_of(cosines: Tensor) -> float:
    return float(torch.linalg.svdvals(cosines).clamp(max=1).mean())


def pwcca_of(cosines: Tensor, axes: Tensor) -> float:
    left, strengths, _ = torch.linalg.svd(cosines, full_matrices=False)
    return float(_weights(axes, left) @ strengths.clamp(max=1))


def procrustes_of(cosines: Tensor, left: Tensor, right: Tensor) -> float:
    strengths = torch.linalg.svdvals(left[:, None] * cosines * right)
    return float((strengths.sum() / (left.norm() * right.norm())).clamp(max=1))


def angle(procrustes: float) -> float:
    return 1 - 2 / math.pi * math.acos(procrustes)


def linear_r2_of(cosines: Tensor, right: Tensor) -> float:
    return float((cosines * right).square().sum() / right.square().sum())


def check_predictor(n: int, rank: int) -> None:
    if rank >= n - 1:
        raise InputError(
            f"`linear_r2` needs more rows than dimensions: rank {rank} predicts anything on {n} rows; pass more rows."
        )


def influence_cca(x: Principal, y: Principal, metric: str = "cca") -> Tensor:
    left, strengths, right = torch.linalg.svd(_cosines(x, y, metric), full_matrices=False)
    return _influence_of_mean(x, y, left, strengths, right, torch.full_like(strengths, 1 / len(strengths)))


def influence_svcca(x: Principal, y: Principal) -> Tensor:
    return influence_cca(x.leading(), y.leading(), "svcca")


def influence_pwcca(x: Principal, y: Principal) -> Tensor:
    """Return the influence values (n,) of `pwcca`, by the chain rule through the cosines and the weights.

    The weight of a row changes Q_xᵀQ_x, Q_xᵀQ_y and Q_yᵀQ_y, which are I, the cosines and I. To first order, the square
    root of I + D is I + D/2.
    """
    cosines = _cosines(x, y, "pwcca")
    r, s = cosines.shape
    shapes = ((r, r), (r, s), (s, s))
    changes = [torch.zeros(shape, dtype=cosines.dtype, device=cosines.device, requires_grad=True) for shape in shapes]
    left, both, right = changes
    whitened = cosines + both - left @ cosines / 2 - cosines @ right / 2
    turned, strengths, other = torch.linalg.svd(whitened, full_matrices=False)
    weights = _weights(x.axes + left @ x.axes / 2, turned)
    by_left, by_both, by_right = torch.autograd.grad(weights @ strengths, changes)
    slope = ((x.basis @ by_left) * x.basis).sum(1) + ((x.basis @ by_both) * y.basis).sum(1)
    slope = slope + ((y.basis @ by_right) * y.basis).sum(1)
    if not bool(torch.isfinite(slope).all()):  # if correlations are tied, the weights have no derivative
        return _influence_of_mean(x, y, turned.detach(), strengths.detach(), other.detach(), weights.detach())
    return (weights @ strengths).detach() + len(x) * (slope - slope.mean())


def _influence_of_mean(
    x: Principal, y: Principal, left: Tensor, strengths: Tensor, right: Tensor, weights: Tensor
) -> Tensor:
    """Return the influence values (n,) of a mean of canonical correlations with fixed weights.

    They are defined as in `kernels.influence_of_ratio`.
    """
    u, v = x.basis @ left, y.basis @ right.T
    slope = (u * v - strengths / 2 * (u.square() + v.square())) @ weights
    return strengths @ weights + len(x) * slope


def influence_procrustes(x: Principal, y: Principal) -> Tensor:
    left, strengths, right = torch.linalg.svd((x.basis * x.values).T @ (y.basis * y.values), full_matrices=False)
    norm = x.values.norm() * y.values.norm()
    score = strengths.sum() / norm
    both = (((x.basis * x.values) @ left) * ((y.basis * y.values) @ right.T)).sum(1) / norm
    shares = x.squares / x.squares.sum() + y.squares / y.squares.sum()
    return score + len(both) * (both - score / 2 * shares)


def influence_angular(x: Principal, y: Principal) -> Tensor:
    rows = influence_procrustes(x, y)
    score = rows.mean()
    slope = 2 / torch.pi / (1 - score**2).clamp(min=1e-12).sqrt()
    return 1 - 2 / torch.pi * torch.arccos(score.clamp(max=1)) + slope * (rows - score)


def influence_linear_r2(x: Principal, y: Principal) -> Tensor:
    check_predictor(len(x), len(x.values))
    predicted = x.basis @ ((x.basis.T @ y.basis) * y.values)
    missed = (y.basis * y.values - predicted).square().sum(1)
    total = y.squares.sum()
    score = 1 - missed.sum() / total
    return score + len(missed) * ((1 - score) * y.squares - missed) / total


def permute_principal(space: Principal, order: Tensor) -> Principal:
    return Principal(space.basis[order], space.values, space.axes)


def _weights(axes: Tensor, left: Tensor) -> Tensor:
    weights = (left.T @ axes).abs().sum(1)
    return weights / weights.sum()


def _cosines(x: Principal, y: Principal, metric: str) -> Tensor:
    """Return Q_xᵀ Q_y (r_x, r_y). Raises InputError if the ranks are so high that the score is 1 for any data."""
    check_rows(len(x), len(y), 3)
    check_room(len(x), len(x.values), len(y.values), metric)
    return x.basis.T @ y.basis


def check_room(n: int, r: int, s: int, metric: str) -> None:
    """Raise InputError if the ranks r and s are so high that the score is 1 for any data."""
    if max(r, s) >= n - 1:
        raise InputError(
            f"`{metric}` needs more rows than dimensions: with ranks {r} and {s} on {n} rows it is 1 for any data; "
            "pass more rows."
        )


def _principal_pair(X: MatrixLike, Y: MatrixLike) -> tuple[Principal, Principal]:
    x, y = matched_matrices(X, Y, 3)
    return principal(x, name="X"), principal(y, name="Y")
