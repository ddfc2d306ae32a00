"""Translate the rows of a table: a first pass over all, with several connections at a time, then those that changed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from repstitch.bulk.translation import Translation
from repstitch.errors import InputError
from repstitch.stores.store import Migration, Store, Translate, Unit

MOST_ROUNDS = 10  # of the first pass without progress, after which a job gives up
MOST_CALLS = 10_000  # of `catch_up` in a row, in case rows come in as fast as they are translated
FEW_ROWS = 100  # that a call of `catch_up` looks at, after which the job goes on


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
        connection = free.pop()
        try:
            connection.fill(unit, translation)
        finally:
            free.append(connection)

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
        for connection in stores:
            connection.close()


def _resumed(store: Store, migration: Migration) -> Store:
    connection = store.reopen()
    connection.resume(migration)
    return connection
