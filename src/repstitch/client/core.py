"""The calls themselves, for both clients: what is sent, when it is sent again, and what is made of the answers.

They are generators that never touch a socket: they yield what is to be sent, how long to wait, or parts to be run, and
are given the answers.
"""

import base64
import json
import math
import random
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike

from repstitch.client.arguments import (
    as_floats,
    authorisation,
    check_choice,
    check_finite,
    check_whole_number,
    check_written_name,
    read_names,
    to_bytes,
)
from repstitch.client.errors import BusyError, ClientConflictError, ClientInputError, ServiceError, UnreachableError
from repstitch.client.responses import (
    JSON,
    OCTETS,
    Translation,
    counted_from,
    error_of,
    join,
    origin,
    read_object,
    read_translation,
    retry_after,
    unfit,
)
from repstitch.errors import InputError, one_line
from repstitch.wire.fields import ROUTES
from repstitch.wire.rows import DTYPES

if TYPE_CHECKING:
    import httpx
else:
    try:
        import httpx
    except ModuleNotFoundError:  # told when a client is made, so that importing this module never fails
        httpx = None

BATCH_BYTES = 8 * 2**20
FIRST_PAUSE_S = 0.25  # the longest pause before the first repeat; each later one may be twice as long
MOST_PAUSE_S = 30.0
BUSY = (429, 503)

T = TypeVar("T")
Steps = Generator[Any, Any, T]


class Request(NamedTuple):
    method: str
    url: str
    params: dict[str, str] | None = None
    headers: dict[str, str] | None = None
    content: bytes | None = None


class Pause(NamedTuple):
    seconds: float


