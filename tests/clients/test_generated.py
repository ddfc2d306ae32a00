"""Clients generated from the OpenAPI document compile, and every call returns what the service answers."""

import importlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from helpers.serving import make_rows

from repstitch.server.openapi import document

pytestmark = pytest.mark.clients

KEY = "first-key"
PYTHON_CLIENT = "openapi-python-client==0.29.1"
GENERATOR = "openapi-generator-cli==7.26.0"


def generate(folder: Path, package: str, command: list[str]) -> None:
    """Write the document to a folder, run a generator there, and compile the code."""
    (folder / "openapi.json").write_text(json.dumps(document()), encoding="utf-8")
    run = subprocess.run(["uv", "tool", "run", "--from", *command], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    subprocess.run([sys.executable, "-m", "compileall", "-q", package], cwd=folder, check=True)


@pytest.fixture
def imported(monkeypatch):
    """Return a function that imports modules from a folder; they are forgotten after the test."""
    before = set(sys.modules)

    def load(folder: Path, *names: str) -> list[Any]:
        monkeypatch.syspath_prepend(folder)
        return [importlib.import_module(name) for name in names]

    yield load
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("by_python_client", "by_generator"):
            del sys.modules[name]


@pytest.fixture
def plain(service):
    """Return a function that sends a request by hand and returns the JSON of the response."""

    def ask(method: str, path: str, **body: Any) -> Any:
        response = httpx.request(method, service.address + path, headers={"x-api-key": KEY}, json=body or None)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


READS = {
    "list_stitchers": "/v1/stitchers",
    "list_spaces": "/v1/spaces",
    "list_models": "/v1/models",
    "list_azure_models": "/openai/v1/models",
    "list_deployment_models": "/openai/models",
    "healthz": "/healthz",
    "livez": "/livez",
    "readyz": "/readyz",
    "openapi": "/openapi.json",
}
SHOWS = {
    "show_stitcher": ("/v1/stitchers", "old-to-new"),
    "show_model": ("/v1/models", "old->new"),
    "show_azure_model": ("/openai/v1/models", "old->new"),
    "show_deployment_model": ("/openai/models", "old->new"),
}
EMBEDDINGS = {"embeddings": "Embeddings", "azure_embeddings": "Embeddings"}
PAIR = {"source": "old", "target": "new"}
ROWS = make_rows(60)


def test_every_operation_is_called_below():
    operations = {each["operationId"] for path in document()["paths"].values() for each in path.values()}
    called = {*READS, *SHOWS, *EMBEDDINGS, "deployment_embeddings", "translate", "translate_bytes", "score"}
    assert operations == called | {"metrics", "docs"}


@pytest.mark.slow
def test_openapi_python_client(service, plain, imported, tmp_path):
    command = [PYTHON_CLIENT, "openapi-python-client", "generate", "--path", "openapi.json", "--meta", "none"]
    generate(tmp_path, "by_python_client", [*command, "--output-path", "by_python_client"])
    client_module, models, types = imported(
        tmp_path, "by_python_client.client", "by_python_client.models", "by_python_client.types"
    )
    client = client_module.AuthenticatedClient(service.address, token=KEY)

    def call(operation: str, **arguments: Any) -> Any:
        (module,) = imported(tmp_path, f"by_python_client.api.default.{operation}")
        response = module.sync_detailed(client=client, **arguments)
        assert response.status_code == 200, response.content
        return response

    for operation, path in READS.items():
        assert call(operation).parsed.to_dict() == plain("GET", path)
    for operation, (path, name) in SHOWS.items():
        param = "name" if operation == "show_stitcher" else "model"
        assert call(operation, **{param: name}).parsed.to_dict() == plain("GET", f"{path}/{name}")
    assert b"repstitch_requests_total" in call("metrics").content
    assert call("docs").parsed.startswith("<!doctype html>")

    for vectors in (ROWS.tolist(), ROWS[0].tolist()):
        for confidence in (types.UNSET, None, True):
            sent = {"embedding": vectors, **PAIR} | ({"confidence": True} if confidence else {})
            body = models.Translate(vectors, **PAIR, confidence=confidence)
            assert call("translate", body=body).parsed.to_dict() == plain("POST", "/v1/translate", **sent)
        expected = plain("POST", "/v1/embeddings", model="old->new", input=vectors)
        for operation, kind in EMBEDDINGS.items():
            body = getattr(models, kind)(model="old->new", input_=vectors)
            assert call(operation, body=body).parsed.to_dict() == expected
        body = models.DeploymentEmbeddings(input_=vectors)
        assert call("deployment_embeddings", model="old->new", body=body).parsed.to_dict() == expected

    file = types.File(io.BytesIO(ROWS.tobytes()))
    answer = call("translate_bytes", body=file, **PAIR)
    vectors = np.frombuffer(answer.parsed.payload.read(), "<f4").reshape(-1, 4)
    assert np.allclose(vectors, service.vectors.translate(ROWS), atol=1e-6)
    file = types.File(io.BytesIO(ROWS.tobytes()))
    answer = call("translate_bytes", body=file, confidence=True, **PAIR)
    n_measures = len(answer.headers["x-confidence"].split(","))
    assert len(answer.content) == ROWS.nbytes // 6 * (4 + n_measures)

    pairs = {"embedding": ROWS.tolist(), "counterpart": service.vectors.translate(ROWS).tolist(), **PAIR}
    assert call("score", body=models.Score(**pairs)).parsed.to_dict() == plain("POST", "/v1/score", **pairs)


@pytest.mark.slow
def test_openapi_generator(service, plain, imported, tmp_path):
    if shutil.which("java") is None:
        pytest.skip("requires Java")
    command = [GENERATOR, "openapi-generator-cli", "generate", "-i", "openapi.json", "-g", "python", "-o", "."]
    generate(tmp_path, "by_generator", [*command, "--package-name", "by_generator"])
    (package,) = imported(tmp_path, "by_generator")
    configuration = package.Configuration(host=service.address, access_token=KEY)
    api = package.DefaultApi(package.ApiClient(configuration))

    def parsed(answer: Any) -> Any:
        """Return an answer as JSON. Its classes write null for a field that may be null and was not sent."""
        if not hasattr(answer, "to_json"):
            return answer
        return {name: value for name, value in json.loads(answer.to_json()).items() if value is not None}

    for operation, path in READS.items():
        assert parsed(getattr(api, operation)()) == plain("GET", path)
    for operation, (path, name) in SHOWS.items():
        assert parsed(getattr(api, operation)(name)) == plain("GET", f"{path}/{name}")
    assert "repstitch_requests_total" in api.metrics()
    assert api.docs().startswith("<!doctype html>")

    for vectors in (ROWS.tolist(), ROWS[0].tolist()):
        for confidence in (None, True):
            sent = {"embedding": vectors, **PAIR} | ({"confidence": True} if confidence else {})
            body = package.Translate(embedding=package.TranslateEmbedding(vectors), **PAIR, confidence=confidence)
            assert parsed(api.translate(body)) == plain("POST", "/v1/translate", **sent)
        expected = plain("POST", "/v1/embeddings", model="old->new", input=vectors)
        for operation, kind in EMBEDDINGS.items():
            body = getattr(package, kind)(model="old->new", input=package.EmbeddingsInput(vectors))
            assert parsed(getattr(api, operation)(body)) == expected
        body = package.DeploymentEmbeddings(input=package.EmbeddingsInput(vectors))
        assert parsed(api.deployment_embeddings("old->new", body)) == expected

    answer = api.translate_bytes(body=ROWS.tobytes(), **PAIR)
    vectors = np.frombuffer(bytes(answer), "<f4").reshape(-1, 4)
    assert np.allclose(vectors, service.vectors.translate(ROWS), atol=1e-6)
    answer = api.translate_bytes_with_http_info(body=ROWS.tobytes(), confidence=True, **PAIR)
    n_measures = len(answer.headers["x-confidence"].split(","))
    assert len(answer.data) == ROWS.nbytes // 6 * (4 + n_measures)

    pairs = {"embedding": ROWS.tolist(), "counterpart": service.vectors.translate(ROWS).tolist(), **PAIR}
    body = package.Score(
        embedding=package.TranslateEmbedding(pairs["embedding"]),
        counterpart=package.ScoreCounterpart(pairs["counterpart"]),
        **PAIR,
    )
    assert parsed(api.score(body)) == plain("POST", "/v1/score", **pairs)
