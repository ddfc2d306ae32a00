import asyncio
import base64
import gzip
import inspect
import json
import random
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from helpers.imports import loaded_after
from helpers.serving import free_port, make_rows, make_stitcher, running, serve_command
from helpers.spaces import confidence

from repstitch.client import (
    AsyncClient,
    BusyError,
    Client,
    ClientConflictError,
    ClientError,
    ClientInputError,
    ClientNotFoundError,
    ServiceError,
    Translation,
    UnauthorisedError,
    UnreachableError,
    responses,
)
from repstitch.client.core import FIRST_PAUSE_S, MOST_PAUSE_S
from repstitch.client.responses import OCTETS
from repstitch.errors import ConflictError, InputError, NotFoundError
from repstitch.server.app import create_app
from repstitch.server.settings import Settings
from repstitch.stitchers.registry import Registry

ADDRESS = "http://127.0.0.1:3000"
KEY = "sesame-0123"
W = np.array([[1, 0, 2], [0, 1, 0], [1, 1, 0], [0, 0, 1], [2, 0, 0], [0, 3, 1]], np.float32)
MEASURES = {"p_match@500": 0, "shared": 1}  # of the fake: the column of the row that each one repeats


class Fake:
    """A service in a function: rows times W, as the contract has it, with faults to order."""

    def __init__(self, max_rows=10**9, versions=(), faults=(), **headers):
        self.max_rows, self.versions, self.faults = max_rows, list(versions), list(faults)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.requests: list[httpx.Request] = []
        self.rows: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            return again(fault)
        form = request.headers["content-type"]
        assert request.headers["accept"] == form
        wire = "<f2" if form == f"{OCTETS}; dtype=float16" else "<f4"
        rows = np.frombuffer(request.content, wire).reshape(-1, len(W)).astype(np.float32)
        self.rows.append(len(rows))
        if len(rows) > self.max_rows:
            return problem(413, f"A request may hold at most {self.max_rows} rows; got {len(rows)}.", "embedding")
        params = request.url.params
        headers = {
            "content-type": form,
            "x-rows": str(len(rows)),
            "x-dim": "3",
            "x-stitcher": quote(params.get("stitcher", "old-to-new")),
            "x-stitcher-version": self.versions.pop(0) if self.versions else "v1",
        }
        columns = [rows @ W]
        if params.get("confidence") == "true":
            headers["x-confidence"] = ",".join(MEASURES)
            columns += [rows[:, [column]] for column in MEASURES.values()]
        if params.get("route") == "auto":
            headers |= {"x-route": "old->m%C3%AF%2Dd->new", "x-expected-score": "0.5"}
        headers |= self.headers
        headers = {name: value for name, value in headers.items() if value}
        return httpx.Response(200, headers=headers, content=np.hstack(columns).astype(wire).tobytes())


class Waited:
    """A client of either kind whose methods are simply called; it notes its pauses instead of sleeping."""

    def __init__(self, client: Client | AsyncClient):
        self.client, self.pauses = client, []
        client._core.random = random.Random(0)

        async def sleep(seconds):
            self.pauses.append(seconds)

        if isinstance(client, AsyncClient):
            client._sleep = sleep
        else:
            client._sleep = self.pauses.append

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*args, **options):
            found = method(*args, **options)
            return asyncio.run(found) if inspect.iscoroutine(found) else found

        return call


class AppTransport(httpx.BaseTransport):
    """An ASGI application for a client that waits."""

    def __init__(self, app):
        self.inner = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request):
        async def answer():
            response = await self.inner.handle_async_request(request)
            assert isinstance(response.stream, httpx.AsyncByteStream)
            return httpx.Response(
                response.status_code,
                headers=response.headers,
                content=b"".join([part async for part in response.stream]),
            )

        return asyncio.run(answer())


@pytest.fixture(params=[Client, AsyncClient])
def kind(request):
    return request.param


@pytest.fixture
def connect(kind):
    """Connect either kind of client to a function that answers requests."""
    return lambda handler, address=ADDRESS, **options: Waited(
        kind(address, transport=httpx.MockTransport(handler), **options)
    )


@pytest.fixture
def to_app(kind, tmp_path):
    """Connect either kind of client to the real application, serving an uncalibrated and a calibrated stitcher."""
    make_stitcher().save(tmp_path / "old-to-new")
    make_stitcher("sure", calibration=confidence(6, pool=500)).save(tmp_path / "sure-to-new")
    registry = Registry(tmp_path)
    registry.refresh()

    def to_app(client_options=None, **settings):
        app = create_app(registry, Settings(**settings))
        options = client_options or {}
        if kind is AsyncClient:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            return Waited(AsyncClient(ADDRESS, transport=transport, **options))
        return Waited(Client(ADDRESS, transport=AppTransport(app), **options))

    return to_app


