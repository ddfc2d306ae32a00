"""The calls of both clients, answered by a fake service."""

import asyncio
import base64
import json
import random
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import numpy as np
import pytest
from helpers.fake_service import ADDRESS, MEASURES, FakeService, W, json_reply, problem, rows_of, unsent, with_value

from repstitch.client import (
    AsyncClient,
    BusyError,
    ClientConflictError,
    ClientError,
    ClientInputError,
    ClientNotFoundError,
    ServiceError,
    UnreachableError,
    responses,
)
from repstitch.client.core import FIRST_PAUSE_S, MAX_PAUSE_S
from repstitch.client.responses import OCTETS
from repstitch.errors import ConflictError, InputError


def test_rows_come_back_as_rows_and_a_vector_as_a_vector(connect):
    fake = FakeService()
    client, X = connect(fake), rows_of(3)
    for vectors, expected in ((X, X @ W), (X[:1], X[:1] @ W), (X[0], X[0] @ W)):
        result = client.translate(vectors, "old", "new")
        assert result.dtype == np.float32
        assert result.shape == expected.shape
        assert np.array_equal(result, expected)
        result += 1  # the array belongs to the caller
    request = fake.requests[0]
    assert (request.method, str(request.url)) == ("POST", f"{ADDRESS}/v1/translate?source=old&target=new")
    assert request.headers["content-type"] == request.headers["accept"] == OCTETS
    assert request.content == X.astype("<f4").tobytes()


@pytest.mark.parametrize(
    "vectors",
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
def test_floats_of_any_width_and_layout_are_accepted(connect, vectors):
    expected = np.asarray(vectors, np.float32) @ W
    assert np.array_equal(connect(FakeService()).translate(vectors, "old", "new"), expected)


def test_float16_is_sent_and_returned_as_float16(connect):
    fake, X = FakeService(), rows_of(5)
    result = connect(fake).translate(X, "old", "new", dtype="float16")
    assert result.dtype == np.float16
    assert np.array_equal(result, X @ W)
    assert len(fake.requests[0].content) == X.size * 2


def test_names_and_options_are_sent_in_the_query(connect):
    fake = FakeService()
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
def test_a_full_translation_has_its_confidence_stitcher_and_route(connect, batch_bytes, dtype):
    client, X = connect(FakeService(), batch_bytes=batch_bytes), rows_of(7)
    result = client.translate_full(X, "old", "new", stitcher="näme,1", route="auto", confidence=True, dtype=dtype)
    assert np.array_equal(result.vectors, X @ W)
    assert list(result.confidence) == list(MEASURES)
    for name, column in MEASURES.items():
        assert np.array_equal(result.confidence[name], X[:, column])
        assert result.confidence[name].dtype == dtype
    assert (result.stitcher, result.version) == ("näme,1", "v1")
    assert (result.route, result.expected_score) == (("old", "mï-d", "new"), 0.5)


def test_the_confidence_of_one_vector_is_one_number(connect):
    X = rows_of(1)
    result = connect(FakeService()).translate_full(X[0], "old", "new", confidence=True)
    assert {name: values.shape for name, values in result.confidence.items()} == dict.fromkeys(MEASURES, ())
    assert float(result.confidence["shared"]) == X[0, 1]
    assert (result.route, result.expected_score) == (None, None)


def test_an_unknown_expected_score_is_none(connect):
    client = connect(FakeService(x_expected_score="unknown"))
    assert client.translate_full(rows_of(1), "old", "new", route="auto").expected_score is None


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_bytes", "dtype", "batch_rows"),
    [
        (24 * 10, "float32", [10]),
        (24 * 4, "float32", [4, 4, 2]),
        (24 * 4 + 23, "float32", [4, 4, 2]),
        (24 * 4, "float16", [8, 2]),
        (1, "float32", [1] * 10),
    ],
)
def test_a_large_array_is_sent_in_batches_of_whole_rows(connect, batch_bytes, dtype, batch_rows):
    fake, X = FakeService(), rows_of(10)
    assert np.array_equal(connect(fake, batch_bytes=batch_bytes).translate(X, "old", "new", dtype=dtype), X @ W)
    assert sorted(fake.rows) == sorted(batch_rows)


