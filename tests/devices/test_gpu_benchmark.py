"""The GPU benchmark at small sizes on the CPU: every section finishes, and all results are exact."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"

paths = list(sys.path)
sys.path.insert(0, str(SCRIPT.parent))
gpu: Any = import_module("gpu")
gpu_right: Any = import_module("gpu_right")
gpu_run: Any = import_module("gpu_run")
sys.path[:] = paths


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
    assert [section.splitlines()[0] for section in sections] == [gpu.TITLES[name] for name in gpu.SECTIONS]
    for section in sections:
        assert "**" not in section, section  # marks a section that was stopped, ended early or is inexact
        assert "No rows." not in section, section
        assert section.count("\n| ") > 1, section


@pytest.mark.parametrize("name", gpu.SECTIONS)
def test_only_an_inexact_result_fails_the_command(name, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "run_section", lambda section, *_: (f"{section}\n", section != name))
    monkeypatch.setattr(gpu, "service_path", lambda _: ("", ""))
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--only", *gpu.SECTIONS])
    assert gpu.main() == (name == "right")
    assert f"\n{name}\n" in capsys.readouterr().out


def test_a_difference_above_its_tolerance_marks_the_run(tmp_path):
    run = gpu_run.Run("cpu", 60, 60, tmp_path / "rows.jsonl", tmp_path / "ceilings.json")
    checks = gpu_right.Checks(run, run.table("checks", "what", "difference", "tolerance", "ok"))
    checks.near("near enough", lambda: 1e-6, 1e-5)
    checks.near("too far", lambda: 1e-4, 1e-5)
    checks.near("not a number", lambda: float("nan"), 1e-5)
    checks.near("an error", lambda: 1 / 0, 1e-5)
    lines = gpu.read_lines(tmp_path / "rows.jsonl")
    assert [line["inexact"] for line in lines if "inexact" in line] == ["too far", "not a number", "an error"]
    assert "ZeroDivisionError: division by zero" in gpu.rendered(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--budget", "0"], "--budget must be a number of seconds above 0"),
        (["--only", "everything"], "invalid choice: 'everything'"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
