"""What measuring alignment gives, as typed records: the score of one pair, and the atlas of many spaces."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from repstitch.alignment.hypothesis_results import Asymmetry, Control, Trend
from repstitch.alignment.report import MEASURES, markdown, table
from repstitch.errors import InputError
from repstitch.records import NUMBER, Record, is_number
from repstitch.spaces import Space
from repstitch.text import num


class AlignmentScore(Record):
    """How similar two spaces are by one metric, compared with chance. `float(score)` is the score.

    Without permutations there is no `null`, `p`, `q` and `calibrated`. One pair alone has no `q`.
    """

    REQUIRED: ClassVar = {"source": str, "target": str, "metric": str, "score": NUMBER}
    OPTIONAL: ClassVar = {measure: NUMBER for measure in MEASURES if measure != "score"}

    @property
    def source(self) -> str:
        return self._values["source"]

    @property
    def target(self) -> str:
        return self._values["target"]

    @property
    def metric(self) -> str:
        return self._values["metric"]

    @property
    def score(self) -> float:
        return self._values["score"]

    @property
    def null(self) -> float | None:
        """The mean score of permuted rows: the level of chance."""
        return self._values.get("null")

    @property
    def p(self) -> float | None:
        """The add-one p-value: at least 1 / (permutations + 1)."""
        return self._values.get("p")

    @property
    def q(self) -> float | None:
        """Benjamini and Hochberg's q-value among all pairs that were scored together."""
        return self._values.get("q")

    @property
    def calibrated(self) -> float | None:
        """0 at the 95 % point of the null, 1 at a perfect score."""
        return self._values.get("calibrated")

    @property
    def se(self) -> float | None:
        """The standard error over rows."""
        return self._values.get("se")

    def __float__(self) -> float:
        return float(self.score)

    def __repr__(self) -> str:
        pairs = ((name, self._values.get(name)) for name in MEASURES[1:])
        numbers = "".join(f", {name}={value:.3g}" for name, value in pairs if value is not None)
        return f"{type(self).__name__}({self.source} - {self.target}, {self.metric}={num(self.score)}{numbers})"


class LayerScore(AlignmentScore):
    """The score of the best pair of layers of two encoders; `null` and `p` are those of the maximum over layers."""

    REQUIRED: ClassVar = {**AlignmentScore.REQUIRED, "source_space": str, "target_space": str}
    OPTIONAL: ClassVar = {**AlignmentScore.OPTIONAL, "source_layer": int, "target_layer": int}

    @property
    def source_layer(self) -> int | None:
        return self._values["source_layer"]

    @property
    def target_layer(self) -> int | None:
        return self._values["target_layer"]

    @property
    def source_space(self) -> str:
        return self._values["source_space"]

    @property
    def target_space(self) -> str:
        return self._values["target_space"]


class SizeCurve(Record):
    """The numbers of one pair at each of the `sizes`."""

    REQUIRED: ClassVar = {"source": str, "target": str, "metric": str, "score": list, "se": list}
    OPTIONAL: ClassVar = {"null": list}

    @property
    def source(self) -> str:
        return self._values["source"]

    @property
    def target(self) -> str:
        return self._values["target"]

    @property
    def metric(self) -> str:
        return self._values["metric"]

    @property
    def score(self) -> list[float]:
        return list(self._values["score"])

    @property
    def null(self) -> list[float] | None:
        return self._values.get("null")

    @property
    def se(self) -> list[float]:
        """The standard error of one draw of rows."""
        return list(self._values["se"])


class SizeCurves(Record):
    """How scores depend on the number of rows: `sizes` are numbers of rows, `draws` how often each was drawn."""

    REQUIRED: ClassVar = {"k": int, "sizes": list, "draws": list, "curves": list}

    @property
    def k(self) -> int:
        return self._values["k"]

    @property
    def sizes(self) -> list[int]:
        return list(self._values["sizes"])

    @property
    def draws(self) -> list[int]:
        return list(self._values["draws"])

    @property
    def curves(self) -> list[SizeCurve]:
        return self._parts(SizeCurve, "curves")

    def check(self) -> None:
        super().check()
        self._check_parts(SizeCurve, "curves")


class NearestSpace(NamedTuple):
    """Another space, and its score with the one that it is near to."""

    name: str
    score: float


