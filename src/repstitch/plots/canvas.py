"""Create figures without a display, save them to files, and choose colours that colour-blind readers distinguish."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repstitch.files import check_picture, written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito 2008, "Color Universal Design". Grey is not part of it and stands for "unknown".
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
DPI = 150
PAD = 0.08  # inches around each panel


def figure(panels: int, width: float = 4.6, height: float = 3.6, columns: int = 3) -> tuple[Figure, Sequence[Axes]]:
    """Create a figure that needs no display, with `panels` axes of `width` × `height` inches, `columns` in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    across = min(panels, columns)
    down = -(-panels // across)
    size, layout = (width * across, height * down), ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD)
    # The DPI of saved files is also used for the layout, because text widths depend on it a little.
    picture = Figure(figsize=size, layout=layout, dpi=DPI)
    FigureCanvasAgg(picture)
    return picture, [picture.add_subplot(down, across, i + 1) for i in range(panels)]


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write the figure to a .png, .svg or .pdf file and return its path.

    The same figure gives the same bytes, and the text of an .svg stays text that can be searched and edited. A write
    that fails leaves no partial file. Raises InputError on another ending or a folder that does not exist.
    """
    from matplotlib import rc_context

    target = check_picture(path)
    with written_whole(target, "plot") as path, rc_context({"svg.fonttype": "none", "svg.hashsalt": "repstitch"}):
        figure.savefig(path, dpi=DPI, metadata=DATELESS[target.suffix])
    return target


@dataclass(frozen=True)
class Look:
    """The style of one category: its colour, with marker and line style for points and curves, and hatch for areas."""

    colour: str
    marker: str = "o"
    line: str = "-"
    hatch: str = ""


def looks(kinds: Iterable[str | None]) -> dict[str | None, Look]:
    """Return a style for each category, in alphabetical order.

    After eight categories, colours repeat with other markers, line styles and hatches. None, which stands for an
    unknown category, is grey and comes last.
    """
    kinds = set(kinds)
    by_kind: dict[str | None, Look] = {}
    for i, kind in enumerate(sorted(kind for kind in kinds if kind is not None)):
        turn = i // len(COLOURS) % len(MARKERS)
        by_kind[kind] = Look(COLOURS[i % len(COLOURS)], MARKERS[turn], LINES[turn % len(LINES)], HATCHES[turn])
    return by_kind | ({None: Look(GREY)} if None in kinds else {})


MARKERS = ("o", "s", "^", "D", "v")
LINES = ("-", "-.", ":")
HATCHES = ("", "////", "....", "xxxx", "----")
# Metadata to leave out of each format, so that files do not depend on the time at which they are written.
DATELESS = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
