"""Learn a stitcher from pairs in one call: prepare the pairs, select a map, evaluate it, build the stitcher."""

import inspect
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal, Unpack

import numpy as np
import torch

import repstitch
from repstitch.arguments import check_choice, check_keywords, check_seed
from repstitch.devices import pick_device
from repstitch.embeddings.columns import Column
from repstitch.embeddings.fingerprints import id_fingerprints, pair_keys, row_fingerprints
from repstitch.embeddings.ids import IdColumn
from repstitch.embeddings.pair_columns import OWN
from repstitch.embeddings.reading import has_column
from repstitch.embeddings.rows import EmbeddingsLike
from repstitch.embeddings.sampling import Sample
from repstitch.embeddings.splitting import FOLDS, SHARES
from repstitch.errors import InputError
from repstitch.evaluation.pool import TranslatedPairs
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.thresholds import Thresholds
from repstitch.fit.learning_curve import check_enough
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.ranks import leave_to_first_rank
from repstitch.fit.recipe import Recipe, RecipeSettings, recipe_for
from repstitch.fit.selection import OWN_SHARES, Candidate, Problem, refit, select
from repstitch.names import METHODS, NORMALISATIONS, OBJECTIVES, Method, Normalisation, Objective, OldModel, Use
from repstitch.spaces import Space
from repstitch.stitchers.confidence import Calibration
from repstitch.stitchers.held_out_rows import HeldOutRows, keep_rows
from repstitch.stitchers.maps import Map
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.probe_evaluation import evaluate_probe
from repstitch.transfer.task import Task, make_task
from repstitch.workflows.preparing import (
    Division,
    PairColumns,
    PreparedPairs,
    compare_with_corpus,
    group_name,
    prepare,
    read_pair_of_spaces,
)
from repstitch.workflows.proving import evaluate_selection


