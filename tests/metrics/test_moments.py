from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from repstitch.errors import InputError
from repstitch.metrics import moments as module
from repstitch.metrics.moments import Moments, moments


def expected(X, Y) -> dict[str, np.ndarray]:
    """Return the means and covariances, computed by NumPy in float64."""
    X, Y = np.asarray(X, dtype=np.float64), np.asarray(Y, dtype=np.float64)
    u, v = X - X.mean(0), Y - Y.mean(0)
    return {
        "x_mean": X.mean(0),
        "y_mean": Y.mean(0),
        "cov_xx": u.T @ u / len(X),
        "cov_xy": u.T @ v / len(X),
        "cov_yy": v.T @ v / len(X),
    }


def assert_equal(actual: Moments, whole: dict[str, np.ndarray], tolerance: float = 1e-6):
    """Check every mean and covariance to within `tolerance` of its largest entry."""
    for name, value in whole.items():
        np.testing.assert_allclose(getattr(actual, name).numpy(), value, atol=tolerance * np.abs(value).max(), rtol=0)


def as_numbers(m: Moments) -> dict[str, np.ndarray]:
    return {name: getattr(m, name).numpy() for name in ("x_mean", "y_mean", "cov_xx", "cov_xy", "cov_yy")}


def data(n: int = 500, d_source: int = 6, d_target: int = 4, offset: float = 0.0, seed: int = 0):
    """Return correlated rows with means of size `offset` and columns of different spread."""
    X = gaussian(n, d_source, seed) * np.linspace(0.5, 2, d_source, dtype="float32") + np.float32(offset)
    Y = X[:, :d_target] * 0.5 + gaussian(n, d_target, seed + 1) - np.float32(offset)
    return X.astype("float32"), Y.astype("float32")


def test_means_and_covariances_are_those_of_numpy_in_float64():
    X, Y = data()
    m = moments((X, Y))
    assert m.n == 500
    assert_equal(m, expected(X, Y))
    assert {getattr(m, name).dtype for name in ("x_sum", "y_sum", "xx", "xy", "yy")} == {torch.float64}


def test_a_wide_matrix_is_summed_completely_in_blocks_of_columns():
    X, Y = data(300, 600, 530)
    assert_equal(moments((X, Y)), expected(X, Y))


def test_a_mean_far_from_zero_does_not_make_the_covariance_inaccurate():
    X, Y = data(2000, offset=1e4)
    whole = expected(X, Y)
    assert_equal(moments((X, Y)), whole, 1e-5)
    naive = X.T @ X / np.float32(2000) - np.outer(X.mean(0), X.mean(0))
    assert np.abs(naive - whole["cov_xx"]).max() > 1  # the error of float32 sums about the origin


@pytest.mark.parametrize("sizes", [(500,), (1, 499), (250, 250), (7, 0, 93, 400), (100,) * 5])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_a_stream_equal_those_of_all_rows(sizes, offset):
    X, Y = data(offset=offset)
    edges = np.cumsum((0, *sizes))
    stream = ((X[a:b], Y[a:b]) for a, b in pairwise(edges))
    streamed = moments(stream)
    assert streamed.n == 500
    assert_equal(streamed, expected(X, Y), 1e-5)


def test_a_first_batch_far_from_all_others_costs_no_precision():
    X, Y = data(2000, offset=1e4)
    X[0], Y[0] = 0, 0
    assert_equal(moments([(X[:1], Y[:1]), (X[1:], Y[1:])]), expected(X, Y), 1e-6)


def test_batches_of_falling_size_do_not_see_the_rows_of_the_batch_before():
    X, Y = data(300)
    assert_equal(moments([(X[:200], Y[:200]), (X[200:210], Y[200:210]), (X[210:], Y[210:])]), expected(X, Y))


def test_a_batch_above_the_row_limit_is_summed_in_pieces(monkeypatch):
    X, Y = data()
    monkeypatch.setattr(module, "BATCH_ROWS", 64)
    assert_equal(moments((X, Y)), expected(X, Y))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_merged_parts_equal_the_whole_in_any_order_and_partition(sizes, random):
    X, Y = data(sum(sizes), offset=100.0)
    edges = np.cumsum((0, *sizes))
    parts = [moments((X[a:b], Y[a:b])) for a, b in pairwise(edges)]
    random.shuffle(parts)
    while len(parts) > 1:
        parts.append(parts.pop(random.randrange(len(parts))) + parts.pop(random.randrange(len(parts))))
    assert parts[0].n == len(X)
    assert_equal(parts[0], expected(X, Y), 1e-5)


def test_addition_does_not_change_its_operands():
    a, b = moments(data(seed=1)), moments(data(seed=2))
    before = as_numbers(a), as_numbers(b)
    assert (a + b).n == 1000
    for kept, part in zip(before, (a, b), strict=True):
        for name, value in kept.items():
            np.testing.assert_array_equal(getattr(part, name), value)


def test_about_moves_the_origin_and_nothing_else():
    m = moments(data(offset=10.0))
    moved = m.about(torch.zeros(6, dtype=torch.float64), torch.full((4,), 3.0, dtype=torch.float64))
    assert_equal(moved, as_numbers(m), 1e-10)
    assert not moved.x_origin.any()
    assert_equal(moved.about(m.x_origin, m.y_origin), as_numbers(m), 1e-10)


