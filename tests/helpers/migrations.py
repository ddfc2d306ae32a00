"""Applications that write to a table and read it while it is moved, and what must be true of it afterwards."""

import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from helpers.spaces import gaussian
from repstitch.addresses import Address, parse_address
from repstitch.bulk.job import Job, job_of
from repstitch.bulk.row_check import differ
from repstitch.bulk.settings import JobSettings
from repstitch.bulk.translation import Translation
from repstitch.spaces import Space
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.opening import open_store
from repstitch.stores.store import Store

KINDS = ("insert", "update", "update", "touch", "delete", "dual")


def stitcher_of(d_source: int = 64, d_target: int = 96, seed: int = 0) -> Stitcher:
    """Return a stitcher with a random map, which is known without training."""
    import torch

    weight = torch.from_numpy(gaussian(d_source, d_target, seed) / np.sqrt(d_source).astype(np.float32))
    return Stitcher(
        map=AffineMap(weight, torch.zeros(d_target)),
        source=Space("old", d_source),
        target=Space("new", d_target),
        method="ridge",
        objective="match",
        input_norm="unit",
        output_norm="unit",
        source_mean=np.zeros(d_source, np.float32),
        target_mean=np.zeros(d_target, np.float32),
        seen=np.empty(0, np.int64),
    )


def address_of(text: str) -> Address:
    return Address("folder", text, Path(text).name) if "://" not in text else parse_address(text)


def opened(text: str) -> Any:
    """Open the store at an address, for a `with` block."""
    return closing(open_store(address_of(text)))


def resumed(store: Store) -> Job:
    """Return the job on a table, with the store prepared for it."""
    job = job_of(store)
    assert job is not None
    store.resume(job.migration)
    return job


@dataclass
class Application:
    """A program that writes to its own rows of a table, and remembers what each must contain.

    `rows` has the current old vector of each row and, if the application has written it itself, the new one. After the
    cut-over, which it notices when its vectors are refused, it writes vectors of the new space only.
    """

    world: Any
    rows: dict[int, tuple[np.ndarray | None, np.ndarray | None]]
    next_id: int
    stitcher: Stitcher
    seed: int = 0
    writes_new: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)

    def step(self, rng: random.Random, kinds: tuple[str, ...] = KINDS) -> None:
        """Write once."""
        numbers = np.random.default_rng(rng.randrange(2**32))
        kind = rng.choice(kinds)
        key = rng.choice(list(self.rows)) if self.rows else -1
        d_old = self.world_dim
        vector = numbers.standard_normal((1, self.d_new if self.writes_new else d_old)).astype(np.float32)
        if kind == "insert" or key < 0:
            self.world.insert([self.next_id], vector)
            self.rows[self.next_id] = (None, vector[0]) if self.writes_new else (vector[0], None)
            self.next_id += 1
        elif kind == "update":
            self.world.update([key], vector)
            self.rows[key] = (None, vector[0]) if self.writes_new else (vector[0], None)
        elif kind == "touch":
            self.world.touch([key])
        elif kind == "delete":
            self.world.delete([key])
            del self.rows[key]
        elif kind == "dual" and not self.writes_new:
            noise = 0.1 * numbers.standard_normal((1, self.d_new)).astype(np.float32)
            new = self.stitcher.translate(vector) + noise  # much like a translation, as native vectors are
            self.world.dual([key], vector, new)
            self.rows[key] = (vector[0], new[0])
        self.counts[kind] = self.counts.get(kind, 0) + 1

    world_dim: int = 64

    @property
    def d_new(self) -> int:
        return self.stitcher.target.dim

    def run(self, stop: threading.Event, pause: float, kinds: Callable[[], tuple[str, ...]]) -> None:
        rng = random.Random(self.seed)
        while not stop.is_set():
            try:
                self.step(rng, kinds())
            except Exception as error:
                if self.writes_new or "dimension" not in str(error):
                    self.errors.append(error)
                    return
                self.writes_new = True  # the names have been swapped: the column has other dimensions now
            time.sleep(pause)


class Running:
    """Applications that write at the same time, in threads, for a `with` block."""

    def __init__(self, applications: list[Application], pause: float = 0.005):
        self.applications, self.pause = applications, pause
        self.kinds: tuple[str, ...] = tuple(kind for kind in KINDS if kind != "dual")
        self._stop = threading.Event()

    def __enter__(self) -> "Running":
        self._threads = [
            threading.Thread(target=one.run, args=(self._stop, self.pause, lambda: self.kinds))
            for one in self.applications
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the applications."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, n_writes: int) -> None:
        """Wait until each application has written so many times more."""
        goals = [sum(one.counts.values()) + n_writes for one in self.applications]
        deadline = time.monotonic() + 30
        while any(
            sum(one.counts.values()) < goal and not one.errors
            for one, goal in zip(self.applications, goals, strict=True)
        ):
            assert time.monotonic() < deadline, "the applications write too slowly"
            time.sleep(0.01)


def check_rows_are_right(store: Store, stitcher: Stitcher, expected: dict) -> dict[str, int]:
    """Check that every expected row is there once, with its old vector, and its native or translated new one.

    Returns the number of rows by state.
    """
    translate = Translation(stitcher)
    seen: dict[int, str] = {}
    for rows in store.compare():
        translated = translate(rows.old)
        for i, key in enumerate(rows.ids):
            number = int(key)
            assert number not in seen, f"row {number} is doubled"
            seen[number] = str(rows.states[i])
            old, new = expected[number]
            if old is not None:
                assert np.allclose(rows.old[i], old), f"row {number} has another old vector"
            if new is not None:
                assert np.allclose(rows.new[i], new), f"row {number} has lost its native vector"
            else:
                assert not differ(rows.new[i : i + 1], translated[i : i + 1]).any(), f"row {number} is stale"
    assert set(seen) == set(expected), "rows are lost or left over"
    counts: dict[str, int] = {}
    for state in seen.values():
        counts[state] = counts.get(state, 0) + 1
    return counts


def settings_of(**settings: Any) -> JobSettings:
    return JobSettings(**settings)
