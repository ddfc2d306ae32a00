import itertools
import json
from typing import Any

import numpy as np
import pytest
from helpers.atlases import layered_atlas, made, made_asymmetry, made_atlas, made_trend, with_sizes
from helpers.pictures import boxes, overlaps
from helpers.spaces import card, gaussian
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from repstitch.alignment import Atlas
from repstitch.alignment import atlas as measured_atlas
from repstitch.alignment.hypothesis_results import Asymmetry, Trend
from repstitch.alignment.result import LayerScore
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError
from repstitch.plots.alignment import draw_atlas, plot_atlas, plot_heatmap, plot_layers, plot_map, plot_sizes
from repstitch.plots.canvas import COLOURS, GREY, figure, looks
from repstitch.plots.convergence import plot_asymmetry, plot_shared, plot_trend

METRIC = "mutual_knn"
DOT = "not above chance\n(q > .05)"
COUNTS = [2, 20, 78]


RECORDS = {plot_trend: Trend, plot_asymmetry: Asymmetry, plot_shared: Asymmetry}


def drawn(draw, values: dict, *args) -> Any:
    """What `draw` makes on axes of its own, of the record of a made-up JSON object."""
    axes = figure(1, width=9, height=8)[1][0]
    draw(axes, RECORDS.get(draw, Atlas).from_dict(values), *args)
    return axes


def legend(axes) -> list[str]:
    box = axes.get_legend()
    return [] if box is None else [text.get_text() for text in box.get_texts()]


