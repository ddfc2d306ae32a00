"""Pictures: a result in, a matplotlib Figure out. Colours are told apart by the colour-blind (Okabe and Ito 2008)."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repstitch.errors import InputError
from repstitch.names import USES
from repstitch.scorecard import ALIGNMENTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
USE_WORDS = {"query": "new queries, old index", "corpus": "old vectors, new queries"}


def figure(columns: int, width: float = 4.6, height: float = 3.6) -> tuple[Figure, Sequence[Axes]]:
    """A row of axes on a figure of its own, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, [made.add_subplot(1, columns, i + 1) for i in range(columns)]


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write the picture as .png, .svg or .pdf; InputError on another ending or a folder that is not there."""
    target = check_picture(path)
    figure.savefig(target, dpi=150)
    return target


def check_picture(path: str | os.PathLike) -> Path:
    """The path of a picture that can be written: a known ending, in a folder that exists."""
    target = Path(path)
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"`plot` must end in .png, .svg or .pdf; got {target.name!r}.")
    if not target.parent.is_dir():
        raise InputError(f"`plot` must lie in a folder that exists; there is no {target.parent}.")
    return target


def plot_retrieval(axes: Axes, card: Mapping) -> Axes:
    """What is found among the pool, per use, against chance and shuffled pairs, as grouped bars."""
    uses = [use for use in USES if use in card]
    ranks = ("recall@1", "recall@5", "recall@10")
    width = 0.8 / len(uses)
    for i, (use, colour) in enumerate(zip(uses, (BLUE, ORANGE), strict=False)):
        at = [j + i * width - 0.4 + width / 2 for j in range(len(ranks))]
        bars = axes.bar(at, [card[use][r] for r in ranks], width, color=colour, label=f"{use}: {USE_WORDS[use]}")
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=1)
    for j, r in enumerate(ranks):
        level = max(card[uses[0]]["shuffled"][r], card["chance"][r])
        axes.plot([j - 0.4, j + 0.4], [level, level], color="black", lw=1.5, label=None if j else "chance")
    axes.set_xticks(range(len(ranks)), ranks)
    axes.set_ylim(0, 1.19)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel("share of counterparts found")
    axes.set_title(f"Retrieval among {card['pool']} {card.get('held_out', 'held-out pairs')}", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", frameon=False, ncols=1)
    return axes


def plot_alignment(axes: Axes, stages: Mapping[str, float], null: float, title: str, colours: Sequence[str]) -> Axes:
    """One alignment score a stage, with the null as a line."""
    bars = axes.bar(range(len(stages)), list(stages.values()), color=list(colours))
    axes.bar_label(bars, fmt="%.2f", fontsize=9, padding=1)
    axes.axhline(null, color="black", lw=1.5, label=f"unrelated spaces: {round(null, 3) + 0.0:.3f}")
    axes.set_xticks(range(len(stages)), list(stages))
    axes.set_ylim(0, max(*stages.values(), 0.1) * 1.25)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return axes


def plot_scorecard(card: Mapping, title: str) -> Figure:
    """A stitcher's scorecard in one picture: retrieval per use, alignment before and after."""
    aligned = {name: card["alignment"][name] for name in ALIGNMENTS if "score" in card["alignment"][name]["after"]}
    made, axes = figure(1 + len(aligned))
    plot_retrieval(axes[0], card)
    for place, (name, sides) in zip(axes[1:], aligned.items(), strict=True):
        stages = {side: sides[side].get("score", 0.0) for side in ("before", "after")}
        plot_alignment(place, stages, sides["after"]["null"], f"{name} with the target", (GREY, GREEN))
    made.suptitle(title, fontsize=11)
    return made


def plot_curve(found: Mapping) -> Figure:
    """A learning curve: every draw's scores against training pairs, the fitted curve carried on to twice as many."""
    made, (axes,) = figure(1, width=6.4, height=4.2)
    objective, sizes, doubled = found["objective"], found["sizes"], found["doubled"]
    lines = {objective: BLUE} | ({"recall@1": ORANGE} if objective == "match" else {"match": ORANGE})
    for name, colour in lines.items():
        draws = found["scores"][name]
        axes.plot(sizes, [sum(d) / len(d) for d in draws], "o", ms=6, color=colour, label=name)
        spread = [(n, score) for n, d in zip(sizes, draws, strict=True) for score in d]
        axes.plot(*zip(*spread, strict=True), "o", ms=3, color=colour, alpha=0.45)
    a, b, c = (found["curve"][key] for key in "abc")
    at = [sizes[0] * (doubled["pairs"] / sizes[0]) ** (i / 60) for i in range(61)]
    axes.plot(at, [a - b * n**-c for n in at], "--", lw=1.2, color="black", label=f"fitted to {objective}")
    low, high = doubled["interval"]
    ends = [[max(doubled["expected"] - low, 0)], [max(high - doubled["expected"], 0)]]
    axes.errorbar([doubled["pairs"]], [doubled["expected"]], yerr=ends, fmt="D", ms=5, color="black", capsize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks([*sizes, doubled["pairs"]], [f"{n:,}" for n in (*sizes, doubled["pairs"])])
    axes.minorticks_off()
    axes.set_xlabel("training pairs")
    axes.set_ylabel(f"score on {found['validation_rows']} validation pairs")
    axes.set_title("\n".join(textwrap.wrap(found["verdict"], 78)), fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return made
