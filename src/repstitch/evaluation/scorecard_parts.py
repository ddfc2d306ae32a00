# pyright: strict
"""The parts of a scorecard beside the scores of its uses, each a typed view of one JSON object."""

from typing import Any, ClassVar

from repstitch.errors import InputError
from repstitch.evaluation.use_scores import RecallScores
from repstitch.names import USES
from repstitch.records import NUMBER, Estimate, Record, is_number

ALIGNMENTS = ("mutual_knn", "cka_unbiased")


class Reconstruction(Record):
    """How near translated rows come to the target rows."""

    REQUIRED: ClassVar = dict.fromkeys(("cosine", "cosine_floor", "r2", "norm_ratio"), NUMBER)

    @property
    def cosine(self) -> float:
        """The mean cosine of a translated row and its counterpart."""
        return float(self._values["cosine"])

    @property
    def cosine_floor(self) -> float:
        """The mean cosine that a constant, the training targets' mean, would score."""
        return float(self._values["cosine_floor"])

    @property
    def r2(self) -> float:
        """The share of the target's variance that the map explains, before output normalisation."""
        return float(self._values["r2"])

    @property
    def norm_ratio(self) -> float:
        """The spread of the map's output over that of the target rows."""
        return float(self._values["norm_ratio"])


class TestedScore(Record):
    """A score beside its permutation null; `refused` says why there is no score."""

    __test__ = False  # no test class, whatever its name begins with

    @property
    def refused(self) -> str | None:
        return self._values.get("refused")

    @property
    def score(self) -> float:
        return float(self._values["score"])

    @property
    def null(self) -> float:
        """The mean score of permuted rows."""
        return float(self._values["null"])

    @property
    def p(self) -> float:
        return float(self._values["p"])

    @property
    def calibrated(self) -> float:
        """0 at the null's 95 % point, 1 at a perfect score."""
        return float(self._values["calibrated"])

    def check(self) -> None:
        if self.refused is None:
            for name in ("score", "null", "p"):
                if not is_number(self._values.get(name)):
                    raise InputError(f"A {type(self).__name__} must hold `{name}`, a number, or `refused`.")


class AlignmentChange(Record):
    """An alignment metric between the two spaces, before and after translation."""

    REQUIRED: ClassVar = {"before": TestedScore, "after": TestedScore}

    @property
    def before(self) -> TestedScore:
        return self._part(TestedScore, "before")

    @property
    def after(self) -> TestedScore:
        return self._part(TestedScore, "after")


class Alignment(Record):
    """Each alignment metric before and after translation."""

    REQUIRED: ClassVar = dict.fromkeys(ALIGNMENTS, AlignmentChange)

    @property
    def mutual_knn(self) -> AlignmentChange:
        return self._part(AlignmentChange, "mutual_knn")

    @property
    def cka_unbiased(self) -> AlignmentChange:
        return self._part(AlignmentChange, "cka_unbiased")

    def metric(self, name: str) -> AlignmentChange:
        """The metric of that name, one of `ALIGNMENTS`."""
        return self._part(AlignmentChange, name)


class ControlFit(RecallScores):
    """Recall in query use of a closed form that was fitted to shuffled training pairs."""

    REQUIRED: ClassVar = {"method": str, "recall@1": NUMBER, "recall@10": NUMBER}

    @property
    def method(self) -> str:
        return self._values["method"]


class WithoutNearDuplicates(Record):
    """The main scores without the queries that nearly repeat a training row; `left_out` counts those."""

    REQUIRED: ClassVar = {"left_out": int}
    OPTIONAL: ClassVar = dict.fromkeys(USES, dict)

    @property
    def left_out(self) -> int:
        return self._values["left_out"]

    @property
    def uses(self) -> dict[str, dict[str, float]]:
        """The scores by use and name; empty where no query is left."""
        return {use: dict(self._values[use]) for use in USES if use in self}

    def check(self) -> None:
        super().check()
        for use, scores in self.uses.items():
            if not all(map(is_number, scores.values())):
                raise InputError(f"`{use}` of a {type(self).__name__} must hold numbers.")


class CandidateScore(Record):
    """A method with its settings that was tried on validation rows; `validation` is None where the fit broke."""

    REQUIRED: ClassVar = {"method": str, "chosen": bool}
    OPTIONAL: ClassVar = {"validation": NUMBER, "settings": dict}

    @property
    def method(self) -> str:
        return self._values["method"]

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self._values.get("settings") or {})

    @property
    def validation(self) -> float | None:
        return self._values.get("validation")

    @property
    def chosen(self) -> bool:
        return self._values["chosen"]


class CalibrationBin(Record):
    """A tenth of the held-out rows, by p_match: the mean predicted and the observed share of hits among `n` rows."""

    REQUIRED: ClassVar = {"predicted": NUMBER, "observed": NUMBER, "n": int}

    @property
    def predicted(self) -> float:
        return float(self._values["predicted"])

    @property
    def observed(self) -> float:
        return float(self._values["observed"])

    @property
    def n(self) -> int:
        return self._values["n"]


