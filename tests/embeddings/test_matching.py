import logging

import numpy as np
import pytest
from helpers.spaces import card, embeddings, gaussian, names

from repstitch.embeddings.matching import match
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError


def test_matching_keeps_the_ids_common_to_all_spaces_in_the_order_of_the_first(caplog):
    first, second, third = (embeddings(40, d, name, seed=d) for d, name in ((4, "a"), (5, "b"), (6, "c")))
    shuffled = np.random.default_rng(0).permutation(40)
    matched = match([first.take(np.arange(5, 40)), second.take(shuffled), third.take(np.arange(30))])
    assert matched.names == ["a", "b", "c"]
    assert matched.ids is not None
    assert matched.ids.tolist() == [f"item{i}" for i in range(5, 30)]
    for one, rows in zip((first, second, third), matched.rows, strict=True):
        np.testing.assert_array_equal(rows, one.vectors[5:30])
    assert matched.left_out == {name: {"not in every space": n} for name, n in (("a", 10), ("b", 15), ("c", 5))}
    assert "Left out of b: 15 not in every space." in caplog.messages


def test_rows_are_matched_by_position_if_no_space_has_ids():
    a, b = (embeddings(30, 4, name, seed=i, ids=None) for i, name in enumerate("ab"))
    matched = match([a, b])
    assert matched.ids is None
    np.testing.assert_array_equal(matched.rows[1], b.vectors)


def test_rows_are_matched_by_position_with_a_warning_if_one_space_has_no_ids(caplog):
    spaces = {name: embeddings(30, 4, name, ids=names(30) if name in "ac" else None) for name in "abcd"}
    matched = match(list(spaces.values()))
    assert matched.ids is not None
    assert matched.ids.tolist() == names(30).tolist()
    assert caplog.messages == ["Without ids: b, d; so all rows are matched by position."]


def test_invalid_rows_of_one_space_are_left_out_of_every_space(caplog):
    vectors = gaussian(40, 4)
    vectors[3], vectors[7] = np.nan, 0
    spaces = [embeddings(40, 4, "a"), embeddings(40, 4, "b", vectors=vectors), embeddings(40, 5, "c")]
    matched = match(spaces, drop_invalid=True)
    keep = np.setdiff1d(np.arange(40), [3, 7])
    for one, rows in zip(spaces, matched.rows, strict=True):
        np.testing.assert_array_equal(rows, one.vectors[keep])
    assert matched.left_out == {"a": {}, "b": {"NaN or Inf": 1, "all zeros": 1}, "c": {}}
    assert caplog.messages == ["Left out of b: 1 NaN or Inf, 1 all zeros."]


def test_an_item_is_a_repeat_only_if_it_is_repeated_in_every_space(caplog):
    one, other = gaussian(40, 4, 1), gaussian(40, 4, 2)
    one[5], other[5] = one[4], other[4]
    one[6] = one[4]
    spaces = [embeddings(40, 4, name, vectors=rows) for name, rows in (("a", one), ("b", other))]
    matched = match(spaces, drop_invalid=True)
    assert matched.ids is not None
    assert set(names(40)) - set(matched.ids) == {"item5"}
    assert matched.left_out == {name: {"repeats of an identical item": 1} for name in "ab"}
    assert caplog.messages == ["Left out of every space: 1 repeats of an identical item."]
    assert len(match(spaces)) == 40


def test_the_ids_of_each_space_are_checked_once(monkeypatch):
    from repstitch.embeddings import matching

    checked = []
    check = matching.check_unique
    monkeypatch.setattr(matching, "check_unique", lambda ids, side: (checked.append(side), check(ids, side)))
    match([embeddings(30, 3, f"s{i}", seed=i) for i in range(12)])
    assert checked == [f"s{i}" for i in range(12)]


def without_ids(n: int, name: str) -> Embeddings:
    return embeddings(n, 4, name, ids=None)


def with_value(value: float, ids=None) -> Embeddings:
    vectors = gaussian(30, 4)
    vectors[2] = value
    return embeddings(30, 4, "b", vectors=vectors, ids=ids)


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ([embeddings()], "`embeddings` must contain at least two spaces; got 1"),
        ([embeddings(), embeddings()], "must have different names; 'old' occurs more than once. Rename"),
        ([embeddings(), embeddings(0, name="b")], "b has no rows; at least 20 are needed"),
        (
            [embeddings(30), embeddings(30, name="b", ids=names(30, "x"))],
            "No id is in every space .*'item0', b has.*'x0'",
        ),
        ([embeddings(30), embeddings(30, name="b", ids=["z"] * 30)], "Ids must be unique; repeated ids in b: 29"),
        ([embeddings(30), embeddings(19, name="b")], "At least 20 items must be in every space; got 19. Embed more"),
        (
            [without_ids(30, "a"), without_ids(31, "b")],
            "all spaces must have the same number of rows; got a 30, b 31. To match by id, every space needs ids",
        ),
        (
            [embeddings(30), without_ids(30, "b"), embeddings(30, name="c", ids=names(30)[::-1])],
            "the ids of old and c differ or are in different orders. To match by id, every space needs ids",
        ),
        ([embeddings(30), with_value(np.nan, names(30))], "b has rows .*: 1 with NaN or Inf .first: id 'item2'"),
        (
            [without_ids(30, "a"), with_value(0)],
            "b has rows .*: 1 with all zeros .first: row 2.. Leave .* `drop_invalid`",
        ),
    ],
)
def test_spaces_that_cannot_be_matched_are_refused(spaces, message):
    with pytest.raises(InputError, match=message):
        match(spaces)


def test_there_is_no_warning_if_no_row_is_left_out(caplog):
    with caplog.at_level(logging.INFO):
        matched = match([embeddings(30, 4, "a"), Embeddings(gaussian(30, 5), card("b", 5), names(30))])
    assert (len(matched), matched.left_out, caplog.messages) == (30, {"a": {}, "b": {}}, [])


def test_parts_of_one_data_frame_are_matched_by_its_range_index():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"vector": list(gaussian(200, 4))})
    pieces = {"a": slice(100), "b": slice(50, 150), "c": slice(30, 99)}
    parts = [read(frame.iloc[rows], space=name) for name, rows in pieces.items()]
    matched = match(parts)
    assert matched.ids is not None
    assert matched.ids.tolist() == [str(i) for i in range(50, 99)]
    for rows in matched.rows:
        np.testing.assert_array_equal(rows, gaussian(200, 4)[50:99])
    assert match([parts[0], read(frame.iloc[:100], space="b")]).ids is None  # both are numbered from 0
