"""What is known of a translation before a table is moved: by the scorecard, and by how like its pairs the table is."""

from typing import Any

import numpy as np

from repstitch.bulk.choosing import sample_vectors
from repstitch.embeddings.likeness import Likeness, compare_with_pairs
from repstitch.embeddings.rows import invalid_rows
from repstitch.errors import InputError
from repstitch.evaluation.scorecard import Scorecard
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.store import Store

SAMPLE_ROWS = 2_000
OVERLAP = "overlap@10"


def quality_in(store: Store, stitcher: Stitcher, held_out: HeldOutRows | None, n_rows: int) -> dict[str, Any]:
    """Return what the scorecard knows, and whether its pairs are like the rows of the table.

    Args:
        store: The table, of which 2,000 random rows are read.
        stitcher: The stitcher to translate with.
        held_out: The held-out rows of the stitcher, or None.
        n_rows: The number of rows of the table.

    Returns:
        `in_your_domain`: `as scored`, or `unknown` if the pairs are unlike the rows, or if nothing was held out. Only
        as far as they are alike, `expected` has the result of `expect`.
    """
    card = stitcher.scorecard
    quality: dict[str, Any] = {"in_your_domain": "unknown", "likeness": None, "expected": None}
    if "corpus" in card:
        recall = card.corpus.recall_at(1)
        quality |= {"recall@1": recall.score, "interval": recall.interval, "pairs": card.n, "pool": card.pool}
        quality["verdict"] = str(card.corpus.verdict) if "verdict" in card.corpus else None
    likeness = None if held_out is None or held_out.source is None else _compare(store, held_out.source)
    if likeness is not None:
        quality["likeness"] = str(likeness)
        if not likeness.unlike:
            quality |= {"in_your_domain": "as scored", "expected": expect(card, n_rows)}
    return quality


def _compare(store: Store, pairs: np.ndarray) -> Likeness | None:
    """Compare some rows of the table with source rows of pairs (m, d); None if there are too few other rows."""
    rows = sample_vectors(store, SAMPLE_ROWS)
    try:
        return compare_with_pairs(rows[~np.logical_or(*invalid_rows(rows).values())], pairs)
    except InputError:
        return None


def expect(card: Scorecard, n_rows: int) -> dict[str, Any] | None:
    """Estimate the share of the right ten results that native rows find among translated rows of a table.

    Args:
        card: A scorecard of pairs that are like the rows of the table.
        n_rows: The number of rows of the table.

    Returns:
        The share, its 95 % interval, and the size of the `pool` for which it holds; None if the card has no such score.
        The interval is that of the card, widened because the rows of the table are others than those of the pairs.
    """
    references = card.corpus.references if "corpus" in card else None
    if references is None or OVERLAP not in references.measures:
        return None
    right = references.measures[OVERLAP].translated
    if right.interval is None:
        return None
    wider = (1 + card.pool / max(1, n_rows)) ** 0.5
    low, high = (min(1.0, max(0.0, right.score + wider * (end - right.score))) for end in right.interval)
    return {"right": right.score, "interval": [low, high], "pool": card.pool}
