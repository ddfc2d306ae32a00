"""A table of LanceDB in a local folder. The new vectors are a column of the same table, filled beside the old one."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lance
import numpy as np
import pyarrow as pa

from repstitch.addresses import Address
from repstitch.errors import InputError
from repstitch.stores.arrow_columns import check_ids
from repstitch.stores.lancedb import indexing, reading, remains, swapping
from repstitch.stores.lancedb.filling import Filling, count_states
from repstitch.stores.lancedb.history import History
from repstitch.stores.lancedb.job import (
    CHECKED,
    JOB,
    JOB_SWAPPED,
    begin_job,
    columns_of_jobs,
    find_columns,
    moves_in,
    need_columns,
    save_metadata,
    state_column,
)
from repstitch.stores.lancedb.native import write_native
from repstitch.stores.lancedb.opening import (
    ENDING,
    choose_id,
    choose_vector,
    committed,
    count_where,
    explained,
    id_conditions,
    open_latest,
    quoted,
    table_path,
)
from repstitch.stores.local_folders import folder_bytes, free_bytes, job_lock
from repstitch.stores.store import (
    MISSING,
    Capabilities,
    Compared,
    CutOver,
    Facts,
    Hits,
    Migration,
    RolledBack,
    Rows,
    Store,
    Translate,
    Unit,
    Which,
)

STATE_BYTES = 64  # of a row's state in the file, at most
NO_GUARD = "LanceDB cannot refuse rows of old writers, so `guard` is not possible; stop the writers, or keep the names."


class LanceTable(Store):
    """A table of LanceDB. See `Store`."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        concurrent_writers=True,
        atomic_cutover=True,
        column_in_place=True,
        writers_guard=False,
        state_kept="the metadata of the new column",
    )

    def __init__(self, address: Address):
        self.address = address
        self.path: Path = table_path(address)
        dataset = open_latest(self.path)
        place = f"Table {address.table}"
        moved = {move.vector for move in moves_in(dataset.schema).values()} - set(dataset.schema.names)
        self.vector = choose_vector(dataset.schema, address.vector, place, columns_of_jobs(dataset.schema), moved)
        self.id = choose_id(dataset.schema, address.id, place)
        for name in (self.vector, self.id):
            quoted(name)  # a name that no filter can contain is refused
        indexing.check_condition(dataset, address.where)
        self._filling: Filling | None = None

    def _opened(self) -> lance.LanceDataset:
        """Open the latest version. Raises InputError if the column of vectors is gone."""
        dataset = open_latest(self.path)
        if self.vector not in dataset.schema.names:
            raise InputError(
                f"Column {self.vector!r} of {self.path} is gone, and a job on it is not over; give the column this "
                "name again, or clean up."
            )
        return dataset

    # --- reading ------------------------------------------------------------------------------------------------------

    def rows(self) -> Rows:
        return reading.LanceRows(self._opened(), self.vector, self.address.where)

    def sample(self, n: int, seed: int, columns: Sequence[str]) -> pa.Table:
        return reading.sample(self._opened(), self.vector, self.address.where, n, seed, columns)

    def take(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        return reading.take(open_latest(self.path), self.id, ids, columns)

    def reopen(self) -> "LanceTable":
        store = LanceTable(self.address)
        store._filling = self._filling
        return store

    def close(self) -> None:
        """Do nothing: a version of a table holds no connection."""

    # --- before a job -------------------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        dataset = self._opened()
        with explained("The table cannot be read"):
            return Facts(
                n_rows=dataset.count_rows(),
                n_without_vector=count_where(dataset, f"{quoted(self.vector)} is null"),
                dim=dataset.schema.field(self.vector).type.list_size,
                table_bytes=sum(
                    file.file_size_bytes or os.path.getsize(self.path / "data" / file.path)
                    for fragment in dataset.get_fragments()
                    for file in fragment.metadata.files
                ),
                index_bytes=folder_bytes(self.path / "_indices"),
                free_bytes=free_bytes(self.path),
                indexes=indexing.describe(dataset, self.vector),
                dependents=tuple(self._dependents(dataset)),
            )

    def _dependents(self, dataset: lance.LanceDataset) -> Iterator[str]:
        functions = (dataset.schema.metadata or {}).get(b"embedding_functions")
        if functions and json.dumps(self.vector) in functions.decode():
            yield (
                f"An embedding function of LanceDB makes the vectors of {self.vector!r} from texts with the old "
                "model; change it in the schema of the table when you cut over."
            )
        for index in indexing.describe(dataset, self.vector):
            yield f"At the clean-up the index {index.name} is removed with the old vectors; the new one keeps its name."
        yield "Readers that hold the table open see the old vectors until they check out the latest version."
        yield (
            "From the cut-over to the clean-up, a tag keeps one version of the table, so `table.optimize("
            "cleanup_older_than=…)` fails where it would remove that version; call `table.to_lance()."
            "cleanup_old_versions(…, error_if_tagged_old_versions=False)` instead."
        )

    def check(self, migration: Migration) -> None:
        dataset = self._opened()
        self._check_options(migration)
        has_job = find_columns(dataset, self.vector) is not None
        if not has_job and not count_where(dataset, f"{quoted(self.vector)} is not null"):
            raise InputError(f"Table {self.address.table} has no row with a vector in {self.vector!r}; add some first.")
        if not os.access(self.path, os.W_OK) or not os.access(self.path / "data", os.W_OK):
            raise InputError(f"{self.path} must be writable; change the permissions of the folder.")
        indexes = [index.name for index in indexing.vector_indexes(dataset, self.vector)]
        if len(indexes) > 1:
            raise InputError(
                f"Column {self.vector!r} of table {self.address.table} has the vector indexes {', '.join(indexes)}, of "
                "which LanceDB uses only one; drop the others first."
            )
        if dataset.data_storage_version in ("0.1", "legacy"):
            raise InputError(f"{self.path} has the legacy file format of Lance; write it again in a newer one first.")
        job = find_columns(dataset, self.vector)
        if job is None:
            for name in (
                migration.new,
                state_column(migration.new),
                *([] if migration.keep_names else [migration.old]),
            ):
                if name in dataset.schema.names:
                    raise InputError(f"Table {self.address.table} has a column {name!r} already; name another one.")
                if "." in name or "`" in name:
                    raise InputError(f"The name of a column must have no dot and no backtick; got {name!r}.")
        check_ids(lambda: reading.id_batches(dataset, self.id), self.id, f"table {self.address.table}")

    def _check_options(self, migration: Migration) -> None:
        if self.address.where is not None:
            raise InputError("An address for a job must have no condition (where=), because all rows get new vectors.")
        if migration.view is not None:
            raise InputError("LanceDB has no views that a cut-over could replace; leave out the view.")
        if migration.layout not in (None, "column"):
            raise InputError(
                f"LanceDB keeps the new vectors in a column; the layout {migration.layout} is not possible."
            )

    def peak_bytes(self, migration: Migration, facts: Facts) -> dict[str, int]:
        vectors = facts.n_rows * migration.dim * 4
        indexes = sum(index.n_bytes or 0 for index in facts.indexes)
        return {
            "new vectors": vectors,
            "states of rows": facts.n_rows * STATE_BYTES,
            "new index": round(indexes * migration.dim / facts.dim),
        }

    @contextmanager
    def rehearsal(self, n: int) -> Iterator["Store"]:
        dataset = self._opened()
        names = dataset.schema.names
        rows = reading.sample(dataset, self.vector, None, n, 0, names)
        dims = (dataset.schema.field(self.vector).type.list_size,) * 2
        with tempfile.TemporaryDirectory(prefix=".repstitch-", dir=self.path.parent) as folder:
            with explained(f"A copy of {n} rows cannot be made beside {self.path}"):
                copy = lance.write_dataset(rows, os.path.join(folder, self.path.name))
                for index in indexing.describe(dataset, self.vector):
                    settings = indexing.copied_settings(index, dims, len(rows))
                    with indexing.quiet():
                        copy.create_index(self.vector, index.kind, name=index.name, **settings)
            table = '"' + self.path.name.removesuffix(ENDING).replace('"', '""') + '"'
            yield LanceTable(Address("lancedb", folder, table, self.vector, self.id))

    # --- the job ------------------------------------------------------------------------------------------------------

    def locked(self) -> AbstractContextManager[None]:
        return job_lock(self.path)

    def job(self) -> dict[str, Any] | None:
        columns = find_columns(open_latest(self.path), self.vector)
        return None if columns is None else columns.job

    def save_job(self, job: dict[str, Any]) -> None:
        columns = need_columns(open_latest(self.path), self.vector)
        key = JOB_SWAPPED if columns.is_swapped else JOB
        save_metadata(self.path, self.vector, {key: json.dumps(job)})

    def begin(self, migration: Migration, job: dict[str, Any]) -> None:
        self._check_options(migration)
        _check_guard(job)
        begin_job(self.path, self.vector, migration, job)

    def resume(self, migration: Migration) -> None:
        dataset = open_latest(self.path)
        columns = need_columns(dataset, self.vector)
        kind = dataset.schema.field(columns.new).type
        if not pa.types.is_fixed_size_list(kind) or kind.list_size != migration.dim:
            raise InputError(f"Column {columns.new!r} must have {migration.dim} dimensions for this job; it is {kind}.")
        old_dim = dataset.schema.field(columns.old).type.list_size if columns.old else 0
        if self._filling is None or self._filling.word != migration.state:
            dims = old_dim, migration.dim
            history = History(self.path, self.vector, self.id, dims)
            self._filling = Filling(self.path, self.vector, migration.state, dims, history)
            self._filling.checked |= swapping.keys_at(dataset, columns.checked, self.vector)
            self._filling.n_saved = len(self._filling.checked)

    @property
    def filling(self) -> Filling:
        if self._filling is None:
            raise RuntimeError("`resume` must be called before the methods of a job")
        return self._filling

    def units(self) -> list[Unit]:
        return self.filling.units()

    def fill(self, unit: Unit, translate: Translate) -> int:
        return self.filling.fill(unit.token, translate)

    def catch_up(self, translate: Translate) -> int:
        filling = self.filling
        n_seen = filling.catch_up(translate)
        dataset = open_latest(self.path)
        columns = filling.columns(dataset)
        if len(filling.checked) != filling.n_saved and not filling.unchecked(dataset, columns):
            save_metadata(self.path, self.vector, {CHECKED: str(dataset.version)})
            filling.n_saved = len(filling.checked)
        return n_seen

    def redo(self, ids: Sequence[str]) -> int:
        def empty(where: str) -> int:
            dataset = open_latest(self.path)
            columns = self.filling.columns(dataset)
            nulls = {columns.new: "NULL", columns.state: "NULL"}
            return dataset.update(nulls, where=where)["num_rows_updated"]

        conditions = id_conditions(open_latest(self.path).schema, self.id, ids)
        action = f"Rows of {self.path} cannot be marked"
        return sum(committed(lambda where=where: empty(where), action) for where in conditions)

    def write_native(self, ids: Sequence[str], vectors: np.ndarray) -> int:
        return write_native(self.filling, ids, vectors)

    def count_rest(self, at_most: int | None = None) -> int:
        return self.filling.count_rest(open_latest(self.path), at_most)

    def states(self) -> dict[str, int]:
        dataset = open_latest(self.path)
        return count_states(dataset, need_columns(dataset, self.vector))

    def index(self, progress: Callable[[float], None]) -> None:
        dataset = open_latest(self.path)
        columns = self.filling.columns(dataset)
        progress(0.0)
        for like in indexing.describe(dataset, columns.old or "")[:1]:  # others may have been added since
            indexing.build(self.path, like, columns.new, f"{columns.move.new}_idx", self.filling.dims)
        progress(1.0)

    def index_stamp(self) -> str:
        dataset = open_latest(self.path)
        columns = need_columns(dataset, self.vector)
        stamp = indexing.stamp(dataset, columns.new)
        return stamp or (MISSING if indexing.vector_indexes(dataset, columns.old or "") else "")

    # --- verification -------------------------------------------------------------------------------------------------

    def compare(self, ids: Sequence[str] | None = None) -> Iterator[Compared]:
        dataset = open_latest(self.path)
        columns = self.filling.columns(dataset)
        if ids is None:
            yield from reading.compare(self.filling, dataset, columns, self.id, None)
            return
        for where in id_conditions(dataset.schema, self.id, ids):
            yield from reading.compare(self.filling, dataset, columns, self.id, where)

    def count_only_new(self) -> int:
        return swapping.count_only_new(self.filling)

    def search(
        self, queries: np.ndarray, k: int, which: Which, where: str | None = None, metric: str | None = None
    ) -> Hits:
        dataset = open_latest(self.path)
        columns = find_columns(dataset, self.vector)
        column = self.vector if columns is None else columns.new if which == "new" else columns.old or ""
        indexing.check_condition(dataset, where)
        return indexing.search(dataset, column, self.id, queries, k, where, metric)

    # --- cut-over -----------------------------------------------------------------------------------------------------

    def cut_over(self, translate: Translate, job: dict[str, Any], max_rest: int, max_pause: float) -> CutOver:
        _check_guard(job)
        return swapping.cut_over(self.filling, translate, job, max_rest)

    def roll_back(self, job: dict[str, Any], max_pause: float) -> RolledBack:
        return swapping.roll_back(self.filling, job)

    def clean_up(self) -> None:
        remains.clean_up(self.path, self.vector)

    def written_since(self, limit: int) -> np.ndarray:
        return swapping.written_since(self.filling, limit)


def _check_guard(job: dict[str, Any]) -> None:
    if job.get("guard"):
        raise InputError(NO_GUARD)
