# pyright: strict
"""The parts of a scorecard other than the scores of its uses: each is a typed view of one JSON object."""

import numpy as np

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
from repstitch.text import num

ALIGNMENTS = ("mutual_knn", "cka_unbiased")


class Reconstruction(Record):
    """How close translated rows are to their target rows."""

    cosine = number()  # mean cosine of a translated row and its counterpart
    cosine_floor = number()  # mean cosine of a constant translation, the mean of the training targets
    r2 = number()  # share of the target's variance that the map explains, before output normalisation
    norm_ratio = number()  # spread of the map's output divided by that of the target rows


class TestedScore(Record):
    """A score with its permutation test; `refused` is the reason if there is no score."""

    refused = optional(string())
    score = number()
    null = number()  # mean score of permuted rows
    p = number()
    calibrated = optional(number())  # 0 at the 95th percentile of the null, 1 at a perfect score

    __test__ = False  # keeps pytest from collecting this class, whose name starts with Test

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
        """Return the metric called `name`, one of `ALIGNMENTS`."""
        return AlignmentChange(self[name])


class CorpusSample(Record):
    """How like the pairs the corpus is, from where the stitcher will be used; see `embeddings.likeness`."""

    rows = whole()
    apart = number()  # share of corpus rows nearer to each other than to any pair; 0.5 if alike
    unlike = flag()


class ControlFit(ControlScores):
    """Recall, in query use, of a closed-form map that was fitted to shuffled training pairs."""

    method = optional(string())


class WithoutNearDuplicates(Record):
    """The main scores without the queries that nearly repeat a training row; `left_out` is their number."""

    left_out = whole()
    _query = optional(mapping(float, "query"))
    _corpus = optional(mapping(float, "corpus"))

    @property
    def uses(self) -> dict[str, dict[str, float]]:
        """The scores by use and name; empty if no query is left."""
        scored = {"query": self._query, "corpus": self._corpus}
        return {
            use: {name: score for name, score in scores.items() if is_number(score)}
            for use, scores in scored.items()
            if scores is not None
        }


class CandidateScore(Record):
    """A method with settings that was tried, and its validation score, which is None if the fit failed."""

    method = string()
    settings = otherwise(mapping(JSON), {})
    validation = optional(number())
    chosen = flag()


class CalibrationBin(Record):
    """One tenth of the held-out rows, sorted by p_match: mean p_match and observed share of hits of `n` rows."""

    predicted = number()
    observed = number()
    n = whole()


class RiskPoint(Record):
    """A point of the risk-coverage curve: among the `coverage` most confident rows, `risk` is the share of misses."""

    coverage = number()
    risk = number()


class CalibrationScores(Record):
    """Scores of the confidence measures on held-out rows."""

    n = whole()
    pool = whole()  # number of target rows among which each counterpart is searched for
    calibrated = flag()  # whether the pool is as large as the one that p_match was calibrated for
    ece = number()  # expected calibration error of p_match over ten bins with equal numbers of rows
    auroc = optional(number())  # how well p_match ranks hits before misses; None without any hit or any miss
    covered = number()  # share of cosines above their bound; should equal `level`
    level = number()
    hits = optional(number())  # share of rows whose counterpart is among the first ten
    unusual = optional(number("unusual@0.05"))  # share of rows with p_typical up to 0.05; should be 0.05
    calibration_rows = optional(whole())
    bins = otherwise(parts(CalibrationBin), [])
    usable = optional(flag())
    """Whether p_match is shown to rank hits before misses; None in scorecards of earlier releases."""
    reason = optional(string())  # why the confidence is not usable
    _auroc_interval = optional(sequence(float, "auroc_interval"))
    _risk_coverage = otherwise(parts(RiskPoint, "risk_coverage"), [])

    @property
    def auroc_estimate(self) -> Estimate | None:
        """`auroc` with its 95 % interval; None without any hit or any miss."""
        if self.auroc is None or self._auroc_interval is None:
            return None if self.auroc is None else Estimate(self.auroc)
        low, high = self._auroc_interval
        return Estimate(self.auroc, (float(low), float(high)))

    @property
    def risk_coverage(self) -> list[tuple[float, float]]:
        """The risk-coverage curve as (coverage, risk): the share of misses among the most confident rows."""
        return [(point.coverage, point.risk) for point in self._risk_coverage]

    def check(self) -> None:
        super().check()
        if self._auroc_interval is not None and not is_interval(self._auroc_interval):
            raise InputError(f"'auroc_interval' of a {type(self).__name__} must be a list of two numbers.")


