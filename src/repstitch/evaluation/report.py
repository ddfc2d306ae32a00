# pyright: strict
"""A scorecard's parts as sentences and tables, for plain text and for Markdown."""

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
from repstitch.evaluation.use_scores import RECALLS, Comparison, RecallScores, Relevance, UseScores
from repstitch.text import columns, markdown_table, num

Block = str | list[tuple[str, ...]]  # a line, or a table whose first row is its head
Uses = Mapping[str, UseScores]
REFERENCES = {
    "translated": "translated",
    "keep_old": "keep the old model",
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
    """What each use finds among `pool` rows, beside chance and the controls."""
    scores = uses.values()
    native = "" if hubness is None else f" (native: {hubness:.1f})"
    rows = [
        (title, *uses, "chance"),
        *((f"recall@{r}", *(str(use.recall_at(r)) for use in scores), num(chance.recall_at(r).score)) for r in RECALLS),
        ("mean reciprocal rank", *(str(use.mrr) for use in scores), ""),
        ("median rank", *(f"{use.median_rank:.0f}" for use in scores), f"{pool / 2:.0f}"),
        (f"neighbour overlap@{k}", *(str(use.overlap) for use in scores), num(k / max(1, pool - 1))),
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
        yield f"a map fitted to shuffled pairs: recall@10 {control.recall_at(10)} (query)"


def near_duplicates_line(without: WithoutNearDuplicates | None, uses: Uses) -> Iterable[Block]:
    """The main scores without queries that nearly repeat a training row."""
    if without is not None:
        scores = [
            f"{use} {', '.join(f'{name} {num(value)}' for name, value in without.uses[use].items())}"
            for use in uses
            if use in without.uses
        ]
        start = f"without the {without.left_out} near duplicates of training rows: "
        yield start + ("; ".join(scores) or "no query is left")


def reconstruction_line(scores: Reconstruction) -> Block:
    return (
        f"cosine {num(scores.cosine)} (a constant would score {num(scores.cosine_floor)}), R² {num(scores.r2)}, "
        f"norm ratio {scores.norm_ratio:.2f}"
    )


def confidence_line(scores: CalibrationScores | None) -> Iterable[Block]:
    """How true the stitcher's confidence was on held-out rows."""
    if scores is not None:
        auroc = "" if scores.auroc is None else f", AUROC {num(scores.auroc)}"
        calibrated = "" if scores.calibrated else ", not calibrated"
        yield (
            f"confidence (n = {scores.n}): p_match in a pool of {scores.pool}{calibrated}: calibration error "
            f"{num(scores.ece)}{auroc}; {scores.covered:.1%} of cosines above the bound ({scores.level:.0%} meant)"
        )


def probe_transfer_line(scores: ProbeTransfer | None) -> Iterable[Block]:
    """How a probe of the target space does on the source's rows, carried back through the map."""
    if scores is not None:
        accuracy = scores.accuracy
        share = "" if scores.retention is None else f", a share of {scores.retention}"
        yield (
            f"a probe of {len(scores.classes)} classes of {scores.source}, carried to {scores.target} "
            f"({scores.n_test} unseen rows): accuracy {num(accuracy.carried.score)} where one trained there has "
            f"{num(accuracy.native.score)}{share}; through shuffled pairs {num(accuracy.shuffled.score)}, "
            f"majority class {num(accuracy.majority.score)}"
        )


def alignment_blocks(alignment: Alignment) -> Iterable[Block]:
    """Each alignment metric before and after translation, and why one was not scored."""
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
    """How many directions the two spaces share, in one sentence."""
    if spectrum is not None:
        yield (
            f"{spectrum.above} of {spectrum.directions} canonical directions correlate on held-out pairs more than "
            f"any do when the pairs are shuffled ({num(spectrum.null)})"
        )


def reference_tables(uses: Uses, relevance: Relevance | None) -> Iterable[Block]:
    """Each use beside its references: by overlap of neighbours, and by relevance judgements where there are some."""
    overlaps = {name: use.references for name, use in uses.items() if use.references is not None}
    if overlaps:
        yield ""
        heads = {f"{name}: the {references.truth}'s own": references for name, references in overlaps.items()}
        yield _reference_table("keeps the neighbours of", heads)
    if relevance is not None and relevance.uses:
        yield ""
        heads = {f"{name}: {scores.queries} queries": scores for name, scores in relevance.uses.items()}
        yield _reference_table("finds what is relevant", heads)


def _reference_table(title: str, comparisons: Mapping[str, Comparison]) -> Block:
    """A row a measure and reference, a column a comparison under its head."""
    rows: list[tuple[str, ...]] = [(title, *comparisons)]
    columns_of_scores = [comparison.measures for comparison in comparisons.values()]
    for measure in [name for name in columns_of_scores[0] if all(name in scores for scores in columns_of_scores)]:
        for reference, words in REFERENCES.items():
            scores = [measures[measure].get(reference) for measures in columns_of_scores]
            if all(score is not None for score in scores):
                label = f"{measure}, translated" if reference == "translated" else f"  {words}"
                rows.append((label, *map(str, scores)))
    return rows


def relevance_line(relevance: Relevance | None) -> Iterable[Block]:
    if relevance is not None:
        yield (
            f"judged among {relevance.documents} documents ({relevance.documents_seen_in_training} seen in training); "
            f"left out: {relevance.queries_seen_in_training} queries seen in training, "
            f"{relevance.queries_without_relevant} without a relevant document; "
            f"not in the files: {relevance.unknown_queries} queries, {relevance.unknown_documents} documents"
        )


def verdict_lines(uses: Uses) -> Iterable[Block]:
    verdicts = {name: use.verdict for name, use in uses.items() if "verdict" in use}
    if verdicts:
        yield ""
    for use, verdict in verdicts.items():
        yield f"{use}: {verdict.verdict.upper()}. {verdict.why}"


def candidate_table(candidates: Sequence[CandidateScore]) -> Iterable[Block]:
    """The best of each method by its validation score, the chosen one marked."""
    if len(candidates) < 2:
        return
    best: dict[str, CandidateScore] = {}
    for candidate in candidates:
        rival = best.get(candidate.method)
        if candidate.chosen or rival is None or (not rival.chosen and _validation(candidate) > _validation(rival)):
            best[candidate.method] = candidate
    rows: list[tuple[str, ...]] = [("method, at its best on validation", "score", "")]
    for method, candidate in best.items():
        score = "broke" if candidate.validation is None else num(candidate.validation)
        rows.append((method, score, "chosen" if candidate.chosen else ""))
    yield ""
    yield rows


def _validation(candidate: CandidateScore) -> float:
    return -math.inf if candidate.validation is None else candidate.validation
