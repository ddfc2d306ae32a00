# pyright: strict
"""Results with typed attributes: each record is a view of the JSON object that is stored and sent.

The JSON object is kept unchanged, so `to_dict` returns every key in the original order, including keys that a newer
release has added. A record class declares its keys, one per line. A value is converted when its attribute is read:

    class Reconstruction(Record):
        cosine = number()
        auroc = optional(number())
        bins = parts(CalibrationBin)
"""

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Self, TypeVar, cast, overload

from repstitch.errors import InputError, MissingError
from repstitch.text import ends, num

Value = TypeVar("Value")
Part = TypeVar("Part", bound="Record")
JSON: type[Any] = object  # type of the values of a list or object that mixes types
LEVEL = 0.05  # significance level of every test; intervals cover the remaining 95 %


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % confidence interval, which is None if it was not computed.

    `float(estimate)` is the score.
    """

    score: float
    interval: tuple[float, float] | None = None

    def __float__(self) -> float:
        return self.score

    def __str__(self) -> str:
        """Return the score with its interval. A score that is known by definition has an interval without width."""
        if self.interval is None or self.interval[0] == self.interval[1]:
            return num(self.score)
        return f"{num(self.score)} [{', '.join(ends(*self.interval))}]"


class Field(Generic[Value]):
    """One key of a record's JSON object, read as a typed value. `key` defaults to the name of the attribute.

    `read` converts the JSON value. `fits` tests its type, and `kind` describes that type in error messages. A key with
    a `default` may be absent or null. `inside` checks the contents of a value of the right type and raises InputError.
    """

    def __init__(
        self,
        read: Callable[[Any], Value],
        kind: str,
        fits: Callable[[Any], bool],
        key: str = "",
        default: Callable[[], Value] | None = None,
        inside: Callable[[Any], object] | None = None,
    ):
        self.read, self.kind, self.fits, self.key, self.default, self.inside = read, kind, fits, key, default, inside

    def __set_name__(self, owner: type, name: str) -> None:
        self.key = self.key or name

    @overload
    def __get__(self, record: None, owner: type) -> Self: ...
    @overload
    def __get__(self, record: "Record", owner: type) -> Value: ...
    def __get__(self, record: "Record | None", owner: type) -> Self | Value:
        if record is None:
            return self
        if self.default is not None and self.key not in record:
            return self.default()
        return self.read(record[self.key])

    def __set__(self, record: "Record", value: object) -> None:
        raise AttributeError(
            f"`{self.key}` of {_with_article(type(record).__name__)} cannot be set; a record is read-only."
        )

    def check(self, record: "Record") -> None:
        """Raise InputError if the record lacks this key and has no default for it, or if its value cannot be read."""
        if self.default is not None and self.key not in record:
            return
        name, value = _with_article(type(record).__name__), record[self.key]
        if not self.fits(value):
            raise InputError(f"'{self.key}' of {name} must be {self.kind}; got {type(value).__name__}.")
        if self.inside is not None:
            try:
                self.inside(value)
            except InputError as error:
                raise InputError(f"'{self.key}' of {name} cannot be used: {error}") from None


class Record:
    """A typed view of one JSON object. Subclasses declare its keys as fields."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    @classmethod
    @cache
    def fields(cls) -> list[Field[Any]]:
        """Return the fields that the class declares, those of its base classes first."""
        named = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        return [value for value in named.values() if isinstance(value, Field)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Create a record from a JSON object. Raises InputError if a key is missing or a value cannot be read."""
        record = cls(values)
        record.check()
        return record

    def check(self) -> None:
        """Raise InputError unless every required key is present and every value can be read."""
        for field in self.fields():
            field.check(self)

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of the whole JSON object."""
        return copy.deepcopy(dict(self._values))

    def to_json(self) -> str:
        """Return the whole JSON object as one line of text. Raises ValueError if it contains NaN or Inf."""
        return json.dumps(self._values, ensure_ascii=False, allow_nan=False)

    def __getitem__(self, key: str) -> Any:
        """Return the JSON value of a key. Raises MissingError if the key is absent."""
        if key not in self._values:
            name = _with_article(type(self).__name__)
            listed = ", ".join(map(str, self._values)) or "no keys"
            raise MissingError(f"{name[0].upper()}{name[1:]} must have the key '{key}'; it has {listed}.")
        return self._values[key]

    def __contains__(self, key: str) -> bool:
        """Whether the key is present with a value other than null."""
        return self._values.get(key) is not None

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and dict(other._values) == dict(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values))  # of the keys only: 1 and 1.0 are equal but differ as JSON

    def __repr__(self) -> str:
        try:
            return self._summary()
        except Exception:  # an unchecked record can contain anything
            return Record._summary(self)

    def _summary(self) -> str:
        """Return the record as one line, for `repr`."""
        return f"{type(self).__name__}({', '.join(map(str, self._values))})"


