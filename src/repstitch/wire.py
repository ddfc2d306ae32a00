"""Bodies to float32 rows and back, strictly: nothing is coerced, padded or reshaped to make it fit."""

import base64
import binascii
from typing import Any

import numpy as np

from repstitch.errors import InputError

FLOAT32 = np.dtype("<f4")
NAME_LENGTH = 256


class MalformedError(InputError):
    """A body, or the `param` of it, that cannot be read at all."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class UnusableError(InputError):
    """Rows that were read and cannot be translated: another dimension, NaN, Inf, zeros."""

    param = "embedding"


def rows_from_bytes(body: bytes | bytearray, dim: int, what: str = "The body") -> np.ndarray:
    """Little-endian float32 numbers, one row after the other, as rows (n, dim) that share the body's memory.

    Raises MalformedError when that is not what the bytes are, UnusableError when they do not fill whole rows.
    """
    if not body:
        raise MalformedError(f"{what} must hold at least one row of {dim} float32 numbers; it is empty.", "embedding")
    if len(body) % 4:
        raise MalformedError(
            f"{what} must be little-endian float32, so a multiple of 4 bytes long; got {len(body)} bytes.", "embedding"
        )
    if len(body) % (4 * dim):
        raise UnusableError(
            f"{what} must hold whole rows of {dim} float32 numbers, a multiple of {4 * dim} bytes; got {len(body)}."
        )
    return np.frombuffer(body, FLOAT32).reshape(-1, dim)


def rows_to_bytes(rows: np.ndarray) -> bytes:
    """Rows as little-endian float32 numbers, one row after the other."""
    return rows.astype(FLOAT32, copy=False).tobytes()


def read_json(body: bytes | bytearray) -> dict[str, Any]:
    """The fields of a JSON request, each of the right type; `embedding` is left for `read_embedding`.

    Raises MalformedError on anything but an object with an `embedding` and the fields of FIELDS.
    """
    import orjson

    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"The body must be JSON; {error}.") from None
    if not isinstance(fields, dict):
        raise MalformedError(f'The body must be a JSON object {{"embedding": ...}}; got {_kind(fields)}.')
    if "embedding" not in fields:
        raise MalformedError("`embedding` is missing; give one vector, a list of vectors, or base64.", "embedding")
    for name, value in fields.items():
        if name not in FIELDS:
            raise MalformedError(f"`{name[:NAME_LENGTH]}` is not a field; known are {', '.join(FIELDS)}.", None)
        if name in NAMES:
            check_name(name, value)
        if name in FLAGS and not isinstance(value, bool):
            raise MalformedError(f"`{name}` must be true or false; got {_kind(value)}.", name)
    encoding = fields.get("encoding_format", "float")
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        shown = repr(encoding[:NAME_LENGTH]) if isinstance(encoding, str) else _kind(encoding)
        known = ", ".join(ENCODINGS)
        raise MalformedError(f"`encoding_format` must be one of {known}; got {shown}.", "encoding_format")
    return fields


def check_name(param: str, value: Any) -> None:
    """Refuse what cannot be a name; long ones because an unknown name is compared with every known one."""
    if not isinstance(value, str):
        raise MalformedError(f"`{param}` must be a name; got {_kind(value)}.", param)
    if not value or len(value) > NAME_LENGTH:
        raise MalformedError(f"`{param}` must have 1 to {NAME_LENGTH} characters; got {len(value)}.", param)


def read_flag(param: str, value: str) -> bool:
    """The value of a flag in a query string."""
    if value not in SAID:
        raise MalformedError(f"`{param}` must be true or false; got {value[:NAME_LENGTH]!r}.", param)
    return SAID[value]


def read_embedding(embedding: Any, dim: int) -> tuple[np.ndarray, bool]:
    """The value of `embedding` as rows (n, dim), and whether it was one vector rather than a list of them.

    One vector `[...]`, several `[[...], ...]`, or base64 of little-endian float32. Raises MalformedError on anything
    that is not numbers in one of those shapes, UnusableError on another dimension than `dim`.
    """
    if isinstance(embedding, str):
        rows = rows_from_bytes(_decode_base64(embedding), dim, "`embedding` in base64")
        return rows, len(rows) == 1
    if not isinstance(embedding, list):
        raise MalformedError(
            f"`embedding` must be a list of numbers, a list of such lists, or base64; got {_kind(embedding)}.",
            "embedding",
        )
    if not embedding:
        raise MalformedError(f"`embedding` must hold at least one row of {dim} numbers; it is empty.", "embedding")
    single = type(embedding[0]) is not list
    rows = [embedding] if single else embedding
    for i, row in enumerate(rows):
        _check_row(row, "`embedding`" if single else f"Row {i} of `embedding`", single)
    _check_widths(rows, dim, single)
    with np.errstate(over="ignore"):  # beyond float32 becomes Inf, which is refused as such
        return np.array(rows, dtype=np.float32), single


def write_embedding(rows: np.ndarray, single: bool, encoding: str) -> Any:
    """Rows as the value of `embedding` in a reply: an array for `write_json`, or base64."""
    return ENCODINGS[encoding](rows[0] if single else rows)


def write_json(reply: Any) -> bytes:
    """A reply as JSON; float32 arrays are written with the fewest digits that read back the same."""
    import orjson

    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def faults(rows: np.ndarray) -> str | None:
    """What is wrong with rows that were refused, with the first row that shows it; None when nothing is to be seen."""
    finite = np.isfinite(rows).all(axis=1)
    for bad, rule, held in (
        (~finite, "must be finite float32 numbers", "NaN or Inf"),
        (~rows.any(axis=1), "must have a direction", "only zeros"),
    ):
        if bad.any():
            first = int(np.argmax(bad))
            return f"`embedding` {rule}; {int(bad.sum())} of {len(rows)} rows (first: row {first}) hold {held}."
    return None


def _decode_base64(text: str) -> bytearray:
    try:
        # A bytearray, because torch warns about memory that it may not write to.
        return bytearray(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"`embedding` must be standard base64 of float32 bytes; {error}.", "embedding") from None


def _check_row(row: Any, what: str, single: bool) -> None:
    if type(row) is not list:
        raise MalformedError(f"{what} must be a list like the rows before it; got {_kind(row)}.", "embedding")
    if not row:
        raise MalformedError(f"{what} must hold numbers; got an empty list.", "embedding")
    strangers = set(map(type, row)) - NUMBERS
    if strangers:
        at = next(i for i, value in enumerate(row) if type(value) in strangers)
        depth = " or a list of rows of numbers" if single else ""
        raise MalformedError(
            f"{what} must be a list of numbers{depth}; at position {at} came {_kind(row[at])}.", "embedding"
        )


def _check_widths(rows: list[list], dim: int, single: bool) -> None:
    widths = set(map(len, rows))
    if len(widths) > 1:
        at = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
        raise MalformedError(
            f"The rows of `embedding` must all have {dim} numbers; row 0 has {len(rows[0])}, row {at} has "
            f"{len(rows[at])}.",
            "embedding",
        )
    if widths != {dim}:
        what = "`embedding`" if single else "The rows of `embedding`"
        raise UnusableError(f"{what} must have {dim} numbers; got {widths.pop()}.")


def _kind(value: Any) -> str:
    return KINDS.get(type(value), type(value).__name__)


def _to_base64(rows: np.ndarray) -> str:
    return base64.b64encode(rows_to_bytes(rows)).decode()


NAMES = ("source", "target", "stitcher")
FLAGS = ("confidence",)
FIELDS = ("embedding", *NAMES, *FLAGS, "encoding_format")
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
ENCODINGS = {"float": np.ascontiguousarray, "base64": _to_base64}
