"""`POST /v1/embeddings` and `GET /v1/models` in OpenAI's format: OpenAI's clients need only another base URL."""

from dataclasses import replace
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
from repstitch.stitchers.routing import pair_key
from repstitch.wire import fields
from repstitch.wire.fields import read_embedding, read_json, write_embedding, write_reply
from repstitch.wire.rows import MalformedError, UnusableError, faults

MAX_TEXTS = 2048
TEXT_BATCH = 32


class Embeddings(Endpoint):
    """Translates `input`: vectors of the model's source space, or texts if an encoder of that space is loaded."""

    route = "embeddings"

    async def answer(
        self, scope: Scope, receive: Receive, reservation: ByteReservation, labels: RequestLabels
    ) -> tuple[Headers, Body]:
        service, max_rows = self.service, self.settings.max_rows
        service.state()
        request_format = read_headers(scope["headers"], (JSON,))
        if scope["query_string"]:
            raise MalformedError("This route takes no query parameters; send them in the body.")
        labels.encoding = "json"
        body = await read_body(receive, request_format.length, self.settings.json_bytes, reservation)
        with service.gate:
            reservation.reserve(JSON_MEMORY_FACTOR * len(body))
            inline = len(body) <= INLINE_BYTES
            payload = await service.run(inline, read_json, body, "input", fields.EMBEDDINGS, max_rows)
            served = resolve_model(service, payload)
            labels.pair = served.pair
            inputs = payload["input"]
            texts = [inputs] if isinstance(inputs, str) else inputs
            if isinstance(texts, list) and texts and isinstance(texts[0], str):
                labels.encoding = "text"
                rows = await service.run_slow(self._encode_texts, served, texts)
            else:
                refuse_tokens(inputs)
                rows, _ = await service.run(inline, read_embedding, inputs, served.source.dim, "float32", "input")
            check_rows(len(rows), max_rows)
            reservation.reserve(len(rows) * served.target.dim * JSON_NUMBER_BYTES)
            try:
                vectors, _, _ = await service.translate(served, rows, False)
            except InputError as error:
                raise UnusableError(faults(rows, "input") or str(error), "input") from None
            return await service.run(vectors.size <= INLINE_NUMBERS, encode, served, vectors, payload)

    def _encode_texts(self, served: ServedRoute, texts: list) -> np.ndarray:
        encoder = encoder_of(self.service, served)
        if len(texts) > MAX_TEXTS:
            raise Refusal(413, f"A request may contain at most {MAX_TEXTS} texts; got {len(texts)}.", "input")
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                kind = "an empty text" if isinstance(text, str) else "another type"
                raise MalformedError(f"`input` must contain only non-empty texts; got {kind} at position {i}.", "input")
        return encoder.encode(texts, TEXT_BATCH)


def encode(served: ServedRoute, vectors: np.ndarray, payload: dict[str, Any]) -> tuple[Headers, Body]:
    """Return the headers and the body of the response to a request with the fields `payload`."""
    encoding = payload.get("encoding_format", "float")
    data = [
        {"object": "embedding", "index": i, "embedding": write_embedding(vector[None], True, encoding)}
        for i, vector in enumerate(vectors)
    ]
    # The service counts no tokens, but OpenAI's clients require the field.
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    body = write_reply("data", data, {"object": "list", "model": payload["model"], "usage": usage})
    headers = [(b"content-type", JSON.encode()), length_header(body)]
    return [*headers, (b"x-rows", b"%d" % len(vectors)), *served.headers], body


def resolve_model(service: Service, payload: dict[str, Any]) -> ServedRoute:
    """Return the route that `model` names: the name of a stitcher, or a pair `source->target`.

    Raises MalformedError if `model` is missing, Refusal 404 with the nearest names if it does not exist, and
    UnusableError if `dimensions` is not the target's dimension.
    """
    model = payload.get("model")
    if model is None:
        raise MalformedError(
            "`model` is missing; send the name of a stitcher or a pair source->target, see /v1/models.", "model"
        )
    stitcher = service.registry.state.stitchers.get(model)
    try:
        if stitcher is not None:
            names = {"source": stitcher.source.name, "target": stitcher.target.name, "stitcher": model}
        elif "->" in model:
            source, _, target = model.partition("->")
            names = {"source": source, "target": target}
        else:
            service.registry.get(model)  # raises NotFoundError with the nearest names
            raise AssertionError(model)
        served = service.resolve(names)
    except InputError as error:
        raise Refusal(409 if isinstance(error, ConflictError) else 404, str(error), "model") from None
    except Refusal as refusal:
        raise Refusal(refusal.status, refusal.message, "model") from None
    dimensions = payload.get("dimensions", served.target.dim)
    if dimensions != served.target.dim:
        raise UnusableError(
            f"`dimensions` must be {served.target.dim}, the dimension of {model!r}; got {dimensions}.", "dimensions"
        )
    return served


def refuse_tokens(inputs: Any) -> None:
    """Raise MalformedError on lists of whole numbers: in OpenAI's format these are tokens, not vectors."""
    rows = inputs if isinstance(inputs, list) and inputs and isinstance(inputs[0], list) else [inputs]
    for row in rows:
        if isinstance(row, list) and row and all(type(value) is int for value in row):
            raise MalformedError(
                "`input` must be vectors of floats, or texts; whole numbers are tokens, which are not supported.",
                "input",
            )


def encoder_of(service: Service, served: ServedRoute) -> Any:
    """Return the text encoder of a route's source space. Raise Refusal 409 if none with this space is loaded."""
    space = served.source
    encoder = service.encoders.get(space.name)
    if encoder is None:
        raise Refusal(
            409,
            f"`input` must be vectors: no text encoder is loaded for space {space.name!r} (see REPSTITCH_ENCODERS).",
            "input",
        )
    difference = replace(encoder.space, name=space.name).conflict(space)
    if difference:
        raise Refusal(
            409,
            f"`input` must be vectors: the encoder loaded for space {space.name!r} differs from the one that the "
            f"stitcher was trained for ({difference}).",
            "input",
        )
    return encoder


async def list_models(request: Request) -> Response:
    """List every stitcher and every pair of spaces as a model."""
    service: Service = request.app.state.service
    state = service.state()
    pairs = {pair_key(s.source.name, s.target.name) for s in state.stitchers.values()}
    models = [
        {"id": name, "object": "model", "created": 0, "owned_by": "repstitch"}
        for name in (*sorted(state.stitchers), *sorted(pairs))
    ]
    return json_reply({"object": "list", "data": models})
