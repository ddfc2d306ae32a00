"""Every alignment metric by its name, and the measurement of a score with its null and its standard error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import repstitch.metrics.kernels as kernels
import repstitch.metrics.nearest_kernels as nearest_kernels
import repstitch.metrics.neighbour_lists as neighbour_lists
import repstitch.metrics.subspaces as subspaces
from repstitch.arguments import check_draws
from repstitch.errors import InputError
from repstitch.metrics.matrices import MatrixLike, check_rows, matched_matrices
from repstitch.metrics.neighbours import Graph, graph
from repstitch.metrics.null import calibrate_all, permute_graph, random_orders, relabel, shared_weight

Pairs = Sequence[tuple[int, int]]
ROWS = 2**16  # of permuted lists, compared at once
CELLS = 2**24  # of a dense adjacency matrix


@dataclass(frozen=True)
class Metric:
    """One alignment metric in the form for many pairs: each space is prepared once, then any two are compared.

    `prepare(X, k, name)` takes rows (n, d); several metrics share one of these. `compare(x, y)` is the score of two
    prepared spaces. `influence(x, y)` (n,) averages to the score, and its spread is √n times the score's standard
    error, with the other rows fixed. `permute(y, order)` is the prepared space of the rows in another order. `together`
    and `shared`, where a metric has them, compute the scores and errors, and the draws, of all pairs faster than pair
    by pair. A `symmetric` metric does not depend on which space comes first.
    """

    prepare: Callable[..., Any]
    compare: Callable[[Any, Any], float]
    influence: Callable[[Any, Any], Tensor]
    permute: Callable[[Any, Tensor], Any]
    shared: Callable[[Sequence[Any], Pairs, Tensor], np.ndarray] | None = None
    symmetric: bool = True
    together: Callable[[Sequence[Any], Pairs], tuple[np.ndarray, np.ndarray]] | None = None

    def __call__(self, X: MatrixLike, Y: MatrixLike, k: int = 10) -> float:
        """The score of matched rows X (n, d_x), Y (n, d_y); `k` matters to metrics of neighbours only."""
        x, y = matched_matrices(X, Y, 3)
        return self.compare(self.prepare(x, k, "X"), self.prepare(y, k, "Y"))

    def scores(self, spaces: Sequence[Any], pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Scores and standard errors (pairs,) of prepared spaces."""
        if self.together is not None:
            return self.together(spaces, pairs)
        rows = (self.influence(spaces[i], spaces[j]).double() for i, j in pairs)
        scores = np.array([(float(r.mean()), float(r.std()) / len(r) ** 0.5) for r in rows]).reshape(-1, 2)
        return scores[:, 0], scores[:, 1]

    def draws(self, spaces: Sequence[Any], pairs: Pairs, orders: Tensor) -> np.ndarray:
        """Scores (pairs, K) of prepared spaces, with the second's rows in each of the `orders` (K, n)."""
        if self.shared is not None:
            return self.shared(spaces, pairs, orders)
        drawn = np.empty((len(pairs), len(orders)))
        for j in {j for _, j in pairs}:
            firsts = [(row, i) for row, (i, second) in enumerate(pairs) if second == j]
            for column, order in enumerate(orders):
                permuted = self.permute(spaces[j], order)
                for row, i in firsts:
                    drawn[row, column] = self.compare(spaces[i], permuted)
        return drawn


@dataclass(frozen=True)
class Measured:
    """Scores of m pairs of spaces: `score` and standard error `se` (m,) and, where the null was drawn, its mean `null`,
    the add-one p-value `p`, the `calibrated` score (m,) and the `draws` (m, K), from the same orders for all pairs."""

    score: np.ndarray
    se: np.ndarray
    null: np.ndarray | None = None
    p: np.ndarray | None = None
    calibrated: np.ndarray | None = None
    draws: np.ndarray | None = None

    def pair(self, at: int) -> dict[str, float]:
        """One pair's numbers by name, without the draws."""
        columns = {"score": self.score, "null": self.null, "p": self.p, "calibrated": self.calibrated, "se": self.se}
        return {name: float(values[at]) for name, values in columns.items() if values is not None}


def measure(metric: str, spaces: Sequence[Any], pairs: Pairs, draws: int = 200, seed: int = 0) -> Measured:
    """Scores, with their permutation null, of pairs (i, j) of spaces that `METRICS[metric].prepare` returned.

    The second space's rows are permuted by the same `draws` orders in all pairs, so that the maximum over pairs has the
    null of that maximum in the draws. 0 leaves the null out. O(pairs · draws) comparisons; `mutual_knn` and `cknna`
    share them between pairs, and `cka` and `cka_unbiased` draw in leading directions.
    """
    form = METRICS[metric]
    check_draws(draws)
    score, se = form.scores(spaces, pairs)
    if not draws or not len(pairs):
        return Measured(score, se)
    drawn = form.draws(spaces, pairs, random_orders(len(spaces[0]), draws, seed))
    null, p, calibrated = calibrate_all(score, drawn)
    return Measured(score, se, null, p, calibrated, drawn)


def check_metrics(metrics: Sequence[str], name: str) -> None:
    """InputError on a metric that is not known; `name` is the argument's."""
    for metric in metrics:
        if not isinstance(metric, str) or metric not in METRICS:
            raise InputError(f"`{name}` must be among {', '.join(METRICS)}; got {metric!r}.")


