"""TODO server.endpoint."""

import asyncio
import logging
import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from repstitch.errors import InputError
from repstitch.server.guards import Held
from repstitch.server.responses import FAILED, Refusal, status_of
from repstitch.server.service import Service
from repstitch.wire.rows import Buffer

log = logging.getLogger(__name__)
PART_BYTES = 2**18  # of a reply sent at once: who does not fetch it is noticed, and others have their turn
CLIENT_LEFT = 499  # nobody is answered so; metrics tell by it that somebody did not wait
Headers = list[tuple[bytes, bytes]]
Body = list[Buffer]  # in parts, which are nowhere joined


@dataclass(slots=True)
class Seen:
    """What is known of a request so far, for the metrics."""

    pair: str | None = None
    encoding: str = "none"


class Endpoint(ABC):
    """A route as a bare ASGI endpoint, because per request a map is cheaper than a Request object.

    Keeps the limits: requests at once, bytes held, and the time that a request may take to be answered and fetched.
    """

    route = ""

    def __init__(self, service: Service):
        self.service, self.settings = service, service.settings

    @abstractmethod
    async def answer(self, scope: Scope, receive: Receive, held: Held, seen: Seen) -> tuple[Headers, Body]:
        """The headers and the body of the reply; Refusal or InputError where there is none."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, seen, status, answered = self.service, Seen(), 200, False
        began = time.perf_counter()
        try:
            service.gate.check()
            with Held(service.gate) as held:
                task = service.clock.start()
                try:
                    headers, body = await self.answer(scope, receive, held, seen)
                    answered = True
                    service.clock.again(task)
                    await send_reply(send, headers, body)
                finally:
                    if service.clock.stop(task):
                        # A reply that is not fetched ends with its connection, half sent.
                        raise (ConnectionError if answered else too_late(self.settings.timeout_s)) from None
        except ConnectionError:
            status = CLIENT_LEFT
            if not answered:  # whatever this application is mounted in may wait for an answer, though nobody does
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
            service.metrics.request(self.route, seen.pair, seen.encoding, status, time.perf_counter() - began)


def too_late(seconds: float) -> Refusal:
    # What is left of the body would be read as the next request, so the connection goes too.
    return Refusal(504, f"Not done within {seconds:g} s; send less.", headers={"Connection": "close"})


async def send_reply(send: Send, headers: Headers, body: Body) -> None:
    """Send a whole reply, a large one in parts, each once the one before it is under way and others had their turn."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if len(body) == 1 and len(body[0]) <= PART_BYTES:
        await send({"type": "http.response.body", "body": body[0]})
        return
    for whole in body:
        view = memoryview(whole)
        for start in range(0, len(view), PART_BYTES):
            await send({"type": "http.response.body", "body": view[start : start + PART_BYTES], "more_body": True})
            await asyncio.sleep(0)  # who fetches as fast as this sends would keep the loop to the end
    await send({"type": "http.response.body", "body": b""})


def length_header(body: Body) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % sum(map(len, body))
