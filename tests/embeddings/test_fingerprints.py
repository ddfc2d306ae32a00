import numpy as np
from helpers.spaces import embeddings, gaussian, names

from repstitch.embeddings.fingerprints import id_fingerprints, repeated_rows
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
