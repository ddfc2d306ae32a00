"""Two spaces with the stitchers between them and rows of both: all that carrying and proving need, made when needed."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from repstitch.embeddings.fingerprints import id_fingerprints
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pairs import MIN_PAIRS, Pairs, pair
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings, invalid_rows
from repstitch.embeddings.splitting import SHARES, Split, split
from repstitch.errors import InputError
from repstitch.spaces import Space, adopt
from repstitch.stitchers.held_out import refuse_other_side, seen_in_training
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.labels import label
from repstitch.transfer.linear import Linear, linearise, thinned

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransferContext:
    """A `forward` stitcher (source to target), a `backward` one (target to source), either or both; rows of the spaces.

    The target's rows carry the labels. `paired` says that rows of both sides are of the same items, to be matched. With
    `tangent` also affine stitchers act by their Jacobian. Made by `build`.
    """

    forward: Stitcher | None
    backward: Stitcher | None
    source: Embeddings | None = field(default=None, repr=False)
    target: Embeddings | None = field(default=None, repr=False)
    paired: bool = False
    tangent: bool = False
    drop_invalid: bool = False

    @property
    def home(self) -> Space:
        """The source space: what is carried is of it."""
        return self.forward.source if self.forward else self._back.target

    @property
    def away(self) -> Space:
        """The target space: what comes out is of it."""
        return self.forward.target if self.forward else self._back.source

    def norms(self, way: str) -> tuple[str, str]:
        """How rows of the source and of the target are normalised for what goes by the `forward` or `backward`
        stitcher."""
        if way == "backward":
            return self._back.output_norm, self._back.input_norm
        return self._on.input_norm, self._on.output_norm

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """The means that a stitcher keeps of the source and of the target."""
        if self.forward:
            return self.forward.source_mean, self.forward.target_mean
        return self._back.target_mean, self._back.source_mean

    @property
    def _on(self) -> Stitcher:
        if self.forward is None:
            raise InputError("`forward`, a stitcher from source to target, is needed.")
        return self.forward

    @property
    def _back(self) -> Stitcher:
        if self.backward is None:
            raise InputError("`backward`, a stitcher from target to source, is needed.")
        return self.backward

    @cached_property
    def onward(self) -> Linear | None:
        """What the forward stitcher does as one affine map."""
        return None if self.forward is None else linearise(self.forward, self._tangents("source"), self.tangent)

    @cached_property
    def back(self) -> Linear | None:
        """What the backward stitcher does as one affine map."""
        return None if self.backward is None else linearise(self.backward, self._tangents("target"), self.tangent)

    def _tangents(self, side: str) -> np.ndarray | None:
        """Rows for a Jacobian: of the training part where rows are paired, else all that are given."""
        if self.pairs is not None:
            rows = self.pairs.Y if side == "source" else self.pairs.X
            return thinned(rows[self.parts.train])
        held = getattr(self, side)
        if held is None:
            return None
        rows = held.vectors
        if self.drop_invalid:
            rows = rows[~np.any(list(invalid_rows(rows).values()), axis=0)]
        return thinned(rows)

    @cached_property
    def pairs(self) -> Pairs | None:
        """The same items in both spaces, X in the target and Y in the source; None where they are not to be matched."""
        if not self.paired or self.source is None or self.target is None:
            return None
        if self.target.labels is None and min(len(self.source), len(self.target)) < MIN_PAIRS:
            return None  # too few to prove a dictionary on; each side is where a Jacobian is taken
        return pair(self.target, self.source, self.drop_invalid, side_names=("target", "source"))

    @cached_property
    def parts(self) -> Split:
        """The pairs split as a stitcher's were, so that its test rows test here too."""
        held = self.backward or self._on
        if self.pairs is None:
            raise InputError("Rows of the same items in both spaces are needed: give `source` and `target`.")
        if held.split.get("group") and self.pairs.groups is None:
            log.warning("The stitcher was trained with groups (%s); give `group` here too.", held.split["group"])
        shares = held.split.get("shares", SHARES)
        return split(self.pairs, shares if shares[-1] else SHARES, held.split.get("seed", 0))

    @cached_property
    def seen(self) -> np.ndarray:
        """A mask (n,) of the pairs that training or choosing either stitcher used."""
        if self.pairs is None:
            raise InputError("Rows of the same items in both spaces are needed: give `source` and `target`.")
        turned = replace(self.pairs, X=self.pairs.Y, Y=self.pairs.X)
        known = [seen_in_training(self.backward, self.pairs)] if self.backward else []
        known += [seen_in_training(self.forward, turned)] if self.forward else []
        return np.any(known, axis=0)

    def source_rows(self, rows: np.ndarray, way: str) -> np.ndarray:
        """Source rows (n, d) as the `forward` or `backward` stitcher knows them, float32."""
        return normalise(torch.from_numpy(rows.astype(np.float32)), self.norms(way)[0], "source rows").numpy()

    def target_rows(self, rows: np.ndarray, way: str) -> np.ndarray:
        """The same of target rows."""
        return normalise(torch.from_numpy(rows.astype(np.float32)), self.norms(way)[1], "target rows").numpy()

    def read_source(self, given, what: str) -> Embeddings:
        """More rows of the source space; `what` is the argument that they came by."""
        return self._adopted(read(given), what, of_source=True)

    def _adopted(self, rows: Embeddings, what: str, of_source: bool) -> Embeddings:
        own, other = (self.home, self.away) if of_source else (self.away, self.home)
        adopt(rows.space, rows.declared, own, f"`{what}`", opposite=other)
        if not rows.declared and len(rows) > 1:
            mine, theirs = self.means if of_source else self.means[::-1]
            usable = rows.vectors[~np.any(list(invalid_rows(rows.vectors).values()), axis=0)].astype(np.float32)
            if len(usable):
                refuse_other_side(usable, (own, mine), (other, theirs), what)
        return rows

    def unseen_target(self) -> Embeddings:
        """The labelled target rows that the forward stitcher has not seen, known by their ids."""
        if self.target is None or self.target.labels is None:
            raise InputError("`labels` and the `target` rows that they are of are needed.")
        kept = np.array([one is not None for one in self.target.labels])
        known = np.zeros(len(kept), dtype=bool)
        if self.target.ids is not None:
            known = np.isin(id_fingerprints(self.target.ids), self._on.seen)
        if self.target.ids is None or (self._on.provenance.get("paired_by") == "position" and not known.any()):
            log.warning("Rows that the stitcher was trained on are known by ids, and there are none: all rows test.")
        kept &= ~known
        if self.drop_invalid:
            kept &= ~np.any(list(invalid_rows(self.target.vectors).values()), axis=0)
        if not kept.any():
            raise InputError("All labelled target rows were used to train the stitcher; give rows it has not seen.")
        return self.target.take(kept)


