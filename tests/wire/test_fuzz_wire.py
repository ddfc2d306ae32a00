"""Valid and corrupted requests in all formats, checked against an independent reading of the same bytes."""

import asyncio
import base64
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.fuzz import CASES, SPECIAL, cases, one_in, rows, spoiled, tell
from helpers.oracle import (
    ACCEPTS,
    DIM,
    STITCHERS,
    Form,
    Reply,
    check,
    check_refusal,
    expect,
    expect_of_model,
    read_request,
    read_stream,
    reply_form,
    translations,
    width_of,
)
from helpers.wire_requests import accepts, json_bodies, junk, queries, streams
from hypothesis import given
from hypothesis import strategies as st

from repstitch.errors import InputError
from repstitch.server.app import create_app
from repstitch.server.negotiation import ARROW, OCTETS
from repstitch.server.openapi import document
from repstitch.server.responses import JSON
from repstitch.server.settings import Settings
from repstitch.spaces import Space
from repstitch.stitchers.registry import Registry
from repstitch.wire import fields, lists
from repstitch.wire.arrow import WIDTHS, read_arrow, write_arrow
from repstitch.wire.fields import TRANSLATE, read_embedding, read_json, write_embedding, write_json
from repstitch.wire.rows import DTYPES, rows_from_bytes, rows_to_bytes

LONG_BYTES = fields.LONG_BYTES


class App:
    """The whole application, called in this process without a socket."""

    def __init__(self, registry: Registry):
        self.app, self.loop = create_app(registry, Settings()), asyncio.new_event_loop()
        self.counts: Counter = Counter()

    def post(self, path: str, query: str, body: bytes, kind: str = JSON, **headers: str) -> Reply:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query.encode(),
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in {"content-type": kind, **headers}.items()],
            "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 9), "state": {},
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        fields.LONG_BYTES = len(body) % 2 * LONG_BYTES  # bodies of even length count as long and are parsed in parts

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        self.loop.run_until_complete(self.app(scope, receive, send))
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        reply = Reply(sent[0]["status"], headers, b"".join(part.get("body", b"") for part in sent[1:]))
        assert headers["content-length"] == str(len(reply.body))
        self.counts[f"POST {path}", kind.partition(";")[0], reply.status] += 1
        documented = document()["paths"][path]["post"]["responses"]
        assert str(reply.status) in documented, reply
        assert reply.status < 500, reply
        return reply


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stitchers")
    for name, stitcher in STITCHERS.items():
        stitcher.save(folder / name)
    registry = Registry(folder)
    registry.refresh()
    app = App(registry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "PART_BYTES", 16)
        patch.setattr(fields, "PART_ROWS", 2)
        patch.setattr(fields, "LONG_BYTES", fields.LONG_BYTES)  # each request sets it; it is restored at the end
        yield app
    tell(app.counts)
    gate = app.app.state.service.gate
    assert (gate.requests, gate.bytes) == (0, 0)  # a finished request reserves nothing, however it ended
    answered = sum(count for (_, _, status), count in app.counts.items() if status == 200)
    assert app.counts.total() < 0.5 * CASES or answered > 0.2 * app.counts.total(), app.counts  # if most tests ran
    app.loop.close()


# --- translating ------------------------------------------------------------------------------------------------------


@cases(0.18)
@given(
    numbers=rows(DIM), query=queries(), dtype=st.sampled_from(("", *DTYPES)), accept=accepts, data=st.data(),
)  # fmt: skip
def test_binary_rows_are_translated_correctly_or_refused(app, numbers, query, dtype, accept, data):
    kind = DTYPES[dtype or "float32"]
    with np.errstate(over="ignore"):
        body = data.draw(spoiled(numbers.astype(kind).tobytes()))
    reply = app.post("/v1/translate", query.text, body, OCTETS + (f"; dtype={dtype}" if dtype else ""), accept=accept)
    form = reply_form(accept, OCTETS, dtype or "float32")
    dim = width_of(query.names)
    whole = body and len(body) % (kind.itemsize * dim) == 0
    expected = None
    if whole and query.names and form:
        expected = expect(np.frombuffer(body, kind).reshape(-1, dim), query.names)
    check(reply, expected, numbers, (form or Form(OCTETS, "float32"))._replace(confidence=query.confidence))


