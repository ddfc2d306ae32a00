"""What tests of an atlas give: a trend, the control for lineage, and the asymmetry of a pair, as typed records."""

from collections.abc import Mapping
from typing import Any

from repstitch.evaluation.scorecard_parts import Spectrum
from repstitch.records import (
    JSON,
    Estimate,
    Record,
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


class HypothesisResult(Record):
    """The result of one test, with its `verdict` in a sentence."""

    verdict = string()

    def _summary(self) -> str:
        return f"{type(self).__name__}({self.verdict!r})"


class TrendModel(Record):
    """One point of a trend: a model, its value in the column, and its mean score with the other models."""

    name = string()
    family = optional(string())
    value = number()
    alignment = number()


class Trend(HypothesisResult):
    """Whether alignment rises with a column of numbers; see `trend.trend`."""

    column = string()
    models = parts(TrendModel)
    _correlation = number("rank_correlation")
    _interval = sequence(float, "interval")
    metric = string()
    p = number()
    n_models = whole()
    left_out = otherwise(mapping(int), {})  # how many models are no points, by reason
    null_band = mapping(JSON)
    """The straight `line` through the points and the middle 95 % of lines with shuffled values, on a grid."""
    against = optional(sequence(str))  # the models that alignment is taken with; None where it is taken with all others
    within_lineage = optional(
        mapping(JSON)
    )  # the same correlation inside families; None where no family has three models

    @property
    def rank_correlation(self) -> Estimate:
        """Spearman's rank correlation of value and alignment, with its 95 % interval over models."""
        low, high = self._interval
        return Estimate(self._correlation, (low, high))


class Control(HypothesisResult):
    """Whether shared lineage explains agreement; see `lineage_control.control`."""

    metric = string()
    n_models = whole()
    left_out = otherwise(sequence(str), [])  # the models that miss a score with another one
    factors = mapping(dict[str, Any])
    """The effect of each factor: means within and between groups, PERMANOVA, Mantel, partial Mantel, groups."""
    cannot_be_judged = otherwise(mapping(str), {})  # the reason, by factor, for those that these models cannot judge
    between_above_null = optional(mapping(JSON))
    """Whether models without any shared label agree beyond chance; None where that was not tested."""


class Asymmetry(HypothesisResult):
    """How much of each of two spaces the other predicts; see `asymmetry.asymmetry`."""

    source = string()
    target = string()
    n = whole()  # the number of rows
    null_forward = mapping(float)  # the `mean` and the 95 % point, `high`, of `r2_forward` with shuffled rows
    null_backward = mapping(float)  # the `mean` and the 95 % point, `high`, of `r2_backward` with shuffled rows
    shared = part(Spectrum)  # the spectrum of the directions that both spaces share
    left_over = mapping(Mapping[str, Any])
    """By side, the variance and the principal directions that the other side does not predict."""

    @property
    def r2_forward(self) -> Estimate:
        """R² of the target predicted from the source, on rows that were not fitted to."""
        return self._with_interval("r2_forward")

    @property
    def r2_backward(self) -> Estimate:
        """R² of the source predicted from the target, on rows that were not fitted to."""
        return self._with_interval("r2_backward")

    @property
    def difference(self) -> Estimate:
        """`r2_forward` less `r2_backward`."""
        return self._with_interval("difference")

    def _with_interval(self, key: str) -> Estimate:
        low, high = self[f"{key}_interval"]
        return Estimate(self[key], (low, high))
