"""`POST /v1/score`: score a stitcher on the pairs in the request."""

from typing import Any

from starlette.types import Receive, Scope

from repstitch.server.endpoint import JSON_MEMORY_FACTOR, Body, Endpoint, Headers, RequestLabels, length_header
from repstitch.server.guards import ByteReservation, check_rows, read_body
from repstitch.server.negotiation import merge, read_headers, read_query
from repstitch.server.responses import JSON
from repstitch.server.served import ServedRoute
from repstitch.wire import fields
from repstitch.wire.fields import read_embedding, read_json, write_json
from repstitch.wire.rows import MalformedError, UnusableError, faults
from repstitch.workflows.scoring import score

MAX_SCORED = 2_000


class Score(Endpoint):
    """Scores a stitcher on the pairs in the body, without the pairs that it was trained on."""

    route = "score"

    async def answer(
        self, scope: Scope, receive: Receive, reservation: ByteReservation, labels: RequestLabels
    ) -> tuple[Headers, Body]:
        self.service.state()
        request_format = read_headers(scope["headers"], (JSON,))
        query = read_query(scope["query_string"])
        for param in set(query) & {"confidence", "route"}:
            raise MalformedError(f"`{param}` is not a parameter of this route.", param)
        labels.encoding = "json"
        body = await read_body(receive, request_format.length, self.settings.json_bytes, reservation)
        with self.service.gate:
            reservation.reserve(JSON_MEMORY_FACTOR * len(body))
            payload = await self.service.run(False, read_json, body, "embedding", fields.SCORE, self.settings.max_rows)
            served = self.service.resolve(merge(query, payload))
            labels.pair = served.pair
            if "counterpart" not in payload:
                raise MalformedError("`counterpart` is missing; send the target row of each source row.", "counterpart")
            return await self.service.run_slow(self._score, served, payload)

    def _score(self, served: ServedRoute, payload: dict[str, Any]) -> tuple[Headers, Body]:
        dtype = payload.get("dtype", "float32")
        dims = {"embedding": served.source.dim, "counterpart": served.target.dim}
        rows = {field: read_embedding(payload[field], dim, dtype, field)[0] for field, dim in dims.items()}
        X, Y = rows["embedding"], rows["counterpart"]
        check_rows(len(X), MAX_SCORED)
        if len(X) != len(Y):
            raise UnusableError(
                f"`counterpart` must have as many rows as `embedding` ({len(X)}); got {len(Y)}.", "counterpart"
            )
        for field, vectors in rows.items():
            if message := faults(vectors, field):
                raise UnusableError(message, field)
        card = score(served.route.stitchers[0], X, Y, source_space=served.source, target_space=served.target)
        body: Body = [write_json({**served.reply_fields, "rows": len(X), "scorecard": card.to_dict()})]
        return [(b"content-type", JSON.encode()), length_header(body), *served.headers], body
