"""Metrics of the two n × n similarity matrices: linear ones from d × d products."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.matrices import MatrixLike, check_rows, matched_matrices
from repstitch.metrics.moments import BATCH_ROWS, add_gram
from repstitch.metrics.neighbours import unit
from repstitch.precision import exact_products

WIDE = 128
FEW_PRODUCTS = 2**30  # that a processor takes in float64 without being noticed
DENSE_ROWS = 30_000  # above this a kernel would take more than 3.6 GB
CELLS = 2**24

# --- linear kernels ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Centred:
    """Centred rows (n, d) of one space, scaled to a mean square length of one: what linear CKA needs of it.

    float64 where there are few products to take, else float32; sums are float64 in both.
    """

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def squares(self) -> Tensor:
        """‖x‖² of each row (n,): the diagonal of the kernel."""
        return self.rows.double().square().sum(1)

    @cached_property
    def gram(self) -> Tensor:
        """Xᵀ X (d, d), float64."""
        if self.rows.dtype == torch.float64:
            return self.rows.T @ self.rows
        d = self.rows.shape[1]
        total = torch.zeros(d, d, dtype=torch.float64, device=self.rows.device)
        for part in self.rows.split(BATCH_ROWS):
            add_gram(total, part)
        return total.triu() + total.triu(1).T

    @cached_property
    def norm(self) -> float:
        """‖X Xᵀ‖ = ‖Xᵀ X‖."""
        return float(self.gram.norm())

    @cached_property
    def squared_norm_parts(self) -> Tensor:
        """Each row's part (n,) of ‖X Xᵀ‖²."""
        return _parts(self.rows, self.gram, self.rows)

    @cached_property
    def unbiased_self_hsic(self) -> float:
        """Song's unbiased HSIC of the space with itself, times n(n − 3); InputError where it is not above 0."""
        return checked_self_hsic(self.norm**2 + float(_diagonal(self, self).sum()), float(self.squares.sum()))

    @cached_property
    def leading(self) -> Tensor:
        """Rows (n, r), float32, in the principal directions that make up all but a thousandth of ‖X Xᵀ‖²; ‖X‖ = 1."""
        X = self.rows.float() / len(self.rows) ** 0.5  # fourth powers of the rows' size must fit float32
        if X.shape[1] > WIDE:
            values, vectors = torch.linalg.eigh(self.gram.float())
            squares = values.clamp(min=0).square().cumsum(0)  # ascending, so the sum is over the smallest
            X = X @ vectors[:, squares > 1e-3 * squares[-1]]
        return X


def cka(X: MatrixLike, Y: MatrixLike) -> float:
    """Linear CKA: ‖Xcᵀ Yc‖² / (‖Xcᵀ Xc‖ ‖Ycᵀ Yc‖).

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned. Biased: unrelated spaces score far
    above 0 when d is not much below n (use `cka_unbiased`). Rotation, scale and translation do not matter. O(n d²)
    time, O(n d) memory. Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited".
    """
    return compare_cka(*_centred_pair(X, Y, 2))


def cka_unbiased(X: MatrixLike, Y: MatrixLike) -> float:
    """Linear CKA with the unbiased estimate of HSIC in all three places.

    X is (n, d_x), Y is (n, d_y), rows matched, n ≥ 4. At most 1, higher is more aligned, 0 on average for unrelated
    spaces, whatever d and n. Rotation, scale and translation do not matter. O(n d²) time, O(n d) memory. Song et al.
    2012, "Feature Selection via Dependence Maximization"; Nguyen et al. 2021, "Do Wide and Deep Networks Learn the
    Same Things?".
    """
    return compare_cka_unbiased(*_centred_pair(X, Y, 4))


