"""Read columns of Parquet and Arrow files in batches, in memory that does not depend on the size of the files."""

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow import fs

from repstitch.embeddings.ids import with_room

BUFFER_BYTES = 2**22  # of each column; a request to a remote store reads as much


def stream(
    data: pyarrow.dataset.Dataset, columns: Sequence[str], size: int, start: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield the columns of a dataset in batches of at most `size` rows, in order, from row `start` on.

    Categories get indices of 32 bits. A dataset of Arrow would read whole row groups at once, and a
    file may be a single one.
    """
    schema = pa.schema([(name, with_room(data.schema.field(name).type)) for name in columns])
    for fragment in data.get_fragments():
        n_rows = fragment.count_rows()
        if n_rows <= start:
            start -= n_rows
            continue
        if isinstance(fragment, pyarrow.dataset.ParquetFileFragment):
            batches = _parquet(fragment, columns, size, start)
        elif isinstance(fragment, pyarrow.dataset.FileFragment):
            batches = _skip_rows(_arrow(fragment, columns), start)
        else:
            batches = _skip_rows(fragment.to_batches(columns=columns, schema=data.schema), start)
        start = 0
        for batch in batches:
            conformed = _conform(batch, schema)
            yield from (conformed.slice(at, size) for at in range(0, batch.num_rows, size))


def _parquet(
    fragment: pyarrow.dataset.ParquetFileFragment, columns: Sequence[str], size: int, start: int
) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(fragment.open(), pre_buffer=False, buffer_size=BUFFER_BYTES)
    groups = list(range(file.num_row_groups))
    while groups and (n_rows := file.metadata.row_group(groups[0]).num_rows) <= start:
        start -= n_rows
        groups.pop(0)
    present = [name for name in columns if name in file.schema_arrow.names]
    # Threads would decode the columns at once, which takes more memory and is not faster with one column of vectors.
    return _skip_rows(file.iter_batches(size, row_groups=groups, columns=present, use_threads=False), start)


def _arrow(fragment: pyarrow.dataset.FileFragment, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a file in Arrow's file layout. A local file is mapped, so its rows are read when used."""
    is_local = isinstance(fragment.filesystem, fs.LocalFileSystem)
    source = pa.memory_map(fragment.path) if is_local else fragment.open()
    names = fragment.physical_schema.names
    options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns if name in names])
    file = pa.ipc.open_file(source, options=options)
    return (file.get_batch(i) for i in range(file.num_record_batches))


def _skip_rows(batches: Iterable[pa.RecordBatch], n: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches without the first `n` rows, and without empty batches."""
    for batch in batches:
        rest = batch.slice(min(n, batch.num_rows))
        n -= batch.num_rows - rest.num_rows
        if rest.num_rows:
            yield rest


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the columns of a schema, in its types. A column that the file does not have is null."""
    arrays = []
    for field in schema:
        if field.name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, field.type))
        else:
            column = batch.column(field.name)
            arrays.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
