# pyright: strict
"""Checks of the arguments of both clients, before anything is sent."""

import math

import numpy as np
from numpy.typing import ArrayLike

from repstitch.errors import InputError, one_line
from repstitch.wire.fields import check_name
from repstitch.wire.rows import DTYPES


def authorisation(api_key: object) -> dict[str, str]:
    """The header that carries `api_key`; no header for None."""
    if api_key is None:
        return {}
    if not isinstance(api_key, str) or not api_key or not all("!" <= letter <= "~" for letter in api_key):
        raise InputError("`api_key` must be a key of visible ASCII characters without spaces, or None; got another.")
    return {"Authorization": f"Bearer {api_key}"}


def check_seconds(param: str, value: object) -> float:
    """`value` if it is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"`{param}` must be a number of seconds above 0; got {value!r}.")
    return value


def check_whole_number(param: str, value: object, minimum: int) -> int:
    """`value` if it is an int of at least `minimum`."""
    if type(value) is not int or value < minimum:
        raise InputError(f"`{param}` must be a whole number of at least {minimum}; got {value!r}.")
    return value


def check_encodable_name(param: str, value: str) -> None:
    """Refuse what is no name, and names with characters that UTF-8 cannot encode."""
    check_name(param, value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"`{param}` must be a name that UTF-8 can write; got {value!r}.") from None


def names_of_request(source: str, target: str, stitcher: str | None) -> dict[str, str]:
    """The names that a request sends, each checked."""
    names = {"source": source, "target": target} | ({} if stitcher is None else {"stitcher": stitcher})
    for param, value in names.items():
        check_encodable_name(param, value)
    return names


def as_floats(param: str, values: ArrayLike) -> np.ndarray:
    """`values` as a non-empty array (n, d) or (d,) of floats of any width."""
    rule = f"`{param}` must be rows (n, d) or one vector (d,) of floats"
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{rule}; {one_line(error)}") from None
    if array.dtype.kind != "f":
        raise InputError(f"{rule}; got {array.dtype}. Convert it, as by `np.asarray({param}, 'float32')`.")
    if array.ndim not in (1, 2):
        raise InputError(f"{rule}; got shape {array.shape}. Reshape it, or send one row after the other.")
    if not array.size:
        raise InputError(f"{rule}, at least one of at least one number; got shape {array.shape}. Leave the call out.")
    return array


def check_finite(param: str, rows: np.ndarray, dtype: str, start: int) -> None:
    """Refuse rows that are not finite in `dtype`, in which they are sent; `start` is the number of the first row."""
    finite = np.isfinite(_cast(rows, dtype)).all(axis=1)
    if not finite.all():
        row = start + int(np.argmin(finite))
        wider = ' or send it with dtype="float32"' if dtype == "float16" else ""
        raise InputError(
            f"`{param}` must hold finite {dtype} numbers; row {row} holds NaN, Inf or a number too large for {dtype}. "
            f"Leave it out{wider}."
        )


def to_bytes(rows: np.ndarray, dtype: str) -> bytes:
    """Rows as little-endian numbers of `dtype`, one row after the other."""
    return _cast(rows, dtype).tobytes()


def _cast(rows: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # numbers that are too large become Inf, which `check_finite` refuses
        return rows.astype(DTYPES[dtype], copy=False)
