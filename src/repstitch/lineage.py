"""What is known of models beside their vectors: fields of their cards, of the catalogue's cards, columns of a table."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from repstitch import catalogue
from repstitch.errors import InputError, one_line
from repstitch.spaces import Space

Table = Mapping[str, Mapping[str, Any]]


def read_table(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The rows of a .csv, .tsv or .parquet file by their column `name`; InputError without one or on repeated names."""
    location = Path(path)
    try:
        if location.suffix == ".parquet":
            rows = pq.read_table(location)
        elif location.suffix in (".csv", ".tsv"):
            between = pacsv.ParseOptions(delimiter="\t" if location.suffix == ".tsv" else ",")
            rows = pacsv.read_csv(location, parse_options=between)
        else:
            raise InputError(f"`table` must end in .csv, .tsv or .parquet; got {location.name!r}.")
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"`table` {location} cannot be read: {one_line(error)}") from None
    if "name" not in rows.column_names:
        raise InputError(f"`table` {location} must have a column name; it has {', '.join(rows.column_names)}.")
    found: dict[str, dict[str, Any]] = {}
    for row in rows.to_pylist():
        name = str(row.pop("name"))
        if name in found:
            raise InputError(f"`table` {location} must hold each name once; {name!r} is there twice.")
        found[name] = row
    return found


def labels(spaces: Sequence[Space], column: str, table: Table | None = None) -> list[Any]:
    """What is known of each space under that name, None where nothing is.

    Looked for in the table (if it has the column), then on the space's card, then on the catalogue's card of that name.
    Raises InputError on a column that is neither the table's nor a card's.
    """
    columns = {name for row in (table or {}).values() for name in row}
    known = {f.name for f in fields(Space)} - {"name"}
    if column not in columns | known:
        raise InputError(
            f"There is no column {column!r}; a card has {', '.join(sorted(known))}"
            + (f", the table {', '.join(sorted(columns))}." if table is not None else ". Give a table that has it.")
        )
    cards = catalogue.cards()

    def look(space: Space) -> Any:
        for held in ((table or {}).get(space.name, {}).get(column), getattr(space, column, None)):
            if held is not None and held != "":
                return held
        return getattr(cards.get(space.name), column, None)

    return [look(space) for space in spaces]


def numbers(spaces: Sequence[Space], column: str, table: Table | None = None) -> list[float | None]:
    """`labels` as numbers; InputError where one is none."""
    found = []
    for space, label in zip(spaces, labels(spaces, column, table), strict=True):
        try:
            found.append(None if label is None else float(label))
        except (TypeError, ValueError):
            raise InputError(f"Column {column!r} must hold numbers; {space.name} has {label!r}.") from None
    return found
