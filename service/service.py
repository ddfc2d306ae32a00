"""The BentoML service: the application of `repstitch.server.app`, mounted whole. It adds no routes."""

import logging
import os

import bentoml
from bentoml._internal.utils.analytics import usage_stats

from repstitch.server.app import create_app
from repstitch.server.protocol import install
from repstitch.server.settings import Settings
from repstitch.stitchers.registry import Registry

# BentoML reports usage unless told not to, and has asked once before it imports a service.
os.environ["BENTOML_DO_NOT_TRACK"] = os.environ.get("BENTOML_DO_NOT_TRACK") or "True"
usage_stats.do_not_track.cache_clear()

install()
settings = Settings.from_env()
registry = Registry(settings.stitchers)
app = create_app(registry, settings)
if not (settings.api_keys or settings.open):
    logging.getLogger(__name__).warning(
        "No keys are set (REPSTITCH_API_KEYS), so only requests to a loopback address will be answered."
    )


@bentoml.asgi_app(app, path="/")
@bentoml.service(
    name="repstitch",
    workers=settings.workers,
    # Above the application's own limits, which answer in its form; BentoML's answer in another.
    traffic={
        "timeout": settings.timeout_s + 30,
        "max_concurrency": 1_000_000,  # it counts requests from their first byte, so slow clients would fill it
    },
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": "v1/"},
    # The container installs packages before it copies the rest, and UV_CONSTRAINT must be there by then. A distro that
    # BentoML does not know keeps apt out, with its lists, a compiler and git: all that is installed comes as a wheel.
    image=bentoml.images.Image(
        "python:3.11-slim", distro="none", python_version="3.11", lock_python_packages=False
    ).build_include("constraints.txt"),
)
class Translator:
    """Translates embeddings between the spaces of a folder of stitchers."""

    async def __is_ready__(self) -> bool:
        return bool(registry.state.stitchers)
