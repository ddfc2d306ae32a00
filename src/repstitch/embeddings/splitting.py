"""Split pairs into train, validation and test.

The same id falls into the same part in every run and for every model, so held-out pairs stay held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from repstitch.arguments import check_shares
from repstitch.embeddings.fingerprints import hash_key
from repstitch.embeddings.pairs import Pairs
from repstitch.errors import InputError

SHARES = (0.6, 0.15, 0.25)  # of train, validation and test


@dataclass(frozen=True)
class Split:
    """Row positions of the four parts; validation is `select` and `calibrate` together."""

    train: np.ndarray
    select: np.ndarray
    calibrate: np.ndarray
    test: np.ndarray

    @property
    def validation(self) -> np.ndarray:
        return np.union1d(self.select, self.calibrate)


def split(pairs: Pairs, fractions: Sequence[float] = SHARES, seed: int = 0) -> Split:
    """Divide pairs into train, validation (halved) and test by a hash of each id, or of its group.

    The same id falls on the same side in every run, for every model and whatever other rows are there. Fractions must
    be three numbers that sum to 1; test may be 0. Raises InputError when a part that is needed comes out empty.
    """
    parts = check_shares(fractions)
    keys = pairs.ids if pairs.groups is None else pairs.groups
    hashes = np.array([hash_key(seed, key) for key in keys], dtype=np.uint64).reshape(-1, 2)
    place = hashes[:, 0] / 2.0**64
    half = hashes[:, 1] % 2 == 0
    train = place < parts[0]
    test = (place >= parts[0] + parts[1]) & (parts[2] > 0)
    validation = ~train & ~test
    result = Split(*(np.flatnonzero(m) for m in (train, validation & half, validation & ~half, test)))
    if min(len(result.select), len(result.calibrate)) < 2:
        # Too few to halve: both uses share what there is, and the scorecard prints how many that was.
        result = replace(result, select=result.validation, calibrate=result.validation)
    for name, rows, needed in (
        ("train", train, 2),
        ("validation", validation, 2),
        ("test", test, 2 if parts[2] else 0),
    ):
        if rows.sum() < needed:
            raise InputError(
                f"Only {int(rows.sum())} pairs fell into {name}; give more pairs (or groups), or another `split` or "
                "`split_seed`."
            )
    return result
