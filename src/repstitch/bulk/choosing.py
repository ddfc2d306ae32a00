"""Choose the rows of a table whose re-embedding with the new model gains most, for a share of all rows."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pyarrow.dataset
import torch
from torch import Tensor

from repstitch.bulk.translation import Translation
from repstitch.embeddings.arrow_tables import scan_table
from repstitch.embeddings.ids import without_views
from repstitch.embeddings.rows import Embeddings
from repstitch.mixing.mixed_index import DRAWS, LEAST_ROWS, MixedIndex
from repstitch.mixing.reembedding import NEIGHBOURS, SAMPLE_ROWS, choose_rows, density
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stores.store import Store

CURVE = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def choose_ids(store: Store, translation: Translation, share: float, queries: np.ndarray | None = None) -> np.ndarray:
    """Return the ids of the rows to embed anew: the densest of the translated rows.

    With native queries (m, d_target), rows that more of them have among their 50 nearest come first. All rows are read
    and translated once; their density is measured in a random sample of 10,000 rows.

    Args:
        store: The table.
        translation: Translates the rows of the column.
        share: The share of the rows to choose, from 0 to 1.
        queries: Vectors of queries by the new model. Default: None.

    Returns:
        The ids as text, in the order of the table.
    """
    sample = translation(sample_vectors(store, SAMPLE_ROWS))
    sample = sample[np.isfinite(sample).all(axis=1)]
    ids: list[np.ndarray] = []
    densities: list[Tensor] = []
    nearest = _NearestRows(queries)
    for batch in _batches(store):
        translated = translation(np.ascontiguousarray(batch.vectors, np.float32))
        densities.append(density(translated, sample))
        nearest.add(translated)
        ids.append(cast(np.ndarray, batch.ids))
    values = torch.cat(densities).double() + nearest.counts().double() * 4  # a density is at least −1 and at most 1
    return np.concatenate(ids)[choose_rows(values, share)]


def sample_vectors(store: Store, n: int) -> np.ndarray:
    """Return the old vectors of n random rows as float32 (n, d_source)."""
    vectors = without_views(store.sample(n, 0, [store.id, store.vector]))[store.vector].combine_chunks()
    return np.array(vectors.flatten(), np.float32).reshape(len(vectors), -1)


def _batches(store: Store) -> Iterator[Embeddings]:
    rows = cast(pyarrow.dataset.Dataset, store.rows())
    return scan_table(rows, store.address.label, store.vector, id_column=store.id).batches()


class _NearestRows:
    """The 50 nearest rows of each query (m, d), among rows that are added in batches."""

    def __init__(self, queries: np.ndarray | None):
        rows = np.zeros((0, 0), np.float32) if queries is None else np.array(queries, np.float32)
        self.queries = torch.nn.functional.normalize(torch.from_numpy(rows), dim=1) if len(rows) else None
        self.similar = torch.zeros(len(rows), 0)
        self.positions = torch.zeros(len(rows), 0, dtype=torch.long)
        self.n_rows = 0

    def add(self, rows: np.ndarray) -> None:
        first, self.n_rows = self.n_rows, self.n_rows + len(rows)
        if self.queries is None:
            return
        unit = torch.nn.functional.normalize(torch.from_numpy(rows), dim=1)
        similar = torch.cat([self.similar, (self.queries @ unit.T).nan_to_num(nan=-2.0)], dim=1)
        new = torch.arange(first, self.n_rows).expand(len(similar), -1)
        positions = torch.cat([self.positions, new], dim=1)
        self.similar, order = similar.topk(min(NEIGHBOURS, similar.shape[1]), dim=1)
        self.positions = positions.gather(1, order)

    def counts(self) -> Tensor:
        """Return how many queries have each row (n,) among their nearest."""
        return torch.bincount(self.positions.flatten(), minlength=self.n_rows)


def share_curve(
    held_out: HeldOutRows | None, length: float = 1.0, chosen: float | None = None
) -> list[dict[str, Any]] | None:
    """Return the score of a search by the share of rows that are embedded anew, on held-out rows.

    None without translated held-out rows. The shares are those of CURVE, and `chosen` if it is another one. Each entry
    has the `share`, the `overlap` with the dense rows native, and `random`, the overlap with as many random rows. It is
    measured with held-out rows as queries: judged questions may gain less.
    """
    if held_out is None or held_out.translated is None or len(held_out.vectors) < LEAST_ROWS:
        return None
    index = MixedIndex(held_out.translated, held_out.vectors, similar=held_out.similar)
    values = density(held_out.translated[: len(index)])
    curve: list[dict[str, Any]] = []
    for share in sorted({*CURVE} if chosen is None else {*CURVE, chosen}):
        mask = torch.zeros(len(index), dtype=torch.bool)
        mask[torch.from_numpy(choose_rows(values, share))] = True
        random = [index.random(share, seed) for seed in range(DRAWS)]
        dense = asdict(index.score(share, length, [mask]))
        curve.append(dense | {"random": index.score(share, length, random).overlap})
    return curve
