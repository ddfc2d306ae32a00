"""Every alignment metric by its name, and how a score is measured: beside its null and with its standard error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import repstitch.metrics.cknna as cknna
import repstitch.metrics.kernels as kernels
import repstitch.metrics.neighbour_lists as lists
import repstitch.metrics.subspaces as subspaces
from repstitch.arguments import check_draws
from repstitch.errors import InputError
from repstitch.metrics.kernels import check_rows
from repstitch.metrics.neighbours import Graph, graph
from repstitch.metrics.null import calibrate_all, permute_graph, random_orders, relabel, shared_weight

Pairs = Sequence[tuple[int, int]]
ROWS = 2**16  # of permuted lists that are compared at once
CELLS = 2**24  # of a dense adjacency matrix


@dataclass(frozen=True)
class Metric:
    """One alignment metric in the form for many pairs: each space is prepared once, then any two are compared.

    `prepare(X, k, name)` takes rows (n, d); several metrics share one of these. `compare(a, b)` is the score of two
    prepared spaces; `influence(a, b)` (n,) averages to it, with a spread that is √n times its standard error, what the
    other rows are held fixed; `permute(b, order)` is what the rows of `b` in that order would have given. `together`
    and `shared`, where there are any, are ways to the scores and errors, and to the draws, of all pairs that are
    quicker than going from pair to pair. `symmetric` metrics do not depend on which space comes first.
    """

    prepare: Callable[..., Any]
    compare: Callable[[Any, Any], float]
    influence: Callable[[Any, Any], Tensor]
    permute: Callable[[Any, Tensor], Any]
    shared: Callable[[Sequence, Pairs, Tensor], np.ndarray] | None = None
    symmetric: bool = True
    together: Callable[[Sequence, Pairs], tuple[np.ndarray, np.ndarray]] | None = None

    def __call__(self, X: Tensor, Y: Tensor, k: int = 10) -> float:
        """The score of matched rows X (n, d_x), Y (n, d_y); `k` matters to metrics of neighbours only."""
        check_rows(len(X), len(Y), 3)
        return self.compare(self.prepare(X, k, "X"), self.prepare(Y, k, "Y"))

    def scores(self, spaces: Sequence, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Scores and standard errors (pairs,) of prepared spaces."""
        if self.together is not None:
            return self.together(spaces, pairs)
        rows = (self.influence(spaces[i], spaces[j]).double() for i, j in pairs)
        found = np.array([(float(r.mean()), float(r.std()) / len(r) ** 0.5) for r in rows]).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def draws(self, spaces: Sequence, pairs: Pairs, orders: Tensor) -> np.ndarray:
        """Scores (pairs, K) of prepared spaces, the second's rows in each of the `orders` (K, n)."""
        if self.shared is not None:
            return self.shared(spaces, pairs, orders)
        drawn = np.empty((len(pairs), len(orders)))
        for j in {j for _, j in pairs}:
            mine = [(at, i) for at, (i, second) in enumerate(pairs) if second == j]
            for column, order in enumerate(orders):
                permuted = self.permute(spaces[j], order)
                for at, i in mine:
                    drawn[at, column] = self.compare(spaces[i], permuted)
        return drawn


@dataclass(frozen=True)
class Measured:
    """Scores of m pairs of spaces: `score` and standard error `se` (m,); and, where there is a null, its mean `null`,
    the add-one p-value `p`, the `calibrated` score (m,) and the `draws` (m, K), from the same orders for all pairs."""

    score: np.ndarray
    se: np.ndarray
    null: np.ndarray | None = None
    p: np.ndarray | None = None
    calibrated: np.ndarray | None = None
    draws: np.ndarray | None = None

    def pair(self, at: int) -> dict[str, float]:
        """One pair's numbers by name, without the draws."""
        found = {"score": self.score, "null": self.null, "p": self.p, "calibrated": self.calibrated, "se": self.se}
        return {name: float(values[at]) for name, values in found.items() if values is not None}


def measure(metric: str, spaces: Sequence, pairs: Pairs, draws: int = 200, seed: int = 0) -> Measured:
    """Score pairs (i, j) of spaces that `METRICS[metric].prepare` gave, beside their permutation null.

    The second space's rows are permuted, by the same `draws` orders in all pairs, so that the maximum over pairs has
    the null of that maximum in the draws. 0 leaves the null out. O(pairs · draws) comparisons; `mutual_knn` and
    `cknna` share them between pairs, and `cka` and `cka_unbiased` draw in leading directions.
    """
    known = METRICS[metric]
    check_draws(draws)
    score, se = known.scores(spaces, pairs)
    if not draws or not len(pairs):
        return Measured(score, se)
    drawn = known.draws(spaces, pairs, random_orders(len(spaces[0]), draws, seed))
    null, p, calibrated = calibrate_all(score, drawn)
    return Measured(score, se, null, p, calibrated, drawn)


def align(X: np.ndarray, Y: np.ndarray, metric: str, k: int = 10, permutations: int = 200, seed: int = 0) -> dict:
    """One alignment metric of matched rows beside its permutation null.

    X is (n, d_x), Y is (n, d_y). Returns `metric`, `score`, `se` and, unless `permutations` is 0, `null`, `p` and
    `calibrated` (see `Null`). Raises InputError on a metric that is not known.
    """
    check_metrics([metric], "metric")
    x, y = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (X, Y))
    if x.ndim != 2 or y.ndim != 2:
        raise InputError(f"`X` and `Y` must be matrices of as many rows; got {tuple(x.shape)} and {tuple(y.shape)}.")
    check_rows(len(x), len(y), 3)
    prepare = METRICS[metric].prepare
    return {"metric": metric} | measure(
        metric, [prepare(x, k, "X"), prepare(y, k, "Y")], [(0, 1)], permutations, seed
    ).pair(0)


