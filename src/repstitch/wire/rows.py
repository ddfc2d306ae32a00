# pyright: strict
"""Little-endian numbers to rows and back: raw, or as base64."""

import base64
import binascii
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from repstitch.errors import InputError

Buffer = bytes | bytearray | memoryview
# The dtypes of numbers in bodies; in memory all rows are float32.
DTYPES: Mapping[str, np.dtype[np.floating]] = MappingProxyType({"float32": np.dtype("<f4"), "float16": np.dtype("<f2")})


class MalformedError(InputError):
    """A body, or the field `param` of it, that cannot be read. The service answers 400."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class UnusableError(InputError):
    """Rows that were read and cannot be translated: another dimension, NaN, Inf, zeros. The service answers 422."""

    def __init__(self, message: str, param: str | None = "embedding"):
        super().__init__(message)
        self.param = param


def rows_from_bytes(
    body: Buffer, dim: int, dtype: str = "float32", subject: str = "The body", param: str = "embedding"
) -> np.ndarray:
    """Little-endian numbers, one row after the other, as float32 rows (n, dim); float32 shares the body's memory.

    Raises MalformedError where the bytes are not whole numbers or none, UnusableError where they do not fill whole
    rows. Messages begin with `subject`.
    """
    kind = DTYPES[dtype]
    if not body:
        raise MalformedError(f"{subject} must hold at least one row of {dim} {dtype} numbers; it is empty.", param)
    if len(body) % kind.itemsize:
        raise MalformedError(
            f"{subject} must be little-endian {dtype}, so a multiple of {kind.itemsize} bytes long; "
            f"got {len(body)} bytes.",
            param,
        )
    if len(body) % (kind.itemsize * dim):
        raise UnusableError(
            f"{subject} must hold whole rows of {dim} {dtype} numbers, a multiple of {kind.itemsize * dim} bytes; "
            f"got {len(body)}.",
            param,
        )
    return np.frombuffer(body, kind).reshape(-1, dim).astype(np.float32, copy=False)


def rows_to_bytes(rows: np.ndarray, dtype: str = "float32") -> memoryview:
    """Float32 rows as little-endian numbers, one row after the other; float32 shares their memory.

    Raises UnusableError where float16 cannot hold them.
    """
    return cast(rows, dtype).data.cast("B")


def cast(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 rows as a contiguous array of `dtype`; UnusableError where a number is too large for it."""
    if dtype == "float32":
        return np.ascontiguousarray(rows, DTYPES[dtype])
    with np.errstate(over="ignore"):  # refused below
        narrow = np.ascontiguousarray(rows.astype(DTYPES[dtype]))
    too_large = ~np.isfinite(narrow)
    if too_large.any():
        row = int(np.argmax(too_large.reshape(len(rows), -1).any(axis=1)))
        raise UnusableError(f"{dtype} cannot hold the translation of row {row}; ask for float32.", None)
    return narrow


def rows_from_base64(text: str, dim: int, dtype: str, param: str = "embedding") -> np.ndarray:
    """Rows (n, dim) from standard base64 of what `rows_from_bytes` takes."""
    try:
        # A bytearray, because torch warns about memory that is read-only.
        body = bytearray(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise MalformedError(f"`{param}` must be standard base64 of {dtype} bytes; {error}.", param) from None
    return rows_from_bytes(body, dim, dtype, f"`{param}` in base64", param)


def rows_to_base64(rows: np.ndarray, dtype: str) -> str:
    """Standard base64 of what `rows_to_bytes` gives."""
    return base64.b64encode(rows_to_bytes(rows, dtype)).decode()


def faults(rows: np.ndarray, param: str = "embedding") -> str | None:
    """A sentence on the rows that are not finite or only zeros, with the first one's number; None without such rows."""
    finite = np.isfinite(rows).all(axis=1)
    for invalid, rule, content in (
        (~finite, "must be finite float32 numbers", "NaN or Inf"),
        ((rows == 0).all(axis=1), "must have a direction", "only zeros"),
    ):
        if invalid.any():
            first = int(np.argmax(invalid))
            return f"`{param}` {rule}; {int(invalid.sum())} of {len(rows)} rows (first: row {first}) hold {content}."
    return None
