"""The rules by which directions, probes and dictionaries are transferred, each checked exactly."""

import numpy as np
import pytest
import torch
from helpers.contexts import dictionary, directions, inverse, linear, probe, through
from helpers.spaces import card, gaussian, rotation

from repstitch.errors import InputError
from repstitch.stitchers.maps import AffineMap
from repstitch.transfer.kinds import Dictionary, Directions, Probe
from repstitch.transfer.linear import LinearMap
from repstitch.transfer.rules import carry

FORWARD, BACKWARD = linear(6, 4, 1), linear(4, 6, 2)


def test_a_transferred_direction_is_the_difference_of_two_transferred_points():
    a, b = gaussian(2, 6).astype(float)
    carried = carry(Directions((a - b)[None]), FORWARD)
    np.testing.assert_allclose(carried.values[0], through(FORWARD, a) - through(FORWARD, b), atol=1e-12)


def test_a_transferred_direction_has_the_length_given_by_the_map():
    original = directions()
    np.testing.assert_allclose(carry(original, FORWARD).values, original.values @ FORWARD.weight)


def test_renormalise_restores_the_original_length_of_directions():
    original = directions()
    carried, plain = carry(original, FORWARD, renormalise=True), carry(original, FORWARD)
    np.testing.assert_allclose(np.linalg.norm(carried.values, axis=1), np.linalg.norm(original.values, axis=1))
    cosines = (carried.values * plain.values).sum(1)
    np.testing.assert_allclose(cosines, np.linalg.norm(carried.values, axis=1) * np.linalg.norm(plain.values, axis=1))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_transferred_probe_scores_each_row_as_the_original_scores_its_image(k):
    rows = 10 * gaussian(500, 4)
    original = probe(6, k)
    carried = carry(original, backward=BACKWARD)
    np.testing.assert_allclose(carried.scores(rows), original.scores(through(BACKWARD, rows)), atol=1e-5)
    assert carried.classes == original.classes


def test_a_probe_transferred_through_an_invertible_map_and_back_is_unchanged():
    there, original = linear(6, 6, 3), probe()
    again = carry(carry(original, backward=there), backward=inverse(there))
    np.testing.assert_allclose(again.coef, original.coef, atol=1e-9)
    np.testing.assert_allclose(again.intercept, original.intercept, atol=1e-9)


def test_directions_and_a_dictionary_transferred_there_and_back_are_unchanged():
    there = linear(6, 6, 3)
    back = inverse(there)
    np.testing.assert_allclose(carry(carry(directions(), there), back).values, directions().values, atol=1e-9)
    original = dictionary()
    again = carry(carry(original, there, back), back, there)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_allclose(getattr(again, name), getattr(original, name), atol=1e-8)


def test_the_effect_of_a_direction_on_a_probes_scores_is_the_same_on_both_sides():
    there = linear(6, 6, 3)
    v, w = directions(), probe()
    carried_v, carried_w = carry(v, there), carry(w, backward=inverse(there))
    np.testing.assert_allclose(carried_v.values @ carried_w.coef.T, v.values @ w.coef.T, atol=1e-9)


ACTIVATIONS = {
    "relu": {},
    "none": {},
    "jumprelu": {"threshold": np.abs(gaussian(1, 10, 9)[0])},
    "topk": {"k": 3},
}


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("subtract", [True, False])
def test_a_transferred_dictionary_encodes_rows_as_the_original_encodes_their_images(activation, subtract):
    original = dictionary(subtract=subtract, activation=activation, **ACTIVATIONS[activation])
    carried = carry(original, FORWARD, BACKWARD)
    rows = gaussian(200, 4, 5)
    features = original.encode(through(BACKWARD, rows))
    assert 0 < (features != 0).mean() <= 1
    np.testing.assert_allclose(carried.encode(rows), features, atol=1e-9)


@pytest.mark.parametrize("subtract", [True, False])
def test_a_transferred_dictionary_decodes_to_the_image_of_the_original_decoding(subtract):
    original = dictionary(subtract=subtract)
    features = np.abs(gaussian(50, 10, 6)).astype(float)
    carried = carry(original, FORWARD, BACKWARD)
    np.testing.assert_allclose(carried.decode(features), through(FORWARD, original.decode(features)), atol=1e-9)
    assert carried.subtract_b_dec is subtract


