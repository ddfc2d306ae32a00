"""Neighbour graphs: exact from half the products, ties to the lower row, whatever the tiles."""

import numpy as np
import pytest
import torch
from helpers import cone, gaussian, shared_latent

from repstitch.errors import InputError
from repstitch.metrics import neighbours
from repstitch.metrics.neighbours import common_sequence, distinct, edits_saved, exact_products, graph, knn, nearest


def rows(X) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))


def on_a_grid(n: int, d: int = 3, seed: int = 0) -> torch.Tensor:
    """Rows of which many have the same direction or the same cosine, exactly in float32."""
    X = np.random.default_rng(seed).integers(-1, 2, (n, d)).astype(np.float32)
    X[(X == 0).all(1)] = 1
    return rows(np.c_[X, gaussian(n, 1, seed)[:, :1] * 0])


def by_sorting(similar: np.ndarray, k: int) -> np.ndarray:
    """The largest first, ties to the lower position."""
    return np.argsort(-similar, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("n", [12, 31, 32, 33, 100, 257])
@pytest.mark.parametrize("tile", [1, 32, 50, 64, 1024])
def test_the_graph_in_tiles_is_the_sorted_product_whatever_the_tile(monkeypatch, n, tile):
    monkeypatch.setattr(neighbours, "TILE_ROWS", tile)
    X = rows(gaussian(n, 6))
    U = (X / X.norm(dim=1, keepdim=True)).numpy()
    similar = U @ U.T
    np.fill_diagonal(similar, -np.inf)
    found = graph(X, 10)
    np.testing.assert_array_equal(found.neighbours, by_sorting(similar, 10))
    np.testing.assert_allclose(found.similarities, -np.sort(-similar, axis=1)[:, :10], atol=1e-6)
    np.testing.assert_allclose(found.mean, (U @ U.T).mean(1), atol=1e-6)
    assert len(found) == n


@pytest.mark.parametrize("k", [1, 7, 99])
def test_the_graph_is_knn_of_the_rows_among_themselves(k):
    X = rows(cone(100, 8, spread=0.3))
    assert torch.equal(graph(X, k).neighbours, knn(X, X, k, own=True))


@pytest.mark.parametrize("tile", [32, 64, 1024])
@pytest.mark.parametrize("seed", range(4))
def test_ties_go_to_the_lower_row_everywhere(monkeypatch, tile, seed):
    X = on_a_grid(150, seed=seed)
    X = X[torch.from_numpy(np.sort(np.unique(X.numpy(), axis=0, return_index=True)[1]))]
    gallery = on_a_grid(150, seed=seed + 10)
    monkeypatch.setattr(neighbours, "TILE_ROWS", tile)
    # Cosines of such rows are sums of few exact terms, so that equal ones are equal bit by bit.
    unit = lambda Z: Z / Z.norm(dim=1, keepdim=True)  # noqa: E731
    similar = unit(X) @ unit(gallery).T
    expected = by_sorting(similar.numpy(), 20)
    np.testing.assert_array_equal(knn(X, gallery, 20), expected)
    np.testing.assert_array_equal(nearest(similar, 20), expected)


def test_copies_are_listed_from_the_lowest_row_on():
    X = gaussian(300, 5)
    X[[7, 100, 200, 299]] = X[3]
    found = graph(rows(X), 6).neighbours
    assert found[3, :4].tolist() == [7, 100, 200, 299]
    assert found[200, :4].tolist() == [3, 7, 100, 299]


def test_rows_that_come_sorted_by_what_they_are_have_the_same_neighbours():
    centres = gaussian(20, 6) * 5
    X = rows(np.repeat(centres, 60, axis=0) + gaussian(1200, 6))
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(0))
    found, shuffled = graph(X, 10), graph(X[order], 10)
    torch.testing.assert_close(found.similarities[order], shuffled.similarities)
    assert torch.equal(found.neighbours[order].sort(1).values, order[shuffled.neighbours].sort(1).values)


def test_a_graph_counts_the_rows_that_repeat_others():
    X = gaussian(100, 5)
    X[90:] = 2 * X[:10]  # copies in direction
    assert graph(rows(X), 5).repeats == 10
    assert graph(rows(gaussian(100, 5)), 5).repeats == 0


@pytest.mark.parametrize("column", [0, 30])
def test_rows_that_differ_in_one_place_only_are_distinct(column):
    X = np.zeros((50, 31), dtype=np.float32)
    X[:, column] = np.arange(50) / 64
    assert distinct(rows(X)) == 50
    assert distinct(rows(np.r_[X, X])) == 50
    assert distinct(rows(np.where(X == 0, -X, X))) == 50  # −0 and 0 are one number


@pytest.mark.parametrize("k", [0, 30, -1])
def test_a_graph_needs_more_rows_than_neighbours(k):
    with pytest.raises(InputError, match=rf"`k` must be at least 1 and below the number of rows \(30\); got {k}"):
        graph(rows(gaussian(30, 4)), k)


def test_products_are_exact_inside_and_as_they_were_set_outside():
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_ordered_lists_are_compared_by_their_definitions():
    a = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    b = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [2, 3, 4, 5], [5, 6, 7, 8]])
    assert common_sequence(a, b).tolist() == [1, 0.25, 0.75, 0]
    assert edits_saved(a, b).tolist() == [1, 0, 0.5, 0]


def test_the_graph_of_half_precision_rows_is_that_of_the_same_rows_in_float32():
    X = rows(shared_latent(120)[0]).half()
    assert torch.equal(graph(X, 10).neighbours, graph(X.float(), 10).neighbours)
