from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from helpers.alignment import measured_pair
from helpers.spaces import cone, gaussian, rotated, rotation, shared_latent, unrelated

from repstitch.errors import InputError
from repstitch.metrics import neighbours
from repstitch.metrics.alignment import METRICS, measure
from repstitch.metrics.kernels import cka, cka_unbiased
from repstitch.metrics.neighbour_lists import mutual_knn, overlap
from repstitch.metrics.neighbours import check_spread, graph, knn, unit
from repstitch.metrics.null import calibrate, random_orders, relabel, shared_weight
from repstitch.metrics.retrieval import hubness, mrr, ndcg, ranks, recall, relevant_recall, search


def tensors(*sides) -> Any:
    return tuple(torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in sides)


def drawn(metric: str, X, Y, draws: int, k: int = 10) -> np.ndarray:
    """Return the draws (K,) from the null distribution of one pair."""
    prepare = METRICS[metric].prepare
    of_pairs = measure(metric, [prepare(X, k, "X"), prepare(Y, k, "Y")], [(0, 1)], draws).draws
    assert of_pairs is not None
    return of_pairs[0]


def plain_knn(queries, gallery, k: int, exclude_self: bool) -> np.ndarray:
    """Return the nearest rows by cosine, by sorting all similarities."""
    Q, G = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (queries, gallery))
    similar = Q @ G.T
    if exclude_self:
        np.fill_diagonal(similar, -np.inf)
    return np.argsort(-similar, axis=1)[:, :k]


# --- neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("k", [1, 5, 39])
def test_knn_equals_sorting_all_similarities(exclude_self, k):
    X, Y = gaussian(40, 6), gaussian(40, 6, 1)
    np.testing.assert_array_equal(knn(*tensors(X, Y), k=k, exclude_self=exclude_self), plain_knn(X, Y, k, exclude_self))


@pytest.mark.parametrize("tile", [1, 7, 40, 100])
def test_knn_does_not_depend_on_the_tile_size(monkeypatch, tile):
    X, Y = tensors(gaussian(40, 6), gaussian(55, 6, 1))
    whole, without_self = knn(X, Y, 5), knn(X, X, 5, exclude_self=True)
    monkeypatch.setattr(neighbours, "TILE_ROWS", tile)
    assert torch.equal(knn(X, Y, 5), whole)
    assert torch.equal(knn(X, X, 5, exclude_self=True), without_self)


def test_a_row_is_either_excluded_from_its_own_neighbours_or_the_first_of_them():
    X = tensors(gaussian(40, 6))[0]
    rows = torch.arange(40)[:, None]
    assert not (knn(X, X, 39, exclude_self=True) == rows).any()
    assert torch.equal(knn(X, X, 1), rows)


@pytest.mark.parametrize("k", [0, -1, 40])
def test_k_outside_the_number_of_candidate_rows_is_refused(k):
    X = tensors(gaussian(40, 6))[0]
    with pytest.raises(
        InputError, match=rf"`k` must be at least 1 and at most the number of candidate rows \(39\); got {k}"
    ):
        knn(X, X, k, exclude_self=True)
    with pytest.raises(
        InputError, match=r"`k` must be at least 1 and at most the number of candidate .* \(40\); got 41"
    ):
        knn(X, X, 41)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_zero_rows_and_rows_that_are_not_finite_are_refused(bad):
    X = gaussian(40, 6)
    X[3] = bad
    for run in (unit, lambda x: knn(x, x, 5), lambda x: ranks(x, x), lambda x: mutual_knn(x, x, 5)):
        with pytest.raises(InputError, match="Rows must be finite and not all zeros; remove invalid rows"):
            run(*tensors(X))


def test_unit_rows_have_length_one_whatever_their_type():
    for dtype in (torch.float16, torch.float32, torch.float64):
        rows = unit(tensors(gaussian(40, 6))[0].to(dtype) * 100)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(40))


def test_overlap_is_the_share_of_common_neighbours_whatever_their_order():
    a = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]])
    b = torch.tensor([[3, 2, 1, 0], [4, 5, 1, 0], [4, 5, 6, 7]])
    assert overlap(a, b).tolist() == [1.0, 0.5, 0.0]
    with pytest.raises(InputError, match=r"the same shape \(n, k\); got \(3, 4\) and \(3, 2\)"):
        overlap(a, b[:, :2])


