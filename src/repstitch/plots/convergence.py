"""Plots of hypothesis tests: a trend over models, and how well two spaces predict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from repstitch.alignment.hypothesis_results import Asymmetry, Trend
from repstitch.plots.canvas import BLUE, ORANGE, looks
from repstitch.plots.labels import name_points, shorten, shorten_all, wrapped
from repstitch.plots.legends import POINTS, count_ticks, family_handles, legend_at_right
from repstitch.plots.stitchers import plot_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED_POINTS = 16  # the largest number of models that a trend names; with more, it names none

BAND = "#DDDDDD"


def plot_trend(axes: Axes, trend: Trend) -> Axes:
    """Plot the alignment of each model against a column, with a straight line and the 95 % band of the null.

    Colours and markers show families. The column's axis is logarithmic if the band was computed on a logarithmic scale.
    Up to 16 models are named. The title is the verdict, which states the rank correlation, its interval and p.
    """
    models, band, column = trend.models, trend.null_band, trend.column
    places = np.array([(model.value, model.alignment) for model in models])
    chance = f"null: 95 % of lines\nwith shuffled {column}"
    axes.fill_between(band["value"], band["low"], band["high"], color=BAND, lw=0, label=chance)
    axes.plot(band["value"], band["line"], color="black", lw=1.2, label="straight line")
    handles, _ = axes.get_legend_handles_labels()
    family_looks = looks(model.family for model in models)
    for family, look in family_looks.items():
        members = places[[i for i, model in enumerate(models) if model.family == family]]
        axes.scatter(members[:, 0], members[:, 1], 46, color=look.colour, marker=look.marker, **POINTS)
    axes.set_xscale(band["scale"])
    if band["scale"] == "log":
        count_ticks(axes, band["value"][-1] / band["value"][0])
    axes.margins(x=0.08, y=0.1)
    axes.set_xlabel(column.replace("_", " "))
    others = f"the {len(trend.against)} reference models" if trend.against else "the other models"
    axes.set_ylabel(f"mean {trend.metric} with {others}", fontsize=9)
    axes.set_title(wrapped(axes, trend.verdict, 9), fontsize=9, loc="left")
    legend_at_right(axes, [*handles, *family_handles(family_looks)])
    if len(models) <= NAMED_POINTS:
        line = list(zip(band["value"], band["line"], strict=True))
        name_points(axes, shorten_all([model.name for model in models], 24), places, occupied=line, size=7)
    return axes


def plot_asymmetry(axes: Axes, asymmetry: Asymmetry) -> Axes:
    """Draw the R² of each of two spaces predicted from the other, with intervals, and the 95 % points of the nulls."""
    source, target = shorten(asymmetry.source, 22), shorten(asymmetry.target, 22)
    lowest, highest = 0.0, 0.05
    labels = []
    bars = (
        (asymmetry.r2_forward, asymmetry.null_forward, f"{source}\n→ {target}", "target", BLUE),
        (asymmetry.r2_backward, asymmetry.null_backward, f"{target}\n→ {source}", "source", ORANGE),
    )
    for i, (r2, null, direction, side, colour) in enumerate(bars):
        low, high = r2.interval or (r2.score, r2.score)
        axes.bar(i, r2.score, 0.55, color=colour)
        axes.vlines(i, low, high, color="black", lw=1.4)
        label = None if i else "95 % point with shuffled rows"
        axes.plot([i - 0.36, i + 0.36], [null["high"]] * 2, "--", color="black", lw=1.4, label=label)
        top = max(r2.score, high, null["high"])
        axes.annotate(f"{r2.score:.2f}", (i, top), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        lowest, highest = min(lowest, low, r2.score), max(highest, top)
        labels.append(f"{direction}\n{asymmetry.left_over[side]['variance']:.0%} of the variance not predicted")
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks([0, 1], labels, fontsize=9)
    axes.set_xlim(-0.6, 1.6)
    reach = highest - lowest
    axes.set_ylim(lowest - 0.05 * reach, highest + 0.3 * reach)
    axes.set_ylabel("R² on held-out rows")
    axes.set_title(wrapped(axes, asymmetry.verdict, 9), fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return axes


def plot_shared(axes: Axes, asymmetry: Asymmetry) -> Axes:
    """Draw the spectrum of the directions that the two spaces share, as in the plot of a stitcher's scorecard."""
    return plot_spectrum(axes, asymmetry.shared)