class CalibrationScores(Record):
    """How true a stitcher's confidence was on held-out rows."""

    REQUIRED: ClassVar = {
        **dict.fromkeys(("n", "pool", "calibration_rows"), int),
        **dict.fromkeys(("ece", "covered", "level", "hits", "unusual@0.05"), NUMBER),
        **dict.fromkeys(("bins", "risk_coverage"), list),
        "calibrated": bool,
    }
    OPTIONAL: ClassVar = {"auroc": NUMBER}

    @property
    def n(self) -> int:
        return self._values["n"]

    @property
    def pool(self) -> int:
        """The number of target rows that each counterpart was looked for in."""
        return self._values["pool"]

    @property
    def calibrated(self) -> bool:
        """Whether the pool was as large as the one that p_match was calibrated for."""
        return self._values["calibrated"]

    @property
    def ece(self) -> float:
        """The expected calibration error of p_match over ten bins of equally many rows."""
        return float(self._values["ece"])

    @property
    def auroc(self) -> float | None:
        """How well p_match ranks hits before misses; None where all rows are one or the other."""
        return self._values.get("auroc")

    @property
    def covered(self) -> float:
        """The share of cosines above their bound, which should be `level`."""
        return float(self._values["covered"])

    @property
    def level(self) -> float:
        return float(self._values["level"])

    @property
    def hits(self) -> float:
        """The share of rows whose counterpart is among the first ten."""
        return float(self._values["hits"])

    @property
    def unusual(self) -> float:
        """The share of p_typical up to 0.05, which should be 0.05."""
        return float(self._values["unusual@0.05"])

    @property
    def calibration_rows(self) -> int:
        return self._values["calibration_rows"]

    @property
    def bins(self) -> list[CalibrationBin]:
        return self._parts(CalibrationBin, "bins")

    @property
    def risk_coverage(self) -> list[tuple[float, float]]:
        """Coverage and risk: of the most confident share of rows, the share that misses its counterpart."""
        return [(float(point["coverage"]), float(point["risk"])) for point in self._values["risk_coverage"]]

    def check(self) -> None:
        super().check()
        self._check_parts(CalibrationBin, "bins")


class Spectrum(Record):
    """How strongly the directions that two spaces share correlate on held-out pairs."""

    REQUIRED: ClassVar = {"above": int, "directions": int, "null": NUMBER, "direction": list, "correlation": list}

    @property
    def above(self) -> int:
        """The number of directions that correlate more than any direction of shuffled pairs."""
        return self._values["above"]

    @property
    def directions(self) -> int:
        return self._values["directions"]

    @property
    def null(self) -> float:
        """The 95 % point of the largest correlation of shuffled pairs."""
        return float(self._values["null"])

    @property
    def direction(self) -> list[int]:
        """The places, from 1, of the directions whose correlation is listed."""
        return list(self._values["direction"])

    @property
    def correlation(self) -> list[float]:
        return list(self._values["correlation"])


class ProbeAccuracy(Record):
    """The accuracy of a carried probe on unseen rows beside that of other probes."""

    REQUIRED: ClassVar = dict.fromkeys(("carried", "native", "shuffled", "majority"), Estimate)

    @property
    def carried(self) -> Estimate:
        return self._estimate("carried")

    @property
    def native(self) -> Estimate:
        """Of a probe trained on the rows that the carried one is tested on."""
        return self._estimate("native")

    @property
    def shuffled(self) -> Estimate:
        """Of the probe carried through a map of shuffled pairs."""
        return self._estimate("shuffled")

    @property
    def majority(self) -> Estimate:
        """Of always the most frequent class."""
        return self._estimate("majority")


class ProbeTransfer(Record):
    """How a probe of the target space does on the source's rows, carried back through the map."""

    REQUIRED: ClassVar = {"source": str, "target": str, "classes": list, "n_test": int, "accuracy": ProbeAccuracy}
    OPTIONAL: ClassVar = {"retention": Estimate}

    @property
    def source(self) -> str:
        """The space that the probe was trained in: the stitcher's target."""
        return self._values["source"]

    @property
    def target(self) -> str:
        """The space that the probe was carried to: the stitcher's source."""
        return self._values["target"]

    @property
    def classes(self) -> list[str]:
        return list(self._values["classes"])

    @property
    def n_test(self) -> int:
        return self._values["n_test"]

    @property
    def accuracy(self) -> ProbeAccuracy:
        return self._part(ProbeAccuracy, "accuracy")

    @property
    def retention(self) -> Estimate | None:
        """The carried probe's accuracy over that of one trained on the source's rows; None where that is 0."""
        return self._optional_estimate("retention")


class DoubledPairs(Record):
    """What twice as many training pairs should reach."""

    REQUIRED: ClassVar = {"pairs": int, "expected": NUMBER, "interval": list}

    @property
    def pairs(self) -> int:
        return self._values["pairs"]

    @property
    def expected(self) -> Estimate:
        """The score to expect, with its 90 % interval."""
        low, high = self._values["interval"]
        return Estimate(float(self._values["expected"]), (float(low), float(high)))


class LearningCurve(Record):
    """Scores against the number of training pairs, and what twice as many should reach."""

    REQUIRED: ClassVar = {
        "objective": str,
        "validation_rows": int,
        "sizes": list,
        "scores": dict,
        "curve": dict,
        "doubled": DoubledPairs,
        "verdict": str,
    }

    @property
    def objective(self) -> str:
        return self._values["objective"]

    @property
    def validation_rows(self) -> int:
        return self._values["validation_rows"]

    @property
    def sizes(self) -> list[int]:
        """The numbers of training pairs that were tried, ascending."""
        return list(self._values["sizes"])

    @property
    def scores(self) -> dict[str, list[list[float]]]:
        """For each objective and recall@1 the scores of every draw, a list a size."""
        return dict(self._values["scores"])

    @property
    def curve(self) -> dict[str, float]:
        """a, b and c of the fitted curve a − b·n^−c."""
        return dict(self._values["curve"])

    @property
    def doubled(self) -> DoubledPairs:
        return self._part(DoubledPairs, "doubled")

    @property
    def verdict(self) -> str:
        """Whether more pairs would pay, in one sentence."""
        return self._values["verdict"]
