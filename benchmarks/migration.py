"""What a migration is worth by human judgements: `python benchmarks/migration.py`. Writes results/migration.md.

Every ordered pair of six text encoders moves a search over Cranfield, a collection with relevance judgements. Maps are
trained on a pool of other texts, on half of the documents, or on the pool and 100 documents. Searches run over the
other half of the documents, which trained no map; judgements of other documents are left out. Five seeds draw the half.
The whole run takes hours; with `--raw FILE` a stopped run continues.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import header, markdown
from real_pairs import DATA
from sklearn.linear_model import RidgeCV

from repstitch.embeddings.reading import read
from repstitch.evaluation.qrels import read_qrels
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import ndcg, relevant_recall
from repstitch.stitchers.stitcher import Stitcher
from repstitch.workflows.training import train

RESULTS = Path(__file__).parent / "results"
TEXTS = DATA / "text_modern"
NAMES = {
    "minilm_l6": "MiniLM", "mpnet_base": "mpnet", "e5_small_multi_q4": "e5", "paraphrase_l3": "L3",
    "use_multi_v3": "USE", "wordllama_256": "WordLlama",
}  # fmt: skip
PAIRS = list(permutations(NAMES, 2))
TRAINED_ON = ("pool", "own half", "pool and 100 own")
METHODS = ("ridge", "auto")
USES = ("corpus", "query")
N_OWN = 100
FIRST, SHORTLIST = 10, 100
PENALTIES = np.logspace(-3, 3, 25)
Rows = np.ndarray
Scores = dict[str, dict[str, list[float]]]  # by search and measure, of each judged query


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
def grades() -> np.ndarray:
    """Return the grade of each document for each query (queries, documents); 0 without a judgement."""
    qrels = read_qrels(TEXTS / "cranfield" / "qrels.tsv")
    row_of = {key: row for row, key in enumerate(ids_of("docs"))}
    table = np.zeros((len(ids_of("queries")), len(row_of)))
    for query, key in enumerate(ids_of("queries")):
        for document, grade in qrels.get(key, {}).items():
            if document in row_of:
                table[query, row_of[document]] = grade
    return table


@dataclass(frozen=True)
class Halves:
    """The documents of a seed: those that may train, and those that are searched."""

    training: np.ndarray
    searched: np.ndarray

    @classmethod
    def of(cls, seed: int) -> "Halves":
        order = np.random.default_rng(seed).permutation(len(ids_of("docs")))
        return cls(order[: len(order) // 2], np.sort(order[len(order) // 2 :]))


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Translated:
    """The documents and the questions of an encoder, translated to another one."""

    docs: Rows
    queries: Rows


def training_rows(trained_on: str, name: str, halves: Halves) -> Rows:
    """Return the rows of an encoder that train: of the pool, of documents, or both."""
    n_own = {"pool": 0, "own half": len(halves.training), "pool and 100 own": N_OWN}[trained_on]
    parts = [] if trained_on == "own half" else [rows_of("pool", name)]
    return np.concatenate([*parts, rows_of("docs", name)[halves.training[:n_own]]])


def translate(trained_on: str, method: str, source: str, target: str, halves: Halves) -> Translated:
    """Train a map and translate with it. `ridge` is plain least squares on the same rows, with a tuned penalty."""
    X, Y = (training_rows(trained_on, name, halves) for name in (source, target))
    if method == "ridge":
        fitted = RidgeCV(alphas=PENALTIES).fit(X.astype(np.float64), Y.astype(np.float64))
        moved = [fitted.predict(rows_of(part, source)).astype(np.float32) for part in ("docs", "queries")]
        return Translated(*map(unit, moved))
    stitcher = learn(trained_on, source, target, X, Y, halves)
    return Translated(*(stitcher.translate(rows_of(part, source)) for part in ("docs", "queries")))


def learn(trained_on: str, source: str, target: str, X: Rows, Y: Rows, halves: Halves) -> Stitcher:
    """Train a stitcher as the guide to a migration says."""
    documents = [f"document {ids_of('docs')[row]}" for row in halves.training]
    options: dict[str, Any] = {}
    if trained_on == "pool":
        options = {"group": groups()}
    elif trained_on == "own half":
        options = {"folds": 5, "source_ids": documents, "target_ids": documents}
    else:
        ids = [*ids_of("pool"), *documents[:N_OWN]]
        options = {"own": documents[:N_OWN], "source_ids": ids, "target_ids": ids}
    return train(
        X, Y, objective="neighbours", device="cpu", source_space=NAMES[source], target_space=NAMES[target], **options
    )


@cache
def groups() -> np.ndarray:
    return np.array((TEXTS / "pool" / "groups.txt").read_text(encoding="utf-8").split("\n")[:10_000], dtype=object)


# --- searching --------------------------------------------------------------------------------------------------------


def score(queries: Rows, documents: Rows, rows: np.ndarray) -> dict[str, list[float]]:
    """Return nDCG@10 and recall@100 of each query with a relevant document among these rows of the collection."""
    lists = knn(torch.from_numpy(queries), torch.from_numpy(np.ascontiguousarray(documents)), SHORTLIST)
    return score_lists(lists, rows)


def score_lists(lists: torch.Tensor, rows: np.ndarray) -> dict[str, list[float]]:
    judged = grades()[:, rows]
    with_relevant = np.flatnonzero((judged > 0).any(axis=1))
    of_query = [
        {int(row): float(judged[query, row]) for row in np.flatnonzero(judged[query])} for query in with_relevant
    ]
    judged_lists = lists[torch.from_numpy(with_relevant)]
    scores = {"ndcg": ndcg(judged_lists, of_query, FIRST), "recall": relevant_recall(judged_lists, of_query)}
    return {name: [round(float(value), 5) for value in values] for name, values in scores.items()}


def references(use: str, source: str, target: str, rows: np.ndarray) -> Scores:
    """Score the searches without a map, over these documents."""
    new, old = (target, source) if use == "corpus" else (source, target)
    Q, D = ({name: rows_of(part, name) for name in (new, old)} for part in ("queries", "docs"))
    D = {name: documents[rows] for name, documents in D.items()}
    scores = {"keep old": score(Q[old], D[old], rows), "re-embed all": score(Q[new], D[new], rows)}
    shortlist = knn(torch.from_numpy(Q[old]), torch.from_numpy(D[old]), SHORTLIST)
    similar = torch.einsum("qd,qkd->qk", torch.from_numpy(Q[new]), torch.from_numpy(D[new])[shortlist])
    ranked = shortlist.gather(1, similar.argsort(dim=1, descending=True, stable=True))
    scores["old shortlist re-ranked"] = score_lists(ranked, rows)
    if Q[new].shape[1] == Q[old].shape[1]:
        scores["naive swap"] = score(Q[new], D[old], rows)
    return scores


def translated(use: str, target: str, moved: Translated, rows: np.ndarray) -> dict[str, list[float]]:
    if use == "corpus":
        return score(rows_of("queries", target), moved.docs[rows], rows)
    return score(moved.queries, rows_of("docs", target)[rows], rows)


def measure(source: str, target: str, seed: int) -> dict[str, Any]:
    """Return the scores of one pair and seed, by use, as lists over queries."""
    halves = Halves.of(seed)
    result: dict[str, Any] = {use: references(use, source, target, halves.searched) for use in USES}
    seconds: dict[str, float] = {}
    for trained_on in TRAINED_ON:
        for method in METHODS:
            began = time.perf_counter()
            moved = translated_once(trained_on, method, source, target, seed)
            seconds[f"{trained_on}, {method}"] = time.perf_counter() - began
            for use in USES:
                result[use][f"{trained_on}, {method}"] = translated(use, target, moved, halves.searched)
                if trained_on != "pool":
                    everything = np.arange(len(ids_of("docs")))
                    result[use][f"{trained_on}, {method}, all documents"] = translated(use, target, moved, everything)
    for use in USES:
        new = target if use == "corpus" else source
        result[use]["re-embed all, all documents"] = score(
            rows_of("queries", new), rows_of("docs", new), np.arange(len(ids_of("docs")))
        )
    return result | {"seconds": seconds}


@cache
def of_pool(method: str, source: str, target: str) -> Translated:
    return translate("pool", method, source, target, Halves.of(0))


def translated_once(trained_on: str, method: str, source: str, target: str, seed: int) -> Translated:
    """Translate as `translate` does; maps of the pool do not depend on the seed."""
    if trained_on == "pool":
        return of_pool(method, source, target)
    return translate(trained_on, method, source, target, Halves.of(seed))


# --- the tables -------------------------------------------------------------------------------------------------------


class Results:
    """All scores, by pair and seed."""

    def __init__(self, runs: Mapping[str, dict[str, Any]], seeds: int):
        self.runs, self.seeds = runs, seeds
        self.pairs = [(s, t) for s, t in PAIRS if all(f"{s}/{t}/{seed}" in runs for seed in range(seeds))]

    def mean(self, use: str, search: str, measure: str, pair: tuple[str, str]) -> float:
        """Return the mean over queries, then over seeds."""
        values = [np.mean(self.runs[f"{pair[0]}/{pair[1]}/{seed}"][use][search][measure]) for seed in range(self.seeds)]
        return float(np.mean(values))

    def has(self, use: str, search: str, pair: tuple[str, str]) -> bool:
        return search in self.runs[f"{pair[0]}/{pair[1]}/0"][use]

    def share(self, use: str, search: str, measure: str, pair: tuple[str, str], ceiling: str = "re-embed all") -> float:
        """Return the share of re-embedding's score."""
        return self.mean(use, search, measure, pair) / self.mean(use, ceiling, measure, pair)

    def shares(self, use: str, search: str, measure: str) -> list[float]:
        return [self.share(use, search, measure, pair) for pair in self.pairs if self.has(use, search, pair)]

    def standard_errors_below(self, use: str, better: str, worse: str, pair: tuple[str, str]) -> float:
        """Return by how many paired standard errors `worse` is below `better` in nDCG@10, over queries."""
        lead = []
        for seed in range(self.seeds):
            scores = self.runs[f"{pair[0]}/{pair[1]}/{seed}"][use]
            lead.append(np.array(scores[better]["ndcg"]) - np.array(scores[worse]["ndcg"]))
        per_seed = [float(d.mean() / (d.std(ddof=1) / len(d) ** 0.5)) if d.std() else 0.0 for d in lead]
        return float(np.mean(per_seed))


