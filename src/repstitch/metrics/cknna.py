"""Kernel alignment on the pairs of rows that are neighbours, from neighbour graphs alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.kernels import CELLS, check_rows, influence_of_ratio
from repstitch.metrics.neighbours import Graph, graph
from repstitch.metrics.null import permute_graph, shared_weight


def cknna(X: Tensor, Y: Tensor, k: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment: CKA on the pairs of rows that are neighbours in both spaces.

    With K the cosine kernel less its row means, K_ij = ⟨x_i, x_j⟩ − mean_l ⟨x_i, x_l⟩, and L likewise: the sum of
    K_ij L_ij over j ∈ N_x(i) ∩ N_y(i), over the root of the same sums of K² over N_x and of L² over N_y. X is
    (n, d_x), Y is (n, d_y), rows matched. In [0, 1] in practice, higher is more aligned; unrelated spaces score about
    k / (n − 1). By cosine: rotation and row scale do not matter, centring does. O(n² d) time, O(n k) memory. Huh et al.
    2024, "The Platonic Representation Hypothesis", appendix.
    """
    return compare_cknna(*_graphs(X, Y, k))


def cknna_released(X: Tensor, Y: Tensor, k: int = 10) -> float:
    """CKNNA as the paper's released code computes it: kernels that are masked but not centred.

    Song's unbiased HSIC of the cosine kernels masked by N_x(i) ∩ N_y(i), over the root of the same of each space with
    its own lists. Kept to compare with published figures; `cknna` is what the paper defines. X is (n, d_x), Y is
    (n, d_y), rows matched, n ≥ 4. Higher is more aligned, 1 for a space with itself; about k / (n − 1) for unrelated
    spaces, but no bound holds it: with a few dozen rows it can exceed 1. A space whose own term is not above 0 is
    refused. By cosine: rotation and row scale do not matter, centring does. O(n² d) time, O(n k) memory. Huh et al.
    2024, "The Platonic Representation Hypothesis", code; without its 1e-6 in the denominator.
    """
    return compare_cknna_released(*_graphs(X, Y, k))


def compare_cknna(a: Graph, b: Graph) -> float:
    return float(influence_cknna(a, b).mean())


def influence_cknna(a: Graph, b: Graph) -> Tensor:
    v, w = _centred_weights(a), _centred_weights(b)
    rows, left, right = _shared(a, b)
    both = torch.zeros(len(v), dtype=torch.float64).index_add_(0, rows, v[rows, left] * w[rows, right])
    return influence_of_ratio(both, v.square().sum(1), w.square().sum(1), 1)


def draws_cknna(spaces: Sequence[Graph], pairs: Sequence[tuple[int, int]], orders: Tensor) -> np.ndarray:
    """`cknna` of each pair with the second's rows in each order: (pairs, K)."""
    weights = [_centred_weights(space) for space in spaces]
    norms = [float(w.square().sum().sqrt()) for w in weights]
    drawn = shared_weight([space.neighbours for space in spaces], pairs, orders, weights)
    return drawn / np.array([[norms[i] * norms[j]] for i, j in pairs])


def compare_cknna_released(a: Graph, b: Graph) -> float:
    return float(influence_cknna_released(a, b).mean())


def influence_cknna_released(a: Graph, b: Graph) -> Tensor:
    check_rows(len(a), len(b), 4)
    return influence_of_ratio(_masked_hsic(a, b), _own_masked(a), _own_masked(b), 1)


def draws_cknna_released(spaces: Sequence[Graph], pairs: Sequence[tuple[int, int]], orders: Tensor) -> np.ndarray:
    """`cknna_released` of each pair with the second's rows in each order: (pairs, K)."""
    own = {i: float(_own_masked(spaces[i]).sum()) for i in {i for pair in pairs for i in pair}}
    made = np.empty((len(pairs), len(orders)))
    for column, order in enumerate(orders):
        permuted = {j: permute_graph(spaces[j], order) for _, j in pairs}
        for row, (i, j) in enumerate(pairs):
            made[row, column] = float(_masked_hsic(spaces[i], permuted[j]).sum()) / (own[i] * own[j]) ** 0.5
    return made


def _masked_hsic(a: Graph, b: Graph) -> Tensor:
    """Each row's part (n,) of Song's HSIC, times n(n − 3), of two kernels that are zero but on shared neighbours."""
    n = len(a.neighbours)
    rows, left, right = _shared(a, b)
    columns = a.neighbours[rows, left]
    v, w = a.similarities[rows, left].double(), b.similarities[rows, right].double()

    def total(at: Tensor, values: Tensor) -> Tensor:
        return torch.zeros(n, dtype=torch.float64, device=at.device).index_add_(0, at, values)

    v_rows, w_rows = total(rows, v), total(rows, w)
    key, back = rows * n + columns, columns * n + rows
    key, sorting = key.sort()
    place = torch.searchsorted(key, back).clamp(max=max(len(key) - 1, 0))
    mutual = key[place] == back if len(key) else torch.zeros(0, dtype=torch.bool)
    trace = total(rows[mutual], v[mutual] * w[sorting[place[mutual]]])
    sums = (v_rows * w.sum() + w_rows * v.sum()) / 2 / ((n - 1) * (n - 2))
    return trace + sums - 2 * total(rows, v * w_rows[columns]) / (n - 2)


def _own_masked(a: Graph) -> Tensor:
    """Each row's part (n,) of the space's HSIC with itself; InputError where that is not above 0."""
    parts = _masked_hsic(a, a)
    if float(parts.sum()) <= 1e-12 * float(a.similarities.double().square().sum()):
        raise InputError("Released CKNNA is not defined for a space whose neighbours have no similarity in common.")
    return parts


def _centred_weights(a: Graph) -> Tensor:
    return a.similarities.double() - a.mean.double()[:, None]


def _shared(a: Graph, b: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, and places in the lists of both, of the neighbours that both hold."""
    if a.neighbours.shape != b.neighbours.shape:
        shapes = f"{tuple(a.neighbours.shape)} and {tuple(b.neighbours.shape)}"
        raise InputError(f"Both spaces must have as many rows and neighbours; got {shapes}.")
    parts, size = [], max(1, CELLS // a.k**2)
    for at in range(0, len(a.neighbours), size):
        here = slice(at, at + size)
        row, left, right = (a.neighbours[here, :, None] == b.neighbours[here, None, :]).nonzero(as_tuple=True)
        parts.append((row + at, left, right))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def _graphs(X: Tensor, Y: Tensor, k: int) -> tuple[Graph, Graph]:
    check_rows(len(X), len(Y), 4)
    return graph(X, k, "X"), graph(Y, k, "Y")
