"""Native vectors that a job writes while other programs write to the table."""

import threading
import time

import numpy as np
import psycopg
import pytest
from helpers.migrations import Application, Running, check_rows_are_right, opened, resumed, settings_of, stitcher_of
from helpers.postgresql_world import PostgresColumnWorld, PostgresSideWorld, literal
from helpers.spaces import gaussian
from helpers.worlds import LIVE, WORLDS

from repstitch.bulk.running import run
from repstitch.errors import InputError
from repstitch.stores.lancedb import native as lancedb_native
from repstitch.stores.postgresql import native as postgresql_native

N, D, E = 200, 16, 24
PLAIN = ("insert", "update", "update", "touch", "delete")


@pytest.fixture(scope="module")
def stitcher():
    return stitcher_of(D, E)


@pytest.fixture(params=LIVE)
def live_world(request, tmp_path):
    made = WORLDS[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture(params=[PostgresColumnWorld, PostgresSideWorld], ids=lambda world: world.name)
def postgresql(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


def test_native_rows_are_right_while_others_write_the_rows_between_them(live_world, stitcher):
    vectors = gaussian(N, D, 1)
    address = live_world.create(list(range(N)), vectors, index=True)
    chosen = list(range(0, N, 2))
    native = (stitcher.translate(vectors[chosen]) + 0.1 * gaussian(len(chosen), E, 2)).astype(np.float32)
    others = Application(live_world, {i: (vectors[i], None) for i in range(1, N, 2)}, 10_000, stitcher, world_dim=D)
    settings = settings_of(**live_world.options)
    with opened(address) as store:
        run(store, stitcher, settings)
        with Running([others], live_world.pause) as running:
            running.kinds = PLAIN
            running.wait_for(3)
            for part in (slice(0, 50), slice(50, None)):
                ids = [str(key) for key in chosen[part]]
                assert store.write_native(ids, native[part]) == len(ids)
            running.wait_for(3)
        assert others.errors == []
        run(store, stitcher, settings)
        resumed(store)
        expected = others.rows | {key: (vectors[key], native[i]) for i, key in enumerate(chosen)}
        assert check_rows_are_right(store, stitcher, expected)["native"] == len(chosen)


def test_a_row_that_others_are_changing_gets_its_native_vector_after_the_change(postgresql, stitcher):
    """Before it, the change would count as older than the vector, though it is committed later."""
    vectors, changed, native = gaussian(N, D, 1), gaussian(1, D, 5)[0], gaussian(3, E, 2)
    address = postgresql.create(list(range(N)), vectors)
    settings, written = settings_of(**postgresql.options), []
    with opened(address) as store, psycopg.connect(postgresql.uri) as other:
        run(store, stitcher, settings)
        other.execute("update docs set vector = %s where id = 4", [literal(changed)])
        writing = threading.Thread(target=lambda: written.append(store.write_native(["3", "4", "5"], native)))
        writing.start()
        deadline = time.monotonic() + 20
        while states(postgresql).count("native") < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert states(postgresql).count("native") == 2  # rows 3 and 5
        assert writing.is_alive()
        other.commit()
        writing.join(20)
        assert written == [3]
        run(store, stitcher, settings)
        resumed(store)
        expected = {i: (vectors[i], None) for i in range(N)} | {i: (vectors[i], native[i - 3]) for i in (3, 5)}
        check_rows_are_right(store, stitcher, expected | {4: (changed, native[1])})


def states(world) -> list[str]:
    """Return the first words of the states of rows 3 to 5."""
    table, column = ("docs_vector_new", "state") if world.options.get("view") else ("docs", "vector_new_state")
    rows = world.run(f"select {column} from {table} where id between 3 and 5")
    return [(state or "").partition(":")[0] for (state,) in rows]


def test_a_row_that_others_lock_all_the_time_is_reported(postgresql, stitcher, monkeypatch):
    monkeypatch.setattr(postgresql_native, "TRIES", 3)
    address = postgresql.create(list(range(N)), gaussian(N, D, 1))
    with opened(address) as store, psycopg.connect(postgresql.uri) as other:
        run(store, stitcher, settings_of(**postgresql.options))
        other.execute("select from docs where id = 4 for update")
        with pytest.raises(InputError, match=r"1 rows of .*docs.* are locked or changed by others all the time"):
            store.write_native(["3", "4"], gaussian(2, E, 2))


def test_an_application_writes_the_same_rows_at_the_same_time_without_a_deadlock(postgresql, stitcher):
    """It writes them in the opposite order, in transactions of several rows."""
    address = postgresql.create(list(range(N)), gaussian(N, D, 1))
    stop, errors = threading.Event(), []

    def change() -> None:
        with psycopg.connect(postgresql.uri) as other:
            while not stop.is_set():
                try:
                    for key in (9, 6, 3, 1):
                        other.execute("update docs set vector = %s where id = %s", [literal(gaussian(1, D, 6)[0]), key])
                    other.commit()
                except psycopg.Error as error:
                    errors.append(error)
                    return
                time.sleep(0.005)

    with opened(address) as store:
        run(store, stitcher, settings_of(**postgresql.options))
        writer = threading.Thread(target=change)
        writer.start()
        ids = [str(key) for key in range(20)]
        for seed in range(20):
            assert store.write_native(ids, gaussian(20, E, seed)) == 20
        stop.set()
        writer.join()
    assert errors == []


def test_a_table_that_changes_all_the_time_is_reported(tmp_path, stitcher, monkeypatch):
    world = WORLDS["lancedb"](tmp_path)
    address = world.create(list(range(N)), gaussian(N, D, 1))
    monkeypatch.setattr(lancedb_native, "TRIES", 2)
    monkeypatch.setattr(
        lancedb_native, "commit_files", lambda path, written: lancedb_native.discard_files(path, written)
    )
    with opened(address) as store:
        run(store, stitcher, settings_of())
        files = sorted(file.name for file in (world.path / "data").iterdir())
        with pytest.raises(InputError, match="faster than native vectors are written; try again later"):
            store.write_native(["3"], gaussian(1, E, 2))
        assert sorted(file.name for file in (world.path / "data").iterdir()) == files


def test_numbers_that_halfvec_cannot_contain_are_refused(postgresql):
    d_new = 2_001  # above 2,000 dimensions a new column with an index is halfvec
    stitcher = stitcher_of(D, d_new)
    address = postgresql.create(list(range(30)), gaussian(30, D, 1), index=True)
    with opened(address) as store:
        run(store, stitcher, settings_of(layout=postgresql.options["layout"], keep_names=True))
        rows = gaussian(2, d_new, 2)
        assert store.write_native(["1", "2"], rows) == 2
        rows[1, 0] = 1e6
        with pytest.raises(InputError, match="1 native vectors have numbers too large for halfvec"):
            store.write_native(["1", "2"], rows)
        assert store.states()["native"] == 2
