"""How the clients read responses and errors of the service."""

import httpx
import numpy as np
import pytest
from helpers.fake_service import FakeService, json_reply, problem, rows_of

from repstitch.client import (
    BusyError,
    ClientConflictError,
    ClientError,
    ClientInputError,
    ClientNotFoundError,
    ServiceError,
    UnauthorisedError,
)
from repstitch.client.responses import OCTETS
from repstitch.errors import ConflictError, InputError, NotFoundError


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (
            {"content_type": "application/json"},
            "its Content-Type is application/json with float32, not application/octet-stream",
        ),
        ({"content_type": ""}, "its Content-Type is none with float32"),
        (
            {"content_type": f"{OCTETS}; dtype=float16"},
            f"its Content-Type is {OCTETS} with float16, not {OCTETS} with float32",
        ),
        ({"x_rows": "2"}, "X-Rows must be 3; got 2"),
        ({"x_rows": ""}, "X-Rows must be 3; got none"),
        ({"x_dim": "6"}, "3 rows of 6 float32 numbers are 72 bytes; got 36"),
        ({"x_dim": "0"}, "X-Dim must be a whole number from 1 to 65536; got 0"),
        ({"x_dim": "65537"}, "X-Dim must be a whole number from 1 to 65536; got 65537"),
        ({"x_dim": "2"}, "its body must have at most 24 bytes; got 36"),
        ({"x_dim": "-3"}, "X-Dim must be"),
        ({"x_dim": "9" * 5000}, "X-Dim must be"),
        ({"x_dim": ""}, "X-Dim must be a whole number from 1 to 65536; got none"),
        ({"x_stitcher": ""}, "X-Stitcher is missing"),
        ({"x_stitcher_version": ""}, "X-Stitcher-Version is missing"),
        ({"x_confidence": "shared"}, "X-Confidence must not name measures; got .*shared"),
    ],
)
def test_a_response_that_does_not_match_the_request_is_an_error(connect, headers, message):
    with pytest.raises(ServiceError, match=f"The response does not match the request: {message}") as caught:
        connect(FakeService(**headers)).translate(rows_of(3), "old", "new")
    assert caught.value.status == 200


def test_a_translation_states_whether_its_confidence_is_usable(connect):
    client = connect(FakeService(x_confidence_usable="false"))
    assert client.translate_full(rows_of(3), "old", "new", confidence=True).confidence_usable is False
    assert connect(FakeService()).translate_full(rows_of(3), "old", "new", confidence=True).confidence_usable is True


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x_confidence": ""}, "X-Confidence must name measures; got none"),
        ({"x_confidence": "shared"}, "its body must have at most 48 bytes; got 60"),
        ({"x_confidence": "a,b,c"}, "3 rows of 6 float32 numbers are 72 bytes; got 60"),
        ({"x_route": ""}, "X-Route is missing"),
    ],
)
def test_a_response_without_the_requested_columns_or_route_is_refused(connect, headers, message):
    with pytest.raises(ServiceError, match=message):
        connect(FakeService(**headers)).translate_full(rows_of(3), "old", "new", confidence=True, route="auto")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "3 rows of 3 float32 numbers are 36 bytes; got 0"),
        (bytes(35), "3 rows of 3 float32 numbers are 36 bytes; got 35"),
        (bytes(37), "its body must have at most 36 bytes; got 37"),
    ],
)
def test_a_response_of_the_wrong_length_is_an_error(connect, content, message):
    headers = {"content-type": OCTETS, "x-rows": "3", "x-dim": "3", "x-stitcher": "a", "x-stitcher-version": "v"}
    reply = httpx.Response(200, headers=headers, content=content)
    with pytest.raises(ServiceError, match=message):
        connect(FakeService(faults=[reply])).translate(rows_of(3), "old", "new")


