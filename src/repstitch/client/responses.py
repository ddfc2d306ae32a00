# pyright: strict
"""Check and read the responses of the service: translations, JSON objects and errors."""

import json
import math
import re
import time
from dataclasses import dataclass, replace
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast
from urllib.parse import unquote

import numpy as np

from repstitch.client.errors import (
    BusyError,
    ClientConflictError,
    ClientError,
    ClientInputError,
    ClientNotFoundError,
    ServiceError,
    UnauthorisedError,
)
from repstitch.wire.rows import DTYPES, faults

if TYPE_CHECKING:
    import httpx

OCTETS = "application/octet-stream"
JSON = "application/json"
MESSAGE_LENGTH = 1000
MAX_COLUMNS = 65_536  # of a translation, so that its size is bounded although only the response states its dimension
REDIRECTS = (301, 302, 303, 307, 308)
JsonObject: TypeAlias = dict[str, Any]


class Reply(NamedTuple):
    """A response, or its beginning as long as the content is not received."""

    status_code: int
    reason_phrase: str
    headers: "httpx.Headers"
    content: bytes | bytearray = b""


@dataclass(frozen=True, eq=False)
class Translation:
    """Translated rows and the stitcher that translated them.

    `vectors` is (n, d_target), or (d_target,) if one vector was sent. `confidence` maps the name of each measure to an
    array (n,), 0-dimensional for one vector, in the dtype of `vectors`. It is empty unless confidence was requested.
    `stitcher` and `version` are the same for all rows. On a route through several stitchers they list all of them,
    separated by commas. `route` and `expected_score` are set with route="auto" only: the spaces from source to target,
    and the expected recall@1 (None if unknown). `confidence_usable` is False if `p_match` of the stitcher was not
    shown to separate hits from misses on held-out pairs.
    """

    vectors: np.ndarray
    confidence: dict[str, np.ndarray]
    stitcher: str
    version: str
    route: tuple[str, ...] | None = None
    expected_score: float | None = None
    confidence_usable: bool = True


class Layout(NamedTuple):
    """The numbers in the body of a translation: `dim` columns of vectors, then one of each measure."""

    dim: int
    measures: tuple[str, ...]
    n_bytes: int


def read_layout(reply: Reply, n: int, route: str, confidence: bool, dtype: str) -> Layout:
    """Return the layout of `n` rows. Raises ServiceError if the headers do not match the request."""
    headers = reply.headers
    media_type = _media_type(headers.get("content-type", ""))
    if media_type != (OCTETS, dtype):
        raise mismatch(reply, f"its Content-Type is {' with '.join(media_type)}, not {OCTETS} with {dtype}")
    if headers.get("x-rows") != str(n):
        raise mismatch(reply, f"X-Rows must be {n}; got {_shown(headers.get('x-rows'))}")
    for header in ("x-stitcher", "x-stitcher-version", *(["x-route"] if route == "auto" else [])):
        if not headers.get(header):
            raise mismatch(reply, f"{header.title()} is missing")
    measures = tuple(unquote(name) for name in headers.get("x-confidence", "").split(",") if name)
    if bool(measures) != confidence:
        raise mismatch(reply, f"X-Confidence must{'' if confidence else ' not'} name measures; got {_shown(measures)}")
    text = headers.get("x-dim", "")
    dim = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= dim <= MAX_COLUMNS - len(measures):
        raise mismatch(reply, f"X-Dim must be a whole number from 1 to {MAX_COLUMNS}; got {_shown(text)}")
    return Layout(dim, measures, n * (dim + len(measures)) * DTYPES[dtype].itemsize)


def read_translation(reply: Reply, n: int, route: str, confidence: bool, dtype: str) -> Translation:
    """Read the `n` rows of one response. Raises ServiceError if its headers or its length do not match the request."""
    headers = reply.headers
    dim, measures, n_bytes = read_layout(reply, n, route, confidence, dtype)
    n_columns = dim + len(measures)
    if len(reply.content) != n_bytes:
        raise mismatch(reply, f"{n} rows of {n_columns} {dtype} numbers are {n_bytes} bytes; got {len(reply.content)}")
    rows = np.frombuffer(reply.content, DTYPES[dtype]).reshape(n, n_columns)
    return Translation(
        rows[:, :dim],
        {name: rows[:, dim + i] for i, name in enumerate(measures)},
        unquote(headers["x-stitcher"]),
        unquote(headers["x-stitcher-version"]),
        tuple(unquote(space) for space in headers["x-route"].split("->")) if route == "auto" else None,
        _number(headers.get("x-expected-score")),
        headers.get("x-confidence-usable") != "false",
    )


def provenance(part: Translation) -> tuple[object, ...]:
    """Return the values that must be equal in all parts of one array."""
    measures = tuple(part.confidence)
    return part.vectors.shape[1], measures, part.stitcher, part.version, part.route, part.expected_score


