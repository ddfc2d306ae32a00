import numpy as np
import pytest
import torch
from helpers.spaces import cone, embeddings, gaussian, names

from repstitch.embeddings import fingerprints
from repstitch.embeddings.cells import directions
from repstitch.embeddings.fingerprints import PairKeys, id_fingerprints, repeated_rows
from repstitch.embeddings.pairs import pair
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError


def test_pairs_without_ids_get_ids_that_depend_on_their_values_only():
    a, b = embeddings(40, 4, ids=None, dtype="float16"), embeddings(40, 4, ids=None, seed=1)
    first = pair(a, b)
    wide = pair(Embeddings(a.vectors.astype("float32"), a.space), b)
    moved = pair(a.take(np.arange(39, -1, -1)), b.take(np.arange(39, -1, -1)))
    assert list(first.ids) == list(wide.ids) == list(moved.ids)[::-1]
    assert list(id_fingerprints(first.ids)) == list(id_fingerprints(moved.ids))[::-1]


def test_fingerprints_are_distinct_and_reproducible():
    ids = names(4000)
    assert len(set(id_fingerprints(ids))) == 4000
    assert id_fingerprints(ids).dtype == np.int64
    assert list(id_fingerprints(ids[[7, 3]])) == list(id_fingerprints(ids)[[7, 3]])


def test_a_row_is_a_repeat_if_it_is_equal_in_every_array():
    X, Y = gaussian(6, 3), gaussian(6, 2, 1)
    X[[2, 4]], Y[4] = X[1], Y[1]
    assert list(repeated_rows(X, Y)) == [False, False, False, False, True, False]
    assert list(repeated_rows(X)) == [False, False, True, False, True, False]
    assert not repeated_rows(np.zeros((0, 3))).any()


# --- rows in another form ---------------------------------------------------------------------------------------------


def bfloat16(X: np.ndarray) -> np.ndarray:
    return torch.from_numpy(X).bfloat16().float().numpy()


def float16(X: np.ndarray) -> np.ndarray:
    return X.astype(np.float16).astype(np.float32)


