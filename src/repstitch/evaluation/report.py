# pyright: strict
"""Format all scores of a scorecard as sentences and tables, in plain text or Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence

from repstitch.evaluation.scorecard_parts import (
    ALIGNMENTS,
    Alignment,
    CalibrationScores,
    CandidateScore,
    ControlFit,
    ProbeTransfer,
    Reconstruction,
    Spectrum,
    WithoutNearDuplicates,
)
from repstitch.evaluation.use_scores import RECALLS, Comparison, RecallScores, Relevance, UseScores, measure_name
from repstitch.text import columns, markdown_table, num

Block = str | list[tuple[str, ...]]  # a line, or a table whose first row is its header
Uses = Mapping[str, UseScores]
REFERENCES = {
    "translated": "translated",
    "keep_old": "keep the old model",
    "reranked": "old model's shortlist, reranked",
    "ceiling": "full re-embedding",
    "naive": "naive swap",
    "constant": "constant mean",
    "shuffled": "shuffled pairs",
    "over_keep_old": "above keeping the old model",
    "retention": "share of full re-embedding",
}


def as_text(blocks: Iterable[Block]) -> str:
    return "\n".join(block if isinstance(block, str) else columns(block) for block in blocks)


def as_markdown(blocks: Iterable[Block]) -> str:
    return "\n\n".join(block if isinstance(block, str) else markdown_table(block) for block in blocks if block)


def retrieval_table(title: str, uses: Uses, chance: RecallScores, pool: int, k: int, hubness: float | None) -> Block:
    """Return a table of how well each use finds counterparts among `pool` rows, with chance and the controls."""
    scores = uses.values()
    native = "" if hubness is None else f" (native: {hubness:.1f})"
    rows = [
        (title, *uses, "chance"),
        *((f"recall@{r}", *(str(use.recall_at(r)) for use in scores), num(chance.recall_at(r).score)) for r in RECALLS),
        ("mean reciprocal rank", *(str(use.mrr) for use in scores), ""),
        ("median rank", *(f"{use.median_rank:.0f}" for use in scores), f"{pool / 2:.0f}"),
        (f"target's neighbours in the first {k}", *(str(use.overlap) for use in scores), num(k / max(1, pool - 1))),
        (f"hubness skew{native}", *(f"{use.hubness_skew:.1f}" for use in scores), ""),
        ("shuffled pairs, recall@10", *(str(use.shuffled.recall_at(10)) for use in scores), ""),
    ]
    for words, controls in (
        ("constant mean", [use.constant for use in scores]),
        ("naive swap", [use.naive for use in scores]),
    ):
        recalls = [str(control.recall_at(10)) for control in controls if control is not None]
        if recalls and len(recalls) == len(uses):
            rows.append((f"{words}, recall@10", *recalls, ""))
    return rows


def control_line(control: ControlFit | None) -> Iterable[Block]:
    if control is not None:
        yield f"recall@10 of a map fitted to shuffled pairs: {control.recall_at(10)} (query use)"


def near_duplicates_line(without: WithoutNearDuplicates | None, uses: Uses) -> Iterable[Block]:
    """Yield the main scores without the queries that nearly repeat a training row."""
    if without is not None:
        scores = [
            f"{use} {', '.join(f'{_use_score_name(name)} {num(value)}' for name, value in without.uses[use].items())}"
            for use in uses
            if use in without.uses
        ]
        start = f"without the {without.left_out} near duplicates of training rows: "
        yield start + ("; ".join(scores) or "no query is left")


def _use_score_name(name: str) -> str:
    """Return the name of a use's score in reports. Its overlap is named differently from that of a comparison."""
    return f"target's neighbours in the first {name.removeprefix('overlap@')}" if name.startswith("overlap@") else name


def reconstruction_line(scores: Reconstruction, objective: str | None) -> Block:
    """Return how close translations are to their targets, with a note if the map was not made to be close."""
    note = ""
    if objective in ("match", "neighbours"):
        note = f"; a map made for `{objective}` does not aim at a high cosine or R², and its R² can be far below 0"
    elif objective is None and scores.r2 < 0:
        note = "; only a map made for `reconstruction` aims at a high R²"
    return (
        f"cosine {num(scores.cosine)} (a constant translation: {num(scores.cosine_floor)}), R² {num(scores.r2)}, "
        f"spread {scores.norm_ratio:.2f} times the target's{note}"
    )


def confidence_line(scores: CalibrationScores | None) -> Iterable[Block]:
    """Yield how well the confidence was calibrated on held-out rows, and whether it can be used."""
    if scores is not None:
        auroc = "" if scores.auroc is None else f", AUROC {scores.auroc_estimate}"
        calibrated = "" if scores.calibrated else " (smaller than the pool it was calibrated for)"
        unusable = f". Not usable: {scores.reason}" if scores.usable is False else ""
        yield (
            f"confidence on {scores.n} pairs, pool of {scores.pool}{calibrated}: calibration error {num(scores.ece)}"
            f"{auroc}; {scores.covered:.1%} of cosines are above their bound (intended: {scores.level:.0%}){unusable}"
        )


