"""Attach labels to rows, matching them by id or by position."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from repstitch.embeddings.columns import load_column
from repstitch.embeddings.rows import Embeddings, check_unique
from repstitch.embeddings.tables import read_table
from repstitch.errors import InputError
from repstitch.files import TABLES, split_column


def label(rows: Embeddings, labels) -> Embeddings:
    """Return the rows with one label each, as text. A label that is missing, blank or NaN becomes None.

    `labels` is a column of a table, `table.parquet:column` (or .csv, .tsv). Labels are matched by id if the table has a
    column `id`. Otherwise they must have one entry per row in the rows' order: a table without ids, a text file, a
    `.npy`, `file.npz:key` or an array. Whole numbers become the same text in every number type (1 and 1.0 become "1").
    Raises InputError if no row gets a label, on repeated ids, on a table with ids for rows without ids, and on a wrong
    number of entries.
    """
    labels = os.fspath(labels) if isinstance(labels, os.PathLike) else labels
    location, column = split_column(labels) if isinstance(labels, str) else (labels, None)
    if isinstance(location, str) and location.lower().endswith(TABLES):
        texts = _from_table(Path(location), column, rows)
    elif isinstance(labels, str):
        texts = _texts(load_column(labels, len(rows), "labels").tolist())
    else:
        texts = _texts(load_column(np.asarray(labels, dtype=object), len(rows), "labels"))
    if all(text is None for text in texts):
        raise InputError("`labels` must contain a label for at least one of the rows; all are missing or blank.")
    return replace(rows, labels=texts)


def _from_table(path: Path, column: str | None, rows: Embeddings) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"`labels` must be TABLE:COLUMN; there is no file {path}.")
    table = read_table(path, "labels", ("id", *([column] if column else [])))
    for name in ("id", column):
        if table.column_names.count(name) > 1:
            raise InputError(f"`labels` {path} has more than one column {name!r}; column names must be unique.")
    if column is None or column not in table.column_names or column == "id":
        others = ", ".join(name for name in table.column_names if name != "id")
        raise InputError(
            f"`labels` must name a column as {path.name}:COLUMN, where COLUMN is one of {others}; got {column}."
        )
    values = _texts(table.column(column).to_pylist())
    if "id" not in table.column_names:
        if len(values) != len(rows):
            raise InputError(
                f"`labels` {path} has no column id, so it must have one entry per row ({len(rows)}); it has "
                f"{len(values)}."
            )
        return values
    if rows.ids is None:
        raise InputError(
            f"`labels` {path} has a column id, but the rows have no ids; pass their ids (`target_ids` or `source_ids`)."
        )
    ids = table.column("id").to_pylist()
    kept = [i for i, key in enumerate(ids) if key is not None]
    keys = np.array([str(ids[i]) for i in kept], dtype=object)
    check_unique(keys, "the table of labels")
    by_id = dict(zip(keys, values[kept], strict=True))
    if not any(key in by_id for key in rows.ids):
        first = f"the table has e.g. {keys[0]!r}" if len(keys) else "the table has none"
        raise InputError(f"`labels` {path} has none of the rows' ids ({first}, the rows {rows.ids[0]!r}).")
    return _texts([by_id.get(key) for key in rows.ids])


def _texts(values) -> np.ndarray:
    texts = np.empty(len(values), dtype=object)
    texts[:] = [as_text(value) for value in values]
    return texts


def as_text(value: Any) -> str | None:
    """Return a label or class as text, the same for 1 and 1.0; None if it is missing or blank."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return None
    if isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value):
        value = int(value)  # pandas stores whole numbers as floats if some are missing
    text = value.decode() if isinstance(value, bytes) else str(value)
    return text if text.strip() else None
