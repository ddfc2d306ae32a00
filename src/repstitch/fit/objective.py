"""The validation objective: the score of a map on pairs that no map was fitted to."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.delete_one import RowScores, reciprocal_ranks, share_of_neighbours, without_copies
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.neighbours import knn, unit
from repstitch.metrics.retrieval import ranks
from repstitch.precision import exact_products

K = 10
SHORTLIST = 100  # rows ahead of a counterpart that are considered when one of them is left out
MAX_DISTRACTORS = 8192
TEMPERATURES = tuple(0.003 * 1.25**step for step in range(20))


@dataclass(frozen=True)
class ValidationObjective:
    """The score that model selection maximises, computed on validation pairs `X` (n, d_source) and `Y` (n, d_target).

    `name` is match, neighbours or reconstruction. The `distractors` (m, d_target) are training targets. They enlarge
    the gallery, so that few validation rows still distinguish a good map from a very good one.
    """

    name: str
    X: Tensor
    Y: Tensor
    distractors: Tensor

    def __post_init__(self):
        if self.name not in OBJECTIVES:
            raise InputError(f"`objective` must be one of {', '.join(OBJECTIVES)}; got {self.name!r}.")

    def to(self, device: torch.device | str) -> "ValidationObjective":
        return replace(self, X=self.X.to(device), Y=self.Y.to(device), distractors=self.distractors.to(device))

    @cached_property
    def gallery(self) -> Tensor:
        return torch.cat([self.Y, self.distractors[:MAX_DISTRACTORS]])

    @cached_property
    def copies(self) -> Tensor:
        return torch.unique(self.gallery, dim=0, return_inverse=True)[1]

    @cached_property
    def native_neighbours(self) -> Tensor:
        """The nearest other rows of each target in the gallery: at most ten, and the next one if there is one."""
        return knn(self.Y, self.gallery, min(K + 1, len(self.gallery) - 1), exclude_self=True)

    @exact_products()
    @torch.inference_mode()
    def scores_per_row(self, map: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the score (n,) of every validation row, higher is better; −inf if the map gives NaN, Inf or zeros."""
        predicted = map(self.X)
        if not bool(torch.isfinite(predicted).all()) or not bool(predicted.any(dim=1).all()):
            return self.X.new_full((len(self.X),), -torch.inf, dtype=torch.float32)
        return OBJECTIVES[self.name](self, predicted).float()

    @exact_products()
    @torch.inference_mode()
    def row_scores(self, map: Callable[[Tensor], Tensor]) -> RowScores:
        """Return the scores of `scores_per_row`, and how they change if a row of the gallery is left out."""
        values, pool = self.scores_per_row(map).double().cpu().numpy(), len(self.gallery)
        if self.name == "reconstruction" or not np.isfinite(values).all():
            return RowScores(values, None, -math.inf)
        depth = min(K if self.name == "neighbours" else SHORTLIST, pool - 2) + 1
        lists = knn(map(self.X), self.gallery, depth, exclude_self=True).cpu()
        if self.name == "neighbours":
            return share_of_neighbours(self.native_neighbours.cpu(), min(K, pool - 1), lists, min(K, pool - 1), pool)
        ahead = without_copies(lists, self.copies.cpu())
        return reciprocal_ranks(torch.from_numpy(1 / values).round().long(), ahead, pool)

    def score(self, map: Callable[[Tensor], Tensor]) -> float:
        """Return the mean score over the validation rows."""
        return float(self.scores_per_row(map).mean())

    @exact_products()
    @torch.inference_mode()
    def temperature(self, map: Callable[[Tensor], Tensor]) -> float:
        """Return the temperature at which the map's similarities best predict the counterparts of validation rows."""
        similar = unit(map(self.X)) @ unit(self.gallery).T
        truth = torch.arange(len(similar), device=similar.device)
        loss = [float(torch.nn.functional.cross_entropy(similar / t, truth)) for t in TEMPERATURES]
        return TEMPERATURES[loss.index(min(loss))]


def _match(objective: ValidationObjective, predicted: Tensor) -> Tensor:
    """Reciprocal rank of the counterpart."""
    return 1.0 / ranks(predicted, objective.gallery, objective.copies)


def _neighbours(objective: ValidationObjective, predicted: Tensor) -> Tensor:
    """Share of the counterpart's nearest neighbours, at most ten, that are also the translated row's.

    The counterpart itself is left out.
    """
    native = objective.native_neighbours[:, :K]
    return overlap(knn(predicted, objective.gallery, native.shape[1], exclude_self=True), native)


def _reconstruction(objective: ValidationObjective, predicted: Tensor) -> Tensor:
    """One minus the squared error as a multiple of the mean squared distance to the mean; the average is R²."""
    spread = (objective.Y - objective.Y.mean(0)).square().sum(1).mean()
    return 1 - (predicted - objective.Y).square().sum(1) / spread


OBJECTIVES = {"match": _match, "neighbours": _neighbours, "reconstruction": _reconstruction}
