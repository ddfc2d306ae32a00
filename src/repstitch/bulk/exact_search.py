"""Exact search of a few queries among all rows of a table, which are seen in batches."""

import numpy as np

from repstitch.stores.arrow_columns import unit

TIE = 1e-5  # two scores in float32 that differ by less, relative to their size, are the same


class ExactSearch:
    """Collects the k best scores of each query, and the scores of the rows that another search has returned.

    Args:
        queries: Vectors (n_queries, d).
        returned: The ids (n_queries, k) that the other search returned; "" for none.
        metric: `cosine`, `dot`, or `l2` for Euclidean distance.
    """

    def __init__(self, queries: np.ndarray, returned: np.ndarray, metric: str = "cosine"):
        self.queries = unit(queries) if metric == "cosine" else queries
        self.k, self.metric = returned.shape[1], metric
        self.best = np.full((len(queries), self.k), -np.inf, np.float32)
        self.scores = np.full(returned.shape, -np.inf, np.float32)
        self._places: dict[str, list[tuple[int, int]]] = {}
        for place, key in np.ndenumerate(returned):
            if key:
                self._places.setdefault(key, []).append(place)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Look at rows: their ids (n,) and vectors (n, d). Rows with NaN, and rows of zeros, are never near."""
        usable = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        if not usable.any() or not len(self.queries):
            return
        ids, vectors = ids[usable], vectors[usable]
        scores = self.queries @ (unit(vectors) if self.metric == "cosine" else vectors).T
        if self.metric == "l2":
            scores = 2 * scores - np.einsum("nd,nd->n", vectors, vectors)
        for row, key in enumerate(ids):
            for query, rank in self._places.get(key, ()):
                self.scores[query, rank] = scores[query, row]
        both = np.hstack([self.best, scores])
        self.best = -np.partition(-both, self.k - 1, axis=1)[:, : self.k]

    def recall(self) -> float:
        """Return the mean share of the exact nearest k that the other search returned.

        A returned row counts if its score is as good as the k-th best one, so repeated vectors stand for each other.
        """
        if not len(self.queries):
            return 1.0
        last = np.where(np.isfinite(self.best), self.best, np.inf).min(axis=1, keepdims=True)
        n_exact = np.isfinite(self.best).sum(axis=1)
        tolerance = TIE * np.maximum(1.0, np.abs(last))
        n_good = (self.scores >= last - tolerance).sum(axis=1)
        return float(np.mean(np.minimum(n_good, n_exact) / np.maximum(n_exact, 1)))
