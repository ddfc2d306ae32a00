"""Limit the size and the time of the request line and the headers."""

import asyncio
from typing import Any

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 2**16
HEAD_SECONDS = 30.0


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits on the request line and the headers, which uvicorn does not limit.

    Aborts a connection whose request line and headers exceed `MAX_HEAD_BYTES` or take longer than `HEAD_SECONDS`.
    """

    head_bytes = 0
    head_timer: asyncio.TimerHandle | None = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_bytes = 0
        self._cancel_timer()
        self.head_timer = self.loop.call_later(HEAD_SECONDS, self._abort)

    def on_headers_complete(self) -> None:
        self._cancel_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.head_timer is not None:
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD_BYTES:
                self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def _cancel_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _abort(self) -> None:
        self._cancel_timer()
        self.transport.abort()


def install() -> None:
    """Make uvicorn use `BoundedProtocol` where uvicorn chooses the protocol itself, as under BentoML."""
    module: Any = auto
    module.AutoHTTPProtocol = BoundedProtocol
