# pyright: strict
"""Score a translation by relevance judgements, which state the documents that are relevant to each query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import Relevance
from repstitch.evaluation.verdict import MIN_QUERIES, compare_with_references, decide, not_judged
from repstitch.metrics.delete_one import RowScores, certain
from repstitch.metrics.neighbours import knn, unit
from repstitch.metrics.retrieval import ndcg, relevant_recall
from repstitch.names import USES
from repstitch.precision import exact_products

FIRST, SHORTLIST = 10, 100
CELLS = 2**27  # maximum number of similarities in memory at once


@dataclass(frozen=True, eq=False)
class SearchRows:
    """Queries or documents: ids (n,), rows (n, d) in the source and target space, and translated source rows.

    `seen` (n,) marks the rows that training used.
    """

    ids: np.ndarray
    source: Tensor
    target: Tensor
    translated: Tensor
    seen: np.ndarray

    def __repr__(self) -> str:
        return f"SearchRows({len(self.ids)} rows)"

    def take(self, rows: np.ndarray) -> "SearchRows":
        return SearchRows(self.ids[rows], self.source[rows], self.target[rows], self.translated[rows], self.seen[rows])


def score_relevance(
    queries: SearchRows,
    documents: SearchRows,
    qrels: Mapping[str, Mapping[str, float]],
    uses: Sequence[str] = USES,
    thresholds: Thresholds | None = None,
    seed: int = 0,
) -> Relevance:
    """Score each use by relevance judgements: nDCG@10 and recall@100 with references, and a verdict.

    The table shows the queries and the documents of each search.

    | use | translated | keep_old | ceiling (full re-embedding) |
    |---|---|---|---|
    | corpus | target queries, translated documents | source, source | target, target |
    | query | translated queries, target documents | target, target | source, source |

    `naive` searches without translating (if the dimensions agree); `shuffled` uses the translation of another row.
    `reranked` needs no map: the first 100 results of `keep_old` in the order of the ceiling's similarities. It is left
    out if the old model is gone. The gallery is all `documents`. Scores are means over the judged queries: queries that
    training did not use and that have a document with a grade above 0 in the gallery. The shortlist of
    recall@100 has min(100, documents) entries. Judged ids that the files do not contain are counted. Raises InputError
    if no judged query is left.

    If training used some of the documents, which are then translated better than others, `unseen_documents` has the
    same scores over the others alone. They hold for an index that is much larger than the pairs, so they give the
    verdicts, unless fewer than 20 judged queries are left.
    """
    row_of = {str(key): row for row, key in enumerate(documents.ids)}
    grades = [_grades_of_rows(qrels.get(str(query), {}), row_of) for query in queries.ids]
    relevant = np.array([any(grade > 0 for grade in judged.values()) for judged in grades], dtype=bool)
    judged_rows = np.flatnonzero(relevant & ~queries.seen)
    seen_count = int((relevant & queries.seen).sum())
    if not len(judged_rows):
        raise InputError(
            f"`qrels` must name a relevant document of the gallery (grade above 0) for at least one of {len(grades)} "
            f"queries; none is left ({seen_count} were used in training). Check that its ids are those of the files."
        )
    judged_queries, judged_grades = queries.take(judged_rows), [grades[row] for row in judged_rows]
    query_ids = {str(query) for query in queries.ids}
    scores: dict[str, Any] = {
        "documents": len(row_of),
        "unknown_queries": len(set(qrels) - query_ids),
        "unknown_documents": len({document for judged in qrels.values() for document in judged} - set(row_of)),
        "queries_without_relevant": int(sum(str(query) in qrels for query in queries.ids) - relevant.sum()),
        "queries_seen_in_training": seen_count,
    }
    for use in uses:
        searches = _searches(use, judged_queries, documents, seed)
        scores[use] = _use_scores(searches, judged_grades, len(row_of), thresholds or Thresholds())
    scores["documents_seen_in_training"] = int(documents.seen.sum())
    unseen = documents.take(np.flatnonzero(~documents.seen))
    if 0 < len(unseen.ids) < len(row_of) and _count_judged(queries, unseen, qrels) >= MIN_QUERIES:
        scores["unseen_documents"] = score_relevance(queries, unseen, qrels, uses, thresholds, seed).to_dict()
    return Relevance(scores)


def _count_judged(queries: SearchRows, documents: SearchRows, qrels: Mapping[str, Mapping[str, float]]) -> int:
    """Return the number of queries that training did not use and that have a relevant document among these."""
    ids = set(map(str, documents.ids))
    unseen = (qrels.get(str(query), {}) for query, seen in zip(queries.ids, queries.seen, strict=True) if not seen)
    return sum(any(grade > 0 and key in ids for key, grade in judged.items()) for judged in unseen)


def _grades_of_rows(judged: Mapping[str, float], row_of: Mapping[str, int]) -> dict[int, float]:
    return {row_of[document]: grade for document, grade in judged.items() if document in row_of}


def _use_scores(
    searches: Mapping[str, tuple[Tensor, Tensor]],
    grades: Sequence[Mapping[int, float]],
    n_documents: int,
    thresholds: Thresholds,
) -> dict[str, Any]:
    """Return the scores of one use, from the queries and documents of each search."""
    depth = min(SHORTLIST, n_documents)
    gains: dict[str, RowScores] = {}
    recalls: dict[str, RowScores] = {}
    for name, (queries, documents) in searches.items():
        nearest = _nearest(queries, documents, depth)
        gains[name] = RowScores(ndcg(nearest, grades, FIRST).numpy())
        listed_all = depth == n_documents
        recalls[name] = certain(1.0, len(grades)) if listed_all else RowScores(relevant_recall(nearest, grades).numpy())
        if name == "keep_old" and thresholds.old_model != "gone":
            reranked = _rerank(nearest, *searches["ceiling"])
            gains["reranked"], recalls["reranked"] = RowScores(ndcg(reranked, grades, FIRST).numpy()), recalls[name]
    first, shortlist = compare_with_references(gains), compare_with_references(recalls)
    measures = f"ndcg@{FIRST}", f"recall@{SHORTLIST}"
    if len(grades) < MIN_QUERIES:
        few = f"{len(grades)} judged queries are too few for a verdict; at least {MIN_QUERIES} are needed."
        verdict = not_judged(few, thresholds)
    else:
        verdict = decide(measures[0], first, measures[1], shortlist, thresholds, depth / n_documents)
    compared = dict(zip(measures, (first.to_dict(), shortlist.to_dict()), strict=True))
    return {"queries": len(grades), "depth": depth, **compared, "verdict": verdict.to_dict()}


def _searches(use: str, queries: SearchRows, documents: SearchRows, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the queries and documents of the translation, of each reference and of each control."""
    in_source, in_target = (queries.source, documents.source), (queries.target, documents.target)
    translated_side = documents if use == "corpus" else queries
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(translated_side.translated)))
    shuffled = translated_side.translated[order]
    if use == "corpus":
        searches = {"translated": (queries.target, documents.translated), "keep_old": in_source, "ceiling": in_target}
        naive, shuffled_pair = (queries.target, documents.source), (queries.target, shuffled)
    else:
        searches = {"translated": (queries.translated, documents.target), "keep_old": in_target, "ceiling": in_source}
        naive, shuffled_pair = (queries.source, documents.target), (shuffled, documents.target)
    if queries.source.shape[1] == queries.target.shape[1]:
        searches["naive"] = naive
    return searches | {"shuffled": shuffled_pair}


@exact_products()
def _rerank(lists: Tensor, queries: Tensor, documents: Tensor) -> Tensor:
    """Return each query's list (n, depth) of documents, nearest first."""
    listed = zip(unit(queries.float()), lists, strict=True)
    orders = [(unit(documents[rows].float()) @ query).argsort(descending=True, stable=True) for query, rows in listed]
    return lists.gather(1, torch.stack(orders))


def _nearest(queries: Tensor, documents: Tensor, k: int) -> Tensor:
    """Run `knn` on batches of queries, so that the similarities fit in memory whatever the size of the gallery."""
    step = max(1, CELLS // len(documents))
    return torch.cat([knn(queries[at : at + step], documents, k) for at in range(0, len(queries), step)])
