"""How far to trust one translation, from the source vector alone, calibrated on pairs that nothing else saw.

Four things are read off a source row x: the length of the bare translation, the shrunk Mahalanobis distance of x to the
training rows, the share of that distance that lies in the directions both spaces share, and the plain distance to the
mean. What they are worth is learned from validation: where they usually lie on the half that selected the map, what
they say about hits on the half that selection never saw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from repstitch.errors import InputError

LEAST_ROWS = 20
READINGS = 4  # log of: bare length, shared share, Mahalanobis distance, distance to the mean
FOR_MATCH, FOR_TYPICAL = slice(0, 3), slice(2, 4)
TINY = 1e-12


@dataclass(frozen=True)
class Confidence:
    """Calibrated measures of single translations at pools of `pool` rows; `level` is what the cosine bound covers.

    `mean` (d_source,) and `project` (d_source, d_source): source rows about their mean, whitened, along the canonical
    directions; `shared` (d_source,) their squared correlations. `centre`, `scale` (4,) and `low`, `high` (3,) are of
    the readings on the selecting half. `match` and `cosine` (4,) are weights of the first three readings, constant
    last; `precision` (2, 2) joins the two distances; `atypical` (n,) holds what it gave for the calibration rows,
    ascending. All float32.
    """

    pool: int
    level: float
    mean: Tensor
    project: Tensor
    shared: Tensor
    centre: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    match: Tensor
    cosine: Tensor
    precision: Tensor
    atypical: Tensor

    def __post_init__(self):
        if type(self.pool) is not int or self.pool < 2 or not isinstance(self.level, float) or not 0 < self.level < 1:
            raise InputError(
                "`pool` of a confidence must be a whole number above 1 and `level` a number between 0 and 1; "
                f"got {self.pool!r} and {self.level!r}."
            )
        d, n = len(self.mean), len(self.atypical)
        shapes = {"mean": (d,), "project": (d, d), "shared": (d,), "precision": (2, 2), "atypical": (n,)}
        shapes |= {
            "centre": (READINGS,),
            "scale": (READINGS,),
            "low": (3,),
            "high": (3,),
            "match": (4,),
            "cosine": (4,),
        }
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != shapes[name] or tensor.dtype != torch.float32:
                raise InputError(
                    f"`{name}` of a confidence must be float32 of shape {shapes[name]}; "
                    f"got {tensor.dtype} of shape {tuple(tensor.shape)}."
                )
            if not torch.isfinite(tensor).all():
                raise InputError(f"`{name}` of a confidence must be finite; it holds NaN or Inf.")
        if n < LEAST_ROWS or bool((self.atypical.diff() < 0).any()) or not bool((self.scale > 0).all()):
            raise InputError(
                f"`atypical` of a confidence must hold at least {LEAST_ROWS} ascending numbers, `scale` positive ones."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """What it measures, in order; the pool that a probability was calibrated for is part of its name."""
        return (f"p_match@{self.pool}", "cosine_lower", "p_typical", "shared", "distance")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as they are stored."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("pool", "level")}

    def to(self, device) -> "Confidence":
        """The same with its tensors on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @torch.no_grad()
    def measure(self, X: Tensor, bare: Tensor) -> dict[str, Tensor]:
        """Measures (n,) by name, of normalised source rows X (n, d_source) and what the map gave for them.

        `p_match@N` in [0, 1]: probability that the counterpart is among the first ten of N target rows. `cosine_lower`
        in [-1, 1]: the cosine to the counterpart lies above it for the share `level` of rows like the calibration's.
        `p_typical` in (0, 1]: share of such rows that look as unusual as this one; small means that the others say
        nothing. `shared` in [0, 1]: how much of the row lies where the two spaces agree. `distance`: its shrunk
        Mahalanobis distance to the training rows, about 1 for one of them. Costs one product with `project`.
        """
        readings = read(X, bare, self.mean, self.project, self.shared)
        standard = (readings - self.centre) / self.scale
        # Beyond what calibration saw the weights mean nothing, so no reading counts for more than the furthest there.
        known = torch.maximum(torch.minimum(standard[:, FOR_MATCH], self.high), self.low)
        values = (
            torch.sigmoid(weigh(known, self.match)),
            weigh(known, self.cosine).clamp(-1, 1),
            self._p_typical(standard[:, FOR_TYPICAL]),
            readings[:, 1].exp(),
            readings[:, 2].exp(),
        )
        return dict(zip(self.names, values, strict=True))

    def _p_typical(self, distances: Tensor) -> Tensor:
        """Conformal p-value: (1 + calibration rows at least as unusual) / (1 + calibration rows)."""
        beyond = len(self.atypical) - torch.searchsorted(self.atypical, unusual(distances, self.precision))
        return (1 + beyond).float() / (1 + len(self.atypical))


def confidence_from_tensors(settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> Confidence:
    """Rebuild a confidence from its pool and level, and its tensors by name."""
    return Confidence(**settings, **tensors)


def read(X: Tensor, bare: Tensor, mean: Tensor, project: Tensor, shared: Tensor) -> Tensor:
    """The readings (n, 4) of source rows (n, d_source) and their bare translations (n, d_target)."""
    centred = X.to(mean.dtype) - mean
    power = (centred @ project).square_()
    total = power.sum(1).clamp(min=TINY)
    share = (power @ shared / total).clamp(min=TINY)
    length = lambda rows: torch.linalg.vector_norm(rows, dim=1).clamp(min=TINY)  # noqa: E731
    return torch.stack([length(bare), share, (total / len(mean)).sqrt(), length(centred)], dim=1).log()


def weigh(readings: Tensor, weights: Tensor) -> Tensor:
    return readings @ weights[:-1] + weights[-1]


def unusual(distances: Tensor, precision: Tensor) -> Tensor:
    """How unusual two standardised distances (n, 2) are together: too near counts as well as too far.

    A row in the middle of everything, such as a mean of many, is as little like the training data as one far outside.
    """
    return ((distances @ precision) * distances).sum(1)
