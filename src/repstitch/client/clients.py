# pyright: strict
"""The two clients, one blocking and one for asyncio, over the same core."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from repstitch.client.arguments import check_whole_number
from repstitch.client.core import BATCH_BYTES, Core, Pause, Steps, httpx
from repstitch.client.responses import JsonObject, Translation

T = TypeVar("T")


class Client:
    """A service at `address`, such as "http://127.0.0.1:3000"; threads may share it.

    `api_key` is sent as a Bearer token, to this address only: redirects are not followed. `timeout_s` limits the time
    to connect, and to send or receive each chunk of a request or a reply. After 429, 503 or a broken connection a
    request is sent again up to `retries` times, after random pauses whose limit doubles from 0.25 s, or as long as the
    service asks for (at most 30 s). Arrays of more than `batch_bytes` are sent in several requests. `transport` (an
    httpx transport) replaces the network.

    Raises InputError on invalid arguments. All calls raise ClientError or, before anything is sent, InputError.
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
        """Rows of the space `source` as rows of the space `target`.

        X is (n, d_source) or one vector (d_source,), of finite floats; the result is (n, d_target) or (d_target,),
        float32. With dtype="float16" it is float16, and half as many bytes are sent both ways. `stitcher` names one of
        several stitchers of the pair; route="auto" allows a route over other spaces where no stitcher leads straight.

        All rows are translated by one version of one stitcher: where it was replaced between two requests, the whole
        array is translated once more. Requests that the service finds too large (413) are halved.

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
        """As `translate`, with the stitcher, its version and the route; with `confidence` also measures of each row.

        Raises ClientConflictError where `confidence` is set and the stitcher is not calibrated.
        """
        return self._run(self._core.translate(X, source, target, stitcher, route, confidence, dtype))

    def score(self, X: ArrayLike, Y: ArrayLike, source: str, target: str, *, stitcher: str | None = None) -> JsonObject:
        """The scores of a stitcher on pairs, in one request: X is (n, d_source), Y is (n, d_target), rows matched."""
        return self._run(self._core.score(X, Y, source, target, stitcher))

    def spaces(self) -> list[JsonObject]:
        """The cards of all spaces, each with the spaces that stitchers lead `to` and come `from`."""
        return self._run(self._core.listed("spaces"))

    def stitchers(self) -> list[JsonObject]:
        """All stitchers: name, spaces, dimensions, version and scores of each."""
        return self._run(self._core.listed("stitchers"))

    def stitcher(self, name: str) -> JsonObject:
        """One stitcher with its scorecard. Raises ClientNotFoundError with the nearest names."""
        return self._run(self._core.stitcher(name))

    def ready(self) -> bool:
        """Whether the service can translate now, asked once; False also when nothing answers at the address."""
        return self._run(self._core.ready())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._core.address!r})"

    def _run(self, steps: Steps[T]) -> T:
        """Carry out the steps of a call until it returns."""
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
                try:
                    answer = self._http.request(**step._asdict())
                except httpx.RequestError as error:
                    answer = error


class AsyncClient:
    """`Client` for asyncio: the same arguments and methods, awaited. Use it in one event loop.

    Up to `concurrency` requests of one array are in flight at once.
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
    ) -> JsonObject:
        """As `Client.score`."""
        return await self._run(self._core.score(X, Y, source, target, stitcher))

    async def spaces(self) -> list[JsonObject]:
        """As `Client.spaces`."""
        return await self._run(self._core.listed("spaces"))

    async def stitchers(self) -> list[JsonObject]:
        """As `Client.stitchers`."""
        return await self._run(self._core.listed("stitchers"))

    async def stitcher(self, name: str) -> JsonObject:
        """As `Client.stitcher`."""
        return await self._run(self._core.stitcher(name))

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return await self._run(self._core.ready())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._core.address!r})"

    async def _run(self, steps: Steps[T]) -> T:
        """As `Client._run`, with parts run concurrently."""
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
