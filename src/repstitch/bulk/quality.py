"""What is known of a translation before a table is moved: by the scorecard, and in a sample of the table itself."""

from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from repstitch.bulk.choosing import sample_vectors
from repstitch.bulk.translation import Translation
from repstitch.embeddings.likeness import Likeness, compare_with_pairs
from repstitch.embeddings.rows import invalid_rows
from repstitch.errors import InputError
from repstitch.evaluation.use_scores import UseScores
from repstitch.metrics.neighbours import unit
from repstitch.precision import exact_products
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.store import Store

SAMPLE_ROWS = 2_000
LEAST_PAIRS = 20
OVERLAP = "overlap@10"
SAME_ROW = 1 - 1e-5  # cosine of a row of the table and of a pair from which on they are the same row


def quality_in(store: Store, stitcher: Stitcher, held_out: HeldOutRows | None, n_rows: int) -> dict[str, Any]:
    """Return what the scorecard knows, whether its pairs are like the rows of the table, and what a search will find.

    Args:
        store: The table, of which 2,000 random rows are read.
        stitcher: The stitcher to translate with.
        held_out: The held-out rows of the stitcher, or None.
        n_rows: The number of rows of the table.

    Returns:
        `in_your_domain`: `as scored`, or `unknown` if the pairs are unlike the rows, or if nothing was held out. Only
        as far as they are alike, `expected` has the results of `expect`.
    """
    card = stitcher.scorecard
    quality: dict[str, Any] = {"in_your_domain": "unknown", "likeness": None, "expected": None}
    if "corpus" in card:
        recall = card.corpus.recall_at(1)
        quality |= {"recall@1": recall.score, "interval": recall.interval, "pairs": card.n, "pool": card.pool}
        quality["verdict"] = str(card.corpus.verdict) if "verdict" in card.corpus else None
    if held_out is None or held_out.source is None or held_out.translated is None:
        return quality
    rows = sample_vectors(store, SAMPLE_ROWS)
    rows = rows[~np.logical_or(*invalid_rows(rows).values())]
    likeness = _compare(rows, held_out.source)
    if likeness is not None:
        quality["likeness"] = str(likeness)
        if not likeness.unlike:
            quality["in_your_domain"] = "as scored"
            scores = card.corpus if "corpus" in card else None
            quality["expected"] = expect(Translation(stitcher), rows, held_out, scores, n_rows)
    return quality


def _compare(rows: np.ndarray, pairs: np.ndarray) -> Likeness | None:
    """Compare rows of the table with source rows of pairs (m, d); None if there are too few other rows."""
    try:
        return compare_with_pairs(rows, pairs)
    except InputError:
        return None


@exact_products()
def expect(
    translation: Translation, rows: np.ndarray, held_out: HeldOutRows, scores: UseScores | None, n_rows: int
) -> dict[str, Any] | None:
    """Estimate what searches by native queries will find among the rows of a table that trained no map.

    Args:
        translation: Translates rows.
        rows: Source vectors (n, d_source) of some rows of the table. Those of held-out pairs are left out.
        held_out: The held-out pairs, which are like the rows.
        scores: The scores in corpus use of the scorecard, of these pairs.
        n_rows: The number of rows of the table.

    Returns:
        None with fewer than 20 held-out rows with vectors. Else `first`: the share of rows that come first when their
        own native vector searches `among` rows of the table, of `queries` rows. And `right`: the share of the right ten
        results that are found in a `pool` as large as the scorecard's. Each has a 95 % interval, which allows for the
        rows of the table being others than those of the pairs.
    """
    if held_out.source is None or held_out.translated is None or len(held_out.vectors) < LEAST_PAIRS:
        return None
    native, own = (unit(torch.from_numpy(part)) for part in (held_out.vectors, held_out.translated))
    same = unit(torch.from_numpy(rows)) @ unit(torch.from_numpy(held_out.source)).T > SAME_ROW
    others = unit(torch.from_numpy(translation(rows[~same.any(1).numpy()])))
    similar = native @ others.T
    is_first = (native * own).sum(1) > (similar.max(1).values if len(others) else -1)
    n = len(native)
    expected: dict[str, Any] = {"queries": n, "among": len(others) + 1}
    expected["first"], expected["first_interval"] = (
        float(is_first.double().mean()),
        wilson(int(is_first.sum()), n, n_rows),
    )
    measures = {} if scores is None or scores.references is None else scores.references.measures
    right = measures[OVERLAP].translated if OVERLAP in measures else None
    if right is not None and right.interval is not None:
        wider = (1 + n / max(1, n_rows)) ** 0.5
        low, high = (min(1.0, max(0.0, right.score + wider * (end - right.score))) for end in right.interval)
        expected |= {"right": right.score, "right_interval": [low, high], "pool": len(held_out.ids)}
    return expected


def wilson(hits: int, n: int, n_others: int) -> list[float]:
    """Return a 95 % interval of the share of hits among `n_others` rows, if n other rows have this many hits.

    It is the score interval (Wilson 1927) with the variance p (1 − p) (1 / n + 1 / n_others) of the difference between
    the two shares.
    """
    z, p = float(norm.ppf(0.975)), hits / n
    n_effective = 1 / (1 / n + 1 / max(1, n_others))
    centre, half = p + z**2 / (2 * n_effective), z * (p * (1 - p) / n_effective + z**2 / (4 * n_effective**2)) ** 0.5
    scale = 1 + z**2 / n_effective
    return [max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)]
