"""The losses that refinement minimises, one for each objective, of a batch of translated rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from repstitch.precision import exact_products

NEIGHBOURS = 30  # how many rows the native distribution of neighbours spreads over
SAMPLE = 1024


@dataclass(frozen=True)
class Batch:
    """The rows that a map `predicted` (b, d_target), before any normalisation, and what they are compared with.

    `targets` (b, d_target) are the counterparts at the length that the map should give, `gallery` (m, d_target) unit
    rows, `positive_index` (b,) the counterpart's position in the gallery. `duplicate_mask` (b, m) marks further copies
    of the counterpart; None where there are none. `scale` is the inverse of the learned temperature, `native_scale`
    that of the native similarities.
    """

    predicted: Tensor
    targets: Tensor
    gallery: Tensor
    positive_index: Tensor
    duplicate_mask: Tensor | None
    scale: Tensor
    native_scale: float


def info_nce(batch: Batch) -> Tensor:
    """InfoNCE: distinguish each translated row's counterpart from all other targets in the gallery.

    Copies of the counterpart are no negatives. van den Oord et al. 2018, "Representation Learning with Contrastive
    Predictive Coding". One direction only: the reverse direction, which CLIP adds, costs retrieval
    (benchmarks/results/losses.md), because in use only one side is searched.
    """
    logits = F.normalize(batch.predicted, dim=1) @ batch.gallery.T * batch.scale
    if batch.duplicate_mask is not None:
        logits = logits.masked_fill(batch.duplicate_mask, -torch.inf)
    return F.cross_entropy(logits, batch.positive_index)


def listwise_distillation(batch: Batch) -> Tensor:
    """Listwise distillation: each row should have the neighbours among the targets that its counterpart has.

    Cross-entropy between the softmax of the native similarities and that of the translated row's, the counterpart
    itself left out. Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; Cao et al. 2007, "Learning to
    Rank: From Pairwise Approach to Listwise Approach".
    """
    positive = F.one_hot(batch.positive_index, len(batch.gallery)).bool()
    native = F.normalize(batch.targets, dim=1) @ batch.gallery.T * batch.native_scale
    logits = F.normalize(batch.predicted, dim=1) @ batch.gallery.T * batch.scale
    expected = native.masked_fill(positive, -torch.inf).softmax(dim=1)
    return F.cross_entropy(logits.masked_fill(positive, -1e9), expected)


def squared_error(batch: Batch) -> Tensor:
    """Mean squared error of the rows before any normalisation."""
    return (batch.predicted - batch.targets).square().sum(1).mean()


@exact_products()
def native_scale(gallery: Tensor) -> float:
    """The inverse temperature at which a row's native neighbours have a perplexity of `NEIGHBOURS` rows on average.

    `gallery` (m, d_target) are unit rows. One number a space, by bisection as in van der Maaten and Hinton 2008,
    "Visualizing Data using t-SNE".
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
    """A loss function of batches, its default learning rate (see `recipe.Recipe`), and how its temperature starts.

    `temperature` is "held out" (where the start predicts held-out counterparts best), "native" (where the native
    similarities spread over a few neighbours) or "none" (a loss without one).
    """

    function: Callable[[Batch], Tensor]
    rate: float
    temperature: str


# Chosen among ten from one start on real pairs: benchmarks/results/losses.md, ARCHITECTURE.md.
LOSSES = {
    "match": Loss(info_nce, 0.2, "held out"),
    "neighbours": Loss(listwise_distillation, 0.03, "native"),
    "reconstruction": Loss(squared_error, 0.03, "none"),
}