def _of_lists(
    compare_rows: Callable[[Tensor, Tensor], Tensor],
    symmetric: bool = True,
    draws: Callable | None = None,
    together: Callable | None = None,
) -> Metric:
    """A metric that is the mean over rows of a comparison of their two neighbour lists."""

    def influence(x: Graph, y: Graph) -> Tensor:
        check_rows(len(x), len(y), 3)
        return compare_rows(x.neighbours, y.neighbours)

    def compare(x: Graph, y: Graph) -> float:
        return float(influence(x, y).mean())

    return _of_graphs(compare, influence, draws, symmetric, together)


def _overlaps(spaces: Sequence[Graph], pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Mean overlap and its standard error of each pair.

    The edges of all second spaces are looked up at once in the adjacency matrix of their first.
    """
    n, k = spaces[0].neighbours.shape
    total, squares = np.zeros(len(pairs)), np.zeros(len(pairs))
    pairs_of_first: dict[int, list[int]] = {}
    for at, (i, j) in enumerate(pairs):
        check_rows(n, min(len(spaces[i]), len(spaces[j])), 3)
        pairs_of_first.setdefault(i, []).append(at)
    for i, at in pairs_of_first.items():
        others = torch.stack([spaces[pairs[row][1]].neighbours for row in at], 1)  # (n, pairs, k)
        for start in range(0, n, max(1, CELLS // n)):
            block = slice(start, start + max(1, CELLS // n))
            neighbours = spaces[i].neighbours[block]
            adjacent = torch.zeros(len(neighbours), n, dtype=torch.bool, device=neighbours.device)
            adjacent.scatter_(1, neighbours, True)
            counts = adjacent.gather(1, others[block].flatten(1)).unflatten(1, (-1, k)).sum(2).double()
            total[at] += counts.sum(0).cpu().numpy()
            squares[at] += counts.square().sum(0).cpu().numpy()
    variance = np.maximum(squares / n - (total / n) ** 2, 0) * n / (n - 1)
    return total / n / k, np.sqrt(variance / n) / k


def _overlap_draws(spaces: Sequence[Graph], pairs: Pairs, orders: Tensor) -> np.ndarray:
    lists = [space.neighbours for space in spaces]
    return shared_weight(lists, pairs, orders) / lists[0].numel()


def _draws_of_rows(compare_rows: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """The draws of a comparison of single rows; lists of many orders are stacked and compared in one call."""

    def draws(spaces: Sequence[Graph], pairs: Pairs, orders: Tensor) -> np.ndarray:
        n = len(spaces[0])
        at_once = max(1, ROWS // n)
        scores = np.empty((len(pairs), len(orders)))
        for at, part in enumerate(orders.split(at_once)):
            columns = slice(at * at_once, at * at_once + len(part))
            for j in {j for _, j in pairs}:
                permuted = torch.cat([relabel(spaces[j].neighbours, order) for order in part])
                for row in (row for row, pair in enumerate(pairs) if pair[1] == j):
                    row_scores = compare_rows(spaces[pairs[row][0]].neighbours.repeat(len(part), 1), permuted)
                    scores[row, columns] = row_scores.reshape(len(part), n).mean(1).cpu().numpy()
        return scores

    return draws


def _of_graphs(compare, influence, draws=None, symmetric=True, together=None) -> Metric:
    return Metric(graph, compare, influence, permute_graph, draws, symmetric, together)


def _of_rows(compare, influence, draws) -> Metric:
    return Metric(kernels.centred, compare, influence, kernels.permute_centred, draws)


def _of_kernels(prepare) -> Metric:
    return Metric(prepare, kernels.compare_kernels, kernels.influence_kernels, kernels.permute_kernel)


def _of_subspaces(compare, influence, symmetric=True) -> Metric:
    return Metric(subspaces.principal, compare, influence, subspaces.permute_principal, None, symmetric)


METRICS: dict[str, Metric] = {
    "mutual_knn": _of_lists(neighbour_lists.overlap, draws=_overlap_draws, together=_overlaps),
    "cycle_knn": _of_lists(neighbour_lists.closes_cycle, symmetric=False),
    "lcs_knn": _of_lists(neighbour_lists.common_sequence, draws=_draws_of_rows(neighbour_lists.common_sequence)),
    "edit_knn": _of_lists(neighbour_lists.edits_saved, draws=_draws_of_rows(neighbour_lists.edits_saved)),
    "cka": _of_rows(kernels.compare_cka, kernels.influence_cka, kernels.draws_cka),
    "cka_unbiased": _of_rows(kernels.compare_cka_unbiased, kernels.influence_cka_unbiased, kernels.draws_cka_unbiased),
    "cka_rbf": _of_kernels(kernels.gaussian_kernel),
    "cknna": _of_graphs(nearest_kernels.compare_cknna, nearest_kernels.influence_cknna, nearest_kernels.draws_cknna),
    "cknna_released": _of_graphs(
        nearest_kernels.compare_cknna_released,
        nearest_kernels.influence_cknna_released,
        nearest_kernels.draws_cknna_released,
        symmetric=False,
    ),
    "rsa": _of_kernels(kernels.similarity_ranks),
    "svcca": _of_subspaces(subspaces.compare_svcca, subspaces.influence_svcca),
    "pwcca": _of_subspaces(subspaces.compare_pwcca, subspaces.influence_pwcca, symmetric=False),
    "cca": _of_subspaces(subspaces.compare_cca, subspaces.influence_cca),
    "procrustes": _of_subspaces(subspaces.compare_procrustes, subspaces.influence_procrustes),
    "angular": _of_subspaces(subspaces.compare_angular, subspaces.influence_angular),
    "linear_r2": _of_subspaces(subspaces.compare_linear_r2, subspaces.influence_linear_r2, symmetric=False),
}
