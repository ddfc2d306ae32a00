"""A stitcher as one affine map: the bare map as it is, or a tangent of the whole translation."""

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
MOST_ROWS = 2_000  # that a mean Jacobian is taken at


@dataclass(frozen=True)
class Linear:
    """An affine map in float64 that stands for a stitcher, and `how` it does, in words."""

    map: AffineMap
    how: str

    @property
    def weight(self) -> np.ndarray:
        """(d_source, d_target) float64."""
        return self.map.weight.numpy()

    @property
    def bias(self) -> np.ndarray:
        """(d_target,) float64."""
        return self.map.bias.numpy()


def bare(map: Map) -> Linear:
    """A stitcher's affine map without its normalisations, exactly; InputError on an MLP, which no affine map is."""
    if not isinstance(map, AffineMap):
        raise InputError(
            "An MLP has no one matrix, so it acts by its Jacobian at rows of its source space; give such rows "
            "(--source for the forward stitcher, --target for the backward one), or train a linear stitcher."
        )
    return Linear(map.to("cpu", torch.float64), "the bare map, exactly: without the normalisation after it")


def jacobian(stitcher: Stitcher, rows: np.ndarray) -> Linear:
    """The tangent of `stitcher.translate`, normalisations included, at a point (d_source,) or averaged over rows (n,
    d).

    The weight is the mean Jacobian over the rows; the bias is such that the mean of the rows goes to the mean of their
    translations, so that at one point it is the first-order expansion there. In closed form, float64, O(n d²) time.
    Raises InputError as `translate` does.
    """
    X = np.atleast_2d(np.asarray(rows))
    if X.ndim != 2 or X.shape[1] != stitcher.source.dim or not len(X):
        raise InputError(
            f"`rows` must be (n, {stitcher.source.dim}) or ({stitcher.source.dim},), of the space "
            f"{stitcher.source.name!r} that the stitcher reads; got {np.asarray(rows).shape}."
        )
    map, norms = stitcher.map.to("cpu", torch.float64), (stitcher.input_norm, stitcher.output_norm)
    weight = torch.zeros(map.d_source, map.d_target, dtype=torch.float64)
    mean_in, mean_out = torch.zeros(map.d_source).double(), torch.zeros(map.d_target).double()
    for batch in torch.from_numpy(np.ascontiguousarray(X)).double().split(BATCH_ROWS):
        out, slope = _slope(map, batch, norms)
        weight += slope / len(X)
        mean_in += batch.sum(0) / len(X)
        mean_out += out.sum(0) / len(X)
    where = "at one point" if len(X) == 1 else f"averaged over {len(X):,} rows"
    how = f"its Jacobian {where}, normalisation included: a tangent, so true near such rows only"
    return Linear(AffineMap(weight, mean_out - mean_in @ weight), how)


def linearise(stitcher: Stitcher, rows: np.ndarray | None = None, tangent: bool = False) -> Linear:
    """The bare map where it is affine, unless a `tangent` is asked for; else the Jacobian at `rows`, brought to the
    stitcher's input normalisation, so that what goes through either map reads rows so normalised."""
    if rows is None or (isinstance(stitcher.map, AffineMap) and not tangent):
        if tangent:
            raise InputError("A Jacobian is taken at rows of the stitcher's source space; give some.")
        return bare(stitcher.map)
    given = torch.from_numpy(np.atleast_2d(np.asarray(rows, dtype=np.float64)))
    return jacobian(stitcher, _brought(given, stitcher.input_norm, "rows for the Jacobian").numpy())


def thinned(rows: np.ndarray) -> np.ndarray:
    """At most 2,000 of the rows for a mean Jacobian, evenly spread, for files are often sorted by what rows show."""
    return rows[:: -(-len(rows) // MOST_ROWS) or 1]


@torch.no_grad()
def _slope(map: Map, x: Tensor, norms: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Translations (n, d_target) of rows x, and the sum over the rows of the Jacobians (d_source, d_target).

    Row i's is s (I − u uᵀ) M (I − o oᵀ): u and o are the unit rows before and after the map, M the map's own Jacobian,
    s one over the product of both lengths; what is not normalised has a length of 1 and no projection.
    """
    u, lengths = _brought(x, norms[0], "rows for the Jacobian"), torch.linalg.vector_norm(x, dim=1)
    z = map.apply(u)
    o, after = _brought(z, norms[1], "the translation"), torch.linalg.vector_norm(z, dim=1)
    scale = torch.ones_like(after)
    for how, length in zip(norms, (lengths, after), strict=True):
        scale = scale / length if how == "unit" else scale
    gate = _gate(map, u)
    weighted = scale[:, None]
    total = scale.sum() * map.weight
    if isinstance(map, ResidualMLP) and gate is not None:
        total = total + (map.hidden_weight * (scale @ gate)) @ map.out_weight
    if norms[0] == "unit":
        total = total - (weighted * u).T @ _forth(map, u, gate)
    if norms[1] == "unit":
        back = _back(map, o, gate)
        if norms[0] == "unit":
            back = back - (u * back).sum(1, keepdim=True) * u
        total = total - (weighted * back).T @ o
    return o, total


def _brought(rows: Tensor, how: str, what: str) -> Tensor:
    """`normalise` with lengths in float64, which it takes in float32."""
    sound = normalise(rows, how, what)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True) if how == "unit" else sound


def _gate(map: Map, u: Tensor) -> Tensor | None:
    """The slope (n, width) of an MLP's hidden units, GELU's Φ(h) + h φ(h); None for an affine map."""
    if not isinstance(map, ResidualMLP):
        return None
    h = u @ map.hidden_weight + map.hidden_bias
    return torch.special.ndtr(h) + h * torch.exp(-h.square() / 2) / math.sqrt(2 * math.pi)


def _forth(map: Map, u: Tensor, gate: Tensor | None) -> Tensor:
    """uᵀ M of each row."""
    rows = u @ map.weight
    if isinstance(map, ResidualMLP) and gate is not None:
        rows = rows + ((u @ map.hidden_weight) * gate) @ map.out_weight
    return rows


def _back(map: Map, o: Tensor, gate: Tensor | None) -> Tensor:
    """M o of each row."""
    rows = o @ map.weight.T
    if isinstance(map, ResidualMLP) and gate is not None:
        rows = rows + ((o @ map.out_weight.T) * gate) @ map.hidden_weight.T
    return rows
