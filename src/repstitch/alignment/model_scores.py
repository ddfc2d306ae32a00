"""Helpers of the tests over many models: check the matrix of scores, permute models, compute p-values."""

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
    """Numbers of `permutations` of the models for p-values and of `draws` of models for intervals, and the `seed`."""

    permutations: int = 9999
    draws: int = 2000
    seed: int = 0

    def __post_init__(self):
        check_positive(self.permutations, "`permutations`")
        check_positive(self.draws, "`draws`")


RESAMPLING = Resampling()


def pair_scores(scores: Any, names: Sequence[str], argument: str, combine=np.mean) -> np.ndarray:
    """Return `scores` as a symmetric (N, N) float64 matrix with NaN on the diagonal.

    `combine` turns the scores of both directions into one. If only one direction has a score, that one is used.
    """
    S = np.array(scores, dtype=np.float64)
    N = len(names)
    if S.shape != (N, N):
        raise InputError(f"`{argument}` must have shape ({N}, {N}), one row per name; got {S.shape}.")
    if len(set(names)) < N:
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise InputError(f"`names` must be unique; {twice!r} appears twice.")
    if np.isinf(S).any():
        raise InputError(f"`{argument}` must be finite, or NaN where a pair was not scored; got Inf.")
    np.fill_diagonal(S, np.nan)
    forward, backward = np.where(np.isnan(S), S.T, S), np.where(np.isnan(S.T), S, S.T)
    return combine([forward, backward], axis=0)


def row_means(S: np.ndarray) -> np.ndarray:
    """Mean of the scores in each row, ignoring NaN; NaN for a row without scores."""
    counts = (~np.isnan(S)).sum(1)
    return np.nansum(S, axis=1) / np.where(counts > 0, counts, np.nan)


def complete(S: np.ndarray) -> np.ndarray:
    """Remove the model with most missing scores until no score is missing; return the positions of the others."""
    kept = np.arange(len(S))
    while True:
        missing = np.isnan(S[np.ix_(kept, kept)]).sum(1) - 1  # without the diagonal, which is always NaN
        if not len(kept) or not missing.any():
            break
        kept = np.delete(kept, missing.argmax())
    if len(kept) < LEAST_FACTOR_MODELS:
        raise InputError(
            f"The control for lineage requires at least {LEAST_FACTOR_MODELS} models with a score for every pair; got "
            f"{len(kept)} of {len(S)} models. Add models, or score the missing pairs."
        )
    return kept


def mask_of_names(chosen: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return a mask (N,) of the chosen names; InputError if a name is unknown or none is chosen."""
    unknown = [name for name in chosen if name not in names]
    if unknown or not len(chosen):
        raise InputError(
            f"`against` must be one or more of {', '.join(names)}; got {unknown[0] if unknown else 'none'!r}."
        )
    return np.array([name in chosen for name in names])


def permute_models(draws: int, n: int, random: np.random.Generator) -> np.ndarray:
    """Return random orders (draws, n) of n models."""
    return random.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)


def share_as_large(draws: np.ndarray, observed) -> float:
    """Return the add-one p-value. Draws that differ from the observed value only by rounding count as equally large."""
    return (1 + int((draws >= observed - ROUNDING * np.abs(draws).max()).sum())) / (len(draws) + 1)


def check_length(entries: Sequence, N: int, argument: str) -> None:
    if len(entries) != N:
        raise InputError(f"`{argument}` must have one entry per name ({N}); got {len(entries)}.")
