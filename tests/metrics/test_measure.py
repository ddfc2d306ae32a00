"""Measuring many pairs at once: same scores as one at a time, same permutations for all, correct standard errors."""

from itertools import permutations

import numpy as np
import pytest
import torch
from helpers.alignment import measured_pair
from helpers.spaces import gaussian, shared_latent, unrelated

from repstitch.errors import InputError
from repstitch.metrics import null
from repstitch.metrics.alignment import METRICS, measure
from repstitch.metrics.null import adjust, calibrate, calibrate_all, random_orders, relabel, shared_weight

GRAPHS = ("mutual_knn", "cycle_knn", "lcs_knn", "edit_knn", "cknna", "cknna_released")


def spaces(n: int = 60) -> list[torch.Tensor]:
    """Return four spaces: two that share much, one that shares little with them, and an unrelated one."""
    X, Y = shared_latent(n, noise=0.3)
    sides = (X, Y, X[:, :5] + 2 * gaussian(n, 5, 7), gaussian(n, 9, 8))
    return [torch.from_numpy(side.astype(np.float32)) for side in sides]


@pytest.mark.parametrize("metric", METRICS)
def test_many_pairs_get_the_same_scores_and_draws_as_each_pair_alone(metric):
    rows, pairs = spaces(), list(permutations(range(4), 2))
    prepared = [METRICS[metric].prepare(X, 5) for X in rows]
    measured = measure(metric, prepared, pairs, draws=12, seed=3)
    assert measured.draws is not None
    for at, (i, j) in enumerate(pairs):
        assert measured.score[at] == pytest.approx(METRICS[metric](rows[i], rows[j], 5), abs=1e-9)
        alone = measure(metric, [prepared[i], prepared[j]], [(0, 1)], draws=12, seed=3)
        assert alone.draws is not None
        np.testing.assert_allclose(measured.draws[at], alone.draws[0], atol=1e-6)
        assert measured.pair(at) == pytest.approx(alone.pair(0))


def test_the_p_value_of_the_best_pair_counts_draws_equal_to_its_score():
    for seed in range(20):
        prepared = [METRICS["mutual_knn"].prepare(torch.from_numpy(gaussian(24, 3, 9 * seed + i)), 1) for i in range(4)]
        measured = measure("mutual_knn", prepared, [(0, 2), (0, 3), (1, 2), (1, 3)], draws=99, seed=seed)
        assert measured.draws is not None
        best, drawn = round(24 * measured.score.max()), np.round(24 * measured.draws.max(0))
        assert calibrate(measured.score.max(), measured.draws.max(0)).p == (1 + (drawn >= best).sum()) / 100