def test_overlap_equals_the_intersection_of_sets():
    a, b = (knn(*tensors(X, X), k=7, exclude_self=True) for X in unrelated(50, 3, 4))
    expected = [len(set(x) & set(y)) / 7 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(overlap(a, b), expected)


def test_mutual_knn_matches_its_definition():
    X, Y = shared_latent(80)
    a, b = (plain_knn(side, side, 10, exclude_self=True) for side in (X, Y))
    expected = np.mean([len(set(x) & set(y)) / 10 for x, y in zip(a, b, strict=True)])
    assert mutual_knn(*tensors(X, Y), k=10) == pytest.approx(expected, abs=1e-6)


def test_mutual_knn_is_one_for_rotations_and_row_scalings_of_a_space():
    X, Y, _ = rotated(200)
    scale = np.random.default_rng(0).uniform(0.1, 10, (200, 1))
    for other in (X, Y, X * scale, 1000 * Y):
        assert mutual_knn(*tensors(X, other)) == 1.0


def test_mutual_knn_is_symmetric_and_ignores_the_order_of_the_rows():
    X, Y = shared_latent(100)
    order = np.random.default_rng(0).permutation(100)
    score = mutual_knn(*tensors(X, Y))
    assert mutual_knn(*tensors(Y, X)) == score
    assert mutual_knn(*tensors(X[order], Y[order])) == pytest.approx(score)


def test_translating_a_space_changes_mutual_knn():
    X = gaussian(200, 8)
    assert mutual_knn(*tensors(X, X + 3)) < 0.9


@pytest.mark.parametrize(("n", "k"), [(40, 5), (100, 10), (60, 1)])
def test_mutual_knn_of_unrelated_spaces_averages_k_over_n_minus_one(n, k):
    scores = [mutual_knn(*tensors(*unrelated(n, 5, 7, seed)), k=k) for seed in range(60)]
    error = np.std(scores) / np.sqrt(len(scores))
    assert abs(np.mean(scores) - k / (n - 1)) < 4 * error


def repeated(n: int = 100, kinds: int = 10) -> np.ndarray:
    return gaussian(kinds, 6)[np.arange(n) % kinds]


@pytest.mark.parametrize(
    "degenerate",
    [
        lambda: np.ones((100, 6)),
        repeated,
        lambda: repeated(kinds=50),
        lambda: np.abs(gaussian(100, 1)),  # every row points the same way
        lambda: repeated() * 2.0 ** (np.arange(100)[:, None] // 10),  # copies at another scale
    ],
)
def test_spaces_of_repeated_rows_are_refused(degenerate):
    X, Y = tensors(degenerate(), gaussian(100, 6, 1))
    for sides, name in (((X, Y), "X"), ((Y, X), "Y"), ((X, X), "X")):
        with pytest.raises(
            InputError, match=f"`{name}` has only .* different directions in 100 rows.*remove the repeated rows"
        ):
            mutual_knn(*sides)


def test_a_few_repeated_rows_are_accepted():
    check_spread(*tensors(np.r_[gaussian(90, 6), gaussian(10, 6)]), k=10, name="X")


def test_mutual_knn_needs_the_same_number_of_rows_on_both_sides():
    with pytest.raises(InputError, match="`X` and `Y` must have the same number of rows, at least 2; got 40 and 39"):
        mutual_knn(*tensors(gaussian(40, 3), gaussian(39, 3)))


# --- kernels ----------------------------------------------------------------------------------------------------------


def plain_cka(X, Y) -> float:
    """Compute CKA by Kornblith's definition on n × n kernels."""
    n = len(X)
    H = np.eye(n) - 1 / n
    K, L = (H @ (side.astype(np.float64) @ side.T.astype(np.float64)) @ H for side in (X, Y))
    return np.sum(K * L) / np.sqrt(np.sum(K * K) * np.sum(L * L))


def plain_hsic(K, L) -> float:
    """Compute Song's unbiased estimate of HSIC on n × n kernels."""
    n = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    cross = K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K @ L).sum()
    return (np.trace(K @ L) + cross) / (n * (n - 3))


def plain_cka_unbiased(X, Y) -> float:
    K, L = (side.astype(np.float64) @ side.T.astype(np.float64) for side in (X, Y))
    return plain_hsic(K, L) / np.sqrt(plain_hsic(K, K) * plain_hsic(L, L))


SPACES = {
    "shared": lambda: shared_latent(60),
    "unrelated": lambda: unrelated(60, 30, 40),
    "far from the origin": lambda: (shared_latent(60)[0] + 5, shared_latent(60)[1] - 3),
    "cone": lambda: (cone(60), shared_latent(60)[1]),
    "wide": lambda: unrelated(20, 100, 80),
    "four rows": lambda: unrelated(4, 6, 3, seed=1),
}


@pytest.mark.parametrize("name", SPACES)
def test_cka_matches_its_definition_on_kernels(name):
    X, Y = SPACES[name]()
    assert cka(*tensors(X, Y)) == pytest.approx(plain_cka(X, Y), abs=1e-10)


@pytest.mark.parametrize("name", SPACES)
def test_cka_unbiased_matches_songs_definition_on_kernels(name):
    X, Y = SPACES[name]()
    assert cka_unbiased(*tensors(X, Y)) == pytest.approx(plain_cka_unbiased(X, Y), abs=1e-10)


@pytest.mark.parametrize("metric", [cka, cka_unbiased])
def test_cka_ignores_rotation_scale_and_translation(metric):
    X, Y = shared_latent(200)
    score = metric(*tensors(X, Y))
    assert 0.1 < score < 0.99
    for other in (X @ rotation(12), 1e3 * X, X + 10, 1e-3 * X @ rotation(12) - 1):
        assert metric(*tensors(other, Y)) == pytest.approx(score, abs=1e-5)
    assert metric(*tensors(Y, X)) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("metric", [cka, cka_unbiased])
@pytest.mark.parametrize("make", [lambda: gaussian(200, 8), lambda: cone(200), lambda: cone(200, spread=0.01)])
def test_a_space_scores_one_with_itself_even_in_a_narrow_cone(metric, make):
    X = make()
    assert metric(*tensors(X, X)) == pytest.approx(1, abs=1e-6)


def test_the_rows_of_a_cone_are_nearly_parallel():
    X = cone(200)
    assert np.mean(X @ X.T) > 0.99
    assert np.mean(cone(200, spread=0.01) @ cone(200, spread=0.01).T) > 0.9998


def test_cka_of_unrelated_spaces_is_high_if_d_exceeds_n_and_unbiased_cka_is_near_zero():
    sides = tensors(*unrelated(100, 200, 200))
    assert cka(*sides) > 0.6
    assert abs(cka_unbiased(*sides)) < 0.1


@pytest.mark.parametrize(("n", "d"), [(30, 5), (50, 100), (200, 20)])
def test_unbiased_cka_of_unrelated_spaces_is_zero_on_average(n, d):
    scores = [cka_unbiased(*tensors(*unrelated(n, d, d + 3, seed))) for seed in range(100)]
    assert abs(np.mean(scores)) < 4 * np.std(scores) / 10


def test_unbiased_cka_of_unrelated_cones_is_zero_on_average():
    scores = [cka_unbiased(*tensors(cone(60, seed=2 * seed), cone(60, seed=2 * seed + 1))) for seed in range(100)]
    assert abs(np.mean(scores)) < 4 * np.std(scores) / 10


def test_the_null_of_unbiased_cka_is_the_score_of_shuffled_rows():
    X, Y = tensors(*shared_latent(50))
    draws = drawn("cka_unbiased", X, Y, 20)
    again = [cka_unbiased(X, Y[order]) for order in random_orders(50, 20)]
    np.testing.assert_allclose(draws, again, atol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1e4 / 3, 0.0, -1e-6])
