"""Verify a migration in the store itself: every row, the index, the map, and how long searches take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from scipy.stats import binomtest

from repstitch.bulk.exact_search import ExactSearch
from repstitch.bulk.filling import catch_up
from repstitch.bulk.job import CUT_OVER, INCOMPLETE, INDEXED, VERIFIED, Job, check_stitcher, required_job
from repstitch.bulk.mixed_scores import mixed_scores
from repstitch.bulk.row_check import check_rows, differ
from repstitch.bulk.settings import JobSettings
from repstitch.bulk.translation import Translation
from repstitch.embeddings.ids import column_texts
from repstitch.embeddings.reading import read
from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels
from repstitch.metrics.retrieval import ndcg, ranks, recall
from repstitch.mixing.placement import Placement
from repstitch.spaces import adopt
from repstitch.stitchers.held_out_rows import HeldOutRows, keep_rows
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.arrow_columns import unit
from repstitch.stores.store import MISSING, TRANSLATED, Compared, Hits, Index, Store

K = 10
MOST_QUERIES = 500


@dataclass(frozen=True, eq=False)
class Queries:
    """Vectors that search the table: of the new model, and of the old one for its latency.

    Args:
        ids: The ids (n,) of the queries.
        new: Vectors (n, d_target).
        old: Vectors (m, d_source).
        origin: What the new ones are: `queries`, `target rows`, `held-out rows`, or `rows of the table`.
    """

    ids: np.ndarray
    new: np.ndarray
    old: np.ndarray
    origin: str


@dataclass(frozen=True, eq=False)
class NativeRows:
    """Native rows of the new model, and the translations of the same rows as they stand in the store.

    Args:
        ids: The ids (n,) of the pool. The first m belong to `queries`.
        queries: Native vectors (m, d_target).
        gallery: Vectors (n, d_target) from the table.
    """

    ids: np.ndarray
    queries: np.ndarray
    gallery: np.ndarray


def verify(
    store: Store, stitcher: Stitcher, settings: JobSettings, held_out: HeldOutRows | None
) -> tuple[Job, dict[str, Any]]:
    """Verify a migration, and store the result with the job.

    Every row is translated again and compared. The index is compared with an exact search on the new column. Native
    rows of held-out pairs search the translations of the scorecard's pool, as they stand in the store, and the result
    is compared with the card's interval. With judged queries, nDCG@10 is computed from searches in the store. The
    latency of both columns is measured.

    Args:
        store: The table, whose migration is at least indexed.
        stitcher: The stitcher of the migration.
        settings: The settings; `target`, `queries`, `old_queries` and `qrels` say what to verify with.
        held_out: The held-out rows of the stitcher, or None.

    Returns:
        The job, in phase `verified`, or `incomplete` without any native row or query, or `indexed` if a check failed;
        after a cut-over the phase stays. And the results, as JSON types.

    Raises:
        InputError: If there is no such migration, or if the rows to verify with cannot be used.
    """
    with store.locked():
        job = required_job(store, INDEXED, INCOMPLETE, VERIFIED, CUT_OVER)
        check_stitcher(job, stitcher)
        store.resume(job.migration)
        translation = Translation(stitcher, settings.max_rows_per_second, placement=job.placement)
        if job.phase != CUT_OVER:
            catch_up(store, translation)
        native = _native_rows(store, stitcher, settings, held_out, job.placement)
        queries = _choose_queries(store, stitcher, settings, native, job.placement)
        stamp, indexes = store.index_stamp(), store.facts().indexes
        latency, hits = _search(store, queries, settings.filter, indexes[0].metric if indexes else None)
        exact = {} if stamp in ("", MISSING) else _exact_searches(store, queries, indexes, hits)
        rows = check_rows(store, job, translation, list(exact.values()))
        by_map = None if native is None else _map_loss(stitcher, native, settings.target is None)
        result: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": rows.to_dict(),
            "index": _index_loss(exact, queries, settings.index_recall) if exact else _no_index(stamp, indexes),
            "map": by_map,
            "mixed": mixed_scores(held_out, job.placement.length),
            "qrels": _judge(hits, queries, settings.qrels) if settings.qrels else None,
            "latency": latency,
            "complete": queries.origin == "queries" or (by_map is not None and by_map["same_pool"]),
            "index_stamp": stamp,
        }
        result["passed"] = all(part is None or part.get("passed", True) for part in map(result.get, CHECKS))
        phase = (VERIFIED if result["complete"] else INCOMPLETE) if result["passed"] else INDEXED
        job = job.at(job.phase if job.phase == CUT_OVER else phase, verification=result)
        store.save_job(job.to_dict())
        return job, result


def _native_rows(
    store: Store, stitcher: Stitcher, settings: JobSettings, held_out: HeldOutRows | None, placement: Placement
) -> NativeRows | None:
    """Return native target rows of rows of the table: those of the caller, else the held-out ones of the stitcher.

    Rows that are no longer in the table, or whose vector the application wrote itself, are left out. Raises InputError
    if too few rows of the caller are left; too few held-out rows are not used.
    """
    rows = held_out
    if settings.target is not None:
        target = read(settings.target, sample=MOST_POOL)
        adopt(target.space, target.declared, stitcher.target, "`target`", opposite=stitcher.source)
        if target.ids is None:
            raise InputError("`target` must have ids, by which its rows belong to those of the table.")
        rows = keep_rows(target.ids, np.asarray(target.vectors, np.float32))
    if rows is None:
        return None
    gallery: dict[str, np.ndarray] = {}
    for part in store.compare(list(rows.ids)):
        is_translated = (part.states == TRANSLATED) & np.isfinite(part.new).all(axis=1)
        gallery |= zip(part.ids[is_translated], part.new[is_translated], strict=True)
    n_queries = len(rows.vectors)
    searching = [i for i, key in enumerate(rows.ids[:n_queries]) if key in gallery]
    if len(searching) < LEAST_ROWS:
        if settings.target is not None:
            raise InputError(
                f"At least {LEAST_ROWS} rows of `target` must be in the table, by id, with a translated vector; got "
                f"{len(searching)} (`target` has e.g. id {str(rows.ids[0])!r})."
            )
        return None
    pool = [*(rows.ids[i] for i in searching), *(key for key in rows.ids[n_queries:] if key in gallery)]
    vectors, translated = rows.vectors[searching], np.stack([gallery[key] for key in pool])
    if settings.target is not None:
        alike = vectors if placement.is_plain else placement.translated(unit(vectors))
        _check_native(alike, translated[: len(vectors)])
    return NativeRows(np.array(pool, object), placement.queries(vectors), translated)


def _check_native(rows: np.ndarray, translated: np.ndarray) -> None:
    """Raise InputError if rows (n, d) of the caller are the translations themselves."""
    n_same = len(rows) - int(differ(rows, translated).sum())
    if 2 * n_same > len(rows):
        raise InputError(
            f"`target` must have embeddings by the new model itself; {n_same:,} of its {len(rows):,} rows are the "
            "translations of this migration."
        )


def _choose_queries(
    store: Store, stitcher: Stitcher, settings: JobSettings, native: NativeRows | None, placement: Placement
) -> Queries:
    stand_in = compared(store, sample_ids(store, MOST_QUERIES))
    usable = np.isfinite(stand_in.old).all(axis=1) & np.isfinite(stand_in.new).all(axis=1)
    old = stand_in.old[usable]
    if settings.queries is not None:
        rows = read(settings.queries, sample=None if settings.qrels else MOST_QUERIES)
        adopt(rows.space, rows.declared, stitcher.target, "`queries`", opposite=stitcher.source)
        if settings.old_queries is not None:
            others = read(settings.old_queries, sample=MOST_QUERIES)
            adopt(others.space, others.declared, stitcher.source, "`old_queries`", opposite=stitcher.target)
            old = np.asarray(others.vectors, np.float32)
        ids = np.arange(len(rows)).astype(str) if rows.ids is None else rows.ids
        return Queries(ids, placement.queries(rows.vectors), old, "queries")
    if native is not None:
        vectors = native.queries[:MOST_QUERIES]
        origin = "held-out rows" if settings.target is None else "target rows"
        return Queries(native.ids[: len(vectors)], vectors, old, origin)
    new = placement.queries(placement.without_extra(stand_in.new[usable]))
    return Queries(stand_in.ids[usable], new, old, "rows of the table")


def sample_ids(store: Store, n: int) -> list[str]:
    """Return the ids of rows drawn at random."""
    table = store.sample(n, 0, [store.id, store.vector])
    return list(column_texts(table.column(store.id), f"Column {store.id!r}"))


def compared(store: Store, ids: list[str]) -> Compared:
    """Return the rows with these ids, as far as there are any."""
    parts = list(store.compare(ids))
    if not parts:
        raise InputError(f"{store.address.label} has no rows with vectors.")
    return Compared(*(np.concatenate([getattr(part, name) for part in parts]) for name in Compared.__annotations__))


def _exact_searches(
    store: Store, queries: Queries, indexes: Sequence[Index], hits: np.ndarray
) -> dict[str, ExactSearch]:
    """Search with the index of each metric, and return the exact searches to compare with. `hits` are the first's."""
    metrics = dict.fromkeys(index.metric for index in indexes if index.metric in METRICS and not _is_partial(index))
    return {
        metric: ExactSearch(
            queries.new,
            hits if metric == indexes[0].metric else store.search(queries.new, K, "new", metric=metric).ids,
            metric,
        )
        for metric in metrics
    }


