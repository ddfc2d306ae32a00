# pyright: strict
"""Replies of the service, checked and read: translations, JSON objects and errors."""

import math
import time
from dataclasses import dataclass, replace
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any, TypeAlias, cast
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
JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Translation:
    """Translated rows and the stitcher that translated them.

    `vectors` is (n, d_target), or (d_target,) where one vector was sent. `confidence` maps each measure to an array
    (n,), 0-dimensional for one vector, in the dtype of `vectors`; it is empty unless asked for. `stitcher` and
    `version` are the same for all rows; on a route over several stitchers each holds all of them, joined by commas.
    With route="auto" `route` is the spaces from source to target and `expected_score` the expected recall@1, None
    where unknown.
    """

    vectors: np.ndarray
    confidence: dict[str, np.ndarray]
    stitcher: str
    version: str
    route: tuple[str, ...] | None = None
    expected_score: float | None = None


def read_translation(reply: "httpx.Response", n: int, route: str, confidence: bool, dtype: str) -> Translation:
    """The `n` rows of one reply; ServiceError unless its headers and its length fit the request."""
    headers = reply.headers
    media_type = _media_type(headers.get("content-type", ""))
    if media_type != (OCTETS, dtype):
        raise mismatch(reply, f"it is {' of '.join(media_type)}, not {OCTETS} of {dtype}")
    if headers.get("x-rows") != str(n):
        raise mismatch(reply, f"X-Rows must be {n}; got {_shown(headers.get('x-rows'))}")
    dim = headers.get("x-dim", "")
    if not (dim.isascii() and dim.isdigit() and len(dim) < 10 and int(dim)):
        raise mismatch(reply, f"X-Dim must be a whole number of at least 1; got {_shown(headers.get('x-dim'))}")
    for header in ("x-stitcher", "x-stitcher-version", *(["x-route"] if route == "auto" else [])):
        if not headers.get(header):
            raise mismatch(reply, f"{header.title()} is missing")
    measures = [name for name in headers.get("x-confidence", "").split(",") if name]
    if bool(measures) != confidence:
        raise mismatch(reply, f"X-Confidence must{'' if confidence else ' not'} name measures; got {_shown(measures)}")
    d, n_columns = int(dim), int(dim) + len(measures)
    n_bytes = n * n_columns * DTYPES[dtype].itemsize
    if len(reply.content) != n_bytes:
        raise mismatch(reply, f"{n} rows of {n_columns} {dtype} numbers are {n_bytes} bytes; got {len(reply.content)}")
    rows = np.frombuffer(reply.content, DTYPES[dtype]).reshape(n, n_columns)
    return Translation(
        rows[:, :d],
        {unquote(name): rows[:, d + i] for i, name in enumerate(measures)},
        unquote(headers["x-stitcher"]),
        unquote(headers["x-stitcher-version"]),
        tuple(unquote(space) for space in headers["x-route"].split("->")) if route == "auto" else None,
        _number(headers.get("x-expected-score")),
    )


def provenance(part: Translation) -> tuple[object, ...]:
    """What all parts of one array must have in common."""
    measures = tuple(part.confidence)
    return part.vectors.shape[1], measures, part.stitcher, part.version, part.route, part.expected_score


def join(parts: list[Translation], single: bool) -> Translation:
    """The parts of an array as one translation, in newly allocated memory; with `single` its only row as a vector."""
    vectors = np.concatenate([part.vectors for part in parts])
    measures = parts[0].confidence
    confidence = {name: np.concatenate([part.confidence[name] for part in parts]) for name in measures}
    native = vectors.dtype.newbyteorder("=")
    vectors = vectors.astype(native, copy=False)
    confidence = {name: values.astype(native, copy=False) for name, values in confidence.items()}
    if single:
        vectors = vectors[0]
        confidence = {name: values.reshape(()) for name, values in confidence.items()}
    return replace(parts[0], vectors=vectors, confidence=confidence)


def read_object(reply: "httpx.Response") -> JsonObject:
    """The JSON object in the body of a reply; ServiceError where it is something else."""
    media_type, _ = _media_type(reply.headers.get("content-type", ""))
    if media_type != JSON:
        raise mismatch(reply, f"it is {media_type}, not {JSON}")
    try:
        body = reply.json()
    except ValueError:
        raise mismatch(reply, "it is no JSON") from None
    if not isinstance(body, dict):
        raise mismatch(reply, "it is no JSON object")
    return cast("JsonObject", body)


def _media_type(content_type: str) -> tuple[str, str]:
    """The format and the dtype of a Content-Type, float32 where it names none."""
    kind, *params = (piece.strip().lower() for piece in content_type[:200].split(";"))
    return kind or "of no type", next((p[len("dtype=") :] for p in params if p.startswith("dtype=")), "float32")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def retry_after(headers: "httpx.Headers") -> float:
    """The seconds of a Retry-After header, which states a number or a date; 0 without a valid one."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    # The service's clock where the reply states it, since ours may be wrong.
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
    """The error for a reply other than 200, with the service's message where the body has the form of its errors."""
    status = reply.status_code
    kind = STATUSES.get(status, ClientInputError if 400 <= status < 500 else ServiceError)
    if reply.has_redirect_location:
        return kind(f"`address` must be the service's own; it answers {status} and points elsewhere.", status)
    try:
        error = read_object(reply)["error"]
        message, code, param = (error.get(key) for key in ("message", "code", "param"))
        message = " ".join(message.split())[:MESSAGE_LENGTH]
    except (ServiceError, KeyError, AttributeError):
        return kind(f"The service answered {status} {reply.reason_phrase}, without saying why.", status)
    return kind(message, status, *(value if isinstance(value, str) else None for value in (code, param)))


def with_row_offset(error: ClientInputError, start: int) -> ClientInputError:
    """The refusal of a part that begins at row `start`, whose message counts rows from there."""
    if not start:
        return error
    return ClientInputError(f"{error} Rows are counted from row {start} of `X`.", error.status, error.code, error.param)


def mismatch(reply: "httpx.Response", reason: str) -> ServiceError:
    """The error for a reply that is not what the request asked for."""
    message = (
        f"The reply does not fit the request: {reason}. See that `address` is a repstitch service of this version."
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
