"""Build the index of the new vectors without stopping writers, and search both columns."""

import logging
import threading
import time
from collections.abc import Callable

import numpy as np

from repstitch.errors import InputError
from repstitch.stores.postgresql.catalog import VectorIndex, operator_of, renamed, vector_indexes
from repstitch.stores.postgresql.connection import Session, compose, join, quoted, raw
from repstitch.stores.postgresql.job import shortened
from repstitch.stores.postgresql.layout import Layout
from repstitch.stores.store import MISSING, Hits, Which

POLL_SECONDS = 0.5
log = logging.getLogger(__name__)


def old_indexes(layout: Layout) -> list[VectorIndex]:
    """Return the indexes on the old column that can be made on the new one."""
    table = layout.table
    indexes = vector_indexes(layout.session, table.oid, table.fields[layout.book.old_name].number)
    return [index for index in indexes if not index.is_expression and index.is_valid]


def new_indexes(layout: Layout) -> list[VectorIndex]:
    """Return the indexes on the new column, valid or not."""
    target, vector = layout.place
    oid, number = layout.session.run(
        "select attrelid, attnum from pg_attribute where attrelid = to_regclass({name}) and attname = {vector}",
        name=target.as_string(layout.session.connection),
        vector=vector,
    )[0]
    return vector_indexes(layout.session, oid, number)


def new_index_name(index: VectorIndex) -> str:
    """Return the name of the index on the new column that corresponds to one on the old column."""
    return shortened(index.name, "_new")


def build_indexes(layout: Layout, progress: Callable[[float], None]) -> None:
    """Build an index on the new column for each on the old one. One that is not valid is made anew."""
    present = {index.name: index for index in new_indexes(layout)}
    for index in old_indexes(layout):
        name = new_index_name(index)
        existing = present.get(name)
        if existing is not None and not existing.is_valid:
            layout.run("drop index concurrently {name}", name=layout.table.in_schema(name))
        if existing is None or not existing.is_valid:
            _build(layout, index, name, progress)
    progress(1.0)


def _build(layout: Layout, index: VectorIndex, name: str, progress: Callable[[float], None]) -> None:
    """Build one index over a connection of its own, and tell its progress until it is done."""
    target, vector = layout.place
    operators = index.operator_class
    if layout.book.half:
        operators = "halfvec_" + operators.partition("_")[2]
    options = (
        compose("with ({list})", list=join([raw(option) for option in index.options])) if index.options else raw("")
    )
    predicate = raw("")
    if index.predicate:
        text = renamed(index.predicate, layout.book.old_name, vector, layout.session)
        predicate = compose("where {text}", text=text)
    statement = compose(
        "create index concurrently {name} on {target} using {method} ({vector} {operators}) {options} {predicate}",
        name=quoted(name),
        target=target,
        method=quoted(index.method),
        vector=quoted(vector),
        operators=quoted(layout.table.extension, operators),
        options=options,
        predicate=predicate,
    )
    builder, failures = Session(layout.session.address, again=True), []
    pid = builder.pid

    def build() -> None:
        try:
            builder.run(statement)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=build, name="repstitch-index")
    thread.start()
    has_warned = False
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            share = layout.session.value(
                """select greatest(tuples_done::float / nullif(tuples_total, 0),
                    blocks_done::float / nullif(blocks_total, 0))
                from pg_stat_progress_create_index where pid = {pid} and phase like 'building%'""",
                pid=pid,
            )
            if share is not None:
                progress(min(float(share), 1.0))
            elif not has_warned:
                has_warned = _warn_of_waiting(layout.session, pid)
    finally:
        if thread.is_alive():
            builder.cancel()
        thread.join()
        builder.close()
    if failures:
        raise failures[0]


def _warn_of_waiting(session: Session, pid: int) -> bool:
    """Say which old transaction the making of an index waits for, and return whether it waits for one."""
    rows = session.run(
        """select coalesce(a.pid, 0), extract(epoch from now() - a.xact_start)::int
        from pg_stat_progress_create_index p join pg_stat_activity a on a.pid = p.current_locker_pid
        where p.pid = {pid} and p.phase like 'waiting%'""",
        pid=pid,
    )
    for other, seconds in rows:
        log.warning(
            "The index waits for a transaction of the process %d, which began %s s ago; end it, or wait.",
            other,
            seconds,
        )
    return bool(rows)


def stamp(layout: Layout) -> str:
    """Return text that changes if the index of the new column is made anew or is no longer usable; "" for none."""
    indexes = new_indexes(layout)
    if not all(counterpart(index, indexes) for index in old_indexes(layout)):
        return MISSING
    return ", ".join(
        f"{index.oid} {'valid' if index.is_valid else 'invalid'} {_file_of(layout, index)}" for index in indexes
    )


def counterpart(index: VectorIndex, indexes: list[VectorIndex]) -> VectorIndex | None:
    """Return the index on the new column that corresponds to one on the old column, if it can be used."""
    name = new_index_name(index)
    return next((new for new in indexes if new.name == name and new.is_valid and new.metric == index.metric), None)


def _file_of(layout: Layout, index: VectorIndex) -> int:
    return layout.session.value("select relfilenode::bigint from pg_class where oid = {oid}", oid=index.oid)


def search(
    layout: Layout, queries: np.ndarray, k: int, which: Which, where: str | None, metric: str | None = None
) -> Hits:
    """Search one column with each query, by a metric, with the index that serves it.

    By default it is the first index of the old column, or its counterpart on the new one; without an index, cosine.
    """
    old = next((index for index in old_indexes(layout) if metric in (None, index.metric)), None)
    index = old if old is None or which == "old" else counterpart(old, new_indexes(layout))
    conditions = [raw(where)] if where else []
    if index is not None and index.predicate:  # without it the index would not be used
        conditions.append(raw(index.predicate))
    condition = join([compose("({text})", text=text) for text in conditions] or [raw("true")], " and ")
    relation, vector = layout.searched(which, condition)
    kind = layout.source if which == "old" else layout.target
    if queries.ndim != 2 or queries.shape[1] != kind.dim:
        raise InputError(f"`queries` must have {kind.dim} dimensions; got shape {queries.shape}.")
    operator = layout.table.operator(operator_of(metric or (old.metric if old else "cosine")))
    ids = np.full((len(queries), k), "", dtype=object)
    seconds = np.zeros(len(queries))
    with layout.session.transaction():
        for at, query in enumerate(queries):
            statement = layout.compose(
                """select d.{I}::text from {relation} where {vector} is not null
                order by {vector} {operator} {query}::{type} limit {k}""",
                relation=relation,
                vector=vector,
                operator=operator,
                query="[" + ",".join(map(str, query.astype(float).tolist())) + "]",
                type=layout.table.type("halfvec" if kind.half else "vector", kind.dim),
                k=k,
            )
            start = time.perf_counter()
            rows = layout.session.run(statement)
            seconds[at] = time.perf_counter() - start
            ids[at, : len(rows)] = [row_id for (row_id,) in rows]
    return Hits(ids, seconds)
