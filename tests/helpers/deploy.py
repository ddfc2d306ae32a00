"""The deployment files of the service: their settings and their health checks."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import yaml

from helpers.serving import ROOT

DEPLOY = ROOT / "service" / "deploy"
COMPOSE = ("compose.yaml", "compose.gpu.yaml")
KUBERNETES = ("kubernetes.yaml", "kubernetes-gpu.yaml")
SIZES = {"64m": 64 * 2**20, "Mi": 2**20, "Gi": 2**30, "G": 2**30}  # Docker's G is 2**30 too


def load(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


def image_check() -> list[str]:
    """Return the command of the HEALTHCHECK in the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*\])$", text, flags=re.MULTILINE)
    return json.loads(line)


def compose_check() -> list[str]:
    kind, *command = load("compose.yaml")["services"]["repstitch"]["healthcheck"]["test"]
    assert kind == "CMD"
    return command


def run_check(command: list[str], port: int) -> bool:
    """Return whether a health check succeeds in an environment with a proxy and with the port in PORT."""
    python, *arguments = command
    assert python == "python"
    environ = {"PORT": str(port), "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, timeout=30).returncode == 0


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def by_kind(name: str, kind: str) -> dict:
    (only,) = [document for document in documents(name) if document["kind"] == kind]
    return only


def deployment(where: str) -> dict:
    return by_kind(where, "Deployment")


def pod(where: str) -> dict:
    return deployment(where)["spec"]["template"]["spec"]


def container(spec: dict) -> dict:
    (only,) = spec["template"]["spec"]["containers"]
    return only


def container_of(where: str) -> dict:
    return container(deployment(where)["spec"])


def environment(where: str) -> dict[str, str]:
    """Return the environment variables that a file sets to literal values."""
    if where in COMPOSE:
        variables = load(where)["services"]["repstitch"]["environment"]
        return {name: value for name, value in variables.items() if not value.startswith("${")}
    return {entry["name"]: entry["value"] for entry in container_of(where)["env"] if "value" in entry}


def limits(where: str) -> tuple[int, int]:
    """Return the limits on cores (0 if there is none) and on memory in bytes."""
    if where in COMPOSE:
        limit = load(where)["services"]["repstitch"]["deploy"]["resources"]["limits"]
        return int(limit.get("cpus", 0)), n_bytes(limit["memory"])
    limit = container_of(where)["resources"]["limits"]
    return int(limit["cpu"]), n_bytes(limit["memory"])


def n_bytes(size: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", size).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return int(number) * SIZES[unit]


@contextmanager
def answering(statuses: dict[str, int]):
    """Run a server on a free port that answers the paths in `statuses` with these statuses, and all others with 418."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(statuses.get(self.path, 418))
            self.end_headers()

        def log_message(self, format, *args):
            """Write nothing to stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
