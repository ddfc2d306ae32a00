"""Build the OpenAPI 3.1 document of the service."""

from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from repstitch import __version__
from repstitch.server.negotiation import ARROW, OCTETS
from repstitch.server.openai import EMBEDDINGS_PATHS, MAX_TEXTS, MODELS_PATHS
from repstitch.server.responses import JSON, json_reply
from repstitch.server.schemas import (
    BINARY,
    CONFIDENCE_TEXT,
    COUNT,
    FLAG,
    FREE,
    NAME,
    ROUTE_TEXT,
    STITCHER_TEXT,
    TEXT,
    ref,
    schemas,
)
from repstitch.server.score import MAX_SCORED
from repstitch.server.translate import BYTES_PATH

ERRORS = {
    400: "The request is malformed, or one of its parameters or fields is missing, unknown, repeated or invalid.",
    401: (
        "The service requires an API key and the request has no valid one, or the service has no API keys and the "
        "request was not sent to a loopback address."
    ),
    404: "The space, pair, stitcher, model or path does not exist. For names, the message lists the nearest ones.",
    405: "The route does not support this HTTP method.",
    406: "The route supports none of the formats that `Accept` allows.",
    409: (
        "The stitcher does not fit the request: the named one translates another pair, its name is another pair, it "
        "has no calibration for `confidence`, or its source space has no text encoder."
    ),
    413: (
        "The request has more bytes, rows or texts than allowed, or more texts than can be encoded in time; split it "
        "into several requests."
    ),
    415: "The route does not support the `Content-Type` of the body, or the body is compressed.",
    422: "The rows were read but cannot be used: for example a wrong dimension or space, NaN, Inf, or a row of zeros.",
    429: (
        "The service has reached a limit on concurrent requests or memory, or texts of other requests wait for the "
        "encoder; retry after `Retry-After` seconds."
    ),
    500: "An internal error of the service.",
    503: "No stitcher, or not every text encoder, is loaded yet; retry after `Retry-After` seconds.",
    504: "The request took longer than the timeout; send less data per request.",
}
ALWAYS = (401, 500)
KEY_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer"},
    "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api_key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
ROWS_ANSWERED = {"X-Rows": ("Number of rows in the response.", COUNT)}
EMBEDDED = {
    "X-Truncated": (
        "Only if `input` contains texts: how many of them had more tokens than the encoder reads, and were cut.",
        COUNT,
    )
}
SERVED = {
    "X-Dim": ("Dimension of the target space (numbers per vector).", COUNT),
    "X-Stitcher": ("Names of the stitchers used (usually one), percent-encoded, separated by commas.", TEXT),
    "X-Stitcher-Version": ("Versions of these stitchers, separated by commas: hashes of their content.", TEXT),
}
TRANSLATED = {
    "X-Confidence": (
        f"Only in `{OCTETS}` with `confidence=true`: names of the measures that follow the vector of each row, in "
        "order, separated by commas.",
        TEXT,
    ),
    "X-Confidence-Usable": (
        "Only with `confidence=true`, and only `false`: `p_match` of this stitcher was not shown to separate hits from "
        "misses on held-out pairs. Its scorecard (`/v1/stitchers/{name}`) has the reason.",
        TEXT,
    ),
    "X-Route": ("Only with `route=auto`: names of the spaces along the route, percent-encoded, joined by `->`.", TEXT),
    "X-Expected-Score": (
        "Only with `route=auto`: expected recall@1 in query use, the product of the scorecards of the stitchers; "
        "`unknown` if a stitcher has no such score.",
        TEXT,
    ),
}
ERROR_HEADERS = {  # by status
    401: {"WWW-Authenticate": ("The required scheme: Bearer.", TEXT)},
    405: {"Allow": ("The HTTP methods that the route supports.", TEXT)},
    429: {"Retry-After": ("Seconds to wait before the next attempt.", COUNT)},
    503: {"Retry-After": ("Seconds to wait before the next attempt.", COUNT)},
}


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document. It is the same for every service, so it contains no names of spaces."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "repstitch",
            "version": __version__,
            "summary": "Translates embeddings between the spaces of two models.",
            "description": (
                "A route answers unsupported methods with 405. Unknown paths are answered with 404. Every error has "
                "the schema `Error`. Bytes that are not valid HTTP reach no route: the HTTP server answers them with "
                "400 in plain text, or closes the connection."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [*({name: []} for name in KEY_SCHEMES), {}],
        "paths": _paths(),
        "components": {"securitySchemes": KEY_SCHEMES, "schemas": schemas(), "responses": _errors(*ERRORS)},
    }


