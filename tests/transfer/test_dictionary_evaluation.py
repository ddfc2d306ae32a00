import numpy as np
import pytest
from helpers.contexts import dictionary, inverse, linear, through
from helpers.spaces import gaussian

from repstitch.transfer.dictionary_evaluation import compare_features

FORWARD = linear(6, 6, 3)
BACK = inverse(FORWARD)
NOISE = linear(6, 6, 7), linear(6, 6, 8)
SOURCE = gaussian(400, 6).astype(float)
TARGET = through(FORWARD, SOURCE)


def test_over_an_invertible_map_every_feature_is_what_it_was():
    found = compare_features(dictionary(), FORWARD, BACK, TARGET, SOURCE, NOISE)
    assert found["correlation"]["mean"] == pytest.approx(1)
    assert found["same_active"]["share"] == pytest.approx(1, abs=0.01)
    assert found["explained"]["maps_alone"] == pytest.approx(1)
    assert found["shuffled"] < 0.7
    assert found["n_test"] == 400


def test_on_rows_of_other_items_features_do_not_agree():
    found = compare_features(dictionary(), FORWARD, BACK, TARGET[::-1], SOURCE, NOISE)
    assert abs(found["correlation"]["mean"]) < 0.1
    assert found["same_active"]["share"] == pytest.approx(found["same_active"]["chance"], abs=0.03)


def test_features_that_are_hardly_ever_active_are_not_compared():
    quiet = dictionary(b_enc=np.where(np.arange(10) < 4, -99.0, 0.0))
    found = compare_features(quiet, FORWARD, BACK, TARGET, SOURCE, NOISE)
    live = ((quiet.encode(SOURCE) > 0).sum(0) >= 5).sum()
    assert (found["compared"], found["features"]) == (live, 10)
    assert 0 < live <= 6
    silent = compare_features(dictionary(b_enc=np.full(10, -99.0)), FORWARD, BACK, TARGET, SOURCE, NOISE)
    assert silent["correlation"] is None
    assert silent["shuffled"] is None


def test_a_perfect_dictionary_explains_all_and_a_carried_one_as_much_as_the_maps():
    exact = dictionary(
        W_enc=np.hstack([np.eye(6), -np.eye(6)]), b_enc=np.zeros(12), b_dec=np.zeros(6),
        W_dec=np.vstack([np.eye(6), -np.eye(6)]),
    )  # fmt: skip
    found = compare_features(exact, FORWARD, BACK, TARGET, SOURCE, NOISE)
    assert found["explained"]["source"] == pytest.approx(1)
    assert found["explained"]["target"] == pytest.approx(1)
    lossy = linear(6, 6, 5)
    found = compare_features(exact, FORWARD, lossy, TARGET, SOURCE, NOISE)
    assert found["explained"]["target"] == pytest.approx(found["explained"]["maps_alone"])
