"""How much the neighbour lists of two spaces agree, as sets and as sequences."""

from collections.abc import Callable

import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.neighbours import graph, tiles


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Share (n,) of each row's neighbours that both lists (n, k) hold, whatever their order."""
    if a.shape != b.shape:
        raise InputError(f"Both lists must have one shape (n, k); got {tuple(a.shape)} and {tuple(b.shape)}.")
    return held(a, b)


def held(a: Tensor, b: Tensor) -> Tensor:
    """Share (n,) of the entries of each row of `a` (n, k) that the same row of `b` (n, m) holds too."""
    both = torch.cat([a, b], dim=1).sort(dim=1).values
    return (both[:, 1:] == both[:, :-1]).sum(dim=1).double() / a.shape[1]


def found_back(a: Tensor, b: Tensor) -> Tensor:
    """1 for each row (n,) that is among the neighbours `a` (n, k) of one of its own neighbours `b` (n, k), else 0."""
    rows = torch.arange(len(a), device=a.device)[:, None, None]
    return torch.cat([(a[b[part]] == rows[part]).any(2).any(1) for part in tiles(len(b))]).double()


def common_sequence(a: Tensor, b: Tensor) -> Tensor:
    """Length (n,) of the longest common subsequence of each row's two lists (n, k), as a share of k."""
    n, k = a.shape
    lengths = a.new_zeros(k + 1, n, dtype=torch.int16)  # lengths[j]: of what was seen of a, and the first j of b
    columns = b.T.contiguous()
    for one in a.T:
        before = lengths.clone()
        for j in range(k):
            step = before[j] + (one == columns[j])
            lengths[j + 1] = torch.maximum(torch.maximum(before[j + 1], lengths[j]), step)
    return lengths[k].double() / k


def edits_saved(a: Tensor, b: Tensor) -> Tensor:
    """1 less the edit distance (n,) of each row's two lists (n, k) as a share of k: 1 where they are the same."""
    n, k = a.shape
    edits = torch.arange(k + 1, dtype=torch.int16, device=a.device)[:, None].repeat(1, n)
    columns = b.T.contiguous()
    for i, one in enumerate(a.T, start=1):
        before = edits.clone()
        edits[0] = i
        for j in range(k):
            changed = before[j] + (one != columns[j])
            edits[j + 1] = torch.minimum(torch.minimum(before[j + 1], edits[j]) + 1, changed)
    return 1 - edits[k].double() / k


def mutual_knn(X: Tensor, Y: Tensor, k: int = 10) -> float:
    """Mean share of each row's `k` nearest neighbours that both spaces agree on: mean |N_x ∩ N_y| / k.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned; unrelated spaces score k / (n − 1)
    on average, so scores of different n do not compare. Neighbours are by cosine: rotation and row scale do not
    matter, centring does. Spaces whose rows repeat one another are refused, for their neighbours are arbitrary.
    Exact, O(n² d) time, O(n k) memory. Huh et al. 2024, "The Platonic Representation Hypothesis".
    """
    return _score(overlap, X, Y, k)


def cycle_knn(X: Tensor, Y: Tensor, k: int = 10) -> float:
    """Share of rows that are found again by going to a neighbour in Y and from there to a neighbour in X.

    Mean over i of 1[i ∈ N_x(j) for some j ∈ N_y(i)]. X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is
    more aligned, and not symmetric. Unrelated spaces score about 1 − (1 − 1/(n − 1))^k², which is far above
    `mutual_knn`'s level; even a space with itself may score below 1, for a neighbour need not be mutual. By cosine:
    rotation and row scale do not matter, centring does. O(n² d) time. Huh et al. 2024, "The Platonic Representation
    Hypothesis".
    """
    return _score(found_back, X, Y, k)


def lcs_knn(X: Tensor, Y: Tensor, k: int = 10) -> float:
    """Mean length of the longest common subsequence of the two ordered neighbour lists, divided by k.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned, at most `mutual_knn`, which it equals
    where common neighbours come in one order; unrelated spaces score just below k / (n − 1). By cosine: rotation and
    row scale do not matter, centring does. O(n² d + n k²) time. Huh et al. 2024 (their code does not divide by k).
    """
    return _score(common_sequence, X, Y, k)


def edit_knn(X: Tensor, Y: Tensor, k: int = 10) -> float:
    """1 less the mean edit distance (insert, delete, replace: Levenshtein 1966) of the ordered lists divided by k.

    X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1], higher is more aligned; unrelated spaces score well below
    k / (n − 1), about 1 / (n − 1) where lists rarely share two rows. By cosine: rotation and row scale do not matter,
    centring does. O(n² d + n k²) time. Huh et al. 2024, "The Platonic Representation Hypothesis".
    """
    return _score(edits_saved, X, Y, k)


def _score(compare: Callable[[Tensor, Tensor], Tensor], X: Tensor, Y: Tensor, k: int) -> float:
    if len(X) != len(Y):
        raise InputError(f"`X` and `Y` must have as many rows; got {len(X)} and {len(Y)}.")
    return float(compare(graph(X, k, "X").neighbours, graph(Y, k, "Y").neighbours).mean())
