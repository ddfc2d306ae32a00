"""Cut over to the new vectors, go back, clean up, and say how far a migration has come."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from repstitch.bulk.job import (
    CUT_OVER,
    INCOMPLETE,
    INDEXED,
    ROLLED_BACK,
    VERIFIED,
    Job,
    check_stitcher,
    job_of,
    required_job,
)
from repstitch.bulk.old_looking import count_old_looking
from repstitch.bulk.settings import JobSettings
from repstitch.bulk.translation import Translation
from repstitch.errors import InputError
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.store import CutOver, RolledBack, Store

MOST_COUNTED = 1_000_000  # rows of the rest, for the status


def cut_over(
    store: Store, stitcher: Stitcher, settings: JobSettings, *, without_search: bool = False
) -> tuple[Job, CutOver]:
    """Make the new vectors those that readers see, in one step.

    Rows that were written since the verification are caught up inside the step; if they are more than `max_rest`, or
    others would have to wait longer than `max_pause`, the store lets go, catches up and tries again.

    Args:
        store: The table, whose migration is verified.
        stitcher: The stitcher of the migration.
        settings: The settings: `max_rest`, `max_pause`, `swap_equal` and `guard`.
        without_search: If True, a migration that was not verified by search is cut over too.

    Returns:
        The job, and what was done.

    Raises:
        InputError: If the migration is not verified, if its index has changed since, or if the step fails. The table is
            then as before.
    """
    with store.locked():
        job = required_job(store, INDEXED, INCOMPLETE, VERIFIED)
        check_stitcher(job, stitcher)
        _check_verified(store, job, without_search)
        job = _with_swap(store, job, settings)
        if job.guard and not store.capabilities.writers_guard:
            raise InputError(f"`guard` is not possible in {store.address.scheme}; leave it out.")
        store.resume(job.migration)
        store.check(job.migration)
        if (job.verification or {}).get("index_stamp") != store.index_stamp():
            raise InputError("The index of the new vectors has changed since the verification; verify again first.")
        job = job.at(CUT_OVER)
        return job, store.cut_over(
            Translation(stitcher, placement=job.placement), job.to_dict(), settings.max_rest, settings.max_pause
        )


def roll_back(store: Store, settings: JobSettings) -> tuple[Job, RolledBack]:
    """Make the old vectors those that readers see again, in one step.

    Args:
        store: The table, whose migration is cut over.
        settings: The settings: `max_pause`.

    Returns:
        The job, and how many rows have no old vector, because they were written since the cut-over.

    Raises:
        InputError: If the migration is not cut over, or if the step fails. The table is then as before.
    """
    with store.locked():
        job = required_job(store, CUT_OVER)
        store.resume(job.migration)
        job = job.at(ROLLED_BACK, verification=None)
        return job, store.roll_back(job.to_dict(), settings.max_pause)


def clean_up(store: Store, *, discard: bool = False) -> str:
    """End a migration: before a cut-over the table becomes as it was, after it the old vectors are removed.

    Args:
        store: The table. Nothing is done if it has no migration and no remains of one.
        discard: If True, rows may lose the only vector that they have.

    Returns:
        The phase that the migration was in, or "" if there was none.

    Raises:
        InputError: If another job on the column is running, or if rows would lose their only vector.
    """
    with store.locked():
        if not discard:
            _check_nothing_is_lost(store)
        try:
            job = job_of(store)
        except InputError:  # a damaged state must not prevent its removal
            job = None
        if job is not None:
            with suppress(InputError):  # what the job needs is gone in part
                store.resume(job.migration)
        store.clean_up()
        return "" if job is None else job.phase


def status(store: Store, held_out: HeldOutRows | None = None) -> dict[str, Any]:
    """Say how far a migration has come. Writes nothing, and works while a job is running.

    Args:
        store: The table.
        held_out: Native rows of the new space, which help to recognise rows of the old one.

    Returns:
        The phase, the number of rows by state and of those still to do, how native rows and queries must be written if
        not as the model returns them, the last verification and, after a cut-over between equal dimensions, how many of
        the rows written since look like the old space.

    Raises:
        InputError: If there is no migration of the column.
    """
    job = required_job(store)
    store.resume(job.migration)
    written = count_old_looking(store, held_out, job.placement) if job.phase == CUT_OVER else None
    return {
        "address": store.address.label,
        "phase": job.phase,
        "stitcher": job.migration.version,
        "source": job.source["name"],
        "target": job.to_dict()["target"]["name"],
        "started": job.started,
        "placement": None if job.placement.is_plain else str(job.placement),
        "states": store.states(),
        "rest": store.count_rest(MOST_COUNTED),
        "verification": job.verification,
        "written_since": written,
    }


def _check_nothing_is_lost(store: Store) -> None:
    """Raise InputError if rows would lose the only vector that they have."""
    try:
        job = job_of(store)
        if job is None:
            return
        store.resume(job.migration)
    except InputError:  # a damaged job cannot be looked at, and must not prevent its removal
        return
    if job.phase == CUT_OVER:
        n_rows = store.count_rest(MOST_COUNTED)
        why, advice = "an old vector that is not translated yet", "run `repstitch migrate run` first"
    else:
        n_rows = store.count_only_new()
        why, advice = "only a new vector, which others wrote", "embed them with the old model first"
    if n_rows:
        raise InputError(
            f"Nothing was removed: {n_rows:,} rows have {why}. To keep them, {advice}; else pass `discard`."
        )


def _check_verified(store: Store, job: Job, without_search: bool) -> None:
    if job.phase == VERIFIED or (job.phase == INCOMPLETE and without_search):
        return
    if job.phase == INCOMPLETE:
        raise InputError(
            "The migration was not verified by search, because too few held-out rows are in the table, and no queries "
            "were passed. Verify it with `target` or `queries`, or cut over with `without_search`."
        )
    failed = job.verification is not None
    raise InputError(
        "The migration must be verified first; "
        + ("its last verification failed." if failed else "run `repstitch migrate verify`.")
    )


def _with_swap(store: Store, job: Job, settings: JobSettings) -> Job:
    """Return the job with the swap of names that the caller asks for at the last moment."""
    migration = job.migration
    if settings.swap_equal:
        migration = replace(migration, keep_names=False)
    if settings.keep_names:
        migration = replace(migration, keep_names=True)
    return replace(job, migration=migration, guard=job.guard or settings.guard)
