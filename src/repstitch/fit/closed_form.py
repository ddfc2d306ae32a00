"""Closed-form fits of affine maps: ridge, procrustes and canonical, computed from moments and solved in float64.

`decompose` does the work that all solutions share (one eigendecomposition per side), so a whole grid of penalties,
shrinkages and powers costs little more than a single fit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.moments import Moments, moments
from repstitch.stitchers.maps import AffineMap

# Products are summed in float32, so an eigenvalue below this share of the largest one is rounding error.
NOISE = 2 * torch.finfo(torch.float32).eps
SAFE_PENALTY = 1e-6  # per dimension; larger penalties are well above NOISE times the largest eigenvalue


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Eigendecompositions of both covariances, and the cross-covariance between their eigenvectors.

    `x_values` (d_source,) are the ascending eigenvalues of the source, and `x_vectors` has its eigenvectors as columns;
    `y_values` and `y_vectors` are those of the target. `cross` is (d_source, d_target).
    """

    moments: Moments
    x_values: Tensor
    x_vectors: Tensor
    y_values: Tensor
    y_vectors: Tensor

    @cached_property
    def projected(self) -> Tensor:
        """The cross-covariance with its source side in the basis of the eigenvectors."""
        return self.x_vectors.T @ self.moments.cov_xy

    @cached_property
    def cross(self) -> Tensor:
        return self.projected @ self.y_vectors


def decompose(moments: Moments) -> Decomposition:
    """Compute the eigendecompositions of both sides. Raises InputError if either side does not vary."""
    x_values, x_vectors = _eigen(moments.cov_xx, "source")
    y_values, y_vectors = _eigen(moments.cov_yy, "target")
    return Decomposition(moments, x_values, x_vectors, y_values, y_vectors)


def _eigen(covariance: Tensor, side: str) -> tuple[Tensor, Tensor]:
    _check_varies(covariance, side)
    values, vectors = torch.linalg.eigh(covariance)
    return torch.where(values > NOISE * values[-1], values, torch.zeros_like(values)), vectors


def _check_varies(covariance: Tensor, side: str) -> None:
    if covariance.diagonal().max() <= 0:
        raise InputError(f"The {side} rows must differ from one another; they are all the same.")


def fit_ridge(moments: Moments, penalty: float = 1e-3, gain: float | None = None) -> AffineMap:
    """Fit an affine map by least squares, with a penalty relative to the mean eigenvalue of the source covariance.

    The map minimises ‖Xc W − Yc‖²/n + penalty · tr(Cx)/d_source · ‖W‖², where Xc and Yc are the centred rows. As the
    penalty grows, the map tends to the constant mean of the target. At 0 it is least squares (the solution of least
    norm if the source is rank deficient). Hoerl and Kennard 1970, "Ridge Regression: Biased Estimation for
    Nonorthogonal Problems".

    Args:
        moments: The moments of the pairs.
        penalty: The strength of the penalty, at least 0.
        gain: Scale the centred prediction to this multiple of the target's spread (see `affine`). None leaves the
            scale of the solution.

    Returns:
        The map, in float32.

    Raises:
        InputError: If `penalty` is negative, if `gain` is not positive, or if the source rows do not vary.
    """
    cov = moments.cov_xx
    _check_varies(cov, "source")
    factor, failed = torch.linalg.cholesky_ex(cov + penalty * cov.diagonal().mean() * torch.eye(len(cov)).to(cov))
    if penalty >= SAFE_PENALTY * len(cov) and not failed:
        weight = torch.cholesky_solve(moments.cov_xy, factor)
    else:  # the penalty is too small to guarantee a well-conditioned system
        values, vectors = _eigen(cov, "source")
        weight = (vectors * _inverse(values, penalty)) @ (vectors.T @ moments.cov_xy)
    return affine(moments, weight, gain)


def ridge_weight(decomposition: Decomposition, penalty: float) -> Tensor:
    """Return the weights of `fit_ridge` (d_source, d_target), from a decomposition that all penalties share."""
    d = decomposition
    return (d.x_vectors * _inverse(d.x_values, penalty)) @ d.projected


def _inverse(values: Tensor, penalty: float) -> Tensor:
    """Return 1 / (λ + penalty · mean λ), and 0 where λ is 0, because nothing varies there."""
    if penalty < 0:
        raise InputError(f"`penalty` must not be negative; got {penalty}.")
    return torch.where(values > 0, 1 / (values + penalty * values.mean()), torch.zeros_like(values))


