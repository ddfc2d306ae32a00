"""Names in plots: shorten long names, and place the names of points where they cover no point and no other name."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

# In points of 1/72 inch:
GAP = 2.0  # between a point and its name
OCCUPIED_RADIUS = 3.0  # around each place that names should leave free
LINE_FROM = 6.0  # a name that is further than this from its point gets a line to it
LONGEST_LINE = 30.0  # the longest line that is easy to follow
DISTANCES = (0.0, 4.0, 10.0, 18.0, 28.0, 40.0)
ROUNDS = 4
# Costs of a candidate position, relative to a cost of 1 for each square point of a name that lies outside the axes.
OTHER_NAME, OTHER_POINT = 6.0, 2.0  # for each square point of a name that covers another name or a point
CROSSING = 60.0  # for each name that a line crosses
NEARER_POINT = 12.0  # where another point is nearer to the name than its own


def shorten(name: str, longest: int = 30) -> str:
    """Cut out the middle of a name that is longer than `longest`; the end stays because it often names the layer."""
    if len(name) <= longest:
        return name
    end = (longest - 1) // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def shorten_all(names: Sequence[str], longest: int = 30) -> list[str]:
    """Shorten each name, to more than `longest` characters where different names would look the same otherwise."""
    for length in range(longest, max(map(len, names), default=0), 4):
        short = [shorten(name, length) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def points_across(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes in points of 1/72 inch, before the layout makes room for labels."""
    box = axes.get_window_extent()
    return box.width * 72 / axes.figure.dpi, box.height * 72 / axes.figure.dpi


def wrapped(axes: Axes, text: str, size: float) -> str:
    """Wrap the text to about the width of the axes, for letters of `size` points."""
    return "\n".join(textwrap.wrap(text, max(20, int(points_across(axes)[0] / (0.5 * size)))))


def right_of(axes: Axes) -> Any:
    """Coordinates at the right of the axes: x in points of 1/72 inch from their edge, y from 0 at the bottom to 1."""
    from matplotlib.transforms import Affine2D, ScaledTranslation, blended_transform_factory

    inches: Any = axes.figure.dpi_scale_trans
    right: Any = axes.transAxes
    points = Affine2D().scale(1 / 72) + inches
    return blended_transform_factory(points + ScaledTranslation(1, 0, right), axes.transAxes)


def name_points(
    axes: Axes,
    names: Sequence[str],
    places: ArrayLike,
    radii: ArrayLike = 4.0,
    occupied: ArrayLike = (),
    size: float = 8,
    thin: bool = False,
    only_if_clear: bool = False,
    **style,
) -> list[str]:
    """Write each name near its place (x, y) and return the names that were written.

    A name that had to move away, or that is nearer to another point, gets a thin line to its own point. Where possible,
    names cover neither the points at the places, whose `radii` are in points of 1/72 inch, nor the `occupied` places.
    With `thin`, a name without free room next to its point is left out, and no lines are drawn. With `only_if_clear`,
    all names are left out unless each has free room, with a short line that crosses no other name. Set the limits of
    the axes and all labels before; the names that are written do not change the layout.
    """
    if not names:
        return []
    figure: Any = axes.figure
    figure.draw_without_rendering()  # performs the layout, so that the axes have their final size
    to_points = 72 / axes.figure.dpi
    places = np.array(places, dtype=float)
    at = axes.transData.transform(places) * to_points
    reach = np.broadcast_to(np.asarray(radii, dtype=float), len(at))
    others = axes.transData.transform(np.array(occupied, dtype=float).reshape(-1, 2)) * to_points
    dots = np.vstack([_squares(at, reach[:, None]), _squares(others, OCCUPIED_RADIUS)])
    frame = axes.get_window_extent()
    inside = np.array([frame.x0, frame.y0, frame.x1, frame.y1]) * to_points
    sizes = np.array([_text_size(axes, name, fontsize=size, **style) for name in names]) * to_points + 1
    placement = _place(at, reach, sizes, dots, inside, thin)
    if only_if_clear and not placement.clear:
        return []
    line: Any = {"arrowstyle": "-", "lw": 0.6, "color": "#666666", "shrinkA": 0, "shrinkB": 0}
    for i in np.flatnonzero(placement.written).tolist():
        text = axes.annotate(
            names[i],
            tuple(places[i]),
            placement.offsets[i],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            arrowprops=line if placement.lines[i] else None,
            zorder=4,
            **style,
        )
        text.set_in_layout(False)
    return [names[i] for i in np.flatnonzero(placement.written).tolist()]


def _squares(centres: np.ndarray, reach: np.ndarray | float) -> np.ndarray:
    """Boxes (N, 4) around centres (N, 2), whose edges are at the distance `reach` from them."""
    return np.hstack([centres - reach, centres + reach])


def _text_size(axes: Axes, text: str, **style) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    sample = axes.text(0, 0, text, **style)
    box = sample.get_window_extent()
    sample.remove()
    return box.width, box.height


