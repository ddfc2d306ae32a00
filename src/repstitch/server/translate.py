"""`POST /v1/translate`: translate rows from one space to another."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.types import Receive, Scope

from repstitch.errors import InputError
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
from repstitch.server.negotiation import (
    ARROW,
    FORMATS,
    OCTETS,
    OCTETS16,
    MediaType,
    RequestFormat,
    merge,
    read_headers,
    read_query,
)
from repstitch.server.responses import JSON, Refusal
from repstitch.server.served import ServedRoute
from repstitch.server.service import Service
from repstitch.spaces import Space
from repstitch.wire import fields
from repstitch.wire.arrow import read_arrow, write_arrow
from repstitch.wire.fields import read_embedding, read_json, write_embedding, write_reply
from repstitch.wire.rows import DTYPES, Buffer, UnusableError, faults, rows_from_bytes, rows_to_bytes

BYTES_PATH = "/v1/translate/bytes"  # for generated clients, which expect one kind of format per path


@dataclass(slots=True)
class TranslateRequest:
    """A parsed request: its route, its rows, and the format of its response."""

    served: ServedRoute
    rows: np.ndarray
    reply: MediaType
    with_measures: bool = False
    single: bool = False
    encoding: str = "float"
    ids: Any = None


class Translate(Endpoint):
    """Reads rows in one of the formats, translates them, and writes them in one of the formats."""

    route = "translate"

    def __init__(self, service: Service, formats: tuple[str, ...] = FORMATS):
        super().__init__(service)
        self.formats, self.accept_any = formats, formats is not FORMATS

    async def answer(
        self, scope: Scope, receive: Receive, reservation: ByteReservation, labels: RequestLabels
    ) -> tuple[Headers, Body]:
        service, settings = self.service, self.settings
        service.state()
        request_format = read_headers(scope["headers"], self.formats, self.accept_any)
        kind = request_format.body.kind
        labels.encoding = ENCODINGS[kind, request_format.body.dtype or "float32"]
        query = read_query(scope["query_string"])
        served = None
        if kind != JSON or ("source" in query and "target" in query):
            served = self._resolve(query, labels)  # before the body is read, so that a misspelt name costs no upload
        if served is not None and kind == OCTETS:
            check_stated_length(request_format, served.source.dim, settings.max_rows)
        limit = settings.json_bytes if kind == JSON else settings.max_body_bytes
        body = await read_body(receive, request_format.length, limit, reservation)
        with service.gate:
            began = time.perf_counter()
            request = await self._read(request_format, query, served, body, reservation, labels)
            n_rows, served = len(request.rows), request.served
            check_rows(n_rows, settings.max_rows)
            reservation.reserve(n_rows * served.target.dim * (JSON_NUMBER_BYTES if request.reply.kind == JSON else 4))
            service.metrics.add_seconds("decode", time.perf_counter() - began)
            try:
                vectors, measures, _ = await service.translate(served, request.rows, request.with_measures)
            except InputError as error:
                raise UnusableError(faults(request.rows) or str(error)) from None
            began = time.perf_counter()
            reply = await service.run(vectors.size <= INLINE_NUMBERS, encode, request, vectors, measures)
            service.metrics.add_seconds("encode", time.perf_counter() - began)
            return reply

    async def _read(
        self,
        request_format: RequestFormat,
        query: dict[str, Any],
        served: ServedRoute | None,
        body: Buffer,
        reservation: ByteReservation,
        labels: RequestLabels,
    ) -> TranslateRequest:
        kind = request_format.body.kind
        if kind == OCTETS:
            assert served is not None
            dtype = request_format.body.dtype or "float32"
            check_stated_shape(request_format, served.source.dim, len(body) // DTYPES[dtype].itemsize)
            rows = rows_from_bytes(body, served.source.dim, dtype)
            return TranslateRequest(
                served, rows, reply_media_type(request_format, dtype), wants_measures(served, query)
            )
        run, inline = self.service.run, len(body) <= INLINE_BYTES
        if kind == ARROW:
            assert served is not None
            stream = await run(inline, read_arrow, body, served.source.dim)
            check_space(stream.space, served)
            reply = reply_media_type(request_format, stream.dtype)
            return TranslateRequest(served, stream.rows, reply, wants_measures(served, query), ids=stream.ids)
        reservation.reserve(JSON_MEMORY_FACTOR * len(body))
        payload = await run(inline, read_json, body, "embedding", fields.TRANSLATE, self.settings.max_rows)
        names = merge(query, payload)
        served = self._resolve(names, labels)
        embedding, dtype = payload["embedding"], payload.get("dtype", "float32")
        if isinstance(embedding, str):
            labels.encoding = "base64"
        encoding = payload.get("encoding_format") or ("base64" if isinstance(embedding, str) else "float")
        rows, single = await run(inline, read_embedding, embedding, served.source.dim, dtype)
        # In a JSON response, the dtype applies to base64 only. It comes from the body, since Accept does not state it.
        reply = request_format.reply
        if reply is None or reply.kind == JSON:
            reply = MediaType(JSON, dtype)
        return TranslateRequest(served, rows, reply, wants_measures(served, names), single, encoding)

    def _resolve(self, names: dict[str, Any], labels: RequestLabels) -> ServedRoute:
        served = self.service.resolve(names)
        labels.pair = served.pair
        return served


def encode(request: TranslateRequest, vectors: np.ndarray, measures: np.ndarray | None) -> tuple[Headers, Body]:
    """Return the headers and the body of the response to a request."""
    served, kind = request.served, request.reply.kind
    dtype = request.reply.dtype or "float32"
    names = () if measures is None else served.placed.measures
    if kind == OCTETS:
        body: Body = [rows_to_bytes(vectors if measures is None else np.column_stack([vectors, measures]), dtype)]
    else:
        columns = {} if measures is None else dict(zip(names, measures.T, strict=True))
        if kind == ARROW:
            body = [write_arrow(vectors, request.ids, columns, served.target, dtype)]
        else:
            rest = {**served.reply_fields, "rows": len(vectors), "dim": served.target.dim}
            if measures is not None:
                rest["confidence"] = {k: v[0] if request.single else np.array(v) for k, v in columns.items()}
            body = write_reply("embedding", write_embedding(vectors, request.single, request.encoding, dtype), rest)
    headers = [
        (b"content-type", CONTENT_TYPES[kind, dtype]),
        length_header(body),
        (b"x-rows", b"%d" % len(vectors)),
        *served.headers,
    ]
    if names and kind == OCTETS:
        headers.append((b"x-confidence", ",".join(names).encode()))
    if names and not served.confidence_is_usable:
        headers.append((b"x-confidence-usable", b"false"))
    return headers, body


def reply_media_type(request_format: RequestFormat, dtype: str) -> MediaType:
    """Return the format of the response: the one that Accept names, else the format and the `dtype` of the body."""
    body, reply = request_format.body, request_format.reply
    if reply is None or (reply.kind == body.kind and reply.dtype is None):
        return MediaType(body.kind, dtype)
    return reply


def wants_measures(served: ServedRoute, names: dict[str, Any]) -> bool:
    """Return whether confidence is requested. Raise Refusal 409 if it is and the route is not calibrated."""
    if not names.get("confidence"):
        return False
    if served.placed.measures:
        return True
    route = served.route
    if len(route.names) == 1:
        message = f"Stitcher {route.names[0]!r} has no calibration; send the request without `confidence`."
    else:
        message = (
            f"The route {'->'.join(route.spaces)} uses several stitchers, but confidence is calibrated for single "
            "stitchers only; send the request without `confidence`."
        )
    raise Refusal(409, message, "confidence")


def check_space(space: Space | None, served: ServedRoute) -> None:
    """Raise UnusableError if the card sent with the rows states another space than the route's source space."""
    difference = None if space is None else space.conflict(served.source)
    if difference:
        raise UnusableError(
            f"The rows must be in space {served.source.name!r}, but their card states another identity ({difference})."
        )


