"""The state that all routes of one process share: the registry, the placed routes, the limits, the threads."""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from repstitch.server.batching import Batcher, Translated
from repstitch.server.compute import PlacedRoute, Stage
from repstitch.server.guards import RETRY, ApiKeys, Deadlines, Gate
from repstitch.server.responses import Refusal
from repstitch.server.served import ServedRoute, find_route, serve_route
from repstitch.server.settings import Settings, choose_device
from repstitch.server.telemetry import UNUSUAL_P, Metrics
from repstitch.server.texts import TextEncoders, TextQueue
from repstitch.stitchers.registry import Registry, State
from repstitch.stitchers.routing import Route

log = logging.getLogger(__name__)

INLINE_ROWS = 64  # requests of up to this many rows run in the event loop, because handing them to a thread is slower
WORKER_NICENESS = 10
MAX_SLOW_TASKS = 8
DRIFT_CHECK_INTERVAL_S = 1.0
DRIFT_CHECK_ROWS = 16


class Service:
    """The state of one process. The routes use it in the event loop; `refresh` runs in a thread."""

    def __init__(self, registry: Registry, settings: Settings):
        self.registry, self.settings, self.keys = registry, settings, ApiKeys(settings)
        self.gate, self.deadlines, self.metrics = Gate(settings), Deadlines(settings.timeout_s), Metrics()
        self.thread = ThreadPoolExecutor(1, "translate", initializer=_lower_priority)
        self.slow_thread = ThreadPoolExecutor(1, "slow", initializer=_lower_priority)
        self.batcher = Batcher(self._compute)
        self.text_queue = TextQueue(ThreadPoolExecutor(1, "texts", initializer=_lower_priority))
        self.texts = TextEncoders(settings, registry, self.text_queue)
        self._slow_tasks: set[Future] = set()
        self._placed: dict[tuple, PlacedRoute] = {}
        self._served: dict[tuple, ServedRoute] = {}
        self._served_state: State | None = None  # the registry's state that `_served` was filled from
        self._device: str | None = None
        self._stage: Stage | None = None
        self._opening = threading.Lock()

    # --- the registry ---

    def refresh(self) -> list[str]:
        """Read the changes in the folder and place new stitchers, so that no request has to do this.

        Returns "loaded", "removed" or "refused" for each stitcher that changed.
        """
        report = self.registry.refresh()
        stitchers = self.registry.state.stitchers
        for name, event in report.items():
            version = f" (version {stitchers[name].version})" if name in stitchers else ""
            log.info("Stitcher %s%s: %s", name, version, event)
        current = {(name, stitcher.version) for name, stitcher in stitchers.items()}
        self._placed = {key: placed for key, placed in self._placed.items() if set(key) <= current}
        for name, stitcher in stitchers.items():
            try:
                self._place(Route((name,), (stitcher,)))
            except Exception:  # for example a lack of memory, which must not stop the others
                if name in report:
                    log.exception("Stitcher %s cannot be used yet.", name)
        return [event if event in ("loaded", "removed") else "refused" for event in report.values()]

    async def reload(self) -> None:
        """Run `refresh` in a thread. After any error, the stitchers loaded before remain in use."""
        try:
            results = await asyncio.to_thread(self.refresh)
        except Exception:
            log.exception(
                "The folder %s could not be read; the stitchers loaded before remain in use.", self.registry.folder
            )
        else:
            state = self.registry.state
            self.metrics.count_reloads(results, len(state.stitchers), state.serving.keys())

    async def watch(self) -> None:
        """Reload the API keys and the stitchers every `reload_s` seconds, until cancelled."""
        while True:
            await asyncio.sleep(self.settings.reload_s)
            await asyncio.to_thread(self.keys.reload)
            await self.reload()

    def state(self) -> State:
        """Return the registry's state. Raise Refusal 503 while no stitcher is loaded."""
        state = self.registry.state
        if not state.stitchers:
            raise Refusal(503, "No stitcher is loaded yet; retry later.", headers=RETRY)
        return state

    def check_ready(self) -> State:
        """Return the registry's state. Raise Refusal 503 until a stitcher and all text encoders are loaded."""
        state = self.state()
        self.texts.check_loaded()
        return state

    def resolve(self, names: dict[str, Any]) -> ServedRoute:
        """Return the route for the `source`, `target`, `stitcher` and `route` of a request. Raises as `find_route`.

        The route is cached until the registry changes.
        """
        if self.registry.state is not self._served_state:
            self._served_state = self.registry.state
            self._served = {}
        key = (names.get("source"), names.get("target"), names.get("stitcher"), names.get("route"))
        served = self._served.get(key)
        if served is None:
            route = find_route(self.registry, *key)
            served = self._served[key] = serve_route(route, self._place(route), key[3] == "auto")
        return served

    def _place(self, route: Route) -> PlacedRoute:
        key = tuple((name, stitcher.version) for name, stitcher in zip(route.names, route.stitchers, strict=True))
        placed = self._placed.get(key)
        if placed is None:
            placed = PlacedRoute(route, self._open_stage(), self.settings.precision)
            self._placed = {**self._placed, key: placed}
        return placed

    def _open_stage(self) -> Stage | None:
        """Return the buffers that all routes share, created when the first route is placed; None on the CPU."""
        with self._opening:  # the thread of `refresh` and the event loop may both place the first route
            if self._device is None:
                device = choose_device(self.settings)
                self._stage = None if device == "cpu" else Stage(device)
                self._device = device
            return self._stage

    # --- computing ---

    async def run(self, inline: bool, work: Callable, *args) -> Any:
        """Call `work` in the event loop if it is short (`inline`), else in the worker thread, one call at a time."""
        if inline:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *args)

    async def run_slow(self, work: Callable, *args) -> Any:
        """Call `work`, which takes seconds, in a second thread, so that no translation waits for it.

        Raises Refusal 429 while `MAX_SLOW_TASKS` calls are queued or running. A call that has started runs to its end
        and counts until then, even if its request was cancelled.
        """
        self._slow_tasks = {task for task in self._slow_tasks if not task.done()}
        if len(self._slow_tasks) >= MAX_SLOW_TASKS:
            message = f"The service is already processing {MAX_SLOW_TASKS} score requests, its limit; retry later."
            raise Refusal(429, message, headers=RETRY)
        task = self.slow_thread.submit(work, *args)
        self._slow_tasks.add(task)
        return await asyncio.wrap_future(task)

    async def translate(self, served: ServedRoute, rows: np.ndarray, with_measures: bool) -> Translated:
        """Translate rows through a route.

        A few rows are computed in the event loop, in one batch with those of other requests; more rows are computed in
        the worker thread. The thread computes in chunks, and small requests are answered between two chunks.
        """
        if len(rows) <= min(INLINE_ROWS, served.placed.inline_rows):
            translated = await self.batcher.translate(served, rows, with_measures)
        else:
            stop = threading.Event()
            try:
                translated = await self.run(False, self._compute, served, rows, with_measures, stop)
            finally:
                stop.set()
        self.metrics.count_vectors(served.pair, len(rows), translated.seconds)
        return translated

    def _compute(
        self, served: ServedRoute, rows: np.ndarray, with_measures: bool, stop: threading.Event | None = None
    ) -> Translated:
        """Translate rows through a route. If it is calibrated, check a sample of its rows for drift at intervals."""
        began = time.perf_counter()
        vectors, measures = served.placed.translate(rows, with_measures, stop)
        seconds = time.perf_counter() - began
        if served.placed.calibration is not None and began >= served.next_drift_check:
            served.next_drift_check = began + DRIFT_CHECK_INTERVAL_S
            sample = np.ascontiguousarray(rows[:: -(-len(rows) // DRIFT_CHECK_ROWS)])
            n_unusual = int((served.placed.p_typical(sample) < UNUSUAL_P).sum())
            self.metrics.count_drift(served.pair, len(sample), n_unusual)
        return Translated(vectors, measures, seconds)


def _lower_priority() -> None:
    """Let the event loop run first if it shares a core with this thread, because its work is short."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux can set the priority of a thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)
