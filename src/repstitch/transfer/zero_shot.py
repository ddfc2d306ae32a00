"""Zero-shot classification: make a probe of one space, such as images, from class prompts in another, such as text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from repstitch.embeddings.normalising import normalise
from repstitch.errors import InputError
from repstitch.metrics.classification import evaluate
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.kinds import Probe
from repstitch.transfer.probe_evaluation import frequency_scores, mean_and_range, with_intervals
from repstitch.transfer.proof import ZeroShotProof
from repstitch.transfer.task import MOST_ROWS

TOP = 5
SHUFFLES = 100


def probe_from_prompts(forward: Stitcher, prompts: np.ndarray, names: Sequence[str]) -> Probe:
    """Make a probe of the target space from prompts (m, d_source) of classes. `names` has the class of each prompt.

    The direction of a class is its prompt, mapped without output normalisation, minus the mean over classes. Several
    prompts of one class are averaged. The score of a row is the dot product of the class's direction at unit length and
    the row minus the target's mean. The stitcher stores that mean, so no target rows are needed. With two classes, the
    probe has one row: the difference of both. After Moayeri et al. 2023, "Text-To-Concept (and Back) via Cross-Model
    Alignment", which compares points instead.

    Raises InputError on fewer than two classes, and on a class whose mapped prompt equals the mean over classes.
    """
    rows = np.asarray(prompts)
    if len(names) != len(rows):
        raise InputError(f"`names` must have one entry per prompt ({len(rows)}); got {len(names)}.")
    classes = tuple(dict.fromkeys(str(name) for name in names))
    if len(classes) < 2:
        raise InputError(f"At least two classes are needed; got {', '.join(classes)}.")
    if rows.ndim != 2 or rows.shape[1] != forward.source.dim:
        raise InputError(
            f"`prompts` must be (m, {forward.source.dim}), rows of the space {forward.source.name!r}; got {rows.shape}."
        )
    normalised = normalise(torch.from_numpy(rows.astype(np.float64)), forward.input_norm, "prompts")
    with torch.no_grad():
        carried = forward.map.to("cpu", torch.float64)(normalised).numpy()
    means = np.stack([carried[[str(name) == class_name for name in names]].mean(0) for class_name in classes])
    directions = means - means.mean(0)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    at_mean = lengths[:, 0] <= 1e-9 * np.linalg.norm(means, axis=1).max()
    if at_mean.any():
        name = classes[int(at_mean.argmax())]
        raise InputError(
            f"The map takes the prompt of {name!r} to the mean over classes, so the class has no direction."
        )
    coef = directions / lengths
    if len(classes) == 2:
        coef = coef[1:] - coef[:1]
    return Probe(coef, -coef @ forward.target_mean.astype(np.float64), classes, forward.target)


def evaluate_names(probe: Probe, X: np.ndarray, labels: np.ndarray, seed: int = 0) -> ZeroShotProof:
    """Evaluate a probe from class names on labelled rows X (n, d).

    The measures are accuracy, balanced accuracy, AUROC and, with more than five classes, top-5 accuracy. Rows whose
    label is not a class of the probe, and rows beyond 10,000, are left out and counted. `chance` is the accuracy of
    guessing among all classes. `majority` always predicts the most frequent of these labels. `shuffled` are the same
    scores with the class names shuffled: the mean of 100 draws and their middle 95 %. Other intervals are over
    resampled rows. Raises InputError if fewer than two classes occur among the labels.
    """
    classes = probe.classes or ()
    column = {name: i for i, name in enumerate(classes)}
    named = np.array([label in column for label in labels])
    if len(set(labels[named])) < 2:
        some = ", ".join(sorted({str(label) for label in labels[~named]})[:4])
        raise InputError(f"`labels` must name at least two of the classes ({', '.join(classes[:4])} …); got {some} ….")
    rows = np.flatnonzero(named)
    left_out = {"of no named class": int((~named).sum()), f"beyond {MOST_ROWS:,}": max(0, len(rows) - MOST_ROWS)}
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_ROWS])
    y = np.array([column[label] for label in labels[rows]])
    scores = probe.class_scores(X[rows])
    majority = np.broadcast_to(frequency_scores(np.bincount(y, minlength=len(classes))), scores.shape)
    top = (TOP,) if len(classes) > TOP else ()
    measures = evaluate({"carried": scores, "majority": majority}, y, seed, top)
    shuffled = _shuffled_names(scores, y, top, seed)
    values: dict[str, Any] = {
        "classes": list(classes),
        "n_test": len(y),
        "left_out": {reason: count for reason, count in left_out.items() if count},
        "chance": {"accuracy": 1 / len(classes), "balanced_accuracy": 1 / len(classes)},
    }
    for measure, draws in measures.items():
        values[measure] = with_intervals(draws, len(y)) | {"shuffled": mean_and_range(shuffled[measure])}
    return ZeroShotProof(values)


def _shuffled_names(scores: np.ndarray, y: np.ndarray, top: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Return each measure (draws,) of the same scores with the class names shuffled."""
    random = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {}
    for _ in range(SHUFFLES):
        renamed = evaluate({"shuffled": scores[:, random.permutation(scores.shape[1])]}, y, top=top, draws=0)
        for measure, values in renamed.items():
            draws.setdefault(measure, []).append(values["shuffled"][0])
    return {measure: np.array(values) for measure, values in draws.items()}
