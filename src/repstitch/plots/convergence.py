"""Pictures of what alignment follows: a trend over models, and who predicts whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from repstitch.plots.canvas import BLUE, ORANGE, looks
from repstitch.plots.labels import name_points, shorten, wrapped
from repstitch.plots.legends import POINTS, count_ticks, family_handles, legend_beside
from repstitch.plots.stitchers import plot_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED_POINTS = 16  # models of a trend, beside the line and the band

BAND = "#DDDDDD"


def plot_trend(axes: Axes, trend: Mapping) -> Axes:
    """Alignment of each model against a column, by family, with the line through them and where chance puts it.

    The column's axis is logarithmic where the band was made so. Up to 16 models are named. The title is the verdict,
    which states rank correlation, interval and p.
    """
    models, band, column = trend["models"], trend["null_band"], trend["column"]
    places = np.array([(model["value"], model["alignment"]) for model in models])
    chance = f"chance: 95 % of lines\nwith {column} shuffled"
    axes.fill_between(band["value"], band["low"], band["high"], color=BAND, lw=0, label=chance)
    axes.plot(band["value"], band["line"], color="black", lw=1.2, label="straight line")
    handles, _ = axes.get_legend_handles_labels()
    drawn = looks(model["family"] for model in models)
    for family, look in drawn.items():
        own = [i for i, model in enumerate(models) if model["family"] == family]
        axes.scatter(places[own, 0], places[own, 1], 46, color=look.colour, marker=look.marker, **POINTS)
    axes.set_xscale(band["scale"])
    if band["scale"] == "log":
        count_ticks(axes, band["value"][-1] / band["value"][0])
    axes.margins(x=0.08, y=0.1)
    axes.set_xlabel(column.replace("_", " "))
    against = f"the {len(trend['against'])} others chosen" if trend.get("against") else "the others"
    axes.set_ylabel(f"mean {trend['metric']} with {against}", fontsize=9)
    axes.set_title(wrapped(axes, trend["verdict"], 9), fontsize=9, loc="left")
    legend_beside(axes, [*handles, *family_handles(drawn)])
    if len(models) <= NAMED_POINTS:
        line = list(zip(band["value"], band["line"], strict=True))
        name_points(axes, [shorten(model["name"], 24) for model in models], places, taken=line, size=7)
    return axes


def plot_asymmetry(axes: Axes, asymmetry: Mapping) -> Axes:
    """R² of each of two spaces predicted from the other, with intervals, above what shuffled rows give."""
    source, target = (shorten(asymmetry[side], 22) for side in ("source", "target"))
    lowest, highest = 0.0, 0.05
    names = []
    for i, (way, one, other, side, colour) in enumerate(
        (("forward", source, target, "target", BLUE), ("backward", target, source, "source", ORANGE))
    ):
        height, (low, high) = asymmetry[f"r2_{way}"], asymmetry[f"r2_{way}_interval"]
        null = asymmetry[f"null_{way}"]["high"]
        axes.bar(i, height, 0.55, color=colour)
        axes.vlines(i, low, high, color="black", lw=1.4)
        label = None if i else "shuffled rows, 95 %"
        axes.plot([i - 0.36, i + 0.36], [null, null], "--", color="black", lw=1.4, label=label)
        top = max(height, high, null)
        axes.annotate(f"{height:.2f}", (i, top), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        lowest, highest = min(lowest, low, height), max(highest, top)
        left = asymmetry["left_over"][side]["variance"]
        names.append(f"{one}\n→ {other}\n{left:.0%} of the variance left over")
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks([0, 1], names, fontsize=9)
    axes.set_xlim(-0.6, 1.6)
    reach = highest - lowest
    axes.set_ylim(lowest - 0.05 * reach, highest + 0.3 * reach)
    axes.set_ylabel("R² on rows not fitted to")
    axes.set_title(wrapped(axes, asymmetry["verdict"], 9), fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return axes


def plot_shared(axes: Axes, asymmetry: Mapping) -> Axes:
    """The spectrum of directions that the two spaces share, as a stitcher's scorecard shows it."""
    return plot_spectrum(axes, asymmetry["shared"])
