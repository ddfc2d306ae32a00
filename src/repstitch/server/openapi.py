"""Build the OpenAPI 3.1 document of the service."""

from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from repstitch import __version__
from repstitch.server.negotiation import ARROW, OCTETS, OCTETS16
from repstitch.server.openai import MAX_TEXTS
from repstitch.server.responses import CODES, JSON, json_reply
from repstitch.server.score import MAX_SCORED
from repstitch.wire.fields import ENCODINGS, NAME_LENGTH, ROUTES
from repstitch.wire.rows import DTYPES

NAME = {"type": "string", "minLength": 1, "maxLength": NAME_LENGTH}
NUMBER = {"type": "number"}
VECTOR = {"type": "array", "items": NUMBER, "minItems": 1}
VECTORS = {"type": "array", "items": VECTOR, "minItems": 1}
BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)$",
}
ROWS = {"anyOf": [VECTOR, VECTORS, BASE64]}
BINARY = {"type": "string", "format": "binary"}
DTYPE = {"type": "string", "enum": list(DTYPES), "default": "float32"}
ENCODING = {"type": "string", "enum": list(ENCODINGS)}
FREE = {"type": "object"}
TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
COUNT = {"type": "integer", "minimum": 0}
SPACE: dict[str, Any] = {  # the card of a space; it has more fields if the space states them
    "type": "object",
    "properties": {"name": NAME, "dim": COUNT, "modality": TEXT, "role": TEXT},
    "required": ["name", "dim"],
}
HEADLINE = {
    "name": NAME,
    "source": NAME,
    "target": NAME,
    "source_dim": COUNT,
    "target_dim": COUNT,
    "version": TEXT,
    "method": TEXT,
    "objective": TEXT,
    "confidence": {"type": "array", "items": TEXT},
    "serves": {"type": "boolean", "description": "True if requests without `stitcher` use it; false for a candidate."},
    "scores": FREE,
}

STITCHER_TEXT = "Name of the stitcher to use. Without it, the promoted one of the pair, else the one created first."
CONFIDENCE_TEXT = (
    "Return confidence measures for each vector: in the field `confidence` in JSON, in one column per measure in "
    f"Arrow, and after the numbers of each vector in `{OCTETS}`. The stitcher must be calibrated."
)
ROUTE_TEXT = "`auto` allows a route through other spaces if no stitcher translates the pair directly."
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
        "The stitcher does not fit the request: the named one translates another pair, it has no calibration for "
        "`confidence`, or its source space has no text encoder."
    ),
    413: "The request has more bytes, rows or texts than allowed; split it into several requests.",
    415: "The route does not support the `Content-Type` of the body, or the body is compressed.",
    422: "The rows were read but cannot be used: for example a wrong dimension or space, NaN, Inf, or a row of zeros.",
    429: "The service has reached a limit on concurrent requests or memory; retry after `Retry-After` seconds.",
    500: "An internal error of the service.",
    503: "No stitcher is loaded yet; retry after `Retry-After` seconds.",
    504: "The request took longer than the timeout; send less data per request.",
}
ALWAYS = (401, 500)
ROWS_ANSWERED = {"X-Rows": ("Number of rows in the response.", COUNT)}
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
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/translate": {"post": _translate()},
            "/v1/embeddings": {"post": _embeddings()},
            "/v1/score": {"post": _score()},
            "/v1/stitchers": {"get": _read("list_stitchers", "List the stitchers that are loaded", "Stitchers")},
            "/v1/stitchers/{name}": {"get": _stitcher()},
            "/v1/spaces": {"get": _read("list_spaces", "List the spaces of the loaded stitchers", "Spaces")},
            "/v1/models": {
                "get": _read("list_models", "List stitchers and pairs of spaces in OpenAI's model format", "Models")
            },
            "/healthz": {"get": _health("healthz", "Liveness: the process is running")},
            "/livez": {"get": _health("livez", "Liveness: the process is running")},
            "/readyz": {"get": _health("readyz", "Readiness: at least one stitcher is loaded", 503)},
            "/metrics": {"get": _plain("metrics", "Metrics in Prometheus' text format", "text/plain", ALWAYS)},
            "/openapi.json": {"get": _plain("openapi", "This OpenAPI document", JSON, (500,), FREE, open_to_all=True)},
            "/docs": {"get": _plain("docs", "This document as an HTML page", "text/html", (500,), open_to_all=True)},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
            "responses": _errors(*ERRORS),
        },
    }


