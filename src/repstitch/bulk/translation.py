"""The function that a job passes to a store: it translates rows, keeps to a rate, and can be stopped."""

import threading
import time
from collections.abc import Callable

import numpy as np

from repstitch.embeddings.rows import invalid_rows
from repstitch.mixing.placement import Placement
from repstitch.stitchers.stitcher import Stitcher

CHUNK_BYTES = 2**22  # of rows that are translated at a time, so that intermediate results need little memory


class Stopped(Exception):
    """The job was asked to stop. What has been written stays."""


class Translation:
    """Translates float32 rows (n, d_source) to rows as they are written to the new column. Several threads may call it.

    A row that cannot be translated, because it has NaN, Inf or only zeros, becomes NaN.

    Args:
        stitcher: The stitcher.
        max_rows_per_second: The most rows per second, over all threads. Default: no limit.
        report: Called with the number of rows after each call, for progress.
        placement: How translated rows (n, d_target) are written. Default: as they are.
    """

    def __init__(
        self,
        stitcher: Stitcher,
        max_rows_per_second: float | None = None,
        report: Callable[[int], object] = lambda _: None,
        placement: Placement | None = None,
    ):
        self.stitcher, self.rate, self.report = stitcher, max_rows_per_second, report
        self.placement = placement or Placement()
        self.dim = stitcher.target.dim + self.placement.extra
        self.n_rows = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self._wait(len(rows))
        translated = np.empty((len(rows), self.dim), np.float32)
        size = max(1, CHUNK_BYTES // (4 * self.stitcher.source.dim))
        for at in range(0, len(rows), size):
            translated[at : at + size] = self.placement.translated(self._translate(rows[at : at + size]))
        with self._lock:
            self.n_rows += len(rows)
            self.report(len(rows))
        return translated

    def stop(self) -> None:
        """Make every later call raise Stopped."""
        self._stop.set()

    def _translate(self, rows: np.ndarray) -> np.ndarray:
        invalid = np.logical_or(*invalid_rows(rows).values())
        if not invalid.any():
            return self.stitcher.translate(rows)
        translated = np.full((len(rows), self.stitcher.target.dim), np.nan, np.float32)
        if not invalid.all():
            translated[~invalid] = self.stitcher.translate(rows[~invalid])
        return translated

    def _wait(self, n_rows: int) -> None:
        """Wait until the rate allows for these rows. Raises Stopped if the job was asked to stop."""
        if self.rate is not None:
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic()) + n_rows / self.rate
                free_at = self._free_at
            self._stop.wait(free_at - time.monotonic())
        if self._stop.is_set():
            raise Stopped
