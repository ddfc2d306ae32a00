"""Pairs in a stitcher's two spaces: read, brought to its normalisation, and those it has not seen."""

from collections.abc import Sequence

import numpy as np
import torch

from repstitch.embeddings.fingerprints import id_fingerprints, row_fingerprints
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pairs import Pairs
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError
from repstitch.evaluation.scoring import TranslatedPairs
from repstitch.spaces import Space, adopt
from repstitch.stitchers.stitcher import Stitcher


def read_sides(
    stitcher: Stitcher, source, target, source_space=None, target_space=None, source_ids=None, target_ids=None
) -> tuple[Embeddings, Embeddings]:
    """Both files, read and found to be in the stitcher's spaces."""
    a = read(source, space=source_space, ids=source_ids)
    b = read(target, space=target_space, ids=target_ids)
    adopt(a.space, a.declared, stitcher.source, "`source`", opposite=stitcher.target)
    adopt(b.space, b.declared, stitcher.target, "`target`", opposite=stitcher.source)
    return a, b


def seen_in_training(stitcher: Stitcher, pairs: Pairs, others: Sequence | np.ndarray = ()) -> np.ndarray:
    """A mask (n,) of the pairs that training or choosing used, known by id or by content.

    An id that is also one of `others` tells nothing: where queries and documents are both numbered from 0, it was the
    document of that number that training used.
    """
    by_id = np.isin(id_fingerprints(pairs.ids), stitcher.seen) & ~np.isin(pairs.ids, others)
    return by_id | np.isin(row_fingerprints(pairs.X, pairs.Y), stitcher.seen)


def translate_pairs(stitcher: Stitcher, pairs: Pairs) -> TranslatedPairs:
    """The pairs at the stitcher's normalisation, and what it makes of their source rows."""
    source = normalise(torch.from_numpy(pairs.X), stitcher.input_norm, "source rows")
    target = normalise(torch.from_numpy(pairs.Y), stitcher.output_norm, "target rows")
    with torch.inference_mode():
        raw = stitcher.map(source.to(stitcher.device)).cpu()
    return TranslatedPairs(source, target, raw, normalise(raw, stitcher.output_norm, "the translation"))


def refuse_backwards(stitcher: Stitcher, X: np.ndarray, declared: bool, what: str = "source") -> None:
    """Where both sides have one dimension and no card, the mean direction tells the two spaces apart; `what` is the
    argument that X (n, d_source) came by."""
    if not declared:
        own, other = (stitcher.source, stitcher.source_mean), (stitcher.target, stitcher.target_mean)
        refuse_other_side(X, own, other, what)


def refuse_other_side(X: np.ndarray, own: tuple[Space, np.ndarray], other: tuple[Space, np.ndarray], what: str) -> None:
    """Refuse rows X (n, d) that point where the `other` space's mean does rather than their own's; of one width
    only."""
    if own[0].dim != other[0].dim:
        return
    mean = X.mean(0)
    to = [float(mean @ m / (np.linalg.norm(mean) * np.linalg.norm(m) + 1e-12)) for _, m in (own, other)]
    if to[1] > 0.5 and to[1] - to[0] > 0.3:
        raise InputError(
            f"`{what}` looks like rows of {other[0].name!r}, the other side (cosine of the means {to[1]:.2f} "
            f"against {to[0]:.2f}); swap the files, or give them a card of {own[0].name!r}"
            + (f" (--{what}-space {own[0].name})." if what in ("source", "target") else ".")
        )
