"""Jobs on tables of LanceDB for the tests of its store: a map, a migration, writers in threads, and what must hold."""

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helpers.lance_world import LanceWorld
from repstitch.addresses import parse_address
from repstitch.stores.lancedb.table import LanceTable
from repstitch.stores.opening import open_store
from repstitch.stores.store import Migration

D_OLD, D_NEW = 16, 24
W = np.random.default_rng(0).normal(size=(D_OLD, D_NEW)).astype(np.float32)
CARD = '{"name": "new", "dim": 24}'
MIGRATION = Migration(D_NEW, "v1", CARD, "vector_new", "vector_old")


def translate(rows: np.ndarray) -> np.ndarray:
    """Translate rows; one that begins with a number above 100 has no translation."""
    new = rows @ W
    new[rows[:, 0] > 100] = np.nan
    return new


def slowly(rows: np.ndarray) -> np.ndarray:
    """Translate rows slowly, so that others write meanwhile."""
    time.sleep(len(rows) / 4000)
    return translate(rows)


def vectors(n: int, dim: int = D_OLD, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def open_table(address: str) -> LanceTable:
    store = open_store(parse_address(address))
    assert isinstance(store, LanceTable)
    return store


def begun(folder: Path, n: int = 200, migration: Migration = MIGRATION, index: bool = False):
    """Return a world, its store, and a job that has begun."""
    world = LanceWorld(folder)
    store = open_table(world.create(range(n), vectors(n), index=index))
    store.check(migration)
    store.begin(migration, {"phase": "filling"})
    store.resume(migration)
    return world, store


def fill(store: LanceTable, how=translate) -> int:
    """Fill and catch up until no row is left, and return the number of rows that were filled."""
    n_rows = first_pass(store, how)
    catch_up(store)
    return n_rows


def first_pass(store: LanceTable, how=translate) -> int:
    n_rows = 0
    while units := store.units():
        n_rows += sum(store.fill(unit, how) for unit in units)
    return n_rows


def catch_up(store: LanceTable) -> None:
    n_rows = 1
    while n_rows:
        n_rows = store.catch_up(translate)


def cut(store: LanceTable, max_rest: int = 1000):
    return store.cut_over(translate, {"phase": "cut over"}, max_rest, 2.0)


def assert_translated(world: LanceWorld, old: str = "vector", new: str = "vector_new", native: Sequence[int] = ()):
    """Assert that each row with an old vector has its translation, except for native ones."""
    news: Any = world.column(new)
    for number, vector in world.column(old).items():
        if number in native:
            continue
        if vector is None:
            assert news[number] is None
        else:
            np.testing.assert_allclose(news[number], vector @ W, rtol=1e-4, atol=1e-4)


class Writers:
    """Two threads that write rows of every kind, and remember what each row must be in the end."""

    def __init__(self, world: LanceWorld, n: int, kinds: Sequence[str]):
        self.world, self.n, self.kinds = world, n, kinds
        self.old: dict[int, Any] = dict(enumerate(vectors(n)))
        self.native: dict[int, Any] = {}
        self.n_writes = dict.fromkeys(kinds, 0)
        self.errors: list[Exception] = []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._write, args=(seed,)) for seed in (0, 1)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _write(self, seed: int) -> None:
        choose, draw, new_id = random.Random(seed), np.random.default_rng(seed + 7), 10_000 * (seed + 1)
        mine = [number for number in range(self.n) if number % 2 == seed]
        while not self.stop.is_set():
            kind, number = choose.choice(self.kinds), choose.choice(mine)
            vector = draw.normal(size=(1, D_OLD)).astype(np.float32)
            try:
                if kind == "insert":
                    new_id, number = new_id + 1, new_id
                    self.world.insert([number], vector)
                    self.old[number] = vector[0]
                elif kind == "compact":
                    self.world.compact()
                elif number not in self.old:
                    continue
                elif kind == "touch":
                    self.world.touch([number])
                elif kind == "delete":
                    self.world.delete([number])
                    del self.old[number]
                    self.native.pop(number, None)
                elif kind == "update":
                    self.world.update([number], vector)
                    self.old[number] = vector[0]
                    self.native.pop(number, None)
                else:
                    new = draw.normal(size=(1, D_NEW)).astype(np.float32)
                    self.world.dual([number], vector, new)
                    self.old[number], self.native[number] = vector[0], new[0]
                self.n_writes[kind] += 1
            except Exception as error:
                self.errors.append(error)
            time.sleep(0.005)

    def assert_law(self, new: str) -> None:
        """Assert that no row is lost, stale or doubled, and that native vectors are kept."""
        news: Any = self.world.column(new)  # asserts that no id is doubled
        assert news.keys() == self.old.keys()
        for number, vector in self.old.items():
            expected: Any = self.native.get(number, vector @ W)
            np.testing.assert_allclose(news[number], expected, rtol=1e-4, atol=1e-4)
