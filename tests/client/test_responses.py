"""How the clients read responses and errors of the service."""

import gzip

import httpx
import pytest
from helpers.fake_service import FakeService, problem, rows_of

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
        ({"x_dim": "0"}, "X-Dim must be a whole number of at least 1; got 0"),
        ({"x_dim": "-3"}, "X-Dim must be"),
        ({"x_dim": "9" * 5000}, "X-Dim must be"),
        ({"x_dim": ""}, "X-Dim must be a whole number of at least 1; got none"),
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
        ({"x_confidence": "shared"}, "3 rows of 4 float32 numbers are 48 bytes; got 60"),
        ({"x_route": ""}, "X-Route is missing"),
    ],
)
def test_a_response_without_the_requested_columns_or_route_is_refused(connect, headers, message):
    with pytest.raises(ServiceError, match=message):
        connect(FakeService(**headers)).translate_full(rows_of(3), "old", "new", confidence=True, route="auto")


@pytest.mark.parametrize("content", [b"", bytes(35), bytes(37)])
def test_a_response_of_the_wrong_length_is_an_error(connect, content):
    headers = {"content-type": OCTETS, "x-rows": "3", "x-dim": "3", "x-stitcher": "a", "x-stitcher-version": "v"}
    reply = httpx.Response(200, headers=headers, content=content)
    with pytest.raises(ServiceError, match=f"3 rows of 3 float32 numbers are 36 bytes; got {len(content)}"):
        connect(FakeService(faults=[reply])).translate(rows_of(3), "old", "new")


def test_compression_is_not_requested_and_an_undecodable_body_is_an_error(connect):
    def handler(request):
        assert request.headers["accept-encoding"] == "identity"
        stream = httpx.ByteStream(gzip.compress(b"x" * 99)[:5] + b"broken")
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=stream)

    client = connect(handler)
    with pytest.raises(ServiceError, match="The body of the response cannot be decoded"):
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
        httpx.Response(502, content=b"{", headers={"content-type": "application/json"}),
    ],
)
def test_an_error_without_a_message_is_reported_by_its_status(connect, reply):
    with pytest.raises(ServiceError, match=r"^The service answered 502 Bad Gateway without an error message\.$"):
        connect(FakeService(faults=[reply])).translate(rows_of(1), "old", "new")