def test_a_probe_transfers_like_a_direction_only_under_an_orthogonal_map():
    R = torch.from_numpy(rotation(6))
    turn, back = (LinearMap(AffineMap(W, torch.zeros(6).double()), "") for W in (R, R.T.contiguous()))
    as_vector = carry(Directions(probe().coef), turn)
    np.testing.assert_allclose(carry(probe(), backward=back).coef, as_vector.values, atol=1e-12)
    bent = linear(6, 6, 3)
    wrong = carry(Directions(probe().coef), bent).values
    assert np.abs(wrong - carry(probe(), backward=inverse(bent)).coef).max() > 0.1


@pytest.mark.parametrize(
    ("thing", "maps", "message"),
    [
        (directions(), {"backward": BACKWARD}, "`forward` is needed to transfer directions: a map from the source"),
        (probe(), {"forward": FORWARD}, "`backward` is needed to transfer a probe: a map from the target"),
        (dictionary(), {"forward": FORWARD}, "`backward` is needed to transfer a dictionary"),
        (directions(5), {"forward": FORWARD}, "has 5 dimensions, but the source space of `forward` has 6"),
        (directions(4), {"forward": FORWARD}, "may be swapped"),
        (probe(4), {"backward": BACKWARD}, "may be swapped"),
        (dictionary(), {"forward": FORWARD, "backward": linear(5, 6)}, "`backward` must take the 4 dimensions"),
        (probe(), {"backward": BACKWARD, "renormalise": True}, "`renormalise` applies only to directions"),
    ],
)
def test_a_transfer_with_missing_maps_or_wrong_dimensions_is_refused(thing, maps, message):
    with pytest.raises(InputError, match=message):
        carry(thing, **maps)


def test_a_direction_that_the_map_takes_to_zero_is_refused():
    flat = LinearMap(AffineMap(torch.diag(torch.tensor([1.0, 0.0])).double(), torch.zeros(2).double()), "")
    with pytest.raises(InputError, match="The map takes direction 1 to zero"):
        carry(Directions(np.eye(2)), flat)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Directions(np.ones(3)), r"`values` must have the shape \(n, n\); got \(3,\)"),
        (lambda: Directions(np.zeros((2, 3))), "row 0 contains only zeros"),
        (lambda: Directions(np.ones((2, 3)), ("a", "a")), "`names` must be 2 different names"),
        (lambda: Directions(np.array([["a"]])), "must contain numbers"),
        (lambda: Probe(np.ones((2, 3)), np.ones(3)), r"`intercept` must have the shape \(2\)"),
        (lambda: Probe(np.full((1, 2), np.nan), np.ones(1)), "`coef` must be finite"),
        (lambda: Probe(np.ones((1, 2)), np.ones(1), ("one",)), "`classes` must be 2 different names"),
        (lambda: dictionary(W_dec=np.ones((6, 10))), r"`W_dec` must have the shape \(10, 6\)"),
        (lambda: dictionary(activation="gated"), "`activation` must be one of relu"),
        (lambda: dictionary(activation="jumprelu"), "must have a `threshold` if its `activation` is jumprelu"),
        (
            lambda: dictionary(activation="topk", k=11),
            r"`k` of a topk dictionary must be between 1 and its number of features \(10\)",
        ),
    ],
)
def test_invalid_directions_probes_and_dictionaries_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_probe_of_one_row_predicts_two_classes():
    one = Probe(np.array([[1.0, 0.0]]), np.array([-1.0]), ("no", "yes"))
    scores = one.class_scores(np.array([[3.0, 0.0], [0.0, 5.0]]))
    assert [("no", "yes")[k] for k in scores.argmax(1)] == ["yes", "no"]
    assert isinstance(carry(dictionary(), FORWARD, BACKWARD), Dictionary)


def test_the_repr_is_one_line():
    assert repr(directions()) == "Directions(3 vectors, 6 dimensions)"
    assert repr(Directions(np.eye(3), None, card("old", 3))) == "Directions(3 vectors, 3 dimensions, space='old')"
    assert repr(probe()) == "Probe(3 classes, 6 dimensions)"
    assert repr(Probe(np.ones((2, 3)), np.ones(2))) == "Probe(2 scores, 3 dimensions)"
    assert repr(dictionary()) == "Dictionary(10 features, relu, 6 dimensions)"


def test_equality_is_identity_so_that_arrays_never_raise():
    first, second = probe(), probe()
    assert first == first
    assert first != second
    assert len({first, second}) == 2


def test_a_space_of_another_dimension_is_refused():
    with pytest.raises(InputError, match="must have the 4 dimensions of space 'old'; got 3"):
        Directions(np.eye(3), None, card("old", 4))
