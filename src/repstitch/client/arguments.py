"""What a caller gives, checked before anything is sent."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from repstitch.errors import InputError, one_line
from repstitch.wire.fields import check_name
from repstitch.wire.rows import DTYPES


def authorisation(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not isinstance(api_key, str) or not api_key or not all("!" <= letter <= "~" for letter in api_key):
        raise InputError("`api_key` must be a key of visible ASCII characters without spaces, or None; got another.")
    return {"Authorization": f"Bearer {api_key}"}


def check_whole_number(param: str, value: int, least: int) -> int:
    if type(value) is not int or value < least:
        raise InputError(f"`{param}` must be a whole number of at least {least}; got {value!r}.")
    return value


def check_choice(param: str, value: Any, known: Any) -> None:
    if not isinstance(value, str | bool) or value not in known:
        raise InputError(f"`{param}` must be one of {', '.join(map(str, known))}; got {value!r}.")


def check_written_name(param: str, value: str) -> None:
    check_name(param, value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"`{param}` must be a name that UTF-8 can write; got {value!r}.") from None


def read_names(source: str, target: str, stitcher: str | None) -> dict[str, str]:
    names = {"source": source, "target": target} | ({} if stitcher is None else {"stitcher": stitcher})
    for param, value in names.items():
        check_written_name(param, value)
    return names


def as_floats(param: str, values: ArrayLike) -> np.ndarray:
    """What was given as an array (n, d) or (d,) of floats of any width, with at least one number."""
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
    """Refuse rows that are not finite once they are of the dtype they travel in; `start` is the first one's number."""
    finite = np.isfinite(_cast(rows, dtype)).all(axis=1)
    if not finite.all():
        at = start + int(np.argmin(finite))
        wider = ' or send it with dtype="float32"' if dtype == "float16" else ""
        raise InputError(
            f"`{param}` must hold finite {dtype} numbers; row {at} holds NaN, Inf or a number too large for {dtype}. "
            f"Leave it out{wider}."
        )


def _cast(rows: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes Inf, which is refused as such
        return rows.astype(DTYPES[dtype], copy=False)


def to_bytes(rows: np.ndarray, dtype: str) -> bytes:
    return _cast(rows, dtype).tobytes()
