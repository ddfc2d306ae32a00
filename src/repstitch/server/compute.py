"""Routes placed on a device, and rows put through them in chunks."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from repstitch.embeddings.normalising import norms_are_valid
from repstitch.errors import InputError
from repstitch.stitchers.confidence import Confidence
from repstitch.stitchers.pipeline import Pipeline
from repstitch.stitchers.routing import Route

log = logging.getLogger(__name__)

CHUNK_ROWS = 256  # between two chunks, the requests beside a large one get their turn
DEVICE_ROWS = 4096
SMALL = (1, 4, 16, 64, 256)  # sizes at which a device is compared with the CPU


class Stopped(Exception):
    """Nobody waits for this translation any more."""


class Placed:
    """A route with its weights where they are computed with, put there once.

    `exact` is the route in float32 on the CPU: it answers requests of up to `small` rows, for which copying to another
    device would take longer, and rows that the placed weights cannot answer, so that only it says what is wrong.
    """

    def __init__(self, route: Route, device: str = "cpu", precision: str = "float32", staged: bool = False):
        self.exact = route.pipeline
        self.d_source, self.d_target = route.stitchers[0].source.dim, route.stitchers[-1].target.dim
        self.calibration: Confidence | None = route.stitchers[0].calibration if len(route.stitchers) == 1 else None
        self.pipeline = _place(self.exact, device, precision, route)
        self.stage: Stage | None = None
        self.small = 0
        if device != "cpu" or staged:
            self.stage = Stage(self, device)
            self.small = _crossover(self, SMALL) if device != "cpu" else 0

    @property
    def inline_rows(self) -> float:
        """How many rows are answered by the CPU, so that no thread is needed to wait for a device."""
        return math.inf if self.stage is None else self.small

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what `translate` measures of each row; none where nothing was calibrated."""
        return () if self.calibration is None else self.calibration.names

    def translate(
        self, rows: np.ndarray, measured: bool = False, stop: threading.Event | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows (n, d_source) translated (n, d_target), and where asked for their measures (n, m), all float32.

        Raises InputError on rows that cannot be translated, Stopped between two chunks once `stop` is set.
        """
        if self.stage is not None and len(rows) > self.small:
            return self.stage.translate(rows, measured, stop)
        pipeline = self.exact if self.stage is not None else self.pipeline
        if len(rows) <= CHUNK_ROWS:
            return self._here(pipeline, rows, measured)
        vectors = np.empty((len(rows), self.d_target), np.float32)
        measures = np.empty((len(rows), len(self.measures)), np.float32) if measured else None
        for start in range(0, len(rows), CHUNK_ROWS):
            if stop is not None and stop.is_set():
                raise Stopped
            part = slice(start, start + CHUNK_ROWS)
            vectors[part], found = self._here(pipeline, rows[part], measured)
            if measures is not None and found is not None:
                measures[part] = found
        return vectors, measures

    def p_typical(self, rows: np.ndarray) -> np.ndarray:
        """How usual each row (n, d_source) is, for a stitcher that was calibrated."""
        assert self.calibration is not None
        passed = self.exact(torch.from_numpy(rows))
        return self.calibration.measure(passed.inputs, passed.raw)["p_typical"].numpy()

    def _here(self, pipeline: Pipeline, rows: np.ndarray, measured: bool) -> tuple[np.ndarray, np.ndarray | None]:
        sent = torch.from_numpy(rows)
        passed = pipeline.run(sent)
        if not norms_are_valid(passed.norms):
            passed = self.exact.run_checked(sent)
        found = None
        if measured and self.calibration is not None:
            found = torch.stack(list(self.calibration.measure(passed.inputs, passed.raw).values()), 1).numpy()
        return passed.translated.float().numpy(), found


def _place(pipeline: Pipeline, device: str, precision: str, route: Route) -> Pipeline:
    """The pipeline on a device; weights that `precision` cannot hold stay in float32."""
    try:
        return pipeline.to(device, getattr(torch, precision))
    except InputError:
        log.warning("%s cannot hold the weights of %s; they stay in float32.", precision, ", ".join(route.names))
        return pipeline.to(device)


class Stage:
    """The way to a device and back: two pairs of pinned buffers, so that one chunk is copied while one is computed.

    Nothing waits for the device but the copy back; whether rows were sound comes back with them. One call at a time.
    """

    def __init__(self, placed: Placed, device: str):
        self.placed, self.device = placed, torch.device(device)
        self.calibration = None if placed.calibration is None else placed.calibration.to(device)
        self.chunk_rows = CHUNK_ROWS if self.device.type == "cpu" else DEVICE_ROWS
        self.slots = [_Slot(self, self.device) for _ in range(2)]
        self.lock = threading.Lock()  # two translations in the same buffers would answer with one another's rows

    def translate(
        self, rows: np.ndarray, measured: bool, stop: threading.Event | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        vectors = np.empty((len(rows), self.placed.d_target), np.float32)
        measures = np.empty((len(rows), len(self.placed.measures)), np.float32) if measured else None
        under_way: deque[Callable[[], None]] = deque()
        self.lock.acquire()
        try:
            for i, start in enumerate(range(0, len(rows), self.chunk_rows)):
                if stop is not None and stop.is_set():
                    raise Stopped
                if len(under_way) == len(self.slots):
                    under_way.popleft()()
                part = slice(start, start + self.chunk_rows)
                into = None if measures is None else measures[part]
                under_way.append(self.slots[i % len(self.slots)].start(rows[part], vectors[part], into))
            while under_way:
                under_way.popleft()()
        finally:
            for slot in self.slots:
                slot.wait()  # whatever happened, no buffer is still being written when the next request comes
            self.lock.release()
        return vectors, measures


class _Slot:
    """Pinned memory for one chunk each way, and the stream on the device that uses it."""

    def __init__(self, stage: Stage, device: torch.device):
        self.stage, self.device = stage, device
        pinned = device.type == "cuda"
        n, placed = stage.chunk_rows, stage.placed
        self.rows = torch.empty((n, placed.d_source), pin_memory=pinned)
        self.vectors = torch.empty((n, placed.d_target), pin_memory=pinned)
        self.measures = torch.empty((n, len(placed.measures)), pin_memory=pinned)
        self.bounds = torch.empty(2, pin_memory=pinned)
        self.stream = torch.cuda.Stream(device) if pinned else None

    @torch.no_grad()
    def start(self, rows: np.ndarray, vectors: np.ndarray, measures: np.ndarray | None) -> Callable[[], None]:
        """Send rows off; what is returned waits for them, and puts the answer into `vectors` and `measures`."""
        n, stage = len(rows), self.stage
        self.rows[:n].copy_(torch.from_numpy(rows))
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            passed = stage.placed.pipeline.run(self.rows[:n].to(self.device, non_blocking=True))
            bounds = torch.stack(torch.aminmax(torch.cat([norms.reshape(-1) for norms in passed.norms])))
            self.vectors[:n].copy_(passed.translated, non_blocking=True)
            self.bounds.copy_(bounds, non_blocking=True)
            if measures is not None and stage.calibration is not None:
                found = stage.calibration.measure(passed.inputs, passed.raw)
                self.measures[:n].copy_(torch.stack(list(found.values()), 1), non_blocking=True)

        def finish() -> None:
            self.wait()
            if norms_are_valid([self.bounds]):
                vectors[:] = self.vectors[:n].numpy()
                if measures is not None:
                    measures[:] = self.measures[:n].numpy()
            else:
                exact, found = stage.placed._here(stage.placed.exact, rows, measures is not None)
                vectors[:] = exact
                if measures is not None:
                    measures[:] = found

        return finish

    def wait(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()


def _crossover(placed: Placed, sizes: tuple[int, ...]) -> int:
    """The largest of some numbers of rows that the CPU answers sooner than the device, 0 where it never does."""
    random = np.random.default_rng(0)
    small = 0
    for n in sizes:
        rows = random.standard_normal((n, placed.d_source), dtype=np.float32)
        on_device = _best_time(lambda rows=rows: placed.stage.translate(rows, False, None))  # pyright: ignore[reportOptionalMemberAccess]
        on_cpu = _best_time(lambda rows=rows: placed._here(placed.exact, rows, False))
        if on_cpu > on_device:
            break
        small = n
    return small


def _best_time(work: Callable[[], object], repeats: int = 5) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
