"""A client of the service: arrays go over HTTP and come back translated, with retries and checked replies.

`Client` waits; `AsyncClient` is the same for asyncio. Both run one private core, which is made of generators that never
touch a socket: they yield what is to be sent, how long to wait, or parts to be run, and are given the answers.
"""

import asyncio
import base64
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import ArrayLike

from repstitch.errors import ConflictError, InputError, NotFoundError, one_line
from repstitch.wire.fields import ROUTES, check_name
from repstitch.wire.rows import DTYPES

if TYPE_CHECKING:
    import httpx
else:
    try:
        import httpx
    except ModuleNotFoundError:  # told when a client is made, so that importing this module never fails
        httpx = None

OCTETS = "application/octet-stream"
JSON = "application/json"
BATCH_BYTES = 8 * 2**20
FIRST_PAUSE_S = 0.25  # the longest pause before the first repeat; each later one may be twice as long
MOST_PAUSE_S = 30.0
MESSAGE_LENGTH = 1000

T = TypeVar("T")
Steps = Generator[Any, Any, T]


class ClientError(Exception):
    """What calling the service came to when not to an answer; `str` of it is the service's own message.

    `status` is the HTTP status (None when there was no answer, or when answers contradict each other), `code` and
    `param` are the service's word for it and the parameter at fault, where it gave them.
    """

    def __init__(self, message: str, status: int | None = None, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class ClientInputError(ClientError, InputError):
    """The service refused what was sent: 400, 413, 415, 422 and other 4xx."""


class ClientNotFoundError(ClientError, NotFoundError):
    """No such space, pair or stitcher there: 404."""


class ClientConflictError(ClientError, ConflictError):
    """A choice is needed first: 409, or parts of one array that several versions of a stitcher answered."""


class UnauthorisedError(ClientError):
    """`api_key` is missing or not one of the service's: 401 or 403."""


class BusyError(ClientError):
    """The service took nothing, however often it was asked: 429 or 503."""


class ServiceError(ClientError):
    """The service failed (5xx; 504 when it was too slow), or answered something that is no answer to this request."""


class UnreachableError(ClientError):
    """Nothing answered at the address, however often it was tried."""


@dataclass(frozen=True, eq=False)
class Translation:
    """Translated rows and where they come from.

    `vectors` is (n, d_target), or (d_target,) where one vector was sent. `confidence` has an array of n numbers (of no
    dimension for one vector) a measure, in the dtype of `vectors`; it is empty where it was not asked for. `stitcher`
    and `version` name the one map behind all rows; where it leads over several stitchers, both hold one item each,
    joined by commas. `route` is the spaces passed, source and target included, and `expected_score` what the service
    expects of it (None where unknown); both are told only with route="auto".
    """

    vectors: np.ndarray
    confidence: dict[str, np.ndarray]
    stitcher: str
    version: str
    route: tuple[str, ...] | None = None
    expected_score: float | None = None


class Client:
    """A service at `address`, such as "http://127.0.0.1:3000"; threads may share it.

    `api_key` is sent as a Bearer token, to this address only: redirects are not followed. `timeout_s` is the most
    seconds to wait for a connection, and for each next piece of a request or a reply. A request that meets 429, 503 or
    a broken connection is sent again up to `retries` times, after pauses that double from at most 0.25 s, drawn at
    random, or as long as the service asks for (30 s at most). Arrays of more than `batch_bytes` go in several requests.
    `transport` replaces the network (an httpx transport).

    Raises InputError on arguments that cannot be used. All calls raise ClientError or, before anything is sent,
    InputError.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 60,
        retries: int = 5,
        batch_bytes: int = BATCH_BYTES,
        transport: "httpx.BaseTransport | None" = None,
    ):
        self._core = _Core(address, api_key, timeout_s, retries, batch_bytes)
        self._http = httpx.Client(**self._core.options, transport=transport)
        self._sleep = time.sleep

    def translate(
        self,
        X: ArrayLike,
        source: str,
        target: str,
        *,
        stitcher: str | None = None,
        route: str = "direct",
        dtype: str = "float32",
    ) -> np.ndarray:
        """Rows of the space `source` as rows of the space `target`.

        X is (n, d_source) or one vector (d_source,), of finite floats; what comes back is (n, d_target) or (d_target,),
        float32. With dtype="float16" it is float16, and half as many bytes travel both ways. `stitcher` names one of
        several that serve the pair; route="auto" lets the service go over other spaces where that is better.

        All rows are translated by one version of one stitcher: where it was replaced between two parts of an array, the
        whole array is translated once more. Parts that the service finds too large (413) are halved.

        Raises InputError (ClientInputError, ClientNotFoundError, ClientConflictError where the service says so),
        UnauthorisedError, BusyError, ServiceError, UnreachableError.
        """
        return self.translate_full(X, source, target, stitcher=stitcher, route=route, dtype=dtype).vectors

    def translate_full(
        self,
        X: ArrayLike,
        source: str,
        target: str,
        *,
        stitcher: str | None = None,
        route: str = "direct",
        confidence: bool = False,
        dtype: str = "float32",
    ) -> Translation:
        """As `translate`, with the stitcher, its version and the route; with `confidence`, how far to trust each row.

        Confidence asked of a stitcher that was not calibrated is a ClientConflictError.
        """
        return self._run(self._core.translate(X, source, target, stitcher, route, confidence, dtype))

    def score(
        self, X: ArrayLike, Y: ArrayLike, source: str, target: str, *, stitcher: str | None = None
    ) -> dict[str, Any]:
        """The scores of a stitcher on pairs, in one request: X is (n, d_source), Y is (n, d_target), rows matched."""
        return self._run(self._core.score(X, Y, source, target, stitcher))

    def spaces(self) -> list[dict[str, Any]]:
        """The cards of the spaces served, each with the spaces it leads `to` and is reached `from`."""
        return self._run(self._core.listed("spaces"))

    def stitchers(self) -> list[dict[str, Any]]:
        """What is served: each stitcher's name, spaces, dimensions, version and scores."""
        return self._run(self._core.listed("stitchers"))

    def stitcher(self, name: str) -> dict[str, Any]:
        """All about one stitcher, its scorecard included. Raises ClientNotFoundError with the nearest names."""
        return self._run(self._core.stitcher(name))

    def ready(self) -> bool:
        """Whether the service can translate now, asked once; False also when nothing answers at the address."""
        return self._run(self._core.ready())

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._core.address!r})"

    def _run(self, steps: Steps[T]) -> T:
        """Do what the core's steps ask for, in order, until they return."""
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                return done.value
            if isinstance(step, _Pause):
                answer = self._sleep(step.seconds)
            elif isinstance(step, list):
                answer = [self._run(part) for part in step]
            else:
                try:
                    answer = self._http.request(**step._asdict())
                except httpx.RequestError as error:
                    answer = error