@cases(0.22)
@given(body_and_numbers=json_bodies(), accept=st.sampled_from(("", *(*ACCEPTS,) * 3, "text/html")))
def test_json_is_translated_correctly_or_refused(app, body_and_numbers, accept):
    body, numbers = body_and_numbers
    reply = app.post("/v1/translate", "", body, accept=accept)
    request, form = read_request(body), reply_form(accept, JSON, "float32")
    if request is None or form is None:
        check(reply, None, numbers, Form(JSON, "float32"))
        return
    fields = request.fields
    encoding = fields.get("encoding_format") or ("base64" if isinstance(fields["embedding"], str) else "float")
    form = Form(
        form.kind, fields.get("dtype", "float32") if form.kind == JSON else form.dtype,
        confidence=bool(fields.get("confidence")), base64=encoding == "base64", single=request.single,
    )  # fmt: skip
    check(reply, expect(request.numbers, request.names), numbers, form)


@cases(0.2)
@given(stream=streams(), query=queries(), accept=st.sampled_from(("", "", "*/*", ARROW, OCTETS, JSON)))
def test_arrow_is_translated_correctly_or_refused(app, stream, query, accept):
    reply = app.post("/v1/translate", query.text, stream.body, ARROW, accept=accept)
    content = read_stream(stream.body, width_of(query.names))
    expected = expect(content[0], query.names) if content is not None and query.names else None
    if expected is not None and not stream.valid:
        expected = expected._replace(certain=False)
    if content is None or reply.status != 200:
        check(reply, expected, stream.numbers, Form(ARROW, "float32"))
        return
    dtype = WIDTHS[pa.ipc.open_stream(stream.body).schema.field("vector").type.value_type]
    form = reply_form(accept, ARROW, dtype) or Form(ARROW, dtype)
    ids = content[1] if form.kind == ARROW else None
    check(reply, expected, stream.numbers, form._replace(confidence=query.confidence, ids=ids))


# --- other routes that take rows --------------------------------------------------------------------------------------


MODELS = ("old-to-new", "old->new", "raw->new", "odd")


@st.composite
def embeddings_fields(draw, numbers: np.ndarray) -> tuple[dict[str, Any], Any, bool]:
    """Draw the fields of a request for /v1/embeddings, its vectors, and whether it is valid."""
    model = draw(st.sampled_from((*MODELS, "old->far", "no\nne", "->", "a->b->c", "", 1)))
    value: Any = numbers.tolist()
    if len(value) == 1 and draw(st.booleans()):
        value = value[0]
    encoding = draw(st.sampled_from(("float", "base64")))
    fields: dict[str, Any] = {"model": model, "input": value, "encoding_format": encoding}
    valid = model in MODELS
    match draw(st.sampled_from(("", "", "", "text", "tokens", "whole", "junk", "dimensions", "user", "query"))):
        case "text":
            texts = ("words", ["words", "more"], ["words", 1], [" "], b64(numbers))
            fields["input"], valid = draw(st.sampled_from(texts)), False
        case "tokens":
            fields["input"], valid = draw(st.sampled_from(([1, 2, 3], [[1] * (DIM + 1)]))), False
        case "whole":
            fields["input"] = value = [1, 0, -2, *range(DIM - 3)]
        case "junk":
            name = draw(st.sampled_from(tuple(fields)))
            fields[name] = draw(junk())
            valid = valid and name == "encoding_format" and fields[name] is None
        case "dimensions":
            fields["dimensions"] = draw(st.sampled_from((4, 4.0, 3, 0, -1, 4.5, True, "4", 10**30)))
            valid = valid and fields["dimensions"] == 4 and type(fields["dimensions"]) is not str
        case "user":
            fields["user"] = draw(st.text(st.characters(codec="utf-8")))
    return fields, value, valid


@cases(0.06)
@given(numbers=rows(DIM), data=st.data())
def test_embeddings_are_translated_correctly_or_refused(app, numbers, data):
    fields, value, valid = data.draw(embeddings_fields(numbers))
    reply = app.post("/v1/embeddings", "", json.dumps(fields).encode())
    expected = expect_of_model(value, fields["model"]) if valid else None
    if reply.status != 200:
        assert expected is None or not expected.certain, reply
        check_refusal(reply, numbers)
        return
    assert expected is not None, reply
    vectors, tolerance = translations(expected)
    body = json.loads(reply.body)
    assert body["model"] == fields["model"]
    assert [item["index"] for item in body["data"]] == list(range(len(vectors)))
    answer = [item["embedding"] for item in body["data"]]
    if fields["encoding_format"] == "base64":
        answer = [np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in answer]
    assert (np.abs(np.array(answer, np.float64) - vectors) <= tolerance).all()


