"""Exact nearest rows of a few queries among all rows of a table, which are seen in batches."""

import numpy as np


class ExactSearch:
    """Collects the k nearest rows of each query.

    Args:
        queries: Vectors (n_queries, d).
        k: Number of rows to keep for each query.
        metric: `cosine`, `dot`, or `l2` for Euclidean distance.
    """

    def __init__(self, queries: np.ndarray, k: int, metric: str = "cosine"):
        self.queries = _unit(queries) if metric == "cosine" else queries
        self.k, self.metric = k, metric
        self.scores = np.full((len(queries), 0), -np.inf, np.float32)
        self.ids = np.empty((len(queries), 0), object)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Look at rows: their ids (n,) and vectors (n, d). Rows with NaN, and rows of zeros, are never near."""
        usable = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        if not usable.any() or not len(self.queries):
            return
        ids, vectors = ids[usable], vectors[usable]
        scores = self.queries @ (_unit(vectors) if self.metric == "cosine" else vectors).T
        if self.metric == "l2":
            scores = 2 * scores - np.einsum("nd,nd->n", vectors, vectors)
        if len(ids) > self.k:
            best = np.argpartition(-scores, self.k - 1, axis=1)[:, : self.k]
            scores, ids = np.take_along_axis(scores, best, 1), ids[best]
        else:
            ids = np.broadcast_to(ids, scores.shape)
        self.scores, self.ids = np.hstack([self.scores, scores]), np.hstack([self.ids, ids])
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, : self.k]
        self.scores, self.ids = np.take_along_axis(self.scores, order, 1), np.take_along_axis(self.ids, order, 1)


def overlap(approximate: np.ndarray, exact: np.ndarray) -> float:
    """Return the mean share of the exact ids (n_queries, k) that the approximate ones contain."""
    shares = [np.isin(row, others).mean() for row, others in zip(exact, approximate, strict=True)]
    return float(np.mean(shares)) if shares else 1.0


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows, np.float32), where=norms > 0)
