"""Both clients on real connections to a server that sends too much, too slowly, compressed, or less than it says."""

import asyncio
import gzip
import itertools
import threading
import time
import tracemalloc

import numpy as np
import pytest
from helpers.fake_service import Blocking, rows_of
from helpers.misbehaving import JSON, chunked, head, misbehaving, numbers, translation_head

from repstitch.client import AsyncClient, BusyError, Client, ClientNotFoundError, ServiceError, UnreachableError
from repstitch.client.receiving import ERROR_BYTES, JSON_BYTES

CHUNKED = "transfer-encoding: chunked\r\n"
PIECE = b" " * 2**16
MEMORY = 2 * JSON_BYTES + 8 * 2**20  # a body, the buffer that it grows in, and the rest of the process
BOMB = gzip.compress(bytes(2**28), 1)


def endless(beginning, piece=PIECE):
    return lambda _: itertools.chain([beginning], itertools.repeat(piece))


def fixed(*pieces):
    return lambda _: pieces


@pytest.fixture
def calls(kind):
    """Return a function that connects either kind of client to a server and calls it."""

    def calls(server, method, *args, retries=0, **options):
        client = Blocking(kind(server.address, retries=retries, **options))
        return getattr(client, method)(*args)

    return calls


TRANSLATE = ("translate", rows_of(3), "old", "new")
SPACES = ("spaces",)


@pytest.mark.parametrize("closing", ["", CHUNKED], ids=["until closed", "chunked"])
@pytest.mark.parametrize(
    ("call", "beginning", "message"),
    [
        (TRANSLATE, lambda more: translation_head(more=more), "its body must have at most 36 bytes; got more"),
        (SPACES, lambda more: head(JSON + more), f"its body must have at most {JSON_BYTES} bytes; got more"),
    ],
    ids=["translation", "list"],
)
def test_an_endless_body_is_an_error_after_the_bytes_that_are_expected(calls, closing, call, beginning, message):
    piece = chunked(PIECE) if closing else PIECE
    with misbehaving(endless(beginning(closing), piece)) as server:
        tracemalloc.start()
        try:
            with pytest.raises(ServiceError, match=message):
                calls(server, *call)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < MEMORY


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "zstd", "deflate", "gzip, gzip", "unknown"])
@pytest.mark.parametrize(("call", "beginning"), [(TRANSLATE, translation_head()), (SPACES, head(JSON))])
def test_a_compressed_body_is_refused_before_it_is_read(calls, encoding, call, beginning):
    beginning = beginning[:-2] + f"content-encoding: {encoding}\r\ncontent-length: {len(BOMB)}\r\n\r\n".encode()
    with misbehaving(fixed(beginning, BOMB)) as server:
        tracemalloc.start()
        try:
            with pytest.raises(ServiceError, match=f"must not be compressed; got Content-Encoding {encoding.lower()}"):
                calls(server, *call)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < MEMORY


def test_an_error_with_an_endless_or_compressed_body_is_reported_by_its_status(calls):
    for fields, piece in ((JSON, PIECE), (JSON + CHUNKED, chunked(PIECE)), (JSON + "content-encoding: gzip\r\n", BOMB)):
        with (
            misbehaving(endless(head(fields, "404 Not Found"), piece)) as server,
            pytest.raises(ClientNotFoundError, match="answered 404 Not Found without an error message"),
        ):
            calls(server, *TRANSLATE)
    with misbehaving(endless(head(JSON, "503 Service Unavailable"))) as server:
        with pytest.raises(BusyError, match="answered 503 Service Unavailable without an error message"):
            calls(server, *TRANSLATE, retries=2)
        assert server.requests == 3
    body = b'{"error": {"message": "no"}}' + b" " * (ERROR_BYTES - 28)
    for length, message in ((len(body), "^no$"), (len(body) + 1, "without an error message")):
        reply = head(JSON + f"content-length: {length}\r\n", "404 Not Found"), body.ljust(length)
        with misbehaving(fixed(*reply)) as server, pytest.raises(ClientNotFoundError, match=message):
            calls(server, *TRANSLATE)


