from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.contexts import dictionary, inverse, linear, through
from helpers.spaces import gaussian

from repstitch.transfer import dictionary_evaluation

compare_features: Any = dictionary_evaluation.compare_features  # typed Any because parts of a proof may be None
FORWARD = linear(6, 6, 3)
BACK = inverse(FORWARD)
NOISE = linear(6, 6, 7), linear(6, 6, 8)
SOURCE = gaussian(400, 6).astype(float)
TARGET = through(FORWARD, SOURCE)


def test_over_an_invertible_map_every_feature_is_preserved():
    proof = compare_features(dictionary(), FORWARD, BACK, TARGET, SOURCE, NOISE)
    assert proof.correlation.mean == pytest.approx(1)
    assert proof.same_active.share == pytest.approx(1, abs=0.01)
    assert proof.explained.maps_alone == pytest.approx(1)
    assert proof.shuffled < 0.7
    assert proof.n_test == 400


def test_on_rows_of_other_items_features_do_not_agree():
    proof = compare_features(dictionary(), FORWARD, BACK, TARGET[::-1], SOURCE, NOISE)
    assert abs(proof.correlation.mean) < 0.1
    assert proof.same_active.share == pytest.approx(proof.same_active.chance, abs=0.03)


def test_the_chance_level_uses_how_often_a_feature_is_active_on_each_side():
    louder = replace(BACK, map=replace(BACK.map, bias=BACK.map.bias + 2 * torch.from_numpy(dictionary().W_enc[:, 0])))
    proof = compare_features(dictionary(), FORWARD, louder, TARGET[::-1], SOURCE, NOISE)
    evenly = compare_features(dictionary(), FORWARD, BACK, TARGET[::-1], SOURCE, NOISE)
    assert abs(proof.same_active.share - evenly.same_active.share) > 0.03
    assert proof.same_active.share == pytest.approx(proof.same_active.chance, abs=0.02)


def test_rarely_active_features_are_not_compared():
    quiet = dictionary(b_enc=np.where(np.arange(10) < 4, -99.0, 0.0))
    proof = compare_features(quiet, FORWARD, BACK, TARGET, SOURCE, NOISE)
    live = ((quiet.encode(SOURCE) > 0).sum(0) >= 5).sum()
    assert (proof.compared, proof.features) == (live, 10)
    assert 0 < live <= 6
    silent = compare_features(dictionary(b_enc=np.full(10, -99.0)), FORWARD, BACK, TARGET, SOURCE, NOISE)
    assert silent.correlation is None
    assert silent.shuffled is None


def test_a_perfect_dictionary_explains_everything_and_a_transferred_one_as_much_as_the_maps():
    exact = dictionary(
        W_enc=np.hstack([np.eye(6), -np.eye(6)]), b_enc=np.zeros(12), b_dec=np.zeros(6),
        W_dec=np.vstack([np.eye(6), -np.eye(6)]),
    )  # fmt: skip
    proof = compare_features(exact, FORWARD, BACK, TARGET, SOURCE, NOISE)
    assert proof.explained.source == pytest.approx(1)
    assert proof.explained.target == pytest.approx(1)
    lossy = linear(6, 6, 5)
    proof = compare_features(exact, FORWARD, lossy, TARGET, SOURCE, NOISE)
    assert proof.explained.target == pytest.approx(proof.explained.maps_alone)