class AsyncClient:
    """`Client` for asyncio: the same arguments and methods, awaited. Use it in one event loop.

    Up to `concurrency` parts of one array are under way at once.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 60,
        retries: int = 5,
        batch_bytes: int = BATCH_BYTES,
        concurrency: int = 4,
        transport: "httpx.AsyncBaseTransport | None" = None,
    ):
        self._core = _Core(address, api_key, timeout_s, retries, batch_bytes)
        self._concurrency = _whole_number("concurrency", concurrency, 1)
        self._http = httpx.AsyncClient(**self._core.options, transport=transport)
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def translate(
        self,
        X: ArrayLike,
        source: str,
        target: str,
        *,
        stitcher: str | None = None,
        route: str = "direct",
        dtype: str = "float32",
    ) -> np.ndarray:
        """As `Client.translate`."""
        return (await self.translate_full(X, source, target, stitcher=stitcher, route=route, dtype=dtype)).vectors

    async def translate_full(
        self,
        X: ArrayLike,
        source: str,
        target: str,
        *,
        stitcher: str | None = None,
        route: str = "direct",
        confidence: bool = False,
        dtype: str = "float32",
    ) -> Translation:
        """As `Client.translate_full`."""
        return await self._run(self._core.translate(X, source, target, stitcher, route, confidence, dtype))

    async def score(
        self, X: ArrayLike, Y: ArrayLike, source: str, target: str, *, stitcher: str | None = None
    ) -> dict[str, Any]:
        """As `Client.score`."""
        return await self._run(self._core.score(X, Y, source, target, stitcher))

    async def spaces(self) -> list[dict[str, Any]]:
        """As `Client.spaces`."""
        return await self._run(self._core.listed("spaces"))

    async def stitchers(self) -> list[dict[str, Any]]:
        """As `Client.stitchers`."""
        return await self._run(self._core.listed("stitchers"))

    async def stitcher(self, name: str) -> dict[str, Any]:
        """As `Client.stitcher`."""
        return await self._run(self._core.stitcher(name))

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return await self._run(self._core.ready())

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._core.address!r})"

    async def _run(self, steps: Steps[T]) -> T:
        """As `Client._run`, with parts run beside one another."""
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                return done.value
            if isinstance(step, _Pause):
                answer = await self._sleep(step.seconds)
            elif isinstance(step, list):
                answer = await self._run_all(step)
            else:
                try:
                    answer = await self._http.request(**step._asdict())
                except httpx.RequestError as error:
                    answer = error

    async def _run_all(self, parts: list[Steps[T]]) -> list[T]:
        gate = asyncio.Semaphore(self._concurrency)

        async def run(part: Steps[T]) -> T:
            async with gate:
                return await self._run(part)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(part)) for part in parts]
        except ExceptionGroup as failed:
            first = failed.exceptions[0]
            raise first from first.__cause__
        return [task.result() for task in tasks]


# --- the core: what is sent, and what is made of the answers ----------------------------------------------------------


class _Request(NamedTuple):
    method: str
    url: str
    params: dict[str, str] | None = None
    headers: dict[str, str] | None = None
    content: bytes | None = None


class _Pause(NamedTuple):
    seconds: float


class _Core:
    """What both clients share. Its generators yield a `_Request` (answered by a response, or by the error that came in
    its place), a `_Pause`, or a list of generators to run (answered by what they return)."""

    def __init__(self, address: str, api_key: str | None, timeout_s: float, retries: int, batch_bytes: int):
        if httpx is None:
            raise InputError("`repstitch.client` needs httpx; install it with `pip install repstitch[serve]`.")
        self.address = _check_address(address)
        self.retries = _whole_number("retries", retries, 0)
        self.batch_bytes = _whole_number("batch_bytes", batch_bytes, 1)
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
            raise InputError(f"`timeout_s` must be a number of seconds above 0; got {timeout_s!r}.")
        # Vectors do not shrink by compression, so none is asked for.
        headers = {"Accept-Encoding": "identity", "User-Agent": "repstitch"} | _authorisation(api_key)
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
        _check_choice("dtype", dtype, DTYPES)
        _check_choice("route", route, ROUTES)
        _check_choice("confidence", confidence, (False, True))
        params = _names(source, target, stitcher)
        if route != "direct":
            params["route"] = route
        if confidence:
            params["confidence"] = "true"
        given = _as_floats("X", X)
        rows = given.reshape(1, -1) if given.ndim == 1 else given
        step = max(1, self.batch_bytes // (rows.shape[1] * DTYPES[dtype].itemsize))
        starts = range(0, len(rows), step)
        for start in starts:  # before anything is sent
            _check_finite("X", rows[start : start + step], dtype, start)
        most = step

        def send(start: int, stop: int) -> Steps[list[Translation]]:
            nonlocal most
            n = stop - start
            # A part that is as large as one that was too large would only be refused again.
            if n <= most:
                try:
                    reply = yield from self.exchange(_translate_request(rows[start:stop], params, dtype))
                    return [_read_translation(reply, n, route, confidence, dtype)]
                except ClientInputError as error:
                    if error.status != 413 or n == 1:
                        raise _counted_from(error, start) from None
                most = min(most, (n + 1) // 2)
            middle = start + n // 2
            return (yield from send(start, middle)) + (yield from send(middle, stop))

        for _ in range(2):
            parts = yield [send(start, min(start + step, len(rows))) for start in starts]
            replies = [reply for part in parts for reply in part]
            origins = {_origin(reply) for reply in replies}
            if len(origins) == 1:
                return _join(replies, given.ndim == 1)
        versions = ", ".join(sorted({f"{reply.stitcher} {reply.version}" for reply in replies}))
        raise ClientConflictError(
            f"The rows of `X` must all be translated by one stitcher; twice the service replaced it on the way (last: "
            f"{versions}). Translate again once it stays the same."
        )

    def score(
        self, X: ArrayLike, Y: ArrayLike, source: str, target: str, stitcher: str | None
    ) -> Steps[dict[str, Any]]:
        body: dict[str, Any] = _names(source, target, stitcher)
        rows = {}
        for name, field, values in (("X", "embedding", X), ("Y", "counterpart", Y)):
            rows[name] = _as_floats(name, values)
            if rows[name].ndim == 1:
                raise InputError(f"`{name}` must be rows (n, d) to be scored; got one vector.")
            _check_finite(name, rows[name], "float32", 0)
            body[field] = base64.b64encode(_to_bytes(rows[name], "float32")).decode()
        if len(rows["X"]) != len(rows["Y"]):
            raise InputError(f"`X` and `Y` must be matched row by row; got {len(rows['X'])} and {len(rows['Y'])} rows.")
        content = json.dumps(body).encode()
        reply = yield from self.exchange(_Request("POST", "/v1/score", None, {"Content-Type": JSON}, content))
        return _read_object(reply)

    def listed(self, what: str) -> Steps[list[dict[str, Any]]]:
        """The list that /v1/`what` holds under that name."""
        reply = yield from self.exchange(_Request("GET", f"/v1/{what}"))
        found = _read_object(reply).get(what)
        if not isinstance(found, list):
            raise _unfit(reply, f"there is no list of {what} in it")
        return found

    def stitcher(self, name: str) -> Steps[dict[str, Any]]:
        _check_name("name", name)
        reply = yield from self.exchange(_Request("GET", f"/v1/stitchers/{quote(name, safe='')}"))
        return _read_object(reply)

    def ready(self) -> Steps[bool]:
        try:
            reply = yield from self.exchange(_Request("GET", "/readyz"), retries=0)
            return _read_object(reply).get("status") == "ready"
        except (BusyError, UnreachableError):
            return False
        except ServiceError as error:
            # A proxy in front of a service that is not up yet says 502 or 504; a page of something else never mends.
            if error.status is None or error.status < 500:
                raise
            return False

    def exchange(self, request: _Request, retries: int | None = None) -> "Steps[httpx.Response]":
        """The response to a request, which must be 200; a busy service and a broken connection are tried again."""
        retries = self.retries if retries is None else retries
        for tried in range(retries + 1):
            reply = yield request
            broken = isinstance(reply, httpx.TransportError)
            busy = isinstance(reply, httpx.Response) and reply.status_code in BUSY
            if tried == retries or not (broken or busy):
                break
            yield _Pause(self.pause_s(tried, reply))
        if isinstance(reply, httpx.DecodingError):
            raise ServiceError(f"The body of the reply cannot be decoded; {one_line(reply)}") from reply
        if isinstance(reply, httpx.RequestError):
            reason = f"{type(reply).__name__}: {one_line(reply)}"
            raise UnreachableError(
                f"Nothing answered at {self.address} in {_times(retries + 1)} ({reason}). See that the service runs "
                "there, and that `address` is right."
            ) from reply
        if reply.status_code != 200:
            raise _error_of(reply)
        return reply

    def pause_s(self, tried: int, reply: "httpx.Response | httpx.RequestError") -> float:
        """Seconds before the next try: what the service asks for, and a random share of a time that doubles.

        The share keeps those who were turned away together from coming back together.
        """
        asked = _retry_after(reply.headers) if isinstance(reply, httpx.Response) else 0.0
        longest = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**tried)
        return min(MOST_PAUSE_S, asked + self.random.uniform(0, longest))


# --- what is given ----------------------------------------------------------------------------------------------------


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


def _authorisation(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not isinstance(api_key, str) or not api_key or not all("!" <= letter <= "~" for letter in api_key):
        raise InputError("`api_key` must be a key of visible ASCII characters without spaces, or None; got another.")
    return {"Authorization": f"Bearer {api_key}"}


def _whole_number(param: str, value: int, least: int) -> int:
    if type(value) is not int or value < least:
        raise InputError(f"`{param}` must be a whole number of at least {least}; got {value!r}.")
    return value


def _check_choice(param: str, value: Any, known: Any) -> None:
    if not isinstance(value, str | bool) or value not in known:
        raise InputError(f"`{param}` must be one of {', '.join(map(str, known))}; got {value!r}.")


def _check_name(param: str, value: str) -> None:
    check_name(param, value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"`{param}` must be a name that UTF-8 can write; got {value!r}.") from None


def _names(source: str, target: str, stitcher: str | None) -> dict[str, str]:
    names = {"source": source, "target": target} | ({} if stitcher is None else {"stitcher": stitcher})
    for param, value in names.items():
        _check_name(param, value)
    return names


def _as_floats(param: str, values: ArrayLike) -> np.ndarray:
    """What was given as an array (n, d) or (d,) of floats of any width, with at least one number."""
    rule = f"`{param}` must be rows (n, d) or one vector (d,) of floats"
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{rule}; {one_line(error)}") from None
    if array.dtype.kind != "f":
        raise InputError(f"{rule}; got {array.dtype}. Convert it, as by `np.asarray({param}, 'float32')`.")
    if array.ndim not in (1, 2):
        raise InputError(f"{rule}; got shape {array.shape}. Reshape it, or send one row after the other.")
    if not array.size:
        raise InputError(f"{rule}, at least one of at least one number; got shape {array.shape}. Leave the call out.")
    return array


def _check_finite(param: str, rows: np.ndarray, dtype: str, start: int) -> None:
    """Refuse rows that are not finite once they are of the dtype they travel in; `start` is the first one's number."""
    finite = np.isfinite(_cast(rows, dtype)).all(axis=1)
    if not finite.all():
        at = start + int(np.argmin(finite))
        wider = ' or send it with dtype="float32"' if dtype == "float16" else ""
        raise InputError(
            f"`{param}` must hold finite {dtype} numbers; row {at} holds NaN, Inf or a number too large for {dtype}. "
            f"Leave it out{wider}."
        )


