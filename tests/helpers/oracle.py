"""An independent, strict parser of requests, and checks of responses for the fuzz tests.

The rows of a request are translated in NumPy. If the service answers 200, all rows and headers of its response must
match this translation. Otherwise the response must be an error in the usual form.
"""

import base64
import json
import math
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from helpers.serving import make_stitcher
from helpers.spaces import calibration
from repstitch.server.negotiation import ARROW, OCTETS
from repstitch.server.responses import CODES, JSON
from repstitch.wire.fields import TRANSLATE
from repstitch.wire.rows import DTYPES

DIM = 6
ODD = "grün & 100%"
STITCHERS = {
    "old-to-new": make_stitcher(calibration=calibration(DIM)),
    "raw-to-new": make_stitcher("raw", "new", seed=1, input_norm="none"),
    "new-to-far": make_stitcher("new", "far", 4, 3, seed=2),
    "odd": make_stitcher(ODD, "new", seed=3),
}
STRAIGHT = {("old", "new"): ["old-to-new"], ("raw", "new"): ["raw-to-new"], (ODD, "new"): ["odd"]}
PAIRS = {**STRAIGHT, ("new", "far"): ["new-to-far"]}
DETOURS = {(source, "far"): [*names, "new-to-far"] for (source, _), names in STRAIGHT.items()}
ROUTED = {**PAIRS, **DETOURS}
NAMES = ("old", "raw", ODD, "new", "far", "no\nspace", "ol", "\x00", "x" * 256, "x" * 257, "")


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Expected(NamedTuple):
    """Rows to translate and the names of the stitchers. `certain` is true if the service may not refuse the rows."""

    rows: np.ndarray
    names: list[str]
    certain: bool


class Form(NamedTuple):
    """The required format of a response."""

    kind: str
    dtype: str
    confidence: bool = False
    ids: Any = None
    base64: bool = False
    single: bool = False


def width_of(names: list[str] | None) -> int:
    return STITCHERS[names[0]].source.dim if names else DIM


def expect(numbers: np.ndarray, names: list[str]) -> Expected | None:
    """Return the expected translation of these rows, or None if some of them cannot be translated."""
    with np.errstate(all="ignore"):
        rows = numbers.astype(np.float32).astype(np.float64)
    if not np.isfinite(rows).all():
        return None
    lengths = np.abs(rows).max(axis=1)
    raw = STITCHERS[names[0]].input_norm == "none"
    if not raw and (lengths == 0).any():
        return None
    return Expected(rows, names, bool(lengths.max() < 1e18) if raw else True)


def translations(expected: Expected) -> tuple[np.ndarray, np.ndarray]:
    """Return the translations in float64, and the tolerance of each row for float32 results."""
    X, tolerance = expected.rows, np.full((len(expected.rows), 1), 1e-6)
    for name in expected.names:
        stitcher = STITCHERS[name]
        W, b = (np.asarray(part, np.float64) for part in (stitcher.map.weight, stitcher.map.bias))
        if stitcher.input_norm == "unit":
            X = unit(X)
        Y = X @ W + b
        size = np.linalg.norm(np.abs(X) @ np.abs(W) + np.abs(b), axis=1, keepdims=True)
        tolerance = 4 * (tolerance + 1e-6) * size / np.linalg.norm(Y, axis=1, keepdims=True)
        X = unit(Y)
    return X, tolerance


