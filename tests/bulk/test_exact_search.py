import numpy as np
import pytest
from helpers.spaces import gaussian

from repstitch.bulk.exact_search import ExactSearch, overlap
from repstitch.metrics import knn


def test_the_nearest_rows_of_all_batches_are_collected():
    queries, rows = gaussian(7, 5, 1), gaussian(200, 5, 2) * np.linspace(0.1, 9, 200, dtype=np.float32)[:, None]
    search = ExactSearch(queries, 10)
    for at in range(0, 200, 33):
        search.add(np.arange(at, min(at + 33, 200)).astype(str).astype(object), rows[at : at + 33])
    assert search.ids.astype(int).tolist() == np.asarray(knn(queries, rows, 10)).tolist()


def test_rows_without_a_direction_are_never_near():
    rows = np.array([[1.0, 0], [0, 0], [np.nan, 1], [-1, 0]], np.float32)
    search = ExactSearch(np.array([[1.0, 0]], np.float32), 4)
    search.add(np.array(list("abcd"), object), rows)
    assert search.ids.tolist() == [["a", "d"]]


def test_overlap_is_the_mean_share_of_the_exact_ids():
    exact = np.array([["a", "b"], ["c", "d"]], object)
    assert overlap(np.array([["b", "x"], ["d", "c"]], object), exact) == 0.75
    assert overlap(np.empty((0, 2), object), np.empty((0, 2), object)) == 1.0


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_other_metrics_order_rows_as_their_formula_says(metric):
    queries, rows = gaussian(5, 4, 1), gaussian(80, 4, 2)
    search = ExactSearch(queries, 7, metric)
    search.add(np.arange(80).astype(str).astype(object), rows)
    distances = -queries @ rows.T if metric == "dot" else ((queries[:, None] - rows[None]) ** 2).sum(-1)
    assert search.ids.astype(int).tolist() == np.argsort(distances, axis=1)[:, :7].tolist()
