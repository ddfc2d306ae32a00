"""What the service tells about itself: Prometheus metrics, added up over worker processes."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # where workers leave their numbers for one another; the library reads it
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
NO_PAIR = "none"  # what is asked for without being known must not make a series
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
UNUSUAL = 0.05  # a row of the kind that a stitcher was calibrated on has a p_typical below it with this probability


class Metrics:
    """The metrics of one application; pairs are labels only where the registry serves them."""

    def __init__(self):
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "repstitch"}
        self._requests = Counter(
            "requests", "Requests by route, pair, what they were written in, and status.",
            ("route", "pair", "encoding", "code"), **made,
        )  # fmt: skip
        self._vectors = Counter("vectors", "Vectors translated, by pair.", ("pair",), **made)
        self._steps = Counter("step_seconds", "Seconds spent by step: decode, compute, encode.", ("step",), **made)
        self._whole = Histogram(
            "request_seconds", "Seconds from a request's first byte to its answer, by route.",
            ("route",), buckets=SECONDS, **made,
        )  # fmt: skip
        self._by_route: dict[str, Histogram] = {}
        self._loaded = Gauge("stitchers_loaded", "Stitchers served now.", multiprocess_mode="mostrecent", **made)
        self._reloads = Counter("reloads", "Stitchers loaded, removed or refused while running.", ("result",), **made)
        self._checked = Counter("checked_vectors", "Vectors looked at for drift, by pair.", ("pair",), **made)
        self._unusual = Counter(
            "unusual_vectors", f"Those of them with p_typical below {UNUSUAL}, which that share should have.",
            ("pair",), **made,
        )  # fmt: skip
        # Counted here, and handed to the library now and then: its own counting costs a tenth of a small request.
        self._pending: dict[tuple[Counter, tuple[str, ...]], float] = {}

    def request(self, route: str, pair: str | None, encoding: str, status: int, seconds: float) -> None:
        """Count one request that was answered, and how long that took."""
        self._count(self._requests, (route, pair or NO_PAIR, encoding, str(status)), 1)
        whole = self._by_route.get(route)
        if whole is None:
            whole = self._by_route[route] = self._whole.labels(route)
        whole.observe(seconds)

    def translated(self, pair: str, vectors: int, seconds: float) -> None:
        """Count vectors that were computed."""
        self._count(self._vectors, (pair,), vectors)
        self.spent("compute", seconds)

    def spent(self, step: str, seconds: float) -> None:
        self._count(self._steps, (step,), seconds)

    def _count(self, counter: Counter, labels: tuple[str, ...], more: float) -> None:
        key = (counter, labels)
        self._pending[key] = self._pending.get(key, 0.0) + more

    def flush(self) -> None:
        """Hand on what was counted; other worker processes see it from then on."""
        pending, self._pending = self._pending, {}
        for (counter, labels), more in pending.items():
            counter.labels(*labels).inc(more)

    def drift(self, pair: str, checked: int, unusual: int) -> None:
        self._checked.labels(pair).inc(checked)
        self._unusual.labels(pair).inc(unusual)

    def reloaded(self, results: Iterable[str], loaded: int) -> None:
        for result in results:
            self._reloads.labels(result).inc()
        self._loaded.set(loaded)
        self.flush()

    def text(self) -> bytes:
        """The metrics in Prometheus' text format, of all worker processes together."""
        self.flush()
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)


@contextmanager
def shared_by_workers():
    """A folder in which worker processes started in the block add up their metrics; left as it is where one is set."""
    if SHARED in os.environ:
        yield
        return
    folder = tempfile.mkdtemp(prefix="repstitch-metrics-")
    os.environ[SHARED] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
