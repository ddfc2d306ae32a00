"""Read the headers and the query string of a request: the formats of its body and response, its names and flags."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from repstitch.server.responses import JSON, Refusal
from repstitch.wire.fields import NAME_FIELDS, OPTION_FIELDS, ROUTES, check_name, check_word, read_flag
from repstitch.wire.rows import DTYPES, MalformedError

OCTETS = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"
OCTETS16 = f"{OCTETS}; dtype=float16"
FORMATS = (OCTETS, JSON, ARROW)
PARAMS = (*NAME_FIELDS, *OPTION_FIELDS)
QUERY_BYTES = 4096
ACCEPT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class MediaType:
    """One of the body formats, and the dtype of its numbers if the header states one."""

    kind: str
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class RequestFormat:
    """The formats of the body and the response, and the values of Content-Length, X-Dim and X-Rows, from the headers.

    `reply` is None if the response has the format of the body.
    """

    body: MediaType
    reply: MediaType | None
    length: bytes | None
    dim: bytes | None = None
    rows: bytes | None = None


def read_headers(
    headers: list[tuple[bytes, bytes]], formats: tuple[str, ...] = FORMATS, accept_any: bool = False
) -> RequestFormat:
    """Return the format of a request. Raise Refusal 415 or 406 if its headers allow no format of `formats`.

    With `accept_any`, an Accept that allows none of them has no effect, so that the response has the format of the
    body. Generated clients send one that allows only the format of the errors.
    """
    content_type, accept = None, b""
    length = dim = rows = None
    for name, value in headers:
        if name == b"content-type":
            if content_type is not None:
                raise Refusal(415, "`Content-Type` must be sent only once.", "Content-Type")
            content_type = value
        elif name == b"accept":
            accept = accept + b"," + value if accept else value
        elif name == b"content-length":
            length = value
        elif name == b"x-dim":
            dim = value
        elif name == b"x-rows":
            rows = value
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Refusal(
                415, "Compressed bodies are not supported; send the body uncompressed, without `Content-Encoding`."
            )
    body = body_type(content_type or b"", formats)
    try:
        reply = reply_type(accept, body, formats)
    except Refusal:
        if not accept_any:
            raise
        reply = None
    return RequestFormat(body, reply, length, dim, rows)


@lru_cache(maxsize=64)
def body_type(content_type: bytes, formats: tuple[str, ...] = FORMATS) -> MediaType:
    """Return the media type that a Content-Type names. Raise Refusal 415 if it is not in `formats`."""
    kind, params = _split(content_type.decode("latin-1"))
    if kind not in formats:
        raise Refusal(415, f"`Content-Type` must be {_either(formats)}; got {kind[:100] or 'none'}.", "Content-Type")
    dtype = _dtype(params)
    # A misspelt `dtype` must not be ignored, or float16 rows would be read as float32.
    if dtype is not None and (dtype not in DTYPES or kind != OCTETS):
        raise Refusal(
            415,
            f"The `dtype` of a `Content-Type` must be {_either(tuple(DTYPES))} and is allowed for {OCTETS} only; got "
            f"{dtype[:100]} for {kind}.",
            "Content-Type",
        )
    return MediaType(kind, dtype)


@lru_cache(maxsize=64)
def reply_type(accept: bytes, body: MediaType, formats: tuple[str, ...] = FORMATS) -> MediaType | None:
    """Return the media type that Accept prefers, None if it is the body's. Raise Refusal 406 if it allows none."""
    if not accept:
        return None
    if len(accept) > ACCEPT_BYTES:  # since its ranges are compared one by one
        raise Refusal(406, f"`Accept` may have at most {ACCEPT_BYTES} bytes; got {len(accept)}.", "Accept")
    ranges = [_read_range(part) for part in accept.decode("latin-1").split(",")]
    best_quality, best = 0.0, None
    for kind in (body.kind, *(other for other in formats if other != body.kind)):
        # The quality of a format is the one of the most specific range that matches it.
        matches = [match for match in (media_range.match(kind) for media_range in ranges) if match[0]]
        if not matches:
            continue
        specificity = max(match[0] for match in matches)
        _, quality, dtype = max((match for match in matches if match[0] == specificity), key=lambda match: match[1])
        if quality > best_quality:
            best_quality = quality
            best = None if kind == body.kind and dtype is None else MediaType(kind, dtype)
    if not best_quality:
        raise Refusal(406, f"`Accept` must allow {_either(formats)}; it allows none of them.", "Accept")
    return best


@dataclass(frozen=True)
class _Range:
    """One media range of an Accept header."""

    kind: str
    quality: float
    dtype: str | None

    def match(self, kind: str) -> tuple[int, float, str | None]:
        """Return how specifically the range matches a format (0: not at all), its quality and its dtype."""
        if self.kind == kind:
            return 3, self.quality, self.dtype
        if self.kind == kind.partition("/")[0] + "/*":
            return 2, self.quality, None
        return int(self.kind == "*/*"), self.quality, None


def _read_range(part: str) -> _Range:
    kind, params = _split(part)
    dtype = _dtype(params)
    if dtype is not None and (dtype not in DTYPES or kind not in (OCTETS, ARROW)):
        return _Range(kind, 0.0, None)  # the dtype is not supported
    try:
        quality = float(next((value for name, value in params if name == "q"), "1"))
    except ValueError:
        quality = 0.0
    return _Range(kind, quality if 0 <= quality <= 1 else 0.0, dtype)


def _split(header: str) -> tuple[str, list[tuple[str, str]]]:
    """Split a header into its media type and its parameters."""
    kind, *params = (piece.strip() for piece in header.lower().split(";"))
    pairs = [param.partition("=") for param in params]
    return kind, [(name.strip(), value.strip().strip('"')) for name, _, value in pairs]


def _dtype(params: list[tuple[str, str]]) -> str | None:
    """Return the value of the parameter `dtype`, or None without one.

    For a repeated or misspelt parameter, return a text that is no valid dtype and that the error message can quote.
    """
    dtypes = [(name, value) for name, value in params if "dtype" in name]
    if not dtypes:
        return None
    return dtypes[0][1] if len(dtypes) == 1 and dtypes[0][0] == "dtype" else "a repeated or misspelt parameter"


def _either(words: tuple[str, ...]) -> str:
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


@lru_cache(maxsize=1024)
def read_query(query: bytes) -> dict[str, Any]:
    """Return the names and flags in a query string. The result is cached, so callers must not change it.

    Raises MalformedError on unknown, repeated or invalid parameters.
    """
    if len(query) > QUERY_BYTES:
        raise MalformedError(f"The query string may have at most {QUERY_BYTES} bytes; got {len(query)}.")
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise MalformedError("The query string must be percent-encoded UTF-8.") from None
    names: dict[str, Any] = {}
    for param, value in pairs:
        if param not in PARAMS:
            raise MalformedError(f"`{param}` is not a query parameter; allowed parameters are {', '.join(PARAMS)}.")
        if param in names:
            raise MalformedError(f"`{param}` must be sent only once.", param)
        if param == "confidence":
            names[param] = read_flag(param, value)
        elif param == "route":
            check_word(ROUTES, param, value)
            names[param] = value
        else:
            check_name(param, value)
            names[param] = value
    return names


def merge(query: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any]:
    """Merge the names and flags in the query string and the JSON body. Raise MalformedError if the two disagree."""
    names = dict(query)
    for param in PARAMS:
        if param in payload and names.setdefault(param, payload[param]) != payload[param]:
            raise MalformedError(
                f"`{param}` is {names[param]!r} in the query string and {payload[param]!r} in the body; send it once.",
                param,
            )
    return names
