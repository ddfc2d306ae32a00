"""Requests of all forms, right ones and spoiled ones, against a second reading of what they say.

Each body is read here once more, plainly and strictly, and what it says is translated in NumPy. Whenever the service
answers 200, that must be its answer, to the last row and header; otherwise it must refuse in the form of all errors.
"""

import asyncio
import base64
import json
import math
from collections import Counter
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from helpers.fuzz import CASES, SPECIAL, cases, one_in, rows, spoiled, tell
from helpers.serving import make_stitcher
from helpers.spaces import confidence
from hypothesis import given
from hypothesis import strategies as st

from repstitch.embeddings.rows import SPACE_KEY
from repstitch.errors import InputError
from repstitch.server.app import create_app
from repstitch.server.negotiation import ARROW, OCTETS
from repstitch.server.openapi import document
from repstitch.server.responses import CODES, JSON
from repstitch.server.settings import Settings
from repstitch.spaces import Space
from repstitch.stitchers.registry import Registry
from repstitch.wire import fields, lists
from repstitch.wire.arrow import WIDTHS, read_arrow, write_arrow
from repstitch.wire.fields import TRANSLATE, read_embedding, read_json, write_embedding, write_json
from repstitch.wire.rows import DTYPES, rows_from_bytes, rows_to_bytes

DIM = 6
LONG = fields.LONG
ODD = "grün & 100%"
STITCHERS = {
    "old-to-new": make_stitcher(calibration=confidence(DIM)),
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


class Door:
    """The whole application, called in this process without a socket."""

    def __init__(self, registry: Registry):
        self.app, self.loop = create_app(registry, Settings()), asyncio.new_event_loop()
        self.seen: Counter = Counter()

    def post(self, path: str, query: str, body: bytes, kind: str = JSON, **headers: str) -> Reply:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query.encode(),
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in {"content-type": kind, **headers}.items()],
            "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 9), "state": {},
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        fields.LONG = len(body) % 2 * LONG  # every other one is long, as it were, and read in parts

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        self.loop.run_until_complete(self.app(scope, receive, send))
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        reply = Reply(sent[0]["status"], headers, b"".join(part.get("body", b"") for part in sent[1:]))
        assert headers["content-length"] == str(len(reply.body))
        self.seen[f"POST {path}", kind.partition(";")[0], reply.status] += 1
        documented = document()["paths"][path]["post"]["responses"]
        assert str(reply.status) in documented, reply
        assert reply.status < 500, reply
        return reply


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stitchers")
    for name, stitcher in STITCHERS.items():
        stitcher.save(folder / name)
    registry = Registry(folder)
    registry.refresh()
    door = Door(registry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "PART_BYTES", 16)
        patch.setattr(fields, "PART_ROWS", 2)
        patch.setattr(fields, "LONG", fields.LONG)  # which each request chooses
        yield door
    tell(door.seen)
    gate = door.app.state.service.gate
    assert (gate.requests, gate.bytes) == (0, 0)  # what came to an end, however it ended, holds nothing
    answered = sum(count for (_, _, status), count in door.seen.items() if status == 200)
    assert door.seen.total() < 0.5 * CASES or answered > 0.2 * door.seen.total(), door.seen  # all that ran
    door.loop.close()


# --- what is right ----------------------------------------------------------------------------------------------------


class Want(NamedTuple):
    """Rows that a request asks to be translated, and by whom; `sure` where nothing can be in the way of an answer."""

    rows: np.ndarray
    names: list[str]
    sure: bool


def width_of(names: list[str] | None) -> int:
    return STITCHERS[names[0]].source.dim if names else DIM


def want(numbers: np.ndarray, names: list[str]) -> Want | None:
    """What a request with these rows wants; None where some of them cannot be translated."""
    with np.errstate(all="ignore"):
        found = numbers.astype(np.float32).astype(np.float64)
    if not np.isfinite(found).all():
        return None
    lengths = np.abs(found).max(axis=1)
    raw = STITCHERS[names[0]].input_norm == "none"
    if not raw and (lengths == 0).any():
        return None
    return Want(found, names, bool(lengths.max() < 1e18) if raw else True)


