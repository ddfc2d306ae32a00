"""Merge two result lists of one query: that of the old index, and that of the rows which are moved already."""

from collections.abc import Hashable, Sequence

import numpy as np

from repstitch.errors import InputError

Results = Sequence[tuple[Hashable, float]]  # ids and similarities, best first


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
        scores = np.array([score for _, score in results], dtype=np.float64)
        if not np.isfinite(scores).all():
            raise InputError("`old` and `new` must have a finite similarity for each id.")
        spread = float(scores.std()) if len(scores) else 0.0
        standard = (scores - scores.mean()) / spread if spread > 0 else np.zeros(len(scores))
        for (key, _), score in zip(results, (standard + shift).tolist(), strict=True):
            merged[key] = max(score, merged.get(key, -np.inf))
    return sorted(merged.items(), key=lambda entry: -entry[1])[:k]
