import logging

import numpy as np
import pytest
from helpers.spaces import embeddings, names

from repstitch.embeddings.pairs import pair
from repstitch.errors import InputError


def test_rows_are_paired_by_id_in_any_order():
    a = embeddings(40, 4)
    order = np.random.default_rng(0).permutation(40)
    b = embeddings(40, 6, "new", seed=1).take(order)
    pairs = pair(a, b)
    np.testing.assert_array_equal(pairs.X, a.vectors)
    np.testing.assert_array_equal(pairs.Y, b.vectors[np.argsort(order)])
    assert (list(pairs.ids), pairs.by) == (list(names(40)), "id")
    assert (pairs.source, pairs.target) == (a.space, b.space)
    assert pairs.dropped == {"source only": 0, "target only": 0}


def test_rows_on_one_side_only_are_left_out_and_counted():
    a = embeddings(40, 4).take(slice(0, 35))
    b = embeddings(40, 6, "new", seed=1).take(np.arange(39, 9, -1))
    pairs = pair(a, b)
    assert list(pairs.ids) == [f"item{i}" for i in range(10, 35)]
    np.testing.assert_array_equal(pairs.X, embeddings(40, 4).vectors[10:35])
    np.testing.assert_array_equal(pairs.Y, embeddings(40, 6, seed=1).vectors[10:35])
    assert pairs.dropped == {"source only": 10, "target only": 5}


@pytest.mark.parametrize("with_ids", ["neither", "source", "target"])
def test_rows_are_paired_by_position_unless_both_sides_have_ids(with_ids, caplog):
    a = embeddings(40, 4, ids=names(40) if with_ids == "source" else None)
    b = embeddings(40, 6, "new", seed=1, ids=names(40) if with_ids == "target" else None)
    pairs = pair(a, b)
    assert pairs.by == "position"
    np.testing.assert_array_equal(pairs.X, a.vectors)
    np.testing.assert_array_equal(pairs.Y, b.vectors)
    if with_ids == "neither":
        assert len(set(pairs.ids)) == 40
        assert not caplog.records
    else:
        assert list(pairs.ids) == list(names(40))
        other = "target" if with_ids == "source" else "source"
        space = {"source": "old", "target": "new"}[other]
        warning = f"The {other} ({space}) has no ids, so rows are paired by position; pass `{other}_ids` to pair by id."
        assert caplog.messages == [warning]


@pytest.mark.parametrize("side", ["source", "target"])
def test_repeated_ids_are_refused_with_the_side_and_the_first_of_them(side):
    twice = embeddings(40, 4, ids=np.array(["a", "b", "b", "c", "c", *names(35)], dtype=object))
    sides = (twice, embeddings(40, 4)) if side == "source" else (embeddings(40, 4), twice)
    with pytest.raises(InputError, match=f"repeated ids in the {side}: 2 \\(first: 'b'\\)"):
        pair(*sides)


@pytest.mark.parametrize(
    ("sides", "missing"),
    [
        ((embeddings(40, 4, ids=None), embeddings(39, 4)), "`source_ids`"),
        ((embeddings(40, 4), embeddings(39, 4, ids=None)), "`target_ids`"),
        ((embeddings(40, 4, ids=None), embeddings(39, 4, ids=None)), "`source_ids` and `target_ids`"),
    ],
)
def test_different_numbers_of_rows_without_ids_are_refused_with_the_ids_to_pass(sides, missing):
    message = f"must have the same number of rows; got 40 and 39. To pair by id, pass {missing}, with one id per row."
    with pytest.raises(InputError, match=message):
        pair(*sides)


def test_sides_without_a_common_id_are_refused_with_an_example_of_each():
    with pytest.raises(InputError, match=r"No id is in both files \(source has e.g. 'item0', target 'other0'\)"):
        pair(embeddings(40, 4), embeddings(40, 4, ids=names(40, "other")))


def test_a_side_without_rows_is_refused():
    none = embeddings(40, 4).take(slice(0, 0))
    with pytest.raises(InputError, match="The source has no rows; at least 20 pairs are needed"):
        pair(none, embeddings(40, 4))
    with pytest.raises(InputError, match="The target has no rows"):
        pair(embeddings(40, 4), none)


