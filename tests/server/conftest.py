import pytest
from helpers.server_calls import client_of, registry_of
from helpers.serving import free_port, make_stitcher, running, serve_command
from helpers.spaces import calibration


@pytest.fixture
def folder(tmp_path):
    make_stitcher().save(tmp_path / "old-to-new")
    return tmp_path


@pytest.fixture
def registry(folder):
    return registry_of(folder)


@pytest.fixture
def client(registry):
    return client_of(registry)


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """Start a service with one calibrated stitcher, for all tests that do not change it; yield its port and log."""
    folder = tmp_path_factory.mktemp("service")
    make_stitcher(calibration=calibration(6)).save(folder / "stitchers" / "old-to-new")
    port, log = free_port(), folder / "log"
    with running(serve_command(folder / "stitchers", port), port, log):
        yield port, log
    assert "Traceback" not in log.read_text()
