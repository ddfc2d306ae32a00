"""Read pairs in a stitcher's two spaces, translate them, and recognise the pairs that training used."""

import numpy as np
import torch
from numpy.typing import ArrayLike

from repstitch.embeddings.columns import Column
from repstitch.embeddings.fingerprints import have_keys, id_fingerprints, row_fingerprints
from repstitch.embeddings.ids import IdColumn
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pairs import Pairs
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike
from repstitch.embeddings.sides import read_both
from repstitch.errors import InputError
from repstitch.evaluation.pool import TranslatedPairs
from repstitch.precision import exact_products
from repstitch.spaces import Space, adopt
from repstitch.stitchers.stitcher import Stitcher


def read_sides(
    stitcher: Stitcher,
    source: EmbeddingsLike,
    target: EmbeddingsLike,
    source_space: str | Space | None = None,
    target_space: str | Space | None = None,
    source_ids: Column | None = None,
    target_ids: Column | None = None,
    id_column: IdColumn | None = None,
) -> tuple[Embeddings, Embeddings]:
    """Read the rows of both sides. Raises InputError unless they are in the stitcher's source and target space."""
    source_rows, target_rows = read_both(
        source,
        target,
        (
            {"space": source_space, "ids": source_ids, "id_column": id_column},
            {"space": target_space, "ids": target_ids, "id_column": id_column},
        ),
    )
    adopt(source_rows.space, source_rows.declared, stitcher.source, "`source`", opposite=stitcher.target)
    adopt(target_rows.space, target_rows.declared, stitcher.target, "`target`", opposite=stitcher.source)
    return source_rows, target_rows


def seen_in_training(stitcher: Stitcher, pairs: Pairs, others: ArrayLike = ()) -> np.ndarray:
    """Return a mask (n,) of the pairs that training or selection used, recognised by id or by vectors.

    Vectors may have been multiplied by a positive number or rounded since, except for a stitcher of an earlier release.

    An id that is also in `others` is ignored. For queries, `others` are the ids of the documents: if queries and
    documents are both numbered from 0, training used the document with that id, not the query.
    """
    seen = np.isin(id_fingerprints(pairs.ids), stitcher.seen) & ~np.isin(pairs.ids, others)
    seen |= np.isin(row_fingerprints(pairs.X, pairs.Y), stitcher.seen)
    if stitcher.seen_rows is not None:
        seen[~seen] = have_keys(stitcher.seen_rows, pairs.X[~seen], pairs.Y[~seen])
    return seen


@exact_products()
def translate_pairs(stitcher: Stitcher, pairs: Pairs) -> TranslatedPairs:
    """Normalise the pairs as the stitcher does, and translate their source rows."""
    source = normalise(torch.from_numpy(pairs.X), stitcher.input_norm, "source rows")
    target = normalise(torch.from_numpy(pairs.Y), stitcher.output_norm, "target rows")
    with torch.inference_mode():
        raw = stitcher.map(source.to(stitcher.device)).cpu()
    return TranslatedPairs(source, target, raw, normalise(raw, stitcher.output_norm, "the translation"))


def refuse_backwards(stitcher: Stitcher, X: np.ndarray, declared: bool, argument: str = "source") -> None:
    """Raise InputError if rows X (n, d_source) look like rows of the target space.

    Rows are not checked if `declared`, which means that a card or the caller states their space. `argument` is their
    name in the message.
    """
    if not declared:
        source, target = (stitcher.source, stitcher.source_mean), (stitcher.target, stitcher.target_mean)
        refuse_other_side(X, source, target, argument)


def refuse_other_side(
    X: np.ndarray, expected: tuple[Space, np.ndarray], opposite: tuple[Space, np.ndarray], argument: str
) -> None:
    """Raise InputError if rows X (n, d) look like rows of the `opposite` space instead of the `expected` one.

    `expected` and `opposite` are each a space and the mean of its training rows. The mean of X is compared with both by
    cosine. Spaces of different dimensions are not checked, because their rows cannot be confused.
    """
    (expected_space, _), (opposite_space, _) = expected, opposite
    if expected_space.dim != opposite_space.dim:
        return
    mean = X.mean(0)
    to_expected, to_opposite = (
        float(mean @ training_mean / (np.linalg.norm(mean) * np.linalg.norm(training_mean) + 1e-12))
        for _, training_mean in (expected, opposite)
    )
    if to_opposite > 0.5 and to_opposite - to_expected > 0.3:
        by = f" with `{argument}_space`" if argument in ("source", "target") else ""
        raise InputError(
            f"`{argument}` looks like rows of {opposite_space.name!r}, the other side of the stitcher (cosine of the "
            f"means {to_opposite:.2f}, with the expected side {to_expected:.2f}); swap the two sides, or state that "
            f"these rows are in {expected_space.name!r}{by}."
        )
