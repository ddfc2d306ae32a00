"""Check API keys, and limit bytes, rows, time and concurrent requests."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from starlette.types import ASGIApp, Receive, Scope, Send

from repstitch.errors import one_line
from repstitch.server.responses import Refusal, error_reply
from repstitch.server.settings import Settings, is_loopback
from repstitch.wire.rows import Buffer, MalformedError

log = logging.getLogger(__name__)
OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/docs", "/openapi.json"})
KEY_HEADERS = (b"x-api-key", b"api-key")  # in place of `Authorization: Bearer`
RETRY = {"Retry-After": "1"}
PREALLOCATE_BYTES = 2**18  # bytes of a body that must arrive before memory for all of it is allocated
PAGE_BYTES = 2**21  # the least memory that a large array occupies


class ApiKeys:
    """The valid API keys, as hashes: those of the settings and those in their file, as it was last read."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.digests = self._read()
        self._problem: str | None = None  # why the file cannot be used, which is logged once

    def reload(self) -> None:
        """Read the file again. The keys that were read before stay valid while it cannot be used."""
        try:
            digests = self._read()
        except Exception as error:  # whatever is wrong with the file must not stop the service
            problem = one_line(error)
            if problem != self._problem:
                log.error("The API keys that were read before stay valid: %s", problem)
            self._problem = problem
            return
        self._problem = None
        if digests != self.digests:
            log.info("The API keys have changed; %d are valid.", len(digests))
            self.digests = digests

    def _read(self) -> list[bytes]:
        return [_digest(key.encode()) for key in self.settings.read_keys()]


