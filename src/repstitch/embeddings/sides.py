"""Read the two sides of pairs, of which a store is asked only for the rows that the other side has."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repstitch.addresses import is_address
from repstitch.embeddings.reading import read_argument
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike
from repstitch.embeddings.sampling import Sample
from repstitch.embeddings.stored import draw_common_ids, ids_in
from repstitch.errors import InputError


def read_both(
    source: EmbeddingsLike,
    target: EmbeddingsLike,
    options: tuple[Mapping[str, Any], Mapping[str, Any]],
    sample: Sample | None = None,
) -> tuple[Embeddings, Embeddings]:
    """Read both sides, each with its options of `read_argument`.

    If one side is the table of a store, only its rows with the ids of the other side are read. A sample is drawn from
    the ids that both sides have; that of two files is up to the caller, who draws it from their pairs. Raises
    InputError if the rows of a store would have to be paired by position.
    """
    stored = [is_address(side) for side in (source, target)]
    if not any(stored) or (all(stored) and sample is None):
        return _read("source", source, options[0]), _read("target", target, options[1])
    if all(stored):
        assert sample is not None
        ids = draw_common_ids(str(source), str(target), sample)
        selected = [{**side_options, "select": ids} for side_options in options]
        return _read("source", source, selected[0]), _read("target", target, selected[1])
    names, sides = ["source", "target"], [source, target]
    first = 0 if stored[1] else 1  # the file, whose ids say which rows of the store are read
    second = 1 - first
    rows = _read(names[first], sides[first], options[first])
    if rows.ids is None:
        raise InputError(
            f"The `{names[first]}` must have ids, because the rows of a store are paired by id; pass "
            f"`{names[first]}_ids`, with one id per row."
        )
    if sample is not None and sample.n < len(rows):
        order = np.random.default_rng(sample.seed).permutation(len(rows))
        common = set(ids_in(str(sides[second]), rows.ids[order], sample.n))
        if common:
            rows = rows.take(np.array([i for i, key in enumerate(rows.ids) if key in common]))
    ids = [] if rows.ids is None else list(rows.ids)
    others = _read(names[second], sides[second], {**options[second], "select": ids})
    return (rows, others) if first == 0 else (others, rows)


def _read(name: str, side: EmbeddingsLike, options: Mapping[str, Any]) -> Embeddings:
    return read_argument(f"`{name}`", side, **options)
