"""Metrics of the two n × n similarity matrices: linear ones from d × d products."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.moments import BATCH_ROWS, add_gram
from repstitch.metrics.neighbours import exact_products, unit

WIDE = 128
FEW_PRODUCTS = 2**30  # that a processor takes in float64 without being noticed
DENSE_ROWS = 30_000  # above this a kernel would take more than 3.6 GB
CELLS = 2**24

# --- linear kernels ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Centred:
    """Rows (n, d) of one space about their mean, of mean square length one: what linear CKA needs of it.

    float64 where there are few products to take, else float32, of which the rows came; sums are float64 in both.
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
        with exact_products():
            for part in self.rows.split(BATCH_ROWS):
                add_gram(total, part)
        return total.triu() + total.triu(1).T

    @cached_property
    def norm(self) -> float:
        """‖X Xᵀ‖ = ‖Xᵀ X‖."""
        return float(self.gram.norm())

    @cached_property
    def own(self) -> Tensor:
        """Each row's part (n,) of ‖X Xᵀ‖²."""
        return _parts(self.rows, self.gram, self.rows)

    @cached_property
    def own_unbiased(self) -> float:
        """Song's unbiased HSIC of the space with itself, times n(n − 3); InputError where it is not above 0."""
        return checked_own(self.norm**2 + float(_diagonal(self, self).sum()), float(self.squares.sum()))

    @cached_property
    def leading(self) -> Tensor:
        """Rows (n, r), float32, in the principal directions that make up all but a thousandth of ‖X Xᵀ‖²; ‖X‖ = 1."""
        X = self.rows.float() / len(self.rows) ** 0.5  # fourth powers of the rows' size must fit float32
        if X.shape[1] > WIDE:
            values, vectors = torch.linalg.eigh(self.gram.float())
            squares = values.clamp(min=0).square().cumsum(0)  # ascending, so the sum is over the smallest
            X = X @ vectors[:, squares > 1e-3 * squares[-1]]
        return X


def cka(X: Tensor, Y: Tensor) -> float:
    """Linear CKA: ‖Xcᵀ Yc‖² / (‖Xcᵀ Xc‖ ‖Ycᵀ Yc‖).

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned. Biased: unrelated spaces score far
    above 0 when d is not much below n (use `cka_unbiased`). Rotation, scale and translation do not matter. O(n d²)
    time, O(n d) memory. Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited".
    """
    return compare_cka(*_both(X, Y, 2))


def cka_unbiased(X: Tensor, Y: Tensor) -> float:
    """Linear CKA with the unbiased estimate of HSIC in all three places.

    X is (n, d_x), Y is (n, d_y), rows matched, n ≥ 4. At most 1, higher is more aligned, 0 on average for unrelated
    spaces, whatever d and n. Rotation, scale and translation do not matter. O(n d²) time, O(n d) memory. Song et al.
    2012, "Feature Selection via Dependence Maximization"; Nguyen et al. 2021, "Do Wide and Deep Networks Learn the
    Same Things?".
    """
    return compare_cka_unbiased(*_both(X, Y, 4))


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


def compare_cka(a: Centred, b: Centred) -> float:
    return float(_product(a, b).square().sum()) / (a.norm * b.norm)


def compare_cka_unbiased(a: Centred, b: Centred) -> float:
    check_rows(len(a), len(b), 4)
    both = float(_product(a, b).square().sum() + _diagonal(a, b).sum())
    return both / (a.own_unbiased * b.own_unbiased) ** 0.5


def permute_centred(b: Centred, order: Tensor) -> Centred:
    return Centred(b.rows[order])


def influence_cka(a: Centred, b: Centred) -> Tensor:
    return influence_of_ratio(_cross(a, b), a.own, b.own, 2)


