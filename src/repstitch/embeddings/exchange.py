"""Read embeddings from the CSV and JSON files that databases export.

In CSV, a vector is text such as `[0.1,0.2]`, as pgvector writes it, or each of its numbers has a column. In lines of
JSON, it is a list. A JSON document is a list of such objects, or the reply to a scroll request of Qdrant.
"""

import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repstitch.embeddings.arrow_tables import VECTOR
from repstitch.embeddings.ids import IdColumn, choose_id_column
from repstitch.embeddings.tables import read_schema, read_table
from repstitch.errors import InputError, one_line

LINES_OF_JSON = (".jsonl", ".ndjson")
BRACKETS = "[](){} "
MAY_OVERFLOW = re.compile(r"[eE]\+?\d{3}|\d{300}")  # in all numbers beyond the range of floats, and in some others
EXACT_INTEGERS = 2**53  # float64 represents all integers up to this one exactly

log = logging.getLogger(__name__)


def read_text_table(path: Path, column: str | None = None, id_column: IdColumn | None = None) -> pa.Table:
    """Return the rows of a CSV or JSON file as a table whose column `vector` contains lists of floats.

    `column` is the column of the vectors in the file, by default `vector`. A CSV file without it must have a number per
    column. The ids of a CSV file, chosen by `choose_id_column`, are read as text, and so is a column beside vectors
    unless its texts are those of numbers, truth values or dates. The fields of the object `payload` of a point become
    columns. A point without the vector `column` among its named vectors has no vector. Raises InputError, naming the
    row, if the file cannot be read.
    """
    try:
        suffix = path.suffix.lower()
        if suffix in (".csv", ".tsv"):
            return _read_csv(path, column, id_column)
        return _table(_lines(path) if suffix in LINES_OF_JSON else _document(path), path, column, id_column)
    except InputError:
        raise
    except Exception as error:  # the readers of damaged files raise nearly every exception
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None


# --- CSV --------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, column: str | None, id_column: IdColumn | None) -> pa.Table:
    schema, name = read_schema(path, "embeddings"), column or VECTOR
    if column is not None and column not in schema.names:
        raise InputError(f"{path} has no column {column!r}; its columns are: {', '.join(schema.names)}.")
    ids = choose_id_column(schema, str(path), id_column, others=(name,))
    if name not in schema.names:
        table = read_table(path, "embeddings", [] if ids is None else [ids])
        for numbers in table.columns:
            if pa.types.is_floating(numbers.type):
                _check_float32(numbers.to_numpy(), path)
        return table
    table = read_table(path, "embeddings", schema.names)
    further = {other: table[other] if other == ids else _typed(table[other]) for other in schema.names if other != name}
    return pa.table(_without_vector(further, path) | {VECTOR: _parse_vectors(table[name].combine_chunks(), path)})


def _typed(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts as numbers, truth values or dates if these are written exactly so, and else unchanged.

    An empty text is null in a column of another type. 01234 and NA stay text.
    """
    is_empty = pc.call_function("equal", [texts, pa.scalar("")])
    present = pc.call_function("if_else", [is_empty, pa.scalar(None, pa.string()), texts])
    for kind in (pa.int64(), pa.float64(), pa.bool_(), pa.date32()) if present.null_count < len(present) else ():
        try:
            values = present.cast(kind)
        except pa.ArrowInvalid:
            continue
        if values.cast(pa.string()).equals(present):
            return values
    return texts


def _without_vector(columns: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the columns beside the vectors. A further column called `vector` is left out with a warning."""
    if VECTOR in columns:
        log.warning("%s: its column 'vector' is not copied, because the output's column 'vector' has others.", path)
    return {name: values for name, values in columns.items() if name != VECTOR}


def _parse_vectors(texts: pa.Array, path: Path) -> pa.Array:
    """Return vectors that are written as text, such as `[0.1,0.2]`, as lists. An empty text is no vector."""
    bare = pc.call_function("utf8_trim", [texts], pc.TrimOptions(BRACKETS))
    is_empty = pc.call_function("equal", [bare, pa.scalar("")])
    lists = pc.call_function(
        "split_pattern",
        [pc.call_function("if_else", [is_empty, pa.scalar(None, pa.string()), bare])],
        pc.SplitPatternOptions(","),
    )
    try:
        numbers = pc.call_function("utf8_trim", [lists.values], pc.TrimOptions(" ")).cast(pa.float32())
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} must have vectors such as [0.1,0.2]; {one_line(error)}.") from None
    _check_float32(numbers.to_numpy(zero_copy_only=False), path)
    return pa.ListArray.from_arrays(lists.offsets, numbers, mask=lists.is_null())


