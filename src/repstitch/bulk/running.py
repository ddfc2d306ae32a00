"""Fill the new vectors, then build their index. A run that was interrupted goes on where it ended."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from repstitch.bulk.job import CUT_OVER, FILLED, FILLING, INDEXED, ROLLED_BACK, Job, check_stitcher, job_of, new_job
from repstitch.bulk.settings import JobSettings
from repstitch.bulk.translation import Translation
from repstitch.errors import InputError, one_line
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.store import Migration, Store, Translate, Unit

log = logging.getLogger(__name__)

MOST_ROUNDS = 10  # of the first pass without progress, after which a job gives up
MOST_CALLS = 10_000  # of `catch_up` in a row, in case rows come in as fast as they are translated
FEW_ROWS = 100  # that a call of `catch_up` looks at, after which the job goes on
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


def run(store: Store, stitcher: Stitcher, settings: JobSettings) -> Job:
    """Fill, index, and catch up with what others wrote meanwhile. Returns the job.

    After a cut-over, only catch up with what others still write to the old vectors, where the table has both.

    Ctrl-C, a killed process, a full disk and a lost connection lose nothing: run again, and it goes on. A lost
    connection is opened again some times. Raises InputError if the column cannot be moved, or if another job on it is
    running.
    """
    for seconds in (*RETRY_SECONDS, None):
        try:
            return _run(store, stitcher, settings)
        except ConnectionError as error:
            if seconds is None:
                raise InputError(
                    f"The connection was lost ({one_line(error)}). Run the same command again to go on."
                ) from None
            log.warning("The connection was lost (%s); trying again in %d s.", one_line(error), seconds)
            time.sleep(seconds)
            store = _reopened(store)
    raise AssertionError


def _run(store: Store, stitcher: Stitcher, settings: JobSettings) -> Job:
    with store.locked():
        job = begin(store, stitcher, settings)
        if job.phase == CUT_OVER:
            catch_up(store, Translation(stitcher, settings.max_rows_per_second))
            return job
        with tqdm(total=store.facts().n_rows, unit="row", unit_scale=True, delay=1, desc="fill", leave=False) as bar:
            translation = Translation(stitcher, settings.max_rows_per_second, bar.update)
            fill(store, job.migration, translation, settings.workers)
            catch_up(store, translation)
        if job.phase == FILLING:
            job = job.at(FILLED)
            store.save_job(job.to_dict())
        with tqdm(total=100, unit="%", delay=1, desc="index", leave=False) as bar:

            def show(share: float) -> None:
                bar.update(max(0, int(100 * share) - bar.n))

            store.index(show)
        catch_up(store, Translation(stitcher, settings.max_rows_per_second))
        if job.phase in (FILLED, ROLLED_BACK):
            job = job.at(INDEXED, verification=None)
            store.save_job(job.to_dict())
        return job


def _reopened(store: Store) -> Store:
    """Return the store through a new connection; the old one if there is no connection yet."""
    try:
        again = store.reopen()
    except (ConnectionError, InputError):
        return store
    store.close()
    return again


def fill(store: Store, migration: Migration, translation: Translation, workers: int) -> None:
    """Do the first pass: every unit, with several connections at a time. A unit that others changed comes again."""
    idle_rounds = 0
    n_before = None
    while units := store.units():
        n_left = sum(unit.n_rows for unit in units)
        idle_rounds = 0 if n_before is None or n_left < n_before else idle_rounds + 1
        if idle_rounds >= MOST_ROUNDS:
            raise InputError(
                f"{n_left:,} rows of {store.address.label} cannot be filled, because other programs change them faster "
                "than they are translated; run again with more `workers`, or at a quieter time."
            )
        n_before = n_left
        _fill_units(store, migration, units, translation, min(workers, len(units)))


def catch_up(store: Store, translate: Translate) -> int:
    """Translate the rows that others wrote since the first pass. Those of the last moments may be left.

    Returns the number of rows looked at.
    """
    total = 0
    for _ in range(MOST_CALLS):
        n_rows = store.catch_up(translate)
        total += n_rows
        if n_rows <= FEW_ROWS:  # while others write, there are always some
            break
    return total


def _fill_units(
    store: Store, migration: Migration, units: Sequence[Unit], translation: Translation, workers: int
) -> None:
    if workers == 1:
        for unit in units:
            store.fill(unit, translation)
        return
    stores = [_resumed(store, migration) for _ in range(workers)]
    free = list(stores)

    def fill_one(unit: Unit) -> None:
        own = free.pop()
        try:
            own.fill(unit, translation)
        finally:
            free.append(own)

    try:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(fill_one, unit) for unit in units]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                translation.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for own in stores:
            own.close()


def _resumed(store: Store, migration: Migration) -> Store:
    own = store.reopen()
    own.resume(migration)
    return own


def _check_same(job: Job, settings: JobSettings) -> None:
    """Raise InputError if a caller states a name or a layout that differs from that of the job that has begun."""
    stated = {"new_vector": job.migration.new, "old_vector": job.migration.old, "layout": job.migration.layout}
    stated |= {"view": job.migration.view}
    for name, value in stated.items():
        wanted = getattr(settings, name)
        if wanted is not None and wanted != value:
            raise InputError(
                f"`{name}` must be {value!r}, as when the migration began; got {wanted!r}. To change it, clean up and "
                "begin anew."
            )
