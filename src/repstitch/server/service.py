"""What all routes of one process share: the registry, who serves which pair, the gate, the thread, the metrics."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from repstitch.errors import ConflictError, InputError, NotFoundError, one_line
from repstitch.registry import Registry, Route, State, pair_key
from repstitch.server.compute import Placed
from repstitch.server.guards import RETRY, Gate
from repstitch.server.observe import UNUSUAL, Metrics
from repstitch.server.replies import Refusal
from repstitch.server.settings import Settings, choose_device
from repstitch.stitcher import Stitcher
from repstitch.wire.rows import MalformedError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # how often rows of one pair are looked at for drift, and how many of them
LOOK_AT = 16


@dataclass(slots=True)
class Served:
    """A route as requests meet it: where it is computed, its label in metrics, and what every reply of it says."""

    route: Route
    placed: Placed
    pair: str
    headers: tuple[tuple[bytes, bytes], ...]
    described: dict[str, Any]
    look_at: float = 0.0  # when its rows are next looked at for drift

    @property
    def source(self):
        return self.route.stitchers[0].source

    @property
    def target(self):
        return self.route.stitchers[-1].target


class Service:
    """One process's share of the service. Routes read it in the event loop; `refresh` runs in a thread."""

    def __init__(self, registry: Registry, settings: Settings):
        self.registry, self.settings = registry, settings
        self.gate, self.metrics = Gate(settings), Metrics()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="translate")
        self.encoders: dict[str, Any] = {}
        self._placed: dict[tuple, Placed] = {}
        self._served: dict[tuple, Served] = {}
        self._state: State | None = None
        self._device: str | None = None

    # --- the registry ---

    def refresh(self) -> None:
        """Read what changed, hash and place what is new here, where no request waits for it."""
        report = self.registry.refresh()
        stitchers = self.registry.state.stitchers
        for name, event in report.items():
            log.info("Stitcher %s (version %s): %s", name, _version(stitchers.get(name)), event)
        kept = {(name, stitcher.version) for name, stitcher in stitchers.items()}
        self._placed = {key: placed for key, placed in self._placed.items() if set(key) <= kept}
        for name, stitcher in stitchers.items():
            self._place(Route((name,), (stitcher,)))
        known = ("loaded", "removed")
        self.metrics.reloaded((e if e in known else "refused" for e in report.values()), len(stitchers))

    async def follow(self) -> None:
        """Read the registry's folder now and every few seconds, in a thread; whatever fails, what was served stays."""
        while True:
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:
                log.exception("The folder %s could not be read; what was served before stays.", self.registry.folder)
            await asyncio.sleep(self.settings.reload_s)

    def state(self) -> State:
        """What is served; 503 while that is nothing."""
        state = self.registry.state
        if not state.stitchers:
            raise Refusal(503, "No stitcher is loaded yet; try again.", headers=RETRY)
        return state

    def resolve(self, names: dict[str, Any]) -> Served:
        """Who serves these names; remembered until the registry changes.

        400 when a side is not named, 404 with the nearest names, 409 with the choice.
        """
        if self.registry.state is not self._state:
            self._state = self.registry.state
            self._served = {}
        key = (names.get("source"), names.get("target"), names.get("stitcher"), names.get("route"))
        served = self._served.get(key)
        if served is None:
            served = self._served[key] = self._serve(find(self.registry, *key), key[3] == "auto")
        return served

    def _serve(self, route: Route, routed: bool) -> Served:
        versions = [stitcher.version for stitcher in route.stitchers]
        headers = [
            (b"x-dim", b"%d" % route.stitchers[-1].target.dim),
            (b"x-stitcher", ",".join(map(quote, route.names)).encode()),
            (b"x-stitcher-version", ",".join(versions).encode()),
        ]
        source, target = route.spaces[0], route.spaces[-1]
        described = {
            "source": source,
            "target": target,
            "stitcher": ",".join(route.names),
            "version": ",".join(versions),
        }
        if routed:
            described |= {"route": list(route.spaces), "expected_score": route.score}
            headers.append((b"x-route", "->".join(map(quote, route.spaces)).encode()))
            score = "unknown" if route.score is None else f"{route.score:.4g}"
            headers.append((b"x-expected-score", score.encode()))
        return Served(route, self._place(route), pair_key(source, target), tuple(headers), described)

    def _place(self, route: Route) -> Placed:
        key = tuple((name, stitcher.version) for name, stitcher in zip(route.names, route.stitchers, strict=True))
        placed = self._placed.get(key)
        if placed is None:
            self._device = self._device or choose_device(self.settings)
            placed = Placed(route, self._device, self.settings.precision)
            self._placed = {**self._placed, key: placed}
        return placed

    # --- work ---

    async def run(self, inline: bool, work: Callable, *args) -> Any:
        """Work done here where it is small, otherwise in the one thread, in turn."""
        if inline:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *args)

    def translate(
        self, served: Served, rows: np.ndarray, measured: bool, stop: threading.Event | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows through a route, and now and then a look at how usual they are."""
        answer = served.placed.translate(rows, measured, stop)
        now = time.monotonic()
        if served.placed.calibration is not None and now >= served.look_at:
            served.look_at = now + LOOK_EVERY_S
            seen = np.ascontiguousarray(rows[:: -(-len(rows) // LOOK_AT)])
            self.metrics.drift(served.pair, len(seen), int((served.placed.p_typical(seen) < UNUSUAL).sum()))
        return answer

    def load_encoders(self) -> None:
        """Load the text encoders that the settings name; one that cannot be is said in the log and left out."""
        from repstitch.encoders.encoder import load_encoder

        for entry in self.settings.encoders:
            space, _, what = entry.partition("=")
            try:
                encoder = load_encoder(what.strip(), device=self.settings.device)
                if encoder.space.modality != "text":
                    raise InputError(f"`encoder` {what} takes {encoder.space.modality}s, not texts.")
                self.encoders = {**self.encoders, space.strip(): encoder}
                log.info("Texts can be sent for space %s: encoder %s is loaded.", space, what)
            except InputError as error:
                log.error("Texts cannot be sent for space %s: %s", space, one_line(error))


def find(registry: Registry, source: str | None, target: str | None, name: str | None, route: str | None) -> Route:
    """The route between two spaces; a detour only when `route` is "auto"."""
    if source is None or target is None:
        missing = "source" if source is None else "target"
        raise MalformedError(f"`{missing}` is missing; name the space, see /v1/spaces.", missing)
    try:
        if route == "auto" and name is None:
            return registry.route(source, target)
        found, stitcher = registry.resolve(source, target, name)
        return Route((found,), (stitcher,))
    except NotFoundError as error:
        spaces = {s.source.name for s in registry.state.stitchers.values()}
        param = "stitcher" if name is not None else "target" if source in spaces else "source"
        raise Refusal(404, str(error), param) from None
    except ConflictError as error:
        raise Refusal(409, str(error), "stitcher") from None


def _version(stitcher: Stitcher | None) -> str:
    return "none" if stitcher is None else stitcher.version
