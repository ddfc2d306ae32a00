"""Evaluate a transferred probe on labelled target rows, compared with a native probe and with chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from repstitch.fit.closed_form import fit_shuffled
from repstitch.metrics.classification import evaluate
from repstitch.metrics.pearson import correlations
from repstitch.metrics.resample import interval
from repstitch.precision import exact_products
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.kinds import Probe
from repstitch.transfer.linear import LinearMap, affine_part, evenly_spaced, linearise
from repstitch.transfer.proof import ClassDirections, Proof
from repstitch.transfer.rules import pull_back
from repstitch.transfer.task import Task

RANDOM_PROBES = 100
Draws = Mapping[str, tuple[float, np.ndarray]]  # each contender's value, and its values on resampled rows


@exact_products()
def evaluate_probe(
    backward: Stitcher,
    task: Task,
    probe: Probe | None = None,
    backward_map: LinearMap | None = None,
    seed: int = 0,
    native: Probe | None = None,
) -> Proof:
    """Evaluate how well a probe of the source, transferred to the target by `backward`, classifies the target's rows.

    `probe` is the probe to transfer; by default, one is trained on the task's source rows. `backward_map` is the affine
    map to transfer it through; by default the stitcher's affine map, or for an MLP its mean Jacobian at training rows.
    Each measure of `metrics.classification.evaluate` is computed on the same unseen test rows for

    - `carried`: the transferred probe on the target's rows;
    - `whole`: the original probe on the target's rows translated by the whole stitcher, with its normalisation;
    - `native`: a probe trained on the target's rows of the same items and labels (or the argument `native`);
    - `home`: the original probe on the source's rows;
    - `shuffled`: the probe transferred through a closed-form map that was fitted to shuffled pairs;
    - `random`: the mean of 100 probes with random directions; the interval is their middle 95 %;
    - `majority`: always predicting the most frequent class of the training rows.

    The proof further contains

    - `retention`: the accuracy of the transferred probe divided by that of the native probe;
    - `below_native` and `above_shuffled`: the accuracy of `native` minus that of `carried`, and of `carried` minus that
      of `shuffled`;
    - `cosine`: the cosines of the transferred and the native probe's class directions, each minus the mean over
      classes;
    - `score_correlation`: Pearson's r over test rows of the two probes' scores, each minus the row's mean over classes;
      the mean over classes;
    - `other_classes`: the classes of the probe that no row has. All probes but the native one can predict them, always
      wrongly;
    - `left_out`: the numbers of rows that were not used, by reason.

    Intervals of `retention` and the differences are computed on the same resampled rows for both probes.
    """
    backward_map = backward_map or linearise(backward, evenly_spaced(task.target[task.train]))
    probe = probe or task.fit_probe(task.source)
    native = native or task.fit_probe(task.target)
    carried = pull_back(probe, backward_map)
    X, Y = (torch.from_numpy(rows[task.train]).float() for rows in (task.target, task.source))
    shuffled = pull_back(probe, affine_part(shuffled_map(backward, X, Y, seed)))
    target, y = task.target[task.test], task.y[task.test]
    scores = {
        "carried": task.scores(carried, target),
        "whole": task.scores(probe, backward.translate(target.astype(np.float32))),
        "native": task.scores(native, target),
        "home": task.scores(probe, task.source[task.test]),
        "shuffled": task.scores(shuffled, target),
        "majority": _majority_scores(task),
    }
    measures = evaluate(scores, y, seed)
    values: dict[str, Any] = {
        "source": backward.target.name,
        "target": backward.source.name,
        "through": backward_map.description,
        "classes": list(task.kept_classes),
        "n_train": len(task.train),
        "n_test": len(task.test),
        "left_out": task.left_out,
    }
    if len(task.kept_classes) < len(task.classes):
        values["other_classes"] = [name for name in task.classes if name not in task.kept_classes]
    random_measures = _random_probes(task, seed)
    for name, draws in measures.items():
        values[name] = with_intervals(draws, len(y)) | {"random": mean_and_range(random_measures[name])}
    values |= compare_accuracies(measures["accuracy"], len(y))
    values["cosine"] = _compare_directions(carried, native, shuffled, task.kept_classes)
    values["score_correlation"] = _score_correlation(*(
        scores[name][:, task.columns(task.kept_classes)] for name in ("carried", "native")
    ))  # fmt: skip
    return Proof(values)


def compare_class_directions(forward: LinearMap, task: Task) -> ClassDirections:
    """Compare the class directions of the source, transferred to the target, with the target's own class directions.

    A class direction is the mean of the class's rows minus the mean of all rows. `cosine` compares the transferred
    direction, from the source's training rows, with the target's direction of the same class, from test rows. `others`
    is the mean cosine with the target's directions of the other classes.
    """
    carried = _class_directions(task, task.source, task.train) @ forward.weight
    cosines = _unit(carried) @ _unit(_class_directions(task, task.target, task.test)).T
    c = len(cosines)
    return ClassDirections(
        {
            "cosine": {"mean": float(cosines.diagonal().mean()), "by_class": [float(v) for v in cosines.diagonal()]},
            "others": float((cosines.sum() - cosines.trace()) / (c * (c - 1))),
        }
    )


def shuffled_map(stitcher: Stitcher, X: torch.Tensor, Y: torch.Tensor, seed: int) -> AffineMap:
    """Fit the stitcher's closed form, or the one that its training started from, to these pairs in random order."""
    closed_form = stitcher.settings.get("start", stitcher.settings)
    if "gain" not in closed_form:  # the stitcher was not made by `train`
        closed_form = {"method": "ridge", "penalty": 1e-2, "gain": None}
    return fit_shuffled(X, Y, closed_form.get("method", stitcher.method), closed_form, seed)


