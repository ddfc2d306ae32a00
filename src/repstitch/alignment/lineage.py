"""What is known of models beside their vectors: fields of their cards, of the catalogue's cards, columns of a table;
and which spaces are layers of one encoder."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from repstitch.embeddings.tables import read_table
from repstitch.encoders import catalogue
from repstitch.errors import InputError
from repstitch.spaces import Space

Table = Mapping[str, Mapping[str, Any]]


def read_models(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The rows of a .csv, .tsv or .parquet file by their column `name`; InputError without one or on repeated names."""
    location = Path(path)
    rows = read_table(location, "table")
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


def encoders(spaces: Sequence[Space]) -> list[Space]:
    """One card an encoder: that of its first layer under the encoder's name, where spaces are layers of one."""
    return [replace(spaces[own[0]], name=name) for name, own in layers_by_encoder(spaces).items()]


def layers_by_encoder(spaces: Sequence[Space]) -> dict[str, list[int]]:
    """The positions of each encoder's spaces, by the encoder's name; several where they are its layers."""
    families: dict[Any, list[int]] = {}
    for i, space in enumerate(spaces):
        families.setdefault(_identity(space) or i, []).append(i)
    groups = []
    for own in families.values():
        # Where an encoder is there twice, pooled in two ways for example, names tell whose layer is whose.
        stems: dict[str, list[int]] = {}
        for i in own:
            stems.setdefault("" if _layers_differ(spaces, own) else without_layer(spaces[i].name), []).append(i)
        for part in stems.values():
            groups += [part] if _layers_differ(spaces, part) else [[i] for i in part]
    named: dict[str, list[int]] = {}
    for part in sorted(groups):
        first = spaces[part[0]]
        stem = without_layer(first.name)
        shared = len(part) > 1 and all(without_layer(spaces[i].name) == stem for i in part)
        name = stem if shared else first.name if len(part) == 1 else str(first.encoder)
        named[first.name if name in named else name] = part
    return named


def same_encoder(a: Space, b: Space) -> bool:
    """Whether both are known to come from one revision of one encoder, by whatever layer or pooling."""
    return _identity(a) is not None and _identity(a) == _identity(b)


def _identity(space: Space) -> tuple | None:
    return None if space.encoder is None else (space.encoder, space.revision)


def _layers_differ(spaces: Sequence[Space], own: list[int]) -> bool:
    return len({spaces[i].layer for i in own}) == len(own)


def without_layer(name: str) -> str:
    """A space's name without the suffix `.layerN` that it has as one layer of an encoder."""
    return re.sub(r"\.layer-?\d+$", "", name)
