"""The whole of the job in one call: pairs in, a stitcher with its proof out."""

import logging
import math
import platform
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

import repstitch
from repstitch.arguments import check_seed
from repstitch.devices import pick_device
from repstitch.embeddings.checks import check
from repstitch.embeddings.fingerprints import id_fingerprints, row_fingerprints
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pairs import Pairs, pair
from repstitch.embeddings.reading import read
from repstitch.embeddings.splitting import SHARES, split
from repstitch.errors import InputError
from repstitch.evaluation.thresholds import Thresholds
from repstitch.fit.calibration import calibrate, evaluate
from repstitch.fit.closed_form import FITS
from repstitch.fit.learning_curve import check_enough, draw_curve
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.ranks import leave_to_first_rank
from repstitch.fit.recipe import recipe_for
from repstitch.fit.select import Problem, refit, select
from repstitch.fit.spectrum import shared_spectrum
from repstitch.names import METHODS, OBJECTIVES
from repstitch.spaces import Space
from repstitch.stitchers.confidence import LEAST_ROWS
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.labels import label
from repstitch.transfer.probe_evaluation import make_task, prove
from repstitch.workflows.preparing import group_name
from repstitch.workflows.proving import score_held_out, shuffled_control

log = logging.getLogger(__name__)


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
    if objective not in OBJECTIVES:
        raise InputError(f"`objective` must be one of {', '.join(OBJECTIVES)}; got {objective!r}.")
    check_seed(seed)
    thresholds = Thresholds(retention, first_stage)
    on = pick_device(device)
    settings = recipe_for("mlp", **({"accelerator": "gpu" if on == "cuda" else "cpu", "seed": seed} | recipe))
    a = read(source, space=source_space, ids=source_ids, group=group)
    b = read(target, space=target_space, ids=target_ids, group=group if a.groups is None else None)
    if group is not None and a.groups is None and b.groups is None:
        raise InputError(
            f"`group` must be a column of either side, or a file or array with one group a row; got {group!r}."
        )
    if a.space.name == b.space.name and not a.declared and not b.declared:
        raise InputError(
            f"Both sides would be called {a.space.name!r}; name them with `source_space` and `target_space` "
            "(--source-space and --target-space)."
        )
    pairs = pair(a if labels is None else label(a, labels), b, drop_invalid)
    parts = split(pairs, split_shares, split_seed)
    output_norm = output_norm or ("none" if b.space.normalised is False else "unit")
    found = check(pairs, parts, output_norm)
    if learning_curve:
        check_enough(len(parts.train))
    X = normalise(torch.from_numpy(pairs.X), "unit", "source rows").to(on)
    Y = normalise(torch.from_numpy(pairs.Y), output_norm, "target rows").to(on)
    task = None if pairs.labels is None else make_task(X.cpu().numpy(), Y.cpu().numpy(), pairs.labels, parts)
    judge = ValidationObjective(objective, X[parts.select], Y[parts.select], Y[parts.train])
    problem = Problem(X[parts.train], Y[parts.train], judge, settings, lengths=output_norm == "none")
    chosen, tried = select(problem, method)
    refitted = refit(chosen, X, Y, problem).to("cpu") if refit_on_all else None
    leave_to_first_rank()
    held, held_name = (parts.test, "test pairs") if len(parts.test) else (parts.calibrate, "validation pairs")
    map = chosen.map.to("cpu")
    near = found.near[held]
    card = score_held_out(map, X[held].cpu(), Y[held].cpu(), Y[parts.train].cpu(), output_norm, thresholds, near)
    halved = not np.isin(parts.calibrate, parts.select).any()
    if not len(parts.test) and not halved:
        held_name = "validation pairs that also chose the map"
    chose, unseen = ((X[rows], Y[rows]) for rows in (parts.select, parts.calibrate))
    measures = calibrate(chosen.map, problem.decomposition, chose, unseen, Y[parts.train]) if halved else None
    if not halved:
        found.notes.append("Validation could not be halved (too few pairs or groups), so confidence is not calibrated.")
    elif measures is None:
        found.notes.append(f"Fewer than {LEAST_ROWS} validation pairs in either half, so confidence is not calibrated.")
    elif len(parts.test):
        others = (chose[1], unseen[1], Y[parts.train])
        card["confidence"] = evaluate(measures, chosen.map, X[parts.test], Y[parts.test], others)
    card |= {
        "held_out": held_name,
        "spectrum": shared_spectrum(problem.decomposition, X[held], Y[held], seed=seed) if len(held) >= 4 else None,
        "control_fit": shuffled_control(problem, chosen, X[held], Y[held], seed),
        "candidates": [
            {
                "method": c.method,
                "settings": settings,
                "validation": score if math.isfinite(score) else None,
                "chosen": c is chosen and settings == chosen.settings,
            }
            for c in tried
            for settings, score in c.tried
        ],
        "notes": found.notes,
        "near_duplicates": int(near.sum()),
    }
    if learning_curve:
        keys = pairs.ids if pairs.groups is None else pairs.groups
        method = chosen.method if chosen.method in FITS else "canonical"
        card["learning_curve"] = draw_curve(problem, method, id_fingerprints(keys[parts.train]), seed)
        log.info("%s", card["learning_curve"]["verdict"])
    used = np.concatenate([parts.train, parts.validation])
    if refitted is not None:
        card["refit"] = True
        used = np.arange(len(pairs))
    stitcher = Stitcher(
        map=map,
        source=pairs.source,
        target=pairs.target,
        method=chosen.method,
        objective=objective,
        input_norm="unit",
        output_norm=output_norm,
        source_mean=X[parts.train].mean(0).cpu().numpy(),
        target_mean=Y[parts.train].mean(0).cpu().numpy(),
        seen=np.unique(
            np.concatenate([id_fingerprints(pairs.ids[used]), row_fingerprints(pairs.X[used], pairs.Y[used])])
        ),
        settings=chosen.settings | {"seed": seed},
        split={"shares": list(split_shares), "seed": split_seed, "group": group_name(group)},
        provenance=_provenance(pairs, parts),
        scorecard=card,
        calibration=None if measures is None else measures.to("cpu"),
    )
    if task is not None:
        card["probe_transfer"] = prove(stitcher, task, seed=seed)
    return stitcher if refitted is None else replace(stitcher, map=refitted)


def _provenance(pairs: Pairs, parts) -> dict:
    counts = {"train": parts.train, "select": parts.select, "calibrate": parts.calibrate, "test": parts.test}
    return {
        "repstitch": repstitch.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "paired_by": pairs.by,
        "pairs": {name: len(rows) for name, rows in counts.items()},
        "dropped": pairs.dropped,
    }
