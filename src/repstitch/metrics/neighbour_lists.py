"""Metrics that compare the neighbour lists of two spaces, as sets or as sequences."""

from collections.abc import Callable

import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.matrices import MatrixLike, matched_matrices
from repstitch.metrics.neighbours import TILE_ROWS, graph, tiles


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return the share (n,) of each row's neighbours that both lists (n, k) contain, in any order."""
    if first.shape != second.shape:
        raise InputError(
            f"Both lists must have the same shape (n, k); got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    return share_contained(first, second)


def share_contained(entries: Tensor, lists: Tensor) -> Tensor:
    """Return the share (n,) of each row's `entries` (n, k) that the same row of `lists` (n, m) also contains."""
    both = torch.cat([entries, lists], dim=1).sort(dim=1).values
    return (both[:, 1:] == both[:, :-1]).sum(dim=1).double() / entries.shape[1]


def closes_cycle(in_x: Tensor, in_y: Tensor) -> Tensor:
    """Return 1 for each row (n,) that is in the `in_x` list (n, k) of one of its `in_y` neighbours (n, k), else 0."""
    rows = torch.arange(len(in_x), device=in_x.device)[:, None, None]
    return torch.cat([(in_x[in_y[part]] == rows[part]).any(2).any(1) for part in tiles(len(in_y), TILE_ROWS)]).double()


def common_sequence(first: Tensor, second: Tensor) -> Tensor:
    """Return the length (n,) of the longest common subsequence of each row's two lists (n, k), divided by k."""
    n, k = first.shape
    # lengths[j] compares the columns of `first` so far with the first j columns of `second`.
    lengths = first.new_zeros(k + 1, n, dtype=torch.int16)
    columns = second.T.contiguous()
    for column in first.T:
        before = lengths.clone()
        for j in range(k):
            step = before[j] + (column == columns[j])
            lengths[j + 1] = torch.maximum(torch.maximum(before[j + 1], lengths[j]), step)
    return lengths[k].double() / k


def edits_saved(first: Tensor, second: Tensor) -> Tensor:
    """Return 1 minus the edit distance (n,) of each row's two lists (n, k), divided by k. Equal lists give 1."""
    n, k = first.shape
    edits = torch.arange(k + 1, dtype=torch.int16, device=first.device)[:, None].repeat(1, n)
    columns = second.T.contiguous()
    for i, column in enumerate(first.T, start=1):
        before = edits.clone()
        edits[0] = i
        for j in range(k):
            changed = before[j] + (column != columns[j])
            edits[j + 1] = torch.minimum(torch.minimum(before[j + 1], edits[j]) + 1, changed)
    return 1 - edits[k].double() / k


def mutual_knn(X: MatrixLike, Y: MatrixLike, k: int = 10) -> float:
    """Mean share of each row's `k` nearest neighbours that are the same in both spaces: mean |N_x ∩ N_y| / k.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned; unrelated spaces score k / (n − 1)
    on average, so scores at different n cannot be compared. Uses cosine: invariant to rotation and row scale, but not
    to centring. Raises InputError if a space has too many repeated rows, because its neighbours are then arbitrary.
    Exact; O(n² d) time, O(n k) memory. Huh et al. 2024, "The Platonic Representation Hypothesis".
    """
    return _score(overlap, X, Y, k)


def cycle_knn(X: MatrixLike, Y: MatrixLike, k: int = 10) -> float:
    """Share of rows that can be reached again by a step to a neighbour in Y, then a step to a neighbour in X.

    Mean over i of 1[i ∈ N_x(j) for some j ∈ N_y(i)]. X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is
    more aligned. Not symmetric. Unrelated spaces score about 1 − (1 − 1/(n − 1))^k², far above the chance level of
    `mutual_knn`. Even a space with itself may score below 1, because neighbours need not be mutual. Uses cosine:
    invariant to rotation and row scale, but not to centring. O(n² d) time. Huh et al. 2024, "The Platonic
    Representation Hypothesis".
    """
    return _score(closes_cycle, X, Y, k)


def lcs_knn(X: MatrixLike, Y: MatrixLike, k: int = 10) -> float:
    """Mean length of the longest common subsequence of the two ordered neighbour lists, divided by k.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned. At most `mutual_knn`, and equal to it
    if the common neighbours are in the same order; unrelated spaces score just below k / (n − 1). Uses cosine:
    invariant to rotation and row scale, but not to centring. O(n² d + n k²) time. Huh et al. 2024 (their code does not
    divide by k).
    """
    return _score(common_sequence, X, Y, k)


def edit_knn(X: MatrixLike, Y: MatrixLike, k: int = 10) -> float:
    """1 minus the mean edit distance (insert, delete, replace: Levenshtein 1966) of the ordered lists, divided by k.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned; unrelated spaces score well below
    k / (n − 1), and about 1 / (n − 1) if lists rarely share two rows. Uses cosine: invariant to rotation and row scale,
    but not to centring. O(n² d + n k²) time. Huh et al. 2024, "The Platonic Representation Hypothesis".
    """
    return _score(edits_saved, X, Y, k)


def _score(compare: Callable[[Tensor, Tensor], Tensor], X: MatrixLike, Y: MatrixLike, k: int) -> float:
    x, y = matched_matrices(X, Y, 2)
    return float(compare(graph(x, k, "X").neighbours, graph(y, k, "Y").neighbours).mean())
