"""Write embeddings to files of every format, a batch of rows at a time."""

import filecmp
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from repstitch.embeddings.arrow_tables import VECTOR
from repstitch.embeddings.ids import is_bytes
from repstitch.embeddings.parts import write_arrow_file
from repstitch.embeddings.plain_types import plain
from repstitch.embeddings.rows import Embeddings, Scan
from repstitch.errors import InputError, one_line
from repstitch.files import check_new, ids_beside, written_whole
from repstitch.spaces import SPACE_KEY

WRITTEN_FORMATS = (".parquet", ".arrow", ".npy", ".npz", ".csv", ".jsonl", ".ndjson")


def write_as(out: Path, opened: Scan) -> None:
    """Write the rows of a scan, a batch at a time, in the format that the ending of `out` names.

    An `.npy` file gets a file `NAME.ids.txt` beside it if the rows have ids. Raises InputError if a file exists, if
    there are no rows, if an id does not fit in a line of text, or if a vector with NaN or Inf would be written as text.
    """
    with written_whole(check_new(out)) as path, fitting_columns(out):
        if out.suffix == ".npy":
            batches = ((batch.ids, batch.vectors) for _, batch in _batches(opened))
            write_array(batches, opened.n_rows, path, out if opened.has_ids else None)
        elif out.suffix == ".npz":
            rows = opened.read()
            arrays: Any = {} if rows.ids is None else {"ids": _unicode(rows.ids)}
            np.savez(path, vector=rows.vectors, **arrays)
        else:
            is_text = out.suffix not in (".parquet", ".arrow")
            WRITERS[out.suffix]((_table_of(batch, first, opened, is_text) for first, batch in _batches(opened)), path)
        check_new(out)  # another process may have created it in the meantime


@contextmanager
def fitting_columns(out: Path) -> Iterator[None]:
    """Convert an error of a writer that cannot write a type, such as a struct without fields, to an InputError."""
    try:
        yield
    except pa.ArrowException as error:
        raise InputError(
            f"`out` {out.name} cannot contain all of the columns: {one_line(error)} Name the `columns` to copy, or use "
            ".arrow."
        ) from None


def _batches(opened: Scan) -> Iterator[tuple[int, Embeddings]]:
    """Yield all rows in batches, each with the number of its first row.

    Raises InputError if there are none, or another number than when the file was opened.
    """
    if not opened.n_rows:
        raise InputError(f"{opened.path} has no rows; it must have at least one vector.")
    n_rows = 0
    for batch in opened.batches():
        yield n_rows, batch
        n_rows += len(batch)
    if n_rows != opened.n_rows:
        raise InputError(f"{opened.path} must have {opened.n_rows} rows, but {n_rows} were read; it has changed.")


def _table_of(batch: Embeddings, first: int, opened: Scan, is_text: bool) -> pa.Table:
    columns = {} if batch.ids is None else {"id": pa.array(batch.ids, pa.string()).cast(opened.id_type)}
    columns[VECTOR] = _vector_texts(batch.vectors, first) if is_text else _vector_lists(batch.vectors)
    table = pa.table(columns)
    payload = pa.table({}) if batch.payload is None else batch.payload
    for field, values in zip(payload.schema, payload.columns, strict=True):
        table = table.append_column(field, values)
    has_card = opened.declared and not is_text
    return table.replace_schema_metadata({SPACE_KEY: opened.space.to_json()} if has_card else None)


def _unicode(ids: Any) -> np.ndarray:
    """Return ids as NumPy's text, which would drop a NUL character from the end of one."""
    cut = next((key for key in ids if key.endswith("\0")), None)
    if cut is not None:
        raise InputError(f"`out` must not end in .npz, because the id {cut!r} ends with a NUL character; use .parquet.")
    return np.asarray(ids).astype(str)


def write_array(batches: Iterator[tuple[Any, np.ndarray]], n_rows: int, path: Path, out: Path | None) -> None:
    """Write batches of ids and vectors to the .npy file `path`, which will be renamed to `out`, and the ids beside it.

    Without `out`, no ids are written. The ids appear complete, and before the array. Raises InputError if `out` exists,
    or a file of other ids beside it.
    """
    if out is None:
        _write_rows(batches, n_rows, path, None)
        return
    ids_file = ids_beside(out)
    with written_whole(ids_file) as lines_path:
        with lines_path.open("w", encoding="utf-8", newline="") as lines:
            _write_rows(batches, n_rows, path, lines)
        check_new(out)
        if not (os.path.isfile(ids_file) and filecmp.cmp(lines_path, ids_file, shallow=False)):
            check_new(ids_file)  # the same ids are those of a run that was killed before it renamed the array


def _write_rows(batches: Iterator[tuple[Any, np.ndarray]], n_rows: int, path: Path, lines: TextIO | None) -> None:
    with path.open("wb") as file:
        for number, (ids, vectors) in enumerate(batches):
            if number == 0:
                header = {"descr": vectors.dtype.str, "fortran_order": False, "shape": (n_rows, vectors.shape[1])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(vectors).data)
            if lines is not None:
                lines.write(_id_lines(ids, is_first=number == 0))
        file.flush()
        os.fsync(file.fileno())  # so that the ids do not appear if the disk is full


