import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from helpers.deploy import compose_check, image_check, run_check
from helpers.serving import ROOT, free_port, get, make_rows, make_stitcher, post, running

from repstitch.files import written_whole

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Copy the files that the bento is built from, with one stitcher in the project's stitchers folder."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("src", "service", "models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("bentofile.yaml", "README.md", "constraints.txt", "Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "service" / "deploy" / "metrics.key").write_text("a key that must not be carried along")
    shutil.rmtree(folder / "models" / "stitchers")
    make_stitcher().save(folder / "models" / "stitchers" / "old-to-new")
    with written_whole(folder / "models" / "stitchers" / "half") as unfinished:  # as a killed run would leave it
        unfinished.mkdir()
        shutil.copytree(unfinished.parent, folder / "left")
    shutil.rmtree(folder / "models" / "stitchers" / "half")
    (folder / "left" / "half" / "config.json").write_text("{}")
    os.rename(folder / "left", unfinished.parent)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="module")
def bento(checkout, home):
    """Build a bento from the checkout without a package index; return its folder."""
    environ = os.environ | {"BENTOML_HOME": str(home), "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    environ.pop("BENTOML_DO_NOT_TRACK", None)
    command = [sys.executable, "-m", "bentoml", "build", "--do-not-track", "--output", "tag"]
    built = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    name, version = built.stdout.strip().splitlines()[-1].removeprefix("__tag__:").split(":")
    return home / "bentos" / name / version


def test_the_bento_contains_the_package_the_service_and_the_stitchers(bento):
    for path in ("repstitch/server/app.py", "service/service.py", "models/stitchers/old-to-new/model.safetensors"):
        assert (bento / "src" / path).is_file()
    stitchers = bento / "src" / "models" / "stitchers"
    assert [path.name for path in stitchers.iterdir() if path.is_dir()] == ["old-to-new"]
    assert not list((bento / "src").rglob("tests"))
    assert not list(bento.rglob("*.key"))
    assert not (bento / "src" / "service" / "deploy").exists()


def test_the_dockerfile_runs_without_root_and_without_telemetry(bento):
    text = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert "FROM python:3.11-slim" in text
    assert "ARG BENTO_USER_UID=1034" in text  # kubernetes.yaml uses the same id
    assert text.index("USER bentoml") < text.index("ENTRYPOINT [")
    assert text.rindex("USER") == text.index("USER bentoml")
    assert "ENV BENTOML_DO_NOT_TRACK=$BENTOML_DO_NOT_TRACK" in text
    assert "ARG BENTOML_DO_NOT_TRACK=True" in text


def test_the_dockerfile_pins_the_packages_that_it_installs(bento):
    text = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert "ARG UV_CONSTRAINT=/home/bentoml/bento/src/constraints.txt" in text
    assert text.index("COPY --chown=bentoml:bentoml ./src/constraints.txt") < text.index("pip install -r")
    requirements = (bento / "env" / "python" / "requirements.txt").read_text().split()
    assert {"torch", "starlette", "uvloop", "httptools"} <= set(requirements)
    assert not [line for line in requirements if "://" in line or line.startswith("-")]


def test_the_dockerfile_leaves_no_cache_and_no_compiler(bento):
    text = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert text.index("ENV PIP_NO_CACHE_DIR=$PIP_NO_CACHE_DIR") < text.index("pip install")
    assert "ARG PIP_NO_CACHE_DIR=1" in text
    for tool in ("apt-get", "build-essential", "git"):
        assert tool not in text


ENGINE = """#!/bin/sh
echo "$*" >> "$CALLS/calls"
case "$1 $*" in
    version*) echo '"27.0.0"' ;;
    *" -") cat > "$CALLS/second" ;;
    *) cp "$5" "$CALLS/first" ;;
esac
"""


def test_make_image_builds_the_image_of_the_bento_and_then_adds_the_health_check(checkout, home, tmp_path):
    """Without a container engine: a fake `docker` records its calls and the Dockerfiles that it is passed."""
    (tmp_path / "docker").write_text(ENGINE)
    (tmp_path / "docker").chmod(0o755)
    environ = {"BENTOML_HOME": str(home), "UV_OFFLINE": "1", "CALLS": str(tmp_path)}
    environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    command = ["make", "image", "SETUP=", f"BIN={Path(sys.executable).parent}"]
    made = subprocess.run(command, cwd=checkout, env=os.environ | environ, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if not line.startswith("version")]
    assert calls[0].startswith("build --tag repstitch-bento:latest --file ")
    assert calls[1:] == ["build --build-arg BENTO=repstitch-bento:latest -t repstitch:latest -"]
    first = (tmp_path / "first").read_text()
    assert "HEALTHCHECK" not in first  # if BentoML ever writes one, the second Dockerfile is not needed
    assert "--mount=type=cache,sharing=locked,target=/root/.cache/" in first
    assert "ARG PIP_NO_CACHE_DIR=1" in first
    assert "apt-get" not in first
    assert (tmp_path / "second").read_text() == (ROOT / "service" / "deploy" / "Dockerfile").read_text()


@pytest.fixture
def as_deployed(bento, tmp_path):
    """Return the container's start command, its environment by compose.yaml, its home, and its writable folder."""
    folder, user, free = tmp_path / "models", tmp_path / "home", tmp_path / "tmp"
    make_stitcher().save(folder / "old-to-new")
    user.mkdir()
    free.mkdir()
    environ = yaml.safe_load((ROOT / "service" / "deploy" / "compose.yaml").read_text())["services"]["repstitch"][
        "environment"
    ]
    environ |= {"REPSTITCH_API_KEYS": "key", "REPSTITCH_STITCHERS": str(folder), "BENTOML_HOME": f"{free}/bentoml"}
    environ |= {"HOME": str(user), "TMPDIR": str(free), "BENTOML_CONTAINERIZED": "true", "BENTO_PATH": str(bento)}
    environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return ["bash", str(bento / "env" / "docker" / "entrypoint.sh")], environ, user, free


def test_a_container_writes_only_to_its_tmp(bento, as_deployed, tmp_path):
    command, environ, user, free = as_deployed
    port, before = free_port(), set(bento.rglob("*"))
    with running(command, port, tmp_path / "log", cwd=bento, env=environ | {"PORT": str(port)}) as process:
        url, key = f"http://127.0.0.1:{port}", {"authorization": "Bearer key"}
        body = {"embedding": make_rows(1)[0].tolist(), "source": "old", "target": "new"}
        assert post(f"{url}/v1/translate", json=body).status_code == 401
        assert post(f"{url}/v1/translate", json=body, headers=key).status_code == 200
        assert "repstitch_stitchers_loaded" in get(f"{url}/metrics", headers=key).text
        assert run_check(image_check(), port)
        assert run_check(compose_check(), port)
        assert list((free / "bentoml" / "prometheus_multiproc_dir").iterdir())
    assert process.returncode == 0
    assert list(user.iterdir()) == []
    assert set(bento.rglob("*")) == before


def test_a_container_exits_when_its_worker_dies_so_that_it_is_restarted(bento, as_deployed, tmp_path):
    command, environ, _, _ = as_deployed
    port = free_port()
    with running(command, port, tmp_path / "log", cwd=bento, env=environ | {"PORT": str(port)}) as process:
        for worker in workers_of(process.pid):
            worker.kill()
        assert process.wait(30) != 0


@pytest.mark.parametrize("served", ["its src folder", "the bento"])
def test_the_bento_serves_from_its_own_folder(bento, home, tmp_path, served):
    port, log, rows = free_port(), tmp_path / "log", make_rows(3)
    own = served == "its src folder"
    cwd, target = (bento / "src", ".") if own else (tmp_path, str(bento))
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    environ = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "", "__BENTOML_DEBUG_USAGE": "True"}
    if own:
        other = tmp_path / "stitchers"
        make_stitcher(seed=7).save(other / "seventh")
        environ["REPSTITCH_STITCHERS"] = str(other)
    else:
        environ["REPSTITCH_STITCHERS"] = ""  # then it serves the stitchers that the bento contains
    expected = make_stitcher(seed=7 if own else 0).translate(rows)
    url = f"http://127.0.0.1:{port}/v1/translate?source=old&target=new"
    with running(command, port, log, cwd=cwd, env=environ) as process:
        response = post(url, content=rows.tobytes(), headers={"content-type": "application/octet-stream"})
        assert response.headers["x-stitcher"] == ("seventh" if own else "old-to-new")
        assert np.allclose(np.frombuffer(response.content, "<f4").reshape(-1, 4), expected, atol=1e-6)
        answer = post(url, json={"embedding": rows[0].tolist()}).json()
        assert np.allclose(answer["embedding"], expected[0], atol=1e-6)
        pickled = post(url, content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"})
        assert pickled.status_code == 415
        assert package_of_workers(process.pid) == {bento / "src" / "repstitch"}
    assert process.returncode == 0
    assert "Tracking Payload" not in log.read_text()


def test_repstitch_serve_starts_the_same_service_under_bentoml(checkout, tmp_path):
    port, rows = free_port(), make_rows(2)
    call = f"serve('models/stitchers', port={port}, engine='bentoml')"
    command = [sys.executable, "-c", f"from repstitch.server.run import serve; {call}"]
    log = tmp_path / "log"
    with running(command, port, log, cwd=checkout) as process:
        url = f"http://127.0.0.1:{port}/v1/translate?source=old&target=new"
        response = post(url, content=rows.tobytes(), headers={"content-type": "application/octet-stream"})
        translated = np.frombuffer(response.content, "<f4").reshape(-1, 4)
        assert np.allclose(translated, make_stitcher().translate(rows), atol=1e-6)
    assert process.returncode == 0
    assert f"repstitch: http://127.0.0.1:{port} serves old-to-new (old -> new)" in log.read_text()


def package_of_workers(pid: int) -> set[Path]:
    """Return where the worker processes import the package from: their working folder precedes installed packages."""
    return {find_package(Path(worker.cwd())) for worker in workers_of(pid)}


def workers_of(pid: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(pid).children(recursive=True) if "_bentoml_impl.worker.service" in p.cmdline()]


def find_package(cwd: Path) -> Path:
    code = "import importlib.util as u; print(*u.find_spec('repstitch').submodule_search_locations)"
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    return Path(result.stdout.strip())
