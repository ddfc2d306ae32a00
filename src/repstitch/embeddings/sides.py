"""Read the two sides of pairs, of which a store is asked only for the rows that the other side has."""

from collections.abc import Mapping
from typing import Any

from repstitch.addresses import is_address
from repstitch.embeddings.reading import read_argument
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike
from repstitch.embeddings.sampling import Sample
from repstitch.errors import InputError


def read_both(
    source: EmbeddingsLike,
    target: EmbeddingsLike,
    options: tuple[Mapping[str, Any], Mapping[str, Any]],
    sample: Sample | None = None,
) -> tuple[Embeddings, Embeddings]:
    """Read both sides, each with its options of `read_argument`.

    If one side is the table of a store, its rows are those with the ids of the other side. If both are, and there is a
    sample, it is drawn from the source. A sample of two files is drawn from their pairs, which is up to the caller.
    Raises InputError if the rows of a store would have to be paired by position.
    """
    stored = [is_address(side) for side in (source, target)]
    if not any(stored) or (all(stored) and sample is None):
        return _read("source", source, options[0]), _read("target", target, options[1])
    names, sides = ["source", "target"], [source, target]
    first = 0 if stored[1] else 1  # this side says which rows are read
    second = 1 - first
    rows = _read(names[first], sides[first], {**options[first], "select": sample if stored[first] else None})
    if rows.ids is None:
        raise InputError(
            f"The `{names[first]}` must have ids, because the rows of a store are paired by id; pass "
            f"`{names[first]}_ids`, with one id per row."
        )
    if sample is not None:
        rows = rows.take(sample.positions(len(rows)))
    ids = [] if rows.ids is None else list(rows.ids)
    others = _read(names[second], sides[second], {**options[second], "select": ids})
    return (rows, others) if first == 0 else (others, rows)


def _read(name: str, side: EmbeddingsLike, options: Mapping[str, Any]) -> Embeddings:
    return read_argument(f"`{name}`", side, **options)
