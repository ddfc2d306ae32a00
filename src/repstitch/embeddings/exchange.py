"""Read embeddings from the CSV and JSON files that databases export, and write them to files of every format.

In CSV, a vector is text such as `[0.1,0.2]`, as pgvector writes it, or each of its numbers has a column. In lines of
JSON, it is a list. A JSON document is a list of such objects, or the reply to a scroll request of Qdrant.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from repstitch.embeddings.arrow_tables import VECTOR
from repstitch.embeddings.ids import IdColumn, choose_id_column
from repstitch.embeddings.rows import SPACE_KEY, Embeddings
from repstitch.embeddings.tables import read_schema, read_table
from repstitch.errors import InputError, one_line
from repstitch.files import check_new, written_whole

LINES_OF_JSON = (".jsonl", ".ndjson")
READ_FORMATS = (".csv", ".tsv", *LINES_OF_JSON, ".json")
WRITTEN_FORMATS = (".parquet", ".arrow", ".npy", ".npz", ".csv", *LINES_OF_JSON)
BRACKETS = "[](){} "


def read_text_table(path: Path, column: str | None = None, id_column: IdColumn | None = None) -> pa.Table:
    """Return the rows of a CSV or JSON file as a table whose column `vector` contains lists of floats.

    `column` is the column of the vectors in the file, by default `vector`. A CSV file without it must have a number per
    column. The ids of a CSV file, chosen by `choose_id_column`, are read as text. The fields of the object `payload` of
    a point become columns. Raises InputError, naming the row, if the file cannot be read.
    """
    try:
        suffix = path.suffix.lower()
        if suffix in (".csv", ".tsv"):
            return _read_csv(path, column, id_column)
        return _table(_lines(path) if suffix in LINES_OF_JSON else _document(path), path, column)
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
    table = read_table(path, "embeddings", [name] if ids is None else [name, ids])
    if name not in schema.names:
        return table
    return table.drop_columns([name]).append_column(VECTOR, _parse_vectors(table.column(name).combine_chunks(), path))


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
    return pa.ListArray.from_arrays(lists.offsets, numbers, mask=lists.is_null())


# --- JSON -------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse(line, f"line {number} of {path}")


def _document(path: Path) -> Iterator[Any]:
    content = _parse(path.read_text(encoding="utf-8-sig"), str(path))
    for key in ("result", "points"):
        if isinstance(content, dict) and key in content:
            content = content[key]
    if not isinstance(content, list):
        raise InputError(f"{path} must contain a list of points, or the reply to a scroll request of Qdrant.")
    yield from content


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {one_line(error)}") from None


def _table(points: Iterator[Any], path: Path, column: str | None) -> pa.Table:
    vectors, columns, n = [], {}, 0
    for n, point in enumerate(points, 1):
        name = f"Row {n - 1} of {path}"
        if not isinstance(point, dict):
            raise InputError(f"{name} must be a JSON object; got {type(point).__name__}.")
        payload = point.pop("payload", None)
        if isinstance(payload, dict):
            point |= {f"payload.{key}" if key in point else key: value for key, value in payload.items()}
        vectors.append(_vector(point, column, name))
        for key, value in point.items():
            columns.setdefault(key, [None] * (n - 1)).append(value)
        for values in columns.values():
            values.extend([None] * (n - len(values)))
    table = {name: _column(values) for name, values in columns.items()}
    return pa.table(table | {VECTOR: pa.array(vectors, pa.list_(pa.float32()))})


def _vector(fields: dict[str, Any], column: str | None, name: str) -> np.ndarray | None:
    """Remove the vector from the fields of a point, and return it. A point may have several named vectors."""
    source = column if column in fields else VECTOR
    if source not in fields:
        raise InputError(f"{name} has no {source!r}; its fields are: {', '.join(fields)}.")
    value = fields.pop(source)
    if isinstance(value, dict):
        key = column if column in value else next(iter(value)) if len(value) == 1 else None
        if key is None:
            raise InputError(f"{name} has several vectors ({', '.join(value)}); name one after the path, with a colon.")
        value = value[key]
    if value is None:
        return None
    try:
        vector = np.array(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        vector = np.zeros((0, 0))
    if vector.ndim != 1:
        raise InputError(f"{name} must have a list of numbers in {source!r}.")
    return vector


def _column(values: list[Any]) -> pa.Array:
    """Return values as a column. Values of several types become text, numbers without quotes."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values])


