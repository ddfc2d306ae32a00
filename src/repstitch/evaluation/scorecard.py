# pyright: strict
"""The scorecard: how good a translation is, as a record with typed names."""

from collections.abc import Mapping
from typing import Any, ClassVar

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
from repstitch.records import NUMBER, Record
from repstitch.text import num


class Scorecard(Record):
    """Scores of a translation on held-out pairs, for each use beside chance, controls and references.

    `print(card)` shows them as a table. A stitcher that was never scored has an empty scorecard, which is false.
    """

    REQUIRED: ClassVar = {
        **dict.fromkeys(("n", "pool", "k"), int),
        "chance": RecallScores,
        "reconstruction": Reconstruction,
        "alignment": Alignment,
    }
    OPTIONAL: ClassVar = {
        **dict.fromkeys(USES, UseScores),
        "hubness_native": NUMBER,
        "without_near_duplicates": WithoutNearDuplicates,
        "held_out": str,
        "spectrum": Spectrum,
        "confidence": CalibrationScores,
        "control_fit": ControlFit,
        "candidates": list,
        "notes": list,
        "near_duplicates": int,
        "learning_curve": LearningCurve,
        "refit": bool,
        "probe_transfer": ProbeTransfer,
        "left_out": int,
        "dropped": dict,
        "relevance": Relevance,
    }

    def __init__(self, values: Mapping[str, Any] | None = None):
        super().__init__(values or {})

    def check(self) -> None:
        if self:
            super().check()
            self._check_parts(CandidateScore, "candidates")

    def __bool__(self) -> bool:
        return bool(self._values)

    @property
    def n(self) -> int:
        """The number of held-out pairs."""
        return self._values["n"]

    @property
    def pool(self) -> int:
        """The number of rows that a counterpart was looked for in."""
        return self._values["pool"]

    @property
    def k(self) -> int:
        """The number of neighbours that overlap compares."""
        return self._values["k"]

    @property
    def held_out(self) -> str:
        """Which pairs were scored."""
        return self._values.get("held_out", "held-out pairs")

    @property
    def chance(self) -> RecallScores:
        """The recall of a random search."""
        return self._part(RecallScores, "chance")

    @property
    def uses(self) -> dict[str, UseScores]:
        """The scores of each use that was scored."""
        return {use: self._part(UseScores, use) for use in USES if use in self}

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
        recall = self.uses["query"].recall if "query" in self.uses else {}
        return recall[1].score if 1 in recall else None

    @property
    def hubness_native(self) -> float | None:
        """The skewness of how often each target row is a neighbour of the others, before any translation."""
        return self._values.get("hubness_native")

    @property
    def reconstruction(self) -> Reconstruction:
        return self._part(Reconstruction, "reconstruction")

    @property
    def alignment(self) -> Alignment:
        return self._part(Alignment, "alignment")

    @property
    def confidence(self) -> CalibrationScores | None:
        """How true the stitcher's confidence was; None where it was not calibrated or there were no test pairs."""
        return self._optional_part(CalibrationScores, "confidence")

    @property
    def spectrum(self) -> Spectrum | None:
        return self._optional_part(Spectrum, "spectrum")

    @property
    def control_fit(self) -> ControlFit | None:
        return self._optional_part(ControlFit, "control_fit")

    @property
    def without_near_duplicates(self) -> WithoutNearDuplicates | None:
        return self._optional_part(WithoutNearDuplicates, "without_near_duplicates")

    @property
    def near_duplicates(self) -> int | None:
        """The number of held-out pairs that nearly repeat a training row."""
        return self._values.get("near_duplicates")

    @property
    def candidates(self) -> list[CandidateScore]:
        """Every method and setting that was tried."""
        return self._parts(CandidateScore, "candidates")

    @property
    def notes(self) -> list[str]:
        """What the checks of the pairs warned of."""
        return list(self._values.get("notes") or ())

    @property
    def refit(self) -> bool:
        """Whether the map was fitted once more on all pairs after these scores were taken."""
        return self._values.get("refit", False)

    @property
    def left_out(self) -> int | None:
        """The number of pairs that were not scored because training used them."""
        return self._values.get("left_out")

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows could not be used, by reason."""
        return dict(self._values.get("dropped") or {})

    @property
    def relevance(self) -> Relevance | None:
        return self._optional_part(Relevance, "relevance")

    @property
    def probe_transfer(self) -> ProbeTransfer | None:
        return self._optional_part(ProbeTransfer, "probe_transfer")

    @property
    def learning_curve(self) -> LearningCurve | None:
        return self._optional_part(LearningCurve, "learning_curve")

    def __str__(self) -> str:
        return report.as_text(self._blocks())

    def __repr__(self) -> str:
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
