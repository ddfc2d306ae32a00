"""Standard errors by leaving out one row: exact means without each row, and intervals that cover the truth."""

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian

from repstitch.metrics.alignment import METRICS
from repstitch.metrics.delete_one import RowScores, certain, hits, reciprocal_ranks, share_of_neighbours
from repstitch.metrics.neighbour_lists import share_contained
from repstitch.metrics.neighbours import graph, knn
from repstitch.metrics.overlaps import overlaps
from repstitch.metrics.retrieval import search


def spaces(n: int, seed: int, noise: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two noisy views (n, 6) of the same latent rows (n, 4)."""
    latent = gaussian(n, 4, seed)
    first, second = (latent @ gaussian(4, 6, side) + noise * gaussian(n, 6, seed + side) for side in (1, 2))
    return torch.from_numpy(first), torch.from_numpy(second)


def score(X: torch.Tensor, Y: torch.Tensor, k: int, m: int) -> tuple[RowScores, RowScores, RowScores]:
    """Return the three scores of queries X that search Y, with lists of all other rows."""
    n = len(X)
    ranks, results = search(X, Y, n - 1, torch.arange(n))
    true = knn(Y, Y, k + 1, exclude_self=True)
    return share_of_neighbours(true, k, results, m), hits(ranks, results, 3), reciprocal_ranks(ranks, results)


@pytest.mark.parametrize(("k", "m"), [(5, 5), (5, 12), (1, 1), (8, 20)])
def test_the_mean_without_a_row_is_that_of_the_other_rows(k, m):
    X, Y = spaces(40, 3)
    without = [scores.means_without() for scores in score(X, Y, k, m)]
    for row in range(len(X)):
        others = torch.arange(len(X)) != row
        ranks, results = search(X[others], Y[others], m, torch.arange(len(X) - 1))
        true = knn(Y[others], Y[others], k, exclude_self=True)
        expected = share_contained(true, results).mean(), (ranks <= 3).double().mean(), (1 / ranks.double()).mean()
        assert [means[row] for means in without] == pytest.approx(list(map(float, expected)))


def test_the_values_are_those_of_the_lists():
    X, Y = spaces(30, 4)
    shares, in_first, reciprocal = score(X, Y, 5, 9)
    ranks, results = search(X, Y, 29, torch.arange(30))
    np.testing.assert_array_equal(
        shares.values, share_contained(knn(Y, Y, 5, exclude_self=True), results[:, :9]).numpy()
    )
    np.testing.assert_array_equal(in_first.values, ranks <= 3)
    np.testing.assert_array_equal(reciprocal.values, 1 / ranks.double())


def test_a_difference_without_a_row_is_that_of_the_means():
    first, second, _ = score(*spaces(40, 5), 5, 5)
    np.testing.assert_allclose(
        first.minus(second).means_without(), first.means_without() - second.means_without(), atol=1e-12
    )
    assert np.ptp(first.minus(first).means_without()) < 1e-12


def test_a_ratio_to_a_constant_has_the_interval_of_its_upper_part():
    first = score(*spaces(40, 6), 5, 5)[0]
    half = certain(0.5, 40)
    assert first.over(half).mean == pytest.approx(2 * first.mean)
    assert first.over(half).interval() == pytest.approx([2 * end for end in first.interval()])


def test_a_ratio_of_equal_scores_is_1_with_room_for_3_rows():
    scores = RowScores(np.full(40, 0.25))
    low, high = scores.over(scores).interval()
    assert scores.over(scores).mean == 1
    assert low == pytest.approx(1 - 3 / 40)
    assert high == pytest.approx(1 + 3 / 40 * (1 / scores.mean - 1))


def test_the_interval_of_a_ratio_contains_the_ratios_at_which_the_difference_may_be_0():
    random = np.random.default_rng(0)
    below = RowScores(random.uniform(0, 1, 50))
    above = RowScores(np.clip(below.values * 0.6 + random.normal(0, 0.1, 50), 0, 1))
    low, high = above.over(below).interval()
    assert low < above.mean / below.mean < high
    for end in (low, high):
        difference = RowScores(above.values - end * below.values, None, -10, 10)
        assert abs(difference.mean) == pytest.approx(2.1 * difference.variance() ** 0.5, rel=1e-6)


def test_queries_without_a_hit_say_nothing_of_a_ratio_of_equal_scores():
    hits_of_few = RowScores((np.arange(40) < 8).astype(float))
    assert hits_of_few.over(hits_of_few).interval()[0] == pytest.approx(1 - 3 / 8)


def test_a_ratio_to_equal_scores_that_are_not_known_by_definition_varies_both():
    above, ones = RowScores(np.arange(20) / 20), RowScores(np.ones(20))
    by_definition = above.over(certain(1.0, 20)).interval()
    assert by_definition == above.interval()
    assert above.over(ones).interval() != by_definition


def test_a_hit_among_all_rows_is_certain():
    scores = hits(torch.tensor([1, 3]), torch.tensor([[1], [0]]), 5)
    assert scores.interval() == [1.0, 1.0]


def test_a_ratio_to_a_mean_that_may_be_0_has_no_upper_end_below_the_largest_possible():
    rare = RowScores((np.arange(50) == 3).astype(float))
    often = RowScores((np.arange(50) < 25).astype(float))
    assert often.over(rare).interval() == [0.0, 50.0]


def test_a_share_of_the_whole_pool_is_1_by_definition():
    X, Y = spaces(12, 7)
    everything = share_of_neighbours(knn(Y, Y, 11, exclude_self=True), 10, knn(X, X, 11, exclude_self=True), 11)
    assert everything.interval() == [1.0, 1.0]
    assert certain(0.25, 9).interval() == [0.25, 0.25]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_score_leaves_room_for_3_rows_in_n(value):
    low, high = RowScores(np.full(60, value)).interval()
    assert low == pytest.approx(value - 3 / 60 * value)
    assert high == pytest.approx(value + 3 / 60 * (1 - value))


def test_a_constant_difference_leaves_room_in_both_directions():
    equal = RowScores(np.ones(30))
    assert equal.minus(equal).interval() == pytest.approx([-0.1, 0.1])
    low, high = equal.minus(RowScores(np.zeros(30))).interval()
    assert (low, high) == (pytest.approx(0.8), pytest.approx(1))


def test_intervals_stay_inside_the_bounds_and_contain_the_mean():
    for n in (2, 3, 10, 50):
        for ones in range(n + 1):
            values = (np.arange(n) < ones).astype(float)
            for scores in (RowScores(values), RowScores(values, hits=True)):
                low, high = scores.interval()
                assert 0 <= low <= scores.mean <= high <= 1
                assert high > low
            low, high = RowScores(values).minus(RowScores(1 - values)).interval()
            assert -1 <= low <= 2 * values.mean() - 1 <= high <= 1


def test_without_changes_the_variance_is_that_of_a_mean():
    values = gaussian(50, 1, 8)[:, 0].astype(np.float64)
    scores = RowScores(values, None, -10, 10)
    assert scores.variance() == pytest.approx(values.var(ddof=1) / 50)
    low, high = scores.interval()
    assert (high - low) / 2 == pytest.approx(2.1 * (values.var(ddof=1) / 50) ** 0.5)


@pytest.mark.slow
def test_the_standard_error_is_the_spread_over_fresh_pools_and_that_over_queries_is_too_small():
    means, variances, over_queries = [], [], []
    for seed in range(400):
        in_x, in_y = (knn(rows, rows, 11, exclude_self=True) for rows in spaces(100, 10 * seed + 100))
        shares = share_of_neighbours(in_x, 10, in_y, 10)
        means.append(shares.mean)
        variances.append(shares.variance())
        over_queries.append(shares.values.var(ddof=1) / 100)
    spread = np.std(means)
    assert 0.95 < np.mean(np.sqrt(variances)) / spread < 1.15
    assert np.mean(np.sqrt(over_queries)) / spread < 0.85


@pytest.mark.parametrize("metric", ["mutual_knn", "lcs_knn", "edit_knn", "cycle_knn"])
@pytest.mark.parametrize(("n", "k", "noise"), [(40, 4, 0.5), (40, 4, 3.0), (30, 2, 1.0), (12, 10, 1.0)])
def test_the_scores_of_neighbour_lists_without_a_row_are_those_of_the_other_rows(metric, n, k, noise):
    X = gaussian(n, 6, 1)
    X, Y = torch.from_numpy(X), torch.from_numpy(X + noise * gaussian(n, 6, 2))
    left_out = METRICS[metric].left_out
    assert left_out is not None
    rows = left_out(graph(X, k), graph(Y, k))
    assert rows.mean == pytest.approx(METRICS[metric](X, Y, k))
    keep = [torch.arange(n) != row for row in range(n)]
    assert rows.means_without() == pytest.approx([METRICS[metric](X[others], Y[others], k) for others in keep])


@pytest.mark.parametrize(("n", "k"), [(40, 5), (200, 10), (12, 10)])
def test_the_overlaps_of_many_spaces_have_the_standard_errors_of_each_pair(n, k):
    X = gaussian(n, 8, 1)
    graphs = [graph(torch.from_numpy(X + noise * gaussian(n, 8, seed)), k) for seed, noise in enumerate((0, 0.3, 1, 3))]
    scores, errors = overlaps(graphs[0], graphs[1:])
    lists = [torch.cat([one.neighbours, one.following[:, None]], 1) for one in graphs]
    for other, overlap, error in zip(lists[1:], scores, errors, strict=True):
        alone = share_of_neighbours(lists[0], k, other, k)
        assert overlap == pytest.approx(alone.mean, abs=1e-12)
        assert error == pytest.approx(alone.variance() ** 0.5, rel=1e-5)
