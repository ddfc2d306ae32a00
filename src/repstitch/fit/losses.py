"""The losses that refinement minimises, one per objective, computed on batches of translated rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from repstitch.precision import exact_products

NEIGHBOURS = 30  # perplexity of a row's native distribution over its neighbours
SAMPLE = 1024


@dataclass(frozen=True)
class Batch:
    """Translated rows, and the rows that a loss compares them with.

    `predicted` (b, d_target) are the translated rows before any normalisation. `targets` (b, d_target) are their
    counterparts, at the length that the map should give. `gallery` (m, d_target) are rows at unit length, and
    `positive_index` (b,) is the position of each counterpart in the gallery. `duplicate_mask` (b, m) marks further
    copies of the counterpart; it is None if there are none. `scale` is the inverse of the learned temperature, and
    `native_scale` the inverse of the temperature of the native similarities. `weights` (b,) weigh the rows; their mean
    over all training pairs is 1.
    """

    predicted: Tensor
    targets: Tensor
    gallery: Tensor
    positive_index: Tensor
    duplicate_mask: Tensor | None
    scale: Tensor
    native_scale: float
    weights: Tensor | None = None

    def mean(self, losses: Tensor) -> Tensor:
        """Return the mean of the rows' losses (b,), by their weights."""
        return (losses if self.weights is None else losses * self.weights).mean()


def info_nce(batch: Batch) -> Tensor:
    """InfoNCE: distinguish each translated row's counterpart from all other targets in the gallery.

    Copies of the counterpart do not count as negatives. van den Oord et al. 2018, "Representation Learning with
    Contrastive Predictive Coding". The loss has one direction only. The reverse direction, which CLIP adds, lowers
    retrieval scores (benchmarks/results/losses.md), because in use only one side is searched.
    """
    logits = F.normalize(batch.predicted, dim=1) @ batch.gallery.T * batch.scale
    if batch.duplicate_mask is not None:
        logits = logits.masked_fill(batch.duplicate_mask, -torch.inf)
    return batch.mean(F.cross_entropy(logits, batch.positive_index, reduction="none"))


def listwise_distillation(batch: Batch) -> Tensor:
    """Listwise distillation: give each translated row the same neighbours among the targets as its counterpart.

    Cross-entropy between the softmax of the counterpart's similarities to the gallery and that of the translated row's
    similarities. The counterpart itself is left out. Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network"; Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach".
    """
    positive = F.one_hot(batch.positive_index, len(batch.gallery)).bool()
    native = F.normalize(batch.targets, dim=1) @ batch.gallery.T * batch.native_scale
    logits = F.normalize(batch.predicted, dim=1) @ batch.gallery.T * batch.scale
    expected = native.masked_fill(positive, -torch.inf).softmax(dim=1)
    return batch.mean(F.cross_entropy(logits.masked_fill(positive, -1e9), expected, reduction="none"))


def squared_error(batch: Batch) -> Tensor:
    """Squared error, before any normalisation, summed over dimensions and averaged over rows."""
    return batch.mean((batch.predicted - batch.targets).square().sum(1))


@exact_products()
def native_scale(gallery: Tensor) -> float:
    """Return the inverse temperature at which the native neighbours of a row have a perplexity of `NEIGHBOURS` rows.

    `gallery` (m, d_target) are rows at unit length. The entropy is averaged over at most 1,024 rows, so each space has
    one temperature. It is searched by bisection, as in van der Maaten and Hinton 2008, "Visualizing Data using t-SNE".
    """
    rows = gallery[:SAMPLE]
    similar = rows @ gallery.T
    similar.fill_diagonal_(-torch.inf)
    low, high, scale = 1.0, 1e4, 1.0
    for _ in range(30):
        scale = math.sqrt(low * high)
        log_p = (similar * scale).log_softmax(dim=1)
        entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(1).mean()
        low, high = (low, scale) if float(entropy) < math.log(NEIGHBOURS) else (scale, high)
    return scale


@dataclass(frozen=True)
class Loss:
    """A loss function of batches, its default learning rate (see `recipe.Recipe`), and its initial temperature.

    `temperature` is "held out" (the temperature at which the start predicts held-out counterparts best), "native" (the
    temperature of `native_scale`) or "none" (the loss has no temperature).
    """

    function: Callable[[Batch], Tensor]
    rate: float
    temperature: str


# Chosen among ten losses, from the same start on real pairs: see benchmarks/results/losses.md.
LOSSES = {
    "match": Loss(info_nce, 0.2, "held out"),
    "neighbours": Loss(listwise_distillation, 0.03, "native"),
    "reconstruction": Loss(squared_error, 0.03, "none"),
}
