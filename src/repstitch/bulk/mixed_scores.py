"""How a search in a table changes with the share of its rows that are native."""

from dataclasses import asdict
from typing import Any

from repstitch.metrics.matrices import MatrixLike
from repstitch.mixing.mixed_index import LEAST_ROWS, SHARES, MixedIndex
from repstitch.stitchers.held_out_rows import HeldOutRows


def mixed_scores(
    held_out: HeldOutRows | None, length: float | None = None, queries: MatrixLike | None = None
) -> dict[str, Any] | None:
    """Score searches in a mixed index of held-out rows; None if there are none, or no translations of them.

    Every migration ends mixed, because documents that are written after the cut-over are native.

    Args:
        held_out: The held-out rows of the stitcher.
        length: The length of translated rows, where native rows have length 1. Default: None, the one that finds most
            of the right results.
        queries: Native queries (m, d_target) that search the held-out rows. Default: None, the rows themselves.

    Returns:
        The `length`, the number of `rows`, and the scores by share of native rows: `plain` with length 1 and
        `with_length`.
    """
    if held_out is None or held_out.translated is None or len(held_out.vectors) < LEAST_ROWS:
        return None
    index = MixedIndex(held_out.translated, held_out.vectors, queries, held_out.similar)
    length = index.best_length() if length is None else length
    shares = (0.0, *SHARES)
    return {
        "length": length,
        "rows": len(index),
        "queries": "rows" if queries is None else "queries",
        "plain": [asdict(index.score(share, 1.0)) for share in shares],
        "with_length": [asdict(index.score(share, length)) for share in shares],
    }
