"""Match the rows of several spaces: keep the items that all spaces have, in one order."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from repstitch.embeddings.fingerprints import repeated_rows
from repstitch.embeddings.pairs import MIN_PAIRS
from repstitch.embeddings.rows import Embeddings, check_unique, invalid_rows, with_range_ids
from repstitch.errors import InputError
from repstitch.spaces import Space

log = logging.getLogger(__name__)

REPEATS = "repeats of an identical item"
GIVE_IDS = (
    "To match by id, every space needs ids: a column `id` in a Parquet or Arrow file, an array `ids` in an .npz file, "
    "a file NAME.ids.txt beside NAME.npy, or in Python `read(..., ids=...)`."
)


@dataclass(frozen=True, eq=False)
class MatchedSpaces:
    """The same n items in N spaces: `rows[i]` (n, d_i) float32 are their vectors in `spaces[i]`, all in one order.

    `ids` (n,) are the ids of the items, or None if no space has ids. `left_out` maps the name of each space to the
    number of rows that were left out, by reason.
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
    """Match the items that all spaces have: by id if every space has ids, else by position.

    The rows left out of each space are counted and logged as a warning. Rows with NaN, Inf or only zeros in any space
    raise InputError. With `drop_invalid` they are left out of all spaces, and so are items whose rows repeat those of
    an earlier item in every space. Raises InputError on fewer than two spaces, two spaces with the same name, repeated
    ids, no common id, different numbers of rows when matching by position, or fewer than `least` items. The ids of each
    space are read once, whatever the number of spaces.
    """
    names = _check_names(embeddings, least)
    left_out: dict[str, dict[str, int]] = {name: {} for name in names}
    embeddings = with_range_ids(embeddings)
    if all(one.ids is not None for one in embeddings):
        ids, positions = _common_ids(names, [one.ids for one in embeddings if one.ids is not None])
        for name, one in zip(names, embeddings, strict=True):
            if len(one) > len(ids):
                left_out[name]["not in every space"] = len(one) - len(ids)
        rows = tuple(
            np.asarray(one.vectors[chosen], dtype=np.float32) for one, chosen in zip(embeddings, positions, strict=True)
        )
    else:
        ids = _by_position(names, embeddings)
        rows = tuple(np.asarray(one.vectors, dtype=np.float32) for one in embeddings)
    keep = _usable(names, rows, ids, left_out, drop_invalid)
    if not keep.all():
        rows = tuple(X[keep] for X in rows)
        ids = None if ids is None else ids[keep]
    if len(rows[0]) < least:
        raise InputError(
            f"At least {least} items must be in every space; got {len(rows[0])}. Embed more items with all encoders."
        )
    _warn(left_out)
    return MatchedSpaces(tuple(one.space for one in embeddings), rows, ids, left_out)


def _check_names(embeddings: Sequence[Embeddings], least: int) -> list[str]:
    """Return the names of the spaces. Raises InputError unless two or more spaces have different names and rows."""
    if len(embeddings) < 2:
        raise InputError(f"`embeddings` must contain at least two spaces; got {len(embeddings)}.")
    names = [one.space.name for one in embeddings]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(
            f"Spaces must have different names; {repeated[0]!r} occurs more than once. Rename one of the files (in an "
            ".npz, the array) or, if it has a card, change the name in the card."
        )
    for name, one in zip(names, embeddings, strict=True):
        if not len(one):
            raise InputError(f"{name} has no rows; at least {least} are needed.")
    return names


def _common_ids(names: list[str], ids: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the ids that all spaces have, in the first space's order, and their rows in each space."""
    for name, space_ids in zip(names, ids, strict=True):
        check_unique(space_ids, name)
    shared = set(ids[0]).intersection(*ids[1:])
    if not shared:
        examples = ", ".join(f"{name} has e.g. {one[0]!r}" for name, one in list(zip(names, ids, strict=True))[:3])
        raise InputError(f"No id is in every space ({examples}); pass embeddings of the same items.")
    common = np.array([key for key in ids[0] if key in shared], dtype=object)
    positions = []
    for space_ids in ids:
        row = {key: i for i, key in enumerate(space_ids)}
        positions.append(np.array([row[key] for key in common]))
    return common, positions


def _by_position(names: list[str], embeddings: Sequence[Embeddings]) -> np.ndarray | None:
    """Match rows by position, and return the ids of the rows, or None if no space has ids.

    Raises InputError if the spaces have different numbers of rows, or if two spaces with ids have different ids.
    """
    lengths = [len(one) for one in embeddings]
    if len(set(lengths)) > 1:
        listed = ", ".join(f"{name} {n}" for name, n in zip(names, lengths, strict=True))
        raise InputError(
            "Not every space has ids, so rows are matched by position and all spaces must have the same number of "
            f"rows; got {listed}. {GIVE_IDS}"
        )
    with_ids = [(name, one.ids) for name, one in zip(names, embeddings, strict=True) if one.ids is not None]
    if not with_ids:
        return None
    first, ids = with_ids[0]
    for name, space_ids in with_ids[1:]:
        if (space_ids != ids).any():
            raise InputError(
                "Not every space has ids, so rows are matched by position, but the ids of "
                f"{first} and {name} differ or are in different orders. {GIVE_IDS}"
            )
    without_ids = [name for name, one in zip(names, embeddings, strict=True) if one.ids is None]
    log.warning("Without ids: %s; so all rows are matched by position.", ", ".join(without_ids))
    return ids


def _usable(
    names: list[str],
    rows: tuple[np.ndarray, ...],
    ids: np.ndarray | None,
    left_out: dict[str, dict[str, int]],
    drop: bool,
) -> np.ndarray:
    """Return a mask (n,) of the rows that can be used in every space.

    With `drop`, the other rows are counted in `left_out`; without it, they raise InputError.
    """
    keep = np.ones(len(rows[0]), dtype=bool)
    for name, X in zip(names, rows, strict=True):
        for reason, invalid in invalid_rows(X).items():
            if invalid.any() and not drop:
                first = int(invalid.argmax())
                row_name = f"row {first}" if ids is None else f"id {ids[first]!r}"
                raise InputError(
                    f"{name} has rows that cannot be used: {int(invalid.sum())} with {reason} (first: {row_name}). "
                    "Leave them out with `drop_invalid`."
                )
            if invalid.any():
                left_out[name][reason] = int(invalid.sum())
                keep &= ~invalid
    repeats = repeated_rows(*rows) & keep if drop else np.zeros_like(keep)
    if repeats.any():
        for reasons in left_out.values():
            reasons[REPEATS] = int(repeats.sum())
    return keep & ~repeats


def _warn(left_out: dict[str, dict[str, int]]) -> None:
    for name, reasons in left_out.items():
        listed = [f"{n} {reason}" for reason, n in reasons.items() if reason != REPEATS]
        if listed:
            log.warning("Left out of %s: %s.", name, ", ".join(listed))
    repeats = next(iter(left_out.values())).get(REPEATS)
    if repeats:
        log.warning("Left out of every space: %d %s.", repeats, REPEATS)