def again(reply: httpx.Response) -> httpx.Response:
    """A reply that was not sent yet, for one is read by one kind of client only."""
    return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)


def problem(status, message="It is so.", param=None, code="word", **headers) -> httpx.Response:
    error = {"error": {"code": code, "message": message, "param": param}}
    return httpx.Response(status, json=error, headers={n.replace("_", "-"): v for n, v in headers.items()})


def rows_of(n=3, dim=6) -> np.ndarray:
    """Whole numbers, so that float16 and sums in any order are exact."""
    return np.random.default_rng(n).integers(-4, 5, (n, dim)).astype(np.float32)


# --- translating ------------------------------------------------------------------------------------------------------


def test_rows_come_back_as_rows_and_a_vector_as_a_vector(connect):
    fake = Fake()
    client, X = connect(fake), rows_of(3)
    for given, expected in ((X, X @ W), (X[:1], X[:1] @ W), (X[0], X[0] @ W)):
        found = client.translate(given, "old", "new")
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)
        found += 1  # the caller's own
    request = fake.requests[0]
    assert (request.method, str(request.url)) == ("POST", f"{ADDRESS}/v1/translate?source=old&target=new")
    assert request.headers["content-type"] == request.headers["accept"] == OCTETS
    assert request.content == X.astype("<f4").tobytes()


@pytest.mark.parametrize(
    "given",
    [
        rows_of(4).astype(np.float64),
        rows_of(4).astype(np.float16),
        rows_of(4).astype(">f4"),
        np.asfortranarray(rows_of(4)),
        rows_of(8)[::2],
        rows_of(4).tolist(),
    ],
    ids=["float64", "float16", "big-endian", "columns first", "strided", "list"],
)
def test_floats_of_any_width_and_layout_are_taken(connect, given):
    expected = np.asarray(given, np.float32) @ W
    assert np.array_equal(connect(Fake()).translate(given, "old", "new"), expected)


def test_float16_travels_and_comes_back_as_float16(connect):
    fake, X = Fake(), rows_of(5)
    found = connect(fake).translate(X, "old", "new", dtype="float16")
    assert found.dtype == np.float16
    assert np.array_equal(found, X @ W)
    assert len(fake.requests[0].content) == X.size * 2


def test_names_and_choices_are_told_to_the_service(connect):
    fake = Fake()
    client, X = connect(fake), rows_of(2)
    client.translate(X, "öld & co", "new", stitcher="a/b", route="auto")
    assert dict(fake.requests[0].url.params) == {
        "source": "öld & co",
        "target": "new",
        "stitcher": "a/b",
        "route": "auto",
    }
    client.translate_full(X, "old", "new", confidence=True)
    assert dict(fake.requests[1].url.params) == {"source": "old", "target": "new", "confidence": "true"}


@pytest.mark.parametrize("batch_bytes", [10**6, 48])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_full_translation_says_how_sure_it_is_and_where_it_comes_from(connect, batch_bytes, dtype):
    client, X = connect(Fake(), batch_bytes=batch_bytes), rows_of(7)
    found = client.translate_full(X, "old", "new", stitcher="näme,1", route="auto", confidence=True, dtype=dtype)
    assert np.array_equal(found.vectors, X @ W)
    assert list(found.confidence) == list(MEASURES)
    for name, column in MEASURES.items():
        assert np.array_equal(found.confidence[name], X[:, column])
        assert found.confidence[name].dtype == dtype
    assert (found.stitcher, found.version) == ("näme,1", "v1")
    assert (found.route, found.expected_score) == (("old", "mï-d", "new"), 0.5)


def test_the_confidence_of_one_vector_is_one_number(connect):
    X = rows_of(1)
    found = connect(Fake()).translate_full(X[0], "old", "new", confidence=True)
    assert {name: values.shape for name, values in found.confidence.items()} == dict.fromkeys(MEASURES, ())
    assert float(found.confidence["shared"]) == X[0, 1]
    assert (found.route, found.expected_score) == (None, None)


def test_an_unknown_score_is_none(connect):
    client = connect(Fake(x_expected_score="unknown"))
    assert client.translate_full(rows_of(1), "old", "new", route="auto").expected_score is None


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_bytes", "dtype", "parts"),
    [
        (24 * 10, "float32", [10]),
        (24 * 4, "float32", [4, 4, 2]),
        (24 * 4 + 23, "float32", [4, 4, 2]),
        (24 * 4, "float16", [8, 2]),
        (1, "float32", [1] * 10),
    ],
)
def test_a_large_array_goes_in_parts_of_whole_rows(connect, batch_bytes, dtype, parts):
    fake, X = Fake(), rows_of(10)
    assert np.array_equal(connect(fake, batch_bytes=batch_bytes).translate(X, "old", "new", dtype=dtype), X @ W)
    assert sorted(fake.rows) == sorted(parts)


