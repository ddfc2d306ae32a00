"""The benchmark of a GPU, at small sizes on the CPU: every section comes to its end, and all results are exact."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
sys.path.append(str(SCRIPT.parent))

from gpu import SECTIONS, TITLES  # noqa: E402 - it lies with the benchmarks


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_every_section_runs_on_the_cpu(tmp_path):
    done = run("--device", "cpu", "--budget", "60", "--out", tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Not measured on a GPU" in text
    sections = text.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == [TITLES[name] for name in SECTIONS]
    for section in sections:
        assert "**" not in section, section  # how a section that was stopped, ended early or is inexact says so
        assert "No rows." not in section, section
        assert section.count("\n| ") > 1, section


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--budget", "0"], "--budget must be a number of seconds above 0"),
        (["--only", "everything"], "invalid choice: 'everything'"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
