"""Closed-form fits: affine maps from moments by ridge, procrustes and canonical, solved exactly in float64.

`decompose` does the work that every solution shares (one eigendecomposition for either side), so a whole grid of
penalties, shrinkages and powers costs little more than one of them.
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

# Products are summed in float32: an eigenvalue below this share of the largest is rounding, not spread.
NOISE = 2 * torch.finfo(torch.float32).eps
SAFE_PENALTY = 1e-6  # a dimension: then the penalty is well above NOISE times the largest eigenvalue


@dataclass(frozen=True)
class Decomposition:
    """Eigendecompositions of both covariances, and the cross-covariance between their eigenvectors.

    `x_values` (d_source,) ascending with `x_vectors` in columns, the same for y; `cross` (d_source, d_target).
    """

    moments: Moments
    x_values: Tensor
    x_vectors: Tensor
    y_values: Tensor
    y_vectors: Tensor

    @cached_property
    def projected(self) -> Tensor:
        """The cross-covariance with its source side along the eigenvectors."""
        return self.x_vectors.T @ self.moments.cov_xy

    @cached_property
    def cross(self) -> Tensor:
        return self.projected @ self.y_vectors


def decompose(moments: Moments) -> Decomposition:
    """The eigendecompositions of both sides. Raises InputError when either side does not vary."""
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
    """Affine least squares with a penalty relative to the mean eigenvalue of the source covariance.

    The map minimises ‖Xc W − Yc‖²/n + penalty · tr(Cx)/d_source · ‖W‖². As the penalty grows the map tends to the
    constant mean; at 0 it is least squares (the shortest of them where the source is rank-deficient). With a `gain` the
    centred prediction is scaled to that multiple of the target's spread. Hoerl and Kennard 1970, "Ridge Regression:
    Biased Estimation for Nonorthogonal Problems". Raises InputError on a negative penalty.
    """
    cov = moments.cov_xx
    _check_varies(cov, "source")
    factor, failed = torch.linalg.cholesky_ex(cov + penalty * cov.diagonal().mean() * torch.eye(len(cov)).to(cov))
    if penalty >= SAFE_PENALTY * len(cov) and not failed:
        weight = torch.cholesky_solve(moments.cov_xy, factor)
    else:  # too little penalty to be sure that the system is well conditioned
        values, vectors = _eigen(cov, "source")
        weight = (vectors * _inverse(values, penalty)) @ (vectors.T @ moments.cov_xy)
    return affine(moments, weight, gain)


def ridge_weight(decomposition: Decomposition, penalty: float) -> Tensor:
    """The weights of `fit_ridge` (d_source, d_target), from an eigendecomposition that every penalty shares."""
    d = decomposition
    return (d.x_vectors * _inverse(d.x_values, penalty)) @ d.projected


def _inverse(values: Tensor, penalty: float) -> Tensor:
    """1 / (λ + penalty · mean λ), and 0 where λ is 0, because nothing varies there."""
    if penalty < 0:
        raise InputError(f"`penalty` must not be negative; got {penalty}.")
    return torch.where(values > 0, 1 / (values + penalty * values.mean()), torch.zeros_like(values))


def fit_procrustes(moments: Moments, centred: bool = True, scaled: bool = True, gain: float | None = None) -> AffineMap:
    """The (semi-)orthogonal map nearest to the pairs: W = s · U Vᵀ with U S Vᵀ the SVD of the cross-covariance.

    Distances are kept up to the scale s, so neighbours are; from larger to smaller d it maximises the inner product
    with the target, which is then not the least-squares solution. `centred` rotates about the means and moves the
    mean; otherwise it rotates about the origin. `scaled` gives the least-squares s, else s = 1; a `gain` overrules
    both, see `affine`. Schönemann 1966, "A Generalized Solution of the Orthogonal Procrustes Problem".
    """
    if gain is not None and not centred:
        raise InputError("`gain` needs `centred`: about the origin there is no centred prediction to scale.")
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
    """The whitened cross-covariance of a decomposition at one pair of shrinkages, as U diag(s) Vᵀ.

    `correlations` s are the (shrunk) canonical correlations, descending; where the target is not whitened
    (`shrink_y` None) they are in units of the target's own spread. `null_edge` is a value that unrelated spaces of
    these spectra and this many pairs rarely exceed.
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
        """How many directions correlate more than chance would: at least 1."""
        return max(1, int((self.correlations > self.null_edge).sum()))

    @property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Columns (d_source, r) and (d_target, r) that take centred rows to their canonical variates."""
        d = self.decomposition
        if self.shrink_y is None:
            raise InputError("`axes` need a whitened target; give a number as `shrink_y`.")
        x_axes = (d.x_vectors * _inverse(d.x_values, self.shrink_x).sqrt()) @ self.U
        y_axes = (d.y_vectors * _inverse(d.y_values, self.shrink_y).sqrt()) @ self.Vh.T
        return x_axes, y_axes

    def weight(self, power: float = 0.5, cut: bool = False) -> Tensor:
        """Cx^-½ U sᵖ Vᵀ Cy^½, (d_source, d_target): the shared directions, each with its correlation to the power p.

        At power 1 without cut this is ridge with the penalty `shrink_x`, whatever `shrink_y`; at 0 every kept direction
        gets its full variance back. Where the target is not whitened there is nothing to colour: then power 1 is ridge
        still, and at 0 the whitened source is rotated. `cut` keeps only the directions that beat the null.
        """
        if not 0 <= power <= 1:
            raise InputError(f"`power` must lie in [0, 1]; got {power}.")
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
    """Whiten both sides, each shrunk towards its mean eigenvalue, and take the SVD of what they share.

    With `shrink_y` None only the source is whitened: the limit of ever more shrinkage of the target, but for a scale.
    Hotelling 1936, "Relations Between Two Sets of Variates"; shrinkage as in Vinod 1976, "Canonical Ridge". The null
    edge is Chevet's bound for the expected norm of Dx Z Dy / √n with Z Gaussian and D² = λ / (λ + ε), and above it half
    of the most that this norm can deviate (one standard deviation), which 95 of 100 unrelated spaces stay below.
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
    edge = float(expected + (x_gain.max() * y_gain.max()).sqrt() / 2) / d.moments.n**0.5
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
    """The canonical map straight from moments; see `canonical`, `Canonical.weight` and `affine`."""
    return affine(moments, canonical(decompose(moments), shrink_x, shrink_y).weight(power, cut), gain)