def number(key: str = "") -> Field[float]:
    return Field(float, "a number", is_number, key)


def whole(key: str = "") -> Field[int]:
    """A whole number, which may be stored as a float such as 95.0."""
    return Field(int, "a whole number", _is_whole, key)


def string(key: str = "") -> Field[str]:
    return Field(str, "text", lambda value: isinstance(value, str), key)


def flag(key: str = "") -> Field[bool]:
    return Field(bool, "true or false", lambda value: isinstance(value, bool), key)


def estimate(key: str = "") -> Field[Estimate]:
    """A score with its interval, or a plain number."""
    return Field(as_estimate, "a score with its interval", _is_estimate, key)


def part(kind: type[Part], key: str = "") -> Field[Part]:
    """A nested record."""
    return Field(kind, "an object", _is_object, key, inside=kind.from_dict)


def parts(kind: type[Part], key: str = "") -> Field[list[Part]]:
    """A list of nested records."""

    def fits(values: object) -> bool:
        return _is_list(values) and all(map(_is_object, cast(Sequence[object], values)))

    def check_each(values: Sequence[Any]) -> None:
        for value in values:
            kind.from_dict(value)

    return Field(lambda values: [kind(value) for value in values], "a list of objects", fits, key, inside=check_each)


def sequence(of: type[Value], key: str = "") -> Field[list[Value]]:
    """A list of plain values of type `of`. Reading it returns a copy."""
    return Field(cast(Callable[[Any], list[Value]], list), "a list", _is_list, key)


def mapping(of: type[Value], key: str = "") -> Field[dict[str, Value]]:
    """An object whose values are plain values of type `of`. Reading it returns a copy."""
    return Field(cast(Callable[[Any], dict[str, Value]], dict), "an object", _is_object, key)


def optional(field: Field[Value]) -> Field[Value | None]:
    """Make a field optional: it is None if its key is absent or null."""
    return Field(field.read, field.kind, field.fits, field.key, lambda: None, field.inside)


def otherwise(field: Field[Value], default: Value) -> Field[Value]:
    """Make a field optional: it is a copy of `default` if its key is absent or null."""
    return Field(field.read, field.kind, field.fits, field.key, lambda: copy.copy(default), field.inside)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def as_estimate(value: Mapping[str, Any] | float) -> Estimate:
    """Create an estimate from `{"score": …, "interval": [low, high]}`, or from a plain number."""
    if not isinstance(value, Mapping):
        return Estimate(float(value))
    interval: Sequence[float] | None = value.get("interval")
    return Estimate(float(value["score"]), None if interval is None else (float(interval[0]), float(interval[1])))


def is_number(value: object) -> bool:
    """Whether a JSON value is a number. Whole numbers beyond the range of floats are not, because scores are floats."""
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)


def _is_whole(value: object) -> bool:
    return is_number(value) and float(cast(float, value)).is_integer()


def is_interval(value: object) -> bool:
    """Whether a JSON value is a list of two numbers."""
    return isinstance(value, list | tuple) and list(map(is_number, cast(Sequence[object], value))) == [True, True]


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _is_estimate(value: object) -> bool:
    if not isinstance(value, Mapping):
        return is_number(value)
    scored = cast(Mapping[str, object], value)
    return is_number(scored.get("score")) and (scored.get("interval") is None or is_interval(scored["interval"]))