@cases(0.02)
@given(n=st.sampled_from((1, 19, 20, 25, 40)), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_scores_are_returned_or_refused(app, n, seed, data):
    draw, random = data.draw, np.random.default_rng(seed)
    X = random.standard_normal((n, DIM)).astype(np.float32)
    Y = STITCHERS["old-to-new"].translate(X)
    valid = n >= 20
    match draw(st.sampled_from(("", "same", "special", "scale", "few", "noise", "spoiled"))):
        case "same":
            X[:], Y[:] = X[0], Y[0]
        case "special":
            X[draw(st.integers(0, n - 1)), 0] = np.clip(draw(st.sampled_from(SPECIAL)), -1e38, 1e38)
        case "scale":
            Y = Y * np.float32(draw(st.sampled_from((1e-30, 1e30, 1e-44))))
        case "few":
            Y = Y[:-1]
            valid = False
        case "noise":
            Y = random.standard_normal((n, 4)).astype(np.float32)
    fields: dict[str, Any] = {"source": "old", "target": "new", "embedding": X.tolist(), "counterpart": Y.tolist()}
    if draw(one_in(2)):
        fields |= {"embedding": b64(X), "counterpart": b64(Y)}
    if draw(one_in(4)):
        fields[draw(st.sampled_from((*fields, "confidence", "dtype")))] = draw(junk())
    reply = app.post("/v1/score", "", json.dumps(fields).encode())
    if reply.status != 200:
        check_refusal(reply, X)
        return
    assert valid, reply
    body = json.loads(reply.body)
    assert body["rows"] == n
    assert body["scorecard"]


def b64(numbers: np.ndarray) -> str:
    return base64.b64encode(np.asarray(numbers, "<f4").tobytes()).decode()


# --- reading and writing without the application ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def counts():
    """Count how often each property was tried."""
    counts: Counter = Counter()
    yield counts
    tell(counts)


@cases(0.04)
@given(
    body=st.binary(max_size=60) | rows(3).map(lambda r: r.tobytes()),
    dim=st.integers(1, 5),
    dtype=st.sampled_from(tuple(DTYPES)),
)
def test_bytes_are_read_as_numpy_reads_them_or_refused(counts, body, dim, dtype):
    kind = DTYPES[dtype]
    whole = body and len(body) % (kind.itemsize * dim) == 0
    counts["no route", "octets read", 0] += 1
    try:
        read = rows_from_bytes(bytearray(body), dim, dtype)
    except InputError:
        assert not whole
        return
    assert whole
    assert read.dtype == np.float32
    assert np.array_equal(read, np.frombuffer(body, kind).reshape(-1, dim).astype(np.float32), equal_nan=True)


@cases(0.05)
@given(bits=st.binary(min_size=24, max_size=240), dtype=st.sampled_from(tuple(DTYPES)), single=st.booleans())
def test_rows_round_trip_bit_for_bit_in_every_format(counts, bits, dtype, single):
    """The numbers are drawn from all finite numbers of a dtype, including denormals and -0.0."""
    counts["no route", "rows written and read", 0] += 1
    numbers = np.frombuffer(bits[: len(bits) // 24 * 24], DTYPES[dtype]).reshape(-1, DIM)
    numbers = np.where(np.isfinite(numbers), numbers, 0).astype(np.float32)

    def same(read: np.ndarray) -> bool:
        return read.dtype == np.float32 and read.tobytes() == numbers.tobytes()

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
        read, read_single = read_embedding(fields["embedding"], DIM, dtype)
        assert same(read)
        assert read_single == (single if encoding == "float" else len(numbers) == 1)


@cases(0.03)
@given(stream=streams())
def test_arrow_streams_are_read_as_pyarrow_reads_them_or_refused(counts, stream):
    counts["no route", "Arrow read", 0] += 1
    try:
        read = read_arrow(stream.body, DIM)
    except InputError:
        assert not stream.valid
        return
    expected = read_stream(stream.body, DIM)
    assert expected is not None
    assert np.array_equal(read.rows, expected[0].astype(np.float32), equal_nan=True)
    assert (read.ids is None) == (expected[1] is None)
