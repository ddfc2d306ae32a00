"""The maps of migration.py: data, halves of the documents, training. A map that a folder keeps is not trained again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from real_pairs import DATA
from sklearn.linear_model import RidgeCV

from repstitch.stitchers.held_out_rows import HeldOutRows, read_held_out
from repstitch.stitchers.stitcher import Stitcher, load
from repstitch.workflows.training import train

TEXTS = DATA / "text_modern"
NAMES = {
    "minilm_l6": "MiniLM", "mpnet_base": "mpnet", "e5_small_multi_q4": "e5", "paraphrase_l3": "L3",
    "use_multi_v3": "USE", "wordllama_256": "WordLlama",
}  # fmt: skip
PAIRS = list(permutations(NAMES, 2))
TRAINED_ON = ("pool", "own half", "pool and 100 own")
METHODS = ("ridge", "auto")
N_OWN = 100
PENALTIES = np.logspace(-3, 3, 25)
Rows = np.ndarray


def unit(rows: Rows) -> Rows:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@cache
def rows_of(part: str, name: str) -> Rows:
    """Return the unit rows of an encoder: `docs`, `queries` or `pool`."""
    path = TEXTS / "pool" / f"{name}.npy" if part == "pool" else TEXTS / "cranfield" / f"{part}.{name}.npy"
    return unit(np.load(path).astype(np.float32))


@cache
def ids_of(part: str) -> list[str]:
    path = TEXTS / "pool" / "ids.txt" if part == "pool" else TEXTS / "cranfield" / f"{part}.ids.txt"
    return path.read_text(encoding="utf-8").split()


@cache
def document_ids() -> list[str]:
    """Return ids of the documents that differ from those of other texts."""
    return [f"document {key}" for key in ids_of("docs")]


@cache
def groups() -> np.ndarray:
    return np.array((TEXTS / "pool" / "groups.txt").read_text(encoding="utf-8").split("\n")[:10_000], dtype=object)


@dataclass(frozen=True)
class Halves:
    """The documents of a seed: those that may train, and those that are searched."""

    training: np.ndarray
    searched: np.ndarray

    @classmethod
    def of(cls, seed: int) -> "Halves":
        order = np.random.default_rng(seed).permutation(len(ids_of("docs")))
        return cls(order[: len(order) // 2], np.sort(order[len(order) // 2 :]))


@dataclass(frozen=True)
class Case:
    """A map to train: the pair of encoders, what it is trained on, how, and the seed that draws the half.

    `ridge` is plain least squares on the same rows, with a tuned penalty. `auto` is a stitcher, trained as the guide to
    a migration says.
    """

    source: str
    target: str
    trained_on: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        seed = 0 if self.trained_on == "pool" else self.seed  # the pool is the same for every seed
        return f"{self.source}-{self.target}-{self.trained_on}-{self.method}-{seed}".replace(" ", "-")


@dataclass(frozen=True, eq=False)
class Moved:
    """The documents and the questions of an encoder, translated; and the stitcher that did it, unless it was ridge."""

    docs: Rows
    queries: Rows
    stitcher: Stitcher | None = None
    folder: Path | None = None


def training_rows(case: Case, name: str) -> Rows:
    """Return the rows of an encoder that train: of the pool, of documents, or both."""
    halves = Halves.of(case.seed)
    n_own = {"pool": 0, "own half": len(halves.training), "pool and 100 own": N_OWN}[case.trained_on]
    parts = [] if case.trained_on == "own half" else [rows_of("pool", name)]
    return np.concatenate([*parts, rows_of("docs", name)[halves.training[:n_own]]])


def learn(case: Case) -> Stitcher:
    """Train a stitcher as the guide to a migration says."""
    documents = [document_ids()[row] for row in Halves.of(case.seed).training]
    options: dict[str, Any] = {}
    if case.trained_on == "pool":
        ids, options = list(ids_of("pool")), {"group": groups()}
    elif case.trained_on == "own half":
        ids, options = documents, {"folds": 5}
    else:
        ids, options = [*ids_of("pool"), *documents[:N_OWN]], {"own": documents[:N_OWN]}
    spaces = {"source_space": NAMES[case.source], "target_space": NAMES[case.target]}
    X, Y = training_rows(case, case.source), training_rows(case, case.target)
    return train(X, Y, source_ids=ids, target_ids=ids, objective="neighbours", device="cpu", **spaces, **options)


def move(case: Case, keep: Path, report: Callable[[str], object] = lambda _: None) -> Moved:
    """Translate the documents and questions, with the map that the folder keeps, or else with a new one."""
    path = keep / case.name
    if case.method == "ridge":
        if not path.with_suffix(".npz").exists():
            X, Y = (training_rows(case, name).astype(np.float64) for name in (case.source, case.target))
            fitted = RidgeCV(alphas=PENALTIES).fit(X, Y)
            docs, queries = (unit(fitted.predict(rows_of(part, case.source))) for part in ("docs", "queries"))
            np.savez(path.with_suffix(".npz"), docs=docs.astype(np.float32), queries=queries.astype(np.float32))
        kept = np.load(path.with_suffix(".npz"))
        return Moved(kept["docs"], kept["queries"])
    if not path.exists():
        began = time.perf_counter()
        learn(case).save(path)
        report(f"{case.name}: {time.perf_counter() - began:.1f} s")
    stitcher = load(path)
    docs, queries = (stitcher.translate(rows_of(part, case.source)) for part in ("docs", "queries"))
    return Moved(docs, queries, stitcher, path)


def held_out_of(moved: Moved) -> HeldOutRows:
    """Return the held-out rows of a stitcher."""
    assert moved.stitcher is not None
    assert moved.folder is not None
    rows = read_held_out(moved.folder, moved.stitcher.version, moved.stitcher.target.dim)
    assert rows is not None
    return rows
