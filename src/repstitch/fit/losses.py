"""What refinement minimises, by objective: the loss of a batch of translated rows against a gallery of targets."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 30  # how many rows the native distribution of neighbours spreads over
SAMPLE = 1024


@dataclass(frozen=True)
class Batch:
    """Translated rows `bare` (b, d_target) as the map gives them, and what they are compared with.

    `targets` (b, d_target) are their counterparts at the length the map is to give, `gallery` (m, d_target) unit rows,
    `own` (b,) the counterpart's position in it. `alike` (b, m) marks further copies of the counterpart, None where
    there are none. `scale` is the inverse of the learned temperature, `native` that of the native similarities.
    """

    bare: Tensor
    targets: Tensor
    gallery: Tensor
    own: Tensor
    alike: Tensor | None
    scale: Tensor
    native: float

    @property
    def here(self) -> Tensor:
        return torch.arange(len(self.bare), device=self.bare.device)


def contrast(batch: Batch) -> Tensor:
    """InfoNCE: tell each translated row's counterpart from all other targets in the gallery.

    Copies of the counterpart are no negatives. van den Oord et al. 2018, "Representation Learning with Contrastive
    Predictive Coding". One way only: that each target also finds its own among the batch's translations, as CLIP is
    trained, costs retrieval (benchmarks/results/losses.md), for in use there is but one side that is searched.
    """
    logits = F.normalize(batch.bare, dim=1) @ batch.gallery.T * batch.scale
    if batch.alike is not None:
        logits = logits.masked_fill(batch.alike, -torch.inf)
    return F.cross_entropy(logits, batch.own)


def distil(batch: Batch) -> Tensor:
    """Listwise distillation: each row's neighbours among the targets as its counterpart has them.

    Cross-entropy between the softmax of the native similarities and that of the translated row's, the counterpart
    itself left out. Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; Cao et al. 2007, "Learning to
    Rank: From Pairwise Approach to Listwise Approach".
    """
    itself = F.one_hot(batch.own, len(batch.gallery)).bool()
    native = F.normalize(batch.targets, dim=1) @ batch.gallery.T * batch.native
    logits = F.normalize(batch.bare, dim=1) @ batch.gallery.T * batch.scale
    wanted = native.masked_fill(itself, -torch.inf).softmax(dim=1)
    return F.cross_entropy(logits.masked_fill(itself, -1e9), wanted)


def squared(batch: Batch) -> Tensor:
    """Mean squared error of the rows as the map gives them."""
    return (batch.bare - batch.targets).square().sum(1).mean()


def native_scale(gallery: Tensor) -> float:
    """The inverse temperature at which a row's native neighbours spread over `NEIGHBOURS` rows, by their perplexity.

    `gallery` (m, d_target) are unit rows. One number a space, found by bisection as in van der Maaten and Hinton 2008,
    "Visualizing Data using t-SNE".
    """
    rows = gallery[:SAMPLE]
    similar = rows @ gallery.T
    similar.fill_diagonal_(-torch.inf)
    low, high = 1.0, 1e4
    for _ in range(30):
        scale = math.sqrt(low * high)
        log_p = (similar * scale).log_softmax(dim=1)
        entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(1).mean()
        low, high = (low, scale) if float(entropy) < math.log(NEIGHBOURS) else (scale, high)
    return scale


@dataclass(frozen=True)
class Loss:
    """A loss of batches, the learning rate that suits it (see `contrastive.Recipe`), and its temperature.

    `temperature` says where that starts: "held out", where the start predicts held-out counterparts best; "native",
    where the native similarities spread over a few neighbours; "none" for a loss without one.
    """

    of: Callable[[Batch], Tensor]
    rate: float
    temperature: str


# Chosen among ten from one start on real pairs: benchmarks/results/losses.md, ARCHITECTURE.md.
LOSSES = {
    "match": Loss(contrast, 0.2, "held out"),
    "neighbours": Loss(distil, 0.03, "native"),
    "reconstruction": Loss(squared, 0.03, "none"),
}
