"""The OpenAPI 3.1 document of the service."""

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
SPACE: dict[str, Any] = {  # a card of identity, with more fields where more is stated
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
    "serves": {"type": "boolean"},
    "scores": FREE,
}

ERRORS = {
    400: "The request cannot be read: it is malformed, or names something twice, or leaves out what is needed.",
    401: "A key is asked for and none of them came, or there are no keys and the connection is not from this machine.",
    404: "There is no such space, pair, stitcher or model; the message lists the nearest names.",
    405: "The route does not take this method.",
    406: "None of the formats that Accept allows is spoken here.",
    409: "A choice is needed first (several stitchers, none promoted), or this one cannot tell what is asked for.",
    413: "More bytes or rows than one request may hold; send them in parts.",
    415: "The body's type is none of those spoken here, or it is compressed.",
    422: "The rows were read and cannot be translated: another dimension or space, NaN, Inf, zeros.",
    429: "As much is under way as is taken at once; try again after Retry-After seconds.",
    500: "A fault of the service.",
    503: "Nothing is loaded yet; try again after Retry-After seconds.",
    504: "Not done in time; send less.",
}
ALWAYS = (401, 500)
ROWS_ANSWERED = {"X-Rows": ("Rows answered.", COUNT)}
SERVED = {
    "X-Dim": ("Numbers a vector of the target space.", COUNT),
    "X-Stitcher": ("Who translated, percent-encoded; several with commas between, in turn.", TEXT),
    "X-Stitcher-Version": ("Their versions: hashes of their content.", TEXT),
}
TRANSLATED = {
    "X-Confidence": ("In octets: the measures that follow each row's vector, in this order.", TEXT),
    "X-Route": ("With route=auto: the spaces passed, percent-encoded, `->` between.", TEXT),
    "X-Expected-Score": (
        "With route=auto: recall@1 in query use to expect, the product of the scorecards'; or unknown.",
        TEXT,
    ),
}
ERROR_HEADERS = {  # by status
    401: {"WWW-Authenticate": ("What is asked for: Bearer.", TEXT)},
    405: {"Allow": ("The methods that the route takes.", TEXT)},
    429: {"Retry-After": ("Seconds.", COUNT)},
    503: {"Retry-After": ("Seconds.", COUNT)},
}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document; the same for every service, so it holds no name of a space."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "repstitch",
            "version": __version__,
            "summary": "Translates embeddings between the spaces of two models.",
            "description": (
                "Every route answers another method with 405, every other path is answered with 404, and every error "
                "has the one form of the schema `Error`. What is not HTTP never comes so far: it ends with 400 in "
                "plain text, or with its connection."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/translate": {"post": _translate()},
            "/v1/embeddings": {"post": _embeddings()},
            "/v1/score": {"post": _score()},
            "/v1/stitchers": {"get": _read("list_stitchers", "The stitchers that are served", "Stitchers")},
            "/v1/stitchers/{name}": {"get": _stitcher()},
            "/v1/spaces": {"get": _read("list_spaces", "The spaces they lead from and to", "Spaces")},
            "/v1/models": {
                "get": _read("list_models", "Stitchers and pairs as OpenAI's clients list models", "Models")
            },
            "/healthz": {"get": _health("healthz", "Whether the process lives")},
            "/livez": {"get": _health("livez", "Whether the process lives")},
            "/readyz": {"get": _health("readyz", "Whether stitchers are loaded", 503)},
            "/metrics": {"get": _plain("metrics", "Metrics in Prometheus' text format", "text/plain", ALWAYS)},
            "/openapi.json": {"get": _plain("openapi", "This document", JSON, (500,), FREE, open_to_all=True)},
            "/docs": {"get": _plain("docs", "This document as a page", "text/html", (500,), open_to_all=True)},
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
            "Rows come as little-endian numbers (`application/octet-stream`, float32 unless `dtype=float16` is said), "
            "as JSON (numbers or base64), or as an uncompressed Arrow IPC stream with the columns `vector` and, where "
            "rows have ids, `id`. The reply is written like the body unless `Accept` names another form; of octets and "
            "Arrow it may name the dtype too. Octets do not tell how wide a row is: where a request states it in its "
            "headers `X-Dim` and `X-Rows`, what does not fit is refused. One vector in JSON gives one vector. Names "
            "and flags may stand in the query or, in JSON, in the body, and must agree where they stand in both."
        ),
        "parameters": [
            _query("source", NAME, "The space the vectors live in; needed here unless the body names it."),
            _query("target", NAME, "The space they are wanted in; the same."),
            _query("stitcher", NAME, "Which stitcher, where a pair has several."),
            _query("confidence", {"type": "boolean", "default": False}, "Tell how far to trust each vector."),
            _query("route", {"type": "string", "enum": list(ROUTES), "default": "direct"},
                   "`auto` allows a detour over other spaces where no stitcher leads straight."),
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
    """The schema of the reply to `POST /v1/translate` in JSON."""
    confidence = {
        "type": "object",
        "description": "By measure: one number for one vector, else one a row.",
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
        "The same in the shape of OpenAI's embeddings",
        "`input` is one vector of floats, a list of them, or texts where a text encoder of the model's source space is "
        f"loaded (at most {MAX_TEXTS}). Lists of whole numbers are refused: these are tokens. `usage` is 0.",
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
        "Score a stitcher on pairs",
        f"At least 20 and at most {MAX_SCORED} pairs; those that the stitcher was trained on are left out, and their "
        "number is told. Row i of `counterpart` is what row i of `embedding` should become. Each use comes with its "
        "chance, its references and its verdict.",
        "Score",
        reply,
        SERVED,
    )
    operation["parameters"] = [
        _query(name, NAME, description)
        for name, description in (
            ("source", "The space of `embedding`; needed here unless the body names it."),
            ("target", "The space of `counterpart`; the same."),
            ("stitcher", "Which stitcher, where a pair has several."),
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
                "description": "The answer.",
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
    details = _object(HEADLINE | {"source": SPACE, "target": SPACE, "settings": FREE, "split": FREE, "scorecard": FREE})
    return {
        "operationId": "show_stitcher",
        "summary": "One stitcher with its whole scorecard",
        "parameters": [{"name": "name", "in": "path", "required": True, "schema": NAME}],
        "responses": {
            "200": {"description": "The stitcher.", "content": {JSON: {"schema": details}}},
            **_errors(400, *ALWAYS, 404, 503),
        },
    }


def _health(name: str, summary: str, *errors: int) -> dict[str, Any]:
    status = _object({"status": TEXT}, {"stitchers": COUNT})
    operation = _plain(name, summary, JSON, (500, *errors), status, open_to_all=True)
    return operation | {
        "description": "Where BentoML serves, it answers this itself: with the same statuses, and a body of its own."
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
    pair = {"source": NAME, "target": NAME, "stitcher": NAME}
    listed = {"type": "array", "items": NAME}
    space = SPACE | {
        "properties": SPACE["properties"] | {"to": listed, "from": listed, "takes_texts": {"type": "boolean"}},
        "required": [*SPACE["required"], "to", "from", "takes_texts"],
    }
    model = _object({"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT})
    error = _object(
        {"code": {"enum": sorted({*CODES.values(), "error"})}, "message": TEXT, "param": {"type": ["string", "null"]}}
    )
    lists = {"Stitchers": ("stitchers", _object(HEADLINE)), "Spaces": ("spaces", space)}
    return {
        "Error": _object({"error": error}),
        "Translate": _object(
            {"embedding": ROWS},
            pair
            | {
                "confidence": {"type": "boolean", "default": False},
                "route": {"type": "string", "enum": list(ROUTES), "default": "direct"},
                "encoding_format": ENCODING,
                "dtype": DTYPE | {"description": "Of base64, in and out."},
            },
        ),
        "Score": _object({"embedding": ROWS, "counterpart": ROWS}, pair | {"dtype": DTYPE}),
        "Embeddings": _object(
            {"model": NAME, "input": {"anyOf": [VECTOR, VECTORS, TEXT, TEXTS]}},
            {"encoding_format": ENCODING, "dimensions": {"type": "integer", "minimum": 1}, "user": TEXT},
        ),
        **{name: _object({key: {"type": "array", "items": item}}) for name, (key, item) in lists.items()},
        "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": model}}),
    }  # fmt: skip


async def show_openapi(request: Request) -> Response:
    return json_reply(document())