def written(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def in_order(atlas: dict, measure: str) -> np.ndarray:
    """A matrix of the atlas with rows and columns in clustering order, NaN where there is no number."""
    names = [space["name"] for space in atlas["spaces"]]
    at = [names.index(name) for name in atlas["order"][METRIC]]
    return np.array(atlas["metrics"][METRIC][measure], dtype=float)[np.ix_(at, at)]


def marks(axes) -> set[tuple[int, int]]:
    """The cells (row, column) that have a dot."""
    dots = [c for c in axes.collections if c.get_label() == DOT]
    return {(int(np.floor(y + 0.5)), round(x)) for c in dots for x, y in c.get_offsets().tolist()}


# Heat maps.


@pytest.mark.parametrize("N", COUNTS)
def test_a_heat_map_shows_the_scores_in_clustering_order_under_their_names(N):
    atlas = made_atlas(N)
    axes = drawn(plot_heatmap, atlas, METRIC)
    assert [t.get_text() for t in axes.get_yticklabels()] == atlas["order"][METRIC]
    assert [t.get_text() for t in axes.get_xticklabels()] == atlas["order"][METRIC]
    shown, scores = np.ma.filled(axes.images[0].get_array(), np.nan), in_order(atlas, "score")
    np.fill_diagonal(scores, np.nan)
    np.testing.assert_array_equal(shown, scores)


@pytest.mark.parametrize("N", COUNTS)
def test_dots_mark_exactly_the_cells_that_are_not_above_chance(N):
    atlas = made_atlas(N)
    q = in_order(atlas, "q")
    axes = drawn(plot_heatmap, atlas, METRIC)
    assert marks(axes) == set(zip(*(side.tolist() for side in np.nonzero(q > 0.05)), strict=True))
    assert DOT in legend(axes)


def test_a_score_at_the_level_itself_has_no_dot():
    atlas = made_atlas(5)
    q = [[None if i == j else 0.05 for j in range(5)] for i in range(5)]
    atlas["metrics"][METRIC]["q"] = q
    assert marks(drawn(plot_heatmap, atlas, METRIC)) == set()
    q[0][1] = 0.051
    names = [space["name"] for space in atlas["spaces"]]
    row, column = (atlas["order"][METRIC].index(names[i]) for i in (0, 1))
    assert marks(drawn(plot_heatmap, atlas, METRIC)) == {(row, column)}


def test_without_permutations_nothing_is_said_of_chance():
    axes = drawn(plot_heatmap, made_atlas(5, permutations=0), METRIC)
    assert marks(axes) == set()
    assert not any("chance" in text for text in legend(axes))
    (bar,) = axes.child_axes
    assert not [line for line in bar.lines if line.get_marker() == ">"]


def test_colours_reach_from_below_chance_to_the_highest_score_between_two_models():
    atlas = made_atlas(20)
    scores, null = in_order(atlas, "score"), in_order(atlas, "null")
    np.fill_diagonal(scores, np.nan)
    axes = drawn(plot_heatmap, atlas, METRIC)
    low, high = axes.images[0].get_clim()
    assert high == np.nanmax(scores)
    assert np.nanmin(null) - 0.05 * (high - low) < low < np.nanmin(null)


def test_a_triangle_marks_chance_on_the_colour_bar():
    atlas = made_atlas(5)
    axes = drawn(plot_heatmap, atlas, METRIC)
    (bar,) = axes.child_axes
    (mark,) = [line for line in bar.lines if line.get_marker() == ">"]
    null = in_order(atlas, "null")
    assert np.asarray(mark.get_ydata()).tolist() == [np.nanmedian(null)]
    assert f"chance, median {np.nanmedian(null):.2g}" in legend(axes)


def test_scores_are_written_where_cells_have_room_and_not_among_many_models():
    few, many = made_atlas(12), made_atlas(31)
    (axes,) = plot_atlas(made(few))[f"heatmap_{METRIC}"].axes
    scores = in_order(few, "score")
    assert written(axes) == [f"{scores[i, j]:.2f}" for i in range(12) for j in range(12) if i != j]
    assert written(plot_atlas(made(many))[f"heatmap_{METRIC}"].axes[0]) == []


def test_a_written_score_stands_out_from_its_colour():
    axes = drawn(plot_heatmap, made_atlas(5), METRIC)
    image = axes.images[0]
    for text in axes.texts:
        column, row = text.get_position()
        colour = image.cmap(image.norm(image.get_array()[int(row), int(column)]))
        light = float(np.dot(colour[:3], [0.299, 0.587, 0.114]))
        assert text.get_color() == ("black" if light > 0.5 else "white")


def test_what_was_not_measured_is_hatched_and_has_no_number():
    atlas = made_atlas(5)
    for measure in ("score", "null", "p", "q", "calibrated", "se"):
        atlas["metrics"][METRIC][measure][0][1] = None
    axes = drawn(plot_heatmap, atlas, METRIC)
    assert "not measured" in legend(axes)
    assert len(axes.texts) == 19
    assert "not measured" not in legend(drawn(plot_heatmap, made_atlas(5), METRIC))


def test_rows_are_sources_and_columns_targets_where_a_metric_has_a_direction():
    atlas = made_atlas(5, symmetric=False)
    names = [space["name"] for space in atlas["spaces"]]
    axes = drawn(plot_heatmap, atlas, METRIC)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("source", "target")
    rows, columns = ([t.get_text() for t in side] for side in (axes.get_yticklabels(), axes.get_xticklabels()))
    shown = axes.images[0].get_array()[rows.index(names[0]), columns.index(names[3])]
    assert shown == atlas["metrics"][METRIC]["score"][0][3]
    symmetric = drawn(plot_heatmap, made_atlas(5), METRIC)
    assert (symmetric.get_ylabel(), symmetric.get_xlabel()) == ("", "")


def test_a_strip_tells_each_rows_family_and_the_unknown_one_is_grey():
    atlas = made_atlas(20, families=4)
    axes = drawn(plot_heatmap, atlas, METRIC)
    family = {space["name"]: space.get("family") for space in atlas["spaces"]}
    look = looks(family.values())
    strip = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [to_hex(patch.get_facecolor()).upper() for patch in strip] == [
        look[family[name]].colour for name in atlas["order"][METRIC]
    ]
    assert GREY in {to_hex(patch.get_facecolor()).upper() for patch in strip}
    assert legend(axes)[-5:] == [*sorted(f for f in set(family.values()) if f), "unknown family"]


def test_without_families_there_is_no_strip():
    axes = drawn(plot_heatmap, made_atlas(5, families=None), METRIC)
    assert not axes.patches
    assert axes.get_xlim() == (-0.5, 4.5)


def test_cells_are_square_on_a_figure_made_for_them():
    for N in (2, 20):
        picture = plot_atlas(made(made_atlas(N)))[f"heatmap_{METRIC}"]
        picture.draw_without_rendering()
        box = picture.axes[0].get_window_extent()
        cell = box.width / np.ptp(picture.axes[0].get_xlim()), box.height / np.ptp(picture.axes[0].get_ylim())
        assert cell[0] == pytest.approx(cell[1], rel=0.03)


# Maps.


@pytest.mark.parametrize("N", COUNTS)
def test_a_map_has_each_model_at_its_place_in_the_colour_of_its_family(N):
    atlas = made_atlas(N)
    axes = drawn(plot_map, atlas, METRIC)
    look = looks(space.get("family") for space in atlas["spaces"])
    for family, points in zip(look, axes.collections, strict=True):
        own = [s["name"] for s in atlas["spaces"] if s.get("family") == family]
        assert points.get_offsets().tolist() == [atlas["map"][METRIC][name] for name in own]
        assert to_hex(points.get_facecolor()[0]).upper() == look[family].colour


def test_encoders_that_both_have_one_vector_an_item_have_no_picture_of_layers():
    atlas = layered_atlas({"vit_a": 1, "vit_b": 1, "bert_small": 8})
    axes = plot_atlas(made(atlas))[f"layers_{METRIC}"].axes
    assert {panel.get_xlabel() for panel in axes if panel.images} == {"layer of bert_small"}


@pytest.mark.parametrize("N", [2, 5, 20])
def test_a_map_of_few_names_each_model_without_overlap(N):
    atlas = made_atlas(N)
    axes = drawn(plot_map, atlas, METRIC)
    assert written(axes) == [space["name"] for space in atlas["spaces"]]
    assert not overlaps(boxes(axes))


LONG_NAMES = [
    f"{owner}_{model}"
    for owner, models in {
        "sentence-transformers": "all-mpnet-base-v2 all-MiniLM-L6-v2 all-MiniLM-L12-v2 multi-qa-mpnet-base-dot-v1 "
        "paraphrase-multilingual-MiniLM-L12-v2",
        "BAAI": "bge-small-en-v1.5 bge-base-en-v1.5 bge-large-en-v1.5 bge-m3 bge-multilingual-gemma2",
        "intfloat": "e5-small-v2 e5-base-v2 e5-large-v2 multilingual-e5-large-instruct e5-mistral-7b-instruct",
        "facebook": "dinov2-small dinov2-base dinov2-large dinov2-giant dinov2-with-registers-large",
        "openai": "clip-vit-base-patch32 clip-vit-base-patch16 clip-vit-large-patch14 clip-vit-large-patch14-336 "
        "RN50x64",
        "google": "siglip-base-patch16-224 siglip-large-patch16-384 siglip-so400m-patch14-384 siglip2-base-patch16 "
        "vit_large_patch14_clip_336.openai_ft_in12k_in1k",
    }.items()
    for model in models.split()
]


def clustered(spread: float, families: int, seed: int = 0) -> dict:
    """An atlas of 30 models with long names in six clusters of five."""
    random = np.random.default_rng(seed)
    angles = np.repeat(np.arange(6) * np.pi / 3, 5)
    places = 0.3 * np.column_stack([np.cos(angles), 0.6 * np.sin(angles)]) + spread * random.standard_normal((30, 2))
    names = made_atlas(30, families=None)["order"][METRIC]
    text = json.dumps(made_atlas(30, families=None))
    for old, new in zip(sorted(names, key=len, reverse=True), LONG_NAMES, strict=True):
        text = text.replace(f'"{old}"', f'"{new}"')
    atlas = json.loads(text)
    atlas["map"] = {METRIC: dict(zip(LONG_NAMES, places.tolist(), strict=True))}
    family = {name: f"family {i * families // 30:02d}" for i, name in enumerate(LONG_NAMES)} if families else {}
    atlas["spaces"] = [space | ({"family": family[space["name"]]} if families else {}) for space in atlas["spaces"]]
    return atlas


def all_text_boxes(picture) -> np.ndarray:
    """Corners (N, 4), in pixels, of every text that a figure shows: title, axis labels, legend, names of points."""
    picture.draw_without_rendering()
    shown = [text for text in picture.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return np.array([Text.get_window_extent(text).extents for text in shown])


@pytest.mark.parametrize(
    ("spread", "families"),
    [
        (0.0, 6),
        pytest.param(0.004, 6, marks=pytest.mark.slow),
        pytest.param(0.02, 0, marks=pytest.mark.slow),
        (0.06, 30),
    ],
)
def test_texts_of_a_map_of_30_clustered_models_neither_overlap_nor_leave_the_figure(families, spread):
    picture = plot_atlas(made(clustered(spread, families)))[f"map_{METRIC}"]
    corners = all_text_boxes(picture)
    assert len(corners) >= 30 + 2
    assert overlaps(corners) == 0
    assert (corners[:, :2] >= 0).all()
    assert (corners[:, 2:] <= picture.get_size_inches() * picture.dpi).all()


def test_models_whose_names_have_no_room_are_numbered_in_the_order_of_the_legend():
    atlas = clustered(0.004, 6)
    (axes,) = plot_atlas(made(atlas))[f"map_{METRIC}"].axes
    by_name = dict(zip((space["name"] for space in atlas["spaces"]), written(axes), strict=True))
    assert sorted(by_name.values(), key=int) == [str(i) for i in range(1, 31)]
    lines = legend(axes)
    families = [line for line in lines if line.startswith("family")]
    assert families == [f"family {i:02d}" for i in range(6)]
    listed = dict(line.split() for line in lines if line.split()[0].isdigit() and "parameters" not in line)
    assert listed[by_name["BAAI_bge-m3"]] == "BAAI_bge-m3"
    assert len(set(listed.values())) == 30
    assert list(listed) == [str(i) for i in range(1, 31)]


def test_names_with_room_are_written_without_numbers():
    atlas = made_atlas(5)
    atlas["map"][METRIC] = {space["name"]: [float(i), float(i % 2)] for i, space in enumerate(atlas["spaces"])}
    axes = drawn(plot_map, atlas, METRIC)
    assert written(axes) == [space["name"] for space in atlas["spaces"]]
    assert not any(space["name"] in line for space in atlas["spaces"] for line in legend(axes))


def test_a_map_of_many_names_families_or_what_finds_room_where_none_is_known():
    atlas = made_atlas(78, families=12)
    axes = drawn(plot_map, atlas, METRIC)
    assert written(axes) == sorted({space["family"] for space in atlas["spaces"] if "family" in space})
    unknown = drawn(plot_map, made_atlas(78, families=None), METRIC)
    assert 0 < len(unknown.texts) < 78
    assert not overlaps(boxes(unknown))


def test_more_families_than_colours_differ_in_marker():
    axes = drawn(plot_map, made_atlas(78, families=12), METRIC)
    handles = axes.get_legend().legend_handles
    seen = {(h.get_color(), h.get_marker()) for h, text in zip(handles, legend(axes), strict=True) if "par" not in text}
    assert len(seen) == 13
    assert len(COLOURS) < 12


def test_a_models_area_on_the_map_grows_with_its_parameters_and_the_ends_are_in_the_legend():
    atlas = made_atlas(5, families=None)
    (points,) = drawn(plot_map, atlas, METRIC).collections
    parameters = [space["parameters"] for space in atlas["spaces"]]
    assert np.argsort(points.get_sizes()).tolist() == np.argsort(parameters).tolist()
    assert legend(drawn(plot_map, atlas, METRIC)) == ["10 M parameters", "2.56 B parameters"]
    assert not legend(drawn(plot_map, made_atlas(5, families=None, parameters=False), METRIC))


@pytest.mark.parametrize("N", [20, 78])
def test_points_in_the_legend_of_parameters_are_as_large_as_on_the_map(N):
    axes = drawn(plot_map, made_atlas(N), METRIC)
    areas = np.concatenate([points.get_sizes() for points in axes.collections])
    sizes = [handle.get_markersize() for handle in axes.get_legend().legend_handles[:2]]
    np.testing.assert_allclose(np.square(sizes), [areas.min(), areas.max()])


def test_a_map_says_what_distance_means_and_how_well_it_holds():
    atlas = made_atlas(5)
    atlas["map"][METRIC] = {space["name"]: [float(i), 0.0] for i, space in enumerate(atlas["spaces"])}
    apart = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    atlas["metrics"][METRIC]["score"] = (1 - apart / 5).tolist()
    axes = drawn(plot_map, atlas, METRIC)
    assert axes.get_xlabel() == "distance approximates 1 − mutual_knn (correlation 1.00)"
    assert not len(axes.get_xticks())
    assert not len(axes.get_yticks())
    assert "correlation" not in drawn(plot_map, made_atlas(2), METRIC).get_xlabel()


def test_models_that_all_lie_at_one_place_are_still_drawn():
    atlas = made_atlas(5)
    atlas["map"][METRIC] = {space["name"]: [0.0, 0.0] for space in atlas["spaces"]}
    axes = drawn(plot_map, atlas, METRIC)
    assert len(axes.texts) == 5
    assert "correlation" not in axes.get_xlabel()


@pytest.mark.parametrize("plot", [plot_heatmap, plot_map])
def test_a_metric_that_the_atlas_does_not_hold_is_refused(plot):
    with pytest.raises(InputError, match=r"`metric` must be a metric of this atlas \(mutual_knn\); got 'cka'"):
        drawn(plot, made_atlas(5), "cka")


# Trends.


def test_a_trend_has_each_model_at_its_value_and_the_verdict_above():
    trend = made_trend(14)
    axes = drawn(plot_trend, trend)
    points = [p for c in axes.collections[1:] for p in c.get_offsets().tolist()]
    assert sorted(points) == sorted([m["value"], m["alignment"]] for m in trend["models"])
    assert axes.get_title("left").replace("\n", " ") == trend["verdict"]
    assert sorted(written(axes)) == sorted(m["name"] for m in trend["models"])
    assert legend(axes) == [
        "null: 95 % of lines\nwith shuffled parameters",
        "straight line",
        "bge",
        "clip",
        "dinov2",
        "unknown family",
    ]


def test_the_band_of_chance_reaches_from_low_to_high():
    trend = made_trend(14)
    band = trend["null_band"]
    (shade,) = drawn(plot_trend, trend).collections[:1]
    corners = shade.get_paths()[0].vertices
    assert corners[:, 1].min() == min(band["low"])
    assert corners[:, 1].max() == max(band["high"])
    assert (corners[:, 0].min(), corners[:, 0].max()) == (band["value"][0], band["value"][-1])


def test_values_over_decades_lie_on_a_logarithmic_axis_and_others_do_not():
    assert drawn(plot_trend, made_trend(14)).get_xscale() == "log"
    assert drawn(plot_trend, made_trend(14, log=False)).get_xscale() == "linear"


@pytest.mark.parametrize("most", [3e6, 9e7, 5e11])
def test_counts_on_a_logarithmic_axis_are_short_and_apart(most):
    trend = made_trend(14)
    values = np.geomspace(2e5, most, 14)
    trend["models"] = [model | {"value": value} for model, value in zip(trend["models"], values, strict=True)]
    trend["null_band"]["value"] = np.geomspace(2e5, most, 50).tolist()
    axes = drawn(plot_trend, trend)
    low, high = axes.get_xlim()
    ticks = axes.get_xticklabels() + axes.get_xticklabels(minor=True)
    shown = [tick for tick in ticks if tick.get_text() and low <= tick.get_position()[0] <= high]
    assert "1 M" in {tick.get_text() for tick in shown}
    boxes = sorted((tick.get_window_extent() for tick in shown), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_many_models_of_a_trend_are_not_named():
    assert not drawn(plot_trend, made_trend(40)).texts


def test_a_trend_without_families_explains_only_band_and_line():
    trend = made_trend(14)
    trend["models"] = [model | {"family": None} for model in trend["models"]]
    assert len(legend(drawn(plot_trend, trend))) == 2


def test_a_trend_says_whom_models_were_aligned_with():
    assert (
        drawn(plot_trend, made_trend() | {"against": ["a", "b"]}).get_ylabel().endswith("with the 2 reference models")
    )
    assert drawn(plot_trend, made_trend()).get_ylabel() == "mean mutual_knn with the other models"


# Sizes.


def test_sizes_show_each_pairs_scores_its_band_and_its_null():
    atlas = with_sizes(made_atlas(5), 3)
    axes = drawn(plot_sizes, atlas)
    solid, dashed = ([line for line in axes.lines if (line.get_linestyle() == "--") is d] for d in (False, True))
    curves = atlas["sizes"]["curves"]
    assert [np.asarray(line.get_ydata()).tolist() for line in solid] == [curve["score"] for curve in curves]
    assert [np.asarray(line.get_ydata()).tolist() for line in dashed[:3]] == [curve["null"] for curve in curves]
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.max() == curves[0]["score"][0] + 2 * curves[0]["se"][0]
    assert axes.get_xscale() == "log"
    assert "not comparable" in axes.get_xlabel()
    assert legend(axes)[-2:] == ["± 2 standard errors", "null of each pair (chance level)"]


def test_pairs_stand_in_the_legend_as_they_lie_at_the_largest_size():
    atlas = with_sizes(made_atlas(20), 10)
    ends = {f"{c['source']} – {c['target']}": c["score"][-1] for c in atlas["sizes"]["curves"]}
    assert legend(drawn(plot_sizes, atlas))[:10] == sorted(ends, key=lambda name: -ends[name])


def test_sizes_without_permutations_have_no_null():
    axes = drawn(plot_sizes, with_sizes(made_atlas(5, permutations=0), 3))
    assert not [line for line in axes.lines if line.get_linestyle() == "--"]
    assert legend(axes)[-1] == "± 2 standard errors"


def test_pairs_with_a_direction_have_an_arrow():
    assert all("→" in text for text in legend(drawn(plot_sizes, with_sizes(made_atlas(5, symmetric=False), 3)))[:3])


def test_sizes_too_near_one_another_share_a_label():
    axes = drawn(plot_sizes, with_sizes(made_atlas(5), 3))
    assert [t.get_text() for t in axes.get_xticklabels()] == ["32", "64", "128", "256", "512", "1,024"]


def test_sizes_that_were_not_measured_are_refused():
    with pytest.raises(InputError, match="`atlas` must contain `sizes`"):
        drawn(plot_sizes, made_atlas(5))
    with pytest.raises(
        InputError, match=r"`metric` must be a metric with scores at several sizes \(mutual_knn\); got 'cka'"
    ):
        drawn(plot_sizes, with_sizes(made_atlas(5)), "cka")


# Asymmetry.


def test_an_asymmetry_shows_both_ways_with_intervals_above_the_null():
    asymmetry = made_asymmetry()
    axes = drawn(plot_asymmetry, asymmetry)
    assert [bar.get_height() for bar in axes.patches] == [0.62, 0.41]
    intervals = [segment[:, 1].tolist() for lines in axes.collections for segment in lines.get_segments()]
    assert intervals == [[0.6, 0.64], [0.38, 0.44]]
    assert [float(np.asarray(line.get_ydata())[0]) for line in axes.lines[:2]] == [0.001, 0.002]
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "dinov2_large\n→ clip_base\n38% of the variance not predicted",
        "clip_base\n→ dinov2_large\n59% of the variance not predicted",
    ]
    assert axes.get_title("left").replace("\n", " ") == asymmetry["verdict"]


def test_a_map_that_does_harm_is_drawn_below_zero():
    asymmetry = made_asymmetry() | {"r2_backward": -0.2, "r2_backward_interval": [-0.3, -0.1]}
    axes = drawn(plot_asymmetry, asymmetry)
    assert axes.get_ylim()[0] < -0.3


def test_the_null_of_an_asymmetry_lies_clear_of_the_lower_edge():
    axes = drawn(plot_asymmetry, made_asymmetry())
    low, high = axes.get_ylim()
    assert low < -0.02 * high


def test_shared_directions_are_drawn_as_in_a_scorecard():
    shared = made_asymmetry()["shared"]
    axes = drawn(plot_shared, made_asymmetry())
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == shared["correlation"]
    assert float(np.asarray(axes.lines[1].get_ydata())[0]) == shared["null"]
    assert axes.get_title() == "Shared directions: 100 of 256 above chance"


# Layers.


def framed(axes) -> list[float]:
    """Column and row of the cell that has a frame."""
    return [corner + 0.5 for corner in axes.patches[-1].get_xy()]


def test_the_best_pair_of_layers_is_framed_among_all_of_two_encoders():
    atlas = layered_atlas()
    line = atlas["layers"][0]
    axes = drawn(plot_layers, atlas, LayerScore(line))
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert shown.shape == (12, 8)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert framed(axes) == [column, row]
    assert (line["source_layer"], line["target_layer"]) == (row + 1, column + 1)
    assert axes.get_title("left") == f"best: layers {row + 1} and {column + 1}, {line['score']:.2f} (q = 0.005)"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layer of vit_base", "layer of bert_small")
    assert [t.get_text() for t in axes.get_xticklabels()] == [str(i) for i in range(1, 9)]


def test_a_best_pair_of_layers_that_is_not_above_chance_is_said_to_be_so():
    atlas = layered_atlas()
    assert (
        drawn(plot_layers, atlas, LayerScore(atlas["layers"][0] | {"q": 0.3}))
        .get_title("left")
        .endswith("not above chance)")
    )
    without_null = {
        key: value for key, value in atlas["layers"][0].items() if key not in ("null", "p", "q", "calibrated")
    }
    del atlas["metrics"][METRIC]["null"]
    assert "q =" not in drawn(plot_layers, atlas, LayerScore(without_null)).get_title("left")


def test_the_title_tells_spaces_from_models():
    atlas = layered_atlas()
    for draw in (plot_heatmap, plot_map):
        assert f"{METRIC} of 25 spaces of 3 models on" in drawn(draw, atlas, METRIC).get_title("left")


def test_an_encoder_with_one_vector_an_item_is_one_row_beside_layers():
    atlas = layered_atlas({"vit_base": 1, "bert_small": 8})
    del atlas["spaces"][0]["layer"]
    axes = drawn(plot_layers, atlas, LayerScore(atlas["layers"][0] | {"source_layer": None}))
    assert axes.images[0].get_array().shape == (1, 8)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["last"]


def test_layers_of_an_encoder_that_is_there_twice_are_told_apart_by_name():
    atlas = layered_atlas({"vit_cls": 4, "vit_mean": 4, "bert_small": 8})
    atlas["spaces"] = [
        space | {"encoder": "timm:vit"} if space["name"].startswith("vit") else space for space in atlas["spaces"]
    ]
    line = next(line for line in atlas["layers"] if line["source"] == "vit_mean")
    axes = drawn(plot_layers, atlas, LayerScore(line))
    assert axes.images[0].get_array().shape == (4, 8)
    names = [space["name"] for space in atlas["spaces"]]
    corner = atlas["metrics"][METRIC]["score"][names.index("vit_mean.layer01")][names.index("bert_small.layer01")]
    assert axes.images[0].get_array()[0, 0] == corner


def test_layers_of_a_measured_atlas_are_drawn_in_order_whatever_the_order_of_its_spaces():
    Z, ids = gaussian(40, 4, 1), np.array([str(i) for i in range(40)], dtype=object)
    spaces = []
    for seed, (name, layer) in enumerate([("a", 10), ("b", 1), ("a", 1), ("b", 2), ("a", 2)]):
        rows = Z if (name, layer) in (("a", 2), ("b", 1)) else gaussian(40, 4, 10 + seed)
        spaces.append(Embeddings(rows, card(f"{name}.layer{layer}", 4, encoder=f"timm:{name}", layer=layer), ids))
    atlas = measured_atlas(spaces, METRIC, k=5, permutations=19)
    axes = drawn(plot_layers, atlas.to_dict(), *atlas.layers)
    assert axes.get_title("left").startswith("best: layers 2 and 1, 1.00")
    assert framed(axes) == [0, 1]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1", "2", "10"]
    shown = axes.images[0].get_array()
    assert np.unravel_index(shown.argmax(), shown.shape) == (1, 0)


# Whole atlases.


def whole(N: int = 5) -> dict:
    """An atlas with everything that is drawn."""
    atlas = layered_atlas({"vit_base": N, "bert_small": 3})
    return with_sizes(atlas) | {"trend": made_trend(), "asymmetry": [made_asymmetry()]}


def test_an_atlas_gives_a_figure_for_each_thing_it_holds():
    assert list(plot_atlas(made(made_atlas(2)))) == ["heatmap_mutual_knn", "map_mutual_knn"]
    assert list(plot_atlas(made(whole()))) == [
        "heatmap_mutual_knn",
        "map_mutual_knn",
        "trend",
        "sizes_mutual_knn",
        "asymmetry_dinov2_large_clip_base",
        "layers_mutual_knn",
    ]


def test_the_best_six_pairs_of_encoders_show_their_layers_best_first():
    atlas = layered_atlas({f"vit_{i}": 2 for i in range(5)})
    for i, line in enumerate(atlas["layers"]):
        line["score"] = i / 20
    axes = plot_atlas(made(atlas))[f"layers_{METRIC}"].axes
    assert [panel.get_title("left").split(", ")[1][:4] for panel in axes] == [
        "0.45",
        "0.40",
        "0.35",
        "0.30",
        "0.25",
        "0.20",
    ]


@pytest.mark.parametrize("N", [2, 20])
def test_nothing_that_is_written_is_cut_off(N):
    named = made_atlas(N) | {"trend": made_trend(), "asymmetry": [made_asymmetry()]}
    for name, picture in plot_atlas(made(with_sizes(named, 10))).items():
        picture.draw_without_rendering()
        box = picture.get_tightbbox()
        width, height = picture.get_size_inches()
        assert box.x0 > -0.01, name
        assert box.y0 > -0.01, name
        assert box.x1 < width + 0.01, name
        assert box.y1 < height + 0.01, name


def test_an_atlas_is_written_into_a_folder_as_one_file_a_figure(tmp_path):
    atlas = made_atlas(2)
    paths = draw_atlas(made(atlas), tmp_path, ".svg")
    assert [path.name for path in paths] == ["heatmap_mutual_knn.svg", "map_mutual_knn.svg"]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert all(f">{space['name']}</text>" in text for space in atlas["spaces"])
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw_atlas(made(atlas), tmp_path, ".svg")] == before
    assert all(path.stat().st_size > 10_000 for path in draw_atlas(made(atlas), tmp_path))
    with pytest.raises(InputError, match="`plot` must be in an existing folder"):
        draw_atlas(made(atlas), tmp_path / "none")
