"""Limit the bytes, the time and the number of connections that clients can use before a request is complete."""

import asyncio
import math
import resource
from typing import Any, cast

import httptools
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from repstitch.server.settings import Settings

MAX_HEAD_BYTES = 2**16
MAX_HEADERS = 100  # since a header of a few bytes takes twenty times its size in memory
MAX_TRAILER_BYTES = 2**13
PART_BYTES = 2**10  # parsed at a time, since requests that wait for their turn take more memory parsed than unparsed
MAX_CONNECTIONS = 1000
SPARE_DESCRIPTORS = 64  # for everything that is no connection: listeners, pipes, files of the stitchers folder
MIN_BYTES_PER_S = 1000


class Fields:
    """The fields of a head or of trailers that are being received, whose number and bytes are limited.

    Bytes are counted as complete fields and as parts of data, because the parser keeps an incomplete field to itself.
    """

    def __init__(self, max_bytes: int, max_fields: float = math.inf):
        self.max_bytes, self.max_fields = max_bytes, max_fields
        self.n_bytes = self.n_fields = self.n_received = 0

    def add(self, n_bytes: int, n_fields: int = 1) -> None:
        """Count a complete field, or a part of the URL, which is no field. Raises HttpParserError beyond the limits."""
        self.n_fields += n_fields
        self.n_bytes += n_bytes
        if self.n_fields > self.max_fields or self.n_bytes > self.max_bytes:
            raise httptools.HttpParserError("the head or the trailers are too large")

    def receive(self, n_bytes: int) -> None:
        """Count a part of data that belongs to these fields as a whole. Raises HttpParserError beyond the limit."""
        self.n_received += n_bytes
        if self.n_received > self.max_bytes:
            raise httptools.HttpParserError("the head or the trailers are too large")


