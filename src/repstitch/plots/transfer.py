"""Plots of a transfer: the accuracy of a transferred probe, and how many labels a native probe needs to match it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from repstitch.errors import InputError
from repstitch.plots.canvas import BLUE, GREEN, GREY, ORANGE, figure
from repstitch.transfer.proof import AnyProof, ClassifierProof, Proof

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"carried": BLUE, "whole": BLUE, "native": ORANGE, "home": GREEN}


def plot_contenders(axes: Axes, proof: ClassifierProof) -> Axes:
    """Plot the accuracy of each contender with its interval, in the order of the report."""
    for i, name in enumerate(proof.contenders):
        accuracy, colour = proof.accuracy(name), COLOURS.get(name, GREY)
        score = accuracy.score
        axes.plot(accuracy.interval or (score, score), [i, i], color=colour, lw=2.5)
        axes.plot(score, i, "o", color=colour, ms=7)
        side = "left" if score < 0.1 else "right" if score > 0.9 else "center"
        axes.annotate(f"{score:.3f}", (score, i), (0, 6), textcoords="offset points", ha=side, fontsize=8)
    names = [proof.CONTENDERS[name].strip() for name in proof.contenders]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.7)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("accuracy", fontsize=9)
    axes.set_title(f"{proof.n_test} test rows, {len(proof.classes)} classes", fontsize=10)
    return axes


def plot_label_efficiency(axes: Axes, proof: Proof) -> Axes:
    """Plot the accuracy of native probes against the number of labelled rows; a band shows the transferred probe."""
    curve, carried = proof.label_efficiency, proof.accuracy("carried")
    assert curve is not None
    sizes, draws = curve.sizes, curve.accuracy
    means = [sum(d) / len(d) for d in draws]
    axes.axhspan(*(carried.interval or (carried.score, carried.score)), color=BLUE, alpha=0.15, lw=0)
    axes.axhline(carried.score, color=BLUE, lw=2, label="transferred probe (no target labels)")
    axes.plot(sizes, means, "o-", color=ORANGE, ms=5, label="probe trained on the target")
    axes.plot(*zip(*((n, v) for n, d in zip(sizes, draws, strict=True) for v in d), strict=True), "o", ms=3,
              color=ORANGE, alpha=0.4)  # fmt: skip
    for name, line in (("shuffled", ":"), ("majority", "--")):
        axes.axhline(proof.accuracy(name).score, color=GREY, ls=line, lw=1.5, label=proof.CONTENDERS[name])
    if curve.matches is not None and curve.matches > sizes[0]:
        axes.axvline(curve.matches, color="black", lw=1, ls=":")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("labelled target rows", fontsize=9)
    axes.set_ylabel("accuracy")
    axes.set_title("\n".join(textwrap.wrap(str(curve), 62)), fontsize=9)
    axes.legend(fontsize=8, frameon=True, framealpha=0.9, loc="lower right")
    return axes


def plot_transfer(proof: AnyProof | None) -> Figure:
    """Plot the evaluation of a transferred probe or of a probe from class names.

    Raises InputError if `proof` has no accuracies.
    """
    if not isinstance(proof, ClassifierProof):
        raise InputError("`plot` requires the accuracies of a probe; pass `labels` so that they can be measured.")
    curve = isinstance(proof, Proof) and proof.label_efficiency is not None
    whole, axes = figure(2 if curve else 1, width=5.4, height=3.9)
    plot_contenders(axes[0], proof)
    if isinstance(proof, Proof) and curve:
        plot_label_efficiency(axes[1], proof)
    if proof.source is not None:
        title = f"{proof.source} → {proof.target}"
        whole.suptitle("\n".join(textwrap.wrap(title, 50 * len(axes))), fontsize=11)
    return whole
