"""The OpenAPI document against the service in a process of its own: schemathesis sends what it allows and what not."""

import base64
import json
import re
import select
import socket
import zlib
from collections import Counter
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import schemathesis
from helpers.fuzz import CASES, SEED, cases, rows, spoiled, tell
from helpers.serving import free_port, make_rows, make_stitcher, running, serve_command
from helpers.spaces import confidence
from hypothesis import given
from hypothesis import strategies as st
from schemathesis.engine import Status, events, from_schema
from starlette.routing import Route
from starlette.testclient import TestClient

from repstitch.embeddings.rows import SPACE_KEY
from repstitch.server.app import create_app
from repstitch.server.negotiation import ARROW, OCTETS
from repstitch.server.openapi import ERRORS, document
from repstitch.server.responses import CODES, JSON
from repstitch.server.settings import Settings
from repstitch.spaces import Space
from repstitch.stitchers.registry import Registry
from repstitch.wire.arrow import write_arrow

SHARE = 0.25
DIMS = {"embedding": 6, "input": 6, "counterpart": 4}
# What the document says in words, since its schemas cannot: a request that they allow may still be refused for these.
IN_WORDS = (
    r"`(source|target)` is missing",
    r"is .+ in the query and .+ in the body; give it once",
    r"The rows of `\w+` must all have",
    r"must be a list like the rows before it",
    r"(in base64|The body) must be little-endian float(32|16), so a multiple of",
    r"whole numbers are tokens",
)


@pytest.fixture(scope="module")
def stitcher():
    return make_stitcher(calibration=confidence(6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, stitcher):
    folder = tmp_path_factory.mktemp("stitchers")
    stitcher.save(folder / "old-to-new")
    return folder


@pytest.fixture(scope="module")
def service(folder, tmp_path_factory):
    """The address of a running service, and its log."""
    port, log = free_port(), tmp_path_factory.mktemp("log") / "log"
    with running(serve_command(folder, port), port, log):
        yield f"http://127.0.0.1:{port}", log


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_service_keeps_what_its_document_promises(service, stitcher):
    address, log = service
    began = len(log.read_text())
    seen, answered, failures = Counter(), Counter(), []
    for event in from_schema(load(address)).execute():
        if isinstance(event, events.NonFatalError):
            failures.append(repr(event.value))
        if isinstance(event, events.FatalError):
            failures.append(repr(event.exception))
        if not isinstance(event, events.ScenarioFinished):
            continue
        for case_id, sent in event.recorder.interactions.items():
            label = event.recorder.cases[case_id].value.operation.label
            if sent.response is None:
                failures.append(f"{label} was not answered")
                continue
            seen[label, event.phase.name.lower(), sent.response.status_code] += 1
            answered[label] += sent.response.status_code == 200
        for case_id, checks in event.recorder.checks.items():
            response = event.recorder.interactions[case_id].response
            said = "" if response is None else response.content.decode(errors="replace")[:500]
            failures += [told(check, said) for check in checks if check.status is not Status.SUCCESS]
    tell(seen)
    assert not failures, "\n\n".join(failures)
    assert seen.total() >= SHARE * CASES, seen
    for label in ("POST /v1/translate", "POST /v1/embeddings", "POST /v1/score"):
        n = sum(count for (route, *_), count in seen.items() if route == label)
        assert answered[label] > 0.1 * n, (label, seen)

    rows = make_rows(5)
    url = f"{address}/v1/translate?source=old&target=new"
    response = httpx.post(url, content=rows.tobytes(), headers={"content-type": OCTETS})
    assert np.allclose(np.frombuffer(response.content, "<f4").reshape(-1, 4), stitcher.translate(rows), atol=1e-6)
    said = log.read_text()[began:]
    assert "Traceback" not in said
    assert not re.search(r"\d\.\d\d", said), said


HEAD = (
    b"POST /v1/translate?source=old&target=new HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    b"Content-Type: application/octet-stream\r\n"
)


@cases(0.03)
@given(found=rows(6), data=st.data())
def test_spoiled_http_gets_a_refusal_or_no_answer_and_the_next_request_its_own(service, found, data):
    (host, port), log = service[0].removeprefix("http://").split(":"), service[1]
    body = found.tobytes()
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    whole = HEAD + data.draw(st.sampled_from((b"Content-Length: %d\r\n\r\n" % len(body) + body, chunked)))
    sent = data.draw(spoiled(whole, 3))
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        if sent != whole:  # whoever is done sending before there is an answer gets none
            select.select([connection], [], [], 0.03)
            connection.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: connection.recv(2**16), b""))
    status = reply[:12].decode("latin-1")
    tell(Counter({("HTTP", "spoiled", int(status[9:] or 0)): 1}))
    assert re.fullmatch(r"|HTTP/1\.1 [24]\d\d", status), reply[:300]
    assert sent != whole or status
    assert "Traceback" not in log.read_text()
    assert httpx.get(f"{service[0]}/readyz").status_code == 200


