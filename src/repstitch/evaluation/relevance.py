"""Human relevance: what people judged relevant to a query, and how well each way of searching finds it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.verdict import MIN_QUERIES, not_judged, standing, verdict
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import ndcg, relevant_found
from repstitch.names import USES

FIRST, SHORTLIST = 10, 100
CELLS = 2**27  # of the similarities held at once


@dataclass(frozen=True)
class Sides:
    """Queries, or documents: ids (n,) and rows (n, d) of the source space `x`, the target space `y`, translated `t`."""

    ids: np.ndarray
    x: Tensor
    y: Tensor
    t: Tensor

    def take(self, rows) -> "Sides":
        return Sides(self.ids[rows], self.x[rows], self.y[rows], self.t[rows])


def relevance(
    queries: Sides,
    documents: Sides,
    qrels: Mapping[str, Mapping[str, float]],
    seen: np.ndarray,
    uses: tuple[str, ...] = USES,
    thresholds: Thresholds | None = None,
    seed: int = 0,
) -> dict:
    """nDCG@10 and recall@100 of each use by relevance judgements, beside its references, and its verdict.

    | use | translated | keep_old | ceiling (full re-embedding) |
    |---|---|---|---|
    | corpus | target queries, translated documents | source, source | target, target |
    | query | translated queries, target documents | target, target | source, source |

    `naive` leaves the translation out (where dimensions agree); `shuffled` puts another query's or document's in its
    place. The gallery is all `documents`; scores are means over the judged queries, those that have a document of a
    grade above 0 in it and are not `seen` (n_queries,) in training. recall@100 is among min(100, documents). What the
    judgements name that is not there is counted. Raises InputError where no judged query is left.
    """
    row = {str(key): i for i, key in enumerate(documents.ids)}
    known = [{row[d]: g for d, g in qrels.get(str(q), {}).items() if d in row} for q in queries.ids]
    relevant = np.array([any(grade > 0 for grade in grades.values()) for grades in known], dtype=bool)
    judged = np.flatnonzero(relevant & ~seen)
    if not len(judged):
        raise InputError(
            f"`qrels` must judge a document of the gallery relevant to one of the {len(known)} queries at least; none "
            f"is left ({int((relevant & seen).sum())} were used in training). Are its ids those of the files?"
        )
    asked, grades = queries.take(judged), [known[i] for i in judged]
    depth = min(SHORTLIST, len(row))
    measures = f"ndcg@{FIRST}", f"recall@{SHORTLIST}"
    found: dict = {
        "documents": len(row),
        "unknown_queries": len(set(qrels) - set(map(str, queries.ids))),
        "unknown_documents": len({d for named in qrels.values() for d in named} - set(row)),
        "queries_without_relevant": int(sum(str(q) in qrels for q in queries.ids) - relevant.sum()),
        "queries_seen_in_training": int((relevant & seen).sum()),
    }
    for use in uses:
        rows: dict[str, dict[str, np.ndarray]] = {measure: {} for measure in measures}
        for name, (Q, D) in _ways(use, asked, documents, seed).items():
            lists = _nearest(Q, D, depth)
            rows[measures[0]][name] = ndcg(lists, grades, FIRST).numpy()
            rows[measures[1]][name] = relevant_found(lists, grades).numpy()
        worth = {measure: standing(rows[measure], seed) for measure in measures}
        if len(judged) < MIN_QUERIES:
            few = f"{len(judged)} judged queries are too few to judge by; at least {MIN_QUERIES} are needed."
            said = not_judged(few, thresholds or Thresholds())
        else:
            first, short = measures
            chance = depth / len(row)
            said = verdict(first, worth[first], short, worth[short], thresholds or Thresholds(), chance)
        found[use] = {"queries": len(judged), "depth": depth} | worth | {"verdict": said}
    return found


def _ways(use: str, q: Sides, d: Sides, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The queries and documents of each way of searching."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(d.t if use == "corpus" else q.t)))
    new, old = ((q.y, d.y), (q.x, d.x)) if use == "corpus" else ((q.x, d.x), (q.y, d.y))
    translated, shuffled = ((q.y, d.t), (q.y, d.t[order])) if use == "corpus" else ((q.t, d.y), (q.t[order], d.y))
    ways = {"translated": translated, "keep_old": old, "ceiling": new}
    if q.x.shape[1] == q.y.shape[1]:
        ways["naive"] = (q.y, d.x) if use == "corpus" else (q.x, d.y)
    return ways | {"shuffled": shuffled}


def _nearest(Q: Tensor, D: Tensor, k: int) -> Tensor:
    """`knn` with the similarities held at once bounded, for galleries of any size."""
    return torch.cat([knn(part, D, k) for part in Q.split(max(1, CELLS // len(D)))])
