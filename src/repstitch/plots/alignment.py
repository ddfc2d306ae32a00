"""Plots of an atlas: heat maps and maps of the models, curves over sizes, layers, and the hypothesis tests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repstitch.alignment.lineage import layers_by_encoder
from repstitch.alignment.result import Atlas, LayerScore, SizeCurve
from repstitch.errors import InputError
from repstitch.plots.canvas import GREY, figure, looks, save
from repstitch.plots.convergence import plot_asymmetry, plot_shared, plot_trend
from repstitch.plots.labels import name_points, points_across, shorten, shorten_all
from repstitch.plots.legends import (
    ITSELF,
    MISSING,
    POINTS,
    colour_bar,
    draw_cell,
    draw_scores,
    family_handles,
    family_strip,
    legend_at_right,
    numbered_legend,
    point_areas,
    size_handles,
)
from repstitch.records import LEVEL
from repstitch.spaces import Space

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 30  # the largest number of models that a map names one by one; with more, it names families
LISTED = 46  # the longest name in a numbered legend, in characters
LAYER_PANELS = 6


def plot_atlas(atlas: Atlas) -> dict[str, Figure]:
    """Draw all figures of an atlas and return them by name.

    There is a heat map and a map for each metric, and a figure for each further result that the atlas contains. Names
    can be used as file names: heatmap_METRIC, map_METRIC, sizes_METRIC, layers_METRIC (the six most similar pairs of
    encoders of which at least one has several layers), trend, asymmetry_SOURCE_TARGET.
    """
    figures: dict[str, Figure] = {}
    for metric in atlas.metrics:
        figures[f"heatmap_{metric}"] = _square_cells(atlas, metric)
        figures[f"map_{metric}"], (axes,) = figure(1, width=8.6, height=6)
        plot_map(axes, atlas, metric)
    if atlas.trend is not None:
        figures["trend"], (axes,) = figure(1, width=7.6, height=4.8)
        plot_trend(axes, atlas.trend)
    for metric in _size_metrics(atlas):
        figures[f"sizes_{metric}"], (axes,) = figure(1, width=8, height=4.4)
        plot_sizes(axes, atlas, metric)
    for pair in atlas.asymmetry:
        figures[f"asymmetry_{pair.source}_{pair.target}"], (left, right) = figure(2, width=5, height=4)
        plot_asymmetry(left, pair)
        plot_shared(right, pair)
    with_layers = {name for name, layers in layers_by_encoder(atlas.spaces).items() if len(layers) > 1}
    for metric in _metrics_of(atlas.layers):
        pairs = [pair for pair in atlas.layers if pair.metric == metric and with_layers & {pair.source, pair.target}]
        best = sorted(pairs, key=lambda pair: -pair.score)[:LAYER_PANELS]
        figures[f"layers_{metric}"], panels = figure(len(best), width=4.4, height=4)
        for axes, pair in zip(panels, best, strict=True):
            plot_layers(axes, atlas, pair)
    return figures


def draw_atlas(atlas: Atlas, folder: str | os.PathLike[str], ending: str = ".png") -> list[Path]:
    """Write all figures of an atlas into a folder, each under its name, and return the paths."""
    return [save(picture, Path(folder) / f"{name}{ending}") for name, picture in plot_atlas(atlas).items()]


def plot_heatmap(axes: Axes, atlas: Atlas, metric: str) -> Axes:
    """Draw the scores of all pairs of models as colours, in clustering order; rows are sources, columns are targets.

    A dot marks a score that is not above chance (q > .05), and a triangle at the colour bar marks the chance level. A
    strip at the left shows the families if any card states one. Cells that are large enough show their score.
    """
    from matplotlib.patches import Patch

    order = atlas.order(metric)
    N, positions = len(order), _positions(atlas, order)
    scores, null, q = (_cells(atlas, metric, measure, positions, positions) for measure in ("score", "null", "q"))
    np.fill_diagonal(scores, np.nan)
    pitch = min(points_across(axes)) / N
    numbers = pitch > 21
    image = draw_scores(axes, scores, null)
    handles: list[Artist] = [Patch(color=ITSELF, label="same model")]
    missing = np.argwhere(np.isnan(scores) & ~np.eye(N, dtype=bool)).tolist()
    for row, column in missing:
        draw_cell(axes, row, column, lw=0, **MISSING)
    if missing:
        handles.append(Patch(label="not measured", **MISSING))
    if np.isfinite(q).any():
        rows, columns = np.nonzero(q > LEVEL)
        below = 0.33 if numbers else 0  # below the number, because above it the dot would look like a degree sign
        label = f"not above chance\n(q > {LEVEL:.2f})".replace("0.", ".")
        size = min(5.0, 0.28 * pitch) ** 2
        handles.append(axes.scatter(columns, rows + below, size, "white", edgecolor="black", lw=0.5, label=label))
    if numbers:
        _write_scores(axes, scores, image.to_rgba(scores), size=min(9, 0.32 * pitch))
    names, size = shorten_all(order), float(np.clip(0.72 * pitch, 4, 9))
    slanted: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if N <= 20 else {"rotation": 90}
    axes.set_yticks(range(N), names, fontsize=size)
    axes.set_xticks(range(N), names, fontsize=size, **slanted)
    if not atlas.symmetric(metric):
        axes.set_ylabel("source")
        axes.set_xlabel("target")
    axes.set_title(_title(atlas, metric), fontsize=10, loc="left")
    handles += colour_bar(axes, image, metric, null)
    handles += family_strip(axes, {space.name: space.family for space in atlas.spaces}, order, 10 / pitch)
    legend_at_right(axes, handles, 76)
    return axes


def _write_scores(axes: Axes, scores: np.ndarray, colours: np.ndarray, size: float) -> None:
    """Write each score into its cell, in black on light `colours` (N, N, 4) and in white on dark `colours`."""
    light = colours[..., :3] @ [0.299, 0.587, 0.114]
    for row, column in np.argwhere(np.isfinite(scores)).tolist():
        colour = "black" if light[row, column] > 0.5 else "white"
        text = f"{scores[row, column]:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def plot_map(axes: Axes, atlas: Atlas, metric: str) -> Axes:
    """Draw models as points, nearer to each other where more similar; colour and marker show the family.

    The area of a point grows with the number of parameters. Up to 30 models are named next to their points; where the
    names would cover each other, points have numbers instead and the legend lists the names. With more models, each
    family is named at its most central model, or where no family is known, the models whose names have enough room.
    """
    scores, places_by_name, spaces = atlas.scores(metric), atlas.map(metric), atlas.spaces
    names = [space.name for space in spaces]
    families = [space.family for space in spaces]
    parameters = [space.parameters for space in spaces]
    places = np.array([places_by_name[name] for name in names], dtype=float)
    few = len(names) <= NAMED
    scale = 1.0 if few else 0.5
    areas = scale * point_areas(parameters)
    family_looks = looks(families)
    members = {family: [i for i, other in enumerate(families) if other == family] for family in family_looks}
    for family, positions in members.items():
        look, points = family_looks[family], places[positions]
        axes.scatter(points[:, 0], points[:, 1], areas[positions], color=look.colour, marker=look.marker, **POINTS)
    axes.margins(0.1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(_meaning_of_distance(places, scores, metric), fontsize=9)
    axes.set_title(_title(atlas, metric), fontsize=10, loc="left")
    handles = size_handles(parameters, scale)
    legend_at_right(axes, [*handles, *family_handles(family_looks)])
    radii = areas**0.5 / 2
    if few:
        if not name_points(axes, shorten_all(names), places, radii, only_if_clear=True):
            listed = shorten_all(names, LISTED)
            numbers = numbered_legend(axes, handles, dict(zip(listed, families, strict=True)), family_looks)
            name_points(axes, [numbers[name] for name in listed], places, radii, size=7)
    elif set(family_looks) == {None}:
        name_points(axes, shorten_all(names), places, radii, size=7, thin=True)
    else:
        centres = {
            family: _most_central(places, positions) for family, positions in members.items() if family is not None
        }
        at = list(centres.values())
        name_points(axes, list(centres), places[at], radii[at], occupied=places, weight="bold")
    return axes


def plot_sizes(axes: Axes, atlas: Atlas, metric: str | None = None) -> Axes:
    """Plot the score of each pair against the number of items, with a band of ± 2 standard errors and a dashed null.

    `metric` is by default the first metric that was scored at several sizes. Raises InputError if the atlas has no
    `sizes`.
    """
    measured, sizes = _size_metrics(atlas), atlas.sizes
    if sizes is None or not measured:
        raise InputError("`atlas` must contain `sizes`; this one has none. Compute the atlas again with `sizes`.")
    metric = metric or measured[0]
    if metric not in measured:
        raise InputError(
            f"`metric` must be a metric with scores at several sizes ({', '.join(measured)}); got {metric!r}."
        )
    ns, curves = sizes.sizes, [curve for curve in sizes.curves if curve.metric == metric]
    sign = "–" if atlas.symmetric(metric) else "→"
    names = [f"{shorten(curve.source, 24)} {sign} {shorten(curve.target, 24)}" for curve in curves]
    pair_looks = looks(names)
    faint = 0.15 if len(curves) < 5 else 0.08
    handles: list[Any] = []
    for name, curve in zip(names, curves, strict=True):
        look, score, se = pair_looks[name], np.array(curve.score, dtype=float), np.array(curve.se, dtype=float)
        style: Any = {"color": look.colour, "ls": look.line, "marker": look.marker, "ms": 4, "lw": 1.6}
        handles += axes.plot(ns, score, label=name, **style)
        axes.fill_between(ns, score - 2 * se, score + 2 * se, color=look.colour, alpha=faint, lw=0)
        if curve.null is not None:
            axes.plot(ns, curve.null, "--", color="black", lw=1)
    handles.sort(key=lambda handle: -handle.get_ydata()[-1])
    handles.append(axes.fill_between([], [], color=GREY, alpha=0.3, label="± 2 standard errors"))
    if any(curve.null is not None for curve in curves):
        handles += axes.plot([], [], "--", color="black", lw=1, label="null of each pair (chance level)")
    axes.set_xscale("log", base=2)
    apart = [n for n, after in zip(ns, [*ns[1:], np.inf], strict=True) if after / n > 1.3]
    axes.set_xticks(apart, [f"{n:,}" for n in apart])
    axes.minorticks_off()
    axes.set_xlabel("number of items n (scores at different n are not comparable)", fontsize=9)
    axes.set_ylabel(metric)
    axes.set_title(f"{metric} by number of items", fontsize=10, loc="left")
    legend_at_right(axes, handles)
    return axes


def plot_layers(axes: Axes, atlas: Atlas, pair: LayerScore) -> Axes:
    """Draw the scores of all layers of one encoder with all layers of another, with a frame around the best pair.

    `pair` is one of `atlas.layers`.
    """
    metric, spaces = pair.metric, atlas.spaces
    best = _positions(atlas, (pair.source_space, pair.target_space))
    rows, columns = (_layers_of(spaces, position) for position in best)
    null = _cells(atlas, metric, "null", rows, columns)
    image = draw_scores(axes, _cells(atlas, metric, "score", rows, columns), null)
    axes.invert_yaxis()
    for axis, layers, name in ((axes.yaxis, rows, pair.source), (axes.xaxis, columns, pair.target)):
        shown = range(0, len(layers), -(-len(layers) // 12))
        axis.set_ticks(list(shown), [_layer_name(spaces[layers[i]]) for i in shown], fontsize=8)
        axis.set_label_text(f"layer of {shorten(name)}", fontsize=9)
    for colour, width in (("white", 4), ("black", 1.6)):
        draw_cell(axes, rows.index(best[0]), columns.index(best[1]), facecolor="none", edgecolor=colour, lw=width)
    title = f"best: layers {' and '.join(_layer_name(spaces[i]) for i in best)}, {pair.score:.2f}"
    if pair.q is not None:
        title += f" (q = {pair.q:.2g}{', not above chance' if pair.q > LEVEL else ''})"
    axes.set_title(title, fontsize=9, loc="left")
    colour_bar(axes, image, f"{metric} (triangle: chance)" if np.isfinite(null).any() else metric, null)
    return axes


def _metrics_of(records: Iterable[LayerScore] | Iterable[SizeCurve]) -> list[str]:
    return list(dict.fromkeys(record.metric for record in records))


def _size_metrics(atlas: Atlas) -> list[str]:
    """Names of the metrics that were scored at several sizes."""
    return [] if atlas.sizes is None else _metrics_of(atlas.sizes.curves)


def _positions(atlas: Atlas, names: Iterable[str]) -> list[int]:
    position = {name: i for i, name in enumerate(atlas.names)}
    return [position[name] for name in names]


def _cells(atlas: Atlas, metric: str, measure: str, rows: list[int], columns: list[int]) -> np.ndarray:
    """Return these rows and columns of the matrix of one measure, NaN where there is no number."""
    if measure not in atlas.measures(metric):
        return np.full((len(rows), len(columns)), np.nan)
    return atlas.matrix(metric, measure)[np.ix_(rows, columns)]


def _title(atlas: Atlas, metric: str) -> str:
    spaces = atlas.spaces
    models = (
        f"{len(spaces)} spaces of {len(layers_by_encoder(spaces))} models" if atlas.layers else f"{len(spaces)} models"
    )
    return f"{metric} of {models} on {atlas.n:,} items"


def _square_cells(atlas: Atlas, metric: str) -> Figure:
    """Draw a heat map with square cells on a figure just large enough for the cells and the names next to them.

    Setting the aspect of the axes to "equal" does not work instead: the layout then leaves too little room for names.
    """
    N = len(atlas.names)
    side = max(1.8, N * (0.55 if N <= 12 else 0.33 if N <= 30 else 0.2 if N <= 50 else 0.15))
    picture, (axes,) = figure(1, width=side / 0.775, height=side / 0.77)  # makes the axes `side` wide before the layout
    plot_heatmap(axes, atlas, metric)
    picture.set_size_inches(side + 8, side + 8)  # large enough to measure the labels around the cells
    picture.draw_without_rendering()
    box = axes.get_window_extent()
    across, down = picture.get_size_inches() - np.array([box.width, box.height]) / picture.dpi
    picture.set_size_inches(across + side * np.ptp(axes.get_xlim()) / np.ptp(axes.get_ylim()), down + side)
    return picture


def _most_central(places: np.ndarray, positions: list[int]) -> int:
    """Return the position of the point that is nearest to the mean of the points at `positions`."""
    distances = np.linalg.norm(places[positions] - places[positions].mean(0), axis=1)
    return positions[int(distances.argmin())]


def _meaning_of_distance(places: np.ndarray, scores: np.ndarray, metric: str) -> str:
    """Describe what distances on the map approximate, with the correlation of the two for four models or more."""
    i, j = np.triu_indices(len(places), 1)
    meant = 1 - (scores + scores.T)[i, j] / 2
    shown = np.linalg.norm(places[i] - places[j], axis=1)
    meaning = f"distance approximates 1 − {metric}"
    measured = np.isfinite(meant)
    if len(places) < 4 or min(np.ptp(meant[measured]), np.ptp(shown[measured])) == 0:
        return meaning
    return f"{meaning} (correlation {np.corrcoef(meant[measured], shown[measured])[0, 1]:.2f})"


def _layers_of(spaces: Sequence[Space], position: int) -> list[int]:
    """Return the positions of all layers of the encoder that the space at `position` belongs to, in order of depth."""
    layers = next(layers for layers in layers_by_encoder(spaces).values() if position in layers)
    return sorted(layers, key=lambda i: (spaces[i].layer is None, spaces[i].layer))


def _layer_name(space: Space) -> str:
    return "last" if space.layer is None else str(space.layer)
