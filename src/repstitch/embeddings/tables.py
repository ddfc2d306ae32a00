"""Read tables of ids, labels, texts or metadata from .parquet, .csv and .tsv files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from repstitch.embeddings.ids import IdColumn, choose_id_column, range_index, say_id_column, warn_of_unused_ids
from repstitch.errors import InputError, one_line
from repstitch.files import TABLES

HEAD_ROWS = 1000


def read_table(
    path: Path, argument: str, text_columns: Sequence[str] = (), only_text: bool = False, header: bool = True
) -> pa.Table:
    """Read a table. The columns named in `text_columns` are read as text, so that 007 and 1e3 are not changed.

    With `only_text`, only these columns are read from a Parquet file. Without a `header` the columns are called f0, f1
    …. Raises InputError, naming the `argument`, on another file ending and on a file that cannot be read.
    """
    with _readable(path, argument):
        if _is_parquet(path):
            return pq.read_table(path, columns=list(text_columns) if only_text else None)
        types = pacsv.ConvertOptions(column_types={name: pa.string() for name in text_columns})
        return pacsv.read_csv(path, *_csv_options(path, header), types)


def read_column_with_ids(
    path: Path, column: str | None, argument: str, id_column: IdColumn | None = None, header: bool = True
) -> pa.Table:
    """Return a column of a table and, as a second column if the table has it, that of the ids of its rows.

    The column of ids is chosen by `choose_id_column`. A table of labels or groups may lack the columns that `id_column`
    names, which may be those of other files. Without a column of ids, `data` to embed has the ids of the larger data
    frame of pandas that it comes from (`range_index`). Raises InputError as `read_table` does, and if the table does
    not have the column exactly once.
    """
    schema = read_schema(path, argument, header)
    others = (column,) if column else ()
    if argument != "data" and id_column:
        names = (id_column,) if isinstance(id_column, str) else id_column
        id_column = [name for name in names if name in schema.names and name != column] or None
    ids = choose_id_column(schema, str(path), id_column, others)
    if column is None or column not in schema.names:
        listed = ", ".join(name for name in schema.names if name != ids)
        raise InputError(
            f"`{argument}` must name a column as {path.name}:COLUMN, where COLUMN is one of {listed}; got {column}."
        )
    if schema.names.count(column) > 1:
        raise InputError(f"`{argument}` {path} has more than one column {column!r}; column names must be unique.")
    say_id_column(ids, str(path))
    columns = [column] if ids is None else [column, ids]
    table = read_table(path, argument, columns, only_text=True, header=header)
    index = range_index(schema, table.num_rows) if ids is None and argument == "data" else None
    if index is not None and index != range(len(index)):
        return table.append_column("the index", [pa.array(index, pa.int64())])
    if ids is None:
        warn_of_unused_ids(_read_head(path, table, column, argument), str(path))
    return table.select(columns)


def _read_head(path: Path, table: pa.Table, column: str, argument: str) -> pa.Table:
    """Return the first rows of the columns other than `column`."""
    if not _is_parquet(path):
        return table.drop_columns([column]).slice(0, HEAD_ROWS)
    with _readable(path, argument), pq.ParquetFile(path) as file:
        flat = [field.name for field in file.schema_arrow if not pa.types.is_nested(field.type)]
        names = [name for name in flat if name != column]
        first = next(file.iter_batches(HEAD_ROWS, columns=names), None)
        return pa.table({}) if first is None else pa.Table.from_batches([first])


def read_schema(path: Path, argument: str, header: bool = True) -> pa.Schema:
    """Return the schema of a table without reading its rows. Raises InputError as `read_table` does."""
    with _readable(path, argument):
        if _is_parquet(path):
            return pq.read_schema(path)
        with pacsv.open_csv(path, *_csv_options(path, header)) as reader:
            return reader.schema


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _csv_options(path: Path, header: bool) -> tuple[pacsv.ReadOptions, pacsv.ParseOptions]:
    tabs = path.suffix.lower() == ".tsv"
    return (
        pacsv.ReadOptions(autogenerate_column_names=not header),
        pacsv.ParseOptions(
            delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
        ),
    )


@contextmanager
def _readable(path: Path, argument: str) -> Iterator[None]:
    """Check the ending of the file, and convert an error of reading to an InputError that names the `argument`."""
    if path.suffix.lower() not in TABLES:
        raise InputError(f"`{argument}` must end in {', '.join(TABLES[:-1])} or {TABLES[-1]}; got {path.name!r}.")
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the readers of damaged files raise nearly every exception
        raise InputError(f"`{argument}` {path} cannot be read: {one_line(error)}") from None
