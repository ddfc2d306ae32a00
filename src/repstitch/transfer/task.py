"""Divide labelled rows of the same items in two spaces into training, validation and test rows for probes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from repstitch.embeddings.splitting import Split
from repstitch.errors import InputError
from repstitch.transfer.kinds import Probe
from repstitch.transfer.probes import fit_probe

LEAST_TRAIN, LEAST_TEST = 5, 2  # least numbers of rows per class
MOST_ROWS = 10_000  # largest number of test rows
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled items in two spaces, normalised like the input and output of the backward stitcher.

    A transferred probe scores the rows `target` (n, d); the original probe scores the rows `source` (n, d').
    `y` (n,) are positions in `classes`, the classes of the scores, or -1 for rows that are not used. `kept_classes` are
    the classes with enough rows. `train`, `validation` and `test` are row positions. `left_out` counts the rows that
    are in none of the three, by reason.
    """

    target: np.ndarray = field(repr=False)
    source: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    kept_classes: tuple[str, ...]
    train: np.ndarray = field(repr=False)
    validation: np.ndarray = field(repr=False)
    test: np.ndarray = field(repr=False)
    left_out: dict[str, int]

    def fit_probe(self, rows: np.ndarray) -> Probe:
        """Train a probe of the kept classes on the rows of one space."""
        validation = rows[self.validation], self.y[self.validation]
        return fit_probe(rows[self.train], self.y[self.train], self.classes, validation)[0]

    def scores(self, probe: Probe, rows: np.ndarray) -> np.ndarray:
        """Return scores (n, n_classes) in the order of the task's classes, lowest for classes that the probe lacks."""
        probe_scores = probe.class_scores(rows)
        scores = np.full((len(rows), len(self.classes)), probe_scores.min() - 1.0 - np.ptp(probe_scores))
        scores[:, self.columns(probe.classes or ())] = probe_scores
        return scores

    def columns(self, classes: Sequence[str]) -> np.ndarray:
        """Return the positions of these classes in the task's classes."""
        return np.array([self.classes.index(name) for name in classes], dtype=int)


def make_task(
    target: np.ndarray,
    source: np.ndarray,
    labels: np.ndarray,
    split: Split,
    seen_in_training: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Task:
    """Make a task from the rows of all classes that have at least five training rows and two test rows.

    `labels` (n,) are text or None. `split` assigns rows to training, validation and test. Test rows that a stitcher was
    trained on (`seen_in_training` (n,)) are left out. `classes` are the classes of the probe to be transferred. It can
    predict all of them, also those that no row has. At most 10,000 test rows are used. Raises InputError if fewer than
    two classes, no validation rows or no test rows are left.
    """
    if not len(split.test):
        raise InputError(
            "`labels` need test rows to evaluate a probe, and the split has none; pass a test share above 0."
        )
    part = np.full(len(target), "", dtype=object)
    for name in PARTS:
        part[getattr(split, name)] = name
    labelled = np.array([label is not None for label in labels])
    left_out = Counter({"without a label": int((~labelled).sum())})
    if seen_in_training is not None:
        seen_test_rows = (part == "test") & seen_in_training
        left_out["test rows that a stitcher has seen"] = int((seen_test_rows & labelled).sum())
        part[seen_test_rows] = ""
    allowed = _allowed_classes(labels[labelled], classes, len(target))
    of_allowed = np.array([label in set(allowed) for label in labels])
    left_out["of a class that the probe does not know"] = int((labelled & ~of_allowed).sum())
    kept = _classes_with_enough_rows(allowed, {name: Counter(labels[of_allowed & (part == name)]) for name in PARTS})
    usable = np.array([label in set(kept) for label in labels])
    left_out["of a class with too few rows"] = int((of_allowed & ~usable).sum())
    test = np.flatnonzero((part == "test") & usable)
    if len(test) > MOST_ROWS:
        left_out[f"test rows beyond {MOST_ROWS:,}"] = len(test) - MOST_ROWS
        test = np.sort(np.random.default_rng(seed).permutation(test)[:MOST_ROWS])
    scored = tuple(kept if classes is None else classes)
    column = {name: i for i, name in enumerate(scored)}
    return Task(
        target,
        source,
        np.array([column[label] if keep else -1 for label, keep in zip(labels, usable, strict=True)]),
        scored,
        tuple(kept),
        np.flatnonzero((part == "train") & usable),
        np.flatnonzero((part == "validation") & usable),
        test,
        {reason: count for reason, count in left_out.items() if count},
    )


def _allowed_classes(labels: np.ndarray, classes: Sequence[str] | None, n: int) -> list[str]:
    """Return the classes among the labels that the probe has, or all. Raises InputError on too many or too few."""
    names = sorted(set(labels))
    if len(names) > max(2, n // LEAST_TRAIN):
        raise InputError(
            f"`labels` must be classes that repeat; got {len(names)} different labels on {len(labels)} rows."
        )
    if classes is None:
        return names
    allowed = [name for name in classes if name in set(names)]
    if len(allowed) < 2:
        raise InputError(
            f"`labels` must have at least two of the probe's classes ({', '.join(classes)[:80]}); got "
            f"{', '.join(names)[:80] or 'none'}."
        )
    return allowed


def _classes_with_enough_rows(classes: list[str], counts: dict[str, Counter]) -> list[str]:
    """Return the classes with enough rows in each part. Raises InputError if they are fewer than two."""
    train, test = counts["train"], counts["test"]
    kept = [name for name in classes if train[name] >= LEAST_TRAIN and test[name] >= LEAST_TEST]
    if len(kept) < 2 or not sum(counts["validation"][name] for name in kept):
        most = ", ".join(f"{name!r} {count} and {test[name]}" for name, count in train.most_common(4))
        raise InputError(
            f"`labels` must have at least two classes with {LEAST_TRAIN} training rows and {LEAST_TEST} unseen test "
            f"rows each, and some validation rows; training and test rows per class: {most or 'none'}. Label more "
            "rows, or pass rows that no stitcher was trained on."
        )
    return kept