def probe_transfer_line(scores: ProbeTransfer | None) -> Iterable[Block]:
    """Yield the accuracy of a probe of the target space on the source's rows, transferred back through the map."""
    if scores is not None:
        accuracy = scores.accuracy
        share = "" if scores.retention is None else f", a share of {scores.retention}"
        yield (
            f"a probe of {len(scores.classes)} classes, transferred from {scores.source} to {scores.target} "
            f"({scores.n_test} unseen rows): accuracy {num(accuracy.carried.score)}, a native probe "
            f"{num(accuracy.native.score)}{share}; through shuffled pairs {num(accuracy.shuffled.score)}, "
            f"majority class {num(accuracy.majority.score)}"
        )


def alignment_blocks(alignment: Alignment) -> Iterable[Block]:
    """Yield each alignment metric before and after translation, or why it was not scored."""
    rows: list[tuple[str, ...]] = [("alignment with the target space", "before", "after", "null", "p")]
    for name in ALIGNMENTS:
        before, after = alignment.metric(name).before, alignment.metric(name).after
        refused = before.refused or after.refused
        if refused is not None:
            yield f"{name} not scored: {refused}"
        else:
            rows.append((name, *(num(value) for value in (before.score, after.score, after.null, after.p))))
    yield rows


def spectrum_line(spectrum: Spectrum | None) -> Iterable[Block]:
    """Yield how many directions the two spaces share."""
    if spectrum is not None:
        yield (
            f"{spectrum.above} of {spectrum.directions} canonical directions correlate more on held-out pairs than the "
            f"strongest direction of shuffled pairs ({num(spectrum.null)})"
        )


def reference_tables(uses: Uses, relevance: Relevance | None) -> Iterable[Block]:
    """Yield each use with its references: by neighbours, and by relevance judgements if there are any."""
    overlaps = {name: use.references for name, use in uses.items() if use.references is not None}
    if overlaps:
        yield ""
        heads = {
            f"{name}: neighbours in the {references.truth} space": references for name, references in overlaps.items()
        }
        yield _reference_table("share of the true neighbours", heads)
    if relevance is not None and relevance.uses:
        yield ""
        heads = {f"{name}: {scores.queries} queries": scores for name, scores in relevance.uses.items()}
        yield _reference_table("relevant documents", heads)
        unseen = relevance.unseen_documents
        if unseen is not None:
            yield ""
            heads = {f"{name}: {scores.queries} queries": scores for name, scores in unseen.uses.items()}
            yield _reference_table(f"relevant documents, of the {unseen.documents} that did not train the map", heads)


def _reference_table(title: str, comparisons: Mapping[str, Comparison]) -> Block:
    """Return a table with a row for each measure and reference, and a column for each comparison under its header."""
    rows: list[tuple[str, ...]] = [(title, *comparisons)]
    columns_of_scores = [comparison.measures for comparison in comparisons.values()]
    for measure in [name for name in columns_of_scores[0] if all(name in scores for scores in columns_of_scores)]:
        for reference, words in REFERENCES.items():
            scores = [measures[measure].get(reference) for measures in columns_of_scores]
            if all(score is not None for score in scores):
                label = f"{measure_name(measure)}, translated" if reference == "translated" else f"  {words}"
                rows.append((label, *map(str, scores)))
    return rows


def relevance_line(relevance: Relevance | None) -> Iterable[Block]:
    if relevance is not None:
        yield (
            f"relevance: {relevance.documents} documents searched ({relevance.documents_seen_in_training} of them seen "
            f"in training); queries left out: {relevance.queries_seen_in_training} seen in training, "
            f"{relevance.queries_without_relevant} without a relevant document; not in the files: "
            f"{relevance.unknown_queries} queries, {relevance.unknown_documents} documents"
        )
        if relevance.unseen_documents is not None:
            yield (
                "Documents that trained the map flatter it. For an index much larger than the pairs, the scores over "
                "the other documents hold, and they give the verdicts; for an index of these documents, those over all."
            )


def reason_lines(uses: Uses) -> Iterable[Block]:
    """Yield the numbers that decided each verdict, as a sentence."""
    verdicts = {name: use.verdict for name, use in uses.items() if "verdict" in use}
    if verdicts:
        yield ""
    for use, verdict in verdicts.items():
        yield f"{use} use, {verdict}: {verdict.why}"


def candidate_table(candidates: Sequence[CandidateScore]) -> Iterable[Block]:
    """Yield the best validation score of each method; the chosen one is marked."""
    if len(candidates) < 2:
        return
    best: dict[str, CandidateScore] = {}
    for candidate in candidates:
        rival = best.get(candidate.method)
        if candidate.chosen or rival is None or (not rival.chosen and _validation(candidate) > _validation(rival)):
            best[candidate.method] = candidate
    rows: list[tuple[str, ...]] = [("best validation score of each method", "score", "")]
    for method, candidate in best.items():
        score = "failed" if candidate.validation is None else num(candidate.validation)
        rows.append((method, score, "chosen" if candidate.chosen else ""))
    yield ""
    yield rows


def _validation(candidate: CandidateScore) -> float:
    return -math.inf if candidate.validation is None else candidate.validation