def fit_procrustes(moments: Moments, centred: bool = True, scaled: bool = True, gain: float | None = None) -> AffineMap:
    """Fit the (semi-)orthogonal map nearest to the pairs: W = s · U Vᵀ, with U S Vᵀ the SVD of the cross-covariance.

    Distances, and therefore neighbours, are preserved up to the scale s if the target has at least as many dimensions
    as the source. If it has fewer, the map maximises the inner product with the target, which is then not the
    least-squares solution. Schönemann 1966, "A Generalized Solution of the Orthogonal Procrustes Problem".

    Args:
        moments: The moments of the pairs.
        centred: Rotate about the means and move the source mean to the target mean; otherwise rotate about the origin.
        scaled: Use the least-squares scale s; otherwise s is 1.
        gain: Scale the centred prediction to this multiple of the target's spread instead (see `affine`). Requires
            `centred`.

    Returns:
        The map, in float32.

    Raises:
        InputError: If `gain` is not positive or is passed without `centred`, or if `centred` and either side does not
            vary.
    """
    if gain is not None and not centred:
        raise InputError("`gain` requires `centred`: a rotation about the origin has no centred prediction to scale.")
    if centred:
        _check_varies(moments.cov_xx, "source")
        if moments.yy is not None:
            _check_varies(moments.cov_yy, "target")
    centre = (
        moments if centred else moments.about(torch.zeros_like(moments.x_origin), torch.zeros_like(moments.y_origin))
    )
    cross = moments.cov_xy if centred else centre.xy / moments.n
    spread = moments.cov_xx if centred else centre.xx / moments.n
    U, S, Vh = torch.linalg.svd(cross, full_matrices=False)
    rotation = U @ Vh
    if scaled:
        rotation = rotation * (S.sum() / torch.einsum("ij,ik,kj->", rotation, spread, rotation))
    if centred:
        return affine(moments, rotation, gain)
    return AffineMap(rotation.float(), torch.zeros(rotation.shape[1], device=rotation.device))


