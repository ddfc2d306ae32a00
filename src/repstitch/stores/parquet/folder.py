"""A folder of Parquet files. The new vectors are written to files with the same names in a folder beside it."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repstitch.addresses import Address
from repstitch.errors import InputError
from repstitch.files import writing
from repstitch.stores.arrow_columns import check_ids, id_texts
from repstitch.stores.local_folders import free_bytes, job_lock
from repstitch.stores.parquet.files import (
    as_token,
    dimensions,
    is_float_lists,
    is_old_file,
    list_companions,
    list_files,
    open_file,
    read_batches,
    vector_type,
)
from repstitch.stores.parquet.filling import Filling
from repstitch.stores.parquet.job import Folders, Ledger
from repstitch.stores.parquet.reading import FolderRows, Sides, native_rows, search_exactly
from repstitch.stores.store import (
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

VECTOR, ID = "vector", "id"


class ParquetFolder(Store):
    """A folder of Parquet files. See `Store`.

    Readers that open the files of a folder one after another can see old and new files during the cut-over, which
    renames the folders.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        concurrent_writers=False,
        atomic_cutover=False,
        column_in_place=False,
        writers_guard=False,
        state_kept="_repstitch.json in the new folder, and the metadata of the new files",
    )

    def __init__(self, address: Address):
        self.address = address
        self.folders = _folders(address.locator)
        self.folders.repair()
        home = self.folders.home
        if address.where is not None:
            raise InputError("An address of a folder must have no condition (where=).")
        if not home.is_dir():
            raise InputError(f"There is no folder {home}; pass a folder of Parquet files.")
        files = list_files(home)
        if not files:
            raise InputError(f"{home} must have Parquet files; it has none.")
        first = home / next(iter(files))
        with open_file(first) as opened:
            schema = opened.schema_arrow
        self.vector = address.vector or _choose_vector(schema, str(first))
        self.id = address.id or ID
        vector_type(schema, self.vector, str(first))
        if self.id not in schema.names:
            raise InputError(f"{first} has no column {self.id!r}; name the column of ids with id=.")
        self._filling: Filling | None = None

    # --- reading ------------------------------------------------------------------------------------------------------

    def rows(self) -> Rows:
        return self._rows(self.folders.home)

    def _rows(self, folder: Path) -> FolderRows:
        files = tuple(folder / name for name in list_files(folder))
        if self._filling is not None and folder == self.folders.new:
            files = tuple(file for file in files if not is_old_file(file, self.vector, self._filling.dims))
        dim = next((dim for file in files if (dim := dimensions(file, self.vector))), 0)
        if not dim:
            raise InputError(f"Column {self.vector!r} of {folder} has no vectors.")
        return FolderRows(files, self.vector, dim)

    def sample(self, n: int, seed: int, columns: Sequence[str]) -> pa.Table:
        return self._rows(self.folders.home).sample(n, seed, columns)

    def take(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        return self._rows(self.folders.home).take(self.id, ids, columns)

    def reopen(self) -> "ParquetFolder":
        store = ParquetFolder(self.address)
        store._filling = self._filling
        return store

    def close(self) -> None:
        """Do nothing: no file stays open."""

    # --- before a job -------------------------------------------------------------------------------------------------

    def facts(self) -> Facts:
        rows = self._rows(self.folders.home)
        n_rows, n_without = 0, 0
        for file in rows.files:
            with open_file(file) as opened:
                n_rows += opened.metadata.num_rows
                n_without += _without_vector(opened, file, self.vector)
        return Facts(
            n_rows=n_rows,
            n_without_vector=n_without,
            dim=rows.dim,
            table_bytes=sum(file.stat().st_size for file in rows.files),
            index_bytes=0,
            free_bytes=free_bytes(self.folders.home),
            dependents=(
                "Programs that have the folder open, or know its files, see the old ones until they open it again.",
            ),
            layout="folder",
        )

    def check(self, migration: Migration) -> None:
        self._check_options(migration)
        folders = self.folders
        if not os.access(folders.home.parent, os.W_OK):
            raise InputError(f"{folders.home.parent} must be writable, because the new folder is made in it.")
        if folders.ledger() is None:
            for path in (folders.pending, *([] if migration.keep_names else [folders.retired])):
                if path.exists():
                    raise InputError(f"{path} exists and is never overwritten; move it away first.")
        list_companions(folders.old)  # refuses links
        files = [folders.old / name for name in list_files(folders.old)]
        for file in files:
            self._check_columns(file)
        check_ids(
            lambda: (batch[self.id] for file in files for batch in read_batches(file, [self.id])),
            self.id,
            str(folders.old),
        )

    def _check_columns(self, file: Path) -> None:
        with open_file(file) as opened:
            schema = opened.schema_arrow
        vector_type(schema, self.vector, str(file))
        if self.id not in schema.names:
            raise InputError(f"{file} has no column {self.id!r} of ids, as other files of the folder have.")
        kind = schema.field(self.id).type
        if not _is_text_or_number(kind):
            raise InputError(
                f"The ids in column {self.id!r} of {file} must be texts or whole numbers; they are {kind}."
            )

    def _check_options(self, migration: Migration) -> None:
        if migration.view is not None:
            raise InputError("A folder of files has no views that a cut-over could replace; leave out the view.")
        if migration.layout not in (None, "folder"):
            raise InputError(f"New files are in a folder of their own; the layout {migration.layout} is not possible.")

    def describe_place(self, migration: Migration) -> str:
        return f"folder {self.folders.home.name}.new"

    def describe_cut_over(self, migration: Migration) -> str:
        home = self.folders.home
        if migration.keep_names:
            return f"no name changes; readers go to the folder {home.name}.new"
        return f"the folder {home.name} becomes {home.name}.old, and {home.name}.new becomes {home.name}"

    def peak_bytes(self, migration: Migration, facts: Facts) -> dict[str, int]:
        old_vectors = facts.n_rows * facts.dim * 4
        return {
            "new vectors": facts.n_rows * migration.dim * 4,
            "copies of the other columns": max(0, facts.table_bytes - old_vectors),
        }

    @contextmanager
    def rehearsal(self, n: int) -> Iterator["Store"]:
        rows, parent = self._rows(self.folders.home), self.folders.home.parent
        try:
            table = rows.sample(n, 0, rows.schema.names)
        except InputError:  # the other columns have types that differ from file to file
            table = rows.sample(n, 0, [self.id, self.vector])
        with ExitStack() as stack:
            with writing(parent, parent, None):
                temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix=".repstitch-", dir=parent))
                folder = Path(temporary) / "rows"
                folder.mkdir()
                pq.write_table(table, folder / "rows.parquet")
            yield ParquetFolder(replace(self.address, locator=str(folder)))

    # --- the job ------------------------------------------------------------------------------------------------------

    def locked(self) -> AbstractContextManager[None]:
        return job_lock(self.folders.home)

    def job(self) -> dict[str, Any] | None:
        ledger = self.folders.ledger()
        if ledger is None:
            return None
        return ledger.job_renamed if self.folders.is_renamed else ledger.job

    def save_job(self, job: dict[str, Any]) -> None:
        self.folders.save_job(job)

    def begin(self, migration: Migration, job: dict[str, Any]) -> None:
        self._check_options(migration)
        _check_guard(job)
        self.folders.begin(migration, job)

    def resume(self, migration: Migration) -> None:
        ledger = self.folders.need_ledger()
        if ledger.dim != migration.dim or ledger.version != migration.version:
            raise InputError(f"The job on {self.folders.home} is another one; go on with it, or clean it up first.")
        if not self.folders.old.is_dir():
            raise InputError(f"The folder of the old vectors, {self.folders.old}, which the job needs, is gone.")
        dims = self._rows(self.folders.old).dim, migration.dim
        self._filling = Filling(self.folders, self.id, self.vector, dims, migration)

    @property
    def filling(self) -> Filling:
        if self._filling is None:
            raise RuntimeError("`resume` must be called before the methods of a job")
        return self._filling

    def units(self) -> list[Unit]:
        return self.filling.units()

    def fill(self, unit: Unit, translate: Translate) -> int:
        return self.filling.fill(unit, translate)

    def catch_up(self, translate: Translate) -> int:
        return self.filling.catch_up(translate)

    def write_native(self, ids: Sequence[str], vectors: np.ndarray) -> int:
        return self.filling.write_native(ids, vectors)

    def redo(self, ids: Sequence[str]) -> int:
        wanted, n_rows = set(ids), 0
        for name in list_files(self.folders.new):
            n_bad = len(self._ids(self.folders.new, [name]) & wanted)
            if n_bad:  # its file is then translated again
                self.filling.drop_native(name, wanted)
                (self.folders.new / name).unlink()
                n_rows += n_bad
        return n_rows

    def count_rest(self, at_most: int | None = None) -> int:
        return self.filling.count_rest(at_most)

    def states(self) -> dict[str, int]:
        return self.filling.states()

    def index(self, progress: Callable[[float], None]) -> None:
        progress(1.0)

    def index_stamp(self) -> str:
        return ""

    # --- verification -------------------------------------------------------------------------------------------------

    def compare(self, ids: Sequence[str] | None = None) -> Iterator[Compared]:
        folders, filling = self.folders, self.filling
        version = filling.migration.version
        return Sides(folders.old, folders.new, self.vector, self.id, filling.dims, version).compare(ids)

    def search(
        self, queries: np.ndarray, k: int, which: Which, where: str | None = None, metric: str | None = None
    ) -> Hits:
        if where is not None:
            raise InputError("A folder of files cannot be searched with a condition (where).")
        rows = self._rows(self.folders.new if which == "new" else self.folders.old)
        return search_exactly(rows.batches([self.id, self.vector]), (self.id, self.vector), queries, k)

    # --- cut-over -----------------------------------------------------------------------------------------------------

    def cut_over(self, translate: Translate, job: dict[str, Any], max_rest: int, max_pause: float) -> CutOver:
        _check_guard(job)
        folders, ledger = self.folders, self.folders.need_ledger()
        if folders.is_renamed or ledger.is_cut_over:
            folders.save_job(job)
            folders.carry(folders.old, folders.new)
            return CutOver(0, 0.0, self.filling.catch_up_all(translate), ("The new files were cut over before.",))
        n_rest = self.filling.catch_up_all(translate)
        folders.carry(folders.old, folders.new)
        ledger = folders.need_ledger()
        tokens = {name: list(token) for name, token in list_files(folders.new).items()}
        if job.get("keep_names", ledger.keep_names):
            folders.save(replace(ledger, job=job, is_cut_over=True, at_cut_over=tokens))
            return CutOver(n_rest, 0.0, notes=(f"Readers must now use the folder {folders.new}.",))
        folders.save(replace(ledger, job_renamed=job, at_cut_over=tokens))
        folders.rename(is_cut_over=True)
        folders.carry(folders.old, folders.new)
        return CutOver(n_rest, 0.0, self.filling.catch_up_all(translate))

    def roll_back(self, job: dict[str, Any], max_pause: float) -> RolledBack:
        folders, ledger = self.folders, self.folders.need_ledger()
        changed, strays = self._written_since(ledger), self.filling.keep_strays()
        folders.carry(folders.new, folders.old)
        ledger = folders.need_ledger()
        new, old = self._ids(folders.new, changed), self._ids(folders.old, list(list_files(folders.old)))
        both = [name for name in changed if name not in strays and (folders.old / name).exists()]
        notes = ()
        if both:
            notes = (f"Old vectors of rows in {len(both)} files that were written since can be out of date.",)
        if folders.is_renamed:
            folders.save(replace(ledger, job=job))
            folders.rename(is_cut_over=False)
        else:
            folders.save(replace(ledger, job=job, is_cut_over=False))
        return RolledBack(len(new - old), 0.0, notes)

    def _ids(self, folder: Path, names: Sequence[str]) -> set[str]:
        return {
            key
            for name in names
            for batch in read_batches(folder / name, [self.id])
            for key in id_texts(batch[self.id])
        }

    def _written_since(self, ledger: Ledger) -> list[str]:
        """Return the files of the new folder that others wrote since the cut-over."""
        return [
            name
            for name, token in list_files(self.folders.new).items()
            if as_token(ledger.at_cut_over.get(name)) != token
        ]

    def clean_up(self) -> None:
        self.folders.clean_up()

    def written_since(self, limit: int) -> np.ndarray:
        strays = self.filling.strays()
        names = [name for name in self._written_since(self.folders.need_ledger()) if name not in strays]
        return native_rows(self.folders.new, names, self.vector, self.filling.dims[1], limit)


