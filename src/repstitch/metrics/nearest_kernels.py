"""Kernel alignment restricted to pairs of rows that are neighbours, computed from neighbour graphs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.kernels import CELLS, influence_of_ratio
from repstitch.metrics.matrices import MatrixLike, check_rows, matched_matrices
from repstitch.metrics.neighbours import Graph, graph
from repstitch.metrics.null import permute_graph, shared_weight


def cknna(X: MatrixLike, Y: MatrixLike, k: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment: CKA on the pairs of rows that are neighbours in both spaces.

    K is the cosine kernel minus its row means, K_ij = ⟨x_i, x_j⟩ − mean_l ⟨x_i, x_l⟩, and L is the same for Y. The
    score is the sum of K_ij L_ij over j ∈ N_x(i) ∩ N_y(i), divided by the square root of the product of ΣK_ij² over N_x
    and ΣL_ij² over N_y. X is (n, d_x), Y is (n, d_y), rows matched. In [0, 1] in practice, higher is more aligned;
    unrelated spaces score about k / (n − 1). Uses cosine: invariant to rotation and row scale, but not to centring.
    O(n² d) time, O(n k) memory. Huh et al. 2024, "The Platonic Representation Hypothesis", appendix.
    """
    return compare_cknna(*_graphs(X, Y, k))


def cknna_released(X: MatrixLike, Y: MatrixLike, k: int = 10) -> float:
    """CKNNA as the paper's released code computes it: the kernels are masked but not centred.

    The score is Song's unbiased HSIC of the cosine kernels, masked by N_x(i) ∩ N_y(i), divided by the square root of
    the product of each space's HSIC with itself, masked by its own lists. It is for comparison with published figures;
    `cknna` follows the definition in the paper. X is (n, d_x), Y is (n, d_y), rows matched, n ≥ 4. Higher is more
    aligned: 1 for a space with itself, about k / (n − 1) for unrelated spaces. It has no upper bound and can exceed 1
    with a few dozen rows. Uses cosine: invariant to rotation and row scale, but not to centring. Raises InputError if a
    space's HSIC with itself is not above 0. O(n² d) time, O(n k) memory. Huh et al. 2024, "The Platonic Representation
    Hypothesis", code, without the 1e-6 in its denominator.
    """
    return compare_cknna_released(*_graphs(X, Y, k))


def compare_cknna(x: Graph, y: Graph) -> float:
    return float(influence_cknna(x, y).mean())


def influence_cknna(x: Graph, y: Graph) -> Tensor:
    v, w = _centred_weights(x), _centred_weights(y)
    rows, in_x, in_y = _shared_edges(x, y)
    both = torch.zeros(len(v), dtype=torch.float64, device=v.device)
    both.index_add_(0, rows, v[rows, in_x] * w[rows, in_y])
    return influence_of_ratio(both, v.square().sum(1), w.square().sum(1), 1)


def draws_cknna(spaces: Sequence[Graph], pairs: Sequence[tuple[int, int]], orders: Tensor) -> np.ndarray:
    """Return `cknna` of each pair with the rows of the second space in each order: (pairs, K)."""
    weights = [_centred_weights(space) for space in spaces]
    norms = [float(w.square().sum().sqrt()) for w in weights]
    sums = shared_weight([space.neighbours for space in spaces], pairs, orders, weights)
    return sums / np.array([[norms[i] * norms[j]] for i, j in pairs])


def compare_cknna_released(x: Graph, y: Graph) -> float:
    return float(influence_cknna_released(x, y).mean())


def influence_cknna_released(x: Graph, y: Graph) -> Tensor:
    check_rows(len(x), len(y), 4)
    return influence_of_ratio(_masked_hsic(x, y), _checked_self_hsic(x), _checked_self_hsic(y), 1)


def draws_cknna_released(spaces: Sequence[Graph], pairs: Sequence[tuple[int, int]], orders: Tensor) -> np.ndarray:
    """Return `cknna_released` of each pair with the rows of the second space in each order: (pairs, K)."""
    self_hsic = {i: float(_checked_self_hsic(spaces[i]).sum()) for i in {i for pair in pairs for i in pair}}
    draws = np.empty((len(pairs), len(orders)))
    for column, order in enumerate(orders):
        permuted = {j: permute_graph(spaces[j], order) for _, j in pairs}
        for row, (i, j) in enumerate(pairs):
            hsic = float(_masked_hsic(spaces[i], permuted[j]).sum())
            draws[row, column] = hsic / (self_hsic[i] * self_hsic[j]) ** 0.5
    return draws


def _masked_hsic(x: Graph, y: Graph) -> Tensor:
    """Return each row's part (n,) of Song's HSIC, times n(n − 3), of two kernels masked by shared neighbours."""
    n = len(x.neighbours)
    rows, in_x, in_y = _shared_edges(x, y)
    columns = x.neighbours[rows, in_x]
    v, w = x.similarities[rows, in_x].double(), y.similarities[rows, in_y].double()

    def total(at: Tensor, values: Tensor) -> Tensor:
        return torch.zeros(n, dtype=torch.float64, device=at.device).index_add_(0, at, values)

    v_rows, w_rows = total(rows, v), total(rows, w)
    key, back = rows * n + columns, columns * n + rows
    key, sorting = key.sort()
    place = torch.searchsorted(key, back).clamp(max=max(len(key) - 1, 0))
    mutual = key[place] == back if len(key) else torch.zeros(0, dtype=torch.bool, device=key.device)
    trace = total(rows[mutual], v[mutual] * w[sorting[place[mutual]]])
    sums = (v_rows * w.sum() + w_rows * v.sum()) / 2 / ((n - 1) * (n - 2))
    return trace + sums - 2 * total(rows, v * w_rows[columns]) / (n - 2)


def _checked_self_hsic(space: Graph) -> Tensor:
    """Return each row's part (n,) of the space's HSIC with itself. Raises InputError unless their sum is above 0."""
    parts = _masked_hsic(space, space)
    if float(parts.sum()) <= 1e-12 * float(space.similarities.double().square().sum()):
        raise InputError(
            "Released CKNNA is not defined for a space whose masked HSIC with itself is not above 0; use `cknna`."
        )
    return parts


def _centred_weights(space: Graph) -> Tensor:
    return space.similarities.double() - space.mean.double()[:, None]


def _shared_edges(x: Graph, y: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edges that both graphs contain: their rows, and their places in the lists of x and of y."""
    if x.neighbours.shape != y.neighbours.shape:
        shapes = f"{tuple(x.neighbours.shape)} and {tuple(y.neighbours.shape)}"
        raise InputError(f"Both spaces must have the same number of rows and of neighbours; got {shapes}.")
    parts, size = [], max(1, CELLS // x.k**2)
    for at in range(0, len(x.neighbours), size):
        block = slice(at, at + size)
        row, in_x, in_y = (x.neighbours[block, :, None] == y.neighbours[block, None, :]).nonzero(as_tuple=True)
        parts.append((row + at, in_x, in_y))
    rows, in_x, in_y = (torch.cat(part) for part in zip(*parts, strict=True))
    return rows, in_x, in_y


def _graphs(X: MatrixLike, Y: MatrixLike, k: int) -> tuple[Graph, Graph]:
    x, y = matched_matrices(X, Y, 4)
    return graph(x, k, "X"), graph(y, k, "Y")
