"""Pearson correlation of many rows at once."""

import numpy as np


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Pearson correlation along the last axis; NaN if x or y does not vary."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return (x * y).sum(-1) / np.where(size > 0, size, np.nan)
