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
from repstitch.embeddings.ids import IdColumn
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pairs import Pairs, pair
from repstitch.embeddings.reading import place_group
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike
from repstitch.embeddings.sampling import Sample
from repstitch.embeddings.sides import read_both
from repstitch.embeddings.splitting import Split, split
from repstitch.errors import InputError
from repstitch.spaces import Space
from repstitch.transfer.labels import label


@dataclass(frozen=True)
class PreparedPairs:
    """Checked, split and normalised pairs, ready for fitting.

    `pairs` are the rows before normalisation, and `parts` has the row numbers of train, validation and test. `X`
    (n, d_source) and `Y` (n, d_target) are the same rows after normalisation, on the device that maps are fitted on;
    `output_norm` is the normalisation of `Y`. `notes` are warnings for the scorecard. `near_duplicates` (n,) is a mask
    of the held-out pairs that nearly repeat a training pair.
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
        """Row numbers of the pairs that are scored: test, or the calibration half of validation if test is empty."""
        return self.parts.test if len(self.parts.test) else self.parts.calibrate

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the normalised source and target rows at these positions."""
        return self.X[rows], self.Y[rows]


def read_pair_of_spaces(  # noqa: PLR0913 - all that `train` states about its two inputs
    source: EmbeddingsLike,
    target: EmbeddingsLike,
    source_space: str | Space | None = None,
    target_space: str | Space | None = None,
    source_ids: Column | None = None,
    target_ids: Column | None = None,
    group: Column | None = None,
    labels: Column | None = None,
    id_column: IdColumn | None = None,
    sample: Sample | None = None,
) -> tuple[Embeddings, Embeddings]:
    """Read both sides. Groups are attached to the side that has them as a column; all other groups, to the source.

    Labels are attached to the source. The spaces of arrays are named `source` and `target` unless the caller names
    them. If the other side already has that name, the array's space is named `array`. Raises InputError if `group` is
    neither a column of one side nor a file or array, and if both spaces have the same name, unless a card or the caller
    states the name of each.
    """
    groups = place_group((source, target), group)
    source_rows, target_rows = read_both(
        source,
        target,
        (
            {"space": source_space, "ids": source_ids, "group": groups[0], "id_column": id_column},
            {"space": target_space, "ids": target_ids, "group": groups[1], "id_column": id_column},
        ),
        sample,
    )
    if _is_nameless(source, source_space) and target_rows.space.name != "source":
        source_rows = _named(source_rows, "source")
    if _is_nameless(target, target_space) and source_rows.space.name != "target":
        target_rows = _named(target_rows, "target")
    if source_rows.space.name == target_rows.space.name and not (source_rows.declared and target_rows.declared):
        raise InputError(
            f"Both spaces would be named {source_rows.space.name!r}; set different names with `source_space` and "
            "`target_space`."
        )
    return source_rows if labels is None else label(source_rows, labels, id_column), target_rows


def _is_nameless(rows: EmbeddingsLike, space: str | Space | None) -> bool:
    """Whether the rows are an array and the caller does not name their space."""
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
    sample: Sample | None = None,
) -> PreparedPairs:
    """Pair the rows, split them, check that a map can be learned from them, and normalise them.

    Only a `sample` of the pairs is kept, if there is one. If `output_norm` is None, target rows are scaled to unit
    length, unless their card states that they are not normalised. Raises InputError if the rows, the pairs or the split
    cannot be used.
    """
    pairs = pair(source, target, drop_invalid)
    if sample is not None:
        pairs = pairs.take(sample.positions(len(pairs)))
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
    """Return the groups' name for the record of the split: the name of their column or file, or "array"."""
    if group is None:
        return None
    return Path(group).name if isinstance(group, str | os.PathLike) else "array"