def centred(X: Tensor, k: int = 10, name: str = "X") -> Centred:
    """Prepare rows (n, d) for `cka` and `cka_unbiased`; InputError where they are not finite or do not vary."""
    rounding = torch.finfo(torch.promote_types(X.dtype, torch.float32)).eps
    X = X.double() if X.numel() * X.shape[1] <= FEW_PRODUCTS else X.float()
    size = float(torch.linalg.vector_norm(X, dim=1, dtype=torch.float64).max()) if X.numel() else 0.0
    X = X - X.mean(0, dtype=torch.float64).to(X)
    spread = torch.linalg.vector_norm(X, dtype=torch.float64) / len(X) ** 0.5
    if not bool(torch.isfinite(spread)):
        raise InputError(f"`{name}` must be finite; it holds NaN or Inf.")
    check_vary(float(spread), size, max(rounding, 1e-12), name)
    return Centred(X / spread.to(X))


def compare_cka(x: Centred, y: Centred) -> float:
    return float(_product(x, y).square().sum()) / (x.norm * y.norm)


def compare_cka_unbiased(x: Centred, y: Centred) -> float:
    check_rows(len(x), len(y), 4)
    hsic = float(_product(x, y).square().sum() + _diagonal(x, y).sum())
    return hsic / (x.unbiased_self_hsic * y.unbiased_self_hsic) ** 0.5


def permute_centred(space: Centred, order: Tensor) -> Centred:
    return Centred(space.rows[order])


def influence_cka(x: Centred, y: Centred) -> Tensor:
    return influence_of_ratio(_product_parts(x, y), x.squared_norm_parts, y.squared_norm_parts, 2)


def influence_cka_unbiased(x: Centred, y: Centred) -> Tensor:
    check_rows(len(x), len(y), 4)
    left, right = (space.squared_norm_parts + _diagonal(space, space) for space in (x, y))
    for space, parts in ((x, left), (y, right)):
        checked_self_hsic(float(parts.sum()), float(space.squares.sum()))
    return influence_of_ratio(_product_parts(x, y) + _diagonal(x, y), left, right, 2)


@exact_products()
def draws_cka(spaces: Sequence[Centred], pairs: Sequence[tuple[int, int]], orders: Tensor) -> np.ndarray:
    """`cka` of each pair with the second's rows in each order: (pairs, K).

    Of spaces wider than 128 dimensions each draw keeps the principal directions that make up all but a thousandth of
    the kernel's squared norm, to which the null's variance is proportional: its spread is right to a thousandth, in a
    fraction of the time. What the other directions add is known exactly on average: tr K tr L / (n − 1).
    """
    draws = []
    for i, j in pairs:
        x, y = spaces[i], spaces[j]
        n = len(x)
        kept = float(x.leading.square().sum()) * float(y.leading.square().sum())
        draws.append((_permuted_products(x, y, orders) + (1 - kept) / (n - 1)) * n**2 / (x.norm * y.norm))
    return np.stack(draws)


@exact_products()
def draws_cka_unbiased(spaces: Sequence[Centred], pairs: Sequence[tuple[int, int]], orders: Tensor) -> np.ndarray:
    """`cka_unbiased` of each pair with the second's rows in each order: (pairs, K), in the same leading directions."""
    draws = []
    for i, j in pairs:
        x, y = spaces[i], spaces[j]
        k, m = x.leading.square().sum(1), y.leading.square().sum(1)
        n = len(k)
        both = (m[orders] @ k).cpu().numpy().astype(np.float64)
        constant = float(k.sum() * m.sum()) / ((n - 1) * (n - 2))
        hsic = _permuted_products(x, y, orders) - both * n / (n - 2) + constant
        draws.append(hsic / (_unbiased_hsic(x.leading) * _unbiased_hsic(y.leading)) ** 0.5)
    return np.stack(draws)