def answer(wanted: Want) -> tuple[np.ndarray, np.ndarray]:
    """What they become, in float64, and how far from it float32 may be in each row."""
    X, off = wanted.rows, np.full((len(wanted.rows), 1), 1e-6)
    for name in wanted.names:
        stitcher = STITCHERS[name]
        W, b = (np.asarray(part, np.float64) for part in (stitcher.map.weight, stitcher.map.bias))
        if stitcher.input_norm == "unit":
            X = unit(X)
        Y = X @ W + b
        size = np.linalg.norm(np.abs(X) @ np.abs(W) + np.abs(b), axis=1, keepdims=True)
        off = 4 * (off + 1e-6) * size / np.linalg.norm(Y, axis=1, keepdims=True)
        X = unit(Y)
    return X, off


def unit(X: np.ndarray) -> np.ndarray:
    X = X / np.abs(X).max(axis=1, keepdims=True)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def check(reply: Reply, wanted: Want | None, sent: np.ndarray, form: str, dtype: str, measured: bool = False,
          ids: Any = None, base64_back: bool = False, single: bool = False) -> None:  # fmt: skip
    """A reply is the right answer to what was wanted in the right form, or a refusal of what cannot be answered."""
    if reply.status != 200:
        assert wanted is None or not wanted.sure, reply
        check_refusal(reply, sent)
        return
    assert wanted is not None, reply
    expected, off = answer(wanted)
    names = STITCHERS[wanted.names[0]].calibration.names if measured else ()  # pyright: ignore[reportOptionalMemberAccess]
    n, dim = expected.shape
    assert reply.headers["x-rows"] == str(n)
    assert reply.headers["x-dim"] == str(dim)
    assert reply.headers["x-stitcher"] == ",".join(map(quote, wanted.names))
    versions = ",".join(STITCHERS[name].version for name in wanted.names)
    assert reply.headers["x-stitcher-version"] == versions
    stitchers = [STITCHERS[name] for name in wanted.names]
    spaces = [stitchers[0].source.name, *(stitcher.target.name for stitcher in stitchers)]
    assert reply.headers.get("x-route", "->".join(map(quote, spaces))) == "->".join(map(quote, spaces))
    assert len(wanted.names) == 1 or "x-route" in reply.headers
    if form == OCTETS:
        assert reply.headers["content-type"] == (OCTETS if dtype == "float32" else f"{OCTETS}; dtype=float16")
        assert reply.headers.get("x-confidence", "") == ",".join(names)
        found = np.frombuffer(reply.body, DTYPES[dtype]).reshape(n, dim + len(names))
        found, measures = found[:, :dim], found[:, dim:]
    elif form == ARROW:
        assert reply.headers["content-type"] == ARROW
        table = pa.ipc.open_stream(reply.body).read_all()
        table.validate(full=True)
        assert table.column_names == [*(["id"] if ids is not None else []), "vector", *names]
        assert ids is None or table["id"].to_pylist() == ids.to_pylist()
        assert table.schema.field("vector").type == pa.list_(pa.type_for_alias(dtype), dim)
        found = np.array(table["vector"].to_pylist(), np.float64)
        measures = np.array([table[name].to_pylist() for name in names]).reshape(len(names), n).T
    else:
        assert reply.headers["content-type"] == JSON
        said = json.loads(reply.body)
        assert (said["rows"], said["dim"], said["version"]) == (n, dim, versions)
        assert (said["source"], said["target"]) == (spaces[0], spaces[-1])
        assert ("confidence" in said) == measured
        found = said["embedding"]
        if base64_back:
            found = np.frombuffer(base64.b64decode(found, validate=True), DTYPES[dtype]).reshape(n, dim)
        else:
            assert single == isinstance(found[0], float | int)
            found = np.array([found] if single else found, np.float64)
        measures = np.array([said["confidence"][name] for name in names]).reshape(len(names), n).T
    assert found.shape == (n, dim)
    if dtype == "float16" and (form != JSON or base64_back):
        off = off + 1e-3
    assert (np.abs(found - expected) <= off).all(), (found, expected)
    assert np.isfinite(measures).all()
    assert measures.shape == (n, len(names))


