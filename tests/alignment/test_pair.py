from typing import Any

import numpy as np
import pytest
import torch
from helpers.embedding_sets import space
from helpers.spaces import gaussian, shared_latent

from repstitch.alignment import AlignmentScore, align, atlas
from repstitch.embeddings.writing import write
from repstitch.errors import InputError


@pytest.mark.parametrize("metric", ["mutual_knn", "cka", "cycle_knn"])
def test_a_pair_scores_as_in_an_atlas_of_the_two(metric):
    X, Y = shared_latent(60)
    alone = align(X, Y, metric, k=5, permutations=19, seed=2)
    pair = atlas({"X": X, "Y": Y}, metric, k=5, permutations=19, seed=2).pairs(metric)[0]
    assert isinstance(alone, AlignmentScore)
    assert alone.to_dict() == {key: value for key, value in pair.to_dict().items() if key != "q"}
    assert list(alone.to_dict()) == ["source", "target", "metric", "score", "null", "p", "calibrated", "se"]


def test_arrays_paths_and_embeddings_give_the_same_score(tmp_path):
    X, Y = shared_latent(60)
    np.save(tmp_path / "old.npy", X)
    write(tmp_path / "new.parquet", space(Y, "new"))
    scores = [
        align(X, Y, permutations=9),
        align(torch.from_numpy(X), Y, permutations=9),
        align(tmp_path / "old.npy", str(tmp_path / "new.parquet"), permutations=9),
        align(X, space(Y, "new"), permutations=9),
    ]
    assert [(score.source, score.target) for score in scores] == [
        ("X", "Y"),
        ("X", "Y"),
        ("old", "new"),
        ("X", "new"),
    ]
    assert len({(score.score, score.null, score.p, score.calibrated, score.se) for score in scores}) == 1


def test_rows_match_by_id_where_both_sides_have_ids():
    X, Y = shared_latent(60)
    order = np.random.default_rng(0).permutation(60)
    shuffled = align(space(X, "a"), space(Y, "b").take(order), permutations=0)
    assert shuffled.score == align(X, Y, permutations=0).score


def test_without_permutations_there_is_no_level_of_chance():
    score = align(*shared_latent(60), permutations=0)
    assert (score.null, score.p, score.q, score.calibrated) == (None, None, None, None)
    assert list(score.to_dict()) == ["source", "target", "metric", "score", "se"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "magic"}, r"`metric` must be among mutual_knn, cycle_knn, .*linear_r2; got 'magic'"),
        ({"Y": gaussian(59, 4)}, "all spaces must have the same number of rows; got X 60, Y 59"),
        ({"X": gaussian(60, 4)[0]}, r"^`X` must have one vector per item, .*; got float32 of shape \(4,\)"),
        ({"Y": [[1.0], [1.0, 2.0]]}, r"^`Y` must have one vector per item, .*; its rows have different lengths"),
        ({"Y": np.ma.masked_array(gaussian(60, 4))}, "^`Y` must not be a masked array"),
        ({"X": np.zeros((0, 4))}, "^`X` has no rows"),
        ({"metric": ["cka"]}, r"`metric` must be among mutual_knn, .*; got \['cka'\]"),
        ({"k": 2.5}, "^`k` must be a whole number; got 2.5"),
        ({"permutations": 1.5}, "^`permutations` must be a whole number; got 1.5"),
        ({"seed": 1.5}, "^`seed` must be a whole number; got 1.5"),
        ({"X": gaussian(9, 4), "Y": gaussian(9, 4)}, "At least 20 items must be in every space; got 9"),
        ({"X": np.full((60, 4), np.nan)}, "X has rows that cannot be used: 60 with NaN or Inf"),
        ({"k": 60}, r"`k` must be at least 1 and below the number of rows \(60\); got 60"),
        ({"permutations": -1}, "`permutations` must be from 0 to 100,000; got -1"),
        ({"seed": -1}, "`seed` must be a whole number"),
        ({"Y": np.tile(gaussian(4, 5), (15, 1))}, "`Y` has only 4 different directions"),
        ({"X": gaussian(60, 70), "metric": "cca"}, "cca cannot be computed for X and Y: .*more rows than dimensions"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, message):
    given = {"X": gaussian(60, 4), "Y": gaussian(60, 5, 1)} | change
    with pytest.raises(InputError, match=message):
        align(given.pop("X"), given.pop("Y"), **given)


def test_two_sets_of_one_space_are_compared_and_the_second_has_a_name_of_its_own():
    X, Y = shared_latent(60, d_source=8, d_target=8)
    translated, native = space(X, "new"), space(Y, "new")
    score = align(translated, native, permutations=9)
    assert (score.source, score.target) == ("new", "new-2")
    assert score.to_dict() == align(X, Y, permutations=9).to_dict() | {"source": "new", "target": "new-2"}
    assert native.space.name == "new"
    assert align(space(X, "Y"), Y, permutations=0).target == "Y-2"


def test_tensors_in_training_and_whole_numbers_of_numpy_give_the_same_score():
    X, Y = shared_latent(60)
    expected = align(X, Y, k=5, permutations=9, seed=2)
    tensor = torch.from_numpy(X).requires_grad_()
    settings: Any = {"k": np.int64(5), "permutations": np.int32(9), "seed": np.uint8(2)}
    assert align(tensor, Y, **settings) == expected
