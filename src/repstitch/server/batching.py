"""Opportunistic batching: small requests that arrive in the same event-loop iteration share one matrix product."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from repstitch.server.served import ServedRoute

BATCH_ROWS = 256
BATCH_PROBE_INTERVAL = 8  # while requests arrive one at a time, one in this many checks whether others arrive with it


class Translated(NamedTuple):
    """Translated rows (n, d), their confidence measures (n, m) if requested, and the seconds of computing."""

    vectors: np.ndarray
    measures: np.ndarray | None
    seconds: float


Compute = Callable[[ServedRoute, np.ndarray, bool], Translated]
Pending = list[tuple[np.ndarray, "asyncio.Future[Translated]"]]


class Batcher:
    """Computes small requests with `compute`; requests that arrive together share one call.

    No request waits for a batch to fill. While requests arrive one at a time, each is answered at once, except that one
    in `BATCH_PROBE_INTERVAL` waits for the next iteration of the event loop, to check whether others have arrived.
    """

    def __init__(self, compute: Compute):
        self._compute = compute
        self._pending: dict[tuple[int, bool], Pending] = {}
        self._one_by_one, self._count = True, 0

    async def translate(self, served: ServedRoute, rows: np.ndarray, with_measures: bool) -> Translated:
        """Translate a few rows, together with other pending rows of the same route."""
        self._count = (self._count + 1) % BATCH_PROBE_INTERVAL
        if self._one_by_one and self._count and not self._pending:
            return self._compute(served, rows, with_measures)
        loop = asyncio.get_running_loop()
        key = (id(served), with_measures)
        if key not in self._pending:
            self._pending[key] = []
            loop.call_soon(self._answer_pending, key, served, with_measures)
        answer: asyncio.Future[Translated] = loop.create_future()
        self._pending[key].append((rows, answer))
        return await answer

    def _answer_pending(self, key: tuple[int, bool], served: ServedRoute, with_measures: bool) -> None:
        pending = [(rows, answer) for rows, answer in self._pending.pop(key) if not answer.done()]
        self._one_by_one = len(pending) < 2
        # More rows than `inline_rows` would run on the device, which only the worker thread may use.
        limit = min(BATCH_ROWS, served.placed.inline_rows)
        while pending:
            n_rows, count = 0, 0
            while count < len(pending) and (count == 0 or n_rows + len(pending[count][0]) <= limit):
                n_rows += len(pending[count][0])
                count += 1
            batch, pending = pending[:count], pending[count:]
            if count == 1 or not self._answer_batch(served, batch, with_measures):
                for rows, answer in batch:
                    try:
                        answer.set_result(self._compute(served, rows, with_measures))
                    except Exception as error:
                        answer.set_exception(error)

    def _answer_batch(self, served: ServedRoute, batch: Pending, with_measures: bool) -> bool:
        """Answer several requests with one matrix product. Return False if it fails; each is then computed alone."""
        try:
            whole = self._compute(served, np.concatenate([rows for rows, _ in batch]), with_measures)
        except Exception:
            return False
        start = 0
        for rows, answer in batch:
            part = slice(start, start + len(rows))
            start += len(rows)
            measures = None if whole.measures is None else whole.measures[part]
            answer.set_result(Translated(whole.vectors[part], measures, whole.seconds / len(batch)))
        return True
