import numpy as np
import pytest
import torch
from helpers.spaces import cone, embeddings, gaussian, names

from repstitch.embeddings import cells as cell_index
from repstitch.embeddings import fingerprints
from repstitch.embeddings.cells import directions
from repstitch.embeddings.fingerprints import have_keys, id_fingerprints, pair_keys, repeated_rows
from repstitch.embeddings.pairs import pair
from repstitch.embeddings.rows import Embeddings


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
    return make, pair_keys(*make(10_000, 0))


@pytest.mark.parametrize("form", FORMS)
def test_pairs_are_recognised_after_scaling_and_rounding(space, form):
    make, keys = space
    assert have_keys(keys, *map(FORMS[form], make(10_000, 0))).mean() >= 0.999


def test_pairs_of_cones_with_a_mean_cosine_of_997_thousandths_are_recognised_after_rounding():
    X, Y = cone(10_000, 64, 0.05), cone(10_000, 48, 0.05, seed=1)
    assert have_keys(pair_keys(X, Y), bfloat16(X), bfloat16(Y)).mean() >= 0.999


def families(n: int, d: int, spread: float, count: int, seed: int = 0) -> np.ndarray:
    """Return rows in this number of families; the rows of one are alike up to the spread."""
    return gaussian(count, d, seed)[np.arange(n) % count] + np.float32(spread) * gaussian(n, d, seed + 1)


CROWDED = {
    "cone with a mean cosine of .9991": lambda d, seed: cone(10_000, d, 0.03, seed),
    "cone with a mean cosine of .9996": lambda d, seed: cone(10_000, d, 0.02, seed),
    "30 families of 300 variants with a cosine of .9999": lambda d, seed: families(9000, d, 0.01, 30, seed),
}


@pytest.mark.parametrize("name", CROWDED)
def test_pairs_are_recognised_however_many_are_in_their_cell(name):
    X, Y = CROWDED[name](256, 0), CROWDED[name](200, 3)
    keys, X, Y = pair_keys(X, Y), X[::8], Y[::8]
    assert have_keys(keys, 2 * X, 2 * Y).all()
    assert have_keys(keys, bfloat16(X), bfloat16(Y)).mean() >= 0.999


def test_unrelated_pairs_of_the_same_cells_are_not_recognised():
    X, Y = families(20_000, 256, 0.02, 10), families(20_000, 200, 0.02, 10, seed=3)
    assert have_keys(pair_keys(X[:10_000], Y[:10_000]), X[10_000:], Y[10_000:]).sum() <= 1


def test_pairs_are_recognised_if_another_cell_has_the_same_hash(monkeypatch):
    monkeypatch.setattr(fingerprints, "cell_hashes", lambda cell: np.zeros(len(cell), dtype=np.uint32))
    monkeypatch.setattr(cell_index, "cell_hashes", lambda cell: np.zeros(len(cell), dtype=np.uint32))
    X, Y = gaussian(300, 64), gaussian(300, 48, 1)
    assert have_keys(pair_keys(X[:200], Y[:200]), X, Y).tolist() == [True] * 200 + [False] * 100


def test_pairs_are_recognised_if_only_the_training_rows_or_only_one_side_were_rounded(space):
    make, keys = space
    X, Y = make(10_000, 0)
    assert have_keys(pair_keys(bfloat16(X), bfloat16(Y)), X, 5 * Y).mean() >= 0.999
    assert have_keys(keys, X, bfloat16(Y)).mean() >= 0.999


def test_at_most_one_in_100_000_unrelated_pairs_of_the_same_spaces_is_recognised(space):
    make, keys = space
    assert have_keys(keys, *make(100_000, 10)).sum() <= 1


@pytest.mark.parametrize(("change", "most"), [(0.01, 0.01), (0.02, 0.0)])
def test_hardly_any_row_that_differs_by_more_than_rounding_is_recognised(change, most):
    X, Y = SPACES["gaussian"](10_000, 0)
    keys = pair_keys(X, Y)
    assert have_keys(keys, X + np.float32(change) * gaussian(10_000, 64, 7), Y).mean() <= most
    assert have_keys(keys, X, Y + np.float32(change) * gaussian(10_000, 48, 8)).mean() <= most


def test_in_few_dimensions_only_rows_within_the_error_of_rounding_are_recognised():
    """Rows on a circle and a sphere, whose neighbours are so near, and the rows of a map of them."""
    for d in (2, 3):
        Z = directions(gaussian(6000, d))
        X, Y = Z, directions(Z @ gaussian(d, 384, 1))
        recognised = have_keys(pair_keys(X[:5000], Y[:5000]), X[5000:], Y[5000:])
        rows = np.concatenate([X, Y], axis=1)
        squares = 4 - 2 * rows[5000:][recognised] @ rows[:5000].T  # of unit rows on both sides
        assert recognised.any()
        assert squares.min(axis=1).max() <= 0.007**2


def test_a_row_with_another_partner_is_not_recognised():
    X, Y = SPACES["gaussian"](10_000, 0)
    keys = pair_keys(X, Y)
    assert not have_keys(keys, X, np.roll(Y, 1, axis=0)).any()
    assert not have_keys(keys, np.roll(X, 1, axis=0), Y).any()


def test_a_pair_has_a_key_of_16_bytes_and_equal_pairs_have_one():
    X, Y = SPACES["gaussian"](50, 0)
    keys = pair_keys(np.concatenate([X, 2 * X]), np.concatenate([Y, Y]))
    assert (keys.dtype, keys.shape) == (np.uint8, (50, 16))
    np.testing.assert_array_equal(keys, pair_keys(X[::-1], Y[::-1]))
    assert pair_keys(X[:0], Y[:0]).shape == (0, 16)
    assert not have_keys(keys[:0], X, Y).any()


def each_key(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Return the key of each pair, in their order."""
    return np.concatenate([pair_keys(X[i : i + 1], Y[i : i + 1]) for i in range(len(X))])


def test_no_vector_can_be_rebuilt_from_its_key():
    X, Y = SPACES["gaussian"](4000, 0)
    bits = np.column_stack([np.unpackbits(each_key(X, Y), axis=1), np.ones(4000)]).astype(np.float64)
    for rows in (X, Y):
        fitted = bits[3000:] @ np.linalg.lstsq(bits[:3000], rows[:3000], rcond=None)[0]
        assert np.square(rows[3000:] - fitted).sum() > np.square(rows[3000:]).sum()


def test_the_key_of_a_nearby_row_is_as_different_as_that_of_any_row():
    X, Y = SPACES["gaussian"](2000, 0)
    nearby = X + np.float32(0.1) * gaussian(2000, 64, 9)
    assert np.unpackbits(np.bitwise_xor(each_key(X, Y), each_key(nearby, Y))).mean() == pytest.approx(0.5, abs=0.01)


def test_keys_stay_the_same_in_every_release():
    """Stitchers store them."""
    X, Y = np.arange(1, 4, dtype=np.float32).reshape(1, 3), np.array([[1, -2]], dtype=np.float32)
    assert pair_keys(X, Y).tobytes().hex() == "a0e403492422ce713e8537f3e85f8c39"