def told(check: Any, said: str) -> str:
    found = check.failure_info
    if found is None:
        return f"{check.name}: the check itself failed"
    return f"{check.name}: {found.failure.title}\n{found.failure.message}\n{said}\n{found.code_sample}"


def load(address: str) -> Any:
    """The document of the running service, with hooks that aim a good part of the requests at what it serves."""
    schemathesis.openapi.media_type(OCTETS, rows(6).map(np.ndarray.tobytes))
    schemathesis.openapi.media_type(ARROW, rows(6).map(stream))
    most = max(8, round(CASES * SHARE / 3 - 90))
    config: dict[str, Any] = {
        "generation": {"max-examples": min(most, 60), "deterministic": SEED is None, "database": "none"},
        "suppress-health-check": ["all"],
        "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "404", "409", "413", "422"]}},
        "phases": {"coverage": {"generate-duplicate-query-parameters": True}},
        "operations": [{"include-method": "POST", "generation": {"max-examples": most}}],
    }
    if SEED is not None:
        config["seed"] = SEED
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", config=schemathesis.Config.from_dict(config))

    @schema.hook
    def filter_failure(context, failure, case, response):
        said = response.content.decode(errors="replace")
        if response.status_code != 400 or failure.title != "Schema-valid request rejected":
            return True
        return not any(re.search(rule, json.loads(said)["error"]["message"]) for rule in IN_WORDS)

    return schema