def is_folder(path: Path) -> bool:
    """Return whether there is a folder, or one whose renaming was interrupted, which opening it repairs."""
    return path.is_dir() or _folders(path).is_between


def _folders(path: str | Path) -> Folders:
    """Return the folders of a job on the folder that a path or a link leads to."""
    return Folders(Path(os.path.realpath(path)))


def _is_text_or_number(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _choose_vector(schema: pa.Schema, place: str) -> str:
    columns = [field.name for field in schema if is_float_lists(field.type)]
    if VECTOR in columns:
        return VECTOR
    if len(columns) != 1:
        what = f"several columns of vectors ({', '.join(columns)})" if columns else "no column of vectors"
        raise InputError(f"{place} has {what}; name one with vector=.")
    return columns[0]


def _without_vector(opened: pq.ParquetFile, file: Path, vector: str) -> int:
    """Return the number of rows without a vector: by the statistics of the file if it has them."""
    metadata, n = opened.metadata, 0
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
        # A name can have a dot, so the path of another column can begin with it.
        parts = [column for column in columns if column.path_in_schema.startswith(f"{vector}.")]
        if len(parts) != 1 or parts[0].statistics is None or not parts[0].statistics.has_null_count:
            return sum(batch[vector].null_count for batch in read_batches(file, [vector]))
        n += parts[0].statistics.null_count
    return n


def _check_guard(job: dict[str, Any]) -> None:
    if job.get("guard"):
        raise InputError("Files cannot refuse rows of old writers, so `guard` is not possible; stop the writers.")
