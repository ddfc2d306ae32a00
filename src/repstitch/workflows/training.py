"""The whole of the job in one call: pairs in, a stitcher with its proof out."""

import platform
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

import repstitch
from repstitch.arguments import check_choice, check_seed
from repstitch.devices import pick_device
from repstitch.embeddings.fingerprints import id_fingerprints, row_fingerprints
from repstitch.embeddings.splitting import SHARES
from repstitch.errors import InputError
from repstitch.evaluation.thresholds import Thresholds
from repstitch.fit.learning_curve import check_enough
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.ranks import leave_to_first_rank
from repstitch.fit.recipe import Recipe, recipe_for
from repstitch.fit.select import Candidate, Problem, refit, select
from repstitch.names import METHODS, NORMALISATIONS, OBJECTIVES
from repstitch.spaces import Space
from repstitch.stitchers.confidence import Confidence
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.probe_evaluation import Task, make_task, prove
from repstitch.workflows.preparing import PreparedPairs, group_name, prepare, read_pair_of_spaces
from repstitch.workflows.proving import evaluate_selection


def train(
    source,
    target,
    *,
    method: str = "auto",
    objective: str = "match",
    split_shares: Sequence[float] = SHARES,
    split_seed: int = 0,
    seed: int = 0,
    group=None,
    drop_invalid: bool = False,
    refit_on_all: bool = False,
    source_space: str | Space | None = None,
    target_space: str | Space | None = None,
    source_ids=None,
    target_ids=None,
    output_norm: str | None = None,
    device: str = "auto",
    learning_curve: bool = False,
    labels=None,
    retention: float = 0.9,
    first_stage: float = 0.95,
    **recipe,
) -> Stitcher:
    """Learn a stitcher from paired embeddings and prove it on pairs it never saw.

    `source` and `target` are files (see `embeddings.scan`), `Embeddings`, or arrays (n, d). They pair by id, else by
    position, and are split by hashed id or `group` into train, validation and test. `method` is one of `ridge`,
    `procrustes`, `canonical`, `linear`, `mlp` or `auto`, which tries them all (see `fit.select.select`); every choice
    is made on validation rows for the `objective` (`match`: find the counterpart, `neighbours`: keep the neighbours,
    `reconstruction`: least error). The scorecard is taken on test rows. With `refit_on_all` the chosen map is then
    fitted once more on all pairs, and the card says so; the calibration of its confidence stays the one taken before.
    With `learning_curve` the card also tells how scores grow with the number of training pairs, and whether more would
    pay.

    With `labels` of the source's rows (see `transfer.labels.label`) the card has `probe_transfer`: how a probe of the
    target space does on the source's test rows, carried back by the map (`transfer.proof.prove`).

    Rows are translated at unit length; `output_norm` "unit" or "none" says what comes out, by default what the target's
    card says ("none" only where it states that rows are not normalised). `retention` and `first_stage` are the
    thresholds of the card's verdicts (`verdict.Thresholds`). Further keywords are settings of
    `fit.contrastive.Recipe` (`epochs`, `width`, `devices`, `strategy`, `checkpoints` …).

    Raises InputError on rows, pairs, splits or settings that cannot be used; see `pairs.pair` and `checks.check`.
    """
    if method not in (*METHODS, "auto"):
        raise InputError(f"`method` must be one of {', '.join(METHODS)} or auto; got {method!r}.")
    check_choice("objective", objective, OBJECTIVES)
    if output_norm is not None:
        check_choice("output_norm", output_norm, NORMALISATIONS)
    check_seed(seed)
    thresholds = Thresholds(retention, first_stage)
    device = pick_device(device)
    settings = recipe_for("mlp", **({"accelerator": "gpu" if device == "cuda" else "cpu", "seed": seed} | recipe))

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

    problem = state_problem(prepared, objective, settings)
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
    extras = {} if refitted is None else {"refit": True}
    if task is not None:
        extras["probe_transfer"] = prove(stitcher, task, seed=seed)
    return replace(stitcher, map=stitcher.map if refitted is None else refitted, scorecard=scorecard | extras)


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
    return Problem(X, Y, validation, recipe, lengths=prepared.output_norm == "none")


def assemble(
    prepared: PreparedPairs,
    problem: Problem,
    chosen: Candidate,
    scorecard: dict,
    calibration: Confidence | None,
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
