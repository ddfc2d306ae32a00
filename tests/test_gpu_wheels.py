import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Packages that the other machine already has or does not need.
LEFT_OUT = {"torch", "torchvision", "lightning", "timm", "transformers", "huggingface_hub", "pyarrow", "scipy", "numpy"}
LEFT_OUT |= {"safetensors", "tqdm", "pillow", "triton", "typing_extensions", "PyYAML", "Jinja2", "click", "uv"}
CARRIED = {"bentoml", "starlette", "uvicorn", "uvloop", "httptools", "orjson", "prometheus_client", "httpx", "pytest"}
CARRIED |= {"opentelemetry-sdk", "cattrs", "pydantic", "pydantic_core", "iniconfig", "pluggy"}


@pytest.fixture
def checkout(tmp_path):
    """Return a checkout with the script; its .venv is the environment that runs the tests."""
    for name in ("benchmarks/gpu_wheels.sh", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    return tmp_path


def collect(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script without access to a package index."""
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    command = ["bash", "benchmarks/gpu_wheels.sh", *arguments]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)


def listed(checkout: Path, *arguments: str) -> dict[str, str]:
    run = collect(checkout, "--list", *arguments)
    assert (run.returncode, run.stderr) == (0, "")
    return dict(line.split("==") for line in run.stdout.splitlines())


def assert_refused(run: subprocess.CompletedProcess[str], reason: str, status: int = 2) -> None:
    assert (run.returncode, run.stdout) == (status, "")
    assert len(run.stderr.splitlines()) == 1
    assert reason in run.stderr


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_the_list_contains_the_pinned_packages_that_only_the_service_and_the_tests_need(checkout, version):
    carried = listed(checkout, version)
    assert set(carried) >= CARRIED
    assert not set(carried) & LEFT_OUT
    assert not [name for name in carried if name.startswith(("nvidia-cu", "cuda"))]
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert {f"{name}=={number}" for name, number in carried.items()} <= set(pinned)


def test_the_list_is_for_python_3_12_by_default_and_nothing_is_downloaded(checkout):
    assert listed(checkout) == listed(checkout, "3.12")
    assert [path.name for path in (checkout / "benchmarks").iterdir()] == ["gpu_wheels.sh"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["3.10"], "PYTHON_VERSION must be 3.11 or 3.12; got '3.10'."),
        ([""], "PYTHON_VERSION must be 3.11 or 3.12; got ''."),
        (["--help"], "usage: "),
        (["3.12", "--list"], "usage: "),
        (["3.12", ""], "usage: "),
        (["3.12", "wheels", "more"], "usage: "),
    ],
)
def test_bad_arguments_are_refused(checkout, arguments, reason):
    assert_refused(collect(checkout, *arguments), reason)


def test_without_an_environment_the_message_says_what_to_run(checkout):
    (checkout / ".venv").unlink()
    assert_refused(collect(checkout), "run 'make .venv/.ready' first")


def test_a_package_without_a_pinned_version_is_named(checkout):
    pins = checkout / "constraints.txt"
    pins.write_text("".join(line for line in pins.read_text().splitlines(True) if not line.startswith("orjson==")))
    assert_refused(collect(checkout, "--list"), "constraints.txt gives no version of orjson.", status=1)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub/some.whl"])
def test_a_folder_with_files_other_than_wheels_is_not_replaced(checkout, name):
    path = checkout / "wheels" / name
    path.parent.mkdir(parents=True)
    path.touch()
    assert_refused(collect(checkout, "3.12", "wheels"), "is not a folder of nothing but wheels")
    assert path.exists()


def test_a_file_or_link_in_place_of_the_folder_is_not_replaced(checkout):
    (checkout / "file").touch()
    (checkout / "link").symlink_to(checkout / "benchmarks", target_is_directory=True)
    for name in ("file", "link"):
        assert_refused(collect(checkout, "3.12", name), "is not a folder of nothing but wheels")
    assert (checkout / "file").exists()
    assert (checkout / "link").is_symlink()


def test_a_failed_download_is_reported_in_one_line_and_keeps_the_folder_unchanged(checkout):
    old = checkout / "wheels" / "old-1.0-py3-none-any.whl"
    old.parent.mkdir()
    old.touch()
    assert_refused(collect(checkout, "3.12", "wheels"), "cannot be had for Python 3.12", status=1)
    assert [path.name for path in checkout.glob("wheels*")] == ["wheels"]
    assert old.exists()
