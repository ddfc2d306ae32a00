"""The files that deploy the service, and the health checks that they state."""

import json
import re
import subprocess
import sys

import yaml

from helpers.serving import ROOT

DEPLOY = ROOT / "service" / "deploy"


def load(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


def image_check() -> list[str]:
    """The command of the image's HEALTHCHECK."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*\])$", text, flags=re.MULTILINE)
    return json.loads(line)


def compose_check() -> list[str]:
    kind, *command = load("compose.yaml")["services"]["repstitch"]["healthcheck"]["test"]
    assert kind == "CMD"
    return command


def run_check(command: list[str], port: int) -> bool:
    """Whether a health check says yes, in a container where a proxy is set and PORT names the port."""
    python, *arguments = command
    assert python == "python"
    environ = {"PORT": str(port), "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, timeout=30).returncode == 0
