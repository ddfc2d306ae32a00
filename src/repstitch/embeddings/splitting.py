"""Split pairs into train, validation and test, or into folds.

The part of a pair depends only on its id or group and on the seed, so held-out pairs stay held out in every run and for
every model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from repstitch.arguments import check_shares, check_whole
from repstitch.embeddings.fingerprints import hash_key
from repstitch.embeddings.pairs import Pairs
from repstitch.errors import InputError

SHARES = (0.6, 0.15, 0.25)  # of train, validation and test
FOLDS = 5
MOST_FOLDS = 20


@dataclass(frozen=True, eq=False)
class Split:
    """Row positions of the four parts; validation is `select` and `calibrate` together."""

    train: np.ndarray
    select: np.ndarray
    calibrate: np.ndarray
    test: np.ndarray

    @property
    def validation(self) -> np.ndarray:
        return np.union1d(self.select, self.calibrate)

    def __repr__(self) -> str:
        return f"Split({len(self.train):,} train, {len(self.validation):,} validation, {len(self.test):,} test)"


def split(pairs: Pairs, fractions: Sequence[float] = SHARES, seed: int = 0) -> Split:
    """Split pairs into train, validation (two halves) and test by a hash of each id, or of its group.

    A pair with the same id or group is in the same part in every run, for every model and whatever the other rows are.
    `fractions` are the shares of train, validation and test. They sum to 1, and only the share of test may be 0. Raises
    InputError if train, validation or a test part with a share above 0 has fewer than two pairs.
    """
    shares = check_shares(fractions)
    keys = pairs.ids if pairs.groups is None else pairs.groups
    hashes = np.array([hash_key(seed, key) for key in keys], dtype=np.uint64).reshape(-1, 2)
    place = hashes[:, 0] / 2.0**64
    half = hashes[:, 1] % 2 == 0
    train = place < shares[0]
    test = (place >= shares[0] + shares[1]) & (shares[2] > 0)
    validation = ~train & ~test
    parts = Split(*(np.flatnonzero(mask) for mask in (train, validation & half, validation & ~half, test)))
    if min(len(parts.select), len(parts.calibrate)) < 2:
        # Too few pairs to halve: both halves get all validation pairs, and the scorecard prints their number.
        parts = replace(parts, select=parts.validation, calibrate=parts.validation)
    for name, rows, needed in (
        ("train", train, 2),
        ("validation", validation, 2),
        ("test", test, 2 if shares[2] else 0),
    ):
        if rows.sum() < needed:
            raise InputError(
                f"Only {int(rows.sum())} pairs fell into {name}; pass more pairs (or groups), or another `split` or "
                "`split_seed`."
            )
    return parts


def folds_of(pairs: Pairs, n_folds: int, seed: int = 0, is_own: np.ndarray | None = None) -> np.ndarray:
    """Return the fold (n,) of each pair, from 0 on: equally many ids, or groups, in each, in the order of their hashes.

    Only pairs of the mask `is_own` (n,), all by default, are in a fold; the fold of the others is −1. Raises
    InputError if there are fewer ids or groups than folds, or if `n_folds` is not from 2 to 20.
    """
    if not 2 <= check_whole(n_folds, "`folds`") <= MOST_FOLDS:
        raise InputError(f"`folds` must be from 2 to {MOST_FOLDS}; got {n_folds}.")
    is_own = np.ones(len(pairs), dtype=bool) if is_own is None else is_own
    keys = (pairs.ids if pairs.groups is None else pairs.groups)[is_own]
    order = sorted(set(keys), key=lambda key: hash_key(seed, key))
    if len(order) < n_folds:
        kind = "pairs" if pairs.groups is None else "groups"
        raise InputError(f"{len(order)} own {kind} are fewer than the {n_folds} `folds`; pass more pairs.")
    fold_of = {key: place % n_folds for place, key in enumerate(order)}
    folds = np.full(len(pairs), -1)
    folds[is_own] = [fold_of[key] for key in keys]
    return folds


def finest_folds(pairs: Pairs, seed: int = 0, is_own: np.ndarray | None = None) -> np.ndarray:
    """Return the folds (n,) of `folds_of` for 20 folds, or as many as there are own ids or groups."""
    is_own = np.ones(len(pairs), dtype=bool) if is_own is None else is_own
    n_keys = len(set((pairs.ids if pairs.groups is None else pairs.groups)[is_own]))
    return folds_of(pairs, min(MOST_FOLDS, n_keys), seed, is_own)