def affine(moments: Moments, weight: Tensor, gain: float | None = None) -> AffineMap:
    """The affine map with this weight (d_source, d_target) that sends the source mean to the target mean; float32.

    With a `gain` the weight is scaled so that the centred prediction spreads that many times as far as the target: 1
    gives back the variance that least squares shrinks away, more leans on what tells rows apart rather than on the mean
    that all share. Raises InputError unless it is positive.
    """
    if gain is not None:
        if not 0 < gain < math.inf:
            raise InputError(f"`gain` must be a positive number, or None for the map's own scale; got {gain}.")
        weight = weight * (gain * _variance_ratio(moments, weight))
    return AffineMap(weight.float(), (moments.y_mean - moments.x_mean @ weight).float())


def _variance_ratio(moments: Moments, weight: Tensor) -> float:
    """√(tr Cy / tr(Wᵀ Cx W))."""
    predicted = (weight * (moments.cov_xx @ weight)).sum()
    if predicted <= 0:
        raise InputError("The map gives the same output for every row, so its variance cannot be matched.")
    return float((moments.cov_yy.trace() / predicted).sqrt())


def fit_closed(decomposition: Decomposition, method: str, settings: Mapping[str, Any]) -> AffineMap:
    """The map of a closed-form method at these settings, as tuning lists them."""
    pair_moments, gain = decomposition.moments, settings["gain"]
    if method == "ridge":
        return affine(pair_moments, ridge_weight(decomposition, settings["penalty"]), gain)
    if method == "procrustes":
        return fit_procrustes(pair_moments, settings["centred"], gain=gain)
    form = canonical(decomposition, settings["shrink_x"], settings["shrink_y"])
    return affine(pair_moments, form.weight(settings["power"], settings["cut"]), gain)


def fit_shuffled(X: Tensor, Y: Tensor, method: str, settings: Mapping[str, Any], seed: int) -> AffineMap:
    """A closed form fitted to shuffled pairs (n, d_source), (n, d_target): the control of a fit without a relation."""
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    return fit_closed(decompose(moments((X, Y[order]))), method, settings)


FITS = {"ridge": fit_ridge, "procrustes": fit_procrustes, "canonical": fit_canonical}
