"""The OpenAPI document is valid and agrees with the application, called in this process."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.server_calls import client_of, registry_of
from helpers.serving import make_rows, make_stitcher
from starlette.routing import Route

from repstitch.evaluation.scorecard import Scorecard
from repstitch.names import USES, VERDICTS
from repstitch.server.app import create_app
from repstitch.server.negotiation import ARROW
from repstitch.server.openapi import ERRORS, document
from repstitch.server.responses import CODES, JSON
from repstitch.server.settings import Settings
from repstitch.spaces import SPACE_KEY

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return registry_of(tmp_path_factory.mktemp("stitchers"), **{"old-to-new": make_stitcher()})


@pytest.fixture(scope="module")
def client(registry):
    return client_of(registry)


def test_the_document_is_valid_openapi_3_1():
    from openapi_spec_validator import OpenAPIV31SpecValidator

    OpenAPIV31SpecValidator(document()).validate()  # pyright: ignore[reportArgumentType]


def test_the_document_lists_exactly_the_routes_of_the_application(registry):
    app = create_app(registry, Settings())
    routes = {(r.path, m) for r in app.routes if isinstance(r, Route) for m in (r.methods or ()) if m != "HEAD"}
    assert routes == {(path, method.upper()) for path, methods in document()["paths"].items() for method in methods}


def test_every_error_is_described():
    assert set(CODES) == set(ERRORS)
    described = document()["components"]
    assert set(described["responses"]) == {str(status) for status in CODES}
    codes = described["schemas"]["ErrorDetails"]["properties"]["code"]["enum"]
    assert set(CODES.values()) <= set(codes)


REFUSED = [
    ("POST", "/v1/translate", 400, {"json": {}}),
    ("POST", "/v1/translate", 404, {"json": {"embedding": [1.0], "source": "nowhere", "target": "new"}}),
    ("POST", "/v1/translate", 406, {"json": {}, "headers": {"accept": "text/html"}}),
    (
        "POST",
        "/v1/translate",
        409,
        {"json": {"embedding": [1.0], "source": "a", "target": "b", "stitcher": "old-to-new"}},
    ),
    ("POST", "/v1/translate", 413, {"content": b"[" * 5000, "headers": {"content-type": JSON}}),
    ("POST", "/v1/translate", 415, {"content": b"x", "headers": {"content-type": "application/x-pickle"}}),
    ("POST", "/v1/translate", 422, {"json": {"embedding": [1.0], "source": "old", "target": "new"}}),
    ("POST", "/v1/embeddings", 409, {"json": {"input": "words", "model": "old-to-new"}}),
    ("POST", "/v1/score", 422, {"json": {"embedding": [1.0], "counterpart": [1.0], "source": "old", "target": "new"}}),
    ("GET", "/v1/stitchers/nothing", 404, {}),
    ("GET", "/v1/stitchers/" + "x" * 300, 400, {}),
]


@pytest.mark.parametrize(("method", "path", "status", "sent"), REFUSED)
def test_every_refusal_is_documented_for_its_route(registry, method, path, status, sent):
    client = client_of(registry, max_body_bytes=4000)
    refuses(client.request(method, path, **sent), status, method, path)


@pytest.mark.parametrize("path", [path for path in document()["paths"] if path.startswith("/v1")] + ["/metrics"])
def test_a_missing_key_is_documented_for_every_protected_route(registry, path):
    (method,) = document()["paths"][path]
    response = client_of(registry, api_keys=("key",)).request(method.upper(), path.replace("{name}", "old-to-new"))
    refuses(response, 401, method, path)


@pytest.mark.parametrize("path", [path for path in document()["paths"] if path.startswith("/v1")] + ["/readyz"])
def test_the_status_503_is_documented_for_every_route_that_needs_a_stitcher(tmp_path, path):
    (method,) = document()["paths"][path]
    refuses(client_of(registry_of(tmp_path)).request(method.upper(), path.replace("{name}", "x")), 503, method, path)


@pytest.mark.parametrize("path", document()["paths"])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "QUERY", "OPTIONS", "BREW"])
def test_undocumented_methods_get_a_json_405(client, method, path):
    response = client.request(method, path)
    assert response.status_code == 405
    assert response.json()["error"]["code"] == CODES[405]
    allowed = {m.upper() for m in document()["paths"][path]}
    assert set(response.headers["allow"].split(", ")) - {"HEAD"} == allowed


def refuses(response: Any, status: int, method: str, path: str) -> None:
    """Assert that the response is an error that the document describes for this operation, headers included."""
    assert response.status_code == status, response.text
    named = path if path in document()["paths"] else "/v1/stitchers/{name}"
    described = document()["paths"][named][method.lower()]["responses"][str(status)]
    assert response.headers["content-type"] in described["content"]
    assert set(response.json()) == {"error"}
    assert response.json()["error"]["code"] == CODES[status]
    for header in described.get("headers", {}):
        assert header in response.headers


@pytest.mark.parametrize(
    ("message", "query", "field"),
    [
        ("`x y` is not a field", {}, {"x\n\u2028y": 1}),
        ("`x y` is not a query parameter", {"x\ry": "1"}, {}),
        ("translates old -> new, not a b -> c", {"source": "a\nb", "target": "c", "stitcher": "old-to-new"}, {}),
    ],
)
def test_a_message_is_one_line_whatever_it_quotes(client, message, query, field):
    response = client.post("/v1/translate", params=query, json={"embedding": [1.0], **field})
    assert 400 <= response.status_code < 500
    assert message in response.json()["error"]["message"]
    assert len(response.json()["error"]["message"].splitlines()) == 1


@pytest.mark.parametrize("card", [b"[" * 100_000, b'{"\\ud800": 1}', b'{"name": "' + b"x" * 9000 + b'", "dim": 6}'])
def test_a_malformed_space_card_is_refused_with_a_short_message(client, card):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(make_rows(2).reshape(-1)), 6)
    table = pa.table({"vector": vectors}).replace_schema_metadata({SPACE_KEY: card})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue().to_pybytes()
    url = "/v1/translate?source=old&target=new"
    response = client.post(url, content=body, headers={"content-type": ARROW})
    assert response.status_code == 422, response.text
    assert len(response.json()["error"]["message"]) <= 1000


def test_a_whole_number_may_be_written_with_a_decimal_point(client):
    """In JSON and for the schema type `integer`, 4.0 is a whole number."""
    body = {"input": make_rows(1)[0].tolist(), "model": "old-to-new", "dimensions": 4.0}
    assert client.post("/v1/embeddings", json=body).status_code == 200
    body["dimensions"] = 4.5
    assert client.post("/v1/embeddings", json=body).status_code == 400


def test_the_stitcher_details_have_the_documented_keys(client):
    shown = client.get("/v1/stitchers/old-to-new").json()
    assert set(shown) == set(document()["components"]["schemas"]["Stitcher"]["required"])


def test_the_document_states_the_verdicts(client):
    described = document()["components"]["schemas"]
    for use in USES:
        assert described["Scorecard"]["properties"][use] == {"$ref": "#/components/schemas/UseScores"}
    assert described["UseScores"]["properties"]["verdict"] == {"$ref": "#/components/schemas/Verdict"}
    assert described["Verdict"]["properties"]["verdict"] == {"$ref": "#/components/schemas/VerdictName"}
    assert described["VerdictName"]["enum"] == list(VERDICTS)


def test_generators_find_what_they_need(client):
    """They send defaults, take no media type with a parameter, and name types by titles."""
    text = json.dumps(document())
    assert '"default"' not in text
    content = [kind for kind in find_keys(document(), "content") for kind in kind]
    assert {kind for kind in content if ";" in kind} == set()
    schemas = document()["components"]["schemas"]
    assert {title: schema["title"] for title, schema in schemas.items()} == {title: title for title in schemas}
    operations = [each["operationId"] for path in document()["paths"].values() for each in path.values()]
    assert len(set(operations)) == len(operations)


def find_keys(value: Any, key: str) -> list[Any]:
    """Return the values of a key wherever it is in a JSON value."""
    if isinstance(value, list):
        return [each for part in value for each in find_keys(part, key)]
    if not isinstance(value, dict):
        return []
    inside = [each for part in value.values() for each in find_keys(part, key)]
    return [value[key], *inside] if key in value else inside


def test_a_card_of_an_earlier_release_is_never_shown_as_use(tmp_path):
    values = json.loads((GOLDEN / "format-1-confidence" / "scorecard.json").read_text())
    values["query"]["verdict"]["verdict"] = "use"
    card = Scorecard.from_dict(values)
    registry = registry_of(tmp_path, old=make_stitcher(scorecard=card))
    shown = client_of(registry).get("/v1/stitchers/old").json()["scorecard"]
    assert shown == card.shown()
    assert shown["query"]["verdict"]["verdict"] == "probably use"


@pytest.mark.parametrize("path", ["/v1/stitchers/", "/v1/stitchers/old-to-new/", "/v1/models/old-to-new/", "/readyz/"])
def test_a_slash_at_the_end_of_a_path_is_ignored(client, path):
    assert client.get(path, follow_redirects=False).json() == client.get(path[:-1]).json()
    url = "/v1/translate/?source=old&target=new"
    assert client.post(url, json={"embedding": make_rows(1).tolist()}, follow_redirects=False).status_code == 200
    assert client.get("/").status_code == 404
    assert client.get(f"{path}/").status_code == 404
