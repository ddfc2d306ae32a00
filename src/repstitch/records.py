"""Results with typed names: each record is a view of the JSON object that is stored and sent.

The object stays as it came, so `to_dict` returns every key, also those of a newer release, in the same order.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from repstitch.errors import InputError
from repstitch.text import num

Part = TypeVar("Part", bound="Record")
NUMBER = (int, float)


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval; None where no interval was taken. `float(estimate)` is the score."""

    score: float
    interval: tuple[float, float] | None = None

    def __float__(self) -> float:
        return self.score

    def __str__(self) -> str:
        return num(self.score) if self.interval is None else f"{num(self.score)} [{', '.join(map(num, self.interval))}]"


class Record:
    """A typed view of one JSON object. Subclasses add a property per key and name the keys they need in `REQUIRED`."""

    REQUIRED: ClassVar[Mapping[str, type | tuple[type, ...]]] = {}

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record of a JSON object. Raises InputError where a required key is missing or of the wrong type."""
        record = cls(values)
        record.check()
        return record

    def check(self) -> None:
        """Raise InputError unless every required key is there with its type; subclasses check their parts too."""
        name = type(self).__name__
        for key, kind in self.REQUIRED.items():
            if key not in self._values:
                raise InputError(f"A {name} must hold `{key}`; it holds {', '.join(self._values) or 'nothing'}.")
            value = self._values[key]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is NUMBER):
                raise InputError(f"`{key}` of a {name} must be {_kind_name(kind)}; got {type(value).__name__}.")

    def to_dict(self) -> dict[str, Any]:
        """The whole JSON object, as a copy."""
        return copy.deepcopy(dict(self._values))

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and dict(other._values) == dict(self._values)

    def __hash__(self) -> int:
        return hash(json.dumps(self._values, sort_keys=True, default=str))

    def _part(self, kind: type[Part], key: str) -> Part:
        return kind(self._values[key])

    def _parts(self, kind: type[Part], key: str) -> list[Part]:
        return [kind(value) for value in self._values.get(key) or ()]

    def _estimate(self, key: str) -> Estimate:
        return as_estimate(self._values[key])


def as_estimate(value: Mapping[str, Any] | float) -> Estimate:
    """An estimate from `{"score": …, "interval": [low, high]}`, or from a bare number."""
    if not isinstance(value, Mapping):
        return Estimate(float(value))
    interval: Sequence[float] | None = value.get("interval")
    return Estimate(float(value["score"]), None if interval is None else (float(interval[0]), float(interval[1])))


def _kind_name(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if kinds == NUMBER:
        return "a number"
    return " or ".join(
        {"dict": "an object", "list": "a list", "str": "text", "int": "a whole number"}.get(k.__name__, k.__name__)
        for k in kinds
    )
