"""All alignment metrics by name, and `measure`: scores with their permutation null and standard error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from repstitch.metrics.delete_one import RowScores, closed_cycles, compared_lists
from repstitch.metrics.matrices import MatrixLike, check_rows, matched_matrices
from repstitch.metrics.neighbours import Graph, graph
from repstitch.metrics.null import calibrate_all, permute_graph, random_orders, relabel, shared_weight
from repstitch.metrics.overlaps import overlaps

Pairs = Sequence[tuple[int, int]]
ROWS = 2**16  # permuted neighbour lists that are compared in one call
EDGES = 2**21  # edges of neighbour graphs that are compared in one call


@dataclass(frozen=True)
class Metric:
    """One alignment metric, in a form for many pairs of spaces: each space is prepared once, then pairs are compared.

    - `prepare(X, k, name)` prepares the rows (n, d) of one space. Several metrics share one such function.
    - `compare(x, y)` returns the score of two prepared spaces.
    - `influence(x, y)` returns values (n,) whose mean is the score. Their standard deviation is √n times the standard
      error of the score, for neighbour lists that stay the same.
    - `left_out(x, y)`, if set, returns the `RowScores` of neighbour lists: the standard error then also varies the rows
      that are each other's neighbours.
    - `permute(y, order)` returns the prepared space with its rows in another order.
    - `together`, if set, computes the scores and standard errors of all pairs faster than one pair at a time.
    - `shared`, if set, does the same for the scores under permutation.
    - `symmetric` is True if the score does not depend on the order of the two spaces.
    """

    prepare: Callable[..., Any]
    compare: Callable[[Any, Any], float]
    influence: Callable[[Any, Any], Tensor]
    permute: Callable[[Any, Tensor], Any]
    shared: Callable[[Sequence[Any], Pairs, Tensor], np.ndarray] | None = None
    symmetric: bool = True
    together: Callable[[Sequence[Any], Pairs], tuple[np.ndarray, np.ndarray]] | None = None
    left_out: Callable[[Any, Any], RowScores] | None = None

    def __call__(self, X: MatrixLike, Y: MatrixLike, k: int = 10) -> float:
        """Return the score of matched rows X (n, d_x) and Y (n, d_y). Only metrics of neighbours use `k`."""
        x, y = matched_matrices(X, Y, 3)
        return self.compare(self.prepare(x, k, "X"), self.prepare(y, k, "Y"))

    def scores(self, spaces: Sequence[Any], pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores and standard errors, each (pairs,), of pairs of prepared spaces."""
        if self.together is not None:
            return self.together(spaces, pairs)
        if self.left_out is not None:
            of_lists = [self.left_out(spaces[i], spaces[j]) for i, j in pairs]
            scores = np.array([(rows.mean, rows.variance() ** 0.5) for rows in of_lists]).reshape(-1, 2)
            return scores[:, 0], scores[:, 1]
        rows = (self.influence(spaces[i], spaces[j]).double() for i, j in pairs)
        scores = np.array([(float(r.mean()), float(r.std()) / len(r) ** 0.5) for r in rows]).reshape(-1, 2)
        return scores[:, 0], scores[:, 1]

    def draws(self, spaces: Sequence[Any], pairs: Pairs, orders: Tensor) -> np.ndarray:
        """Return the scores (pairs, K) with the rows of the second space in each of the `orders` (K, n)."""
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
    """Scores of m pairs of spaces, with K permutations or without any.

    `score` and its standard error `se` are (m,). With permutations, `null` (m,) is the mean of the null distribution,
    `p` (m,) the add-one p-value, `calibrated` (m,) the calibrated score, and `draws` (m, K) are the scores under
    permutation. All pairs use the same permutations.
    """

    score: np.ndarray
    se: np.ndarray
    null: np.ndarray | None = None
    p: np.ndarray | None = None
    calibrated: np.ndarray | None = None
    draws: np.ndarray | None = None

    def pair(self, at: int) -> dict[str, float]:
        """Return the numbers of one pair by name, without the draws."""
        columns = {"score": self.score, "null": self.null, "p": self.p, "calibrated": self.calibrated, "se": self.se}
        return {name: float(values[at]) for name, values in columns.items() if values is not None}


