"""Neighbour graphs are exact, break ties by the values of the rows, and do not depend on the tile size."""

import numpy as np
import pytest
import torch
from helpers.spaces import cone, gaussian, shared_latent

from repstitch.errors import InputError
from repstitch.metrics import neighbours
from repstitch.metrics.neighbour_lists import common_sequence, edits_saved
from repstitch.metrics.neighbours import (
    count_repeats,
    graph,
    knn,
    nearest,
    tie_order,
    unit,
)
from repstitch.metrics.null import relabel
from repstitch.metrics.retrieval import search


def rows(X) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))


def on_a_grid(n: int, d: int = 3, seed: int = 0) -> torch.Tensor:
    """Return rows of which many have the same direction or the same cosine, exactly in float32."""
    X = np.random.default_rng(seed).integers(-1, 2, (n, d)).astype(np.float32)
    X[(X == 0).all(1)] = 1
    return rows(np.c_[X, gaussian(n, 1, seed)[:, :1] * 0])


def ring(n: int, d: int) -> np.ndarray:
    """Return rows that have two neighbours each and are orthogonal to all other rows."""
    return np.eye(n, d) + np.eye(n, d)[np.roll(np.arange(n), 1)]


def by_sorting(similar: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the k largest values of each row, largest first, ties to the lower position."""
    return np.argsort(-similar, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("n", [12, 31, 32, 33, 100, 257])
@pytest.mark.parametrize("tile", [1, 32, 50, 64, 1024])
def test_the_graph_equals_the_sorted_similarities_for_any_tile_size(monkeypatch, n, tile):
    monkeypatch.setattr(neighbours, "TILE_ROWS", tile)
    X = rows(gaussian(n, 6))
    U = (X / X.norm(dim=1, keepdim=True)).numpy()
    similar = U @ U.T
    np.fill_diagonal(similar, -np.inf)
    computed = graph(X, 10)
    np.testing.assert_array_equal(computed.neighbours, by_sorting(similar, 10))
    np.testing.assert_allclose(computed.similarities, -np.sort(-similar, axis=1)[:, :10], atol=1e-6)
    np.testing.assert_allclose(computed.mean, (U @ U.T).mean(1), atol=1e-6)
    assert len(computed) == n


@pytest.mark.parametrize("k", [1, 7, 99])
def test_the_graph_equals_knn_of_the_rows_among_themselves(k):
    X = rows(cone(100, 8, spread=0.3))
    assert torch.equal(graph(X, k).neighbours, knn(X, X, k, exclude_self=True))


@pytest.mark.parametrize("tile", [32, 64, 1024])
@pytest.mark.parametrize("seed", range(4))
def test_all_searches_break_ties_in_the_same_order(monkeypatch, tile, seed):
    X = on_a_grid(150, seed=seed)
    gallery = on_a_grid(150, d=4, seed=seed + 10)[:, :4]
    monkeypatch.setattr(neighbours, "TILE_ROWS", tile)
    # Cosines of these rows are sums of a few exact terms, so equal cosines are equal bit for bit.
    similar = unit(X) @ unit(gallery).T
    order = tie_order(unit(gallery))
    expected = order[by_sorting(similar[:, order].numpy(), 20)]
    assert torch.equal(knn(X, gallery, 20), expected)
    assert torch.equal(search(X, gallery, 20, torch.arange(150))[1], knn(X, gallery, 20, exclude_self=True))
    np.testing.assert_array_equal(nearest(similar, 20), by_sorting(similar.numpy(), 20))
    distinct = on_a_grid(150, d=9, seed=seed)
    assert torch.equal(graph(distinct, 20).neighbours, knn(distinct, distinct, 20, exclude_self=True))


@pytest.mark.parametrize("make", [on_a_grid, gaussian, ring])
def test_reordering_the_rows_gives_the_same_graph(make):
    X = rows(make(80, 90))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    assert torch.equal(graph(X[order], 10).neighbours, relabel(graph(X, 10).neighbours, order))


@pytest.mark.parametrize(("make", "scale"), [(on_a_grid, 4), (ring, 3)])
def test_ties_do_not_depend_on_the_length_of_the_rows(make, scale):
    X = rows(make(80, 90))
    lengths = torch.linspace(0.3, 90, 80)[:, None]
    assert torch.equal(graph(X, 10).neighbours, graph(X * scale, 10).neighbours)
    assert torch.equal(tie_order(unit(X)), tie_order(unit(X * lengths)))


def test_no_row_is_preferred_because_of_its_position():
    counts = np.zeros(60)
    for seed in range(200):
        X = (np.random.default_rng(seed).random((60, 12)) < 0.3).astype(np.float32)
        X[:, 0] = 1  # no row of zeros, many ties
        counts += np.bincount(graph(rows(X), 5).neighbours.ravel(), minlength=60)
    first, last = counts[:30].mean(), counts[30:].mean()
    assert abs(first - last) < 4 * counts.std() / 15**0.5
    assert counts.std() < 0.15 * counts.mean()


def test_copies_are_listed_first_in_the_tie_order_of_their_space():
    X = gaussian(300, 5)
    X[[7, 100, 200, 299]] = X[3]
    lists = graph(rows(X), 6).neighbours
    copies = [3, 7, 100, 200, 299]
    order = [at for at in tie_order(unit(rows(X))).tolist() if at in copies]
    for at in copies:
        assert lists[at, :4].tolist() == [other for other in order if other != at]
    assert torch.equal(lists, graph(rows(X * 3), 6).neighbours)
    orders = set()
    for seed in range(20):
        Y = gaussian(300, 5, seed + 1)
        Y[copies] = Y[3]
        orders.add(tuple(at for at in tie_order(unit(rows(Y))).tolist() if at in copies))
    assert len(orders) > 10


def test_a_graph_counts_the_rows_whose_last_neighbour_is_tied_with_the_next():
    assert graph(rows(gaussian(100, 5)), 5).tied == 0
    computed = graph(rows(ring(40, 40)), 39)
    assert computed.tied == 0  # there is no next neighbour
    assert computed.first(7).tied == graph(rows(ring(40, 40)), 7).tied == 40
    assert torch.equal(computed.first(7).neighbours, graph(rows(ring(40, 40)), 7).neighbours)
    # A row in a group of ten has exactly nine nearest rows, so only the group of 20 has ties.
    groups = np.repeat(np.eye(3), [10, 10, 20], axis=0)
    assert graph(rows(np.c_[np.eye(40), groups]), 9).tied == 20


def test_rows_sorted_by_cluster_have_the_same_neighbours_as_shuffled_rows():
    centres = gaussian(20, 6) * 5
    X = rows(np.repeat(centres, 60, axis=0) + gaussian(1200, 6))
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(0))
    ordered, shuffled = graph(X, 10), graph(X[order], 10)
    torch.testing.assert_close(ordered.similarities[order], shuffled.similarities)
    assert torch.equal(ordered.neighbours[order].sort(1).values, order[shuffled.neighbours].sort(1).values)


@pytest.mark.parametrize("noise", [0, 1e-7, 1e-5])
def test_rows_equal_up_to_length_and_rounding_are_copies(noise):
    X = gaussian(100, 5)
    X[90:] = np.linspace(0.01, 90, 10)[:, None] * X[:10]
    X[80:85] = X[10]
    X *= 1 + noise * gaussian(100, 5, 1)
    assert count_repeats(unit(rows(X))) == 15
    assert count_repeats(unit(rows(gaussian(100, 5)))) == 0


@pytest.mark.parametrize("d", [6, 64])
@pytest.mark.parametrize("copies", [2, 8, 500])
def test_copies_are_counted_among_many_rows(copies, d):
    X = unit(rows(gaussian(4000, d)))
    assert count_repeats(X) == 0
    again = X[torch.arange(4000) % (4000 // copies)][torch.randperm(4000, generator=torch.Generator().manual_seed(0))]
    assert count_repeats(unit(again + 1e-6 * rows(gaussian(4000, d, 1)))) == 4000 - 4000 // copies


@pytest.mark.parametrize("spread", [0.03, 0.003])
@pytest.mark.parametrize("apart", [0, 1e-5, 1e-4])
def test_only_copies_are_counted_in_a_narrow_cone(spread, apart):
    X = rows(cone(4000, 64, spread))
    assert count_repeats(X) == 0
    X[1000:] = X[np.random.default_rng(0).integers(0, 1000, 3000)]
    assert count_repeats(unit(X + apart * rows(gaussian(4000, 64, 1)) / 8)) == 3000


def test_copies_are_counted_after_rounding_to_half_precision():
    X = rows(gaussian(4000, 64))
    X[1000:] = X[np.random.default_rng(0).integers(0, 1000, 3000)] * torch.linspace(0.1, 9, 3000)[:, None]
    assert count_repeats(unit(X.half())) == 3000


@pytest.mark.parametrize("column", [0, 30])
def test_rows_that_differ_in_one_column_are_not_copies(column):
    X = np.ones((50, 31), dtype=np.float32)
    X[:, column] = np.arange(50) / 64
    assert count_repeats(unit(rows(X))) == 0
    assert count_repeats(unit(rows(np.r_[X, X]))) == 50
    assert count_repeats(unit(rows(np.where(X == 0, -X, X)))) == 0  # −0 and 0 are the same number


@pytest.mark.parametrize("make", [lambda: np.eye(60), lambda: cone(300, 30, 0.001), lambda: 30 + gaussian(300, 1) * 0])
def test_rows_that_are_all_equally_near_in_float32_are_refused(make):
    with pytest.raises(InputError, match="its nearest neighbours are arbitrary"):
        graph(rows(make()), 5)


def test_two_rows_and_a_cone_that_float32_can_resolve_have_neighbours():
    assert graph(rows(np.eye(2)), 1).neighbours.tolist() == [[1], [0]]
    assert graph(rows(cone(300, 30, 0.01)), 5).k == 5


@pytest.mark.parametrize("k", [0, 30, -1])
def test_a_graph_needs_more_rows_than_neighbours(k):
    with pytest.raises(InputError, match=rf"`k` must be at least 1 and below the number of rows \(30\); got {k}"):
        graph(rows(gaussian(30, 4)), k)


def test_common_sequence_and_edits_saved_match_their_definitions():
    a = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    b = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [2, 3, 4, 5], [5, 6, 7, 8]])
    assert common_sequence(a, b).tolist() == [1, 0.25, 0.75, 0]
    assert edits_saved(a, b).tolist() == [1, 0, 0.5, 0]


def test_half_precision_rows_have_the_same_graph_as_in_float32():
    X = rows(shared_latent(120)[0]).half()
    assert torch.equal(graph(X, 10).neighbours, graph(X.float(), 10).neighbours)
