"""Every alignment metric by its name."""

from collections.abc import Callable

import numpy as np
import torch

from repstitch.errors import InputError
from repstitch.metrics.kernels import cka, cka_unbiased, cka_unbiased_null
from repstitch.metrics.neighbours import check_spread, knn, mutual_knn, overlap
from repstitch.metrics.null import Null, calibrate, permute_neighbours, permute_rows


def align(X: np.ndarray, Y: np.ndarray, metric: str, k: int = 10, permutations: int = 200, seed: int = 0) -> dict:
    """One alignment metric of matched rows beside its permutation null.

    X is (n, d_x), Y is (n, d_y). Returns `metric`, `score` and, unless `permutations` is 0, `null`, `p` and
    `calibrated` (see `Null`). Raises InputError on a metric that is not known.
    """
    if metric not in METRICS:
        raise InputError(f"`metric` must be one of {', '.join(METRICS)}; got {metric!r}.")
    x, y = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (X, Y))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(f"`X` and `Y` must be matrices of as many rows; got {tuple(x.shape)} and {tuple(y.shape)}.")
    if metric == "mutual_knn":
        check_spread(x, k, "X")
        check_spread(y, k, "Y")
        a, b = knn(x, x, k, own=True), knn(y, y, k, own=True)
        score = float(overlap(a, b).mean())
        draws = permute_neighbours(a, b, permutations, seed)
    else:
        score = METRICS[metric](x, y)
        if metric == "cka_unbiased":
            draws = cka_unbiased_null(x, y, permutations, seed)
        else:
            draws = permute_rows(lambda order: METRICS[metric](x, y[order]), len(x), permutations, seed)
    placed = calibrate(score, draws) if permutations else Null(score, *(float("nan"),) * 3)
    result = {"metric": metric, "score": score, "null": placed.null, "p": placed.p, "calibrated": placed.calibrated}
    return result if permutations else {"metric": metric, "score": score}


METRICS: dict[str, Callable[..., float]] = {"mutual_knn": mutual_knn, "cka": cka, "cka_unbiased": cka_unbiased}
