"""Attach labels to rows, matching them by id or by position."""

import math
import os
from dataclasses import replace
from typing import Any

import numpy as np

from repstitch.embeddings.columns import open_column
from repstitch.embeddings.ids import IdColumn
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError
from repstitch.files import TABLES, split_column


def label(rows: Embeddings, labels, id_column: IdColumn | None = None) -> Embeddings:
    """Return the rows with one label each, as text. A label that is missing, blank or NaN becomes None.

    `labels` is a column of a table, `table.parquet:column` (or .csv, .tsv). Labels are matched by id if the table has
    ids, in the column `id_column` if it has it (see `ids.choose_id_column`). Otherwise they must have one entry per row
    in the rows' order: a table without ids, a text file, a `.npy`, `file.npz:key` or an array. Whole numbers become the
    same text in every number type (1 and 1.0 become "1"). Raises InputError if no row gets a label, on repeated ids, on
    a table with ids for rows without ids, and on a wrong number of entries.
    """
    if isinstance(labels, str | os.PathLike):
        labels = os.fspath(labels)
        if split_column(labels)[1] == "id":
            raise InputError(f"`labels` must name a column of classes as TABLE:COLUMN; {labels} names the ids.")
        if labels.lower().endswith(TABLES):
            labels += ":"  # without a column, which is refused
    else:
        labels = np.asarray(labels, dtype=object)
    entries = open_column(labels, len(rows), "labels", id_column=id_column)(slice(None), rows.ids)
    texts = np.empty(len(rows), dtype=object)
    texts[:] = [as_text(value) for value in entries.tolist()]
    if all(text is None for text in texts):
        raise InputError("`labels` must contain a label for at least one of the rows; all are missing or blank.")
    return replace(rows, labels=texts)


def as_text(value: Any) -> str | None:
    """Return a label or class as text, the same for 1 and 1.0; None if it is missing or blank."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return None
    if isinstance(value, float | np.floating) and math.isfinite(value) and value == int(value):
        value = int(value)  # pandas stores whole numbers as floats if some are missing
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise InputError(f"A label must be text in UTF-8; got {value[:40]!r}.") from None
    text = str(value)
    return text if text.strip() else None
