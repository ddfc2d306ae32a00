"""Build the Starlette application with all routes."""

import asyncio
import gc
import logging
import os
import threading
import time
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from repstitch.errors import InputError
from repstitch.server.docs import show_docs
from repstitch.server.endpoint import CLIENT_LEFT, Endpoint
from repstitch.server.guards import Authentication
from repstitch.server.listing import list_spaces, list_stitchers, live, ready, show_metrics, show_stitcher
from repstitch.server.negotiation import ARROW, OCTETS
from repstitch.server.openai import EMBEDDINGS_PATHS, MODELS_PATHS, Embeddings, list_models, show_model
from repstitch.server.openapi import show_openapi
from repstitch.server.responses import Refusal, on_error
from repstitch.server.score import Score
from repstitch.server.service import Service
from repstitch.server.settings import Settings
from repstitch.server.telemetry import NO_ENCODING, NO_ROUTE, Metrics
from repstitch.server.translate import BYTES_PATH, Translate
from repstitch.stitchers.registry import Registry

LINGER_S = 0.5  # after the application has shut down, the server has this long to end the process by itself
EXPOSED = (
    "X-Rows",
    "X-Truncated",
    "X-Dim",
    "X-Stitcher",
    "X-Stitcher-Version",
    "X-Confidence",
    "X-Confidence-Usable",
    "X-Route",
    "X-Expected-Score",
)


def create_app(registry: Registry, settings: Settings, owns_process: bool = False) -> Starlette:
    """Return the application that serves one registry, which it reads at start and reloads at intervals.

    With `owns_process`, the process ends soon after the application has shut down, even if a thread still computes.
    """
    service = Service(registry, settings)
    guards = [
        Middleware(WithoutTrailingSlash),
        Middleware(RequestCounter, metrics=service.metrics),
        Middleware(Authentication, settings=settings, keys=service.keys),
    ]
    if settings.cors_origins:  # before authentication, so that browsers can read its 401 responses too
        cors = {"allow_origins": settings.cors_origins, "allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        guards.insert(2, Middleware(CORSMiddleware, expose_headers=EXPOSED, **cors))
    app = Starlette(
        routes=[
            Route("/v1/translate", Translate(service), methods=["POST"]),
            Route(BYTES_PATH, Translate(service, (OCTETS, ARROW)), methods=["POST"]),
            *(Route(path, Embeddings(service), methods=["POST"]) for path in EMBEDDINGS_PATHS),
            Route("/v1/score", Score(service), methods=["POST"]),
            Route("/v1/stitchers", list_stitchers),
            Route("/v1/stitchers/{name}", show_stitcher),
            Route("/v1/spaces", list_spaces),
            *(Route(path, list_models) for path in MODELS_PATHS),
            *(Route(f"{path}/{{model}}", show_model) for path in MODELS_PATHS),
            Route("/metrics", show_metrics),
            Route("/healthz", live),
            Route("/livez", live),
            Route("/readyz", ready),
            Route("/openapi.json", show_openapi),
            Route("/docs", show_docs),
            # Without this, a server that mounts this application would answer unknown paths in its own error format.
            Mount("", refuse_unknown),
        ],
        middleware=guards,
        exception_handlers=dict.fromkeys((Refusal, InputError, HTTPException, Exception), on_error),
        lifespan=lifespan,
    )
    app.state.service, app.state.owns_process = service, owns_process
    for route in app.routes:
        if isinstance(route, Route) and not isinstance(route.endpoint, Endpoint):
            service.metrics.begin(_label(route), "200")
    return app


class WithoutTrailingSlash:
    """Middleware that ignores a slash at the end of a path. Starlette would redirect, but not past the last route."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"][:-1]}
        await self.app(scope, receive, send)


class RequestCounter:
    """Middleware that counts the requests that no `Endpoint` counts: of GET routes, unknown paths and refused keys."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, began = CLIENT_LEFT, time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            if not isinstance(scope.get("endpoint"), Endpoint):
                seconds = time.perf_counter() - began
                self.metrics.count_request(_label(scope.get("route")), None, NO_ENCODING, status, seconds)


def _label(route: object) -> str:
    """Return the label of a route in the metrics: its path without `/v1/`."""
    return route.path.removeprefix("/v1").strip("/") if isinstance(route, Route) else NO_ROUTE


@asynccontextmanager
async def lifespan(app: Starlette):
    """Read the registry's folder before the first request, and reload it at intervals while the application runs."""
    service: Service = app.state.service
    if service.settings.workers > 1:
        import torch

        torch.set_num_threads(1)  # parallelism comes from the worker processes
    await service.reload()
    # The objects created so far live as long as the process. They are frozen, because each garbage collection that
    # visits them blocks all requests, for 0.1 s under BentoML.
    gc.collect()
    gc.freeze()
    watching = asyncio.create_task(service.watch())
    # A daemon, because the process must not wait for a download when it stops.
    threading.Thread(target=service.texts.load, name="encoders", daemon=True).start()
    yield
    gc.unfreeze()
    watching.cancel()
    service.text_queue.close()
    if app.state.owns_process:
        threading.Thread(target=_end_process, name="end", daemon=True).start()


def _end_process() -> None:
    """End the process after `LINGER_S` seconds, without waiting for threads whose requests have ended."""
    time.sleep(LINGER_S)
    logging.shutdown()
    os._exit(0)


async def refuse_unknown(scope: Scope, receive: Receive, send: Send) -> None:
    """Raise 405 if the path exists with another method, else 404."""
    for route in scope["app"].routes:
        if isinstance(route, Route) and route.matches(scope)[0] is Match.PARTIAL:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(route.methods or ()))})
    raise HTTPException(404)
