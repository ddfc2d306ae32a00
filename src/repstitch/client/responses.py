"""What comes back: replies checked, and read to translations and to errors."""

import math
import time
from dataclasses import dataclass, replace
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any
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
from repstitch.wire.rows import DTYPES

if TYPE_CHECKING:
    import httpx

OCTETS = "application/octet-stream"
JSON = "application/json"
MESSAGE_LENGTH = 1000


@dataclass(frozen=True, eq=False)
class Translation:
    """Translated rows and where they come from.

    `vectors` is (n, d_target), or (d_target,) where one vector was sent. `confidence` has an array of n numbers (of no
    dimension for one vector) a measure, in the dtype of `vectors`; it is empty where it was not asked for. `stitcher`
    and `version` name the one map behind all rows; where it leads over several stitchers, both hold one item each,
    joined by commas. `route` is the spaces passed, source and target included, and `expected_score` what the service
    expects of it (None where unknown); both are told only with route="auto".
    """

    vectors: np.ndarray
    confidence: dict[str, np.ndarray]
    stitcher: str
    version: str
    route: tuple[str, ...] | None = None
    expected_score: float | None = None


def read_translation(reply: "httpx.Response", n: int, route: str, confidence: bool, dtype: str) -> Translation:
    """The rows of one reply, (n, d_target); ServiceError unless its headers and its length say that they are these."""
    said = reply.headers
    form = _media_type(said.get("content-type", ""))
    if form != (OCTETS, dtype):
        raise unfit(reply, f"it is {' of '.join(form)}, not {OCTETS} of {dtype}")
    if said.get("x-rows") != str(n):
        raise unfit(reply, f"X-Rows must be {n}; got {_shown(said.get('x-rows'))}")
    dim = said.get("x-dim", "")
    if not (dim.isascii() and dim.isdigit() and len(dim) < 10 and int(dim)):
        raise unfit(reply, f"X-Dim must be a whole number of at least 1; got {_shown(said.get('x-dim'))}")
    for header in ("x-stitcher", "x-stitcher-version", *(["x-route"] if route == "auto" else [])):
        if not said.get(header):
            raise unfit(reply, f"{header.title()} is missing")
    measures = [name for name in said.get("x-confidence", "").split(",") if name]
    if bool(measures) != confidence:
        raise unfit(reply, f"X-Confidence must{'' if confidence else ' not'} name measures; got {_shown(measures)}")
    d, columns = int(dim), int(dim) + len(measures)
    expected = n * columns * DTYPES[dtype].itemsize
    if len(reply.content) != expected:
        raise unfit(reply, f"{n} rows of {columns} {dtype} numbers are {expected} bytes; got {len(reply.content)}")
    rows = np.frombuffer(reply.content, DTYPES[dtype]).reshape(n, columns)
    return Translation(
        rows[:, :d],
        {unquote(name): rows[:, d + i] for i, name in enumerate(measures)},
        unquote(said["x-stitcher"]),
        unquote(said["x-stitcher-version"]),
        tuple(unquote(space) for space in said["x-route"].split("->")) if route == "auto" else None,
        _number(said.get("x-expected-score")),
    )


def origin(reply: Translation) -> tuple:
    """What all parts of one array must have in common."""
    measures = tuple(reply.confidence)
    return reply.vectors.shape[1], measures, reply.stitcher, reply.version, reply.route, reply.expected_score


def join(replies: list[Translation], single: bool) -> Translation:
    """The parts of an array as one translation, in memory of its own; of one row, a vector."""
    vectors = np.concatenate([reply.vectors for reply in replies])
    names = replies[0].confidence
    confidence = {name: np.concatenate([reply.confidence[name] for reply in replies]) for name in names}
    native = vectors.dtype.newbyteorder("=")
    vectors = vectors.astype(native, copy=False)
    confidence = {name: values.astype(native, copy=False) for name, values in confidence.items()}
    if single:
        vectors = vectors[0]
        confidence = {name: values.reshape(()) for name, values in confidence.items()}
    return replace(replies[0], vectors=vectors, confidence=confidence)


def read_object(reply: "httpx.Response") -> dict[str, Any]:
    form, _ = _media_type(reply.headers.get("content-type", ""))
    if form != JSON:
        raise unfit(reply, f"it is {form}, not {JSON}")
    try:
        found = reply.json()
    except ValueError:
        raise unfit(reply, "it is no JSON") from None
    if not isinstance(found, dict):
        raise unfit(reply, "it is no JSON object")
    return found


def _media_type(content_type: str) -> tuple[str, str]:
    """What a Content-Type says: the format and the dtype, float32 where none is named."""
    form, *params = (piece.strip().lower() for piece in content_type[:200].split(";"))
    return form or "of no type", next((p[len("dtype=") :] for p in params if p.startswith("dtype=")), "float32")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def retry_after(headers: "httpx.Headers") -> float:
    """Seconds that a reply asks to wait, told as a number or as a date; 0 where it does not say so."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    # By the service's own clock where it is told, for ours may go wrong.
    now = _timestamp(headers.get("date", ""))
    then = _timestamp(text)
    return 0.0 if then is None else max(0.0, then - (time.time() if now is None else now))


def _timestamp(date: str) -> float | None:
    try:
        parsed = parsedate_tz(date)
        return None if parsed is None else mktime_tz(parsed)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def error_of(reply: "httpx.Response") -> ClientError:
    """The error that a reply other than 200 is, with the service's message where it is in the service's form."""
    status = reply.status_code
    kind = STATUSES.get(status, ClientInputError if 400 <= status < 500 else ServiceError)
    if reply.has_redirect_location:
        return kind(f"`address` must be the service's own; it answers {status} and points elsewhere.", status)
    try:
        error = read_object(reply)["error"]
        message, code, param = (error.get(key) for key in ("message", "code", "param"))
        said = " ".join(message.split())[:MESSAGE_LENGTH]
    except (ServiceError, KeyError, AttributeError):
        return kind(f"The service answered {status} {reply.reason_phrase}, without saying why.", status)
    return kind(said, status, *(value if isinstance(value, str) else None for value in (code, param)))


def counted_from(error: ClientInputError, start: int) -> ClientInputError:
    """The refusal of a part: its message counts rows from the part's first one."""
    if not start:
        return error
    return ClientInputError(f"{error} Rows are counted from row {start} of `X`.", error.status, error.code, error.param)


def unfit(reply: "httpx.Response", why: str) -> ServiceError:
    message = f"The reply does not fit the request: {why}. See that `address` is a repstitch service of this version."
    return ServiceError(message, reply.status_code)


def _shown(said: Any) -> str:
    return str(said)[:100] if said else "none"


STATUSES: dict[int, type[ClientError]] = {
    401: UnauthorisedError,
    403: UnauthorisedError,
    404: ClientNotFoundError,
    409: ClientConflictError,
    429: BusyError,
    503: BusyError,
}
