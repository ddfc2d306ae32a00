"""Labelled rows of the same items in two spaces, divided into training, validation and test rows for probes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from repstitch.embeddings.splitting import Split
from repstitch.errors import InputError
from repstitch.transfer.kinds import Probe
from repstitch.transfer.probes import fit_probe

LEAST_TRAIN, LEAST_TEST = 5, 2  # rows that a class must have
MOST_ROWS = 10_000  # to test on
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled items in two spaces, normalised as the backward stitcher reads and writes them.

    `target` (n, d) are the rows that a carried probe reads and `source` (n, d') the rows that it was made for. `y` (n,)
    are positions in `classes`, the classes that scores are given for, or -1; `kept_classes` are those of them that rows
    have. `train`, `validation` and `test` are row numbers. `left_out` counts the rows in none of them, by reason.
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
        """A probe of the kept classes, trained on the rows of one space."""
        validation = rows[self.validation], self.y[self.validation]
        return fit_probe(rows[self.train], self.y[self.train], self.classes, validation)[0]

    def scores(self, probe: Probe, rows: np.ndarray) -> np.ndarray:
        """Scores (n, n_classes) in the order of the task's classes; classes without a score are below all others."""
        probe_scores = probe.class_scores(rows)
        scores = np.full((len(rows), len(self.classes)), probe_scores.min() - 1.0 - np.ptp(probe_scores))
        scores[:, self.columns(probe.classes or ())] = probe_scores
        return scores

    def columns(self, classes: Sequence[str]) -> np.ndarray:
        """The positions of these classes in the task's."""
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
    """A task of the rows whose class has enough rows: at least five to train on and two to test on.

    `labels` (n,) are text or None. `split` says which rows probes are trained, chosen and tested on; test rows that a
    stitcher was trained on (`seen_in_training` (n,)) are left out. `classes` are those of the probe to be carried; it
    is scored by all of them, also by those that no row has. Raises InputError where fewer than two classes or no test
    rows are left.
    """
    if not len(split.test):
        raise InputError("`labels` prove on test rows, and the split leaves none; give it a share for testing.")
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
    """The classes among the labels, all or those of the probe; InputError where labels are no classes of n rows."""
    names = sorted(set(labels))
    if len(names) > max(2, n // LEAST_TRAIN):
        raise InputError(
            f"`labels` must be classes that repeat; {len(names)} different ones on {len(labels)} rows are too many."
        )
    if classes is None:
        return names
    allowed = [name for name in classes if name in set(names)]
    if len(allowed) < 2:
        raise InputError(
            f"`labels` must have at least two of the probe's classes ({', '.join(classes)[:80]}); they are "
            f"{', '.join(names)[:80] or 'none'}."
        )
    return allowed


def _classes_with_enough_rows(classes: list[str], counts: dict[str, Counter]) -> list[str]:
    """The classes with enough rows of each part; InputError where they are fewer than two."""
    train, test = counts["train"], counts["test"]
    kept = [name for name in classes if train[name] >= LEAST_TRAIN and test[name] >= LEAST_TEST]
    if len(kept) < 2 or not sum(counts["validation"][name] for name in kept):
        most = ", ".join(f"{name!r} {count} and {test[name]}" for name, count in train.most_common(4))
        raise InputError(
            f"`labels` must have at least two classes with {LEAST_TRAIN} rows to train and {LEAST_TEST} unseen rows to "
            f"test, and some between to choose by; there are, to train and to test: {most or 'none'}. Label more rows, "
            "or give rows that no stitcher was trained on."
        )
    return kept
