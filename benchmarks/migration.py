"""What a migration is worth by human judgements: `python benchmarks/migration.py`. Writes results/migration.md.

Every ordered pair of six text encoders moves a search over Cranfield, a collection with relevance judgements. Maps are
trained on a pool of other texts, on half of the documents, or on the pool and 100 documents. Searches run over the
other half of the documents, which trained no map; judgements of other documents are left out. Five seeds draw the half.
Training takes hours; with `--keep FOLDER` a stopped run continues, and maps are not trained again.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import header, markdown
from migration_maps import (
    METHODS,
    NAMES,
    PAIRS,
    TEXTS,
    TRAINED_ON,
    Case,
    Halves,
    Moved,
    Rows,
    held_out_of,
    ids_of,
    move,
    rows_of,
)

from repstitch.bulk.quality import expect
from repstitch.embeddings.likeness import compare_with_pairs
from repstitch.embeddings.reading import read
from repstitch.evaluation.qrels import read_qrels
from repstitch.metrics.neighbour_lists import share_contained
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import ndcg, relevant_recall
from repstitch.mixing.mixed_index import MixedIndex
from repstitch.mixing.reembedding import NEIGHBOURS, choose_rows, density

RESULTS = Path(__file__).parent / "results"
USES = ("corpus", "query")
FIRST, SHORTLIST = 10, 100
SHARES = (0.0, 0.1, 0.2, 0.4)
CHOICES = ("random rows", "dense rows", "most found rows")
POOL_DRAWS = 20
Scores = dict[str, list[float]]  # by measure, of each judged query


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


# --- searching --------------------------------------------------------------------------------------------------------


def score(queries: Rows, documents: Rows, rows: np.ndarray) -> Scores:
    """Return nDCG@10 and recall@100 of each query with a relevant document among these rows of the collection."""
    lists = knn(torch.from_numpy(queries), torch.from_numpy(np.ascontiguousarray(documents)), SHORTLIST)
    return score_lists(lists, rows)


def score_lists(lists: torch.Tensor, rows: np.ndarray, chosen: np.ndarray | None = None) -> Scores:
    """Score result lists (queries, depth) of positions in `rows`, of all queries or those of a mask."""
    judged = grades()[:, rows]
    is_judged = (judged > 0).any(axis=1) & (True if chosen is None else chosen)
    with_relevant = np.flatnonzero(is_judged)
    of_query = [
        {int(row): float(judged[query, row]) for row in np.flatnonzero(judged[query])} for query in with_relevant
    ]
    judged_lists = lists[torch.from_numpy(with_relevant)]
    scores = {"ndcg": ndcg(judged_lists, of_query, FIRST), "recall": relevant_recall(judged_lists, of_query)}
    return {name: [round(float(value), 5) for value in values] for name, values in scores.items()}


def references(use: str, source: str, target: str, rows: np.ndarray) -> dict[str, Scores]:
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


def translated(use: str, target: str, moved: Moved, rows: np.ndarray) -> Scores:
    if use == "corpus":
        return score(rows_of("queries", target), moved.docs[rows], rows)
    return score(moved.queries, rows_of("docs", target)[rows], rows)


def re_embedded(target: str, moved: Moved, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Return scores by share, choice of rows and length: of the odd questions, where the even ones are known.

    The length is tuned with the known questions on held-out pairs, and counts how often they find each row.
    """
    Q, T, Y = (
        torch.from_numpy(part) for part in (rows_of("queries", target), moved.docs[rows], rows_of("docs", target)[rows])
    )
    is_known = np.arange(len(Q)) % 2 == 0
    held_out = held_out_of(moved)
    assert held_out.translated is not None
    lengths = {
        "": 1.0,
        " + length": MixedIndex(held_out.translated, held_out.vectors, Q[torch.from_numpy(is_known)]).best_length(),
        " + length by rows": MixedIndex(held_out.translated, held_out.vectors, similar=held_out.similar).best_length(),
    }
    found = torch.bincount(knn(Q[torch.from_numpy(is_known)], T, NEIGHBOURS).flatten(), minlength=len(T))
    values = {
        "random rows": torch.from_numpy(np.random.default_rng(0).random(len(T))),
        "dense rows": density(T),
        "most found rows": density(T).double() + 4 * found.double(),
    }
    wanted = knn(Q, Y, FIRST)[torch.from_numpy(~is_known)]
    native, similar = Q @ Y.T, Q @ T.T
    scores: dict[str, dict[str, float]] = {}
    for share in SHARES:
        for choice, value in values.items():
            mask = torch.zeros(len(T), dtype=torch.bool)
            mask[torch.from_numpy(choose_rows(value, share))] = True
            for name, length in lengths.items():
                lists = torch.where(mask, native, length * similar).topk(SHORTLIST).indices
                judged = score_lists(lists, rows, ~is_known)
                overlap = share_contained(wanted, lists[torch.from_numpy(~is_known)][:, :FIRST])
                scores[f"{share:g} {choice}{name}"] = {
                    "ndcg": float(np.mean(judged["ndcg"])),
                    "overlap": float(overlap.mean()),
                }
    everything = score_lists(native.topk(SHORTLIST).indices, rows, ~is_known)
    scores["all"] = {"ndcg": float(np.mean(everything["ndcg"])), "overlap": 1.0}
    return scores