@dataclass(frozen=True)
class Placement:
    """Positions of names: `offsets` (N, 2) from each place to the middle of its name.

    `written` and `lines` (N,) are masks of the names that are written and of those that have a line to their point. All
    names are `clear` if none covers another name or a point or leaves the axes, and no line is long or crosses a name.
    """

    offsets: np.ndarray
    written: np.ndarray
    lines: np.ndarray
    clear: bool


def _place(
    at: np.ndarray, reach: np.ndarray, sizes: np.ndarray, dots: np.ndarray, inside: np.ndarray, thin: bool
) -> Placement:
    """Choose the position of each name.

    Each name in turn, the most crowded first, takes the cheapest of its candidate positions while the others stay. This
    is repeated for a few rounds, because the first names are placed before the positions of the others are chosen.
    """
    N = len(at)
    crowd = (1 / (1 + np.linalg.norm(at[:, None] - at[None], axis=2))).sum(1)
    offsets, placed, lines = np.zeros((N, 2)), np.zeros(N, dtype=bool), np.zeros(N, dtype=bool)
    boxes, costs = np.zeros((N, 4)), np.zeros(N)
    for is_last in [False] * (ROUNDS - 1) + [True]:
        for i in np.argsort(-crowd, kind="stable"):
            placed[i] = lines[i] = False
            candidates, dislike = _candidates(sizes[i], float(reach[i]), DISTANCES[:2] if thin else DISTANCES)
            corners = np.hstack([at[i] + candidates - sizes[i] / 2, at[i] + candidates + sizes[i] / 2])
            hidden = _overlap(corners, boxes[placed]).sum(1)
            outside = sizes[i].prod() - _overlap(corners, inside[None])[:, 0]
            bad = OTHER_NAME * hidden + outside + OTHER_POINT * _overlap(corners, dots).sum(1)
            nearer = _another_is_nearer(corners, at, reach, i)
            with_line = (_gaps(corners, at[i : i + 1], reach[i])[:, 0] > LINE_FROM) | nearer
            if not thin:
                crossed = _crossings(at[i] + candidates, at[i], boxes[placed]).sum(1) * with_line
                crossed += _crossings(at[lines] + offsets[lines], at[lines], corners).sum(0)
                bad += CROSSING * crossed
            best = int((bad + dislike + NEARER_POINT * nearer).argmin())
            costs[i] = bad[best]
            if thin and is_last and bad[best] > 1:
                continue
            offsets[i], boxes[i], placed[i] = candidates[best], corners[best], True
            lines[i] = with_line[best] and not thin
    lengths = np.array([_gaps(boxes[i : i + 1], at[i : i + 1], reach[i])[0, 0] for i in range(N)])
    return Placement(offsets, placed, lines, bool((costs <= 1).all() and (lengths <= LONGEST_LINE).all()))


def _candidates(size: np.ndarray, radius: float, distances: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (K, 2) in all directions and distances, and the cost of each, lowest for near ones at the right."""
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    away = np.array(distances)[:, None, None] + size / 2 + radius + GAP
    # Straight above, below, left or right, the middle of an edge of the name faces the place, otherwise a corner.
    offsets = directions * away * np.where(np.abs(directions).min(1, keepdims=True) < 0.1, 1, 1.15)
    dislike = np.array(distances)[:, None] * 1.5 + 3 * (1 - directions[:, 0])
    return offsets.reshape(-1, 2), dislike.ravel()


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas (A, B) that boxes (x0, y0, x1, y1) have in common with others."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(min=0).prod(2)


def _gaps(boxes: np.ndarray, centres: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    """Distances (A, B) from boxes (A, 4) to the edges of circles around `centres` (B, 2), at least 0."""
    away = np.maximum(boxes[:, None, :2] - centres[None], centres[None] - boxes[:, None, 2:]).clip(min=0)
    return (np.linalg.norm(away, axis=2) - radii).clip(min=0)


def _another_is_nearer(boxes: np.ndarray, at: np.ndarray, reach: np.ndarray, i: int) -> np.ndarray:
    """Mask (K,) of the boxes (K, 4) of name `i` that are nearer to the point of another name than to its own."""
    if len(at) == 1:
        return np.zeros(len(boxes), dtype=bool)
    gaps = _gaps(boxes, at, reach)
    return np.delete(gaps, i, axis=1).min(1) <= gaps[:, i]


def _crossings(starts: np.ndarray, ends: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Mask (L, B) of the lines (L) from `starts` to `ends` that pass through the boxes (B)."""
    along = (ends - starts)[:, None]
    along = np.where(along == 0, 1e-9, along)
    at_low, at_high = ((boxes[:, side] - starts[:, None]) / along for side in (slice(2), slice(2, 4)))
    enters, leaves = np.minimum(at_low, at_high).max(2), np.maximum(at_low, at_high).min(2)  # as shares of the line
    return (enters < leaves) & (enters < 1) & (leaves > 0)
