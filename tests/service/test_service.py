import ast
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.serving import ROOT, eventually, make_rows, make_stitcher
from starlette.testclient import TestClient

URL = "/v1/translate?source=old&target=new"
HEADERS = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="session")
def service(stitchers, tmp_path_factory):
    from _bentoml_impl.loader import load

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BENTOML_DO_NOT_TRACK", raising=False)
        on_hang_up = signal.getsignal(signal.SIGHUP)
        yield load("service.service:Translator", working_dir=str(ROOT))
        signal.signal(signal.SIGHUP, on_hang_up)


@pytest.fixture(scope="session")
def client(service):
    # Once per session, because building the application registers BentoML's metrics in the process.
    with TestClient(service.to_asgi(), "http://127.0.0.1", raise_server_exceptions=False) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        yield client


def test_the_mounted_application_translates(client):
    rows = make_rows(3)
    response = client.post(URL, content=rows.tobytes(), headers=HEADERS)
    assert np.allclose(
        np.frombuffer(response.content, "<f4").reshape(-1, 4), make_stitcher().translate(rows), atol=1e-6
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs.json", 404),
        ("GET", "/nothing/here", 404),
        ("GET", "/v1/translate", 405),
        ("POST", "/livez", 405),
        ("POST", URL, 415),
    ],
)
def test_errors_have_the_format_of_the_application_and_not_of_bentoml(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message", "param"}


def test_a_pickle_is_refused_and_not_loaded(client):
    response = client.post(URL, content=b"cos\nsystem\n.", headers={"content-type": "application/vnd.bentoml+pickle"})
    assert response.status_code == 415


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/readyz"])
def test_health_is_answered(client, path):
    assert client.get(path).status_code == 200


def test_a_service_with_nothing_loaded_is_not_ready(client, service, monkeypatch):
    from repstitch.stitchers.registry import State

    registry = sys.modules["service.service"].registry
    monkeypatch.setattr(registry, "state", State())
    assert client.get("/readyz").status_code == 503


def test_bentoml_does_not_report_usage(service):
    from bentoml._internal.utils.analytics import usage_stats

    assert usage_stats.do_not_track()


def test_the_limits_of_bentoml_are_above_those_of_the_application(service):
    settings = sys.modules["service.service"].settings
    assert service.config["traffic"]["timeout"] > settings.timeout_s
    assert service.config["traffic"]["max_concurrency"] > settings.max_concurrency


# --- packages of the bento --------------------------------------------------------------------------------------------


def bentofile() -> dict:
    return yaml.safe_load((ROOT / "bentofile.yaml").read_text())


def test_the_bento_installs_every_package_that_serving_imports():
    """The import name of each of these packages is also its package name."""
    service = ROOT / "service" / "service.py"
    modules = [module for module in imported_modules(service) if module.startswith("repstitch.")]
    listing = (
        f"import sys, {', '.join(modules)}; "  # without bentoml: the bento adds it, and it is slow to import
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'repstitch' "
        "and getattr(m, '__file__', None)), sep='\\n')"
    )
    run = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    needed = set()
    for file in (service, *map(Path, run.stdout.split())):
        needed |= {module.split(".")[0] for module in imported_modules(file)} - sys.stdlib_module_names
    needed -= {"repstitch", "bentoml", "circus"}  # the bento contains repstitch and adds bentoml, which needs circus
    assert {"torch", "starlette", "orjson"} <= needed
    assert needed <= set(bentofile()["python"]["packages"])


def imported_modules(path: Path) -> set[str]:
    """Return the modules that a file imports at the top level; in wire and server, also those imported in functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if path.parent.name in ("wire", "server") else tree.body
    modules = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules


def test_every_package_of_the_bento_is_a_dependency_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["serve"], *extras["encoders"]]
    names = {requirement.split(">")[0].split(";")[0].strip() for requirement in declared}
    assert set(bentofile()["python"]["packages"]) <= names


def test_every_package_of_the_bento_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {plain(line.split("==")[0]) for line in lines if "==" in line}
    assert {plain(name) for name in [*bentofile()["python"]["packages"], "bentoml"]} <= pinned


def plain(package: str) -> str:
    return package.strip().lower().replace("-", "_")
