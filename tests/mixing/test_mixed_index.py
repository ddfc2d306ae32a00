"""Native and translated rows in one index."""

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian

from repstitch.errors import InputError
from repstitch.metrics.neighbours import knn, unit
from repstitch.mixing.mixed_index import LENGTHS, MixedIndex
from repstitch.mixing.placement import Placement


def spaces(n: int = 200, d: int = 12, noise: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return translations, which are noisy native rows, and native rows, in a cone."""
    Y = gaussian(n, d, seed) + 1
    T = Y + noise * gaussian(n, d, seed + 1)
    return tuple((X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32) for X in (T, Y))  # type: ignore[return-value]


def test_a_search_in_a_mixed_index_is_an_exact_search_by_inner_product():
    T, Y = spaces()
    index = MixedIndex(T, Y)
    native = index.random(0.3, 0)
    assert int(native.sum()) == 60
    stored = np.where(native.numpy()[:, None], Y, 0.9 * T)
    similar = Y @ stored.T
    np.fill_diagonal(similar, -np.inf)
    expected = np.argsort(-similar, axis=1)[:, :10]
    assert [set(row) for row in index.results(native, 0.9).tolist()] == [set(row) for row in expected.tolist()]


def test_an_index_of_native_rows_finds_everything_and_one_of_translations_what_corpus_use_finds():
    T, Y = spaces()
    index = MixedIndex(T, Y)
    assert index.score(1.0, 1.0).overlap == 1
    assert index.score(1.0, 1.0).native_share == 1
    t, y = torch.from_numpy(T), torch.from_numpy(Y)
    lists, true = knn(y, t, 10, exclude_self=True), knn(y, y, 10, exclude_self=True)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(lists.tolist(), true.tolist(), strict=True)])
    assert index.score(0.0, 1.0).overlap == pytest.approx(overlap, abs=1e-6)
    assert index.score(0.0, 1.0).native_share == 0


def test_translations_that_equal_native_rows_need_no_other_length():
    _, Y = spaces()
    index = MixedIndex(Y, Y)
    assert index.best_length() == 1
    assert index.score(0.5, 1.0).native_share == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_the_best_length_undoes_a_scale_of_the_similarities(scale):
    """Rows of another length have similarities on another scale, and the inverse length makes them native again."""
    _, Y = spaces(300)
    index = MixedIndex(Y, Y)
    index.translated = index.translated * scale
    assert index.best_length() == pytest.approx(1 / scale, abs=0.015)


def test_rows_that_a_map_shrinks_towards_the_mean_crowd_native_rows_out_and_a_length_below_1_corrects_it():
    _, Y = spaces(300)
    index = MixedIndex(Y.mean(0) + 0.5 * (Y - Y.mean(0)) + 0.08 * gaussian(300, 12, 1), Y)
    length = index.best_length()
    assert 0.85 < length < 1
    assert length in LENGTHS
    plain, corrected = index.score(0.2, 1.0), index.score(0.2, length)
    assert plain.native_share < 0.17 < corrected.native_share
    assert corrected.overlap > plain.overlap


@pytest.mark.parametrize("seed", range(3))
def test_a_length_from_few_rows_suits_the_nearer_neighbours_of_many(seed):
    """Similarities to translated rows grow half as fast, so the best length depends on how near the neighbours are."""
    _, Y = spaces(900, seed=seed)
    Y = torch.from_numpy(Y)

    def index(rows: torch.Tensor) -> MixedIndex:
        made = MixedIndex(rows, rows)
        made.translated = 0.4 + 0.5 * made.native
        return made

    large, few = index(Y), index(Y[:90])
    best = max(LENGTHS, key=lambda length: large.score(0.2, length).overlap)
    ten = max(LENGTHS, key=lambda length: few.score(0.5, length).overlap)
    assert abs(few.best_length() - best) < abs(ten - best)


def test_queries_of_the_user_search_all_rows():
    T, Y = spaces()
    Q = gaussian(30, 12, 5) + 1
    index = MixedIndex(T, Y, Q)
    assert len(index) == 200
    native = torch.ones(200, dtype=torch.bool)
    expected = knn(unit(torch.from_numpy(Q)), torch.from_numpy(Y), 10)
    assert torch.equal(index.results(native).sort(1).values, expected.sort(1).values)
    assert index.shares_found(native).shape == (30,)


@pytest.mark.parametrize(
    ("T", "Y", "Q", "message"),
    [
        (gaussian(30, 4), gaussian(30, 5), None, "`translated` and `native` must have the same shape"),
        (gaussian(19, 4), gaussian(19, 4), None, r"at least 20 rows; got \(19, 4\) and \(19, 4\)"),
        (gaussian(30, 4), gaussian(30, 4), gaussian(30, 5), "`queries` must have 4 dimensions and at least 20 rows"),
        (gaussian(30, 4), gaussian(30, 4), gaussian(19, 4), r"at least 20 rows; got \(19, 4\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(T, Y, Q, message):
    with pytest.raises(InputError, match=message):
        MixedIndex(T, Y, Q)


# --- how the rows are stored ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [1, 8])
@pytest.mark.parametrize("length", [0.8, 1.0, 1.15])
def test_with_one_more_coordinate_cosine_and_l2_rank_as_the_inner_product_does(length, extra):
    T, Y = spaces(60)
    Q = gaussian(20, 12, 4)
    placement = Placement(length, extra)
    rows = np.concatenate([placement.translated(T), placement.native(5 * Y)]).astype(np.float64)
    queries = placement.queries(Q).astype(np.float64)
    assert rows.shape[1] == queries.shape[1] == 12 + extra
    product = queries[:, :12] @ np.concatenate([length * T, Y]).T.astype(np.float64)
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ).T
    l2 = -np.linalg.norm(queries[:, None] - rows[None], axis=2)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.full(120, max(1.0, length)), rel=1e-5)
    for similar in (cosine, l2):
        assert np.array_equal(np.argsort(-similar, axis=1), np.argsort(-product, axis=1))


def test_without_a_coordinate_only_translated_rows_change():
    T, Y = spaces(30)
    assert np.array_equal(Placement().translated(T), T)
    np.testing.assert_allclose(np.linalg.norm(Placement(0.9).translated(T), axis=1), 0.9, rtol=1e-5)
    np.testing.assert_allclose(Placement(0.9).native(7 * Y), Y, rtol=1e-5)
    np.testing.assert_allclose(Placement(0.9).queries(7 * Y), Y, rtol=1e-5)


def test_a_row_without_a_translation_stays_without_one():
    rows = np.full((2, 4), np.nan, np.float32)
    assert np.isnan(Placement(0.9, 1).translated(rows)).all()


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan"), float("inf")])
def test_a_length_that_is_not_positive_is_refused(length):
    with pytest.raises(InputError, match="`length` must be a positive number; got"):
        Placement(length)
