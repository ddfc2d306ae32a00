"""What the service lets in: keys, and the limits on bytes, rows and requests at once."""

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
ROOM_BYTES = 2**18  # of a body that are there before it gets a place of its own
PAGE_BYTES = 2**21  # of memory that a large array takes at least


class Keys:
    """The door before all routes: 401 for a request without one of the keys, or from elsewhere where there are none.

    Health and the description of the service stay open, and so does OPTIONS, by which browsers ask before they send.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.open = app, settings.open and not settings.api_keys
        self.digests = [_digest(key.encode()) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and any(name == b"upgrade" for name, _ in scope["headers"]):
            # Servers stop reading at the headers of such a request, and take its body for the next one.
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
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        # Digests have one length, and all are compared: the time tells nothing of a key, nor of which one it was.
        known = sum([hmac.compare_digest(digest, other) for other in self.digests])
        if known and scheme.lower() == b"bearer":
            return None
        message = "This service asks for a key: send `Authorization: Bearer KEY` with one of REPSTITCH_API_KEYS."
        return Refusal(401, message, "Authorization", {"WWW-Authenticate": "Bearer"})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _check_local(scope: Scope) -> Refusal | None:
    host = (scope.get("server") or ("localhost",))[0]  # a socket file is of this machine
    named = next((value for name, value in scope["headers"] if name == b"host"), b"localhost")
    # A page from elsewhere can have its own name lead here, but not call this machine by one of its own.
    if (host.startswith("/") or is_loopback(host)) and is_loopback(_without_port(named)):
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
    """How much is under way: the requests being answered (`with gate:`), and the bytes that all of them hold.

    A request counts once its body is there, so that clients that send slowly hold their bytes and nothing else.
    """

    def __init__(self, settings: Settings):
        self.max_requests, self.max_bytes = settings.max_concurrency, settings.max_held_bytes
        self.requests = self.bytes = 0

    def check(self) -> None:
        """429 while as many requests are being answered as are taken at once."""
        if self.requests >= self.max_requests:
            message = f"{self.requests} requests are under way, as many as are taken at once; try again."
            raise Refusal(429, message, headers=RETRY)

    def __enter__(self) -> None:
        self.check()
        self.requests += 1

    def __exit__(self, *_) -> None:
        self.requests -= 1


class Held:
    """The bytes that one request holds of what all may hold together; given back when the block is left."""

    __slots__ = ("bytes", "gate")

    def __init__(self, gate: Gate):
        self.gate, self.bytes = gate, 0

    def take(self, n_bytes: int) -> None:
        """Hold more; 429 when all requests together would hold too much. One that is alone has the other limits."""
        if self.gate.bytes + n_bytes > self.gate.max_bytes and self.gate.bytes > self.bytes:
            message = f"Requests under way hold {self.gate.bytes} bytes and this needs {n_bytes} more; try again."
            raise Refusal(429, message, headers=RETRY)
        self.gate.bytes += n_bytes
        self.bytes += n_bytes

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_) -> None:
        self.gate.bytes -= self.bytes


class Clock:
    """How long requests may take: `late` ones are cancelled, at most an eighth of the time after their end.

    One timer looks after all of them, since one of its own would cost a small request more than its copy into torch.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.late: set[asyncio.Task] = set()
        self._ends: dict[asyncio.Task, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> asyncio.Task:
        """Begin the time of the task that calls this; it must end it with `stop`."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._ends[task] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_later(self.seconds / 8, self._look, loop)
        return task

    def again(self, task: asyncio.Task) -> None:
        """Begin the time of a task anew."""
        self._ends[task] = asyncio.get_running_loop().time() + self.seconds

    def stop(self, task: asyncio.Task) -> bool:
        """End the time of a task; whether it was too late, and cancelled for that."""
        self._ends.pop(task, None)
        if task not in self.late:
            return False
        self.late.remove(task)
        task.uncancel()
        return True

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for task in [task for task, end in self._ends.items() if end <= now]:
            del self._ends[task]
            self.late.add(task)
            task.cancel()
        self._timer = loop.call_later(self.seconds / 8, self._look, loop) if self._ends else None


async def read_body(receive: Receive, length: bytes | None, limit: int, held: Held) -> Buffer:
    """The whole body, refused with 413 as soon as its stated or its actual length is over `limit` bytes.

    Its bytes are held as they come, not as they are promised. Raises MalformedError on more than was stated,
    ConnectionError when the client goes away first.
    """
    if length is not None and (not length.isdigit() or len(length) > 18 or int(length) > limit):
        raise _too_large(length.decode("latin-1"), limit)
    stated = None if length is None else int(length)
    body: bytearray | memoryview = bytearray()
    n_bytes = n_held = 0
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
        # A body that grows is moved again and again, and nothing else runs then: a long one gets its place at once, but
        # not before some of it has come, since a place takes a page of memory, however little is in it.
        room = 0 if stated is None or end <= ROOM_BYTES else stated
        needs = max(end, min(room, PAGE_BYTES))
        held.take(needs - n_held)
        n_held = needs
        if room and isinstance(body, bytearray):
            body, grown = np.empty(room, np.uint8).data, body
            body[:n_bytes] = grown
            del grown
        if isinstance(body, bytearray):
            body += chunk
        else:
            body[n_bytes:end] = chunk
        n_bytes = end
        if not message.get("more_body", False):
            return body if isinstance(body, bytearray) else body[:n_bytes]


def check_rows(n_rows: int, limit: int) -> None:
    """Refuse with 413 more rows than one request may hold."""
    if n_rows > limit:
        raise Refusal(413, f"A request may hold at most {limit} rows; got {n_rows}. Send them in parts.", "embedding")


def _too_large(got: str, limit: int) -> Refusal:
    return Refusal(413, f"A body may have at most {limit} bytes; got {got}. Send the rows in parts.")