def check_lines(ids: Any) -> None:
    """Raise InputError if an id cannot be a line of the file of ids beside an .npy file."""
    broken = next((key for key in ids if "\n" in key or key.endswith("\r")), None)
    if broken is not None:
        raise InputError(f"`out` must not end in .npy, because the id {broken!r} has a line break; use .parquet.")


def _id_lines(ids: Any, is_first: bool) -> str:
    check_lines(ids)
    # The reader takes one byte order mark from the start, which must not be that of the first id.
    mark = "\ufeff" if is_first and ids[0].startswith("\ufeff") else ""
    return mark + "".join(f"{key}\n" for key in ids)


def _vector_lists(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])


def _vector_texts(vectors: np.ndarray, first: int) -> pa.Array:
    """Return vectors as text such as `[0.1,0.2]`, with as many digits as each number needs; a row of NaN is null."""
    missing = np.asarray(np.isnan(vectors).all(axis=1))
    unfit = ~missing & ~np.isfinite(vectors).all(axis=1)
    if unfit.any():
        raise InputError(
            f"`out` is a text file, which cannot contain NaN or Inf (first: row {first + int(unfit.argmax())})."
        )
    numbers = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)).cast(pa.string())
    offsets = np.arange(len(missing) + 1, dtype=np.int64) * vectors.shape[1]
    joined = pc.call_function("binary_join", [pa.LargeListArray.from_arrays(offsets, numbers), pa.scalar(",")])
    texts = [f"[{text}]" for text in joined.to_pylist()]
    return pa.array(texts, pa.string(), mask=missing)


def _write_parquet(tables: Iterator[pa.Table], path: Path) -> None:
    _write_tables(tables, lambda schema: pq.ParquetWriter(path, schema))


def write_arrow(tables: Iterator[pa.Table], path: Path) -> None:
    """Write tables in Arrow's file layout. Tables with categories, which a file has only once, are joined first."""
    first = next(tables)
    if any(_has_categories(kind) for kind in first.schema.types):
        write_arrow_file(pa.concat_tables([first, *tables]), path)
    else:
        _write_tables(chain([first], tables), lambda schema: pa.ipc.new_file(str(path), schema))


def _has_categories(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or any(_has_categories(kind.field(i).type) for i in range(kind.num_fields))


def _write_csv(tables: Iterator[pa.Table], path: Path) -> None:
    """Write tables as CSV. Lists and objects are written as JSON, bytes and UUIDs as text."""
    flat = (pa.table([_flat(column) for column in table.columns], table.column_names) for table in tables)
    _write_tables(flat, lambda schema: pacsv.CSVWriter(str(path), schema))


def _write_tables(tables: Iterator[pa.Table], open_writer: Callable[[pa.Schema], Any]) -> None:
    """Write tables of one schema."""
    first = next(tables)
    with open_writer(first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def _write_json_lines(tables: Iterator[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for table in tables:
            vectors = table.column(VECTOR).to_pylist()
            for row, vector in zip(_values(table.drop_columns([VECTOR])), vectors, strict=True):
                fields = _json(row)[:-1]
                file.write(f'{fields}{", " if row else ""}"{VECTOR}": {vector or "null"}}}\n')


def _values(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as Python's values. Raises InputError on durations that Python cannot represent."""
    try:
        return plain(table).to_pylist()
    except ValueError as error:
        raise InputError(
            f"`out` is a text file, which cannot contain all of the columns: {one_line(error)} Name the `columns` to "
            "copy."
        ) from None


def _json(value: Any) -> str:
    """Return a value as JSON. NaN, which JSON lacks, is null. Raises InputError on Inf, and on bytes not in UTF-8."""
    try:
        return json.dumps(_plain(value), ensure_ascii=False, default=str, allow_nan=False)
    except UnicodeDecodeError:
        raise InputError(
            "`out` is a text file, which cannot contain bytes that are not UTF-8; name the `columns` to copy."
        ) from None
    except ValueError:
        raise InputError("`out` is a text file, which cannot contain Inf; name the `columns` to copy.") from None


def _plain(value: Any) -> Any:
    """Return a value with bytes as text and NaN as None, at any depth."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    kind = column.type
    if pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if not pa.types.is_nested(kind) and not is_bytes(kind) and not isinstance(kind, pa.BaseExtensionType):
        return column
    values = (row[""] for row in _values(pa.table([column], [""])))
    texts = (None if value is None else _json(value) for value in values)
    return pa.array([text if text is None or text[0] != '"' else json.loads(text) for text in texts], pa.string())


WRITERS: dict[str, Callable[[Iterator[pa.Table], Path], None]] = {
    ".parquet": _write_parquet,
    ".arrow": write_arrow,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".ndjson": _write_json_lines,
}