def test_parts_that_are_too_large_are_halved_and_later_ones_are_not_even_sent(connect, kind):
    fake, X = Fake(max_rows=3), rows_of(20)
    options = {"concurrency": 1} if kind is AsyncClient else {}
    assert np.array_equal(connect(fake, batch_bytes=240, **options).translate(X, "old", "new"), X @ W)
    assert fake.rows == [10, 5, 2, 3, 2, 3, 2, 3, 2, 3]


def test_one_row_that_is_too_large_is_refused(connect):
    fake = Fake(max_rows=0)
    with pytest.raises(ClientInputError, match="at most 0 rows; got 1") as caught:
        connect(fake).translate(rows_of(4), "old", "new")
    assert (caught.value.status, caught.value.param) == (413, "embedding")
    assert fake.rows == [4, 2, 1]


def test_a_refused_part_says_where_its_rows_begin(connect, kind):
    def refuse_the_second(request):
        if request.content == X[4:8].tobytes():
            return problem(422, "1 of 4 rows (first: row 1) hold only zeros.", "embedding", code="unusable")
        return Fake()(request)

    X = rows_of(10)
    message = r"\(first: row 1\) hold only zeros. Rows are counted from row 4 of `X`.$"
    with pytest.raises(ClientInputError, match=message) as caught:
        connect(refuse_the_second, batch_bytes=96).translate(X, "old", "new")
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "unusable", "embedding")


def test_rows_of_two_versions_are_never_mixed_the_whole_array_is_translated_again(connect):
    fake, X = Fake(versions=["v1", "v2", "v2", "v2", "v2", "v2"]), rows_of(6)
    found = connect(fake, batch_bytes=48).translate_full(X, "old", "new")
    assert np.array_equal(found.vectors, X @ W)
    assert found.version == "v2"
    assert fake.rows == [2] * 6


def test_versions_that_keep_changing_are_a_conflict(connect):
    fake = Fake(versions=["v1", "v2"] * 3)
    with pytest.raises(ConflictError, match=r"must all be translated by one stitcher; .* old-to-new v1, old-to-new v2"):
        connect(fake, batch_bytes=48).translate(rows_of(6), "old", "new")
    assert len(fake.rows) == 6


def test_parts_of_two_stitchers_are_mixed_too(connect):
    def by_turns(request):
        answers.append(1)
        return Fake(x_stitcher=f"s{len(answers) % 2}")(request)

    answers = []
    with pytest.raises(ClientConflictError, match="one stitcher; twice the service replaced it"):
        connect(by_turns, batch_bytes=24).translate(rows_of(2), "old", "new")


def test_parts_go_side_by_side_up_to_the_concurrency_and_stay_in_order():
    under_way, most = 0, 0

    async def handler(request):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        # The first parts take longest, so that answers come in another order than the rows went.
        for _ in range(40 - np.frombuffer(request.content, "<f4").astype(int)[0] * 2):
            await asyncio.sleep(0)
        under_way -= 1
        return Fake()(request)

    X = np.zeros((20, 6), np.float32)
    X[:, 0] = np.arange(20)
    client = AsyncClient(ADDRESS, batch_bytes=24, concurrency=3, transport=httpx.MockTransport(handler))
    assert np.array_equal(asyncio.run(client.translate(X, "old", "new")), X @ W)
    assert most == 3


def test_a_part_that_fails_ends_the_others():
    async def handler(request):
        seen.append(1)
        while len(seen) > 1:
            await asyncio.sleep(1000)
        return problem(404, "There is no space 'old'.")

    seen = []
    client = AsyncClient(ADDRESS, batch_bytes=24, concurrency=2, transport=httpx.MockTransport(handler))
    with pytest.raises(ClientNotFoundError, match="There is no space 'old'"):
        asyncio.run(client.translate(rows_of(8), "old", "new"))
    assert len(seen) <= 3


# --- what is refused before anything is sent --------------------------------------------------------------------------


