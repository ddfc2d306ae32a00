"""Run the fuzz tests with many more cases than the quick run."""

import os
import subprocess
import sys

import pytest
from helpers.serving import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("path", ["wire/test_fuzz_wire.py", "server/test_fuzz_http.py", "server/test_fuzz_folders.py"])
def test_the_fuzz_tests_pass_with_many_cases(path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"tests/{path}"]
    result = subprocess.run(
        command, cwd=ROOT, env=env | {"REPSTITCH_FUZZ_CASES": "500"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-5000:]
