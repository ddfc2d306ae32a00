"""Verify a migration in the store itself: every row, the index, the map, and how long searches take."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from scipy.stats import binomtest

from repstitch.bulk.exact_search import ExactSearch, overlap
from repstitch.bulk.job import CUT_OVER, INCOMPLETE, INDEXED, VERIFIED, Job, check_stitcher, required_job
from repstitch.bulk.row_check import check_rows
from repstitch.bulk.running import catch_up
from repstitch.bulk.settings import JobSettings
from repstitch.bulk.translation import Translation
from repstitch.embeddings.ids import column_texts
from repstitch.embeddings.reading import read
from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels
from repstitch.metrics.retrieval import ndcg, ranks, recall
from repstitch.spaces import adopt
from repstitch.stitchers.held_out_rows import HeldOutRows, keep_rows
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.store import TRANSLATED, Compared, Store, Which

K = 10
MOST_QUERIES = 500
POOL_TOLERANCE = 0.05  # by which the pool may be smaller than the card's, because rows were deleted since


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
        native = _native_rows(stitcher, settings, held_out)
        translation = Translation(stitcher, settings.max_rows_per_second)
        if job.phase != CUT_OVER:
            catch_up(store, translation)
        queries = _choose_queries(store, stitcher, settings, native)
        stamp = store.index_stamp()
        metric = next((index.metric for index in store.facts().indexes), "cosine")
        exact = ExactSearch(queries.new, K, metric)
        rows = check_rows(store, job, translation, [exact] if stamp else [])
        hits = {"new": _search(store, queries.new, "new"), "old": _search(store, queries.old, "old")}
        result: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "rows": rows.to_dict(),
            "index": _index_loss(hits["new"][0], exact, queries, settings.index_recall) if stamp else None,
            "map": None if native is None else _map_loss(store, stitcher, native, settings.target is None),
            "qrels": _judge(hits["new"][0], queries, settings.qrels) if settings.qrels else None,
            "latency": _latency(
                store, queries, {which: seconds for which, (_, seconds) in hits.items()}, settings.filter
            ),
            "complete": queries.origin != STAND_IN,
            "index_stamp": stamp,
        }
        result["passed"] = all(part is None or part.get("passed", True) for part in map(result.get, CHECKS))
        phase = (VERIFIED if result["complete"] else INCOMPLETE) if result["passed"] else INDEXED
        job = job.at(job.phase if job.phase == CUT_OVER else phase, verification=result)
        store.save_job(job.to_dict())
        return job, result


def _native_rows(stitcher: Stitcher, settings: JobSettings, held_out: HeldOutRows | None) -> HeldOutRows | None:
    """Return native target rows of rows of the table: those of the caller, else the held-out ones of the stitcher."""
    if settings.target is None:
        return held_out
    rows = read(settings.target, sample=MOST_POOL)
    adopt(rows.space, rows.declared, stitcher.target, "`target`", opposite=stitcher.source)
    if rows.ids is None:
        raise InputError("`target` must have ids, by which its rows belong to those of the table.")
    return keep_rows(rows.ids, np.asarray(rows.vectors, np.float32))


def _choose_queries(store: Store, stitcher: Stitcher, settings: JobSettings, native: HeldOutRows | None) -> Queries:
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
        return Queries(ids, np.asarray(rows.vectors, np.float32), old, "queries")
    if native is not None:
        vectors = native.vectors[:MOST_QUERIES]
        origin = "held-out rows" if settings.target is None else "target rows"
        return Queries(native.ids[: len(vectors)], vectors, old, origin)
    return Queries(stand_in.ids[usable], stand_in.new[usable], old, STAND_IN)


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


def _search(store: Store, queries: np.ndarray, which: Which, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    hits = store.search(queries, K, which, where=where)
    return hits.ids, hits.seconds


def _index_loss(hit_ids: np.ndarray, exact: ExactSearch, queries: Queries, least: float) -> dict[str, Any]:
    """Compare the results of the store's index with those of an exact search on the same column."""
    share = overlap(hit_ids, exact.ids)
    return {
        "recall@10": share,
        "least": least,
        "queries": len(queries.new),
        "of": queries.origin,
        "passed": share >= least,
    }


def _map_loss(store: Store, stitcher: Stitcher, native: HeldOutRows, is_held_out: bool) -> dict[str, Any] | None:
    """Search the translations of the pool, as they stand in the store, with native rows.

    Rows that are no longer in the table, or whose vector the application wrote itself, leave the pool.
    """
    if not len(native.vectors):
        return None
    rows = compared(store, list(native.ids))
    kept = (rows.states == TRANSLATED) & np.isfinite(rows.new).all(axis=1)
    gallery = dict(zip(rows.ids[kept], rows.new[kept], strict=True))
    query_rows = [i for i, key in enumerate(native.ids[: len(native.vectors)]) if key in gallery]
    others = [key for key in native.ids[len(native.vectors) :] if key in gallery]
    pool = [*(native.ids[i] for i in query_rows), *others]
    if not query_rows:
        return {"pool": 0, "queries": 0, "passed": not is_held_out}
    positions = ranks(native.vectors[query_rows], np.stack([gallery[key] for key in pool]))
    first = int((positions <= 1).sum())
    interval = binomtest(first, len(query_rows)).proportion_ci(method="wilson")
    result = {
        "recall@1": recall(positions, 1),
        "recall@10": recall(positions, K),
        "interval": [float(interval.low), float(interval.high)],
        "queries": len(query_rows),
        "pool": len(pool),
    }
    if is_held_out and "corpus" in stitcher.scorecard:
        card = stitcher.scorecard.corpus.recall_at(1)
        result |= {"card": card.score, "card_interval": card.interval, "card_pool": stitcher.scorecard.pool}
        result["same_pool"] = len(pool) >= (1 - POOL_TOLERANCE) * stitcher.scorecard.pool
        result["passed"] = interval.high >= (card.interval or (card.score, card.score))[0]
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


def _latency(store: Store, queries: Queries, seconds: dict[str, np.ndarray], where: str | None) -> dict[str, Any]:
    """Return p50 and p99 of the searches in milliseconds, by column, and of filtered searches if there is a filter."""
    result = {which: _percentiles(times) for which, times in seconds.items()}
    if where is not None:
        result["new, filtered"] = _percentiles(_search(store, queries.new, "new", where)[1])
        result["old, filtered"] = _percentiles(_search(store, queries.old, "old", where)[1])
    return result


def _percentiles(seconds: np.ndarray) -> dict[str, float] | None:
    if not len(seconds):
        return None
    return {name: float(1e3 * np.percentile(seconds, share)) for name, share in (("p50_ms", 50), ("p99_ms", 99))}


CHECKS = ("rows", "index", "map")
STAND_IN = "rows of the table"
MOST_POOL = 10_000
