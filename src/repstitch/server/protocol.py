"""Bounds on what comes before a request is one: the bytes and the time of its first line and headers."""

import asyncio
from typing import Any

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 2**16
HEAD_SECONDS = 30.0


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, whose parser takes any number of bytes for headers, and any time.

    A connection whose request line and headers grow beyond 64 KiB, or take more than half a minute, is ended.
    """

    head_bytes = 0
    head_timer: asyncio.TimerHandle | None = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_bytes = 0
        self._forget()
        self.head_timer = self.loop.call_later(HEAD_SECONDS, self._end)

    def on_headers_complete(self) -> None:
        self._forget()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.head_timer is not None:
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD_BYTES:
                self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _end(self) -> None:
        self._forget()
        self.transport.abort()


def install() -> None:
    """Have uvicorn use it wherever it chooses a protocol by itself, as under BentoML."""
    chosen: Any = auto
    chosen.AutoHTTPProtocol = BoundedProtocol
