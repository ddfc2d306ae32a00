"""Learn a stitcher from pairs in one call: prepare the pairs, select a map, evaluate it, assemble the stitcher."""

import inspect
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Unpack

import numpy as np
import torch

import repstitch
from repstitch.arguments import check_choice, check_keywords, check_seed
from repstitch.devices import pick_device
from repstitch.embeddings.columns import Column
from repstitch.embeddings.fingerprints import id_fingerprints, row_fingerprints
from repstitch.embeddings.rows import EmbeddingsLike
from repstitch.embeddings.splitting import SHARES
from repstitch.errors import InputError
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.thresholds import Thresholds
from repstitch.fit.learning_curve import check_enough
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.ranks import leave_to_first_rank
from repstitch.fit.recipe import Recipe, RecipeSettings, recipe_for
from repstitch.fit.selection import Candidate, Problem, refit, select
from repstitch.names import METHODS, NORMALISATIONS, OBJECTIVES, Method, Normalisation, Objective
from repstitch.spaces import Space
from repstitch.stitchers.confidence import Calibration
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.probe_evaluation import evaluate_probe
from repstitch.transfer.task import Task, make_task
from repstitch.workflows.preparing import PreparedPairs, group_name, prepare, read_pair_of_spaces
from repstitch.workflows.proving import evaluate_selection


def train(  # noqa: PLR0913 - the whole job in one call
    source: EmbeddingsLike,
    target: EmbeddingsLike,
    *,
    method: Method | Literal["auto"] = "auto",
    objective: Objective = "match",
    split_shares: Sequence[float] = SHARES,
    split_seed: int = 0,
    seed: int = 0,
    group: Column | None = None,
    drop_invalid: bool = False,
    refit_on_all: bool = False,
    source_space: str | Space | None = None,
    target_space: str | Space | None = None,
    source_ids: Column | None = None,
    target_ids: Column | None = None,
    output_norm: Normalisation | None = None,
    device: str = "auto",
    learning_curve: bool = False,
    labels: Column | None = None,
    retention: float = 0.9,
    first_stage: float = 0.95,
    **recipe: Unpack[RecipeSettings],
) -> Stitcher:
    """Learn a stitcher from paired embeddings and score it on pairs that were held out.

    Args:
        source: A file (see `embeddings.scan`), `Embeddings`, or an array (n, d_source).
        target: The same items in the target space. Rows pair by id where both sides have ids, else by position.
        method: `ridge`, `procrustes`, `canonical`, `linear` or `mlp`; `auto` tries them all (see
            `fit.selection.select`).
        objective: What the map is chosen for on validation rows: `match` (find the counterpart), `neighbours` (keep the
            neighbours) or `reconstruction` (least error).
        split_shares: The shares of train, validation and test. Only test may be 0.
        split_seed: Seed of the hash of each id, or of its group, by which pairs are split.
        seed: Seed of the contrastive fits and of the controls.
        group: A column of either side, or a file or array with one group a row. The pairs of one group stay together.
        drop_invalid: Leave out rows that cannot be used, and repeats of an identical pair.
        refit_on_all: Fit the chosen map once more on all pairs after scoring. The scorecard says so, and the confidence
            stays the one calibrated before.
        source_space: The source's name or card. Arrays are called `source` unless named here.
        target_space: The target's name or card. Arrays are called `target` unless named here.
        source_ids: One id a row, for a source without ids.
        target_ids: One id a row, for a target without ids.
        output_norm: `unit` or `none`, the length of translated rows. By default `unit`, unless the target's card says
            that its rows are not normalised.
        device: `auto`, `cpu` or `cuda`. Training steps compute float32 products as PyTorch is set
            (`torch.set_float32_matmul_precision`); scores and closed forms always in full float32.
        learning_curve: Add to the scorecard how scores grow with the number of training pairs.
        labels: Classes of the source's rows (see `transfer.labels.label`). The scorecard then has `probe_transfer`: how
            well a probe of the target space works on the source's test rows once the map has carried it back.
        retention: The share of re-embedding's score that the verdict `use` needs.
        first_stage: The share of re-embedding's shortlist recall that the verdict `use as first stage` needs.
        **recipe: Settings of the contrastive fits, such as `epochs` and `width` (see `fit.recipe.Recipe`).

    Returns:
        The stitcher, with the scorecard of the pairs that were held out.

    Raises:
        InputError: On rows, pairs, a split or settings that cannot be used, and on an unknown keyword.
    """
    check_keywords("train", recipe, PARAMETERS)
    if method not in (*METHODS, "auto"):
        raise InputError(f"`method` must be one of {', '.join(METHODS)} or auto; got {method!r}.")
    check_choice("objective", objective, OBJECTIVES)
    if output_norm is not None:
        check_choice("output_norm", output_norm, NORMALISATIONS)
    check_seed(seed)
    thresholds = Thresholds(retention, first_stage)
    device = pick_device(device)
    accelerator = "gpu" if device == "cuda" else "cpu"
    fit_recipe = recipe_for("mlp", **{"accelerator": accelerator, "seed": seed, **recipe})

    prepared = prepare(
        *read_pair_of_spaces(source, target, source_space, target_space, source_ids, target_ids, group, labels),
        shares=split_shares,
        split_seed=split_seed,
        drop_invalid=drop_invalid,
        output_norm=output_norm,
        device=device,
    )
    if learning_curve:
        check_enough(len(prepared.parts.train))
    task = probe_task(prepared)

    problem = state_problem(prepared, objective, fit_recipe)
    chosen, tried = select(problem, method)
    refitted = refit(chosen, prepared.X, prepared.Y, problem).to("cpu") if refit_on_all else None
    leave_to_first_rank()

    scorecard, calibration = evaluate_selection(
        prepared, problem, chosen, tried, thresholds, learning_curve=learning_curve, seed=seed
    )
    split_record = {"shares": list(split_shares), "seed": split_seed, "group": group_name(group)}
    stitcher = assemble(
        prepared, problem, chosen, scorecard, calibration, objective, split_record, used_all_pairs=refit_on_all
    )
    extras: dict = {} if refitted is None else {"refit": True}
    if task is not None:
        extras["probe_transfer"] = evaluate_probe(stitcher, task, seed=seed).to_dict()
    map = stitcher.map if refitted is None else refitted
    return replace(stitcher, map=map, scorecard=Scorecard(scorecard.to_dict() | extras))


