# pyright: strict
"""Send requests and receive responses, whose bodies are read only as far as the requests allow."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from repstitch.client.responses import Reply, invalid_redirect, mismatch

if TYPE_CHECKING:
    import httpx
else:
    try:
        import httpx
    except ModuleNotFoundError:  # reported when a client is created, so that importing this module never fails
        httpx = None

JSON_BYTES = 16 * 2**20  # the list of 10,000 stitchers has about 4 MiB
ERROR_BYTES = 64 * 2**10
SLOWEST = 1024  # bytes per second, after the time that `timeout_s` allows for the first ones


class Request(NamedTuple):
    """One request. `max_bytes` returns the size that the body of a response may have, from its status and headers."""

    method: str
    url: str
    params: dict[str, str] | None = None
    headers: dict[str, str] | None = None
    content: bytes | None = None
    max_bytes: Callable[[Reply], int] = lambda _: JSON_BYTES

    def options(self) -> dict[str, Any]:
        """Return the arguments of `stream`."""
        return {name: value for name, value in self._asdict().items() if name != "max_bytes"}


def receive(http: "httpx.Client", request: Request) -> "Reply | httpx.RequestError":
    """Send a request and return its response, or the error if there was none.

    Raises ServiceError if the body is larger than expected, or compressed.
    """
    try:
        with http.stream(**request.options()) as response:
            body = _Body(request, response)
            if body.is_wanted:
                for chunk in response.iter_bytes():
                    if not body.add(chunk):
                        break
            return body.reply()
    except httpx.RequestError as error:
        return error
    except httpx.InvalidURL:
        raise invalid_redirect() from None


async def receive_async(http: "httpx.AsyncClient", request: Request) -> "Reply | httpx.RequestError":
    """Send a request like `receive`."""
    try:
        async with http.stream(**request.options()) as response:
            body = _Body(request, response)
            if body.is_wanted:
                async for chunk in response.aiter_bytes():
                    if not body.add(chunk):
                        break
            return body.reply()
    except httpx.RequestError as error:
        return error
    except httpx.InvalidURL:
        raise invalid_redirect() from None


class _Body:
    """The body of one response. That of an error is left out if it is too large or compressed."""

    def __init__(self, request: Request, response: "httpx.Response"):
        self.head = Reply(response.status_code, response.reason_phrase, response.headers)
        self.request = response.request
        self.content = bytearray()
        self.is_wanted = True
        encoding = response.headers.get("content-encoding", "").strip().lower() or "identity"
        if encoding != "identity":  # a small compressed body may become a very large one
            self._refuse(f"its body must not be compressed; got Content-Encoding {encoding[:100]}")
        self.max_bytes = request.max_bytes(self.head) if self.head.status_code == 200 else ERROR_BYTES
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            self._refuse(f"its body must have at most {self.max_bytes} bytes; got {length[:20]}")
        self.started: float = time.monotonic()
        self.first_s: float = self.request.extensions["timeout"]["read"]

    def add(self, chunk: bytes) -> bool:
        """Add a chunk. Returns False if the rest of the body is not wanted."""
        self.content += chunk
        if len(self.content) > self.max_bytes:
            self._refuse(f"its body must have at most {self.max_bytes} bytes; got more")
        elif time.monotonic() - self.started > self.first_s + len(self.content) / SLOWEST:
            raise httpx.ReadTimeout(f"the response came at less than {SLOWEST} bytes per second", request=self.request)
        return self.is_wanted

    def reply(self) -> Reply:
        return self.head._replace(content=self.content)

    def _refuse(self, reason: str) -> None:
        if self.head.status_code == 200:
            raise mismatch(self.head, reason)
        self.is_wanted = False
        self.content.clear()
