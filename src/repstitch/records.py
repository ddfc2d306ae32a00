# pyright: strict
"""Results with typed names: each record is a view of the JSON object that is stored and sent.

The object stays as it came, so `to_dict` returns every key, also those of a newer release, in the same order. A record
declares the keys it knows, one line each, and reads them when they are asked for:

    class Reconstruction(Record):
        cosine = number()
        auroc = optional(number())
        bins = parts(CalibrationBin)
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Self, TypeVar, cast, overload

from repstitch.errors import InputError, MissingError
from repstitch.text import num

Value = TypeVar("Value")
Part = TypeVar("Part", bound="Record")
JSON: type[Any] = object  # any value, where a list or an object holds several kinds
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


class Field(Generic[Value]):
    """A key of a record's JSON object, by default the attribute's own name, read as a typed value.

    `kind` names the JSON values that fit. A field with a `default` may be absent or null. `inside` checks what a value
    that fits holds, and raises InputError.
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
        """Raise InputError unless the record holds this field, if it must, with a value that can be read."""
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
    """A typed view of one JSON object; subclasses declare its keys as fields."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    @classmethod
    @cache
    def fields(cls) -> list[Field[Any]]:
        """The fields that the record declares, those of its base classes first."""
        named = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        return [value for value in named.values() if isinstance(value, Field)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record of a JSON object. Raises InputError where a field is missing or cannot be read."""
        record = cls(values)
        record.check()
        return record

    def check(self) -> None:
        """Raise InputError unless every field that must be there is there and every value can be read."""
        for field in self.fields():
            field.check(self)

    def to_dict(self) -> dict[str, Any]:
        """The whole JSON object, as a copy."""
        return copy.deepcopy(dict(self._values))

    def to_json(self) -> str:
        """The whole JSON object as one line of text. Raises ValueError where it holds NaN or Inf."""
        return json.dumps(self._values, ensure_ascii=False, allow_nan=False)

    def __getitem__(self, key: str) -> Any:
        """The JSON value of a key. Raises MissingError where there is none."""
        if key not in self._values:
            name = _with_article(type(self).__name__)
            listed = ", ".join(map(str, self._values)) or "nothing"
            raise MissingError(f"{name[0].upper()}{name[1:]} must hold '{key}'; it holds {listed}.")
        return self._values[key]

    def __contains__(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self._values.get(key) is not None

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and dict(other._values) == dict(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values))  # of the keys alone: equal values, such as 1 and 1.0, differ as text

    def __repr__(self) -> str:
        try:
            return self._summary()
        except Exception:  # a record that was not checked can hold anything
            return Record._summary(self)

    def _summary(self) -> str:
        """The record in one line, for `repr`."""
        return f"{type(self).__name__}({', '.join(map(str, self._values))})"


def number(key: str = "") -> Field[float]:
    return Field(float, "a number", is_number, key)


def whole(key: str = "") -> Field[int]:
    """A whole number, also one that is stored as a float, such as 95.0."""
    return Field(int, "a whole number", _is_whole, key)


def string(key: str = "") -> Field[str]:
    return Field(str, "text", lambda value: isinstance(value, str), key)


def flag(key: str = "") -> Field[bool]:
    return Field(bool, "true or false", lambda value: isinstance(value, bool), key)


def estimate(key: str = "") -> Field[Estimate]:
    """A score with its interval, or a bare number."""
    return Field(as_estimate, "a score with its interval", _is_estimate, key)


def part(kind: type[Part], key: str = "") -> Field[Part]:
    """An object that is a record itself."""
    return Field(kind, "an object", _is_object, key, inside=kind.from_dict)


def parts(kind: type[Part], key: str = "") -> Field[list[Part]]:
    """A list of objects that are records themselves."""

    def fits(values: object) -> bool:
        return _is_list(values) and all(map(_is_object, cast(Sequence[object], values)))

    def check_each(values: Sequence[Any]) -> None:
        for value in values:
            kind.from_dict(value)

    return Field(lambda values: [kind(value) for value in values], "a list of objects", fits, key, inside=check_each)


def sequence(of: type[Value], key: str = "") -> Field[list[Value]]:
    """A list of plain values, as a copy; `of` is their type."""
    return Field(cast(Callable[[Any], list[Value]], list), "a list", _is_list, key)


def mapping(of: type[Value], key: str = "") -> Field[dict[str, Value]]:
    """An object of plain values by name, as a copy; `of` is their type."""
    return Field(cast(Callable[[Any], dict[str, Value]], dict), "an object", _is_object, key)


def optional(field: Field[Value]) -> Field[Value | None]:
    """The field, None where its key is absent or null."""
    return Field(field.read, field.kind, field.fits, field.key, lambda: None, field.inside)


def otherwise(field: Field[Value], default: Value) -> Field[Value]:
    """The field, `default` where its key is absent or null."""
    return Field(field.read, field.kind, field.fits, field.key, lambda: copy.copy(default), field.inside)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def as_estimate(value: Mapping[str, Any] | float) -> Estimate:
    """An estimate from `{"score": …, "interval": [low, high]}`, or from a bare number."""
    if not isinstance(value, Mapping):
        return Estimate(float(value))
    interval: Sequence[float] | None = value.get("interval")
    return Estimate(float(value["score"]), None if interval is None else (float(interval[0]), float(interval[1])))


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return type(value) is int or (isinstance(value, float) and value.is_integer())


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
