"""Place routes on a device, and translate rows in chunks."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, nullcontext

import numpy as np
import torch

from repstitch.embeddings.normalising import norms_are_valid
from repstitch.errors import InputError
from repstitch.stitchers.confidence import Calibration
from repstitch.stitchers.pipeline import Pipeline
from repstitch.stitchers.routing import Route

log = logging.getLogger(__name__)

CHUNK_ROWS = 256  # small requests are answered between the chunks of a large one
DEVICE_CHUNK_ROWS = 4096
BOUNDS = 2  # numbers that a chunk returns in addition to its rows: its smallest and its largest norm
SLOT_FLOATS = 2**23  # 32 MiB: room for 4,096 rows of 768 dimensions and their translations of 1,024
CROSSOVER_ROWS = (1, 4, 16, 64, 256)  # numbers of rows for which a device is timed against the CPU


class Stopped(Exception):
    """The translation was stopped, because its request has ended."""


class PlacedRoute:
    """A route whose weights were copied once to the device that computes it.

    `exact` is the route in float32 on the CPU. With another device, it computes requests of up to `cpu_rows` rows, for
    which copying to the device would take longer. It also computes rows for which the placed weights give invalid
    norms, so all errors about rows come from it.
    """

    def __init__(self, route: Route, stage: "Stage | None" = None, precision: str = "float32"):
        """Place a route on the device of `stage`, or on the CPU if `stage` is None."""
        self.exact = route.pipeline
        self.d_source, self.d_target = route.stitchers[0].source.dim, route.stitchers[-1].target.dim
        self.calibration: Calibration | None = route.stitchers[0].calibration if len(route.stitchers) == 1 else None
        self.stage = stage
        device = torch.device("cpu") if stage is None else stage.device
        self.pipeline = _place(self.exact, device, precision, route)
        self.placed_calibration = None if self.calibration is None else self.calibration.to(device)
        self.cpu_rows = 0 if device.type == "cpu" else _crossover(self, str(device), CROSSOVER_ROWS)

    @property
    def inline_rows(self) -> float:
        """Largest number of rows that the CPU computes, without waiting for a device; infinite if `stage` is None."""
        return math.inf if self.stage is None else self.cpu_rows

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the confidence measures of each row; empty if the route has no calibration."""
        return () if self.calibration is None else self.calibration.names

    @property
    def widths(self) -> tuple[int, int, int]:
        """Numbers per row: of the source row, of its translation and of its measures."""
        return self.d_source, self.d_target, len(self.measures)

    def translate(
        self, rows: np.ndarray, with_measures: bool = False, stop: threading.Event | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Translate rows (n, d_source) to (n, d_target); with `with_measures`, also return their measures (n, m).

        All arrays are float32. Raises InputError on rows that cannot be translated, and Stopped between two chunks once
        `stop` is set.
        """
        if self.stage is not None and len(rows) > self.cpu_rows:
            return self.stage.translate(self, rows, with_measures, stop)
        pipeline = self.exact if self.stage is not None else self.pipeline
        if len(rows) <= CHUNK_ROWS:
            return self.run(pipeline, rows, with_measures)
        vectors = np.empty((len(rows), self.d_target), np.float32)
        measures = np.empty((len(rows), len(self.measures)), np.float32) if with_measures else None
        for start in range(0, len(rows), CHUNK_ROWS):
            if stop is not None and stop.is_set():
                raise Stopped
            part = slice(start, start + CHUNK_ROWS)
            vectors[part], part_measures = self.run(pipeline, rows[part], with_measures)
            if measures is not None and part_measures is not None:
                measures[part] = part_measures
        return vectors, measures

    def p_typical(self, rows: np.ndarray) -> np.ndarray:
        """Return the measure `p_typical` of each row (n, d_source). The stitcher must be calibrated."""
        assert self.calibration is not None
        output = self.exact(torch.from_numpy(rows))
        return self.calibration.measure(output.inputs, output.raw)["p_typical"].numpy()

    def run(self, pipeline: Pipeline, rows: np.ndarray, with_measures: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Translate rows with a pipeline on the CPU. Rows with invalid norms are computed again with `exact`."""
        tensor = torch.from_numpy(rows)
        output = pipeline.run(tensor)
        if not norms_are_valid(output.norms):
            output = self.exact.run_checked(tensor)
        measures = None
        if with_measures and self.calibration is not None:
            measures = torch.stack(list(self.calibration.measure(output.inputs, output.raw).values()), 1).numpy()
        return output.translated.float().numpy(), measures


def _place(pipeline: Pipeline, device: torch.device, precision: str, route: Route) -> Pipeline:
    """Copy the pipeline to a device. Weights that `precision` cannot represent stay in float32."""
    try:
        return pipeline.to(device, getattr(torch, precision))
    except InputError:
        log.warning("%s cannot represent the weights of %s; they stay in float32.", precision, ", ".join(route.names))
        return pipeline.to(device)


class Stage:
    """Copies rows to a device and translations back through two slots of pinned memory, so that copying overlaps
    computing.

    All routes of a process share one stage, so that pinned memory does not grow with their number. Only the copy back
    to the CPU waits for the device; it includes the norms that show whether the rows were valid. `translate` runs one
    call at a time.
    """

    def __init__(self, device: str, slot_floats: int = SLOT_FLOATS):
        self.device, self.slot_floats = torch.device(device), slot_floats
        self.slots = [_Slot(self.device, slot_floats) for _ in range(2)]
        self.lock = threading.Lock()  # two concurrent calls would overwrite each other's rows in the buffers

    def translate(
        self, placed: PlacedRoute, rows: np.ndarray, with_measures: bool, stop: threading.Event | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        vectors = np.empty((len(rows), placed.d_target), np.float32)
        measures = np.empty((len(rows), len(placed.measures)), np.float32) if with_measures else None
        chunk_rows = self._chunk_rows(placed)
        in_flight: deque[Callable[[], None]] = deque()
        with self.lock, ExitStack() as at_end:
            for slot in self.slots:
                at_end.callback(slot.wait)  # after an error too: no buffer may be in use when the next call begins
            for i, start in enumerate(range(0, len(rows), chunk_rows)):
                if stop is not None and stop.is_set():
                    raise Stopped
                if len(in_flight) == len(self.slots):
                    in_flight.popleft()()
                part = slice(start, start + chunk_rows)
                part_measures = None if measures is None else measures[part]
                slot = self.slots[i % len(self.slots)]
                in_flight.append(slot.start(placed, rows[part], vectors[part], part_measures))
            while in_flight:
                in_flight.popleft()()
        return vectors, measures

    def _chunk_rows(self, placed: PlacedRoute) -> int:
        """Rows of a route per chunk: as many as fit in a slot, up to a limit."""
        most = CHUNK_ROWS if self.device.type == "cpu" else DEVICE_CHUNK_ROWS
        return max(1, min(most, (self.slot_floats - BOUNDS) // sum(placed.widths)))


class _Slot:
    """Pinned memory for one chunk in both directions, and the CUDA stream that uses it."""

    def __init__(self, device: torch.device, floats: int):
        self.device = device
        self.memory = torch.empty(floats, pin_memory=device.type == "cuda")
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def start(
        self, placed: PlacedRoute, rows: np.ndarray, vectors: np.ndarray, measures: np.ndarray | None
    ) -> Callable[[], None]:
        """Start translating rows. The returned function waits and writes the result to `vectors` and `measures`."""
        n = len(rows)
        sizes = [BOUNDS, *(n * width for width in placed.widths)]
        bounds, *parts = self.memory[: sum(sizes)].split(sizes)
        rows_here, vectors_here, measures_here = (
            part.view(n, width) for part, width in zip(parts, placed.widths, strict=True)
        )
        rows_here.copy_(torch.from_numpy(rows))
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            output = placed.pipeline.run(rows_here.to(self.device, non_blocking=True))
            vectors_here.copy_(output.translated, non_blocking=True)
            extremes = torch.stack(torch.aminmax(torch.cat([norms.reshape(-1) for norms in output.norms])))
            bounds.copy_(extremes, non_blocking=True)
            if measures is not None and placed.placed_calibration is not None:
                columns = placed.placed_calibration.measure(output.inputs, output.raw)
                measures_here.copy_(torch.stack(list(columns.values()), 1), non_blocking=True)

        def finish() -> None:
            self.wait()
            if norms_are_valid([bounds]):
                vectors[:] = vectors_here.numpy()
                if measures is not None:
                    measures[:] = measures_here.numpy()
            else:
                exact_vectors, exact_measures = placed.run(placed.exact, rows, measures is not None)
                vectors[:] = exact_vectors
                if measures is not None:
                    measures[:] = exact_measures

        return finish

    def wait(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()


def _crossover(placed: PlacedRoute, device: str, sizes: tuple[int, ...]) -> int:
    """Return the largest of `sizes` (rows) up to which the CPU is as fast as the device, or 0."""
    # A separate stage, so that placing a route does not wait for requests that are using the shared buffers.
    stage = Stage(device, BOUNDS + max(sizes) * sum(placed.widths))
    random = np.random.default_rng(0)
    largest = 0
    for n in sizes:
        rows = random.standard_normal((n, placed.d_source), dtype=np.float32)
        on_device = _best_time(lambda rows=rows: stage.translate(placed, rows, False, None))
        on_cpu = _best_time(lambda rows=rows: placed.run(placed.exact, rows, False))
        if on_cpu > on_device:
            break
        largest = n
    return largest


def _best_time(work: Callable[[], object], repeats: int = 5) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
