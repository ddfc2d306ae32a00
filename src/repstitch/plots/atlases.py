"""Pictures of an atlas: who is like whom, a map of models, and its trend, sizes, asymmetry and layers."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repstitch.errors import InputError
from repstitch.plots.canvas import BLUE, GREY, Look, figure, looks, save
from repstitch.plots.labels import beside, name_points, points_across, shorten
from repstitch.plots.stitchers import plot_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = 0.05  # of the false discovery rate
COLOUR_MAP = "viridis"
NAMED = 30  # models: with more, the map names families
NAMED_POINTS = 16  # models of a trend, beside the line and the band
LAYER_PANELS = 6
UNKNOWN = "family not known"
POINTS: Any = {"edgecolor": "black", "lw": 0.5, "zorder": 3}


def plot_atlas(atlas: Mapping) -> dict[str, Figure]:
    """All figures of an atlas by name: a heat map and a map a metric, and one for each thing more that it holds.

    Names can be file names: heatmap_METRIC, map_METRIC, sizes_METRIC, layers_METRIC (the six best pairs of encoders),
    trend, asymmetry_SOURCE_TARGET.
    """
    found: dict[str, Figure] = {}
    side = _side(len(atlas["spaces"]))
    for metric in atlas["metrics"]:
        made, (axes,) = figure(1, width=side / 0.775, height=side / 0.77)  # of which the axes have `side` at first
        plot_heatmap(axes, atlas, metric)
        _grow(made, axes, side)
        found[f"heatmap_{metric}"] = made
        found[f"map_{metric}"], (axes,) = figure(1, width=8.6, height=6)
        plot_map(axes, atlas, metric)
    if atlas.get("trend"):
        found["trend"], (axes,) = figure(1, width=7.6, height=4.8)
        plot_trend(axes, atlas["trend"])
    for metric in dict.fromkeys(curve["metric"] for curve in atlas.get("sizes", {}).get("curves", ())):
        found[f"sizes_{metric}"], (axes,) = figure(1, width=8, height=4.4)
        plot_sizes(axes, atlas, metric)
    for pair in atlas.get("asymmetry", ()):
        made, (left, right) = figure(2, width=5, height=4)
        plot_asymmetry(left, pair)
        plot_shared(right, pair)
        found[f"asymmetry_{pair['source']}_{pair['target']}"] = made
    for metric in dict.fromkeys(line["metric"] for line in atlas.get("layers", ())):
        lines = [line for line in atlas["layers"] if line["metric"] == metric]
        best = sorted(lines, key=lambda line: -line["score"])[:LAYER_PANELS]
        found[f"layers_{metric}"], panels = figure(len(best), width=4.4, height=4)
        layout: Any = found[f"layers_{metric}"].get_layout_engine()
        layout.set(w_pad=0.12, h_pad=0.12)
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
    result = _result(atlas, metric)
    order, place = atlas["order"][metric], {space["name"]: i for i, space in enumerate(atlas["spaces"])}
    at = np.ix_([place[name] for name in order], [place[name] for name in order])
    N = len(order)
    matrices = {m: np.array(result[m], dtype=float)[at] for m in ("score", "null", "q") if m in result}
    scores = matrices["score"]
    np.fill_diagonal(scores, np.nan)
    image = _coloured(axes, scores, matrices.get("null"))
    pitch = min(points_across(axes)) / N
    size = float(np.clip(0.72 * pitch, 4, 9))
    own = axes.fill_between([], [], color="#DDDDDD", label="a model with itself")
    axes.add_collection(_squares([(i, i) for i in range(N)], own.get_facecolor()))
    handles: list = [own]
    off = ~np.eye(N, dtype=bool)
    if np.isnan(scores[off]).any():
        missing = axes.fill_between([], [], facecolor="white", edgecolor=GREY, hatch="////", label="not measured")
        axes.add_collection(_squares(np.argwhere(np.isnan(scores) & off)[:, ::-1].tolist(), "white", GREY, "////"))
        handles.append(missing)
    numbers = pitch > 21
    if "q" in matrices:
        rows, columns = np.nonzero(matrices["q"] > LEVEL)
        dots = axes.scatter(
            columns,
            rows + (0.33 if numbers else 0),  # below the number, for above it would be read as a degree
            s=min(5.0, 0.28 * pitch) ** 2,
            color="white",
            edgecolor="black",
            lw=0.5,
            label=f"not above chance\n(q > {LEVEL:.2f})".replace("0.", "."),
        )
        handles.append(dots)
    if numbers:
        for i, j in np.argwhere(~np.isnan(scores)):
            ink = _ink(image, float(scores[i, j]))
            axes.text(j, i, f"{scores[i, j]:.2f}", ha="center", va="center", color=ink, fontsize=min(9, 0.32 * pitch))
    _name_sides(axes, order, size, result["symmetric"])
    strip = _family_strip(axes, atlas, order, 10 / pitch)
    axes.set_title(_about(atlas, metric), fontsize=10, loc="left")
    handles += _colour_bar(axes, image, metric, matrices.get("null"))
    _legend_beside(axes, handles, strip)
    return axes


def plot_map(axes: Axes, atlas: Mapping, metric: str) -> Axes:
    """Models as points, nearer where more alike; colour and marker tell the family, area the number of parameters.

    Up to 30 models are named; of more, each family, at the model nearest to its middle.
    """
    result = _result(atlas, metric)
    spaces = atlas["spaces"]
    names = [space["name"] for space in spaces]
    families = [space.get("family") for space in spaces]
    places = np.array([atlas["map"][metric][name] for name in names], dtype=float)
    parameters = [space.get("parameters") for space in spaces]
    areas = _areas(parameters) * (1 if len(names) <= NAMED else 0.5)
    drawn = looks(families)
    for family, look in drawn.items():
        own = [i for i, other in enumerate(families) if other == family]
        axes.scatter(places[own, 0], places[own, 1], areas[own], color=look.colour, marker=look.marker, **POINTS)
    axes.margins(0.1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(_what_distance_means(places, np.array(result["score"], dtype=float), metric), fontsize=9)
    axes.set_title(_about(atlas, metric), fontsize=10, loc="left")
    known = set(drawn) != {None}
    _legend_beside(axes, _size_handles(parameters), drawn if known else {}, bar=False)
    radii = areas**0.5 / 2
    if len(names) <= NAMED:
        name_points(axes, [shorten(name) for name in names], places.tolist(), radii.tolist())
    elif known:
        middles = {family: _most_central(places, families, family) for family in drawn if family is not None}
        at = list(middles.values())
        name_points(axes, list(middles), places[at].tolist(), radii[at].tolist(), places.tolist(), weight="bold")
    else:
        name_points(axes, [shorten(name) for name in names], places.tolist(), radii.tolist(), size=7, thin=True)
    return axes


def plot_trend(axes: Axes, trend: Mapping) -> Axes:
    """Alignment of each model against a column, by family, with the line through them and where chance puts it.

    The column's axis is logarithmic where all values are positive and span a factor of ten, as the band was made. Up to
    16 models are named. The title is the verdict, which states rank correlation, interval and p.
    """
    models, band = trend["models"], trend["null_band"]
    values = np.array([model["value"] for model in models])
    alignment = [model["alignment"] for model in models]
    log = values.min() > 0 and values.max() >= 10 * values.min()
    axes.fill_between(
        band["value"],
        band["low"],
        band["high"],
        color="#DDDDDD",
        lw=0,
        label=f"chance: 95 % of lines\nwith {trend['column']} shuffled",
    )
    if "line" in band:
        axes.plot(band["value"], band["line"], color="black", lw=1.2, label="straight line")
    handles, _ = axes.get_legend_handles_labels()
    drawn = looks(model["family"] for model in models)
    for family, look in drawn.items():
        own = [i for i, model in enumerate(models) if model["family"] == family]
        axes.scatter(values[own], [alignment[i] for i in own], 46, color=look.colour, marker=look.marker, **POINTS)
    if log:
        axes.set_xscale("log")
        axes.margins(x=0.08)
    axes.margins(y=0.1)
    axes.set_xlabel(trend["column"].replace("_", " "))
    against = f"the {len(trend['against'])} others chosen" if trend.get("against") else "the others"
    axes.set_ylabel(f"mean {trend['metric']} with {against}", fontsize=9)
    axes.set_title("\n".join(textwrap.wrap(trend["verdict"], _wrap(axes, 9))), fontsize=9, loc="left")
    known = set(drawn) != {None}
    _legend_beside(axes, handles, drawn if known else {}, bar=False)
    if len(models) <= NAMED_POINTS:
        places = list(zip(values.tolist(), alignment, strict=True))
        line = list(zip(band["value"], band.get("line", ()), strict=False))
        name_points(axes, [shorten(model["name"], 24) for model in models], places, taken=line, size=7)
    return axes


def plot_sizes(axes: Axes, atlas: Mapping, metric: str | None = None) -> Axes:
    """Score against the number of items, each pair with a band of two standard errors, its null dashed.

    `metric` is the first that sizes were measured for unless given. Raises InputError where there are none.
    """
    sizes = atlas.get("sizes") or {"curves": []}
    measured = list(dict.fromkeys(curve["metric"] for curve in sizes["curves"]))
    if not measured:
        raise InputError("`atlas` must hold `sizes` to draw them, and this one has none; make it again with sizes.")
    metric = metric or measured[0]
    if metric not in measured:
        raise InputError(f"`metric` must be one that sizes were measured for, {', '.join(measured)}; got {metric!r}.")
    way = "–" if atlas["metrics"][metric]["symmetric"] else "→"
    curves = [curve for curve in sizes["curves"] if curve["metric"] == metric]
    names = [f"{shorten(c['source'], 24)} {way} {shorten(c['target'], 24)}" for c in curves]
    drawn = looks(names)
    handles: list = []
    for name, curve in zip(names, curves, strict=True):
        look, score, se = drawn[name], np.array(curve["score"], dtype=float), np.array(curve["se"], dtype=float)
        handles += axes.plot(
            sizes["sizes"], score, look.line, color=look.colour, marker=look.marker, ms=4, lw=1.6, label=name
        )
        axes.fill_between(
            sizes["sizes"],
            score - 2 * se,
            score + 2 * se,
            color=look.colour,
            alpha=0.15 if len(curves) < 5 else 0.08,
            lw=0,
        )
        if "null" in curve:
            axes.plot(sizes["sizes"], curve["null"], "--", color="black", lw=1)
    handles.sort(key=lambda handle: -handle.get_ydata()[-1])
    handles.append(axes.fill_between([], [], color=GREY, alpha=0.3, label="± 2 standard errors"))
    if any("null" in curve for curve in curves):
        handles += axes.plot([], [], "--", color="black", lw=1, label="null of each pair")
    axes.set_xscale("log", base=2)
    kept = [n for n, after in zip(sizes["sizes"], [*sizes["sizes"][1:], np.inf], strict=True) if after / n > 1.3]
    axes.set_xticks(kept, [f"{n:,}" for n in kept])
    axes.minorticks_off()
    axes.set_xlabel("number of items n; a score depends on n: never compare across n", fontsize=9)
    axes.set_ylabel(metric)
    axes.set_title(f"{metric} over the number of items", fontsize=10, loc="left")
    _legend_beside(axes, handles, {}, bar=False)
    return axes


def plot_asymmetry(axes: Axes, asymmetry: Mapping) -> Axes:
    """R² of each of two spaces predicted from the other, with intervals, above what shuffled rows give."""
    source, target = (shorten(asymmetry[side], 22) for side in ("source", "target"))
    ways = ("forward", "backward")
    heights = [asymmetry[f"r2_{way}"] for way in ways]
    ends = np.array([asymmetry[f"r2_{way}_interval"] for way in ways])
    axes.bar([0, 1], heights, 0.55, color=[BLUE, looks("ab")["b"].colour])
    axes.vlines([0, 1], ends[:, 0], ends[:, 1], color="black", lw=1.4)
    for i, way in enumerate(ways):
        high = asymmetry[f"null_{way}"]["high"]
        label = None if i else "shuffled rows, 95 %"
        axes.plot([i - 0.36, i + 0.36], [high, high], "--", color="black", lw=1.4, label=label)
        top = max(heights[i], ends[i, 1], high)
        axes.annotate(f"{heights[i]:.2f}", (i, top), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    axes.axhline(0, color="black", lw=0.8)
    left = asymmetry["left_over"]
    axes.set_xticks(
        [0, 1],
        [
            f"{one}\n→ {other}\n{left[side]['variance']:.0%} of the variance left over"
            for one, other, side in ((source, target, "target"), (target, source, "source"))
        ],
        fontsize=9,
    )
    axes.set_xlim(-0.6, 1.6)
    low, high = min(0.0, *ends[:, 0], *heights), max(*ends[:, 1], *heights, 0.05)
    axes.set_ylim(low * 1.1, high + 0.3 * (high - low))
    axes.set_ylabel("R² on rows not fitted to")
    axes.set_title("\n".join(textwrap.wrap(asymmetry["verdict"], _wrap(axes, 9))), fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return axes


def plot_shared(axes: Axes, asymmetry: Mapping) -> Axes:
    """The spectrum of directions that the two spaces share, as a stitcher's scorecard shows it."""
    return plot_spectrum(axes, asymmetry["shared"])


