"""Merge two result lists of one query: that of the old index, and that of the rows which are moved already."""

from collections.abc import Hashable, Sequence

import numpy as np

from repstitch.errors import InputError

Results = Sequence[tuple[Hashable, float]]  # ids and similarities, best first
OFFSETS = tuple(round(-1.5 + 0.05 * step, 2) for step in range(61))


def merge_results(old: Results, new: Results, k: int = 10, offset: float = 0.0) -> list[tuple[Hashable, float]]:
    """Merge the results of two searches whose similarities are on two scales.

    Each list is standardised by its own mean and standard deviation, so both should be equally long and longer than
    `k`: 100 results of each are a good choice.

    Args:
        old: Ids and similarities of the rows that are not moved, from the search with the old query; higher is nearer.
        new: The same for the rows that are moved, from the search with the translated query.
        k: The number of results to return.
        offset: A number that is added to the standardised similarities of `new`; `best_offset` tunes it.

    Returns:
        At most `k` ids with their standardised similarities, best first. Of an id in both lists, the better entry.

    Raises:
        InputError: If `k` is below 1, or if a similarity is not a number.
    """
    if k < 1:
        raise InputError(f"`k` must be at least 1; got {k}.")
    merged: dict[Hashable, float] = {}
    for results, shift in ((old, 0.0), (new, offset)):
        for key, score in zip((key for key, _ in results), _standardised(results) + shift, strict=True):
            merged[key] = max(float(score), merged.get(key, -np.inf))
    return sorted(merged.items(), key=lambda entry: -entry[1])[:k]


def best_offset(old: Sequence[Results], new: Sequence[Results], wanted: Sequence[Sequence[Hashable]]) -> float:
    """Return the offset at which merged lists contain most of the wanted results.

    Args:
        old: The results of each query (n lists) in the rows that are not moved.
        new: The results of the same queries in the rows that are moved.
        wanted: The right results of each query, such as those of the old index before any row was moved. As many are
            returned by a merged list.

    Returns:
        One of 61 offsets from −1.5 to 1.5; on a tie the one nearest to 0.

    Raises:
        InputError: If the numbers of queries differ, or if there are none.
    """
    if not len(old) == len(new) == len(wanted) or not len(old):
        raise InputError(
            f"`old`, `new` and `wanted` must have a list for each query; got {len(old)}, {len(new)} and {len(wanted)}."
        )

    def share(offset: float) -> float:
        lists = (merge_results(o, n, max(1, len(w)), offset) for o, n, w in zip(old, new, wanted, strict=True))
        pairs = zip(lists, map(set, wanted), strict=True)
        return float(np.mean([sum(key in right for key, _ in merged) / max(1, len(right)) for merged, right in pairs]))

    return max(OFFSETS, key=lambda offset: (share(offset), -abs(offset)))


def _standardised(results: Results) -> np.ndarray:
    """Return the similarities (n,) minus their mean, divided by their standard deviation; zeros if all are equal."""
    scores = np.array([score for _, score in results], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise InputError("`old` and `new` must have a finite similarity for each id.")
    spread = float(scores.std()) if len(scores) else 0.0
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros(len(scores))
