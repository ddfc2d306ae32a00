"""Read both sides of the training pairs, then pair, split, check and normalise them."""

import logging
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
from repstitch.embeddings.likeness import Likeness, compare_with_pairs
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pair_columns import attach_weights, columns_to_read, own_pairs, weights_of
from repstitch.embeddings.pairs import Pairs, pair
from repstitch.embeddings.reading import place_group, read_argument
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike, invalid_rows
from repstitch.embeddings.sampling import Sample
from repstitch.embeddings.sides import read_both
from repstitch.embeddings.splitting import Split, finest_folds, folds_of, split
from repstitch.errors import InputError
from repstitch.spaces import Space, adopt
from repstitch.transfer.labels import label

log = logging.getLogger(__name__)
CORPUS_ROWS = 2_000
SCORED_IN_FOLDS = 3_000  # pairs that are scored at most, all against all


@dataclass(frozen=True)
class PreparedPairs:
    """Checked, split and normalised pairs, ready for fitting.

    `pairs` are the rows before normalisation, and `parts` has the row numbers of train, validation and test. `X`
    (n, d_source) and `Y` (n, d_target) are the same rows after normalisation, on the device that maps are fitted on;
    `output_norm` is the normalisation of `Y`. `notes` are warnings for the scorecard. `near_duplicates` (n,) is a mask
    of the held-out pairs that nearly repeat a training pair. `weights` (n,) weigh the pairs.

    With `folds` (n,), all pairs are training pairs, and those of a fold, the own pairs, are all parts of validation
    too: settings are selected with translations of each by a map that is fitted without its fold. General pairs have
    fold −1. Scores and confidence are those of maps fitted without the smaller `proof_folds`, which are more like the
    map of all pairs.
    """

    pairs: Pairs
    parts: Split
    X: Tensor
    Y: Tensor
    output_norm: str
    notes: list[str]
    near_duplicates: np.ndarray
    weights: np.ndarray | None = None
    folds: np.ndarray | None = None
    proof_folds: np.ndarray | None = None

    @property
    def held_out(self) -> np.ndarray:
        """Row numbers of the pairs that are scored: test, or the calibration half of validation if test is empty."""
        return self.parts.test if len(self.parts.test) else self.parts.calibrate

    @property
    def has_general(self) -> bool:
        """Whether there are general pairs beside own ones."""
        return self.folds is not None and bool((self.folds < 0).any())

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the normalised source and target rows at these positions."""
        return self.X[rows], self.Y[rows]


@dataclass(frozen=True, eq=False)
class PairColumns:
    """What `train` reads beside the vectors: the group, label and weight of each pair, and which pairs are own."""

    group: Column | None = None
    labels: Column | None = None
    weight: Column | None = None
    own: Column | None = None


@dataclass(frozen=True)
class Division:
    """How pairs are divided: into parts by their shares, or, with `n_folds`, into folds."""

    shares: Sequence[float]
    seed: int
    n_folds: int | None = None


def read_pair_of_spaces(
    source: EmbeddingsLike,
    target: EmbeddingsLike,
    columns: PairColumns,
    spaces: tuple[str | Space | None, str | Space | None] = (None, None),
    ids: tuple[Column | None, Column | None] = (None, None),
    id_column: IdColumn | None = None,
    sample: Sample | None = None,
) -> tuple[Embeddings, Embeddings]:
    """Read both sides, with the columns of weights and own pairs if they are columns; weights of a file or an array are
    attached to the source. Groups are attached to the side that has them as a column; all other groups, to the source.

    Labels are attached to the source. The spaces of arrays are named `source` and `target` unless the caller names
    them. If the other side already has that name, the array's space is named `array`. Raises InputError if `group` is
    neither a column of one side nor a file or array, and if both spaces have the same name, unless a card or the caller
    states the name of each.
    """
    groups = place_group((source, target), columns.group)
    names = columns_to_read((source, target), (columns.weight, columns.own))
    options = [
        {"space": space, "ids": of_rows, "group": group, "id_column": id_column, "columns": of_side}
        for space, of_rows, group, of_side in zip(spaces, ids, groups, names, strict=True)
    ]
    source_rows, target_rows = read_both(source, target, (options[0], options[1]), sample)
    if _is_nameless(source, spaces[0]) and target_rows.space.name != "source":
        source_rows = _named(source_rows, "source")
    if _is_nameless(target, spaces[1]) and source_rows.space.name != "target":
        target_rows = _named(target_rows, "target")
    if source_rows.space.name == target_rows.space.name and not (source_rows.declared and target_rows.declared):
        raise InputError(
            f"Both spaces would be named {source_rows.space.name!r}; set different names with `source_space` and "
            "`target_space`."
        )
    if columns.labels is not None:
        source_rows = label(source_rows, columns.labels, id_column)
    is_read = isinstance(columns.weight, str) and columns.weight in (*names[0], *names[1])
    if columns.weight is not None and not is_read:
        source_rows = attach_weights(source_rows, columns.weight, id_column)
    return source_rows, target_rows


def _is_nameless(rows: EmbeddingsLike, space: str | Space | None) -> bool:
    """Whether the rows are an array and the caller does not name their space."""
    return space is None and not isinstance(rows, str | os.PathLike | Embeddings)


def _named(rows: Embeddings, name: str) -> Embeddings:
    return replace(rows, space=replace(rows.space, name=name))


def prepare(
    source: Embeddings,
    target: Embeddings,
    *,
    columns: PairColumns,
    division: Division,
    drop_invalid: bool,
    output_norm: str | None,
    device: str,
    sample: Sample | None = None,
) -> PreparedPairs:
    """Pair the rows, split them, check that a map can be learned from them, and normalise them.

    Only a `sample` of the pairs is kept, if there is one. If there are own pairs, only these are divided into folds. If
    `output_norm` is None, target rows are scaled to unit length, unless their card states that they are not normalised.
    Raises InputError if the rows, the pairs or the split cannot be used.
    """
    pairs = pair(source, target, drop_invalid)
    if sample is not None:
        pairs = pairs.take(sample.positions(len(pairs)))
    weights, folds, proof_folds = weights_of(pairs, columns.weight), None, None
    if division.n_folds is None:
        parts = split(pairs, division.shares, division.seed)
    else:
        is_own = None if columns.own is None else own_pairs(pairs, columns.own)
        folds = folds_of(pairs, division.n_folds, division.seed, is_own)
        proof_folds = finest_folds(pairs, division.seed, is_own)
        in_folds = np.flatnonzero(folds >= 0)
        order = np.random.default_rng(division.seed).permutation(len(in_folds))
        parts = Split(np.arange(len(pairs)), in_folds, np.sort(in_folds[order[:SCORED_IN_FOLDS]]), np.arange(0))
    output_norm = output_norm or ("none" if target.space.normalised is False else "unit")
    findings = check(pairs, parts, output_norm, proof_folds)
    return PreparedPairs(
        pairs=pairs,
        parts=parts,
        X=normalise(torch.from_numpy(pairs.X), "unit", "source rows").to(device),
        Y=normalise(torch.from_numpy(pairs.Y), output_norm, "target rows").to(device),
        output_norm=output_norm,
        notes=findings.notes,
        near_duplicates=findings.near_duplicates,
        weights=weights,
        folds=folds,
        proof_folds=proof_folds,
    )


def group_name(group: Column | None) -> str | None:
    """Return the groups' name for the record of the split: the name of their column or file, or "array"."""
    if group is None:
        return None
    return Path(group).name if isinstance(group, str | os.PathLike) else "array"


def compare_with_corpus(
    prepared: PreparedPairs, corpus: EmbeddingsLike, space: str | Space | None, id_column: IdColumn | None, seed: int
) -> Likeness:
    """Compare a sample of at most 2,000 rows of the corpus with the pairs, or with the own ones if there are others.

    Raises InputError if the corpus is not in the source space, or has too few valid rows.
    """
    select = Sample(CORPUS_ROWS, seed)
    rows = read_argument("`corpus`", corpus, space=space, id_column=id_column, select=select)
    adopt(rows.space, rows.declared, prepared.pairs.source, "`corpus`", opposite=prepared.pairs.target)
    vectors = np.asarray(rows.vectors, np.float32)
    vectors = vectors[~np.logical_or(*invalid_rows(vectors).values())]
    sources = prepared.pairs.X[prepared.held_out] if prepared.has_general else prepared.pairs.X
    likeness = compare_with_pairs(vectors, sources, seed)
    (log.warning if likeness.unlike else log.info)("%s", likeness)
    return likeness
