"""Weights of pairs, and which pairs are the user's own: columns of either side, files or arrays."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from repstitch.embeddings.columns import Column, open_column
from repstitch.embeddings.ids import IdColumn, object_column, texts
from repstitch.embeddings.pairs import Pairs
from repstitch.embeddings.reading import has_column
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike
from repstitch.embeddings.tables import read_column_with_ids
from repstitch.errors import InputError
from repstitch.files import check_file_exists, split_column, split_key
from repstitch.lines import read_lines

OWN = "own"  # the column of a file that says which of its pairs are the user's own
WEIGHT = "repstitch.weight"  # the name of weights that are attached; no column of a file is called so
YES, NO = ("true", "1", "yes"), ("false", "0", "no")


def columns_to_read(sources: Sequence[EmbeddingsLike], names: Sequence[object]) -> list[list[str]]:
    """Return the columns to read with each source: each of `names` that is one, from the first source that has it."""
    chosen: list[list[str]] = [[] for _ in sources]
    for name in names:
        owner = next((i for i, source in enumerate(sources) if has_column(source, name)), None)
        if owner is not None and name not in chosen[owner]:
            chosen[owner].append(str(name))
    return chosen


def attach_weights(rows: Embeddings, weight: Column, id_column: IdColumn | None = None) -> Embeddings:
    """Return the rows with weights that are no column of theirs: a column of a table, a file or an array."""
    if isinstance(weight, str) and not os.path.exists(Path(split_column(split_key(weight)[0])[0])):
        raise InputError(
            "`weight` must be a column of either side, TABLE:COLUMN, or a file or array with one weight per row; got "
            f"{weight!r}."
        )
    entries = open_column(weight, len(rows), "weight", rows.space.name, id_column)(slice(None), rows.ids)
    column = pa.array([None if entry is None else float(entry) for entry in entries.tolist()], pa.float64())
    table = pa.table({WEIGHT: column}) if rows.payload is None else rows.payload.append_column(WEIGHT, column)
    return replace(rows, payload=table)


def weights_of(pairs: Pairs, weight: Column | None) -> np.ndarray | None:
    """Return the weights (n,) of the pairs, float64, or None without `weight`.

    Raises InputError unless all are positive.
    """
    if weight is None:
        return None
    assert pairs.payload is not None
    name = weight if isinstance(weight, str) and weight in pairs.payload.column_names else WEIGHT
    try:
        weights = pairs.payload[name].cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"`weight` must be numbers; column {name!r} has {pairs.payload[name].type}.") from None
    if not (np.isfinite(weights) & (weights > 0)).all():
        row = int(np.argmin(np.isfinite(weights) & (weights > 0)))
        raise InputError(
            f"`weight` must be a positive number for every pair; that of {pairs.ids[row]!r} is {weights[row]}. Leave "
            "pairs that should not count out of the files."
        )
    return weights


def own_pairs(pairs: Pairs, own: Column) -> np.ndarray:
    """Return a mask (n,) of the pairs that are the user's own.

    `own` is a column of either side with yes or no for each row, or the ids of the own pairs: a text or `.npy` file, a
    column of a table as `table.csv:column`, or an array. Raises InputError if no pair is an own one.
    """
    if isinstance(own, str) and pairs.payload is not None and own in pairs.payload.column_names:
        is_own = _flags(pairs.payload[own], own)
    else:
        ids = _read_ids(own)
        is_own = np.isin(pairs.ids, ids)
        if not is_own.any():
            first = f"{ids[0]!r}" if len(ids) else "none"
            raise InputError(
                f"`own` has none of the pairs' ids (it has e.g. {first}, the pairs {pairs.ids[0]!r}); pass the ids of "
                "pairs, or a column of either side that says which are own."
            )
    if not is_own.any():
        raise InputError(f"`own` must mark at least one pair; column {own!r} marks none.")
    return is_own


def _flags(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Return a column of booleans, of 0 and 1, or of words such as true and no, as a mask (n,); empty means no."""
    if pa.types.is_boolean(column.type):
        return column.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    words = ["" if value is None else str(value).strip().lower() for value in column.to_pylist()]
    unknown = next((word for word in words if word not in (*YES, *NO, "")), None)
    if unknown is not None:
        raise InputError(f"Column {name!r} of `own` must say true or false for each row; got {unknown!r}.")
    return np.array([word in YES for word in words])


def _read_ids(own: Column) -> np.ndarray:
    if not isinstance(own, str | os.PathLike):
        ids = np.asarray(own)
    else:
        location, column = split_column(str(own))
        check_file_exists(location, "own", "the ids of the own pairs")
        if column is not None:
            table = read_column_with_ids(Path(location), column, "own")
            ids = object_column(table.column(0).to_pylist())
        elif location.endswith(".npy"):
            ids = np.load(location, allow_pickle=False)
        elif location.endswith((".parquet", ".csv", ".tsv")):
            raise InputError(f"`own` must name the column of ids as {location}:COLUMN.")
        else:
            ids = np.array(read_lines(location, "own"), dtype=object)
    if ids.ndim != 1 or ids.dtype.kind == "b":
        raise InputError(
            "`own` must be the ids of the own pairs (n,), or the name of a column that says which rows are own; got "
            f"{ids.dtype} of shape {ids.shape}."
        )
    return texts(ids, "`own`")
