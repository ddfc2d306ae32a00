"""Labels of rows, matched to them by id or by position."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from repstitch.embeddings import Embeddings, check_unique, read_column
from repstitch.errors import InputError
from repstitch.tables import TABLES, read_table, split_column


def label(rows: Embeddings, given) -> Embeddings:
    """The rows with a label each, as text, None where there is none.

    `given` is `table.parquet:column` (or .csv, .tsv) with a column `id`; or it has one entry a row, in the rows' order:
    a table without ids, a text file, a `.npy`, `file.npz:key`, an array. Raises InputError where no id has a label, on
    ids that occur twice, and on another length where position counts.
    """
    return replace(rows, labels=_read(given, rows))


def _read(given, rows: Embeddings) -> np.ndarray:
    location, column = split_column(given) if isinstance(given, str) else (given, None)
    if not isinstance(location, str) or not location.lower().endswith(TABLES):
        return _or_none(read_column(given, len(rows), "labels"))
    path = Path(location)
    if not path.is_file():
        raise InputError(f"`labels`: there is no file {path}; give TABLE:COLUMN.")
    table = read_table(path, "labels", ("id", *([column] if column else [])))
    if column is None or column not in table.column_names or column == "id":
        others = ", ".join(name for name in table.column_names if name != "id")
        raise InputError(f"`labels` must name a column as {path.name}:COLUMN, out of {others}; got {column}.")
    values = _or_none(table.column(column).to_pylist())
    if "id" not in table.column_names or rows.ids is None:
        if len(values) != len(rows):
            why = "has no column id" if rows.ids is not None else "speaks of rows that have no ids"
            raise InputError(
                f"`labels` {path} {why}, so it must have one entry a row ({len(rows)}); it has {len(values)}."
            )
        return values
    keys = np.array([str(key) for key in table.column("id").to_pylist()], dtype=object)
    check_unique(keys, "table of labels")
    known = dict(zip(keys, values, strict=True))
    found = _or_none([known.get(key) for key in rows.ids])
    if all(one is None for one in found):
        raise InputError(
            f"`labels` {path} has a label for none of the ids (it has e.g. {keys[0]!r}, the rows {rows.ids[0]!r})."
        )
    return found


def _or_none(values) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = [None if value is None or str(value).strip() == "" else str(value) for value in values]
    return made