def unit(X: np.ndarray) -> np.ndarray:
    X = X / np.abs(X).max(axis=1, keepdims=True)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def check(reply: Reply, expected: Expected | None, sent: np.ndarray, form: Form) -> None:
    """Check that a response is the correct translation in the required format, or an error where one is allowed."""
    if reply.status != 200:
        assert expected is None or not expected.certain, reply
        check_refusal(reply, sent)
        return
    assert expected is not None, reply
    vectors, tolerance = translations(expected)
    stitchers = [STITCHERS[name] for name in expected.names]
    versions = ",".join(stitcher.version for stitcher in stitchers)
    spaces = [stitchers[0].source.name, *(stitcher.target.name for stitcher in stitchers)]
    n, dim = vectors.shape
    assert reply.headers["x-rows"] == str(n)
    assert reply.headers["x-dim"] == str(dim)
    assert reply.headers["x-stitcher"] == ",".join(map(quote, expected.names))
    assert reply.headers["x-stitcher-version"] == versions
    assert reply.headers.get("x-route", "->".join(map(quote, spaces))) == "->".join(map(quote, spaces))
    assert len(expected.names) == 1 or "x-route" in reply.headers
    names = stitchers[0].calibration.names if form.confidence else ()  # pyright: ignore[reportOptionalMemberAccess]
    if form.kind == JSON:
        body = json.loads(reply.body)
        assert (body["rows"], body["dim"], body["version"]) == (n, dim, versions)
        assert (body["source"], body["target"]) == (spaces[0], spaces[-1])
    answer, measures = READERS[form.kind](reply, n, dim, names, form)
    assert answer.shape == (n, dim)
    if form.dtype == "float16" and (form.kind != JSON or form.base64):
        tolerance = tolerance + 1e-3
    assert (np.abs(answer - vectors) <= tolerance).all(), (answer, vectors)
    assert np.isfinite(measures).all()
    assert measures.shape == (n, len(names))


def read_octets(reply: Reply, n: int, dim: int, names: tuple[str, ...], form: Form) -> tuple[np.ndarray, np.ndarray]:
    assert reply.headers["content-type"] == (OCTETS if form.dtype == "float32" else f"{OCTETS}; dtype=float16")
    assert reply.headers.get("x-confidence", "") == ",".join(names)
    columns = np.frombuffer(reply.body, DTYPES[form.dtype]).reshape(n, dim + len(names))
    return columns[:, :dim], columns[:, dim:]


def read_arrow(reply: Reply, n: int, dim: int, names: tuple[str, ...], form: Form) -> tuple[np.ndarray, np.ndarray]:
    assert reply.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(reply.body).read_all()
    table.validate(full=True)
    assert table.column_names == [*(["id"] if form.ids is not None else []), "vector", *names]
    assert form.ids is None or table["id"].to_pylist() == form.ids.to_pylist()
    assert table.schema.field("vector").type == pa.list_(pa.type_for_alias(form.dtype), dim)
    measures = np.array([table[name].to_pylist() for name in names]).reshape(len(names), n).T
    return np.array(table["vector"].to_pylist(), np.float64), measures


def read_json(reply: Reply, n: int, dim: int, names: tuple[str, ...], form: Form) -> tuple[np.ndarray, np.ndarray]:
    assert reply.headers["content-type"] == JSON
    body = json.loads(reply.body)
    assert ("confidence" in body) == form.confidence
    vectors = body["embedding"]
    if form.base64:
        vectors = np.frombuffer(base64.b64decode(vectors, validate=True), DTYPES[form.dtype]).reshape(n, dim)
    else:
        assert form.single == isinstance(vectors[0], float | int)
        vectors = np.array([vectors] if form.single else vectors, np.float64)
    measures = np.array([body["confidence"][name] for name in names]).reshape(len(names), n).T
    return vectors, measures


READERS = {OCTETS: read_octets, ARROW: read_arrow, JSON: read_json}


def check_refusal(reply: Reply, sent: np.ndarray | None = None) -> None:
    """Check that an error has the usual form and one line, and quotes none of the numbers in the request."""
    assert reply.headers["content-type"] == JSON
    error = json.loads(reply.body)["error"]
    assert json.loads(reply.body) == {"error": error}
    assert set(error) == {"code", "message", "param"}
    assert error["code"] == CODES[reply.status]
    assert error["message"]
    assert len(error["message"].splitlines()) == 1
    assert len(error["message"]) <= 1000
    if sent is not None:
        texts = {text for value in sent.reshape(-1)[:50] for text in (repr(float(value)), str(value)) if len(text) > 6}
        assert not [text for text in texts if text in error["message"]]


# The format and dtype of the response for each Accept header; None where they are those of the request body.
ACCEPTS = {
    "": (None, None),
    "*/*": (None, None),
    "text/html, */*;q=0.1": (None, None),
    OCTETS: (OCTETS, None),
    f"{OCTETS}; dtype=float16": (OCTETS, "float16"),
    f"{OCTETS};dtype=float32": (OCTETS, "float32"),
    JSON: (JSON, None),
    f"{JSON};q=0.5, {ARROW};q=0.9": (ARROW, None),
    f"{ARROW};dtype=float16": (ARROW, "float16"),
}


