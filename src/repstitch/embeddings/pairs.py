"""Pairs: the matched rows of two spaces, without the rows that cannot be used."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from repstitch.embeddings.fingerprints import digests, repeated_rows
from repstitch.embeddings.ids import without_views
from repstitch.embeddings.rows import Embeddings, RowIndex, check_unique, invalid_rows, take_entries, with_range_ids
from repstitch.errors import InputError
from repstitch.spaces import Space

log = logging.getLogger(__name__)
MIN_PAIRS = 20


@dataclass(frozen=True, eq=False)
class Pairs:
    """Matched rows: `X` (n, d_source) and `Y` (n, d_target) float32, with one id per pair.

    `groups` and `labels` (n,) are optional. `by` is "id" if both sides have ids, else "position". `dropped` contains
    the number of rows that were left out, by reason. `payload` has the further columns of both sides that were read.
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
    payload: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.X)

    def __repr__(self) -> str:
        return f"Pairs({len(self):,} rows of {self.source.name!r} and {self.target.name!r}, by {self.by})"

    def take(self, rows: RowIndex) -> "Pairs":
        """Return the pairs at these positions, in that order, or the pairs where a mask is true."""
        groups, labels = take_entries(self.groups, rows), take_entries(self.labels, rows)
        payload = None if self.payload is None else self.payload.take(np.arange(len(self))[rows])
        parts = {"ids": self.ids[rows], "groups": groups, "labels": labels, "payload": payload}
        return replace(self, X=self.X[rows], Y=self.Y[rows], **parts)


def pair(
    source: Embeddings,
    target: Embeddings,
    drop_invalid: bool = False,
    least: int = MIN_PAIRS,
    side_names: tuple[str, str] = ("source", "target"),
) -> Pairs:
    """Match the rows of two sets of embeddings: by id if both have ids, else by position.

    Rows with NaN, Inf or only zeros raise InputError. With `drop_invalid` they are left out and counted, and so are
    repeats of an identical pair. Messages call the two sides `side_names`. Raises InputError on repeated ids, no common
    id, different numbers of rows when pairing by position, or fewer than `least` pairs.
    """
    for name, embeddings in zip(side_names, (source, target), strict=True):
        if not len(embeddings):
            raise InputError(f"The {name} has no rows; at least {least} pairs are needed.")
    dropped: dict[str, int] = {}
    source, target = with_range_ids([source, target])
    if source.ids is not None and target.ids is not None:
        by = "id"
        source_rows, target_rows = _match(source.ids, target.ids, side_names)
        dropped[f"{side_names[0]} only"] = len(source) - len(source_rows)
        dropped[f"{side_names[1]} only"] = len(target) - len(target_rows)
        if not len(source_rows):
            raise InputError(
                f"No id is in both files ({side_names[0]} has e.g. {source.ids[0]!r}, {side_names[1]} "
                f"{target.ids[0]!r}); pass embeddings of the same items."
            )
    else:
        by = "position"
        without_ids = [name for name, side in zip(side_names, (source, target), strict=True) if side.ids is None]
        missing = " and ".join(f"`{name}_ids`" for name in without_ids)
        if len(source) != len(target):
            raise InputError(
                "Without ids on both sides rows are paired by position, so both sides must have the same number of "
                f"rows; got {len(source)} and {len(target)}. To pair by id, pass {missing}, with one id per row."
            )
        source_rows = target_rows = np.arange(len(source))
        if len(without_ids) == 1:
            side = source if source.ids is None else target
            log.warning(
                "The %s (%s) has no ids, so rows are paired by position; pass %s to pair by id.",
                *without_ids,
                side.space.name,
                missing,
            )
    X = np.asarray(source.vectors[source_rows], dtype=np.float32)
    Y = np.asarray(target.vectors[target_rows], dtype=np.float32)

    def either(name: str) -> np.ndarray | None:
        """Return the source's column of this name, or the target's if the source has none, in the pairs' order."""
        columns = ((getattr(source, name), source_rows), (getattr(target, name), target_rows))
        return next((column[rows] for column, rows in columns if column is not None), None)

    ids = either("ids")
    if ids is None:
        ids = np.array([digest.hex() for digest in digests(X, Y)], dtype=object)
    payload = _columns_of_both((source, source_rows), (target, target_rows))
    pairs = Pairs(X, Y, source.space, target.space, ids, by, either("groups"), dropped, either("labels"), payload)
    pairs = _drop_invalid(pairs, drop_invalid, side_names)
    if len(pairs) < least:
        raise InputError(f"At least {least} pairs are needed; got {len(pairs)}. Embed more items with both encoders.")
    return pairs


def _columns_of_both(*sides: tuple[Embeddings, np.ndarray]) -> pa.Table | None:
    """Return the further columns of both sides in the pairs' order; of two with one name, the source's."""
    columns = {}
    for side, rows in sides:
        if side.payload is not None:
            taken = without_views(side.payload).take(rows)
            columns = dict(zip(taken.column_names, taken.columns, strict=True)) | columns
    return pa.table(columns) if columns else None


def _match(
    source_ids: np.ndarray, target_ids: np.ndarray, side_names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of each side whose ids are on both sides, in the source's order."""
    for name, ids in zip(side_names, (source_ids, target_ids), strict=True):
        check_unique(ids, f"the {name}")
    target_row = {key: row for row, key in enumerate(target_ids)}
    source_rows = [row for row, key in enumerate(source_ids) if key in target_row]
    return np.array(source_rows, dtype=int), np.array([target_row[source_ids[row]] for row in source_rows], dtype=int)


def _drop_invalid(pairs: Pairs, drop: bool, side_names: tuple[str, str]) -> Pairs:
    keep = np.ones(len(pairs), dtype=bool)
    counts: dict[str, int] = {}
    for name, X in zip(side_names, (pairs.X, pairs.Y), strict=True):
        for reason, mask in invalid_rows(X).items():
            if mask.any():
                counts[f"{name} {reason}"] = int(mask.sum())
                keep &= ~mask
    if counts and not drop:
        reasons = ", ".join(f"{n} with {reason}" for reason, n in counts.items())
        row = int(np.argmin(keep))
        first = f"id {pairs.ids[row]!r}" if pairs.by == "id" else f"row {row}"
        raise InputError(
            f"The pairs have rows that cannot be used: {reasons} (first: {first}). Leave them out with `drop_invalid`."
        )
    if drop:
        repeats = repeated_pairs(pairs) & keep
        if repeats.any():
            counts["repeats of an identical pair"] = int(repeats.sum())
            keep &= ~repeats
    if counts:
        log.warning("Left out: %s.", ", ".join(f"{n} {reason}" for reason, n in counts.items()))
        pairs = replace(pairs.take(keep), dropped=pairs.dropped | counts)
    return pairs


def repeated_pairs(pairs: Pairs) -> np.ndarray:
    """Return a mask (n,) of the pairs (x, y) that equal an earlier pair byte for byte."""
    return repeated_rows(pairs.X, pairs.Y)