def check_stated_shape(request_format: RequestFormat, dim: int, n_numbers: int) -> None:
    """Raise UnusableError if X-Dim or X-Rows states another shape than the body is read with.

    The length of the body does not determine its shape: two rows of 384 numbers have as many bytes as one row of 768.
    """
    stated_dim, stated_rows = request_format.dim, request_format.rows
    if stated_dim is not None and stated_dim != b"%d" % dim:
        raise UnusableError(f"The rows must have {dim} numbers; got `X-Dim` {stated_dim[:20].decode('latin-1')}.")
    if stated_rows is not None and stated_rows != b"%d" % (n_numbers // dim):
        shown = stated_rows[:20].decode("latin-1")
        raise UnusableError(f"The body has {n_numbers // dim} rows of {dim} numbers; got `X-Rows` {shown}.")


def check_stated_length(request_format: RequestFormat, dim: int, max_rows: int) -> None:
    """Raise Refusal 413 if Content-Length implies more than `max_rows` rows, before the body is read."""
    length = request_format.length
    if length is not None and length.isdigit() and len(length) <= 18:
        check_rows(int(length) // (DTYPES[request_format.body.dtype or "float32"].itemsize * dim), max_rows)


ENCODINGS = {
    (OCTETS, "float32"): "f32",
    (OCTETS, "float16"): "f16",
    (JSON, "float32"): "json",
    (ARROW, "float32"): "arrow",
}
CONTENT_TYPES = {(kind, "float32"): kind.encode() for kind in (OCTETS, JSON, ARROW)} | {
    (OCTETS, "float16"): OCTETS16.encode(),
    (JSON, "float16"): JSON.encode(),
    (ARROW, "float16"): ARROW.encode(),
}