def _paths() -> dict[str, Any]:
    embeddings = zip(EMBEDDINGS_PATHS, ("embeddings", "azure_embeddings", "deployment_embeddings"), strict=True)
    models = tuple(zip(MODELS_PATHS, ("model", "azure_model", "deployment_model"), strict=True))
    models_text, model_text = "List stitchers and pairs in OpenAI's model format", "Show a model of that list"
    stitcher_text = "Show one stitcher with its complete scorecard"
    return {
        "/v1/translate": {"post": _translate()},
        BYTES_PATH: {"post": _translate_bytes()},
        **{path: {"post": _embeddings(name, "{model}" in path)} for path, name in embeddings},
        "/v1/score": {"post": _score()},
        "/v1/stitchers": {"get": _read("list_stitchers", "List the stitchers that are loaded", "Stitchers")},
        "/v1/stitchers/{name}": {"get": _show("show_stitcher", stitcher_text, "name", "Stitcher")},
        "/v1/spaces": {"get": _read("list_spaces", "List the spaces of the loaded stitchers", "Spaces")},
        **{path: {"get": _read(f"list_{name}s", models_text, "Models")} for path, name in models},
        **{f"{path}/{{model}}": {"get": _show(f"show_{name}", model_text, "model", "Model")} for path, name in models},
        "/healthz": {"get": _health("healthz", "Liveness: the process is running")},
        "/livez": {"get": _health("livez", "Liveness: the process is running")},
        "/readyz": {"get": _health("readyz", "Readiness: a stitcher and all text encoders are loaded", 503)},
        "/metrics": {"get": _plain("metrics", "Metrics in Prometheus' text format", "text/plain", ALWAYS)},
        "/openapi.json": {"get": _plain("openapi", "This OpenAPI document", JSON, (500,), FREE, open_to_all=True)},
        "/docs": {"get": _plain("docs", "This document as an HTML page", "text/html", (500,), open_to_all=True)},
    }


def _translate() -> dict[str, Any]:
    return {
        "operationId": "translate",
        "summary": "Translate vectors from one space into another",
        "description": (
            "Send rows as JSON: numbers, or base64 of little-endian numbers. A single vector is answered with a single "
            "vector. Names and flags can also be sent in the query string; if both contain one, the two must be equal. "
            f"This path accepts the formats of `{BYTES_PATH}` too, with names and flags in the query string, and the "
            "header `Accept` can name a format of the response other than that of the body."
        ),
        "requestBody": {"required": True, "content": {JSON: {"schema": ref("Translate")}}},
        "responses": _answers({JSON: {"schema": ref("Translation")}}, ROWS_ANSWERED | SERVED, TRANSLATED),
    }


def _translate_bytes() -> dict[str, Any]:
    binary = {kind: {"schema": BINARY} for kind in (OCTETS, ARROW)}
    return {
        "operationId": "translate_bytes",
        "summary": "Translate vectors in bytes from one space into another",
        "description": (
            f"Send rows as little-endian numbers (`{OCTETS}`, float32 unless the `Content-Type` has the parameter "
            "`dtype=float16`), or as an uncompressed Arrow IPC stream with a column `vector` and an optional column "
            "`id`. The response has the format of the body unless `Accept` prefers the other; `Accept` can also name "
            f"the dtype. The bytes of `{OCTETS}` do not contain the width of a row: send the headers `X-Dim` (numbers "
            "per row) and `X-Rows` (number of rows) to have the shape checked."
        ),
        "parameters": [
            _query("source", NAME, "Name of the space of the rows.", required=True),
            _query("target", NAME, "Name of the space to translate to.", required=True),
            _query("stitcher", NAME, STITCHER_TEXT),
            _query("confidence", FLAG, CONFIDENCE_TEXT),
            _query("route", ref("Route"), ROUTE_TEXT),
        ],
        "requestBody": {"required": True, "content": binary},
        "responses": _answers(binary, ROWS_ANSWERED | SERVED, TRANSLATED),
    }


