"""`mutual_knn` of one space with many others at once, with standard errors as in `delete_one`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from repstitch.metrics.matrices import check_rows
from repstitch.metrics.neighbours import Graph

CELLS = 2**24  # elements of one block of a dense adjacency matrix


def overlaps(first: Graph, others: Sequence[Graph]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean share of common neighbours of `first` with each of P `others`, and its standard error, (P,) each.

    The standard error is that of `delete_one.share_of_neighbours`, where every change e_ij follows from three bits: if
    j is in only one of the two lists of row i, whether the next row of that list is in the other one; if it is in both,
    their sum minus 1, plus 1 if both next rows are the same. So all sums are sums over edges.
    """
    n, k = first.neighbours.shape
    for other in others:
        check_rows(n, len(other), 3)
    if k == n - 1:  # the lists contain all other rows
        return np.ones(len(others)), np.zeros(len(others))
    X, Y = first.neighbours, torch.stack([other.neighbours for other in others], 1)  # (n, k), (n, P, k)
    y_next = torch.stack([other.following for other in others], 1)
    in_x, back_in_x, y_next_in_x = _in_first(first, Y, y_next)
    mutual = torch.stack([other.mutual for other in others], 1)
    x_gain = (first.following[:, None, None] == Y).any(2).float()
    y_gain = y_next_in_x.float()
    same = (first.following[:, None] == y_next).float() - 1
    common = in_x.float().sum(2)
    values = common.double() / k
    both = x_gain + y_gain + same
    # Sums of e_ij over j, of their squares, and over i, in units of 1 / k.
    of_query = ((k - common) * (x_gain + y_gain) + common * both).double()
    squares = ((k - common) * (x_gain + y_gain) + common * both.square()).double().sum(0)
    of_row = torch.zeros_like(x_gain).index_add_(0, X.flatten(), x_gain.repeat_interleave(k, 0))
    at_edges = (y_gain[:, :, None] + in_x * same[:, :, None]).movedim(2, 1).flatten(0, 1)
    of_row.scatter_add_(0, Y.movedim(2, 1).flatten(0, 1), at_edges)
    products = _products(first, Y, in_x, back_in_x, mutual, x_gain, y_gain, same)
    # As in `delete_one.RowScores.variance`.
    total = values.sum(0) - values + of_row.double() / k
    jackknife = (total / (n - 1)).var(0, correction=0) * (n - 1)
    expected = of_query / (n - 1)
    expected_squares = expected.square().sum(0)
    pairs = squares - (n - 1) * expected_squares
    pairs += products - 2 * (expected * of_row).sum(0) + expected.sum(0).square() - expected_squares
    variance = torch.maximum(jackknife - pairs / (n * k) ** 2, values.var(0) / n)
    return values.mean(0).cpu().numpy(), variance.sqrt().cpu().numpy()


def _in_first(first: Graph, Y: Tensor, y_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return whether each edge of Y (n, P, k) is an edge of `first`; whether its reverse is; and whether y_next is."""
    n, k = first.neighbours.shape
    rows = torch.arange(n, device=Y.device).repeat_interleave(k)
    ends = first.neighbours.flatten()
    parts = []
    for start in range(0, n, max(1, CELLS // n)):
        block = slice(start, start + max(1, CELLS // n))
        adjacent = torch.zeros(len(Y[block]), n, dtype=torch.bool, device=Y.device)
        adjacent.scatter_(1, first.neighbours[block], True)
        edges = Y[block].flatten(1)
        forth = adjacent.gather(1, edges).view_as(Y[block]), adjacent.gather(1, y_next[block])
        adjacent.zero_()
        inside = (ends >= start) & (ends < start + len(adjacent))
        adjacent[ends[inside] - start, rows[inside]] = True
        parts.append((forth[0], adjacent.gather(1, edges).view_as(Y[block]), forth[1]))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))  # pyright: ignore[reportReturnType]


def _products(
    first: Graph,
    Y: Tensor,
    in_x: Tensor,
    back_in_x: Tensor,
    mutual: Tensor,
    x_gain: Tensor,
    y_gain: Tensor,
    same: Tensor,
) -> Tensor:
    """Return the sum (P,) of e_ij e_ji over all ordered pairs of rows, in units of 1 / k²."""
    space = torch.arange(Y.shape[1], device=Y.device)[None, :, None]
    bits = (x_gain + 2 * y_gain + 4 * (same + 1)).to(torch.uint8)[Y, space]  # one lookup for all three
    x_there, y_there, same_there = (bits & 1).float(), (bits >> 1 & 1).float(), (bits >> 2).float() - 1
    x_here, y_here, same_here = (values[:, :, None] for values in (x_gain, y_gain, same))
    out = y_here + in_x * (x_here + same_here)  # e_ji at an edge j → i of Y
    back = x_there * back_in_x + y_there * mutual + same_there * (back_in_x & mutual)  # e_ij
    times = 2.0 - mutual.float()  # an edge without its reverse stands for two ordered pairs
    only_x = x_here * x_there * (in_x & back_in_x)  # pairs that are mutual in X, and counted with Y's edges
    among_y = ((out * back - only_x) * times).double().sum((0, 2))
    x_mutual = first.mutual[:, :, None]
    return among_y + (x_gain[:, None] * x_gain[first.neighbours] * x_mutual).double().sum((0, 1))
