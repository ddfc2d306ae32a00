"""The computation of a translation: normalisations and maps in turn, of one stitcher or several."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from repstitch.embeddings.normalising import normalise, norms_are_valid, row_norms
from repstitch.errors import InputError
from repstitch.stitchers.maps import AffineMap, Map


class PipelineOutput(NamedTuple):
    """The translation of some rows, and what it was computed from.

    `inputs` are the normalised rows that the last map took and `raw` what it returned, before the output normalisation.
    `norms` holds the norms (n, 1) that the rows had before each normalisation.
    """

    translated: Tensor
    inputs: Tensor
    raw: Tensor
    norms: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Pipeline:
    """`maps` in turn, rows brought to `norms[i]` ("unit" or "none") before map i and to `norms[-1]` after the last."""

    norms: tuple[str, ...]
    maps: tuple[Map, ...]

    def __repr__(self) -> str:
        steps = [step for norm, map in zip(self.norms, self.maps, strict=False) for step in (norm, repr(map))]
        return f"Pipeline({', '.join([*steps, self.norms[-1]])})"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Pipeline":
        """The same with its weights on another device or in another dtype."""
        return replace(self, maps=tuple(map.to(device=device, dtype=dtype) for map in self.maps))

    def then(self, other: "Pipeline") -> "Pipeline":
        """This pipeline, then `other`, with exactly the result of the two in turn.

        Two maps become one only where no normalisation lies between them and one of the forms can hold both.
        """
        first, second = self.maps[-1], other.maps[0]
        if first.d_target != second.d_source:
            raise InputError(f"`other` must take {first.d_target} dimensions; it takes {second.d_source}.")
        between = "unit" if "unit" in (self.norms[-1], other.norms[0]) else "none"
        if between == "none" and (isinstance(first, AffineMap) or isinstance(second, AffineMap)):
            maps = (*self.maps[:-1], first.then(second), *other.maps[1:])
            return Pipeline((*self.norms[:-1], *other.norms[1:]), maps)
        return Pipeline((*self.norms[:-1], between, *other.norms[1:]), self.maps + other.maps)

    def __call__(self, rows: Tensor) -> PipelineOutput:
        """Translate rows (n, d_source) or one vector (d_source,).

        Raises InputError on NaN, Inf and, where a direction is needed, zeros, in the rows or on the way.
        """
        output = self.run(rows)
        return output if norms_are_valid(output.norms) else self.run_checked(rows)

    def run(self, rows: Tensor) -> PipelineOutput:
        """Translate without looking at any number, so that nothing waits for a GPU.

        The result holds only where `norms_are_valid(output.norms)`.
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
        """Translate rows whose norms float32 can hardly square; refuse rows that cannot be translated."""
        inputs, name, norms = rows, "X", (row_norms(rows),)
        for norm, map in zip(self.norms, self.maps, strict=False):
            inputs = normalise(rows, norm, name).to(map.weight.dtype)
            rows, name = map.apply(inputs), "the translation"
        return PipelineOutput(normalise(rows, self.norms[-1], name), inputs, rows, norms)
