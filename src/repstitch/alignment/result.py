"""Results of measuring alignment as typed records: the score of one pair, and the atlas of many spaces."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from repstitch.alignment.hypothesis_results import Asymmetry, Control, Trend
from repstitch.alignment.report import MEASURES, markdown, table
from repstitch.errors import InputError
from repstitch.records import (
    Record,
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
from repstitch.spaces import Space
from repstitch.text import num

Entry = TypeVar("Entry")


class AlignmentScore(Record):
    """How similar two spaces are by one metric, compared with chance. `float(score)` is the score.

    `null`, `p`, `q` and `calibrated` are None without permutations. `q` is also None if only one pair was scored.
    """

    source = string()
    target = string()
    metric = string()
    score = number()
    null = optional(number())  # the mean score with permuted rows: the chance level
    p = optional(number())  # the add-one p-value: at least 1 / (permutations + 1)
    q = optional(number())  # Benjamini and Hochberg's q-value among all pairs that were scored together
    calibrated = optional(number())  # 0 at the 95 % point of the null, 1 at a perfect score
    se = optional(number())  # the standard error over rows

    def __float__(self) -> float:
        return float(self.score)

    def _summary(self) -> str:
        pairs = ((name, self._values.get(name)) for name in MEASURES[1:])
        numbers = "".join(f", {name}={value:.3g}" for name, value in pairs if value is not None)
        return f"{type(self).__name__}({self.source} - {self.target}, {self.metric}={num(self.score)}{numbers})"


class LayerScore(AlignmentScore):
    """The score of the best pair of layers of two encoders. `null` and `p` are those of the maximum over layers.

    `source` and `target` are names of encoders, `source_space` and `target_space` names of the spaces of the layers.
    """

    source_layer = optional(whole())
    target_layer = optional(whole())
    source_space = string()
    target_space = string()


class SizeCurve(Record):
    """The scores of one pair at each number of rows in `SizeCurves.sizes`."""

    source = string()
    target = string()
    metric = string()
    score = sequence(float)
    null = optional(sequence(float))
    se = sequence(float)  # the standard error of one draw of rows


class SizeCurves(Record):
    """How scores depend on the number of rows. `sizes` are numbers of rows; `draws` are numbers of subsets per size."""

    k = whole()
    sizes = sequence(int)
    draws = sequence(int)
    curves = parts(SizeCurve)


class NearestSpace(NamedTuple):
    """A space that is similar to another: its `name`, and the `score` of the two."""

    name: str
    score: float


class Atlas(Record):
    """How similar all pairs of N spaces are, with an order, a map and further results. `print(atlas)` shows it as text.

    Matrices are (N, N) in the order of `names`; rows are sources, columns are targets.
    """

    n = whole()  # the number of items that all spaces have
    k = whole()  # the number of neighbours of each row, for the metrics that use neighbours
    permutations = whole()
    seed = whole()
    left_out = mapping(dict[str, int])  # the number of rows of each space that were not used, by reason
    repeats = mapping(int)  # the number of rows of each space with the same direction as another row, in float32
    tied = otherwise(mapping(int), {})
    """The number of rows of each space with a tie at neighbour k; empty if no neighbours were searched."""
    _cards = sequence(dict[str, Any], "spaces")
    _results = mapping(dict[str, Any], "metrics")
    _pairs = parts(AlignmentScore, "pairs")
    _order = mapping(list[str], "order")
    _map = mapping(dict[str, list[float]], "map")
    _nearest = mapping(dict[str, list[dict[str, Any]]], "nearest")
    layers = otherwise(parts(LayerScore), [])
    """The best pair of layers for each pair of encoders; empty if no spaces are layers of one encoder."""
    sizes = optional(part(SizeCurves))
    trend = optional(part(Trend))
    control = optional(part(Control))
    asymmetry = otherwise(parts(Asymmetry), [])
    unanswered = otherwise(mapping(str), {})  # the tests that are not possible with these models, with the reason

    @property
    def spaces(self) -> list[Space]:
        """The cards of the spaces."""
        return [Space.from_dict(card) for card in self._cards]

    @property
    def names(self) -> list[str]:
        """The names of the spaces."""
        return [card["name"] for card in self._cards]

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics."""
        return list(self._results)

    def symmetric(self, metric: str) -> bool:
        """Return whether the metric is symmetric.

        Args:
            metric: One of the atlas's `metrics`.

        Returns:
            True if the score does not depend on which space is the source.

        Raises:
            InputError: On an unknown metric.
        """
        return self._result(metric)["symmetric"]

    def measures(self, metric: str) -> list[str]:
        """Return the measures that have a matrix.

        Args:
            metric: One of the atlas's `metrics`.

        Returns:
            `score` and `se`, and with permutations also `null`, `p`, `q` and `calibrated`.

        Raises:
            InputError: On an unknown metric.
        """
        return [measure for measure in MEASURES if measure in self._result(metric)]

    def matrix(self, metric: str, measure: str) -> np.ndarray:
        """Return one measure of all pairs of spaces.

        Args:
            metric: One of the atlas's `metrics`.
            measure: One of `measures(metric)`.

        Returns:
            Float64 (N, N), NaN where there is no number. The diagonal is NaN except for `score`, where it is 1.

        Raises:
            InputError: On an unknown metric or measure.
        """
        if measure not in self.measures(metric):
            raise InputError(f"`measure` must be one of {', '.join(self.measures(metric))}; got {measure!r}.")
        return np.array(self._result(metric)[measure], dtype=float)

    def scores(self, metric: str) -> np.ndarray:
        """Return the scores of all pairs of spaces.

        Args:
            metric: One of the atlas's `metrics`.

        Returns:
            Float64 (N, N), 1 on the diagonal.

        Raises:
            InputError: On an unknown metric.
        """
        return self.matrix(metric, "score")

    def pairs(self, metric: str) -> list[AlignmentScore]:
        """Return the score of each pair of spaces.

        Args:
            metric: One of the atlas's `metrics`.

        Returns:
            One record per pair if the metric is symmetric, otherwise one for each direction.

        Raises:
            InputError: On an unknown metric.
        """
        self._result(metric)
        return [AlignmentScore(pair) for pair in self["pairs"] if pair["metric"] == metric]

    def order(self, metric: str) -> list[str]:
        """Return the clustering order of the spaces.

        Args:
            metric: One of the atlas's `metrics`.

        Returns:
            All names, in an order that puts similar spaces next to each other.

        Raises:
            InputError: On an unknown metric.
        """
        return list(self._by_metric(self._order, metric))

    def map(self, metric: str) -> dict[str, tuple[float, float]]:
        """Return a point for each space, so that distances between points approximate 1 − score.

        Args:
            metric: One of the atlas's `metrics`.

        Returns:
            The point (x, y) of each space by name.

        Raises:
            InputError: On an unknown metric.
        """
        return {name: (point[0], point[1]) for name, point in self._by_metric(self._map, metric).items()}

    def nearest(self, metric: str) -> dict[str, list[NearestSpace]]:
        """Return the most similar spaces of each space.

        Args:
            metric: One of the atlas's `metrics`.

        Returns:
            For each space, by name, up to ten spaces of other encoders, the most similar first.

        Raises:
            InputError: On an unknown metric.
        """
        return {
            name: [NearestSpace(**other) for other in others]
            for name, others in self._by_metric(self._nearest, metric).items()
        }

    def with_results(self, results: Mapping[str, Any]) -> "Atlas":
        """Return a copy of the atlas to which the results of hypothesis tests (JSON objects by name) are added."""
        return Atlas({**self._values, **results})

    def check(self) -> None:
        """Raise InputError unless all values can be read and all parts fit the metrics and the number of spaces."""
        super().check()
        for value in (*self._cards, *self._results.values()):
            if not isinstance(value, Mapping):
                raise InputError(
                    f"'spaces' and 'metrics' of an Atlas must contain objects; got {type(value).__name__}."
                )
        if not self.metrics:
            raise InputError("'metrics' of an Atlas must contain at least one metric; got none.")
        N = len(self.spaces)
        for metric, result in self._results.items():
            if not isinstance(result.get("symmetric"), bool):
                raise InputError(f"'symmetric' of {metric} in an Atlas must be true or false.")
            for measure in ("score", *self.measures(metric)):
                _check_matrix(result.get(measure), N, f"'{measure}' of {metric}")
            for key in ("order", "map", "nearest"):
                if metric not in self[key]:
                    raise InputError(f"'{key}' of an Atlas must contain its metric {metric!r}.")

    def __str__(self) -> str:
        return table(self._values)

    def _summary(self) -> str:
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
        return self._by_metric(self._results, metric)

    def _by_metric(self, values: Mapping[str, Entry], metric: str) -> Entry:
        if metric not in self._results:
            raise InputError(f"`metric` must be a metric of this atlas ({', '.join(self.metrics)}); got {metric!r}.")
        return values[metric]


def _check_matrix(matrix: Any, N: int, name: str) -> None:
    rows: Sequence[Any] = matrix if isinstance(matrix, list) else ()
    if len(rows) != N or not all(isinstance(row, list) and len(row) == N for row in rows):
        raise InputError(f"{name} in an Atlas must have {N} rows of {N} entries.")
    if not all(value is None or is_number(value) for row in rows for value in row):
        raise InputError(f"{name} in an Atlas must contain numbers, or null where a pair was not scored.")
