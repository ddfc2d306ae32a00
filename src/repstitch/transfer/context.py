"""Two spaces, the stitchers between them, and rows of both: what transfers and their proofs are computed from."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from repstitch.embeddings.fingerprints import id_fingerprints
from repstitch.embeddings.pairs import MIN_PAIRS, Pairs, pair
from repstitch.embeddings.reading import read
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
    """Rows of the same items in both spaces, split as the stitchers' training split them.

    `pairs` has the target's rows as X and the source's as Y. `seen_in_training` (n,) marks the pairs that either
    stitcher was trained on or chosen by.
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
        """Positions of the test rows that neither stitcher has seen."""
        return self.split.test[~self.seen_in_training[self.split.test]]


@dataclass(frozen=True, eq=False)
class TransferContext:
    """A `forward` stitcher (source to target), a `backward` one (target to source), or both; and rows of the spaces.

    `target_rows` may carry labels. `paired_rows` are the items that have rows in both spaces, None where rows are not
    to be paired. With `tangent` affine stitchers too are replaced by their Jacobian. Made by `build_context`.
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
        """The `forward` or `backward` stitcher; InputError where it is missing."""
        stitcher = self.forward if way == "forward" else self.backward
        if stitcher is None:
            raise InputError(f"`{way}`, {WAYS[way]}, is needed{purpose}.")
        return stitcher

    def norms(self, way: Way) -> tuple[str, str]:
        """How the `forward` or `backward` stitcher normalises rows of the source and of the target."""
        stitcher = self.stitcher(way)
        if way == "forward":
            return stitcher.input_norm, stitcher.output_norm
        return stitcher.output_norm, stitcher.input_norm

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.target_rows is None else self.target_rows.labels

    @cached_property
    def forward_map(self) -> LinearMap | None:
        """The forward stitcher as one affine map."""
        if self.forward is None:
            return None
        paired = None if self.paired_rows is None else self.paired_rows.source
        return linearise(self.forward, self._jacobian_rows(paired, self.source_rows), self.tangent)

    @cached_property
    def backward_map(self) -> LinearMap | None:
        """The backward stitcher as one affine map."""
        if self.backward is None:
            return None
        paired = None if self.paired_rows is None else self.paired_rows.target
        return linearise(self.backward, self._jacobian_rows(paired, self.target_rows), self.tangent)

    def _jacobian_rows(self, paired: np.ndarray | None, embeddings: Embeddings | None) -> np.ndarray | None:
        """Rows to take a Jacobian at: the training rows where rows are paired, else all rows of that space."""
        if paired is not None and self.paired_rows is not None:
            return evenly_spaced(paired[self.paired_rows.split.train])
        if embeddings is None:
            return None
        rows = embeddings.vectors
        return evenly_spaced(rows[~_invalid(rows)] if self.drop_invalid else rows)

    def read_source_rows(self, rows: EmbeddingsLike, argument: str) -> Embeddings:
        """Further rows of the source space; messages call them `argument`."""
        source, target = _ends(self.forward, self.backward)
        return _check_space(read(rows), argument, source, target)


def build_context(
    forward: Stitcher | None = None,
    backward: Stitcher | None = None,
    source: EmbeddingsLike | None = None,
    target: EmbeddingsLike | None = None,
    labels=None,
    *,
    paired: bool = False,
    drop_invalid: bool = False,
    tangent: bool = False,
) -> TransferContext:
    """The context of these stitchers and rows.

    `source` and `target` are files, `Embeddings` or arrays. `labels` are of the target's rows, see `labels.label`; with
    labels, or with `paired`, the rows of both sides are of the same items and are paired by id, else by position.
    Raises InputError where the stitchers do not join the same two spaces, where rows are of another space, and where
    rows cannot be read or paired.
    """
    check_stitchers(forward, backward)
    source_end, target_end = _ends(forward, backward)
    target_rows = None if target is None else _check_space(read(target), "target", target_end, source_end)
    source_rows = None if source is None else _check_space(read(source), "source", source_end, target_end)
    if labels is not None:
        if target_rows is None:
            raise InputError("`labels` are of the target's rows; give `target` too.")
        target_rows = label(target_rows, labels)
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
) -> tuple[Embeddings | None, Embeddings | None]:
    """Rows of both sides for `build_context`, with what their files do not state.

    `group` is a column of either side, or a file with one group a row; rows of one group stay on one side of the split.
    """
    target_rows = None if target is None else read(target, space=target_space, ids=target_ids, group=group)
    grouped = target_rows is not None and target_rows.groups is not None
    source_group = None if grouped else group
    source_rows = None if source is None else read(source, space=source_space, ids=source_ids, group=source_group)
    if group is not None and all(rows is None or rows.groups is None for rows in (source_rows, target_rows)):
        raise InputError(f"`group` must be a column of either file, or a file with one group a row; got {group!r}.")
    return source_rows, target_rows


def unseen_labelled_rows(forward: Stitcher, target_rows: Embeddings | None, drop_invalid: bool = False) -> Embeddings:
    """The labelled target rows that the forward stitcher was not trained on, by their ids.

    With `drop_invalid` rows that cannot be used are left out too. Raises InputError where no row is left.
    """
    if target_rows is None or target_rows.labels is None:
        raise InputError("`labels` and the `target` rows that they are of are needed.")
    kept = np.array([text is not None for text in target_rows.labels])
    seen_by_id = np.zeros(len(kept), dtype=bool)
    if target_rows.ids is not None:
        seen_by_id = np.isin(id_fingerprints(target_rows.ids), forward.seen)
    if target_rows.ids is None or (forward.provenance.get("paired_by") == "position" and not seen_by_id.any()):
        log.warning("Rows that the stitcher was trained on are known by ids, and there are none: all rows test.")
    kept &= ~seen_by_id
    if drop_invalid:
        kept &= ~_invalid(target_rows.vectors)
    if not kept.any():
        raise InputError("All labelled target rows were used to train the stitcher; give rows it has not seen.")
    return target_rows.take(kept)


End = tuple[Space, np.ndarray]  # a space and the mean of its rows that a stitcher stored


def check_stitchers(forward: Stitcher | None, backward: Stitcher | None) -> None:
    """Raise InputError unless there is a stitcher, and two stitchers lead forth and back between the same spaces."""
    if forward is None and backward is None:
        raise InputError("`forward`, a stitcher from source to target, or `backward`, one back, is needed.")
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
                f"`backward` must lead back between the spaces of `forward`; their {end} spaces differ "
                f"({difference}): {forth} and {back}."
            )


def _ends(forward: Stitcher | None, backward: Stitcher | None) -> tuple[End, End]:
    if forward is not None:
        return (forward.source, forward.source_mean), (forward.target, forward.target_mean)
    assert backward is not None
    return (backward.target, backward.target_mean), (backward.source, backward.source_mean)


def _check_space(rows: Embeddings, argument: str, end: End, other_end: End) -> Embeddings:
    """The rows, if they can be of the space at this end; InputError otherwise."""
    adopt(rows.space, rows.declared, end[0], f"`{argument}`", opposite=other_end[0])
    if not rows.declared and len(rows) > 1:
        usable = rows.vectors[~_invalid(rows.vectors)].astype(np.float32)
        if len(usable):
            refuse_other_side(usable, end, other_end, argument)
    return rows


def _pair_rows(
    forward: Stitcher | None, backward: Stitcher | None, source: Embeddings, target: Embeddings, drop_invalid: bool
) -> PairedRows | None:
    """Pair and split the rows; None where they are too few and not labelled, so that they only serve a Jacobian."""
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
    """Split pairs as the stitcher's `record` says, so that its test rows are test rows here too."""
    if record.get("group") and pairs.groups is None:
        log.warning("The stitcher was trained with groups (%s); give `group` here too.", record["group"])
    shares = record.get("shares", SHARES)
    return split(pairs, shares if shares[-1] else SHARES, record.get("seed", 0))


def _invalid(rows: np.ndarray) -> np.ndarray:
    """A mask (n,) of the rows that cannot be used."""
    return np.any(list(invalid_rows(rows).values()), axis=0)
