"""Confidence of single translations, computed from the source vector alone.

Four readings are computed for a source row x: the length of its raw translation, the shrunk Mahalanobis distance of x
to the training rows, the share of that distance along the directions that both spaces share, and the Euclidean distance
to the training mean. They are calibrated on validation pairs: the half that selected the map gives the usual range of
the readings, the other half relates the readings to hits.
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
    """The confidence of each translated row: float32 arrays (n,), or scalars () for one vector.

    `p_match` in [0, 1] is the probability that the counterpart is among the 10 nearest of `pool` target rows.
    `cosine_lower` in [-1, 1] is a lower bound of the cosine to the counterpart, which holds for 90 % of rows.
    `p_typical` in (0, 1] is the share of calibration rows that are at least as unusual as this row; if it is small, do
    not rely on the first two. `shared` in [0, 1] is the share of the row along directions that both spaces have.
    `distance` is the shrunk Mahalanobis distance of the row to the training rows, about 1 for a training row.
    """

    pool: int
    p_match: np.ndarray = field(repr=False)
    cosine_lower: np.ndarray = field(repr=False)
    p_typical: np.ndarray = field(repr=False)
    shared: np.ndarray = field(repr=False)
    distance: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return the measures by the names used in files and HTTP responses, such as `p_match@1000`."""
        measures = (self.p_match, self.cosine_lower, self.p_typical, self.shared, self.distance)
        return dict(zip(measure_names(self.pool), measures, strict=True))

    def __repr__(self) -> str:
        return f"Confidence({self.p_match.size} rows, p_match in a pool of {self.pool})"


def measure_names(pool: int) -> tuple[str, ...]:
    """Return the names of the measures, in order. The name of p_match includes the pool it was calibrated for."""
    return (f"p_match@{pool}", "cosine_lower", "p_typical", "shared", "distance")


@dataclass(frozen=True, eq=False)
class Calibration:
    """The fitted parameters from which the confidence of each row is computed. All tensors are float32.

    `pool` is the number of target rows that p_match refers to, `level` the share of rows for which the cosine bound
    holds. `mean` (d_source,) and `project` (d_source, d_source) centre source rows and whiten them along the canonical
    directions; `shared` (d_source,) has the squared correlations of these directions. `centre`, `scale` (4,) and `low`,
    `high` (3,) are statistics of the readings on the half of validation that selected the map. `match` and `cosine`
    (4,) are weights of the first three readings, intercept last. `precision` (2, 2) combines the two distances;
    `atypical` (n,) has the combined distance of each calibration row, ascending.
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
                "`pool` of a calibration must be an integer above 1 and `level` a number between 0 and 1; "
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
                raise InputError(f"`{name}` of a calibration must be finite; it contains NaN or Inf.")
        if n < LEAST_ROWS or bool((self.atypical.diff() < 0).any()) or not bool((self.scale > 0).all()):
            raise InputError(
                f"`atypical` of a calibration must have at least {LEAST_ROWS} ascending numbers, `scale` positive ones."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the measures, in order."""
        return measure_names(self.pool)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as they are stored."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("pool", "level")}

    def to(self, device: torch.device | str) -> "Calibration":
        """Return a copy with its tensors on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @torch.no_grad()
    def measure(self, X: Tensor, raw: Tensor) -> dict[str, Tensor]:
        """Return the measures of `Confidence` by name, each (n,).

        X (n, d_source) are normalised source rows, `raw` (n, d_target) their translations before output normalisation.
        The cost is one product of X with `project`.
        """
        readings = take_readings(X, raw, self.mean, self.project, self.shared)
        standard = (readings - self.centre) / self.scale
        # Readings are clipped to the range that calibration saw, because the weights are not valid outside it.
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
        """Return the confidence of normalised source rows X (n, d_source), or of one vector (d_source,).

        `raw` has their translations before output normalisation.
        """
        measures = self.measure(torch.atleast_2d(X), torch.atleast_2d(raw)).values()
        return Confidence(self.pool, *(values.reshape(X.shape[:-1]).cpu().numpy() for values in measures))

    def _p_typical(self, distances: Tensor) -> Tensor:
        """Conformal p-value: (1 + calibration rows at least as unusual) / (1 + calibration rows)."""
        beyond = len(self.atypical) - torch.searchsorted(self.atypical, unusualness(distances, self.precision))
        return (1 + beyond).float() / (1 + len(self.atypical))


def calibration_from_tensors(settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> Calibration:
    """Rebuild a calibration from its settings (`pool` and `level`) and its tensors by name."""
    return Calibration(**settings, **tensors)


def take_readings(X: Tensor, raw: Tensor, mean: Tensor, project: Tensor, shared: Tensor) -> Tensor:
    """Return the readings (n, 4) of source rows (n, d_source) with their raw translations (n, d_target)."""
    centred = X.to(mean.dtype) - mean
    power = (centred @ project).square_()
    total = power.sum(1).clamp(min=TINY)
    share = (power @ shared / total).clamp(min=TINY)
    return torch.stack([_lengths(raw), share, (total / len(mean)).sqrt(), _lengths(centred)], dim=1).log()


def _lengths(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).clamp(min=TINY)


def weigh(readings: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum (n,) of readings (n, k); the last of `weights` is the intercept."""
    return readings @ weights[:-1] + weights[-1]


def unusualness(distances: Tensor, precision: Tensor) -> Tensor:
    """Return how unusual (n,) two standardised distances (n, 2) are together. Too small is as unusual as too large.

    A row close to the centre, such as the mean of many rows, differs from training rows as much as one far outside.
    """
    return ((distances @ precision) * distances).sum(1)
