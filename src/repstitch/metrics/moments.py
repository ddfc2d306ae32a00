"""Moments of paired rows: the sums from which all closed-form maps are solved.

The sums of a batch are computed in float32 about the mean of the batch, which avoids cancellation, and added up in
float64. The moments of parts add up to the moments of the whole. So fitting can read a stream of batches, needs O(d²)
memory for any number of rows, and can be distributed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.precision import exact_products

BATCH_ROWS = 16_384


@dataclass(frozen=True)
class Moments:
    """Sums over n pairs (x, y), about the fixed points `x_origin` (d_source,) and `y_origin` (d_target,).

    With u = x - x_origin and v = y - y_origin: `x_sum` = Σu, `y_sum` = Σv, `xx` = Σuᵀu, `xy` = Σuᵀv and, unless it was
    left out, `yy` = Σvᵀv. All float64. If pairs have weights w, every term is multiplied by its w, `n` is Σw, and
    `n_squared` is Σw². A weight of 2 counts as two equal pairs.
    """

    n: float
    x_origin: Tensor
    y_origin: Tensor
    x_sum: Tensor
    y_sum: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor | None
    n_squared: float

    @property
    def n_effective(self) -> float:
        """The number of pairs of equal weight that are as informative, (Σw)² / Σw² (Kish 1965, "Survey Sampling")."""
        return self.n**2 / self.n_squared

    @property
    def x_mean(self) -> Tensor:
        """Mean source row (d_source,)."""
        return self.x_origin + self.x_sum / self.n

    @property
    def y_mean(self) -> Tensor:
        """Mean target row (d_target,)."""
        return self.y_origin + self.y_sum / self.n

    @property
    def cov_xx(self) -> Tensor:
        """Covariance of the source rows (d_source, d_source), divided by n."""
        return self.xx / self.n - torch.outer(self.x_sum, self.x_sum) / self.n**2

    @property
    def cov_xy(self) -> Tensor:
        """Cross-covariance (d_source, d_target), divided by n."""
        return self.xy / self.n - torch.outer(self.x_sum, self.y_sum) / self.n**2

    @property
    def cov_yy(self) -> Tensor:
        """Covariance of the target rows (d_target, d_target), divided by n. Raises InputError if `yy` was left out."""
        if self.yy is None:
            raise InputError("These moments were computed without `yy`; compute them again with `yy=True`.")
        return self.yy / self.n - torch.outer(self.y_sum, self.y_sum) / self.n**2

    def about(self, x_origin: Tensor, y_origin: Tensor) -> "Moments":
        """Return the same moments with their sums about other origins."""
        x_shift, y_shift = self.x_origin - x_origin, self.y_origin - y_origin
        return Moments(
            self.n,
            x_origin,
            y_origin,
            self.x_sum + self.n * x_shift,
            self.y_sum + self.n * y_shift,
            _moved(self.xx, self.x_sum, self.x_sum, x_shift, x_shift, self.n),
            _moved(self.xy, self.x_sum, self.y_sum, x_shift, y_shift, self.n),
            None if self.yy is None else _moved(self.yy, self.y_sum, self.y_sum, y_shift, y_shift, self.n),
            self.n_squared,
        )

    def weighted(self, factor: float) -> "Moments":
        """Return the moments of the same pairs with every weight multiplied by `factor`."""
        yy = None if self.yy is None else self.yy * factor
        sums = (self.x_sum * factor, self.y_sum * factor, self.xx * factor, self.xy * factor, yy)
        return Moments(self.n * factor, self.x_origin, self.y_origin, *sums, self.n_squared * factor**2)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of pairs together."""
        if self.xy.shape != other.xy.shape or (self.yy is None) != (other.yy is None):
            raise InputError(
                f"Only moments of the same two spaces can be added; got {tuple(self.xy.shape)} and "
                f"{tuple(other.xy.shape)}{'' if (self.yy is None) == (other.yy is None) else ', one without `yy`'}."
            )
        other = other.about(self.x_origin, self.y_origin)
        return Moments(
            self.n + other.n,
            self.x_origin,
            self.y_origin,
            self.x_sum + other.x_sum,
            self.y_sum + other.y_sum,
            self.xx + other.xx,
            self.xy + other.xy,
            None if self.yy is None or other.yy is None else self.yy + other.yy,
            self.n_squared + other.n_squared,
        )


def _moved(products: Tensor, u_sum: Tensor, v_sum: Tensor, u_shift: Tensor, v_shift: Tensor, n: float) -> Tensor:
    """Return Σ(u + u_shift)ᵀ(v + v_shift) from Σuᵀv, Σu and Σv."""
    return products + torch.outer(u_sum, v_shift) + torch.outer(u_shift, v_sum) + n * torch.outer(u_shift, v_shift)