def test_batches_that_are_too_large_are_halved_and_later_ones_start_small(connect, kind):
    fake, X = FakeService(max_rows=3), rows_of(20)
    options = {"concurrency": 1} if kind is AsyncClient else {}
    assert np.array_equal(connect(fake, batch_bytes=240, **options).translate(X, "old", "new"), X @ W)
    assert fake.rows == [10, 5, 2, 3, 2, 3, 2, 3, 2, 3]


def test_one_row_that_is_too_large_is_refused(connect):
    fake = FakeService(max_rows=0)
    with pytest.raises(ClientInputError, match="at most 0 rows; got 1") as caught:
        connect(fake).translate(rows_of(4), "old", "new")
    assert (caught.value.status, caught.value.param) == (413, "embedding")
    assert fake.rows == [4, 2, 1]


def test_the_error_for_a_refused_batch_states_where_its_rows_begin(connect, kind):
    def refuse_the_second(request):
        if request.content == X[4:8].tobytes():
            return problem(422, "1 of 4 rows (first: row 1) contain only zeros.", "embedding", code="unusable")
        return FakeService()(request)

    X = rows_of(10)
    message = r"\(first: row 1\) contain only zeros. Row 0 in this message is row 4 of `X`.$"
    with pytest.raises(ClientInputError, match=message) as caught:
        connect(refuse_the_second, batch_bytes=96).translate(X, "old", "new")
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "unusable", "embedding")


def test_the_whole_array_is_translated_again_if_the_version_changes_between_batches(connect):
    fake, X = FakeService(versions=["v1", "v2", "v2", "v2", "v2", "v2"]), rows_of(6)
    result = connect(fake, batch_bytes=48).translate_full(X, "old", "new")
    assert np.array_equal(result.vectors, X @ W)
    assert result.version == "v2"
    assert fake.rows == [2] * 6


def test_versions_that_keep_changing_are_a_conflict(connect):
    fake = FakeService(versions=["v1", "v2"] * 3)
    with pytest.raises(
        ConflictError, match=r"must be translated by one version of one stitcher; .* old-to-new v1, old-to-new v2"
    ):
        connect(fake, batch_bytes=48).translate(rows_of(6), "old", "new")
    assert len(fake.rows) == 6


def test_batches_translated_by_two_stitchers_are_a_conflict_too(connect):
    def by_turns(request):
        answers.append(1)
        return FakeService(x_stitcher=f"s{len(answers) % 2}")(request)

    answers = []
    with pytest.raises(ClientConflictError, match="one stitcher; the service replaced it during both attempts"):
        connect(by_turns, batch_bytes=24).translate(rows_of(2), "old", "new")


def test_batches_are_sent_concurrently_up_to_the_limit_and_rows_stay_in_order():
    under_way, most = 0, 0

    async def handler(request):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        # The first batches take longest, so that responses arrive in another order than the batches were sent.
        for _ in range(40 - np.frombuffer(request.content, "<f4").astype(int)[0] * 2):
            await asyncio.sleep(0)
        under_way -= 1
        return FakeService()(request)

    X = np.ones((20, 6), np.float32)
    X[:, 0] = np.arange(20)
    client = AsyncClient(ADDRESS, batch_bytes=24, concurrency=3, transport=httpx.MockTransport(handler))
    assert np.array_equal(asyncio.run(client.translate(X, "old", "new")), X @ W)
    assert most == 3


