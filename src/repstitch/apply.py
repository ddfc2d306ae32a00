"""A stitcher applied to files: translate rows into a new file, score it on pairs it was not trained on."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from repstitch.embeddings.pairs import Pairs, pair
from repstitch.embeddings.reading import scan
from repstitch.embeddings.rows import invalid_rows, row_numbers
from repstitch.embeddings.splitting import SHARES, split
from repstitch.embeddings.writing import write_stream
from repstitch.errors import InputError
from repstitch.evaluation.qrels import read_qrels
from repstitch.evaluation.relevance import Sides, relevance
from repstitch.evaluation.scoring import score_pairs
from repstitch.evaluation.verdict import Thresholds
from repstitch.names import USES
from repstitch.spaces import Space, adopt
from repstitch.stitchers.held_out import read_sides, refuse_backwards, seen_in_training, translate_pairs
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.labels import label
from repstitch.transfer.proof import Task, make_task, prove

log = logging.getLogger(__name__)


def translate_file(
    stitcher: Stitcher,
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    source_space: str | Space | None = None,
    ids=None,
    dtype: str = "float32",
    batch_rows: int = 16_384,
    confidence: bool = False,
) -> int:
    """Translate embeddings into a new Parquet file and return the number of rows.

    Streams: memory does not grow with the file. A stopped run goes on where it was when called again; the file appears
    only when whole. Rows without ids get their positions as ids. With `confidence` each of the stitcher's measures is a
    float32 column of its name. Raises InputError on another space, on rows that cannot be translated (naming the
    first), on a stitcher without calibration where it is needed, and when `out` exists.
    """
    if dtype not in ("float32", "float16"):
        raise InputError(f"`dtype` must be float32 or float16; got {dtype!r}.")
    if confidence and stitcher.calibration is None:
        raise InputError(
            "`confidence` needs a stitcher with a calibration; this one has none. Train it again on more pairs."
        )
    measures = stitcher.calibration.names if confidence and stitcher.calibration else ()
    opened = scan(path, space=source_space, ids=ids)
    adopt(opened.space, opened.declared, stitcher.source, str(path), opposite=stitcher.target)
    job = {
        "stitcher": stitcher.version,
        "source": str(path),
        "rows": opened.n_rows,
        "stamp": _stamp(Path(opened.path)),
        "dtype": dtype,
        "ids": [str(ids), _stamp(Path(ids))] if isinstance(ids, str | os.PathLike) else ids is not None,
    }
    if confidence:
        job["confidence"] = True

    refused: list[InputError] = []

    def produce(start: int) -> Iterator[tuple]:
        at = start
        with tqdm(total=opened.n_rows, initial=start, unit="row", delay=1, desc="translate", leave=False) as bar:
            for batch in opened.batches(batch_rows, start):
                keys = row_numbers(at, at + len(batch)) if batch.ids is None else batch.ids
                try:
                    _refuse_invalid(batch.vectors, batch.ids, at, str(path))
                    if confidence:
                        translated, measured = stitcher.translate_with_confidence(batch.vectors)
                    else:
                        translated, measured = stitcher.translate(batch.vectors), {}
                    _refuse_overflow(translated, keys, dtype)
                except InputError as error:
                    refused.append(error)
                    raise
                yield keys, translated, measured
                at += len(batch)
                bar.update(len(batch))

    written_by = {"repstitch.translated_by": stitcher.version}
    try:
        return write_stream(out, stitcher.target, produce, job, dtype=dtype, metadata=written_by, measures=measures)
    except InputError:
        if refused:  # once the rows are mended it is another job, which the finished parts are of no use to
            shutil.rmtree(f"{os.fspath(out)}.partial", ignore_errors=True)
        raise


def _stamp(place: Path) -> list:
    """What changes when a file, or any file of a folder, does."""
    files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place] if place.is_file() else []
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _refuse_overflow(translated: np.ndarray, ids: np.ndarray, dtype: str) -> None:
    over = np.abs(translated).max(axis=1) > np.finfo(dtype).max
    if over.any():
        raise InputError(
            f"`dtype` {dtype} cannot hold the translation of id {ids[int(np.argmax(over))]!r}; use float32."
        )


def _refuse_invalid(vectors: np.ndarray, ids: np.ndarray | None, start: int, path: str) -> None:
    for what, mask in invalid_rows(vectors).items():
        if mask.any():
            row = int(np.argmax(mask))
            name = f"row {start + row}" if ids is None else f"id {ids[row]!r}"
            raise InputError(f"{path} holds rows that cannot be translated: {name} is {what}. Remove such rows first.")


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
