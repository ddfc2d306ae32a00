"""Open a table of LanceDB: its path, its columns, and the errors of its driver as sentences."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import LanceFragment

from repstitch.addresses import Address
from repstitch.errors import InputError, one_line
from repstitch.stores.arrow_columns import is_vectors
from repstitch.text import nearest

TRIES = 30  # of a commit that conflicts with those of other programs
IDS_AT_ONCE = 1000  # in one condition
LONGEST_WAIT = 0.5  # seconds between two of them
DRIVER_ERRORS = (OSError, ValueError, RuntimeError, NotImplementedError)
ENDING = ".lance"
READ_AHEAD_BYTES = 2**24  # by default, Lance reads 2 GiB ahead

T = TypeVar("T")


def table_path(address: Address) -> Path:
    """Return the folder of the table at an address. Raises InputError, which lists the tables, if there is none."""
    database = Path(address.locator)
    if "://" in address.locator:
        raise InputError(f"{address} must be the path of a local folder; remote databases are not supported.")
    if not database.is_dir():
        raise InputError(
            f"{address} must name the folder of a LanceDB database; there is no folder {database.absolute()}."
        )
    names = list(address.table_parts())
    path = database / f"{names[-1]}{ENDING}"
    if len(names) > 1 or not path.is_dir():
        tables = sorted(folder.name.removesuffix(ENDING) for folder in database.glob(f"*{ENDING}") if folder.is_dir())
        near = nearest(names[-1], tables)
        raise InputError(
            f"There is no table {address.table!r} in {database}"
            + (f"; did you mean {near[0]}?" if near else ".")
            + (f" Its tables are: {', '.join(tables)}." if tables else " It has no tables.")
            + (" Put a name that contains a dot into double quotes." if len(names) > 1 else "")
        )
    return path


def open_latest(path: Path) -> lance.LanceDataset:
    """Open the latest version of a table. Raises InputError if it cannot be opened."""
    with explained(f"{path} cannot be opened as a table of LanceDB"):
        return lance.dataset(os.fspath(path))


def count_where(rows: lance.LanceDataset | LanceFragment, condition: str) -> int:
    """Return the number of rows of a version, or of a fragment, for which a condition holds, in little memory."""
    scanner = rows.scanner(
        columns=[], with_row_id=True, filter=condition, batch_readahead=2, io_buffer_size=READ_AHEAD_BYTES
    )
    return scanner.count_rows()


def quoted(name: str) -> str:
    """Return a column's name for a filter, in which upper case and spaces need quotes."""
    if "`" in name:
        raise InputError(
            f"A column must have a name without backticks, which no filter of LanceDB can name; got {name!r}."
        )
    return f"`{name}`"


def literal(key: str, kind: pa.DataType) -> str:
    """Return an id, which is text, as a literal of SQL for a column of this type."""
    if pa.types.is_integer(kind):
        try:
            limits, number = np.iinfo(kind.to_pandas_dtype()), int(key)
        except ValueError:
            return "null"  # no row has this id
        return key if str(number) == key and limits.min <= number <= limits.max else "null"
    return "'" + key.replace("'", "''") + "'"


def id_conditions(schema: pa.Schema, id_column: str, ids: Sequence[str]) -> Iterator[str]:
    """Yield conditions that select the rows with these ids, some ids at a time: at least one condition."""
    kind = schema.field(id_column).type
    for at in range(0, max(1, len(ids)), IDS_AT_ONCE):
        keys = ", ".join(literal(key, kind) for key in ids[at : at + IDS_AT_ONCE])
        yield f"{quoted(id_column)} in ({keys or 'null'})"


def choose_id(schema: pa.Schema, name: str | None, place: str) -> str:
    """Return the column of ids: the one named, else `id`. Raises InputError if it is missing or has another type."""
    chosen = name or "id"
    if chosen not in schema.names:
        advice = "name another with id=" if name else "name the column of ids with id="
        raise InputError(f"{place} has no column {chosen!r}; {advice}. Its columns are: {listed(schema)}.")
    kind = schema.field(chosen).type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"Column {chosen!r} of {place} must have whole numbers or text as ids; it has {kind}.")
    return chosen


def choose_vector(schema: pa.Schema, name: str | None, place: str, left_out: set[str], moved: set[str]) -> str:
    """Return the column of vectors: the one named, else the only one beside those in `left_out`.

    `moved` are the columns that jobs move and that are gone; one is chosen if it is named or if there is no other, so
    that its job can be cleaned up. Raises InputError if there is none or several, or if the named one does not contain
    vectors.
    """
    columns = [field.name for field in schema if is_vectors(field.type)]
    if name is None:
        rest = [column for column in columns if column not in left_out]
        if not rest and len(moved) == 1:
            return next(iter(moved))
        if len(rest) != 1:
            what = f"several columns of vectors ({', '.join(rest)})" if rest else "no column of vectors"
            raise InputError(f"{place} has {what}; name one with vector=.")
        return rest[0]
    if name in moved:
        return name
    if name not in schema.names:
        raise InputError(f"{place} has no column {name!r}; its columns are: {listed(schema)}.")
    if name not in columns:
        kind = schema.field(name).type
        raise InputError(f"Column {name!r} of {place} must have fixed-size lists of float32 or float16; it has {kind}.")
    return name


def listed(schema: pa.Schema, n: int = 20) -> str:
    """Return the names of the first columns of a schema, for a message."""
    names = schema.names
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Convert an error of the driver to an InputError, which says that `action` failed."""
    try:
        yield
    except InputError:
        raise
    except DRIVER_ERRORS as error:
        raise InputError(f"{action}: {one_line(error)}") from None


def is_conflict(error: BaseException) -> bool:
    """Return whether a commit failed only because another program committed a change in the meantime."""
    message = str(error)
    return "commit conflict" in message.lower() or "ncompatible transaction" in message or "preempted" in message


def committed(change: Callable[[], T], action: str) -> T:
    """Call `change`, which opens the latest version and commits to it, again until no other commit is in the way.

    Raises InputError if other programs are always faster, or if the commit fails for another reason.
    """
    with explained(action):
        for attempt in range(TRIES):
            try:
                return change()
            except OSError as error:
                if not is_conflict(error):
                    raise
                time.sleep(random.uniform(0, min(LONGEST_WAIT, 0.01 * 2**attempt)))
    raise InputError(f"{action}: other programs changed the table during each of {TRIES} tries. Try again later.")
