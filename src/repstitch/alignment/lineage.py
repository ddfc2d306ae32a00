"""Metadata of models, from their cards, the cards of the catalogue and a table.

Also determines which spaces are layers of one encoder.
"""

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
    """Read a .csv, .tsv or .parquet file and return its rows by their column `name`.

    Raises InputError if the column is missing or a name appears twice.
    """
    location = Path(path)
    rows = read_table(location, "table")
    if "name" not in rows.column_names:
        raise InputError(
            f"`table` {location} must have a column `name`; got the columns {', '.join(rows.column_names)}."
        )
    models: dict[str, dict[str, Any]] = {}
    for row in rows.to_pylist():
        name = str(row.pop("name"))
        if name in models:
            raise InputError(f"`table` {location} must contain each name once; {name!r} appears twice.")
        models[name] = row
    return models


def column(spaces: Sequence[Space], name: str, table: Table | None = None) -> list[Any]:
    """Return the entry of each space in the column `name`, None where it has no entry.

    The entry is looked up in the table, then on the space's card, then on the catalogue's card of that space. Raises
    InputError if neither the table nor cards have the column.
    """
    table_columns = {key for row in (table or {}).values() for key in row}
    card_fields = {field.name for field in fields(Space)} - {"name"}
    if name not in table_columns | card_fields:
        raise InputError(
            f"There is no column {name!r}; cards have {', '.join(sorted(card_fields))}"
            + (
                f", and the table has {', '.join(sorted(table_columns))}."
                if table is not None
                else ". Pass a `table` that has this column."
            )
        )
    cards = catalogue.cards()

    def entry_of(space: Space) -> Any:
        for entry in ((table or {}).get(space.name, {}).get(name), getattr(space, name, None)):
            if entry is not None and entry != "":
                return entry
        return getattr(cards.get(space.name), name, None)

    return [entry_of(space) for space in spaces]


def numeric_column(spaces: Sequence[Space], name: str, table: Table | None = None) -> list[float | None]:
    """Return the entries of a `column` as numbers; InputError if an entry is not a number."""
    numbers = []
    for space, entry in zip(spaces, column(spaces, name, table), strict=True):
        try:
            numbers.append(None if entry is None else float(entry))
        except (TypeError, ValueError):
            raise InputError(f"Column {name!r} must contain numbers; {space.name} has {entry!r}.") from None
    return numbers


def encoder_spaces(spaces: Sequence[Space]) -> list[Space]:
    """Return one card per encoder: the card of its only space or of its first layer, with the encoder's name."""
    return [replace(spaces[positions[0]], name=name) for name, positions in layers_by_encoder(spaces).items()]


def layers_by_encoder(spaces: Sequence[Space]) -> dict[str, list[int]]:
    """Return the positions of each encoder's spaces by the encoder's name; several positions if they are its layers."""
    by_identity: dict[Any, list[int]] = {}
    for i, space in enumerate(spaces):
        by_identity.setdefault(_identity(space) or i, []).append(i)
    groups = []
    for positions in by_identity.values():
        # An encoder can appear twice, for example with two kinds of pooling. Names then show which layers belong
        # together.
        by_stem: dict[str, list[int]] = {}
        for i in positions:
            by_stem.setdefault("" if _layers_differ(spaces, positions) else without_layer(spaces[i].name), []).append(i)
        for group in by_stem.values():
            groups += [group] if _layers_differ(spaces, group) else [[i] for i in group]
    by_encoder: dict[str, list[int]] = {}
    for group in sorted(groups):
        first = spaces[group[0]]
        stem = without_layer(first.name)
        same_stem = len(group) > 1 and all(without_layer(spaces[i].name) == stem for i in group)
        name = stem if same_stem else first.name if len(group) == 1 else str(first.encoder)
        by_encoder[first.name if name in by_encoder else name] = group
    return by_encoder


def same_encoder(source: Space, target: Space) -> bool:
    """Whether both cards state the same encoder in the same revision; layer and pooling may differ."""
    return _identity(source) is not None and _identity(source) == _identity(target)


def _identity(space: Space) -> tuple | None:
    return None if space.encoder is None else (space.encoder, space.revision)


def _layers_differ(spaces: Sequence[Space], positions: list[int]) -> bool:
    return len({spaces[i].layer for i in positions}) == len(positions)


def without_layer(name: str) -> str:
    """Remove the suffix `.layerN`, which marks a layer of an encoder, from a space's name."""
    return re.sub(r"\.layer-?\d+$", "", name)
