# pyright: strict
"""The scorecard: all scores of a translation, as a typed record."""

from collections.abc import Mapping
from typing import Any

from repstitch.evaluation import report, summary
from repstitch.evaluation.scorecard_parts import (
    Alignment,
    CalibrationScores,
    CandidateScore,
    ControlFit,
    CorpusSample,
    LearningCurve,
    ProbeTransfer,
    Reconstruction,
    ScoreScale,
    Spectrum,
    WithoutNearDuplicates,
)
from repstitch.evaluation.use_scores import RecallScores, Relevance, UseScores, Verdict, chosen
from repstitch.names import USES
from repstitch.records import (
    JSON,
    Record,
    flag,
    mapping,
    number,
    optional,
    otherwise,
    part,
    parts,
    sequence,
    string,
    whole,
)
from repstitch.text import num


class Scorecard(Record):
    """Scores of a translation on held-out pairs: each use with chance level, controls, references and a verdict.

    `print(scorecard)` shows the verdicts and the five numbers behind them, `print(scorecard.table())` every score. A
    stitcher that was never scored has an empty scorecard, whose truth value is False.
    """

    n = whole()  # number of held-out pairs
    pool = whole()  # number of rows in which each counterpart is searched for
    k = whole()  # number of neighbours per row that the overlap scores compare
    held_out = otherwise(string(), "held-out pairs")  # description of the pairs that were scored
    source = optional(string())  # name of the source space; None in scorecards of earlier releases
    target = optional(string())  # name of the target space; likewise
    objective = optional(string())  # objective that the map was selected for; None in scorecards of earlier releases
    chance = part(RecallScores)  # recall of a random search
    hubness_native = optional(number())
    """Skewness of the number of times that each target row is a neighbour of another, before any translation."""
    reconstruction = part(Reconstruction)
    alignment = part(Alignment)
    confidence = optional(part(CalibrationScores))
    """Test of the confidence; None if it was not calibrated, or if there were no test pairs."""
    spectrum = optional(part(Spectrum))
    control_fit = optional(part(ControlFit))
    without_near_duplicates = optional(part(WithoutNearDuplicates))
    near_duplicates = optional(whole())  # number of held-out pairs that nearly repeat a training row
    candidates = otherwise(parts(CandidateScore), [])  # every method and setting that was tried
    notes = otherwise(sequence(str), [])  # warnings from the checks of the pairs
    refit = otherwise(flag(), False)  # whether the map was fitted again on all pairs after scoring
    left_out = optional(whole())  # number of pairs that were not scored because training used them
    dropped = otherwise(mapping(int), {})  # number of rows that could not be used, by reason
    relevance = optional(part(Relevance))
    corpus_sample = optional(part(CorpusSample))
    """Comparison of the corpus with the pairs; None if no corpus was passed."""
    probe_transfer = optional(part(ProbeTransfer))
    _score_scales = otherwise(mapping(JSON, "score_scale"), {})
    learning_curve = optional(part(LearningCurve))

    _query = optional(part(UseScores, "query"))
    _corpus = optional(part(UseScores, "corpus"))

    def __init__(self, values: Mapping[str, Any] | None = None):
        super().__init__(values or {})

    def check(self) -> None:
        if self:
            super().check()
            for scale in self.score_scales.values():
                scale.check()

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def uses(self) -> dict[str, UseScores]:
        """The scores of each use, for the uses that were scored."""
        return {use: UseScores(self[use]) for use in USES if use in self}

    @property
    def score_scales(self) -> dict[str, ScoreScale]:
        """For each use, the new similarities that stand for old thresholds; empty if there were too few pairs."""
        return {use: ScoreScale(self._score_scales[use]) for use in USES if use in self._score_scales}

    @property
    def query(self) -> UseScores:
        """Scores of translated queries that search native rows. Raises InputError if this use was not scored."""
        return chosen(self.uses, "query", "use", "a use that was scored")

    @property
    def corpus(self) -> UseScores:
        """Scores of native queries that search translated rows. Raises InputError if this use was not scored."""
        return chosen(self.uses, "corpus", "use", "a use that was scored")

    @property
    def query_recall(self) -> float | None:
        """recall@1 in query use; None if this use was not scored."""
        query: Mapping[str, Any] = self._values.get("query") or {}
        recall = query.get("recall@1")  # reads the JSON directly, because routing needs it often
        return None if recall is None else float(recall)

    def shown(self) -> dict[str, Any]:
        """Return the JSON object for display: a verdict of an earlier release is never `use`, see `Verdict`."""
        values = self.to_dict()
        for part_of_card in (values, values.get("relevance") or {}):
            for use in USES:
                scores: dict[str, Any] = part_of_card.get(use) or {}
                if "verdict" in scores:
                    verdict = Verdict(scores["verdict"])
                    scores["verdict"] = scores["verdict"] | {"verdict": verdict.verdict, "why": verdict.why}
        return values

    def __str__(self) -> str:
        return report.as_text(self._summary_blocks())

    def table(self) -> str:
        """Return every score as text: the verdicts first, then tables."""
        return report.as_text(self._blocks())

    def _summary(self) -> str:
        uses = [f"{name}: {_headline(use)}" for name, use in self.uses.items()]
        return f"Scorecard({', '.join([f'n={self.n}', *uses])})" if self else "Scorecard()"

    def _repr_markdown_(self) -> str:
        return report.as_markdown(self._blocks())

    def _blocks(self) -> list[report.Block]:
        """All lines and tables, in order. Scores that an earlier release did not have are left out."""
        if not self:
            return ["no scorecard"]
        uses = self.uses
        title = f"{self.n} {self.held_out}, pool of {self.pool}"
        return [
            *summary.verdict_lines(uses, self.source, self.target),
            *report.reason_lines(uses),
            *(["", *(f"warning: {note}" for note in self.notes)] if self.notes else []),
            "",
            report.retrieval_table(title, uses, self.chance, self.pool, self.k, self.hubness_native),
            *report.control_line(self.control_fit),
            *report.near_duplicates_line(self.without_near_duplicates, uses),
            report.reconstruction_line(self.reconstruction, self.objective),
            *report.confidence_line(self.confidence),
            *report.probe_transfer_line(self.probe_transfer),
            *report.alignment_blocks(self.alignment),
            *report.spectrum_line(self.spectrum),
            *report.reference_tables(uses, self.relevance),
            *report.relevance_line(self.relevance),
            *report.candidate_table(self.candidates),
        ]

    def _summary_blocks(self) -> list[report.Block]:
        """The verdicts with advice, the five numbers behind them, and warnings."""
        if not self:
            return ["no scorecard"]
        title = f"{self.n} {self.held_out}, pool of {self.pool}"
        return [
            *summary.verdict_lines(self.uses, self.source, self.target),
            "",
            summary.key_numbers(title, self.uses, self.relevance, self.chance),
            *summary.warning_lines(self.notes, self.confidence),
        ]


def _headline(use: UseScores) -> str:
    recall = f"recall@1={num(use.recall_at(1).score)}"
    return f"{recall} verdict={use.verdict.verdict!r}" if "verdict" in use else recall
