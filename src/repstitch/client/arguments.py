# pyright: strict
"""Check the arguments of both clients before anything is sent."""

import math

import numpy as np
from numpy.typing import ArrayLike

from repstitch.errors import InputError, one_line
from repstitch.wire.fields import check_name
from repstitch.wire.rows import DTYPES


def authorisation(api_key: object) -> dict[str, str]:
    """Return the header with `api_key`, or no header for None."""
    if api_key is None:
        return {}
    if not isinstance(api_key, str) or not api_key or not all("!" <= letter <= "~" for letter in api_key):
        raise InputError("`api_key` must be visible ASCII characters without spaces, or None; got another value.")
    return {"Authorization": f"Bearer {api_key}"}


def check_seconds(param: str, value: object) -> float:
    """Return `value` if it is a positive, finite number; raise InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"`{param}` must be a number of seconds above 0; got {value!r}.")
    return value


def check_whole_number(param: str, value: object, minimum: int) -> int:
    """Return `value` if it is an int of at least `minimum`; raise InputError otherwise."""
    if type(value) is not int or value < minimum:
        raise InputError(f"`{param}` must be a whole number of at least {minimum}; got {value!r}.")
    return value


def check_encodable_name(param: str, value: str) -> None:
    """Check that a value is a name and that UTF-8 can encode it."""
    check_name(param, value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"`{param}` must be a name that UTF-8 can encode; got {value!r}.") from None


def names_of_request(source: str, target: str, stitcher: str | None) -> dict[str, str]:
    """Check the names that a request sends, and return them by parameter."""
    names = {"source": source, "target": target} | ({} if stitcher is None else {"stitcher": stitcher})
    for param, value in names.items():
        check_encodable_name(param, value)
    return names


def as_floats(param: str, values: ArrayLike) -> np.ndarray:
    """Return `values` as a non-empty array (n, d) or (d,) of floats of any width."""
    rule = f"`{param}` must be rows (n, d) or one vector (d,) of floats"
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{rule}; {one_line(error)}") from None
    if array.dtype.kind != "f":
        raise InputError(f"{rule}; got {array.dtype}. Convert it, for example with `np.asarray({param}, 'float32')`.")
    if array.ndim not in (1, 2):
        raise InputError(f"{rule}; got shape {array.shape}. Reshape it to (n, d).")
    if not array.size:
        raise InputError(f"{rule}, at least one row and one column; got shape {array.shape}. Skip the call.")
    return array


def check_finite(param: str, rows: np.ndarray, dtype: str, start: int) -> None:
    """Check that rows are finite in `dtype`, the type they are sent as. `start` is the number of the first row."""
    finite = np.isfinite(_cast(rows, dtype)).all(axis=1)
    if not finite.all():
        row = start + int(np.argmin(finite))
        wider = ' or send it with dtype="float32"' if dtype == "float16" else ""
        raise InputError(
            f"`{param}` must contain finite {dtype} numbers; row {row} has NaN, Inf or a number too large for {dtype}. "
            f"Remove the row{wider}."
        )


def to_bytes(rows: np.ndarray, dtype: str) -> bytes:
    """Return rows as little-endian numbers of `dtype`, row by row."""
    return _cast(rows, dtype).tobytes()


def _cast(rows: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # numbers that are too large become Inf, which `check_finite` rejects
        return rows.astype(DTYPES[dtype], copy=False)