def check_refusal(reply: Reply, sent: np.ndarray | None = None) -> None:
    """A refusal has the one form, one line, and quotes no number that was sent."""
    assert reply.headers["content-type"] == JSON
    error = json.loads(reply.body)["error"]
    assert json.loads(reply.body) == {"error": error}
    assert set(error) == {"code", "message", "param"}
    assert error["code"] == CODES[reply.status]
    assert error["message"]
    assert len(error["message"].splitlines()) == 1
    assert len(error["message"]) <= 1000
    if sent is not None:
        said = {text for value in sent.reshape(-1)[:50] for text in (repr(float(value)), str(value)) if len(text) > 6}
        assert not [text for text in said if text in error["message"]]


# --- requests ---------------------------------------------------------------------------------------------------------

# What Accept says, and the form and dtype of the reply to a body of a form: None where it is the body's own.
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
REFUSED_ACCEPTS = ("text/html", "application/json;q=0", f"{OCTETS};dtype=float64", "*/*;q=nan", ";;,", "é/ü")
accepts = st.sampled_from((*(*ACCEPTS,) * 6, *REFUSED_ACCEPTS))


class Sides(NamedTuple):
    query: str
    names: list[str] | None
    measured: bool


@st.composite
def sides(draw) -> Sides:
    """A query, who should serve it, and whether confidence comes with it; nobody where it should be refused."""
    source, target = draw(st.sampled_from((("old", "new"), *DETOURS, *STRAIGHT, *STRAIGHT, *STRAIGHT)))
    if draw(one_in(10)):
        source, target = draw(st.sampled_from(NAMES)), draw(st.sampled_from(NAMES))
    said = {"source": source, "target": target}
    route, flag, name = (
        draw(st.sampled_from(("", "", "direct", "auto", "auto"))),
        draw(st.sampled_from(("", "", "", "true", "false", *(("True", "1") if draw(one_in(9)) else ())))),
        draw(st.sampled_from(("",) * 12 + ("old-to-new", "odd", "no\u2028ne"))),
    )
    said |= {k: v for k, v in (("route", route), ("confidence", flag), ("stitcher", name)) if v}
    known = (ROUTED if route == "auto" else PAIRS).get((source, target))
    if name and known != [name]:
        known = None
    if flag not in ("", "true", "false") or (flag == "true" and known != ["old-to-new"]):
        known = None
    query = "&".join(f"{k}={quote(v)}" for k, v in said.items())
    if draw(one_in(15)):
        more = draw(
            st.sampled_from(("&source=old", "&x%0Ay=1", "&%ff=1", "&route=%ff", "&confidence", "&route=fast%0D"))
        )
        query, known = query + more, None
    return Sides(query, known, flag == "true")


def reply_form(accept: str, form: str, dtype: str) -> tuple[str, str] | None:
    """The form and dtype of the reply to a body of these; None where Accept allows none."""
    if accept not in ACCEPTS:
        return None
    kind, said = ACCEPTS[accept]
    kind = kind or form
    return kind, said or (dtype if kind == form else "float32")


@cases(0.18)
@given(
    numbers=rows(DIM), side=sides(), dtype=st.sampled_from(("", *DTYPES)), accept=accepts, data=st.data(),
)  # fmt: skip
def test_octets_are_translated_rightly_or_refused(door, numbers, side, dtype, accept, data):
    kind = DTYPES[dtype or "float32"]
    with np.errstate(over="ignore"):
        body = data.draw(spoiled(numbers.astype(kind).tobytes()))
    reply = door.post("/v1/translate", side.query, body, OCTETS + (f"; dtype={dtype}" if dtype else ""), accept=accept)
    form = reply_form(accept, OCTETS, dtype or "float32")
    dim = width_of(side.names)
    whole = body and len(body) % (kind.itemsize * dim) == 0
    wanted = None
    if whole and side.names and form:
        wanted = want(np.frombuffer(body, kind).reshape(-1, dim), side.names)
    check(reply, wanted, numbers, *(form or (OCTETS, "float32")), measured=side.measured)


