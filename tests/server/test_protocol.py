"""The bytes, the time and the connections that clients can use, in a service with low limits and an API key."""

import asyncio
import http.client
import socket
import threading
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.server_calls import LOCAL, URL
from helpers.serving import ROOT, eventually, free_port, get, make_rows, make_stitcher, running, serve_command
from uvicorn import Config
from uvicorn.server import ServerState

from repstitch.server.negotiation import OCTETS
from repstitch.server.protocol import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_TRAILER_BYTES,
    PART_BYTES,
    BoundedProtocol,
)

ENGINES = ("uvicorn", pytest.param("bentoml", marks=pytest.mark.slow))
ROWS = make_rows(2)
HEAD = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {OCTETS}\r\n".encode()
KEY = b"Authorization: Bearer secret\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (ROWS.nbytes, ROWS.tobytes())
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAA\r\n"
HEAD_S = 1.5


def with_descriptors(n: int, command: list[str]) -> list[str]:
    """Return a command whose process may open only `n` files."""
    return ["bash", "-c", f'ulimit -n {n}; exec "$@"', "-", *command]


@pytest.fixture(scope="module", params=ENGINES)
def bounded(request, tmp_path_factory):
    """Start a service; yield its port and the process ids of the service and its workers."""
    import psutil

    folder = tmp_path_factory.mktemp("bounded")
    make_stitcher().save(folder / "stitchers" / "old-to-new")
    port, log = free_port(), folder / "log"
    env = {"REPSTITCH_HEAD_S": str(HEAD_S), "REPSTITCH_TIMEOUT_S": "60", "REPSTITCH_API_KEYS": "secret"}
    command = serve_command(folder / "stitchers", port, engine=request.param)
    with running(command, port, log, cwd=ROOT, env=env) as process:
        yield port, [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert "Traceback" not in log.read_text()


def exchange(port: int, *parts: bytes, pause_s: float = 0.02) -> bytes:
    """Send the parts one after another; return what is received until the service closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        received = b""
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            while part := connection.recv(65536):
                received += part
    return received


def is_translated(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    expected = make_stitcher().translate(ROWS)
    return head.startswith(b"HTTP/1.1 200") and np.allclose(np.frombuffer(body, "<f4").reshape(-1, 4), expected)


# --- trailers ---------------------------------------------------------------------------------------------------------


def memory_mb(processes) -> float:
    return sum(process.memory_info().rss for process in processes) / 2**20


@pytest.mark.parametrize("start", [b"", b"X-Trailer: "], ids=["many fields", "one value"])
@pytest.mark.parametrize("key", [b"", KEY], ids=["without a key", "with a key"])
def test_endless_trailers_are_refused_and_take_no_memory(bounded, start, key):
    port, processes = bounded
    part = b"a" * 2**16 if start else b"a:b\r\n" * 2**14
    before = memory_mb(processes)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(HEAD + key + CHUNKED + start)
        is_closed = False
        for _ in range(500):
            try:
                connection.sendall(part)
            except ConnectionError:
                is_closed = True
                break
            assert memory_mb(processes) - before < 5
        assert is_closed
    assert get(f"{LOCAL}:{port}/healthz").status_code == 200


@pytest.mark.parametrize(
    "trailer",
    [b"", b"X-A: 1\r\n", b"X-A: " + b"a" * (MAX_TRAILER_BYTES - 3) + b"\r\n", b"Authorization: Bearer wrong\r\n" * 9],
    ids=["none", "short", "longest", "with the name of a header"],
)
def test_trailers_are_ignored(bounded, trailer):
    port, _ = bounded
    whole = HEAD + KEY + b"Connection: close\r\n" + CHUNKED + trailer + b"\r\n"
    assert is_translated(exchange(port, whole))
    assert is_translated(exchange(port, whole[:-100], whole[-100:-50], whole[-50:]))


def test_a_trailer_that_is_too_long_is_refused(bounded):
    port, _ = bounded
    whole = HEAD + KEY + CHUNKED + b"X-A: " + b"a" * (MAX_TRAILER_BYTES - 2) + b"\r\n\r\n"
    for parts in ((whole,), (whole[:-4000], whole[-4000:-50], whole[-50:])):
        assert exchange(port, *parts).startswith(b"HTTP/1.1 400")


def test_a_key_in_a_trailer_does_not_count(bounded):
    port, _ = bounded
    whole = HEAD + b"Connection: close\r\n" + CHUNKED + KEY + b"\r\n"
    assert exchange(port, whole).startswith(b"HTTP/1.1 401")


# --- heads ------------------------------------------------------------------------------------------------------------

LAST = b"Connection: close\r\n\r\n"


def healthz(fields: bytes) -> bytes:
    return b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + fields + LAST


def test_heads_without_a_key_take_little_memory(bounded):
    port, processes = bounded
    before = memory_mb(processes)
    fields = b"".join(b"%c%c:ab\r\n" % (97 + i % 26, 97 + i // 26 % 26) for i in range(9000))
    with ExitStack() as opened:
        for _ in range(50):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            connection.sendall(HEAD + fields + b"Content-Length: 5\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        assert memory_mb(processes) - before < 5


def test_bodies_that_are_not_read_take_no_memory(bounded):
    port, processes = bounded
    before = memory_mb(processes)
    with ExitStack() as opened:
        for _ in range(100):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            connection.sendall(HEAD + b"Content-Length: 250000\r\n\r\n" + b"a" * 240_000)
            assert connection.recv(100).startswith(b"HTTP/1.1 401")
        assert memory_mb(processes) - before < 5


@pytest.mark.parametrize(
    ("largest", "larger"),
    [
        (b"a: b\r\n" * (MAX_HEADERS - 2), b"a: b\r\n" * (MAX_HEADERS - 1)),
        (b"a: " + b"b" * (MAX_HEAD_BYTES - 100) + b"\r\n", b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n"),
    ],
    ids=["fields", "bytes"],
)
def test_a_head_that_is_too_large_is_refused(bounded, largest, larger):
    port, _ = bounded
    assert exchange(port, healthz(largest)).startswith(b"HTTP/1.1 200")
    for parts in ((healthz(larger),), (healthz(larger)[:-60], healthz(larger)[-60:])):
        assert exchange(port, *parts).startswith(b"HTTP/1.1 400")


def test_a_head_may_arrive_byte_by_byte(bounded):
    port, _ = bounded
    whole = GET_HEALTH.replace(b"/healthz", b"/healthz?" + b"x=1&" * 50).replace(b"\r\n\r\n", b"\r\n" + LAST)
    parts = [whole[i : i + 1] for i in range(len(whole))]
    assert exchange(port, *parts, pause_s=0.002).startswith(b"HTTP/1.1 ")


def test_the_end_of_a_body_does_not_count_as_part_of_the_next_head(bounded):
    port, _ = bounded
    body = make_rows(8000).tobytes()
    assert len(body) > 2 * MAX_HEAD_BYTES
    first = HEAD + KEY + b"Content-Length: %d\r\n\r\n" % len(body) + body[:100]
    answer = exchange(port, first, body[100:] + healthz(b"")[:20], healthz(b"")[20:], pause_s=0.2)
    assert answer.count(b"HTTP/1.1 200") == 2


# --- upgrades ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"Content-Length: %d\r\n\r\n" % ROWS.nbytes + ROWS.tobytes(), CHUNKED + b"\r\n"],
    ids=["length", "chunked"],
)
def test_a_request_to_upgrade_is_answered_in_http_1(bounded, body):
    port, _ = bounded
    whole = HEAD + KEY + UPGRADE + body
    last = whole.replace(b"Upgrade, ", b"Upgrade, close, ")
    assert is_translated(exchange(port, last))
    assert is_translated(exchange(port, *(last[i : i + 60] for i in range(0, len(last), 60))))
    assert exchange(port, whole + whole + last).count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
def test_a_request_without_a_body_to_upgrade_is_answered_in_http_1(bounded, protocol):
    port, _ = bounded
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for _ in range(2):
        connection.request("GET", "/healthz", headers={"Connection": "Upgrade", "Upgrade": protocol})
        response = connection.getresponse()
        assert response.status == 200
        response.read()
    connection.close()


def test_the_body_of_a_request_to_upgrade_is_never_read_as_the_next_request(bounded):
    port, _ = bounded
    inner = b"GET /v1/spaces HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    answer = exchange(port, HEAD + KEY + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(inner) + inner)
    assert answer.startswith(b"HTTP/1.1 422")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"spaces" not in answer


# --- time -------------------------------------------------------------------------------------------------------------

LENGTH = b"Content-Length: 240000\r\n\r\n"
GET_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
SLOW = {  # what a client sends first, and then every 0.2 s
    "no byte": (b"", b""),
    "empty lines": (b"", b"\r\n"),
    "a head byte by byte": (b"GET /healthz HTTP/1.1\r\nX-A: ", b"a"),
    "nothing after a reply": (GET_HEALTH, b""),
    "empty lines after a reply": (GET_HEALTH, b"\r\n"),
    "a body after a 401": (HEAD + LENGTH, b"a" * 1000),
    "a body too slowly": (HEAD + KEY + LENGTH, b"a" * 100),
    "the extension of a chunk": (HEAD + KEY + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a" * 1000),
    "a chunk of one byte at a time": (HEAD + KEY + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
}


@pytest.mark.parametrize(("first", "then"), SLOW.values(), ids=SLOW)
def test_a_client_that_does_not_complete_a_request_is_disconnected(bounded, first, then):
    port, _ = bounded
    with socket.create_connection(("127.0.0.1", port), timeout=0.2) as connection:
        connection.sendall(first)
        answer = b""

        def is_closed() -> bool:
            nonlocal answer
            try:
                connection.sendall(then)
                part = connection.recv(65536)
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            answer += part
            return not part

        eventually(is_closed)
    assert answer.count(b"HTTP/1.1") == (first == GET_HEALTH or first == HEAD + LENGTH)


def test_a_client_that_never_reads_its_replies_is_disconnected(bounded):
    import psutil

    port, processes = bounded
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", port))
        address = lazy.getsockname()
        lazy.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100)
        time.sleep(0.5)

        def is_closed() -> bool:
            remote = [tuple(each.raddr) for process in processes for each in process.net_connections("tcp")]
            return address not in remote

        assert not is_closed()  # the requests are accepted
        with suppress(psutil.NoSuchProcess):
            eventually(is_closed)


def test_a_body_and_pauses_within_the_limits_are_served(bounded):
    """A connection that is reused, and a body at 5,000 bytes per second that takes longer than the time for a head."""
    port, _ = bounded
    rows = make_rows(800)
    body = rows.tobytes()
    parts = [body[i : i + 1000] for i in range(0, len(body), 1000)]
    whole = HEAD + KEY + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = exchange(port, GET_HEALTH, whole, *parts, pause_s=0.2)
    assert answer.count(b"HTTP/1.1 200") == 2
    vectors = np.frombuffer(answer[-800 * 16 :], "<f4").reshape(-1, 4)
    assert np.allclose(vectors, make_stitcher().translate(rows), atol=1e-6)


class Clock:
    """The loop and the transport of one connection, with a time that a test advances."""

    def __init__(self):
        self.now, self.buffered, self.timers = 0.0, 0, []
        self.is_aborted = self.is_paused = False

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call):
        self.timers.append((when, call))

    def call_later(self, delay: float, call):
        self.call_at(self.now + delay, call)

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def advance(self, seconds: float) -> None:
        """Advance the time and call what is due meanwhile, unless the connection is aborted."""
        end = self.now + seconds
        while self.timers and self.timers[0][0] <= end and not self.is_aborted:
            self.now, call = self.timers.pop(0)
            call()
        self.now = end

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_extra_info(self, name: str):
        return None

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.is_aborted = True


@pytest.fixture
def connection():
    """Return a new connection with the default limits, and its clock."""
    clock = Clock()
    protocol = BoundedProtocol(Config(lambda: None, log_config=None), ServerState(), {}, clock)  # pyright: ignore
    protocol.connection_made(clock)  # pyright: ignore[reportArgumentType]
    return protocol, clock


def test_a_client_has_30_seconds_for_a_head(connection):
    _, clock = connection
    clock.advance(29.9)
    assert not clock.is_aborted
    clock.advance(0.2)
    assert clock.is_aborted


@pytest.mark.parametrize(("rate", "is_aborted"), [(999, True), (1000, False)])
@pytest.mark.parametrize("complete", [True, False])
def test_a_client_must_read_1000_bytes_a_second(connection, rate, is_aborted, complete):
    protocol, clock = connection
    clock.buffered = 300_000
    protocol.cycle = SimpleNamespace(response_complete=complete, more_body=False, message_event=asyncio.Event())
    protocol.pause_writing()
    for _ in range(10):
        clock.buffered -= 6 * rate
        clock.advance(6)
    assert clock.is_aborted == is_aborted


def test_the_time_of_the_service_does_not_count(connection):
    protocol, clock = connection
    protocol.cycle = SimpleNamespace(response_complete=False, more_body=False)
    clock.advance(1000)
    assert not clock.is_aborted


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_silent_clients_keep_nobody_out_when_descriptors_are_few(engine, tmp_path):
    make_stitcher().save(tmp_path / "stitchers" / "old-to-new")
    port = free_port()
    command = with_descriptors(256, serve_command(tmp_path / "stitchers", port, engine=engine))
    with running(command, port, tmp_path / "log", cwd=ROOT) as _, ExitStack() as opened:
        for _ in range(400):
            connection = opened.enter_context(socket.socket())
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.connect(("127.0.0.1", port))
        seconds = []
        for _ in range(5):
            began = time.monotonic()
            assert get(f"{LOCAL}:{port}/healthz", timeout=5).status_code == 200
            seconds.append(time.monotonic() - began)
        assert min(seconds) < 1


def test_a_connection_with_a_request_in_progress_outlives_idle_ones(tmp_path):
    make_stitcher().save(tmp_path / "stitchers" / "old-to-new")
    port, body, answers = free_port(), ROWS.tobytes(), []
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    half_sent, flooded = threading.Event(), threading.Event()

    def slowly() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(head + body[:10])
            half_sent.set()
            flooded.wait(20)
            connection.sendall(body[10:])
            answers.append(b"".join(iter(lambda: connection.recv(65536), b"")))

    command = with_descriptors(128, serve_command(tmp_path / "stitchers", port))
    with running(command, port, tmp_path / "log") as _, ExitStack() as opened:
        thread = threading.Thread(target=slowly)
        thread.start()
        half_sent.wait(20)
        for _ in range(200):
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        assert get(f"{LOCAL}:{port}/healthz").status_code == 200
        flooded.set()
        thread.join(20)
    assert is_translated(answers[0])


# --- pipelined requests -----------------------------------------------------------------------------------------------

TRANSLATE = HEAD + KEY + b"Content-Length: %d\r\n\r\n" % ROWS.nbytes + ROWS.tobytes()


@pytest.mark.parametrize("size", [20, 1000, 10**6])
def test_pipelined_requests_are_all_answered_in_order(bounded, size):
    port, _ = bounded
    rows = make_rows(2000)  # more than is parsed, and than is read, at a time
    long = TRANSLATE.replace(b": %d\r\n\r\n" % ROWS.nbytes, b": %d\r\n\r\n" % rows.nbytes)
    long = long.replace(ROWS.tobytes(), rows.tobytes())
    chunked = HEAD + KEY + CHUNKED + b"X-A: 1\r\n\r\n"
    missing = GET_HEALTH.replace(b"/healthz", b"/missing").replace(b"\r\n\r\n", b"\r\n" + KEY + b"\r\n")
    last = GET_HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    sent = (TRANSLATE + missing + chunked + long + missing + HEAD + UPGRADE + KEY + CHUNKED + b"\r\n") * 10 + last
    parts = (sent[i : i + size] for i in range(0, len(sent), size))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        sender = threading.Thread(target=lambda: [connection.sendall(part) for part in parts])
        sender.start()
        received = b"".join(iter(lambda: connection.recv(65536), b""))
        sender.join()
    statuses = [int(answer[:3]) for answer in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 404, 200, 200, 404, 200] * 10 + [200]


@pytest.mark.parametrize("invalid", [b"not HTTP\r\n\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n"])
@pytest.mark.parametrize("n", [0, 1, 3, 1000])
def test_requests_before_what_is_not_http_are_answered(bounded, n, invalid):
    port, _ = bounded
    answers = exchange(port, GET_HEALTH * n + invalid + GET_HEALTH).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers[:n]] == [b"200"] * n
    refused = [answer[:3] for answer in answers[n:]]
    assert refused == ([] if n else [b"400"]) or (n == 1000 and refused == [b"400"])  # if it begins another part


def test_pipelined_requests_take_little_memory(bounded):
    """Their application asks for more of their bodies, which must not read more requests."""
    port, processes = bounded
    before, most, stop = memory_mb(processes), 0.0, threading.Event()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:

        def send() -> None:
            with suppress(OSError):
                while not stop.is_set():
                    connection.sendall(TRANSLATE * 1000)

        sender = threading.Thread(target=send)
        sender.start()
        n_answered = 0
        while n_answered < 5000:
            part = connection.recv(2**20)
            assert part
            n_answered += part.count(b"HTTP/1.1 200")
            most = max(most, memory_mb(processes) - before)
        stop.set()
        connection.shutdown(socket.SHUT_RDWR)
        sender.join()
    assert most < 10


def test_a_request_is_not_ended_by_the_head_of_the_next(connection, started):
    protocol, clock = connection
    protocol.data_received(TRANSLATE + HEAD + b"Content-Length: 9\r\n\r\n")
    protocol.flow.resume_reading()  # as the application does when it asks for the body
    assert clock.is_paused
    clock.advance(1000)
    assert not clock.is_aborted
    started[0].response_complete = True
    protocol.on_response_complete()
    assert (len(started), clock.is_paused) == (2, False)


@pytest.fixture
def started(connection, monkeypatch):
    """Return the requests that the connection has started, which stay without a response."""
    started = []
    monkeypatch.setattr(connection[0], "_start_asgi_task", lambda cycle, _: started.append(cycle))
    return started


def test_few_of_many_pipelined_requests_are_parsed_before_their_turn(connection, started):
    protocol, clock = connection
    n, parsed = 5000, []
    for i in range(0, n, 1000):
        protocol.data_received(GET_HEALTH * 1000)
        parsed.append(len(protocol.pipeline))
        assert clock.is_paused, i
    for i in range(n):
        assert len(started) == i + 1
        parsed.append(len(protocol.pipeline))
        started[i].response_complete = True
        protocol.on_response_complete()
    assert max(parsed) <= PART_BYTES // len(GET_HEALTH)
    assert (len(started), len(protocol.unparsed), clock.is_paused) == (n, 0, False)


def test_no_more_is_read_while_pipelined_requests_wait(connection, started):
    protocol, clock = connection
    protocol.data_received(GET_HEALTH * 3)
    waiting = []
    for n in range(3):
        waiting.append(clock.is_paused)
        started[n].response_complete = True
        protocol.on_response_complete()
    assert (waiting, clock.is_paused) == ([True, True, False], False)


def test_a_body_is_parsed_in_large_parts_and_what_follows_it_in_small_ones(connection, started, monkeypatch):
    protocol, _ = connection
    sizes, parse = [], protocol._parse
    monkeypatch.setattr(protocol, "_parse", lambda part: (sizes.append(len(part)), parse(part)))
    body = b"a" * (MAX_HEAD_BYTES + 5000)
    protocol.data_received(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body + GET_HEALTH * 100)
    rest = len(HEAD) + len(b"Content-Length: 70536\r\n\r\n") + len(body) - PART_BYTES
    assert sizes == [PART_BYTES, MAX_HEAD_BYTES, rest - MAX_HEAD_BYTES]
    assert started[0].body == body
