import httpx
import pytest
from helpers.fake_service import ADDRESS, AppTransport, Blocking
from helpers.serving import make_stitcher
from helpers.spaces import calibration

from repstitch.client import AsyncClient, Client
from repstitch.server.app import create_app
from repstitch.server.settings import Settings
from repstitch.stitchers.registry import Registry


@pytest.fixture(params=[Client, AsyncClient])
def kind(request):
    return request.param


@pytest.fixture
def connect(kind):
    """Connect either kind of client to a function that answers requests."""
    return lambda handler, address=ADDRESS, **options: Blocking(
        kind(address, transport=httpx.MockTransport(handler), **options)
    )


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Return a registry with one uncalibrated and one calibrated stitcher."""
    folder = tmp_path_factory.mktemp("stitchers")
    make_stitcher().save(folder / "old-to-new")
    make_stitcher("sure", calibration=calibration(6, pool=500)).save(folder / "sure-to-new")
    registry = Registry(folder)
    registry.refresh()
    return registry


@pytest.fixture
def to_app(kind, registry):
    """Connect either kind of client to the real application."""

    def to_app(client_options=None, **settings):
        app = create_app(registry, Settings(**settings))
        options = client_options or {}
        if kind is AsyncClient:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            return Blocking(AsyncClient(ADDRESS, transport=transport, **options))
        return Blocking(Client(ADDRESS, transport=AppTransport(app), **options))

    return to_app
