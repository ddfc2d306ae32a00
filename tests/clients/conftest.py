"""A running service with an API key, whose stitchers take vectors of `old` and texts of `words`."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from helpers.serving import free_port, make_stitcher, running, serve_command
from helpers.spaces import calibration, tiny_bert

from repstitch.encoders.encoder import load_encoder
from repstitch.stitchers.stitcher import Stitcher

KEY = "first-key"
TEXTS = ["the cat sat on the mat", "a dog", "b"]


class Running(NamedTuple):
    """A running service: its address, its stitchers, and the expected vectors of `TEXTS`."""

    address: str
    vectors: Stitcher
    texts: np.ndarray


@pytest.fixture(scope="session")
def service(tmp_path_factory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    encoder = load_encoder(str(tiny_bert(folder / "tiny-bert")), device="cpu")
    old = make_stitcher(calibration=calibration(6))
    words = replace(make_stitcher("words", "new", 16), source=replace(encoder.space, name="words"))
    old.save(folder / "stitchers" / "old-to-new")
    words.save(folder / "stitchers" / "words-to-new")
    port = free_port()
    env = {
        "REPSTITCH_API_KEYS": KEY,
        "REPSTITCH_ENCODERS": f"words={folder / 'tiny-bert'}",
        "REPSTITCH_DEVICE": "cpu",
    }
    with running(serve_command(folder / "stitchers", port), port, folder / "log", env=env):
        yield Running(f"http://127.0.0.1:{port}", old, words.translate(encoder.encode(TEXTS)))
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(autouse=True)
def without_telemetry(monkeypatch):
    """Keep the clients from calling anything but the service, and undo what they change when they are imported."""
    before, path = dict(os.environ), list(sys.path)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("ANONYMIZED_TELEMETRY", "False")
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    yield
    sys.path[:] = path
    for name in os.environ.keys() - before.keys():
        monkeypatch.delenv(name, raising=False)