@pytest.mark.parametrize("n", [7, 97, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", [cka, cka_unbiased])
def test_cka_refuses_a_space_that_does_not_vary(metric, dtype, n, value):
    X, Y = torch.full((n, 5), value, dtype=dtype), torch.from_numpy(gaussian(n, 3))
    with pytest.raises(InputError, match="`X` must vary; all its rows are the same"):
        metric(X, Y)
    with pytest.raises(InputError, match="`Y` must vary; all its rows are the same"):
        metric(Y, X)


@pytest.mark.parametrize("metric", [cka, cka_unbiased])
def test_cka_refuses_rows_that_are_not_finite_or_do_not_match(metric):
    X, Y = shared_latent(40)
    with pytest.raises(InputError, match=r"must have the same number of rows, at least .; got 40 and 39"):
        metric(*tensors(X, Y[1:]))
    Y[3, 3] = np.nan
    with pytest.raises(InputError, match="`Y` must be finite; it contains NaN or Inf"):
        metric(*tensors(X, Y))


def test_unbiased_cka_needs_four_rows_and_some_spread():
    with pytest.raises(InputError, match="at least 4; got 3 and 3"):
        cka_unbiased(*tensors(*unrelated(3, 4, 4)))
    lone = np.zeros((5, 1))
    lone[0] = 1
    with pytest.raises(InputError, match="Unbiased CKA is not defined for a space"):
        cka_unbiased(*tensors(lone, gaussian(5, 2)))


def test_released_cknna_refuses_a_space_whose_similarities_are_all_zero():
    metric, (X,) = METRICS["cknna_released"], tensors(gaussian(50, 4))
    prepared = metric.prepare(X, 5)
    zeros = replace(prepared, similarities=torch.zeros(50, 5))
    for pair in ((prepared, zeros), (zeros, prepared)):
        with pytest.raises(InputError, match="Released CKNNA is not defined for a space"):
            metric.compare(*pair)
        with pytest.raises(InputError, match="Released CKNNA is not defined for a space"):
            metric.draws(pair, [(0, 1)], random_orders(50, 3))


def test_rsa_is_accurate_in_a_cone_too_narrow_for_float32_cosines():
    X, Y = shared_latent(200)
    exact = METRICS["rsa"](*tensors(5 + X * 1e-2, 5 + Y * 1e-2))
    assert METRICS["rsa"](*tensors(5 + X * 1e-3, 5 + Y * 1e-3)) == pytest.approx(exact, abs=0.01)


# --- retrieval --------------------------------------------------------------------------------------------------------


def plain_ranks(queries, gallery) -> list[int]:
    """Return the rank of each counterpart. Its copies share its rank; other rows as near as it rank before it."""
    Q, G = (side.astype(np.float64) for side in (queries, gallery))
    Q, G = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (Q, G))
    positions = []
    for i, query in enumerate(Q):
        similar = G @ query
        same = (gallery == gallery[i]).all(axis=1)
        positions.append(1 + int(((similar >= similar[i] - 1e-12) & ~same).sum()))
    return positions


def test_ranks_equal_counting_the_nearer_rows():
    X, Y = shared_latent(60, d_source=8, d_target=8)
    assert ranks(*tensors(X, Y)).tolist() == plain_ranks(X, Y)
    more = np.r_[Y, gaussian(30, 8, 5)]
    assert ranks(*tensors(X, more)).tolist() == plain_ranks(X, more)


def test_ranks_with_ties_on_a_grid_equal_counting_the_nearer_rows():
    random = np.random.default_rng(0)
    for _ in range(20):
        gallery = random.integers(-1, 2, (25, 2)).astype("float32")
        gallery[(gallery == 0).all(axis=1)] = 1
        # All queries are on a coordinate axis, so that cosines are exact.
        queries = random.integers(1, 3, (25, 2)).astype("float32") * [1, 0]
        assert ranks(*tensors(queries, gallery)).tolist() == plain_ranks(queries, gallery)


def test_an_identical_target_row_is_a_hit_and_any_other_tie_a_miss():
    query = np.array([[1.0, 0.0]])
    copies = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    assert ranks(*tensors(query, copies)).tolist() == [1]
    mirrored = np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 1.0]])
    assert ranks(*tensors(query, mirrored)).tolist() == [2]
    collapsed = np.ones((4, 2))
    assert ranks(*tensors(collapsed, np.array([[1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0]]))).tolist() == [2, 2, 4, 4]