def build(
    forward: Stitcher | None = None,
    backward: Stitcher | None = None,
    source=None,
    target=None,
    labels=None,
    *,
    source_space: str | Space | None = None,
    target_space: str | Space | None = None,
    source_ids=None,
    target_ids=None,
    group=None,
    paired: bool = False,
    drop_invalid: bool = False,
    tangent: bool = False,
) -> TransferContext:
    """A bridge of these stitchers and rows, which may be files, `Embeddings` or arrays.

    `labels` are of the target's rows, see `labels.label`; with them, or where they are `paired`, rows of both sides are
    of the same items. `group` is a column of either side, or a file, of which one group stays on one side of the split.
    Raises InputError where the two stitchers do not join the same spaces, where rows are of another space, and as
    reading does.
    """
    if forward is not None and backward is not None:
        for end, one, other in (
            ("source", forward.source, backward.target),
            ("target", forward.target, backward.source),
        ):
            difference = one.conflict(other) or (one.dim != other.dim and f"dim {one.dim} against {other.dim}")
            if difference:
                way = f"{forward.source.name} -> {forward.target.name}"
                back = f"{backward.source.name} -> {backward.target.name}"
                raise InputError(
                    f"`backward` must lead back between the spaces of `forward`; their {end} spaces differ "
                    f"({difference}): {way} and {back}."
                )
    if forward is None and backward is None:
        raise InputError("`forward`, a stitcher from source to target, or `backward`, one back, is needed.")
    paired = paired or labels is not None
    bridge = TransferContext(forward, backward, paired=paired, tangent=tangent, drop_invalid=drop_invalid)
    held: dict[str, Embeddings | None] = {"source": None, "target": None}
    for side, given, space, ids in (
        ("target", target, target_space, target_ids),
        ("source", source, source_space, source_ids),
    ):
        if given is not None:
            known = held["target"] is not None and held["target"].groups is not None
            rows = read(given, space=space, ids=ids, group=None if known else group)
            held[side] = bridge._adopted(rows, side, of_source=side == "source")
    if labels is not None:
        if held["target"] is None:
            raise InputError("`labels` are of the target's rows; give `target` too.")
        held["target"] = label(held["target"], labels)
    if group is not None and all(rows is None or rows.groups is None for rows in held.values()):
        raise InputError(f"`group` must be a column of either file, or a file with one group a row; got {group!r}.")
    return replace(bridge, source=held["source"], target=held["target"])
