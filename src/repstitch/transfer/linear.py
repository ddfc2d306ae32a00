"""Reduce a stitcher to one affine map: its own map without normalisation, or its mean Jacobian."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.normalising import normalise
from repstitch.errors import InputError
from repstitch.stitchers.maps import AffineMap, Map, ResidualMLP
from repstitch.stitchers.stitcher import Stitcher

BATCH_ROWS = 1024
MOST_ROWS = 2_000  # the largest number of rows for a mean Jacobian


@dataclass(frozen=True, eq=False)
class LinearMap:
    """An affine map in float64 that is used in place of a stitcher. `description` states how it was derived."""

    map: AffineMap
    description: str

    @property
    def weight(self) -> np.ndarray:
        """The matrix (d_source, d_target), float64."""
        return self.map.weight.numpy()

    @property
    def bias(self) -> np.ndarray:
        """The bias (d_target,), float64."""
        return self.map.bias.numpy()


def affine_part(map: Map) -> LinearMap:
    """Return a stitcher's affine map unchanged, without the normalisations. Raises InputError on an MLP."""
    if not isinstance(map, AffineMap):
        raise InputError(
            "An MLP is not a single matrix, so its Jacobian at rows of its source space is used; pass such rows "
            "(`source` for the forward stitcher, `target` for the backward one), or train a linear stitcher."
        )
    return LinearMap(map.to("cpu", torch.float64), "the stitcher's exact affine map, without output normalisation")


def jacobian(stitcher: Stitcher, rows: np.ndarray) -> LinearMap:
    """Linearise `stitcher.translate`, normalisations included, at a point (d_source,) or on average over rows (n, d).

    The weight is the mean Jacobian over the rows. The bias is chosen so that the mean of the rows maps to the mean of
    their translations; at a single point, the result is the first-order Taylor expansion. Computed in closed form, in
    float64 and O(n d²) time. Raises InputError on rows of another shape and on rows that cannot be normalised.
    """
    X = np.atleast_2d(np.asarray(rows))
    if X.ndim != 2 or X.shape[1] != stitcher.source.dim or not len(X):
        raise InputError(
            f"`rows` must be (n, {stitcher.source.dim}) or ({stitcher.source.dim},), rows of the stitcher's source "
            f"space {stitcher.source.name!r}; got {np.asarray(rows).shape}."
        )
    map, norms = stitcher.map.to("cpu", torch.float64), (stitcher.input_norm, stitcher.output_norm)
    weight = torch.zeros(map.d_source, map.d_target, dtype=torch.float64)
    mean_in, mean_out = torch.zeros(map.d_source).double(), torch.zeros(map.d_target).double()
    for batch in torch.from_numpy(np.ascontiguousarray(X)).double().split(BATCH_ROWS):
        out, summed = _summed_jacobian(map, batch, norms)
        weight += summed / len(X)
        mean_in += batch.sum(0) / len(X)
        mean_out += out.sum(0) / len(X)
    points = "at one point" if len(X) == 1 else f"averaged over {len(X):,} rows"
    description = (
        f"the stitcher's Jacobian {points}, including normalisation: a linear approximation, valid near such rows"
    )
    return LinearMap(AffineMap(weight, mean_out - mean_in @ weight), description)


def linearise(stitcher: Stitcher, rows: np.ndarray | None = None, tangent: bool = False) -> LinearMap:
    """Return the stitcher's affine map, or its mean Jacobian at `rows` if the map is an MLP or `tangent` is true.

    The rows are first normalised as the stitcher normalises its input, so both kinds of map expect normalised rows.
    Raises InputError if a Jacobian is needed and `rows` is None.
    """
    if rows is None or (isinstance(stitcher.map, AffineMap) and not tangent):
        if tangent:
            raise InputError("A Jacobian is taken at rows of the stitcher's source space; pass such rows.")
        return affine_part(stitcher.map)
    points = torch.from_numpy(np.atleast_2d(np.asarray(rows, dtype=np.float64)))
    return jacobian(stitcher, _normalised(points, stitcher.input_norm, "rows for the Jacobian").numpy())


def evenly_spaced(rows: np.ndarray) -> np.ndarray:
    """Select at most 2,000 rows for a mean Jacobian, evenly spaced because files are often sorted by content."""
    return rows[:: -(-len(rows) // MOST_ROWS) or 1]


@torch.no_grad()
def _summed_jacobian(map: Map, x: Tensor, norms: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Return the translations (n, d_target) of rows x and the sum of the Jacobians (d_source, d_target) over the rows.

    The Jacobian of row i is s (I − u uᵀ) M (I − o oᵀ). Here u is the row at unit length, o its translation at unit
    length, and M the Jacobian of the map alone. s is 1 over the product of the lengths of the row and of the map's
    output. A side that is not normalised contributes no projection and a length of 1.
    """
    u, lengths = _normalised(x, norms[0], "rows for the Jacobian"), torch.linalg.vector_norm(x, dim=1)
    z = map.apply(u)
    o, after = _normalised(z, norms[1], "the translation"), torch.linalg.vector_norm(z, dim=1)
    scale = torch.ones_like(after)
    for how, length in zip(norms, (lengths, after), strict=True):
        scale = scale / length if how == "unit" else scale
    gate = _gate(map, u)
    weighted = scale[:, None]
    total = scale.sum() * map.weight
    if isinstance(map, ResidualMLP) and gate is not None:
        total = total + (map.hidden_weight * (scale @ gate)) @ map.out_weight
    if norms[0] == "unit":
        total = total - (weighted * u).T @ _left_product(map, u, gate)
    if norms[1] == "unit":
        product = _right_product(map, o, gate)
        if norms[0] == "unit":
            product = product - (u * product).sum(1, keepdim=True) * u
        total = total - (weighted * product).T @ o
    return o, total


def _normalised(rows: Tensor, how: str, argument: str) -> Tensor:
    """Normalise rows as `normalise` does, but compute their lengths in float64 instead of float32."""
    checked = normalise(rows, how, argument)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True) if how == "unit" else checked


def _gate(map: Map, u: Tensor) -> Tensor | None:
    """Return the derivative (n, width) of an MLP's hidden units, GELU's Φ(h) + h φ(h); None for an affine map."""
    if not isinstance(map, ResidualMLP):
        return None
    h = u @ map.hidden_weight + map.hidden_bias
    return torch.special.ndtr(h) + h * torch.exp(-h.square() / 2) / math.sqrt(2 * math.pi)


def _left_product(map: Map, u: Tensor, gate: Tensor | None) -> Tensor:
    """Return uᵀ M for each row."""
    rows = u @ map.weight
    if isinstance(map, ResidualMLP) and gate is not None:
        rows = rows + ((u @ map.hidden_weight) * gate) @ map.out_weight
    return rows


def _right_product(map: Map, o: Tensor, gate: Tensor | None) -> Tensor:
    """Return M o for each row."""
    rows = o @ map.weight.T
    if isinstance(map, ResidualMLP) and gate is not None:
        rows = rows + ((o @ map.out_weight.T) * gate) @ map.hidden_weight.T
    return rows