def _translate() -> dict[str, Any]:
    binary = {kind: {"schema": BINARY} for kind in (OCTETS, OCTETS16, ARROW)}
    return {
        "operationId": "translate",
        "summary": "Translate vectors from one space into another",
        "description": (
            f"Send rows as little-endian numbers (`{OCTETS}`, float32 unless the `Content-Type` has the parameter "
            "`dtype=float16`), as JSON (numbers or base64), or as an uncompressed Arrow IPC stream with a column "
            "`vector` and an optional column `id`. The response has the format of the body unless `Accept` "
            f"names another one. For `{OCTETS}` and Arrow, `Accept` can also name the dtype. The bytes of `{OCTETS}` "
            "do not contain the width of a row: send the headers `X-Dim` (numbers per row) and `X-Rows` (number of "
            "rows) to have the shape checked. A single vector in JSON is answered with a single vector. Names and "
            "flags can be sent in the query string or, in JSON, in the body; if both contain one, the two must be "
            "equal."
        ),
        "parameters": [
            _query("source", NAME, "Name of the space of the rows. Required here unless a JSON body contains it."),
            _query("target", NAME, "Name of the space to translate to. Required here unless a JSON body contains it."),
            _query("stitcher", NAME, STITCHER_TEXT),
            _query("confidence", {"type": "boolean", "default": False}, CONFIDENCE_TEXT),
            _query("route", {"type": "string", "enum": list(ROUTES), "default": "direct"}, ROUTE_TEXT),
        ],
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Translate"}}, **binary},
        },
        "responses": {
            "200": {
                "description": "The translated vectors.",
                "headers": _headers(ROWS_ANSWERED | SERVED) | _headers(TRANSLATED, required=False),
                "content": {JSON: {"schema": _translation()}, **binary},
            },
            **_errors(400, *ALWAYS, 404, 406, 409, 413, 415, 422, 429, 503, 504),
        },
    }  # fmt: skip


def _translation() -> dict[str, Any]:
    """Return the schema of the response to `POST /v1/translate` in JSON."""
    confidence = {
        "type": "object",
        "description": "Confidence measures by name: one number for a single vector, else a list with one per row.",
        "additionalProperties": {"anyOf": [NUMBER, {"type": "array", "items": NUMBER}]},
    }
    return _object(
        {
            "embedding": ROWS,
            "source": NAME,
            "target": NAME,
            "stitcher": TEXT,
            "version": TEXT,
            "rows": COUNT,
            "dim": COUNT,
        },
        {
            "confidence": confidence,
            "route": {"type": "array", "items": NAME},
            "expected_score": {"type": ["number", "null"]},
        },
    )


def _embeddings() -> dict[str, Any]:
    embedding = _object({"object": {"const": "embedding"}, "index": COUNT, "embedding": {"anyOf": [VECTOR, BASE64]}})
    usage = _object({"prompt_tokens": COUNT, "total_tokens": COUNT})
    reply = _object(
        {"object": {"const": "list"}, "data": {"type": "array", "items": embedding}, "model": TEXT, "usage": usage}
    )
    return _post(
        "embeddings",
        "Translate vectors or texts in OpenAI's embeddings format",
        f"`input` is one vector of floats, a list of vectors, one text, or a list of at most {MAX_TEXTS} texts. Texts "
        "require that a text encoder of the model's source space is loaded. Lists of whole numbers are rejected, "
        "because they are tokens in OpenAI's format. `usage` is always 0.",
        "Embeddings",
        reply,
        ROWS_ANSWERED | SERVED,
    )


def _score() -> dict[str, Any]:
    reply = _object(
        {"source": NAME, "target": NAME, "stitcher": TEXT, "version": TEXT, "rows": COUNT, "scorecard": FREE}
    )
    operation = _post(
        "score",
        "Score a stitcher on pairs of vectors",
        f"Send 20 to {MAX_SCORED} pairs: row i of `counterpart` is the target vector of the same item as row i of "
        "`embedding`. Pairs that the stitcher was trained on are left out; the scorecard contains their number. For "
        "each use, it contains the scores, the chance level, the reference scores and the verdict. A verdict requires "
        "that at least 20 pairs remain.",
        "Score",
        reply,
        SERVED,
    )
    operation["parameters"] = [
        _query(name, NAME, description)
        for name, description in (
            ("source", "Name of the space of `embedding`. Required here unless the body contains it."),
            ("target", "Name of the space of `counterpart`. Required here unless the body contains it."),
            ("stitcher", STITCHER_TEXT),
        )
    ]
    return operation


