import pytest
from server_calls import client_of
from serving import make_stitcher

from repstitch.registry import Registry


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