def with_numbers(columns, value):
    """Return a service that puts `value` into these columns of the translation of rows that begin with 5."""

    def handler(request):
        reply = FakeService()(request)
        dtype = "<f2" if "float16" in request.headers["accept"] else "<f4"
        first = np.frombuffer(request.content, dtype).reshape(-1, 6)[:, 0]
        numbers = np.frombuffer(reply.content, dtype).reshape(len(first), -1).copy()
        numbers[np.ix_(first == 5, columns)] = value
        return httpx.Response(200, headers=reply.headers, content=numbers.tobytes())

    return handler


@pytest.mark.parametrize("batch_bytes", [10**6, 48])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("columns", "value", "message"),
    [
        ([1], np.nan, r"`vectors` must be finite .*; 1 of 7 rows \(first: row 5\) contain NaN or Inf"),
        ([0, 2], -np.inf, r"`vectors` must be finite .*; 1 of 7 rows \(first: row 5\) contain NaN or Inf"),
        ([0, 1, 2], 0, r"`vectors` must have a direction; 1 of 7 rows \(first: row 5\) contain only zeros"),
        ([4], np.nan, "`shared` must be finite; row 5 contains NaN or Inf"),
        ([3], np.inf, "`p_match@500` must be finite; row 5 contains NaN or Inf"),
    ],
)
def test_a_translation_with_nan_or_inf_or_only_zeros_is_an_error(connect, batch_bytes, dtype, columns, value, message):
    X = np.ones((7, 6), np.float32)
    X[:, 0] = np.arange(7)
    client = connect(with_numbers(columns, value), batch_bytes=batch_bytes)
    with pytest.raises(ServiceError, match=f"The translation in the response cannot be used: {message}"):
        client.translate_full(X, "old", "new", confidence=True, dtype=dtype)
    assert client.translate_full(X[:5], "old", "new", confidence=True, dtype=dtype).vectors.shape == (5, 3)


def test_compression_is_not_requested_and_a_compressed_body_is_an_error(connect):
    def handler(request):
        assert request.headers["accept-encoding"] == "identity"
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"broken"))

    client = connect(handler)
    with pytest.raises(ServiceError, match="its body must not be compressed; got Content-Encoding gzip"):
        client.translate(rows_of(1), "old", "new")
    assert not client.pauses


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error_class", "base_class"),
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
def test_an_error_status_raises_a_typed_error_with_the_message_of_the_service(connect, status, error_class, base_class):
    fake = FakeService(faults=[problem(status, "`source` is\n odd.", "source", "odd")])
    with pytest.raises(base_class, match=r"^`source` is odd\.$") as caught:
        connect(fake, retries=0).translate(rows_of(1), "old", "new")
    error = caught.value
    assert type(error) is error_class
    assert (error.status, error.code, error.param) == (status, "odd", "source")


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(502, html="<h1>Bad gateway</h1>"),
        httpx.Response(502),
        httpx.Response(502, json=[]),
        httpx.Response(502, json={"error": "no"}),
        httpx.Response(502, json={"error": {"code": 7, "message": None}}),
        httpx.Response(502, json={"error": {"message": ["It is so."]}}),
        json_reply("{", 502),
        json_reply('{"error":' * 100_000, 502),
        json_reply(b'{"error": {"message": "' + b"long" * 20_000 + b'"}}', 502),
    ],
)
def test_an_error_without_a_message_is_reported_by_its_status(connect, reply):
    with pytest.raises(ServiceError, match=r"^The service answered 502 Bad Gateway without an error message\.$"):
        connect(FakeService(faults=[reply])).translate(rows_of(1), "old", "new")


def test_a_message_of_the_service_has_no_characters_that_cannot_be_printed(connect):
    reply = json_reply(r'{"error": {"message": "red \u001b[31m, lone \ud800, two\nlines"}}', 404)
    with pytest.raises(ClientNotFoundError, match=r"^red \[31m, lone , two lines$"):
        connect(FakeService(faults=[reply])).translate(rows_of(1), "old", "new")
