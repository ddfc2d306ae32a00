"""What all routes of one process share: the registry, who serves which pair, the gate, the thread, the metrics."""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from repstitch.errors import ConflictError, InputError, NotFoundError, one_line
from repstitch.server.compute import Placed
from repstitch.server.guards import RETRY, Clock, Gate
from repstitch.server.responses import Refusal
from repstitch.server.settings import Settings, choose_device
from repstitch.server.telemetry import UNUSUAL, Metrics
from repstitch.stitchers.registry import Registry, State
from repstitch.stitchers.routing import Route, pair_key
from repstitch.stitchers.stitcher import Stitcher
from repstitch.wire.rows import MalformedError

log = logging.getLogger(__name__)

INLINE_ROWS = 64  # up to here a thread costs more than it frees
TOGETHER_ROWS = 256
LOOK_AROUND = 8
GIVEN_WAY = 10
SLOW_WORKS = 8
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


class Translated(NamedTuple):
    """Translated rows (n, d), their measures (n, m) where asked for, and the seconds that took."""

    vectors: np.ndarray
    measures: np.ndarray | None
    seconds: float


Waiting = list[tuple[np.ndarray, "asyncio.Future[Translated]"]]


class Service:
    """One process's share of the service. Routes read it in the event loop; `refresh` runs in a thread."""

    def __init__(self, registry: Registry, settings: Settings):
        self.registry, self.settings = registry, settings
        self.gate, self.clock, self.metrics = Gate(settings), Clock(settings.timeout_s), Metrics()
        self.thread = ThreadPoolExecutor(1, "translate", initializer=_give_way)
        self.slow_thread = ThreadPoolExecutor(1, "slow", initializer=_give_way)
        self._slow_works = 0
        self.encoders: dict[str, Any] = {}
        self._placed: dict[tuple, Placed] = {}
        self._served: dict[tuple, Served] = {}
        self._waiting: dict[tuple[int, bool], Waiting] = {}
        self._alone, self._turn = True, 0
        self._state: State | None = None
        self._device: str | None = None

    # --- the registry ---

    def refresh(self) -> list[str]:
        """Read what changed, hash and place what is new, where no request waits for it; returns what happened."""
        report = self.registry.refresh()
        stitchers = self.registry.state.stitchers
        for name, event in report.items():
            log.info("Stitcher %s (version %s): %s", name, _version(stitchers.get(name)), event)
        kept = {(name, stitcher.version) for name, stitcher in stitchers.items()}
        self._placed = {key: placed for key, placed in self._placed.items() if set(key) <= kept}
        for name, stitcher in stitchers.items():
            self._place(Route((name,), (stitcher,)))
        return [event if event in ("loaded", "removed") else "refused" for event in report.values()]

    async def look(self) -> None:
        """Read the registry's folder, in a thread; whatever fails, what was served stays."""
        try:
            results = await asyncio.to_thread(self.refresh)
        except Exception:
            log.exception("The folder %s could not be read; what was served before stays.", self.registry.folder)
        else:
            self.metrics.reloaded(results, len(self.registry.state.stitchers))

    async def follow(self) -> None:
        """Look again every few seconds."""
        while True:
            await asyncio.sleep(self.settings.reload_s)
            await self.look()

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

    async def run_slowly(self, work: Callable, *args) -> Any:
        """Work of seconds, in a thread of its own, so that translations never wait for it; 429 when much of it waits.

        What was begun goes on when nobody waits for it any more, and takes its place until it is done.
        """
        if self._slow_works >= SLOW_WORKS:
            message = f"{self._slow_works} scores or texts are under way, as many as are taken at once; try again."
            raise Refusal(429, message, headers=RETRY)
        loop = asyncio.get_running_loop()
        self._slow_works += 1
        future = self.slow_thread.submit(work, *args)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._slow_work_done))
        return await asyncio.wrap_future(future)

    def _slow_work_done(self) -> None:
        self._slow_works -= 1

    async def translate(self, served: Served, rows: np.ndarray, measured: bool) -> Translated:
        """Rows through a route: few of them here, together with those of other requests that came with them.

        More go through the one thread, in turn, in chunks that leave room for small requests.
        """
        if len(rows) <= min(INLINE_ROWS, served.placed.inline_rows):
            answer = await self._together(served, rows, measured)
        else:
            stop = threading.Event()
            try:
                answer = await self.run(False, self._translate, served, rows, measured, stop)
            finally:
                stop.set()
        self.metrics.translated(served.pair, len(rows), answer.seconds)
        return answer

    def _translate(
        self, served: Served, rows: np.ndarray, measured: bool, stop: threading.Event | None = None
    ) -> Translated:
        """Rows through a route, and now and then a look at how usual they are."""
        began = time.perf_counter()
        vectors, measures = served.placed.translate(rows, measured, stop)
        seconds = time.perf_counter() - began
        if served.placed.calibration is not None and began >= served.look_at:
            served.look_at = began + LOOK_EVERY_S
            seen = np.ascontiguousarray(rows[:: -(-len(rows) // LOOK_AT)])
            self.metrics.drift(served.pair, len(seen), int((served.placed.p_typical(seen) < UNUSUAL).sum()))
        return Translated(vectors, measures, seconds)

    async def _together(self, served: Served, rows: np.ndarray, measured: bool) -> Translated:
        """Rows through a route in one product with all that came in the same turn of the event loop.

        Nothing waits for more to come; but of what is there already the weights are read once. Where requests have come
        one by one, only now and then one is kept back for a turn of the loop, to see whether others are there by now.
        """
        self._turn = (self._turn + 1) % LOOK_AROUND
        if self._alone and self._turn and not self._waiting:
            return self._translate(served, rows, measured)
        loop = asyncio.get_running_loop()
        key = (id(served), measured)
        if key not in self._waiting:
            self._waiting[key] = []
            loop.call_soon(self._answer_together, key, served, measured)
        answer: asyncio.Future[Translated] = loop.create_future()
        self._waiting[key].append((rows, answer))
        return await answer

    def _answer_together(self, key: tuple[int, bool], served: Served, measured: bool) -> None:
        waiting = [(rows, answer) for rows, answer in self._waiting.pop(key) if not answer.done()]
        self._alone = len(waiting) < 2
        most = min(TOGETHER_ROWS, served.placed.inline_rows)  # more would be a device's, which one thread alone uses
        while waiting:
            n_rows, count = 0, 0
            while count < len(waiting) and (count == 0 or n_rows + len(waiting[count][0]) <= most):
                n_rows += len(waiting[count][0])
                count += 1
            part, waiting = waiting[:count], waiting[count:]
            if count == 1 or not self._answer_at_once(served, part, measured):
                for rows, answer in part:
                    try:
                        answer.set_result(self._translate(served, rows, measured))
                    except Exception as error:
                        answer.set_exception(error)

    def _answer_at_once(self, served: Served, part: Waiting, measured: bool) -> bool:
        """Answer several in one product; False where one of them cannot be answered, so that it alone is refused."""
        try:
            whole = self._translate(served, np.concatenate([rows for rows, _ in part]), measured)
        except Exception:
            return False
        start = 0
        for rows, answer in part:
            here = slice(start, start + len(rows))
            start += len(rows)
            measures = None if whole.measures is None else whole.measures[here]
            answer.set_result(Translated(whole.vectors[here], measures, whole.seconds / len(part)))
        return True

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
        raise Refusal(404, f"{error}{_hint(registry, source, target) if name is None else ''}", param) from None
    except ConflictError as error:
        raise Refusal(409, str(error), "stitcher") from None


def _hint(registry: Registry, source: str, target: str) -> str:
    """What to ask for where no stitcher leads straight, but a detour does."""
    try:
        route = registry.route(source, target)
    except InputError:
        return ""
    return f" With route=auto it goes over {', '.join(route.spaces[1:-1])}."


def _give_way() -> None:
    """Let the event loop go first where the two share a core: what it has to do is short."""
    with contextlib.suppress(OSError, AttributeError):  # of threads only Linux knows it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), GIVEN_WAY)


def _version(stitcher: Stitcher | None) -> str:
    return "none" if stitcher is None else stitcher.version