@st.composite
def junk(draw) -> Any:
    """A JSON value of another kind than was wanted."""
    deep: Any = draw(st.sampled_from((0.5, "x", None)))
    for _ in range(draw(st.sampled_from((1, 2, 40)))):
        deep = [deep]
    return draw(
        st.sampled_from((None, True, False, {}, [], "", "0.5", "x", "\ud800", "AA==", 2**63, 2**64, -(2**70), 10**400))
        | st.sampled_from(SPECIAL)
        | st.just(deep)
        | st.text(max_size=8)
    )


@st.composite
def requests(draw) -> tuple[bytes, np.ndarray]:
    """A JSON request for /v1/translate, whole or spoiled in its structure or its text, and the numbers in it."""
    numbers, dtype = draw(rows(DIM)), draw(st.sampled_from(tuple(DTYPES)))
    coded = draw(st.booleans())
    if coded:
        with np.errstate(over="ignore"):
            value: Any = base64.b64encode(numbers.astype(DTYPES[dtype]).tobytes()).decode()
    else:
        value = numbers.tolist()
        if len(numbers) == 1 and draw(st.booleans()):
            value = value[0]
    source, target = draw(st.sampled_from((*STRAIGHT, *STRAIGHT, *DETOURS)))
    fields: dict[str, Any] = {"embedding": value, "source": source, "target": target}
    if coded or draw(st.booleans()):
        fields["dtype"] = dtype
    for name, values in (("encoding_format", ("float", "base64")), ("route", ("auto", "direct"))):
        if draw(st.booleans()):
            fields[name] = draw(st.sampled_from(values))
    if source == "old" and target == "new" and draw(st.booleans()):
        fields["confidence"] = draw(st.booleans())
    for _ in range(draw(st.sampled_from((0, 0, 0, 0, 0, 1, 1, 2)))):
        name = draw(st.sampled_from(tuple(fields)))
        match draw(
            st.sampled_from(("drop", "retype", "add", "number", "number", "number", "row", "nest", "widen", "name"))
        ):
            case "drop" if len(fields) > 1:
                del fields[name]
            case "retype":
                fields[name] = draw(junk())
            case "add":
                fields[draw(st.sampled_from(("x\ny", "Embedding", "stitcher", "user", "\u2028", "é" * 300)))] = draw(
                    junk()
                )
            case "number" | "row" | "nest" | "widen" as where if (
                isinstance(value := fields.get("embedding"), list) and value
            ):
                at = draw(st.integers(0, len(value) - 1))
                row = value[at] if isinstance(value[at], list) and value[at] else value
                match where:
                    case "number":
                        row[draw(st.integers(0, len(row) - 1))] = draw(junk())
                    case "row":
                        value[at] = draw(junk())
                    case "nest":
                        fields["embedding"] = [value]
                    case "widen":
                        row.append(0.25)
            case "name":
                fields[draw(st.sampled_from(("source", "target", "stitcher")))] = draw(st.sampled_from(NAMES))
    text = json.dumps(fields, indent=draw(st.sampled_from((None, None, 1))), ensure_ascii=draw(st.booleans()))
    body = text.encode("utf-8", "surrogatepass")
    body = draw(spoiled(body, 2))
    if draw(one_in(20)):
        body = draw(
            st.sampled_from(
                (
                    b"\xef\xbb\xbf" + body,
                    b" \n" + body + b"\t",
                    body + body,
                    b"[" * 5000,
                    body[:-1] + b',"route":"auto"}',
                )
            )
        )
    return body, numbers


class Stated(NamedTuple):
    numbers: np.ndarray
    single: bool
    fields: dict[str, Any]
    names: list[str]