def interval(values: list[float]) -> str:
    """Return a mean with a 95 % interval over pairs."""
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} [{np.mean(values) - half:.3f}, {np.mean(values) + half:.3f}]"


def overview(results: Results) -> str:
    searches = ["keep old", "naive swap", "old shortlist re-ranked"]
    searches += [f"{trained_on}, {method}" for trained_on in TRAINED_ON for method in METHODS]
    table = []
    for search in searches:
        row = [search]
        for use in USES:
            for measure in ("ndcg", "recall"):
                values = results.shares(use, search, measure)
                row.append(interval(values) if values else "")
        table.append(row)
    columns = [f"{use}, {name}" for use in USES for name in ("nDCG@10", "recall@100")]
    return markdown(["share of re-embedding all", *columns], table)


def by_pair(results: Results, use: str) -> str:
    searches = ["keep old", *(f"{trained_on}, auto" for trained_on in TRAINED_ON)]
    table = []
    for pair in results.pairs:
        row = [f"{NAMES[pair[0]]} → {NAMES[pair[1]]}", f"{results.mean(use, 're-embed all', 'ndcg', pair):.3f}"]
        row += [f"{results.mean(use, search, 'ndcg', pair):.3f}" for search in searches]
        row.append(f"{results.standard_errors_below(use, 'own half, ridge', 'own half, auto', pair):+.1f}")
        table.append(row)
    return markdown(["nDCG@10", "re-embed all", *searches, "own half: standard errors of auto below ridge"], table)


