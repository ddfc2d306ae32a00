"""The headers and the query of a request: the formats of its body and of its reply, and its names and flags."""

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


@dataclass(frozen=True, slots=True)
class MediaType:
    """One of the formats of bodies, and the dtype of its numbers where the header states one."""

    kind: str
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class RequestFormat:
    """What the headers state: the formats of body and reply, Content-Length, X-Dim and X-Rows.

    `reply` is None where the reply has the format of the body.
    """

    body: MediaType
    reply: MediaType | None
    length: bytes | None
    dim: bytes | None = None
    rows: bytes | None = None


def read_headers(headers: list[tuple[bytes, bytes]], formats: tuple[str, ...] = FORMATS) -> RequestFormat:
    """The format of a request; Refusal 415 or 406 where its headers name a format that is not among `formats`."""
    content_type, accept = None, b""
    length = dim = rows = None
    for name, value in headers:
        if name == b"content-type":
            if content_type is not None:
                raise Refusal(415, "`Content-Type` must be given once.", "Content-Type")
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
            raise Refusal(415, "A body must come uncompressed, without a Content-Encoding.")
    body = body_type(content_type or b"", formats)
    return RequestFormat(body, reply_type(accept, body, formats), length, dim, rows)


@lru_cache(maxsize=64)
def body_type(content_type: bytes, formats: tuple[str, ...] = FORMATS) -> MediaType:
    """The media type that a Content-Type names; Refusal 415 where it is not among `formats`."""
    kind, params = _split(content_type.decode("latin-1"))
    if kind not in formats:
        raise Refusal(415, f"`Content-Type` must be {_either(formats)}; got {kind[:100] or 'none'}.", "Content-Type")
    dtype = _dtype(params)
    # A misspelt parameter must not be ignored: float16 rows would be read as float32.
    if dtype is not None and (dtype not in DTYPES or kind != OCTETS):
        raise Refusal(
            415,
            f"`dtype` of a Content-Type must be {_either(tuple(DTYPES))}, and is for {OCTETS}; got {dtype[:100]} for "
            f"{kind}.",
            "Content-Type",
        )
    return MediaType(kind, dtype)


@lru_cache(maxsize=64)
def reply_type(accept: bytes, body: MediaType, formats: tuple[str, ...] = FORMATS) -> MediaType | None:
    """The media type that Accept prefers, None where that is the body's; Refusal 406 where it accepts none."""
    if not accept:
        return None
    ranges = [_read_range(part) for part in accept.decode("latin-1").split(",")]
    best_quality, best = 0.0, None
    for kind in (body.kind, *(other for other in formats if other != body.kind)):
        # The quality of a format is that of the most specific range that matches it.
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
        """How specifically it matches a format (0 not at all), with which quality, and in which dtype."""
        if self.kind == kind:
            return 3, self.quality, self.dtype
        if self.kind == kind.partition("/")[0] + "/*":
            return 2, self.quality, None
        return int(self.kind == "*/*"), self.quality, None


def _read_range(part: str) -> _Range:
    kind, params = _split(part)
    dtype = _dtype(params)
    if dtype is not None and (dtype not in DTYPES or kind not in (OCTETS, ARROW)):
        return _Range(kind, 0.0, None)  # a dtype that is not supported
    try:
        quality = float(next((value for name, value in params if name == "q"), "1"))
    except ValueError:
        quality = 0.0
    return _Range(kind, quality if 0 <= quality <= 1 else 0.0, dtype)


def _split(header: str) -> tuple[str, list[tuple[str, str]]]:
    """The type that a header names, and its parameters."""
    kind, *params = (piece.strip() for piece in header.lower().split(";"))
    pairs = [param.partition("=") for param in params]
    return kind, [(name.strip(), value.strip().strip('"')) for name, _, value in pairs]


def _dtype(params: list[tuple[str, str]]) -> str | None:
    """The value of the parameter `dtype`, None where there is none; no valid dtype where it is repeated or misspelt."""
    dtypes = [(name, value) for name, value in params if "dtype" in name]
    if not dtypes:
        return None
    return dtypes[0][1] if len(dtypes) == 1 and dtypes[0][0] == "dtype" else "given twice, or in another form,"


def _either(words: tuple[str, ...]) -> str:
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


@lru_cache(maxsize=1024)
def read_query(query: bytes) -> dict[str, Any]:
    """The names and flags in a query string, which callers must not change (it is cached).

    Raises MalformedError on parameters that are unknown, repeated or invalid.
    """
    if len(query) > QUERY_BYTES:
        raise MalformedError(f"The query may have at most {QUERY_BYTES} bytes; got {len(query)}.")
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise MalformedError("The query must be percent-encoded UTF-8.") from None
    names: dict[str, Any] = {}
    for param, value in pairs:
        if param not in PARAMS:
            raise MalformedError(f"`{param}` is not a parameter; known are {', '.join(PARAMS)}.")
        if param in names:
            raise MalformedError(f"`{param}` must be given once.", param)
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
    """The names and flags of a JSON request, from its query and its body; MalformedError where the two disagree."""
    names = dict(query)
    for param in PARAMS:
        if param in payload and names.setdefault(param, payload[param]) != payload[param]:
            raise MalformedError(
                f"`{param}` is {names[param]!r} in the query and {payload[param]!r} in the body; give it once.", param
            )
    return names
