"""Plots of a stitcher: its scorecard, and its learning curve."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from repstitch.errors import InputError
from repstitch.evaluation.report import REFERENCES
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.scorecard_parts import (
    ALIGNMENTS,
    AlignmentChange,
    CalibrationScores,
    LearningCurve,
    Spectrum,
)
from repstitch.evaluation.use_scores import RECALLS, Comparison, measure_name
from repstitch.plots.canvas import BLUE, GREEN, GREY, ORANGE, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USE_WORDS = {"query": "translated queries, native index", "corpus": "translated index, native queries"}
USE_COLOURS = {"query": BLUE, "corpus": ORANGE}
SHOWN = [name for name in REFERENCES if name not in ("over_keep_old", "retention")]


def plot_retrieval(axes: Axes, card: Scorecard) -> Axes:
    """Draw recall in the pool for each use as grouped bars, with a line at the level of chance and shuffled pairs."""
    uses = card.uses
    width = 0.8 / len(uses)
    for i, (use, colour) in enumerate(zip(uses, (BLUE, ORANGE), strict=False)):
        places = [j + i * width - 0.4 + width / 2 for j in range(len(RECALLS))]
        recalls = [uses[use].recall_at(r) for r in RECALLS]
        heights = [recall.score for recall in recalls]
        bars = axes.bar(places, heights, width, color=colour, label=f"{use}: {USE_WORDS[use]}")
        tops = heights
        ends = [recall.interval for recall in recalls if recall.interval is not None]
        if ends:
            axes.vlines(places, [low for low, _ in ends], [high for _, high in ends], color="black", lw=1)
            tops = [max(height, high) for height, (_, high) in zip(heights, ends, strict=True)]
        for bar, height, top in zip(bars, heights, tops, strict=True):
            place = (bar.get_x() + bar.get_width() / 2, top)
            axes.annotate(f"{height:.2f}", place, (0, 2), textcoords="offset points", ha="center", fontsize=8)
    shuffled = next(iter(uses.values())).shuffled
    for j, r in enumerate(RECALLS):
        level = max(shuffled.recall_at(r).score, card.chance.recall_at(r).score)
        axes.plot([j - 0.4, j + 0.4], [level, level], color="black", lw=1.5, label=None if j else "chance")
    axes.set_xticks(range(len(RECALLS)), [f"recall@{r}" for r in RECALLS])
    axes.set_ylim(0, 1.5)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel("share of counterparts retrieved")
    axes.set_title(f"Retrieval among {card.pool} {card.held_out}", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", frameon=False, ncols=1)
    return axes


def plot_alignment(axes: Axes, stages: Mapping[str, float], null: float, title: str, colours: Sequence[str]) -> Axes:
    """Draw one alignment score for each stage as bars, with the permutation null as a line."""
    bars = axes.bar(range(len(stages)), list(stages.values()), color=list(colours))
    axes.bar_label(bars, fmt="%.2f", fontsize=9, padding=1)
    axes.axhline(null, color="black", lw=1.5, label=f"unrelated spaces: {round(null, 3) + 0.0:.3f}")
    axes.set_xticks(range(len(stages)), list(stages))
    axes.set_ylim(0, max(*stages.values(), 0.1) * 1.25)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return axes


def plot_references(axes: Axes, card: Scorecard) -> Axes:
    """Draw the scores of the translation and of the references for each use, with their intervals.

    The scores come from relevance judgements if there are any. Otherwise they are the share of true neighbours.
    """
    comparisons: dict[str, Comparison] = {
        use: scores.references for use, scores in card.uses.items() if scores.references is not None
    }
    if card.relevance is not None:
        comparisons = dict(card.relevance.uses)
    measure = next(iter(next(iter(comparisons.values())).measures))  # the first measure decides
    scores = {use: comparison.measures[measure] for use, comparison in comparisons.items()}
    shown = [name for name in SHOWN if any(part.get(name) is not None for part in scores.values())]
    for i, (use, colour) in enumerate(zip(scores, (BLUE, ORANGE), strict=False)):
        marker, shift = ("o", "s")[i], (i - (len(scores) - 1) / 2) * 0.3
        for j, name in enumerate(shown):
            estimate = scores[use].get(name)
            if estimate is None:
                continue
            score, height = estimate.score, j + shift
            low, high = estimate.interval or (score, score)
            axes.plot([low, high], [height, height], color=colour, lw=2.5 if name == "translated" else 1.2)
            axes.plot(score, height, marker, color=colour, ms=7 if name == "translated" else 5)
            left = score > 0.8
            axes.annotate(
                f"{score:.2f}",
                (low if left else high, height),
                (-6 if left else 6, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=8,
            )
        verdict = card.uses[use].verdict if "verdict" in card.uses[use] else ""
        axes.plot([], [], marker, color=colour, label=f"{use}: {verdict}")
    axes.set_yticks(range(len(shown)), [REFERENCES[name] for name in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(-0.03, 1.06)
    axes.set_title("Compared with the alternatives", fontsize=10)
    axes.set_xlabel(measure_name(measure), fontsize=9)
    axes.legend(fontsize=8, frameon=True, framealpha=0.9, loc="lower right", title="verdict", title_fontsize=8)
    return axes


def plot_spectrum(axes: Axes, spectrum: Spectrum) -> Axes:
    """Draw the correlation of each shared direction on held-out pairs, and the largest for shuffled pairs as a line."""
    axes.plot(spectrum.direction, spectrum.correlation, color=BLUE, lw=1.8, label="held-out pairs")
    axes.axhline(spectrum.null, color="black", lw=1.5, label=f"strongest of shuffled pairs: {spectrum.null:.2f}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(1, max(2, spectrum.directions))
    axes.set_ylim(min(-0.1, *spectrum.correlation) - 0.02, 1.05)
    axes.set_xlabel("canonical direction, strongest first", fontsize=9)
    axes.set_ylabel("correlation")
    axes.set_title(f"Shared directions: {spectrum.above} of {spectrum.directions} above chance", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    return axes


def plot_confidence(axes: Axes, confidence: CalibrationScores) -> Axes:
    """Draw the observed share of hits against p_match, one dot for each tenth of the held-out rows.

    A confidence that is not usable is drawn in grey, with the reason across the panel.
    """
    bins = confidence.bins
    unusable = confidence.usable is False
    axes.plot([0, 1], [0, 1], color="black", lw=1, ls="--", label="perfect calibration")
    axes.scatter(
        [part.predicted for part in bins],
        [part.observed for part in bins],
        45,
        color=GREY if unusable else GREEN,
        alpha=0.4 if unusable else 1,
        zorder=3,
        label=f"a tenth of {confidence.n} held-out rows",
    )
    if unusable:
        reason = "\n".join(textwrap.wrap(f"Not usable: {confidence.reason}.", 40))
        box = {"facecolor": "white", "edgecolor": GREY, "alpha": 0.9}
        axes.text(0.5, 0.3, reason, ha="center", va="center", fontsize=8, zorder=4, bbox=box)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"p_match@{confidence.pool}", fontsize=9)
    axes.set_ylabel("observed share in the first 10")
    state = "not usable" if unusable else f"calibration error {confidence.ece:.3f}"
    axes.set_title(f"Confidence: {state}", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return axes


def plot_hubness(axes: Axes, card: Scorecard) -> Axes:
    """Draw the skewness of neighbour counts: of native target rows, and after translation for each use."""
    values = [card.hubness_native or 0.0, *(scores.hubness_skew for scores in card.uses.values())]
    names = ["before:\nnative rows", *(f"after:\n{use}" for use in card.uses)]
    bars = axes.bar(range(len(values)), values, 0.6, color=[GREY, *(USE_COLOURS[use] for use in card.uses)])
    axes.bar_label(bars, fmt="%.1f", fontsize=9, padding=1)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(values)), names, fontsize=9)
    axes.set_ylim(min(0, *values) * 1.25, max(*values, 0.1) * 1.25)
    axes.set_ylabel("skew of neighbour counts")
    axes.set_title("Hubness: do a few rows appear everywhere?", fontsize=10)
    return axes


def plot_scorecard(card: Scorecard, title: str) -> Figure:
    """Draw a scorecard: retrieval, references, shared directions, confidence and hubness, one panel each.

    Panels without scores are left out. Scorecards of earlier releases show retrieval and alignment instead. Raises
    InputError if the scorecard is empty.
    """
    if not card:
        raise InputError("`plot` requires a stitcher with a scorecard; this one has none. Train it again.")
    panels: list[Callable[[Axes], Axes]] = [partial(plot_retrieval, card=card)] if card.uses else []
    if card.relevance is not None or any(scores.references is not None for scores in card.uses.values()):
        panels.append(partial(plot_references, card=card))
    if card.spectrum is not None and card.spectrum.correlation:
        panels.append(partial(plot_spectrum, spectrum=card.spectrum))
    if card.confidence is not None and card.confidence.bins:
        panels.append(partial(plot_confidence, confidence=card.confidence))
    if card.hubness_native is not None:
        panels.append(partial(plot_hubness, card=card))
    else:
        changes = {name: card.alignment.metric(name) for name in ALIGNMENTS}
        panels += [
            partial(_plot_change, name=name, change=change)
            for name, change in changes.items()
            if change.after.refused is None
        ]
    picture, axes = figure(len(panels), columns=2 if len(panels) == 4 else 3)
    for place, draw in zip(axes, panels, strict=True):
        draw(place)
    picture.suptitle(title, fontsize=11)
    return picture


def plot_curve(curve: LearningCurve) -> Figure:
    """Draw a learning curve: the scores of each draw of pairs, and the fitted curve up to twice as many pairs.

    Raises InputError if the learning curve is incomplete.
    """
    picture, (axes,) = figure(1, width=6.4, height=4.2)
    objective, sizes, doubled = curve.objective, curve.sizes, curve.doubled
    if objective is None or doubled is None or not (sizes and curve.scores and curve.curve):
        raise InputError("`plot` requires a complete learning curve; parts of this one are missing. Train again.")
    colours = {objective: BLUE} | ({"recall@1": ORANGE} if objective == "match" else {"match": ORANGE})
    for name, colour in colours.items():
        draws = curve.scores[name]
        axes.plot(sizes, [sum(scores) / len(scores) for scores in draws], "o", ms=6, color=colour, label=name)
        spread = [(n, score) for n, scores in zip(sizes, draws, strict=True) for score in scores]
        axes.plot(*zip(*spread, strict=True), "o", ms=3, color=colour, alpha=0.45)
    a, b, c = (curve.curve[key] for key in "abc")
    points = [sizes[0] * (doubled.pairs / sizes[0]) ** (i / 60) for i in range(61)]
    axes.plot(points, [a - b * n**-c for n in points], "--", lw=1.2, color="black", label=f"fitted to {objective}")
    expected = doubled.expected.score
    low, high = doubled.expected.interval or (expected, expected)
    ends = [[max(expected - low, 0)], [max(high - expected, 0)]]
    forecast = f"{objective} at twice the pairs, with 90 % interval"
    axes.errorbar([doubled.pairs], [expected], yerr=ends, fmt="D", ms=5, color="black", capsize=4, label=forecast)
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))  # no score is above 1
    axes.set_xscale("log", base=2)
    axes.set_xticks([*sizes, doubled.pairs], [f"{n:,}" for n in (*sizes, doubled.pairs)])
    axes.minorticks_off()
    axes.set_xlabel("training pairs")
    axes.set_ylabel(f"score on {curve.validation_rows} validation pairs")
    axes.set_title("\n".join(textwrap.wrap(curve.verdict or "", 78)), fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return picture


def _plot_change(axes: Axes, name: str, change: AlignmentChange) -> Axes:
    before = 0.0 if change.before.refused else change.before.score
    stages = {"before": before, "after": change.after.score}
    return plot_alignment(axes, stages, change.after.null, f"{name} with the target", (GREY, GREEN))
