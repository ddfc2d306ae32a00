"""What a score would be if the two spaces had nothing to do with one another."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.neighbours import overlap


@dataclass(frozen=True)
class Null:
    """A score beside its permutation null: the null's mean, the add-one p-value, the calibrated score.

    `calibrated` is 0 at the null's 95 % point and 1 at a perfect score. p cannot go below 1 / (draws + 1).
    """

    score: float
    null: float
    p: float
    calibrated: float


def calibrate(score: float, draws: np.ndarray, level: float = 0.05) -> Null:
    """Place a score of at most 1 in the null's draws (K,); Phipson and Smyth 2010, "Permutation P-values Should Never
    Be Zero"."""
    K = len(draws)
    if not K:
        raise InputError("`draws` must hold at least one permutation.")
    p = (1 + int((draws >= score).sum())) / (K + 1)
    edge = float(np.sort(draws)[min(K, int(np.ceil((1 - level) * (K + 1)))) - 1])
    calibrated = 0.0 if edge >= 1 else float(np.clip((score - edge) / (1 - edge), 0, 1))
    return Null(score, float(draws.mean()), p, calibrated)


def permute_rows(compare: Callable[[Tensor], float], n: int, draws: int, seed: int = 0) -> np.ndarray:
    """`compare(order)` for `draws` random orders of the n rows: the null of any score of matched rows."""
    random = torch.Generator().manual_seed(seed)
    return np.array([compare(torch.randperm(n, generator=random)) for _ in range(draws)])


def permute_neighbours(a: Tensor, b: Tensor, draws: int, seed: int = 0) -> np.ndarray:
    """The null of mutual_knn from two neighbour graphs (n, k): rows permuted *and* the positions in them relabelled.

    Permuting the lists alone would leave a graph that no space has, and a test that rejects too often.
    """

    def compare(order: Tensor) -> float:
        new = torch.empty_like(order)
        new[order] = torch.arange(len(order))
        return float(overlap(a, new[b[order]]).mean())

    return permute_rows(compare, len(a), draws, seed)