def train(  # noqa: PLR0913 - the whole job in one call
    source: EmbeddingsLike,
    target: EmbeddingsLike,
    *,
    method: Method | Literal["auto"] = "auto",
    objective: Objective = "match",
    use: Use | Literal["both"] | None = None,
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
    id_column: IdColumn | None = None,
    output_norm: Normalisation | None = None,
    device: str = "auto",
    learning_curve: bool = False,
    labels: Column | None = None,
    retention: float = 0.9,
    first_stage: float = 0.95,
    old_model: OldModel = "available",
    sample: int | None = None,
    weight: Column | None = None,
    folds: int | None = None,
    own: Column | None = None,
    own_share: float | None = None,
    corpus: EmbeddingsLike | None = None,
    **recipe: Unpack[RecipeSettings],
) -> Stitcher:
    """Learn a stitcher from paired embeddings and score it on held-out pairs.

    The pairs are split into train, validation and test. Maps are fitted to train, one of them is selected on
    validation, and the scorecard is computed on test.

    Args:
        source: The embeddings to translate from: a file or the address of a table in a store (see `repstitch.read`),
            `Embeddings`, or an array (n, d_source). At least 20 pairs are needed.
        target: The embeddings of the same items in the space to translate into, in any of these forms. Rows are paired
            by id if both sides have ids, otherwise by position. Rows of a store are always paired by id; only those
            with the ids of the other side are read.
        method: How the map is learned. Default: `auto`.

            - `ridge`: linear regression with an L2 penalty.
            - `procrustes`: an orthogonal map (a rotation or reflection) with a scale and an offset.
            - `canonical`: regression along the canonical correlation directions, with shrinkage.
            - `linear`: a linear map that starts from the best of these and is refined by gradient descent.
            - `mlp`: the same, plus an MLP with one hidden layer.
            - `auto`: try all of these, and use the simplest one whose validation score is within one standard error of
              the best. The first three are equally simple; `linear` and `mlp` follow.
        objective: What the map is selected for on validation pairs; `linear` and `mlp` are also trained for it.
            Default: `match`.

            - `match`: rank the counterpart of each row first (mean reciprocal rank).
            - `neighbours`: have the same ten nearest neighbours as the counterpart (share of them in common).
            - `reconstruction`: come as close to the target vector as possible (R²).
        use: The use that the objective `neighbours` is judged by: `query` (translated queries search native rows),
            `corpus` (native queries search translated rows), or the mean of `both`. Default: None, which is `both`.
        split_shares: The shares of train, validation and test, which sum to 1. Only test may be 0; the pairs of the
            scorecard then come from validation. Default: (0.6, 0.15, 0.25).
        split_seed: Seed of the split. The part of a pair depends only on this seed and on its id or group (without ids,
            on its vectors), so the same ids are held out in every run and for every model. Default: 0.
        seed: Seed of gradient descent, of the controls with shuffled pairs and of the learning curve. Default: 0.
        group: One group per pair, for example the product that several images show: a column of either file, a
            column of a table (`table.csv:column`, matched by id if the table has ids), a file, or an array. All pairs
            of a group are put in the same part of the split. Default: None, no groups.
        drop_invalid: If True, leave out rows with NaN, Inf or only zeros, and exact repeats of a pair. If False, these
            rows raise InputError, and so do repeats that fall into different parts of the split. Default: False.
        refit_on_all: If True, fit the selected map again on all pairs after scoring, and return that map. The scores
            and the confidence remain those of the first fit, and the scorecard has `refit`. Default: False.
        source_space: The name or card (`Space`) of the source's space, in place of the one in the file. Default: the
            card of the file, else the file's name; `source` for an array.
        target_space: The same for the target's space; `target` for an array.
        source_ids: One id per source row, in place of those in the file: an array, a text file with one id per line, a
            `.npy` file, `file.npz:key` or `table.csv:column`.
        target_ids: The same for the target rows.
        id_column: The column that contains the ids, or the names that it has in the different files. Default: chosen as
            by `repstitch.read`.
        output_norm: The length of translated rows. `unit` scales them to length 1; with `none` the map also learns the
            length of the target rows. Default: `unit`, or `none` if the target's card states that its rows are not
            normalised.
        device: The device for fitting: `cpu`, `cuda` or `auto` (CUDA if available). Default: `auto`. Gradient descent
            uses PyTorch's precision of float32 products (`torch.set_float32_matmul_precision`); scores and closed forms
            always use full float32.
        learning_curve: If True, add a learning curve to the scorecard: the score by number of training pairs, and an
            estimate for twice as many. Requires at least 80 training pairs. Default: False.
        labels: One class label per source row: `table.csv:column` with a column `id`, or an array or file in row order.
            The scorecard then also has `probe_transfer`: the accuracy on source test rows of a linear classifier (a
            probe) that is trained on target rows and transferred to the source space through the map. Requires a test
            share above 0. Default: None.
        retention: The share of the score of full re-embedding, above 0 and at most 1, that the translation must reach
            with its whole 95 % interval for the verdict `use`. Default: 0.9.
        first_stage: The share of the shortlist recall of full re-embedding that the translation must reach with
            its whole 95 % interval for the verdict `use as first stage`. Default: 0.95.
        old_model: `gone` if the old model cannot be kept, for example because its provider switches it off. The verdict
            then rests on the shares of re-embedding alone. Default: `available`.
        sample: The number of pairs to draw at random with `seed`; all if there are no more. Of a store, only their rows
            are read. Default: None, all pairs.
        weight: One positive weight per pair, in every fit and in the score that selects the map: the name of a column
            of either file, `table.csv:column`, a file, or an array in the source's row order. Default: None, all equal.
        folds: The number of folds, from 2 to 20, in place of a split, which is worth it with fewer than about 3,000
            pairs. The map is trained on all pairs. Settings are selected, and the scores and the confidence computed,
            with translations of each fold by a map that is fitted without it. Only closed forms are tried. Default:
            None, a split; 5 with `own`.
        own: The pairs from where the stitcher will be used; the others are general pairs. All general pairs are trained
            on, and own pairs are divided into folds, so that settings, scores and confidence are those of own pairs.
            `own` is the name of a column of either file that says true or false for each row, or the ids of the own
            pairs: a text file, a `.npy` file, `table.csv:column` or an array. Default: None, no difference.
        own_share: The share of the own pairs in the total weight, above 0 and at most 1. Default: None, which selects
            the best of several shares.
        corpus: Rows from where the stitcher will be used, in the source space, such as the address of the table to
            move. A random sample of them is compared with the pairs, or with the own pairs. If they are unlike, the
            scores say little about the corpus: the verdicts are `not judged`, and there is no confidence. If `own` is
            None and a file has a column `own`, it says which pairs are own. Default: None, no comparison.
        **recipe: Settings of `linear` and `mlp`, for example `epochs` (default: 25), `width` of the hidden layer
            (default: 512), `batch_size` (default: 512) and `checkpoints`, a folder from which an interrupted fit
            resumes (default: None). `repstitch.fit.recipe.Recipe` describes all of them.

    Returns:
        The stitcher, with the scorecard of the held-out pairs in `stitcher.scorecard`.

    Raises:
        InputError: If the rows, the pairs, the split or a setting cannot be used, or if a keyword is unknown.
    """
    check_keywords("train", recipe, PARAMETERS)
    if method not in (*METHODS, "auto"):
        raise InputError(f"`method` must be one of {', '.join(METHODS)} or auto; got {method!r}.")
    check_choice("objective", objective, OBJECTIVES)
    if use is not None and objective != "neighbours":
        raise InputError(f"`use` is a part of the objective neighbours; the `objective` is {objective}.")
    if corpus is not None and own is None and any(has_column(side, OWN) for side in (source, target)):
        own = OWN
    n_folds = _check_folds(folds, own, own_share, split_shares, learning_curve)
    if output_norm is not None:
        check_choice("output_norm", output_norm, NORMALISATIONS)
    check_seed(seed)
    thresholds = Thresholds(retention, first_stage, old_model)
    drawn = None if sample is None else Sample(sample, seed)
    device = pick_device(device)
    accelerator = "gpu" if device == "cuda" else "cpu"
    fit_recipe = recipe_for("mlp", **{"accelerator": accelerator, "seed": seed, **recipe})

    columns = PairColumns(group, labels, weight, own)
    spaces, ids = (source_space, target_space), (source_ids, target_ids)
    prepared = prepare(
        *read_pair_of_spaces(source, target, columns, spaces, ids, id_column, drawn),
        columns=columns,
        division=Division(split_shares, split_seed, n_folds),
        drop_invalid=drop_invalid,
        output_norm=output_norm,
        device=device,
        sample=drawn,
    )
    likeness = None if corpus is None else compare_with_corpus(prepared, corpus, source_space, id_column, seed)
    if learning_curve:
        check_enough(len(prepared.parts.train))
    task = probe_task(prepared)

    problem = state_problem(prepared, objective, fit_recipe, use or "both", own_share)
    chosen, tried = select(problem, method)
    refitted = _refit_on_all(chosen, prepared, problem).to("cpu") if refit_on_all and n_folds is None else None
    leave_to_first_rank()

    scorecard, calibration, scored = evaluate_selection(
        prepared, problem, chosen, tried, thresholds, likeness, learning_curve=learning_curve, seed=seed
    )
    split_record: dict = {"seed": split_seed, "group": group_name(group)}
    split_record |= {"shares": list(split_shares)} if n_folds is None else {"folds": n_folds}
    stitcher = assemble(
        prepared, problem, chosen, scorecard, calibration, objective, split_record, used_all_pairs=refit_on_all
    )
    names = {"source": stitcher.source.name, "target": stitcher.target.name}
    extras: dict = names | {"objective": objective} | ({} if refitted is None else {"refit": True})
    if task is not None:
        extras["probe_transfer"] = evaluate_probe(stitcher, task, seed=seed).to_dict()
    map = stitcher.map if refitted is None else refitted
    return replace(
        stitcher,
        map=map,
        scorecard=Scorecard(scorecard.to_dict() | extras),
        held_out=_held_out_rows(prepared, scored) if refitted is None else None,
    )