# --- writing ----------------------------------------------------------------------------------------------------------


def write_as(out: Path, embeddings: Embeddings, id_type: pa.DataType) -> list[Path]:
    """Write embeddings in the format that the ending of `out` names, and return the files.

    An `.npy` file gets a file `NAME.ids.txt` beside it if the rows have ids. Raises InputError if a file exists, if an
    id does not fit in a line of text, or if a vector with NaN or Inf would be written as text.
    """
    ids = None if embeddings.ids is None else pa.array(embeddings.ids, pa.string())
    if out.suffix == ".npy":
        return _write_npy(out, embeddings)
    if out.suffix == ".npz":
        with written_whole(check_new(out)) as path:
            if ids is None:
                np.savez(path, vector=embeddings.vectors)
            else:
                np.savez(path, vector=embeddings.vectors, ids=np.asarray(embeddings.ids).astype(str))
        return [out]
    is_text = out.suffix not in (".parquet", ".arrow")
    columns = {} if ids is None else {"id": ids.cast(id_type)}
    columns[VECTOR] = _vector_texts(embeddings) if is_text else _vector_lists(embeddings.vectors)
    table = pa.table(columns)
    payload = pa.table({}) if embeddings.payload is None else embeddings.payload
    for field, values in zip(payload.schema, payload.columns, strict=True):
        table = table.append_column(field, values)
    if embeddings.declared and not is_text:
        table = table.replace_schema_metadata({SPACE_KEY: embeddings.space.to_json()})
    with written_whole(check_new(out)) as path:
        WRITERS[out.suffix](table, path)
    return [out]


def _write_npy(out: Path, embeddings: Embeddings) -> list[Path]:
    files = [check_new(out)]
    if embeddings.ids is not None:
        files.append(check_new(out.with_name(f"{out.stem}.ids.txt")))
        broken = next((key for key in embeddings.ids if "\n" in key or key.endswith("\r")), None)
        if broken is not None:
            raise InputError(f"`out` must not end in .npy, because the id {broken!r} has a line break; use .npz.")
        with written_whole(files[1]) as path:
            path.write_text("".join(f"{key}\n" for key in embeddings.ids), encoding="utf-8", newline="")
    with written_whole(out) as path:
        np.save(path, embeddings.vectors)
    return files


def _vector_lists(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])


def _vector_texts(embeddings: Embeddings) -> pa.Array:
    """Return vectors as text such as `[0.1,0.2]`, with as many digits as each number needs; a row of NaN is null."""
    missing = np.asarray(np.isnan(embeddings.vectors).all(axis=1))
    unfit = ~missing & ~np.isfinite(embeddings.vectors).all(axis=1)
    if unfit.any():
        raise InputError(f"`out` is a text file, which cannot contain NaN or Inf (first: row {int(unfit.argmax())}).")
    numbers = pa.array(np.ascontiguousarray(embeddings.vectors, dtype=np.float32).reshape(-1)).cast(pa.string())
    offsets = np.arange(len(missing) + 1, dtype=np.int64) * embeddings.vectors.shape[1]
    joined = pc.call_function("binary_join", [pa.LargeListArray.from_arrays(offsets, numbers), pa.scalar(",")])
    texts = [f"[{text}]" for text in joined.to_pylist()]
    return pa.array(texts, pa.string(), mask=missing)


def _write_json_lines(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for batch in table.to_batches(max_chunksize=1024):
            vectors = batch.column(VECTOR).to_pylist()
            for row, vector in zip(batch.drop_columns([VECTOR]).to_pylist(), vectors, strict=True):
                fields = json.dumps(row, ensure_ascii=False, default=str)[:-1]
                file.write(f'{fields}{", " if row else ""}"{VECTOR}": {vector or "null"}}}\n')


def _write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _write_csv(table: pa.Table, path: Path) -> None:
    """Write a table as CSV. Values that are no text or numbers, such as lists, are written as JSON."""
    flat = [
        pa.array([None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in column.to_pylist()])
        if pa.types.is_nested(column.type)
        else column
        for column in table.columns
    ]
    pacsv.write_csv(pa.table(flat, table.column_names), path)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": lambda table, path: pq.write_table(table, path),
    ".arrow": _write_arrow,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".ndjson": _write_json_lines,
}
