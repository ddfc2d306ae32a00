"""A classifier from names alone: prompts of a text space, carried to an image space (or any two spaces)."""

from collections.abc import Sequence

import numpy as np
import torch

from repstitch.embeddings.normalising import normalise
from repstitch.errors import InputError
from repstitch.metrics.classification import evaluate
from repstitch.metrics.resample import interval
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.kinds import Probe
from repstitch.transfer.probe_evaluation import MOST_ROWS, in_order

TOP = 5


def name_classes(stitcher: Stitcher, prompts: np.ndarray, names: Sequence[str]) -> Probe:
    """A probe of the target space that tells which of the `names` a row is like, from prompts (m, d_source) of them.

    What tells one class from the others is a direction: each class's prompt, carried by the bare map, less the mean of
    the classes. Rows are compared with it about the target's mean, which the stitcher knows, so no target row is
    needed. Several prompts of one name are averaged. Scores are cosines of directions times lengths of rows about the
    mean. After "Text-To-Concept (and Back) via Cross-Model Alignment", Moayeri et al. 2023, which compares points.

    Raises InputError on fewer than two names, or on prompts that the map does not tell apart.
    """
    given = np.asarray(prompts)
    if len(names) != len(given):
        raise InputError(f"`names` must have one entry a prompt ({len(given)}); got {len(names)}.")
    classes = tuple(dict.fromkeys(str(name) for name in names))
    if len(classes) < 2:
        raise InputError(f"At least two classes are needed to tell apart; got {', '.join(classes)}.")
    if given.ndim != 2 or given.shape[1] != stitcher.source.dim:
        raise InputError(
            f"`prompts` must be (m, {stitcher.source.dim}), of the space {stitcher.source.name!r}; got {given.shape}."
        )
    rows = normalise(torch.from_numpy(given.astype(np.float64)), stitcher.input_norm, "prompts")
    with torch.no_grad():
        carried = stitcher.map.to("cpu", torch.float64)(rows).numpy()
    means = np.stack([carried[[str(name) == wanted for name in names]].mean(0) for wanted in classes])
    apart = means - means.mean(0)
    lengths = np.linalg.norm(apart, axis=1, keepdims=True)
    same = lengths[:, 0] <= 1e-9 * np.linalg.norm(means, axis=1).max()
    if same.any():
        raise InputError(f"The prompt of {classes[int(same.argmax())]!r} is the mean of all; the map tells none apart.")
    coef = apart / lengths
    if len(classes) == 2:
        coef = coef[1:] - coef[:1]
    return Probe(coef, -coef @ stitcher.target_mean.astype(np.float64), classes, stitcher.target)


def prove_names(probe: Probe, X: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict:
    """How often the name is right on labelled rows X (n, d), and among the five most likely, beside chance.

    Rows whose label is none of the names, and those beyond 10,000, are left out and counted. `chance` is a guess among
    all names. `majority` says the most frequent label always (it
    has seen the labels), `shuffled` are the same directions under other names, the mean of 100 draws with the middle
    95 % of them. Intervals are of resampled rows. Raises InputError where fewer than two classes are labelled.
    """
    classes = probe.classes or ()
    where = {name: i for i, name in enumerate(classes)}
    known = np.array([label in where for label in labels])
    if len(set(labels[known])) < 2:
        some = ", ".join(sorted({str(label) for label in labels[~known]})[:4])
        raise InputError(f"`labels` must name at least two of the classes ({', '.join(classes[:4])} …); got {some} ….")
    rows = np.flatnonzero(known)
    left = {"of no named class": int((~known).sum()), f"beyond {MOST_ROWS:,}": max(0, len(rows) - MOST_ROWS)}
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_ROWS])
    y = np.array([where[label] for label in labels[rows]])
    scores = probe.class_scores(X[rows])
    majority = np.broadcast_to(in_order(np.bincount(y, minlength=len(classes))), scores.shape)
    top = (TOP,) if len(classes) > TOP else ()
    found = evaluate({"carried": scores, "majority": majority}, y, seed, top)
    random, drawn = np.random.default_rng(seed), {}
    for _ in range(100):
        renamed = evaluate({"shuffled": scores[:, random.permutation(len(classes))]}, y, top=top, draws=0)
        for measure, values in renamed.items():
            drawn.setdefault(measure, []).append(values["shuffled"][0])
    card: dict = {
        "classes": list(classes),
        "n_test": len(y),
        "left_out": {reason: count for reason, count in left.items() if count},
        "chance": {"accuracy": 1 / len(classes), "balanced_accuracy": 1 / len(classes)},
    }
    for measure, values in found.items():
        card[measure] = {name: {"score": v, "interval": interval(again)} for name, (v, again) in values.items()}
        null = np.array(drawn[measure])
        card[measure]["shuffled"] = {"score": float(null.mean()), "interval": interval(null)}
    return card
