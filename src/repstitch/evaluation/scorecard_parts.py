# pyright: strict
"""The parts of a scorecard beside the scores of its uses, each a typed view of one JSON object."""

from repstitch.errors import InputError
from repstitch.evaluation.use_scores import ControlScores
from repstitch.records import (
    JSON,
    Estimate,
    Record,
    estimate,
    flag,
    is_interval,
    is_number,
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

ALIGNMENTS = ("mutual_knn", "cka_unbiased")


class Reconstruction(Record):
    """How near translated rows come to the target rows."""

    cosine = number()  # the mean cosine of a translated row and its counterpart
    cosine_floor = number()  # the mean cosine that a constant, the training targets' mean, would score
    r2 = number()  # the share of the target's variance that the map explains, before output normalisation
    norm_ratio = number()  # the spread of the map's output over that of the target rows


class TestedScore(Record):
    """A score beside its permutation null; `refused` says why there is no score."""

    refused = optional(string())
    score = number()
    null = number()  # the mean score of permuted rows
    p = number()
    calibrated = optional(number())  # 0 at the null's 95 % point, 1 at a perfect score

    __test__ = False  # no test class, whatever its name begins with

    def check(self) -> None:
        if self.refused is None:
            super().check()


class AlignmentChange(Record):
    """An alignment metric between the two spaces, before and after translation."""

    before = part(TestedScore)
    after = part(TestedScore)


class Alignment(Record):
    """Each alignment metric before and after translation."""

    mutual_knn = part(AlignmentChange)
    cka_unbiased = part(AlignmentChange)

    def metric(self, name: str) -> AlignmentChange:
        """The metric of that name, one of `ALIGNMENTS`."""
        return AlignmentChange(self[name])


class ControlFit(ControlScores):
    """Recall in query use of a closed form that was fitted to shuffled training pairs."""

    method = optional(string())


class WithoutNearDuplicates(Record):
    """The main scores without the queries that nearly repeat a training row; `left_out` counts those."""

    left_out = whole()
    _query = optional(mapping(float, "query"))
    _corpus = optional(mapping(float, "corpus"))

    @property
    def uses(self) -> dict[str, dict[str, float]]:
        """The scores by use and name; empty where no query is left."""
        scored = {"query": self._query, "corpus": self._corpus}
        return {
            use: {name: score for name, score in scores.items() if is_number(score)}
            for use, scores in scored.items()
            if scores is not None
        }


class CandidateScore(Record):
    """A method with its settings that was tried on validation rows; `validation` is None where the fit broke."""

    method = string()
    settings = otherwise(mapping(JSON), {})
    validation = optional(number())
    chosen = flag()


class CalibrationBin(Record):
    """A tenth of the held-out rows, by p_match: the mean predicted and the observed share of hits among `n` rows."""

    predicted = number()
    observed = number()
    n = whole()


class RiskPoint(Record):
    """Of the most confident share of rows, `coverage`, the share that misses its counterpart."""

    coverage = number()
    risk = number()


class CalibrationScores(Record):
    """How true a stitcher's confidence was on held-out rows."""

    n = whole()
    pool = whole()  # the number of target rows that each counterpart was looked for in
    calibrated = flag()  # whether the pool was as large as the one that p_match was calibrated for
    ece = number()  # the expected calibration error of p_match over ten bins of equally many rows
    auroc = optional(number())  # how well p_match ranks hits before misses; None where all rows are one or the other
    covered = number()  # the share of cosines above their bound, which should be `level`
    level = number()
    hits = optional(number())  # the share of rows whose counterpart is among the first ten
    unusual = optional(number("unusual@0.05"))  # the share of p_typical up to 0.05, which should be 0.05
    calibration_rows = optional(whole())
    bins = otherwise(parts(CalibrationBin), [])
    _risk_coverage = otherwise(parts(RiskPoint, "risk_coverage"), [])

    @property
    def risk_coverage(self) -> list[tuple[float, float]]:
        """Coverage and risk: of the most confident share of rows, the share that misses its counterpart."""
        return [(point.coverage, point.risk) for point in self._risk_coverage]


class Spectrum(Record):
    """How strongly the directions that two spaces share correlate on held-out pairs."""

    above = whole()  # the number of directions that correlate more than any direction of shuffled pairs
    directions = whole()
    null = number()  # the 95 % point of the largest correlation of shuffled pairs
    direction = otherwise(sequence(int), [])  # the places, from 1, of the directions whose correlation is listed
    correlation = otherwise(sequence(float), [])


class ProbeAccuracy(Record):
    """The accuracy of a carried probe on unseen rows beside that of other probes."""

    carried = estimate()
    native = estimate()  # of a probe trained on the rows that the carried one is tested on
    shuffled = estimate()  # of the probe carried through a map of shuffled pairs
    majority = estimate()  # of always the most frequent class


class ProbeTransfer(Record):
    """How a probe of the target space does on the source's rows, carried back through the map."""

    source = string()  # the space that the probe was trained in: the stitcher's target
    target = string()  # the space that the probe was carried to: the stitcher's source
    classes = sequence(str)
    n_test = whole()
    accuracy = part(ProbeAccuracy)
    retention = optional(estimate())
    """The carried probe's accuracy over that of one trained on the source's rows; None where that is 0."""


class DoubledPairs(Record):
    """What twice as many training pairs should reach."""

    pairs = whole()
    _expected = number("expected")
    _interval = sequence(float, "interval")

    @property
    def expected(self) -> Estimate:
        """The score to expect, with its 90 % interval."""
        low, high = self._interval
        return Estimate(self._expected, (float(low), float(high)))

    def check(self) -> None:
        super().check()
        if not is_interval(self._interval):
            raise InputError(f"'interval' of a {type(self).__name__} must hold two numbers.")


class LearningCurve(Record):
    """Scores against the number of training pairs, and what twice as many should reach."""

    objective = optional(string())
    validation_rows = optional(whole())
    sizes = otherwise(sequence(int), [])  # the numbers of training pairs that were tried, ascending
    scores = otherwise(mapping(list[list[float]]), {})
    """For each objective and recall@1 the scores of every draw, a list a size."""
    curve = otherwise(mapping(float), {})  # a, b and c of the fitted curve a − b·n^−c
    doubled = optional(part(DoubledPairs))
    verdict = optional(string())  # whether more pairs would pay, in one sentence
