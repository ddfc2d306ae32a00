"""Human relevance: what people judged relevant to a query, and how well each way of searching finds it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError, one_line
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import ndcg, relevant_found
from repstitch.names import USES
from repstitch.verdict import MIN_QUERIES, Thresholds, not_judged, standing, verdict

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


def read_qrels(path) -> dict[str, dict[str, float]]:
    """Relevance judgements: for each query's id the grade of each document's id.

    One judgement a line: query, document, grade (as BEIR), or query, anything, document, grade (as TREC), between tabs,
    or between spaces in lines without a tab. A first line whose last column is no number is a header. Raises InputError
    on lines that cannot be read so, naming the first, and on a pair that is judged twice with different grades.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`qrels` {path} cannot be read: {one_line(error)}") from None
    found: dict[str, dict[str, float]] = {}
    first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = [c.strip() for c in (line.split("\t") if "\t" in line else line.split())]
        grade = _grade(columns[-1])
        if first and grade is None:
            first = False
            continue
        first = False
        if len(columns) not in (3, 4) or grade is None:
            raise InputError(
                "`qrels` must hold lines of query, document and grade (a number), or TREC's four columns; "
                f"line {number} of {path} is {line[:80]!r}."
            )
        judged = found.setdefault(columns[0], {})
        if judged.setdefault(columns[-2], grade) != grade:
            raise InputError(
                f"`qrels` {path} judges query {columns[0]!r} and document {columns[-2]!r} twice, with different grades "
                f"(line {number}); keep one."
            )
    if not found:
        raise InputError(f"`qrels` {path} holds no judgements; give lines of query, document and grade.")
    return found


def _grade(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None  # TREC marks spam below 0


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
