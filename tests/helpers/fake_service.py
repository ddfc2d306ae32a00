"""A fake service as a function, with chosen faults, and a wrapper that calls both kinds of client in the same way."""

import asyncio
import inspect
import random
from urllib.parse import quote

import httpx
import numpy as np

from repstitch.client import AsyncClient, Client
from repstitch.client.responses import OCTETS

ADDRESS = "http://127.0.0.1:3000"
W = np.array([[1, 0, 2], [0, 1, 0], [1, 1, 0], [0, 0, 1], [2, 0, 0], [0, 3, 1]], np.float32)
MEASURES = {"p_match@500": 0, "shared": 1}  # the column of the row whose values are returned for each measure


class FakeService:
    """Translates rows with the matrix W as the HTTP API does. Each of `faults` replaces one response."""

    def __init__(self, max_rows=10**9, versions=(), faults=(), **headers):
        self.max_rows, self.versions, self.faults = max_rows, list(versions), list(faults)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.requests: list[httpx.Request] = []
        self.rows: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            return unsent(fault)
        media_type = request.headers["content-type"]
        assert request.headers["accept"] == media_type
        dtype = "<f2" if media_type == f"{OCTETS}; dtype=float16" else "<f4"
        rows = np.frombuffer(request.content, dtype).reshape(-1, len(W)).astype(np.float32)
        self.rows.append(len(rows))
        if len(rows) > self.max_rows:
            return problem(413, f"A request may contain at most {self.max_rows} rows; got {len(rows)}.", "embedding")
        params = request.url.params
        headers = {
            "content-type": media_type,
            "x-rows": str(len(rows)),
            "x-dim": "3",
            "x-stitcher": quote(params.get("stitcher", "old-to-new")),
            "x-stitcher-version": self.versions.pop(0) if self.versions else "v1",
        }
        columns = [rows @ W]
        if params.get("confidence") == "true":
            headers["x-confidence"] = ",".join(MEASURES)
            columns += [rows[:, [column]] for column in MEASURES.values()]
        if params.get("route") == "auto":
            headers |= {"x-route": "old->m%C3%AF%2Dd->new", "x-expected-score": "0.5"}
        headers |= self.headers
        headers = {name: value for name, value in headers.items() if value}
        return httpx.Response(200, headers=headers, content=np.hstack(columns).astype(dtype).tobytes())


class Blocking:
    """Calls the methods of either kind of client without await. It records pauses instead of sleeping."""

    def __init__(self, client: Client | AsyncClient):
        self.client, self.pauses = client, []
        client._core.random = random.Random(0)

        async def sleep(seconds):
            self.pauses.append(seconds)

        if isinstance(client, AsyncClient):
            client._sleep = sleep
        else:
            client._sleep = self.pauses.append

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*args, **options):
            result = method(*args, **options)
            return asyncio.run(result) if inspect.iscoroutine(result) else result

        return call


class AppTransport(httpx.BaseTransport):
    """A transport that connects the blocking client to an ASGI application."""

    def __init__(self, app):
        self.inner = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request):
        async def answer():
            response = await self.inner.handle_async_request(request)
            assert isinstance(response.stream, httpx.AsyncByteStream)
            return httpx.Response(
                response.status_code,
                headers=response.headers,
                content=b"".join([part async for part in response.stream]),
            )

        return asyncio.run(answer())


def unsent(reply: httpx.Response) -> httpx.Response:
    """Return a copy of a response, because a response that was sent can be read by one kind of client only."""
    return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)


def problem(status, message="It is so.", param=None, code="word", **headers) -> httpx.Response:
    error = {"error": {"code": code, "message": message, "param": param}}
    return httpx.Response(status, json=error, headers={n.replace("_", "-"): v for n, v in headers.items()})


def json_reply(content: str | bytes, status=200) -> httpx.Response:
    return httpx.Response(status, content=content, headers={"content-type": "application/json"})


def rows_of(n=3, dim=6) -> np.ndarray:
    """Return rows of whole numbers, so that float16 values and sums in any order are exact."""
    return np.random.default_rng(n).integers(-4, 5, (n, dim)).astype(np.float32)


def with_value(value, at, dtype: type = np.float32):
    """Return ones (6, 6) with `value` in row `at`."""
    X = np.ones((6, 6), dtype)
    X[at, 2] = value
    return X
