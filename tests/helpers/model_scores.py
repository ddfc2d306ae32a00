"""Synthetic alignment scores of many models, with a known trend or lineage."""

import numpy as np

NAN = float("nan")


def models(n: int) -> list[str]:
    return [f"m{i}" for i in range(n)]


def symmetric(n: int, seed: int = 0) -> np.ndarray:
    """Return a symmetric matrix of random scores, as of unrelated models."""
    S = np.random.default_rng(seed).random((n, n))
    return (S + S.T) / 2


def additive(strengths) -> np.ndarray:
    """Return scores that are the sum of the strengths of the two models, divided by 10."""
    return np.add.outer(strengths, strengths) / 10


def blocks(*labelings, strengths, noise: float = 0.02, base: float = 0.1, seed: int = 0) -> np.ndarray:
    """Return scores that are higher for pairs with equal labels, by the strength of that set of labels."""
    n = len(labelings[0])
    S = base + noise * symmetric(n, seed)
    for labels, strength in zip(labelings, strengths, strict=True):
        S = S + strength * (np.array(labels)[:, None] == np.array(labels))
    return S
