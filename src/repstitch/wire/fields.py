# pyright: strict
"""JSON requests to fields and rows, and replies to JSON."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np

from repstitch.wire.lists import count, read_rows
from repstitch.wire.rows import DTYPES, Buffer, MalformedError, UnusableError, rows_from_base64, rows_to_base64

NAME_LENGTH = 256
EXTRA_BRACKETS = 2000  # that names may hold
PART_ROWS = 256
LONG_BYTES = 2**20  # of text, from which lists of rows are parsed in parts
Checks: TypeAlias = Mapping[str, Callable[[str, Any], None] | None]


def read_json(body: Buffer, required: str, checks: Checks, max_lists: int | None = None) -> dict[str, Any]:
    """The fields of a JSON request, each checked by its function in `checks`; the field `required` must be there.

    In a long body, `required` may be an array (n, d) instead of a list of rows.

    Raises MalformedError on anything but an object with these fields. Before parsing it raises on many more lists than
    `max_lists` and on more objects than a request has, since these take a hundred times the memory of their text.
    """
    import orjson

    if max_lists is not None and (
        count(body, b"[") > 2 * max_lists + EXTRA_BRACKETS or count(body, b"{") > EXTRA_BRACKETS
    ):
        raise MalformedError(f"The body must be one object with at most {max_lists} rows; it holds too many brackets.")

    try:
        payload = (read_rows(body, required) if len(body) > LONG_BYTES else None) or orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"The body must be JSON; {error}.") from None
    if not isinstance(payload, dict):
        raise MalformedError(f'The body must be a JSON object {{"{required}": ...}}; got {_kind(payload)}.')
    fields = cast("dict[str, Any]", payload)
    if required not in fields:
        raise MalformedError(f"`{required}` is missing; known are {', '.join(checks)}.", required)
    for name, value in fields.items():
        if name not in checks:
            raise MalformedError(f"`{name[:NAME_LENGTH]}` is not a field; known are {', '.join(checks)}.", None)
        check = checks[name]
        if check is not None:
            check(name, value)
    return fields


def check_name(param: str, value: Any) -> None:
    """Refuse what cannot be a name, and long names, since an unknown name is compared with all others."""
    if not isinstance(value, str):
        raise MalformedError(f"`{param}` must be a name; got {_kind(value)}.", param)
    if not value or len(value) > NAME_LENGTH:
        raise MalformedError(f"`{param}` must have 1 to {NAME_LENGTH} characters; got {len(value)}.", param)


def check_flag(param: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise MalformedError(f"`{param}` must be true or false; got {_kind(value)}.", param)


def check_word(choices: tuple[str, ...], param: str, value: Any) -> None:
    """Refuse what is not one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        shown = repr(value[:NAME_LENGTH]) if isinstance(value, str) else _kind(value)
        raise MalformedError(f"`{param}` must be one of {', '.join(choices)}; got {shown}.", param)


def check_size(param: str, value: Any) -> None:
    if type(value) not in NUMBERS or value % 1 or value < 1:  # JSON has one kind of number: 4.0 is whole
        raise MalformedError(f"`{param}` must be a whole number of at least 1; got {_kind(value)}.", param)


def check_text(param: str, value: Any) -> None:
    if not isinstance(value, str):
        raise MalformedError(f"`{param}` must be text; got {_kind(value)}.", param)


def read_flag(param: str, value: str) -> bool:
    """The value of a flag in a query string."""
    if value not in FLAGS:
        raise MalformedError(f"`{param}` must be true or false; got {value[:NAME_LENGTH]!r}.", param)
    return FLAGS[value]


def read_embedding(
    embedding: Any, dim: int, dtype: str = "float32", param: str = "embedding"
) -> tuple[np.ndarray, bool]:
    """The value of a field of rows as float32 (n, dim), and whether it was one vector rather than a list of them.

    One vector `[...]`, several `[[...], ...]` or an array of them, or base64 of little-endian numbers of `dtype`.
    Raises MalformedError on anything that is not numbers in one of those shapes, UnusableError on another dimension
    than `dim`.
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
        raise MalformedError(f"`{param}` must hold at least one row of {dim} numbers; it is empty.", param)
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
    with np.errstate(over="ignore"):  # numbers too large for float32 become Inf, which is refused later
        return np.array(rows, dtype=np.float32), single


def _check_width(width: int, dim: int, subject: str, param: str) -> None:
    if width != dim:
        raise UnusableError(f"{subject} must have {dim} numbers; got {width}.", param)


def write_embedding(rows: np.ndarray, single: bool, encoding: str, dtype: str = "float32") -> np.ndarray | str:
    """Rows as the value of `embedding` in a reply: an array for `write_json`, or base64 of `dtype`."""
    value = rows[0] if single else rows
    return rows_to_base64(value, dtype) if encoding == "base64" else np.ascontiguousarray(value)


def write_reply(field: str, value: str | np.ndarray | list[dict[str, Any]], rest: Mapping[str, Any]) -> list[Buffer]:
    """A reply of `value` and at least one other field as parts of JSON text, a long list in many parts.

    Nothing else runs while a part is written, and joining the parts would take as long again.
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
    """A reply as JSON; float32 arrays are written with the fewest digits that read back the same."""
    import orjson

    try:
        return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # on whole numbers beyond 64 bits, which a scorecard may hold
        return json.dumps(reply).encode()


def _not_numbers(row: Any, subject: str, single: bool, param: str) -> MalformedError:
    if type(row) is not list:
        return MalformedError(f"{subject} must be a list like the rows before it; got {_kind(row)}.", param)
    if not row:
        return MalformedError(f"{subject} must hold numbers; got an empty list.", param)
    values = cast("list[Any]", row)
    i = next(i for i, value in enumerate(values) if type(value) not in NUMBERS)
    depth = " or a list of rows of numbers" if single else ""
    return MalformedError(
        f"{subject} must be a list of numbers{depth}; at position {i} came {_kind(values[i])}.", param
    )


def _kind(value: object) -> str:
    return KINDS.get(type(value), type(value).__name__)


ENCODINGS = ("float", "base64")
ROUTES = ("direct", "auto")
FLAGS = {"true": True, "false": False}
NUMBERS = {int, float}
KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
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
# The fields of each JSON request with their checks; None for rows, which are read once their dimension is known.
TRANSLATE: Checks = {"embedding": None, **NAME_FIELDS, **OPTION_FIELDS, **ENCODING_FIELDS}
SCORE: Checks = {"embedding": None, "counterpart": None, **NAME_FIELDS, "dtype": ENCODING_FIELDS["dtype"]}
EMBEDDINGS: Checks = {
    "model": check_name,
    "input": None,
    "encoding_format": ENCODING_FIELDS["encoding_format"],
    "dimensions": check_size,
    "user": check_text,
}
