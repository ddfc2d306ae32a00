"""The schemas of the OpenAPI document. Each has a title, from which generators of clients make the name of a type."""

from typing import Any

from repstitch.names import USES, VERDICTS
from repstitch.server.negotiation import OCTETS
from repstitch.server.responses import CODES
from repstitch.wire.fields import ENCODINGS, IGNORED_FIELDS, NAME_LENGTH, ROUTES
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
OPEN = {"additionalProperties": True}  # without it, some generated clients lose the fields that are not listed
FREE = {"type": "object", **OPEN}
TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
NULL = {"type": "null"}

STITCHER_TEXT = "Name of the stitcher to use. Without it, the promoted one of the pair, else the one created first."
CONFIDENCE_TEXT = (
    "Return confidence measures for each vector: in the field `confidence` in JSON, in one column per measure in "
    f"Arrow, and after the numbers of each vector in `{OCTETS}`. The stitcher must be calibrated. Default: false."
)
ROUTE_TEXT = (
    "`auto` allows a route through other spaces if no stitcher translates the pair directly. Default: `direct`."
)


def schemas() -> dict[str, Any]:
    """Return the components of the document: the bodies of requests and responses, and their parts."""
    parts = _names() | _registry() | _requests() | _responses()
    return {title: {"title": title} | schema for title, schema in parts.items()}


