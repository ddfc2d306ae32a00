"""Merge two result lists of one query: that of the old index, and that of the rows which are moved already."""

from collections.abc import Hashable, Sequence

import numpy as np

from repstitch.errors import InputError

Results = Sequence[tuple[Hashable, float]]  # ids and similarities, best first
OFFSETS = tuple(round(-3 + 0.1 * step, 1) for step in range(61))
LEAST_RESULTS = 2  # that have a standard deviation
Scores = list[tuple[Hashable, float]]


def merge_results(old: Results, new: Results, k: int = 10, offset: float = 0.0, moved: float = 0.5) -> Scores:
    """Merge the results of two searches whose similarities are on two scales.

    Each list is standardised: the mean of its first results is subtracted, and their standard deviation divides. They
    are the same share of the rows of either part. Both lists should be longer than `k`: 100 results are a good choice.

    Args:
        old: Ids and similarities of the rows that are not moved, from the search with the old query; higher is nearer.
        new: The same for the rows that are moved, from the search with the translated query.
        k: The number of results to return.
        offset: A number that is added to the standardised similarities of `new`; `best_offset` tunes it.
        moved: The share of the rows that are moved, between 0 and 1. The hundred nearest of few rows are farther than
            those of many, so without it the smaller part is ranked too high.

    Returns:
        At most `k` ids with their standardised similarities, best first. Of an id in both lists, the better entry.

    Raises:
        InputError: If `k` is below 1, if `moved` is not between 0 and 1, or if a similarity is not a number.
    """
    if k < 1:
        raise InputError(f"`k` must be at least 1; got {k}.")
    return _merge(*_standardised(old, new, moved), k, offset)


def best_offset(
    old: Sequence[Results], new: Sequence[Results], wanted: Sequence[Sequence[Hashable]], moved: float = 0.5
) -> float:
    """Return the offset at which merged lists contain most of the wanted results.

    Args:
        old: The results of each query (n lists) in the rows that are not moved.
        new: The results of the same queries in the rows that are moved.
        wanted: The right results of each query, such as those of the old index before any row was moved. As many are
            returned by a merged list.
        moved: The share of the rows that are moved, as in `merge_results`.

    Returns:
        One of 61 offsets from −3 to 3; on a tie the one nearest to 0.

    Raises:
        InputError: If the numbers of queries differ, if there are none, or if `moved` is not between 0 and 1.
    """
    if not len(old) == len(new) == len(wanted) or not len(old):
        raise InputError(
            f"`old`, `new` and `wanted` must have a list for each query; got {len(old)}, {len(new)} and {len(wanted)}."
        )
    lists = [_standardised(o, n, moved) for o, n in zip(old, new, strict=True)]
    rights = [set(results) for results in wanted]

    def share(offset: float) -> float:
        merged = (_merge(*sides, max(1, len(right)), offset) for sides, right in zip(lists, wanted, strict=True))
        pairs = zip(merged, rights, strict=True)
        return float(
            np.mean([sum(key in right for key, _ in results) / max(1, len(right)) for results, right in pairs])
        )

    return max(OFFSETS, key=lambda offset: (share(offset), -abs(offset)))


def _merge(old: Scores, new: Scores, k: int, offset: float) -> Scores:
    merged = dict(old)
    for key, score in new:
        merged[key] = max(score + offset, merged.get(key, -np.inf))
    return sorted(merged.items(), key=lambda entry: -entry[1])[:k]


def _standardised(old: Results, new: Results, moved: float) -> tuple[Scores, Scores]:
    """Return both lists with standardised similarities; zeros for similarities that are all equal."""
    if not 0 < moved < 1:
        raise InputError(f"`moved` must be between 0 and 1; got {moved}.")
    n_rows = min(len(old) / (1 - moved), len(new) / moved)  # of both parts, so many that each list has its share
    sides = []
    for results, share in ((old, 1 - moved), (new, moved)):
        scores = np.array([score for _, score in results], dtype=np.float64)
        if not np.isfinite(scores).all():
            raise InputError("`old` and `new` must have a finite similarity for each id.")
        first = scores[: max(LEAST_RESULTS, round(share * n_rows))]
        spread = float(first.std()) if len(first) else 0.0
        scores = (scores - first.mean()) / spread if spread > 0 else np.zeros(len(scores))
        sides.append([(key, float(score)) for (key, _), score in zip(results, scores, strict=True)])
    return sides[0], sides[1]