def influence_cka_unbiased(a: Centred, b: Centred) -> Tensor:
    check_rows(len(a), len(b), 4)
    left, right = (side.own + _diagonal(side, side) for side in (a, b))
    for side, own in ((a, left), (b, right)):
        checked_own(float(own.sum()), float(side.squares.sum()))
    return influence_of_ratio(_cross(a, b) + _diagonal(a, b), left, right, 2)


def draws_cka(spaces: Sequence[Centred], pairs: Sequence[tuple[int, int]], orders: Tensor) -> np.ndarray:
    """`cka` of each pair with the second's rows in each order: (pairs, K).

    Of spaces wider than 128 dimensions each draw keeps the principal directions that make up all but a thousandth of
    the kernel's squared norm, to which the null's variance is proportional: its spread is right to a thousandth, in a
    fraction of the time. What the other directions add is known exactly on average: tr K tr L / (n − 1).
    """
    made = []
    for i, j in pairs:
        a, b = spaces[i], spaces[j]
        n = len(a)
        kept = float(a.leading.square().sum()) * float(b.leading.square().sum())
        made.append((_drawn(a, b, orders) + (1 - kept) / (n - 1)) * n**2 / (a.norm * b.norm))
    return np.stack(made)


def draws_cka_unbiased(spaces: Sequence[Centred], pairs: Sequence[tuple[int, int]], orders: Tensor) -> np.ndarray:
    """`cka_unbiased` of each pair with the second's rows in each order: (pairs, K), in the same leading directions."""
    made = []
    for i, j in pairs:
        a, b = spaces[i], spaces[j]
        k, m = a.leading.square().sum(1), b.leading.square().sum(1)
        n = len(k)
        both = (m[orders] @ k).cpu().numpy().astype(np.float64)
        drawn = _drawn(a, b, orders) - both * n / (n - 2) + float(k.sum() * m.sum()) / ((n - 1) * (n - 2))
        own = [_hsic_of(side.leading) for side in (a, b)]
        made.append(drawn / (own[0] * own[1]) ** 0.5)
    return np.stack(made)