def ref(title: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{title}"}


def _names() -> dict[str, Any]:
    return {
        "Route": {"type": "string", "enum": list(ROUTES)},
        "Dtype": {"type": "string", "enum": list(DTYPES)},
        "EncodingFormat": {"type": "string", "enum": list(ENCODINGS)},
        "VerdictName": {"type": "string", "enum": list(VERDICTS)},
    }


def _registry() -> dict[str, Any]:
    """Return the schemas of what the service lists. The card of a space has more fields if the space states them."""
    space = {"name": NAME, "dim": COUNT, **dict.fromkeys(("modality", "role"), TEXT)}
    listed = {"type": "array", "items": NAME}
    listed_space = space | {"to": listed, "from": listed, "takes_texts": FLAG}
    serves = FLAG | {"description": "True if requests without `stitcher` use it; false for a candidate."}
    summary = {
        **dict.fromkeys(("name", "source", "target"), NAME),
        **dict.fromkeys(("source_dim", "target_dim"), COUNT),
        **dict.fromkeys(("version", "method", "objective"), TEXT),
        "confidence": {"type": "array", "items": TEXT},
        "serves": serves,
        "scores": FREE,
    }
    whole = {"source": ref("Space"), "target": ref("Space"), "settings": FREE, "split": FREE}
    verdict = {"verdict": ref("VerdictName"), "why": TEXT}
    return {
        "Space": {"type": "object", "properties": space, "required": ["name", "dim"], **OPEN},
        "ListedSpace": {
            "type": "object",
            "properties": listed_space,
            "required": ["name", "dim", "to", "from", "takes_texts"],
            **OPEN,
        },
        "Spaces": _record({"spaces": {"type": "array", "items": ref("ListedSpace")}}),
        "Verdict": {"type": "object", "properties": verdict, **OPEN},
        "UseScores": {"type": "object", "properties": {"verdict": ref("Verdict")}, **OPEN},
        "Scorecard": {"type": "object", "properties": {name: ref("UseScores") for name in USES}, **OPEN},
        "ListedStitcher": _record(summary, {"created": TEXT}),
        "Stitchers": _record({"stitchers": {"type": "array", "items": ref("ListedStitcher")}}),
        "Stitcher": _record(summary | whole | {"scorecard": ref("Scorecard")}, {"created": TEXT}),
        "Model": _record({"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT}),
        "Models": _record({"object": {"const": "list"}, "data": {"type": "array", "items": ref("Model")}}),
    }


def _requests() -> dict[str, Any]:
    pair = {
        "source": NAME | {"description": "Name of the space of `embedding`."},
        "target": NAME | {"description": "Name of the space to translate to."},
    }
    stitcher = {"stitcher": (NAME, STITCHER_TEXT)}
    rows = ROWS | {"description": "One vector, a list of vectors, or base64 of little-endian numbers."}
    counterpart = ROWS | {
        "description": "The target vectors of the items in `embedding`, in the same order. Formats as for `embedding`."
    }
    translate = stitcher | {
        "confidence": (FLAG, CONFIDENCE_TEXT),
        "route": (ref("Route"), ROUTE_TEXT),
        "encoding_format": (ref("EncodingFormat"), "Form of the vectors in the response. Default: as sent."),
        "dtype": (
            ref("Dtype"),
            "Dtype of the numbers in base64, in the request and in the response. Default: float32.",
        ),
    }
    score = stitcher | {"dtype": (ref("Dtype"), "Dtype of the numbers in base64. Default: float32.")}
    inputs = {"anyOf": [VECTOR, VECTORS, TEXT, TEXTS]}
    size = {"type": "integer", "minimum": 1}
    embeddings = {
        "encoding_format": (ref("EncodingFormat"), "Form of the vectors in the response. Default: `float`."),
        "dimensions": (size, "If sent, it must be the dimension of the target space."),
        "input_type": (TEXT, "`query` or `document`: if texts are sent, it must be the role of the source space."),
        **dict.fromkeys(
            IGNORED_FIELDS, (TEXT, "Has no effect; accepted for compatibility with clients of other services.")
        ),
    }
    model = NAME | {"description": "Name of a stitcher, or a pair `source->target`; see `/v1/models`."}
    inputs = inputs | {"description": "One vector, a list of vectors, one text, or a list of texts."}
    in_path = {"model": (NAME, "Has no effect: the path names the model.")}
    return {
        "Translate": _record({"embedding": rows, **pair}, _nullable(translate)),
        "Score": _record({"embedding": rows, "counterpart": counterpart, **pair}, _nullable(score)),
        "Embeddings": _record({"model": model, "input": inputs}, _nullable(embeddings)),
        "DeploymentEmbeddings": _record({"input": inputs}, _nullable(in_path | embeddings)),
    }


def _responses() -> dict[str, Any]:
    names = {"source": NAME, "target": NAME, "stitcher": TEXT, "version": TEXT, "rows": COUNT}
    measures = {
        "type": "object",
        "description": "Confidence measures by name: one number for a single vector, else a list with one per row.",
        "additionalProperties": {"anyOf": [NUMBER, {"type": "array", "items": NUMBER}]},
    }
    optional = {
        "confidence": ref("Confidence"),
        "route": {"type": "array", "items": NAME},
        "expected_score": {"anyOf": [NUMBER, NULL]},
    }
    embedding = {"object": {"const": "embedding"}, "index": COUNT, "embedding": {"anyOf": [VECTOR, BASE64]}}
    embeddings = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": ref("Embedding")},
        "model": TEXT,
        "usage": ref("Usage"),
    }
    code = {"type": "string", "enum": sorted({*CODES.values(), "error"})}
    error = {"code": code, "message": TEXT, "param": {"anyOf": [TEXT, NULL]}}
    return {
        "Confidence": measures,
        "Translation": _record({"embedding": ROWS, **names, "dim": COUNT}, optional),
        "Scored": _record({**names, "scorecard": ref("Scorecard")}),
        "Embedding": _record(embedding),
        "Usage": _record({"prompt_tokens": COUNT, "total_tokens": COUNT}),
        "EmbeddingList": _record(embeddings),
        "Health": _record({"status": TEXT}, {"stitchers": COUNT}),
        "ErrorDetails": _record(error),
        "Error": _record({"error": ref("ErrorDetails")}),
    }


def _nullable(fields: dict[str, tuple[dict, str]]) -> dict[str, Any]:
    """Return the schemas of optional fields with their descriptions; null is the same as leaving a field out."""
    return {
        name: {"anyOf": [schema, NULL], "description": description} for name, (schema, description) in fields.items()
    }


def _record(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of an object with these fields and no others."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }
