"""Translate every row of a table again, and compare the result with what the table contains."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from repstitch.bulk.exact_search import ExactSearch
from repstitch.bulk.filling import catch_up
from repstitch.bulk.job import Job
from repstitch.stores.arrow_columns import unit
from repstitch.stores.store import NATIVE, SKIPPED, TRANSLATED, Compared, Store, Translate

FLOAT32_TOLERANCE, FLOAT16_TOLERANCE = 1e-5, 2e-3  # of a number, relative to the length of its row
MOST_SUSPECTS, MOST_LOOKS = 100_000, 3
LEAST_NATIVE = 20  # native rows from which on they are compared with their translations


@dataclass
class RowCheck:
    """The number of rows by what was found.

    Args:
        rows: All rows with an old vector or a new one.
        translated: Rows whose new vector is the translation of the old one.
        native: Rows whose new vector the application wrote itself, or that were embedded anew, unchanged since.
        skipped: Rows whose old vector has no translation, such as one of zeros.
        missing: Rows with an old vector and without a new one.
        wrong: Translated rows whose new vector is not the translation of the old one.
        changed: Rows that the stored checksum or version contradicts.
        doubled: Rows whose id another row has too.
        native_compared: Native rows that have a translation too.
        native_gain: By how much their mean cosine with their own translation exceeds that with another row's.
        native_error: The standard error of `native_gain`.
        bad_ids: The ids of rows that are missing, wrong or changed, at most 100,000.
    """

    rows: int = 0
    translated: int = 0
    native: int = 0
    skipped: int = 0
    missing: int = 0
    wrong: int = 0
    changed: int = 0
    doubled: int = 0
    native_compared: int = 0
    native_gain: float = 0.0
    native_error: float = 0.0
    bad_ids: list[str] = field(default_factory=list)

    @property
    def n_bad(self) -> int:
        """The number of rows that are missing, wrong or changed."""
        return self.missing + self.wrong + self.changed

    @property
    def natives_fit(self) -> bool:
        """Whether native rows are nearer to their own translations than to others', as far as there are enough."""
        return self.native_compared < LEAST_NATIVE or self.native_gain > 3 * self.native_error

    @property
    def passed(self) -> bool:
        """Whether nothing is missing, wrong, changed or doubled, and native rows are what their translations say."""
        return not (self.n_bad or self.doubled) and self.natives_fit

    def to_dict(self) -> dict[str, Any]:
        first = self.bad_ids[0] if self.bad_ids else None
        counts = {name: value for name, value in asdict(self).items() if name != "bad_ids"}
        return counts | {"first_bad": first, "natives_fit": self.natives_fit, "passed": self.passed}


def check_rows(store: Store, job: Job, translate: Translate, searches: list[ExactSearch]) -> RowCheck:
    """Compare every row through a new connection. The exact searches look at all new vectors on the way.

    Rows that others have just written are not translated yet, so rows that look bad are caught up and compared again.
    """
    check, hashes, suspects, gains = RowCheck(), [], [], []
    fresh = store.reopen()
    try:
        fresh.resume(job.migration)
        with tqdm(total=fresh.facts().n_rows, unit="row", unit_scale=True, delay=1, desc="verify", leave=False) as bar:
            for rows in read_ahead(fresh.compare()):
                is_bad = _count(check, rows, translate)
                suspects += list(rows.ids[is_bad][: MOST_SUSPECTS - len(suspects)])
                gains.append(_native_gains(rows, translate))
                hashes.append(np.fromiter(map(hash, rows.ids), np.int64, len(rows.ids)))
                for search in searches:
                    search.add(rows.ids, rows.new)
                bar.update(len(rows.ids))
        for _ in range(MOST_LOOKS):
            if not suspects or check.n_bad > MOST_SUSPECTS:
                break
            catch_up(store, translate)
            check, suspects = _look_again(fresh, check, suspects, translate)
    finally:
        fresh.close()
    check.bad_ids = suspects
    check.doubled = _n_repeats(hashes)
    every = np.concatenate(gains) if gains else np.empty(0)
    if len(every) > 1:
        check.native_compared, check.native_gain = len(every), float(every.mean())
        check.native_error = float(every.std(ddof=1) / len(every) ** 0.5)
    return check


def read_ahead(batches: Iterator[Compared]) -> Iterator[Compared]:
    """Yield the same batches, each of which is read in another thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def _look_again(store: Store, check: RowCheck, suspects: list[str], translate: Translate) -> tuple[RowCheck, list[str]]:
    """Return the counts, in which rows that looked bad are counted as they are now, and the ids that still look bad."""
    again = replace(check, rows=check.rows - len(suspects), missing=0, wrong=0, changed=0)
    still: list[str] = []
    for rows in store.compare(suspects):
        still += list(rows.ids[_count(again, rows, translate)])
    return again, still


def _count(check: RowCheck, rows: Compared, translate: Translate) -> np.ndarray:
    """Add rows to the counts, and return a mask (n,) of those that look bad."""
    expected = translate(np.ascontiguousarray(rows.old, np.float32))
    has_old, has_new, is_possible = (np.isfinite(part).all(axis=1) for part in (rows.old, rows.new, expected))
    is_skipped = rows.states == SKIPPED
    missing = has_old & ~has_new & ~is_skipped
    wrong = (rows.states == TRANSLATED) & has_old & has_new & differ(rows.new, expected)
    wrong |= is_skipped & is_possible
    changed = ~rows.intact & ~missing & ~wrong
    is_bad = wrong | missing | changed
    check.rows += len(rows.ids)
    check.missing += int(missing.sum())
    check.wrong += int(wrong.sum())
    check.changed += int(changed.sum())
    for name in (TRANSLATED, NATIVE, SKIPPED):
        setattr(check, name, getattr(check, name) + int(((rows.states == name) & ~is_bad).sum()))
    return is_bad


def _native_gains(rows: Compared, translate: Translate) -> np.ndarray:
    """Return for each native row its cosine with its own translation, less that with the next native row's (n,)."""
    native = (rows.states == NATIVE) & np.isfinite(rows.old).all(axis=1) & np.isfinite(rows.new).all(axis=1)
    if native.sum() < 2:
        return np.empty(0)
    new, expected = unit(rows.new[native]), unit(np.nan_to_num(translate(rows.old[native])))
    return np.einsum("nd,nd->n", new, expected - np.roll(expected, 1, axis=0)).astype(np.float64)


def differ(new: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return a mask (n,) of the rows that differ by more than rounding. A row without a translation differs.

    Rows of which float16 represents every number may have been rounded to it.
    """
    lengths = np.linalg.norm(expected, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(new - expected).max(axis=1, initial=0)
        differs = ~(errors <= FLOAT32_TOLERANCE * lengths)
        if differs.any():
            is_half = (new[differs] == new[differs].astype(np.float16)).all(axis=1)
            differs[differs] = ~(is_half & (errors[differs] <= FLOAT16_TOLERANCE * lengths[differs]))
    return differs


def _n_repeats(hashes: list[np.ndarray]) -> int:
    every = np.concatenate(hashes) if hashes else np.empty(0, np.int64)
    every.sort()
    return int((every[1:] == every[:-1]).sum())
