"""Retrieval metrics: how well translated rows retrieve their counterparts or relevant documents."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.matrices import MatrixLike, as_matrix, as_positions
from repstitch.metrics.neighbours import nearest, tie_order, tile_rows, unit
from repstitch.precision import exact_products


@exact_products()
def ranks(queries: MatrixLike, gallery: MatrixLike, copies: Tensor | None = None) -> Tensor:
    """Return the rank (n,) of each query's counterpart among the gallery rows by cosine, from 1.

    `queries` is (n, d). The counterpart of query i is row i of `gallery` (m, d), m ≥ n. Gallery rows that are identical
    to the counterpart do not count against the query; any other tie in float32 does. `copies` (m,) has the same number
    for identical gallery rows; it is computed if it is not passed. Exact; O(n m d) time, O(tile · m) memory.
    """
    queries, gallery = as_matrix(queries, "queries"), as_matrix(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1] or len(gallery) < len(queries):
        raise InputError(
            f"`gallery` must have a row for every query and as many columns as `queries`; got {tuple(queries.shape)} "
            f"and {tuple(gallery.shape)}."
        )
    Q, G = unit(queries), unit(gallery)
    same = torch.unique(gallery, dim=0, return_inverse=True)[1] if copies is None else copies
    result = torch.empty(len(Q), dtype=torch.long, device=Q.device)
    step = tile_rows(Q, 0, len(G))
    for at in range(0, len(Q), step):
        similar = Q[at : at + step] @ G.T
        counterparts = torch.arange(at, at + len(similar), device=Q.device)
        result[counterparts] = _ranks_of(similar, counterparts, same)
    return result


def _ranks_of(similar: Tensor, counterparts: Tensor, copies: Tensor) -> Tensor:
    """Return the rank (n,) of the column `counterparts` (n,) in each row of `similar` (n, m)."""
    ahead = similar >= similar.gather(1, counterparts[:, None])
    return 1 + (ahead & (copies != copies[counterparts, None])).sum(1)


@exact_products()
def search(queries: Tensor, gallery: Tensor, k: int, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return `ranks(queries, gallery, copies)` and `knn(queries, gallery, k, exclude_self=True)`.

    The similarities are computed only once. `gallery` is (n, d). `queries` is (n, d), or (1, d) for one query that is
    used for every row.
    """
    Q, G = unit(queries), unit(gallery)
    n, order = len(G), tie_order(G)
    G, copies, place = G[order], copies[order], order.argsort()
    once = Q @ G.T if len(Q) == 1 else None
    positions = torch.empty(n, dtype=torch.long, device=G.device)
    neighbours = torch.empty(n, k, dtype=torch.long, device=G.device)
    step = tile_rows(G, k, n)
    for at in range(0, n, step):
        rows = torch.arange(at, min(at + step, n), device=G.device)
        similar = Q[rows] @ G.T if once is None else once.repeat(len(rows), 1)
        positions[rows] = _ranks_of(similar, place[rows], copies)
        similar[rows - at, place[rows]] = -torch.inf
        neighbours[rows] = order[nearest(similar, k)]
    return positions, neighbours


def search_similar(similar: Tensor, k: int, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `search` does, from the similarities (n, n) of each query with each row of the gallery."""
    counterparts = torch.arange(len(similar), device=similar.device)
    others = similar.clone().fill_diagonal_(-torch.inf)
    return _ranks_of(similar, counterparts, copies), nearest(others, k)


def recall(ranks: Tensor | ArrayLike, k: int) -> float:
    """Share of queries whose counterpart is among the first `k` results, from the ranks (n,) of the counterparts.

    In [0, 1]; k / m by chance in a gallery of m rows.
    """
    return float((as_positions(ranks, "ranks") <= k).float().mean())


def mrr(ranks: Tensor | ArrayLike) -> float:
    """Mean reciprocal rank of the counterparts, from their `ranks` (n,).

    In (0, 1]; about ln(m) / m by chance in a gallery of m rows. Voorhees 1999, "The TREC-8 QA Track Report".
    """
    return float((1.0 / as_positions(ranks, "ranks")).mean())


def gains(retrieved: Tensor, grades: Sequence[Mapping[int, float]]) -> Tensor:
    """Return the grade (n, k) of each document in the lists `retrieved` (n, k).

    `grades` has one mapping per query, from document to grade. Other documents have grade 0.
    """
    rows = [
        [judged.get(document, 0.0) for document in row] for judged, row in zip(grades, retrieved.tolist(), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(retrieved.shape)


def ndcg(retrieved: Tensor | ArrayLike, grades: Sequence[Mapping[int, float]], k: int = 10) -> Tensor:
    """Normalised discounted cumulated gain (n,) of the first `k` documents of each query's list.

    `retrieved` (n, depth) are document numbers, best first. The depth is at least `k`, unless there are fewer
    documents. `grades` has one mapping per query, from document number to grade, with at least one grade above 0.

    The gain is the grade itself (not 2^grade − 1), as in trec_eval and BEIR. The discount is 1 / log2(rank + 1). The
    ideal is the best order of all judged documents. A document without a judgement has gain 0. In [0, 1], higher is
    better. Järvelin and Kekäläinen 2002, "Cumulated Gain-Based Evaluation of IR Techniques".
    """
    discount = 1 / torch.log2(torch.arange(k, dtype=torch.float64) + 2)
    gained = gains(as_positions(retrieved, "retrieved", lists=True)[:, :k], grades)
    ideal = torch.zeros(len(grades), k, dtype=torch.float64)
    for i, judged in enumerate(grades):
        best = torch.tensor(sorted(judged.values(), reverse=True)[:k], dtype=torch.float64)
        ideal[i, : len(best)] = best
    return gained @ discount[: gained.shape[1]] / (ideal @ discount)


def relevant_recall(retrieved: Tensor | ArrayLike, grades: Sequence[Mapping[int, float]]) -> Tensor:
    """Share (n,) of each query's relevant documents (grade above 0) that its list `retrieved` (n, k) contains."""
    relevant = torch.tensor([sum(grade > 0 for grade in judged.values()) for judged in grades])
    return (gains(as_positions(retrieved, "retrieved", lists=True), grades) > 0).sum(1) / relevant.double()


def hubness(neighbours: Tensor | ArrayLike, gallery_size: int) -> float:
    """Skewness of how often each gallery row occurs in the lists (n, k): 0 if even, large if a few rows are hubs.

    Radovanović et al. 2010, "Hubs in Space".
    """
    positions = as_positions(neighbours, "neighbours").cpu().numpy().ravel()
    if len(positions) and not 0 <= positions.min() <= positions.max() < gallery_size:
        raise InputError(
            f"`neighbours` must be positions of gallery rows, from 0 to {gallery_size - 1}; got {positions.min()} "
            f"to {positions.max()}."
        )
    counts = np.bincount(positions, minlength=gallery_size).astype(np.float64)
    spread = counts.std()
    return float(((counts - counts.mean()) ** 3).mean() / spread**3) if spread > 0 else 0.0