class Core:
    """What both clients share. Its generators yield a `Request` (answered by a response, or by the error that came in
    its place), a `Pause`, or a list of generators to run (answered by what they return)."""

    def __init__(self, address: str, api_key: str | None, timeout_s: float, retries: int, batch_bytes: int):
        if httpx is None:
            raise InputError("`repstitch.client` needs httpx; install it with `pip install repstitch[serve]`.")
        self.address = _check_address(address)
        self.retries = check_whole_number("retries", retries, 0)
        self.batch_bytes = check_whole_number("batch_bytes", batch_bytes, 1)
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
            raise InputError(f"`timeout_s` must be a number of seconds above 0; got {timeout_s!r}.")
        # Vectors do not shrink by compression, so none is asked for.
        headers = {"Accept-Encoding": "identity", "User-Agent": "repstitch"} | authorisation(api_key)
        self.options: dict[str, Any] = {
            "base_url": self.address,
            "headers": headers,
            "timeout": timeout_s,
            "follow_redirects": False,
        }
        self.random = random.Random()

    def translate(
        self,
        X: ArrayLike,
        source: str,
        target: str,
        stitcher: str | None,
        route: str,
        confidence: bool,
        dtype: str,
    ) -> Steps[Translation]:
        """One array, in as many requests as it takes; see `Client.translate`."""
        check_choice("dtype", dtype, DTYPES)
        check_choice("route", route, ROUTES)
        check_choice("confidence", confidence, (False, True))
        params = read_names(source, target, stitcher)
        if route != "direct":
            params["route"] = route
        if confidence:
            params["confidence"] = "true"
        given = as_floats("X", X)
        rows = given.reshape(1, -1) if given.ndim == 1 else given
        step = max(1, self.batch_bytes // (rows.shape[1] * DTYPES[dtype].itemsize))
        starts = range(0, len(rows), step)
        for start in starts:  # before anything is sent
            check_finite("X", rows[start : start + step], dtype, start)
        most = step

        def send(start: int, stop: int) -> Steps[list[Translation]]:
            nonlocal most
            n = stop - start
            # A part that is as large as one that was too large would only be refused again.
            if n <= most:
                try:
                    reply = yield from self.exchange(_translate_request(rows[start:stop], params, dtype))
                    return [read_translation(reply, n, route, confidence, dtype)]
                except ClientInputError as error:
                    if error.status != 413 or n == 1:
                        raise counted_from(error, start) from None
                most = min(most, (n + 1) // 2)
            middle = start + n // 2
            return (yield from send(start, middle)) + (yield from send(middle, stop))

        for _ in range(2):
            parts = yield [send(start, min(start + step, len(rows))) for start in starts]
            replies = [reply for part in parts for reply in part]
            origins = {origin(reply) for reply in replies}
            if len(origins) == 1:
                return join(replies, given.ndim == 1)
        versions = ", ".join(sorted({f"{reply.stitcher} {reply.version}" for reply in replies}))
        raise ClientConflictError(
            f"The rows of `X` must all be translated by one stitcher; twice the service replaced it on the way (last: "
            f"{versions}). Translate again once it stays the same."
        )

    def score(
        self, X: ArrayLike, Y: ArrayLike, source: str, target: str, stitcher: str | None
    ) -> Steps[dict[str, Any]]:
        body: dict[str, Any] = read_names(source, target, stitcher)
        rows = {}
        for name, field, values in (("X", "embedding", X), ("Y", "counterpart", Y)):
            rows[name] = as_floats(name, values)
            if rows[name].ndim == 1:
                raise InputError(f"`{name}` must be rows (n, d) to be scored; got one vector.")
            check_finite(name, rows[name], "float32", 0)
            body[field] = base64.b64encode(to_bytes(rows[name], "float32")).decode()
        if len(rows["X"]) != len(rows["Y"]):
            raise InputError(f"`X` and `Y` must be matched row by row; got {len(rows['X'])} and {len(rows['Y'])} rows.")
        content = json.dumps(body).encode()
        reply = yield from self.exchange(Request("POST", "/v1/score", None, {"Content-Type": JSON}, content))
        return read_object(reply)

    def listed(self, what: str) -> Steps[list[dict[str, Any]]]:
        """The list that /v1/`what` holds under that name."""
        reply = yield from self.exchange(Request("GET", f"/v1/{what}"))
        found = read_object(reply).get(what)
        if not isinstance(found, list):
            raise unfit(reply, f"there is no list of {what} in it")
        return found

    def stitcher(self, name: str) -> Steps[dict[str, Any]]:
        check_written_name("name", name)
        reply = yield from self.exchange(Request("GET", f"/v1/stitchers/{quote(name, safe='')}"))
        return read_object(reply)

    def ready(self) -> Steps[bool]:
        try:
            reply = yield from self.exchange(Request("GET", "/readyz"), retries=0)
            return read_object(reply).get("status") == "ready"
        except (BusyError, UnreachableError):
            return False
        except ServiceError as error:
            # A proxy in front of a service that is not up yet says 502 or 504; a page of something else never mends.
            if error.status is None or error.status < 500:
                raise
            return False

    def exchange(self, request: Request, retries: int | None = None) -> "Steps[httpx.Response]":
        """The response to a request, which must be 200; a busy service and a broken connection are tried again."""
        retries = self.retries if retries is None else retries
        for tried in range(retries + 1):
            reply = yield request
            broken = isinstance(reply, httpx.TransportError)
            busy = isinstance(reply, httpx.Response) and reply.status_code in BUSY
            if tried == retries or not (broken or busy):
                break
            yield Pause(self.pause_s(tried, reply))
        if isinstance(reply, httpx.DecodingError):
            raise ServiceError(f"The body of the reply cannot be decoded; {one_line(reply)}") from reply
        if isinstance(reply, httpx.RequestError):
            reason = f"{type(reply).__name__}: {one_line(reply)}"
            raise UnreachableError(
                f"Nothing answered at {self.address} in {_times(retries + 1)} ({reason}). See that the service runs "
                "there, and that `address` is right."
            ) from reply
        if reply.status_code != 200:
            raise error_of(reply)
        return reply

    def pause_s(self, tried: int, reply: "httpx.Response | httpx.RequestError") -> float:
        """Seconds before the next try: what the service asks for, and a random share of a time that doubles.

        The share keeps those who were turned away together from coming back together.
        """
        asked = retry_after(reply.headers) if isinstance(reply, httpx.Response) else 0.0
        longest = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**tried)
        return min(MOST_PAUSE_S, asked + self.random.uniform(0, longest))


def _check_address(address: str) -> str:
    """The address without a slash at its end. What is refused is not quoted, for it may hold a password."""
    rule = "`address` must be http:// or https://, a host and at most a path, such as http://127.0.0.1:3000"
    try:
        url = httpx.URL(address)
        url.raw_host.decode("ascii").encode("idna")  # as the system will, with another error
    except (httpx.InvalidURL, TypeError, ValueError):
        raise InputError(f"{rule}; got what is no URL.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{rule}; got {f'{url.scheme}://' if url.scheme else 'no scheme'}, host {url.host!r}.")
    if url.userinfo:
        raise InputError(f"{rule}; got a user name or password in it. Give a key as `api_key`.")
    if "?" in str(address) or "#" in str(address):
        raise InputError(f"{rule}; got a query or a fragment behind it. Leave that out.")
    return str(url).rstrip("/")


def _translate_request(rows: np.ndarray, params: dict[str, str], dtype: str) -> Request:
    form = OCTETS if dtype == "float32" else f"{OCTETS}; dtype={dtype}"
    n, dim = rows.shape  # which bytes do not tell: two rows of 384 numbers are one of 768
    headers = {"Content-Type": form, "Accept": form, "X-Rows": str(n), "X-Dim": str(dim)}
    return Request("POST", "/v1/translate", params, headers, to_bytes(rows, dtype))


def _times(n: int) -> str:
    return "one try" if n == 1 else f"{n} tries"