def test_a_row_of_another_length_is_not_a_copy():
    gallery = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    assert ranks(*tensors(gallery[:1], gallery)).tolist() == [2]


@pytest.mark.parametrize("tile", [1, 7, 60])
def test_ranks_do_not_depend_on_the_tile_size(monkeypatch, tile):
    X, Y = tensors(*shared_latent(60, d_source=8, d_target=8))
    whole = ranks(X, Y)
    monkeypatch.setattr(neighbours, "TILE_ROWS", tile)
    assert torch.equal(ranks(X, Y), whole)


def test_copies_from_the_caller_give_the_same_ranks_as_detected_copies():
    Y = tensors(repeated(60))[0]
    X = tensors(gaussian(60, 6, 3))[0]
    assert torch.equal(ranks(X, Y, torch.arange(60) % 10), ranks(X, Y))


@pytest.mark.parametrize(("queries", "gallery"), [((5, 3), (5, 2)), ((5, 3), (4, 3))])
def test_a_gallery_without_every_counterpart_is_refused(queries, gallery):
    with pytest.raises(InputError, match="`gallery` must have a row for every query and as many columns as `queries`"):
        ranks(torch.ones(queries), torch.ones(gallery))


def test_recall_and_reciprocal_rank_count_ranks():
    positions = torch.tensor([1, 2, 4, 10, 11])
    assert [recall(positions, k) for k in (1, 2, 10, 100)] == pytest.approx([0.2, 0.4, 0.8, 1.0])
    assert mrr(positions) == pytest.approx(np.mean([1, 1 / 2, 1 / 4, 1 / 10, 1 / 11]))


