"""Legends, colour bars and colours that several plots of an atlas share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from repstitch.plots.canvas import GREY, Look, looks
from repstitch.plots.labels import points_across, right_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

COLOUR_MAP, ITSELF = "viridis", "#DDDDDD"
POINTS: Any = {"edgecolor": "black", "lw": 0.5, "zorder": 3}
FIGURE_SPACE = "\u2007"  # as wide as a digit
MISSING: Any = {"facecolor": "white", "edgecolor": GREY, "hatch": "////"}


def draw_scores(axes: Axes, scores: np.ndarray, null: np.ndarray) -> AxesImage:
    """Draw the scores as an image whose colours range from the lowest score or null to the highest."""
    from matplotlib import colormaps

    levels = np.concatenate([scores.ravel(), null.ravel()])
    levels = levels[np.isfinite(levels)]
    low, high = (float(levels.min()), float(levels.max())) if len(levels) else (0.0, 1.0)
    high = max(high, low + 0.01)
    low -= 0.04 * (high - low)  # so that the chance level is inside the colour bar, not at its end
    colours = colormaps[COLOUR_MAP].with_extremes(bad=ITSELF)
    image = axes.imshow(scores, cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def colour_bar(axes: Axes, image: AxesImage, label: str, null: np.ndarray) -> list[Artist]:
    """Draw a colour bar at the right of the axes, with a triangle at the chance level; return the legend entry."""
    inset = axes.inset_axes((14, 0, 10, 1), transform=right_of(axes))
    bar = axes.figure.colorbar(image, cax=inset)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=9)
    levels = null[np.isfinite(null)]
    if not len(levels):
        return []
    middle, mark = float(np.median(levels)), f"chance, median {np.median(levels):.2g}"
    inset.plot([-0.45, -0.45], [levels.min(), levels.max()], color="black", lw=1.5, clip_on=False)
    return [*inset.plot([-0.45], [middle], ">", color="black", ms=6, lw=0, clip_on=False, label=mark)]


def draw_cell(axes: Axes, row: float, column: float, wide: float = 1.0, **style) -> None:
    """Draw a rectangle over a cell of a heat map; it starts at the cell's left edge and is `wide` cells wide."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.5, row - 0.5), wide, 1, **style))


def family_strip(axes: Axes, families: Mapping[str, str | None], order: Sequence[str], wide: float) -> list[Artist]:
    """Draw a strip at the left with each row's family as a colour, `wide` cells wide; return the legend entries.

    Nothing is drawn if no family is known.
    """
    family_looks = looks(families.values())
    handles = family_handles(family_looks, areas=True)
    if handles:
        for row, name in enumerate(order):
            look = family_looks[families[name]]
            draw_cell(axes, row, -1.4 * wide, wide, facecolor=look.colour, edgecolor="white", hatch=look.hatch, lw=0)
        axes.set_xlim(-0.5 - 1.5 * wide, len(order) - 0.5)
    return handles


def family_handles(family_looks: Mapping[str | None, Look], areas: bool = False) -> list[Artist]:
    """Return the legend entries of the families, as points or as areas; none if no family is known."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if set(family_looks) == {None}:
        return []
    labels = {family or "unknown family": look for family, look in family_looks.items()}
    if areas:
        return [Patch(fc=look.colour, hatch=look.hatch, ec="white", label=label) for label, look in labels.items()]
    return [Line2D([], [], color=look.colour, marker=look.marker, lw=0, label=label) for label, look in labels.items()]


def legend_at_right(axes: Axes, handles: Sequence[Artist], away: float = 6, **style) -> None:
    """Draw the legend at the right of the axes, `away` points from them."""
    place: Any = {"loc": "upper left", "bbox_to_anchor": (away, 1), "borderaxespad": 0}
    place["bbox_transform"] = right_of(axes)
    if handles:
        axes.legend(handles=handles, **({"fontsize": 8, "frameon": False, "handleheight": 1} | place | style))


def numbered_legend(
    axes: Axes,
    handles: Sequence[Artist],
    families: Mapping[str, str | None],
    family_looks: Mapping[str | None, Look],
) -> dict[str, str]:
    """Draw a legend at the right that lists all models under their families; return each model's number as text.

    `families` are those of all models by the name that the legend shows. `handles` come before the list.
    """
    from matplotlib.lines import Line2D

    headings = dict(zip(family_looks, family_handles(family_looks), strict=False))
    lines, numbers = [*handles], {}
    for family in family_looks:
        lines += [headings[family]] if family in headings else []
        for name in sorted(name for name, other in families.items() if other == family):
            numbers[name] = str(len(numbers) + 1)
            label = f"{numbers[name].rjust(len(str(len(families))), FIGURE_SPACE)}  {name}"
            lines.append(Line2D([], [], lw=0, label=label))
    size = float(np.clip(points_across(axes)[1] / (1.3 * len(lines)), 4.5, 7.5))
    legend_at_right(axes, lines, fontsize=size, labelspacing=0.3, handlelength=15 / size, handletextpad=0.3)
    return numbers


def point_areas(parameters: Sequence[int | None]) -> np.ndarray:
    """Return marker areas (N,) in square points: they grow with the logarithm of the number of parameters.

    The area is 20 up to a million parameters, 200 from 10¹¹ parameters, and 50 where the number is unknown.
    """
    counts = np.array([np.nan if count is None else count for count in parameters], dtype=float)
    reach = np.clip((np.log10(np.maximum(counts, 1)) - 6) / 5, 0, 1)
    return np.where(np.isnan(counts), 50, 20 + 180 * reach)


def size_handles(parameters: Sequence[int | None], scale: float) -> list[Artist]:
    """Return legend entries for the smallest and the largest number of parameters; none if all are equal or unknown."""
    from matplotlib.lines import Line2D

    counts = [count for count in parameters if count is not None]
    ends = [min(counts), max(counts)] if len(set(counts)) > 1 else []
    style: Any = {"marker": "o", "color": "white", "mec": "black", "mew": 0.8, "lw": 0}
    return [
        Line2D([], [], ms=float(scale * area) ** 0.5, label=f"{_short_count(count)} parameters", **style)
        for count, area in zip(ends, point_areas(ends), strict=True)
    ]


def _short_count(count: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:g}"


def count_ticks(axes: Axes, reach: float) -> None:
    """Label a logarithmic x axis with short counts, such as "20 M"; the largest value is `reach` times the smallest."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if reach < 1000 else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: _short_count(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
