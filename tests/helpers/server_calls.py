"""Requests to the application in this process, and checks of the responses."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from repstitch.server.app import create_app
from repstitch.server.negotiation import OCTETS
from repstitch.server.responses import CODES, JSON
from repstitch.server.service import Service
from repstitch.server.settings import Settings
from repstitch.stitchers.registry import Registry
from repstitch.stitchers.stitcher import Stitcher

URL = "/v1/translate?source=old&target=new"
LOCAL = "http://127.0.0.1"  # without API keys, only requests to a loopback address are answered


def registry_of(folder: Path, **stitchers: Stitcher) -> Registry:
    """Save these stitchers to a folder and return its registry."""
    for name, stitcher in stitchers.items():
        stitcher.save(folder / name)
    registry = Registry(folder)
    registry.refresh()
    return registry


def client_of(registry: Registry, **settings) -> TestClient:
    """Return a client of the application in this process, without running its lifespan."""
    return TestClient(create_app(registry, Settings(**settings)), LOCAL, raise_server_exceptions=False)


def refused(response, status, message, param=None) -> dict:
    """Check that a response is an error with this status, message and parameter, and return its error object."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == JSON
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"code", "message", "param"}
    assert error["code"] == CODES[status]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert error["param"] == param
    return error


def post_rows(client, rows, url=URL, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(url, content=np.asarray(rows, "<f4").tobytes(), headers={"content-type": OCTETS} | headers)


def b64(rows) -> str:
    return base64.b64encode(np.asarray(rows, "<f4").tobytes()).decode()


def read_rows(response, dim=4) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.frombuffer(response.content, "<f4").reshape(-1, dim)


def service_of(client: TestClient) -> Service:
    """Return the service that a client calls."""
    app: Any = client.app
    return app.state.service
