# pyright: strict
"""The scorecard: how good a translation is, as a record with typed names."""

from collections.abc import Mapping
from typing import Any

from repstitch.evaluation import report
from repstitch.evaluation.scorecard_parts import (
    Alignment,
    CalibrationScores,
    CandidateScore,
    ControlFit,
    LearningCurve,
    ProbeTransfer,
    Reconstruction,
    Spectrum,
    WithoutNearDuplicates,
)
from repstitch.evaluation.use_scores import RecallScores, Relevance, UseScores, chosen
from repstitch.names import USES
from repstitch.records import (
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
    """Scores of a translation on held-out pairs, for each use beside chance, controls and references.

    `print(card)` shows them as a table. A stitcher that was never scored has an empty scorecard, which is false.
    """

    n = whole()  # the number of held-out pairs
    pool = whole()  # the number of rows that a counterpart was looked for in
    k = whole()  # the number of neighbours that overlap compares
    held_out = otherwise(string(), "held-out pairs")  # which pairs were scored
    chance = part(RecallScores)  # the recall of a random search
    hubness_native = optional(number())
    """The skewness of how often each target row is a neighbour of the others, before any translation."""
    reconstruction = part(Reconstruction)
    alignment = part(Alignment)
    confidence = optional(part(CalibrationScores))
    """How true the stitcher's confidence was; None where it was not calibrated or there were no test pairs."""
    spectrum = optional(part(Spectrum))
    control_fit = optional(part(ControlFit))
    without_near_duplicates = optional(part(WithoutNearDuplicates))
    near_duplicates = optional(whole())  # the number of held-out pairs that nearly repeat a training row
    candidates = otherwise(parts(CandidateScore), [])  # every method and setting that was tried
    notes = otherwise(sequence(str), [])  # what the checks of the pairs warned of
    refit = otherwise(flag(), False)  # whether the map was fitted on all pairs after these scores were taken
    left_out = optional(whole())  # the number of pairs that were not scored because training used them
    dropped = otherwise(mapping(int), {})  # how many rows could not be used, by reason
    relevance = optional(part(Relevance))
    probe_transfer = optional(part(ProbeTransfer))
    learning_curve = optional(part(LearningCurve))

    _query = optional(part(UseScores, "query"))
    _corpus = optional(part(UseScores, "corpus"))

    def __init__(self, values: Mapping[str, Any] | None = None):
        super().__init__(values or {})

    def check(self) -> None:
        if self:
            super().check()

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def uses(self) -> dict[str, UseScores]:
        """The scores of each use that was scored."""
        return {use: UseScores(self[use]) for use in USES if use in self}

    @property
    def query(self) -> UseScores:
        """Translated queries in an index of native rows. Raises InputError where that was not scored."""
        return chosen(self.uses, "query", "use", "a use that was scored")

    @property
    def corpus(self) -> UseScores:
        """Native queries in an index of translated rows. Raises InputError where that was not scored."""
        return chosen(self.uses, "corpus", "use", "a use that was scored")

    @property
    def query_recall(self) -> float | None:
        """recall@1 in query use; None where that was not scored."""
        query: Mapping[str, Any] = self._values.get("query") or {}
        recall = query.get("recall@1")  # without a record: routing asks for it often
        return None if recall is None else float(recall)

    def __str__(self) -> str:
        return report.as_text(self._blocks())

    def _summary(self) -> str:
        uses = [f"{name}: {_headline(use)}" for name, use in self.uses.items()]
        return f"Scorecard({', '.join([f'n={self.n}', *uses])})" if self else "Scorecard()"

    def _repr_markdown_(self) -> str:
        return report.as_markdown(self._blocks())

    def _blocks(self) -> list[report.Block]:
        """Lines and tables in the order that they are shown in; what an earlier release did not score is left out."""
        if not self:
            return ["no scorecard"]
        uses = self.uses
        title = f"{self.n} {self.held_out}, pool of {self.pool}"
        return [
            report.retrieval_table(title, uses, self.chance, self.pool, self.k, self.hubness_native),
            *report.control_line(self.control_fit),
            *report.near_duplicates_line(self.without_near_duplicates, uses),
            report.reconstruction_line(self.reconstruction),
            *report.confidence_line(self.confidence),
            *report.probe_transfer_line(self.probe_transfer),
            *report.alignment_blocks(self.alignment),
            *report.spectrum_line(self.spectrum),
            *report.reference_tables(uses, self.relevance),
            *report.relevance_line(self.relevance),
            *report.verdict_lines(uses),
            *report.candidate_table(self.candidates),
        ]


def _headline(use: UseScores) -> str:
    recall = f"recall@1={num(use.recall_at(1).score)}"
    return f"{recall} verdict={use.verdict.verdict!r}" if "verdict" in use else recall
