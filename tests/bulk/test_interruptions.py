"""A job whose process is killed at any step goes on, and readers never see a part of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.worlds import WORLDS

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WORLDS))
def test_a_job_that_is_killed_at_every_step_goes_on(name, tmp_path):
    command = [sys.executable, "-m", "helpers.interrupting", str(tmp_path), name]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-5_000:]
    kills = dict(line.split(": ") for line in done.stdout.splitlines())
    assert sum(map(int, kills.values())) >= 10, kills
