"""Where the texts of a picture lie, and whether they overlap."""

import numpy as np
from matplotlib.text import Text


def boxes(axes) -> np.ndarray:
    """Corners (N, 4) of what is written in the axes, in pixels, without the lines that lead to points."""
    for text in axes.texts:
        text.get_window_extent()  # puts the text where its point is
    return np.array([Text.get_window_extent(text).extents for text in axes.texts])


def overlaps(boxes: np.ndarray) -> int:
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    return int(np.triu((high - low).clip(min=0).prod(2) > 1, 1).sum())
