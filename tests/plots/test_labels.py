from typing import Any

import numpy as np
import pytest
from helpers.pictures import boxes, overlaps

from repstitch.plots.canvas import figure
from repstitch.plots.labels import name_points, shorten, shorten_all


def scattered(N: int, seed: int = 0):
    """Axes with N points, and where they are."""
    axes: Any = figure(1, width=6, height=5)[1][0]
    places = np.random.default_rng(seed).random((N, 2))
    axes.scatter(places[:, 0], places[:, 1], 20)
    return axes, places.tolist()


@pytest.mark.parametrize("N", [1, 2, 10, 30])
def test_names_beside_points_overlap_neither_each_other_nor_the_points(N):
    axes, places = scattered(N)
    names = [f"a_model_{i}" for i in range(N)]
    assert name_points(axes, names, places) == names
    assert [text.get_text() for text in axes.texts] == names
    corners = boxes(axes)
    assert not overlaps(corners)
    dots = axes.transData.transform(places)
    hidden = (dots[:, None] > corners[None, :, :2]).all(2) & (dots[:, None] < corners[None, :, 2:]).all(2)
    assert not hidden.any()


def test_a_name_stays_inside_the_axes_where_its_point_lies_at_their_edge():
    axes: Any = figure(1, width=4, height=3)[1][0]
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    name_points(axes, ["at the right", "at the left", "at the top"], [[1, 0.5], [0, 0.5], [0.5, 1]])
    frame = np.asarray(axes.get_window_extent().extents)
    corners = boxes(axes)
    assert (corners[:, :2] > frame[:2] - 1).all()
    assert (corners[:, 2:] < frame[2:] + 1).all()


def test_a_name_avoids_places_that_are_taken():
    axes: Any = figure(1, width=4, height=3)[1][0]
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    right = [[x, 0.5] for x in np.linspace(0.5, 0.9, 30)]
    name_points(axes, ["a model"], [[0.5, 0.5]], occupied=right)
    (box,) = boxes(axes)
    across = axes.transData.transform(right)
    assert not ((across > box[:2]) & (across < box[2:])).all(1).any()


def test_names_without_free_room_are_left_out_when_thinned():
    axes: Any = figure(1, width=4, height=3)[1][0]
    crowd = (0.5 + 0.01 * np.random.default_rng(0).random((60, 2))).tolist()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    names = [f"a_model_{i}" for i in range(60)]
    written = name_points(axes, names, crowd, thin=True)
    assert 0 < len(written) < 60
    assert [text.get_text() for text in axes.texts] == written
    assert not overlaps(boxes(axes))
    assert all(text.arrow_patch is None for text in axes.texts)


def test_no_names_write_nothing():
    axes, _ = scattered(3)
    assert name_points(axes, [], []) == []


def test_a_name_far_from_its_point_has_a_line_to_it_and_a_near_one_has_none():
    axes: Any = figure(1, width=4, height=3)[1][0]
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    name_points(axes, ["alone"], [[0.5, 0.5]])
    assert axes.texts[0].arrow_patch is None
    crowd = (0.5 + 0.02 * np.random.default_rng(0).random((12, 2))).tolist()
    name_points(axes, [f"model_{i}" for i in range(12)], crowd)
    assert any(text.arrow_patch is not None for text in axes.texts)


def test_a_long_name_keeps_both_ends_and_a_short_one_everything():
    assert shorten("dinov2_small") == "dinov2_small"
    short = shorten("vit_large_patch14_clip_336.openai_ft_in12k.layer07", 30)
    assert len(short) == 30
    assert short.startswith("vit_large")
    assert short.endswith(".layer07")


def test_shortened_names_stay_different():
    names = ["sentence-transformers_all-MiniLM-L12-v2", "sentence-transformers_paraphrase-multilingual-MiniLM-L12-v2"]
    assert shorten(names[0]) == shorten(names[1])
    short = shorten_all(names)
    assert len(set(short)) == 2
    assert all(len(name) < 40 for name in short)
    assert shorten_all(["dinov2_small", "clip_base"]) == ["dinov2_small", "clip_base"]
    assert shorten_all([]) == []
    same_ends = ["x" * 40 + middle + "y" * 40 for middle in "ab"]
    assert shorten_all(same_ends) == same_ends


def test_no_name_is_written_unless_all_are_clear():
    axes: Any = figure(1, width=4, height=3)[1][0]
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    crowd = (0.5 + 0.01 * np.random.default_rng(0).random((40, 2))).tolist()
    assert name_points(axes, [f"a_model_{i}" for i in range(40)], crowd, only_if_clear=True) == []
    assert not axes.texts
    assert name_points(axes, ["a", "b"], [[0.2, 0.5], [0.8, 0.5]], only_if_clear=True) == ["a", "b"]


def test_a_name_that_is_nearer_to_another_point_has_a_line_to_its_own():
    axes: Any = figure(1, width=4, height=3)[1][0]
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    name_points(axes, ["first", "second"], [[0.5, 0.5], [0.5, 0.5]])
    assert all(text.arrow_patch is not None for text in axes.texts)
