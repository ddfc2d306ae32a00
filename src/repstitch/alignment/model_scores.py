"""What tests of many models share: their matrix of scores, permuted models, p-values."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repstitch.arguments import check_positive
from repstitch.errors import InputError

LEAST_FACTOR_MODELS = 4
ROUNDING = 1e-9


@dataclass(frozen=True)
class Resampling:
    """How often models are permuted for a p-value, and drawn again for an interval, and the `seed` of both."""

    permutations: int = 9999
    draws: int = 2000
    seed: int = 0

    def __post_init__(self):
        check_positive(self.permutations, "`permutations`")
        check_positive(self.draws, "`draws`")


RESAMPLING = Resampling()


def pair_scores(scores: Any, names: Sequence[str], argument: str, combine=np.mean) -> np.ndarray:
    """A symmetric (N, N) float64 matrix with NaN on the diagonal; `combine` makes one score of the two directions."""
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
    forward, backward = np.where(np.isnan(S), S.T, S), np.where(np.isnan(S.T), S, S.T)
    return combine([forward, backward], axis=0)


def row_means(S: np.ndarray) -> np.ndarray:
    """Mean of what was measured in each row; NaN where nothing was."""
    counts = (~np.isnan(S)).sum(1)
    return np.nansum(S, axis=1) / np.where(counts > 0, counts, np.nan)


def complete(S: np.ndarray) -> np.ndarray:
    """Positions of the models left after removing those with most missing scores, until no score is missing."""
    kept = np.arange(len(S))
    while True:
        missing = np.isnan(S[np.ix_(kept, kept)]).sum(1) - 1  # the diagonal is no score
        if not len(kept) or not missing.any():
            break
        kept = np.delete(kept, missing.argmax())
    if len(kept) < LEAST_FACTOR_MODELS:
        raise InputError(
            f"`scores` must hold at least {LEAST_FACTOR_MODELS} models of which every pair was measured; "
            f"got {len(kept)} of {len(S)}. Measure the missing pairs."
        )
    return kept


def mask_of_names(chosen: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """A mask (N,) of the names that are chosen; InputError on an unknown name or none at all."""
    unknown = [name for name in chosen if name not in names]
    if unknown or not len(chosen):
        raise InputError(f"`against` must name some of `names`; got {unknown[0] if unknown else 'none'!r}.")
    return np.array([name in chosen for name in names])


def permute_models(draws: int, n: int, random: np.random.Generator) -> np.ndarray:
    """Random orders (draws, n) of n models."""
    return random.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)


def share_as_large(draws: np.ndarray, observed) -> float:
    """The add-one p-value; draws that differ from the observed value only by rounding count as large."""
    return (1 + int((draws >= observed - ROUNDING * np.abs(draws).max()).sum())) / (len(draws) + 1)


def check_length(entries: Sequence, N: int, argument: str) -> None:
    if len(entries) != N:
        raise InputError(f"`{argument}` must hold one entry a name ({N}); got {len(entries)}.")
