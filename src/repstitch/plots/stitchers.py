"""Pictures of a stitcher: its scorecard, and the learning curve of its training."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from repstitch.errors import InputError
from repstitch.evaluation.report import ALIGNMENTS, REFERENCES
from repstitch.names import USES
from repstitch.plots.canvas import BLUE, GREEN, GREY, ORANGE, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USE_WORDS = {"query": "new queries, old index", "corpus": "old vectors, new queries"}


def plot_retrieval(axes: Axes, card: Mapping) -> Axes:
    """What is found among the pool, per use, against chance and shuffled pairs, as grouped bars."""
    uses = [use for use in USES if use in card]
    ranks = ("recall@1", "recall@5", "recall@10")
    width = 0.8 / len(uses)
    for i, (use, colour) in enumerate(zip(uses, (BLUE, ORANGE), strict=False)):
        at = [j + i * width - 0.4 + width / 2 for j in range(len(ranks))]
        heights = [card[use][r] for r in ranks]
        bars = axes.bar(at, heights, width, color=colour, label=f"{use}: {USE_WORDS[use]}")
        tops = heights
        if "intervals" in card[use]:
            ends = [card[use]["intervals"][r] for r in ranks]
            axes.vlines(at, [low for low, _ in ends], [high for _, high in ends], color="black", lw=1)
            tops = [max(height, high) for height, (_, high) in zip(heights, ends, strict=True)]
        for bar, height, top in zip(bars, heights, tops, strict=True):
            place = (bar.get_x() + bar.get_width() / 2, top)
            axes.annotate(f"{height:.2f}", place, (0, 2), textcoords="offset points", ha="center", fontsize=8)
    for j, r in enumerate(ranks):
        level = max(card[uses[0]]["shuffled"][r], card["chance"][r])
        axes.plot([j - 0.4, j + 0.4], [level, level], color="black", lw=1.5, label=None if j else "chance")
    axes.set_xticks(range(len(ranks)), ranks)
    axes.set_ylim(0, 1.5)
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


def plot_references(axes: Axes, card: Mapping) -> Axes:
    """Each use's score with its interval against the references: by relevance where it was judged, else by overlap."""
    parts = card.get("relevance") or {use: card[use]["references"] for use in USES if "references" in card.get(use, {})}
    uses = [use for use in USES if use in parts]
    first = next(name for name in parts[uses[0]] if name.startswith(("ndcg@", "overlap@")))
    shown = [name for name in REFERENCES if any(name in parts[u][first] for u in uses) and name not in COMPARED]
    for i, (use, colour) in enumerate(zip(uses, (BLUE, ORANGE), strict=False)):
        marker, shift = ("o", "s")[i], (i - (len(uses) - 1) / 2) * 0.3
        for j, name in enumerate(shown):
            if name not in parts[use][first]:
                continue
            found = parts[use][first][name]
            low, high = found["interval"]
            at = j + shift
            axes.plot([low, high], [at, at], color=colour, lw=2.5 if name == "translated" else 1.2)
            axes.plot(found["score"], at, marker, color=colour, ms=7 if name == "translated" else 5)
            left = found["score"] > 0.8
            place, way = (low if left else high, at), (-6 if left else 6, 0)
            axes.annotate(
                f"{found['score']:.2f}",
                place,
                way,
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=8,
            )
        axes.plot([], [], marker, color=colour, label=f"{use}: {card[use].get('verdict', {}).get('verdict', '')}")
    axes.set_yticks(range(len(shown)), [REFERENCES[name] for name in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(-0.03, 1.06)
    axes.set_title("Relevant found" if "relevance" in card else "Neighbours of re-embedding kept", fontsize=10)
    axes.set_xlabel(first, fontsize=9)
    axes.legend(fontsize=8, frameon=True, framealpha=0.9, loc="lower right", title="verdict", title_fontsize=8)
    return axes


def plot_spectrum(axes: Axes, spectrum: Mapping) -> Axes:
    """Correlation of each shared direction on held-out pairs, against the most that shuffled pairs show."""
    axes.plot(spectrum["direction"], spectrum["correlation"], color=BLUE, lw=1.8, label="held-out pairs")
    axes.axhline(spectrum["null"], color="black", lw=1.5, label=f"shuffled pairs, 95 %: {spectrum['null']:.2f}")
    axes.set_xscale("log")
    axes.set_xlim(1, max(2, spectrum["directions"]))
    axes.set_ylim(min(-0.1, *spectrum["correlation"]) - 0.02, 1.05)
    axes.set_xlabel("canonical direction, strongest in training first", fontsize=9)
    axes.set_ylabel("correlation")
    axes.set_title(f"Shared: {spectrum['above']} of {spectrum['directions']} directions beat chance", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    return axes


def plot_confidence(axes: Axes, confidence: Mapping) -> Axes:
    """How often a match comes true: predicted against observed, a dot for each bin of equally many held-out rows."""
    bins = confidence["bins"]
    axes.plot([0, 1], [0, 1], color="black", lw=1, ls="--", label="as often as said")
    axes.scatter(
        [b["predicted"] for b in bins],
        [b["observed"] for b in bins],
        45,
        color=GREEN,
        zorder=3,
        label=f"a tenth of {confidence['n']} held-out rows",
    )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"p_match@{confidence['pool']}", fontsize=9)
    axes.set_ylabel("share found in the first ten")
    axes.set_title(f"Confidence: calibration error {confidence['ece']:.3f}", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return axes


def plot_hubness(axes: Axes, card: Mapping) -> Axes:
    """Skew of how often rows are found as neighbours, before translation (native targets) and after, per use."""
    uses = [use for use in USES if use in card]
    values = [card["hubness_native"], *(card[use]["hubness_skew"] for use in uses)]
    names = ["before:\nnative rows", *(f"after:\n{use}" for use in uses)]
    bars = axes.bar(
        range(len(values)), values, 0.6, color=[GREY, *(BLUE if use == "query" else ORANGE for use in uses)]
    )
    axes.bar_label(bars, fmt="%.1f", fontsize=9, padding=1)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(values)), names, fontsize=9)
    axes.set_ylim(min(0, *values) * 1.25, max(*values, 0.1) * 1.25)
    axes.set_ylabel("skew of neighbour counts")
    axes.set_title("Hubness: are a few rows found everywhere?", fontsize=10)
    return axes


def plot_scorecard(card: Mapping, title: str) -> Figure:
    """A stitcher's scorecard in one picture: retrieval, the references, what is shared, confidence, hubness.

    What the card does not hold is left out; a card of an earlier release shows retrieval, and alignment before and
    after. Raises InputError on an empty one.
    """
    if not card:
        raise InputError("`plot` needs a scorecard, and this stitcher has none; train it again.")
    panels: list = [(plot_retrieval, card)] if any(use in card for use in USES) else []
    if any("references" in card.get(use, {}) for use in USES) or "relevance" in card:
        panels.append((plot_references, card))
    if card.get("spectrum"):
        panels.append((plot_spectrum, card["spectrum"]))
    if card.get("confidence"):
        panels.append((plot_confidence, card["confidence"]))
    if "hubness_native" in card:
        panels.append((plot_hubness, card))
    else:
        panels += [
            (_plot_stages, (name, card["alignment"][name]))
            for name in ALIGNMENTS
            if "score" in card["alignment"][name]["after"]
        ]
    made, axes = figure(len(panels), columns=2 if len(panels) == 4 else 3)
    for place, (draw, part) in zip(axes, panels, strict=True):
        draw(place, part)
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


def _plot_stages(axes: Axes, named: tuple[str, Mapping]) -> Axes:
    name, sides = named
    stages = {side: sides[side].get("score", 0.0) for side in ("before", "after")}
    return plot_alignment(axes, stages, sides["after"]["null"], f"{name} with the target", (GREY, GREEN))


COMPARED = ("over_keep_old", "retention")