def _permuted_products(x: Centred, y: Centred, orders: Tensor) -> np.ndarray:
    """‖Xᵀ Y[order]‖² in the leading directions, for each order: (K,)."""
    left, right = x.leading.T, y.leading
    at_once = max(1, CELLS // right.numel())
    parts = [(left @ right[part]).square().sum((1, 2)) for part in orders.split(at_once)]
    return torch.cat(parts).cpu().numpy().astype(np.float64)


def _unbiased_hsic(X: Tensor) -> float:
    """Song's unbiased HSIC of centred rows X (n, d) with themselves, times n(n − 3)."""
    X = X.double()
    squares = X.square().sum(1)
    return float((X.T @ X).square().sum() + _diagonal_of(squares, squares).sum())


@exact_products()
def _product(x: Centred, y: Centred) -> Tensor:
    """Xᵀ Y (d_x, d_y), float64."""
    X, Y = x.rows, y.rows
    if X.dtype == Y.dtype == torch.float64:
        return X.T @ Y
    X, Y = X.float(), Y.float()
    parts = zip(X.split(BATCH_ROWS), Y.split(BATCH_ROWS), strict=True)
    return sum((left.T @ right).double() for left, right in parts)  # type: ignore[return-value]


def _product_parts(x: Centred, y: Centred) -> Tensor:
    """Each row's part (n,) of ‖Xᵀ Y‖²."""
    return _parts(x.rows, _product(x, y), y.rows)


@exact_products()
def _parts(x: Tensor, between: Tensor, y: Tensor) -> Tensor:
    """xᵢ · between · yᵢ for each row (n,)."""
    return ((x @ between.to(x)) * y).sum(1, dtype=torch.float64)


def _diagonal(x: Centred, y: Centred) -> Tensor:
    return _diagonal_of(x.squares, y.squares)


def _diagonal_of(k: Tensor, m: Tensor) -> Tensor:
    """What turns each row's part of ‖XᵀY‖² into its part of Song's unbiased HSIC, times n(n − 3): (n,).

    With K̃ the kernel XXᵀ with its diagonal set to zero, that is tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1.
    Rows are centred, which leaves the value as it is and keeps the terms small: a row of K̃ then sums to minus its
    diagonal, so only the diagonals `k` and `m` (n,) are needed.
    """
    n = len(k)
    return k * m.sum() / ((n - 1) * (n - 2)) - k * m * n / (n - 2)


# --- dense kernels ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A symmetric matrix (n, n), float32, centred and at norm one: the score of two spaces is its inner product."""

    matrix: Tensor

    def __len__(self) -> int:
        return len(self.matrix)


def cka_rbf(X: MatrixLike, Y: MatrixLike) -> float:
    """CKA of Gaussian kernels exp(−‖x_i − x_j‖² / 2σ²), σ the median distance between two different rows.

    Score ⟨HKH, HLH⟩ / (‖HKH‖ ‖HLH‖), with H the centring matrix. X is (n, d_x), Y is (n, d_y), rows matched. In
    [0, 1], higher is more aligned. Biased as `cka` is: unrelated wide spaces score far above 0. Rotation, scale and
    translation do not matter. O(n² d) time, O(n²) memory, so at most 30,000 rows. Kornblith et al. 2019, "Similarity of
    Neural Network Representations Revisited".
    """
    x, y = matched_matrices(X, Y, 2)
    return compare_kernels(gaussian_kernel(x, name="X"), gaussian_kernel(y, name="Y"))


def rsa(X: MatrixLike, Y: MatrixLike) -> float:
    """Spearman's rank correlation of the two spaces' cosine similarities over all pairs of rows.

    X is (n, d_x), Y is (n, d_y), rows matched; ties have their mean rank. In [−1, 1], higher is more aligned, 0 on
    average for unrelated spaces. By cosine: rotation and row scale do not matter, centring does. O(n² (d + log n))
    time, O(n²) memory, so at most 30,000 rows. Kriegeskorte et al. 2008, "Representational Similarity Analysis".
    """
    x, y = matched_matrices(X, Y, 3)
    return compare_kernels(similarity_ranks(x, name="X"), similarity_ranks(y, name="Y"))


def gaussian_kernel(X: Tensor, k: int = 10, name: str = "X") -> Kernel:
    """Prepare rows (n, d) for `cka_rbf`."""
    check_dense(len(X), name)
    rows = centred(X, name=name).rows.double()
    n = len(rows)
    squares = rows.square().sum(1)
    apart = (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0)
    apart.fill_diagonal_(torch.inf)  # sorted to the end, so that the middle is that of the others
    pairs = n * (n - 1)
    middle = np.partition(apart.cpu().numpy().ravel(), [pairs // 2 - 1, pairs // 2])[pairs // 2 - 1 : pairs // 2 + 1]
    width = float(np.sqrt(middle).mean())
    if width == 0:
        raise InputError(f"`{name}` must vary; the median distance between two of its rows is 0.")
    matrix = torch.exp(apart / (-2 * width**2))
    matrix.fill_diagonal_(1)
    matrix = matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()
    return Kernel((matrix / matrix.norm()).float())


def similarity_ranks(X: Tensor, k: int = 10, name: str = "X") -> Kernel:
    """Prepare rows (n, d) for `rsa`."""
    check_dense(len(X), name)
    check_rows(len(X), len(X), 3)
    U = unit(X)
    V = X.double()
    V = V / torch.linalg.vector_norm(V, dim=1, keepdim=True)
    upper = torch.triu_indices(len(U), len(U), 1, device=U.device).unbind()
    # In float64, for in a narrow cone float32 knows few ranks; less its last digits, which would part what is equal.
    similar = ((V @ V.T)[upper] * 2**40).round_()
    _, kind, count = torch.unique(similar, return_inverse=True, return_counts=True)
    if len(count) == 1:
        raise InputError(f"`{name}` must vary; all its rows are as similar to one another.")
    last = count.cumsum(0).double()
    ranks = (last - (count - 1) / 2)[kind]
    ranks = ranks - ranks.mean()
    matrix = U.new_zeros(len(U), len(U))
    matrix[upper] = (ranks / ranks.norm() / 2**0.5).float()  # both triangles together have norm one
    return Kernel(matrix + matrix.T)


def compare_kernels(x: Kernel, y: Kernel) -> float:
    return float((x.matrix * y.matrix).sum(dtype=torch.float64))


def influence_kernels(x: Kernel, y: Kernel) -> Tensor:
    pairs = ((x, y), (x, x), (y, y))
    both, left, right = ((first.matrix * second.matrix).sum(1, dtype=torch.float64) for first, second in pairs)
    return influence_of_ratio(both, left, right, 2)


def permute_kernel(space: Kernel, order: Tensor) -> Kernel:
    return Kernel(space.matrix[order][:, order])


# --- what all of them need --------------------------------------------------------------------------------------------


def influence_of_ratio(both: Tensor, left: Tensor, right: Tensor, degree: int) -> Tensor:
    """For the score Σ both / √(Σ left Σ right), values (n,) whose mean is the score and whose spread is √n times its
    standard error.

    Each row's value is the score and n times the score's derivative with respect to that row's weight; `degree` is how
    often a row enters each sum: twice as one of a pair of rows, once where the other row is a fixed neighbour. Huber
    1981, "Robust Statistics" (the infinitesimal jackknife).
    """
    norm = (left.sum() * right.sum()).sqrt()
    score = both.sum() / norm
    slope = both / norm - score / 2 * (left / left.sum() + right / right.sum())
    return score + degree * len(both) * (slope - slope.mean())


def checked_self_hsic(hsic: float, trace: float) -> float:
    """A space's unbiased HSIC with itself, times n(n − 3); InputError unless it is above 0, relative to `trace`²."""
    if hsic <= 1e-12 * trace**2:
        raise InputError("Unbiased CKA is not defined for so few rows of so little spread; give more rows.")
    return hsic


def check_vary(spread: float, size: float, rounding: float, name: str) -> None:
    """Refuse rows of length up to `size` whose distance from their mean, `spread`, is no more than their rounding."""
    if not spread > 4 * rounding * size:
        raise InputError(f"`{name}` must vary; all its rows are the same, but for rounding.")


def check_dense(n: int, name: str) -> None:
    """Refuse rows whose n × n matrix would not fit."""
    if n > DENSE_ROWS:
        raise InputError(
            f"`{name}` must have at most {DENSE_ROWS:,} rows for a metric of all pairs of rows; got {n:,}."
        )


def _centred_pair(X: MatrixLike, Y: MatrixLike, least: int) -> tuple[Centred, Centred]:
    x, y = matched_matrices(X, Y, least)
    return centred(x, name="X"), centred(y, name="Y")
