"""Load text encoders, and encode the texts of requests, which wait in one queue and share batches."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from repstitch.errors import InputError, one_line
from repstitch.server.guards import RETRY
from repstitch.server.responses import Refusal
from repstitch.server.settings import Settings
from repstitch.spaces import Space
from repstitch.stitchers.registry import Registry

if TYPE_CHECKING:
    from repstitch.encoders.encoder import Encoder

log = logging.getLogger(__name__)
BATCH_TEXTS = 32
BATCH_S = 1.0  # a batch is chosen to take no longer, because work that nobody waits for stops only between two batches
TEXT_COST = 64  # the time of a text that does not depend on its length, in bytes
BYTES_PER_TOKEN = 4  # with more bytes than this times its limit of tokens, a text is truncated
MAX_BYTES_PER_TOKEN = 64  # of the limit of tokens, that a text may have, because a tokenizer reads all of it
USUAL_TOKENS = 2048  # taken for the limit of an encoder without one
MAX_RETRY_S = 60
LATEST_WEIGHT = 0.5  # of the latest batch in the measured time per byte
USABLE_SHARE = 0.8  # of the time that a request has left; the rest allows for slower batches and the translation


class EncodedTexts(NamedTuple):
    """The vectors of texts (n, dim), the tokens that the encoder read, and how many of the texts it truncated."""

    vectors: np.ndarray
    n_tokens: int
    n_truncated: int


@dataclass(eq=False)
class _Request:
    encoder: "Encoder"
    texts: list[str]
    costs: np.ndarray
    order: np.ndarray  # by length, so that the texts of a batch need little padding
    vectors: np.ndarray
    future: Future[EncodedTexts] = field(default_factory=Future)
    n_done: int = 0
    n_tokens: int = 0
    n_truncated: int = 0

    @property
    def remaining(self) -> float:
        """The cost of the texts that are not encoded yet."""
        return float(self.costs[self.order[self.n_done :]].sum())


Batch = list[tuple[_Request, np.ndarray]]  # requests with the numbers of some of their texts


class TextQueue:
    """Encodes the texts of all requests in one thread, in the order of their arrival.

    The time per text is measured, so a request that cannot be answered in time is refused before any work is done for
    it. A request whose future is cancelled leaves the queue after the current batch.
    """

    def __init__(self, thread: ThreadPoolExecutor):
        self.thread = thread
        self._lock = threading.Lock()
        self._waiting: deque[_Request] = deque()
        self._is_running = self._is_closed = False
        self.pace: dict[Encoder, float] = {}  # seconds per byte of cost
        self._returning: list[tuple[float, float]] = []  # of refused requests: when they may retry, and what they need

    def measure(self, encoder: "Encoder") -> None:
        """Measure the time per text of an encoder that was just loaded, by encoding a few."""
        samples, seconds = ["word " * 40] * 4, []
        for _ in range(3):  # the first batch also loads code and allocates memory
            began = time.perf_counter()
            encoder.encode(samples, len(samples))
            seconds.append(time.perf_counter() - began)
        self.pace[encoder] = min(seconds) / float(text_costs(encoder, samples).sum())

    def submit(self, encoder: "Encoder", texts: list[str], within_s: float) -> Future[EncodedTexts]:
        """Queue the texts of a request that has `within_s` seconds left.

        Raises Refusal 413 if a text is too long or if the texts alone would take longer, and Refusal 429 if they would
        after those that wait.
        """
        _check_lengths(encoder, texts)
        costs, usable_s = text_costs(encoder, texts), USABLE_SHARE * within_s
        vectors = np.empty((len(texts), encoder.space.dim), dtype=np.float32)
        request = _Request(encoder, texts, costs, np.argsort(costs, kind="stable"), vectors)
        with self._lock:
            pace = self.pace.get(encoder, 0.0)
            needed_s = pace * request.remaining
            # One text is never too many. If even that takes too long, the request ends with a timeout.
            if needed_s > usable_s and len(texts) > 1:
                # No request may be left that corrects a rate that was measured in a bad moment.
                self._start(self._measure_again, encoder)
                n_possible = max(1, int((pace * costs.cumsum() <= usable_s).sum()))
                raise Refusal(
                    413,
                    f"The encoder needs about {needed_s:.0f} s for these {len(texts)} texts, more than a request may "
                    f"take; send at most {n_possible} of them in one request.",
                    "input",
                )
            waiting_s = sum(self.pace.get(w.encoder, 0.0) * w.remaining for w in self._waiting if not w.future.done())
            if waiting_s and waiting_s + needed_s > usable_s:
                seconds = self._seconds_to_wait(waiting_s - usable_s, needed_s)
                raise Refusal(
                    429,
                    f"The texts that wait for the encoder take about {waiting_s:.0f} s, too long to answer this in "
                    f"time; retry in {seconds} s.",
                    headers={"Retry-After": str(seconds)},
                )
            self._waiting.append(request)
            self._start(self._run)
        return request.future

    def _start(self, work: Callable, *args: object) -> None:
        """Let the thread work, unless it does already or the queue is closed."""
        if not self._is_running and not self._is_closed:
            self._is_running = True
            self.thread.submit(work, *args)

    def _seconds_to_wait(self, excess_s: float, needed_s: float) -> int:
        """Return after how many seconds a refused request will fit, counting the refused ones that return before it."""
        now = time.monotonic()
        self._returning = [(due, seconds) for due, seconds in self._returning if due > now]
        seconds = excess_s + needed_s + sum(seconds for _, seconds in self._returning)
        wait_s = max(1, min(math.ceil(seconds), MAX_RETRY_S))
        if seconds < MAX_RETRY_S:  # else their number would have no bound
            self._returning.append((now + wait_s, needed_s))
        return wait_s

    def close(self) -> None:
        """Stop after the current batch, and refuse what is waiting."""
        with self._lock:
            self._is_closed = True
            for request in self._waiting:
                request.future.cancel()

    # --- in the thread ---

    def _measure_again(self, encoder: "Encoder") -> None:
        try:
            self.measure(encoder)
        finally:
            self._run()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._encode(batch)

    def _next_batch(self) -> Batch:
        """Return the next texts of the first requests for one encoder; nothing if none is waiting."""
        with self._lock:
            self._waiting = deque(request for request in self._waiting if not request.future.done())
            if not self._waiting or self._is_closed:
                self._is_running = False
                return []
            batch: Batch = []
            encoder, n_texts, seconds = self._waiting[0].encoder, 0, 0.0
            for request in self._waiting:
                if request.encoder is not encoder:
                    continue
                numbers = request.order[request.n_done : request.n_done + BATCH_TEXTS - n_texts]
                ends = seconds + self.pace.get(encoder, 0.0) * request.costs[numbers].cumsum()
                n_fitting = int((ends <= BATCH_S).sum())
                numbers = numbers[: n_fitting if batch else max(1, n_fitting)]
                if not len(numbers):
                    break
                batch.append((request, numbers))
                n_texts, seconds = n_texts + len(numbers), float(ends[len(numbers) - 1])
            return batch

    def _encode(self, batch: Batch) -> None:
        """Encode a batch. If it fails, encode each request's part alone, so that only the one at fault fails."""
        encoder = batch[0][0].encoder
        texts = [request.texts[number] for request, numbers in batch for number in numbers]
        began = time.perf_counter()
        try:
            vectors, counts = encoder.encode(texts, len(texts)), encoder.count_tokens(texts)
        except Exception as error:
            if len(batch) > 1:
                for part in batch:
                    self._encode([part])
            elif batch[0][0].future.set_running_or_notify_cancel():
                batch[0][0].future.set_exception(error)
            return
        pace = (time.perf_counter() - began) / float(text_costs(encoder, texts).sum())
        limit = encoder.card.max_length or math.inf
        start = 0
        with self._lock:
            before = self.pace.get(encoder, pace)
            self.pace[encoder] = before + LATEST_WEIGHT * (pace - before)
            for request, numbers in batch:
                part = slice(start, start := start + len(numbers))
                request.vectors[numbers] = vectors[part]
                request.n_tokens += int(np.minimum(counts[part], limit).sum())
                request.n_truncated += int((counts[part] > limit).sum())
                request.n_done += len(numbers)
        for request, _ in batch:
            if request.n_done == len(request.texts) and request.future.set_running_or_notify_cancel():
                request.future.set_result(EncodedTexts(request.vectors, request.n_tokens, request.n_truncated))


