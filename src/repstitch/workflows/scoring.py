"""TODO workflows.scoring."""

import logging

import numpy as np

from repstitch.embeddings.pairs import Pairs, pair
from repstitch.embeddings.splitting import SHARES, split
from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels
from repstitch.evaluation.relevance import Sides, relevance
from repstitch.evaluation.scoring import score_pairs
from repstitch.evaluation.thresholds import Thresholds
from repstitch.names import USES
from repstitch.spaces import Space
from repstitch.stitchers.held_out import read_sides, refuse_backwards, seen_in_training, translate_pairs
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.labels import label
from repstitch.transfer.probe_evaluation import Task, make_task, prove

log = logging.getLogger(__name__)


def score(
    stitcher: Stitcher,
    source,
    target,
    *,
    uses: tuple[str, ...] = USES,
    source_space: str | Space | None = None,
    target_space: str | Space | None = None,
    source_ids=None,
    target_ids=None,
    drop_invalid: bool = False,
    source_queries=None,
    target_queries=None,
    qrels=None,
    source_query_ids=None,
    target_query_ids=None,
    labels=None,
    retention: float = 0.9,
    first_stage: float = 0.95,
) -> dict:
    """The scorecard of a stitcher on pairs, without those it was trained on or chosen by.

    `source` and `target` as in `train`. The card's `left_out` says how many pairs were left out as seen. With relevance
    judgements (`qrels`, see `relevance.read_qrels`) `source` and `target` are the documents, `source_queries` and
    `target_queries` the queries in either space, all with ids; the card then has `relevance`, which decides the
    verdicts. There all documents are in the gallery, those seen in training too (`documents_seen_in_training`), and the
    unseen queries judge. With `labels` of the source's rows (see `transfer.labels.label`) the card has
    `probe_transfer`: how a probe of the target space does on the source's rows, carried back by the stitcher
    (`transfer.proof.prove`). `retention` and `first_stage` are the thresholds of `verdict.Thresholds`.

    Raises InputError on another space, backwards use, when no unseen pair or no judged query is left.
    """
    thresholds = Thresholds(retention, first_stage)
    given = [side is not None for side in (source_queries, target_queries, qrels)]
    if any(given) and not all(given):
        raise InputError("`source_queries`, `target_queries` and `qrels` belong together; give all three, or none.")
    if isinstance(uses, str) or not uses or not set(uses) <= set(USES):
        raise InputError(f"`uses` must be a tuple of {' and '.join(USES)}; got {uses!r}.")
    a, b = read_sides(stitcher, source, target, source_space, target_space, source_ids, target_ids)
    documents = pair(a if labels is None else label(a, labels), b, drop_invalid)
    people = None
    if qrels is not None:
        q = read_sides(
            stitcher, source_queries, target_queries, source_space, target_space, source_query_ids, target_query_ids
        )
        if any(side.ids is None for side in (a, b, *q)):
            raise InputError(
                "With `qrels` all four files must have ids, those that it names; give --source-ids, --target-ids, "
                "--source-query-ids and --target-query-ids for files without."
            )
        people = read_qrels(qrels), pair(*q, drop_invalid, least=1)
    known = seen_in_training(stitcher, documents)
    if known.all():
        raise InputError(f"All {len(documents)} pairs were used to train this stitcher; give pairs it has not seen.")
    pairs = documents.take(~known)
    refuse_backwards(stitcher, pairs.X, a.declared)
    X, Y, bare, translated = translate_pairs(stitcher, pairs)
    card = score_pairs(
        X.numpy(), Y.numpy(), translated.numpy(), bare.numpy(), stitcher.target_mean, uses, thresholds=thresholds
    )
    card |= {"left_out": int(known.sum()), "held_out": "unseen pairs", "dropped": pairs.dropped}
    if labels is not None:
        card["probe_transfer"] = prove(stitcher, _task(stitcher, documents, known))
    if people is None:
        return card
    judgements, queries = people
    found = relevance(
        _relevance_side(stitcher, queries),
        _relevance_side(stitcher, documents),
        judgements,
        seen_in_training(stitcher, queries, documents.ids),
        uses,
        thresholds,
    )
    for use in uses:
        card[use]["verdict"] = found[use]["verdict"]
    return card | {"relevance": found | {"documents_seen_in_training": int(known.sum())}}


def _task(stitcher: Stitcher, pairs: Pairs, known: np.ndarray) -> Task:
    """The labelled pairs as a task for a probe of the target space, which the stitcher carries back to the source."""
    X, Y, *_ = translate_pairs(stitcher, pairs)
    shares = stitcher.split.get("shares", SHARES)
    parts = split(pairs, shares if shares[-1] else SHARES, stitcher.split.get("seed", 0))
    if stitcher.split.get("group"):
        log.warning(
            "The stitcher was trained with groups, which `labels` do not know: probes may train on a test group."
        )
    assert pairs.labels is not None
    return make_task(X.numpy(), Y.numpy(), pairs.labels, parts, known)


def _relevance_side(stitcher: Stitcher, pairs: Pairs) -> Sides:
    X, Y, _, translated = translate_pairs(stitcher, pairs)
    return Sides(pairs.ids, X, Y, translated)
