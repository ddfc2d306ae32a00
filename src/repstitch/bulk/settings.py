"""The settings of a migration, as a caller states them or as a TOML file contains them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from repstitch.errors import InputError, one_line
from repstitch.files import check_file_exists
from repstitch.text import nearest

LAYOUTS = ("column", "side")
BOUNDS = {
    "workers": (1, 64),
    "max_rows_per_second": (0.01, 1_000_000_000),
    "index_recall": (0.01, 1),
    "max_rest": (0, 1_000_000_000),
    "max_pause": (0.001, 3_600),
    "price_per_million": (0, 1_000_000),
    "share": (0, 1),
    "translated_length": (0.5, 2),
}


@dataclass(frozen=True)
class JobSettings:
    """How a column is moved. Every setting has a default.

    Args:
        new_vector: The name of the new column. Default: the name of the old one and `_new`.
        old_vector: The name that the old column gets when the names are swapped. Default: its name and `_old`.
        layout: Where the new vectors stand until the cut-over: `column` or `side`. Default: the store decides.
        view: The name of the view through which readers read. The cut-over replaces it instead of swapping names.
        keep_names: If True, the cut-over swaps no names, and readers go to the new name.
        swap_equal: If True, names are swapped although both spaces have the same number of dimensions.
        guard: If True, writers of the readers' column must state the new space after the cut-over.
        workers: Number of connections that fill the table at the same time.
        max_rows_per_second: The most rows to translate per second. Default: no limit.
        index_recall: The least share of the exact nearest ten that the new index must find.
        max_rest: The most rows to catch up inside the cut-over.
        max_pause: The most seconds for which readers and writers may have to wait for the cut-over.
        target: Native target embeddings of rows of the table, as a file or an address, to verify with.
        queries: Native queries of the new model, as a file or an address, to verify with.
        old_queries: The same queries by the old model, to measure the latency of the old index.
        qrels: Relevance judgements of `queries`.
        filter: A condition in the store's language, to measure the latency of filtered searches.
        text_column: The column of the texts, from which a plan estimates the tokens of re-embedding, and which an
            encoder in `reembed` embeds.
        price_per_million: The price of a million tokens of re-embedding.
        translated_length: The length of translated rows, where native rows have length 1, so that one search ranks
            both rightly. Default: 1. A plan says which length finds most.
        share: The share of the rows that are to be embedded anew with the new model, beside the translation.
        reembed: Native vectors of rows by the new model, as a file or an address with ids, which are written in place
            of the translations; or the encoder that embeds the texts of these rows.
        ids: A file with the ids of the rows to embed anew, one per line, as `plan` writes it. Default: all rows of a
            file or address in `reembed`.

    Raises:
        InputError: If a setting is invalid.
    """

    new_vector: str | None = None
    old_vector: str | None = None
    layout: str | None = None
    view: str | None = None
    keep_names: bool = False
    swap_equal: bool = False
    guard: bool = False
    workers: int = 1
    max_rows_per_second: float | None = None
    index_recall: float = 0.95
    max_rest: int = 1_000
    max_pause: float = 2.0
    target: str | None = None
    queries: str | None = None
    old_queries: str | None = None
    qrels: str | None = None
    filter: str | None = None
    text_column: str | None = None
    price_per_million: float | None = None
    translated_length: float | None = None
    share: float | None = None
    reembed: str | None = None
    ids: str | None = None

    def __post_init__(self):
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.default)
        if self.layout not in (None, *LAYOUTS):
            raise InputError(f"`layout` must be {' or '.join(LAYOUTS)}; got {self.layout!r}.")
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"`{name}` must be from {least:,} to {most:,}; got {value}.")
        if self.keep_names and (self.swap_equal or self.view):
            raise InputError("`keep_names` must not be set together with `swap_equal` or `view`; choose one of them.")
        if self.qrels and not self.queries:
            raise InputError("`qrels` must be passed with `queries`, whose ids the judgements use.")
        if self.ids and not self.reembed:
            raise InputError("`ids` must be passed with `reembed`, which has or makes the vectors of these rows.")
        if self.old_queries and not self.queries:
            raise InputError("`old_queries` must be passed with `queries`, the same queries by the new model.")


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read the TOML file of a job: the settings, and optionally `address` and `stitcher`.

    Raises InputError if the file cannot be read or has an unknown key.
    """
    check_file_exists(path, "job", "settings in TOML")
    try:
        values = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"`job` {path} cannot be read as TOML: {one_line(error)}") from None
    allowed = ["address", "stitcher", *(field.name for field in fields(JobSettings))]
    for key in values:
        if key not in allowed:
            near = nearest(key, allowed)
            advice = f"did you mean {near[0]}?" if near else f"it may have {', '.join(allowed)}."
            raise InputError(f"`job` {path} has the unknown key {key!r}; {advice}")
    for key in ("address", "stitcher"):
        if not isinstance(values.get(key, ""), str):
            raise InputError(f"`{key}` in {path} must be text; got {values[key]!r}.")
    return values


def merged(file: Mapping[str, Any], stated: Mapping[str, Any]) -> JobSettings:
    """Return the settings of a file, in which those that the caller states replace the file's."""
    settings = {key: value for key, value in file.items() if key not in ("address", "stitcher")}
    return JobSettings(**settings | {key: value for key, value in stated.items() if value is not None})


def _check_type(name: str, value: Any, default: Any) -> None:
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    kind = TYPES.get(name, str if default is None else type(default))
    if value is None and default is None:
        return
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise InputError(f"`{name}` must be {expected[kind]}; got {value!r}.")


TYPES = {"max_rows_per_second": float, "price_per_million": float, "share": float, "translated_length": float}
