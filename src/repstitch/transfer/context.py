"""The context of a transfer: two spaces, the stitchers between them, and rows of both."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from repstitch.embeddings.fingerprints import id_fingerprints
from repstitch.embeddings.ids import IdColumn
from repstitch.embeddings.pairs import MIN_PAIRS, Pairs, pair
from repstitch.embeddings.reading import place_group, read
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike, invalid_rows
from repstitch.embeddings.splitting import SHARES, Split, split
from repstitch.errors import InputError
from repstitch.spaces import Space, adopt
from repstitch.stitchers.held_out import refuse_other_side, seen_in_training
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.labels import label
from repstitch.transfer.linear import LinearMap, evenly_spaced, linearise

log = logging.getLogger(__name__)

Way = Literal["forward", "backward"]
WAYS = {"forward": "a stitcher from source to target", "backward": "a stitcher from target to source"}


@dataclass(frozen=True, eq=False)
class PairedRows:
    """Rows of the same items in both spaces, with the split that was used to train the stitchers.

    `pairs` has the target's rows as X and the source's rows as Y. `seen_in_training` (n,) is true for the pairs that
    were used to train either stitcher or to select its settings.
    """

    pairs: Pairs
    split: Split
    seen_in_training: np.ndarray

    @property
    def target(self) -> np.ndarray:
        return self.pairs.X

    @property
    def source(self) -> np.ndarray:
        return self.pairs.Y

    @property
    def unseen_test_rows(self) -> np.ndarray:
        """Positions of the test rows that neither stitcher saw in training."""
        return self.split.test[~self.seen_in_training[self.split.test]]


@dataclass(frozen=True, eq=False)
class TransferContext:
    """The spaces, stitchers and rows that a transfer and its evaluation use. Create it with `build_context`.

    `forward` is a stitcher from source to target, `backward` one from target to source. At least one of them is set.
    `target_rows` may have labels. `paired_rows` contains the items with rows in both spaces, and is None if rows were
    not paired. If `tangent` is true, affine stitchers are replaced by their Jacobian, as MLPs always are. If
    `drop_invalid` is true, rows with NaN, Inf or only zeros are left out.
    """

    forward: Stitcher | None
    backward: Stitcher | None
    source: Space
    target: Space
    source_rows: Embeddings | None = field(default=None, repr=False)
    target_rows: Embeddings | None = field(default=None, repr=False)
    paired_rows: PairedRows | None = field(default=None, repr=False)
    tangent: bool = False
    drop_invalid: bool = False

    def stitcher(self, way: Way, purpose: str = "") -> Stitcher:
        """Return the `forward` or `backward` stitcher. Raises InputError, ending in `purpose`, if it is missing."""
        stitcher = self.forward if way == "forward" else self.backward
        if stitcher is None:
            raise InputError(f"`{way}`, {WAYS[way]}, is needed{purpose}.")
        return stitcher

    def norms(self, way: Way) -> tuple[str, str]:
        """Return how the `forward` or `backward` stitcher normalises source rows and target rows, in this order."""
        stitcher = self.stitcher(way)
        if way == "forward":
            return stitcher.input_norm, stitcher.output_norm
        return stitcher.output_norm, stitcher.input_norm

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.target_rows is None else self.target_rows.labels

    @cached_property
    def forward_map(self) -> LinearMap | None:
        """The forward stitcher as one affine map; None without a forward stitcher."""
        if self.forward is None:
            return None
        paired = None if self.paired_rows is None else self.paired_rows.source
        return linearise(self.forward, self._jacobian_rows(paired, self.source_rows), self.tangent)

    @cached_property
    def backward_map(self) -> LinearMap | None:
        """The backward stitcher as one affine map; None without a backward stitcher."""
        if self.backward is None:
            return None
        paired = None if self.paired_rows is None else self.paired_rows.target
        return linearise(self.backward, self._jacobian_rows(paired, self.target_rows), self.tangent)

    def _jacobian_rows(self, paired: np.ndarray | None, embeddings: Embeddings | None) -> np.ndarray | None:
        """Select at most 2,000 rows for a Jacobian: from the training rows if rows are paired, else from all rows."""
        if paired is not None and self.paired_rows is not None:
            return evenly_spaced(paired[self.paired_rows.split.train])
        if embeddings is None:
            return None
        rows = embeddings.vectors
        return evenly_spaced(rows[~_invalid(rows)] if self.drop_invalid else rows)

    def read_source_rows(self, rows: EmbeddingsLike, argument: str) -> Embeddings:
        """Read further rows and check that they can be in the source space. Error messages name them `argument`."""
        source, target = _ends(self.forward, self.backward)
        return _check_space(read(rows), argument, source, target)


def build_context(  # noqa: PLR0913 - all that a transfer uses
    forward: Stitcher | None = None,
    backward: Stitcher | None = None,
    source: EmbeddingsLike | None = None,
    target: EmbeddingsLike | None = None,
    labels=None,
    *,
    paired: bool = False,
    drop_invalid: bool = False,
    tangent: bool = False,
    id_column: IdColumn | None = None,
) -> TransferContext:
    """Build the context of a transfer from stitchers and rows.

    `source` and `target` are files, `Embeddings` or arrays. `labels` are the classes of the target's rows, see
    `labels.label`; `id_column` names the column of ids of their table. With `labels` or `paired`, both sides must have
    rows of the same items; they are paired by id if both sides have ids, else by position. `drop_invalid` leaves out
    rows with NaN, Inf or only zeros. `tangent` uses the Jacobian of affine stitchers too. Raises InputError if the
    stitchers do not connect the same two spaces, if rows are in another space, and if rows cannot be read or paired.
    """
    check_stitchers(forward, backward)
    source_end, target_end = _ends(forward, backward)
    target_rows = None if target is None else _check_space(read(target), "target", target_end, source_end)
    source_rows = None if source is None else _check_space(read(source), "source", source_end, target_end)
    if labels is not None:
        if target_rows is None:
            raise InputError("`labels` are the classes of the target's rows; pass `target` too.")
        target_rows = label(target_rows, labels, id_column)
    paired_rows = None
    if (paired or labels is not None) and source_rows is not None and target_rows is not None:
        paired_rows = _pair_rows(forward, backward, source_rows, target_rows, drop_invalid)
    return TransferContext(
        forward, backward, source_end[0], target_end[0], source_rows, target_rows, paired_rows, tangent, drop_invalid
    )


def read_rows(
    source: EmbeddingsLike | None,
    target: EmbeddingsLike | None,
    *,
    source_space: str | Space | None = None,
    target_space: str | Space | None = None,
    source_ids=None,
    target_ids=None,
    group=None,
    id_column: IdColumn | None = None,
) -> tuple[Embeddings | None, Embeddings | None]:
    """Read the rows of both sides for `build_context`, adding spaces, ids and groups that their files do not state.

    `group` is the name of a column in either file, `table.csv:column`, or a file or array with one group per row. Rows
    of one group stay in the same part of the split. Groups are attached to the side that has them as a column; all
    others to the target, or to the source without a target. Raises InputError if the groups cannot be read.
    """
    target_group, source_group = place_group((target, source), group)
    if target is not None:
        target = read(target, space=target_space, ids=target_ids, group=target_group, id_column=id_column)
    if source is not None:
        source = read(source, space=source_space, ids=source_ids, group=source_group, id_column=id_column)
    return source, target


def unseen_labelled_rows(forward: Stitcher, target_rows: Embeddings | None, drop_invalid: bool = False) -> Embeddings:
    """Return the labelled target rows that the forward stitcher was not trained on. Training rows are recognised by id.

    Without ids, all labelled rows are returned and a warning is logged. `drop_invalid` also leaves out rows with NaN,
    Inf or only zeros. Raises InputError if no row is left.
    """
    if target_rows is None or target_rows.labels is None:
        raise InputError("`labels` and the `target` rows that they belong to are needed.")
    kept = np.array([text is not None for text in target_rows.labels])
    seen_by_id = np.zeros(len(kept), dtype=bool)
    if target_rows.ids is not None:
        seen_by_id = np.isin(id_fingerprints(target_rows.ids), forward.seen)
    if target_rows.ids is None or (forward.provenance.get("paired_by") == "position" and not seen_by_id.any()):
        log.warning(
            "Rows that the stitcher was trained on are recognised by id, but these rows or the training rows have no "
            "ids: all labelled rows are used as test rows, including any that were used in training."
        )
    kept &= ~seen_by_id
    if drop_invalid:
        kept &= ~_invalid(target_rows.vectors)
    if not kept.any():
        raise InputError("All usable labelled target rows were used to train the stitcher; pass rows that were not.")
    return target_rows.take(kept)


End = tuple[Space, np.ndarray]  # a space and the mean of its training rows


def check_stitchers(forward: Stitcher | None, backward: Stitcher | None) -> None:
    """Check that there is at least one stitcher, and that two stitchers map between the same spaces in both ways."""
    if forward is None and backward is None:
        raise InputError(
            "`forward`, a stitcher from source to target, or `backward`, a stitcher from target to source, is needed."
        )
    if forward is None or backward is None:
        return
    for end, space, other in (
        ("source", forward.source, backward.target),
        ("target", forward.target, backward.source),
    ):
        difference = space.conflict(other) or (space.dim != other.dim and f"dim {space.dim} against {other.dim}")
        if difference:
            forth = f"{forward.source.name} -> {forward.target.name}"
            back = f"{backward.source.name} -> {backward.target.name}"
            raise InputError(
                f"`backward` must map the target space of `forward` to its source space; the {end} spaces differ "
                f"({difference}): `forward` is {forth}, `backward` is {back}."
            )


def _ends(forward: Stitcher | None, backward: Stitcher | None) -> tuple[End, End]:
    if forward is not None:
        return (forward.source, forward.source_mean), (forward.target, forward.target_mean)
    assert backward is not None
    return (backward.target, backward.target_mean), (backward.source, backward.source_mean)


def _check_space(rows: Embeddings, argument: str, end: End, other_end: End) -> Embeddings:
    """Check that rows can be in the space at this end of the stitchers, and return them."""
    adopt(rows.space, rows.declared, end[0], f"`{argument}`", opposite=other_end[0])
    if not rows.declared and len(rows) > 1:
        usable = rows.vectors[~_invalid(rows.vectors)].astype(np.float32)
        if len(usable):
            refuse_other_side(usable, end, other_end, argument)
    return rows


def _pair_rows(
    forward: Stitcher | None, backward: Stitcher | None, source: Embeddings, target: Embeddings, drop_invalid: bool
) -> PairedRows | None:
    """Pair and split the rows. Returns None for unlabelled rows that are too few to split; a Jacobian can use them."""
    if target.labels is None and min(len(source), len(target)) < MIN_PAIRS:
        return None
    pairs = pair(target, source, drop_invalid, side_names=("target", "source"))
    masks, stitcher = [], forward
    if forward is not None:
        masks.append(seen_in_training(forward, replace(pairs, X=pairs.Y, Y=pairs.X)))
    if backward is not None:
        masks.append(seen_in_training(backward, pairs))
        stitcher = backward
    assert stitcher is not None
    return PairedRows(pairs, _split_as_in_training(pairs, stitcher.split), np.any(masks, axis=0))


def _split_as_in_training(pairs: Pairs, record: dict) -> Split:
    """Split pairs with the shares and seed of the stitcher's `record`, so that its test rows are test rows here."""
    if record.get("group") and pairs.groups is None:
        log.warning("The stitcher was trained with groups (%s); pass `group` here too.", record["group"])
    shares = record.get("shares", SHARES)
    return split(pairs, shares if shares[-1] else SHARES, record.get("seed", 0))


def _invalid(rows: np.ndarray) -> np.ndarray:
    """Mask (n,) of the rows with NaN, Inf or only zeros."""
    return np.any(list(invalid_rows(rows).values()), axis=0)