def flattery(results: Results) -> str:
    table = []
    for trained_on in TRAINED_ON[1:]:
        row = [trained_on]
        for use in USES:
            other = results.shares(use, f"{trained_on}, auto", "ndcg")
            ceiling = "re-embed all, all documents"
            whole = [
                results.share(use, f"{trained_on}, auto, all documents", "ndcg", pair, ceiling)
                for pair in results.pairs
            ]
            row += [f"{np.mean(other):.3f}", f"{np.mean(whole):.3f}"]
        table.append(row)
    columns = [f"{use}, {part}" for use in USES for part in ("other half", "all documents")]
    return markdown(["share of re-embedding all, nDCG@10", *columns], table)


def report(results: Results) -> str:
    parts = [
        header("A migration by human judgements", "python benchmarks/migration.py", ("scikit-learn",)),
        f"{len(results.pairs)} ordered pairs of six text encoders, {results.seeds} seeds, 699 documents searched. "
        "Intervals vary the pairs.\n",
        "## Share of re-embedding\n",
        overview(results),
        "## Each pair, corpus use\n",
        by_pair(results, "corpus"),
        "## Each pair, query use\n",
        by_pair(results, "query"),
        "## Documents that trained\n",
        "Documents that trained a map are translated better, so a search over all documents flatters it.\n",
        flattery(results),
    ]
    return "\n".join(parts)


def every_run(args: argparse.Namespace, run: Callable[[str, str, int], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the results of all pairs and seeds; those in the file --raw are not repeated."""
    runs = json.loads(args.raw.read_text()) if args.raw and args.raw.exists() else {}
    for source, target in PAIRS:
        for seed in range(args.seeds):
            key = f"{source}/{target}/{seed}"
            if key not in runs:
                runs[key] = run(source, target, seed)
                if args.raw:
                    part = args.raw.with_suffix(".part")
                    part.write_text(json.dumps(runs))
                    part.replace(args.raw)
                print(key, {name: round(s, 1) for name, s in runs[key]["seconds"].items()}, file=sys.stderr, flush=True)
        of_pool.cache_clear()
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--raw", type=Path, help="JSON file of all runs; runs that it contains are not repeated")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    read(rows_of("docs", "minilm_l6"))  # refuses a missing data folder before anything is trained
    results = Results(every_run(args, measure), args.seeds)
    (RESULTS / "migration.md").write_text(report(results), encoding="utf-8")
    print(report(results))


if __name__ == "__main__":
    main()
