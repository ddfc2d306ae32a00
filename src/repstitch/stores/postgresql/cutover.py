"""The cut-over and the roll-back of a migration in PostgreSQL, each in one transaction."""

import time
from dataclasses import dataclass
from typing import Any

from repstitch.errors import InputError
from repstitch.stores.postgresql.arming import changed_layout, check_trusted, is_armed, reloaded
from repstitch.stores.postgresql.checks import check_swap
from repstitch.stores.postgresql.connection import LockedError, raw
from repstitch.stores.postgresql.facts import Column
from repstitch.stores.postgresql.guard import drop_guard, make_guard
from repstitch.stores.postgresql.job import FILLING, LIVE, guard_name
from repstitch.stores.postgresql.layout import LIVE_NATIVE, Layout, patient, retried
from repstitch.stores.postgresql.settings import is_not_null, restore_not_null
from repstitch.stores.store import CutOver, RolledBack, Translate

TRIES = 10
CATCH_UP_PAGES = 1000
BETWEEN_TRIES_SECONDS = 0.2


class TooMuchRestError(Exception):
    """More rows or more time would remain under the lock than allowed."""


@dataclass
class CutOverJob:
    """A cut-over of a layout, with the state of the job that it stores."""

    layout: Layout
    job: dict[str, Any]
    max_pause: float

    def run(self, translate: Translate, max_rest: int) -> CutOver:
        """Catch up, then lock, catch up the rest and switch; let go and try again if it takes too long."""
        self.layout.prepare_rest()
        for attempt in range(TRIES):
            for _ in range(CATCH_UP_PAGES):
                if self.layout.count_rest(max_rest + 1) <= max_rest // 10 or not self.layout.rest_page(translate):
                    break
            start = time.perf_counter()
            try:
                with patient(self.layout.session, self.max_pause):
                    n_rest = self._under_lock(translate, max_rest, start)
                return CutOver(n_rest, time.perf_counter() - start)
            except (TooMuchRestError, LockedError):
                time.sleep(BETWEEN_TRIES_SECONDS * (attempt + 1))
            finally:
                self.layout = reloaded(self.layout)
        raise InputError(
            f"The cut-over must not stop writers for longer than {self.max_pause:g} s or for more than {max_rest:,} "
            f"rows, and did not succeed in {TRIES} tries. Run it when there are fewer writers or long transactions, or "
            "allow a longer pause."
        )

    def _under_lock(self, translate: Translate, max_rest: int, start: float) -> int:
        layout = self.layout
        layout.run("lock table {T} in {mode} mode", mode=raw(lock_mode(layout)))
        check_trusted(layout)
        if layout.book.swaps:
            check_swap(Column(layout.session, layout.table, layout.book.vector, layout.id))
        n_rest = layout.count_rest(max_rest + 1)
        if n_rest > max_rest:
            raise TooMuchRestError
        while layout.rest_page(translate):
            if time.perf_counter() - start > self.max_pause:
                raise TooMuchRestError
        if is_not_null(layout, layout.book.old_name):
            layout.run("alter table {T} alter column {V} drop not null")
        with layout.as_owner():
            layout = switch(layout, live=True)
            guard = self._guard(layout)
        layout.save(self.job, phase=LIVE, first_pass=False, guard=guard or layout.book.guard)
        if time.perf_counter() - start > self.max_pause:
            raise TooMuchRestError
        return n_rest

    def _guard(self, layout: Layout) -> str | None:
        """Make the guard of writers, if the job wants it, and return the name of the space that it lets in."""
        if not self.job.get("guard"):
            return None
        space = str(layout.record.space.get("name", ""))
        column = guard_name(layout.book.vector)
        if layout.book.guard is None and column in layout.table.fields and layout.book.layout == "column":
            raise InputError(
                f"The guard of writers needs the name {column!r} for a column of {layout.table.title}, which exists. "
                "Cut over without the guard, or rename that column."
            )
        make_guard(layout, space)
        return space


def switch(layout: Layout, live: bool) -> Layout:
    """Change names, triggers and the view, so that readers see the new vectors, or the old ones again."""
    layout.rename(live)
    changed = changed_layout(layout, layout.record.with_book(phase=LIVE if live else FILLING))
    changed.arm()
    return changed


def lock_mode(layout: Layout) -> str:
    """Return the lock of a cut-over: readers wait only if the table itself is changed."""
    changes_table = layout.book.layout == "column" or is_not_null(layout, layout.book.old_name)
    return "access exclusive" if changes_table else "share row exclusive"


def roll_back(layout: Layout, job: dict[str, Any], max_pause: float) -> RolledBack:
    """Make the old vectors those that readers see again, in one transaction, and count the rows without one."""
    pause, was_armed = 0.0, True

    def switch_back() -> None:
        nonlocal pause, was_armed
        start = time.perf_counter()
        layout.run("lock table {T} in {mode} mode", mode=raw(lock_mode(layout)))
        was_armed = is_armed(layout)
        drop_guard(layout, column=False)
        with layout.as_owner():
            changed = switch(layout, live=False)
        changed.save(job, phase=FILLING)
        pause = time.perf_counter() - start

    retried(layout.session, switch_back, max_pause)
    changed = reloaded(layout)
    relation, columns = changed.compared(raw("is not null"))
    n_without = changed.session.value(
        "select count(*) from {relation} where {old} is null and ({new} is not null or starts_with({state}, {live}))",
        relation=relation,
        live=LIVE_NATIVE,
        **columns,
    )
    notes = []
    if not was_armed:
        notes.append(
            "Triggers of the job were missing or disabled, so rows written since the cut-over may have old vectors "
            "that are out of date."
        )
    if not restore_not_null(changed, changed.book.old_name):
        notes.append(
            f"Column {changed.book.old_name!r} was `not null` before the job and is not now, because rows have no old "
            "vector. Embed these rows with the old model, and clean up again."
        )
    return RolledBack(n_without, pause, tuple(notes))
