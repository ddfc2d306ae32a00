"""Exact search by cosine in vectors that are read in batches."""

import time
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from repstitch.stores.arrow_columns import id_texts, matrix
from repstitch.stores.store import Hits

NO_ID = ""


def search_exactly(batches: Iterable[pa.RecordBatch], names: Sequence[str], queries: np.ndarray, k: int) -> Hits:
    """Search all rows by cosine in one pass. `names` are the columns of ids and of vectors. Times are the mean.

    Rows without a vector, and those of zeros, which have no cosine, are no hits.
    """
    started = time.perf_counter()
    n, dim = queries.shape
    ids = np.full((n, 0), NO_ID, dtype=object)
    scores = np.empty((n, 0), np.float32)
    units, _ = _unit_rows(np.asarray(queries, np.float32))
    for batch in batches:
        rows, valid = matrix(batch[names[1]], dim)
        rows, is_usable = _unit_rows(rows)
        valid &= is_usable
        if not valid.any():
            continue
        new_scores = units @ rows[valid].T
        new_ids = np.broadcast_to(id_texts(batch[names[0]])[valid], new_scores.shape)
        scores, ids = np.concatenate([scores, new_scores], axis=1), np.concatenate([ids, new_ids], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
    padded = np.full((n, k), NO_ID, dtype=object)
    padded[:, : ids.shape[1]] = ids
    return Hits(padded, np.full(n, (time.perf_counter() - started) / max(1, n)))


def _unit_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (n, d) divided by their norms, and a mask (n,) of those with a norm."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    return rows / np.where(usable, norms, 1), usable[:, 0]