class Spectrum(Record):
    """Correlations of the canonical directions of two spaces on held-out pairs."""

    above = whole()  # number of directions that correlate more than the strongest direction of shuffled pairs
    directions = whole()
    null = number()  # 95th percentile of the largest correlation of shuffled pairs
    direction = otherwise(sequence(int), [])  # numbers, from 1, of the directions in `correlation`
    correlation = otherwise(sequence(float), [])


class Equivalent(Record):
    """A similarity that lets as many results through as an old threshold, with its 95 % interval."""

    _similarity = number("similarity")
    _interval = sequence(float, "interval")
    same_items = number()  # share of the results above the old threshold that are above this one too

    @property
    def similarity(self) -> Estimate:
        low, high = self._interval
        return Estimate(self._similarity, (float(low), float(high)))


class ScoreScale(Record):
    """Thresholds of the old model and their equivalents in the new space, for one use.

    `old` (p,) are old similarities, ascending. `new` has one entry for each kind of row (`native` or `translated`) with
    lists `similarity`, `low`, `high` and `same_items` (p,). `results` are the results per query that were compared.
    `queried_by` is `rows` if held-out rows were the queries, or `queries` if real ones were. Short questions have other
    similarities than rows, so a scale by rows does not hold for them.
    """

    queried_by = otherwise(string(), "rows")
    old = sequence(float)
    new = mapping(dict[str, list[float]])
    queries = whole()
    results = whole()

    def check(self) -> None:
        super().check()
        sizes = {len(values) for kinds in self.new.values() for values in kinds.values()} | {len(self.old)}
        if (
            len(sizes) != 1
            or not self.new
            or any(later < earlier for earlier, later in zip(self.old, self.old[1:], strict=False))
        ):
            raise InputError("'old' and 'new' of a ScoreScale must be lists of one length, and 'old' must ascend.")

    @property
    def query_kind(self) -> str:
        """The name of the queries in reports: real queries, or held-out rows."""
        return "queries" if self.queried_by == "queries" else "held-out rows"

    def equivalents(self, threshold: float) -> dict[str, Equivalent]:
        """Return the equivalent of an old threshold, by kind of row. Raises InputError outside the fitted range."""
        low, high = self.old[0], self.old[-1]
        if not low <= threshold <= high:
            raise InputError(
                f"`threshold` must be from {num(low)} to {num(high)}, the range of the first {self.results} results of "
                f"{self.queries} {self.query_kind}; got {threshold}. Outside it no equivalent is known."
            )
        at = {
            kind: {name: float(np.interp(threshold, self.old, values)) for name, values in lists.items()}
            for kind, lists in self.new.items()
        }
        return {
            kind: Equivalent(
                {"similarity": v["similarity"], "interval": [v["low"], v["high"]], "same_items": v["same_items"]}
            )
            for kind, v in at.items()
        }


class ProbeAccuracy(Record):
    """Accuracy of a transferred probe on unseen rows, and of the probes that it is compared with."""

    carried = estimate()  # the transferred probe
    native = estimate()  # a probe trained in the space that the first was transferred to
    shuffled = estimate()  # the probe transferred through a map of shuffled pairs
    majority = estimate()  # always predicting the most frequent class


class ProbeTransfer(Record):
    """Test of a probe that was trained on the target space and transferred back to the source space."""

    source = string()  # space that the probe was trained in: the stitcher's target
    target = string()  # space that the probe was transferred to: the stitcher's source
    classes = sequence(str)
    n_test = whole()
    accuracy = part(ProbeAccuracy)
    retention = optional(estimate())
    """Accuracy of the transferred probe divided by that of the native one; None if the latter is 0."""


class DoubledPairs(Record):
    """The score expected with twice as many training pairs."""

    pairs = whole()
    _expected = number("expected")
    _interval = sequence(float, "interval")

    @property
    def expected(self) -> Estimate:
        """The expected score with its 90 % interval."""
        low, high = self._interval
        return Estimate(self._expected, (float(low), float(high)))

    def check(self) -> None:
        super().check()
        if not is_interval(self._interval):
            raise InputError(f"'interval' of a {type(self).__name__} must be a list of two numbers.")


class LearningCurve(Record):
    """Scores for several numbers of training pairs, and the score expected with twice as many pairs."""

    objective = optional(string())
    validation_rows = optional(whole())
    sizes = otherwise(sequence(int), [])  # numbers of training pairs that were tried, ascending
    scores = otherwise(mapping(list[list[float]]), {})
    """For each objective and for recall@1: one list of scores for each size, with one score for each draw of pairs."""
    curve = otherwise(mapping(float), {})  # a, b and c of the fitted curve a − b·n^−c
    doubled = optional(part(DoubledPairs))
    verdict = optional(string())  # one sentence: whether more pairs would help
