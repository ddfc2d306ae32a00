"""What translating computes: normalisations and maps in turn, of one stitcher or of several one after the other."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.maps import AffineMap, Map

SMALLEST_NORM = 1e-15  # below it the squares lose their digits in float32


class Passed(NamedTuple):
    """Rows that went through a chain: the translation, the normalised rows that its last map was given, what that map
    gave, and the lengths that rows had before each normalisation (n, 1)."""

    translated: Tensor
    known: Tensor
    bare: Tensor
    lengths: tuple[Tensor, ...]


@dataclass(frozen=True)
class Chain:
    """`maps` in turn, rows brought to `norms[i]` ("unit" or "none") before map i and to `norms[-1]` after the last."""

    norms: tuple[str, ...]
    maps: tuple[Map, ...]

    def to(self, device=None, dtype=None) -> "Chain":
        """The same with its weights on another device or in another dtype."""
        return replace(self, maps=tuple(map.to(device=device, dtype=dtype) for map in self.maps))

    def then(self, other: "Chain") -> "Chain":
        """This chain, then `other`: exactly what the two give in turn, whatever they are made of.

        Two maps become one only where no normalisation stands between them and one of the forms can hold both.
        """
        first, second = self.maps[-1], other.maps[0]
        if first.d_target != second.d_source:
            raise InputError(f"`other` must take {first.d_target} dimensions; it takes {second.d_source}.")
        between = "unit" if "unit" in (self.norms[-1], other.norms[0]) else "none"
        if between == "none" and (isinstance(first, AffineMap) or isinstance(second, AffineMap)):
            maps = (*self.maps[:-1], first.then(second), *other.maps[1:])  # pyright: ignore[reportAttributeAccessIssue]
            return Chain((*self.norms[:-1], *other.norms[1:]), maps)
        return Chain((*self.norms[:-1], between, *other.norms[1:]), self.maps + other.maps)

    def __call__(self, rows: Tensor) -> Passed:
        """Translate rows (n, d_source) or one vector (d_source,).

        Raises InputError on NaN, Inf and, where a direction is needed, zeros, in the rows or on the way.
        """
        passed = self.run(rows)
        return passed if sound(passed.lengths) else self.run_carefully(rows)

    def run(self, rows: Tensor) -> Passed:
        """The same without a look at any number, so that no GPU is waited for; trust it where the lengths are sound."""
        lengths, known = [], rows
        for how, map in zip(self.norms, self.maps, strict=False):
            norms = _norms(rows)
            lengths.append(norms)
            known = rows / norms if how == "unit" else rows
            if known.dtype != map.weight.dtype:
                known = known.to(map.weight.dtype)
            rows = map.apply(known)
        norms = _norms(rows)
        lengths.append(norms)
        return Passed(rows / norms if self.norms[-1] == "unit" else rows, known, rows, tuple(lengths))

    def run_carefully(self, rows: Tensor) -> Passed:
        """The same for rows whose lengths float32 can hardly square, or that cannot be translated, which it says."""
        known, what, lengths = rows, "X", (_norms(rows),)
        for how, map in zip(self.norms, self.maps, strict=False):
            known = normalise(rows, how, what).to(map.weight.dtype)
            rows, what = map.apply(known), "the translation"
        return Passed(normalise(rows, self.norms[-1], what), known, rows, lengths)


def sound(lengths: Iterable[Tensor]) -> bool:
    """Whether rows of such lengths are known to be finite and to have a direction; NaN answers no comparison."""
    for norms in lengths:
        if norms.numel() == 1:  # where two calls into torch would be felt
            least = largest = norms.item()
        elif norms.numel():
            least, largest = (float(bound) for bound in torch.aminmax(norms))
        else:
            continue
        if not SMALLEST_NORM < least <= largest < math.inf:
            return False
    return True


def normalise(rows: Tensor, how: str, what: str = "rows") -> Tensor:
    """Rows at unit length ("unit") or as they are ("none"); NaN, Inf and zero rows are refused, never passed on."""
    norms = _norms(rows)
    if not sound((norms,)):  # one pass in the common case: a norm in range proves that its row is sound
        finite = torch.isfinite(rows).all(dim=-1, keepdim=True)
        if not bool(finite.all()):
            raise InputError(f"{what} must be finite; {_rows_where(~finite)} hold NaN or Inf.")
        largest = rows.abs().amax(dim=-1, keepdim=True)
        if how == "unit" and bool((largest == 0).any()):
            raise InputError(f"{what} must have a direction; {_rows_where(largest == 0)} hold only zeros.")
        if how == "unit":  # finite, but too large or small to square in float32
            rows = rows / largest
            norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norms if how == "unit" else rows


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows if rows.dtype == torch.float32 else rows.float(), dim=-1, keepdim=True)


def _rows_where(mask: Tensor) -> str:
    at = torch.nonzero(mask.reshape(-1)).reshape(-1).tolist()
    return f"{len(at)} of {mask.numel()} rows (first: row {at[0]})"