def text_costs(encoder: "Encoder", texts: list[str]) -> np.ndarray:
    """Return the cost of encoding each text, in bytes; what is truncated costs nothing."""
    limit = BYTES_PER_TOKEN * (encoder.card.max_length or math.inf)
    return np.array([TEXT_COST + min(_n_bytes(text), limit) for text in texts], dtype=np.float64)


def _n_bytes(text: str) -> int:
    """Return the number of bytes in UTF-8, which follows the number of tokens better than that of characters does."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _check_lengths(encoder: "Encoder", texts: list[str]) -> None:
    limit = MAX_BYTES_PER_TOKEN * (encoder.card.max_length or USUAL_TOKENS)
    for i, text in enumerate(texts):
        if len(text) > limit or _n_bytes(text) > limit:
            raise Refusal(
                413,
                f"The text at position {i} of `input` is too long; send at most {limit:,} bytes of a text, of which "
                "the encoder reads the first.",
                "input",
            )


class TextEncoders:
    """The text encoders that the settings name, by space. They load while the service already translates vectors."""

    def __init__(self, settings: Settings, registry: Registry, queue: TextQueue):
        self.registry, self.queue, self.device = registry, queue, settings.device
        self.encoders: dict[str, Encoder] = {}
        self._sources = {
            space.strip(): name.strip() for space, _, name in (e.partition("=") for e in settings.encoders)
        }
        self._missing = dict.fromkeys(self._sources, "it is still being loaded")  # by space: why it is not loaded

    def load(self) -> None:
        """Load every encoder. One that fails is logged; its space takes no texts, and the service is not ready."""
        for space, source in self._sources.items():
            try:
                encoder = self._load(space, source)
                self.queue.measure(encoder)
            except Exception as error:
                reason = one_line(error)
                log.error("The text encoder of space %s could not be loaded: %s", space, reason)
                self._missing = self._missing | {space: f"it could not be loaded: {reason}"}
            else:
                log.info("The text encoder of space %s is loaded: %s", space, source)
                self.encoders = self.encoders | {space: encoder}
                self._missing = {name: reason for name, reason in self._missing.items() if name != space}

    def _load(self, space: str, source: str) -> "Encoder":
        """Load the encoder of a space with the role and the prompt that the space states."""
        from repstitch.encoders.encoder import load_encoder

        stitchers = self.registry.state.stitchers.values()
        stated = next((s.source for s in stitchers if s.source.name == space and s.source.encoder), None)
        settings = {} if stated is None else {"role": stated.role, "prompt": stated.prompt or ""}
        encoder = load_encoder(source, device=self.device, **settings)
        if encoder.space.modality != "text":
            raise InputError(f"`encoder` {source} must encode text; its modality is {encoder.space.modality}.")
        return encoder

    def check_loaded(self) -> None:
        """Raise Refusal 503 unless every encoder is loaded."""
        for space in self._missing:
            raise self._not_loaded(space)

    def encoder_of(self, space: Space) -> "Encoder":
        """Return the encoder of a space.

        Raises Refusal 503 if it is not loaded yet, and Refusal 409 if the settings name none or one of another space.
        """
        if space.name in self._missing:
            raise self._not_loaded(space.name)
        encoder = self.encoders.get(space.name)
        if encoder is None:
            raise Refusal(
                409,
                f"`input` must be vectors: no text encoder is loaded for space {space.name!r} "
                "(see REPSTITCH_ENCODERS).",
                "input",
            )
        difference = encoder_differs(encoder.space, space)
        if difference:
            raise Refusal(
                409,
                f"`input` must be vectors: the encoder loaded for space {space.name!r} differs from the one that the "
                f"stitcher was trained for ({difference}).",
                "input",
            )
        return encoder

    def _not_loaded(self, space: str) -> Refusal:
        message = f"The text encoder of space {space!r} is not loaded: {self._missing[space]}"
        return Refusal(503, message, headers=RETRY)


def encoder_differs(encoder: Space, stated: Space) -> str | None:
    """Return how the space of an encoder differs from the one that a stitcher states; None if it does not.

    The role and the prompt decide what is put before each text, so they must agree too if the stitcher states which
    encoder its space has.
    """
    difference = replace(encoder, name=stated.name).conflict(stated)
    if difference or stated.encoder is None:
        return difference
    for field_name in ("role", "prompt"):
        mine, theirs = getattr(encoder, field_name) or None, getattr(stated, field_name) or None
        if mine != theirs:
            return f"{field_name} {mine!r} against {theirs!r}"
    return None