def reply_form(accept: str, kind: str, dtype: str) -> Form | None:
    """Return the format of the response to a body of this format and dtype, or None if Accept allows no format."""
    if accept not in ACCEPTS:
        return None
    reply_kind, reply_dtype = ACCEPTS[accept]
    reply_kind = reply_kind or kind
    return Form(reply_kind, reply_dtype or (dtype if reply_kind == kind else "float32"))


class JsonRequest(NamedTuple):
    numbers: np.ndarray
    single: bool
    fields: dict[str, Any]
    names: list[str]


def read_request(body: bytes) -> JsonRequest | None:
    """Parse a JSON request; return None if it is invalid."""
    fields = read_fields(body)
    if fields is None:
        return None
    pair = (fields.get("source"), fields.get("target"))
    if not all(isinstance(name, str) for name in pair):
        return None
    names = (ROUTED if fields.get("route") == "auto" else PAIRS).get(pair)  # pyright: ignore[reportArgumentType]
    if names is None or ("stitcher" in fields and names != [fields["stitcher"]]):
        return None
    if fields.get("confidence") and names != ["old-to-new"]:
        return None
    numbers, single = read_numbers(fields["embedding"], width_of(names), DTYPES[fields.get("dtype", "float32")])
    return None if numbers is None else JsonRequest(numbers, single, fields, names)


def read_fields(body: bytes) -> dict[str, Any] | None:
    """Return the fields of a JSON request, or None if one of them is invalid in itself."""
    try:
        fields = json.loads(body.decode(), parse_constant=no_number)
        json.dumps(fields, ensure_ascii=False).encode()  # raises on unpaired surrogates
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not set(fields) <= set(TRANSLATE) or "embedding" not in fields:
        return None
    fields = {name: value for name, value in fields.items() if value is not None or name == "embedding"}
    words = {"route": ("direct", "auto"), "encoding_format": ("float", "base64"), "dtype": tuple(DTYPES)}
    for name, value in fields.items():
        if name in words and value not in words[name]:
            return None
        if name == "confidence" and not isinstance(value, bool):
            return None
    return fields


def read_numbers(value: Any, dim: int, dtype: np.dtype) -> tuple[np.ndarray | None, bool]:
    """Return the numbers of `embedding` (n, dim), or None if it is invalid, and whether it is a single vector."""
    if isinstance(value, str):
        try:
            packed = base64.b64decode(value, validate=True)
        except ValueError:
            return None, False
        if not packed or len(packed) % (dtype.itemsize * dim):
            return None, False
        numbers = np.frombuffer(packed, dtype).reshape(-1, dim)
        return numbers, len(numbers) == 1
    if not isinstance(value, list) or not value:
        return None, False
    single = not isinstance(value[0], list)
    rows = [value] if single else value
    for row in rows:
        if type(row) is not list or len(row) != dim or not all(type(number) in (int, float) for number in row):
            return None, False
    return np.array([[as_float(number) for number in row] for row in rows]), single


def no_number(text: str) -> None:
    raise ValueError(text)


def as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def read_stream(body: bytes, dim: int) -> tuple[np.ndarray, Any] | None:
    """Return the vectors and ids of a stream as read by pyarrow, or None if pyarrow cannot read it."""
    try:
        table = pa.ipc.open_stream(body).read_all()
        table.validate(full=True)
        vectors = table["vector"].to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
    if not vectors or any(row is None or len(row) != dim or None in row for row in vectors):
        return None
    return np.array(vectors, np.float64), table["id"] if "id" in table.column_names else None


def expect_of_model(value: Any, model: str) -> Expected | None:
    """Return the expected translation of vectors by `model`, or None if they have values that JSON cannot encode."""
    try:
        json.loads(json.dumps(value), parse_constant=no_number)
    except ValueError:
        return None
    names = {"old->new": "old-to-new", "raw->new": "raw-to-new"}
    return expect(np.array(value, np.float64).reshape(-1, DIM), [names.get(model, model)])
