"""The computation of a translation: a sequence of normalisations and maps, from one stitcher or several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.normalising import normalise, norms_are_valid, row_norms
from repstitch.errors import InputError
from repstitch.stitchers.maps import AffineMap, Map

BEYOND_EXACT = 2**53  # float64 represents every smaller integer exactly
Rows = np.ndarray | Sequence[Sequence[float]] | Sequence[float]


class PipelineOutput(NamedTuple):
    """The translation of some rows, with the intermediate results.

    `inputs` are the normalised rows that the last map was applied to, and `raw` is its output before the output
    normalisation. `norms` has the norms (n, 1) of the rows before each normalisation; after `run_checked` it has only
    those of the input rows.
    """

    translated: Tensor
    inputs: Tensor
    raw: Tensor
    norms: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Pipeline:
    """A sequence of maps, with a normalisation before each map and one after the last.

    `norms[i]` ("unit" or "none") is applied before `maps[i]`, and `norms[-1]` after the last map.
    """

    norms: tuple[str, ...]
    maps: tuple[Map, ...]

    def __repr__(self) -> str:
        steps = [step for norm, map in zip(self.norms, self.maps, strict=False) for step in (norm, repr(map))]
        return f"Pipeline({', '.join([*steps, self.norms[-1]])})"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Pipeline":
        """Return a copy with its weights on another device or in another dtype."""
        return replace(self, maps=tuple(map.to(device=device, dtype=dtype) for map in self.maps))

    def then(self, other: "Pipeline") -> "Pipeline":
        """Return the pipeline that applies this one and then `other`.

        The last map and the next one are merged into one map if there is no normalisation between them and a form can
        represent both. The result is the same up to rounding.
        """
        first, second = self.maps[-1], other.maps[0]
        if first.d_target != second.d_source:
            raise InputError(f"`other` must take {first.d_target} dimensions; got {second.d_source}.")
        between = "unit" if "unit" in (self.norms[-1], other.norms[0]) else "none"
        if between == "none" and (isinstance(first, AffineMap) or isinstance(second, AffineMap)):
            maps = (*self.maps[:-1], first.then(second), *other.maps[1:])
            return Pipeline((*self.norms[:-1], *other.norms[1:]), maps)
        return Pipeline((*self.norms[:-1], between, *other.norms[1:]), self.maps + other.maps)

    def __call__(self, rows: Tensor) -> PipelineOutput:
        """Translate rows (n, d_source) or one vector (d_source,).

        Raises InputError on NaN and Inf, and on rows of only zeros that must be scaled to unit length, in the input or
        in an intermediate result.
        """
        output = self.run(rows)
        return output if norms_are_valid(output.norms) else self.run_checked(rows)

    def run(self, rows: Tensor) -> PipelineOutput:
        """Translate without reading any value on the CPU, so that the CPU does not wait for a GPU.

        The result is valid only if `norms_are_valid(output.norms)`.
        """
        norms, inputs = [], rows
        for norm, map in zip(self.norms, self.maps, strict=False):
            norms.append(row_norms(rows))
            inputs = rows / norms[-1] if norm == "unit" else rows
            if inputs.dtype != map.weight.dtype:
                inputs = inputs.to(map.weight.dtype)
            rows = map.apply(inputs)
        norms.append(row_norms(rows))
        return PipelineOutput(rows / norms[-1] if self.norms[-1] == "unit" else rows, inputs, rows, tuple(norms))

    def run_checked(self, rows: Tensor) -> PipelineOutput:
        """Translate rows and check every step. Norms that are too large or too small to square in float32 are accepted.

        Raises InputError on rows that cannot be translated.
        """
        inputs, name, norms = rows, "X", (row_norms(rows),)
        for norm, map in zip(self.norms, self.maps, strict=False):
            inputs = normalise(rows, norm, name).to(map.weight.dtype)
            rows, name = map.apply(inputs), "the translation"
        return PipelineOutput(normalise(rows, self.norms[-1], name), inputs, rows, norms)


def as_floats(X: Rows | torch.Tensor) -> torch.Tensor:
    """Return rows as a tensor of floats without rounding, except that long doubles are rounded to float64."""
    rows = X if isinstance(X, torch.Tensor) else _as_tensor(X)
    if rows.is_floating_point():
        return rows
    if rows.is_complex() or rows.dtype == torch.bool:
        raise InputError(f"`X` must contain floats or integers; got {rows.dtype}.")
    floats = rows.double()
    if floats.numel() and float(floats.abs().max()) >= BEYOND_EXACT:
        raise InputError("`X` must contain integers below 2**53, which float64 represents exactly.")
    return floats


def _as_tensor(X: Rows) -> torch.Tensor:
    try:
        array = np.asarray(X)
    except ValueError:
        raise InputError("`X` must be one vector or rows of equal length; its rows have different lengths.") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"`X` must contain floats or integers; got {array.dtype}.")
    if array.dtype.kind == "f":
        dtype = np.float64 if array.dtype.itemsize > 4 else np.float32  # float32 would round float64 values
    else:
        dtype = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, dtype, ("C", "W")))  # copied only if necessary
