"""What tests of an atlas give: a trend, the control for lineage, and the asymmetry of a pair, as typed records."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from repstitch.evaluation.scorecard_parts import Spectrum
from repstitch.records import NUMBER, Estimate, Record


class HypothesisResult(Record):
    """The result of one test, with its `verdict` in a sentence."""

    @property
    def verdict(self) -> str:
        return self._values["verdict"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.verdict!r})"


class TrendModel(NamedTuple):
    """One point of a trend: a model, its value in the column, and its mean score with the other models."""

    name: str
    family: str | None
    value: float
    alignment: float


class Trend(HypothesisResult):
    """Whether alignment rises with a column of numbers; see `trend.trend`."""

    REQUIRED: ClassVar = {
        "column": str,
        "metric": str,
        "models": list,
        "rank_correlation": NUMBER,
        "interval": list,
        "p": NUMBER,
        "n_models": int,
        "null_band": dict,
        "verdict": str,
    }
    OPTIONAL: ClassVar = {"left_out": dict, "against": list, "within_lineage": dict}

    @property
    def column(self) -> str:
        return self._values["column"]

    @property
    def metric(self) -> str:
        return self._values["metric"]

    @property
    def models(self) -> list[TrendModel]:
        return [TrendModel(**model) for model in self._values["models"]]

    @property
    def rank_correlation(self) -> Estimate:
        """Spearman's rank correlation of value and alignment, with its 95 % interval over models."""
        low, high = self._values["interval"]
        return Estimate(self._values["rank_correlation"], (low, high))

    @property
    def p(self) -> float:
        return self._values["p"]

    @property
    def n_models(self) -> int:
        return self._values["n_models"]

    @property
    def left_out(self) -> dict[str, int]:
        """How many models are no points, by reason."""
        return dict(self._values.get("left_out") or {})

    @property
    def null_band(self) -> dict[str, Any]:
        """The straight `line` through the points and the middle 95 % of lines with shuffled values, on a grid."""
        return dict(self._values["null_band"])

    @property
    def against(self) -> list[str] | None:
        """The models that alignment is taken with; None where it is taken with all others."""
        return self._values.get("against")

    @property
    def within_lineage(self) -> dict[str, Any] | None:
        """The same correlation inside families; None where no family has three models."""
        return self._values.get("within_lineage")


class Control(HypothesisResult):
    """Whether shared lineage explains agreement; see `lineage_control.control`."""

    REQUIRED: ClassVar = {"metric": str, "n_models": int, "factors": dict, "verdict": str}
    OPTIONAL: ClassVar = {"left_out": list, "cannot_be_judged": dict, "between_above_null": dict}

    @property
    def metric(self) -> str:
        return self._values["metric"]

    @property
    def n_models(self) -> int:
        return self._values["n_models"]

    @property
    def left_out(self) -> list[str]:
        """The models that miss a score with another one."""
        return list(self._values.get("left_out") or ())

    @property
    def factors(self) -> dict[str, dict[str, Any]]:
        """The effect of each factor: means within and between groups, PERMANOVA, Mantel, partial Mantel, groups."""
        return dict(self._values["factors"])

    @property
    def cannot_be_judged(self) -> dict[str, str]:
        """The reason, by factor, for those that these models cannot judge."""
        return dict(self._values.get("cannot_be_judged") or {})

    @property
    def between_above_null(self) -> dict[str, Any] | None:
        """Whether models without any shared label agree beyond chance; None where that was not tested."""
        return self._values.get("between_above_null")


class Asymmetry(HypothesisResult):
    """How much of each of two spaces the other predicts; see `asymmetry.asymmetry`."""

    REQUIRED: ClassVar = {
        "source": str,
        "target": str,
        "n": int,
        "r2_forward": NUMBER,
        "r2_backward": NUMBER,
        "r2_forward_interval": list,
        "r2_backward_interval": list,
        "difference": NUMBER,
        "difference_interval": list,
        "null_forward": dict,
        "null_backward": dict,
        "shared": Spectrum,
        "left_over": dict,
        "verdict": str,
    }

    @property
    def source(self) -> str:
        return self._values["source"]

    @property
    def target(self) -> str:
        return self._values["target"]

    @property
    def n(self) -> int:
        """The number of rows."""
        return self._values["n"]

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

    @property
    def null_forward(self) -> dict[str, float]:
        """The `mean` and the 95 % point, `high`, of `r2_forward` with shuffled rows."""
        return dict(self._values["null_forward"])

    @property
    def null_backward(self) -> dict[str, float]:
        """The `mean` and the 95 % point, `high`, of `r2_backward` with shuffled rows."""
        return dict(self._values["null_backward"])

    @property
    def shared(self) -> Spectrum:
        """The spectrum of the directions that both spaces share."""
        return self._part(Spectrum, "shared")

    @property
    def left_over(self) -> dict[str, Mapping[str, Any]]:
        """By side, the variance and the principal directions that the other side does not predict."""
        return dict(self._values["left_over"])

    def _with_interval(self, key: str) -> Estimate:
        low, high = self._values[f"{key}_interval"]
        return Estimate(self._values[key], (low, high))