@pytest.mark.parametrize(
    ("length", "body", "error", "message"),
    [
        ("36", numbers(), None, ""),
        ("35", numbers(), ServiceError, "3 rows of 3 float32 numbers are 36 bytes; got 35"),
        ("0", numbers(), ServiceError, "3 rows of 3 float32 numbers are 36 bytes; got 0"),
        ("37", numbers(), ServiceError, "its body must have at most 36 bytes; got 37"),
        (str(10**15), numbers(), ServiceError, f"its body must have at most 36 bytes; got {10**15}"),
        ("36", numbers()[:20], UnreachableError, "No response from .* in one attempt .RemoteProtocolError"),
        ("-1", numbers(), UnreachableError, "RemoteProtocolError"),
        ("many", numbers(), UnreachableError, "RemoteProtocolError"),
        ("36\r\ncontent-length: 37", numbers(), UnreachableError, "RemoteProtocolError"),
    ],
)
def test_a_body_of_another_length_than_stated_or_expected_is_an_error(calls, length, body, error, message):
    with misbehaving(fixed(translation_head(more=f"content-length: {length}\r\n"), body)) as server:
        if error is None:
            assert np.array_equal(calls(server, *TRANSLATE), np.ones((3, 3)))
            return
        with pytest.raises(error, match=message):
            calls(server, *TRANSLATE)


def test_a_length_that_is_too_large_is_refused_while_the_connection_stays_open(calls):
    silent = threading.Event()

    def answer(_):
        yield translation_head(more="content-length: 1000\r\n") + numbers()
        silent.wait(20)

    with misbehaving(answer) as server:
        with pytest.raises(ServiceError, match="its body must have at most 36 bytes; got 1000"):
            calls(server, *TRANSLATE)
        silent.set()


def test_bytes_after_a_translation_spoil_no_later_call(kind):
    stated = translation_head(more="content-length: 36\r\n")

    async def scenario(server):
        async with AsyncClient(server.address, retries=1) as client:
            return [await client.translate(rows_of(3), "old", "new") for _ in range(2)]

    with misbehaving(fixed(stated + numbers() + b"and more"), closes=False) as server:
        if kind is AsyncClient:
            results = asyncio.run(scenario(server))
        else:
            with Client(server.address, retries=1) as client:
                results = [client.translate(rows_of(3), "old", "new") for _ in range(2)]
    for result in results:
        assert np.array_equal(result, np.ones((3, 3)))


def test_a_body_that_trickles_is_a_timeout(calls):
    def answer(_):
        yield head(JSON + CHUNKED)
        while True:
            yield chunked(b" ")
            time.sleep(0.01)

    with (
        misbehaving(answer) as server,
        pytest.raises(UnreachableError, match="ReadTimeout: the response came at less than 1024 bytes per second"),
    ):
        calls(server, *SPACES, timeout_s=0.2)


@pytest.mark.parametrize(
    ("location", "message"),
    [("http://x/", r"got a redirect \(302\) to another URL"), ("htp:tp://x/", "got a redirect to an invalid URL")],
)
def test_a_redirect_to_any_location_is_an_error(calls, location, message):
    with (
        misbehaving(fixed(head(f"location: {location}\r\ncontent-length: 0\r\n", "302 Found"))) as server,
        pytest.raises(ServiceError, match=message),
    ):
        calls(server, *SPACES)


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_nested_json_is_an_error(calls, status):
    body = b'{"spaces":' + b"[" * 500_000
    with misbehaving(fixed(head(JSON + f"content-length: {len(body)}\r\n", status), body)) as server:
        message = "its body is not JSON, or nested too deeply" if "200" in status else "without an error message"
        with pytest.raises((ServiceError, ClientNotFoundError), match=message):
            calls(server, *SPACES)