def promise(case: Case, moved: Moved, rows: np.ndarray) -> dict[str, Any]:
    """Return what a plan expects of the other half, and what is true of it."""
    held_out = held_out_of(moved)
    assert held_out.source is not None
    assert moved.stitcher is not None
    card = moved.stitcher.scorecard
    unlike = compare_with_pairs(rows_of("docs", case.source)[rows], held_out.source).unlike
    T, Y = torch.from_numpy(moved.docs[rows]), torch.from_numpy(rows_of("docs", case.target)[rows])
    pool = min(len(rows), card.pool)
    draws = [np.random.default_rng(draw).permutation(len(rows))[:pool] for draw in range(POOL_DRAWS)]
    draws = draws if pool < len(rows) else draws[:1]
    true = float(np.mean([MixedIndex(T[draw], Y[draw]).score(0, 1.0).overlap for draw in draws]))
    return {"expected": None if unlike else expect(card, len(rows)), "true": true}


def measure(source: str, target: str, seed: int, keep: Path) -> dict[str, Any]:
    """Return the scores of one pair and seed, by use, as lists over queries."""
    rows, everything = Halves.of(seed).searched, np.arange(len(ids_of("docs")))
    result: dict[str, Any] = {use: references(use, source, target, rows) for use in USES}
    result |= {"re-embedded": {}, "promise": {}}
    for trained_on in TRAINED_ON:
        for method in METHODS:
            case = Case(source, target, trained_on, method, seed)
            moved = move(case, keep, lambda line: print(line, file=sys.stderr, flush=True))
            for use in USES:
                result[use][f"{trained_on}, {method}"] = translated(use, target, moved, rows)
                if trained_on != "pool":
                    every = translated(use, target, moved, everything)
                    result[use][f"{trained_on}, {method}, all documents"] = every
            if method == "auto":
                result["promise"][trained_on] = promise(case, moved, rows)
            if method == "auto" and trained_on != "pool":  # a plan says that it knows nothing of a pool's map
                result["re-embedded"][trained_on] = re_embedded(target, moved, rows)
    for use in USES:
        new = target if use == "corpus" else source
        result[use]["re-embed all, all documents"] = score(rows_of("queries", new), rows_of("docs", new), everything)
    return result


# --- the tables -------------------------------------------------------------------------------------------------------


class Results:
    """All scores, by pair and seed."""

    def __init__(self, runs: Mapping[tuple[str, str, int], dict[str, Any]], seeds: int):
        self.runs, self.seeds = runs, seeds

    def mean(self, use: str, search: str, measure: str, pair: tuple[str, str]) -> float:
        """Return the mean over queries, then over seeds."""
        return float(np.mean([np.mean(self.runs[(*pair, seed)][use][search][measure]) for seed in range(self.seeds)]))

    def share(self, use: str, search: str, measure: str, pair: tuple[str, str], ceiling: str = "re-embed all") -> float:
        """Return the share of re-embedding's score."""
        return self.mean(use, search, measure, pair) / self.mean(use, ceiling, measure, pair)

    def shares(self, use: str, search: str, measure: str) -> list[float]:
        """Return the shares of all pairs that have this search."""
        pairs = [pair for pair in PAIRS if search in self.runs[(*pair, 0)][use]]
        return [self.share(use, search, measure, pair) for pair in pairs]

    def standard_errors_below(self, use: str, trained_on: str, pair: tuple[str, str]) -> float:
        """Return by how many paired standard errors auto is below ridge in nDCG@10, over queries; mean over seeds."""
        below = []
        for seed in range(self.seeds):
            scores = self.runs[(*pair, seed)][use]
            lead = np.array(scores[f"{trained_on}, ridge"]["ndcg"]) - np.array(scores[f"{trained_on}, auto"]["ndcg"])
            below.append(float(lead.mean() / (lead.std(ddof=1) / len(lead) ** 0.5)) if lead.std() else 0.0)
        return float(np.mean(below))

    def every(self, part: str, trained_on: str) -> list[dict[str, Any]]:
        """Return a part of the results for every pair and seed."""
        return [run[part][trained_on] for run in self.runs.values()]


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
    for pair in PAIRS:
        row = [f"{NAMES[pair[0]]} → {NAMES[pair[1]]}", f"{results.mean(use, 're-embed all', 'ndcg', pair):.3f}"]
        row += [f"{results.mean(use, search, 'ndcg', pair):.3f}" for search in searches]
        row.append(f"{results.standard_errors_below(use, 'own half', pair):+.1f}")
        table.append(row)
    return markdown(["nDCG@10", "re-embed all", *searches, "own half: standard errors of auto below ridge"], table)


