"""A classifier from class names alone: prompts embedded in a text space, carried to an image space (or another)."""

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
    """A probe of the target space for the classes `names`, from prompts (m, d_source), one or more of each name.

    A class is told from the others by a direction: its prompt, carried by the map without normalisation, less the mean
    of all classes. Rows are compared with it about the target's mean, which the stitcher has stored, so no target row
    is needed. Several prompts of one name are averaged. Scores are cosines of directions times lengths of rows about
    the mean. After "Text-To-Concept (and Back) via Cross-Model Alignment", Moayeri et al. 2023, which compares points.

    Raises InputError on fewer than two names, or on prompts that the map takes to the same point.
    """
    rows = np.asarray(prompts)
    if len(names) != len(rows):
        raise InputError(f"`names` must have one entry a prompt ({len(rows)}); got {len(names)}.")
    classes = tuple(dict.fromkeys(str(name) for name in names))
    if len(classes) < 2:
        raise InputError(f"At least two classes are needed to tell apart; got {', '.join(classes)}.")
    if rows.ndim != 2 or rows.shape[1] != forward.source.dim:
        raise InputError(
            f"`prompts` must be (m, {forward.source.dim}), of the space {forward.source.name!r}; got {rows.shape}."
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
        raise InputError(f"The prompt of {name!r} is the mean of all; the map tells none apart.")
    coef = directions / lengths
    if len(classes) == 2:
        coef = coef[1:] - coef[:1]
    return Probe(coef, -coef @ forward.target_mean.astype(np.float64), classes, forward.target)


def evaluate_names(probe: Probe, X: np.ndarray, labels: np.ndarray, seed: int = 0) -> ZeroShotProof:
    """How often a probe from names is right on labelled rows X (n, d), and has the class in its first five.

    Rows whose label is none of the names, and rows beyond 10,000, are left out and counted. `chance` is a guess among
    all names. `majority` is the most frequent label, always (it has seen the labels). `shuffled` are the same
    directions under shuffled names, the mean of 100 draws with the middle 95 % of them. Intervals are over resampled
    rows. Raises InputError where fewer than two classes are labelled.
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
        values[measure] = with_intervals(draws) | {"shuffled": mean_and_range(shuffled[measure])}
    return ZeroShotProof(values)


def _shuffled_names(scores: np.ndarray, y: np.ndarray, top: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Each measure of the same scores with the names shuffled, once a draw."""
    random = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {}
    for _ in range(SHUFFLES):
        renamed = evaluate({"shuffled": scores[:, random.permutation(scores.shape[1])]}, y, top=top, draws=0)
        for measure, values in renamed.items():
            draws.setdefault(measure, []).append(values["shuffled"][0])
    return {measure: np.array(values) for measure, values in draws.items()}
