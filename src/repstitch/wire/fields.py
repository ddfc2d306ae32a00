# pyright: strict
"""Read fields and rows from JSON requests, and write responses as JSON."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np

from repstitch.spaces import NAME_LENGTH
from repstitch.wire.lists import count, read_rows
from repstitch.wire.rows import DTYPES, Buffer, MalformedError, UnusableError, rows_from_base64, rows_to_base64

EXTRA_BRACKETS = 2000  # allowed on top of those of the rows, since names may contain brackets
PART_ROWS = 256
LONG_BYTES = 2**20  # lists of rows in longer bodies are parsed in chunks
Checks: TypeAlias = Mapping[str, Callable[[str, Any], None] | None]


def read_json(body: Buffer, required: str, checks: Checks, max_lists: int | None = None) -> dict[str, Any]:
    """Parse a JSON request, check each field by its function in `checks`, and return the fields.

    The field `required` must be present. In a long body, its value may be an array (n, d) instead of a list of rows.
    Other fields that are null are left out, because typed clients send null for each field that is not set.

    Raises MalformedError if the body is not an object with these fields. It is raised before parsing if the body has
    far more lists than `max_lists`, or more objects than a request needs: parsed lists and objects take a hundred times
    the memory of their text.
    """
    import orjson

    if max_lists is not None and (
        count(body, b"[") > 2 * max_lists + EXTRA_BRACKETS or count(body, b"{") > EXTRA_BRACKETS
    ):
        raise MalformedError(f"The body must be one object with at most {max_lists} rows; it has too many brackets.")

    try:
        payload = (read_rows(body, required) if len(body) > LONG_BYTES else None) or orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"The body must be JSON; {error}.") from None
    if not isinstance(payload, dict):
        raise MalformedError(f'The body must be a JSON object {{"{required}": ...}}; got {_kind(payload)}.')
    fields = cast("dict[str, Any]", payload)
    if required not in fields:
        raise MalformedError(f"`{required}` is missing; allowed fields are {', '.join(checks)}.", required)
    for name, value in fields.items():
        if name not in checks:
            raise MalformedError(
                f"`{name[:NAME_LENGTH]}` is not a field; allowed fields are {', '.join(checks)}.", None
            )
        check = checks[name]
        if check is not None and value is not None:
            check(name, value)
    return {name: value for name, value in fields.items() if value is not None or name == required}


def check_name(param: str, value: Any) -> None:
    """Check that a value is a name of 1 to 256 characters.

    Longer names are rejected because an unknown name is compared with all existing ones.
    """
    if not isinstance(value, str):
        raise MalformedError(f"`{param}` must be a name; got {_kind(value)}.", param)
    if not value or len(value) > NAME_LENGTH:
        raise MalformedError(f"`{param}` must have 1 to {NAME_LENGTH} characters; got {len(value)}.", param)


def check_flag(param: str, value: Any) -> None:
    """Check that a value is true or false."""
    if not isinstance(value, bool):
        raise MalformedError(f"`{param}` must be true or false; got {_kind(value)}.", param)


def check_word(choices: tuple[str, ...], param: str, value: Any) -> None:
    """Check that a value is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        shown = repr(value[:NAME_LENGTH]) if isinstance(value, str) else _kind(value)
        raise MalformedError(f"`{param}` must be one of {', '.join(choices)}; got {shown}.", param)


def check_size(param: str, value: Any) -> None:
    """Check that a value is a whole number of at least 1."""
    if type(value) not in NUMBERS or value % 1 or value < 1:  # JSON has one type of number: 4.0 is whole
        raise MalformedError(f"`{param}` must be a whole number of at least 1; got {_kind(value)}.", param)


def check_text(param: str, value: Any) -> None:
    """Check that a value is text."""
    if not isinstance(value, str):
        raise MalformedError(f"`{param}` must be text; got {_kind(value)}.", param)


def read_flag(param: str, value: str) -> bool:
    """Return the value of a flag in a query string."""
    if value not in FLAGS:
        raise MalformedError(f"`{param}` must be true or false; got {value[:NAME_LENGTH]!r}.", param)
    return FLAGS[value]


def read_embedding(
    embedding: Any, dim: int, dtype: str = "float32", param: str = "embedding"
) -> tuple[np.ndarray, bool]:
    """Return the rows in the value of a field as float32 (n, dim), and whether the value is a single vector.

    The value is one vector `[...]`, a list `[[...], ...]` or an array of vectors, or base64 of little-endian numbers of
    `dtype`. Base64 of one row counts as a single vector. Raises MalformedError if the value has none of these forms,
    and UnusableError if the dimension of the rows is not `dim`.
    """
    if isinstance(embedding, str):
        array = rows_from_base64(embedding, dim, dtype, param)
        return array, len(array) == 1
    if isinstance(embedding, np.ndarray):
        array = cast("np.ndarray", embedding)
        _check_width(array.shape[1], dim, f"The rows of `{param}`", param)
        return array, False
    if not isinstance(embedding, list):
        raise MalformedError(
            f"`{param}` must be a list of numbers, a list of such lists, or base64; got {_kind(embedding)}.", param
        )
    values = cast("list[Any]", embedding)
    if not values:
        raise MalformedError(f"`{param}` must contain at least one row of {dim} numbers; it is empty.", param)
    single = type(values[0]) is not list
    rows: list[list[Any]] = [values] if single else values
    for i, row in enumerate(rows):
        if type(row) is not list or not row or not NUMBERS.issuperset(map(type, row)):
            raise _not_numbers(row, f"`{param}`" if single else f"Row {i} of `{param}`", single, param)
    widths = set(map(len, rows))
    if len(widths) > 1:
        i = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
        raise MalformedError(
            f"The rows of `{param}` must all have {dim} numbers; row 0 has {len(rows[0])}, row {i} has {len(rows[i])}.",
            param,
        )
    _check_width(widths.pop(), dim, f"`{param}`" if single else f"The rows of `{param}`", param)
    with np.errstate(over="ignore"):  # numbers too large for float32 become Inf, which is rejected later
        return np.array(rows, dtype=np.float32), single