def budget(results: Results, trained_on: str) -> str:
    """Show the share of re-embedding's nDCG@10, and of its ten results, by the share that is embedded anew."""
    runs = results.every("re-embedded", trained_on)
    table = []
    for choice in CHOICES:
        for length in ("", " + length", " + length by rows"):
            row = [choice + length]
            for measure in ("ndcg", "overlap"):
                for share in SHARES:
                    values = [run[f"{share:g} {choice}{length}"][measure] / run["all"][measure] for run in runs]
                    row.append(f"{np.mean(values):.3f}")
            table.append(row)
    columns = [f"{name}, {share:.0%} anew" for name in ("nDCG@10", "right ten") for share in SHARES]
    return markdown(["share of re-embedding all", *columns], table)


def promises(results: Results) -> str:
    table = []
    for trained_on in TRAINED_ON:
        runs = results.every("promise", trained_on)
        known = [run for run in runs if run["expected"] is not None]
        row = [trained_on, f"{1 - len(known) / len(runs):.0%}"]
        if known:
            ends = [(run["expected"]["interval"], run["true"]) for run in known]
            row.append(f"{sum(low <= true <= high for (low, high), true in ends) / len(runs):.1%}")
            row.append(f"{np.mean([high - low for (low, high), _ in ends]):.3f}")
            row.append(f"{np.mean([run['expected']['right'] - run['true'] for run in known]):+.3f}")
        table.append([*row, *[""] * (5 - len(row))])
    return markdown(["trained on", "unknown", "holds the truth", "mean width", "mean difference to the truth"], table)


def flattery(results: Results) -> str:
    table = []
    for trained_on in TRAINED_ON[1:]:
        row = [trained_on]
        for use in USES:
            other = results.shares(use, f"{trained_on}, auto", "ndcg")
            ceiling = "re-embed all, all documents"
            whole = [results.share(use, f"{trained_on}, auto, all documents", "ndcg", pair, ceiling) for pair in PAIRS]
            row += [f"{np.mean(other):.3f}", f"{np.mean(whole):.3f}"]
        table.append(row)
    columns = [f"{use}, {part}" for use in USES for part in ("other half", "all documents")]
    return markdown(["share of re-embedding all, nDCG@10", *columns], table)


def report(results: Results) -> str:
    parts = [
        header("A migration by human judgements", "python benchmarks/migration.py", ("scikit-learn",)),
        f"{len(PAIRS)} ordered pairs of six text encoders, seeds: {results.seeds}, {len(Halves.of(0).searched)} "
        "documents searched. Intervals vary the pairs. `auto` is a stitcher trained for `neighbours`; `ridge` is plain "
        "least squares on the same rows.\n",
        "## Share of re-embedding\n",
        overview(results),
        "## Each pair, corpus use\n",
        by_pair(results, "corpus"),
        "## Each pair, query use\n",
        by_pair(results, "query"),
        "## A share of the rows embedded anew, corpus use\n",
        "Native rows among translated ones, chosen at random, by density, or as those that known questions find; the "
        "other half of the questions is scored. `+ length`: translated rows have the length that finds most among "
        "held-out pairs, by the known questions or by the rows themselves.\n",
        *(f"### Trained on: {trained_on}\n\n{budget(results, trained_on)}" for trained_on in TRAINED_ON[1:]),
        "## What a plan promises\n",
        "Whether the interval of `repstitch migrate plan` holds what is true of the other half. `unknown` holds "
        "nothing. The share of the right ten results: of a native row's ten nearest native rows, in a pool as large as "
        "that of the scorecard.\n",
        promises(results),
        "## Documents that trained\n",
        "Documents that trained a map are translated better, so a search over all documents flatters it.\n",
        flattery(results),
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--keep", type=Path, help="folder for the maps; those that it has are not trained again")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    read(rows_of("docs", "minilm_l6"))  # refuses a missing data folder before anything is trained
    with tempfile.TemporaryDirectory() as temporary:
        keep = args.keep or Path(temporary)
        keep.mkdir(parents=True, exist_ok=True)
        runs = {(*pair, seed): measure(*pair, seed, keep) for seed in range(args.seeds) for pair in PAIRS}
    results = Results(runs, args.seeds)
    (RESULTS / "migration.md").write_text(report(results), encoding="utf-8")
    print(report(results))


if __name__ == "__main__":
    main()
