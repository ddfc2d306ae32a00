# pyright: strict
"""The calls of both clients, as generators that do no network I/O.

A generator yields the requests to send, the pauses to wait and the generators to run, and receives their results.
"""

import base64
import json
import random
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike

from repstitch.arguments import check_choice
from repstitch.client.arguments import (
    as_floats,
    authorisation,
    check_encodable_name,
    check_finite,
    check_seconds,
    check_whole_number,
    names_of_request,
    to_bytes,
)
from repstitch.client.errors import BusyError, ClientConflictError, ClientInputError, ServiceError, UnreachableError
from repstitch.client.receiving import Request, httpx
from repstitch.client.responses import (
    JSON,
    OCTETS,
    JsonObject,
    Reply,
    Translation,
    error_of,
    join,
    mismatch,
    provenance,
    read_layout,
    read_object,
    read_translation,
    retry_after,
    with_row_offset,
)
from repstitch.errors import InputError, one_line
from repstitch.wire.fields import ROUTES
from repstitch.wire.rows import DTYPES

BATCH_BYTES = 8 * 2**20
FIRST_PAUSE_S = 0.25  # the longest pause before the first retry; it doubles with each further retry
MAX_PAUSE_S = 30.0
BUSY_STATUSES = (429, 503)

T = TypeVar("T")


class Pause(NamedTuple):
    seconds: float


Step: TypeAlias = "Request | Pause | list[Steps[Any]]"
# The type of a result depends on the step that was yielded, so it cannot be annotated.
Steps: TypeAlias = Generator[Step, Any, T]