@dataclass(frozen=True)
class Canonical:
    """The whitened cross-covariance of a decomposition for one pair of shrinkages, as U diag(s) Vᵀ.

    `correlations` s are the (shrunk) canonical correlations, descending. If the target is not whitened (`shrink_y`
    None), they are in units of the target's own spread. `null_edge` is a value that the correlations of unrelated
    spaces rarely exceed, for these spectra and this number of pairs.
    """

    decomposition: Decomposition
    shrink_x: float
    shrink_y: float | None
    U: Tensor
    correlations: Tensor
    Vh: Tensor
    null_edge: float

    @property
    def rank(self) -> int:
        """The number of directions whose correlation is above the null edge, at least 1."""
        return max(1, int((self.correlations > self.null_edge).sum()))

    @property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Columns (d_source, r) and (d_target, r) that map centred rows to their canonical variates."""
        d = self.decomposition
        if self.shrink_y is None:
            raise InputError("`axes` require a whitened target; pass a number as `shrink_y`.")
        x_axes = (d.x_vectors * _inverse(d.x_values, self.shrink_x).sqrt()) @ self.U
        y_axes = (d.y_vectors * _inverse(d.y_values, self.shrink_y).sqrt()) @ self.Vh.T
        return x_axes, y_axes

    def weight(self, power: float = 0.5, cut: bool = False) -> Tensor:
        """Return the weight (d_source, d_target) of the map, Cx^-½ U sᵖ Vᵀ Cy^½, where p is the power.

        Each shared direction is weighted by its correlation to the power p. At power 1 without `cut` this is ridge with
        the penalty `shrink_x`, whatever `shrink_y` is. At power 0 every kept direction gets its full variance back. If
        the target is not whitened, the factor Cy^½ is left out: power 1 is still ridge, and power 0 rotates the
        whitened source. `cut` keeps only the directions above the null edge.
        """
        if not 0 <= power <= 1:
            raise InputError(f"`power` must be from 0 to 1; got {power}.")
        d, s = self.decomposition, self.correlations
        kept = self.rank if cut else int((s > 1e-9 * s[0]).sum())
        whiten = d.x_vectors * _inverse(d.x_values, self.shrink_x).sqrt()
        left = whiten @ self.U[:, :kept] * s[:kept] ** power
        if self.shrink_y is None:
            return left @ self.Vh[:kept]
        y_keep = _inverse(d.y_values, self.shrink_y)
        colour = torch.where(y_keep > 0, y_keep.clamp(min=1e-300).rsqrt(), torch.zeros_like(y_keep))
        return left @ (self.Vh[:kept] * colour @ d.y_vectors.T)


def canonical(decomposition: Decomposition, shrink_x: float = 1e-2, shrink_y: float | None = 1e-2) -> Canonical:
    """Whiten both sides, each shrunk towards its mean eigenvalue, and decompose the whitened cross-covariance by SVD.

    With `shrink_y` None only the source is whitened. Up to a scale, this is the limit of ever stronger shrinkage of the
    target. Hotelling 1936, "Relations Between Two Sets of Variates"; shrinkage as in Vinod 1976, "Canonical Ridge". The
    null edge is Chevet's bound for the expected norm of Dx Z Dy / √n, with Z Gaussian and D² = λ / (λ + ε), plus half
    of the largest standard deviation that this norm can have. The correlations of 95 of 100 unrelated spaces are below
    it.
    """
    d = decomposition
    x_keep = _inverse(d.x_values, shrink_x)
    if shrink_y is None:
        cross, y_gain = d.projected, d.y_values
    else:
        y_keep = _inverse(d.y_values, shrink_y)
        cross, y_gain = d.cross * y_keep.sqrt(), d.y_values * y_keep
    U, s, Vh = torch.linalg.svd(x_keep.sqrt()[:, None] * cross, full_matrices=False)
    x_gain = d.x_values * x_keep
    expected = (x_gain.max() * y_gain.sum()).sqrt() + (y_gain.max() * x_gain.sum()).sqrt()
    edge = float(expected + (x_gain.max() * y_gain.max()).sqrt() / 2) / d.moments.n_effective**0.5
    if shrink_y is not None:
        s, edge = s.clamp(max=1.0), min(1.0, edge)
    return Canonical(d, shrink_x, shrink_y, U, s, Vh, edge)


def fit_canonical(
    moments: Moments,
    shrink_x: float = 1e-2,
    shrink_y: float | None = 1e-2,
    power: float = 0.5,
    cut: bool = True,
    gain: float | None = 1.0,
) -> AffineMap:
    """Fit the canonical map: whiten both sides, and keep the directions that they share (see `Canonical.weight`).

    Args:
        moments: The moments of the pairs.
        shrink_x: Shrinkage of the source covariance towards its mean eigenvalue, at least 0.
        shrink_y: Shrinkage of the target covariance, like `shrink_x`. None leaves the target unwhitened.
        power: The exponent of the correlations, from 0 to 1. At 1 without `cut` and `gain`, the map is ridge with the
            penalty `shrink_x`; at 0 every kept direction gets its full variance back.
        cut: Keep only the directions that correlate more than unrelated spaces would.
        gain: Scale the centred prediction to this multiple of the target's spread (see `affine`). None leaves the
            scale of the solution.

    Returns:
        The map, in float32.

    Raises:
        InputError: If a shrinkage is negative, if `power` is not from 0 to 1, if `gain` is not positive, or if either
            side does not vary.
    """
    return affine(moments, canonical(decompose(moments), shrink_x, shrink_y).weight(power, cut), gain)


def affine(moments: Moments, weight: Tensor, gain: float | None = None) -> AffineMap:
    """Return the float32 affine map with this weight (d_source, d_target) that maps the source mean to the target mean.

    With a `gain` the weight is scaled so that the spread of the centred prediction is this multiple of the target's
    spread. A gain of 1 restores the variance that least squares shrinks away. A larger gain emphasises the differences
    between rows over their common mean. Raises InputError unless the gain is positive.
    """
    if gain is not None:
        if not 0 < gain < math.inf:
            raise InputError(f"`gain` must be a positive number, or None for the map's own scale; got {gain}.")
        weight = weight * (gain * _variance_ratio(moments, weight))
    return AffineMap(weight.float(), (moments.y_mean - moments.x_mean @ weight).float())


def _variance_ratio(moments: Moments, weight: Tensor) -> float:
    """Return √(tr Cy / tr(Wᵀ Cx W))."""
    predicted = (weight * (moments.cov_xx @ weight)).sum()
    if predicted <= 0:
        raise InputError("The map gives the same output for every row, so its variance cannot be matched.")
    return float((moments.cov_yy.trace() / predicted).sqrt())


def fit_closed(decomposition: Decomposition, method: str, settings: Mapping[str, Any]) -> AffineMap:
    """Fit a closed-form method with the settings of a tuned candidate."""
    pair_moments, gain = decomposition.moments, settings["gain"]
    if method == "ridge":
        return affine(pair_moments, ridge_weight(decomposition, settings["penalty"]), gain)
    if method == "procrustes":
        return fit_procrustes(pair_moments, settings["centred"], gain=gain)
    form = canonical(decomposition, settings["shrink_x"], settings["shrink_y"])
    return affine(pair_moments, form.weight(settings["power"], settings["cut"]), gain)


def fit_shuffled(X: Tensor, Y: Tensor, method: str, settings: Mapping[str, Any], seed: int) -> AffineMap:
    """Fit a closed form to shuffled pairs (n, d_source), (n, d_target), as a control: such pairs are unrelated."""
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    return fit_closed(decompose(moments((X, Y[order]))), method, settings)


FITS = {"ridge": fit_ridge, "procrustes": fit_procrustes, "canonical": fit_canonical}