def with_value(value, at, dtype: type = np.float32):
    X = np.ones((6, 6), dtype)
    X[at, 2] = value
    return X


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (
            np.zeros((0, 6), np.float32),
            r"`X` must be rows .*, at least one .*; got shape \(0, 6\). Leave the call out.",
        ),
        (np.zeros((3, 0), np.float32), r"at least one number; got shape \(3, 0\)"),
        (np.zeros(0, np.float32), r"got shape \(0,\)"),
        (np.float32(1), r"`X` must be rows \(n, d\) or one vector \(d,\) of floats; got shape \(\). Reshape it"),
        (np.zeros((2, 3, 6), np.float32), r"got shape \(2, 3, 6\). Reshape it"),
        (
            np.ones((2, 6), np.int64),
            r"`X` must be .* of floats; got int64. Convert it, as by `np.asarray\(X, 'float32'\)`",
        ),
        (np.ones((2, 6), complex), "got complex128"),
        (np.ones((2, 6), bool), "got bool"),
        ([["a"]], "got <U1"),
        ([[1.0], [1.0, 2.0]], r"`X` must be rows \(n, d\) or one vector \(d,\) of floats; setting an array element"),
        (with_value(np.nan, 4), "`X` must hold finite float32 numbers; row 4 holds NaN, Inf or .* Leave it out.$"),
        (with_value(-np.inf, 5), "row 5 holds NaN, Inf"),
        (with_value(1e39, 3, np.float64), "row 3 holds NaN, Inf or a number too large for float32"),
        (np.full(6, np.nan), "row 0 holds NaN"),
    ],
)
def test_arrays_that_cannot_be_translated_are_refused_without_a_request(connect, X, message):
    fake = Fake()
    with pytest.raises(InputError, match=message):
        connect(fake, batch_bytes=48).translate(X, "old", "new")
    assert not fake.requests


def test_numbers_beyond_float16_are_refused_where_they_would_travel_as_such(connect):
    client, X = connect(Fake()), with_value(70_000, 1)
    message = 'row 1 holds .* too large for float16. Leave it out or send it with dtype="float32".'
    with pytest.raises(InputError, match=message):
        client.translate(X, "old", "new", dtype="float16")
    assert np.array_equal(client.translate(X, "old", "new"), X @ W)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "`dtype` must be one of float32, float16; got 'float64'"),
        ({"dtype": np.float32}, "`dtype` must be one of"),
        ({"route": "best"}, "`route` must be one of direct, auto; got 'best'"),
        ({"confidence": 1}, "`confidence` must be one of False, True; got 1"),
        ({"stitcher": ""}, "`stitcher` must have 1 to 256 characters; got 0"),
        ({"stitcher": "x" * 10**6}, "`stitcher` must have 1 to 256 characters; got 1000000"),
        ({"source": None}, "`source` must be a name; got null"),
        ({"target": 3}, "`target` must be a name; got a number"),
        ({"target": "\ud800"}, r"`target` must be a name that UTF-8 can write; got '\\ud800'"),
    ],
)
def test_choices_and_names_are_checked(connect, options, message):
    fake = Fake()
    with pytest.raises(InputError, match=message):
        connect(fake).translate_full(rows_of(1), **({"source": "old", "target": "new"} | options))
    assert not fake.requests


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:3000", "`address` must be http:// or https://, a host and at most a path"),
        ("ftp://host", "got ftp://, host 'host'"),
        ("http://", "host ''"),
        ("", "got no scheme"),
        ("http://host:port", "got what is no URL"),
        ("http://..", "got what is no URL"),
        (None, "got what is no URL"),
        ("http://host/?key=secret", "got a query or a fragment behind it. Leave that out.$"),
        ("http://host?", "got a query"),
        ("http://host#secret", "got a query or a fragment"),
        ("http://me:secret@host", "got a user name or password in it. Give a key as `api_key`.$"),
    ],
)
def test_an_address_that_is_none_is_refused_and_not_quoted(kind, address, message):
    with pytest.raises(InputError, match=message) as caught:
        kind(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("api_key", ["", "two words", "line\nbreak", "schlüssel", 7])
def test_a_key_that_cannot_be_sent_is_refused_and_not_quoted(kind, api_key):
    with pytest.raises(
        InputError, match="`api_key` must be a key of visible ASCII characters without spaces"
    ) as caught:
        kind(ADDRESS, api_key)
    assert not api_key or str(api_key) not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "`timeout_s` must be a number of seconds above 0; got 0"),
        ({"timeout_s": float("nan")}, "`timeout_s` must be"),
        ({"timeout_s": None}, "`timeout_s` must be"),
        ({"retries": -1}, "`retries` must be a whole number of at least 0; got -1"),
        ({"retries": True}, "`retries` must be"),
        ({"batch_bytes": 0}, "`batch_bytes` must be a whole number of at least 1; got 0"),
        ({"batch_bytes": 1e6}, "`batch_bytes` must be"),
    ],
)
def test_limits_are_checked(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind(ADDRESS, **options)


def test_the_concurrency_is_checked():
    with pytest.raises(InputError, match="`concurrency` must be a whole number of at least 1; got 0"):
        AsyncClient(ADDRESS, concurrency=0)


# --- replies that are not to be trusted -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"content_type": "application/json"}, "it is application/json of float32, not application/octet-stream"),
        ({"content_type": ""}, "it is of no type of float32"),
        ({"content_type": f"{OCTETS}; dtype=float16"}, f"it is {OCTETS} of float16, not {OCTETS} of float32"),
        ({"x_rows": "2"}, "X-Rows must be 3; got 2"),
        ({"x_rows": ""}, "X-Rows must be 3; got none"),
        ({"x_dim": "6"}, "3 rows of 6 float32 numbers are 72 bytes; got 36"),
        ({"x_dim": "0"}, "X-Dim must be a whole number of at least 1; got 0"),
        ({"x_dim": "-3"}, "X-Dim must be"),
        ({"x_dim": "9" * 5000}, "X-Dim must be"),
        ({"x_dim": ""}, "X-Dim must be a whole number of at least 1; got none"),
        ({"x_stitcher": ""}, "X-Stitcher is missing"),
        ({"x_stitcher_version": ""}, "X-Stitcher-Version is missing"),
        ({"x_confidence": "shared"}, "X-Confidence must not name measures; got .*shared"),
    ],
)
def test_a_reply_that_does_not_fit_is_an_error_and_never_an_array(connect, headers, message):
    with pytest.raises(ServiceError, match=f"The reply does not fit the request: {message}") as caught:
        connect(Fake(**headers)).translate(rows_of(3), "old", "new")
    assert caught.value.status == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x_confidence": ""}, "X-Confidence must name measures; got none"),
        ({"x_confidence": "shared"}, "3 rows of 4 float32 numbers are 48 bytes; got 60"),
        ({"x_route": ""}, "X-Route is missing"),
    ],
)
def test_what_was_asked_for_must_be_there(connect, headers, message):
    with pytest.raises(ServiceError, match=message):
        connect(Fake(**headers)).translate_full(rows_of(3), "old", "new", confidence=True, route="auto")