def _post(name: str, summary: str, description: str, schema: str, reply: dict, headers: dict) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "description": description,
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
        },
        "responses": {
            "200": {
                "description": "The result.",
                "headers": _headers(headers),
                "content": {JSON: {"schema": reply}},
            },
            **_errors(400, *ALWAYS, 404, 406, 409, 413, 415, 422, 429, 503, 504),
        },
    }


def _read(name: str, summary: str, schema: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {
                "description": "The list.",
                "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
            },
            **_errors(*ALWAYS, 503),
        },
    }


def _stitcher() -> dict[str, Any]:
    whole = {"source": SPACE, "target": SPACE, "settings": FREE, "split": FREE, "scorecard": FREE}
    details = _object(HEADLINE | whole, {"created": TEXT})
    return {
        "operationId": "show_stitcher",
        "summary": "Show one stitcher with its complete scorecard",
        "parameters": [
            {"name": "name", "in": "path", "required": True, "description": "Name of the stitcher.", "schema": NAME}
        ],
        "responses": {
            "200": {"description": "The stitcher.", "content": {JSON: {"schema": details}}},
            **_errors(400, *ALWAYS, 404, 503),
        },
    }


def _health(name: str, summary: str, *errors: int) -> dict[str, Any]:
    status = _object({"status": TEXT}, {"stitchers": COUNT})
    operation = _plain(name, summary, JSON, (500, *errors), status, open_to_all=True)
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
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        if code in ERROR_HEADERS:
            responses[str(code)]["headers"] = _headers(ERROR_HEADERS[code])
    return responses


def _headers(headers: dict[str, tuple[str, dict]], required: bool = True) -> dict[str, Any]:
    return {
        name: {"description": description, "required": required, "schema": schema}
        for name, (description, schema) in headers.items()
    }


def _query(name: str, schema: dict, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _schemas() -> dict[str, Any]:
    pair = {
        "source": NAME | {"description": "Name of the space of `embedding`. Required here or in the query string."},
        "target": NAME | {"description": "Name of the target space. Required here or in the query string."},
        "stitcher": NAME | {"description": STITCHER_TEXT},
    }
    rows = ROWS | {"description": "One vector, a list of vectors, or base64 of little-endian numbers."}
    counterpart = ROWS | {
        "description": "The target vectors of the items in `embedding`, in the same order. Formats as for `embedding`."
    }
    listed = {"type": "array", "items": NAME}
    space = SPACE | {
        "properties": SPACE["properties"] | {"to": listed, "from": listed, "takes_texts": {"type": "boolean"}},
        "required": [*SPACE["required"], "to", "from", "takes_texts"],
    }
    model = _object({"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT})
    error = _object(
        {"code": {"enum": sorted({*CODES.values(), "error"})}, "message": TEXT, "param": {"type": ["string", "null"]}}
    )
    lists = {"Stitchers": ("stitchers", _object(HEADLINE, {"created": TEXT})), "Spaces": ("spaces", space)}
    return {
        "Error": _object({"error": error}),
        "Translate": _object(
            {"embedding": rows},
            pair
            | {
                "confidence": {"type": "boolean", "default": False, "description": CONFIDENCE_TEXT},
                "route": {"type": "string", "enum": list(ROUTES), "default": "direct", "description": ROUTE_TEXT},
                "encoding_format": ENCODING | {"description": "Form of the vectors in the response; default: as sent."},
                "dtype": DTYPE | {"description": "Dtype of the numbers in base64, in the request and in the response."},
            },
        ),
        "Score": _object(
            {"embedding": rows, "counterpart": counterpart},
            pair | {"dtype": DTYPE | {"description": "Dtype of the numbers in base64."}},
        ),
        "Embeddings": _object(
            {
                "model": NAME | {"description": "Name of a stitcher, or a pair `source->target`; see `/v1/models`."},
                "input": {
                    "anyOf": [VECTOR, VECTORS, TEXT, TEXTS],
                    "description": "One vector, a list of vectors, one text, or a list of texts.",
                },
            },
            {
                "encoding_format": ENCODING | {"description": "Form of the vectors in the response; default: `float`."},
                "dimensions": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "If sent, it must be the dimension of the target space.",
                },
                "user": TEXT | {"description": "Ignored; accepted for compatibility with OpenAI's clients."},
            },
        ),
        **{name: _object({key: {"type": "array", "items": item}}) for name, (key, item) in lists.items()},
        "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": model}}),
    }  # fmt: skip


async def show_openapi(request: Request) -> Response:
    return json_reply(document())