class _Flow(FlowControl):
    """Reads nothing from a client while something that it has sent waits for its turn."""

    def __init__(self, protocol: "BoundedProtocol"):
        super().__init__(protocol.transport)
        self.protocol = protocol

    def resume_reading(self) -> None:
        if not (self.protocol.unparsed or self.protocol.pipeline):
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the limits that uvicorn lacks.

    A client must send a complete head (request line and headers) within `head_s` seconds of connecting and of each
    response, however many other bytes it sends. A body must then arrive, and a response be read, at `MIN_BYTES_PER_S`,
    averaged over `head_s` seconds. Connections that break these rules are aborted. A head with more than
    `MAX_HEAD_BYTES` or `MAX_HEADERS` is refused. Trailers are ignored up to `MAX_TRAILER_BYTES` and refused beyond.
    What follows a complete request is parsed once that request is answered. With more than `max_connections`, the
    connection that has waited longest for its client is aborted. A request to upgrade to another protocol, such as
    `Upgrade: h2c`, is answered in HTTP/1.1, as HTTP allows.
    """

    head_s = Settings.head_s
    max_connections = MAX_CONNECTIONS

    timer: asyncio.TimerHandle | None = None
    answering: RequestResponseCycle | None = None  # `cycle` is the last request, which may wait for this one
    fields: Fields | None = None  # of the head or of the trailers that are being received
    in_trailers = upgrading = False
    unparsed: bytes | memoryview = b""
    body_left = 0  # bytes of the body that are still to come, if its length is stated
    since = 0.0  # when the client's present turn began: to send a head or part of a body, or to read part of a response
    moved = 0  # bytes of the body received in this turn
    unread = 0  # bytes of the response that were waiting for the client when this turn began

    # --- connections ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(self)
        self._start_turn()
        self._check_turn()
        if len(self.connections) > self.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._disconnect()
        super().connection_lost(exc)

    def _abort(self) -> None:
        self._disconnect()
        self.transport.abort()

    def _disconnect(self) -> None:
        """Let the application write no more, which would fail. uvicorn tells only the last of several requests."""
        for cycle in (self.cycle, self.answering):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()

    def _make_room(self) -> None:
        """Abort the connection that has waited longest for its client, first those that wait for a head."""
        connections = cast("set[BoundedProtocol]", self.connections)
        waiting = [each for each in connections if each.waits_for_client]
        longest = min(waiting, key=lambda each: (not each.waits_for_head, each.since), default=self)
        self.connections.discard(longest)
        longest._abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.answering = cycle
        super()._start_asgi_task(cycle, app)

    # --- turns of the client ---

    @property
    def waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits_for_client(self) -> bool:
        waits_for_body = not (self.waits_for_head or self.pipeline or self.flow.read_paused) and self.cycle.more_body
        return self.waits_for_head or waits_for_body or self.flow.write_paused

    def _start_turn(self) -> None:
        self.since, self.moved = self.loop.time(), 0
        self.unread = self.transport.get_write_buffer_size()

    def _check_turn(self) -> None:
        """Abort the connection if its client's turn is over and it did not do its part; else check again later."""
        if self.loop.time() - self.since >= self.head_s:
            least = MIN_BYTES_PER_S * self.head_s
            if self.unread - self.transport.get_write_buffer_size() >= least:
                done = True
            elif self.transport.is_closing() or self.waits_for_head or self.flow.write_paused:
                done = False
            else:
                done = self.moved >= least or not self.waits_for_client
            if not done:
                self._abort()
                return
            self._start_turn()
        self.timer = self.loop.call_at(self.since + self.head_s, self._check_turn)

    def on_response_complete(self) -> None:
        self._start_turn()
        if self.answering is not None:
            self.answering.body.clear()  # of a request that was answered without reading it
        super().on_response_complete()
        self._advance()
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def timeout_keep_alive_handler(self) -> None:
        """Leave the connection open: uvicorn calls this after a time of its own."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_turn()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._start_turn()

    # --- parsing ---

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self.unparsed = b"".join((self.unparsed, data)) if self.unparsed else data
        self._advance()

    def _advance(self) -> None:
        """Parse what was received, up to the end of a request; read no more while anything is left."""
        rest = memoryview(self.unparsed)
        try:
            while rest and self._expects_data():
                n = max(PART_BYTES, min(self.body_left, MAX_HEAD_BYTES))
                part, rest, unfinished = rest[:n], rest[n:], self.fields
                self._parse(part)
                if unfinished is not None and self.fields is unfinished:
                    unfinished.receive(len(part))
        except httptools.HttpParserError:
            rest = b""
            self._refuse()
        if self.transport.is_closing():
            rest = b""
        elif rest or self.pipeline:
            self.flow.pause_reading()
        self.unparsed = rest or b""  # since an empty view would keep the memory of all that it is a view of

    def _expects_data(self) -> bool:
        """Return whether the client is to send a head or the rest of a body, rather than to wait for a response."""
        may_send = self.waits_for_head or self.cycle.more_body
        return may_send and not self.pipeline and not self.transport.is_closing()

    def _parse(self, data: bytes | memoryview) -> None:
        while True:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self.upgrading:
                    return None
                # The parser takes what follows for another protocol. A new one reads the head again without `Upgrade`.
                method, version = self.parser.get_method(), self.parser.get_http_version().encode()
                head = [b"%b %b HTTP/%b" % (method, self.url, version)]
                head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
                data = b"\r\n".join((*head, b"", data[upgrade.args[0] :]))
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def _refuse(self) -> None:
        """Answer 400 and close the connection. Complete requests before are answered instead of it.

        Only close the connection if the 400 could be read as part of another response.
        """
        if self.pipeline and self.cycle.more_body:  # the latest request is the one that is invalid
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else cast("RequestResponseCycle", self.answering)
        if not (self.waits_for_head or self.cycle.more_body):
            self.cycle.keep_alive = False
            return
        if not self.waits_for_head and self.cycle.response_started:
            self._abort()
            return
        message = "Invalid HTTP request received."
        self.logger.warning(message)
        self.send_400_response(message)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.fields, self.in_trailers, self.upgrading = Fields(MAX_HEAD_BYTES, MAX_HEADERS), False, False

    def on_url(self, url: bytes) -> None:
        self._count(len(url), 0)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if not self.in_trailers:
            super().on_header(name, value)

    def _count(self, n_bytes: int, n_fields: int = 1) -> None:
        if self.fields is not None:
            self.fields.add(n_bytes, n_fields)

    def on_headers_complete(self) -> None:
        self.fields = None
        self.upgrading = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self.upgrading:
            return
        self._start_turn()
        super().on_headers_complete()
        self.body_left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)

    def on_chunk_header(self) -> None:
        # Trailers are what follows the header of the last chunk, which has no body.
        self.fields, self.in_trailers = Fields(MAX_TRAILER_BYTES), True

    def on_body(self, body: bytes) -> None:
        self.fields, self.in_trailers = None, False
        self.moved += len(body)
        self.body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.fields, self.in_trailers, self.body_left = None, False, 0
        if not self.upgrading:
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return False


def install(settings: Settings) -> None:
    """Set the limits of this process, and make uvicorn use `BoundedProtocol` where it chooses the protocol itself."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    available = MAX_CONNECTIONS if descriptors == resource.RLIM_INFINITY else descriptors - SPARE_DESCRIPTORS
    BoundedProtocol.max_connections = max(1, min(MAX_CONNECTIONS, available))
    BoundedProtocol.head_s = settings.head_s
    module: Any = auto  # BentoML lets uvicorn choose
    module.AutoHTTPProtocol = BoundedProtocol
