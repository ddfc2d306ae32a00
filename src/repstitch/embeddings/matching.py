"""MatchedSpaces rows of many spaces: the items that all of them hold, in one order."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from repstitch.embeddings.fingerprints import digests
from repstitch.embeddings.pairs import MIN_PAIRS
from repstitch.embeddings.rows import Embeddings, check_unique, invalid_rows
from repstitch.errors import InputError
from repstitch.spaces import Space

log = logging.getLogger(__name__)

REPEATS = "repeats of an identical item"


@dataclass(frozen=True)
class MatchedSpaces:
    """The same n items in N spaces: `rows[i]` (n, d_i) float32 are those of `spaces[i]`, in one order.

    `ids` (n,) where the files carried them and None where rows matched by position; `left_out` counts, for each space
    by name, the rows that are not here, by reason.
    """

    spaces: tuple[Space, ...]
    rows: tuple[np.ndarray, ...] = field(repr=False)
    ids: np.ndarray | None = field(repr=False)
    left_out: dict[str, dict[str, int]]

    def __len__(self) -> int:
        return len(self.rows[0])

    @property
    def names(self) -> list[str]:
        return [space.name for space in self.spaces]


def match(embeddings: Sequence[Embeddings], drop_invalid: bool = False, least: int = MIN_PAIRS) -> MatchedSpaces:
    """The rows that all of these spaces hold: those of the ids common to all, or by position where one has no ids.

    What is left out of each space is counted and warned of. Rows with NaN, Inf or only zeros in any space are refused,
    or with `drop_invalid` left out of all, as are then repeats of an item that is the same in every space. Raises
    InputError on fewer than two spaces, two of one name, ids that occur twice or are nowhere common, lengths that
    differ where position counts, or fewer than `least` rows. Each file is looked through once, however many there are.
    """
    if len(embeddings) < 2:
        raise InputError(f"`embeddings` must hold at least two spaces; got {len(embeddings)}.")
    names = [e.space.name for e in embeddings]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"Spaces must have names of their own; {twice[0]!r} is there twice. Rename one of the files or its card."
        )
    for name, one in zip(names, embeddings, strict=True):
        if not len(one):
            raise InputError(f"{name} has no rows; at least {least} are needed.")
    left_out: dict[str, dict[str, int]] = {name: {} for name in names}
    if all(e.ids is not None for e in embeddings):
        ids, places = _common(names, [e.ids for e in embeddings if e.ids is not None])
        for name, one in zip(names, embeddings, strict=True):
            if len(one) > len(ids):
                left_out[name]["not in every space"] = len(one) - len(ids)
        rows = tuple(np.asarray(e.vectors[at], dtype=np.float32) for e, at in zip(embeddings, places, strict=True))
    else:
        ids = _by_position(names, embeddings)
        rows = tuple(np.asarray(e.vectors, dtype=np.float32) for e in embeddings)
    keep = _usable(names, rows, ids, left_out, drop_invalid)
    if not keep.all():
        rows = tuple(X[keep] for X in rows)
        ids = None if ids is None else ids[keep]
    if len(rows[0]) < least:
        raise InputError(
            f"At least {least} items must be in every space; got {len(rows[0])}. Embed more items with all encoders."
        )
    for name, reasons in left_out.items():
        own = [f"{n} {what}" for what, n in reasons.items() if what != REPEATS]
        if own:
            log.warning("Left out of %s: %s.", name, ", ".join(own))
    if REPEATS in left_out[names[0]]:
        log.warning("Left out of every space: %d %s.", left_out[names[0]][REPEATS], REPEATS)
    return MatchedSpaces(tuple(e.space for e in embeddings), rows, ids, left_out)


def _common(names: list[str], ids: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The ids that are everywhere, in the first space's order, and where each space has them."""
    for name, own in zip(names, ids, strict=True):
        check_unique(own, name)
    shared = set(ids[0]).intersection(*ids[1:])
    if not shared:
        some = ", ".join(f"{name} has e.g. {own[0]!r}" for name, own in list(zip(names, ids, strict=True))[:3])
        raise InputError(f"No id is in every file ({some}); give files of the same items.")
    common = np.array([key for key in ids[0] if key in shared], dtype=object)
    places = []
    for own in ids:
        where = {key: i for i, key in enumerate(own)}
        places.append(np.array([where[key] for key in common]))
    return common, places


def _by_position(names: list[str], embeddings: Sequence[Embeddings]) -> np.ndarray | None:
    """The ids that rows have if some spaces carry them; all spaces must then be of one length and order."""
    lengths = [len(e) for e in embeddings]
    if len(set(lengths)) > 1:
        said = ", ".join(f"{name} {n}" for name, n in zip(names, lengths, strict=True))
        raise InputError(
            f"Rows without ids match by position, so all files must have as many; got {said}. Give ids for all."
        )
    carried = [(name, e.ids) for name, e in zip(names, embeddings, strict=True) if e.ids is not None]
    if not carried:
        return None
    first, ids = carried[0]
    for name, own in carried[1:]:
        if (own != ids).any():
            raise InputError(
                f"Some files have no ids, so rows match by position, but {first} and {name} hold their ids in another "
                "order. Give ids for all."
            )
    bare = next(name for name, e in zip(names, embeddings, strict=True) if e.ids is None)
    log.warning("%s carries no ids; all rows are matched by position.", bare)
    return ids


def _usable(names, rows, ids, left_out: dict[str, dict[str, int]], drop: bool) -> np.ndarray:
    """A mask (n,) of the rows that can be used in every space; what cannot is counted in `left_out`, or refused."""
    keep = np.ones(len(rows[0]), dtype=bool)
    for name, X in zip(names, rows, strict=True):
        for what, bad in invalid_rows(X).items():
            if bad.any() and not drop:
                first = int(bad.argmax())
                where = f"row {first}" if ids is None else f"id {ids[first]!r}"
                raise InputError(
                    f"{name} holds rows that cannot be used: {int(bad.sum())} with {what} (first: {where}). "
                    "Leave them out with --drop-invalid."
                )
            if bad.any():
                left_out[name][what] = int(bad.sum())
                keep &= ~bad
    if drop:
        seen: set[bytes] = set()
        repeats = np.zeros(len(keep), dtype=bool)
        for i, digest in enumerate(digests(*rows)):
            repeats[i] = keep[i] and digest in seen
            seen.add(digest)
        if repeats.any():
            for reasons in left_out.values():
                reasons[REPEATS] = int(repeats.sum())
            keep &= ~repeats
    return keep