def moments(batches: Iterable[tuple[Any, ...]] | tuple[Any, ...], yy: bool = True) -> Moments:
    """Return the moments of pairs of rows.

    `batches` is one tuple of matrices X (n, d_source) and Y (n, d_target), with weights (n,) as a third entry or
    without, or a stream of such tuples. They can be NumPy or torch, of any float type, on any device. The stream is
    read once. Only the sums and one batch of at most 16,384 rows are in memory. Raises InputError if the rows do not
    match or contain NaN or Inf, if there are none, or if a weight is not a positive number.
    """
    total: _Sums | None = None
    stream = cast(Iterable[tuple[Any, ...]], [batches] if isinstance(batches, tuple) else batches)
    for X, Y, *weights in stream:
        if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y):
            raise InputError(
                f"`X` and `Y` must be matrices with the same number of rows; got {tuple(X.shape)} and {tuple(Y.shape)}."
            )
        w = _weights(weights[0], len(X)) if weights and weights[0] is not None else None
        for at in range(0, len(X), BATCH_ROWS):
            x, y = (_rows(side[at : at + BATCH_ROWS]) for side in (X, Y))
            if total is None:
                total = _Sums(x, y, yy)
            total.add(x, y, None if w is None else w[at : at + BATCH_ROWS])
    if total is None:
        raise InputError("Moments require at least one pair of rows; got none.")
    return total.result()


class _Sums:
    """Running sums. They are updated in place, so that nearly all of the cost of a batch is its matrix products."""

    def __init__(self, x: Tensor, y: Tensor, yy: bool):
        self.x_origin, self.y_origin = x.mean(0), y.mean(0)
        self.n: float = 0
        self.n_squared: float = 0
        self.buffers: list[Tensor | None] = [None, None]
        d, e = x.shape[1], y.shape[1]
        zeros = partial(torch.zeros, dtype=torch.float64, device=x.device)
        self.x_sum, self.y_sum, self.xx, self.xy = zeros(d), zeros(e), zeros(d, d), zeros(d, e)
        self.yy = zeros(e, e) if yy else None

    @exact_products()
    def add(self, x: Tensor, y: Tensor, weights: Tensor | None) -> None:
        if (x.shape[1], y.shape[1]) != tuple(self.xy.shape):
            raise InputError(
                f"All batches must have the numbers of columns of the first, {tuple(self.xy.shape)}; got "
                f"{(x.shape[1], y.shape[1])}."
            )
        w = None if weights is None else weights.to(x)
        n = len(x) if w is None else float(w.double().sum())
        x_mean, y_mean = (side.mean(0) if w is None else w @ side / n for side in (x, y))
        u, v = self._centred(x, x_mean, 0), self._centred(y, y_mean, 1)
        u_sum, v_sum = ((side.sum(0) if w is None else w @ side).double() for side in (u, v))
        if w is not None:  # products of rows with the roots of their weights are weighted products
            root = w.sqrt()[:, None]
            u, v = u.mul_(root), v.mul_(root)
        add_gram(self.xx, u)
        self.xy += u.T @ v
        if self.yy is not None:
            add_gram(self.yy, v)
        # Move the sums from the batch's mean to the origin: Σ(u + a)ᵀ(v + b) = Σuᵀv + (Σu + n a)ᵀb + aᵀΣv.
        a, b = x_mean.double() - self.x_origin.double(), y_mean.double() - self.y_origin.double()
        x_sum, y_sum = u_sum + n * a, v_sum + n * b
        self.xx.addr_(x_sum, a).addr_(a, u_sum)
        self.xy.addr_(x_sum, b).addr_(a, v_sum)
        if self.yy is not None:
            self.yy.addr_(y_sum, b).addr_(b, v_sum)
        self.n += n
        self.n_squared += n if w is None else float(w.double().square().sum())
        self.x_sum += x_sum
        self.y_sum += y_sum

    def _centred(self, rows: Tensor, mean: Tensor, side: int) -> Tensor:
        """Return the rows minus their mean, in a reused buffer. A new one would cost as much time as the products."""
        buffer = self.buffers[side]
        if buffer is None or len(buffer) < len(rows):
            buffer = self.buffers[side] = torch.empty_like(rows, memory_format=torch.contiguous_format)
        return torch.sub(rows, mean, out=buffer[: len(rows)])

    def result(self) -> Moments:
        # A NaN or Inf in any row reaches the sums, so one check at the end is enough.
        if not (torch.isfinite(self.x_sum).all() and torch.isfinite(self.y_sum).all()):
            raise InputError("The pairs must be finite; they contain NaN or Inf. Remove those rows first.")
        if not all(torch.isfinite(m.diagonal()).all() for m in (self.xx, self.yy) if m is not None):
            raise InputError("The squares of the pairs must fit float32; they overflow. Scale the rows down.")
        return Moments(
            self.n,
            self.x_origin.double(),
            self.y_origin.double(),
            self.x_sum,
            self.y_sum,
            _mirrored(self.xx),
            self.xy,
            None if self.yy is None else _mirrored(self.yy),
            self.n_squared,
        )


def _mirrored(upper: Tensor) -> Tensor:
    """Return the symmetric matrix with this upper triangle."""
    return torch.triu(upper) + torch.triu(upper, 1).T


@exact_products()
def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add rowsᵀrows to the upper triangle of `total`, by blocks of columns. Blocks below the diagonal are skipped."""
    width = rows.shape[1]
    step = max(256, -(-width // 4))
    for at in range(0, width, step):
        total[at : at + step, at:] += rows[:, at : at + step].T @ rows[:, at:]


def _weights(weights: Any, n: int) -> Tensor:
    """Return the weights (n,) in float32. Raises InputError unless there is one positive number for each row."""
    w = torch.as_tensor(weights).float()
    if w.shape != (n,) or not bool((w > 0).all()) or not bool(torch.isfinite(w).all()):
        raise InputError(f"Weights must be {n} positive numbers, one for each pair; got shape {tuple(w.shape)}.")
    return w


def _rows(batch) -> Tensor:
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(np.require(batch, np.float32, ("C", "W")))
    return batch.float()
