import pytest
from helpers.server_calls import client_of
from helpers.serving import free_port, make_stitcher, running, serve_command

from repstitch.stitchers.registry import Registry


@pytest.fixture
def folder(tmp_path):
    make_stitcher().save(tmp_path / "old-to-new")
    return tmp_path


@pytest.fixture
def registry(folder):
    registry = Registry(folder)
    registry.refresh()
    return registry


@pytest.fixture
def client(registry):
    return client_of(registry)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A running service, one for the tests of a module that leave it as it was: its port and its log."""
    folder = tmp_path_factory.mktemp("service")
    make_stitcher().save(folder / "stitchers" / "old-to-new")
    port, log = free_port(), folder / "log"
    with running(serve_command(folder / "stitchers", port), port, log):
        yield port, log
    assert "Traceback" not in log.read_text()