def _is_partial(index: Index) -> bool:
    return "where" in index.settings


def _index_loss(exact: Mapping[str, ExactSearch], queries: Queries, least: float) -> dict[str, Any]:
    """Compare the results of the store's indexes with those of exact searches on the same column."""
    by_metric = {metric: search.recall() for metric, search in exact.items()}
    recall = min(by_metric.values())
    return {
        "recall@10": recall,
        "by_metric": by_metric,
        "least": least,
        "queries": len(queries.new),
        "of": queries.origin,
        "passed": recall >= least,
    }


def _no_index(stamp: str, indexes: Sequence[Index]) -> dict[str, Any] | None:
    """Return why no index was compared; None if there is none, as on the old vectors."""
    if stamp == MISSING:
        return {"why": "the old vectors have an index that the new ones lack; run again", "passed": False}
    if not stamp:
        return None
    is_partial = bool(indexes) and _is_partial(indexes[0])
    reason = "an index of part of the rows" if is_partial else "an index by another metric than cosine, l2 or dot"
    return {"why": f"{reason} is not compared with an exact search", "passed": True}


def _map_loss(stitcher: Stitcher, native: NativeRows, is_held_out: bool) -> dict[str, Any]:
    """Search the translations of the pool, as they stand in the store, with native rows.

    The result must be better than chance and, for held-out rows, not below the interval of the scorecard.
    """
    positions = ranks(native.queries, native.gallery)
    n_queries, pool = len(native.queries), len(native.ids)
    interval = binomtest(int((positions <= 1).sum()), n_queries).proportion_ci(method="wilson")
    result = {
        "recall@1": recall(positions, 1),
        "recall@10": recall(positions, K),
        "interval": [float(interval.low), float(interval.high)],
        "queries": n_queries,
        "pool": pool,
        "same_pool": True,
        "passed": bool(interval.low > 1 / pool),
    }
    if is_held_out and "corpus" in stitcher.scorecard:
        card = stitcher.scorecard.corpus.recall_at(1)
        result |= {"card": card.score, "card_interval": card.interval, "card_pool": stitcher.scorecard.pool}
        result["same_pool"] = pool >= LEAST_SHARE_OF_POOL * stitcher.scorecard.pool
        least = (card.interval or (card.score, card.score))[0]
        result["passed"] = result["passed"] and bool(interval.high >= least)
    return result


