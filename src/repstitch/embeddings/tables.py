"""Tables of what is known beside vectors: .parquet, .csv and .tsv, read alike wherever one is given."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from repstitch.errors import InputError, one_line

TABLES = (".parquet", ".csv", ".tsv")


def read_table(path: Path, what: str, text: Sequence[str] = (), only: bool = False, header: bool = True) -> pa.Table:
    """A table's columns; those of `text` are text as it stands, so that ids such as 007 and labels such as 1e3 stay.

    With `only` nothing but the columns of `text` is read of a Parquet file that has the first of them. Without a
    `header` columns are called f0, f1 …. `what` is the argument's name. Raises InputError on another ending and on what
    cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise InputError(f"`{what}` must end in {', '.join(TABLES[:-1])} or {TABLES[-1]}; got {path.name!r}.")
    try:
        if suffix == ".parquet":
            there = [name for name in text if name in pq.read_schema(path).names]
            return pq.read_table(path, columns=there if only and text[0] in there else None)
        tabs = suffix == ".tsv"
        return pacsv.read_csv(
            path,
            pacsv.ReadOptions(autogenerate_column_names=not header),
            pacsv.ParseOptions(
                delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
            ),
            pacsv.ConvertOptions(column_types={name: pa.string() for name in text}),
        )
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"`{what}` {path} cannot be read: {one_line(error)}") from None


def split_column(path: str) -> tuple[str, str | None]:
    """The file and the column of `file.parquet:column`; None where no column is named."""
    head, colon, tail = path.rpartition(":")
    return (head, tail) if colon and head.lower().endswith(TABLES) else (path, None)