def _cast(rows: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes Inf, which is refused as such
        return rows.astype(DTYPES[dtype], copy=False)


def _to_bytes(rows: np.ndarray, dtype: str) -> bytes:
    return _cast(rows, dtype).tobytes()


def _translate_request(rows: np.ndarray, params: dict[str, str], dtype: str) -> _Request:
    form = OCTETS if dtype == "float32" else f"{OCTETS}; dtype={dtype}"
    n, dim = rows.shape  # which bytes do not tell: two rows of 384 numbers are one of 768
    headers = {"Content-Type": form, "Accept": form, "X-Rows": str(n), "X-Dim": str(dim)}
    return _Request("POST", "/v1/translate", params, headers, _to_bytes(rows, dtype))


# --- what comes back --------------------------------------------------------------------------------------------------


def _read_translation(reply: "httpx.Response", n: int, route: str, confidence: bool, dtype: str) -> Translation:
    """The rows of one reply, (n, d_target); ServiceError unless its headers and its length say that they are these."""
    said = reply.headers
    form = _media_type(said.get("content-type", ""))
    if form != (OCTETS, dtype):
        raise _unfit(reply, f"it is {' of '.join(form)}, not {OCTETS} of {dtype}")
    if said.get("x-rows") != str(n):
        raise _unfit(reply, f"X-Rows must be {n}; got {_shown(said.get('x-rows'))}")
    dim = said.get("x-dim", "")
    if not (dim.isascii() and dim.isdigit() and len(dim) < 10 and int(dim)):
        raise _unfit(reply, f"X-Dim must be a whole number of at least 1; got {_shown(said.get('x-dim'))}")
    for header in ("x-stitcher", "x-stitcher-version", *(["x-route"] if route == "auto" else [])):
        if not said.get(header):
            raise _unfit(reply, f"{header.title()} is missing")
    measures = [name for name in said.get("x-confidence", "").split(",") if name]
    if bool(measures) != confidence:
        raise _unfit(reply, f"X-Confidence must{'' if confidence else ' not'} name measures; got {_shown(measures)}")
    d, columns = int(dim), int(dim) + len(measures)
    expected = n * columns * DTYPES[dtype].itemsize
    if len(reply.content) != expected:
        raise _unfit(reply, f"{n} rows of {columns} {dtype} numbers are {expected} bytes; got {len(reply.content)}")
    rows = np.frombuffer(reply.content, DTYPES[dtype]).reshape(n, columns)
    return Translation(
        rows[:, :d],
        {unquote(name): rows[:, d + i] for i, name in enumerate(measures)},
        unquote(said["x-stitcher"]),
        unquote(said["x-stitcher-version"]),
        tuple(unquote(space) for space in said["x-route"].split("->")) if route == "auto" else None,
        _number(said.get("x-expected-score")),
    )


def _origin(reply: Translation) -> tuple:
    """What all parts of one array must have in common."""
    measures = tuple(reply.confidence)
    return reply.vectors.shape[1], measures, reply.stitcher, reply.version, reply.route, reply.expected_score


def _join(replies: list[Translation], single: bool) -> Translation:
    """The parts of an array as one translation, in memory of its own; of one row, a vector."""
    vectors = np.concatenate([reply.vectors for reply in replies])
    names = replies[0].confidence
    confidence = {name: np.concatenate([reply.confidence[name] for reply in replies]) for name in names}
    native = vectors.dtype.newbyteorder("=")
    vectors = vectors.astype(native, copy=False)
    confidence = {name: values.astype(native, copy=False) for name, values in confidence.items()}
    if single:
        vectors = vectors[0]
        confidence = {name: values.reshape(()) for name, values in confidence.items()}
    return replace(replies[0], vectors=vectors, confidence=confidence)


def _read_object(reply: "httpx.Response") -> dict[str, Any]:
    form, _ = _media_type(reply.headers.get("content-type", ""))
    if form != JSON:
        raise _unfit(reply, f"it is {form}, not {JSON}")
    try:
        found = reply.json()
    except ValueError:
        raise _unfit(reply, "it is no JSON") from None
    if not isinstance(found, dict):
        raise _unfit(reply, "it is no JSON object")
    return found


def _media_type(content_type: str) -> tuple[str, str]:
    """What a Content-Type says: the format and the dtype, float32 where none is named."""
    form, *params = (piece.strip().lower() for piece in content_type[:200].split(";"))
    return form or "of no type", next((p[len("dtype=") :] for p in params if p.startswith("dtype=")), "float32")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _retry_after(headers: "httpx.Headers") -> float:
    """Seconds that a reply asks to wait, told as a number or as a date; 0 where it does not say so."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    # By the service's own clock where it is told, for ours may go wrong.
    now = _timestamp(headers.get("date", ""))
    then = _timestamp(text)
    return 0.0 if then is None else max(0.0, then - (time.time() if now is None else now))


def _timestamp(date: str) -> float | None:
    try:
        parsed = parsedate_tz(date)
        return None if parsed is None else mktime_tz(parsed)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _error_of(reply: "httpx.Response") -> ClientError:
    """The error that a reply other than 200 is, with the service's message where it is in the service's form."""
    status = reply.status_code
    kind = STATUSES.get(status, ClientInputError if 400 <= status < 500 else ServiceError)
    if reply.has_redirect_location:
        return kind(f"`address` must be the service's own; it answers {status} and points elsewhere.", status)
    try:
        error = _read_object(reply)["error"]
        message, code, param = (error.get(key) for key in ("message", "code", "param"))
        said = " ".join(message.split())[:MESSAGE_LENGTH]
    except (ServiceError, KeyError, AttributeError):
        return kind(f"The service answered {status} {reply.reason_phrase}, without saying why.", status)
    return kind(said, status, *(value if isinstance(value, str) else None for value in (code, param)))


def _counted_from(error: ClientInputError, start: int) -> ClientInputError:
    """The refusal of a part: its message counts rows from the part's first one."""
    if not start:
        return error
    return ClientInputError(f"{error} Rows are counted from row {start} of `X`.", error.status, error.code, error.param)


def _unfit(reply: "httpx.Response", why: str) -> ServiceError:
    message = f"The reply does not fit the request: {why}. See that `address` is a repstitch service of this version."
    return ServiceError(message, reply.status_code)


def _shown(said: Any) -> str:
    return str(said)[:100] if said else "none"


def _times(n: int) -> str:
    return "one try" if n == 1 else f"{n} tries"


BUSY = (429, 503)
STATUSES: dict[int, type[ClientError]] = {
    401: UnauthorisedError,
    403: UnauthorisedError,
    404: ClientNotFoundError,
    409: ClientConflictError,
    429: BusyError,
    503: BusyError,
}
