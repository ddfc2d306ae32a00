"""Score a stitcher on pairs that it was not trained on."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch

from repstitch.arguments import names_keywords
from repstitch.embeddings.columns import Column
from repstitch.embeddings.ids import IdColumn
from repstitch.embeddings.near_duplicates import find_near_duplicates
from repstitch.embeddings.pairs import Pairs, pair
from repstitch.embeddings.rows import Embeddings, EmbeddingsLike
from repstitch.embeddings.splitting import SHARES, split
from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels
from repstitch.evaluation.relevance import SearchRows, score_relevance
from repstitch.evaluation.relevance_data import RelevanceData
from repstitch.evaluation.score_scale import LEAST_QUERIES, fit_query_score_scale, fit_score_scale
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.scoring import score_pairs
from repstitch.evaluation.thresholds import Thresholds
from repstitch.names import USES, OldModel, Use
from repstitch.spaces import Space
from repstitch.stitchers.held_out import (
    read_sides,
    refuse_backwards,
    seen_in_training,
    translate_pairs,
)
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
    id_column: IdColumn | None = None,
    drop_invalid: bool = False,
    relevance: RelevanceData | None = None,
    labels: Column | None = None,
    retention: float = 0.9,
    first_stage: float = 0.95,
    old_model: OldModel = "available",
) -> Scorecard:
    """Score a stitcher on pairs that it was not trained on.

    Pairs that training or the selection of the map used are recognised by their ids and by their vectors, also after
    these were multiplied by a positive number or rounded to float16 or bfloat16, and left out. If there are any, pairs
    that nearly repeat one of them in both spaces are counted, and the main scores are also computed without them.

    Args:
        stitcher: The stitcher to score.
        source: The source embeddings: a file (see `repstitch.read`), `Embeddings`, or an array (n, d_source).
        target: The target embeddings of the same items, in any of these forms. Rows are paired by id if both sides have
            ids, otherwise by position.
        uses: The uses to score: `query` (translated queries search native target vectors), `corpus` (native target
            queries search translated vectors), or both. Default: both.
        source_space: The name or card (`Space`) of the source's space, in place of the one in the file. Without a name
            or card, rows are assumed to be in the stitcher's source space if they have its dimension.
        target_space: The same for the target's space.
        source_ids: One id per source row, in place of those in the file: an array, a text file with one id per line, a
            `.npy` file, `file.npz:key` or `table.csv:column`.
        target_ids: The same for the target rows.
        id_column: The column that contains the ids, or the names that it has in the different files. Default: chosen as
            by `repstitch.read`.
        drop_invalid: If True, leave out rows with NaN, Inf or only zeros, and exact repeats of a pair. If False, these
            rows raise InputError, and repeats are kept. Default: False.
        relevance: Queries and relevance judgements (`repstitch.evaluation.RelevanceData`). `source` and `target` are
            then the documents, the scorecard also has `relevance`, and the verdicts are based on it. Documents seen in
            training stay in the gallery; queries seen in training are not scored. With at least 40 queries, the score
            scales (`Scorecard.score_scales`) are those of the queries in place of those of rows. Default: None.
        labels: One class label per source row: `table.csv:column` with a column `id`, or an array or file in row order.
            The scorecard then also has `probe_transfer`: the accuracy on source rows of a linear classifier (a probe)
            that is trained on target rows and transferred to the source space through the stitcher. Default: None.
        retention: The share of the score of full re-embedding, above 0 and at most 1, that the translation must reach
            with its whole 95 % interval for the verdict `use`. Default: 0.9.
        first_stage: The share of the shortlist recall of full re-embedding that the translation must reach with
            its whole 95 % interval for the verdict `use as first stage`. Default: 0.95.
        old_model: `gone` if the old model cannot be kept, for example because its provider switches it off. The verdict
            then rests on the shares of re-embedding alone. Default: `available`.

    Returns:
        The scorecard. Its `left_out` is the number of pairs that were left out because training or selection used them.

    Raises:
        InputError: If the rows are in other spaces than the stitcher's, if source and target are swapped, if no unseen
            pair or no judged query is left, or if an argument is invalid.
    """
    thresholds = Thresholds(retention, first_stage, old_model)
    if isinstance(uses, str) or not uses or not set(uses) <= set(USES):
        raise InputError(f"`uses` must be a tuple with at least one of {' and '.join(USES)}; got {uses!r}.")
    spaces = (source_space, target_space)
    source_rows, target_rows = read_sides(stitcher, source, target, *spaces, source_ids, target_ids, id_column)
    documents = pair(
        source_rows if labels is None else label(source_rows, labels, id_column), target_rows, drop_invalid
    )
    judged = None
    if relevance is not None:
        judged = _read_relevance(stitcher, relevance, spaces, (source_rows, target_rows), id_column, drop_invalid)
    used_in_training = seen_in_training(stitcher, documents)
    n_used = int(used_in_training.sum())
    if used_in_training.all():
        raise InputError(f"All {len(documents)} pairs were used to train this stitcher; pass other pairs.")
    pairs = documents.take(~used_in_training)
    refuse_backwards(stitcher, pairs.X, source_rows.declared)

    near_duplicates = find_near_duplicates(documents, np.flatnonzero(used_in_training))[~used_in_training]
    translated = translate_pairs(stitcher, pairs)
    card = score_pairs(
        translated,
        torch.from_numpy(stitcher.target_mean),
        near_duplicates=near_duplicates if near_duplicates.any() else None,
        uses=uses,
        thresholds=thresholds,
    ).to_dict()
    extras: dict = {
        "source": stitcher.source.name,
        "target": stitcher.target.name,
        "objective": stitcher.objective,
        "left_out": n_used,
        "held_out": "unseen pairs",
        **_notes(stitcher, near_duplicates, n_used),
        "dropped": pairs.dropped,
    }
    if labels is not None:
        extras["probe_transfer"] = _prove_probe(stitcher, documents, used_in_training)
    scales = {use: fit_score_scale(translated, use) for use in uses}
    if judged is not None:
        queries, qrels = judged
        query_rows = _search_rows(stitcher, queries, seen_in_training(stitcher, queries, documents.ids))
        document_rows = _search_rows(stitcher, documents, used_in_training)
        relevance_scores = score_relevance(query_rows, document_rows, qrels, uses, thresholds)
        extras["relevance"] = relevance_scores.to_dict()
        for use in uses:
            card[use]["verdict"] = relevance_scores.deciding[use]["verdict"]
            scales[use] = fit_query_score_scale(query_rows, document_rows, use) or scales[use]
    fitted = {use: scale for use, scale in scales.items() if scale is not None}
    return Scorecard(card | extras | ({"score_scale": fitted} if fitted else {}))


def with_score_scales(stitcher: Stitcher, card: Scorecard) -> Stitcher:
    """Return a copy of a stitcher with score scales of real queries, from a scorecard that was computed with them.

    All its other scores stay. Its version is another, because that depends on the scorecard. Raises InputError unless
    the scales of `card` are those of queries.
    """
    scales = card.score_scales
    if not scales or any(scale.queried_by != "queries" for scale in scales.values()):
        raise InputError(
            f"Thresholds need at least {LEAST_QUERIES} queries that training did not use; pass more queries, or omit "
            "`out`."
        )
    merged = {use: scale.to_dict() for use, scale in (stitcher.scorecard.score_scales | scales).items()}
    scorecard = Scorecard((stitcher.scorecard.to_dict() or card.to_dict()) | {"score_scale": merged})
    return replace(stitcher, scorecard=scorecard, created=datetime.now(UTC).isoformat())


def _notes(stitcher: Stitcher, near_duplicates: np.ndarray, n_used: int) -> dict:
    """Return the scorecard's entries on near duplicates and on training pairs that may not be recognised.

    Near duplicates are searched only among training pairs in the same files, so without any they are not counted.
    """
    n_near, notes = int(near_duplicates.sum()), []
    if stitcher.seen_rows is None:
        notes.append(
            "This stitcher is of an earlier release and recognises training pairs by ids and identical vectors only: "
            "vectors that were scaled or rounded since are scored as unseen. Train again, or pass the ids of training."
        )
    if n_near:
        notes.append(
            f"{n_near} of {len(near_duplicates)} unseen pairs nearly repeat one of {n_used} training pairs in these "
            "files in both spaces, so their scores partly measure memorisation."
        )
    return ({"notes": notes} if notes else {}) | ({"near_duplicates": n_near} if n_used else {})


def _read_relevance(
    stitcher: Stitcher,
    data: RelevanceData,
    spaces: tuple[str | Space | None, str | Space | None],
    documents: tuple[Embeddings, Embeddings],
    id_column: IdColumn | None,
    drop_invalid: bool,
) -> tuple[Pairs, Qrels]:
    """Read the paired queries and the judgements. Raises InputError unless all queries and documents have ids."""
    paths, ids = (data.source_queries, data.target_queries), (data.source_query_ids, data.target_query_ids)
    queries = read_sides(stitcher, *paths, *spaces, *ids, id_column)
    if any(rows.ids is None for rows in (*documents, *queries)):
        raise InputError(
            "`qrels` refers to ids, so documents and queries must have ids on both sides; pass `source_ids`, "
            "`target_ids`, `source_query_ids` and `target_query_ids` for those without."
        )
    qrels = read_qrels(data.qrels)
    return pair(*queries, drop_invalid, least=1), qrels


def _search_rows(stitcher: Stitcher, pairs: Pairs, seen: np.ndarray) -> SearchRows:
    rows = translate_pairs(stitcher, pairs)
    return SearchRows(pairs.ids, rows.source, rows.target, rows.translated, seen)


def _prove_probe(stitcher: Stitcher, pairs: Pairs, used_in_training: np.ndarray) -> dict:
    """Evaluate a probe of the target space on labelled source rows, after its transfer back through the stitcher."""
    # Imported late: scoring without labels does not need the code that fits probes.
    from repstitch.transfer.probe_evaluation import evaluate_probe
    from repstitch.transfer.task import make_task

    rows = translate_pairs(stitcher, pairs)
    shares = stitcher.split.get("shares", SHARES)
    parts = split(pairs, shares if shares[-1] else SHARES, stitcher.split.get("seed", 0))
    if stitcher.split.get("group"):
        log.warning(
            "The stitcher was trained with groups, which the split for `labels` ignores: one group may have rows in "
            "both training and test of the probes."
        )
    assert pairs.labels is not None
    return evaluate_probe(
        stitcher, make_task(rows.source.numpy(), rows.target.numpy(), pairs.labels, parts, used_in_training)
    ).to_dict()
