"""Read both sides of the training pairs, then pair, split, check and normalise them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.checks import check
from repstitch.embeddings.columns import Column
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pairs import Pairs, pair
from repstitch.embeddings.reading import read_argument
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike
from repstitch.embeddings.splitting import Split, split
from repstitch.errors import InputError
from repstitch.spaces import Space
from repstitch.transfer.labels import label


@dataclass(frozen=True)
class PreparedPairs:
    """Pairs that a map can be fitted to.

    `pairs` are the rows as they were read and `parts` the row numbers of train, validation and test. `X` (n, d_source)
    and `Y` (n, d_target) are the same rows normalised, on the device that maps are fitted on. `notes` are the warnings
    for the scorecard. `near_duplicates` (n,) marks held-out pairs that nearly repeat a training pair.
    """

    pairs: Pairs
    parts: Split
    X: Tensor
    Y: Tensor
    output_norm: str
    notes: list[str]
    near_duplicates: np.ndarray

    @property
    def held_out(self) -> np.ndarray:
        """Row numbers of the pairs that the scorecard is taken on: test, or without any the calibration half."""
        return self.parts.test if len(self.parts.test) else self.parts.calibrate

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The normalised source and target rows at these positions."""
        return self.X[rows], self.Y[rows]


def read_pair_of_spaces(
    source: EmbeddingsLike,
    target: EmbeddingsLike,
    source_space: str | Space | None = None,
    target_space: str | Space | None = None,
    source_ids: Column | None = None,
    target_ids: Column | None = None,
    group: Column | None = None,
    labels: Column | None = None,
) -> tuple[Embeddings, Embeddings]:
    """Both sides as embeddings, with groups on the first side that has them and labels on the source.

    Arrays are in spaces called `source` and `target` unless they are named; one is called `array` where the other side
    has that name. Raises InputError where `group` names no column or file of either side, and where both spaces would
    have one name that is not stated for both.
    """
    source_rows = read_argument("`source`", source, space=source_space, ids=source_ids, group=group)
    target_group = group if source_rows.groups is None else None
    target_rows = read_argument("`target`", target, space=target_space, ids=target_ids, group=target_group)
    if group is not None and source_rows.groups is None and target_rows.groups is None:
        raise InputError(
            f"`group` must be a column of either side, or a file or array with one group a row; got {group!r}."
        )
    if _is_nameless(source, source_space) and target_rows.space.name != "source":
        source_rows = _named(source_rows, "source")
    if _is_nameless(target, target_space) and source_rows.space.name != "target":
        target_rows = _named(target_rows, "target")
    if source_rows.space.name == target_rows.space.name and not (source_rows.declared and target_rows.declared):
        raise InputError(
            f"Both sides would be called {source_rows.space.name!r}; name them with `source_space` and `target_space`."
        )
    return source_rows if labels is None else label(source_rows, labels), target_rows


def _is_nameless(rows: EmbeddingsLike, space: str | Space | None) -> bool:
    """Whether nothing names the space of the rows: they are an array, and the caller states no name."""
    return space is None and not isinstance(rows, str | os.PathLike | Embeddings)


def _named(rows: Embeddings, name: str) -> Embeddings:
    return replace(rows, space=replace(rows.space, name=name))


def prepare(
    source: Embeddings,
    target: Embeddings,
    *,
    shares: Sequence[float],
    split_seed: int,
    drop_invalid: bool,
    output_norm: str | None,
    device: str,
) -> PreparedPairs:
    """Pair the rows, split them, check that a map can be learned from them, and normalise them.

    Without `output_norm` target rows are brought to unit length, unless their card says that they are not normalised.
    Raises InputError on rows, pairs or a split that cannot be used.
    """
    pairs = pair(source, target, drop_invalid)
    parts = split(pairs, shares, split_seed)
    output_norm = output_norm or ("none" if target.space.normalised is False else "unit")
    findings = check(pairs, parts, output_norm)
    return PreparedPairs(
        pairs=pairs,
        parts=parts,
        X=normalise(torch.from_numpy(pairs.X), "unit", "source rows").to(device),
        Y=normalise(torch.from_numpy(pairs.Y), output_norm, "target rows").to(device),
        output_norm=output_norm,
        notes=findings.notes,
        near_duplicates=findings.near_duplicates,
    )


def group_name(group: Column | None) -> str | None:
    """What the record of the split calls the groups: their column or file, "array" where they were passed as one."""
    if group is None:
        return None
    return Path(group).name if isinstance(group, str | os.PathLike) else "array"
