"""What questions about many models share: their matrix of scores, permuted models, p-values."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from repstitch.errors import InputError

LEVEL = 0.05
LEAST_FACTOR_MODELS = 4
ROUNDING = 1e-9


def pair_scores(scores, names: Sequence[str], argument: str, both=np.mean) -> np.ndarray:
    """A symmetric (N, N) float64 matrix with NaN on the diagonal: the two directions as one."""
    S = np.array(scores, dtype=np.float64)
    N = len(names)
    if S.shape != (N, N):
        raise InputError(f"`{argument}` must be ({N}, {N}), one row a name; got {S.shape}.")
    if len(set(names)) < N:
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise InputError(f"`names` must differ from one another; {twice!r} is there twice.")
    if np.isinf(S).any():
        raise InputError(f"`{argument}` must be finite, or NaN where a pair was not measured; it holds Inf.")
    np.fill_diagonal(S, np.nan)
    other = np.where(np.isnan(S.T), S, S.T)
    own = np.where(np.isnan(S), S.T, S)
    return both([own, other], axis=0)


def row_means(S: np.ndarray) -> np.ndarray:
    """Mean of what was measured in each row; NaN where nothing was."""
    counts = (~np.isnan(S)).sum(1)
    return np.nansum(S, axis=1) / np.where(counts > 0, counts, np.nan)


def complete(S: np.ndarray) -> np.ndarray:
    """Positions of the models that are left when those with most scores missing have gone, until none is missing."""
    kept = np.arange(len(S))
    while True:
        missing = np.isnan(S[np.ix_(kept, kept)]).sum(1) - 1  # the diagonal is none
        if not len(kept) or not missing.any():
            break
        kept = np.delete(kept, missing.argmax())
    if len(kept) < LEAST_FACTOR_MODELS:
        raise InputError(
            f"`scores` must hold at least {LEAST_FACTOR_MODELS} models of which every pair was measured; "
            f"got {len(kept)} of {len(S)}. Measure the missing pairs."
        )
    return kept


def named(wanted: Sequence[str], names: Sequence[str]) -> np.ndarray:
    unknown = [name for name in wanted if name not in names]
    if unknown or not len(wanted):
        raise InputError(f"`against` must name some of `names`; got {unknown[0] if unknown else 'none'!r}.")
    return np.array([name in wanted for name in names])


def random_orders(draws: int, n: int, random: np.random.Generator) -> np.ndarray:
    """Random orders (draws, n) of n models."""
    return random.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)


def share_as_large(draws: np.ndarray, observed) -> float:
    """The add-one p-value; draws that differ from what was observed by rounding are as large."""
    return (1 + int((draws >= observed - ROUNDING * np.abs(draws).max()).sum())) / (len(draws) + 1)


def check_length(given: Sequence, N: int, argument: str) -> None:
    if len(given) != N:
        raise InputError(f"`{argument}` must hold one entry a name ({N}); got {len(given)}.")


def check_draws(**given: int) -> None:
    for argument, value in given.items():
        if value < 1:
            raise InputError(f"`{argument}` must be at least 1; got {value}.")