def _embeddings(name: str, model_in_path: bool) -> dict[str, Any]:
    operation = _post(
        name,
        "Translate vectors or texts in OpenAI's embeddings format",
        f"`input` is one vector, a list of vectors, one text, or a list of at most {MAX_TEXTS} texts. Texts require "
        "that a text encoder of the model's source space is loaded. A list of whole numbers is a vector if it has the "
        "dimension of the source space; else it is rejected, because it is tokens in OpenAI's format. `usage` counts "
        "the tokens of texts. The paths that begin with `/openai` are those of Azure.",
        "DeploymentEmbeddings" if model_in_path else "Embeddings",
        "EmbeddingList",
        ROWS_ANSWERED | SERVED,
        EMBEDDED,
    )
    operation["parameters"] = [_query("api-version", TEXT, "Has no effect; accepted for Azure's clients.")]
    if model_in_path:
        operation["parameters"].append(_in_path("model", "Name of a stitcher, or a pair `source->target`."))
    return operation


def _score() -> dict[str, Any]:
    return _post(
        "score",
        "Score a stitcher on pairs of vectors",
        f"Send 20 to {MAX_SCORED} pairs: row i of `counterpart` is the target vector of the same item as row i of "
        "`embedding`. Pairs that the stitcher was trained on are left out; the scorecard contains their number. For "
        "each use, it contains the scores, the chance level, the reference scores and the verdict. A verdict requires "
        "that at least 20 pairs remain. Names can also be sent in the query string.",
        "Score",
        "Scored",
        SERVED,
    )


def _post(
    name: str, summary: str, description: str, body: str, reply: str, headers: dict, optional: dict | None = None
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "description": description,
        "requestBody": {"required": True, "content": {JSON: {"schema": ref(body)}}},
        "responses": _answers({JSON: {"schema": ref(reply)}}, headers, optional or {}),
    }


def _answers(content: dict, headers: dict, optional: dict) -> dict[str, Any]:
    """Return the responses of a route that receives rows."""
    answered = {
        "description": "The result.",
        "headers": _headers(headers) | _headers(optional, required=False),
        "content": content,
    }
    return {"200": answered, **_errors(400, *ALWAYS, 404, 406, 409, 413, 415, 422, 429, 503, 504)}


def _read(name: str, summary: str, schema: str) -> dict[str, Any]:
    answered = {"description": "The list.", "content": {JSON: {"schema": ref(schema)}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": answered, **_errors(*ALWAYS, 503)},
    }


def _show(name: str, summary: str, param: str, schema: str) -> dict[str, Any]:
    answered = {"description": summary + ".", "content": {JSON: {"schema": ref(schema)}}}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [_in_path(param, f"Name of the {param if param == 'model' else 'stitcher'}.")],
        "responses": {"200": answered, **_errors(400, *ALWAYS, 404, *((409,) if param == "model" else ()), 503)},
    }


def _health(name: str, summary: str, *errors: int) -> dict[str, Any]:
    operation = _plain(name, summary, JSON, (500, *errors), ref("Health"), open_to_all=True)
    return operation | {
        "description": "Under BentoML, BentoML itself answers this path, with the same statuses but a different body."
    }


def _plain(name: str, summary: str, kind: str, errors: tuple, schema: dict = TEXT, open_to_all: bool = False) -> dict:
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": summary + ".", "content": {kind: {"schema": schema}}}, **_errors(*errors)},
    }
    return operation | ({"security": []} if open_to_all else {})


def _errors(*codes: int) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for code in sorted(set(codes)):
        responses[str(code)] = {
            "description": ERRORS[code],
            "content": {JSON: {"schema": ref("Error")}},
        }
        if code in ERROR_HEADERS:
            responses[str(code)]["headers"] = _headers(ERROR_HEADERS[code])
    return responses


def _headers(headers: dict[str, tuple[str, dict]], required: bool = True) -> dict[str, Any]:
    return {
        name: {"description": description, "required": required, "schema": schema}
        for name, (description, schema) in headers.items()
    }


def _in_path(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": NAME}


def _query(name: str, schema: dict, description: str, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "description": description, "schema": schema}


async def show_openapi(request: Request) -> Response:
    return json_reply(document())
