"""The job in a LanceDB table: the columns that it makes, and its state in the metadata of the new column.

The state of the job is stored twice, once for each order of the names, so that the swap of the names, which is one
commit, changes the state of the job too.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

from repstitch.errors import InputError
from repstitch.spaces import SPACE_KEY
from repstitch.stores.lancedb.opening import committed, open_latest
from repstitch.stores.store import Migration

MOVE = "repstitch.migration"  # what this store knows of the job
CHECKED = "repstitch.checked"  # the version in which all rows were last found right
JOB, JOB_SWAPPED = "repstitch.job", "repstitch.job.swapped"
TAG = "repstitch-{}-cutover"
STATE_OF = "repstitch.state.of"  # in the metadata of the column of states: the column of vectors


@dataclass(frozen=True)
class Move:
    """The job on a column of vectors, as the metadata of the new column describe it.

    Args:
        vector: The column of vectors when the job began, which readers use.
        new: The name of the new column when the job began.
        old: The name of the old column after a cut-over that swaps the names.
        state: The column of the rows' states.
        dim: Number of dimensions of the new vectors.
        version: The version of the stitcher.
        keep_names: Whether the cut-over leaves the names as they are.
        not_null: Whether the old column did not accept nulls when the job began.
        begun: The version of the table in which the new column was added.
        old_id: The id of the field of the old column.
        is_cut_over: Whether readers have been told to use the new column, if the names are kept.
    """

    vector: str
    new: str
    old: str
    state: str
    dim: int
    version: str
    keep_names: bool = False
    not_null: bool = False
    begun: int = 0
    old_id: int = -1
    is_cut_over: bool = False


@dataclass(frozen=True)
class Columns:
    """The columns of a job as they are named in one version of the table, with the ids of their fields.

    `old` and its id are None if the old column has been dropped.
    """

    move: Move
    old: str | None
    new: str
    state: str
    ids: dict[str, int]  # of all columns
    metadata: dict[bytes, bytes]  # of the new column
    version: int

    @property
    def is_swapped(self) -> bool:
        return self.new == self.move.vector

    @property
    def is_cut_over(self) -> bool:
        return self.is_swapped or self.move.is_cut_over

    @property
    def job(self) -> dict[str, Any]:
        return json.loads(self.metadata[(JOB_SWAPPED if self.is_swapped else JOB).encode()])

    @property
    def checked(self) -> int:
        """The version in which all rows were last found right, or 0."""
        return int(self.metadata.get(CHECKED.encode(), 0))

    @property
    def cut_over_tag(self) -> str:
        """The tag on the version that readers first saw after the cut-over."""
        return TAG.format(self.ids[self.new])


def find_columns(dataset: lance.LanceDataset, vector: str) -> Columns | None:
    """Return the columns of the job on the column `vector` in a version of a table, or None if there is no job."""
    return next((columns for columns in columns_of_all_jobs(dataset) if columns.move.vector == vector), None)


def columns_of_all_jobs(dataset: lance.LanceDataset) -> list[Columns]:
    """Return the columns of each job in a version of a table, even if the column that it moves is gone."""
    ids = {field.name(): field.id() for field in dataset.lance_schema.fields()}
    jobs = []
    for name, move in moves_in(dataset.schema).items():
        old = move.old if name == move.vector else move.vector
        metadata = dataset.schema.field(name).metadata
        jobs.append(Columns(move, old if old in ids else None, name, move.state, ids, metadata, dataset.version))
    return jobs


def moves_in(schema: pa.Schema) -> dict[str, Move]:
    """Return the jobs of a table by the columns that have their state."""
    key = MOVE.encode()
    return {field.name: Move(**json.loads(field.metadata[key])) for field in schema if key in (field.metadata or {})}


def columns_of_jobs(schema: pa.Schema) -> set[str]:
    """Return the columns that jobs have made or renamed, and that readers do not use."""
    moves = moves_in(schema).items()
    return {name for column, move in moves for name in {column, move.new, move.old} - {move.vector}}


def need_columns(dataset: lance.LanceDataset, vector: str) -> Columns:
    """Return the columns of the job. Raises InputError if there is no job."""
    columns = find_columns(dataset, vector)
    if columns is None:
        raise InputError(f"There is no job on column {vector!r} of {dataset.uri}; begin one first.")
    if columns.state not in columns.ids:
        raise InputError(
            f"Column {columns.state!r} of {dataset.uri}, which the job needs, is gone; clean up and begin anew."
        )
    return columns


def state_column(new: str) -> str:
    """Return the name of the column of states that is made beside a new column."""
    return f"{new}_state"


def begin_job(path: Path, vector: str, migration: Migration, job: dict[str, Any]) -> None:
    """Add the new column and that of the states, both null, in one commit; if they are there, check that they fit."""
    move = Move(
        vector,
        migration.new,
        migration.old,
        state_column(migration.new),
        migration.dim,
        migration.version,
        migration.keep_names,
    )

    def change() -> None:
        dataset = open_latest(path)
        existing = find_columns(dataset, vector)
        if existing is not None:
            check_fits(existing.move, move)
            return
        is_not_null = not dataset.schema.field(vector).nullable
        old_id = next(field.id() for field in dataset.lance_schema.fields() if field.name() == vector)
        begun = replace(move, not_null=is_not_null, begun=dataset.version + 1, old_id=old_id)
        metadata = {SPACE_KEY: migration.space, MOVE: json.dumps(asdict(begun)), JOB: json.dumps(job)}
        kind = pa.list_(pa.float32(), migration.dim)
        field = pa.field(move.new, kind, metadata=metadata)  # type: ignore[arg-type]
        dataset.add_columns(pa.schema([field, pa.field(move.state, pa.string(), metadata={STATE_OF: vector})]))

    committed(change, f"The columns of the job cannot be added to {path}")


def check_fits(existing: Move, move: Move) -> None:
    """Raise InputError if a job on the same column moves it in another way."""
    for name in ("new", "old", "dim", "version"):
        is_now, wanted = getattr(existing, name), getattr(move, name)
        if is_now != wanted:
            raise InputError(
                f"Another job moves column {move.vector!r} ({name} {is_now!r}, not {wanted!r}). Go on with it, or "
                "clean it up first."
            )


def save_metadata(path: Path, vector: str, values: Mapping[str, str | None]) -> int:
    """Set keys in the metadata of the new column, or remove them (None), and return the version that has them."""

    def change() -> int:
        dataset = open_latest(path)
        dataset.update_field_metadata({need_columns(dataset, vector).new: dict(values)})
        return dataset.version

    return committed(change, f"The state of the job cannot be stored in {path}")