def _check_folds(
    folds: int | None, own: Column | None, own_share: float | None, shares: Sequence[float], learning_curve: bool
) -> int | None:
    """Return the number of folds; None for a split. Raises InputError if the arguments contradict each other."""
    if own_share is not None and (own is None or not 0 < own_share <= 1):
        raise InputError(f"`own_share` must be above 0 and at most 1, and requires `own`; got {own_share}.")
    if folds is None and own is None:
        return None
    if tuple(shares) != SHARES:
        raise InputError("With `folds` or `own`, no pairs are set apart; omit `split`.")
    if learning_curve:
        raise InputError("`learning_curve` requires a split; omit it, or `folds` and `own`.")
    return FOLDS if folds is None else folds


def _refit_on_all(chosen: Candidate, prepared: PreparedPairs, problem: Problem) -> Map:
    weights = None if prepared.weights is None else torch.tensor(prepared.weights).to(prepared.X)
    return refit(chosen, replace(problem, X=prepared.X, Y=prepared.Y, weights=weights))


def _held_out_rows(prepared: PreparedPairs, scored: TranslatedPairs) -> HeldOutRows | None:
    """Return the held-out pairs by their ids; None if the pairs have no ids by which a store could know them."""
    pairs, rows = prepared.pairs, prepared.held_out
    if pairs.by != "id":
        return None
    similar = None if scored.similar is None else scored.similar["corpus"].numpy()
    return keep_rows(pairs.ids[rows], pairs.Y[rows], scored.translated.numpy(), pairs.X[rows], similar)


