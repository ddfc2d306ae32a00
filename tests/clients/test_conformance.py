"""Tools that check services from outside: schemathesis the OpenAPI document, and promtool the metrics."""

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.clients

KEY = "first-key"
CONFIG = Path(__file__).with_name("schemathesis.toml")
PHASES = "examples,coverage,fuzzing,stateful"


@pytest.mark.slow
@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Bearer {KEY}"}, {"api-key": KEY}])
def test_schemathesis_finds_nothing(service, headers, tmp_path):
    options = ["--phases", PHASES, "--checks", "all", "--max-examples", "300", "--seed", "1", "--no-color"]
    for name, value in headers.items():
        options += ["-H", f"{name}: {value}"]
    command = ["schemathesis", "--config-file", str(CONFIG), "run", f"{service.address}/openapi.json", *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Failures" not in run.stdout, run.stdout


def test_promtool_accepts_the_metrics(service):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("requires promtool, which Debian's package `prometheus` contains")
    metrics = httpx.get(f"{service.address}/metrics", headers={"x-api-key": KEY}).text
    run = subprocess.run([promtool, "check", "metrics"], input=metrics, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")
