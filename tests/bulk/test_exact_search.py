import numpy as np
import pytest
from helpers.spaces import gaussian

from repstitch.bulk.exact_search import ExactSearch


def labels(rows: np.ndarray) -> np.ndarray:
    return rows.astype(str).astype(object)


def exact_scores(queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    if metric == "dot":
        return queries @ rows.T
    if metric == "l2":
        return -((queries[:, None] - rows[None]) ** 2).sum(-1)
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (queries, rows)]
    return unit[0] @ unit[1].T


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_recall_is_the_share_of_the_exact_nearest_that_were_returned(metric):
    queries, rows = gaussian(7, 5, 1), gaussian(200, 5, 2) * np.linspace(0.1, 9, 200, dtype=np.float32)[:, None]
    order = np.argsort(-exact_scores(queries, rows, metric), axis=1)
    returned = order[:, :10].copy()
    returned[:, 7:] = order[:, 100:103]  # three of ten are wrong
    search = ExactSearch(queries, labels(returned), metric)
    for at in range(0, 200, 33):
        part = np.arange(at, min(at + 33, 200))
        search.add(labels(part), rows[part])
    assert search.recall() == pytest.approx(0.7)


def test_repeated_vectors_stand_for_each_other():
    rows = np.repeat(gaussian(4, 6, 1), 50, axis=0)
    returned = np.array([[str(i) for i in range(40, 50)]], object)
    search = ExactSearch(rows[:1] + np.float32(0.001), returned)
    search.add(labels(np.arange(200)), rows)
    assert search.recall() == 1.0


def test_rows_without_a_direction_are_never_near():
    rows = np.array([[1.0, 0], [0, 0], [np.nan, 1], [-1, 0]], np.float32)
    search = ExactSearch(np.array([[1.0, 0]], np.float32), np.array([["a", "d", "", ""]], object))
    search.add(np.array(list("abcd"), object), rows)
    assert search.recall() == 1.0
    missing = ExactSearch(np.array([[1.0, 0]], np.float32), np.array([["b", "c", "d", ""]], object))
    missing.add(np.array(list("abcd"), object), rows)
    assert missing.recall() == 0.5


def test_nothing_to_search_with_loses_nothing():
    search = ExactSearch(np.empty((0, 2), np.float32), np.empty((0, 10), object))
    search.add(np.array(["a"], object), np.ones((1, 2), np.float32))
    assert search.recall() == 1.0
