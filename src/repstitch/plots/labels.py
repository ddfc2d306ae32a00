"""Names in pictures: long ones shortened, and names of points placed where they hide no point and no other name."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

# In points of 1/72 inch:
GAP = 2.0  # between a point and its name
OCCUPIED_RADIUS = 3.0  # of a place that names should leave free
LINE_FROM = 6.0  # with a larger gap a name gets a line to its point
DISTANCES = (0.0, 4.0, 10.0, 18.0, 28.0, 40.0)
ROUNDS = 4


def shorten(name: str, longest: int = 30) -> str:
    """The name, without its middle where it is longer than `longest`; the end stays, for it often names the layer."""
    if len(name) <= longest:
        return name
    end = (longest - 1) // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def points_across(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes in points of 1/72 inch, before the layout makes room for labels."""
    box = axes.get_window_extent()
    return box.width * 72 / axes.figure.dpi, box.height * 72 / axes.figure.dpi


def wrapped(axes: Axes, text: str, size: float) -> str:
    """The text in lines about as long as the axes are wide, in letters of `size` points."""
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
    **style,
) -> list[str]:
    """Write each name near its place (x, y), with a line to it where it had to move away; returns those written.

    Where possible, names hide neither the points at the places, of the given `radii` in points of 1/72 inch, nor the
    `occupied` places. With `thin`, a name that finds no free room next to its point is left out. The limits of the axes
    and all labels must be set before; the names that are written do not change the layout.
    """
    if not names:
        return []
    figure: Any = axes.figure
    figure.draw_without_rendering()  # so that the layout is done and the axes are as large as they will be
    to_points = 72 / axes.figure.dpi
    places = np.array(places, dtype=float)
    at = axes.transData.transform(places) * to_points
    reach = np.broadcast_to(np.asarray(radii, dtype=float), len(at))[:, None]
    others = axes.transData.transform(np.array(occupied, dtype=float).reshape(-1, 2)) * to_points
    dots = np.vstack([_squares(at, reach), _squares(others, OCCUPIED_RADIUS)])
    frame = axes.get_window_extent()
    inside = np.array([frame.x0, frame.y0, frame.x1, frame.y1]) * to_points
    sizes = np.array([_text_size(axes, name, fontsize=size, **style) for name in names]) * to_points + 1
    offsets, written = _choose_offsets(at, reach, sizes, dots, inside, thin)
    for i in np.flatnonzero(written).tolist():
        gap = np.maximum(np.abs(offsets[i]) - sizes[i] / 2, 0) - reach[i]
        text = axes.annotate(
            names[i],
            tuple(places[i]),
            offsets[i],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            arrowprops={"arrowstyle": "-", "lw": 0.6, "color": "#666666", "shrinkA": 0, "shrinkB": reach[i, 0]}
            if gap.max() > LINE_FROM and not thin
            else None,
            zorder=4,
            **style,
        )
        text.set_in_layout(False)
    return [names[i] for i in np.flatnonzero(written).tolist()]


def _squares(centres: np.ndarray, reach: np.ndarray | float) -> np.ndarray:
    """Boxes (N, 4) that reach this far from their centres (N, 2)."""
    return np.hstack([centres - reach, centres + reach])


def _text_size(axes: Axes, text: str, **style) -> tuple[float, float]:
    """Width and height in pixels."""
    sample = axes.text(0, 0, text, **style)
    box = sample.get_window_extent()
    sample.remove()
    return box.width, box.height


def _choose_offsets(
    at: np.ndarray, reach: np.ndarray, sizes: np.ndarray, dots: np.ndarray, inside: np.ndarray, thin: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (N, 2) from each place to the middle of its name, and which names are written.

    Each name in turn, the most crowded first, takes the cheapest of its candidate positions while the others stay. This
    is repeated a few rounds, since the first names do not know yet where the others will be.
    """
    N = len(at)
    crowd = (1 / (1 + np.linalg.norm(at[:, None] - at[None], axis=2))).sum(1)
    offsets, placed = np.zeros((N, 2)), np.zeros(N, dtype=bool)
    boxes = np.zeros((N, 4))
    for is_last in [False] * (ROUNDS - 1) + [True]:
        for i in np.argsort(-crowd, kind="stable"):
            placed[i] = False
            candidates, dislike = _candidates(sizes[i], reach[i, 0], DISTANCES[:2] if thin else DISTANCES)
            corners = np.hstack([at[i] + candidates - sizes[i] / 2, at[i] + candidates + sizes[i] / 2])
            hidden = _overlap(corners, boxes[placed]).sum(1)
            outside = sizes[i].prod() - _overlap(corners, inside[None])[:, 0]
            bad = hidden + outside + 2 * _overlap(corners, dots).sum(1)
            best = int((bad + dislike).argmin())
            if thin and is_last and bad[best] > 1:
                continue
            offsets[i], boxes[i], placed[i] = candidates[best], corners[best], True
    return offsets, placed


def _candidates(size: np.ndarray, radius: float, distances: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (K, 2) in all directions and distances, and a cost for each, least for those at the right and near."""
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    away = np.array(distances)[:, None, None] + size / 2 + radius + GAP
    # Straight above, below, left or right the middle of an edge of the name points to the place, otherwise a corner.
    offsets = directions * away * np.where(np.abs(directions).min(1, keepdims=True) < 0.1, 1, 1.15)
    dislike = np.array(distances)[:, None] * 1.5 + 3 * (1 - directions[:, 0])
    return offsets.reshape(-1, 2), dislike.ravel()


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas (A, B) that boxes (x0, y0, x1, y1) have in common with others."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(min=0).prod(2)