class Authentication:
    """Middleware before all routes that answers 401 to requests without a valid API key.

    If no API keys are set, only requests to a loopback address are answered, unless `settings.open` is set. Health
    checks, the OpenAPI document, the /docs page and OPTIONS requests (CORS preflight) need no key.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: ApiKeys):
        self.app, self.keys, self.requires_key = app, keys, settings.requires_key
        self.open = settings.open and not settings.requires_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.open or scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            return await self.app(scope, receive, send)
        refusal = self._check_key(scope) if self.requires_key else _check_local(scope)
        if refusal is None:
            return await self.app(scope, receive, send)
        return await error_reply(refusal)(scope, receive, send)

    def _check_key(self, scope: Scope) -> Refusal | None:
        sent = [key for name, value in scope["headers"] if (key := _key(name, value)) is not None]
        # All digests have the same length and all are compared, so the time reveals no key and not which one matches.
        digests = [_digest(key) for key in sent or [b""]]
        n_equal = sum([hmac.compare_digest(digest, other) for digest in digests for other in self.keys.digests])
        if n_equal and sent:
            return None
        message = "This service requires an API key: send `Authorization: Bearer KEY`, `x-api-key` or `api-key`."
        return Refusal(401, message, "Authorization", {"WWW-Authenticate": "Bearer"})


def _key(header: bytes, value: bytes) -> bytes | None:
    """Return the API key that a header contains, or None if it contains none."""
    if header == b"authorization":
        scheme, _, key = value.partition(b" ")
        return key.strip() if scheme.lower() == b"bearer" else None
    return value.strip() if header in KEY_HEADERS else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _check_local(scope: Scope) -> Refusal | None:
    host = (scope.get("server") or ("localhost",))[0]  # a path means a Unix socket, which is local
    host_header = next((value for name, value in scope["headers"] if name == b"host"), b"localhost")
    # DNS rebinding: a web page can make its own host name resolve to this machine, but Host then contains that name.
    if (host.startswith("/") or is_loopback(host)) and is_loopback(_without_port(host_header)):
        return None
    message = (
        "This service has no API keys, so it answers only requests to a loopback address: set REPSTITCH_API_KEYS, or "
        "set REPSTITCH_OPEN=true if a proxy in front of the service controls access."
    )
    return Refusal(401, message, "Authorization", {"WWW-Authenticate": "Bearer"})


@lru_cache(maxsize=64)
def _without_port(host: bytes) -> str:
    name = host.decode("latin-1")
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


class Gate:
    """Counts the requests being answered (`with gate:`) and the bytes that all requests have reserved.

    A request is counted once its body has arrived. A client that sends slowly therefore reserves bytes, but does not
    count as a concurrent request.
    """

    def __init__(self, settings: Settings):
        self.max_requests, self.max_bytes = settings.max_concurrency, settings.max_held_bytes
        self.requests = self.bytes = 0

    def check(self) -> None:
        """Raise Refusal 429 while `max_requests` requests are being answered."""
        if self.requests >= self.max_requests:
            message = f"The service is already answering {self.requests} requests, its limit; retry later."
            raise Refusal(429, message, headers=RETRY)

    def __enter__(self) -> None:
        self.check()
        self.requests += 1

    def __exit__(self, *_) -> None:
        self.requests -= 1

    @contextmanager
    def left(self) -> Iterator[None]:
        """Do not count a request while it waits for something that has a limit of its own."""
        self.requests -= 1
        try:
            yield
        finally:
            self.requests += 1


class ByteReservation:
    """The bytes that one request has reserved of `gate.max_bytes`; released at the end of the `with` block."""

    __slots__ = ("bytes", "gate")

    def __init__(self, gate: Gate):
        self.gate, self.bytes = gate, 0

    def reserve(self, n_bytes: int) -> None:
        """Reserve more bytes.

        Raises Refusal 429 if the total would exceed `gate.max_bytes`, unless no other request has reserved any.
        """
        if self.gate.bytes + n_bytes > self.gate.max_bytes and self.gate.bytes > self.bytes:
            message = (
                f"The requests in progress have reserved {self.gate.bytes} bytes, and {n_bytes} more would exceed the "
                "service's limit; retry later."
            )
            raise Refusal(429, message, headers=RETRY)
        self.gate.bytes += n_bytes
        self.bytes += n_bytes

    def __enter__(self) -> "ByteReservation":
        return self

    def __exit__(self, *_) -> None:
        self.gate.bytes -= self.bytes


class Deadlines:
    """Cancels the tasks of requests that take longer than `seconds`, at most an eighth of that time late.

    One timer serves all tasks, because a timer per task would cost a small request more time than its copy into torch.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._cancelled: set[asyncio.Task] = set()
        self._ends: dict[asyncio.Task, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> asyncio.Task:
        """Start the deadline of the calling task. Return the task; the caller must later pass it to `stop`."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._ends[task] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_later(self.seconds / 8, self._cancel_overdue, loop)
        return task

    def remaining(self) -> float:
        """Return the seconds until the deadline of the calling task."""
        task = asyncio.current_task()
        assert task is not None
        return self._ends[task] - asyncio.get_running_loop().time()

    def restart(self, task: asyncio.Task) -> None:
        """Restart the deadline of a task, with the full time."""
        self._ends[task] = asyncio.get_running_loop().time() + self.seconds

    def stop(self, task: asyncio.Task) -> bool:
        """Remove the deadline of a task. Return whether the task was cancelled for taking too long."""
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
    """Read the whole body.

    Bytes are reserved as they arrive, not when Content-Length announces them. Raises Refusal 413 as soon as
    Content-Length or the bytes received exceed `limit`, Refusal 429 if the bytes cannot be reserved, MalformedError if
    more bytes arrive than Content-Length states, and ConnectionError if the client disconnects first.
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
            raise MalformedError(f"The body must have the {stated} bytes that `Content-Length` states; got more.")
        if end > limit:
            raise _too_large("more", limit)
        # Growing a long body would copy it many times and block the event loop, so memory for all of it is allocated at
        # once. This waits until some of it has arrived, because even an unused allocation takes at least a page.
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
    """Raise Refusal 413 if a request contains more than `limit` rows."""
    if n_rows > limit:
        message = f"A request may contain at most {limit} rows; got {n_rows}. Send them in several requests."
        raise Refusal(413, message, "embedding")


def _too_large(length: str, limit: int) -> Refusal:
    message = f"A request body may have at most {limit} bytes; got {length}. Send the rows in several requests."
    return Refusal(413, message)
