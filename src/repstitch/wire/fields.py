"""JSON requests to fields and rows, and replies to JSON."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from repstitch.wire.lists import count, read_rows
from repstitch.wire.rows import DTYPES, Buffer, MalformedError, UnusableError, rows_from_base64, rows_to_base64

NAME_LENGTH = 256
EXTRA = 2000  # brackets that names may hold
PART_ROWS = 256
LONG = 2**20  # bytes of text


def read_json(
    body: Buffer, required: str, known: Mapping[str, Callable | None], max_lists: int | None = None
) -> dict[str, Any]:
    """The fields of a JSON request, each checked by its function in `known`; `required` must be there.

    A long list of rows in it is an array already.

    Raises MalformedError on anything but an object with these fields, and, before it is parsed, on many more lists
    than rows may be or more objects than a request has: they take a hundred times the memory of their text.
    """
    import orjson

    if max_lists is not None and (count(body, b"[") > 2 * max_lists + EXTRA or count(body, b"{") > EXTRA):
        raise MalformedError(f"The body must be one object with at most {max_lists} rows; it holds too many brackets.")

    try:
        fields = (read_rows(body, required) if len(body) > LONG else None) or orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"The body must be JSON; {error}.") from None
    if not isinstance(fields, dict):
        raise MalformedError(f'The body must be a JSON object {{"{required}": ...}}; got {_kind(fields)}.')
    if required not in fields:
        raise MalformedError(f"`{required}` is missing; known are {', '.join(known)}.", required)
    for name, value in fields.items():
        if name not in known:
            raise MalformedError(f"`{name[:NAME_LENGTH]}` is not a field; known are {', '.join(known)}.", None)
        check = known[name]
        if check is not None:
            check(name, value)
    return fields


def check_name(param: str, value: Any) -> None:
    """Refuse what cannot be a name; long ones because an unknown name is compared with every known one."""
    if not isinstance(value, str):
        raise MalformedError(f"`{param}` must be a name; got {_kind(value)}.", param)
    if not value or len(value) > NAME_LENGTH:
        raise MalformedError(f"`{param}` must have 1 to {NAME_LENGTH} characters; got {len(value)}.", param)


def check_flag(param: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise MalformedError(f"`{param}` must be true or false; got {_kind(value)}.", param)


def check_word(choices: tuple[str, ...], param: str, value: Any) -> None:
    """Refuse what is none of a few words."""
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
    if value not in SAID:
        raise MalformedError(f"`{param}` must be true or false; got {value[:NAME_LENGTH]!r}.", param)
    return SAID[value]


def read_embedding(
    embedding: Any, dim: int, dtype: str = "float32", param: str = "embedding"
) -> tuple[np.ndarray, bool]:
    """The value of a field of rows as float32 (n, dim), and whether it was one vector rather than a list of them.

    One vector `[...]`, several `[[...], ...]` or an array of them, or base64 of little-endian numbers of `dtype`.
    Raises MalformedError on anything that is not numbers in one of those shapes, UnusableError on another dimension
    than `dim`.
    """
    if isinstance(embedding, str):
        rows = rows_from_base64(embedding, dim, dtype, param)
        return rows, len(rows) == 1
    if isinstance(embedding, np.ndarray):
        _check_width(embedding.shape[1], dim, f"The rows of `{param}`", param)
        return embedding, False
    if not isinstance(embedding, list):
        raise MalformedError(
            f"`{param}` must be a list of numbers, a list of such lists, or base64; got {_kind(embedding)}.", param
        )
    if not embedding:
        raise MalformedError(f"`{param}` must hold at least one row of {dim} numbers; it is empty.", param)
    single = type(embedding[0]) is not list
    rows = [embedding] if single else embedding
    for i, row in enumerate(rows):
        if type(row) is not list or not row or not NUMBERS.issuperset(map(type, row)):
            raise _not_numbers(row, f"`{param}`" if single else f"Row {i} of `{param}`", single, param)
    widths = set(map(len, rows))
    if len(widths) > 1:
        at = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
        raise MalformedError(
            f"The rows of `{param}` must all have {dim} numbers; row 0 has {len(rows[0])}, row {at} has "
            f"{len(rows[at])}.",
            param,
        )
    _check_width(widths.pop(), dim, f"`{param}`" if single else f"The rows of `{param}`", param)
    with np.errstate(over="ignore"):  # beyond float32 becomes Inf, which is refused as such
        return np.array(rows, dtype=np.float32), single


def _check_width(width: int, dim: int, what: str, param: str) -> None:
    if width != dim:
        raise UnusableError(f"{what} must have {dim} numbers; got {width}.", param)


def write_embedding(rows: np.ndarray, single: bool, encoding: str, dtype: str = "float32") -> np.ndarray | str:
    """Rows as the value of `embedding` in a reply: an array for `write_json`, or base64 of `dtype`."""
    kept = rows[0] if single else rows
    return rows_to_base64(kept, dtype) if encoding == "base64" else np.ascontiguousarray(kept)


def write_reply(field: str, value: Any, rest: Mapping[str, Any]) -> list[Buffer]:
    """A reply of `value` and at least one other field, as the parts of its JSON; of a long list there are many.

    Nothing else runs while a part is written, and to join them would take as long again.
    """
    whole = isinstance(value, str) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if whole or len(value) <= PART_ROWS:
        return [write_json({field: value, **rest})]
    parts: list[Buffer] = []
    for at in range(0, len(value), PART_ROWS):
        part = memoryview(write_json(value[at : at + PART_ROWS]))
        parts += [b",", part[1:-1]]
    return [write_json({field: []})[:-2], *parts[1:], b"],", write_json(rest)[1:]]


def write_json(reply: Any) -> bytes:
    """A reply as JSON; float32 arrays are written with the fewest digits that read back the same."""
    import orjson

    try:
        return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # of whole numbers beyond 64 bits, which a scorecard from elsewhere may hold
        return json.dumps(reply).encode()


def _not_numbers(row: Any, what: str, single: bool, param: str) -> MalformedError:
    if type(row) is not list:
        return MalformedError(f"{what} must be a list like the rows before it; got {_kind(row)}.", param)
    if not row:
        return MalformedError(f"{what} must hold numbers; got an empty list.", param)
    at = next(i for i, value in enumerate(row) if type(value) not in NUMBERS)
    depth = " or a list of rows of numbers" if single else ""
    return MalformedError(f"{what} must be a list of numbers{depth}; at position {at} came {_kind(row[at])}.", param)


def _kind(value: Any) -> str:
    return KINDS.get(type(value), type(value).__name__)


ENCODINGS = ("float", "base64")
ROUTES = ("direct", "auto")
SAID = {"true": True, "false": False}
NUMBERS = {int, float}
KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    type(None): "null",
    int: "a number",
    float: "a number",
}
PAIR = {"source": check_name, "target": check_name, "stitcher": check_name}
CHOSEN = {"confidence": check_flag, "route": partial(check_word, ROUTES)}
WRITTEN = {
    "encoding_format": partial(check_word, ENCODINGS),
    "dtype": partial(check_word, tuple(DTYPES)),
}
# The fields of each JSON request: what checks them; None where rows are read once their dimension is known.
TRANSLATE = {"embedding": None, **PAIR, **CHOSEN, **WRITTEN}
SCORE = {"embedding": None, "counterpart": None, **PAIR, "dtype": WRITTEN["dtype"]}
EMBEDDINGS = {
    "model": check_name,
    "input": None,
    "encoding_format": WRITTEN["encoding_format"],
    "dimensions": check_size,
    "user": check_text,
}