def stream(found: np.ndarray) -> bytes:
    return bytes(write_arrow(found, None, {}, Space("old", 6), "float32"))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Three in four of the right requests come to name the spaces that are served, with rows of their dimensions."""
    chance = zlib.crc32(repr((case.body, case.query)).encode(errors="replace")) % 4
    if not chance or case.method != "POST" or not case.operation.label.startswith("POST"):
        return
    if not case.meta.generation.mode.is_positive:
        return
    if isinstance(case.body, dict):
        case.query = {}
        for name in ("stitcher", "dimensions"):
            case.body.pop(name, None)
        names = {"model": "old-to-new"} if "model" in case.body else {"source": "old", "target": "new"}
        fitted = {name: fit(case.body[name], DIMS[name]) for name in DIMS if name in case.body}
        if "model" in names and chance > 1 and not is_numbers(case.body["input"]):
            fitted = {"input": make_rows(chance).tolist()}  # few texts are enough: no encoder is loaded
        if "counterpart" in fitted:
            fitted = {name: make_rows(20 + chance, DIMS[name]).tolist() for name in fitted}
        case.body |= names | fitted
    else:
        case.query = (case.query or {}) | {"source": "old", "target": "new"}
        case.query.pop("stitcher", None)


def is_numbers(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value[0], str)


def fit(value: Any, dim: int) -> Any:
    """Numbers of a request as rows of a dimension that have a direction; whole numbers are made fractions."""
    if isinstance(value, str):
        return base64.b64encode(make_rows(2, dim).tobytes()).decode()
    if isinstance(value[0], list):
        return [fit(row, dim) for row in value]
    if isinstance(value[0], str):
        return value
    sane = [min(max(number, -1e6), 1e6) + 0.5 for number in value]
    return [sane[i % len(sane)] for i in range(dim - 1)] + [0.25]


# --- the document by itself -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app(folder):
    registry = Registry(folder)
    registry.refresh()
    return create_app(registry, Settings())


def test_the_document_is_valid_openapi_3_1():
    from openapi_spec_validator import OpenAPIV31SpecValidator

    OpenAPIV31SpecValidator(document()).validate()  # pyright: ignore[reportArgumentType]


def test_the_document_holds_every_route_and_no_other(app):
    routes = {(r.path, m) for r in app.routes if isinstance(r, Route) for m in (r.methods or ()) if m != "HEAD"}
    assert routes == {(path, method.upper()) for path, found in document()["paths"].items() for method in found}


def test_every_error_is_described():
    assert set(CODES) == set(ERRORS)
    described = document()["components"]
    assert set(described["responses"]) == {str(status) for status in CODES}
    codes = described["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
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
def test_refusals_are_documented_where_they_are_given(folder, method, path, status, sent):
    client = client_of(folder, max_body_bytes=4000)
    refuses(client.request(method, path, **sent), status, method, path)


@pytest.mark.parametrize("path", [path for path in document()["paths"] if path.startswith("/v1")] + ["/metrics"])
def test_a_missing_key_is_documented_where_it_is_asked_for(folder, path):
    (method,) = document()["paths"][path]
    response = client_of(folder, api_keys=("key",)).request(method.upper(), path.replace("{name}", "old-to-new"))
    refuses(response, 401, method, path)


@pytest.mark.parametrize("path", [path for path in document()["paths"] if path.startswith("/v1")] + ["/readyz"])
def test_not_being_ready_is_documented_where_it_is_told(tmp_path, path):
    (method,) = document()["paths"][path]
    refuses(client_of(tmp_path).request(method.upper(), path.replace("{name}", "x")), 503, method, path)


@pytest.mark.parametrize("path", document()["paths"])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "QUERY", "OPTIONS", "BREW"])
def test_other_methods_are_refused_in_the_form_of_all_errors(folder, method, path):
    response = client_of(folder).request(method, path)
    assert response.status_code == 405
    assert response.json()["error"]["code"] == CODES[405]
    allowed = {m.upper() for m in document()["paths"][path]}
    assert set(response.headers["allow"].split(", ")) - {"HEAD"} == allowed


def client_of(folder, **settings) -> TestClient:
    registry = Registry(folder)
    registry.refresh()
    return TestClient(create_app(registry, Settings(**settings)), "http://127.0.0.1", raise_server_exceptions=False)


def refuses(response: Any, status: int, method: str, path: str) -> None:
    """The response is a refusal that the document describes for this operation, headers included."""
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
        ("`x y` is not a parameter", {"x\ry": "1"}, {}),
        ("goes old -> new, not a b -> c", {"source": "a\nb", "target": "c", "stitcher": "old-to-new"}, {}),
    ],
)
def test_a_message_is_one_line_whatever_it_quotes(folder, message, query, field):
    response = client_of(folder).post("/v1/translate", params=query, json={"embedding": [1.0], **field})
    assert 400 <= response.status_code < 500
    assert message in response.json()["error"]["message"]
    assert len(response.json()["error"]["message"].splitlines()) == 1


@pytest.mark.parametrize("card", [b"[" * 100_000, b'{"\\ud800": 1}', b'{"name": "' + b"x" * 9000 + b'", "dim": 6}'])
def test_a_space_card_without_end_or_sense_is_refused_in_one_short_line(folder, card):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(make_rows(2).reshape(-1)), 6)
    table = pa.table({"vector": vectors}).replace_schema_metadata({SPACE_KEY: card})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue().to_pybytes()
    url = "/v1/translate?source=old&target=new"
    response = client_of(folder).post(url, content=body, headers={"content-type": ARROW})
    assert response.status_code == 422, response.text
    assert len(response.json()["error"]["message"]) <= 1000


def test_a_whole_number_may_be_written_as_a_fraction(folder):
    """JSON has one kind of number, and so does the schema's `integer`."""
    asked = {"input": make_rows(1)[0].tolist(), "model": "old-to-new", "dimensions": 4.0}
    assert client_of(folder).post("/v1/embeddings", json=asked).status_code == 200
    asked["dimensions"] = 4.5
    assert client_of(folder).post("/v1/embeddings", json=asked).status_code == 400


def test_one_stitcher_is_shown_as_the_document_says(folder):
    schema = document()["paths"]["/v1/stitchers/{name}"]["get"]["responses"]["200"]["content"][JSON]["schema"]
    shown = client_of(folder).get("/v1/stitchers/old-to-new").json()
    assert set(shown) == set(schema["required"])
