"""Plot of how many of the right results a search finds, by the share of the rows that are embedded anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from repstitch.errors import InputError
from repstitch.plots.canvas import BLUE, GREY, ORANGE, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_shares(curve: Sequence[Mapping[str, Any]] | None, chosen: float) -> Figure:
    """Plot the overlap by the share of native rows, for dense rows and for random ones.

    Args:
        curve: Points with `share`, `overlap` (of dense rows) and `random` (of random rows), as `migrate plan` measures
            them on held-out rows.
        chosen: The share of one of the points, which is marked.

    Raises:
        InputError: If `curve` is None, because the stitcher has no translated held-out rows.
    """
    if curve is None:
        raise InputError(
            "`plot` requires translated held-out rows, which `train` keeps beside a stitcher of pairs with ids; this "
            "stitcher has none."
        )
    picture, (axes,) = figure(1, width=6.4, height=4.2)
    shares = [point["share"] for point in curve]
    for name, key, colour, style in (("dense rows", "overlap", BLUE, "o-"), ("random rows", "random", GREY, "s--")):
        axes.plot(shares, [point[key] for point in curve], style, color=colour, ms=4, label=name)
    marked = next(point for point in curve if point["share"] == chosen)
    label = f"{100 * chosen:.3g}% anew: {marked['overlap']:.2f} (random rows: {marked['random']:.2f})"
    axes.plot(chosen, marked["overlap"], "o", color=ORANGE, mec="black", ms=10, label=label)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(0, 1.04)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("rows embedded anew; all others are translated")
    axes.set_ylabel("share of the right ten results")
    axes.set_title("What embedding some rows anew gains (held-out rows search)", fontsize=10)
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    return picture
