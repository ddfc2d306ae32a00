"""Vector indexes of LanceDB tables: their settings, copies of them for another column, and searches."""

import logging
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import numpy as np

from repstitch.stores.arrow_columns import id_texts
from repstitch.stores.lancedb.opening import committed, explained, open_latest
from repstitch.stores.store import Hits, Index

SECONDS_MESSAGE = "Final create_index rust time"
READERS_PROBES = 20  # partitions that a search of LanceDB looks into, if the reader does not say


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
        Index(index.name, index.index_type, _settings(dataset, index), index.total_size_bytes, metric_of(index))
        for index in vector_indexes(dataset, column)
    )


def metric_of(index: Any) -> str:
    """Return the metric of an index: `cosine`, `l2` or `dot`."""
    return index.details["metric_type"].lower()


def _settings(dataset: lance.LanceDataset, index: Any) -> dict[str, Any]:
    details = index.details
    settings: dict[str, Any] = {"metric": metric_of(index)}
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


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the seconds that Lance logs for each index; its other messages, and its settings, stay."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return not record.msg.startswith(SECONDS_MESSAGE)

    logger = logging.getLogger("pylance")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def build(path: Path, like: Index, column: str, name: str, dims: tuple[int, int]) -> None:
    """Build an index on a column with the settings of another one, or bring an existing one up to date.

    It is built again if other programs compact the table meanwhile, for their commit is in the way of this one.
    """

    def change() -> None:
        dataset = open_latest(path)
        existing = {index.name: index for index in vector_indexes(dataset, column)}.get(name)
        if existing is not None and existing.index_type == like.kind:
            dataset.optimize.optimize_indices(index_names=[name])
        else:
            settings = copied_settings(like, dims, dataset.count_rows())
            with quiet():
                dataset.create_index(column, like.kind, name=name, replace=True, **settings)

    committed(change, f"The index of column {column!r} cannot be built")


def stamp(dataset: lance.LanceDataset, column: str) -> str:
    """Return text that tells the vector indexes on a column from others; "" for none.

    Compaction and later rows give an index another id. It stays the same index, with the same partitions.
    """
    parts = []
    for index in describe(dataset, column):
        centroids = dataset.get_ivf_model(index.name).centroids
        checksum = zlib.crc32(np.ascontiguousarray(centroids.flatten().to_numpy(zero_copy_only=False)).tobytes())
        parts.append(f"{index.name} {index.kind} {index.settings} {checksum:08x}")
    return "; ".join(sorted(parts))


def search(
    dataset: lance.LanceDataset,
    column: str,
    id_column: str,
    queries: np.ndarray,
    k: int,
    where: str | None,
    metric: str | None,
) -> Hits:
    """Search a column as a reader of LanceDB does, one query after another."""
    if metric is None:
        index = next(iter(vector_indexes(dataset, column)), None)
        metric = index.details["metric_type"].lower() if index else "cosine"
    ids, seconds = np.full((len(queries), k), "", dtype=object), np.zeros(len(queries))
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


def check_condition(dataset: lance.LanceDataset, where: str | None) -> None:
    """Raise InputError if the condition in an address is not valid."""
    if where is not None:
        with explained(f"The condition {where!r} cannot be used"):
            dataset.count_rows(where)
