"""The BentoML service: it mounts the application of `repstitch.server.app` and adds no routes."""

import logging
import os

import bentoml
from bentoml._internal.server.http import traffic
from bentoml._internal.utils.analytics import usage_stats
from circus.sighandler import SysHandler

from repstitch.server.app import create_app
from repstitch.server.protocol import install
from repstitch.server.responses import Refusal
from repstitch.server.run import hang_up_as_terminate
from repstitch.server.settings import Settings, warn_of_unknown
from repstitch.stitchers.registry import Registry

# BentoML reports usage data unless this variable is set. It reads the variable once and caches the value before it
# imports a service, so the cache is cleared.
os.environ["BENTOML_DO_NOT_TRACK"] = os.environ.get("BENTOML_DO_NOT_TRACK") or "True"
usage_stats.do_not_track.cache_clear()

logging.getLogger("repstitch").setLevel(logging.INFO)  # BentoML logs only warnings of other packages
settings = Settings.from_env()
install(settings)
hang_up_as_terminate()
SysHandler.handle_hup = SysHandler.handle_term  # the same for the process that starts the workers
# BentoML's timer keeps every request in memory until `timeout` has passed. The application has a time limit of its own.
setattr(traffic, "TimeoutMiddleware", lambda app, timeout: app)  # noqa: B010 - another type, on purpose
warn_of_unknown()
registry = Registry(settings.stitchers)
app = create_app(registry, settings)
if not (settings.requires_key or settings.open):
    logging.getLogger(__name__).warning(
        "No API keys are set (REPSTITCH_API_KEYS), so only requests to a loopback address are answered."
    )


@bentoml.asgi_app(app, path="/")
@bentoml.service(
    name="repstitch",
    workers=settings.workers,
    # Above the application's own limits, so that those apply first: their errors have the format of the API, while
    # BentoML's errors have another. Its `timeout` must be a number, but has no effect (see above). BentoML counts
    # requests from their first byte, so slow clients would use up a lower limit.
    traffic={"timeout": settings.timeout_s + 30, "max_concurrency": 1_000_000},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": "v1/"},
    # The container installs the packages before it copies the other files, so `build_include` copies constraints.txt,
    # which UV_CONSTRAINT names, earlier. With a distro that BentoML does not know, it runs no apt-get, so the image has
    # no package lists, compiler or git: everything that is installed comes as a wheel.
    image=bentoml.images.Image(
        "python:3.11-slim", distro="none", python_version="3.11", lock_python_packages=False
    ).build_include("constraints.txt"),
)
class Translator:
    """Translates embeddings between the spaces of a folder of stitchers."""

    async def __is_ready__(self) -> bool:
        try:
            app.state.service.check_ready()
        except Refusal:
            return False
        return True
