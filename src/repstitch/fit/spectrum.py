"""How many directions two spaces share, measured on held-out rows."""

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
    """Correlation of each canonical pair of variates on held-out rows X (n, d_source), Y (n, d_target), and how many
    directions beat chance.

    The variates are those of the training moments, strongest first. Correlations of the training pairs themselves are
    near 1 wherever pairs are few; on held-out rows a direction that is not shared averages 0. `null` is the 95 % point
    of the largest correlation, of all directions, over `draws` shuffles of the held-out pairs, so that with 95 %
    confidence none of the `above` directions is due to chance. `correlation` has at most 64 entries, for the
    directions of these numbers (`direction`, from 1, evenly spaced in the logarithm). Of more than 10,000 rows the
    first are used.
    Hotelling 1936, "Relations Between Two Sets of Variates". Raises InputError on fewer than 4 rows.
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
    """The rows (n, d) on their canonical axes (n, r), each column centred and at length one."""
    variates = (rows.to(axes) - mean) @ axes
    variates = (variates - variates.mean(0)).float()
    return variates / torch.linalg.vector_norm(variates, dim=0).clamp(min=1e-12)