def _check_float32(numbers: np.ndarray, path: Path) -> None:
    if (np.abs(numbers) > np.finfo(np.float32).max).any():
        raise InputError(f"{path} must have finite numbers that float32 can represent in its vectors.")


# --- JSON -------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse(line, f"line {number} of {path}")


def _document(path: Path) -> Iterator[Any]:
    content = _parse(path.read_text(encoding="utf-8-sig"), str(path))
    for key in ("result", "points"):
        _check_last_page(content, path)
        if isinstance(content, dict) and key in content:
            content = content[key]
    if not isinstance(content, list):
        raise InputError(f"{path} must contain a list of points, or the reply to a scroll request of Qdrant.")
    yield from content


def _check_last_page(content: Any, path: Path) -> None:
    """Raise InputError if a reply to a scroll request of Qdrant states that more points follow."""
    following = content.get("next_page_offset") if isinstance(content, dict) else None
    if following is not None:
        raise InputError(
            f"{path} must contain all points, but it is one page of them: the next begins at `next_page_offset` "
            f"{following!r}. Scroll with a larger `limit`, or join the points of all pages in one list."
        )


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text, parse_float=_finite if MAY_OVERFLOW.search(text) else None)
    except OverflowError as error:
        raise InputError(f"{name} must have numbers that floats can represent; got {error}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {one_line(error)}") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise OverflowError(digits[:40])
    return number


def _table(points: Iterator[Any], path: Path, column: str | None, id_column: IdColumn | None) -> pa.Table:
    vectors, columns, sources, n = [], {}, {}, 0
    for n, point in enumerate(points, 1):
        name = f"Row {n - 1} of {path}"
        if not isinstance(point, dict):
            raise InputError(f"{name} must be a JSON object; got {type(point).__name__}.")
        taken = {VECTOR, *point}
        vector, source = _vector(point, column, name)
        vectors.append(vector)
        if vector is not None:
            sources.setdefault(source, n - 1)
        if isinstance(point.get("payload"), dict):
            payload = point.pop("payload")
            point |= {f"payload.{key}" if key in taken else key: value for key, value in payload.items()}
        for key, value in point.items():
            columns.setdefault(key, [None] * (n - 1)).append(value)
        for values in columns.values():
            values.extend([None] * (n - len(values)))
    if column is None and len(sources) > 1:
        listed = ", ".join(f"{source!r} in row {row}" for source, row in sources.items())
        raise InputError(f"{path} has vectors of several names ({listed}); name one after the path, with a colon.")
    if column is not None and n and not sources:
        raise InputError(f"{path} has no vector {column!r}; its fields are: {', '.join(columns)}.")
    further = _without_vector(columns, path)
    ids = choose_id_column(pa.schema([(key, pa.null()) for key in further]), str(path), id_column)
    table = {name: _column(values, name == ids) for name, values in further.items()}
    return pa.table(table | {VECTOR: pa.array(vectors, pa.list_(pa.float32()))})


def _vector(fields: dict[str, Any], column: str | None, name: str) -> tuple[np.ndarray | None, str]:
    """Remove the vector from the fields of a point, and return it with its name.

    A point may have several named vectors. Without the one called `column` among them, it has no vector.
    """
    several = isinstance(fields.get(VECTOR), dict)
    source = column if column is not None and (column in fields or not several) else VECTOR
    if source not in fields:
        raise InputError(f"{name} has no {source!r}; its fields are: {', '.join(fields)}.")
    value, key = fields.pop(source), source
    if isinstance(value, dict):
        if column is not None and (column in value or column != source):
            key = column
        elif len(value) <= 1:
            key = next(iter(value), source)
        else:
            raise InputError(f"{name} has several vectors ({', '.join(value)}); name one after the path, with a colon.")
        value = value.get(key)
    if value is None:
        return None, key
    try:
        vector = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        vector = np.zeros((0, 0))
    if vector.ndim != 1:
        raise InputError(f"{name} must have a list of numbers in {source!r}.")
    if (np.abs(vector) > np.finfo(np.float32).max).any():
        raise InputError(f"{name} must have finite numbers that float32 can represent in {source!r}.")
    return vector.astype(np.float32), key


def _column(values: list[Any], is_ids: bool) -> pa.Array:
    """Return values as a column. Values of several types become text, numbers without quotes.

    Whole numbers and others are of one type unless they are ids, or are not all exact as floats.
    """
    kinds = {type(value) for value in values}
    whole = [value for value in values if type(value) is int] if kinds >= {int, float} else []
    if whole and (is_ids or max(map(abs, whole)) > EXACT_INTEGERS):
        return _as_text(values)
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # the values have no type in common
        return _as_text(values)


def _as_text(values: list[Any]) -> pa.Array:
    return pa.array([v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values])