class Core:
    """The calls that both clients share.

    A call yields a `Request` and receives the `Reply`, or the httpx error if there was none. It yields a `Pause` to
    wait. It yields a list of generators to run, and receives the list of their return values.
    """

    def __init__(self, address: str, api_key: str | None, timeout_s: float, retries: int, batch_bytes: int):
        if httpx is None:
            raise InputError("`repstitch.client` needs httpx; install it with `pip install repstitch[serve]`.")
        self.address = _check_address(address)
        self.retries = check_whole_number("retries", retries, 0)
        self.batch_bytes = check_whole_number("batch_bytes", batch_bytes, 1)
        timeout_s = check_seconds("timeout_s", timeout_s)
        # No compression is requested, since it does not make vectors smaller.
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
        """Translate one array in one or more requests; see `Client.translate`."""
        check_choice("dtype", dtype, tuple(DTYPES))
        check_choice("route", route, ROUTES)
        check_choice("confidence", confidence, (False, True))
        params = names_of_request(source, target, stitcher)
        if route != "direct":
            params["route"] = route
        if confidence:
            params["confidence"] = "true"
        array = as_floats("X", X)
        rows = array.reshape(1, -1) if array.ndim == 1 else array
        step = max(1, self.batch_bytes // (rows.shape[1] * DTYPES[dtype].itemsize))
        starts = range(0, len(rows), step)
        for start in starts:  # all rows are checked before the first request is sent
            check_finite("X", rows[start : start + step], dtype, start)
        max_rows = step  # per request; lowered when the service rejects a request as too large

        def send(start: int, stop: int) -> Steps[list[Translation]]:
            nonlocal max_rows
            n = stop - start

            def max_bytes(head: Reply) -> int:
                return read_layout(head, n, route, confidence, dtype).n_bytes

            if n <= max_rows:
                try:
                    request = _translate_request(rows[start:stop], params, dtype, max_bytes)
                    reply = yield from self.exchange(request)
                    return [read_translation(reply, n, route, confidence, dtype)]
                except ClientInputError as error:
                    if error.status != 413 or n == 1:
                        raise with_row_offset(error, start) from None
                max_rows = min(max_rows, (n + 1) // 2)
            middle = start + n // 2
            return (yield from send(start, middle)) + (yield from send(middle, stop))

        parts: list[Translation] = []
        for _ in range(2):
            lists = yield [send(start, min(start + step, len(rows))) for start in starts]
            parts = [part for each in cast("list[list[Translation]]", lists) for part in each]
            if len({provenance(part) for part in parts}) == 1:
                return join(parts, array.ndim == 1)
        versions = ", ".join(sorted({f"{part.stitcher} {part.version}" for part in parts}))
        raise ClientConflictError(
            "All rows of `X` must be translated by one version of one stitcher; the service replaced it during both "
            f"attempts (last: {versions}). Retry later."
        )

    def score(self, X: ArrayLike, Y: ArrayLike, source: str, target: str, stitcher: str | None) -> Steps[JsonObject]:
        """Score a stitcher in one request to /v1/score; see `Client.score`."""
        names = names_of_request(source, target, stitcher)
        arrays = [_scored_rows("X", X), _scored_rows("Y", Y)]
        if len(arrays[0]) != len(arrays[1]):
            raise InputError(f"`X` and `Y` must have equal numbers of rows; got {len(arrays[0])} and {len(arrays[1])}.")
        embedding, counterpart = (base64.b64encode(to_bytes(rows, "float32")).decode() for rows in arrays)
        content = json.dumps({**names, "embedding": embedding, "counterpart": counterpart}).encode()
        reply = yield from self.exchange(Request("POST", "/v1/score", None, {"Content-Type": JSON}, content))
        return read_object(reply)

    def listed(self, name: str) -> Steps[list[JsonObject]]:
        """Return the list `name` in the response of /v1/`name`."""
        reply = yield from self.exchange(Request("GET", f"/v1/{name}"))
        items = read_object(reply).get(name)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in cast("list[object]", items)):
            raise mismatch(reply, f"it has no list of {name}")
        return cast("list[JsonObject]", items)

    def stitcher(self, name: str) -> Steps[dict[str, Any]]:
        """Return the response of /v1/stitchers/`name`."""
        check_encodable_name("name", name)
        reply = yield from self.exchange(Request("GET", f"/v1/stitchers/{quote(name, safe='')}"))
        return read_object(reply)

    def ready(self) -> Steps[bool]:
        """Check once whether the service is ready; see `Client.ready`."""
        try:
            reply = yield from self.exchange(Request("GET", "/readyz"), retries=0)
            return read_object(reply).get("status") == "ready"
        except (BusyError, UnreachableError):
            return False
        except ServiceError as error:
            # A proxy in front of a starting service answers 502 or 504. Any other page means that the address is wrong.
            if error.status is None or error.status < 500:
                raise
            return False

    def exchange(self, request: Request, retries: int | None = None) -> Steps[Reply]:
        """Send a request and return its response, whose status is 200.

        The request is retried if the service is busy or the connection fails.
        """
        retries = self.retries if retries is None else retries
        attempt = 0
        while True:
            answer: Reply | httpx.RequestError = yield request
            broken = isinstance(answer, httpx.TransportError)
            busy = isinstance(answer, Reply) and answer.status_code in BUSY_STATUSES
            if attempt == retries or not (broken or busy):
                break
            yield Pause(self.pause_s(attempt, answer))
            attempt += 1
        if isinstance(answer, httpx.RequestError):
            attempts = "one attempt" if retries == 0 else f"{retries + 1} attempts"
            raise UnreachableError(
                f"No response from {self.address} in {attempts} ({type(answer).__name__}: {one_line(answer)}). Check "
                "that the service is running there and that `address` is correct."
            ) from answer
        if answer.status_code != 200:
            raise error_of(answer)
        return answer

    def pause_s(self, attempt: int, answer: "Reply | httpx.RequestError") -> float:
        """Return the seconds to wait before the next attempt, at most `MAX_PAUSE_S`.

        This is the time that the service requests (Retry-After) plus a random time, whose limit doubles with each
        attempt. The random time keeps clients that were rejected together from retrying together.
        """
        minimum = retry_after(answer.headers) if isinstance(answer, Reply) else 0.0
        longest = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        return min(MAX_PAUSE_S, minimum + self.random.uniform(0, longest))


def _check_address(address: str) -> str:
    """Check the address and return it without a trailing slash.

    Error messages do not quote it in full, since it may contain a password.
    """
    rule = "`address` must be http:// or https://, a host and at most a path, such as http://127.0.0.1:3000"
    try:
        url = httpx.URL(address)
        url.raw_host.decode("ascii").encode("idna")  # resolving the name does this later, with another error
    except (httpx.InvalidURL, TypeError, ValueError):
        raise InputError(f"{rule}; got an invalid URL.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{rule}; got {f'{url.scheme}://' if url.scheme else 'no scheme'}, host {url.host!r}.")
    if url.userinfo:
        raise InputError(f"{rule}; got a user name or password in it. Pass a key as `api_key`.")
    if "?" in str(address) or "#" in str(address):
        raise InputError(f"{rule}; got a query or a fragment after it. Remove it.")
    return str(url).rstrip("/")


def _translate_request(
    rows: np.ndarray, params: dict[str, str], dtype: str, max_bytes: Callable[[Reply], int]
) -> Request:
    media_type = OCTETS if dtype == "float32" else f"{OCTETS}; dtype={dtype}"
    n, dim = rows.shape  # sent as headers, since the body is ambiguous: two rows of 384 numbers look like one of 768
    headers = {"Content-Type": media_type, "Accept": media_type, "X-Rows": str(n), "X-Dim": str(dim)}
    return Request("POST", "/v1/translate", params, headers, to_bytes(rows, dtype), max_bytes)


def _scored_rows(param: str, values: ArrayLike) -> np.ndarray:
    rows = as_floats(param, values)
    if rows.ndim == 1:
        raise InputError(f"`{param}` must be rows (n, d) to be scored; got a single vector.")
    check_finite(param, rows, "float32", 0)
    return rows