def join(parts: list[Translation], single: bool) -> Translation:
    """Join the parts of an array to one translation, in new memory. If `single`, the only row becomes a vector.

    Raises ServiceError on NaN or Inf, and on vectors of zeros, which no stitcher returns.
    """
    vectors = np.concatenate([part.vectors for part in parts])
    measures = parts[0].confidence
    confidence = {name: np.concatenate([part.confidence[name] for part in parts]) for name in measures}
    message = faults(vectors, "vectors")
    for name, values in confidence.items():
        if not np.isfinite(values).all():
            message = f"`{name}` must be finite; row {int(np.argmin(np.isfinite(values)))} contains NaN or Inf."
    if message:
        raise ServiceError(f"The translation in the response cannot be used: {message} Check the stitcher.")
    native = vectors.dtype.newbyteorder("=")
    vectors = vectors.astype(native, copy=False)
    confidence = {name: values.astype(native, copy=False) for name, values in confidence.items()}
    if single:
        vectors = vectors[0]
        confidence = {name: values.reshape(()) for name, values in confidence.items()}
    return replace(parts[0], vectors=vectors, confidence=confidence)


def read_object(reply: Reply) -> JsonObject:
    """Return the JSON object in the body of a response. Raises ServiceError if the body is anything else."""
    media_type, _ = _media_type(reply.headers.get("content-type", ""))
    if media_type != JSON:
        raise mismatch(reply, f"its Content-Type is {media_type}, not {JSON}")
    try:
        body: object = json.loads(reply.content, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise mismatch(reply, "its body is not JSON, or nested too deeply") from None
    if not isinstance(body, dict):
        raise mismatch(reply, "its body is not a JSON object")
    return cast("JsonObject", body)


def _finite(text: str) -> float:
    """Parse a number of JSON. Raises ValueError on NaN and Inf, which are not JSON, and on numbers as large as Inf."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _media_type(content_type: str) -> tuple[str, str]:
    """Return the format and the dtype of a Content-Type. The dtype is float32 if none is stated."""
    kind, *params = (piece.strip().lower() for piece in content_type[:200].split(";"))
    return kind or "none", next((p[len("dtype=") :] for p in params if p.startswith("dtype=")), "float32")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def retry_after(headers: "httpx.Headers") -> float:
    """Return the seconds in a Retry-After header, which is a number or a date; 0 without a valid header."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    # Use the time of the service if the response states it, since the local clock may be wrong.
    now = _timestamp(headers.get("date", ""))
    then = _timestamp(text)
    return 0.0 if then is None else max(0.0, then - (time.time() if now is None else now))


def _timestamp(date: str) -> float | None:
    try:
        parsed = parsedate_tz(date)
        return None if parsed is None else mktime_tz(parsed)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def error_of(reply: Reply) -> ClientError:
    """Return the error for a response with a status other than 200. It has the service's message if there is one."""
    status = reply.status_code
    kind = STATUSES.get(status, ClientInputError if 400 <= status < 500 else ServiceError)
    if status in REDIRECTS and "location" in reply.headers:
        return kind(f"`address` must be the URL of the service; got a redirect ({status}) to another URL.", status)
    try:
        error = read_object(reply)["error"]
        message, code, param = (error.get(key) for key in ("message", "code", "param"))
        # Without control characters, which terminals obey, and lone surrogates, which cannot be printed.
        message = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", message)
    except (ServiceError, KeyError, AttributeError, TypeError):
        return kind(f"The service answered {status} {reply.reason_phrase} without an error message.", status)
    message = " ".join(message.split())[:MESSAGE_LENGTH]
    return kind(message, status, *(value if isinstance(value, str) else None for value in (code, param)))


def invalid_redirect() -> ServiceError:
    """Return the error for a redirect that httpx cannot parse, although it is not followed."""
    return ServiceError("`address` must be the URL of the service; got a redirect to an invalid URL.")


def with_row_offset(error: ClientInputError, start: int) -> ClientInputError:
    """Return the error for a part that begins at row `start`, with a note that its row numbers count from there."""
    if not start:
        return error
    return ClientInputError(
        f"{error} Row 0 in this message is row {start} of `X`.", error.status, error.code, error.param
    )


def mismatch(reply: Reply, reason: str) -> ServiceError:
    """Return the error for a response that does not match its request."""
    message = (
        f"The response does not match the request: {reason}. Check that `address` is the URL of a repstitch service of "
        "the client's version."
    )
    return ServiceError(message, reply.status_code)


def _shown(value: object) -> str:
    return str(value)[:100] if value else "none"


STATUSES: dict[int, type[ClientError]] = {
    401: UnauthorisedError,
    403: UnauthorisedError,
    404: ClientNotFoundError,
    409: ClientConflictError,
    429: BusyError,
    503: BusyError,
}
