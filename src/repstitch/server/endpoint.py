"""The frame of the routes that are sent rows: the limits, the errors and the metrics of each request."""

import asyncio
import logging
import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from repstitch.errors import InputError
from repstitch.server.guards import ByteReservation
from repstitch.server.responses import FAILED, Refusal, status_of
from repstitch.server.service import Service
from repstitch.wire.rows import Buffer

log = logging.getLogger(__name__)
INLINE_BYTES = 2**18  # of a body: up to here a thread costs more than it frees
INLINE_NUMBERS = 2**16  # of a reply: the same
JSON_MEMORY_FACTOR = 8  # the most memory that parsed numbers take, as a multiple of their text
JSON_NUMBER_BYTES = 16  # the most bytes of a number in a reply's text
PART_BYTES = 2**18  # of a reply sent at once, so that a client that does not fetch is noticed and others get their turn
CLIENT_LEFT = 499  # never sent; metrics count requests under it whose client left before the answer
Headers = list[tuple[bytes, bytes]]
Body = list[Buffer]  # in parts, which are never joined


@dataclass(slots=True)
class RequestLabels:
    """The labels of a request in the metrics, filled in while it is read."""

    pair: str | None = None
    encoding: str = "none"


class Endpoint(ABC):
    """A route as a plain ASGI endpoint, because building a Request object costs more than a small translation.

    Enforces the limits on concurrent requests, on reserved bytes, and on the time that a request takes to be answered
    and then to be fetched.
    """

    route = ""

    def __init__(self, service: Service):
        self.service, self.settings = service, service.settings

    @abstractmethod
    async def answer(
        self, scope: Scope, receive: Receive, reservation: ByteReservation, labels: RequestLabels
    ) -> tuple[Headers, Body]:
        """The headers and the body of the reply; raises Refusal or InputError where there is none."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, labels, status, answered = self.service, RequestLabels(), 200, False
        began = time.perf_counter()
        try:
            service.gate.check()
            with ByteReservation(service.gate) as reservation:
                task = service.deadlines.start()
                try:
                    headers, body = await self.answer(scope, receive, reservation, labels)
                    answered = True
                    service.deadlines.restart(task)
                    await send_reply(send, headers, body)
                finally:
                    if service.deadlines.stop(task):
                        # A reply that is not fetched in time ends with its connection, half sent.
                        raise (ConnectionError if answered else timed_out(self.settings.timeout_s)) from None
        except ConnectionError:
            status = CLIENT_LEFT
            if not answered:  # a server that this application is mounted in may wait for a reply all the same
                await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            status = CLIENT_LEFT
            raise
        except (Refusal, InputError) as error:
            status = status_of(error)
            raise
        except Exception as error:
            # The message is left out: it may quote the numbers of a vector.
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s failed with %s:\n%s", scope["path"], type(error).__name__, frames)
            status = 500
            raise Refusal(500, FAILED) from None
        finally:
            service.metrics.count_request(self.route, labels.pair, labels.encoding, status, time.perf_counter() - began)


def timed_out(seconds: float) -> Refusal:
    # The rest of the body would be read as the next request, so the connection is closed.
    return Refusal(504, f"Not done within {seconds:g} s; send less.", headers={"Connection": "close"})


async def send_reply(send: Send, headers: Headers, body: Body) -> None:
    """Send a whole reply, a large one in parts, letting other tasks run between two parts."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if len(body) == 1 and len(body[0]) <= PART_BYTES:
        await send({"type": "http.response.body", "body": body[0]})
        return
    for buffer in body:
        view = memoryview(buffer)
        for start in range(0, len(view), PART_BYTES):
            await send({"type": "http.response.body", "body": view[start : start + PART_BYTES], "more_body": True})
            await asyncio.sleep(0)  # `send` never waits for a client that fetches fast, so it would not yield
    await send({"type": "http.response.body", "body": b""})


def length_header(body: Body) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % sum(map(len, body))
