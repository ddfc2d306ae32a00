"""The routes that are sent rows: `POST /v1/translate` and `/v1/score`, and the frame that they share."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.types import Receive, Scope

from repstitch.errors import InputError
from repstitch.server.endpoint import Body, Endpoint, Headers, Seen, length_header
from repstitch.server.guards import Held, check_rows, read_body
from repstitch.server.negotiation import ARROW, OCTETS, OCTETS16, Ask, Form, merge, read_headers, read_query
from repstitch.server.responses import JSON, Refusal
from repstitch.server.service import Served
from repstitch.wire import fields
from repstitch.wire.arrow import read_arrow, write_arrow
from repstitch.wire.fields import read_embedding, read_json, write_embedding, write_reply
from repstitch.wire.rows import DTYPES, Buffer, UnusableError, faults, rows_from_bytes, rows_to_bytes

INLINE_BYTES = 2**18  # up to here a thread costs more than it frees
INLINE_NUMBERS = 2**16
JSON_WEIGHT = 8  # what parsed numbers take in memory at most, as a multiple of their text
JSON_NUMBER = 16  # bytes of a number in a reply's text


@dataclass(slots=True)
class Asked:
    """One translation, read: who serves it, its rows, and how the answer is to be written."""

    served: Served
    rows: np.ndarray
    reply: Form
    measured: bool = False
    single: bool = False
    encoding: str = "float"
    ids: Any = None


class Translate(Endpoint):
    """`POST /v1/translate`: rows of one space in, rows of another out, in any of the forms."""

    route = "translate"

    async def answer(self, scope: Scope, receive: Receive, held: Held, seen: Seen) -> tuple[Headers, Body]:
        service, settings = self.service, self.settings
        service.state()
        ask = read_headers(scope["headers"])
        seen.encoding = ENCODINGS[ask.body.kind, ask.body.dtype or "float32"]
        query = read_query(scope["query_string"])
        served = None
        if ask.body.kind != JSON or ("source" in query and "target" in query):
            served = self._resolve(query, seen)  # before the body, so that a misspelt name costs no upload
        if served is not None and ask.body.kind == OCTETS:
            check_stated_rows(ask, served.source.dim, settings.max_rows)
        most = settings.json_bytes if ask.body.kind == JSON else settings.max_body_bytes
        body = await read_body(receive, ask.length, most, held)
        with service.gate:
            began = time.perf_counter()
            asked = await self._read(ask, query, served, body, held, seen)
            check_rows(len(asked.rows), settings.max_rows)
            held.take(len(asked.rows) * asked.served.target.dim * (JSON_NUMBER if asked.reply.kind == JSON else 4))
            service.metrics.spent("decode", time.perf_counter() - began)
            try:
                vectors, measures, _ = await service.translate(asked.served, asked.rows, asked.measured)
            except InputError as error:
                raise UnusableError(faults(asked.rows) or str(error)) from None
            began = time.perf_counter()
            answer = await service.run(vectors.size <= INLINE_NUMBERS, write, asked, vectors, measures)
            service.metrics.spent("encode", time.perf_counter() - began)
            return answer

    async def _read(
        self, ask: Ask, query: dict[str, Any], served: Served | None, body: Buffer, held: Held, seen: Seen
    ) -> Asked:
        kind = ask.body.kind
        if kind == OCTETS:
            assert served is not None
            dtype = ask.body.dtype or "float32"
            check_stated_shape(ask, served.source.dim, len(body) // DTYPES[dtype].itemsize)
            rows = rows_from_bytes(body, served.source.dim, dtype)
            return Asked(served, rows, reply_as(ask, dtype), is_measured(served, query))
        run, inline = self.service.run, len(body) <= INLINE_BYTES
        if kind == ARROW:
            assert served is not None
            found = await run(inline, read_arrow, body, served.source.dim)
            check_space(found.space, served)
            return Asked(served, found.rows, reply_as(ask, found.dtype), is_measured(served, query), ids=found.ids)
        held.take(JSON_WEIGHT * len(body))
        stated = await run(inline, read_json, body, "embedding", fields.TRANSLATE, self.settings.max_rows)
        names = merge(query, stated)
        served = self._resolve(names, seen)
        embedding, dtype = stated["embedding"], stated.get("dtype", "float32")
        if isinstance(embedding, str):
            seen.encoding = "base64"
        encoding = stated.get("encoding_format") or ("base64" if isinstance(embedding, str) else "float")
        rows, single = await run(inline, read_embedding, embedding, served.source.dim, dtype)
        # In JSON the dtype is that of base64, and no word of Accept's.
        reply = Form(JSON, dtype) if ask.reply is None or ask.reply.kind == JSON else ask.reply
        return Asked(served, rows, reply, is_measured(served, names), single, encoding)

    def _resolve(self, names: dict[str, Any], seen: Seen) -> Served:
        served = self.service.resolve(names)
        seen.pair = served.pair
        return served


def write(asked: Asked, vectors: np.ndarray, measures: np.ndarray | None) -> tuple[Headers, Body]:
    """An answer in the form that was asked for: its headers and its body."""
    served, form = asked.served, asked.reply
    dtype = form.dtype or "float32"
    names = () if measures is None else served.placed.measures
    if form.kind == OCTETS:
        body: Body = [rows_to_bytes(vectors if measures is None else np.column_stack([vectors, measures]), dtype)]
    else:
        columns = {} if measures is None else dict(zip(names, measures.T, strict=True))
        if form.kind == ARROW:
            body = [write_arrow(vectors, asked.ids, columns, served.target, dtype)]
        else:
            rest = {**served.described, "rows": len(vectors), "dim": served.target.dim}
            if measures is not None:
                rest["confidence"] = {k: v[0] if asked.single else np.array(v) for k, v in columns.items()}
            body = write_reply("embedding", write_embedding(vectors, asked.single, asked.encoding, dtype), rest)
    headers = [
        (b"content-type", CONTENT_TYPES[form.kind, dtype]),
        length_header(body),
        (b"x-rows", b"%d" % len(vectors)),
        *served.headers,
    ]
    if names and form.kind == OCTETS:
        headers.append((b"x-confidence", ",".join(names).encode()))
    return headers, body


def reply_as(ask: Ask, dtype: str) -> Form:
    """The reply's form: what Accept names, the body's own where it leaves that open."""
    if ask.reply is None or (ask.reply.kind == ask.body.kind and ask.reply.dtype is None):
        return Form(ask.body.kind, dtype)
    return ask.reply


def is_measured(served: Served, names: dict[str, Any]) -> bool:
    """Whether confidence is to be given; 409 when it is asked of what was not calibrated."""
    if not names.get("confidence"):
        return False
    if not served.placed.measures:
        several = len(served.route.names) > 1
        why = (
            "leads over other spaces, and confidence is calibrated for single stitchers"
            if several
            else ("has no calibration, so it cannot tell confidence")
        )
        who = f"The route {'->'.join(served.route.spaces)}" if several else f"The stitcher {served.route.names[0]!r}"
        raise Refusal(409, f"{who} {why}; ask without it.", "confidence")
    return True


def check_space(stated: Any, served: Served) -> None:
    """Refuse rows whose card says that they live in another space."""
    difference = None if stated is None else stated.conflict(served.source)
    if difference:
        raise UnusableError(
            f"The rows must be in space {served.source.name!r}, but their card says another identity ({difference})."
        )


def check_stated_shape(ask: Ask, dim: int, numbers: int) -> None:
    """Refuse bytes that the sender takes for rows of another width, or another number of them.

    Bytes alone cannot tell: two rows of 384 numbers are one of 768.
    """
    if ask.dim is not None and ask.dim != b"%d" % dim:
        raise UnusableError(f"The rows must have {dim} numbers; X-Dim says {ask.dim[:20].decode('latin-1')}.")
    if ask.rows is not None and ask.rows != b"%d" % (numbers // dim):
        said = ask.rows[:20].decode("latin-1")
        raise UnusableError(f"The body holds {numbers // dim} rows of {dim} numbers; X-Rows says {said}.")


def check_stated_rows(ask: Ask, dim: int, limit: int) -> None:
    """Refuse, before it is sent, a body whose stated length is that of too many rows."""
    if ask.length is not None and ask.length.isdigit() and len(ask.length) <= 18:
        check_rows(int(ask.length) // (DTYPES[ask.body.dtype or "float32"].itemsize * dim), limit)


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
