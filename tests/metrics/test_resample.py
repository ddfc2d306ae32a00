import numpy as np
import pytest

from repstitch.metrics import resample
from repstitch.metrics.resample import interval, resampled_means


def test_the_spread_of_resampled_means_is_the_standard_error():
    values = np.random.default_rng(0).standard_normal((400, 1))
    drawn = resampled_means(values, 2000)
    assert drawn.std() == pytest.approx(values.std() / 20, rel=0.08)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.01)


def test_all_columns_use_the_same_resampled_rows():
    a = np.random.default_rng(0).standard_normal(50)
    drawn = resampled_means(np.column_stack([a, a + 1, 2 * a]))
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 1)
    np.testing.assert_allclose(drawn[:, 2], 2 * drawn[:, 0], atol=1e-12)


def test_draws_do_not_depend_on_the_chunk_size(monkeypatch):
    values = np.arange(30.0)[:, None]
    whole = resampled_means(values, 20)
    monkeypatch.setattr(resample, "CELLS", 90)
    np.testing.assert_array_equal(resampled_means(values, 20), whole)


def test_an_interval_covers_the_true_mean_about_as_often_as_stated():
    random = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = interval(resampled_means(random.standard_normal((80, 1)), 200, seed)[:, 0])
        hits += low <= 0 <= high
    assert 180 <= hits <= 200


def test_equal_draws_of_a_score_of_n_rows_leave_room_for_three_of_them():
    assert interval(np.ones(50), n=60) == pytest.approx([0.95, 1])
    assert interval(np.ones(50), n=60, bounds=(-1, 1)) == pytest.approx([0.9, 1])
    assert interval(np.zeros(50), n=60) == pytest.approx([0, 0.05])
    assert interval(np.full(50, 0.5), n=2) == [0, 1]
    assert interval(np.ones(50)) == [1, 1]


def test_nan_draws_are_left_out_of_an_interval():
    assert interval(np.array([1.0, np.nan, 1.0])) == [1.0, 1.0]