def compare_accuracies(accuracy: Draws, n: int) -> dict[str, Any]:
    """Compare the accuracy of the transferred probe on n rows with those of the native and of the shuffled one."""
    carried, carried_draws = accuracy["carried"]
    native, native_draws = accuracy["native"]
    shuffled, shuffled_draws = accuracy["shuffled"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = carried_draws / np.where(native_draws > 0, native_draws, np.nan)
    retention = None
    if native > 0:
        bounds = 0.0, max(carried, 1.0) / native
        retention = {"score": carried / native, "interval": interval(ratio, n=n, bounds=bounds)}
    differences = native_draws - carried_draws, carried_draws - shuffled_draws
    below, above = (interval(draws, n=n, bounds=(-1.0, 1.0)) for draws in differences)
    return {
        "retention": retention,
        "below_native": {"score": native - carried, "interval": below},
        "above_shuffled": {"score": carried - shuffled, "interval": above},
    }


def with_intervals(draws: Draws, n: int) -> dict[str, Any]:
    """Return each contender's score on n rows with the interval of its draws, as JSON.

    Some scores of `majority` are known by definition, and have an interval without width.
    """
    return {
        name: {"score": score, "interval": interval(values, n=None if name == "majority" else n)}
        for name, (score, values) in draws.items()
    }


def mean_and_range(values: np.ndarray) -> dict[str, Any]:
    """Return the mean of random draws and their middle 95 %, as JSON."""
    return {"score": float(values.mean()), "interval": interval(values)}


def frequency_scores(counts: np.ndarray) -> np.ndarray:
    """Return scores (c,) that rank classes by their number of rows; ties rank the first class highest."""
    scores = np.empty(len(counts))
    scores[np.argsort(-counts, kind="stable")] = np.arange(len(counts))[::-1]
    return scores


def _majority_scores(task: Task) -> np.ndarray:
    """Return the same scores for every test row, highest for the most frequent class of the training rows."""
    counts = np.bincount(task.y[task.train], minlength=len(task.classes)).astype(np.float64)
    return np.broadcast_to(frequency_scores(counts), (len(task.test), len(counts)))


def _random_probes(task: Task, seed: int) -> dict[str, np.ndarray]:
    """Measure probes with random directions. Their scores are 0 at the mean of the training rows."""
    random = np.random.default_rng(seed)
    centred, y = task.target[task.test] - task.target[task.train].mean(0), task.y[task.test]
    draws: dict[str, list[float]] = {}
    for _ in range(RANDOM_PROBES):
        scores = centred @ random.standard_normal((centred.shape[1], len(task.classes)))
        for measure, values in evaluate({"random": scores}, y, draws=0).items():
            draws.setdefault(measure, []).append(values["random"][0])
    return {measure: np.array(values) for measure, values in draws.items()}


def _compare_directions(carried: Probe, native: Probe, shuffled: Probe, classes: Sequence[str]) -> dict[str, Any]:
    """Return the cosines of the transferred and of the shuffled probe's class directions with the native probe's."""
    carried_rows, native_rows, shuffled_rows = (_probe_directions(p, classes) for p in (carried, native, shuffled))
    by_class = _cosines(carried_rows, native_rows)
    return {
        "mean": float(by_class.mean()),
        "by_class": [float(cosine) for cosine in by_class],
        "shuffled": float(_cosines(shuffled_rows, native_rows).mean()),
    }


def _probe_directions(probe: Probe, classes: Sequence[str]) -> np.ndarray:
    """Return each class's direction minus the mean over classes; these decide which class has the highest score."""
    coef = np.vstack([np.zeros_like(probe.coef), probe.coef]) if len(probe.coef) == 1 else probe.coef
    directions = coef[[(probe.classes or ()).index(name) for name in classes]]
    directions = directions - directions.mean(0)
    return directions[1:] if len(directions) == 2 else directions


def _score_correlation(carried: np.ndarray, native: np.ndarray) -> float:
    """Return the mean over classes of Pearson's r between scores (n, c) minus each row's mean; 0 for constants."""
    by_class = correlations(*((scores - scores.mean(1, keepdims=True)).T for scores in (carried, native)))
    return float(np.nan_to_num(by_class).mean())


def _class_directions(task: Task, rows: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return the mean of each kept class over one part of the rows, minus the mean of the part."""
    rows, y = rows[part], task.y[part]
    return np.stack([rows[y == k].mean(0) - rows.mean(0) for k in task.columns(task.kept_classes)])


def _cosines(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Cosine of each row of A with the same row of B."""
    return (_unit(A) * _unit(B)).sum(1)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows to unit length; rows of zeros stay zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
