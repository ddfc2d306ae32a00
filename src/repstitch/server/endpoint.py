"""Base class of the routes that receive rows: the limits, the errors and the metrics of each request."""

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
from repstitch.server.telemetry import NO_ENCODING
from repstitch.wire.rows import Buffer

log = logging.getLogger(__name__)
INLINE_BYTES = 2**18  # bodies up to this size are parsed in the event loop, because handing them to a thread is slower
INLINE_NUMBERS = 2**16  # responses with up to this many numbers are encoded in the event loop, for the same reason
JSON_MEMORY_FACTOR = 8  # the most memory that parsed numbers take, as a multiple of the size of their text
JSON_NUMBER_BYTES = 16  # the most bytes that one number takes in a JSON response
PART_BYTES = 2**18  # a response is sent in parts of this size, so that a client that stops reading is noticed
CLIENT_LEFT = 499  # the status in the metrics of requests whose client disconnected before the response
Headers = list[tuple[bytes, bytes]]
Body = list[Buffer]  # the parts of a body, which are never joined


@dataclass(slots=True)
class RequestLabels:
    """Labels of a request in the metrics, filled in while the request is read."""

    pair: str | None = None
    encoding: str = NO_ENCODING


class Endpoint(ABC):
    """A route as a plain ASGI endpoint, because building a Request object takes longer than a small translation.

    Enforces the limits on concurrent requests, on reserved bytes, on the time to receive and answer a request, and on
    the time to send the response.
    """

    route = ""

    def __init__(self, service: Service):
        self.service, self.settings = service, service.settings

    @abstractmethod
    async def answer(
        self, scope: Scope, receive: Receive, reservation: ByteReservation, labels: RequestLabels
    ) -> tuple[Headers, Body]:
        """Return the headers and the body of the response. Raise Refusal or InputError to reject the request."""

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
                        # If the client reads too slowly, the response is cut off and the connection closed.
                        raise (ConnectionError if answered else timed_out(self.settings.timeout_s)) from None
        except ConnectionError:
            status = CLIENT_LEFT
            if not answered:  # a server that mounts this application may still wait for a response
                await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            status = CLIENT_LEFT
            raise
        except (Refusal, InputError) as error:
            status = status_of(error)
            raise
        except Exception as error:
            # The log omits the message, because it may quote the numbers of a vector.
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s failed with %s:\n%s", scope["path"], type(error).__name__, frames)
            status = 500
            raise Refusal(500, FAILED) from None
        finally:
            service.metrics.count_request(self.route, labels.pair, labels.encoding, status, time.perf_counter() - began)


def timed_out(seconds: float) -> Refusal:
    # The connection is closed, because the unread rest of the body would be parsed as the next request.
    message = f"The request took longer than {seconds:g} s; send less data per request."
    return Refusal(504, message, headers={"Connection": "close"})


async def send_reply(send: Send, headers: Headers, body: Body) -> None:
    """Send a response. A large one is sent in parts, and other tasks run between two parts."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if len(body) == 1 and len(body[0]) <= PART_BYTES:
        await send({"type": "http.response.body", "body": body[0]})
        return
    for buffer in body:
        view = memoryview(buffer)
        for start in range(0, len(view), PART_BYTES):
            await send({"type": "http.response.body", "body": view[start : start + PART_BYTES], "more_body": True})
            await asyncio.sleep(0)  # `send` does not yield to other tasks while the client reads fast enough
    await send({"type": "http.response.body", "body": b""})


def length_header(body: Body) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % sum(map(len, body))
