# pyright: strict
"""The blocking client and the asyncio client. Both share one core."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from repstitch.client.arguments import check_whole_number
from repstitch.client.core import BATCH_BYTES, Core, Pause, Steps, httpx
from repstitch.client.receiving import receive, receive_async
from repstitch.client.responses import JsonObject, Translation

T = TypeVar("T")


class Client:
    """Client of a repstitch service. Threads may share it. Use it in a `with` block, or call `close` at the end.

    A request is retried if the service is busy (429 or 503) or the connection fails. Before each retry the client waits
    for the time that the service requests (Retry-After) plus a random time, at most 30 s together. The limit of the
    random time starts at 0.25 s and doubles with each retry.

    A failed call raises a subclass of ClientError: ClientInputError if the service rejects the request,
    ClientNotFoundError (404), ClientConflictError (409), UnauthorisedError (401, 403), BusyError if it is busy at every
    attempt, ServiceError if it fails or its response is invalid, UnreachableError if there is no response.

    Args:
        address: URL of the service, such as "http://127.0.0.1:3000".
        api_key: API key, sent as a Bearer token. It is sent to this address only, since redirects are not followed.
        timeout_s: Timeout in seconds to connect, and to send or receive each chunk of a request or response. After this
            time, a response must also come at 1 KiB/s or more.
        retries: Maximum number of retries of one request.
        batch_bytes: Maximum size of the vectors in one request, in bytes. Larger arrays are sent in several requests.
        transport: An httpx transport that replaces the network.

    Raises:
        InputError: If an argument is invalid, or httpx is not installed.
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
        self._core = Core(address, api_key, timeout_s, retries, batch_bytes)
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
        """Translate rows from the space `source` to the space `target`.

        All rows are translated by one version of one stitcher. If the service replaces the stitcher between two
        requests, the whole array is translated once more. Requests that the service rejects as too large (413) are
        split in half.

        Args:
            X: Rows (n, d_source) or one vector (d_source,) of finite floats.
            source: Name of the space of `X`.
            target: Name of the space to translate to.
            stitcher: Name of the stitcher. By default the service uses the promoted one, or else the one created first.
            route: "direct", or "auto" to allow a route through other spaces if no stitcher connects the two directly.
            dtype: "float32", or "float16", which halves the bytes that are sent and received.

        Returns:
            The translated rows (n, d_target), or one vector (d_target,), in `dtype`.

        Raises:
            InputError: If an argument is invalid. Nothing is sent then.
            ClientError: If the call fails; the class docstring lists the subclasses.
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
        """Translate rows, and return also the stitcher, its version, the route and, on request, confidence measures.

        Args:
            X: Rows (n, d_source) or one vector (d_source,) of finite floats.
            source: Name of the space of `X`.
            target: Name of the space to translate to.
            stitcher: Name of the stitcher, as in `translate`.
            route: "direct" or "auto", as in `translate`.
            confidence: Whether to return the confidence measures of each row.
            dtype: "float32" or "float16", as in `translate`.

        Returns:
            The translated rows, with the attributes described in `Translation`.

        Raises:
            InputError: If an argument is invalid. Nothing is sent then.
            ClientConflictError: If `confidence` is set and the stitcher has no calibration.
            ClientError: If the call fails for another reason.
        """
        return self._run(self._core.translate(X, source, target, stitcher, route, confidence, dtype))

    def score(self, X: ArrayLike, Y: ArrayLike, source: str, target: str, *, stitcher: str | None = None) -> JsonObject:
        """Score a stitcher on pairs. All pairs are sent in one request; those it was trained on are left out.

        Args:
            X: Rows (n, d_source) of finite floats.
            Y: Rows (n, d_target) of finite floats; row i is the counterpart of row i of `X`.
            source: Name of the space of `X`.
            target: Name of the space of `Y`.
            stitcher: Name of the stitcher, as in `translate`.

        Returns:
            The response as a dict. The scorecard is under the key `scorecard`.

        Raises:
            InputError: If an argument is invalid. Nothing is sent then.
            ClientError: If the call fails.
        """
        return self._run(self._core.score(X, Y, source, target, stitcher))

    def spaces(self) -> list[JsonObject]:
        """List the spaces of the service.

        Returns:
            The card of each space. Three keys are added: `to` and `from`, the names of the spaces that stitchers
            translate it to and from, and `takes_texts`, whether the service can embed texts in it.

        Raises:
            ClientError: If the call fails.
        """
        return self._run(self._core.listed("spaces"))

    def stitchers(self) -> list[JsonObject]:
        """List the stitchers of the service.

        Returns:
            One dict per stitcher, with its name, spaces, dimensions, version and scores.

        Raises:
            ClientError: If the call fails.
        """
        return self._run(self._core.listed("stitchers"))

    def stitcher(self, name: str) -> JsonObject:
        """Describe one stitcher.

        Args:
            name: Name of the stitcher.

        Returns:
            The dict that `stitchers` returns for it, with its settings, split, scorecard and the cards of both spaces.

        Raises:
            InputError: If `name` is not a valid name. Nothing is sent then.
            ClientNotFoundError: If there is no such stitcher. The message lists the nearest names.
            ClientError: If the call fails for another reason.
        """
        return self._run(self._core.stitcher(name))

    def ready(self) -> bool:
        """Check whether the service can translate now. The request is not retried.

        Returns:
            True if it can; False if it cannot, or if nothing answers at the address.

        Raises:
            ClientError: If something other than a repstitch service answers at the address.
        """
        return self._run(self._core.ready())

    def close(self) -> None:
        """Close the connections of the client."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._core.address!r})"

    def _run(self, steps: Steps[T]) -> T:
        """Run the steps of a call until it returns."""
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                return done.value
            if isinstance(step, Pause):
                answer = self._sleep(step.seconds)
            elif isinstance(step, list):
                answer = [self._run(part) for part in step]
            else:
                answer = receive(self._http, step)