@pytest.mark.parametrize("content", [b"", bytes(35), bytes(37)])
def test_a_reply_of_another_length_is_an_error(connect, content):
    headers = {"content-type": OCTETS, "x-rows": "3", "x-dim": "3", "x-stitcher": "a", "x-stitcher-version": "v"}
    reply = httpx.Response(200, headers=headers, content=content)
    with pytest.raises(ServiceError, match=f"3 rows of 3 float32 numbers are 36 bytes; got {len(content)}"):
        connect(Fake(faults=[reply])).translate(rows_of(3), "old", "new")


def test_a_compressed_reply_is_not_asked_for_and_a_broken_one_is_an_error(connect):
    def handler(request):
        assert request.headers["accept-encoding"] == "identity"
        stream = httpx.ByteStream(gzip.compress(b"x" * 99)[:5] + b"broken")
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=stream)

    client = connect(handler)
    with pytest.raises(ServiceError, match="The body of the reply cannot be decoded"):
        client.translate(rows_of(1), "old", "new")
    assert not client.pauses


# --- trying again -----------------------------------------------------------------------------------------------------

BROKEN = [
    httpx.ConnectError("refused"),
    httpx.ConnectTimeout("slow"),
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("Server disconnected without sending a response."),
]


@pytest.mark.parametrize("fault", [problem(429), problem(503), *BROKEN], ids=repr)
def test_a_busy_service_and_a_broken_connection_are_tried_again(connect, fault):
    fake, X = Fake(faults=[fault, fault]), rows_of(2)
    client = connect(fake)
    assert np.array_equal(client.translate(X, "old", "new"), X @ W)
    assert len(fake.requests) == 3
    assert fake.requests[0].content == fake.requests[2].content
    drawn = random.Random(0)
    assert client.pauses == [drawn.uniform(0, FIRST_PAUSE_S), drawn.uniform(0, 2 * FIRST_PAUSE_S)]


@pytest.mark.parametrize("status", [400, 401, 404, 405, 408, 409, 415, 422, 500, 502, 504])
def test_any_other_status_is_not(connect, status):
    fake = Fake(faults=[problem(status, retry_after="1")])
    client = connect(fake)
    with pytest.raises(ClientError):
        client.translate(rows_of(1), "old", "new")
    assert len(fake.requests) == 1
    assert not client.pauses


def test_pauses_double_up_to_a_limit_and_are_drawn_at_random(connect):
    client = connect(Fake(faults=[problem(503)] * 20), retries=12)
    with pytest.raises(BusyError):
        client.translate(rows_of(1), "old", "new")
    limits = [min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**i) for i in range(12)]
    assert limits[-1] == MOST_PAUSE_S
    drawn = random.Random(0)
    assert client.pauses == [drawn.uniform(0, limit) for limit in limits]


NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": "0"}, 0),
        ({"retry_after": "999999999999"}, MOST_PAUSE_S),
        ({"retry_after": format_datetime(NOON.replace(second=9), usegmt=True)}, 9),
        ({"retry_after": format_datetime(NOON.replace(hour=11), usegmt=True)}, 0),
        ({"retry_after": format_datetime(NOON.replace(year=2050), usegmt=True)}, MOST_PAUSE_S),
        ({"retry_after": "-3"}, 0),
        ({"retry_after": "soon"}, 0),
        ({"retry_after": "²"}, 0),
        ({"retry_after": "Tue, 99 Jan 99999999999999999999 99:99:99 GMT"}, 0),
    ],
)
def test_the_service_says_how_long_to_wait_in_seconds_or_as_a_date(connect, headers, least):
    headers = {name: value.encode() for name, value in headers.items()}
    clock = format_datetime(NOON, usegmt=True)
    client = connect(Fake(faults=[problem(429, date=clock, **headers)]))
    client.translate(rows_of(1), "old", "new")
    assert client.pauses == [min(MOST_PAUSE_S, least + random.Random(0).uniform(0, FIRST_PAUSE_S))]


def test_a_date_without_the_services_clock_is_taken_by_ours(connect, monkeypatch):
    monkeypatch.setattr(responses.time, "time", lambda: NOON.timestamp() - 5)
    client = connect(Fake(faults=[problem(429, retry_after=format_datetime(NOON, usegmt=True))]))
    client.translate(rows_of(1), "old", "new")
    assert client.pauses == [5 + random.Random(0).uniform(0, FIRST_PAUSE_S)]


def test_a_service_that_stays_busy_is_an_error_after_the_last_try(connect):
    fake = Fake(faults=[problem(429, "128 translations are under way.", code="too_many_requests")] * 9)
    with pytest.raises(BusyError, match="128 translations are under way") as caught:
        connect(fake, retries=2).translate(rows_of(1), "old", "new")
    assert (caught.value.status, caught.value.code) == (429, "too_many_requests")
    assert len(fake.requests) == 3


def test_an_address_where_nothing_answers_is_an_error_after_the_last_try(connect):
    fake = Fake(faults=[httpx.ConnectError("Connection refused")] * 9)
    message = (
        f"Nothing answered at {ADDRESS} in 3 tries \\(ConnectError: Connection refused\\). See that the service runs"
    )
    with pytest.raises(UnreachableError, match=message) as caught:
        connect(fake, retries=2).translate(rows_of(1), "old", "new")
    assert (caught.value.status, caught.value.code, caught.value.param) == (None, None, None)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    with pytest.raises(UnreachableError, match="in one try"):
        connect(fake, retries=0).spaces()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind_of_error", "known_as"),
    [
        (400, ClientInputError, InputError),
        (401, UnauthorisedError, ClientError),
        (403, UnauthorisedError, ClientError),
        (404, ClientNotFoundError, NotFoundError),
        (406, ClientInputError, InputError),
        (409, ClientConflictError, ConflictError),
        (413, ClientInputError, InputError),
        (415, ClientInputError, InputError),
        (422, ClientInputError, InputError),
        (429, BusyError, ClientError),
        (500, ServiceError, ClientError),
        (503, BusyError, ClientError),
        (504, ServiceError, ClientError),
    ],
)
def test_a_status_is_an_error_with_the_services_own_words(connect, status, kind_of_error, known_as):
    fake = Fake(faults=[problem(status, "`source` is\n odd.", "source", "odd")])
    with pytest.raises(known_as, match=r"^`source` is odd\.$") as caught:
        connect(fake, retries=0).translate(rows_of(1), "old", "new")
    error = caught.value
    assert type(error) is kind_of_error
    assert (error.status, error.code, error.param) == (status, "odd", "source")


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(502, html="<h1>Bad gateway</h1>"),
        httpx.Response(502),
        httpx.Response(502, json=[]),
        httpx.Response(502, json={"error": "no"}),
        httpx.Response(502, json={"error": {"code": 7, "message": None}}),
        httpx.Response(502, content=b"{", headers={"content-type": "application/json"}),
    ],
)
def test_an_error_in_another_form_is_told_by_its_status(connect, reply):
    with pytest.raises(ServiceError, match=r"^The service answered 502 Bad Gateway, without saying why\.$"):
        connect(Fake(faults=[reply])).translate(rows_of(1), "old", "new")


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_as_bearer_and_shown_nowhere(connect):
    fake = Fake(faults=[None, problem(401, "The key is not known."), httpx.ConnectError("refused")])
    client = connect(fake, api_key=KEY, retries=0)
    client.translate(rows_of(1), "old", "new")
    assert fake.requests[0].headers["authorization"] == f"Bearer {KEY}"
    shown = repr(client.client)
    assert shown == f"{type(client.client).__name__}('{ADDRESS}')"
    for _ in range(2):
        with pytest.raises(ClientError) as caught:
            client.translate(rows_of(1), "old", "new")
        assert KEY not in f"{caught.value!r} {caught.value} {caught.value.__dict__} {caught.value.__cause__!r}"