def test_recall_of_unrelated_rows_is_at_chance():
    positions = torch.cat([ranks(*tensors(*unrelated(100, 8, 8, seed))) for seed in range(30)])
    for k in (1, 5, 10):
        error = np.sqrt(k / 100 * (1 - k / 100) / len(positions))
        assert abs(recall(positions, k) - k / 100) < 4 * error


def test_hubness_is_zero_for_even_lists_and_high_for_one_hub():
    even = torch.arange(100)[:, None].repeat(1, 3)
    assert hubness(even, 100) == 0
    hub = torch.stack([torch.arange(100), torch.zeros(100, dtype=torch.long)], dim=1)
    assert hubness(hub, 100) > 5
    assert hubness(torch.zeros(10, 1, dtype=torch.long), 1) == 0


def test_high_dimensions_have_more_hubs_than_low_ones():
    low, high = (knn(*tensors(X, X), k=10, exclude_self=True) for X in (gaussian(500, 3), gaussian(500, 300)))
    assert hubness(high, 500) > hubness(low, 500) + 0.2


# --- the null ---------------------------------------------------------------------------------------------------------


def several_hot(n: int, d: int, seed: int) -> np.ndarray:
    """Return rows of three ones and otherwise zeros. Many are orthogonal, so ties decide most of the neighbours."""
    return (np.random.default_rng(seed).random((n, d)).argsort(1) < 3).astype(np.float32)


def signs(n: int, d: int, seed: int) -> np.ndarray:
    return np.sign(gaussian(n, d, seed))


