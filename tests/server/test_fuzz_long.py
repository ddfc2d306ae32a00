"""The fuzz tests with many more cases than in the quick run."""

import os
import subprocess
import sys

import pytest
from helpers.serving import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("path", ["tests/wire/test_fuzz_wire.py", "tests/server/test_fuzz_http.py"])
def test_many_cases_pass(path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", path]
    many = subprocess.run(command, cwd=ROOT, env=env | {"REPSTITCH_FUZZ_CASES": "500"}, capture_output=True, text=True)
    assert many.returncode == 0, many.stdout[-5000:]