def plot_layers(axes: Axes, atlas: Mapping, line: Mapping) -> Axes:
    """Scores of each layer of one encoder with each of another, `line` of the atlas's `layers`; the best is framed."""
    result = _result(atlas, line["metric"])
    place = {space["name"]: i for i, space in enumerate(atlas["spaces"])}
    rows, columns = (_layers_of(atlas["spaces"], line[f"{side}_space"]) for side in ("source", "target"))
    at = np.ix_([place[space["name"]] for space in rows], [place[space["name"]] for space in columns])
    scores = np.array(result["score"], dtype=float)[at]
    null = np.array(result["null"], dtype=float)[at] if "null" in result else None
    image = _coloured(axes, scores, null)
    axes.invert_yaxis()
    for axis, spaces, name in ((axes.yaxis, rows, line["source"]), (axes.xaxis, columns, line["target"])):
        every = -(-len(spaces) // 12)
        shown = range(0, len(spaces), every)
        axis.set_ticks(list(shown), [_layer_name(spaces[i]) for i in shown], fontsize=8)
        axis.set_label_text(f"layer of {shorten(name)}", fontsize=9)
    i = [space["name"] for space in rows].index(line["source_space"])
    j = [space["name"] for space in columns].index(line["target_space"])
    axes.add_collection(_squares([(j, i)], "none", "white", lw=4))
    axes.add_collection(_squares([(j, i)], "none", "black", lw=1.6))
    found = f"best: layers {_layer_name(rows[i])} and {_layer_name(columns[j])}, {line['score']:.2f}"
    if line.get("q") is not None:
        found += f" (q = {line['q']:.2g}{', not above chance' if line['q'] > LEVEL else ''})"
    axes.set_title(found, fontsize=9, loc="left")
    _colour_bar(axes, image, line["metric"] if null is None else f"{line['metric']} (triangle: chance)", null)
    return axes


def _result(atlas: Mapping, metric: str) -> Mapping:
    if metric not in atlas["metrics"]:
        raise InputError(f"`metric` must be one of this atlas, {', '.join(atlas['metrics'])}; got {metric!r}.")
    return atlas["metrics"][metric]


def _about(atlas: Mapping, metric: str) -> str:
    return f"{metric} of {len(atlas['spaces'])} models on {atlas['n']:,} items"


def _side(N: int) -> float:
    """Inches for N models in a heat map."""
    return max(1.8, N * (0.55 if N <= 12 else 0.33 if N <= 30 else 0.2 if N <= 50 else 0.15))


def _grow(made: Figure, axes: Axes, side: float) -> None:
    """Give the figure the size at which the axes are `side` inches high, cells are square, and names have room.

    The axes' aspect cannot be fixed instead: then the layout leaves too little room for names.
    """
    made.set_size_inches(*(made.get_size_inches() + 8))  # so that there is room for what is around, to measure it
    made.draw_without_rendering()
    box = axes.get_window_extent()
    wide = side * np.ptp(axes.get_xlim()) / np.ptp(axes.get_ylim())
    across, down = made.get_size_inches()
    made.set_size_inches(across + wide - box.width / made.dpi, down + side - box.height / made.dpi)


def _wrap(axes: Axes, size: float) -> int:
    """How many letters fit beside one another over the axes."""
    return max(20, int(points_across(axes)[0] / (0.5 * size)))


# --- heat maps --------------------------------------------------------------------------------------------------------


def _coloured(axes: Axes, scores: np.ndarray, null: np.ndarray | None) -> Any:
    """The scores as an image whose colours reach from chance, or below, to the highest."""
    levels = scores if null is None else np.concatenate([scores.ravel(), null.ravel()])
    known = levels[np.isfinite(levels)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    high = max(high, low + 0.01)
    low -= 0.04 * (high - low)  # so that chance is a level on the bar, not its end
    image = axes.imshow(scores, cmap=COLOUR_MAP, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def _colour_bar(axes: Axes, image: Any, label: str, null: np.ndarray | None) -> list:
    """A colour bar beside the axes, a triangle where chance lies; returns what the legend must explain."""
    inset = axes.inset_axes((14, 0, 10, 1), transform=beside(axes))
    bar = axes.figure.colorbar(image, cax=inset)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=9)
    if null is None or not np.isfinite(null).any():
        return []
    middle = float(np.nanmedian(null))
    known = null[np.isfinite(null)]
    inset.plot([-0.45, -0.45], [known.min(), known.max()], color="black", lw=1.5, clip_on=False)
    return inset.plot(
        [-0.45], [middle], ">", color="black", ms=6, lw=0, clip_on=False, label=f"chance, median {middle:.2g}"
    )


def _squares(cells: Sequence, face: Any, edge: Any = "none", hatch: str | None = None, lw: float = 0.0) -> Any:
    """The given cells (column, row) of a heat map as squares."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    squares = [Rectangle((x - 0.5, y - 0.5), 1, 1) for x, y in cells]
    return PatchCollection(squares, facecolor=face, edgecolor=edge, hatch=hatch, lw=lw, zorder=2)


def _ink(image: Any, value: float) -> str:
    """Black or white, whichever is read on the colour of a value."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _name_sides(axes: Axes, order: Sequence[str], size: float, symmetric: bool) -> None:
    names = [shorten(name) for name in order]
    axes.set_yticks(range(len(names)), names, fontsize=size)
    slanted: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(names) <= 20 else {"rotation": 90}
    axes.set_xticks(range(len(names)), names, fontsize=size, **slanted)
    if not symmetric:
        axes.set_ylabel("source")
        axes.set_xlabel("target")


def _family_strip(axes: Axes, atlas: Mapping, order: Sequence[str], wide: float) -> Mapping[str | None, Look]:
    """Colour each row's family at its left, `wide` cells wide; returns the looks of the families that are known."""
    from matplotlib.patches import Rectangle

    family = {space["name"]: space.get("family") for space in atlas["spaces"]}
    if not any(family.values()):
        return {}
    drawn = looks(family.values())
    for i, name in enumerate(order):
        look = drawn[family[name]]
        left = -0.5 - 1.4 * wide
        axes.add_patch(
            Rectangle((left, i - 0.5), wide, 1, facecolor=look.colour, edgecolor="white", hatch=look.hatch, lw=0)
        )
    axes.set_xlim(-0.5 - 1.5 * wide, len(order) - 0.5)
    return drawn


def _legend_beside(axes: Axes, handles: Sequence, families: Mapping[str | None, Look], bar: bool = True) -> None:
    """The legend at the right of the axes, beyond the colour bar where there is one; families as areas or as points."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if not handles and not families:
        return
    every = [
        Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", label=family or UNKNOWN)
        if bar
        else Line2D([], [], color=look.colour, marker=look.marker, lw=0, label=family or UNKNOWN)
        for family, look in families.items()
    ]
    axes.legend(
        handles=[*handles, *every],
        loc="upper left",
        bbox_to_anchor=(76 if bar else 6, 1),
        bbox_transform=beside(axes),
        borderaxespad=0,
        fontsize=8,
        frameon=False,
        handleheight=1,
    )


# --- maps of models ---------------------------------------------------------------------------------------------------


def _areas(parameters: Sequence[int | None]) -> np.ndarray:
    """Marker areas (N,) in square points, by the logarithm of the number of parameters, from a million on."""
    known = np.array([np.nan if count is None else count for count in parameters], dtype=float)
    reach = np.clip((np.log10(known) - 6) / 5, 0, 1)
    return np.where(np.isnan(known), 50, 20 + 180 * reach)


def _size_handles(parameters: Sequence[int | None]) -> list:
    """Legend entries for the smallest and the largest number of parameters; none where no two differ."""
    from matplotlib.lines import Line2D

    known = [count for count in parameters if count is not None]
    if not known or min(known) == max(known):
        return []
    ends = [min(known), max(known)]
    return [
        Line2D([], [], marker="o", color=GREY, lw=0, ms=float(area) ** 0.5, label=f"{_short_count(count)} parameters")
        for count, area in zip(ends, _areas(ends), strict=True)
    ]


def _short_count(count: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:g}"


def _most_central(places: np.ndarray, families: Sequence[str | None], family: str) -> int:
    own = [i for i, other in enumerate(families) if other == family]
    return own[int(np.linalg.norm(places[own] - places[own].mean(0), axis=1).argmin())]


def _what_distance_means(places: np.ndarray, scores: np.ndarray, metric: str) -> str:
    """The map's distances beside those it stands for, with their correlation where there are enough to tell."""
    i, j = np.triu_indices(len(places), 1)
    meant = 1 - (scores + scores.T)[i, j] / 2
    shown = np.linalg.norm(places[i] - places[j], axis=1)
    told = f"near means alike: distance stands for 1 − {metric}"
    known = np.isfinite(meant)
    if len(places) < 4 or min(np.ptp(meant[known], axis=0), np.ptp(shown[known])) == 0:
        return told
    return f"{told} (correlation {np.corrcoef(meant[known], shown[known])[0, 1]:.2f})"


# --- layers -----------------------------------------------------------------------------------------------------------


def _layers_of(spaces: Sequence[Mapping], name: str) -> list[Mapping]:
    """The spaces that are layers of the same encoder as the named one, in the order of layers.

    Where an encoder is there twice, pooled in two ways for example, so that layers come twice, names tell them apart.
    """
    one = next(space for space in spaces if space["name"] == name)
    identity = (one.get("encoder"), one.get("revision"))
    own = [space for space in spaces if space is one or (identity[0] and _identity(space) == identity)]
    if len({space.get("layer") for space in own}) < len(own):
        own = [space for space in own if _stem(space["name"]) == _stem(name)]
    return sorted(own, key=lambda space: (space.get("layer") is None, space.get("layer")))


def _identity(space: Mapping) -> tuple:
    return space.get("encoder"), space.get("revision")


def _stem(name: str) -> str:
    return re.sub(r"\.layer-?\d+$", "", name)


def _layer_name(space: Mapping) -> str:
    return "last" if space.get("layer") is None else str(space["layer"])
