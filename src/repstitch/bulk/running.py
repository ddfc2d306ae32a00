"""Fill the new vectors, then build their index. A run that was interrupted goes on where it ended."""

import logging
import time

from tqdm import tqdm

from repstitch.bulk.filling import catch_up, fill
from repstitch.bulk.job import CUT_OVER, FILLED, FILLING, INDEXED, ROLLED_BACK, Job, check_stitcher, job_of, new_job
from repstitch.bulk.native_rows import NativeRows, check_not_cut_over
from repstitch.bulk.row_check import check_rows
from repstitch.bulk.settings import JobSettings
from repstitch.bulk.translation import Translation
from repstitch.errors import InputError, one_line
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.store import Store

log = logging.getLogger(__name__)

NOT_CHECKED = {"rows": {"passed": None}}
RETRY_SECONDS = (1, 2, 4, 8, 16)  # after which a lost connection is opened again


def begin(store: Store, stitcher: Stitcher, settings: JobSettings) -> Job:
    """Return the job on a column: the one that has begun, or a new one, for which the place is made.

    Raises InputError if the job uses another stitcher.
    """
    job = job_of(store)
    if job is None:
        job = new_job(store, stitcher, settings)
        store.check(job.migration)
    else:
        check_stitcher(job, stitcher)
        _check_same(job, settings)
    if job.phase != CUT_OVER:
        store.begin(job.migration, job.to_dict())
    store.resume(job.migration)
    return job


def run(store: Store, stitcher: Stitcher, settings: JobSettings, natives: NativeRows | None = None) -> Job:
    """Fill, write `natives` in place of translations, index, and catch up with what others wrote. Returns the job.

    After a cut-over, only catch up with what others still write to the old vectors, where the table has both. Rows that
    the last verification has found wrong are translated again. If native vectors are written, the job must be verified
    again.

    Ctrl-C, a killed process, a full disk and a lost connection lose nothing: run again, and it goes on. A lost
    connection is opened again some times, and the caller's `store` is then closed. Raises InputError if the column
    cannot be moved, or if another job on it is running.
    """
    opened, waits = store, iter(RETRY_SECONDS)
    try:
        while True:
            began = time.monotonic()
            try:
                return _run(opened, stitcher, settings, natives)
            except ConnectionError as error:
                if time.monotonic() - began > RETRY_SECONDS[-1]:  # it had worked, so this is another loss
                    waits = iter(RETRY_SECONDS)
                seconds = next(waits, None)
                if seconds is None:
                    raise InputError(
                        f"The connection was lost ({one_line(error)}). Run the same command again to go on."
                    ) from None
                log.warning("The connection was lost (%s); trying again in %d s.", one_line(error), seconds)
                time.sleep(seconds)
                opened = _reopened(opened)
    finally:
        if opened is not store:
            opened.close()


def _run(store: Store, stitcher: Stitcher, settings: JobSettings, natives: NativeRows | None) -> Job:
    with store.locked():
        job = begin(store, stitcher, settings)
        if natives is not None:
            check_not_cut_over(store, job)
        translation = Translation(stitcher, settings.max_rows_per_second, placement=job.placement)
        if job.phase == CUT_OVER:
            catch_up(store, translation)
            _repair(store, job, translation)
            return job
        with tqdm(total=store.facts().n_rows, unit="row", unit_scale=True, delay=1, desc="fill", leave=False) as bar:
            shown = Translation(stitcher, settings.max_rows_per_second, bar.update, job.placement)
            fill(store, job.migration, shown, settings.workers)
            catch_up(store, shown)
        _repair(store, job, translation)
        if job.phase == FILLING:
            job = job.at(FILLED)
            store.save_job(job.to_dict())
        if natives is not None:
            job = _write_natives(store, job, natives)
            catch_up(store, translation)
        with tqdm(total=100, unit="%", delay=1, desc="index", leave=False) as bar:

            def show(share: float) -> None:
                bar.update(max(0, int(100 * share) - bar.n))

            store.index(show)
        catch_up(store, translation)
        if job.phase in (FILLED, ROLLED_BACK):
            job = job.at(INDEXED, verification=None)
            store.save_job(job.to_dict())
        return job


def _write_natives(store: Store, job: Job, natives: NativeRows) -> Job:
    """Write native vectors, and return the job, which is no longer indexed or verified if there were any to write."""

    def begin_writing() -> None:  # first the job, so that an interruption leaves no job that is verified
        nonlocal job
        job = job.at(FILLED, verification=None)
        store.save_job(job.to_dict())

    natives.write(store, job.placement, begin_writing)
    return job


def _repair(store: Store, job: Job, translation: Translation) -> None:
    """Translate the rows again that are not right, if the last verification has found some."""
    if (job.verification or NOT_CHECKED)["rows"]["passed"] is not False:
        return
    bad_ids = check_rows(store, job, translation, []).bad_ids
    if bad_ids:
        log.warning("%d rows are not right and are translated again.", store.redo(bad_ids))
        catch_up(store, translation)


def _reopened(store: Store) -> Store:
    """Return the store through a new connection; the old one if there is no connection yet."""
    try:
        again = store.reopen()
    except ConnectionError:
        return store
    store.close()
    return again


def _check_same(job: Job, settings: JobSettings) -> None:
    """Raise InputError if a caller states a name or a layout that differs from that of the job that has begun."""
    stated = {"new_vector": job.migration.new, "old_vector": job.migration.old, "layout": job.migration.layout}
    stated |= {"view": job.migration.view, "translated_length": job.placement.length}
    for name, value in stated.items():
        wanted = getattr(settings, name)
        if wanted is not None and wanted != value:
            raise InputError(
                f"`{name}` must be {value!r}, as when the migration began; got {wanted!r}. To change it, clean up and "
                "begin anew."
            )