class Atlas(Record):
    """How similar every two of N spaces are, and what follows from it; `print(atlas)` shows it as text.

    Matrices are (N, N), rows the source and columns the target, in the order of `names`.
    """

    REQUIRED: ClassVar = {
        "n": int,
        "k": int,
        "permutations": int,
        "seed": int,
        "spaces": list,
        "left_out": dict,
        "repeats": dict,
        "metrics": dict,
        "pairs": list,
        "order": dict,
        "map": dict,
        "nearest": dict,
    }
    OPTIONAL: ClassVar = {
        "tied": dict,
        "layers": list,
        "sizes": SizeCurves,
        "trend": Trend,
        "control": Control,
        "asymmetry": list,
        "unanswered": dict,
    }

    @property
    def n(self) -> int:
        """The number of items that all spaces hold."""
        return self._values["n"]

    @property
    def k(self) -> int:
        """The number of neighbours of each row, for the metrics of neighbours."""
        return self._values["k"]

    @property
    def permutations(self) -> int:
        return self._values["permutations"]

    @property
    def seed(self) -> int:
        return self._values["seed"]

    @property
    def spaces(self) -> list[Space]:
        return [Space.from_dict(card) for card in self._values["spaces"]]

    @property
    def names(self) -> list[str]:
        return [card["name"] for card in self._values["spaces"]]

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """How many rows of each space are not used, by reason."""
        return dict(self._values["left_out"])

    @property
    def repeats(self) -> dict[str, int]:
        """How many rows of each space are copies of another row, in direction and to float32."""
        return dict(self._values["repeats"])

    @property
    def tied(self) -> dict[str, int]:
        """How many rows of each space have other rows as near as their k-th neighbour; empty if none was searched."""
        return dict(self._values.get("tied") or {})

    @property
    def metrics(self) -> list[str]:
        return list(self._values["metrics"])

    def symmetric(self, metric: str) -> bool:
        """Whether the metric does not depend on which space comes first."""
        return self._result(metric)["symmetric"]

    def measures(self, metric: str) -> list[str]:
        """The measures that there is a matrix of: score and se, and with permutations null, p, q and calibrated."""
        return [measure for measure in MEASURES if measure in self._result(metric)]

    def matrix(self, metric: str, measure: str) -> np.ndarray:
        """One measure of every two spaces, (N, N), NaN where there is no number, as on the diagonal."""
        if measure not in self.measures(metric):
            raise InputError(f"`measure` must be one of {', '.join(self.measures(metric))}; got {measure!r}.")
        return np.array(self._result(metric)[measure], dtype=float)

    def scores(self, metric: str) -> np.ndarray:
        """The score of every two spaces, (N, N), 1 on the diagonal."""
        return self.matrix(metric, "score")

    def pairs(self, metric: str) -> list[AlignmentScore]:
        """Every two spaces, once where the metric is symmetric and both ways where it is not."""
        self._result(metric)
        return [AlignmentScore(pair) for pair in self._values["pairs"] if pair["metric"] == metric]

    def order(self, metric: str) -> list[str]:
        """The names in an order that puts similar spaces next to each other."""
        return list(self._by_metric("order", metric))

    def map(self, metric: str) -> dict[str, tuple[float, float]]:
        """A point [x, y] for each space; the distance of two stands for 1 − score."""
        return {name: (point[0], point[1]) for name, point in self._by_metric("map", metric).items()}

    def nearest(self, metric: str) -> dict[str, list[NearestSpace]]:
        """For each space up to ten others of other encoders, the most similar first."""
        return {
            name: [NearestSpace(**other) for other in others]
            for name, others in self._by_metric("nearest", metric).items()
        }

    @property
    def layers(self) -> list[LayerScore]:
        """The best pair of layers of every two encoders; empty where no spaces are layers of one encoder."""
        return self._parts(LayerScore, "layers")

    @property
    def sizes(self) -> SizeCurves | None:
        return self._optional_part(SizeCurves, "sizes")

    @property
    def trend(self) -> Trend | None:
        return self._optional_part(Trend, "trend")

    @property
    def control(self) -> Control | None:
        return self._optional_part(Control, "control")

    @property
    def asymmetry(self) -> list[Asymmetry]:
        return self._parts(Asymmetry, "asymmetry")

    @property
    def unanswered(self) -> dict[str, str]:
        """The hypotheses that these models cannot test, with the reason."""
        return dict(self._values.get("unanswered") or {})

    def with_results(self, results: Mapping[str, Any]) -> "Atlas":
        """The same atlas with the results of hypothesis tests (JSON objects by name) added."""
        return Atlas({**self._values, **results})

    def check(self) -> None:
        super().check()
        self._check_parts(AlignmentScore, "pairs")
        self._check_parts(LayerScore, "layers")
        self._check_parts(Asymmetry, "asymmetry")
        for part in (*self._values["spaces"], *self._values["metrics"].values()):
            if not isinstance(part, Mapping):
                raise InputError(f"`spaces` and `metrics` of an Atlas must hold objects; got {type(part).__name__}.")
        if not self.metrics:
            raise InputError("`metrics` of an Atlas must hold at least one metric.")
        N = len(self.spaces)
        for metric, result in self._values["metrics"].items():
            if not isinstance(result.get("symmetric"), bool):
                raise InputError(f"`symmetric` of {metric} in an Atlas must be true or false.")
            for measure in ("score", *self.measures(metric)):
                _check_matrix(result.get(measure), N, f"`{measure}` of {metric}")
            for key in ("order", "map", "nearest"):
                if metric not in self._values[key]:
                    raise InputError(f"`{key}` of an Atlas must hold {metric}, one of its metrics.")

    def __str__(self) -> str:
        return table(self._values)

    def __repr__(self) -> str:
        return f"Atlas({len(self.names)} spaces, n={self.n}, {', '.join(self.metrics)}{self._best_pair()})"

    def _repr_markdown_(self) -> str:
        return markdown(self._values)

    def _best_pair(self) -> str:
        pairs = self.pairs(self.metrics[0])
        if not pairs:
            return ""
        best = max(pairs, key=float)
        return f"; highest {best.metric}: {best.source} - {best.target} {num(best.score)}"

    def _result(self, metric: str) -> Mapping[str, Any]:
        return self._by_metric("metrics", metric)

    def _by_metric(self, key: str, metric: str) -> Any:
        if metric not in self._values["metrics"]:
            raise InputError(f"`metric` must be one of this atlas, {', '.join(self.metrics)}; got {metric!r}.")
        return self._values[key][metric]


def _check_matrix(matrix: Any, N: int, name: str) -> None:
    rows: Sequence[Any] = matrix if isinstance(matrix, list) else ()
    if len(rows) != N or not all(isinstance(row, list) and len(row) == N for row in rows):
        raise InputError(f"{name} in an Atlas must be {N} rows of {N} entries.")
    if not all(value is None or is_number(value) for row in rows for value in row):
        raise InputError(f"{name} in an Atlas must hold numbers, or null where a pair was not measured.")
