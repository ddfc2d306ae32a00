"""`POST /v1/embeddings` and `GET /v1/models`, in the shape that OpenAI's clients speak: a new address will do."""

from dataclasses import replace
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from repstitch.errors import ConflictError, InputError
from repstitch.server.endpoint import Body, Endpoint, Headers, Seen, length_header
from repstitch.server.guards import Held, check_rows, read_body
from repstitch.server.negotiation import read_headers
from repstitch.server.responses import JSON, Refusal, json_reply
from repstitch.server.service import Served, Service
from repstitch.server.translate import INLINE_BYTES, INLINE_NUMBERS, JSON_NUMBER, JSON_WEIGHT
from repstitch.stitchers.routing import pair_key
from repstitch.wire import fields
from repstitch.wire.fields import read_embedding, read_json, write_embedding, write_reply
from repstitch.wire.rows import MalformedError, UnusableError, faults

MAX_TEXTS = 2048
TEXT_BATCH = 32


class Embeddings(Endpoint):
    """`input` is vectors of the model's source space, or texts where an encoder of it is loaded."""

    route = "embeddings"

    async def answer(self, scope: Scope, receive: Receive, held: Held, seen: Seen) -> tuple[Headers, Body]:
        self.service.state()
        ask = read_headers(scope["headers"], (JSON,))
        if scope["query_string"]:
            raise MalformedError("This route takes no query; all is in its body.")
        seen.encoding = "json"
        body = await read_body(receive, ask.length, self.settings.json_bytes, held)
        with self.service.gate:
            held.take(JSON_WEIGHT * len(body))
            inline = len(body) <= INLINE_BYTES
            stated = await self.service.run(inline, read_json, body, "input", fields.EMBEDDINGS, self.settings.max_rows)
            served = resolve_model(self.service, stated)
            seen.pair = served.pair
            given = stated["input"]
            texts = [given] if isinstance(given, str) else given
            if isinstance(texts, list) and texts and isinstance(texts[0], str):
                seen.encoding = "text"
                rows = await self.service.run_slowly(self._encode, served, texts)
            else:
                refuse_tokens(given)
                rows, _ = await self.service.run(inline, read_embedding, given, served.source.dim, "float32", "input")
            check_rows(len(rows), self.settings.max_rows)
            held.take(len(rows) * served.target.dim * JSON_NUMBER)
            try:
                vectors, _, _ = await self.service.translate(served, rows, False)
            except InputError as error:
                raise UnusableError(faults(rows, "input") or str(error), "input") from None
            return await self.service.run(vectors.size <= INLINE_NUMBERS, write, served, vectors, stated)

    def _encode(self, served: Served, texts: list) -> np.ndarray:
        encoder = encoder_of(self.service, served)
        if len(texts) > MAX_TEXTS:
            raise Refusal(413, f"A request may hold at most {MAX_TEXTS} texts; got {len(texts)}.", "input")
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                what = "an empty text" if isinstance(text, str) else "something else"
                raise MalformedError(f"`input` must hold texts; at position {i} came {what}.", "input")
        return encoder.encode(texts, TEXT_BATCH)


def write(served: Served, vectors: np.ndarray, stated: dict[str, Any]) -> tuple[Headers, Body]:
    encoding = stated.get("encoding_format", "float")
    data = [
        {"object": "embedding", "index": i, "embedding": write_embedding(vector[None], True, encoding)}
        for i, vector in enumerate(vectors)
    ]
    # Nothing is counted in tokens here; the field must be there.
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    body = write_reply("data", data, {"object": "list", "model": stated["model"], "usage": usage})
    headers = [(b"content-type", JSON.encode()), length_header(body)]
    return [*headers, (b"x-rows", b"%d" % len(vectors)), *served.headers], body


def resolve_model(service: Service, stated: dict[str, Any]) -> Served:
    """Who serves a `model`: a stitcher's name, or `source->target`; 404 with the nearest names."""
    model = stated.get("model")
    if model is None:
        raise MalformedError("`model` is missing; name a stitcher or source->target, see /v1/models.", "model")
    stitcher = service.registry.state.stitchers.get(model)
    try:
        if stitcher is not None:
            names = {"source": stitcher.source.name, "target": stitcher.target.name, "stitcher": model}
        elif "->" in model:
            source, _, target = model.partition("->")
            names = {"source": source, "target": target}
        else:
            service.registry.get(model)  # which says what is near
            raise AssertionError(model)
        served = service.resolve(names)
    except InputError as error:
        raise Refusal(409 if isinstance(error, ConflictError) else 404, str(error), "model") from None
    except Refusal as refusal:
        raise Refusal(refusal.status, refusal.message, "model") from None
    wanted = stated.get("dimensions", served.target.dim)
    if wanted != served.target.dim:
        raise UnusableError(
            f"`dimensions` must be {served.target.dim}, those of {model!r}; got {wanted}.", "dimensions"
        )
    return served


def refuse_tokens(given: Any) -> None:
    """Lists of whole numbers are tokens in this shape of request, and would be taken for vectors by mistake."""
    rows = given if isinstance(given, list) and given and isinstance(given[0], list) else [given]
    for row in rows:
        if isinstance(row, list) and row and all(type(value) is int for value in row):
            raise MalformedError(
                "`input` must be vectors of floats, or texts; whole numbers are tokens, which are not taken here.",
                "input",
            )


def encoder_of(service: Service, served: Served) -> Any:
    """The text encoder of a served pair's source space; 409 where none is loaded or its space is another one."""
    space = served.source
    encoder = service.encoders.get(space.name)
    if encoder is None:
        raise Refusal(
            409,
            f"`input` must be vectors: no text encoder of space {space.name!r} is loaded here (REPSTITCH_ENCODERS).",
            "input",
        )
    difference = replace(encoder.space, name=space.name).conflict(space)
    if difference:
        raise Refusal(
            409,
            f"`input` must be vectors: the encoder that is loaded for space {space.name!r} is not the one its stitcher "
            f"was trained for ({difference}).",
            "input",
        )
    return encoder


async def list_models(request: Request) -> Response:
    """Every stitcher, and every pair that one serves, as models."""
    service: Service = request.app.state.service
    state = service.state()
    pairs = {pair_key(s.source.name, s.target.name) for s in state.stitchers.values()}
    models = [
        {"id": name, "object": "model", "created": 0, "owned_by": "repstitch"}
        for name in (*sorted(state.stitchers), *sorted(pairs))
    ]
    return json_reply({"object": "list", "data": models})
