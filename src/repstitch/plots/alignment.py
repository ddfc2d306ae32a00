"""Pictures of an atlas: who is like whom, a map of models, and its trend, sizes, asymmetry and layers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repstitch.alignment.lineage import layers_by_encoder
from repstitch.errors import InputError
from repstitch.plots.canvas import GREY, figure, looks, save
from repstitch.plots.convergence import plot_asymmetry, plot_shared, plot_trend
from repstitch.plots.labels import name_points, points_across, shorten
from repstitch.plots.legends import (
    ITSELF,
    MISSING,
    POINTS,
    colour_bar,
    draw_cell,
    draw_scores,
    family_handles,
    family_strip,
    legend_beside,
    point_areas,
    size_handles,
)
from repstitch.spaces import Space

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = 0.05  # of the false discovery rate
NAMED = 30  # models: with more, the map names families
LAYER_PANELS = 6


def plot_atlas(atlas: Mapping) -> dict[str, Figure]:
    """All figures of an atlas by name: a heat map and a map a metric, and one for each thing more that it holds.

    Names can be file names: heatmap_METRIC, map_METRIC, sizes_METRIC, layers_METRIC (the six best pairs of encoders of
    which one has layers), trend, asymmetry_SOURCE_TARGET.
    """
    found: dict[str, Figure] = {}
    for metric in atlas["metrics"]:
        found[f"heatmap_{metric}"] = _square_cells(atlas, metric)
        found[f"map_{metric}"], (axes,) = figure(1, width=8.6, height=6)
        plot_map(axes, atlas, metric)
    if atlas.get("trend"):
        found["trend"], (axes,) = figure(1, width=7.6, height=4.8)
        plot_trend(axes, atlas["trend"])
    for metric in _metrics(atlas.get("sizes", {}).get("curves", ())):
        found[f"sizes_{metric}"], (axes,) = figure(1, width=8, height=4.4)
        plot_sizes(axes, atlas, metric)
    for pair in atlas.get("asymmetry", ()):
        found[f"asymmetry_{pair['source']}_{pair['target']}"], (left, right) = figure(2, width=5, height=4)
        plot_asymmetry(left, pair)
        plot_shared(right, pair)
    own = layers_by_encoder([Space.from_dict(card) for card in atlas["spaces"]])
    layered = {name for name, layers in own.items() if len(layers) > 1}
    for metric in _metrics(atlas.get("layers", ())):
        lines = [
            line for line in atlas["layers"] if line["metric"] == metric and layered & {line["source"], line["target"]}
        ]
        best = sorted(lines, key=lambda line: -line["score"])[:LAYER_PANELS]
        found[f"layers_{metric}"], panels = figure(len(best), width=4.4, height=4)
        for axes, line in zip(panels, best, strict=True):
            plot_layers(axes, atlas, line)
    return found


def draw_atlas(atlas: Mapping, folder: str | os.PathLike, ending: str = ".png") -> list[Path]:
    """Write all figures of an atlas into a folder, each under its name; returns the paths."""
    return [save(made, Path(folder) / f"{name}{ending}") for name, made in plot_atlas(atlas).items()]


def plot_heatmap(axes: Axes, atlas: Mapping, metric: str) -> Axes:
    """Scores of every two models as colours, alike ones beside one another; rows are sources, columns targets.

    A dot marks what is not above chance (q > .05), a triangle beside the colour bar where chance lies; a strip tells
    families, where they are known. Scores are written where there is room for them.
    """
    from matplotlib.patches import Patch

    result, order = _result(atlas, metric), atlas["order"][metric]
    N, at = len(order), _positions(atlas, order)
    scores, null, q = (_cells(result, measure, at, at) for measure in ("score", "null", "q"))
    np.fill_diagonal(scores, np.nan)
    pitch = min(points_across(axes)) / N
    numbers = pitch > 21
    image = draw_scores(axes, scores, null)
    handles: list[Artist] = [Patch(color=ITSELF, label="a model with itself")]
    missing = np.argwhere(np.isnan(scores) & ~np.eye(N, dtype=bool)).tolist()
    for row, column in missing:
        draw_cell(axes, row, column, lw=0, **MISSING)
    if missing:
        handles.append(Patch(label="not measured", **MISSING))
    if np.isfinite(q).any():
        rows, columns = np.nonzero(q > LEVEL)
        below = 0.33 if numbers else 0  # the number, for above it a dot would be read as a degree
        label = f"not above chance\n(q > {LEVEL:.2f})".replace("0.", ".")
        size = min(5.0, 0.28 * pitch) ** 2
        handles.append(axes.scatter(columns, rows + below, size, "white", edgecolor="black", lw=0.5, label=label))
    light = image.to_rgba(scores)[..., :3] @ [0.299, 0.587, 0.114]
    for row, column in np.argwhere(np.isfinite(scores)).tolist() if numbers else ():
        style: Any = {"color": "black" if light[row, column] > 0.5 else "white", "fontsize": min(9, 0.32 * pitch)}
        axes.text(column, row, f"{scores[row, column]:.2f}", ha="center", va="center", **style)
    names, size = [shorten(name) for name in order], float(np.clip(0.72 * pitch, 4, 9))
    slanted: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if N <= 20 else {"rotation": 90}
    axes.set_yticks(range(N), names, fontsize=size)
    axes.set_xticks(range(N), names, fontsize=size, **slanted)
    if not result["symmetric"]:
        axes.set_ylabel("source")
        axes.set_xlabel("target")
    axes.set_title(_about(atlas, metric), fontsize=10, loc="left")
    handles += colour_bar(axes, image, metric, null)
    handles += family_strip(axes, atlas, order, 10 / pitch)
    legend_beside(axes, handles, 76)
    return axes


def plot_map(axes: Axes, atlas: Mapping, metric: str) -> Axes:
    """Models as points, nearer where more alike; colour and marker tell the family, area the number of parameters.

    Up to 30 models are named; of more, each family, at the model nearest to its middle, or where none is known, the
    models whose names find room.
    """
    scores = np.array(_result(atlas, metric)["score"], dtype=float)
    spaces = atlas["spaces"]
    names = [shorten(space["name"]) for space in spaces]
    families = [space.get("family") for space in spaces]
    parameters = [space.get("parameters") for space in spaces]
    places = np.array([atlas["map"][metric][space["name"]] for space in spaces], dtype=float)
    few = len(names) <= NAMED
    scale = 1.0 if few else 0.5
    areas = scale * point_areas(parameters)
    drawn = looks(families)
    members = {family: [i for i, other in enumerate(families) if other == family] for family in drawn}
    for family, own in members.items():
        look = drawn[family]
        axes.scatter(places[own, 0], places[own, 1], areas[own], color=look.colour, marker=look.marker, **POINTS)
    axes.margins(0.1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(_what_distance_means(places, scores, metric), fontsize=9)
    axes.set_title(_about(atlas, metric), fontsize=10, loc="left")
    legend_beside(axes, [*size_handles(parameters, scale), *family_handles(drawn)])
    radii = areas**0.5 / 2
    if few:
        name_points(axes, names, places, radii)
    elif set(drawn) == {None}:
        name_points(axes, names, places, radii, size=7, thin=True)
    else:
        middles = {family: _most_central(places, own) for family, own in members.items() if family is not None}
        at = list(middles.values())
        name_points(axes, list(middles), places[at], radii[at], taken=places, weight="bold")
    return axes


def plot_sizes(axes: Axes, atlas: Mapping, metric: str | None = None) -> Axes:
    """Score against the number of items, each pair with a band of two standard errors, its null dashed.

    `metric` is the first that sizes were measured for unless given. Raises InputError where there are none.
    """
    found = atlas.get("sizes") or {"curves": []}
    measured = _metrics(found["curves"])
    if not measured:
        raise InputError("`atlas` must hold `sizes` to draw them, and this one has none; make it again with sizes.")
    metric = metric or measured[0]
    if metric not in measured:
        raise InputError(f"`metric` must be one that sizes were measured for, {', '.join(measured)}; got {metric!r}.")
    sizes, curves = found["sizes"], [curve for curve in found["curves"] if curve["metric"] == metric]
    way = "–" if atlas["metrics"][metric]["symmetric"] else "→"
    names = [f"{shorten(c['source'], 24)} {way} {shorten(c['target'], 24)}" for c in curves]
    drawn = looks(names)
    faint = 0.15 if len(curves) < 5 else 0.08
    handles: list[Any] = []
    for name, curve in zip(names, curves, strict=True):
        look, score, se = drawn[name], np.array(curve["score"], dtype=float), np.array(curve["se"], dtype=float)
        style: Any = {"color": look.colour, "ls": look.line, "marker": look.marker, "ms": 4, "lw": 1.6}
        handles += axes.plot(sizes, score, label=name, **style)
        axes.fill_between(sizes, score - 2 * se, score + 2 * se, color=look.colour, alpha=faint, lw=0)
        if "null" in curve:
            axes.plot(sizes, curve["null"], "--", color="black", lw=1)
    handles.sort(key=lambda handle: -handle.get_ydata()[-1])
    handles.append(axes.fill_between([], [], color=GREY, alpha=0.3, label="± 2 standard errors"))
    if any("null" in curve for curve in curves):
        handles += axes.plot([], [], "--", color="black", lw=1, label="null of each pair")
    axes.set_xscale("log", base=2)
    apart = [n for n, after in zip(sizes, [*sizes[1:], np.inf], strict=True) if after / n > 1.3]
    axes.set_xticks(apart, [f"{n:,}" for n in apart])
    axes.minorticks_off()
    axes.set_xlabel("number of items n; a score depends on n: never compare across n", fontsize=9)
    axes.set_ylabel(metric)
    axes.set_title(f"{metric} over the number of items", fontsize=10, loc="left")
    legend_beside(axes, handles)
    return axes


def plot_layers(axes: Axes, atlas: Mapping, line: Mapping) -> Axes:
    """Scores of each layer of one encoder with each of another, `line` of the atlas's `layers`; the best is framed."""
    result, metric, spaces = _result(atlas, line["metric"]), line["metric"], atlas["spaces"]
    best = _positions(atlas, (line["source_space"], line["target_space"]))
    rows, columns = (_layers_of(atlas, one) for one in best)
    null = _cells(result, "null", rows, columns)
    image = draw_scores(axes, _cells(result, "score", rows, columns), null)
    axes.invert_yaxis()
    for axis, own, name in ((axes.yaxis, rows, line["source"]), (axes.xaxis, columns, line["target"])):
        shown = range(0, len(own), -(-len(own) // 12))
        axis.set_ticks(list(shown), [_layer_name(spaces[own[i]]) for i in shown], fontsize=8)
        axis.set_label_text(f"layer of {shorten(name)}", fontsize=9)
    for colour, width in (("white", 4), ("black", 1.6)):
        draw_cell(axes, rows.index(best[0]), columns.index(best[1]), facecolor="none", edgecolor=colour, lw=width)
    found = f"best: layers {' and '.join(_layer_name(spaces[i]) for i in best)}, {line['score']:.2f}"
    if line.get("q") is not None:
        found += f" (q = {line['q']:.2g}{', not above chance' if line['q'] > LEVEL else ''})"
    axes.set_title(found, fontsize=9, loc="left")
    colour_bar(axes, image, f"{metric} (triangle: chance)" if np.isfinite(null).any() else metric, null)
    return axes


def _result(atlas: Mapping, metric: str) -> Mapping:
    if metric not in atlas["metrics"]:
        raise InputError(f"`metric` must be one of this atlas, {', '.join(atlas['metrics'])}; got {metric!r}.")
    return atlas["metrics"][metric]


def _metrics(lines: Iterable[Mapping]) -> list[str]:
    return list(dict.fromkeys(line["metric"] for line in lines))


def _positions(atlas: Mapping, names: Iterable[str]) -> list[int]:
    place = {space["name"]: i for i, space in enumerate(atlas["spaces"])}
    return [place[name] for name in names]


def _cells(result: Mapping, measure: str, rows: list[int], columns: list[int]) -> np.ndarray:
    """These rows and columns of one measure's matrix, NaN where there is no number, all of it where it was not made."""
    if measure not in result:
        return np.full((len(rows), len(columns)), np.nan)
    return np.array(result[measure], dtype=float)[np.ix_(rows, columns)]


def _about(atlas: Mapping, metric: str) -> str:
    what = f"{len(atlas['spaces'])} models"
    if atlas.get("layers"):
        encoders = layers_by_encoder([Space.from_dict(card) for card in atlas["spaces"]])
        what = f"{len(atlas['spaces'])} spaces of {len(encoders)} models"
    return f"{metric} of {what} on {atlas['n']:,} items"


def _square_cells(atlas: Mapping, metric: str) -> Figure:
    """A heat map on a figure as large as it needs: a side of so many inches, square cells, and names around them.

    The axes' aspect cannot be fixed instead: then the layout leaves too little room for names.
    """
    N = len(atlas["spaces"])
    side = max(1.8, N * (0.55 if N <= 12 else 0.33 if N <= 30 else 0.2 if N <= 50 else 0.15))
    made, (axes,) = figure(1, width=side / 0.775, height=side / 0.77)  # of which axes have `side` until it is laid out
    plot_heatmap(axes, atlas, metric)
    made.set_size_inches(side + 8, side + 8)  # more than enough, to measure what is around the cells
    made.draw_without_rendering()
    box = axes.get_window_extent()
    across, down = made.get_size_inches() - np.array([box.width, box.height]) / made.dpi
    made.set_size_inches(across + side * np.ptp(axes.get_xlim()) / np.ptp(axes.get_ylim()), down + side)
    return made


def _most_central(places: np.ndarray, own: list[int]) -> int:
    return own[int(np.linalg.norm(places[own] - places[own].mean(0), axis=1).argmin())]


def _what_distance_means(places: np.ndarray, scores: np.ndarray, metric: str) -> str:
    """The map's distances beside those it stands for, with their correlation where there are enough to tell."""
    i, j = np.triu_indices(len(places), 1)
    meant = 1 - (scores + scores.T)[i, j] / 2
    shown = np.linalg.norm(places[i] - places[j], axis=1)
    told = f"near means alike: distance stands for 1 − {metric}"
    known = np.isfinite(meant)
    if len(places) < 4 or min(np.ptp(meant[known]), np.ptp(shown[known])) == 0:
        return told
    return f"{told} (correlation {np.corrcoef(meant[known], shown[known])[0, 1]:.2f})"


def _layers_of(atlas: Mapping, position: int) -> list[int]:
    """The positions of all layers of the encoder that the space at `position` is a layer of, in order of depth."""
    spaces = [Space.from_dict(card) for card in atlas["spaces"]]
    own = next(own for own in layers_by_encoder(spaces).values() if position in own)
    return sorted(own, key=lambda i: (spaces[i].layer is None, spaces[i].layer))


def _layer_name(space: Mapping) -> str:
    return "last" if space.get("layer") is None else str(space["layer"])
