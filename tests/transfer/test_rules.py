"""The rules by which directions, probes and dictionaries are carried, each proven exactly."""

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


def test_a_carried_direction_is_the_difference_of_two_carried_points():
    a, b = gaussian(2, 6).astype(float)
    carried = carry(Directions((a - b)[None]), FORWARD)
    np.testing.assert_allclose(carried.values[0], through(FORWARD, a) - through(FORWARD, b), atol=1e-12)


def test_a_carried_direction_keeps_the_length_that_the_map_gives_it():
    given = directions()
    np.testing.assert_allclose(carry(given, FORWARD).values, given.values @ FORWARD.weight)


def test_a_direction_gets_its_own_length_back_only_when_asked():
    given = directions()
    carried, plain = carry(given, FORWARD, renormalise=True), carry(given, FORWARD)
    np.testing.assert_allclose(np.linalg.norm(carried.values, axis=1), np.linalg.norm(given.values, axis=1))
    cosines = (carried.values * plain.values).sum(1)
    np.testing.assert_allclose(cosines, np.linalg.norm(carried.values, axis=1) * np.linalg.norm(plain.values, axis=1))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_pulled_back_probe_says_of_every_row_what_the_probe_says_of_its_image(k):
    rows = 10 * gaussian(500, 4)
    given = probe(6, k)
    carried = carry(given, backward=BACKWARD)
    np.testing.assert_allclose(carried.scores(rows), given.scores(through(BACKWARD, rows)), atol=1e-5)
    assert carried.classes == given.classes


def test_a_probe_carried_by_an_invertible_map_and_back_is_the_same_probe():
    there, given = linear(6, 6, 3), probe()
    again = carry(carry(given, backward=there), backward=inverse(there))
    np.testing.assert_allclose(again.coef, given.coef, atol=1e-9)
    np.testing.assert_allclose(again.intercept, given.intercept, atol=1e-9)


def test_directions_and_a_dictionary_carried_there_and_back_are_the_same():
    there = linear(6, 6, 3)
    back = inverse(there)
    np.testing.assert_allclose(carry(carry(directions(), there), back).values, directions().values, atol=1e-9)
    given = dictionary()
    again = carry(carry(given, there, back), back, there)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_allclose(getattr(again, name), getattr(given, name), atol=1e-8)


def test_what_a_direction_adds_to_a_probe_is_the_same_on_both_sides():
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
def test_a_carried_dictionary_encodes_what_the_backward_map_gives(activation, subtract):
    given = dictionary(subtract=subtract, activation=activation, **ACTIVATIONS[activation])
    carried = carry(given, FORWARD, BACKWARD)
    rows = gaussian(200, 4, 5)
    features = given.encode(through(BACKWARD, rows))
    assert 0 < (features != 0).mean() <= 1
    np.testing.assert_allclose(carried.encode(rows), features, atol=1e-9)


@pytest.mark.parametrize("subtract", [True, False])
def test_a_carried_dictionary_decodes_to_the_image_of_what_it_decoded_to(subtract):
    given = dictionary(subtract=subtract)
    features = np.abs(gaussian(50, 10, 6)).astype(float)
    carried = carry(given, FORWARD, BACKWARD)
    np.testing.assert_allclose(carried.decode(features), through(FORWARD, given.decode(features)), atol=1e-9)
    assert carried.subtract_b_dec is subtract


def test_only_an_orthogonal_map_may_stand_for_its_own_inverse_transposed():
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
        (directions(), {"backward": BACKWARD}, "`forward` is needed to carry directions: a map from the source"),
        (probe(), {"forward": FORWARD}, "`backward` is needed to carry a probe: a map from the target"),
        (dictionary(), {"forward": FORWARD}, "`backward` is needed to carry a dictionary"),
        (directions(5), {"forward": FORWARD}, "has 5 dimensions, but the source space of `forward` has 6"),
        (directions(4), {"forward": FORWARD}, "may be swapped"),
        (probe(4), {"backward": BACKWARD}, "may be swapped"),
        (dictionary(), {"forward": FORWARD, "backward": linear(5, 6)}, "`backward` must take the 4 dimensions"),
        (probe(), {"backward": BACKWARD, "renormalise": True}, "`renormalise` applies only to directions"),
    ],
)
def test_what_cannot_be_carried_is_refused(thing, maps, message):
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
        (lambda: dictionary(activation="jumprelu"), "`threshold` if and only if"),
        (
            lambda: dictionary(activation="topk", k=11),
            r"`k` of a topk dictionary must be between 1 and its number of features \(10\)",
        ),
    ],
)
def test_what_is_no_thing_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_probe_of_one_row_says_two_classes():
    one = Probe(np.array([[1.0, 0.0]]), np.array([-1.0]), ("no", "yes"))
    scores = one.class_scores(np.array([[3.0, 0.0], [0.0, 5.0]]))
    assert [("no", "yes")[k] for k in scores.argmax(1)] == ["yes", "no"]
    assert isinstance(carry(dictionary(), FORWARD, BACKWARD), Dictionary)


def test_what_can_be_carried_is_one_line_in_a_console():
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