def _drawn(a: Centred, b: Centred, orders: Tensor) -> np.ndarray:
    """‖Xᵀ Y[order]‖² in the leading directions, for each order: (K,)."""
    x, y = a.leading.T, b.leading
    at_once = max(1, CELLS // y.numel())
    with exact_products():
        parts = [(x @ y[part]).square().sum((1, 2)) for part in orders.split(at_once)]
    return torch.cat(parts).cpu().numpy().astype(np.float64)


def _hsic_of(X: Tensor) -> float:
    X = X.double()
    squares = X.square().sum(1)
    return float((X.T @ X).square().sum() + _diagonal_of(squares, squares).sum())


def _product(a: Centred, b: Centred) -> Tensor:
    """Xᵀ Y (d_x, d_y), float64."""
    x, y = a.rows, b.rows
    if x.dtype == y.dtype == torch.float64:
        return x.T @ y
    x, y = x.float(), y.float()
    with exact_products():
        parts = zip(x.split(BATCH_ROWS), y.split(BATCH_ROWS), strict=True)
        return sum((left.T @ right).double() for left, right in parts)  # type: ignore[return-value]


def _cross(a: Centred, b: Centred) -> Tensor:
    """Each row's part (n,) of ‖Xᵀ Y‖²."""
    return _parts(a.rows, _product(a, b), b.rows)


def _parts(x: Tensor, between: Tensor, y: Tensor) -> Tensor:
    """xᵢ · between · yᵢ for each row (n,)."""
    with exact_products():
        return ((x @ between.to(x)) * y).sum(1, dtype=torch.float64)


def _diagonal(a: Centred, b: Centred) -> Tensor:
    return _diagonal_of(a.squares, b.squares)


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


def cka_rbf(X: Tensor, Y: Tensor) -> float:
    """CKA of Gaussian kernels exp(−‖x_i − x_j‖² / 2σ²), σ the median distance between two different rows.

    Score ⟨HKH, HLH⟩ / (‖HKH‖ ‖HLH‖), with H the centring matrix. X is (n, d_x), Y is (n, d_y), rows matched. In
    [0, 1], higher is more aligned. Biased as `cka` is: unrelated wide spaces score far above 0. Rotation, scale and
    translation do not matter. O(n² d) time, O(n²) memory, so at most 30,000 rows. Kornblith et al. 2019, "Similarity of
    Neural Network Representations Revisited".
    """
    return compare_kernels(gaussian_kernel(X, name="X"), gaussian_kernel(Y, name="Y"))


def rsa(X: Tensor, Y: Tensor) -> float:
    """Spearman's rank correlation of the two spaces' cosine similarities over all pairs of rows.

    X is (n, d_x), Y is (n, d_y), rows matched; ties have their mean rank. In [−1, 1], higher is more aligned, 0 on
    average for unrelated spaces. By cosine: rotation and row scale do not matter, centring does. O(n² (d + log n))
    time, O(n²) memory, so at most 30,000 rows. Kriegeskorte et al. 2008, "Representational Similarity Analysis".
    """
    return compare_kernels(similarity_ranks(X, name="X"), similarity_ranks(Y, name="Y"))


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


def compare_kernels(a: Kernel, b: Kernel) -> float:
    return float((a.matrix * b.matrix).sum(dtype=torch.float64))


def influence_kernels(a: Kernel, b: Kernel) -> Tensor:
    both, left, right = ((x.matrix * y.matrix).sum(1, dtype=torch.float64) for x, y in ((a, b), (a, a), (b, b)))
    return influence_of_ratio(both, left, right, 2)


def permute_kernel(b: Kernel, order: Tensor) -> Kernel:
    return Kernel(b.matrix[order][:, order])


# --- what all of them need --------------------------------------------------------------------------------------------


def influence_of_ratio(both: Tensor, left: Tensor, right: Tensor, degree: int) -> Tensor:
    """Of the score Σ both / √(Σ left Σ right): values (n,) whose mean is the score and whose spread is its standard
    error, times √n.

    Each row's value is the score and n times the score's derivative with respect to that row's weight; `degree` is how
    often a row enters each sum: twice as one of a pair of rows, once where the other row is a fixed neighbour. Huber
    1981, "Robust Statistics" (the infinitesimal jackknife).
    """
    norm = (left.sum() * right.sum()).sqrt()
    score = both.sum() / norm
    slope = both / norm - score / 2 * (left / left.sum() + right / right.sum())
    return score + degree * len(both) * (slope - slope.mean())


def checked_own(found: float, trace: float) -> float:
    """A space's unbiased HSIC with itself, times n(n − 3); InputError where it is not above 0 beside its `trace`²."""
    if found <= 1e-12 * trace**2:
        raise InputError("Unbiased CKA is not defined for so few rows of so little spread; give more rows.")
    return found


def check_vary(spread: float, size: float, rounding: float, name: str) -> None:
    """Refuse rows of length up to `size` whose distance from their mean, `spread`, is no more than their rounding."""
    if not spread > 4 * rounding * size:
        raise InputError(f"`{name}` must vary; all its rows are the same, but for rounding.")


def check_rows(n: int, m: int, least: int) -> None:
    """Refuse rows that do not match or are too few."""
    if n != m or n < least:
        raise InputError(f"`X` and `Y` must have as many rows, at least {least}; got {n} and {m}.")


def check_dense(n: int, name: str) -> None:
    """Refuse rows whose n × n matrix would not fit."""
    if n > DENSE_ROWS:
        raise InputError(
            f"`{name}` must have at most {DENSE_ROWS:,} rows for a metric of all pairs of rows; got {n:,}."
        )


def _both(X: Tensor, Y: Tensor, least: int) -> tuple[Centred, Centred]:
    a, b = centred(X, name="X"), centred(Y, name="Y")
    check_rows(len(X), len(Y), least)
    return a, b