def with_copies(n: int, d: int, seed: int) -> np.ndarray:
    """Return rows of which a third, at random positions, are equal."""
    X, rows = gaussian(n, d, seed), np.random.default_rng(seed).permutation(n)[: n // 3]
    X[rows] = X[rows[0]]
    return X


def shuffled(X: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(1000 + seed).permutation(X)


UNRELATED = {
    "continuous": lambda i: unrelated(16, 3, 4, 1000 + i),
    "several hot": lambda i: (several_hot(24, 12, 2 * i), several_hot(24, 10, 2 * i + 1)),
    "signs": lambda i: (signs(24, 8, 2 * i), signs(24, 9, 2 * i + 1)),
    "copies": lambda i: (with_copies(24, 3, 2 * i), with_copies(24, 4, 2 * i + 1)),
    "one space shuffled": lambda i: (with_copies(24, 3, i), shuffled(with_copies(24, 3, i), i)),
}


LISTS = [name for name, metric in METRICS.items() if metric.prepare is graph]


METRIC_OF_KIND = [(name, "continuous") for name in METRICS] + list(product(LISTS, list(UNRELATED)[1:]))
# Tie-breaking depends on the graph alone, so one neighbour metric is enough for spaces with ties.
QUICK = [
    *(
        (name, "continuous")
        for name in ("mutual_knn", "cknna", "cka", "cka_unbiased", "rsa", "procrustes", "linear_r2")
    ),
    *(("mutual_knn", kind) for kind in list(UNRELATED)[1:]),
]


def check_p_values(metric: str, kind: str, spaces: int, permutations: int, levels: tuple[float, ...]) -> None:
    """Fail if p ≤ α in more than a share α of unrelated spaces, or if p is rarely at most one half."""
    p = np.array(
        [measured_pair(*UNRELATED[kind](i), metric, k=3, permutations=permutations, seed=i)["p"] for i in range(spaces)]
    )
    for alpha in levels:
        assert np.mean(p <= alpha) <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / spaces)
    assert np.mean(p <= 0.5) > 0.3  # the p-values are not all large


@pytest.mark.parametrize(("metric", "kind"), QUICK)
def test_p_values_of_unrelated_spaces_are_not_too_small_too_often(metric, kind):
    check_p_values(metric, kind, 120, 39, (0.025, 0.05, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "kind"), METRIC_OF_KIND)
def test_p_values_of_many_unrelated_spaces_are_not_too_small_too_often(metric, kind):
    check_p_values(metric, kind, 400, 99, (0.01, 0.05, 0.1))


@pytest.mark.parametrize("metric", METRICS)
def test_related_spaces_have_the_smallest_possible_p_value(metric):
    result = measured_pair(*shared_latent(100), metric, permutations=50)
    assert result["p"] == pytest.approx(1 / 51)
    assert 0 < result["calibrated"] < result["score"] < 1
    assert result["null"] < result["score"]


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_seed_draws_the_same_null(metric):
    sides = shared_latent(60)
    a, b, c = (measured_pair(*sides, metric, permutations=20, seed=seed) for seed in (1, 1, 2))
    assert a == b
    assert a["null"] != c["null"]


@pytest.mark.parametrize("metric", METRICS)
def test_without_permutations_only_the_score_and_its_standard_error_are_returned(metric):
    X, Y = shared_latent(60)
    result = measured_pair(X, Y, metric, permutations=0)
    assert list(result) == ["score", "se"]
    assert result["score"] == pytest.approx(METRICS[metric](*tensors(X, Y)), abs=1e-8)


def test_rows_that_do_not_match_are_refused():
    X, Y = shared_latent(60)
    with pytest.raises(InputError, match=r"must have the same number of rows, at least 3; got 60 and 59"):
        METRICS["cka"](X, Y[1:])


def test_relabelled_neighbours_are_the_neighbours_of_permuted_rows():
    Y = tensors(gaussian(40, 6))[0]
    order = random_orders(40, 1)[0]
    assert torch.equal(relabel(knn(Y, Y, 5, exclude_self=True), order), knn(Y[order], Y[order], 5, exclude_self=True))


def test_permuting_the_lists_without_relabelling_gives_a_different_null():
    X, Y = tensors(*shared_latent(40))
    a, b = knn(X, X, 5, exclude_self=True), knn(Y, Y, 5, exclude_self=True)
    orders = random_orders(40, 10, seed=7)
    naive = [float(overlap(a, b[order]).mean()) for order in orders]
    assert not np.allclose(shared_weight([a, b], [(0, 1)], orders)[0] / 200, naive)


def test_a_score_is_calibrated_between_the_95_percent_point_of_the_null_and_one():
    draws = np.arange(100) / 200  # 0 … 0.495
    edge = np.sort(draws)[95]
    for score, expected in ((edge, 0), (0.0, 0), (-1.0, 0), (1.0, 1), ((1 + edge) / 2, 0.5)):
        assert calibrate(score, draws).calibrated == pytest.approx(expected)
    placed = calibrate(0.4, draws)
    assert placed.null == pytest.approx(draws.mean())
    assert placed.p == pytest.approx((1 + 20) / 101)


def test_p_counts_ties_against_the_score_and_is_never_zero():
    assert calibrate(0.5, np.full(9, 0.5)).p == 1.0
    assert calibrate(0.6, np.full(9, 0.5)).p == pytest.approx(0.1)
    assert calibrate(1.0, np.array([0.0])).p == 0.5


def test_a_null_that_reaches_a_perfect_score_calibrates_to_zero():
    placed = calibrate(1.0, np.ones(20))
    assert (placed.calibrated, placed.p) == (0.0, 1.0)
    with pytest.raises(InputError, match="`draws` must contain at least one permutation"):
        calibrate(0.5, np.array([]))


# --- graded relevance, and one combined search ------------------------------------------------------------------------


def test_ndcg_matches_its_formula_computed_by_hand():
    retrieved = torch.tensor([[3, 0, 1], [2, 1, 0]])
    grades = [{0: 2.0, 1: 1.0, 3: 0.0, 9: 1.0}, {2: 1.0}]
    log3 = np.log2(3)
    by_hand = (2 / log3 + 1 / 2) / (2 + 1 / log3 + 1 / 2)
    np.testing.assert_allclose(ndcg(retrieved, grades, 3).numpy(), [by_hand, 1.0])
    assert float(ndcg(retrieved, grades, 1)[0]) == 0


def test_ndcg_is_one_for_the_best_order_and_zero_without_relevant_documents():
    grades = [{5: 3.0, 6: 2.0, 7: 1.0}]
    assert float(ndcg(torch.tensor([[5, 6, 7, 8]]), grades)[0]) == pytest.approx(1)
    assert float(ndcg(torch.tensor([[7, 6, 5, 8]]), grades)[0]) < 1
    assert float(ndcg(torch.tensor([[1, 2, 3, 4]]), grades)[0]) == 0


def test_relevant_recall_is_the_share_of_relevant_documents_that_are_retrieved():
    grades = [{0: 2.0, 1: 1.0, 2: 0.0, 9: 1.0}]
    assert relevant_recall(torch.tensor([[2, 0, 1]]), grades).tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("tile", [7, 2048])
def test_one_search_gives_the_same_ranks_and_neighbours_as_separate_calls(monkeypatch, tile):
    queries, gallery = tensors(gaussian(60, 5), gaussian(60, 5, 1))
    gallery[10] = gallery[20]
    copies = torch.unique(gallery, dim=0, return_inverse=True)[1]
    expected = ranks(queries, gallery, copies), knn(queries, gallery, 9, exclude_self=True)
    alone = (
        ranks(queries[:1].repeat(60, 1), gallery, copies),
        knn(queries[:1].repeat(60, 1), gallery, 9, exclude_self=True),
    )
    monkeypatch.setattr(neighbours, "TILE_ROWS", tile)
    for rows, (placed, lists) in ((queries, expected), (queries[:1], alone)):
        result = search(rows, gallery, 9, copies)
        assert torch.equal(result[0], placed)
        assert torch.equal(result[1].sort(1).values, lists.sort(1).values)


def test_the_fast_null_of_wide_spaces_agrees_with_the_exact_null():
    scale = np.arange(1, 161) ** -0.7
    X, Y = (torch.from_numpy((gaussian(300, 160, seed) * scale).astype(np.float32)) for seed in (0, 1))
    quick = drawn("cka_unbiased", X, Y, 60)
    exact = np.array([cka_unbiased(X, Y[order]) for order in random_orders(300, 60)])
    assert np.corrcoef(quick, exact)[0, 1] > 0.99
    assert quick.std() == pytest.approx(exact.std(), rel=0.05)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_the_null_of_unbiased_cka_does_not_depend_on_the_size_of_the_rows(size):
    X, Y = (torch.from_numpy(gaussian(100, 8, seed)) for seed in (0, 1))
    expected = drawn("cka_unbiased", X, Y, 20)
    np.testing.assert_allclose(drawn("cka_unbiased", X * size, Y * size, 20), expected, rtol=1e-3, atol=1e-5)