def probe_task(prepared: PreparedPairs) -> Task | None:
    """Build the task for a probe that is transferred from the target space to the source; None without labels."""
    labels = prepared.pairs.labels
    if labels is None:
        return None
    return make_task(prepared.X.cpu().numpy(), prepared.Y.cpu().numpy(), labels, prepared.parts)


def state_problem(
    prepared: PreparedPairs, objective: str, recipe: Recipe, use: str = "both", own_share: float | None = None
) -> Problem:
    """Build the problem that selection solves: the training pairs, and the objective on validation pairs."""
    train, selecting = prepared.parts.train, prepared.parts.select
    X, Y = prepared.take(train)
    weights = None if prepared.weights is None else torch.tensor(prepared.weights).to(X)
    others = Y if prepared.folds is None else Y[torch.from_numpy(prepared.folds < 0)]
    of_validation = None if weights is None else weights[selecting]
    validation = ValidationObjective(objective, *prepared.take(selecting), others, of_validation, use)
    return Problem(
        X,
        Y,
        validation,
        recipe,
        keep_lengths=prepared.output_norm == "none",
        weights=None if weights is None else weights[train],
        folds=None if prepared.folds is None else torch.from_numpy(prepared.folds).to(X.device),
        own_shares=OWN_SHARES if own_share is None else (own_share,),
    )


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
    """Build a stitcher from the chosen map, with a record of how it was made and which pairs were used to make it."""
    pairs, parts = prepared.pairs, prepared.parts
    used = np.arange(len(pairs)) if used_all_pairs else np.union1d(parts.train, parts.validation)
    X, Y = pairs.X[used], pairs.Y[used]
    fingerprints = [id_fingerprints(pairs.ids[used]), row_fingerprints(X, Y)]
    counts = {"train": parts.train, "select": parts.select, "calibrate": parts.calibrate, "test": parts.test}
    if prepared.folds is not None:
        counts = {"train": parts.train, "own": parts.select} if prepared.has_general else {"train": parts.train}
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
            **({} if prepared.weights is None else {"effective_pairs": problem.decomposition.moments.n_effective}),
        },
        scorecard=scorecard,
        calibration=None if calibration is None else calibration.to("cpu"),
        created=datetime.now(UTC).isoformat(),
        seen_rows=pair_keys(X, Y),
    )


PARAMETERS = {*inspect.signature(train).parameters, *RecipeSettings.__optional_keys__} - {"recipe"}
