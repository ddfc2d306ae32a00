"""Read tables of ids, labels, texts or metadata from .parquet, .csv and .tsv files."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from repstitch.errors import InputError, one_line
from repstitch.files import TABLES


def read_table(
    path: Path, argument: str, text_columns: Sequence[str] = (), only_text: bool = False, header: bool = True
) -> pa.Table:
    """Read a table. The columns named in `text_columns` are read as text, so that 007 and 1e3 are not changed.

    With `only_text`, only these columns are read from a Parquet file that has the first of them. Without a `header` the
    columns are called f0, f1 …. Raises InputError, naming the `argument`, on another file ending and on a file that
    cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise InputError(f"`{argument}` must end in {', '.join(TABLES[:-1])} or {TABLES[-1]}; got {path.name!r}.")
    try:
        if suffix == ".parquet":
            present = [name for name in text_columns if name in pq.read_schema(path).names]
            return pq.read_table(path, columns=present if only_text and text_columns[0] in present else None)
        tabs = suffix == ".tsv"
        return pacsv.read_csv(
            path,
            pacsv.ReadOptions(autogenerate_column_names=not header),
            pacsv.ParseOptions(
                delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
            ),
            pacsv.ConvertOptions(column_types={name: pa.string() for name in text_columns}),
        )
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"`{argument}` {path} cannot be read: {one_line(error)}") from None
