"""Who may send requests, and how much: API keys, and the limits on bytes, rows, time and concurrent requests."""

import asyncio
import hashlib
import hmac
from functools import lru_cache

import numpy as np
from starlette.types import ASGIApp, Receive, Scope, Send

from repstitch.server.responses import Refusal, error_reply
from repstitch.server.settings import Settings, is_loopback
from repstitch.wire.rows import Buffer, MalformedError

OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/docs", "/openapi.json"})
RETRY = {"Retry-After": "1"}
PREALLOCATE_BYTES = 2**18  # of a body that must have arrived before memory for all of it is allocated
PAGE_BYTES = 2**21  # the least memory that a large array takes


class Authentication:
    """Middleware before all routes: 401 for a request without one of the API keys.

    Without API keys only requests to a loopback address are answered, unless `settings.open`. Health, the OpenAPI
    document and OPTIONS (with which browsers ask before they send) need no key.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.open = app, settings.open and not settings.api_keys
        self.digests = [_digest(key.encode()) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and any(name == b"upgrade" for name, _ in scope["headers"]):
            # A server stops parsing after the headers of such a request and takes its body for the next request.
            message = "No other protocol is spoken here; send the request without `Upgrade`."
            refusal = Refusal(400, message, "Upgrade", {"Connection": "close"})
            return await error_reply(refusal)(scope, receive, send)
        if scope["type"] != "http" or self.open or scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            return await self.app(scope, receive, send)
        refusal = self._check_key(scope) if self.digests else _check_local(scope)
        if refusal is None:
            return await self.app(scope, receive, send)
        return await error_reply(refusal)(scope, receive, send)

    def _check_key(self, scope: Scope) -> Refusal | None:
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = header.partition(b" ")
        digest = _digest(key.strip())
        # Digests have one length and all are compared, so the time depends on no key and not on which one matches.
        n_equal = sum([hmac.compare_digest(digest, other) for other in self.digests])
        if n_equal and scheme.lower() == b"bearer":
            return None
        message = "This service asks for a key: send `Authorization: Bearer KEY` with one of REPSTITCH_API_KEYS."
        return Refusal(401, message, "Authorization", {"WWW-Authenticate": "Bearer"})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _check_local(scope: Scope) -> Refusal | None:
    host = (scope.get("server") or ("localhost",))[0]  # a path is that of a Unix socket, so local
    host_header = next((value for name, value in scope["headers"] if name == b"host"), b"localhost")
    # A web page can make its own host name resolve to this machine, but then the Host header holds that name.
    if (host.startswith("/") or is_loopback(host)) and is_loopback(_without_port(host_header)):
        return None
    message = (
        "This service has no keys, so it answers on loopback addresses only: set REPSTITCH_API_KEYS, or "
        "REPSTITCH_OPEN=true where something before it keeps strangers out."
    )
    return Refusal(401, message, "Authorization", {"WWW-Authenticate": "Bearer"})


@lru_cache(maxsize=64)
def _without_port(host: bytes) -> str:
    name = host.decode("latin-1")
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


class Gate:
    """Counts the requests being answered (`with gate:`) and the bytes that all requests have reserved.

    A request is counted once its body has arrived, so that a client that sends slowly occupies only its bytes.
    """

    def __init__(self, settings: Settings):
        self.max_requests, self.max_bytes = settings.max_concurrency, settings.max_held_bytes
        self.requests = self.bytes = 0

    def check(self) -> None:
        """Refusal 429 while `max_requests` are being answered."""
        if self.requests >= self.max_requests:
            message = f"{self.requests} requests are under way, as many as are taken at once; try again."
            raise Refusal(429, message, headers=RETRY)

    def __enter__(self) -> None:
        self.check()
        self.requests += 1

    def __exit__(self, *_) -> None:
        self.requests -= 1


class ByteReservation:
    """The bytes that one request has reserved of `gate.max_bytes`; released when the block is left."""

    __slots__ = ("bytes", "gate")

    def __init__(self, gate: Gate):
        self.gate, self.bytes = gate, 0

    def reserve(self, n_bytes: int) -> None:
        """Reserve more; Refusal 429 where that exceeds `gate.max_bytes`, unless this is the only request."""
        if self.gate.bytes + n_bytes > self.gate.max_bytes and self.gate.bytes > self.bytes:
            message = f"Requests under way hold {self.gate.bytes} bytes and this needs {n_bytes} more; try again."
            raise Refusal(429, message, headers=RETRY)
        self.gate.bytes += n_bytes
        self.bytes += n_bytes

    def __enter__(self) -> "ByteReservation":
        return self

    def __exit__(self, *_) -> None:
        self.gate.bytes -= self.bytes


class Deadlines:
    """Cancels the tasks of requests that take more than `seconds`, at most an eighth of that time too late.

    One timer serves all tasks: a timer each would cost a small request more than its copy into torch.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._cancelled: set[asyncio.Task] = set()
        self._ends: dict[asyncio.Task, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> asyncio.Task:
        """Start the time of the calling task, which must end it with `stop`."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._ends[task] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_later(self.seconds / 8, self._cancel_overdue, loop)
        return task

    def restart(self, task: asyncio.Task) -> None:
        """Give a task its whole time again."""
        self._ends[task] = asyncio.get_running_loop().time() + self.seconds

    def stop(self, task: asyncio.Task) -> bool:
        """End the time of a task; True where it was cancelled for taking too long."""
        self._ends.pop(task, None)
        if task not in self._cancelled:
            return False
        self._cancelled.remove(task)
        task.uncancel()
        return True

    def _cancel_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for task in [task for task, end in self._ends.items() if end <= now]:
            del self._ends[task]
            self._cancelled.add(task)
            task.cancel()
        self._timer = loop.call_later(self.seconds / 8, self._cancel_overdue, loop) if self._ends else None


async def read_body(receive: Receive, length: bytes | None, limit: int, reservation: ByteReservation) -> Buffer:
    """The whole body; Refusal 413 as soon as its Content-Length or its actual length is over `limit` bytes.

    Bytes are reserved as they arrive, not as Content-Length promises them. Raises MalformedError on more bytes than
    Content-Length states, ConnectionError when the client disconnects first.
    """
    if length is not None and (not length.isdigit() or len(length) > 18 or int(length) > limit):
        raise _too_large(length.decode("latin-1"), limit)
    stated = None if length is None else int(length)
    body: bytearray | memoryview = bytearray()
    n_bytes = n_reserved = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        chunk = message.get("body", b"")
        end = n_bytes + len(chunk)
        if stated is not None and end > stated:
            raise MalformedError(f"The body must have the {stated} bytes that its Content-Length states; more came.")
        if end > limit:
            raise _too_large("more", limit)
        # Growing a long body copies it many times and blocks the event loop, so its memory is allocated at once; but
        # only after some of it has arrived, since an allocation takes at least a page.
        allocate = 0 if stated is None or end <= PREALLOCATE_BYTES else stated
        needed = max(end, min(allocate, PAGE_BYTES))
        reservation.reserve(needed - n_reserved)
        n_reserved = needed
        if allocate and isinstance(body, bytearray):
            body, beginning = np.empty(allocate, np.uint8).data, body
            body[:n_bytes] = beginning
            del beginning
        if isinstance(body, bytearray):
            body += chunk
        else:
            body[n_bytes:end] = chunk
        n_bytes = end
        if not message.get("more_body", False):
            return body if isinstance(body, bytearray) else body[:n_bytes]


def check_rows(n_rows: int, limit: int) -> None:
    """Refusal 413 where a request holds more rows than one request may."""
    if n_rows > limit:
        raise Refusal(413, f"A request may hold at most {limit} rows; got {n_rows}. Send them in parts.", "embedding")


def _too_large(length: str, limit: int) -> Refusal:
    return Refusal(413, f"A body may have at most {limit} bytes; got {length}. Send the rows in parts.")
