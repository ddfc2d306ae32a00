"""How far to trust one translation, from the source vector alone, calibrated on pairs that nothing else used.

Four readings are taken of a source row x: the length of its raw translation, the shrunk Mahalanobis distance of x to
the training rows, the share of that distance in the directions that both spaces share, and the plain distance to the
mean. Validation pairs say what the readings are worth: the half that selected the map shows where they usually lie, the
other half what they say about hits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.precision import exact_products

LEAST_ROWS = 20
READINGS = 4  # log of: raw length, shared share, Mahalanobis distance, distance to the mean
FOR_MATCH, FOR_TYPICAL = slice(0, 3), slice(2, 4)
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Confidence:
    """How far to trust the translation of each row: float32 arrays (n,), of no axis for one vector.

    `p_match` in [0, 1] is the probability that the counterpart is among the first ten of `pool` target rows.
    `cosine_lower` in [-1, 1] is a bound: the cosine to the counterpart lies above it for a stated share of rows.
    `p_typical` in (0, 1] is the share of calibration rows that look at least as unusual as this one; where it is small,
    the other measures say nothing. `shared` in [0, 1] is how much of the row lies where the two spaces agree.
    `distance` is its shrunk Mahalanobis distance to the training rows, about 1 for one of them.
    """

    pool: int
    p_match: np.ndarray = field(repr=False)
    cosine_lower: np.ndarray = field(repr=False)
    p_typical: np.ndarray = field(repr=False)
    shared: np.ndarray = field(repr=False)
    distance: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, np.ndarray]:
        """The measures by the names that files and replies use, such as `p_match@1000`."""
        measures = (self.p_match, self.cosine_lower, self.p_typical, self.shared, self.distance)
        return dict(zip(measure_names(self.pool), measures, strict=True))

    def __repr__(self) -> str:
        return f"Confidence({self.p_match.size} rows, p_match in a pool of {self.pool})"


def measure_names(pool: int) -> tuple[str, ...]:
    """The names of the measures, in order; the pool that a probability was calibrated for is part of its name."""
    return (f"p_match@{pool}", "cosine_lower", "p_typical", "shared", "distance")


@dataclass(frozen=True, eq=False)
class Calibration:
    """What turns readings of a row into its confidence, at pools of `pool` rows; the cosine bound covers `level`.

    `mean` (d_source,) and `project` (d_source, d_source): source rows about their mean, whitened, along the canonical
    directions; `shared` (d_source,) their squared correlations. `centre`, `scale` (4,) and `low`, `high` (3,) describe
    the readings of the selecting half. `match` and `cosine` (4,) are weights of the first three readings, constant
    last; `precision` (2, 2) joins the two distances; `atypical` (n,) holds their joint size for the calibration rows,
    ascending. All float32.
    """

    pool: int
    level: float
    mean: Tensor = field(repr=False)
    project: Tensor = field(repr=False)
    shared: Tensor = field(repr=False)
    centre: Tensor = field(repr=False)
    scale: Tensor = field(repr=False)
    low: Tensor = field(repr=False)
    high: Tensor = field(repr=False)
    match: Tensor = field(repr=False)
    cosine: Tensor = field(repr=False)
    precision: Tensor = field(repr=False)
    atypical: Tensor = field(repr=False)

    def __post_init__(self):
        if type(self.pool) is not int or self.pool < 2 or not isinstance(self.level, float) or not 0 < self.level < 1:
            raise InputError(
                "`pool` of a calibration must be a whole number above 1 and `level` a number between 0 and 1; "
                f"got {self.pool!r} and {self.level!r}."
            )
        d, n = len(self.mean), len(self.atypical)
        shapes = {"mean": (d,), "project": (d, d), "shared": (d,), "precision": (2, 2), "atypical": (n,)}
        shapes |= dict.fromkeys(("centre", "scale"), (READINGS,)) | dict.fromkeys(("low", "high"), (3,))
        shapes |= dict.fromkeys(("match", "cosine"), (4,))
        for name, tensor in self.tensors().items():
            if tuple(tensor.shape) != shapes[name] or tensor.dtype != torch.float32:
                raise InputError(
                    f"`{name}` of a calibration must be float32 of shape {shapes[name]}; "
                    f"got {tensor.dtype} of shape {tuple(tensor.shape)}."
                )
            if not torch.isfinite(tensor).all():
                raise InputError(f"`{name}` of a calibration must be finite; it holds NaN or Inf.")
        if n < LEAST_ROWS or bool((self.atypical.diff() < 0).any()) or not bool((self.scale > 0).all()):
            raise InputError(
                f"`atypical` of a calibration must hold at least {LEAST_ROWS} ascending numbers, `scale` positive ones."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what it measures, in order."""
        return measure_names(self.pool)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as they are stored."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("pool", "level")}

    def to(self, device: torch.device | str) -> "Calibration":
        """The same with its tensors on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @torch.no_grad()
    def measure(self, X: Tensor, raw: Tensor) -> dict[str, Tensor]:
        """The measures of `Confidence` by name, each (n,), of normalised source rows X (n, d_source) and their raw
        translations. Costs one product with `project`."""
        readings = take_readings(X, raw, self.mean, self.project, self.shared)
        standard = (readings - self.centre) / self.scale
        # The weights mean nothing beyond what calibration saw: readings count at most as the furthest there.
        within = torch.maximum(torch.minimum(standard[:, FOR_MATCH], self.high), self.low)
        measures = (
            torch.sigmoid(weigh(within, self.match)),
            weigh(within, self.cosine).clamp(-1, 1),
            self._p_typical(standard[:, FOR_TYPICAL]),
            readings[:, 1].exp(),
            readings[:, 2].exp(),
        )
        return dict(zip(self.names, measures, strict=True))

    @exact_products()
    def confidence(self, X: Tensor, raw: Tensor) -> Confidence:
        """The confidence of normalised source rows X (n, d_source) or one vector, and their raw translations."""
        measures = self.measure(torch.atleast_2d(X), torch.atleast_2d(raw)).values()
        return Confidence(self.pool, *(values.reshape(X.shape[:-1]).cpu().numpy() for values in measures))

    def _p_typical(self, distances: Tensor) -> Tensor:
        """Conformal p-value: (1 + calibration rows at least as unusual) / (1 + calibration rows)."""
        beyond = len(self.atypical) - torch.searchsorted(self.atypical, unusualness(distances, self.precision))
        return (1 + beyond).float() / (1 + len(self.atypical))


def calibration_from_tensors(settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> Calibration:
    """Rebuild a calibration from its pool and level, and its tensors by name."""
    return Calibration(**settings, **tensors)


def take_readings(X: Tensor, raw: Tensor, mean: Tensor, project: Tensor, shared: Tensor) -> Tensor:
    """The readings (n, 4) of source rows (n, d_source) and their raw translations (n, d_target)."""
    centred = X.to(mean.dtype) - mean
    power = (centred @ project).square_()
    total = power.sum(1).clamp(min=TINY)
    share = (power @ shared / total).clamp(min=TINY)
    return torch.stack([_lengths(raw), share, (total / len(mean)).sqrt(), _lengths(centred)], dim=1).log()


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).clamp(min=TINY)


def weigh(readings: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum (n,) of readings (n, k), the constant last in `weights`."""
    return readings @ weights[:-1] + weights[-1]


def unusualness(distances: Tensor, precision: Tensor) -> Tensor:
    """How unusual two standardised distances (n, 2) are together: too near counts as well as too far.

    A row in the middle of everything, such as a mean of many, is as unlike the training data as one far outside.
    """
    return ((distances @ precision) * distances).sum(1)