def probe_task(prepared: PreparedPairs) -> Task | None:
    """A task for a probe of the target space, which the stitcher carries back to the source; None without labels."""
    labels = prepared.pairs.labels
    if labels is None:
        return None
    return make_task(prepared.X.cpu().numpy(), prepared.Y.cpu().numpy(), labels, prepared.parts)


def state_problem(prepared: PreparedPairs, objective: str, recipe: Recipe) -> Problem:
    """What selection solves: the training pairs, and the objective that scores candidates on validation pairs."""
    X, Y = prepared.take(prepared.parts.train)
    validation = ValidationObjective(objective, *prepared.take(prepared.parts.select), Y)
    return Problem(X, Y, validation, recipe, keep_lengths=prepared.output_norm == "none")


def assemble(
    prepared: PreparedPairs,
    problem: Problem,
    chosen: Candidate,
    scorecard: Scorecard,
    calibration: Calibration | None,
    objective: str,
    split_record: dict,
    *,
    used_all_pairs: bool,
) -> Stitcher:
    """The chosen map as a stitcher that records how it was made and which pairs training or selection used."""
    pairs, parts = prepared.pairs, prepared.parts
    used = np.arange(len(pairs)) if used_all_pairs else np.concatenate([parts.train, parts.validation])
    fingerprints = [id_fingerprints(pairs.ids[used]), row_fingerprints(pairs.X[used], pairs.Y[used])]
    counts = {"train": parts.train, "select": parts.select, "calibrate": parts.calibrate, "test": parts.test}
    return Stitcher(
        map=chosen.map.to("cpu"),
        source=pairs.source,
        target=pairs.target,
        method=chosen.method,
        objective=objective,
        input_norm="unit",
        output_norm=prepared.output_norm,
        source_mean=problem.X.mean(0).cpu().numpy(),
        target_mean=problem.Y.mean(0).cpu().numpy(),
        seen=np.unique(np.concatenate(fingerprints)),
        settings=chosen.settings | {"seed": problem.recipe.seed},
        split=split_record,
        provenance={
            "repstitch": repstitch.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "paired_by": pairs.by,
            "pairs": {name: len(rows) for name, rows in counts.items()},
            "dropped": pairs.dropped,
        },
        scorecard=scorecard,
        calibration=None if calibration is None else calibration.to("cpu"),
    )


PARAMETERS = {*inspect.signature(train).parameters, *RecipeSettings.__optional_keys__} - {"recipe"}
