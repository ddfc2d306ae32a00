"""Score a stitcher on pairs that it was not trained on."""

import logging
from collections.abc import Mapping

import numpy as np
import torch

from repstitch.arguments import names_keywords
from repstitch.embeddings.columns import Column
from repstitch.embeddings.pairs import Pairs, pair
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike
from repstitch.embeddings.splitting import SHARES, split
from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels
from repstitch.evaluation.relevance import SearchRows, score_relevance
from repstitch.evaluation.relevance_data import RelevanceData
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.scoring import score_pairs
from repstitch.evaluation.thresholds import Thresholds
from repstitch.names import USES, Use
from repstitch.spaces import Space
from repstitch.stitchers.held_out import read_sides, refuse_backwards, seen_in_training, translate_pairs
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.labels import label

log = logging.getLogger(__name__)
Qrels = Mapping[str, Mapping[str, float]]


@names_keywords
def score(  # noqa: PLR0913 - the whole job in one call
    stitcher: Stitcher,
    source: EmbeddingsLike,
    target: EmbeddingsLike,
    *,
    uses: tuple[Use, ...] = USES,
    source_space: str | Space | None = None,
    target_space: str | Space | None = None,
    source_ids: Column | None = None,
    target_ids: Column | None = None,
    drop_invalid: bool = False,
    relevance: RelevanceData | None = None,
    labels: Column | None = None,
    retention: float = 0.9,
    first_stage: float = 0.95,
) -> Scorecard:
    """The scorecard of a stitcher on pairs, without those that it was trained on or chosen by.

    Args:
        stitcher: The stitcher to score.
        source: A file (see `embeddings.scan`), `Embeddings`, or an array (n, d_source).
        target: The same items in the target space. Rows pair by id where both sides have ids, else by position.
        uses: Which uses to score: `query`, `corpus`, or both.
        source_space: The source's name or card, for rows without a card.
        target_space: The target's name or card, for rows without a card.
        source_ids: One id a row, for a source without ids.
        target_ids: One id a row, for a target without ids.
        drop_invalid: Leave out rows that cannot be used, and repeats of an identical pair.
        relevance: Queries and relevance judgements. `source` and `target` are then the documents, and the scorecard has
            `relevance`, which decides the verdicts. Documents that training used stay in the gallery; queries that it
            used are not scored.
        labels: Classes of the source's rows (see `transfer.labels.label`). The scorecard then has `probe_transfer`: how
            well a probe of the target space works on the source's rows once the stitcher has carried it back.
        retention: The share of re-embedding's score that the verdict `use` needs.
        first_stage: The share of re-embedding's shortlist recall that the verdict `use as first stage` needs.

    Returns:
        The scorecard. Its `left_out` counts the pairs that were left out because training used them.

    Raises:
        InputError: On another space, on a stitcher used backwards, and when no unseen pair or no judged query is left.
    """
    thresholds = Thresholds(retention, first_stage)
    if isinstance(uses, str) or not uses or not set(uses) <= set(USES):
        raise InputError(f"`uses` must be a tuple of {' and '.join(USES)}; got {uses!r}.")
    spaces = (source_space, target_space)
    source_rows, target_rows = read_sides(stitcher, source, target, *spaces, source_ids, target_ids)
    documents = pair(source_rows if labels is None else label(source_rows, labels), target_rows, drop_invalid)
    judged = None
    if relevance is not None:
        judged = _read_relevance(stitcher, relevance, spaces, (source_rows, target_rows), drop_invalid)
    used_in_training = seen_in_training(stitcher, documents)
    if used_in_training.all():
        raise InputError(f"All {len(documents)} pairs were used to train this stitcher; give pairs it has not seen.")
    pairs = documents.take(~used_in_training)
    refuse_backwards(stitcher, pairs.X, source_rows.declared)

    training_mean = torch.from_numpy(stitcher.target_mean)
    card = score_pairs(translate_pairs(stitcher, pairs), training_mean, uses=uses, thresholds=thresholds).to_dict()
    n_used = int(used_in_training.sum())
    extras: dict = {"left_out": n_used, "held_out": "unseen pairs", "dropped": pairs.dropped}
    if labels is not None:
        extras["probe_transfer"] = _prove_probe(stitcher, documents, used_in_training)
    if judged is not None:
        queries, qrels = judged
        query_rows = _search_rows(stitcher, queries, seen_in_training(stitcher, queries, documents.ids))
        document_rows = _search_rows(stitcher, documents, used_in_training)
        extras["relevance"] = score_relevance(query_rows, document_rows, qrels, uses, thresholds).to_dict()
        for use in uses:
            card[use]["verdict"] = extras["relevance"][use]["verdict"]
    return Scorecard(card | extras)


def _read_relevance(
    stitcher: Stitcher,
    data: RelevanceData,
    spaces: tuple[str | Space | None, str | Space | None],
    documents: tuple[Embeddings, Embeddings],
    drop_invalid: bool,
) -> tuple[Pairs, Qrels]:
    """The paired queries and the judgements; InputError unless queries and documents all have ids."""
    queries = read_sides(
        stitcher, data.source_queries, data.target_queries, *spaces, data.source_query_ids, data.target_query_ids
    )
    if any(rows.ids is None for rows in (*documents, *queries)):
        raise InputError(
            "With `qrels` all four files must have ids, those that it names; give `source_ids`, `target_ids`, "
            "`source_query_ids` and `target_query_ids` for files without."
        )
    qrels = read_qrels(data.qrels)
    return pair(*queries, drop_invalid, least=1), qrels


def _search_rows(stitcher: Stitcher, pairs: Pairs, seen: np.ndarray) -> SearchRows:
    rows = translate_pairs(stitcher, pairs)
    return SearchRows(pairs.ids, rows.source, rows.target, rows.translated, seen)


def _prove_probe(stitcher: Stitcher, pairs: Pairs, used_in_training: np.ndarray) -> dict:
    """How well a probe of the target space works on the source's labelled rows once the stitcher carried it back."""
    from repstitch.transfer.probe_evaluation import evaluate_probe  # fits probes, which scoring alone does not need
    from repstitch.transfer.task import make_task

    rows = translate_pairs(stitcher, pairs)
    shares = stitcher.split.get("shares", SHARES)
    parts = split(pairs, shares if shares[-1] else SHARES, stitcher.split.get("seed", 0))
    if stitcher.split.get("group"):
        log.warning(
            "The stitcher was trained with groups, which `labels` do not know: probes may train on a test group."
        )
    assert pairs.labels is not None
    return evaluate_probe(
        stitcher, make_task(rows.source.numpy(), rows.target.numpy(), pairs.labels, parts, used_in_training)
    ).to_dict()
