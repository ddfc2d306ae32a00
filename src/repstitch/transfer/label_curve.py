"""Measure how many labelled target rows a native probe needs to be as accurate as a transferred probe."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from repstitch.transfer.probes import DEFAULT_STRENGTH, fit_probe
from repstitch.transfer.proof import LabelEfficiency
from repstitch.transfer.task import Task

LabelledRows = tuple[np.ndarray, np.ndarray]  # rows (n, d) and the positions (n,) of their classes
FIRST_SIZE, DRAWS, FEW_DRAWS, MANY = 10, 5, 3, 1000


def label_efficiency(task: Task, carried: float | None = None, seed: int = 0) -> LabelEfficiency:
    """Measure the accuracy of native probes trained on increasing numbers of labelled target rows.

    The numbers of training rows are 10, 20, 50, 100 … up to all. Each but the last is tried with several random draws
    of rows. The penalty is chosen once per number, on all validation rows. The labels of these rows are not counted,
    which favours the native probe. `carried` is the accuracy of the transferred probe. If it is passed, the result has
    `matches`, the number of rows at which the mean accuracy reaches it.
    """
    n, random = len(task.train), np.random.default_rng(seed)
    sizes = [size for p in range(1, 8) for size in (10**p, 2 * 10**p, 5 * 10**p) if FIRST_SIZE <= size < n] + [n]
    validation, test = ((task.target[rows], task.y[rows]) for rows in (task.validation, task.test))
    accuracy = [
        _draw_accuracies(task, size, random, validation, test)
        for size in tqdm(sizes, desc="label efficiency", unit="size", delay=1, leave=False)
    ]
    curve = {"sizes": sizes, "accuracy": accuracy}
    if carried is not None:
        curve |= {"carried": carried, "matches": first_match(sizes, accuracy, carried)}
    return LabelEfficiency(curve)


def first_match(sizes: Sequence[int], accuracy: Sequence[Sequence[float]], carried: float) -> int | None:
    """Return the number of labelled rows at which the mean accuracy first reaches `carried`, or None if it never does.

    Between two sizes, the mean accuracy is interpolated linearly in the logarithm of the size.
    """
    means = [float(np.mean(draws)) for draws in accuracy]
    for i, mean in enumerate(means):
        if mean >= carried:
            if i == 0:
                return sizes[0]
            share = (carried - means[i - 1]) / (mean - means[i - 1])
            return int(np.ceil(np.exp(np.log(sizes[i - 1]) + share * np.log(sizes[i] / sizes[i - 1])) - 1e-9))
    return None


def _draw_accuracies(
    task: Task, size: int, random: np.random.Generator, validation: LabelledRows, test: LabelledRows
) -> list[float]:
    """Return the test accuracies of probes trained on random draws of `size` training rows."""
    accuracies, strengths = [], None
    for _ in range(1 if size == len(task.train) else FEW_DRAWS if size >= MANY else DRAWS):
        rows = random.permutation(task.train)[:size]
        if len(np.unique(task.y[rows])) < 2:
            rows[:2] = [task.train[task.y[task.train] == k][0] for k in np.unique(task.y[task.train])[:2]]
        if strengths is None and not np.isin(validation[1], task.y[rows]).any():
            strengths = (DEFAULT_STRENGTH,)
        options = {} if strengths is None else {"strengths": strengths}
        probe, strength = fit_probe(task.target[rows], task.y[rows], task.classes, validation, **options)
        strengths = (strength,)
        predicted = task.columns(probe.classes or ())[probe.class_scores(test[0]).argmax(1)]
        accuracies.append(float((predicted == test[1]).mean()))
    return accuracies