@pytest.mark.parametrize("metric", METRICS)
def test_a_draw_is_the_score_of_permuted_rows(metric):
    X, Y = spaces()[:2]
    prepared = [METRICS[metric].prepare(side, 5) for side in (X, Y)]
    draws = measure(metric, prepared, [(0, 1)], draws=6, seed=4).draws
    again = [METRICS[metric](X, Y[order], 5) for order in random_orders(len(X), 6, 4)]
    assert draws is not None
    np.testing.assert_allclose(draws[0], again, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_only_metrics_marked_as_asymmetric_depend_on_the_order_of_the_two_spaces(metric):
    X, Y, Z, _ = spaces()
    apart = max(abs(METRICS[metric](a, b, 5) - METRICS[metric](b, a, 5)) for a, b in ((X, Y), (X, Z), (Y, Z)))
    assert (apart < 1e-9) == METRICS[metric].symmetric


@pytest.mark.parametrize("metric", METRICS)
def test_the_influences_average_to_the_score(metric):
    X, Y, Z, _ = spaces()
    for a, b in ((X, Y), (X, Z), (X, X)):
        sides = [METRICS[metric].prepare(side, 5) for side in (a, b)]
        influence = METRICS[metric].influence(*sides)
        assert influence.shape == (60,)
        assert float(influence.double().mean()) == pytest.approx(METRICS[metric].compare(*sides), abs=1e-6)


@pytest.mark.parametrize("metric", [m for m in METRICS if m not in GRAPHS])
def test_the_standard_error_is_close_to_the_jackknife(metric):
    n = 150
    X, Y = (torch.from_numpy(side) for side in shared_latent(n, rank=3, d_source=5, d_target=3, noise=0.7))
    standard_error = measured_pair(X.numpy(), Y.numpy(), metric, permutations=0)["se"]
    keep = [torch.arange(n) != row for row in range(n)]
    left_out = np.array([METRICS[metric](X[rows], Y[rows]) for rows in keep])
    jackknife = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    # PWCCA is far from linear.
    assert standard_error == pytest.approx(jackknife, rel=0.15 if metric == "pwcca" else 0.1)


@pytest.mark.parametrize("metric", ["cknna", "cknna_released"])
def test_the_standard_error_of_kernels_of_neighbours_keeps_the_graph_fixed(metric):
    X, Y = shared_latent(200)
    prepared = [METRICS[metric].prepare(torch.from_numpy(side), 10) for side in (X, Y)]
    rows = METRICS[metric].influence(*prepared).numpy()
    drawn = np.random.default_rng(0).choice(rows, (2000, 200)).mean(1)
    assert measure(metric, prepared, [(0, 1)], 0).se[0] == pytest.approx(drawn.std(), rel=0.1)


def test_shared_weight_equals_permuting_and_intersecting_the_lists(monkeypatch):
    random = torch.Generator().manual_seed(0)
    lists = [torch.stack([torch.randperm(40, generator=random)[:6] for _ in range(40)]) for _ in range(4)]
    weights = [torch.rand(40, 6, generator=random) for _ in lists]
    orders, pairs = random_orders(40, 5), [(0, 1), (2, 1), (3, 0), (1, 1)]
    counted, weighed = np.zeros((4, 5)), np.zeros((4, 5))
    for at, (i, j) in enumerate(pairs):
        for column, order in enumerate(orders):
            b, w = relabel(lists[j], order).tolist(), weights[j][order]
            for row in range(40):
                for left, neighbour in enumerate(lists[i][row].tolist()):
                    if neighbour in b[row]:
                        counted[at, column] += 1
                        weighed[at, column] += float(weights[i][row, left] * w[row, b[row].index(neighbour)])
    for cells in (2**24, 40 * 7, 1):  # chunks of all rows, of seven rows, of one row
        monkeypatch.setattr(null, "CELLS", cells)
        np.testing.assert_array_equal(shared_weight(lists, pairs, orders), counted)
        np.testing.assert_allclose(shared_weight(lists, pairs, orders, weights), weighed, rtol=1e-6)


def test_draws_equal_to_the_score_up_to_rounding_count_against_it():
    assert calibrate_all(np.array([0.3]), np.array([[0.1 + 0.2, 0.1, 0.1]]))[1].tolist() == [0.5]
    assert calibrate_all(np.array([0.1 + 0.2]), np.array([[0.3, 0.1, 0.1]]))[1].tolist() == [0.5]


def test_q_values_follow_benjamini_and_hochberg():
    p = np.array([0.01, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(adjust(p), [0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])
    assert adjust(np.array([])).shape == (0,)


def test_using_the_same_permutations_for_all_pairs_gives_the_maximum_a_valid_p_value():
    """The best of nine unrelated pairs has a valid p-value against the maximum over pairs in each permutation, and one
    that is too small against its own draws.
    """
    naive, corrected = [], []
    for seed in range(60):
        sides = [torch.from_numpy(X) for s in range(3) for X in unrelated(40, 5, 5, 100 * seed + s)]
        prepared = [METRICS["mutual_knn"].prepare(X, 5) for X in sides]
        pairs = [(i, j) for i in range(3) for j in range(3, 6)]
        measured = measure("mutual_knn", prepared, pairs, 99, seed)
        assert measured.draws is not None
        assert measured.p is not None
        naive.append(measured.p[measured.score.argmax()])
        corrected.append(calibrate_all(measured.score.max(keepdims=True), measured.draws.max(0)[None])[1][0])
    assert np.mean(np.array(naive) <= 0.05) > 0.15
    assert np.mean(np.array(corrected) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_do_not_match_are_refused(metric):
    X, Y = shared_latent(60)
    with pytest.raises(InputError, match=r"`X` and `Y` must have the same number of rows, at least .; got 60 and 59"):
        METRICS[metric](torch.from_numpy(X), torch.from_numpy(Y[1:]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(metric, bad):
    X, Y = shared_latent(60)
    Y[3] = bad
    with pytest.raises(InputError, match="must be finite"):
        METRICS[metric](torch.from_numpy(X), torch.from_numpy(Y))


@pytest.mark.parametrize("metric", METRICS)
def test_a_constant_space_is_refused(metric):
    X = torch.full((60, 4), 0.3)
    for sides in ((X, torch.from_numpy(gaussian(60, 3))), (X, X)):
        with pytest.raises(InputError, match=r"must vary|different directions"):
            METRICS[metric](*sides)


@pytest.mark.parametrize("metric", ["cka_rbf", "rsa"])
def test_metrics_that_compare_all_pairs_of_rows_refuse_too_many_rows(metric):
    with pytest.raises(InputError, match=r"at most 30,000 rows for a metric that compares all pairs .*; got 30,001"):
        METRICS[metric].prepare(torch.zeros(30_001, 1), 10)


def test_negative_draws_are_refused():
    with pytest.raises(InputError, match="`permutations` must be from 0 to 100,000; got -1"):
        measure("cka", [], [], -1)
