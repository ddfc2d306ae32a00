# pyright: strict
"""Convert little-endian numbers, raw or as base64, to rows and back."""

import base64
import binascii
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from repstitch.errors import InputError

Buffer = bytes | bytearray | memoryview
# The dtypes of numbers in request and response bodies. In memory all rows are float32.
DTYPES: Mapping[str, np.dtype[np.floating]] = MappingProxyType({"float32": np.dtype("<f4"), "float16": np.dtype("<f2")})


class MalformedError(InputError):
    """The body, or its field `param`, cannot be parsed. The service answers 400."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class UnusableError(InputError):
    """The rows cannot be translated: wrong dimension, NaN, Inf, or only zeros. The service answers 422."""

    def __init__(self, message: str, param: str | None = "embedding"):
        super().__init__(message)
        self.param = param


def rows_from_bytes(
    body: Buffer, dim: int, dtype: str = "float32", subject: str = "The body", param: str = "embedding"
) -> np.ndarray:
    """Return little-endian numbers, stored row by row, as float32 rows (n, dim). A float32 body is not copied.

    Raises MalformedError if the body is empty or ends inside a number, and UnusableError if it ends inside a row.
    Messages begin with `subject`.
    """
    kind = DTYPES[dtype]
    if not body:
        raise MalformedError(f"{subject} must contain at least one row of {dim} {dtype} numbers; it is empty.", param)
    if len(body) % kind.itemsize:
        raise MalformedError(
            f"{subject} must be little-endian {dtype} numbers, a multiple of {kind.itemsize} bytes; "
            f"got {len(body)} bytes.",
            param,
        )
    if len(body) % (kind.itemsize * dim):
        raise UnusableError(
            f"{subject} must contain whole rows of {dim} {dtype} numbers, a multiple of {kind.itemsize * dim} bytes; "
            f"got {len(body)} bytes.",
            param,
        )
    return np.frombuffer(body, kind).reshape(-1, dim).astype(np.float32, copy=False)


def rows_to_bytes(rows: np.ndarray, dtype: str = "float32") -> memoryview:
    """Return float32 rows as little-endian numbers of `dtype`, row by row. Contiguous rows are not copied for float32.

    Raises UnusableError if a number is too large for float16.
    """
    return cast(rows, dtype).data.cast("B")


def cast(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 rows as a contiguous array of `dtype`. Raises UnusableError if a number is too large for it."""
    if dtype == "float32":
        return np.ascontiguousarray(rows, DTYPES[dtype])
    with np.errstate(over="ignore"):  # rejected below
        narrow = np.ascontiguousarray(rows.astype(DTYPES[dtype]))
    too_large = ~np.isfinite(narrow)
    if too_large.any():
        row = int(np.argmax(too_large.reshape(len(rows), -1).any(axis=1)))
        raise UnusableError(f"The translation of row {row} has numbers too large for {dtype}; request float32.", None)
    return narrow


def rows_from_base64(text: str, dim: int, dtype: str, param: str = "embedding") -> np.ndarray:
    """Return the rows (n, dim) in standard base64 of the bytes that `rows_from_bytes` reads."""
    try:
        # A bytearray, because torch warns about read-only memory.
        body = bytearray(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"`{param}` must be standard base64 of {dtype} bytes; {error}.", param) from None
    return rows_from_bytes(body, dim, dtype, f"`{param}` in base64", param)


def rows_to_base64(rows: np.ndarray, dtype: str) -> str:
    """Return rows as standard base64 of the bytes that `rows_to_bytes` returns."""
    return base64.b64encode(rows_to_bytes(rows, dtype)).decode()


def faults(rows: np.ndarray, param: str = "embedding") -> str | None:
    """Return a message on the rows that contain NaN or Inf, or only zeros; None if there are no such rows.

    The message states how many rows are invalid and the number of the first one.
    """
    finite = np.isfinite(rows).all(axis=1)
    for invalid, rule, content in (
        (~finite, "must be finite float32 numbers", "NaN or Inf"),
        ((rows == 0).all(axis=1), "must have a direction", "only zeros"),
    ):
        if invalid.any():
            first = int(np.argmax(invalid))
            return f"`{param}` {rule}; {int(invalid.sum())} of {len(rows)} rows (first: row {first}) contain {content}."
    return None