def _check_width(width: int, dim: int, subject: str, param: str) -> None:
    if width != dim:
        raise UnusableError(f"{subject} must have {dim} numbers; got {width}.", param)


def write_embedding(rows: np.ndarray, single: bool, encoding: str, dtype: str = "float32") -> np.ndarray | str:
    """Return rows as the value of `embedding` in a response: an array for `write_json`, or base64 of `dtype`.

    If `single`, the only row is returned as one vector.
    """
    value = rows[0] if single else rows
    return rows_to_base64(value, dtype) if encoding == "base64" else np.ascontiguousarray(value)


def write_reply(field: str, value: str | np.ndarray | list[dict[str, Any]], rest: Mapping[str, Any]) -> list[Buffer]:
    """Write a response with the field `field` and at least one other field, as parts of JSON text.

    A long list is written in several parts, because no other thread runs while orjson writes one. The parts are not
    joined, because joining them would take as long as writing them.
    """
    in_one_part = isinstance(value, str) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if in_one_part or len(value) <= PART_ROWS:
        return [write_json({field: value, **rest})]
    parts: list[Buffer] = []
    for start in range(0, len(value), PART_ROWS):
        part = memoryview(write_json(value[start : start + PART_ROWS]))
        parts += [b",", part[1:-1]]
    return [write_json({field: []})[:-2], *parts[1:], b"],", write_json(rest)[1:]]


def write_json(reply: Any) -> bytes:
    """Return a response as JSON. Float32 numbers get the fewest digits that read back as the same number."""
    import orjson

    try:
        return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # for integers beyond 64 bits and halves of surrogate pairs in what a folder states
        return json.dumps(_strict(reply), allow_nan=False).encode()


def _strict(value: Any) -> Any:
    """Return a value without NaN and Inf, which become null as in orjson, and without halves of surrogate pairs."""
    if isinstance(value, dict):
        return {_strict(name): _strict(inner) for name, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _not_numbers(row: Any, subject: str, single: bool, param: str) -> MalformedError:
    """Return the error for a row that is not a list of numbers."""
    if type(row) is not list:
        return MalformedError(f"{subject} must be a list, like the rows before it; got {_kind(row)}.", param)
    if not row:
        return MalformedError(f"{subject} must contain numbers; got an empty list.", param)
    values = cast("list[Any]", row)
    i = next(i for i, value in enumerate(values) if type(value) not in NUMBERS)
    depth = " or a list of rows of numbers" if single else ""
    return MalformedError(f"{subject} must be a list of numbers{depth}; got {_kind(values[i])} at position {i}.", param)


def _kind(value: object) -> str:
    """Return the name of a JSON value's type for messages."""
    return KINDS.get(type(value), type(value).__name__)


ENCODINGS = ("float", "base64")
ROUTES = ("direct", "auto")
FLAGS = {"true": True, "false": False}
NUMBERS = {int, float}
KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "a boolean",
    type(None): "null",
    int: "a number",
    float: "a number",
}
NAME_FIELDS = {"source": check_name, "target": check_name, "stitcher": check_name}
OPTION_FIELDS = {"confidence": check_flag, "route": partial(check_word, ROUTES)}
ENCODING_FIELDS = {
    "encoding_format": partial(check_word, ENCODINGS),
    "dtype": partial(check_word, tuple(DTYPES)),
}
# The fields of each JSON request with their checks. Rows have no check here, because it needs the dimension of the
# space.
TRANSLATE: Checks = {"embedding": None, **NAME_FIELDS, **OPTION_FIELDS, **ENCODING_FIELDS}
SCORE: Checks = {"embedding": None, "counterpart": None, **NAME_FIELDS, "dtype": ENCODING_FIELDS["dtype"]}
# Fields of OpenAI's API and of services like it that change nothing about a vector.
IGNORED_FIELDS = ("user", "safety_identifier", "request_id")
EMBEDDINGS: Checks = {
    "model": check_name,
    "input": None,
    "encoding_format": ENCODING_FIELDS["encoding_format"],
    "dimensions": check_size,
    "input_type": check_text,
    **dict.fromkeys(IGNORED_FIELDS, check_text),
}
