"""Stitchers to serve and a service in a separate process, for the tests of the server and of the deployment."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch

from repstitch.evaluation.scorecard import Scorecard
from repstitch.spaces import Space
from repstitch.stitchers.confidence import Calibration
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.stitcher import Stitcher

ROOT = Path(__file__).parents[2]


def make_stitcher(
    source="old",
    target="new",
    d_source=6,
    d_target=4,
    seed=0,
    input_norm="unit",
    scorecard: Scorecard | None = None,
    calibration: Calibration | None = None,
) -> Stitcher:
    """Return a stitcher with a random, untrained affine map."""
    generator = torch.Generator().manual_seed(seed)
    return Stitcher(
        map=AffineMap(
            torch.randn(d_source, d_target, generator=generator) / d_source**0.5,
            torch.randn(d_target, generator=generator) / 10,
        ),
        source=Space(source, d_source),
        target=Space(target, d_target),
        method="ridge",
        objective="match",
        input_norm=input_norm,
        output_norm="unit",
        source_mean=np.zeros(d_source, np.float32),
        target_mean=np.zeros(d_target, np.float32),
        seen=np.arange(3),
        scorecard=scorecard or Scorecard(),
        calibration=calibration,
    )


def make_rows(n=3, dim=6, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def get(url: str, **options) -> httpx.Response:
    """Send GET on a new connection, without loading certificates, which takes httpx 0.1 s per call."""
    return httpx.get(url, verify=False, **options)


def post(url: str, **options) -> httpx.Response:
    """Send POST like `get`."""
    return httpx.post(url, verify=False, **options)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def eventually(check: Callable[[], object], patience_s: float = 20, pause_s: float = 0.05) -> None:
    """Wait until `check` returns a true value; fail after `patience_s` seconds."""
    deadline = time.monotonic() + patience_s
    while not check():
        assert time.monotonic() < deadline, f"the condition was not met within {patience_s} s"
        time.sleep(pause_s)


def wait_until_ready(process: subprocess.Popen, port: int, log: Path, patience_s: float = 60) -> None:
    def ready() -> bool:
        assert process.poll() is None, f"the service ended with {process.returncode}:\n{log.read_text()}"
        try:
            return get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(ready, patience_s, 0.1)
    except AssertionError as error:
        raise AssertionError(f"the service was not ready: {error}\n{log.read_text()}") from None


@contextmanager
def running(
    command: list[str],
    port: int,
    log: Path,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    ready: Callable[[subprocess.Popen, int, Path], object] = wait_until_ready,
):
    """Run a service in a separate process, yield when it is ready, and stop it by SIGTERM at the end of the block."""
    environ = os.environ | (env or {})
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` makes processes ignore it
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    signal.signal(signal.SIGHUP, hang_up)
    try:
        ready(process, port, log)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def serve_command(folder: Path, port: int, workers: int = 1, engine: str = "uvicorn") -> list[str]:
    """Return a command that starts the service from Python, as `repstitch serve` does."""
    call = f"serve({str(folder)!r}, port={port}, workers={workers}, engine={engine!r})"
    return [sys.executable, "-c", f"from repstitch.server.run import serve\nif __name__ == '__main__': {call}"]
