"""Does a carried probe tell classes on the target's own rows, compared with a native probe and with chance?"""

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
Draws = Mapping[str, tuple[float, np.ndarray]]  # a value and its values on resampled rows, by contender


@exact_products()
def evaluate_probe(
    backward: Stitcher,
    task: Task,
    probe: Probe | None = None,
    backward_map: LinearMap | None = None,
    seed: int = 0,
    native: Probe | None = None,
) -> Proof:
    """How well a probe of the source, carried to the target by `backward`, tells the task's classes there.

    `probe` is the probe to carry; without one, a probe is trained on the task's source rows. `backward_map` is the
    affine map it is carried through; by default that of the stitcher, or for an MLP the mean Jacobian at training rows.
    Each measure of `metrics.classification.evaluate` is taken on the same unseen test rows for

    - `carried`: the carried probe on the target's rows;
    - `whole`: the original probe on translations of them, by the whole stitcher with its normalisation;
    - `native`: a probe trained on the target's rows of the same items and labels (or the argument `native`);
    - `home`: the original probe on the source's rows;
    - `shuffled`: the probe carried through a closed-form map that was fitted to shuffled pairs;
    - `random`: the mean of 100 probes of random directions, with the middle 95 % of them as the interval;
    - `majority`: the most frequent class of training, always.

    `retention` is carried over native accuracy, `below_native` and `above_shuffled` are differences of accuracy, with
    intervals over the same resampled rows. A probe that is given is scored by all its classes, also those that no row
    has (`other_classes`); the native probe has only the classes of the rows. `cosine` compares the directions of the
    carried and the native probe, each class's less the mean over classes. `score_correlation` compares their scores of
    the test rows, each less the row's mean over classes: Pearson's r over rows, the mean over classes. `left_out`
    counts rows.
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
        values[name] = with_intervals(draws) | {"random": mean_and_range(random_measures[name])}
    values |= compare_accuracies(measures["accuracy"])
    values["cosine"] = _compare_directions(carried, native, shuffled, task.kept_classes)
    values["score_correlation"] = _score_correlation(*(
        scores[name][:, task.columns(task.kept_classes)] for name in ("carried", "native")
    ))  # fmt: skip
    return Proof(values)


def compare_class_directions(forward: LinearMap, task: Task) -> ClassDirections:
    """Are the classes' mean directions, each class's mean less the mean of all, carried to those of the target?

    `cosine` is between the carried source direction, from training rows, and the target's own, from test rows.
    `others` is the mean cosine to the directions of the other classes.
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
    """The stitcher's closed form, or the one its refinement started from, fitted to these pairs in random order."""
    closed_form = stitcher.settings.get("start", stitcher.settings)
    if "gain" not in closed_form:  # a stitcher that was put together by hand
        closed_form = {"method": "ridge", "penalty": 1e-2, "gain": None}
    return fit_shuffled(X, Y, closed_form.get("method", stitcher.method), closed_form, seed)


def compare_accuracies(accuracy: Draws) -> dict[str, Any]:
    """The carried probe's accuracy over the native one's, their difference, and the difference to shuffled pairs."""
    carried, carried_draws = accuracy["carried"]
    native, native_draws = accuracy["native"]
    shuffled, shuffled_draws = accuracy["shuffled"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = carried_draws / np.where(native_draws > 0, native_draws, np.nan)
    return {
        "retention": {"score": carried / native, "interval": interval(ratio)} if native > 0 else None,
        "below_native": {"score": native - carried, "interval": interval(native_draws - carried_draws)},
        "above_shuffled": {"score": carried - shuffled, "interval": interval(carried_draws - shuffled_draws)},
    }


def with_intervals(draws: Draws) -> dict[str, Any]:
    """Each contender's score with the interval of its draws, as JSON."""
    return {name: {"score": score, "interval": interval(values)} for name, (score, values) in draws.items()}


def mean_and_range(values: np.ndarray) -> dict[str, Any]:
    """The mean of random draws and the middle 95 % of them, as JSON."""
    return {"score": float(values.mean()), "interval": interval(values)}


def frequency_scores(counts: np.ndarray) -> np.ndarray:
    """Scores (c,) that rank classes by their number of rows; of equally frequent classes the first wins."""
    scores = np.empty(len(counts))
    scores[np.argsort(-counts, kind="stable")] = np.arange(len(counts))[::-1]
    return scores


def _majority_scores(task: Task) -> np.ndarray:
    counts = np.bincount(task.y[task.train], minlength=len(task.classes)).astype(np.float64)
    return np.broadcast_to(frequency_scores(counts), (len(task.test), len(counts)))


def _random_probes(task: Task, seed: int) -> dict[str, np.ndarray]:
    """Each measure of probes of random directions that score 0 at the mean of the training rows."""
    random = np.random.default_rng(seed)
    centred, y = task.target[task.test] - task.target[task.train].mean(0), task.y[task.test]
    draws: dict[str, list[float]] = {}
    for _ in range(RANDOM_PROBES):
        scores = centred @ random.standard_normal((centred.shape[1], len(task.classes)))
        for measure, values in evaluate({"random": scores}, y, draws=0).items():
            draws.setdefault(measure, []).append(values["random"][0])
    return {measure: np.array(values) for measure, values in draws.items()}


def _compare_directions(carried: Probe, native: Probe, shuffled: Probe, classes: Sequence[str]) -> dict[str, Any]:
    carried_rows, native_rows, shuffled_rows = (_probe_directions(p, classes) for p in (carried, native, shuffled))
    by_class = _cosines(carried_rows, native_rows)
    return {
        "mean": float(by_class.mean()),
        "by_class": [float(cosine) for cosine in by_class],
        "shuffled": float(_cosines(shuffled_rows, native_rows).mean()),
    }


def _probe_directions(probe: Probe, classes: Sequence[str]) -> np.ndarray:
    """The direction of each class less the mean of all, which decides which class has the highest score."""
    coef = np.vstack([np.zeros_like(probe.coef), probe.coef]) if len(probe.coef) == 1 else probe.coef
    directions = coef[[(probe.classes or ()).index(name) for name in classes]]
    directions = directions - directions.mean(0)
    return directions[1:] if len(directions) == 2 else directions


def _score_correlation(carried: np.ndarray, native: np.ndarray) -> float:
    """Pearson's r over rows of scores (n, c), each less the row's mean; the mean over classes, constants as 0."""
    by_class = correlations(*((scores - scores.mean(1, keepdims=True)).T for scores in (carried, native)))
    return float(np.nan_to_num(by_class).mean())


def _class_directions(task: Task, rows: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Each kept class's mean over one part of the rows, less the mean of the part."""
    rows, y = rows[part], task.y[part]
    return np.stack([rows[y == k].mean(0) - rows.mean(0) for k in task.columns(task.kept_classes)])


def _cosines(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    return (_unit(A) * _unit(B)).sum(1)


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
