import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers.spaces import card, embeddings, gaussian, names, pairs_of, split_at

from repstitch.embeddings.checks import Findings
from repstitch.embeddings.matching import match
from repstitch.embeddings.reading import read, scan
from repstitch.embeddings.rows import Embeddings, check_unique, invalid_rows, row_numbers
from repstitch.embeddings.writing import write
from repstitch.errors import InputError


def test_embeddings_with_the_wrong_shape_or_dtype_are_refused():
    with pytest.raises(InputError, match=r"`vectors` of space 'old' must have shape \(n, 4\); got \(30, 5\)"):
        Embeddings(gaussian(30, 5), card("old", 4))
    with pytest.raises(
        InputError,
        match=r"`vectors` of space 'old' must have shape \(n, 4\); got \(4,\)\. Pass a single vector as one row",
    ):
        Embeddings(gaussian(30, 4)[0], card("old", 4))
    with pytest.raises(InputError, match=r"`vectors` of space 'old' must be floats; got int64\. Convert it to floats"):
        Embeddings(np.zeros((30, 4), dtype="int64"), card("old", 4))
    short: Any = names(29)
    square: Any = names(30)[:, None]
    for field in ("ids", "groups", "labels"):
        with pytest.raises(InputError, match=rf"`{field}` must have one entry per row \(30\); got shape \(29,\)"):
            embeddings(30, 4, **{field: short})
        with pytest.raises(InputError, match=rf"`{field}` must have one entry per row \(30\); got shape \(30, 1\)"):
            embeddings(30, 4, **{field: square})


@pytest.mark.parametrize("make", [np.ndarray.tolist, torch.from_numpy])
def test_vectors_must_be_a_numpy_array_and_read_converts_lists_and_tensors(make):
    vectors = make(gaussian(30, 4))
    with pytest.raises(
        InputError, match=r"must be a NumPy array; got (list|Tensor)\. `read` converts lists and tensors"
    ):
        Embeddings(vectors, card("old", 4))
    assert len(read(vectors, space=card("old", 4))) == 30


def test_vectors_with_a_token_axis_are_refused_with_the_way_to_pool_them():
    with pytest.raises(InputError, match=r"got \(30, 7, 4\)\. If the second axis is tokens, pool them first"):
        Embeddings(gaussian(30, 28).reshape(30, 7, 4), card("old", 4))


def test_take_keeps_ids_and_groups_with_their_rows():
    rows = embeddings(30, 4, groups=names(30, "g"))
    picked = rows.take([5, 3])
    np.testing.assert_array_equal(picked.vectors, rows.vectors[[5, 3]])
    assert (list(picked.ids), list(picked.groups)) == (["item5", "item3"], ["g5", "g3"])  # type: ignore[arg-type]
    assert len(rows.take(np.arange(30) < 7)) == 7


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (embeddings(1200, 4), "Embeddings(1,200 rows of 'old', 4 dimensions, float32, ids)"),
        (
            embeddings(3, 2, "b", dtype="float16", ids=None, groups=names(3), labels=names(3)),
            "Embeddings(3 rows of 'b', 2 dimensions, float16, groups, labels)",
        ),
        (pairs_of(gaussian(1200, 4), gaussian(1200, 3)), "Pairs(1,200 rows of 'old' and 'new', by id)"),
        (split_at(2000, 1500, 300), "Split(1,500 train, 300 validation, 200 test)"),
        (Findings(["They repeat."], np.ones(3, dtype=bool)), "Findings(notes=['They repeat.'])"),
    ],
)
def test_records_of_rows_are_shown_in_one_line_without_their_values(value, shown):
    assert repr(value) == shown


def test_records_with_arrays_can_be_compared_and_hashed(tmp_path):
    write(tmp_path / "x.parquet", embeddings(20, 4))
    for value in (
        embeddings(20, 4),
        scan(tmp_path / "x.parquet"),
        pairs_of(gaussian(20, 4), gaussian(20, 4)),
        split_at(20, 10, 6),
        Findings(["a"], np.ones(3, dtype=bool)),
        match([embeddings(20, 4, "a"), embeddings(20, 4, "b")]),
    ):
        assert value == value
        assert value in {value}
        assert (copy.deepcopy(value) == value) in (True, False)
        assert "array(" not in repr(value)


def test_invalid_rows_are_listed_by_reason():
    X = gaussian(5, 3)
    X[1, 2], X[2], X[3, 0] = np.inf, 0, np.nan
    masks = invalid_rows(X)
    assert {reason: list(np.flatnonzero(mask)) for reason, mask in masks.items()} == {
        "NaN or Inf": [1, 3],
        "all zeros": [2],
    }


def test_ids_must_be_unique():
    check_unique(names(5), "the file")
    with pytest.raises(InputError, match=r"repeated ids in the file: 2 \(first: 'b'\). Remove the repeats"):
        check_unique(np.array(["a", "b", "b", "c", "c"], dtype=object), "the file")


def test_row_numbers_are_text():
    assert list(row_numbers(3, 6)) == ["3", "4", "5"]
