"""What is wrong with these pairs, before anything is trained."""

import logging

import numpy as np

from repstitch.errors import InputError
from repstitch.pairs import Pairs, Split, contents, repeated_pairs

log = logging.getLogger(__name__)


def check(pairs: Pairs, split: Split) -> list[str]:
    """Refuse a leak across the split; return (and log) what should only be known. Rows are `pairs.X` and `pairs.Y`."""
    refuse_leaks(pairs, split)
    notes = []
    for side, X in (("source", pairs.X), ("target", pairs.Y)):
        repeated = len(X) - len(np.unique(X, axis=0))
        if repeated:
            notes.append(f"{repeated} of {len(X)} {side} rows repeat another one.")
        if len(split.train) < X.shape[1]:
            notes.append(
                f"{len(split.train)} training pairs are fewer than the {X.shape[1]} dimensions of the {side}; "
                "the map will lean on shrinkage."
            )
    for note in notes:
        log.warning("%s", note)
    return notes


def refuse_leaks(pairs: Pairs, split: Split) -> None:
    """Raise InputError when an identical pair lies on both sides of the split, for its score would be memory."""
    repeats = repeated_pairs(pairs)
    if not repeats.any():
        return
    side = np.full(len(pairs), "train", dtype=object)
    side[split.validation], side[split.test] = "validation", "test"
    where: dict[int, set] = {}
    for content, part in zip(contents(pairs), side, strict=True):
        where.setdefault(int(content), set()).add(part)
    leaks = sum(len(parts) > 1 for parts in where.values())
    if leaks:
        raise InputError(
            f"{leaks} identical pairs lie on both sides of the split, so held-out scores would be memory; "
            "leave repeats out with --drop-invalid, or keep them together with --group."
        )
