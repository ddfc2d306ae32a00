"""How many directions two spaces share, as held-out rows show it."""

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
    """Correlation of each canonical pair of variates on rows X (n, d_source), Y (n, d_target) that they were not
    fitted to, and how many directions beat chance.

    The variates are those of the training moments, strongest first. Correlations of the training pairs themselves are
    near 1 wherever pairs are few; on held-out rows a direction that is not shared averages 0. `null` is the 95 % point
    of the largest correlation, of all directions, over `draws` shuffles of the held-out pairs, so that with 95 %
    confidence none of the `above` directions is there by chance. `correlation` is given at no more than 64 places of
    the order (`direction`, from 1, evenly spaced in the logarithm). Of more than 10,000 rows the first are used.
    Hotelling 1936, "Relations Between Two Sets of Variates". Raises InputError on fewer than 4 rows.
    """
    n = min(len(X), MAX_ROWS)
    if n < 4:
        raise InputError(f"At least 4 held-out pairs are needed for a spectrum; got {n}.")
    x_axes, y_axes = canonical(decomposition, shrink, shrink).axes
    a = _variates(X[:n], decomposition.moments.x_mean, x_axes)
    b = _variates(Y[:n], decomposition.moments.y_mean, y_axes)
    correlation = (a * b).sum(0)
    random = torch.Generator().manual_seed(seed)
    largest = [float((a * b[torch.randperm(n, generator=random).to(b.device)]).sum(0).max()) for _ in range(draws)]
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
    made = (rows.to(axes) - mean) @ axes
    made = (made - made.mean(0)).float()
    return made / torch.linalg.vector_norm(made, dim=0).clamp(min=1e-12)
