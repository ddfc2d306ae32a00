"""How well translated rows find their counterparts."""

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.neighbours import TILE_ROWS, unit


def ranks(queries: Tensor, gallery: Tensor, copies: Tensor | None = None) -> Tensor:
    """Rank (n,) of each query's counterpart among the gallery rows by cosine, from 1.

    `queries` is (n, d); row i's counterpart is row i of `gallery` (m, d), m ≥ n. A gallery row that is identical to the
    counterpart is as good as it; any other tie counts against the query. `copies` (m,) numbers identical gallery rows
    alike, if that is known already. Exact, O(n m d) time, O(tile · m) memory.
    """
    if queries.shape[1] != gallery.shape[1] or len(gallery) < len(queries):
        raise InputError(
            f"`gallery` must hold a counterpart of every query, in the same space; got {tuple(queries.shape)} "
            f"against {tuple(gallery.shape)}."
        )
    Q, G = unit(queries), unit(gallery)
    same = torch.unique(gallery, dim=0, return_inverse=True)[1] if copies is None else copies
    result = torch.empty(len(Q), dtype=torch.long, device=Q.device)
    for at in range(0, len(Q), TILE_ROWS):
        similar = Q[at : at + TILE_ROWS] @ G.T
        own = torch.arange(at, at + len(similar), device=Q.device)
        ahead = similar >= similar.gather(1, own[:, None])
        result[own] = 1 + (ahead & (same != same[own, None])).sum(1)
    return result


def recall(ranks: Tensor, k: int) -> float:
    """Share of counterparts among the first `k`: in [0, 1], k / m by chance in a gallery of m."""
    return float((ranks <= k).float().mean())


def mrr(ranks: Tensor) -> float:
    """Mean reciprocal rank: in (0, 1], about ln(m) / m by chance. Voorhees 1999, "The TREC-8 QA Track Report"."""
    return float((1.0 / ranks).mean())


def hubness(neighbours: Tensor, gallery_size: int) -> float:
    """Skewness of how often each gallery row occurs in the lists (n, k): 0 when even, large when a few rows are hubs.

    Radovanović et al. 2010, "Hubs in Space".
    """
    counts = np.bincount(neighbours.cpu().numpy().ravel(), minlength=gallery_size).astype(np.float64)
    spread = counts.std()
    return float(((counts - counts.mean()) ** 3).mean() / spread**3) if spread > 0 else 0.0
