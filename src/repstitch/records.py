# pyright: strict
"""Results with typed names: each record is a view of the JSON object that is stored and sent.

The object stays as it came, so `to_dict` returns every key, also those of a newer release, in the same order.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, cast

from repstitch.errors import InputError
from repstitch.text import num

Kind = type | tuple[type, ...]
Part = TypeVar("Part", bound="Record")
NUMBER = (int, float)
LEVEL = 0.05  # of significance, for every test; an interval covers the rest, 95 %


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
    """A typed view of one JSON object. Subclasses add a property per key.

    `REQUIRED` names the keys that must be there, `OPTIONAL` those that may be absent or null, each with the kind of its
    value: a Python type, another record, or `Estimate`.
    """

    REQUIRED: ClassVar[Mapping[str, Kind]] = {}
    OPTIONAL: ClassVar[Mapping[str, Kind]] = {}

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record of a JSON object. Raises InputError where a required key is missing or of the wrong type."""
        record = cls(values)
        record.check()
        return record

    def check(self) -> None:
        """Raise InputError unless every required key is there and every value has its kind."""
        for key in self.REQUIRED:
            if key not in self._values:
                name = self._with_article()
                raise InputError(
                    f"{name[0].upper()}{name[1:]} must hold `{key}`; it holds {', '.join(self._values) or 'nothing'}."
                )
        for key, kind in {**self.OPTIONAL, **self.REQUIRED}.items():
            if key in self.REQUIRED or key in self:
                self._check_value(key, kind)

    def to_dict(self) -> dict[str, Any]:
        """The whole JSON object, as a copy."""
        return copy.deepcopy(dict(self._values))

    def __contains__(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self._values.get(key) is not None

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and dict(other._values) == dict(self._values)

    def __hash__(self) -> int:
        return hash(json.dumps(self._values, sort_keys=True, default=str))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._values)})"

    def _with_article(self) -> str:
        name = type(self).__name__
        return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"

    def _check_value(self, key: str, kind: Kind) -> None:
        value, name = self._values[key], self._with_article()
        if not _is_of_kind(value, kind):
            raise InputError(f"`{key}` of {name} must be {_kind_name(kind)}; got {type(value).__name__}.")
        if isinstance(kind, type) and issubclass(kind, Record):
            try:
                kind.from_dict(value)
            except InputError as error:
                raise InputError(f"`{key}` of {name} cannot be used: {error}") from None

    def _check_parts(self, kind: type["Record"], key: str) -> None:
        """Check every entry of a list of records."""
        for value in self._values.get(key) or ():
            if not isinstance(value, Mapping):
                raise InputError(f"`{key}` of {self._with_article()} must be a list of objects.")
            kind.from_dict(cast(Mapping[str, Any], value))

    def _part(self, kind: type[Part], key: str) -> Part:
        return kind(self._values[key])

    def _optional_part(self, kind: type[Part], key: str) -> Part | None:
        value = self._values.get(key)
        return None if value is None else kind(value)

    def _parts(self, kind: type[Part], key: str) -> list[Part]:
        return [kind(value) for value in self._values.get(key) or ()]

    def _estimate(self, key: str) -> Estimate:
        return as_estimate(self._values[key])

    def _optional_estimate(self, key: str) -> Estimate | None:
        value = self._values.get(key)
        return None if value is None else as_estimate(value)


def as_estimate(value: Mapping[str, Any] | float) -> Estimate:
    """An estimate from `{"score": …, "interval": [low, high]}`, or from a bare number."""
    if not isinstance(value, Mapping):
        return Estimate(float(value))
    interval: Sequence[float] | None = value.get("interval")
    return Estimate(float(value["score"]), None if interval is None else (float(interval[0]), float(interval[1])))


def is_number(value: object) -> bool:
    return isinstance(value, NUMBER) and not isinstance(value, bool)


def is_interval(value: object) -> bool:
    """Whether a JSON value is a list of two numbers."""
    return isinstance(value, list | tuple) and list(map(is_number, cast(Sequence[object], value))) == [True, True]


def _is_of_kind(value: object, kind: Kind) -> bool:
    if kind is Estimate:
        if not isinstance(value, Mapping):
            return is_number(value)
        parts = cast(Mapping[str, object], value)
        return is_number(parts.get("score")) and (parts.get("interval") is None or is_interval(parts["interval"]))
    if isinstance(kind, type) and issubclass(kind, Record):
        return isinstance(value, Mapping)
    if kind == NUMBER or kind is int:
        return is_number(value) and isinstance(value, kind)
    return isinstance(value, kind)


def _kind_name(kind: Kind) -> str:
    if kind == NUMBER:
        return "a number"
    if kind is Estimate:
        return "a score with its interval"
    return " or ".join(_TYPE_NAMES.get(one, "an object") for one in (kind if isinstance(kind, tuple) else (kind,)))


_TYPE_NAMES: Mapping[type, str] = {
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
