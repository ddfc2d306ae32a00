"""The learned maps: an affine map, and an affine map plus a residual MLP. Only these two forms are stored on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self, overload

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class Map:
    """Base class of the maps from rows (n, d_source) to rows (n, d_target). Its fields are the tensors of the map."""

    weight: Tensor
    bias: Tensor

    def __post_init__(self):
        if self.weight.ndim != 2 or self.bias.shape != (self.weight.shape[1],):
            raise InputError(
                f"`weight` must be (d_source, d_target) and `bias` (d_target,); "
                f"got {tuple(self.weight.shape)} and {tuple(self.bias.shape)}."
            )
        for name, tensor in self.tensors().items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"`{name}` of a map must be finite; it contains NaN or Inf, so the fit has failed.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.d_source} -> {self.d_target})"

    @property
    def d_source(self) -> int:
        return self.weight.shape[0]

    @property
    def d_target(self) -> int:
        return self.weight.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as they are stored."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return a copy with its tensors on another device or in another dtype."""
        return replace(self, **{k: v.to(device=device, dtype=dtype) for k, v in self.tensors().items()})

    @overload
    def __call__(self, x: np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    def __call__(self, x: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Map rows (n, d_source) or one vector (d_source,).

        A tensor gives a tensor; anything else is converted to a NumPy array and gives a NumPy array of float32.
        """
        if not isinstance(x, Tensor):
            rows = torch.from_numpy(np.require(x, np.float32, ("C", "W"))).to(self.weight.device)
            return self(rows.to(self.weight.dtype)).float().cpu().numpy()
        if x.ndim not in (1, 2) or x.shape[-1] != self.d_source:
            raise InputError(f"`x` must be (n, {self.d_source}) or ({self.d_source},); got {tuple(x.shape)}.")
        return self.apply(x.to(self.weight.dtype))

    def apply(self, x: Tensor) -> Tensor:
        """Map rows or one vector without checking their shape and dtype."""
        raise TypeError("Map is a base class; use AffineMap or ResidualMLP.")

    def then(self, other: "Map") -> "Map":
        """Return the map `x -> other(self(x))`."""
        raise TypeError("Map is a base class; use AffineMap or ResidualMLP.")


@dataclass(frozen=True, eq=False, repr=False)
class AffineMap(Map):
    """The map `x @ weight + bias`."""

    def apply(self, x: Tensor) -> Tensor:
        return _affine(x, self.weight, self.bias)

    def then(self, other: Map) -> Map:
        """Return the map `x -> other(self(x))`, as one map of the same form as `other`."""
        _check_chain(self, other)
        if isinstance(other, ResidualMLP):
            return ResidualMLP(
                self.weight @ other.weight,
                self.bias @ other.weight + other.bias,
                self.weight @ other.hidden_weight,
                self.bias @ other.hidden_weight + other.hidden_bias,
                other.out_weight,
            )
        return AffineMap(self.weight @ other.weight, self.bias @ other.weight + other.bias)


@dataclass(frozen=True, eq=False, repr=False)
class ResidualMLP(Map):
    """The map `x @ weight + bias + gelu(x @ hidden_weight + hidden_bias) @ out_weight`."""

    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor

    def __post_init__(self):
        super().__post_init__()
        width = self.hidden_weight.shape[-1] if self.hidden_weight.ndim else 0
        if (
            self.hidden_weight.shape != (self.d_source, width)
            or self.hidden_bias.shape != (width,)
            or self.out_weight.shape != (width, self.d_target)
        ):
            raise InputError(
                "`hidden_weight`, `hidden_bias` and `out_weight` must be (d_source, width), (width,) and "
                "(width, d_target); their shapes differ."
            )

    def apply(self, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(_affine(x, self.hidden_weight, self.hidden_bias))
        return _affine(x, self.weight, self.bias) + hidden @ self.out_weight

    def then(self, other: Map) -> Map:
        """Return the map `x -> other(self(x))`. Raises InputError if `other` is an MLP: no form has two MLPs."""
        _check_chain(self, other)
        if not isinstance(other, AffineMap):
            raise InputError("`other` must be affine to be merged with an MLP; apply the two maps in sequence instead.")
        return replace(
            self,
            weight=self.weight @ other.weight,
            bias=self.bias @ other.weight + other.bias,
            out_weight=self.out_weight @ other.weight,
        )


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute x @ weight + bias in one call, because for one vector the addition takes as long as the product."""
    return torch.addmm(bias, x, weight) if x.ndim == 2 else torch.addmv(bias, weight.T, x)


def _check_chain(first: Map, second: Map) -> None:
    if first.d_target != second.d_source:
        raise InputError(
            f"`other` must take the {first.d_target} dimensions that the first map returns; got {second.d_source}."
        )


def map_from_tensors(form: str, tensors: Mapping[str, Tensor]) -> Map:
    """Rebuild a map from the name of its form and its tensors, in float32."""
    if form not in FORMS:
        raise InputError(f"`form` of a map must be one of {', '.join(FORMS)}; got {form!r}.")
    names = {f.name for f in fields(FORMS[form])}
    if set(tensors) != names:
        raise InputError(f"A map of form {form!r} must have the tensors {sorted(names)}; got {sorted(tensors)}.")
    return FORMS[form](**{k: v.float() for k, v in tensors.items()})


def form_of(map: Map) -> str:
    """Return the name under which the map's form is stored."""
    return next(name for name, cls in FORMS.items() if type(map) is cls)


FORMS: dict[str, type[Map]] = {"affine": AffineMap, "residual_mlp": ResidualMLP}