def stated(body: bytes) -> Stated | None:
    """What a JSON request says, read plainly; None where it says nothing that makes sense."""
    try:
        fields = json.loads(body.decode(), parse_constant=no_number)
        json.dumps(fields, ensure_ascii=False).encode()  # which refuses halves of surrogate pairs
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not set(fields) <= set(TRANSLATE) or "embedding" not in fields:
        return None
    words = {"route": ("direct", "auto"), "encoding_format": ("float", "base64"), "dtype": tuple(DTYPES)}
    for name, value in fields.items():
        if name in words and value not in words[name]:
            return None
        if name == "confidence" and not isinstance(value, bool):
            return None
    pair = (fields.get("source"), fields.get("target"))
    if not all(isinstance(name, str) for name in pair):
        return None
    names = (ROUTED if fields.get("route") == "auto" else PAIRS).get(pair)  # pyright: ignore[reportArgumentType]
    if names is None or ("stitcher" in fields and names != [fields["stitcher"]]):
        return None
    if fields.get("confidence") and names != ["old-to-new"]:
        return None
    value, dim = fields["embedding"], width_of(names)
    if isinstance(value, str):
        kind = DTYPES[fields.get("dtype", "float32")]
        try:
            packed = base64.b64decode(value, validate=True)
        except ValueError:
            return None
        if not packed or len(packed) % (kind.itemsize * dim):
            return None
        numbers = np.frombuffer(packed, kind).reshape(-1, dim)
        return Stated(numbers, len(numbers) == 1, fields, names)
    if not isinstance(value, list) or not value:
        return None
    single = not isinstance(value[0], list)
    found = [value] if single else value
    for row in found:
        if type(row) is not list or len(row) != dim or not all(type(number) in (int, float) for number in row):
            return None
    return Stated(np.array([[as_float(number) for number in row] for row in found]), single, fields, names)


def no_number(text: str) -> None:
    raise ValueError(text)


def as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


@cases(0.22)
@given(request=requests(), accept=st.sampled_from(("", *(*ACCEPTS,) * 3, "text/html")))
def test_json_is_translated_rightly_or_refused(door, request, accept):
    body, numbers = request
    reply = door.post("/v1/translate", "", body, accept=accept)
    said, form = stated(body), reply_form(accept, JSON, "float32")
    if said is None or form is None:
        check(reply, None, numbers, JSON, "float32")
        return
    kind, dtype = form
    dtype = said.fields.get("dtype", "float32") if kind == JSON else dtype
    encoding = said.fields.get("encoding_format") or (
        "base64" if isinstance(said.fields["embedding"], str) else "float"
    )
    check(
        reply, want(said.numbers, said.names), numbers, kind, dtype, measured=bool(said.fields.get("confidence")),
        base64_back=encoding == "base64", single=said.single,
    )  # fmt: skip


# --- Arrow ------------------------------------------------------------------------------------------------------------

CARDS = (
    Space("old", DIM).to_json().encode(),
    Space("new", DIM).to_json().encode(),
    b"{}", b"[", b"\xff", b"[" * 100_000, b'{"name": "old", "dim": 6, "x\\ny": 1}', b'{"name": "\\ud800", "dim": 6}',
    b'{"\\ud800": 1}', b'{"name": "old", "dim": 6, "encoder": "a\\nb"}', b'{"name": ["old"], "dim": "6"}',
    b'{"name": "old", "dim": 1e999}', b'{"name": "' + b"x" * 5000 + b'", "dim": 6}',
)  # fmt: skip


class Stream(NamedTuple):
    body: bytes
    numbers: np.ndarray
    right: bool


