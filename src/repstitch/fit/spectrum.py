"""Measure the number of directions that two spaces share, on held-out rows."""

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.fit.closed_form import Decomposition, canonical

POINTS = 64
SHRINK = 0.1
MAX_ROWS = 10_000


def shared_spectrum(
    decomposition: Decomposition, X: Tensor, Y: Tensor, shrink: float = SHRINK, draws: int = 100, seed: int = 0
) -> dict:
    """Measure canonical correlations on held-out rows X (n, d_source), Y (n, d_target), and count those above chance.

    The canonical variates are computed from the training moments, strongest first. With few pairs, the correlations of
    the training pairs themselves are near 1. On held-out rows, directions that are not shared have a mean correlation
    of 0. `null` is the 95 % point of the largest correlation among all directions, over `draws` shuffles of the
    held-out pairs, so with 95 % confidence none of the `above` directions is due to chance. `correlation` has at most
    64 entries; `direction` has their numbers, which start at 1 and are evenly spaced on a logarithmic scale. If there
    are more than 10,000 rows, the first 10,000 are used. Hotelling 1936, "Relations Between Two Sets of Variates".
    Raises InputError on fewer than 4 rows.
    """
    n = min(len(X), MAX_ROWS)
    if n < 4:
        raise InputError(f"At least 4 held-out pairs are needed for a spectrum; got {n}.")
    x_axes, y_axes = canonical(decomposition, shrink, shrink).axes
    x = _variates(X[:n], decomposition.moments.x_mean, x_axes)
    y = _variates(Y[:n], decomposition.moments.y_mean, y_axes)
    correlation = (x * y).sum(0)
    random = torch.Generator().manual_seed(seed)
    largest = [float((x * y[torch.randperm(n, generator=random).to(y.device)]).sum(0).max()) for _ in range(draws)]
    null = float(np.sort(largest)[min(draws, int(np.ceil(0.95 * (draws + 1)))) - 1])
    places = np.unique(np.geomspace(1, len(correlation), POINTS).round().astype(int))
    return {
        "direction": places.tolist(),
        "correlation": [round(v, 4) for v in correlation[torch.from_numpy(places - 1)].tolist()],
        "null": null,
        "above": int((correlation > null).sum()),
        "directions": len(correlation),
        "n": n,
        "draws": draws,
        "shrink": shrink,
    }


def _variates(rows: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Project the rows (n, d) on the canonical axes (d, r); return (n, r), each column centred and at unit length."""
    variates = (rows.to(axes) - mean) @ axes
    variates = (variates - variates.mean(0)).float()
    return variates / torch.linalg.vector_norm(variates, dim=0).clamp(min=1e-12)
