"""Write native vectors that a job brings, as an application would write them, but never over a row that is changing."""

import time
from collections.abc import Sequence
from typing import LiteralString

import numpy as np

from repstitch.errors import InputError
from repstitch.stores.postgresql.arming import check_armed
from repstitch.stores.postgresql.column import may_pass_triggers
from repstitch.stores.postgresql.connection import LockedError, raw
from repstitch.stores.postgresql.copying import encode
from repstitch.stores.postgresql.layout import Layout, Page
from repstitch.stores.postgresql.rows import grouped, one_of

TRIES = 60  # to write a page of which others lock or change rows
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0  # between two tries; it grows
WAIT = "300ms"  # for others that write to the side table
# The row is locked so that a change that others have begun and not committed cannot count as older than the vector.
TO_COLUMN: LiteralString = """update {T} d set {N} = page.vector, {S} = {native} || {checksum}
    from (select d.ctid as place, page.vector from {page} page
        join {T} d on d.ctid = page.place and d.xmin = page.transaction
        for no key update of d skip locked) page
    where d.ctid = page.place returning d.{I}::text"""
TO_SIDE_TABLE: LiteralString = """insert into {side} as s(id, vector, state, at, xact)
    select page.id, page.vector, {native} || {checksum}, {next}, pg_current_xact_id()
    from (select d.{I} as id, page.vector from {page} page
        join {T} d on d.ctid = page.place and d.xmin = page.transaction
        for share of d skip locked) page
    on conflict (id) do update set vector = excluded.vector, state = excluded.state, at = excluded.at,
        xact = excluded.xact
    returning s.id::text"""
STATEMENTS: dict[str, LiteralString] = {"column": TO_COLUMN, "side": TO_SIDE_TABLE}


def write_native(layout: Layout, ids: Sequence[str], vectors: np.ndarray) -> int:
    """Write native vectors (n, dim) of the rows with these ids, a page at a time, and return the number of rows."""
    check_armed(layout)
    pages = grouped(zip(ids, vectors, strict=True), layout.page_rows)
    return sum(_write_page(layout, dict(page)) for page in pages)


def _write_page(layout: Layout, vectors: dict[str, np.ndarray]) -> int:
    """Write native vectors by id. Rows that others have locked or are changing are tried again."""
    left, n_written = dict(vectors), 0
    for attempt in range(TRIES):
        time.sleep(min(attempt * PAUSE_SECONDS, LONGEST_PAUSE_SECONDS))
        chosen = one_of(list(left), layout.table.fields[layout.id].type)
        query = layout.compose("select ctid, xmin, {I}::text from {T} where {I} {chosen}", chosen=chosen)
        page, keys = layout.read_places(query)
        if not keys:
            return n_written
        content, n_vectors = encode(page.rows, np.stack([left[key] for key in keys]), layout.book.half)
        if n_vectors < len(keys):
            raise InputError(
                f"{len(keys) - n_vectors:,} native vectors have numbers too large for halfvec, the type of the new "
                "column; scale them down."
            )
        for key in _try_page(layout, page, content):
            del left[key]
            n_written += 1
    raise InputError(
        f"{len(left):,} rows of {layout.table.title} are locked or changed by others all the time; run again later."
    )


def _try_page(layout: Layout, page: Page, content: bytes) -> list[str]:
    """Write a page of native vectors, and return the ids of its rows that were neither locked nor changed."""
    try:
        with layout.session.transaction():
            if may_pass_triggers(layout.session):
                layout.session.run("set local session_replication_role = replica")
            layout.session.run("set local lock_timeout = {wait}", wait=WAIT)
            if layout.book.layout == "side":  # see `SideLayout.rest_page`
                layout.run("select pg_advisory_xact_lock_shared(hashtextextended({lock}, 1))")
            if not layout.is_in_place(page, "row exclusive"):
                return []
            layout.put_page(content)
            statement = STATEMENTS[layout.book.layout]
            rows = layout.run(statement, checksum=layout.checksum(raw("page.vector")))
            return [key for (key,) in rows]
    except LockedError:
        return []
