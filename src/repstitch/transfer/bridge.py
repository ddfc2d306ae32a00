"""Two spaces with the stitchers between them and rows of both: all that carrying and proving need, made when needed."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from repstitch.chain import normalise
from repstitch.embeddings import Embeddings, read
from repstitch.errors import InputError
from repstitch.pairs import MIN_PAIRS, SHARES, Pairs, Split, id_fingerprints, pair, split
from repstitch.spaces import Space, adopt
from repstitch.stitcher import Stitcher
from repstitch.transfer.labels import label
from repstitch.transfer.linear import Linear, linearise
from repstitch.unseen import refuse_backwards, seen

log = logging.getLogger(__name__)

MOST_TANGENTS = 2_000  # rows that a mean Jacobian is taken at


@dataclass(frozen=True)
class Bridge:
    """A `forward` stitcher (source to target), a `backward` one (target to source), either or both; rows of the spaces.

    `labels` are of the target's rows. With `tangent` also affine stitchers act by their Jacobian. Made by `build`.
    """

    forward: Stitcher | None
    backward: Stitcher | None
    source: Embeddings | None = field(default=None, repr=False)
    target: Embeddings | None = field(default=None, repr=False)
    tangent: bool = False
    drop_invalid: bool = False

    @property
    def home(self) -> Space:
        """The source space: what is carried is of it."""
        return self.forward.source if self.forward else self._one.target

    @property
    def away(self) -> Space:
        """The target space: what comes out is of it."""
        return self.forward.target if self.forward else self._one.source

    @property
    def _one(self) -> Stitcher:
        if self.backward is None:
            raise InputError("`forward`, a stitcher from source to target, or `backward`, one back, is needed.")
        return self.backward

    @cached_property
    def onward(self) -> Linear | None:
        """What the forward stitcher does as one affine map."""
        given = None if self.pairs is None else self.pairs.Y[self.parts.train]
        return None if self.forward is None else linearise(self.forward, _some(given, self.source), self.tangent)

    @cached_property
    def back(self) -> Linear | None:
        """What the backward stitcher does as one affine map."""
        given = None if self.pairs is None else self.pairs.X[self.parts.train]
        return None if self.backward is None else linearise(self.backward, _some(given, self.target), self.tangent)

    @cached_property
    def pairs(self) -> Pairs | None:
        """The same items in both spaces, X in the target and Y in the source; None where rows of a side are missing."""
        if self.source is None or self.target is None:
            return None
        if self.target.labels is None and min(len(self.source), len(self.target)) < MIN_PAIRS:
            return None  # points that a Jacobian is taken at
        pairs = pair(self.target, self.source, self.drop_invalid)
        if self.backward is not None:
            refuse_backwards(self.backward, pairs.X, self.target.declared, "target")
        return pairs

    @cached_property
    def parts(self) -> Split:
        """The pairs split as a stitcher's were, so that its test rows test here too."""
        held = self.backward or self.forward
        assert self.pairs is not None
        assert held is not None
        return split(self.pairs, held.split.get("shares", SHARES), held.split.get("seed", 0))

    @cached_property
    def seen(self) -> np.ndarray:
        """A mask (n,) of the pairs that training or choosing either stitcher used."""
        assert self.pairs is not None
        turned = replace(self.pairs, X=self.pairs.Y, Y=self.pairs.X)
        known = [seen(self.backward, self.pairs)] if self.backward else []
        known += [seen(self.forward, turned)] if self.forward else []
        return np.any(known, axis=0)

    def target_rows(self, rows: np.ndarray) -> np.ndarray:
        """Target rows (n, d) as what is carried reads them, float32."""
        how = self.backward.input_norm if self.backward else self._forward.output_norm
        return normalise(torch.from_numpy(rows.astype(np.float32)), how, "target rows").numpy()

    def source_rows(self, rows: np.ndarray) -> np.ndarray:
        """Source rows (n, d) as what is carried was made for them, float32."""
        how = self.backward.output_norm if self.backward else self._forward.input_norm
        return normalise(torch.from_numpy(rows.astype(np.float32)), how, "source rows").numpy()

    @property
    def _forward(self) -> Stitcher:
        assert self.forward is not None
        return self.forward

    def unseen_target(self) -> Embeddings:
        """The labelled target rows that the forward stitcher has not seen, known by their ids."""
        if self.target is None or self.target.labels is None:
            raise InputError("`labels` and the `target` rows that they are of are needed.")
        kept = np.array([one is not None for one in self.target.labels])
        if self.target.ids is None:
            log.warning("The target rows have no ids, so those that the stitcher was trained on are not left out.")
        else:
            kept &= ~np.isin(id_fingerprints(self.target.ids), self._forward.seen)
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
    drop_invalid: bool = False,
    tangent: bool = False,
) -> Bridge:
    """A bridge of these stitchers and rows, which may be files, `Embeddings` or arrays.

    `labels` are of the target's rows, see `labels.label`. Raises InputError where the two stitchers do not join the
    same spaces, where rows are of another space, and as reading does.
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
    bridge = Bridge(forward, backward, tangent=tangent, drop_invalid=drop_invalid)
    sides = {
        "source": (source, source_space, source_ids, bridge.home, bridge.away),
        "target": (target, target_space, target_ids, bridge.away, bridge.home),
    }
    held: dict[str, Embeddings | None] = {}
    for name, (given, space, ids, own, other) in sides.items():
        held[name] = rows = None if given is None else read(given, space=space, ids=ids)
        if rows is not None:
            adopt(rows.space, rows.declared, own, f"`{name}`", opposite=other)
    if labels is not None:
        if held["target"] is None:
            raise InputError("`labels` are of the target's rows; give `target` too.")
        held["target"] = label(held["target"], labels)
    return replace(bridge, source=held["source"], target=held["target"])


def _some(paired: np.ndarray | None, held: Embeddings | None) -> np.ndarray | None:
    """Rows for a Jacobian, at most 2,000 evenly spread: training pairs where there are pairs, else all that is
    given."""
    rows = paired if paired is not None else None if held is None else held.vectors
    return None if rows is None else rows[:: -(-len(rows) // MOST_TANGENTS)]
