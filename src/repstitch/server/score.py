"""TODO server.score."""

from typing import Any

from starlette.types import Receive, Scope

from repstitch.server.endpoint import Body, Endpoint, Headers, Seen, length_header
from repstitch.server.guards import Held, check_rows, read_body
from repstitch.server.negotiation import merge, read_headers, read_query
from repstitch.server.responses import JSON
from repstitch.server.service import Served
from repstitch.server.translate import JSON_WEIGHT
from repstitch.wire import fields
from repstitch.wire.fields import read_embedding, read_json, write_json
from repstitch.wire.rows import MalformedError, UnusableError, faults
from repstitch.workflows.scoring import score

MAX_SCORED = 2_000


class Score(Endpoint):
    """`POST /v1/score`: the scorecard of a stitcher on pairs that are sent, without those it was trained on."""

    route = "score"

    async def answer(self, scope: Scope, receive: Receive, held: Held, seen: Seen) -> tuple[Headers, Body]:
        self.service.state()
        ask = read_headers(scope["headers"], (JSON,))
        query = read_query(scope["query_string"])
        for param in set(query) & {"confidence", "route"}:
            raise MalformedError(f"`{param}` is not a parameter of this route.", param)
        seen.encoding = "json"
        body = await read_body(receive, ask.length, self.settings.json_bytes, held)
        with self.service.gate:
            held.take(JSON_WEIGHT * len(body))
            stated = await self.service.run(False, read_json, body, "embedding", fields.SCORE, self.settings.max_rows)
            names = merge(query, stated)
            served = self.service.resolve(names)
            seen.pair = served.pair
            if "counterpart" not in stated:
                raise MalformedError("`counterpart` is missing; give the target row of each source row.", "counterpart")
            return await self.service.run_slowly(self._score, served, stated)

    def _score(self, served: Served, stated: dict[str, Any]) -> tuple[Headers, Body]:
        dtype = stated.get("dtype", "float32")
        sides = {"embedding": served.source.dim, "counterpart": served.target.dim}
        rows = {side: read_embedding(stated[side], dim, dtype, side)[0] for side, dim in sides.items()}
        X, Y = rows["embedding"], rows["counterpart"]
        check_rows(len(X), MAX_SCORED)
        if len(X) != len(Y):
            raise UnusableError(
                f"`counterpart` must have the {len(X)} rows of `embedding`; got {len(Y)}.", "counterpart"
            )
        for side, found in rows.items():
            if what := faults(found, side):
                raise UnusableError(what, side)
        card = score(served.route.stitchers[0], X, Y, source_space=served.source, target_space=served.target)
        body: Body = [write_json({**served.described, "rows": len(X), "scorecard": card})]
        return [(b"content-type", JSON.encode()), length_header(body), *served.headers], body
