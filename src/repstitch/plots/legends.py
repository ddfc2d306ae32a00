"""Legends, colour bars and colours that several pictures of an atlas share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from repstitch.plots.canvas import GREY, Look, looks
from repstitch.plots.labels import right_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

COLOUR_MAP, ITSELF = "viridis", "#DDDDDD"
POINTS: Any = {"edgecolor": "black", "lw": 0.5, "zorder": 3}
MISSING: Any = {"facecolor": "white", "edgecolor": GREY, "hatch": "////"}


def draw_scores(axes: Axes, scores: np.ndarray, null: np.ndarray) -> AxesImage:
    """The scores as an image whose colours reach from chance, or below, to the highest."""
    from matplotlib import colormaps

    levels = np.concatenate([scores.ravel(), null.ravel()])
    levels = levels[np.isfinite(levels)]
    low, high = (float(levels.min()), float(levels.max())) if len(levels) else (0.0, 1.0)
    high = max(high, low + 0.01)
    low -= 0.04 * (high - low)  # so that chance is a level on the bar, not its end
    colours = colormaps[COLOUR_MAP].with_extremes(bad=ITSELF)
    image = axes.imshow(scores, cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def colour_bar(axes: Axes, image: AxesImage, label: str, null: np.ndarray) -> list[Artist]:
    """A colour bar at the right of the axes, with a triangle at the level of chance; returns its legend."""
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
    """A rectangle over a cell of a heat map."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.5, row - 0.5), wide, 1, **style))


def family_strip(axes: Axes, families: Mapping[str, str | None], order: Sequence[str], wide: float) -> list[Artist]:
    """Colour each row's family at its left, `wide` cells wide, where any is known; returns the legend of families."""
    family_looks = looks(families.values())
    handles = family_handles(family_looks, areas=True)
    if handles:
        for row, name in enumerate(order):
            look = family_looks[families[name]]
            draw_cell(axes, row, -1.4 * wide, wide, facecolor=look.colour, edgecolor="white", hatch=look.hatch, lw=0)
        axes.set_xlim(-0.5 - 1.5 * wide, len(order) - 0.5)
    return handles


def family_handles(family_looks: Mapping[str | None, Look], areas: bool = False) -> list[Artist]:
    """The legend of families, as points or as areas; empty where none is known."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if set(family_looks) == {None}:
        return []
    labels = {family or "family not known": look for family, look in family_looks.items()}
    if areas:
        return [Patch(fc=look.colour, hatch=look.hatch, ec="white", label=label) for label, look in labels.items()]
    return [Line2D([], [], color=look.colour, marker=look.marker, lw=0, label=label) for label, look in labels.items()]


def legend_at_right(axes: Axes, handles: Sequence[Artist], away: float = 6) -> None:
    """The legend at the right of the axes, `away` points from them."""
    place: Any = {"loc": "upper left", "bbox_to_anchor": (away, 1), "borderaxespad": 0}
    place["bbox_transform"] = right_of(axes)
    if handles:
        axes.legend(handles=handles, fontsize=8, frameon=False, handleheight=1, **place)


def point_areas(parameters: Sequence[int | None]) -> np.ndarray:
    """Marker areas (N,) in square points, by the logarithm of the number of parameters, from a million on."""
    counts = np.array([np.nan if count is None else count for count in parameters], dtype=float)
    reach = np.clip((np.log10(np.maximum(counts, 1)) - 6) / 5, 0, 1)
    return np.where(np.isnan(counts), 50, 20 + 180 * reach)


def size_handles(parameters: Sequence[int | None], scale: float) -> list[Artist]:
    """The legend of the smallest and the largest number of parameters; empty where no two differ."""
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
    """Ticks as short counts on a logarithmic x axis, on which the largest value is `reach` times the smallest."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if reach < 1000 else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: _short_count(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
