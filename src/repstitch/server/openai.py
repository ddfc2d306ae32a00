"""`POST /v1/embeddings` and `GET /v1/models` in OpenAI's format: OpenAI's clients need only another base URL."""

import asyncio
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from repstitch.errors import ConflictError, InputError
from repstitch.server.endpoint import (
    INLINE_BYTES,
    INLINE_NUMBERS,
    JSON_MEMORY_FACTOR,
    JSON_NUMBER_BYTES,
    Body,
    Endpoint,
    Headers,
    RequestLabels,
    length_header,
)
from repstitch.server.guards import ByteReservation, check_rows, read_body
from repstitch.server.negotiation import read_headers
from repstitch.server.responses import JSON, Refusal, json_reply
from repstitch.server.served import ServedRoute
from repstitch.server.service import Service
from repstitch.server.texts import EncodedTexts
from repstitch.stitchers.routing import pair_key
from repstitch.wire import fields
from repstitch.wire.fields import check_name, read_embedding, read_json, write_embedding, write_reply
from repstitch.wire.rows import MalformedError, UnusableError, faults

MAX_TEXTS = 2048
EMBEDDINGS_PATHS = ("/v1/embeddings", "/openai/v1/embeddings", "/openai/deployments/{model}/embeddings")
MODELS_PATHS = ("/v1/models", "/openai/v1/models", "/openai/models")


class Embeddings(Endpoint):
    """Translates `input`: vectors of the model's source space, or texts if an encoder of that space is loaded.

    Azure's paths name the model in the path. The one in the body then has no effect, as in Azure's service.
    """

    route = "embeddings"

    async def answer(
        self, scope: Scope, receive: Receive, reservation: ByteReservation, labels: RequestLabels
    ) -> tuple[Headers, Body]:
        service, max_rows = self.service, self.settings.max_rows
        service.state()
        request_format = read_headers(scope["headers"], (JSON,))
        check_query(scope["query_string"])
        labels.encoding = "json"
        body = await read_body(receive, request_format.length, self.settings.json_bytes, reservation)
        with service.gate:
            reservation.reserve(JSON_MEMORY_FACTOR * len(body))
            inline = len(body) <= INLINE_BYTES
            payload = await service.run(inline, read_json, body, "input", fields.EMBEDDINGS, max_rows)
            payload |= scope["path_params"]
            served = resolve_request(service, payload)
            labels.pair = served.pair
            inputs, encoded = payload["input"], None
            texts = [inputs] if isinstance(inputs, str) else inputs
            if isinstance(texts, list) and texts and isinstance(texts[0], str):
                labels.encoding = "text"
                encoded = await self._encode_texts(served, texts, payload.get("input_type"))
                rows = encoded.vectors
            else:
                refuse_tokens(inputs, served.source.dim)
                rows, _ = await service.run(inline, read_embedding, inputs, served.source.dim, "float32", "input")
            check_rows(len(rows), max_rows)
            reservation.reserve(len(rows) * served.target.dim * JSON_NUMBER_BYTES)
            try:
                vectors, _, _ = await service.translate(served, rows, False)
            except InputError as error:
                raise UnusableError(faults(rows, "input") or str(error), "input") from None
            return await service.run(vectors.size <= INLINE_NUMBERS, encode, served, vectors, payload, encoded)

    async def _encode_texts(self, served: ServedRoute, texts: list, input_type: str | None) -> EncodedTexts:
        service, space = self.service, served.source
        encoder = service.texts.encoder_of(space)
        if len(texts) > MAX_TEXTS:
            raise Refusal(413, f"A request may contain at most {MAX_TEXTS} texts; got {len(texts)}.", "input")
        check_rows(len(texts), self.settings.max_rows)
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                kind = "an empty text" if isinstance(text, str) else "another type"
                raise MalformedError(f"`input` must contain only non-empty texts; got {kind} at position {i}.", "input")
        if space.role in ROLES_OF_TYPES.values() and ROLES_OF_TYPES.get(input_type or "", space.role) != space.role:
            raise UnusableError(
                f"`input_type` must be {space.role}, the role of space {space.name!r}; got {input_type}.", "input_type"
            )
        task = service.text_queue.submit(encoder, texts, service.deadlines.remaining())
        with service.gate.left():
            return await asyncio.wrap_future(task)


def check_query(query: bytes) -> None:
    """Raise MalformedError if a query string contains anything but `api-version`, which Azure's clients send."""
    unknown = [param for param in query.split(b"&") if param and not param.startswith(b"api-version=")]
    if unknown:
        raise MalformedError("This route takes no query parameters but `api-version`; send the others in the body.")