@st.composite
def streams(draw) -> Stream:
    """An Arrow stream, and whether it is one that must be taken where its numbers can be translated."""
    numbers, dtype = draw(rows(DIM)), draw(st.sampled_from(tuple(DTYPES)))
    with np.errstate(over="ignore"):
        flat = numbers.astype(DTYPES[dtype]).reshape(-1)
    n, right = len(numbers), True
    wrong = draw(
        st.sampled_from(("",) * 24 + ("width", "type", "gap", "hole", "extra", "twice", "packed", "dictionary"))
    )
    values = pa.array(flat)
    if wrong == "type":
        values = pa.array(flat.astype(np.float64))
    if wrong == "hole":
        values = pa.array(flat, mask=np.arange(len(flat)) == 3)
    width = DIM
    if wrong == "width":
        width = draw(st.sampled_from([w for w in (1, 2, 3, 12) if len(flat) % w == 0]))
    form = draw(st.sampled_from(("fixed", "list", "large")))
    n = len(flat) // width
    if form == "fixed":
        mask = pa.array(np.arange(n) == 0) if wrong == "gap" else None
        vectors = pa.FixedSizeListArray.from_arrays(values, width, mask=mask)
    else:
        offsets = np.arange(n + 1) * width
        kind, made = (np.int32, pa.ListArray) if form == "list" else (np.int64, pa.LargeListArray)
        mask = pa.array(np.arange(n) == 0) if wrong == "gap" else None
        vectors = made.from_arrays(pa.array(offsets.astype(kind)), values, mask=mask)
    columns: dict[str, Any] = {"vector": vectors}
    ids = draw(st.sampled_from((*("none", "text", "large", "int64", "uint8", "gaps") * 3, "float")))
    kinds = {
        "text": pa.string(),
        "large": pa.large_string(),
        "gaps": pa.string(),
        "int64": pa.int64(),
        "uint8": pa.uint8(),
        "float": pa.float32(),
    }
    if ids != "none":
        given: list[Any] = (
            [f"ü{i}\n" for i in range(n)]
            if kinds[ids] in (pa.string(), pa.large_string())
            else [i % 200 for i in range(n)]
        )
        if ids == "gaps":
            given[0] = None
        column = pa.array(given, kinds[ids])
        columns = {"id": column.dictionary_encode() if wrong == "dictionary" else column, **columns}
    right = not wrong and ids != "float"
    if wrong == "dictionary" and ids == "none":
        right = True
    if wrong == "extra":
        columns["mo\nre"] = pa.array(range(n))
    names, arrays = [*columns], [*columns.values()]
    if wrong == "twice":
        names, arrays = [*names, "vector"], [*arrays, vectors]
    table = pa.table(arrays, names=names)
    if draw(one_in(3)):
        card = draw(st.sampled_from(CARDS))
        table = table.replace_schema_metadata({SPACE_KEY: card})
        right = False  # it may be refused, and is looked at below
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd" if wrong == "packed" else None)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=draw(st.sampled_from((1, 2, 100)))):
            writer.write_batch(batch)
        if draw(one_in(5)):
            writer.write_table(table.slice(0, 0))
    whole = sink.getvalue().to_pybytes()
    body = draw(spoiled(whole, 2))
    return Stream(body, numbers, right and body == whole)


def read_stream(body: bytes, dim: int) -> tuple[np.ndarray, Any] | None:
    """The vectors and ids of a stream as pyarrow itself reads them; None where it does not."""
    try:
        table = pa.ipc.open_stream(body).read_all()
        table.validate(full=True)
        vectors = table["vector"].to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
    if not vectors or any(row is None or len(row) != dim or None in row for row in vectors):
        return None
    return np.array(vectors, np.float64), table["id"] if "id" in table.column_names else None


@cases(0.2)
@given(stream=streams(), side=sides(), accept=st.sampled_from(("", "", "*/*", ARROW, OCTETS, JSON)))
def test_arrow_is_translated_rightly_or_refused(door, stream, side, accept):
    reply = door.post("/v1/translate", side.query, stream.body, ARROW, accept=accept)
    found = read_stream(stream.body, width_of(side.names))
    wanted = want(found[0], side.names) if found is not None and side.names else None
    if wanted is not None and not stream.right:
        wanted = wanted._replace(sure=False)
    if found is None or reply.status != 200:
        check(reply, wanted, stream.numbers, ARROW, "float32")
        return
    dtype = WIDTHS[pa.ipc.open_stream(stream.body).schema.field("vector").type.value_type]
    form = reply_form(accept, ARROW, dtype) or (ARROW, dtype)
    check(reply, wanted, stream.numbers, *form, measured=side.measured, ids=found[1] if form[0] == ARROW else None)


