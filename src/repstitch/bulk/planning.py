"""Estimate what a migration takes, before anything is written to the table: space, time, cost and quality."""

import math
import time
from typing import Any

import numpy as np

from repstitch.bulk.choosing import share_curve
from repstitch.bulk.filling import catch_up, fill
from repstitch.bulk.job import ADVICE, CUT_OVER, Job, check_stitcher, job_of, new_job, placement_for, required_job
from repstitch.bulk.mixed_scores import mixed_scores
from repstitch.bulk.quality import quality_in
from repstitch.bulk.row_check import differ
from repstitch.bulk.settings import JobSettings
from repstitch.bulk.translation import Translation
from repstitch.embeddings.reading import read
from repstitch.errors import InputError
from repstitch.mixing.mixed_index import MOST_ROWS
from repstitch.spaces import adopt
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.store import Facts, Store

REHEARSAL_ROWS = 2_000
TEXT_ROWS = 1_000
CHARACTERS_PER_TOKEN = 4.0  # of English text, by a rule of thumb


def make_plan(
    store: Store, stitcher: Stitcher, settings: JobSettings, held_out: HeldOutRows | None = None
) -> dict[str, Any]:
    """Estimate what a migration takes.

    The steps are timed on a copy of some random rows with the same indexes, which is removed again. Filling and
    verification are taken to grow with n, and the index with n log n.

    Args:
        store: The table.
        stitcher: The stitcher to translate with.
        settings: The settings of the job.
        held_out: The held-out rows of the stitcher, with which some rows of the table are compared. Default: None.

    Returns:
        The plan as JSON types: rows, bytes at the peak by cause against the free space, hours by step, the index to
        build, what depends on the column, the cost of re-embedding, what the scorecard knows of the quality and whether
        it holds for the table, and how searches change while more and more rows are native, or are embedded anew.

    Raises:
        InputError: If the column cannot be moved so, or if it is cut over already.
    """
    job = job_of(store)
    phase = None if job is None else job.phase
    if job is None:
        job = new_job(store, stitcher, settings)
    else:
        required_job(store, *(phase for phase in ADVICE if phase != CUT_OVER))
        check_stitcher(job, stitcher)
    store.check(job.migration)
    facts = store.facts()
    n_bytes = store.peak_bytes(job.migration, facts)
    hours, index_bytes, why_not = _rehearse(store, stitcher, settings, facts)
    peak = sum(n_bytes.values())
    return {
        "address": store.address.label,
        "phase": phase,
        "rows": facts.n_rows,
        "without_vector": facts.n_without_vector,
        "dimensions": {"old": facts.dim, "new": job.migration.dim},
        "new_column": job.migration.new,
        "place": store.describe_place(job.migration),
        "layout": facts.layout if job.migration.layout is None else job.migration.layout,
        "cut_over": store.describe_cut_over(job.migration),
        "state_kept": store.capabilities.state_kept,
        "bytes": n_bytes,
        "peak_bytes": peak,
        "free_bytes": facts.free_bytes,
        "fits": None if facts.free_bytes is None else peak < facts.free_bytes,
        "index": [{"name": index.name, "kind": index.kind, "settings": index.settings} for index in facts.indexes],
        "index_bytes": index_bytes,
        "hours": hours,
        "not_timed": why_not,
        "dependents": list(facts.dependents),
        "re_embedding": _re_embedding(store, facts, settings),
        "quality": quality_in(store, stitcher, held_out, facts.n_rows),
        "mixed": _mixed(job, stitcher, settings, held_out, facts),
        "share_curve": share_curve(held_out, job.placement.length, settings.share),
    }


def _rehearse(
    store: Store, stitcher: Stitcher, settings: JobSettings, facts: Facts
) -> tuple[dict[str, float] | None, int | None, str | None]:
    """Time a whole job on a copy of some rows.

    Returns:
        The hours by step for the whole table, the bytes of the new index, and the reason if nothing could be timed.
    """
    try:
        with store.rehearsal(REHEARSAL_ROWS) as copy:
            job = new_job(copy, stitcher, settings)
            translation = Translation(stitcher, placement=job.placement)
            copy.begin(job.migration, job.to_dict())
            copy.resume(job.migration)
            times = [time.perf_counter()]
            fill(copy, job.migration, translation, 1)
            catch_up(copy, translation)
            times.append(time.perf_counter())
            before = copy.facts()
            copy.index(lambda _: None)
            times.append(time.perf_counter())
            new_index = copy.facts().index_bytes - before.index_bytes
            for rows in copy.compare():
                differ(rows.new, translation(np.ascontiguousarray(rows.old, np.float32)))
            times.append(time.perf_counter())
    except InputError as error:
        return None, None, str(error)
    n = max(1, before.n_rows)
    scale = facts.n_rows / n
    sorting = scale * math.log2(max(2, facts.n_rows)) / math.log2(max(2, n))
    seconds = np.diff(times) * (scale, sorting, scale)
    hours = {name: float(value) / 3600 for name, value in zip(("fill", "index", "verify"), seconds, strict=True)}
    if settings.max_rows_per_second is not None:
        hours["fill"] = max(hours["fill"], facts.n_rows / settings.max_rows_per_second / 3600)
    return hours | {"total": sum(hours.values())}, int(new_index * scale) if facts.indexes else None, None


def _re_embedding(store: Store, facts: Facts, settings: JobSettings) -> dict[str, Any] | None:
    """Estimate the tokens, and with a price the cost, of embedding all texts anew; None without a column of texts."""
    if settings.text_column is None:
        return None
    if settings.text_column not in store.rows().schema.names:
        raise InputError(f"`text_column` must be a column of the table; there is no {settings.text_column!r}.")
    table = store.sample(TEXT_ROWS, 0, [store.id, settings.text_column])
    texts = [str(text) for text in table.column(settings.text_column).to_pylist() if text is not None]
    mean = float(np.mean([len(text) for text in texts])) / CHARACTERS_PER_TOKEN if texts else 0.0
    tokens = mean * facts.n_rows
    price = settings.price_per_million
    return {
        "column": settings.text_column,
        "tokens": round(tokens),
        "price_per_million": price,
        "cost": None if price is None else tokens / 1e6 * price,
    }


def _mixed(
    job: Job, stitcher: Stitcher, settings: JobSettings, held_out: HeldOutRows | None, facts: Facts
) -> dict[str, Any] | None:
    """Return the scores of mixed indexes with the job's length of translated rows, or else with the best one."""
    queries = None
    if settings.queries is not None:
        rows = read(settings.queries, sample=MOST_ROWS)
        adopt(rows.space, rows.declared, stitcher.target, "`queries`", opposite=stitcher.source)
        queries = np.asarray(rows.vectors, np.float32)
    length = 1.0 if stitcher.output_norm != "unit" else None if job.placement.is_plain else job.placement.length
    scores = mixed_scores(held_out, length, queries)
    if scores is None:
        return None
    return scores | {"stated": not job.placement.is_plain, "how": str(placement_for(facts, stitcher, scores["length"]))}
