"""Bootstrap: the uncertainty of a mean over queries, estimated by resampling the queries."""

from collections.abc import Iterator

import numpy as np

from repstitch.metrics.delete_one import LEVEL, interval_of_constant

DRAWS = 1000
ROUNDING = 1e-9  # draws that differ by less are equal
CELLS = 2_000_000  # counts in memory at once


def resampled_means(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return the means (draws, m) of `values` (n, m) over queries drawn with replacement.

    All columns use the same queries in one draw, so differences and ratios of columns are paired. Only the scores of
    queries are resampled, never the rows of a space: rows drawn twice would be each other's neighbours, and unrelated
    spaces would look alike. O(draws · n · m) time, bounded memory. Efron and Tibshirani 1993, "An Introduction to the
    Bootstrap".
    """
    values = np.asarray(values, dtype=np.float64)
    return np.concatenate([counts @ values / len(values) for counts in resample_counts(len(values), draws, seed)])


def resample_counts(n: int, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield how often each of n queries is drawn, (draws, n) in chunks of bounded memory.

    The same arguments give the same counts.
    """
    random = np.random.default_rng(seed)
    at_once = max(1, CELLS // n)
    for start in range(0, draws, at_once):
        rows = min(at_once, draws - start)
        picked = random.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n)


def interval(
    draws: np.ndarray, level: float = LEVEL, n: int | None = None, bounds: tuple[float, float] = (0.0, 1.0)
) -> list[float]:
    """Return [low, high], the central interval that contains the share `level` of the draws (K,). NaN is ignored.

    If `n` rows were resampled and all draws of a score inside `bounds` are equal, it is the `interval_of_constant`.
    """
    edge = (1 - level) / 2
    low, high = (float(v) for v in np.nanquantile(draws, (edge, 1 - edge)))
    if n is not None and high - low <= ROUNDING:
        return interval_of_constant(min(max(low, bounds[0]), bounds[1]), n, *bounds)
    return [low, high]
