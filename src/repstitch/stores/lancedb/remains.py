"""Remove what jobs have made in a LanceDB table, even if others have renamed or dropped a part of it."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import lance
import pyarrow as pa

from repstitch.stores.checksums import DIGITS
from repstitch.stores.lancedb.job import (
    CHECKED,
    JOB,
    JOB_SWAPPED,
    MOVE,
    STATE_OF,
    Columns,
    columns_of_all_jobs,
    find_columns,
)
from repstitch.stores.lancedb.opening import committed, explained, open_latest, quoted
from repstitch.stores.lancedb.swapping import remove_tags
from repstitch.stores.store import NATIVE, SKIPPED, TRANSLATED

log = logging.getLogger(__name__)

SUM = f"[0-9a-fx-]{{{DIGITS}}}"
STATE = re.compile(f"({TRANSLATED}@[^:]*|{NATIVE}|{SKIPPED}):{SUM}:{SUM}")
STATES_READ = 100  # of a column that may be one of states
TAGS = re.compile(r"repstitch-\d+(-cutover)?")


def clean_up(path: Path, vector: str) -> None:
    """Remove what the job on a column has made and is not needed any more, and what is left of jobs on columns that
    are gone. See `Store.clean_up`.
    """
    dataset = open_latest(path)
    for columns in columns_of_all_jobs(dataset):
        if vector == columns.move.vector or columns.move.vector not in columns.ids:
            _remove(path, columns)
    _remove_lone_states(path)
    dataset = open_latest(path)
    others = {columns.cut_over_tag for columns in columns_of_all_jobs(dataset)}
    remove_tags(dataset, [tag for tag in dataset.tags.list() if TAGS.fullmatch(tag) and tag not in others])


def _remove(path: Path, columns: Columns) -> None:
    """Remove a job. Its new column stays after a cut-over, and where others have removed the old vectors."""
    move = columns.move
    old = columns.old or next((name for name, number in columns.ids.items() if number == move.old_id), None)
    is_new_known = columns.new == move.new or old == move.vector  # others may have renamed both columns
    if columns.is_cut_over or (old == move.old and columns.new != move.new):
        _drop(path, [move.vector if columns.is_cut_over and not columns.is_swapped else move.old, move.state])
    elif old is not None and is_new_known:
        _drop(path, [columns.new, move.state])
        return
    else:
        log.warning("%s has no old vectors of the job any more; column %r is left.", path, columns.new)
        _drop(path, [move.state])
    _forget(path, move.vector)


def _drop(path: Path, names: Sequence[str]) -> None:
    def change() -> None:
        dataset = open_latest(path)
        existing = [name for name in names if name in dataset.schema.names]
        if existing:
            dataset.drop_columns(existing)

    committed(change, f"The columns of the job cannot be removed from {path}")


def _forget(path: Path, vector: str) -> None:
    """Remove the state of the job from the metadata of the new column; the card of the space stays."""

    def change() -> None:
        dataset = open_latest(path)
        columns = find_columns(dataset, vector)
        if columns is not None:
            dataset.update_field_metadata({columns.new: dict.fromkeys((MOVE, JOB, JOB_SWAPPED, CHECKED))})

    committed(change, f"The state of the job cannot be removed from {path}")


def _remove_lone_states(path: Path) -> None:
    """Remove the columns of states whose job is gone."""
    dataset = open_latest(path)
    needed = {columns.state for columns in columns_of_all_jobs(dataset)}
    lone = [
        field.name
        for field in dataset.schema
        if pa.types.is_string(field.type) and field.name not in needed and _has_states(dataset, field)
    ]
    if lone:
        log.warning("%s has no job with the states in %s; they are removed.", path, ", ".join(lone))
        _drop(path, lone)


def _has_states(dataset: lance.LanceDataset, field: pa.Field) -> bool:
    if STATE_OF.encode() in (field.metadata or {}):
        return True
    if not field.name.endswith("_state") or "`" in field.name:
        return False
    with explained("The table cannot be read"):
        scanner = dataset.scanner([field.name], filter=f"{quoted(field.name)} is not null", limit=STATES_READ)
        texts = scanner.to_table()[field.name].to_pylist()
    return bool(texts) and all(STATE.fullmatch(text) for text in texts)
