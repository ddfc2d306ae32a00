"""Metrics that compare the n × n similarity matrices of two spaces. The linear ones need only d × d products."""

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

WIDE = 128  # spaces with more dimensions are permuted in their leading directions only
FEW_PRODUCTS = 2**30  # up to this many multiplications, float64 costs no noticeable time
DENSE_ROWS = 30_000  # above this, one kernel would take more than 3.6 GB
CELLS = 2**24  # elements of the permuted rows in memory at once

# --- linear kernels ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Centred:
    """The centred rows (n, d) of one space, scaled to a mean square length of one: the input of linear CKA.

    The rows are float64 if there are few products to compute, else float32. Sums are float64 in both cases.
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
        """Contribution (n,) of each row to ‖X Xᵀ‖²."""
        return _parts(self.rows, self.gram, self.rows)

    @cached_property
    def unbiased_self_hsic(self) -> float:
        """Song's unbiased HSIC of the space with itself, times n(n − 3). Raises InputError unless it is above 0."""
        return checked_self_hsic(self.norm**2 + float(_diagonal(self, self).sum()), float(self.squares.sum()))

    @cached_property
    def leading(self) -> Tensor:
        """Rows (n, r), float32, scaled to ‖X‖ = 1 and projected on the leading principal directions.

        These directions account for all but a thousandth of ‖X Xᵀ‖². Up to 128 dimensions, it is all of them.
        """
        X = self.rows.float() / len(self.rows) ** 0.5  # so that fourth powers of the rows' lengths fit float32
        if X.shape[1] > WIDE:
            values, vectors = torch.linalg.eigh(self.gram.float())
            squares = values.clamp(min=0).square().cumsum(0)  # eigenvalues are ascending: sums of the smallest
            X = X @ vectors[:, squares > 1e-3 * squares[-1]]
        return X


def cka(X: MatrixLike, Y: MatrixLike) -> float:
    """Linear centred kernel alignment: ‖Xcᵀ Yc‖² / (‖Xcᵀ Xc‖ ‖Ycᵀ Yc‖), with Xc and Yc the centred rows.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned. Biased: unrelated spaces score far
    above 0 if d is not much below n (use `cka_unbiased`). Invariant to rotation, scale and translation. O(n d²) time,
    O(n d) memory. Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited".
    """
    return compare_cka(*_centred_pair(X, Y, 2))


def cka_unbiased(X: MatrixLike, Y: MatrixLike) -> float:
    """Linear CKA with the unbiased estimate of HSIC in the numerator and in both terms of the denominator.

    X is (n, d_x), Y is (n, d_y), rows matched, n ≥ 4. At most 1, higher is more aligned; 0 on average for unrelated
    spaces, for any d and n. Invariant to rotation, scale and translation. O(n d²) time, O(n d) memory. Song et al.
    2012, "Feature Selection via Dependence Maximization"; Nguyen et al. 2021, "Do Wide and Deep Networks Learn the
    Same Things?".
    """
    return compare_cka_unbiased(*_centred_pair(X, Y, 4))


def centred(X: Tensor, k: int = 10, name: str = "X") -> Centred:
    """Prepare rows (n, d) for `cka` and `cka_unbiased`. Raises InputError if they are not finite or do not vary."""
    rounding = torch.finfo(torch.promote_types(X.dtype, torch.float32)).eps
    X = X.double() if X.numel() * X.shape[1] <= FEW_PRODUCTS else X.float()
    size = float(torch.linalg.vector_norm(X, dim=1, dtype=torch.float64).max()) if X.numel() else 0.0
    X = X - X.mean(0, dtype=torch.float64).to(X)
    spread = torch.linalg.vector_norm(X, dtype=torch.float64) / len(X) ** 0.5
    if not bool(torch.isfinite(spread)):
        raise InputError(f"`{name}` must be finite; it contains NaN or Inf.")
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
    """Return `cka` of each pair with the rows of the second space in each order: (pairs, K).

    If a space has more than 128 dimensions, the draws use only the principal directions that account for all but a
    thousandth of the kernel's squared norm. This takes a fraction of the time. The variance of the null is proportional
    to the squared norm, so the spread of the null is correct to a thousandth. The mean contribution of the other
    directions is added. It is exact, because the mean over all permutations is tr K tr L / (n − 1).
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
    """Return `cka_unbiased` of each pair with the rows of the second space in each order: (pairs, K).

    The draws use the same leading directions as `draws_cka`.
    """
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
    """Return ‖Xᵀ Y[order]‖² in the leading directions for each order: (K,)."""
    left, right = x.leading.T, y.leading
    at_once = max(1, CELLS // right.numel())
    parts = [(left @ right[part]).square().sum((1, 2)) for part in orders.split(at_once)]
    return torch.cat(parts).cpu().numpy().astype(np.float64)


def _unbiased_hsic(X: Tensor) -> float:
    """Return Song's unbiased HSIC of centred rows X (n, d) with themselves, times n(n − 3)."""
    X = X.double()
    squares = X.square().sum(1)
    return float((X.T @ X).square().sum() + _diagonal_of(squares, squares).sum())


@exact_products()
def _product(x: Centred, y: Centred) -> Tensor:
    """Return Xᵀ Y (d_x, d_y), float64."""
    X, Y = x.rows, y.rows
    if X.dtype == Y.dtype == torch.float64:
        return X.T @ Y
    X, Y = X.float(), Y.float()
    parts = zip(X.split(BATCH_ROWS), Y.split(BATCH_ROWS), strict=True)
    return sum((left.T @ right).double() for left, right in parts)  # type: ignore[return-value]


