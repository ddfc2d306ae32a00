"""The permutation null of a score: its distribution if the two spaces were unrelated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.neighbours import Graph

CELLS = 2**24  # rows of one sparse matrix of edges by spaces


@dataclass(frozen=True)
class Null:
    """A score with the mean of its permutation null, its add-one p-value and the calibrated score.

    `calibrated` is 0 up to the 95 % quantile of the null and 1 at a perfect score. p is at least 1 / (draws + 1).
    """

    score: float
    null: float
    p: float
    calibrated: float


def calibrate(score: float, draws: np.ndarray, level: float = 0.05) -> Null:
    """Compare a score of at most 1 with the draws (K,) of its null.

    Phipson and Smyth 2010, "Permutation P-values Should Never Be Zero".
    """
    return Null(*(float(v[0]) for v in (np.array([score]), *calibrate_all(np.array([score]), draws[None], level))))


def calibrate_all(scores: np.ndarray, draws: np.ndarray, level: float = 0.05) -> tuple[np.ndarray, ...]:
    """Return the null's mean, the p-value and the calibrated score, each (m,), of scores (m,) with draws (m, K)."""
    K = draws.shape[1]
    if not K:
        raise InputError("`draws` must contain at least one permutation.")
    # A draw counts as equal to the score up to rounding, because both sum the same terms in another order.
    p = (1 + (draws >= scores[:, None] - 1e-9).sum(1)) / (K + 1)
    edge = np.sort(draws, axis=1)[:, min(K, int(np.ceil((1 - level) * (K + 1)))) - 1].astype(np.float64)
    room = np.where(edge < 1, 1 - edge, 1)
    calibrated = np.where(edge < 1, np.clip((scores - edge) / room, 0, 1), 0.0)
    return draws.mean(1, dtype=np.float64), p, calibrated


def adjust(p: np.ndarray) -> np.ndarray:
    """Convert the p-values (m,) of many tests to q-values. Tests with q ≤ α have a false discovery rate of at most α.

    Benjamini and Hochberg 1995, "Controlling the False Discovery Rate".
    """
    from scipy.stats import false_discovery_control

    return false_discovery_control(p) if len(p) else np.asarray(p, dtype=float)


def random_orders(n: int, draws: int, seed: int = 0) -> Tensor:
    """Return `draws` random orders (draws, n) of n rows.

    All pairs of spaces use the same orders, so that the maximum over pairs has a null distribution too.
    """
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=random) for _ in range(draws)])


def relabel(neighbours: Tensor, order: Tensor) -> Tensor:
    """Return the neighbour lists (n, k) of the rows in another order; −1, no neighbour, stays −1.

    The lists are permuted, and the positions in them are relabelled. Without relabelling, the result would not be the
    graph of any rows, and the permutation test would reject too often.
    """
    order = order.to(neighbours.device)
    new = torch.full((len(order) + 1,), -1, dtype=order.dtype, device=order.device)
    new[order] = torch.arange(len(order), device=order.device)
    return new[neighbours[order]]


def permute_graph(space: Graph, order: Tensor) -> Graph:
    """Return the neighbour graph of the rows in another order."""
    lists = relabel(torch.cat([space.neighbours, space.following[:, None]], 1), order)
    return replace(
        space,
        neighbours=lists[:, :-1].contiguous(),
        similarities=space.similarities[order],
        following=lists[:, -1].contiguous(),
        mean=space.mean[order],
    )


def shared_weight(
    lists: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    orders: Tensor,
    weights: Sequence[Tensor] | None = None,
) -> np.ndarray:
    """Return the sum over edges shared by `lists[i]` and the permuted `lists[j]`, for each pair (i, j): (pairs, K).

    `lists` has the neighbour lists (n, k) of each space. An edge counts 1, or the product of its two `weights` (n, k).
    The edges of all first spaces form a sparse matrix of edges by spaces, and each permuted second space is a sparse
    row. Their product gives all pairs, and reads each permuted edge once for any number of first spaces. O(K N n k)
    time for N spaces.
    """
    from scipy.sparse import csr_array

    firsts, seconds = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    n, k = lists[firsts[0]].shape
    kind = np.int32 if weights is None else np.float64
    edges = {i: lists[i].cpu().numpy().astype(np.int32) for i in {*firsts, *seconds}}
    values = {i: np.ones((n, k), kind) if weights is None else weights[i].cpu().numpy().astype(kind) for i in edges}
    order = orders.cpu().numpy()
    inverse = np.argsort(order, axis=1).astype(np.int32)
    totals = np.zeros((len(seconds), len(order), len(firsts)), kind)
    rows = max(1, CELLS // n)
    for start in range(0, n, rows):
        stop = min(n, start + rows)
        base = (np.arange(stop - start, dtype=np.int32) * n)[:, None]
        cells = np.concatenate([(edges[i][start:stop] + base).ravel() for i in firsts])
        space = np.repeat(np.arange(len(firsts), dtype=np.int32), (stop - start) * k)
        weight = np.concatenate([values[i][start:stop].ravel() for i in firsts])
        edge_by_space = csr_array((weight, (cells, space)), shape=((stop - start) * n, len(firsts)))
        for at, j in enumerate(seconds):
            sources = order[:, start:stop]
            moved = np.stack([new[edges[j][old]] for new, old in zip(inverse, sources, strict=True)]) + base
            ends = np.arange(len(order) + 1) * (stop - start) * k
            shape = (len(order), (stop - start) * n)
            permuted = csr_array((values[j][sources].ravel(), moved.ravel(), ends), shape=shape)
            products: Any = permuted @ edge_by_space
            totals[at] += products.toarray()
    row, column = {j: at for at, j in enumerate(seconds)}, {i: at for at, i in enumerate(firsts)}
    return np.stack([totals[row[j], :, column[i]] for i, j in pairs])
