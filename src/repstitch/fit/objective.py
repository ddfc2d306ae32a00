"""What a fit is judged by: the objective, on validation rows that no map was fitted to."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.neighbours import knn, unit
from repstitch.metrics.retrieval import ranks

MAX_DISTRACTORS = 8192
TEMPERATURES = tuple(0.003 * 1.25**step for step in range(20))


@dataclass(frozen=True)
class ValidationObjective:
    """Validation pairs `X` (n, d_source) and `Y` (n, d_target), and `distractors` (m, d_target) beside them.

    The distractors are training targets: they make the gallery as large as it can be, so that few validation rows
    still tell a good map from a very good one.
    """

    objective: str
    X: Tensor
    Y: Tensor
    distractors: Tensor

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise InputError(f"`objective` must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}.")

    def to(self, device) -> "ValidationObjective":
        return replace(self, X=self.X.to(device), Y=self.Y.to(device), distractors=self.distractors.to(device))

    @cached_property
    def gallery(self) -> Tensor:
        return torch.cat([self.Y, self.distractors[:MAX_DISTRACTORS]])

    @cached_property
    def copies(self) -> Tensor:
        return torch.unique(self.gallery, dim=0, return_inverse=True)[1]

    @cached_property
    def native(self) -> Tensor:
        k = min(10, len(self.gallery) - 1)
        return knn(self.Y, self.gallery, k, exclude_self=True)

    @torch.inference_mode()
    def rows(self, map) -> Tensor:
        """The objective's score of every validation row (n,), higher is better; a map that broke scores −inf."""
        predicted = map(self.X)
        if not bool(torch.isfinite(predicted).all()) or not bool(predicted.any(dim=1).all()):
            return torch.full((len(self.X),), -torch.inf)
        return OBJECTIVES[self.objective](self, predicted).float().cpu()

    def score(self, map) -> float:
        return float(self.rows(map).mean())

    @torch.inference_mode()
    def temperature(self, map) -> float:
        """The temperature at which the map's similarities best predict the counterpart, on these held-out rows."""
        similar = unit(map(self.X)) @ unit(self.gallery).T
        truth = torch.arange(len(similar), device=similar.device)
        loss = [float(torch.nn.functional.cross_entropy(similar / t, truth)) for t in TEMPERATURES]
        return TEMPERATURES[loss.index(min(loss))]


def _match(judge: ValidationObjective, predicted: Tensor) -> Tensor:
    """Reciprocal rank of the counterpart."""
    return 1.0 / ranks(predicted, judge.gallery, judge.copies)


def _neighbours(judge: ValidationObjective, predicted: Tensor) -> Tensor:
    """Share of the ten neighbours that the native row would have had, the counterpart itself left out."""
    return overlap(knn(predicted, judge.gallery, judge.native.shape[1], exclude_self=True), judge.native)


def _reconstruction(judge: ValidationObjective, predicted: Tensor) -> Tensor:
    """One minus the squared error over the mean squared distance to the mean: averages to R²."""
    spread = (judge.Y - judge.Y.mean(0)).square().sum(1).mean()
    return 1 - (predicted - judge.Y).square().sum(1) / spread


OBJECTIVES = {"match": _match, "neighbours": _neighbours, "reconstruction": _reconstruction}
