"""Vector indexes of LanceDB tables: their settings, copies of them for another column, and searches."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from repstitch.stores.arrow_columns import id_texts, matrix
from repstitch.stores.lancedb_opening import explained
from repstitch.stores.store import Hits, Index

READERS_PROBES = 20  # partitions that a search of LanceDB looks into, if the reader does not say
BATCH_ROWS = 4096
NO_ID = ""


def vector_indexes(dataset: lance.LanceDataset, column: str) -> list[Any]:
    """Return what Lance says of the vector indexes on a column."""
    return [
        index
        for index in dataset.describe_indices()
        if index.field_names == [column] and "metric_type" in (index.details or {})
    ]


def describe(dataset: lance.LanceDataset, column: str) -> tuple[Index, ...]:
    """Return the vector indexes on a column with the settings that a copy needs."""
    return tuple(
        Index(index.name, index.index_type, _settings(dataset, index), index.total_size_bytes)
        for index in vector_indexes(dataset, column)
    )


def _settings(dataset: lance.LanceDataset, index: Any) -> dict[str, Any]:
    details = index.details
    settings: dict[str, Any] = {"metric": details["metric_type"].lower()}
    if index.index_type.startswith("IVF"):
        settings["num_partitions"] = len(dataset.get_ivf_model(index.name).centroids)
    graph, compression = details.get("hnsw", {}), details.get("compression", {})
    names = {"max_connections": "m", "construction_ef": "ef_construction", "max_level": "max_level"}
    settings |= {new: graph[name] for name, new in names.items() if name in graph}
    names = {"num_bits": "num_bits", "num_sub_vectors": "num_sub_vectors"}
    return settings | {new: compression[name] for name, new in names.items() if name in compression}


def copied_settings(index: Index, dims: tuple[int, int], n_rows: int) -> dict[str, Any]:
    """Return the settings of a copy of an index for vectors of another dimension.

    A product quantiser keeps the number of dimensions of a part, as far as the new dimension can be divided so.
    """
    settings = dict(index.settings)
    if "num_sub_vectors" in settings:
        wanted = settings["num_sub_vectors"] * dims[1] / dims[0]
        divisors = [n for n in range(1, dims[1] + 1) if dims[1] % n == 0]
        settings["num_sub_vectors"] = min(divisors, key=lambda n: (abs(n - wanted), n))
    if "num_partitions" in settings:
        settings["num_partitions"] = max(1, min(settings["num_partitions"], n_rows))
    return settings


def build(
    dataset: lance.LanceDataset,
    like: Index,
    column: str,
    name: str,
    dims: tuple[int, int],
) -> None:
    """Build an index on a column with the settings of another one, or bring an existing one up to date."""
    existing = {index.name: index for index in vector_indexes(dataset, column)}.get(name)
    settings = copied_settings(like, dims, dataset.count_rows())
    with explained(f"The index of column {column!r} cannot be built"):
        if existing is not None and existing.index_type == like.kind:
            dataset.optimize.optimize_indices(index_names=[name])
        else:
            dataset.create_index(column, like.kind, name=name, replace=True, **settings)


def stamp(dataset: lance.LanceDataset, column: str) -> str:
    """Return the identities of the vector indexes on a column, as text; "" for none."""
    parts = [str(segment.uuid) for index in vector_indexes(dataset, column) for segment in index.segments]
    return " ".join(sorted(parts))


def search(
    dataset: lance.LanceDataset, column: str, id_column: str, queries: np.ndarray, k: int, where: str | None
) -> Hits:
    """Search a column as a reader of LanceDB does, one query after another."""
    index = next(iter(vector_indexes(dataset, column)), None)
    metric = index.details["metric_type"].lower() if index else "cosine"
    ids, seconds = np.full((len(queries), k), NO_ID, dtype=object), np.zeros(len(queries))
    for row, query in enumerate(np.ascontiguousarray(queries, np.float32)):
        nearest = {"column": column, "q": query, "k": k, "metric": metric, "minimum_nprobes": READERS_PROBES}
        started = time.perf_counter()
        with explained(f"Column {column!r} cannot be searched"):
            scanner = dataset.scanner(columns=[id_column, "_distance"], nearest=nearest, filter=where, prefilter=True)
            table = scanner.to_table()
        seconds[row] = time.perf_counter() - started
        texts = id_texts(table[id_column])
        ids[row, : len(texts)] = texts
    return Hits(ids, seconds)


def search_exactly(batches: Iterator[pa.RecordBatch], names: Sequence[str], queries: np.ndarray, k: int) -> Hits:
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


def check_condition(dataset: lance.LanceDataset, where: str | None) -> None:
    """Raise InputError if the condition in an address is not valid."""
    if where is not None:
        with explained(f"The condition {where!r} cannot be used"):
            dataset.count_rows(where)