def test_without_a_key_nothing_is_sent_in_its_place(connect):
    fake = Fake()
    connect(fake).translate(rows_of(1), "old", "new")
    assert "authorization" not in fake.requests[0].headers


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(connect, status):
    fake = Fake(faults=[httpx.Response(status, headers={"location": "http://elsewhere/"})])
    with pytest.raises(ServiceError, match=f"`address` must be the service's own; it answers {status} and points else"):
        connect(fake, api_key=KEY).translate(rows_of(1), "old", "new")
    assert [request.url.host for request in fake.requests] == ["127.0.0.1"]


def test_an_address_may_have_a_path(connect):
    fake = Fake()
    connect(fake, "https://host/vectors/").translate(rows_of(1), "old", "new")
    assert str(fake.requests[0].url) == "https://host/vectors/v1/translate?source=old&target=new"


# --- the other routes -------------------------------------------------------------------------------------------------


def test_lists_are_lists(connect):
    client = connect(lambda request: httpx.Response(200, json={request.url.path[4:]: [{"name": "a"}]}))
    assert client.spaces() == client.stitchers() == [{"name": "a"}]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx.Response(200, html="<p>hello"), "it is text/html, not application/json"),
        (httpx.Response(200, content=b"{", headers={"content-type": "application/json"}), "it is no JSON"),
        (httpx.Response(200, json=[]), "it is no JSON object"),
        (httpx.Response(200, json={}), "there is no list of spaces in it"),
    ],
)
def test_a_list_in_another_form_is_an_error(connect, reply, message):
    with pytest.raises(ServiceError, match=f"The reply does not fit the request: {message}"):
        connect(lambda _: again(reply)).spaces()


def test_a_stitcher_is_asked_for_by_its_quoted_name(connect):
    seen = []

    def handler(request):
        seen.append(request.url.raw_path)
        return httpx.Response(200, json={"name": "a/b ü"})

    assert connect(handler).stitcher("a/b ü") == {"name": "a/b ü"}
    assert seen == [b"/v1/stitchers/a%2Fb%20%C3%BC"]
    with pytest.raises(InputError, match="`name` must have 1 to 256 characters; got 0"):
        connect(handler).stitcher("")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (httpx.Response(200, json={"status": "ready", "stitchers": 1}), True),
        (problem(503, "No stitcher is loaded yet; try again.", retry_after="1"), False),
        (httpx.Response(502), False),
        (httpx.ConnectError("refused"), False),
    ],
)
def test_ready_asks_once(connect, answer, expected):
    fake = Fake(faults=[answer])
    client = connect(fake)
    assert client.ready() is expected
    assert [request.url.path for request in fake.requests] == ["/readyz"]
    assert not client.pauses


def test_ready_is_no_word_of_something_else(connect):
    with pytest.raises(ServiceError, match="it is text/html"):
        connect(lambda _: httpx.Response(200, html="welcome")).ready()
    with pytest.raises(ClientNotFoundError):
        connect(lambda _: httpx.Response(404)).ready()


def test_pairs_to_score_go_as_base64(connect):
    requests = []

    def handler(request):
        requests.append(request)
        return httpx.Response(200, json={"query": {"recall@1": 1.0}})

    X, Y = rows_of(4), rows_of(4, 3)
    assert connect(handler).score(X, Y.tolist(), "old", "new", stitcher="s") == {"query": {"recall@1": 1.0}}
    assert (requests[0].method, str(requests[0].url)) == ("POST", f"{ADDRESS}/v1/score")
    assert requests[0].headers["content-type"] == "application/json"
    assert json.loads(requests[0].content) == {
        "source": "old",
        "target": "new",
        "stitcher": "s",
        "embedding": base64.b64encode(X.tobytes()).decode(),
        "counterpart": base64.b64encode(Y.tobytes()).decode(),
    }