# --- the other routes that are sent rows ------------------------------------------------------------------------------


@cases(0.06)
@given(numbers=rows(DIM), data=st.data())
def test_embeddings_are_translated_rightly_or_refused(door, numbers, data):
    draw = data.draw
    model = draw(
        st.sampled_from(("old-to-new", "old->new", "raw->new", "odd", "old->far", "no\nne", "->", "a->b->c", "", 1))
    )
    value: Any = numbers.tolist()
    if len(value) == 1 and draw(st.booleans()):
        value = value[0]
    fields: dict[str, Any] = {
        "model": model,
        "input": value,
        "encoding_format": draw(st.sampled_from(("float", "base64"))),
    }
    right = model in ("old-to-new", "old->new", "raw->new", "odd")
    match draw(st.sampled_from(("", "", "", "text", "tokens", "junk", "dimensions", "user", "query"))):
        case "text":
            fields["input"], right = (
                draw(st.sampled_from(("words", ["words", "more"], ["words", 1], [" "], b64(numbers)))),
                False,
            )
        case "tokens":
            fields["input"], right = draw(st.sampled_from(([1, 2, 3], [[1] * DIM]))), False
        case "junk":
            fields[draw(st.sampled_from(tuple(fields)))], right = draw(junk()), False
        case "dimensions":
            fields["dimensions"] = draw(st.sampled_from((4, 4.0, 3, 0, -1, 4.5, True, "4", 10**30)))
            right = right and fields["dimensions"] == 4 and type(fields["dimensions"]) is not str
        case "user":
            fields["user"] = draw(st.text(st.characters(codec="utf-8")))
    reply = door.post("/v1/embeddings", "", json.dumps(fields).encode())
    if reply.status != 200 or not right:
        if right:
            wanted = None if isinstance(model, int) else want_json(value, model)
            assert wanted is None or not wanted.sure, reply
        assert reply.status != 200, reply
        check_refusal(reply, numbers)
        return
    wanted = want_json(value, model)
    assert wanted is not None, reply
    expected, off = answer(wanted)
    said = json.loads(reply.body)
    assert said["model"] == model
    assert [item["index"] for item in said["data"]] == list(range(len(expected)))
    found = [item["embedding"] for item in said["data"]]
    if fields["encoding_format"] == "base64":
        found = [np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in found]
    assert (np.abs(np.array(found, np.float64) - expected) <= off).all()


def want_json(value: Any, model: str) -> Want | None:
    """What vectors in JSON want of a model; None where they hold what JSON cannot, or tokens."""
    try:
        json.loads(json.dumps(value), parse_constant=no_number)
    except ValueError:
        return None
    names = {"old->new": "old-to-new", "raw->new": "raw-to-new"}
    return want(np.array(value, np.float64).reshape(-1, DIM), [names.get(model, model)])