def measure(metric: str, spaces: Sequence[Any], pairs: Pairs, draws: int = 200, seed: int = 0) -> Measured:
    """Score pairs (i, j) of spaces, with a permutation null. `METRICS[metric].prepare` must have prepared the spaces.

    The rows of the second space are permuted by the same `draws` random orders in all pairs. So the maximum over pairs
    in each draw follows the null distribution of the maximum. With 0 draws there is no null. O(pairs · draws)
    comparisons. `mutual_knn` and `cknna` share work between pairs; `cka` and `cka_unbiased` compute the null in the
    leading principal directions.
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
    """Raise InputError if one of `metrics` is not the name of a metric. `name` is the argument in the message."""
    for metric in metrics:
        if not isinstance(metric, str) or metric not in METRICS:
            raise InputError(f"`{name}` must be among {', '.join(METRICS)}; got {metric!r}.")


def _of_lists(
    compare_rows: Callable[[Tensor, Tensor], Tensor],
    symmetric: bool = True,
    draws: Callable | None = None,
    together: Callable | None = None,
    left_out: Callable[[Tensor, Tensor], RowScores] | None = None,
) -> Metric:
    """Build a metric that compares the two neighbour lists of each row and averages over the rows."""

    def leave_out(x: Graph, y: Graph) -> RowScores:
        check_rows(len(x), len(y), 3)
        first, second = (torch.cat([space.neighbours, space.following[:, None]], 1).cpu() for space in (x, y))
        return compared_lists(compare_rows, first, second) if left_out is None else left_out(first, second)

    def influence(x: Graph, y: Graph) -> Tensor:
        check_rows(len(x), len(y), 3)
        return compare_rows(x.neighbours, y.neighbours)

    def compare(x: Graph, y: Graph) -> float:
        return float(influence(x, y).mean())

    return replace(_of_graphs(compare, influence, draws, symmetric), together=together, left_out=leave_out)


def _overlaps(spaces: Sequence[Graph], pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean overlap of each pair and its standard error. Pairs with the same first space share a call."""
    results = np.zeros((2, len(pairs)))
    pairs_of_first: dict[int, list[int]] = {}
    for at, (i, _) in enumerate(pairs):
        pairs_of_first.setdefault(i, []).append(at)
    for i, at in pairs_of_first.items():
        at_once = max(1, EDGES // spaces[i].neighbours.numel())
        for start in range(0, len(at), at_once):
            part = at[start : start + at_once]
            results[:, part] = overlaps(spaces[i], [spaces[pairs[row][1]] for row in part])
    return results[0], results[1]


def _overlap_draws(spaces: Sequence[Graph], pairs: Pairs, orders: Tensor) -> np.ndarray:
    lists = [space.neighbours for space in spaces]
    return shared_weight(lists, pairs, orders) / lists[0].numel()


def _draws_of_rows(compare_rows: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """Build the `shared` function of a metric that compares row by row.

    The permuted lists of several orders are stacked and compared in one call.
    """

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


def _of_graphs(compare, influence, draws=None, symmetric=True) -> Metric:
    return Metric(graph, compare, influence, permute_graph, draws, symmetric)


def _of_rows(compare, influence, draws) -> Metric:
    return Metric(kernels.centred, compare, influence, kernels.permute_centred, draws)


def _of_kernels(prepare) -> Metric:
    return Metric(prepare, kernels.compare_kernels, kernels.influence_kernels, kernels.permute_kernel)


def _of_subspaces(compare, influence, symmetric=True) -> Metric:
    return Metric(subspaces.principal, compare, influence, subspaces.permute_principal, None, symmetric)


METRICS: dict[str, Metric] = {
    "mutual_knn": _of_lists(neighbour_lists.overlap, draws=_overlap_draws, together=_overlaps),
    "cycle_knn": _of_lists(neighbour_lists.closes_cycle, symmetric=False, left_out=closed_cycles),
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
