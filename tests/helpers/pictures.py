"""Positions of the texts in a plot, and how many of them overlap."""

import numpy as np
from matplotlib.text import Text


def boxes(axes) -> np.ndarray:
    """Return the corners (N, 4) of the texts in the axes, in pixels, without the lines from texts to points."""
    for text in axes.texts:
        text.get_window_extent()  # moves the text to its point
    return np.array([Text.get_window_extent(text).extents for text in axes.texts])


def overlaps(boxes: np.ndarray) -> int:
    """Count the pairs of boxes that overlap by more than one square pixel."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    return int(np.triu((high - low).clip(min=0).prod(2) > 1, 1).sum())
