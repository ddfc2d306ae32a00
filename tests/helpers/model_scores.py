"""Scores of many models whose trend or lineage is known."""

import numpy as np

NAN = float("nan")


def models(n: int) -> list[str]:
    return [f"m{i}" for i in range(n)]


def symmetric(n: int, seed: int = 0) -> np.ndarray:
    """Scores of models that have nothing to do with one another."""
    S = np.random.default_rng(seed).random((n, n))
    return (S + S.T) / 2


def additive(strengths) -> np.ndarray:
    """Scores in which each model aligns with all others as strongly as it is strong."""
    return np.add.outer(strengths, strengths) / 10


def blocks(*labelings, strengths, noise: float = 0.02, base: float = 0.1, seed: int = 0) -> np.ndarray:
    """Scores that are higher by a factor's strength for pairs that share its label."""
    n = len(labelings[0])
    S = base + noise * symmetric(n, seed)
    for labels, strength in zip(labelings, strengths, strict=True):
        S = S + strength * (np.array(labels)[:, None] == np.array(labels))
    return S