@pytest.mark.parametrize(
    ("X", "Y", "message"),
    [
        (rows_of(4), rows_of(3), "`X` and `Y` must be matched row by row; got 4 and 3 rows"),
        (rows_of(1)[0], rows_of(1), "`X` must be rows .* to be scored; got one vector"),
        (rows_of(4), with_value(np.nan, 2), "`Y` must hold finite float32 numbers; row 2"),
        (rows_of(4), [[1]], "`Y` must be .*; got int64"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(connect, X, Y, message):
    with pytest.raises(InputError, match=message):
        connect(Fake()).score(X, Y, "old", "new")


# --- context managers, imports ----------------------------------------------------------------------------------------


def test_leaving_the_block_closes_the_connections():
    with Client(ADDRESS) as client:
        pass
    assert client._http.is_closed

    async def scenario():
        async with AsyncClient(ADDRESS) as client:
            pass
        return client._http.is_closed

    assert asyncio.run(scenario())


def test_importing_the_client_loads_neither_torch_nor_the_server():
    code = "import repstitch.client\nassert not {'starlette', 'uvicorn', 'orjson', 'pyarrow'} & set(sys.modules)"
    assert loaded_after(code) == {"numpy"}


def test_without_httpx_a_client_says_what_to_install():
    code = (
        "sys.modules['httpx'] = None\nfrom repstitch.client import AsyncClient, Client\n"
        "from repstitch.errors import InputError\n"
        "for kind in (Client, AsyncClient):\n    try:\n        kind('http://host')\n        raise SystemExit(1)\n"
        "    except InputError as error:\n"
        "        assert 'needs httpx; install it with `pip install repstitch[serve]`' in str(error), error"
    )
    assert loaded_after(code) == {"numpy"}


# --- the real service -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [make_rows(5), make_rows(1), make_rows(1)[0]], ids=["rows", "row", "vector"])
def test_the_application_translates_as_the_stitcher_does(to_app, given):
    found = to_app({"batch_bytes": 48}).translate_full(given, "old", "new")
    expected = np.asarray(make_stitcher().translate(np.atleast_2d(given))).reshape(*given.shape[:-1], 4)
    assert np.allclose(found.vectors, expected, atol=1e-6)
    assert found.vectors.shape == expected.shape
    assert (found.stitcher, found.version) == ("old-to-new", make_stitcher().version)


def test_the_application_tells_confidence(to_app):
    X = make_rows(5)
    expected = make_stitcher("sure", calibration=confidence(6, pool=500)).confidence(X)
    found = to_app({"batch_bytes": 48}).translate_full(X, "sure", "new", confidence=True)
    assert list(found.confidence) == list(expected)
    for name, values in expected.items():
        assert np.allclose(found.confidence[name], values, rtol=1e-3)


def test_the_applications_refusals_are_typed(to_app):
    client, X = to_app(), make_rows(3)
    with pytest.raises(ClientNotFoundError, match=r"There is no space 'ol' .* Nearest: old") as caught:
        client.translate(X, "ol", "new")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "not_found", "source")
    with pytest.raises(ClientConflictError, match="has no calibration"):
        client.translate_full(X, "old", "new", confidence=True)
    with pytest.raises(ClientInputError, match="The rows must have 6 numbers; X-Dim says 5") as caught:
        client.translate(make_rows(1, 5), "old", "new")
    assert caught.value.status == 422
    with pytest.raises(ClientInputError, match="hold only zeros"):
        client.translate(np.zeros((1, 6), np.float32), "old", "new")
    with pytest.raises(ClientNotFoundError, match="Nearest: old-to-new"):
        client.stitcher("old-to-ne")


def test_the_applications_limits_are_met_by_halving(to_app):
    X = make_rows(9)
    expected = make_stitcher().translate(X)
    for limits in ({"max_rows": 2}, {"max_body_bytes": 50}):
        assert np.allclose(to_app(**limits).translate(X, "old", "new"), expected, atol=1e-6)


def test_the_application_lists_what_it_serves(to_app):
    client = to_app()
    assert client.ready()
    assert [space["name"] for space in client.spaces()] == ["new", "old", "sure"]
    assert [stitcher["name"] for stitcher in client.stitchers()] == ["old-to-new", "sure-to-new"]
    assert client.stitcher("old-to-new")["version"] == make_stitcher().version


def test_a_service_in_a_process_of_its_own(tmp_path: Path):
    folder, port = tmp_path / "stitchers", free_port()
    make_stitcher().save(folder / "old-to-new")
    X = make_rows(20_000)
    expected = make_stitcher().translate(X)
    env = {"OMP_NUM_THREADS": "1", "REPSTITCH_MAX_BODY_BYTES": "200000"}

    async def scenario():
        async with AsyncClient(f"http://127.0.0.1:{port}", batch_bytes=100_000) as client:
            return await client.translate(X, "old", "new")

    nobody = Client(f"http://127.0.0.1:{free_port()}", retries=0)
    assert not nobody.ready()
    with running(serve_command(folder, port), port, tmp_path / "log", env=env):
        with Client(f"http://127.0.0.1:{port}") as client:
            assert client.ready()
            # 480 kB in one part, which the service refuses unread, and which is then halved.
            assert np.allclose(client.translate(X, "old", "new"), expected, atol=1e-6)
            assert isinstance(client.translate_full(X[0], "old", "new"), Translation)
        assert np.allclose(asyncio.run(scenario()), expected, atol=1e-6)