class AsyncClient:
    """Client of a repstitch service for asyncio. It has the methods of `Client`, as coroutines.

    Use it in one event loop only, in an `async with` block, or await `close` at the end. Retries and errors are as for
    `Client`.

    Args:
        address: URL of the service, as in `Client`.
        api_key: API key, as in `Client`.
        timeout_s: Timeout in seconds, as in `Client`.
        retries: Maximum number of retries of one request.
        batch_bytes: Maximum size of the vectors in one request, in bytes. Larger arrays are sent in several requests.
        concurrency: Maximum number of requests of one array that are sent concurrently.
        transport: An httpx transport that replaces the network.

    Raises:
        InputError: If an argument is invalid, or httpx is not installed.
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
        self._core = Core(address, api_key, timeout_s, retries, batch_bytes)
        self._concurrency = check_whole_number("concurrency", concurrency, 1)
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
        """Translate rows from the space `source` to the space `target`; see `Client.translate` for details.

        Args:
            X: Rows (n, d_source) or one vector (d_source,) of finite floats.
            source: Name of the space of `X`.
            target: Name of the space to translate to.
            stitcher: Name of the stitcher.
            route: "direct" or "auto".
            dtype: "float32" or "float16".

        Returns:
            The translated rows (n, d_target), or one vector (d_target,), in `dtype`.

        Raises:
            InputError: If an argument is invalid. Nothing is sent then.
            ClientError: If the call fails.
        """
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
        """Translate rows, and return also the stitcher, its version, the route and, on request, confidence measures.

        Args:
            X: Rows (n, d_source) or one vector (d_source,) of finite floats.
            source: Name of the space of `X`.
            target: Name of the space to translate to.
            stitcher: Name of the stitcher.
            route: "direct" or "auto".
            confidence: Whether to return the confidence measures of each row.
            dtype: "float32" or "float16".

        Returns:
            The translated rows, with the attributes described in `Translation`.

        Raises:
            InputError: If an argument is invalid. Nothing is sent then.
            ClientError: If the call fails.
        """
        return await self._run(self._core.translate(X, source, target, stitcher, route, confidence, dtype))

    async def score(
        self, X: ArrayLike, Y: ArrayLike, source: str, target: str, *, stitcher: str | None = None
    ) -> JsonObject:
        """Score a stitcher on pairs. All pairs are sent in one request; those it was trained on are left out.

        Args:
            X: Rows (n, d_source) of finite floats.
            Y: Rows (n, d_target) of finite floats; row i is the counterpart of row i of `X`.
            source: Name of the space of `X`.
            target: Name of the space of `Y`.
            stitcher: Name of the stitcher.

        Returns:
            The response as a dict. The scorecard is under the key `scorecard`.

        Raises:
            InputError: If an argument is invalid. Nothing is sent then.
            ClientError: If the call fails.
        """
        return await self._run(self._core.score(X, Y, source, target, stitcher))

    async def spaces(self) -> list[JsonObject]:
        """List the spaces of the service; see `Client.spaces` for the keys of each."""
        return await self._run(self._core.listed("spaces"))

    async def stitchers(self) -> list[JsonObject]:
        """List the stitchers of the service; see `Client.stitchers` for the keys of each."""
        return await self._run(self._core.listed("stitchers"))

    async def stitcher(self, name: str) -> JsonObject:
        """Describe one stitcher.

        Args:
            name: Name of the stitcher.

        Returns:
            The same dict as `Client.stitcher`.

        Raises:
            InputError: If `name` is not a valid name. Nothing is sent then.
            ClientNotFoundError: If there is no such stitcher. The message lists the nearest names.
            ClientError: If the call fails for another reason.
        """
        return await self._run(self._core.stitcher(name))

    async def ready(self) -> bool:
        """Check whether the service can translate now; see `Client.ready`. The request is not retried."""
        return await self._run(self._core.ready())

    async def close(self) -> None:
        """Close the connections of the client."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._core.address!r})"

    async def _run(self, steps: Steps[T]) -> T:
        """Run the steps of a call until it returns. The generators of a list run concurrently."""
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                return done.value
            if isinstance(step, Pause):
                answer = await self._sleep(step.seconds)
            elif isinstance(step, list):
                answer = await self._run_all(step)
            else:
                answer = await receive_async(self._http, step)

    async def _run_all(self, parts: list[Steps[T]]) -> list[T]:
        """Run the parts of a call, at most `concurrency` at once. Raise the first error, not an ExceptionGroup."""
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
