"""Sets of embeddings with known alignment."""

import numpy as np

from helpers.spaces import card, gaussian, names, rotation
from repstitch.embeddings.rows import Embeddings

FAMILY, OTHERS = ["rot0", "rot1", "rot2"], ["un0", "un1"]


def space(rows: np.ndarray, name: str, **stated) -> Embeddings:
    return Embeddings(np.asarray(rows, dtype=np.float32), card(name, rows.shape[1], **stated), names(len(rows)))


def known_spaces(n: int = 120) -> list[Embeddings]:
    """Return three rotations of one space and two unrelated spaces, in a mixed order."""
    X = gaussian(n, 8, 1)
    turned = [space(X @ rotation(8, 5 + i), name) for i, name in enumerate(FAMILY)]
    unrelated = [space(gaussian(n, 6, 50 + i), name) for i, name in enumerate(OTHERS)]
    return [turned[0], unrelated[0], turned[1], unrelated[1], turned[2]]


def layered_spaces(name: str, layers: int, n: int, seed: int, d: int = 5) -> list[Embeddings]:
    """Return unrelated spaces that are named as the layers of one encoder."""
    return [
        space(gaussian(n, d, 100 * seed + i), f"{name}.layer{i:02d}", encoder=f"timm:{name}", layer=i)
        for i in range(1, layers + 1)
    ]