@cases(0.02)
@given(n=st.sampled_from((1, 19, 20, 25, 40)), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_scores_are_given_or_refused(door, n, seed, data):
    draw, random = data.draw, np.random.default_rng(seed)
    X = random.standard_normal((n, DIM)).astype(np.float32)
    Y = STITCHERS["old-to-new"].translate(X)
    right = n >= 20
    match draw(st.sampled_from(("", "same", "special", "scale", "few", "noise", "spoiled"))):
        case "same":
            X[:], Y[:] = X[0], Y[0]
        case "special":
            X[draw(st.integers(0, n - 1)), 0] = np.clip(draw(st.sampled_from(SPECIAL)), -1e38, 1e38)
        case "scale":
            Y = Y * np.float32(draw(st.sampled_from((1e-30, 1e30, 1e-44))))
        case "few":
            Y = Y[:-1]
            right = False
        case "noise":
            Y = random.standard_normal((n, 4)).astype(np.float32)
    fields: dict[str, Any] = {"source": "old", "target": "new", "embedding": X.tolist(), "counterpart": Y.tolist()}
    if draw(one_in(2)):
        fields |= {"embedding": b64(X), "counterpart": b64(Y)}
    if draw(one_in(4)):
        fields[draw(st.sampled_from((*fields, "confidence", "dtype")))] = draw(junk())
    reply = door.post("/v1/score", "", json.dumps(fields).encode())
    if reply.status != 200:
        check_refusal(reply, X)
        return
    assert right, reply
    said = json.loads(reply.body)
    assert said["rows"] == n
    assert said["scorecard"]


def b64(numbers: np.ndarray) -> str:
    return base64.b64encode(np.asarray(numbers, "<f4").tobytes()).decode()


# --- reading and writing by themselves --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tried():
    """How often each law was tried."""
    tried: Counter = Counter()
    yield tried
    tell(tried)


@cases(0.04)
@given(
    body=st.binary(max_size=60) | rows(3).map(lambda r: r.tobytes()),
    dim=st.integers(1, 5),
    dtype=st.sampled_from(tuple(DTYPES)),
)
def test_bytes_are_read_as_numpy_reads_them_or_refused(tried, body, dim, dtype):
    kind = DTYPES[dtype]
    whole = body and len(body) % (kind.itemsize * dim) == 0
    tried["no route", "octets read", 0] += 1
    try:
        found = rows_from_bytes(bytearray(body), dim, dtype)
    except InputError:
        assert not whole
        return
    assert whole
    assert found.dtype == np.float32
    assert np.array_equal(found, np.frombuffer(body, kind).reshape(-1, dim).astype(np.float32), equal_nan=True)


@cases(0.05)
@given(bits=st.binary(min_size=24, max_size=240), dtype=st.sampled_from(tuple(DTYPES)), single=st.booleans())
def test_what_is_written_is_read_back_to_the_bit(tried, bits, dtype, single):
    """Every finite number that a dtype has, in every form, denormals and -0.0 among them."""
    tried["no route", "rows written and read", 0] += 1
    numbers = np.frombuffer(bits[: len(bits) // 24 * 24], DTYPES[dtype]).reshape(-1, DIM)
    numbers = np.where(np.isfinite(numbers), numbers, 0).astype(np.float32)
    same = lambda found: found.dtype == np.float32 and found.tobytes() == numbers.tobytes()  # noqa: E731
    assert same(rows_from_bytes(bytearray(rows_to_bytes(numbers, dtype)), DIM, dtype))
    ids = pa.chunked_array([pa.array(range(len(numbers)))])
    stream = write_arrow(numbers, ids, {}, Space("old", DIM), dtype)
    back = read_arrow(bytes(stream), DIM)
    assert same(back.rows)
    assert (back.dtype, back.ids, back.space) == (dtype, ids, Space("old", DIM))
    single = single and len(numbers) == 1
    for encoding in ("float", "base64"):
        value = write_embedding(numbers, single, encoding, dtype)
        fields = read_json(write_json({"embedding": value}), "embedding", TRANSLATE)
        found, alone = read_embedding(fields["embedding"], DIM, dtype)
        assert same(found)
        assert alone == (single if encoding == "float" else len(numbers) == 1)


@cases(0.03)
@given(stream=streams())
def test_arrow_streams_are_read_as_pyarrow_reads_them_or_refused(tried, stream):
    tried["no route", "Arrow read", 0] += 1
    try:
        found = read_arrow(stream.body, DIM)
    except InputError:
        assert not stream.right
        return
    expected = read_stream(stream.body, DIM)
    assert expected is not None
    assert np.array_equal(found.rows, expected[0].astype(np.float32), equal_nan=True)
    assert (found.ids is None) == (expected[1] is None)
