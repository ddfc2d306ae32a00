"""Which route serves a request, and what every reply of that route says about it."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from repstitch.errors import ConflictError, InputError, NotFoundError
from repstitch.server.compute import PlacedRoute
from repstitch.server.responses import Refusal
from repstitch.spaces import Space
from repstitch.stitchers.registry import Registry
from repstitch.stitchers.routing import Route, pair_key
from repstitch.wire.rows import MalformedError


@dataclass(slots=True)
class ServedRoute:
    """A route as requests use it: where it is computed, its label in metrics, and what every reply says about it."""

    route: Route
    placed: PlacedRoute
    pair: str
    headers: tuple[tuple[bytes, bytes], ...]
    reply_fields: dict[str, Any]
    next_drift_check: float = 0.0

    @property
    def source(self) -> Space:
        return self.route.stitchers[0].source

    @property
    def target(self) -> Space:
        return self.route.stitchers[-1].target


def serve_route(route: Route, placed: PlacedRoute, show_route: bool) -> ServedRoute:
    """The headers and fields of all replies of a route; with `show_route` its spaces and expected score too."""
    versions = ",".join(stitcher.version for stitcher in route.stitchers)
    source, target = route.spaces[0], route.spaces[-1]
    headers = [
        (b"x-dim", b"%d" % route.stitchers[-1].target.dim),
        (b"x-stitcher", ",".join(map(quote, route.names)).encode()),
        (b"x-stitcher-version", versions.encode()),
    ]
    reply_fields = {"source": source, "target": target, "stitcher": ",".join(route.names), "version": versions}
    if show_route:
        reply_fields |= {"route": list(route.spaces), "expected_score": route.score}
        headers.append((b"x-route", "->".join(map(quote, route.spaces)).encode()))
        score = "unknown" if route.score is None else f"{route.score:.4g}"
        headers.append((b"x-expected-score", score.encode()))
    return ServedRoute(route, placed, pair_key(source, target), tuple(headers), reply_fields)


def find_route(
    registry: Registry, source: str | None, target: str | None, name: str | None, routing: str | None
) -> Route:
    """The route between two spaces; over other spaces only when `routing` is "auto".

    Raises MalformedError where a space is not named, Refusal 404 with the nearest names, Refusal 409 with the choice.
    """
    if source is None or target is None:
        missing = "source" if source is None else "target"
        raise MalformedError(f"`{missing}` is missing; name the space, see /v1/spaces.", missing)
    try:
        if routing == "auto" and name is None:
            return registry.route(source, target)
        stitcher_name, stitcher = registry.resolve(source, target, name)
        return Route((stitcher_name,), (stitcher,))
    except NotFoundError as error:
        spaces = {s.source.name for s in registry.state.stitchers.values()}
        param = "stitcher" if name is not None else "target" if source in spaces else "source"
        hint = _detour_hint(registry, source, target) if name is None else ""
        raise Refusal(404, f"{error}{hint}", param) from None
    except ConflictError as error:
        raise Refusal(409, str(error), "stitcher") from None


def _detour_hint(registry: Registry, source: str, target: str) -> str:
    """A sentence that names the detour, where no stitcher leads straight and a detour does."""
    try:
        route = registry.route(source, target)
    except InputError:
        return ""
    return f" With route=auto it goes over {', '.join(route.spaces[1:-1])}."