def test_a_batch_that_fails_cancels_the_others():
    async def handler(request):
        received.append(1)
        while len(received) > 1:
            await asyncio.sleep(1000)
        return problem(404, "There is no space 'old'.")

    received = []
    client = AsyncClient(ADDRESS, batch_bytes=24, concurrency=2, transport=httpx.MockTransport(handler))
    with pytest.raises(ClientNotFoundError, match="There is no space 'old'"):
        asyncio.run(client.translate(rows_of(8), "old", "new"))
    assert len(received) <= 3


# --- retries ----------------------------------------------------------------------------------------------------------


BROKEN = [
    httpx.ConnectError("refused"),
    httpx.ConnectTimeout("slow"),
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("Server disconnected without sending a response."),
]


@pytest.mark.parametrize("fault", [problem(429), problem(503), *BROKEN], ids=repr)
def test_a_busy_service_and_a_broken_connection_are_retried(connect, fault):
    fake, X = FakeService(faults=[fault, fault]), rows_of(2)
    client = connect(fake)
    assert np.array_equal(client.translate(X, "old", "new"), X @ W)
    assert len(fake.requests) == 3
    assert fake.requests[0].content == fake.requests[2].content
    drawn = random.Random(0)
    assert client.pauses == [drawn.uniform(0, FIRST_PAUSE_S), drawn.uniform(0, 2 * FIRST_PAUSE_S)]


@pytest.mark.parametrize("status", [400, 401, 404, 405, 408, 409, 415, 422, 500, 502, 504])
def test_any_other_error_status_is_not_retried(connect, status):
    fake = FakeService(faults=[problem(status, retry_after="1")])
    client = connect(fake)
    with pytest.raises(ClientError):
        client.translate(rows_of(1), "old", "new")
    assert len(fake.requests) == 1
    assert not client.pauses


def test_pauses_double_up_to_a_limit_and_are_drawn_at_random(connect):
    client = connect(FakeService(faults=[problem(503)] * 20), retries=12)
    with pytest.raises(BusyError):
        client.translate(rows_of(1), "old", "new")
    limits = [min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**i) for i in range(12)]
    assert limits[-1] == MAX_PAUSE_S
    drawn = random.Random(0)
    assert client.pauses == [drawn.uniform(0, limit) for limit in limits]


NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": "0"}, 0),
        ({"retry_after": "999999999999"}, MAX_PAUSE_S),
        ({"retry_after": format_datetime(NOON.replace(second=9), usegmt=True)}, 9),
        ({"retry_after": format_datetime(NOON.replace(hour=11), usegmt=True)}, 0),
        ({"retry_after": format_datetime(NOON.replace(year=2050), usegmt=True)}, MAX_PAUSE_S),
        ({"retry_after": "-3"}, 0),
        ({"retry_after": "soon"}, 0),
        ({"retry_after": "²"}, 0),
        ({"retry_after": "Tue, 99 Jan 99999999999999999999 99:99:99 GMT"}, 0),
    ],
)
def test_retry_after_is_read_in_seconds_or_as_a_date(connect, headers, least):
    headers = {name: value.encode() for name, value in headers.items()}
    clock = format_datetime(NOON, usegmt=True)
    client = connect(FakeService(faults=[problem(429, date=clock, **headers)]))
    client.translate(rows_of(1), "old", "new")
    assert client.pauses == [min(MAX_PAUSE_S, least + random.Random(0).uniform(0, FIRST_PAUSE_S))]


def test_a_retry_date_without_a_date_header_is_compared_with_the_local_clock(connect, monkeypatch):
    monkeypatch.setattr(responses.time, "time", lambda: NOON.timestamp() - 5)
    client = connect(FakeService(faults=[problem(429, retry_after=format_datetime(NOON, usegmt=True))]))
    client.translate(rows_of(1), "old", "new")
    assert client.pauses == [5 + random.Random(0).uniform(0, FIRST_PAUSE_S)]


