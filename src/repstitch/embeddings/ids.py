"""Ids of rows: which column of a file contains them, and how they are written as text."""

import json
import logging
import re
import uuid
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from repstitch.errors import InputError, one_line

log = logging.getLogger(__name__)

IdColumn = str | Sequence[str]  # the name of the column of ids, or the names that it has in different files
NO_IDS = ()  # a value of `id_column`: no column contains ids
NAMES = ("id", "ids", "_id", "doc_id", "docid", "document_id", "item_id", "point_id", "row_id", "uuid", "guid")
LOOKS_LIKE_ID = re.compile(
    r"(^|[\W_])(id|ids|key|pk|uuid|guid|index)$|[a-z](Id|ID)s?$|^__index_level_\d+__$|^(Unnamed: 0)?$"
)
LONGEST_ID = 64
UUID_BYTES = 16


def choose_id_column(
    schema: pa.Schema,
    path: str,
    id_column: IdColumn | None = None,
    others: Collection[str] = (),
) -> str | None:
    """Return the name of the column that contains the ids of the rows, or None if no column does.

    It is the column that `id_column` names, else `id`, else the index that pandas names in the metadata, else the only
    column with one of NAMES, in any case. The columns `others` contain something else. Raises InputError if the file
    has none or several of the columns that `id_column` names, and if several columns have one of NAMES.
    """
    columns = [name for name in schema.names if name not in others]
    chosen = _choose(columns, schema, path, id_column)
    if columns.count(chosen) > 1:
        raise InputError(f"{path} has more than one column {chosen!r}; column names must be unique.")
    return chosen


def _choose(columns: list[str], schema: pa.Schema, path: str, id_column: IdColumn | None) -> str | None:
    if id_column == NO_IDS:
        return None
    if id_column is not None:
        names = [id_column] if isinstance(id_column, str) else list(id_column)
        present = [name for name in dict.fromkeys(names) if name in columns]
        if len(present) != 1:
            raise InputError(
                f"`id_column` must name one column of {path} ({', '.join(columns) or 'it has no other column'}); got "
                f"{', '.join(names)}."
            )
        return present[0]
    if "id" in columns:
        return "id"
    index = [name for name in _pandas_index(schema) if name in columns]
    flat = [field.name for field in schema if field.name in columns and not pa.types.is_nested(field.type)]
    named = index if len(index) == 1 else list(dict.fromkeys(name for name in flat if name.casefold() in NAMES))
    if len(named) > 1:
        raise InputError(
            f"{path} has several columns that may contain the ids: {', '.join(named)}; name one with `id_column`."
        )
    return named[0] if named else None


def say_id_column(column: str | None, path: str) -> None:
    """Log the column that was chosen, unless it is `id`."""
    if column not in (None, "id"):
        log.info("%s: the ids are those of column %r.", path, column)


def _pandas_index(schema: pa.Schema) -> list[str]:
    """Return the columns that contain the index of a pandas data frame. A range index is in none (`range_index`)."""
    try:
        index = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        return [name for name in index if isinstance(name, str)]
    except Exception:  # any program may write this metadata in any form
        return []


def choose_dimensions(table: pa.Table, path: str, ids: str | None, has_ids: bool, group: str | None) -> list[str]:
    """Return the names of the columns of numbers that are dimensions: none that is named like ids, and no index.

    Raises InputError if a column is named like ids, unless the rows have other ids. Logs a warning that names columns
    of different whole numbers among others.
    """
    index = _pandas_index(table.schema)
    columns = [name for name in table.column_names if name not in (ids, group, *index)]
    doubtful = [name for name in columns if name.casefold() in NAMES or LOOKS_LIKE_ID.search(name)]
    if doubtful and not has_ids:
        listed = " and ".join(repr(name) for name in doubtful)
        raise InputError(
            f"{path} must have a number per dimension, and column {listed} is named like ids; name the column of ids "
            "with `id_column`, or leave it out."
        )
    dimensions = [name for name in columns if name not in doubtful]
    whole = [name for name in dimensions if pa.types.is_integer(table[name].type)]
    for name in whole if len(whole) < len(dimensions) else ():
        if _looks_like_ids(name, table[name]):
            log.warning(
                "%s: column %r has different whole numbers and is read as a dimension; if it contains ids, name it "
                "with `id_column`.",
                path,
                name,
            )
    return dimensions


def range_index(schema: pa.Schema, n_rows: int) -> range | None:
    """Return the range that pandas saved as the index of these rows, or None if it saved no range of this length.

    Arrow keeps the metadata when it selects rows, so a range of another length is that of other rows.
    """
    try:
        (index,) = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        numbers = range(index["start"], index["stop"], index["step"])
        np.array([numbers.start, numbers.stop], np.int64)
        return numbers if len(numbers) == n_rows else None
    except Exception:  # any program may write this metadata in any form
        return None


def warn_of_unused_ids(rows: pa.Table, path: str) -> None:
    """Log a warning that names the columns that look like ids, for rows of which no column was read as ids.

    `rows` are the first rows, with the columns that contain nothing else.
    """
    columns = [name for name in rows.column_names if _looks_like_ids(name, rows[name])]
    if columns:
        listed = " or ".join(repr(name) for name in columns)
        log.warning(
            "%s: its rows have no ids and are numbered, but column %s may contain ids; if so, name it with "
            "`id_column`.",
            path,
            listed,
        )


