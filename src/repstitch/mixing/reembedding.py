"""Choose the rows whose re-embedding with the new model gains most, where there is a budget for a share of them.

Rows in dense places are found by many queries, so their vectors matter most. Rows of low confidence are the wrong
choice: they are outliers that hardly any query finds.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from repstitch.metrics.matrices import MatrixLike, as_matrix
from repstitch.precision import exact_products

NEIGHBOURS = 50
SAMPLE_ROWS = 10_000
TILE_ROWS = 2_048


@exact_products()
def density(translated: MatrixLike, sample: MatrixLike | None = None, k: int = NEIGHBOURS) -> Tensor:
    """Return the mean cosine (n,) of each translated row to its k nearest translated rows.

    Args:
        translated: The translated rows (n, d).
        sample: Translated rows (m, d) among which neighbours are searched; a random sample of a large table is enough,
            because only the order of the rows counts. A row that is in the sample is left out of its own neighbours.
            Default: None, all rows.
        k: The number of neighbours; all of the sample if there are no more.

    Returns:
        The densities, float32, in [−1, 1]; NaN for rows with NaN.
    """
    T = normalize(as_matrix(translated, "translated").float(), dim=1)
    S = T if sample is None else normalize(as_matrix(sample, "sample").float(), dim=1)
    S = S[torch.isfinite(S).all(1)]
    k = max(1, min(k, len(S) - 1))
    parts = []
    for at in range(0, len(T), TILE_ROWS):
        near = (T[at : at + TILE_ROWS] @ S.T).nan_to_num(nan=-1.0).topk(min(k + 1, len(S)), dim=1).values
        is_self = near[:, :1] > 1 - 1e-6
        parts.append(torch.where(is_self, near[:, 1:].mean(1, keepdim=True), near[:, :-1].mean(1, keepdim=True))[:, 0])
    values = torch.cat(parts)
    values[~torch.isfinite(T).all(1)] = torch.nan
    return values


def choose_rows(values: Tensor, share: float, seed: int = 0) -> np.ndarray:
    """Return the positions, ascending, of the rows (n,) with the highest values; ties are broken at random."""
    shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(len(values)))
    order = shuffled[values.double().nan_to_num(nan=-torch.inf)[shuffled].argsort(descending=True, stable=True)]
    return np.sort(order[: round(share * len(values))].numpy())