def test_about_the_origin_gives_the_raw_sums():
    X, Y = data(offset=2.0)
    raw = moments((X, Y)).about(torch.zeros(6, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    X, Y = X.astype("float64"), Y.astype("float64")
    for name, value in {"x_sum": X.sum(0), "xx": X.T @ X, "xy": X.T @ Y, "yy": Y.T @ Y}.items():
        np.testing.assert_allclose(getattr(raw, name), value, rtol=1e-5, atol=1e-3)


def test_numpy_and_torch_give_the_same():
    X, Y = data()
    from_numpy = moments((X, Y))
    for x, y in ((torch.from_numpy(X), torch.from_numpy(Y)), (X, torch.from_numpy(Y)), (X.astype("float64"), Y)):
        assert_equal(moments((x, y)), as_numbers(from_numpy), 1e-12)


def test_float16_rows_are_summed_in_float32():
    X, Y = data()
    X, Y = X.astype("float16"), Y.astype("float16")
    assert_equal(moments((X, Y)), expected(X, Y))
    assert_equal(moments((torch.from_numpy(X), torch.from_numpy(Y))), expected(X, Y))


def test_one_pair_has_its_own_mean_and_zero_covariance():
    m = moments((np.ones((1, 3)), np.zeros((1, 2))))
    assert (m.n, m.x_mean.tolist(), m.cov_xx.abs().max().item()) == (1, [1, 1, 1], 0)


def test_without_yy_everything_else_is_the_same():
    X, Y = data()
    m = moments((X, Y), yy=False)
    assert m.yy is None
    kept = expected(X, Y)
    del kept["cov_yy"]
    assert_equal(m, kept)
    assert_equal(m + m, kept)
    assert_equal(m.about(m.x_origin + 1, m.y_origin), kept)
    with pytest.raises(InputError, match="computed without `yy`; compute them again with `yy=True`"):
        _ = m.cov_yy


def test_moments_of_different_spaces_cannot_be_added():
    m = moments(data())
    with pytest.raises(
        InputError, match=r"Only moments of the same two spaces can be added; got \(6, 4\) and \(5, 4\)"
    ):
        _ = m + moments(data(d_source=5))
    with pytest.raises(InputError, match="one without `yy`"):
        _ = m + moments(data(), yy=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("row", [0, 120, 499])
def test_rows_that_are_not_finite_are_refused_in_every_batch(bad, side, row):
    sides = data()
    sides[side][row, -1] = bad
    stream = [(sides[0][at : at + 100], sides[1][at : at + 100]) for at in range(0, 500, 100)]
    with pytest.raises(InputError, match="must be finite; they contain NaN or Inf"):
        moments(stream)


def test_rows_too_large_to_square_are_refused():
    X, Y = data()
    with pytest.raises(InputError, match="The squares of the pairs must fit float32"):
        moments((X * np.float32(1e21), Y))
    with pytest.raises(InputError, match="The squares of the pairs must fit float32"):
        moments((X, Y * np.float32(1e21)))


def test_batches_whose_widths_change_are_refused():
    stream: Any = [data(), data(d_source=5)]
    with pytest.raises(
        InputError, match=r"All batches must have the numbers of columns of the first, \(6, 4\); got \(5, 4\)"
    ):
        moments(stream)


@pytest.mark.parametrize(("x", "y"), [((5, 3), (4, 2)), ((5,), (5, 2)), ((5, 3), (5,)), ((2, 5, 3), (2, 5, 3))])
def test_rows_that_do_not_match_are_refused(x, y):
    with pytest.raises(InputError, match="`X` and `Y` must be matrices with the same number of rows"):
        moments((np.ones(x), np.ones(y)))


@pytest.mark.parametrize("none", [[], [(np.ones((0, 3)), np.ones((0, 2)))]])
def test_no_pairs_are_refused(none):
    with pytest.raises(InputError, match="at least one pair of rows; got none"):
        moments(none)


@pytest.mark.parametrize("batch_rows", [16_384, 7])
def test_a_whole_weight_counts_as_that_many_equal_pairs(batch_rows, monkeypatch):
    monkeypatch.setattr(module, "BATCH_ROWS", batch_rows)
    X, Y = data(60)
    counts = 1 + np.arange(60) % 4
    weighted, repeated = moments((X, Y, counts)), moments((X.repeat(counts, axis=0), Y.repeat(counts, axis=0)))
    assert weighted.n == repeated.n == counts.sum()
    assert_equal(weighted, as_numbers(repeated))


def test_the_factor_of_all_weights_changes_no_mean_and_no_covariance():
    X, Y = data(60)
    weights = np.linspace(0.1, 3, 60)
    m = moments((X, Y, weights))
    assert m.n == pytest.approx(weights.sum(), rel=1e-5)
    assert_equal(m.weighted(7.5), as_numbers(m))
    assert m.weighted(7.5).n_effective == pytest.approx(m.n_effective)


def test_the_effective_number_of_pairs_is_that_of_pairs_of_equal_weight():
    X, Y = data(60)
    assert moments((X, Y)).n_effective == 60
    assert moments((X, Y, np.full(60, 0.2))).n_effective == pytest.approx(60, rel=1e-5)
    only_thirty = np.where(np.arange(60) < 30, 1.0, 1e-6)
    assert moments((X, Y, only_thirty)).n_effective == pytest.approx(30, rel=1e-3)
    parts = moments((X[:20], Y[:20])), moments((X[20:], Y[20:], np.full(40, 3.0)))
    assert (parts[0] + parts[1]).n_effective == pytest.approx((20 + 120) ** 2 / (20 + 360), rel=1e-5)


@pytest.mark.parametrize("weights", [[1.0] * 59, [1.0] * 59 + [0.0], [1.0] * 59 + [-1.0], [1.0] * 59 + [np.nan]])
def test_weights_that_are_no_positive_numbers_are_refused(weights):
    with pytest.raises(InputError, match="Weights must be 60 positive numbers, one for each pair"):
        moments((*data(60), weights))