def _product_parts(x: Centred, y: Centred) -> Tensor:
    """Return the contribution (n,) of each row to ‖Xᵀ Y‖²."""
    return _parts(x.rows, _product(x, y), y.rows)


@exact_products()
def _parts(x: Tensor, between: Tensor, y: Tensor) -> Tensor:
    """Return xᵢ · between · yᵢ for each row i: (n,)."""
    return ((x @ between.to(x)) * y).sum(1, dtype=torch.float64)


def _diagonal(x: Centred, y: Centred) -> Tensor:
    return _diagonal_of(x.squares, y.squares)


def _diagonal_of(k: Tensor, m: Tensor) -> Tensor:
    """Return the terms (n,) that turn each row's part of ‖XᵀY‖² into its part of Song's unbiased HSIC, times n(n − 3).

    With K̃ the kernel XXᵀ with its diagonal set to zero, and L̃ that of Y, n(n − 3) times the unbiased HSIC is
    tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1. Centring the rows does not change its value and keeps the terms
    small. With centred rows, row i of K̃ sums to −‖xᵢ‖², so only the diagonals `k` and `m` (n,) of XXᵀ and YYᵀ are
    needed.
    """
    n = len(k)
    return k * m.sum() / ((n - 1) * (n - 2)) - k * m * n / (n - 2)


# --- dense kernels ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A symmetric kernel matrix (n, n), float32, centred and scaled to norm one.

    The score of two spaces is the inner product of their kernels.
    """

    matrix: Tensor

    def __len__(self) -> int:
        return len(self.matrix)


def cka_rbf(X: MatrixLike, Y: MatrixLike) -> float:
    """CKA of Gaussian kernels exp(−‖x_i − x_j‖² / 2σ²), with σ the median distance between two different rows.

    The score is ⟨HKH, HLH⟩ / (‖HKH‖ ‖HLH‖), with H the centring matrix. X is (n, d_x), Y is (n, d_y), rows matched. In
    [0, 1], higher is more aligned. Biased like `cka`: unrelated wide spaces score far above 0. Invariant to rotation,
    scale and translation. O(n² d) time, O(n²) memory, so at most 30,000 rows. Kornblith et al. 2019, "Similarity of
    Neural Network Representations Revisited".
    """
    x, y = matched_matrices(X, Y, 2)
    return compare_kernels(gaussian_kernel(x, name="X"), gaussian_kernel(y, name="Y"))


def rsa(X: MatrixLike, Y: MatrixLike) -> float:
    """Spearman's rank correlation of the two spaces' cosine similarities over all pairs of rows.

    X is (n, d_x), Y is (n, d_y), rows matched; ties get their mean rank. In [−1, 1], higher is more aligned; 0 on
    average for unrelated spaces. Uses cosine: invariant to rotation and row scale, but not to centring.
    O(n² (d + log n)) time, O(n²) memory, so at most 30,000 rows. Kriegeskorte et al. 2008, "Representational Similarity
    Analysis".
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
    apart.fill_diagonal_(torch.inf)  # the diagonal sorts to the end, so the median is that of the other elements
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
    # float64, because float32 has few distinct ranks in a narrow cone. Rounding keeps equal similarities equal.
    similar = ((V @ V.T)[upper] * 2**40).round_()
    _, kind, count = torch.unique(similar, return_inverse=True, return_counts=True)
    if len(count) == 1:
        raise InputError(f"`{name}` must vary; all pairs of its rows are equally similar.")
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


# --- shared by several metrics ----------------------------------------------------------------------------------------


def influence_of_ratio(both: Tensor, left: Tensor, right: Tensor, degree: int) -> Tensor:
    """Return values (n,) for the score Σ both / √(Σ left Σ right), whose mean is the score.

    Their standard deviation is √n times the standard error of the score. The value of a row is the score plus n times
    the derivative of the score with respect to the weight of that row. `degree` is how often a row enters each sum: 2
    if the sum is over pairs of rows, 1 if the other row of each pair is a fixed neighbour. Huber 1981, "Robust
    Statistics" (the infinitesimal jackknife).
    """
    norm = (left.sum() * right.sum()).sqrt()
    score = both.sum() / norm
    slope = both / norm - score / 2 * (left / left.sum() + right / right.sum())
    return score + degree * len(both) * (slope - slope.mean())


def checked_self_hsic(hsic: float, trace: float) -> float:
    """Return `hsic`, the unbiased HSIC of a space with itself. Raises InputError unless it is above 1e-12 `trace`²."""
    if hsic <= 1e-12 * trace**2:
        raise InputError(
            "Unbiased CKA is not defined for a space whose unbiased HSIC with itself is not above 0; pass more rows."
        )
    return hsic


def check_vary(spread: float, size: float, rounding: float, name: str) -> None:
    """Raise InputError if rows do not vary: if `spread` is no larger than the rounding of rows of length `size`.

    `spread` is the root mean square distance of the rows from their mean.
    """
    if not spread > 4 * rounding * size:
        raise InputError(f"`{name}` must vary; all its rows are the same up to rounding.")


def check_dense(n: int, name: str) -> None:
    """Raise InputError if there are too many rows for an n × n matrix."""
    if n > DENSE_ROWS:
        raise InputError(
            f"`{name}` must have at most {DENSE_ROWS:,} rows for a metric that compares all pairs of rows; got {n:,}."
        )


def _centred_pair(X: MatrixLike, Y: MatrixLike, least: int) -> tuple[Centred, Centred]:
    x, y = matched_matrices(X, Y, least)
    return centred(x, name="X"), centred(y, name="Y")
