"""Results of the hypothesis tests as typed records: a trend, the control for lineage, and the asymmetry of a pair."""

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
    """The result of one test. `verdict` states it in a sentence."""

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
    """Whether alignment rises with a column of numbers. See `trend.trend`."""

    column = string()
    models = parts(TrendModel)
    _correlation = number("rank_correlation")
    _interval = sequence(float, "interval")
    metric = string()
    p = number()
    n_models = whole()
    left_out = otherwise(mapping(int), {})  # the number of models that were left out, by reason
    null_band = mapping(JSON)
    """On a grid of values: the straight `line` fitted to the points, and the middle 95 % of lines fitted to shuffled
    values."""
    against = optional(sequence(str))  # the models that alignment is measured with; None if with all other models
    within_lineage = optional(mapping(JSON))
    """The correlation within families; None if families are unknown or too small. See `trend.trend`."""

    @property
    def rank_correlation(self) -> Estimate:
        """Spearman's rank correlation of value and alignment, with its 95 % interval over models."""
        low, high = self._interval
        return Estimate(self._correlation, (low, high))


class Control(HypothesisResult):
    """Whether shared lineage explains agreement between models. See `lineage_control.control`."""

    metric = string()
    n_models = whole()
    left_out = otherwise(sequence(str), [])  # models that lack a score with some other model
    factors = mapping(dict[str, Any])
    """The effect of each factor: means within and between groups, PERMANOVA, Mantel, partial Mantel, group sizes."""
    cannot_be_judged = otherwise(mapping(str), {})  # the factors that could not be tested, with the reason
    between_above_null = optional(mapping(JSON))
    """Whether models that share no label agree beyond chance; None if that was not tested."""


class Asymmetry(HypothesisResult):
    """How much of each of two spaces can be predicted from the other. See `asymmetry.asymmetry`."""

    source = string()
    target = string()
    n = whole()  # the number of rows
    null_forward = mapping(float)  # `mean` and 95 % point (`high`) of `r2_forward` with shuffled rows
    null_backward = mapping(float)  # `mean` and 95 % point (`high`) of `r2_backward` with shuffled rows
    shared = part(Spectrum)  # the spectrum of the directions that both spaces share
    left_over = mapping(Mapping[str, Any])
    """For `source` and `target`, the share of variance and the principal directions that the other does not predict."""

    @property
    def r2_forward(self) -> Estimate:
        """R² of the target predicted from the source, on held-out rows."""
        return self._with_interval("r2_forward")

    @property
    def r2_backward(self) -> Estimate:
        """R² of the source predicted from the target, on held-out rows."""
        return self._with_interval("r2_backward")

    @property
    def difference(self) -> Estimate:
        """`r2_forward` minus `r2_backward`."""
        return self._with_interval("difference")

    def _with_interval(self, key: str) -> Estimate:
        low, high = self[f"{key}_interval"]
        return Estimate(self[key], (low, high))
