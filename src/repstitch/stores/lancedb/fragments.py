"""Write the new vectors of whole fragments of a LanceDB table as data files, which are committed beside the others.

A fragment is a set of files with the same rows. A new file of a column replaces the column in the fragment, and no row
is moved. The commit conflicts only with changes of the same fragment. If they did not concern the columns of the file,
it is committed on the version after them: the row's state tells whether its old vector has changed since.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileWriter
from lance.fragment import DataFile, FragmentMetadata, LanceFragment

from repstitch.errors import InputError
from repstitch.stores.lancedb.job import Columns
from repstitch.stores.lancedb.opening import READ_AHEAD_BYTES, committed, explained, open_latest

BATCH_ROWS = 4096
DROPPED = -2  # the id in a data file of a field that a later file of the fragment replaces
Files = tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """A data file with new content of columns of a fragment.

    Args:
        fragment: The id of the fragment.
        replaced: The files that had these columns when their content was read.
        file: The new file.
        n_rows: Number of rows that were translated.
    """

    fragment: int
    replaced: Files
    file: DataFile
    n_rows: int


def files_with(fragment: LanceFragment | FragmentMetadata, ids: Iterable[int]) -> Files:
    """Return the paths of the data files of a fragment that contain one of these fields."""
    metadata = fragment.metadata if isinstance(fragment, LanceFragment) else fragment
    wanted = set(ids)
    return tuple(file.path for file in metadata.files if wanted & set(file.fields))


def key_of(fragment: LanceFragment, columns: Columns) -> tuple[int, Files, Files]:
    """Return what changes if a vector or a state of a row in the fragment changes. A deletion changes nothing."""
    old = [columns.ids[columns.old]] if columns.old else []
    new = [columns.ids[columns.new], columns.ids[columns.state]]
    return fragment.fragment_id, files_with(fragment, old), files_with(fragment, new)


def read_rows(
    fragment: LanceFragment, names: Sequence[str], where: str | None = None
) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    """Yield the rows of a fragment that are not deleted, as their places in its files and their columns."""
    batches = fragment.to_batches(
        columns=list(names),
        filter=where,
        with_row_address=True,
        batch_size=BATCH_ROWS,
        batch_readahead=2,
        io_buffer_size=READ_AHEAD_BYTES,
    )
    while True:
        with explained("The table cannot be read"):
            batch = next(batches, None)
        if batch is None:
            return
        places = batch["_rowaddr"].to_numpy().astype(np.int64) & 0xFFFFFFFF
        yield places, batch.drop_columns(["_rowaddr"])


def write_file(
    path: Path, fragment: LanceFragment, ids: dict[str, int], rows: Iterable[tuple[np.ndarray, pa.RecordBatch]]
) -> DataFile:
    """Write columns of a fragment, whose rows are `rows` (places and columns), to a data file of the table.

    Deleted rows are null in it. The columns are those with these field ids, in their order. If the block is left by an
    error, the file is removed.
    """
    first = fragment.metadata.files[0]
    name = f"{uuid.uuid4().hex}.lance"
    target = path / "data" / name
    version = f"{first.file_major_version}.{first.file_minor_version}"
    try:
        with explained(f"New vectors cannot be written to {path}"):
            iterator = iter(rows)
            schema, padded = _padded(iterator, fragment.physical_rows)
            with LanceFileWriter(os.fspath(target), schema, version=version) as writer:
                for batch in padded:
                    writer.write_batch(batch)
            size = target.stat().st_size
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    fields = list(ids.values())
    return DataFile(
        name, fields, list(range(len(fields))), first.file_major_version, first.file_minor_version, size, None
    )


def _padded(
    rows: Iterator[tuple[np.ndarray, pa.RecordBatch]], n_rows: int
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema of the rows, and an iterator of all `n_rows` rows of a fragment, null where one is deleted."""
    first = next(rows)
    schema = first[1].schema

    def batches() -> Iterator[pa.RecordBatch]:
        at = 0
        for places, batch in _chain(first, rows):
            end = int(places[-1]) + 1
            if end - at == batch.num_rows:
                yield batch
            else:
                sources = np.full(end - at, -1)
                sources[places - at] = np.arange(batch.num_rows)
                yield batch.take(pa.array(sources, mask=sources < 0))
            at = end
        if at < n_rows:
            yield pa.record_batch([pa.nulls(n_rows - at, field.type) for field in schema], schema=schema)

    return schema, batches()


def _chain(first, rest):
    yield first
    yield from rest


def commit_files(path: Path, written: Sequence[Written]) -> tuple[set[int], lance.LanceDataset]:
    """Put files into their fragments in one commit, and return the fragments that got theirs, and the version.

    A fragment is left out if it is gone, or if another program has written the same columns of it since; its file is
    then removed.
    """
    waiting = list(written)

    def change() -> tuple[set[int], lance.LanceDataset]:
        dataset = open_latest(path)
        ids = {field.name(): field.id() for field in dataset.lance_schema.fields()}
        updated, modified = [], set()
        for part in list(waiting):
            fragment = dataset.get_fragment(part.fragment)
            unchanged = fragment is not None and files_with(fragment, part.file.fields) == part.replaced
            if fragment is None or not unchanged or not set(part.file.fields) <= set(ids.values()):
                waiting.remove(part)
                continue
            updated.append(_with_file(fragment, part.file))
            modified |= set(part.file.fields)
        if updated:
            operation = lance.LanceOperation.Update(
                updated_fragments=updated, fields_modified=sorted(modified), update_mode="rewrite_columns"
            )
            dataset = lance.LanceDataset.commit(os.fspath(path), operation, read_version=dataset.version, max_retries=1)
        return {part.fragment for part in waiting}, dataset

    try:
        done, dataset = committed(change, f"New vectors cannot be committed to {path}")
    except InputError:
        _remove_unused(path, written, open_latest(path))
        raise
    _remove_unused(path, [part for part in written if part not in waiting], dataset)
    return done, dataset


def _remove_unused(path: Path, written: Sequence[Written], dataset: lance.LanceDataset) -> None:
    """Remove those of the new files that no fragment has."""
    used = {file.path for fragment in dataset.get_fragments() for file in fragment.metadata.files} if written else set()
    discard_files(path, [part for part in written if part.file.path not in used])


def discard_files(path: Path, written: Sequence[Written]) -> None:
    """Remove new files that are not committed."""
    for part in written:
        with suppress(OSError):
            (path / "data" / part.file.path).unlink(missing_ok=True)


def _with_file(fragment: LanceFragment, file: DataFile) -> FragmentMetadata:
    """Return the metadata of a fragment with one more file, which replaces its fields in the older ones."""
    metadata = FragmentMetadata.from_json(json.dumps(fragment.metadata.to_json()))
    replaced, files = set(file.fields), []
    for older in metadata.files:
        fields = [DROPPED if field in replaced else field for field in older.fields]
        if any(field != DROPPED for field in fields):
            files.append(
                DataFile(
                    older.path,
                    fields,
                    older.column_indices,
                    older.file_major_version,
                    older.file_minor_version,
                    older.file_size_bytes,
                    older.base_id,
                )
            )
    metadata.files = [*files, file]
    return metadata
