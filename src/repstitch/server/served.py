"""Find the route for a request, and build the headers and fields that are common to all its responses."""

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
    """A route that requests use: placed on a device, with its metrics label and the common parts of its responses."""

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

    @property
    def confidence_is_usable(self) -> bool:
        """False if the scorecard states that p_match was not shown to separate hits from misses."""
        confidence = self.route.stitchers[0].scorecard.confidence
        return confidence is None or confidence.usable is not False


def serve_route(route: Route, placed: PlacedRoute, show_route: bool) -> ServedRoute:
    """Build a served route. With `show_route`, its responses also contain its spaces and its expected score."""
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
    """Find the route between two spaces, through other spaces only if `routing` is "auto" and `name` is None.

    Raises MalformedError if a space is missing, Refusal 404 with the nearest names if no stitcher fits, and Refusal 409
    if the stitcher `name` translates another pair.
    """
    if source is None or target is None:
        missing = "source" if source is None else "target"
        raise MalformedError(f"`{missing}` is missing; send the name of a space, see /v1/spaces.", missing)
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
    """Return a sentence that offers the route through other spaces; empty if there is none."""
    try:
        route = registry.route(source, target)
    except InputError:
        return ""
    return f" A route through {', '.join(route.spaces[1:-1])} exists: `/v1/translate` uses it with route=auto."
