"""Pairs: the matched rows of two spaces, without the rows that cannot be used."""

import logging
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np

from repstitch.embeddings.fingerprints import digests
from repstitch.embeddings.rows import Embeddings, check_unique, invalid_rows
from repstitch.errors import InputError
from repstitch.spaces import Space

log = logging.getLogger(__name__)
MIN_PAIRS = 20


@dataclass(frozen=True)
class Pairs:
    """Matched rows: `X` (n, d_source) and `Y` (n, d_target) float32, one id (and perhaps one group and label) a pair.

    `by` is "id" where both files carried ids, else "position". `dropped` counts what was left out, by reason.
    """

    X: np.ndarray
    Y: np.ndarray
    source: Space
    target: Space
    ids: np.ndarray
    by: str
    groups: np.ndarray | None
    dropped: dict[str, int]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.X)

    def take(self, rows) -> "Pairs":
        groups, labels = (None if column is None else column[rows] for column in (self.groups, self.labels))
        return replace(self, X=self.X[rows], Y=self.Y[rows], ids=self.ids[rows], groups=groups, labels=labels)


def pair(
    source: Embeddings,
    target: Embeddings,
    drop_invalid: bool = False,
    least: int = MIN_PAIRS,
    sides: tuple[str, str] = ("source", "target"),
) -> Pairs:
    """Match the rows of two sets of embeddings: by id where both have ids, else by position.

    Rows with NaN, Inf or only zeros are refused, or left out and counted with `drop_invalid`, which also leaves out
    repeats of an identical pair. `sides` is what messages call the two. Raises InputError on duplicate ids, lengths
    that differ, or fewer than `least` pairs.
    """
    for side, rows in zip(sides, (source, target), strict=True):
        if not len(rows):
            raise InputError(f"The {side} has no rows; at least {least} pairs are needed.")
    dropped: dict[str, int] = {}
    if source.ids is not None and target.ids is not None:
        by = "id"
        left, right = _match(source.ids, target.ids, sides)
        dropped[f"{sides[0]} only"] = len(source) - len(left)
        dropped[f"{sides[1]} only"] = len(target) - len(right)
        if not len(left):
            raise InputError(
                f"No id is in both files ({sides[0]} has e.g. {source.ids[0]!r}, {sides[1]} {target.ids[0]!r}); "
                "give files of the same items."
            )
    else:
        by = "position"
        if len(source) != len(target):
            raise InputError(
                f"Rows without ids pair by position, so both files must have as many; got {len(source)} and "
                f"{len(target)}. Give ids for both."
            )
        left = right = np.arange(len(source))
        if (source.ids is None) != (target.ids is None):
            log.warning("Only one side carries ids; the rows are paired by position.")
    X = np.asarray(source.vectors[left], dtype=np.float32)
    Y = np.asarray(target.vectors[right], dtype=np.float32)
    ids = _pair_ids(source, target, left, right, X, Y)
    groups, labels = (
        next((column[rows] for column, rows in ((of(source), left), (of(target), right)) if column is not None), None)
        for of in (attrgetter("groups"), attrgetter("labels"))
    )
    pairs = Pairs(X, Y, source.space, target.space, ids, by, groups, dropped, labels)
    pairs = _drop_invalid(pairs, drop_invalid, sides)
    if len(pairs) < least:
        raise InputError(f"At least {least} pairs are needed; got {len(pairs)}. Embed more items with both encoders.")
    return pairs


def _drop_invalid(pairs: Pairs, drop: bool, sides: tuple[str, str]) -> Pairs:
    keep = np.ones(len(pairs), dtype=bool)
    counts: dict[str, int] = {}
    for side, X in zip(sides, (pairs.X, pairs.Y), strict=True):
        for what, mask in invalid_rows(X).items():
            if mask.any():
                counts[f"{side} {what}"] = int(mask.sum())
                keep &= ~mask
    if counts and not drop:
        found = ", ".join(f"{n} with {what}" for what, n in counts.items())
        first = pairs.ids[int(np.argmin(keep))]
        raise InputError(
            f"The pairs hold rows that cannot be used: {found} (first: id {first!r}). "
            "Leave them out with --drop-invalid."
        )
    if drop:
        repeats = repeated_pairs(pairs) & keep
        if repeats.any():
            counts["repeats of an identical pair"] = int(repeats.sum())
            keep &= ~repeats
    if counts:
        log.warning("Left out: %s.", ", ".join(f"{n} {what}" for what, n in counts.items()))
        pairs = replace(pairs.take(keep), dropped=pairs.dropped | counts)
    return pairs


def repeated_pairs(pairs: Pairs) -> np.ndarray:
    """A mask (n,) of the pairs whose (x, y) already occurred further up, byte for byte."""
    first: set[bytes] = set()
    repeats = np.zeros(len(pairs), dtype=bool)
    for i, digest in enumerate(digests(pairs.X, pairs.Y)):
        repeats[i] = digest in first
        first.add(digest)
    return repeats


def _pair_ids(source, target, left, right, X, Y) -> np.ndarray:
    if source.ids is not None:
        return source.ids[left]
    if target.ids is not None:
        return target.ids[right]
    return np.array([digest.hex() for digest in digests(X, Y)], dtype=object)


def _match(a: np.ndarray, b: np.ndarray, sides: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    for side, ids in zip(sides, (a, b), strict=True):
        check_unique(ids, side)
    where = {key: i for i, key in enumerate(b)}
    left = [i for i, key in enumerate(a) if key in where]
    return np.array(left, dtype=int), np.array([where[a[i]] for i in left], dtype=int)
