"""Nearest neighbours by cosine, exact and tiled, and how much two lists of them agree."""

import torch
from torch import Tensor

from repstitch.errors import InputError

TILE_ROWS = 2048


def unit(X: Tensor) -> Tensor:
    """Rows (n, d) at length one, float32; InputError on rows without a direction."""
    X = X.float()
    norms = torch.linalg.vector_norm(X, dim=1, keepdim=True)
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise InputError("Rows must be finite and not all zeros to have neighbours; leave such rows out first.")
    return X / norms


def knn(queries: Tensor, gallery: Tensor, k: int = 10, own: bool = False) -> Tensor:
    """Positions (n, k) of each query's `k` nearest gallery rows by cosine, nearest first.

    `queries` is (n, d), `gallery` (m, d). With `own`, row i of the queries belongs to row i of the gallery and is left
    out of its own list. Exact; O(n m d) time, O(n k + tile · m) memory. Raises InputError unless 1 ≤ k ≤ rows left.
    """
    rows = len(gallery) - int(own)
    if not 1 <= k <= rows:
        raise InputError(f"`k` must be at least 1 and at most the number of other rows ({rows}); got {k}.")
    if own and len(queries) > len(gallery):
        raise InputError(
            f"With `own`, every query needs its own gallery row; got {len(queries)} queries and {len(gallery)} rows."
        )
    Q, G = unit(queries), unit(gallery)
    found = torch.empty(len(Q), k, dtype=torch.long, device=Q.device)
    for at in range(0, len(Q), TILE_ROWS):
        similar = Q[at : at + TILE_ROWS] @ G.T
        if own:
            here = torch.arange(len(similar), device=Q.device)
            similar[here, here + at] = -torch.inf
        found[at : at + TILE_ROWS] = similar.topk(k, dim=1).indices
    return found


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Share (n,) of each row's neighbours that both lists (n, k) hold, whatever their order."""
    if a.shape != b.shape:
        raise InputError(f"Both lists must have one shape (n, k); got {tuple(a.shape)} and {tuple(b.shape)}.")
    return held(a, b)


def held(a: Tensor, b: Tensor) -> Tensor:
    """Share (n,) of the entries of each row of `a` (n, k) that the same row of `b` (n, m) holds too."""
    both = torch.cat([a, b], dim=1).sort(dim=1).values
    return (both[:, 1:] == both[:, :-1]).sum(dim=1) / a.shape[1]


def mutual_knn(X: Tensor, Y: Tensor, k: int = 10) -> float:
    """Mean share of each row's `k` nearest neighbours that both spaces agree on.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned; unrelated spaces score k / (n − 1)
    on average, so scores of different n do not compare. Neighbours are by cosine: rotation and row scale do not
    matter, centring does. Spaces whose rows repeat one another are refused, for their neighbours are arbitrary.
    Exact, O(n² d) time, O(n k) memory. Huh et al. 2024, "The Platonic Representation Hypothesis".
    """
    if len(X) != len(Y):
        raise InputError(f"`X` and `Y` must have as many rows; got {len(X)} and {len(Y)}.")
    for name, rows in (("X", X), ("Y", Y)):
        check_spread(rows, k, name)
    return float(overlap(knn(X, X, k, own=True), knn(Y, Y, k, own=True)).mean())


def check_spread(X: Tensor, k: int, name: str) -> None:
    """Refuse a space in which most rows are copies: its neighbour lists say nothing but would look aligned."""
    if not 1 <= k < len(X):
        raise InputError(f"`k` must be at least 1 and below the number of rows ({len(X)}); got {k}.")
    distinct = len(torch.unique(unit(X), dim=0))
    if distinct <= max(k, len(X) // 2):
        raise InputError(
            f"`{name}` has only {distinct} different directions in {len(X)} rows, so its nearest neighbours are "
            "arbitrary; remove the repeats."
        )