def test_twenty_pairs_are_enough_and_nineteen_are_not():
    assert len(pair(embeddings(20, 4), embeddings(20, 4, seed=1))) == 20
    with pytest.raises(InputError, match=r"At least 20 pairs are needed; got 19. Embed more items"):
        pair(embeddings(19, 4), embeddings(40, 4, seed=1))


def broken_rows():
    """Return two sides in which five items have invalid values: NaN, an infinity or all zeros."""
    a, b = embeddings(40, 4), embeddings(40, 6, "new", seed=1)
    a.vectors[3, 1], a.vectors[4, 0], a.vectors[5] = np.nan, np.inf, 0
    b.vectors[5, 2], b.vectors[6], b.vectors[7, 1] = -np.inf, 0, np.nan
    return a, b


def test_invalid_rows_are_refused_with_their_counts():
    counts = "2 with source NaN or Inf, 1 with source all zeros, 2 with target NaN or Inf, 1 with target all zeros"
    with pytest.raises(InputError, match=f"{counts} \\(first: id 'item3'\\). Leave them out with `drop_invalid`"):
        pair(*broken_rows())


def test_drop_invalid_leaves_out_invalid_rows_and_counts_them(caplog):
    a, b = broken_rows()
    with caplog.at_level(logging.WARNING):
        pairs = pair(a, b, drop_invalid=True)
    assert list(pairs.ids) == [f"item{i}" for i in range(40) if i not in (3, 4, 5, 6, 7)]
    assert np.isfinite(pairs.X).all()
    assert np.isfinite(pairs.Y).all()
    assert pairs.dropped == {
        "source only": 0,
        "target only": 0,
        "source NaN or Inf": 2,
        "source all zeros": 1,
        "target NaN or Inf": 2,
        "target all zeros": 1,
    }
    assert "Left out: 2 source NaN or Inf, 1 source all zeros" in caplog.text


def test_too_few_pairs_left_after_dropping_are_refused():
    a, b = embeddings(22, 4), embeddings(22, 4, seed=1)
    a.vectors[:3] = np.nan
    with pytest.raises(InputError, match="At least 20 pairs are needed; got 19"):
        pair(a, b, drop_invalid=True)


def test_drop_invalid_leaves_out_rows_repeated_on_both_sides_and_keeps_those_on_one_side():
    a, b = embeddings(40, 4), embeddings(40, 4, seed=1)
    a.vectors[[10, 20, 30]] = a.vectors[0]
    b.vectors[[10, 20]] = b.vectors[0]
    assert len(pair(a, b)) == 40
    pairs = pair(a, b, drop_invalid=True)
    assert list(pairs.ids) == [f"item{i}" for i in range(40) if i not in (10, 20)]
    assert pairs.dropped["repeats of an identical pair"] == 2


def test_a_pair_that_is_left_out_is_counted_for_one_reason_only():
    a, b = embeddings(40, 4), embeddings(40, 4, seed=1)
    a.vectors[[5, 6]] = 0
    b.vectors[6] = b.vectors[5]  # the same pair again, but its source is all zeros
    pairs = pair(a, b, drop_invalid=True)
    assert len(pairs) == 38
    assert pairs.dropped == {"source only": 0, "target only": 0, "source all zeros": 2}


def test_float16_rows_become_float32_pairs():
    pairs = pair(embeddings(40, 4, dtype="float16"), embeddings(40, 4, seed=1))
    assert (pairs.X.dtype, pairs.Y.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(pairs.X, embeddings(40, 4, dtype="float16").vectors.astype("float32"))


def test_groups_of_either_side_stay_with_their_pairs():
    order = np.arange(39, -1, -1)
    grouped = embeddings(40, 4, groups=names(40, "g"))
    plain = embeddings(40, 4, seed=1).take(order)
    assert list(pair(grouped, plain).groups) == list(names(40, "g"))  # type: ignore[arg-type]
    assert list(pair(plain, grouped).groups) == list(names(40, "g")[order])  # type: ignore[arg-type]
    assert pair(embeddings(40, 4), plain).groups is None


def test_an_unusable_row_without_an_id_is_named_by_its_number():
    a, b = embeddings(40, 4, ids=None), embeddings(40, 6, "new", ids=None, seed=1)
    b.vectors[17] = 0
    with pytest.raises(InputError, match=r"\(first: row 17\)\. Leave them out with `drop_invalid`"):
        pair(a, b)
