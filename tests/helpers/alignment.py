"""One metric of one pair of matched rows, which are not normalised."""

import numpy as np
import torch

from repstitch.metrics.alignment import METRICS, measure


def measured_pair(
    X: np.ndarray, Y: np.ndarray, metric: str, k: int = 10, permutations: int = 200, seed: int = 0
) -> dict[str, float]:
    """Return score and standard error of X (n, d_x) and Y (n, d_y), and with permutations null, p and calibrated."""
    rows = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (X, Y))
    prepared = [METRICS[metric].prepare(side, k, name) for side, name in zip(rows, "XY", strict=True)]
    return measure(metric, prepared, [(0, 1)], permutations, seed).pair(0)
