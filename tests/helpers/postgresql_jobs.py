"""Migrations of tables in PostgreSQL from 64 to 96 dimensions, and the laws that their results obey."""

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from helpers.postgresql_rows import D_NEW, D_OLD, translate, vectors
from helpers.postgresql_server import address
from helpers.postgresql_world import PostgresColumnWorld, PostgresSideWorld, literal
from repstitch.addresses import parse_address
from repstitch.stores.postgresql.table import PostgresTable
from repstitch.stores.store import Migration, Store

WORLDS = {"column": PostgresColumnWorld, "side": PostgresSideWorld}
SPACE = '{"name": "new model", "dim": 96}'
JOB = {"step": "fill"}


def migration(**options: Any) -> Migration:
    values = {"dim": D_NEW, "version": "v1", "space": SPACE, "new": "vector_new", "old": "vector_old"}
    return Migration(**(values | options))


def open_table(uri: str, **own: str) -> PostgresTable:
    return PostgresTable(parse_address(address(uri, **({"table": "docs"} | own))))


def made(
    world_type: type[PostgresColumnWorld], n: int = 500, index: bool = False
) -> tuple[Any, PostgresTable, Migration]:
    """Return a world with n rows, its store and its migration, before the job begins."""
    world = world_type(Path())
    store = PostgresTable(parse_address(world.create(range(n), vectors(n), index=index)))
    return world, store, migration(**world.options)


def fill(store: Store) -> None:
    """Run the first pass."""
    while units := store.units():
        for unit in units:
            store.fill(unit, translate)


def catch_up(store: Store) -> None:
    n_rows = 1
    while n_rows:
        n_rows = store.catch_up(translate) or store.count_rest()


def finished(store: Store, migration: Migration) -> None:
    """Run a whole job up to the cut-over."""
    store.begin(migration, JOB)
    fill(store)
    catch_up(store)


def faults(store: PostgresTable) -> dict[str, int]:
    """Return the number of rows that are not as they must be, by kind, through a fresh connection."""
    fresh = store.reopen()
    fresh.resume(migration_of(store))
    counts = {"null": 0, "stale": 0, "orphan": 0, "broken": 0, "double": 0}
    seen: set[str] = set()
    for part in fresh.compare():
        has_old, has_new = ~np.isnan(part.old[:, 0]), ~np.isnan(part.new[:, 0])
        translated = part.states == "translated"
        wrong = np.abs(np.nan_to_num(translate(part.old)) - np.nan_to_num(part.new)).max(axis=1) > 1e-4
        counts["null"] += int((has_old & ~has_new & (part.states != "skipped")).sum())
        counts["stale"] += int((translated & has_old & has_new & wrong).sum())
        counts["orphan"] += int((~has_old & translated).sum())
        counts["broken"] += int((~part.intact).sum())
        counts["double"] += sum(key in seen for key in part.ids)
        seen.update(part.ids)
    fresh.close()
    return {kind: n for kind, n in counts.items() if n}


def migration_of(store: PostgresTable) -> Migration:
    book = store.layout.book
    return migration(
        dim=book.dim, new=book.new, old=book.old, keep_names=book.keep_names, view=book.view, layout=book.layout
    )


class Writers:
    """Threads that insert, update, touch, delete and write both vectors of rows of the table `docs`."""

    def __init__(self, uri: str, n_rows: int, layout: str, n: int = 2):
        self.uri, self.n_rows, self.layout = uri, n_rows, layout
        self.stop, self.n_writes, self.errors = threading.Event(), 0, []
        self.threads = [threading.Thread(target=self.write, args=(seed,)) for seed in range(1, n + 1)]

    def __enter__(self) -> "Writers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def write(self, seed: int) -> None:
        choose, draw, new_id = random.Random(seed), np.random.default_rng(seed), self.n_rows + 100_000 * seed
        with psycopg.connect(self.uri, autocommit=True) as connection:
            while not self.stop.is_set():
                kind, key = choose.choice(list(STATEMENTS)), choose.randrange(self.n_rows)
                old, new = literal(draw.normal(size=D_OLD)), literal(draw.normal(size=D_NEW))
                new_id += kind == "insert"
                values = {"key": new_id if kind == "insert" else key, "old": old, "new": new}
                try:
                    with connection.transaction():
                        for statement in self.statements(kind):
                            connection.execute(statement.encode(), values)
                except psycopg.Error as error:
                    self.errors.append(error)
                self.n_writes += 1
                time.sleep(0.002)

    def statements(self, kind: str) -> Sequence[str]:
        if kind != "dual":
            return (STATEMENTS[kind],)
        if self.layout == "column":
            return ("update docs set vector = %(old)s, vector_new = %(new)s where id = %(key)s",)
        return (STATEMENTS["update"], WRITE_SIDE)


WRITE_SIDE = (
    "insert into docs_vector_new(id, vector) select id, %(new)s from docs where id = %(key)s "
    "on conflict (id) do update set vector = excluded.vector"
)


STATEMENTS = {
    "insert": "insert into docs(id, body, vector) values (%(key)s, 'new', %(old)s)",
    "update": "update docs set vector = %(old)s where id = %(key)s",
    "touch": "update docs set n = n + 1 where id = %(key)s",
    "delete": "delete from docs where id = %(key)s",
    "move": "update docs set id = id + 1000000 where id = %(key)s",
    "dual": "",
}
