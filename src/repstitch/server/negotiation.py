"""What a request says: the formats of its body and of its reply, the names and flags in its query."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from repstitch.server.responses import JSON, Refusal
from repstitch.wire.fields import CHOSEN, PAIR, ROUTES, check_choice, check_name, read_flag
from repstitch.wire.rows import DTYPES, MalformedError

OCTETS = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"
OCTETS16 = f"{OCTETS}; dtype=float16"
FORMATS = (OCTETS, JSON, ARROW)
PARAMS = (*PAIR, *CHOSEN)
QUERY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Form:
    """A format, and the dtype of its numbers where the header states one."""

    kind: str
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """What the headers of a request say: the forms of its body and of its reply, the body's stated length, and, where
    they are stated, the numbers a row and the rows it holds.

    `reply` is None where the reply is to be written as the body was.
    """

    body: Form
    reply: Form | None
    length: bytes | None
    dim: bytes | None = None
    rows: bytes | None = None


def read_headers(headers: list[tuple[bytes, bytes]], formats: tuple[str, ...] = FORMATS) -> Ask:
    """The headers that matter, refused with 415 or 406 when this service does not speak what they name."""
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
    body = body_form(content_type or b"", formats)
    return Ask(body, reply_form(accept, body, formats), length, dim, rows)


@lru_cache(maxsize=64)
def body_form(content_type: bytes, formats: tuple[str, ...] = FORMATS) -> Form:
    """The form a Content-Type names; 415 when it is none of ours."""
    kind, params = _split(content_type.decode("latin-1"))
    if kind not in formats:
        raise Refusal(415, f"`Content-Type` must be {_either(formats)}; got {kind[:100] or 'none'}.", "Content-Type")
    dtype = _dtype(params)
    # What is nearly the parameter must not be passed over: rows of float16 would be read as float32.
    if dtype is not None and (dtype not in DTYPES or kind != OCTETS):
        raise Refusal(
            415,
            f"`dtype` of a Content-Type must be {_either(tuple(DTYPES))}, and is for {OCTETS}; got {dtype[:100]} for "
            f"{kind}.",
            "Content-Type",
        )
    return Form(kind, dtype)


@lru_cache(maxsize=64)
def reply_form(accept: bytes, body: Form, formats: tuple[str, ...] = FORMATS) -> Form | None:
    """The form that Accept prefers, None where it takes the body's own as gladly; 406 when it takes none of ours."""
    if not accept:
        return None
    ranges = [_read_range(part) for part in accept.decode("latin-1").split(",")]
    best: tuple[float, int, Form | None] = (0.0, 0, None)
    for kind in (body.kind, *(other for other in formats if other != body.kind)):
        # The most specific range that takes a format says how gladly.
        taken = [(specific, q, dtype) for specific, q, dtype in (r.takes(kind) for r in ranges) if specific]
        if not taken:
            continue
        specific = max(each[0] for each in taken)
        _, quality, dtype = max((each for each in taken if each[0] == specific), key=lambda each: each[1])
        own = kind == body.kind and dtype is None
        if quality > best[0]:
            best = (quality, specific, None if own else Form(kind, dtype))
    if not best[0]:
        raise Refusal(406, f"`Accept` must allow {_either(formats)}; it allows none of them.", "Accept")
    return best[2]


@dataclass(frozen=True)
class _Range:
    """One media range of an Accept header."""

    kind: str
    quality: float
    dtype: str | None

    def takes(self, kind: str) -> tuple[int, float, str | None]:
        """How specifically it takes a format (0 not at all), how gladly, and in which dtype."""
        if self.kind == kind:
            return 3, self.quality, self.dtype
        if self.kind == kind.partition("/")[0] + "/*":
            return 2, self.quality, None
        return int(self.kind == "*/*"), self.quality, None


def _read_range(part: str) -> _Range:
    kind, params = _split(part)
    dtype = _dtype(params)
    if dtype is not None and (dtype not in DTYPES or kind not in (OCTETS, ARROW)):
        return _Range(kind, 0.0, None)  # asked for in a way that we do not speak
    try:
        quality = float(next((value for name, value in params if name == "q"), "1"))
    except ValueError:
        quality = 0.0
    return _Range(kind, quality if 0 <= quality <= 1 else 0.0, dtype)


def _split(header: str) -> tuple[str, list[tuple[str, str]]]:
    """The type that a header names, and its parameters."""
    kind, *params = (piece.strip() for piece in header.lower().split(";"))
    parted = [piece.partition("=") for piece in params]
    return kind, [(name.strip(), value.strip().strip('"')) for name, _, value in parted]


def _dtype(params: list[tuple[str, str]]) -> str | None:
    """What the parameter `dtype` says; None where there is none, no dtype where it is given twice or not quite so."""
    said = [(name, value) for name, value in params if "dtype" in name]
    if not said:
        return None
    return said[0][1] if len(said) == 1 and said[0][0] == "dtype" else "given twice, or in another form,"


def _either(words: tuple[str, ...]) -> str:
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


@lru_cache(maxsize=1024)
def read_query(query: bytes) -> dict[str, Any]:
    """The names and flags in a query string, not to be changed; 400 on what is unknown, repeated or of no sense."""
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
            check_choice(ROUTES, param, value)
            names[param] = value
        else:
            check_name(param, value)
            names[param] = value
    return names


def merge(query: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The names and flags of a JSON request, given in its body or its query; 400 when the two disagree."""
    names = dict(query)
    for param in PARAMS:
        if param in fields and names.setdefault(param, fields[param]) != fields[param]:
            raise MalformedError(
                f"`{param}` is {names[param]!r} in the query and {fields[param]!r} in the body; give it once.", param
            )
    return names