def one_large(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return rows with one coordinate that is much larger than the others, as some encoders have it."""
    return gaussian(n, d, seed) / np.float32(d**0.5) + 3 * np.eye(1, d, 2, dtype=np.float32)


FORMS = {
    "unit": directions,
    "doubled": lambda X: 2 * X,
    "small": lambda X: X * np.float32(1e-20),
    "large": lambda X: X * np.float32(3.7e20),
    "float16": float16,
    "unit, float16": lambda X: float16(directions(X)),
    "bfloat16": bfloat16,
    "unit, bfloat16": lambda X: bfloat16(directions(X)),
    "scaled, bfloat16": lambda X: bfloat16(X * np.float32(0.37)),
    "bfloat16 twice": lambda X: bfloat16(directions(bfloat16(X))),
}
SPACES = {
    "gaussian": lambda n, seed: (gaussian(n, 64, seed), gaussian(n, 48, seed + 1)),
    "six and four dimensions": lambda n, seed: (gaussian(n, 6, seed), gaussian(n, 4, seed + 1)),
    "narrow cones": lambda n, seed: (cone(n, 128, 0.3, seed), cone(n, 96, 0.1, seed + 1)),
    "one large coordinate": lambda n, seed: (one_large(n, 128, seed), one_large(n, 64, seed + 1)),
}


@pytest.fixture(scope="module", params=SPACES)
def space(request):
    """Return a function that makes pairs, and the keys of 10,000 of them."""
    make = SPACES[request.param]
    return make, PairKeys.of(*make(10_000, 0))


@pytest.mark.parametrize("form", FORMS)
def test_pairs_are_recognised_after_scaling_and_rounding(space, form):
    make, keys = space
    assert keys.precision == "bfloat16"
    assert keys.recognise(*map(FORMS[form], make(10_000, 0))).mean() >= 0.999


def test_pairs_are_recognised_if_only_the_training_rows_or_only_one_side_were_rounded(space):
    make, keys = space
    X, Y = make(10_000, 0)
    assert PairKeys.of(bfloat16(X), bfloat16(Y)).recognise(X, 5 * Y).mean() >= 0.999
    assert keys.recognise(X, bfloat16(Y)).mean() >= 0.999


def test_at_most_one_in_100_000_unrelated_pairs_of_the_same_spaces_is_recognised(space):
    make, keys = space
    assert keys.recognise(*make(100_000, 10)).sum() <= 1


def test_a_row_with_another_partner_is_not_recognised():
    X, Y = SPACES["gaussian"](10_000, 0)
    keys = PairKeys.of(X, Y)
    assert not keys.recognise(X, np.roll(Y, 1, axis=0)).any()
    assert not keys.recognise(np.roll(X, 1, axis=0), Y).any()


def test_a_pair_has_two_keys_of_eight_bytes(space):
    _, keys = space
    assert keys.keys.nbytes <= 16 * 10_000
    assert (np.diff(keys.keys) > 0).all()


def test_no_vector_can_be_rebuilt_from_its_keys():
    X, Y = SPACES["gaussian"](4000, 0)
    octets = np.stack([PairKeys.of(X[i : i + 1], Y[i : i + 1]).keys for i in range(4000)]).view(np.uint8)
    bits = np.column_stack([np.unpackbits(octets, axis=1), np.ones(4000)]).astype(np.float64)
    for rows in (X, Y):
        fitted = bits[3000:] @ np.linalg.lstsq(bits[:3000], rows[:3000], rcond=None)[0]
        assert np.square(rows[3000:] - fitted).sum() > np.square(rows[3000:]).sum()


def test_the_keys_of_a_nearby_row_are_as_different_as_those_of_any_row():
    X, Y = SPACES["gaussian"](2000, 0)
    keys, nearby = (fingerprints._keys(rows, Y, 2**-4) for rows in (X, X + np.float32(0.1) * gaussian(2000, 64, 9)))
    assert np.unpackbits((keys ^ nearby).view(np.uint8)).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (lambda n, seed: (gaussian(n, 2, seed), gaussian(n, 2, seed + 1)), "float32"),
        (lambda n, seed: (gaussian(n, 3, seed), gaussian(n, 2, seed + 1)), "float16"),
        (lambda n, seed: (cone(n, 64, 0.02, seed), cone(n, 48, 0.02, seed + 1)), "float16"),
    ],
)
def test_where_other_rows_are_as_near_as_rounded_copies_only_finer_copies_are_recognised(make, precision):
    X, Y = make(10_000, 0)
    keys = PairKeys.of(X, Y)
    assert keys.precision == precision
    assert keys.recognise(directions(X), 2 * Y).mean() >= 0.999
    if precision == "float16":
        assert keys.recognise(float16(directions(X)), float16(directions(Y))).mean() >= 0.999
    assert not keys.recognise(*make(20_000, 10)).any()


def test_keys_stay_the_same_in_every_release():
    """Stitchers store them."""
    X, Y = np.arange(1, 7, dtype=np.float32).reshape(2, 3), np.array([[1, -2], [4, 0.5]], dtype=np.float32)
    expected = [-1043434052580610308, 1500321206522101296, 5050871625777970371, 7654163048406068174]
    np.testing.assert_array_equal(PairKeys.of(X, Y).keys, expected)
    assert PairKeys.of(X[:0], Y[:0]).keys.shape == (0,)


@pytest.mark.parametrize(
    ("keys", "width", "message"),
    [
        (np.zeros((1, 2), np.int64), 0.1, "`keys` must be an int64 array"),
        (np.zeros(2), 0.1, "`keys` must be an int64 array"),
        (np.zeros(2, np.int64), 0.0, "`width` must be above 0; got 0.0"),
        (np.zeros(2, np.int64), float("nan"), "`width` must be above 0; got nan"),
    ],
)
def test_keys_of_another_form_are_refused(keys, width, message):
    with pytest.raises(InputError, match=message):
        PairKeys(keys, width)
