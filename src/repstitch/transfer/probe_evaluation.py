"""Does a carried probe tell classes on the other model's own embeddings? Beside a native one, and beside chance."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from repstitch.embeddings.splitting import Split
from repstitch.errors import InputError
from repstitch.fit.closed_form import fit_shuffled
from repstitch.metrics.classification import evaluate
from repstitch.metrics.pearson import correlations
from repstitch.metrics.resample import interval
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.carry import pull_back
from repstitch.transfer.kinds import Probe
from repstitch.transfer.linear import Linear, bare, linearise, thinned
from repstitch.transfer.probes import USUAL, fit_probe

LEAST_TRAIN, LEAST_TEST = 5, 2  # rows of a class, for it to count
MOST_ROWS = 10_000  # to test on
RANDOM_PROBES = 100
FIRST_SIZE, DRAWS, FEW_DRAWS, MANY = 10, 5, 3, 1000
DECISIVE = ("carried", "native")


@dataclass(frozen=True)
class Task:
    """Labelled items as two models see them, normalised as the backward stitcher reads and writes them.

    `target` (n, d) are the rows that a carried probe reads and `source` (n, d') those that it was made for; `y` (n,)
    are positions in `classes`, all that scores are given for, or -1; `kept` are those of them that the rows have.
    `train`, `validation` and `test` are row numbers; `left_out` counts what is in none of them, by reason.
    """

    target: np.ndarray = field(repr=False)
    source: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    kept: tuple[str, ...]
    train: np.ndarray = field(repr=False)
    validation: np.ndarray = field(repr=False)
    test: np.ndarray = field(repr=False)
    left_out: dict[str, int]

    def probe(self, side: np.ndarray) -> Probe:
        """A probe trained on one side's rows, of the kept classes."""
        held = side[self.validation], self.y[self.validation]
        return fit_probe(side[self.train], self.y[self.train], self.classes, held)[0]

    def scores(self, probe: Probe, rows: np.ndarray) -> np.ndarray:
        """Scores (n, n_classes) in the order of the task's classes; below all others where the probe knows no class."""
        known = probe.class_scores(rows)
        found = np.full((len(rows), len(self.classes)), known.min() - 1.0 - np.ptp(known))
        found[:, [self.classes.index(name) for name in probe.classes or ()]] = known
        return found


def make_task(
    target: np.ndarray,
    source: np.ndarray,
    labels: np.ndarray,
    parts: Split,
    seen: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Task:
    """The rows that have a label which can be proven on: at least five for training, two for testing.

    `labels` (n,) are text or None, `parts` says what probes are trained, chosen and tested on; rows of the test part
    that a stitcher has `seen` (n,) are left out. `classes` are those that a given probe knows; it is scored by all of
    them, also by those that no row has. Raises InputError where fewer than two classes are left, or no test rows.
    """
    n = len(target)
    has = np.array([label is not None for label in labels])
    part = np.full(n, "", dtype=object)
    for name in ("train", "validation", "test"):
        part[getattr(parts, name)] = name
    if not len(parts.test):
        raise InputError("`labels` prove on test rows, and the split leaves none; give it a share for testing.")
    left: Counter[str] = Counter({"without a label": int((~has).sum())})
    if seen is not None:
        known_rows = (part == "test") & seen
        left["test rows that a stitcher has seen"] = int((known_rows & has).sum())
        part[known_rows] = ""
    names = sorted(set(labels[has]))
    if len(names) > max(2, n // LEAST_TRAIN):
        raise InputError(
            f"`labels` must be classes that repeat; {len(names)} different ones on {int(has.sum())} rows are too many."
        )
    known = names if classes is None else [name for name in classes if name in set(names)]
    if classes is not None and len(known) < 2:
        raise InputError(
            f"`labels` must have at least two of the probe's classes ({', '.join(classes)[:80]}); they are "
            f"{', '.join(names)[:80] or 'none'}."
        )
    of_known = np.array([label in set(known) for label in labels])
    left["of a class that the probe does not know"] = int((has & ~of_known).sum())
    counted = {name: Counter(labels[of_known & (part == name)]) for name in ("train", "validation", "test")}
    kept = [name for name in known if counted["train"][name] >= LEAST_TRAIN and counted["test"][name] >= LEAST_TEST]
    if len(kept) < 2 or not sum(counted["validation"][name] for name in kept):
        most = ", ".join(f"{name!r} {a} and {counted['test'][name]}" for name, a in counted["train"].most_common(4))
        raise InputError(
            f"`labels` must have at least two classes with {LEAST_TRAIN} rows to train and {LEAST_TEST} unseen rows to "
            f"test, and some between to choose by; there are, to train and to test: {most or 'none'}. Label more rows, "
            "or give rows that no stitcher was trained on."
        )
    use = np.array([label in set(kept) for label in labels])
    left["of a class with too few rows"] = int((of_known & ~use).sum())
    every = tuple(kept if classes is None else classes)
    where = {name: i for i, name in enumerate(every)}
    picked = np.flatnonzero((part == "test") & use)
    if len(picked) > MOST_ROWS:
        left[f"test rows beyond {MOST_ROWS:,}"] = len(picked) - MOST_ROWS
        picked = np.sort(np.random.default_rng(seed).permutation(picked)[:MOST_ROWS])
    return Task(
        target,
        source,
        np.array([where[label] if used else -1 for label, used in zip(labels, use, strict=True)]),
        every,
        tuple(kept),
        np.flatnonzero((part == "train") & use),
        np.flatnonzero((part == "validation") & use),
        picked,
        {reason: count for reason, count in left.items() if count},
    )


def prove(
    backward: Stitcher,
    task: Task,
    probe: Probe | None = None,
    linear: Linear | None = None,
    seed: int = 0,
    native: Probe | None = None,
) -> dict:
    """How well a probe of the source, carried to the target by `backward`, tells the task's classes there.

    `probe` is the one that is carried, else one is trained on the task's source rows. `linear` is what it goes
    through, by default the bare map, or for an MLP the mean Jacobian at training rows. On unseen test rows, all of
    them the same, each measure of `metrics.classification.evaluate` is given for

    - `carried`: the pulled-back probe on the target's own rows;
    - `whole`: the probe on translations of them, the whole stitcher with its normalisation before it;
    - `native`: a probe trained on the target's rows, from the same items and labels;
    - `home`: the carried probe on the source's own rows;
    - `shuffled`: the probe carried through a closed form that was fitted to shuffled pairs;
    - `random`: the mean of 100 probes of random directions, with the middle 95 % of them in place of the interval;
    - `majority`: the most frequent class of training, always.

    `retention` is carried over native accuracy, `below_native` and `above_shuffled` the differences, with intervals
    over the same resampled rows. A given probe is scored by all its classes, also those that no row has
    (`other_classes`); the native one knows those that rows have. `cosine` compares the carried with the native
    directions, each class's less the mean over classes, `score_correlation` what they say of the test rows: each
    class's score less the row's mean over classes, Pearson's r over rows, the mean over classes. `left_out` counts
    rows. Plain JSON types.
    """
    linear = linear or linearise(backward, thinned(task.target[task.train]))
    made = probe or task.probe(task.source)
    carried, native = pull_back(made, linear), native or task.probe(task.target)
    train = (torch.from_numpy(task.target[task.train]).float(), torch.from_numpy(task.source[task.train]).float())
    shuffled = pull_back(made, bare(shuffled_map(backward, *train, seed)))
    X, S, y = task.target[task.test], task.source[task.test], task.y[task.test]
    counts = np.bincount(task.y[task.train], minlength=len(task.classes)).astype(np.float64)
    contenders = {
        "carried": task.scores(carried, X),
        "whole": task.scores(made, backward.translate(X.astype(np.float32))),
        "native": task.scores(native, X),
        "home": task.scores(made, S),
        "shuffled": task.scores(shuffled, X),
        "majority": np.broadcast_to(in_order(counts), (len(y), len(counts))),
    }
    found = evaluate(contenders, y, seed)
    card: dict = {
        "source": backward.target.name,
        "target": backward.source.name,
        "through": linear.how,
        "classes": list(task.kept),
        "n_train": len(task.train),
        "n_test": len(task.test),
        "left_out": task.left_out,
    }
    if len(task.kept) < len(task.classes):
        card["other_classes"] = [name for name in task.classes if name not in task.kept]
    random = np.random.default_rng(seed)
    chance = _random_probes(X, y, task.target[task.train].mean(0), len(task.classes), random)
    for measure, values in found.items():
        card[measure] = {name: {"score": v, "interval": interval(draws)} for name, (v, draws) in values.items()}
        card[measure]["random"] = {"score": float(chance[measure].mean()), "interval": interval(chance[measure])}
    card |= compare(found["accuracy"])
    at = [task.classes.index(name) for name in task.kept]
    directions = [_directions(p, task.kept) for p in (carried, native, shuffled)]
    by_class = _cosines(directions[0], directions[1])
    card["cosine"] = {
        "mean": float(by_class.mean()),
        "by_class": [float(cosine) for cosine in by_class],
        "shuffled": float(_cosines(directions[2], directions[1]).mean()),
    }
    said = [contenders[name][:, at] for name in DECISIVE]
    each = correlations(*((scores - scores.mean(1, keepdims=True)).T for scores in said))
    card["score_correlation"] = float(np.nan_to_num(each).mean())
    return card


def shuffled_map(stitcher: Stitcher, X: torch.Tensor, Y: torch.Tensor, seed: int) -> AffineMap:
    """The closed form of a stitcher, or that its refinement started from, fitted to these pairs in a random order."""
    closed = stitcher.settings.get("start", stitcher.settings)
    if "gain" not in closed:  # a stitcher that was put together by hand
        closed = {"method": "ridge", "penalty": 1e-2, "gain": None}
    return fit_shuffled(X, Y, closed.get("method", stitcher.method), closed, seed)


def compare(accuracy: Mapping[str, tuple[float, np.ndarray]]) -> dict:
    """The carried probe's accuracy over the native one's, and their difference, and that to shuffled pairs."""
    (carried, carried_draws), (native, native_draws) = (accuracy[name] for name in DECISIVE)
    shuffled, shuffled_draws = accuracy["shuffled"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = carried_draws / np.where(native_draws > 0, native_draws, np.nan)
    return {
        "retention": {"score": carried / native, "interval": interval(ratio)} if native > 0 else None,
        "below_native": {"score": native - carried, "interval": interval(native_draws - carried_draws)},
        "above_shuffled": {"score": carried - shuffled, "interval": interval(carried_draws - shuffled_draws)},
    }


def prove_directions(forward: Linear, task: Task) -> dict:
    """Are the classes' mean directions, each class's mean less the mean of all, carried to where the target has them?

    `cosine` is between the carried source direction and the target's own, on test rows for the target and on training
    rows for the source; `others` is the mean cosine to the other classes' own directions.
    """
    where = [task.classes.index(name) for name in task.kept]
    of = lambda rows, part: np.stack(  # noqa: E731
        [rows[part][task.y[part] == k].mean(0) - rows[part].mean(0) for k in where]
    )
    carried, own = of(task.source, task.train) @ forward.weight, of(task.target, task.test)
    cosines = _unit(carried) @ _unit(own).T
    c = len(where)
    return {
        "cosine": {"mean": float(cosines.diagonal().mean()), "by_class": [float(v) for v in cosines.diagonal()]},
        "others": float((cosines.sum() - cosines.trace()) / (c * (c - 1))),
    }


def label_efficiency(task: Task, carried: float | None = None, seed: int = 0) -> dict:
    """Accuracy of native probes trained on few labelled target rows, and how many they need to match the carried one.

    Sizes are 10, 20, 50, 100 … up to all training rows, each of several random draws; how strongly to fit is chosen
    with the first of them, on all validation rows, whose labels are not counted: that favours the native probe.
    `matches` is the smallest number at which the mean accuracy reaches `carried`, between sizes by its line in the
    logarithm; None where all the rows do not.
    """
    n, random = len(task.train), np.random.default_rng(seed)
    sizes = [size for p in range(1, 8) for size in (10**p, 2 * 10**p, 5 * 10**p) if FIRST_SIZE <= size < n] + [n]
    X, y = task.target[task.test], task.y[task.test]
    held = task.target[task.validation], task.y[task.validation]
    accuracy: list[list[float]] = []
    for size in tqdm(sizes, desc="label efficiency", unit="size", delay=1, leave=False):
        draws = 1 if size == n else FEW_DRAWS if size >= MANY else DRAWS
        found, strength = [], None
        while len(found) < draws:
            some = random.permutation(task.train)[:size]
            if len(np.unique(task.y[some])) < 2:
                some[:2] = [task.train[task.y[task.train] == k][0] for k in np.unique(task.y[task.train])[:2]]
            if strength is None and not np.isin(held[1], task.y[some]).any():
                strength = USUAL
            given = {} if strength is None else {"strengths": (strength,)}
            probe, strength = fit_probe(task.target[some], task.y[some], task.classes, held, **given)
            where = np.array([task.classes.index(name) for name in probe.classes or ()])
            found.append(float((where[probe.class_scores(X).argmax(1)] == y).mean()))
        accuracy.append(found)
    curve = {"sizes": sizes, "accuracy": accuracy}
    return curve if carried is None else curve | {"carried": carried, "matches": matches(curve, carried)}


def matches(curve: Mapping, carried: float) -> int | None:
    """The number of labelled rows at which the curve's mean accuracy first reaches `carried`; None if it does not."""
    sizes, means = curve["sizes"], [float(np.mean(draws)) for draws in curve["accuracy"]]
    for i, mean in enumerate(means):
        if mean >= carried:
            if i == 0:
                return sizes[0]
            share = (carried - means[i - 1]) / (mean - means[i - 1])
            return int(np.ceil(np.exp(np.log(sizes[i - 1]) + share * np.log(sizes[i] / sizes[i - 1])) - 1e-9))
    return None


def in_order(counts: np.ndarray) -> np.ndarray:
    """Scores (c,) that say the classes of most rows first, of equals the one that comes first."""
    scores = np.empty(len(counts))
    scores[np.argsort(-counts, kind="stable")] = np.arange(len(counts))[::-1]
    return scores


def _random_probes(X: np.ndarray, y: np.ndarray, mean: np.ndarray, c: int, random) -> dict[str, np.ndarray]:
    """Each measure of probes of random directions that are 0 at the mean."""
    drawn: dict[str, list[float]] = {}
    for _ in range(RANDOM_PROBES):
        scores = (X - mean) @ random.standard_normal((X.shape[1], c))
        for measure, values in evaluate({"random": scores}, y, draws=0).items():
            drawn.setdefault(measure, []).append(values["random"][0])
    return {measure: np.array(values) for measure, values in drawn.items()}


def _directions(probe: Probe, kept: Sequence[str]) -> np.ndarray:
    """What the highest of the kept classes' scores goes by: each one's direction less the mean of all."""
    coef = np.vstack([np.zeros_like(probe.coef), probe.coef]) if len(probe.coef) == 1 else probe.coef
    own = coef[[(probe.classes or ()).index(name) for name in kept]]
    own = own - own.mean(0)
    return own[1:] if len(own) == 2 else own


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (_unit(a) * _unit(b)).sum(1)


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