def encode(
    served: ServedRoute, vectors: np.ndarray, payload: dict[str, Any], encoded: EncodedTexts | None
) -> tuple[Headers, Body]:
    """Return the headers and the body of the response to a request with the fields `payload`.

    `encoded` is what the encoder returned if the request contained texts.
    """
    encoding = payload.get("encoding_format", "float")
    data = [
        {"object": "embedding", "index": i, "embedding": write_embedding(vector[None], True, encoding)}
        for i, vector in enumerate(vectors)
    ]
    n_tokens = 0 if encoded is None else encoded.n_tokens
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    body = write_reply("data", data, {"object": "list", "model": payload["model"], "usage": usage})
    headers = [(b"content-type", JSON.encode()), length_header(body), (b"x-rows", b"%d" % len(vectors))]
    if encoded is not None:
        headers.append((b"x-truncated", b"%d" % encoded.n_truncated))
    return [*headers, *served.headers], body


def resolve_request(service: Service, payload: dict[str, Any]) -> ServedRoute:
    """Return the route that the field `model` names.

    Raises MalformedError if it is missing, Refusal 404 with the nearest names if there is no such model, and
    UnusableError if `dimensions` is not the target's dimension.
    """
    model = payload.get("model")
    if model is None:
        raise MalformedError(
            "`model` is missing; send the name of a stitcher or a pair source->target, see /v1/models.", "model"
        )
    served = resolve_model(service, model)
    dimensions = payload.get("dimensions", served.target.dim)
    if dimensions != served.target.dim:
        raise UnusableError(
            f"`dimensions` must be {served.target.dim}, the dimension of {model!r}; got {dimensions}.", "dimensions"
        )
    return served


def resolve_model(service: Service, model: str) -> ServedRoute:
    """Return the route of a model: the name of a stitcher, or a pair `source->target`.

    Raises MalformedError if it cannot be a name, Refusal 404 with the nearest names if there is none, and Refusal 409
    if it is both the name of a stitcher and another stitcher's pair.
    """
    check_name("model", model)
    state = service.registry.state
    stitcher = state.stitchers.get(model)
    try:
        if stitcher is not None:
            if model in state.serving and model != pair_key(stitcher.source.name, stitcher.target.name):
                raise ConflictError(
                    f"`model` {model!r} is a pair and the name of a stitcher of another pair; rename it."
                )
            names = {"source": stitcher.source.name, "target": stitcher.target.name, "stitcher": model}
        elif "->" in model:
            source, _, target = model.partition("->")
            names = {"source": source, "target": target}
        else:
            service.registry.get(model)  # raises NotFoundError with the nearest names
            raise AssertionError(model)
        return service.resolve(names)
    except InputError as error:
        raise Refusal(409 if isinstance(error, ConflictError) else 404, str(error), "model") from None
    except Refusal as refusal:
        raise Refusal(refusal.status, refusal.message, "model") from None


def refuse_tokens(inputs: Any, dim: int) -> None:
    """Raise MalformedError on lists of whole numbers that are not `dim` long: they are tokens, not vectors.

    Whole numbers can be a vector, because JavaScript writes 1.0 as 1.
    """
    rows = inputs if isinstance(inputs, list) and inputs and isinstance(inputs[0], list) else [inputs]
    for row in rows:
        if isinstance(row, list) and row and len(row) != dim and all(type(value) is int for value in row):
            raise MalformedError(
                f"`input` must be texts, or vectors of {dim} numbers; got {len(row)} whole numbers, which are tokens. "
                "Send texts: LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False.",
                "input",
            )


async def list_models(request: Request) -> Response:
    """List every stitcher and every pair of spaces as a model."""
    service: Service = request.app.state.service
    state = service.state()
    pairs = {pair_key(s.source.name, s.target.name) for s in state.stitchers.values()}
    names = dict.fromkeys((*sorted(state.stitchers), *sorted(pairs)))
    return json_reply({"object": "list", "data": [_model(name) for name in names]})


async def show_model(request: Request) -> Response:
    """Answer whether a model exists."""
    service: Service = request.app.state.service
    service.state()
    name = request.path_params["model"]
    resolve_model(service, name)
    return json_reply(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "repstitch"}


ROLES_OF_TYPES = {  # the values of `input_type` in use, with the role that they ask for
    "query": "query",
    "search_query": "query",
    "document": "document",
    "search_document": "document",
    "passage": "document",
}
