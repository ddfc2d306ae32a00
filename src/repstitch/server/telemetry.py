"""Prometheus metrics of the service, summed over its worker processes."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # environment variable: the folder through which workers share metrics
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
NO_ENCODING = "none"  # the label of requests whose body was not read
# The encodings of the body by route, for the time series that exist before the first request.
POST_ROUTES = {
    "translate": ("f32", "f16", "json", "base64", "arrow"),
    "embeddings": ("json", "text"),
    "score": ("json",),
}
NO_ROUTE = "none"  # the label of requests that reached no route: unknown paths, and requests without a valid key
NO_PAIR = "none"  # the label of all pairs that are not served, so that unknown names create no time series
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
UNUSUAL_P = 0.05  # for rows like those of the calibration, `p_typical` is below this value with this probability


class Metrics:
    """The metrics of one application. Only pairs that the registry serves are used as labels."""

    def __init__(self):
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry, "namespace": "repstitch"}
        self._requests = Counter(
            "requests", "Requests, by route, pair, encoding of the body and HTTP status.",
            ("route", "pair", "encoding", "code"), **options,
        )  # fmt: skip
        self._vectors = Counter("vectors", "Translated vectors, by pair.", ("pair",), **options)
        self._steps = Counter(
            "step_seconds", "Seconds spent on each step: decode, compute or encode.", ("step",), **options
        )
        self._request_seconds = Histogram(
            "request_seconds", "Seconds from the headers of a request to the end of its response, by route.",
            ("route",), buckets=SECONDS, **options,
        )  # fmt: skip
        self._request_seconds_by_route: dict[str, Histogram] = {}
        self._loaded = Gauge(
            "stitchers_loaded", "Stitchers that are loaded now.", multiprocess_mode="mostrecent", **options
        )
        self._candidates = Gauge(
            "stitchers_candidates", "Loaded stitchers that do not serve their pair, because another one does.",
            multiprocess_mode="mostrecent", **options,
        )  # fmt: skip
        self._reloads = Counter(
            "reloads", "Changes of stitchers, by result: loaded, removed or refused.", ("result",), **options
        )
        self._checked = Counter("checked_vectors", "Vectors checked for drift, by pair.", ("pair",), **options)
        self._unusual = Counter(
            "unusual_vectors",
            f"Checked vectors with p_typical below {UNUSUAL_P}, by pair; without drift, a share of {UNUSUAL_P}.",
            ("pair",), **options,
        )  # fmt: skip
        self.begin(NO_ROUTE, "401")
        # Counts are collected here and passed to prometheus_client at intervals, because its own counting would take a
        # tenth of the time of a small request.
        self._pending: dict[tuple[Counter, tuple[str, ...]], float] = {}

    def begin(self, route: str, code: str, pair: str = NO_PAIR, encoding: str = NO_ENCODING) -> None:
        """Create a time series of requests, which is then 0 and not missing before the first of them."""
        self._requests.labels(route, pair, encoding, code)

    def count_request(self, route: str, pair: str | None, encoding: str, status: int, seconds: float) -> None:
        """Count one request and the seconds it took."""
        self._count(self._requests, (route, pair or NO_PAIR, encoding, str(status)), 1)
        histogram = self._request_seconds_by_route.get(route)
        if histogram is None:
            histogram = self._request_seconds_by_route[route] = self._request_seconds.labels(route)
        histogram.observe(seconds)

    def count_vectors(self, pair: str, n_vectors: int, seconds: float) -> None:
        """Count translated vectors and the seconds that translating them took."""
        self._count(self._vectors, (pair,), n_vectors)
        self.add_seconds("compute", seconds)

    def add_seconds(self, step: str, seconds: float) -> None:
        self._count(self._steps, (step,), seconds)

    def _count(self, counter: Counter, labels: tuple[str, ...], amount: float) -> None:
        key = (counter, labels)
        self._pending[key] = self._pending.get(key, 0.0) + amount

    def flush(self) -> None:
        """Pass the counts to prometheus_client, where other worker processes see them."""
        pending, self._pending = self._pending, {}
        for (counter, labels), amount in pending.items():
            counter.labels(*labels).inc(amount)

    def count_drift(self, pair: str, n_checked: int, n_unusual: int) -> None:
        self._checked.labels(pair).inc(n_checked)
        self._unusual.labels(pair).inc(n_unusual)

    def count_reloads(self, results: Iterable[str], n_loaded: int, pairs: Collection[str]) -> None:
        """Count the changes of stitchers, and set how many are loaded and how many of them are candidates.

        `pairs` are the pairs that are served. The time series of their requests begin.
        """
        for result in results:
            self._reloads.labels(result).inc()
        self._loaded.set(n_loaded)
        self._candidates.set(n_loaded - len(pairs))
        for pair in pairs:
            for route, encodings in POST_ROUTES.items():
                for encoding in encodings:
                    self.begin(route, "200", pair, encoding)
        self.flush()

    def text(self) -> bytes:
        """Return the metrics of all worker processes together, in Prometheus' text format."""
        self.flush()
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self.registry)
        combined = CollectorRegistry()
        MultiProcessCollector(combined)
        return generate_latest(combined)


@contextmanager
def shared_by_workers():
    """Provide a folder through which worker processes started in this block share metrics, unless one is set."""
    if SHARED_FOLDER in os.environ:
        yield
        return
    folder = tempfile.mkdtemp(prefix="repstitch-metrics-")
    os.environ[SHARED_FOLDER] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
