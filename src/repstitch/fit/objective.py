"""The validation objective: the score of a map on pairs that no map was fitted to."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from repstitch.arguments import check_choice
from repstitch.errors import InputError
from repstitch.metrics.delete_one import RowScores, reciprocal_ranks, share_of_neighbours, without_copies
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.neighbours import knn, unit
from repstitch.metrics.retrieval import ranks
from repstitch.names import USES
from repstitch.precision import exact_products

K = 10
SHORTLIST = 100  # rows ahead of a counterpart that are considered when one of them is left out
MAX_DISTRACTORS = 8192
TEMPERATURES = tuple(0.003 * 1.25**step for step in range(20))


@dataclass(frozen=True)
class ValidationObjective:
    """The score that model selection maximises, computed on validation pairs `X` (n, d_source) and `Y` (n, d_target).

    `name` is match, neighbours or reconstruction. The `distractors` (m, d_target) are training targets. They enlarge
    the gallery, so that few validation rows still distinguish a good map from a very good one. `weights` (n,) weigh
    the pairs in the mean score. `use` is the use that `neighbours` is judged by: the translated rows search the gallery
    (`query`), the targets search the translated rows (`corpus`, without distractors), or the mean of these (`both`).
    """

    name: str
    X: Tensor
    Y: Tensor
    distractors: Tensor
    weights: Tensor | None = None
    use: str = "both"

    def __post_init__(self):
        if self.name not in OBJECTIVES:
            raise InputError(f"`objective` must be one of {', '.join(OBJECTIVES)}; got {self.name!r}.")
        check_choice("use", self.use, (*USES, "both"))

    def to(self, device: torch.device | str) -> "ValidationObjective":
        tensors = {name: getattr(self, name) for name in ("X", "Y", "distractors", "weights")}
        return replace(self, **{name: rows if rows is None else rows.to(device) for name, rows in tensors.items()})

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

    @cached_property
    def neighbours_in_corpus(self) -> Tensor:
        """The nearest other rows of each target among the validation targets, as many as `native_neighbours`."""
        return knn(self.Y, self.Y, min(K + 1, len(self.Y) - 1), exclude_self=True)

    @exact_products()
    @torch.inference_mode()
    def scores_per_row(self, map: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the score (n,) of every validation row, higher is better; −inf if the map gives NaN, Inf or zeros."""
        return self.scores_of(map(self.X))

    @exact_products()
    @torch.inference_mode()
    def scores_of(self, predicted: Tensor) -> Tensor:
        """Return the score (n,) of every validation row from its translation, given as (n, d_target)."""
        if not bool(torch.isfinite(predicted).all()) or not bool(predicted.any(dim=1).all()):
            return self.X.new_full((len(self.X),), -torch.inf, dtype=torch.float32)
        return OBJECTIVES[self.name](self, predicted).float()

    def weigh(self, scores: Tensor) -> Tensor:
        """Return scores (n,) times the weights, so that their mean is the weighted mean score."""
        return scores if self.weights is None else scores * (self.weights / self.weights.mean())

    @exact_products()
    @torch.inference_mode()
    def row_scores(self, map: Callable[[Tensor], Tensor]) -> RowScores:
        """Return the scores of `scores_per_row`, and how they change if a row of the gallery is left out."""
        values, pool = self.scores_per_row(map).double().cpu().numpy(), len(self.gallery)
        if self.name == "reconstruction" or not np.isfinite(values).all():
            return RowScores(values, None, -math.inf)
        predicted = map(self.X)
        if self.name == "neighbours":
            return self._shares_of_neighbours(predicted)
        lists = knn(predicted, self.gallery, min(SHORTLIST, pool - 2) + 1, exclude_self=True).cpu()
        ahead = without_copies(lists, self.copies.cpu())
        return reciprocal_ranks(torch.from_numpy(1 / values).round().long(), ahead, pool)

    def _shares_of_neighbours(self, predicted: Tensor) -> RowScores:
        scores: list[RowScores] = []
        for use, queries, gallery, native in (
            ("query", predicted, self.gallery, self.native_neighbours),
            ("corpus", self.Y, predicted, self.neighbours_in_corpus),
        ):
            if self.use in (use, "both"):
                k, pool = min(K, len(gallery) - 1), len(gallery)
                lists = knn(queries, gallery, min(K + 1, pool - 1), exclude_self=True)
                scores.append(share_of_neighbours(native.cpu(), k, lists.cpu(), k, pool))
        return scores[0] if len(scores) == 1 else scores[0].averaged(scores[1])

    def score(self, map: Callable[[Tensor], Tensor]) -> float:
        """Return the mean score over the validation rows, by their weights."""
        return float(self.weigh(self.scores_per_row(map)).mean())

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
    """Share of the counterpart's nearest neighbours, at most ten, that a search finds too, by the use of the objective.

    The counterpart itself is left out.
    """
    shares: list[Tensor] = []
    if objective.use in ("query", "both"):
        native = objective.native_neighbours[:, :K]
        shares.append(overlap(knn(predicted, objective.gallery, native.shape[1], exclude_self=True), native))
    if objective.use in ("corpus", "both"):
        native = objective.neighbours_in_corpus[:, :K]
        shares.append(overlap(knn(objective.Y, predicted, native.shape[1], exclude_self=True), native))
    return torch.stack(shares).mean(0)


def _reconstruction(objective: ValidationObjective, predicted: Tensor) -> Tensor:
    """One minus the squared error as a multiple of the mean squared distance to the mean; the average is R²."""
    spread = (objective.Y - objective.Y.mean(0)).square().sum(1).mean()
    return 1 - (predicted - objective.Y).square().sum(1) / spread


OBJECTIVES = {"match": _match, "neighbours": _neighbours, "reconstruction": _reconstruction}
