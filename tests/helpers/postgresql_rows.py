"""Rows of 64 dimensions for tables in PostgreSQL, and their translations to 96 dimensions."""

import numpy as np

D_OLD, D_NEW = 64, 96
W = (np.random.default_rng(0).normal(size=(D_OLD, D_NEW)) / 8).astype(np.float32)


def translate(X: np.ndarray) -> np.ndarray:
    """Translate rows (n, 64) to (n, 96), NaN for a row of zeros."""
    Y = X @ W[: X.shape[1]]
    Y[~X.any(axis=1)] = np.nan
    return Y


def vectors(n: int, dim: int = D_OLD, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
