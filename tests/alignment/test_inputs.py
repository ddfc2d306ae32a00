import json
from typing import Any

import numpy as np
import pytest
from helpers.embedding_sets import known_spaces
from helpers.spaces import gaussian

from repstitch.alignment import Atlas, atlas
from repstitch.alignment.inputs import read_matched
from repstitch.embeddings.matching import match
from repstitch.embeddings.writing import write
from repstitch.errors import InputError


def scored(spaces, **kwargs) -> Atlas:
    return atlas(spaces, "cka", permutations=0, **kwargs)


def test_a_list_may_hold_arrays_paths_and_embeddings(tmp_path):
    spaces = known_spaces(40)
    write(tmp_path / "file.parquet", spaces[0])
    np.save(tmp_path / "array.npy", spaces[1].vectors)
    mixed = scored([tmp_path / "file.parquet", str(tmp_path / "array.npy"), spaces[2], spaces[3].vectors])
    assert mixed.names == ["rot0", "array", "rot1", "space3"]
    np.testing.assert_array_equal(mixed.scores("cka"), scored(spaces[:4]).scores("cka"))


def test_a_mapping_names_its_spaces_whatever_they_are_called(tmp_path):
    spaces = known_spaces(40)
    write(tmp_path / "file.parquet", spaces[0])
    named = scored({"a": tmp_path / "file.parquet", "b": spaces[1], "c": spaces[2].vectors})
    assert named.names == ["a", "b", "c"]
    np.testing.assert_array_equal(named.scores("cka"), scored(spaces[:3]).scores("cka"))


def test_a_name_that_is_given_changes_nothing_else_on_a_card():
    spaces = known_spaces(40)
    (card, _), named = read_matched({"x": spaces[0], "y": spaces[1]}).spaces, spaces[0].space
    assert card.to_dict() == named.to_dict() | {"name": "x"}


def test_matched_spaces_are_taken_as_they_are():
    matched = match(known_spaces(40))
    assert read_matched(matched) is matched


@pytest.mark.parametrize("single", ["a.parquet", known_spaces(40)[0], gaussian(40, 4)])
def test_a_single_space_is_refused(single):
    with pytest.raises(InputError, match="`embeddings` must be a list of at least two spaces, or a mapping from names"):
        atlas(single)
    with pytest.raises(InputError, match="`embeddings` must contain at least two spaces; got 1"):
        scored({"a": gaussian(40, 4)})


def test_an_array_that_cannot_be_used_is_called_by_its_name():
    good, bad = gaussian(40, 4), gaussian(40, 4)[0]
    with pytest.raises(InputError, match=r"^`second` must have one vector per item"):
        atlas({"first": good, "second": bad})
    with pytest.raises(InputError, match=r"^`space1` must have one vector per item"):
        atlas([good, bad])


def test_settings_that_are_whole_numbers_of_numpy_are_stored_as_plain_ones():
    spaces = known_spaces(40)[:2]
    settings: Any = {"k": np.int64(5), "permutations": np.int32(9), "seed": np.uint8(1)}
    measured = atlas(spaces, "mutual_knn", **settings)
    assert json.dumps(measured.to_dict()) == json.dumps(
        atlas(spaces, "mutual_knn", k=5, permutations=9, seed=1).to_dict()
    )