def test_a_service_that_stays_busy_is_an_error_after_the_last_attempt(connect):
    fake = FakeService(faults=[problem(429, "128 translations are under way.", code="too_many_requests")] * 9)
    with pytest.raises(BusyError, match="128 translations are under way") as caught:
        connect(fake, retries=2).translate(rows_of(1), "old", "new")
    assert (caught.value.status, caught.value.code) == (429, "too_many_requests")
    assert len(fake.requests) == 3


def test_an_address_that_does_not_respond_is_an_error_after_the_last_attempt(connect):
    fake = FakeService(faults=[httpx.ConnectError("Connection refused")] * 9)
    message = f"No response from {ADDRESS} in 3 attempts \\(ConnectError: Connection refused\\). Check that the service"
    with pytest.raises(UnreachableError, match=message) as caught:
        connect(fake, retries=2).translate(rows_of(1), "old", "new")
    assert (caught.value.status, caught.value.code, caught.value.param) == (None, None, None)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    with pytest.raises(UnreachableError, match="in one attempt"):
        connect(fake, retries=0).spaces()


# --- the other routes -------------------------------------------------------------------------------------------------


def test_spaces_and_stitchers_are_returned_as_lists(connect):
    client = connect(lambda request: httpx.Response(200, json={request.url.path[4:]: [{"name": "a"}]}))
    assert client.spaces() == client.stitchers() == [{"name": "a"}]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx.Response(200, html="<p>hello"), "its Content-Type is text/html, not application/json"),
        (json_reply("{"), "its body is not JSON, or nested too deeply"),
        (json_reply('{"spaces": ' + "[" * 100_000 + "]" * 100_000 + "}"), "its body is not JSON, or nested too deeply"),
        (json_reply('{"spaces": [{"dim": NaN}]}'), "its body is not JSON"),
        (json_reply('{"spaces": [{"dim": 1e999}]}'), "its body is not JSON"),
        (json_reply('{"spaces": [{"dim": ' + "9" * 5000 + "}]}"), "its body is not JSON"),
        (json_reply(b'{"spaces": "\xff"}'), "its body is not JSON"),
        (json_reply("[]"), "its body is not a JSON object"),
        (json_reply("{}"), "it has no list of spaces"),
        (json_reply('{"spaces": [7]}'), "it has no list of spaces"),
    ],
)
def test_a_malformed_list_is_an_error(connect, reply, message):
    with pytest.raises(ServiceError, match=f"The response does not match the request: {message}"):
        connect(lambda _: unsent(reply)).spaces()


def test_the_name_of_a_stitcher_is_percent_encoded_in_the_path(connect):
    received = []

    def handler(request):
        received.append(request.url.raw_path)
        return httpx.Response(200, json={"name": "a/b ü"})

    assert connect(handler).stitcher("a/b ü") == {"name": "a/b ü"}
    assert received == [b"/v1/stitchers/a%2Fb%20%C3%BC"]
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
def test_ready_sends_one_request_and_does_not_retry(connect, answer, expected):
    fake = FakeService(faults=[answer])
    client = connect(fake)
    assert client.ready() is expected
    assert [request.url.path for request in fake.requests] == ["/readyz"]
    assert not client.pauses


def test_ready_raises_where_another_server_answers(connect):
    with pytest.raises(ServiceError, match="its Content-Type is text/html"):
        connect(lambda _: httpx.Response(200, html="welcome")).ready()
    with pytest.raises(ClientNotFoundError):
        connect(lambda _: httpx.Response(404)).ready()


def test_pairs_to_score_are_sent_as_base64(connect):
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
        (rows_of(4), rows_of(3), "`X` and `Y` must have equal numbers of rows; got 4 and 3"),
        (rows_of(1)[0], rows_of(1), "`X` must be rows .* to be scored; got a single vector"),
        (rows_of(4), with_value(np.nan, 2), "`Y` must contain finite float32 numbers; row 2"),
        (rows_of(4), [[1]], "`Y` must be .*; got int64"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(connect, X, Y, message):
    with pytest.raises(InputError, match=message):
        connect(FakeService()).score(X, Y, "old", "new")