def _judge(hit_ids: np.ndarray, queries: Queries, path: str) -> dict[str, Any]:
    """Return nDCG@10 of the searches in the store, over the queries with a relevant document."""
    qrels = read_qrels(path)
    judged = [i for i, key in enumerate(queries.ids) if any(grade > 0 for grade in qrels.get(key, {}).values())]
    if not judged:
        raise InputError(
            f"No query of `queries` has a relevant document in `qrels` {path}; both must use the same ids."
        )
    names = sorted({name for i in judged for name in (*hit_ids[i], *qrels[queries.ids[i]])})
    number = {name: at for at, name in enumerate(names)}
    grades = [{number[name]: grade for name, grade in qrels[queries.ids[i]].items()} for i in judged]
    retrieved = np.array([[number[name] for name in hit_ids[i]] for i in judged])
    return {"ndcg@10": float(ndcg(retrieved, grades, K).mean()), "queries": len(judged)}


def _search(store: Store, queries: Queries, where: str | None, metric: str | None) -> tuple[dict[str, Any], np.ndarray]:
    """Search both columns as readers do, by one metric, filtered too if there is a filter.

    Returns p50 and p99 in milliseconds, by column, and the ids (n, K) that the queries find in the new column.
    """
    latency, new, old = {}, queries.new[:MOST_QUERIES], queries.old[:MOST_QUERIES]
    if where is not None:  # first, so that a wrong condition is refused at once
        latency["new, filtered"] = _percentiles(store.search(new, K, "new", where, metric))
        latency["old, filtered"] = _percentiles(store.search(old, K, "old", where, metric))
    hits = store.search(queries.new, K, "new", metric=metric)
    latency["new"] = _percentiles(hits)
    latency["old"] = _percentiles(store.search(old, K, "old", metric=metric))
    return latency, hits.ids


def _percentiles(hits: Hits) -> dict[str, float] | None:
    if not len(hits.seconds):
        return None
    return {name: float(1e3 * np.percentile(hits.seconds, share)) for name, share in (("p50_ms", 50), ("p99_ms", 99))}


CHECKS = ("rows", "index", "map")
METRICS = ("cosine", "l2", "dot")
MOST_POOL = 10_000
LEAST_ROWS = 20  # native rows that must be in the table
LEAST_SHARE_OF_POOL = 0.5  # of the scorecard's pool that must still be in the table