def _looks_like_ids(name: str, column: pa.ChunkedArray) -> bool:
    """Return whether a column is named like ids, or has different whole numbers or short words in all of its rows."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (is_text or is_number or is_bytes(kind) or isinstance(kind, pa.BaseExtensionType)):
        return False
    if LOOKS_LIKE_ID.search(name) or isinstance(kind, pa.UuidType):
        return True
    if not (is_text or pa.types.is_integer(kind)) or column.null_count or len(column) < 2:
        return False
    entries = column.to_pylist()
    are_words = not is_text or all(len(entry) <= LONGEST_ID and len(entry.split()) == 1 for entry in entries)
    return are_words and len(set(entries)) == len(entries)


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a type is one of bytes."""
    types = pa.types
    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in kinds)


# --- as text ----------------------------------------------------------------------------------------------------------


def column_texts(column: pa.Array | pa.ChunkedArray, subject: str, first_row: int | None = None) -> np.ndarray:
    """Return the entries (n,) of an Arrow column as text. Messages call the column `subject`.

    A float always has a point or an exponent (7.0), bytes are UTF-8, and UUIDs have their usual 36 characters. Raises
    InputError if an entry is missing (null or NaN) or cannot be written as text. `first_row` is the number of the first
    row, if the entries are those of a part of the rows.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_uuid = isinstance(column.type, pa.UuidType)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if missing.any():
        count, first = int(missing.sum()), int(missing.argmax())
        where = f"{count} are missing (first: row {first})"
        if first_row is not None:
            where = f"row {first_row + first} has none"
        raise InputError(f"{subject} must have an entry in every row; {where}.")
    if is_uuid:
        return object_column(str(uuid.UUID(bytes=entry)) for entry in column.to_pylist())
    if pa.types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False).astype(str).astype(object)
    try:
        texts = column.cast(pa.string())
        texts.validate(full=True)
    except pa.ArrowInvalid:
        advice = f" Store {UUID_BYTES} bytes as a UUID." if column.type == pa.binary(UUID_BYTES) else ""
        raise InputError(f"{subject} must contain text; its bytes are not UTF-8.{advice}") from None
    except pa.ArrowNotImplementedError:
        raise InputError(f"{subject} must contain text or numbers; got {column.type}.") from None
    return texts.to_numpy(zero_copy_only=False).astype(object)


def texts(values: ArrayLike, subject: str, first_row: int | None = None) -> np.ndarray:
    """Return values (n,) as text, by the rules and with the arguments of `column_texts`."""
    array = np.asarray(values)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # Arrow has no other byte orders
    try:
        if array.dtype.kind != "O":
            return column_texts(pa.array(array), subject, first_row)
        try:
            return column_texts(pa.array(array, pa.string()), subject, first_row)
        except (pa.ArrowTypeError, pa.ArrowInvalid):  # not all of them are text
            return object_column(_text(value, row, subject) for row, value in enumerate(array, first_row or 0))
    except UnicodeError as error:
        text = getattr(error, "object", b"")
        raise InputError(f"{subject} must contain text in Unicode; {text[:40]!r} is not.") from None
    except InputError:
        raise
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:  # Python limits the digits of integers
        raise InputError(f"{subject} must contain text or numbers; got {array.dtype}: {one_line(error)}") from None


def _text(value: Any, row: int, subject: str) -> str:
    """Return one Python object as text."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)  # Arrow's integers end at 64 bits
    entry = pa.array([value], from_pandas=True)
    if entry.null_count:
        raise InputError(f"{subject} must have an entry in every row; row {row} has none.")
    return column_texts(entry, subject)[0]


def object_column(entries: Iterable[Any]) -> np.ndarray:
    """Return the entries as an array (n,) of objects."""
    listed = list(entries)
    column = np.empty(len(listed), dtype=object)
    column[:] = listed
    return column


def without_views(table: pa.Table) -> pa.Table:
    """Return the table with views of text as plain text, because Arrow cannot select rows of views."""
    types = [pa.string() if pa.types.is_string_view(field.type) else field.type for field in table.schema]
    return table.cast(pa.schema([field.with_type(kind) for field, kind in zip(table.schema, types, strict=True)]))


def type_on_the_way_out(kind: pa.DataType | None) -> pa.DataType:
    """Return the Arrow type in which ids of this type are written: the same, or text if text cannot be cast to it."""
    if kind is None or isinstance(kind, pa.BaseExtensionType):
        return pa.string()
    try:
        pa.array([], pa.string()).cast(with_room(kind))
    except pa.ArrowNotImplementedError:
        return pa.string()
    return with_room(kind)


def with_room(kind: pa.DataType) -> pa.DataType:
    """Return the type with indices of 32 bits if it has a dictionary: 8 bits are too few for that of several files."""
    return pa.dictionary(pa.int32(), kind.value_type, kind.ordered) if pa.types.is_dictionary(kind) else kind
