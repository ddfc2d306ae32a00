"""Pictures of a transfer: what the carried probe is worth, beside the labels that a native one needs for as much."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from repstitch.errors import InputError
from repstitch.plots.canvas import BLUE, GREEN, GREY, ORANGE, figure
from repstitch.transfer.report import OF_PROBES, contenders, label_sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"carried": BLUE, "whole": BLUE, "native": ORANGE, "home": GREEN}


def plot_contenders(axes: Axes, found: Mapping) -> Axes:
    """Each contender's accuracy with its interval, best things first."""
    words = contenders(dict(found))
    shown = [name for name in words if name in found["accuracy"]]
    for i, name in enumerate(shown):
        one, colour = found["accuracy"][name], COLOURS.get(name, GREY)
        axes.plot(one["interval"], [i, i], color=colour, lw=2.5)
        axes.plot(one["score"], i, "o", color=colour, ms=7)
        side = "left" if one["score"] < 0.1 else "right" if one["score"] > 0.9 else "center"
        place = (one["score"], i)
        axes.annotate(f"{one['score']:.3f}", place, (0, 6), textcoords="offset points", ha=side, fontsize=8)
    axes.set_yticks(range(len(shown)), [words[name].strip() for name in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.7)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("accuracy", fontsize=9)
    axes.set_title(f"{found['n_test']} test rows, {len(found['classes'])} classes", fontsize=10)
    return axes


def plot_label_efficiency(axes: Axes, found: Mapping) -> Axes:
    """Accuracy of native probes against the number of labelled rows, with the carried probe as a band across."""
    curve, carried = found["label_efficiency"], found["accuracy"]["carried"]
    sizes, draws = curve["sizes"], curve["accuracy"]
    means = [sum(d) / len(d) for d in draws]
    axes.axhspan(*carried["interval"], color=BLUE, alpha=0.15, lw=0)
    axes.axhline(carried["score"], color=BLUE, lw=2, label="carried probe: no labels of the target")
    axes.plot(sizes, means, "o-", color=ORANGE, ms=5, label="probe trained on the target")
    axes.plot(*zip(*((n, v) for n, d in zip(sizes, draws, strict=True) for v in d), strict=True), "o", ms=3,
              color=ORANGE, alpha=0.4)  # fmt: skip
    for name, line in (("shuffled", ":"), ("majority", "--")):
        axes.axhline(found["accuracy"][name]["score"], color=GREY, ls=line, lw=1.5, label=OF_PROBES[name])
    if curve["matches"] is not None and curve["matches"] > sizes[0]:
        axes.axvline(curve["matches"], color="black", lw=1, ls=":")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("labelled rows of the target", fontsize=9)
    axes.set_ylabel("accuracy")
    axes.set_title("\n".join(textwrap.wrap(label_sentence(curve), 62)), fontsize=9)
    axes.legend(fontsize=8, frameon=True, framealpha=0.9, loc="lower right")
    return axes


def plot_transfer(found: Mapping) -> Figure:
    """The proof of a carried probe, or of a classifier from names; InputError on a proof without accuracies."""
    if "accuracy" not in found:
        raise InputError("`plot` draws the proof of a probe or of names; give `labels`.")
    panels: list = [plot_contenders] + ([plot_label_efficiency] if "label_efficiency" in found else [])
    made, axes = figure(len(panels), width=5.4, height=3.9)
    for place, draw in zip(axes, panels, strict=True):
        draw(place, found)
    if "source" in found:
        title = f"{found['source']} → {found['target']}"
        made.suptitle("\n".join(textwrap.wrap(title, 50 * len(panels))), fontsize=11)
    return made