def check_metrics(metrics: Sequence[str], name: str) -> None:
    """InputError on a metric that is not known; `name` is the argument's."""
    for metric in metrics:
        if metric not in METRICS:
            raise InputError(f"`{name}` must be among {', '.join(METRICS)}; got {metric!r}.")


def _of_lists(
    rows: Callable[[Tensor, Tensor], Tensor],
    symmetric: bool = True,
    draws: Callable | None = None,
    together: Callable | None = None,
) -> Metric:
    """A metric that is the mean over rows of a comparison of their two neighbour lists."""

    def compare(a: Graph, b: Graph) -> Tensor:
        check_rows(len(a.neighbours), len(b.neighbours), 3)
        return rows(a.neighbours, b.neighbours)

    return _of_graphs(lambda a, b: float(compare(a, b).mean()), compare, draws, symmetric, together)


def _overlaps(spaces: Sequence[Graph], pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Mean overlap and its standard error of each pair: where an edge of many spaces is one of the first's is looked up
    in the rows of its adjacency matrix."""
    n, k = spaces[0].neighbours.shape
    total, squares = np.zeros(len(pairs)), np.zeros(len(pairs))
    mine: dict[int, list[int]] = {}
    for at, (i, _) in enumerate(pairs):
        check_rows(n, min(len(spaces[i]), len(spaces[pairs[at][1]])), 3)
        mine.setdefault(i, []).append(at)
    for i, at in mine.items():
        others = torch.stack([spaces[pairs[row][1]].neighbours for row in at], 1)  # (n, pairs, k)
        for start in range(0, n, max(1, CELLS // n)):
            here = slice(start, start + max(1, CELLS // n))
            own = spaces[i].neighbours[here]
            adjacent = torch.zeros(len(own), n, dtype=torch.bool, device=own.device).scatter_(1, own, True)
            counts = adjacent.gather(1, others[here].flatten(1)).unflatten(1, (-1, k)).sum(2).double()
            total[at] += counts.sum(0).cpu().numpy()
            squares[at] += counts.square().sum(0).cpu().numpy()
    variance = np.maximum(squares / n - (total / n) ** 2, 0) * n / (n - 1)
    return total / n / k, np.sqrt(variance / n) / k


def _draws_mutual(spaces: Sequence[Graph], pairs: Pairs, orders: Tensor) -> np.ndarray:
    lists = [space.neighbours for space in spaces]
    return shared_weight(lists, pairs, orders) / lists[0].numel()


def _draws_in_rows(rows: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """The draws of a comparison of single rows: many orders stand below one another in one call."""

    def draws(spaces: Sequence[Graph], pairs: Pairs, orders: Tensor) -> np.ndarray:
        n = len(spaces[0])
        made = np.empty((len(pairs), len(orders)))
        for at, part in enumerate(orders.split(max(1, ROWS // n))):
            for j in {j for _, j in pairs}:
                permuted = torch.cat([relabel(spaces[j].neighbours, order) for order in part])
                for row in (row for row, pair in enumerate(pairs) if pair[1] == j):
                    same = rows(spaces[pairs[row][0]].neighbours.repeat(len(part), 1), permuted)
                    start = at * max(1, ROWS // n)
                    made[row, start : start + len(part)] = same.reshape(len(part), n).mean(1).cpu().numpy()
        return made

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
    "mutual_knn": _of_lists(lists.overlap, draws=_draws_mutual, together=_overlaps),
    "cycle_knn": _of_lists(lists.found_back, symmetric=False),
    "lcs_knn": _of_lists(lists.common_sequence, draws=_draws_in_rows(lists.common_sequence)),
    "edit_knn": _of_lists(lists.edits_saved, draws=_draws_in_rows(lists.edits_saved)),
    "cka": _of_rows(kernels.compare_cka, kernels.influence_cka, kernels.draws_cka),
    "cka_unbiased": _of_rows(kernels.compare_cka_unbiased, kernels.influence_cka_unbiased, kernels.draws_cka_unbiased),
    "cka_rbf": _of_kernels(kernels.gaussian_kernel),
    "cknna": _of_graphs(cknna.compare_cknna, cknna.influence_cknna, cknna.draws_cknna),
    "cknna_released": _of_graphs(
        cknna.compare_cknna_released, cknna.influence_cknna_released, cknna.draws_cknna_released, False
    ),
    "rsa": _of_kernels(kernels.similarity_ranks),
    "svcca": _of_subspaces(subspaces.compare_svcca, subspaces.influence_svcca),
    "pwcca": _of_subspaces(subspaces.compare_pwcca, subspaces.influence_pwcca, symmetric=False),
    "cca": _of_subspaces(subspaces.compare_cca, subspaces.influence_cca),
    "procrustes": _of_subspaces(subspaces.compare_procrustes, subspaces.influence_procrustes),
    "angular": _of_subspaces(subspaces.compare_angular, subspaces.influence_angular),
    "linear_r2": _of_subspaces(subspaces.compare_linear_r2, subspaces.influence_linear_r2, symmetric=False),
}
