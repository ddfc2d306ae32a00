"""A migration in PostgreSQL from begin to clean-up, in both layouts, while others write."""

import threading
import time
from pathlib import Path

import numpy as np
import psycopg
import pytest
from helpers.postgresql_jobs import JOB, WORLDS, Writers, catch_up, faults, fill, finished, made, migration, open_table
from helpers.postgresql_rows import D_NEW, W, translate, vectors
from helpers.postgresql_world import VIEW

from repstitch.errors import InputError
from repstitch.stores.postgresql import column, cutover
from repstitch.stores.store import MISSING, Which

LAYOUTS = pytest.mark.parametrize("layout", WORLDS)
NO_PLACE_YET = (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable)  # for the vectors of a dual writer


@LAYOUTS
@pytest.mark.parametrize("index", [False, True], ids=["plain", "indexed"])
def test_rows_that_others_write_during_the_fill_end_up_right(layout, index):
    world, store, moved = made(WORLDS[layout], 1500, index)
    with Writers(world.uri, 1500, layout) as writers:
        store.begin(moved, JOB)
        fill(store)
        store.catch_up(translate)
        time.sleep(0.3)
        store.catch_up(translate)
    catch_up(store)
    assert all(isinstance(error, NO_PLACE_YET) for error in writers.errors)
    assert writers.n_writes > 50
    assert not faults(store)
    assert store.states()["native"] > 0


@LAYOUTS
def test_rows_that_others_write_between_the_fill_and_the_cut_over_and_across_it_end_up_right(layout):
    world, store, moved = made(WORLDS[layout])
    finished(store, moved)
    stop, seen = threading.Event(), []
    relation = VIEW if layout == "side" else "docs"

    def read() -> None:
        with psycopg.connect(world.uri, autocommit=True, prepare_threshold=None) as reader:
            while not stop.is_set():
                rows = reader.execute(f"select vector_dims(vector) from {relation} where vector is not null limit 400")
                seen.append({dim for (dim,) in rows})
                time.sleep(0.001)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    with Writers(world.uri, 500, layout):
        time.sleep(0.2)
        result = store.cut_over(translate, {"step": "cut over"}, 1000, 2.0)
    time.sleep(0.1)
    stop.set()
    for reader in readers:
        reader.join()
    assert result.pause_seconds < 2
    assert all(len(dims) <= 1 for dims in seen)
    assert {64} in seen
    assert {96} in seen
    assert store.job() == {"step": "cut over"}
    catch_up(store)
    assert not faults(store)


@LAYOUTS
@pytest.mark.parametrize("index", [False, True], ids=["plain", "indexed"])
def test_clean_up_leaves_the_schema_as_it_was_at_each_step(layout, index):
    world, store, moved = made(WORLDS[layout], 200, index)
    before = world.schema()
    store.begin(moved, JOB)
    store.clean_up()
    assert world.schema() == before
    finished(store, moved)
    store.index(lambda share: None)
    store.clean_up()
    store.clean_up()
    assert world.schema() == before
    finished(store, moved)
    store.cut_over(translate, {"guard": True}, 1000, 2.0)
    assert store.roll_back(JOB, 2.0).n_without_old == 0
    store.clean_up()
    assert world.schema() == before
    assert store.job() is None


def test_clean_up_after_the_cut_over_leaves_only_the_new_column_with_its_space():
    world, store, moved = made(WORLDS["column"], 200, index=True)
    finished(store, moved)
    store.index(lambda share: None)
    store.cut_over(translate, {"guard": True}, 1000, 2.0)
    store.clean_up()
    store.clean_up()
    tables, columns, indexes, triggers, _, functions = world.schema()
    assert [column[1] for column in columns if column[0] == "docs"] == ["id", "body", "lang", "n", "vector"]
    assert next(row for row in columns if row[:2] == ("docs", "vector"))[2:4] == ("vector(96)", False)
    assert any("docs_vector_idx_new" in text and "m='8'" in text and valid for text, valid in indexes)
    assert not triggers
    assert not functions
    assert {name for name, kind, *_ in tables if kind == "r"} == {"docs"}
    store.close()
    assert open_table(world.uri).rows().schema.metadata == {b"repstitch.space": b'{"name": "new model", "dim": 96}'}


def test_clean_up_after_the_cut_over_of_a_side_table_keeps_it_in_line_with_the_table():
    world, store, moved = made(WORLDS["side"], 50)
    finished(store, moved)
    store.cut_over(translate, JOB, 1000, 2.0)
    store.clean_up()
    assert len(world.read()) == 50
    world.delete([1])
    world.insert([100], vectors(1, D_NEW))
    world.run("update docs set id = 200 where id = 2")
    after = world.read()
    assert set(after) == (set(range(50)) - {1, 2}) | {100, 200}
    assert all(vector is not None for _, vector in after.values())
    world.run("truncate docs")
    assert world.run("select count(*) from docs_vector_new") == [(0,)]


@LAYOUTS
def test_a_write_after_the_cut_over_is_counted_by_the_roll_back(layout):
    world, store, moved = made(WORLDS[layout], 100)
    finished(store, moved)
    store.cut_over(translate, JOB, 1000, 2.0)
    new = vectors(3, D_NEW)
    world.insert([100, 101], new[:2])
    world.update([5], new[2:])
    readers = world.read()
    assert np.allclose(readers[5][1], new[2], atol=1e-6)
    assert np.allclose(readers[100][1], new[0], atol=1e-6)
    assert store.written_since(10).shape == (3, D_NEW)
    assert store.written_since(2).shape == (2, D_NEW)
    assert store.roll_back({"step": "verified"}, 2.0).n_without_old == 3
    assert store.job() == {"step": "verified"}
    rows = world.read()
    assert {key for key, (_, vector) in rows.items() if vector is None} == {5, 100, 101}
    assert np.allclose(rows[1][1], vectors(100)[1], atol=1e-6)
    world.update([5], vectors(1, seed=9))
    catch_up(store)
    assert not faults(store)
    store.cut_over(translate, JOB, 1000, 2.0)
    assert np.allclose(world.read()[5][1], vectors(1, seed=9)[0] @ W, atol=1e-4)


@LAYOUTS
def test_old_writers_of_a_side_table_or_kept_names_leave_no_stale_vector_after_the_cut_over(layout):
    world, store, _ = made(WORLDS[layout], 50)
    kept = migration(layout=layout, keep_names=True)
    finished(store, kept)
    store.cut_over(translate, JOB, 1000, 2.0)
    world.run("update docs set vector = %s where id = 7", str(vectors(1, seed=5)[0].tolist()))
    assert world.column("vector_new")[7] is None
    assert store.count_rest() == 1
    catch_up(store)
    assert not faults(store)
    world.dual([8], vectors(1, seed=6), vectors(1, D_NEW))
    catch_up(store)
    assert not faults(store)
    assert world.column("vector")[8] is not None
    assert np.allclose(world.column("vector_new")[8], vectors(1, D_NEW)[0], atol=1e-6)
    assert store.states()["native"] == 1


@LAYOUTS
def test_a_truncated_table_leaves_nothing_to_do(layout):
    world, store, moved = made(WORLDS[layout], 50)
    finished(store, moved)
    world.run("truncate docs")
    world.insert([1], vectors(1))
    catch_up(store)
    assert store.states() == {"translated": 1}
    assert not faults(store)


@LAYOUTS
def test_rows_without_a_vector_or_a_translation_are_left_without_a_new_one(layout):
    world = WORLDS[layout](Path())
    X = vectors(20)
    X[3], X[4] = 0, np.nan
    world.create(range(20), X)
    store = open_table(world.uri)
    assert store.facts().n_without_vector == 1
    finished(store, migration(**world.options))
    assert store.states() == {"translated": 18, "skipped": 1}
    assert store.count_rest() == 0
    store.cut_over(translate, JOB, 1000, 2.0)
    assert {key for key, (_, vector) in world.read().items() if vector is None} == {3, 4}
    assert len(world.read()) == 20


def test_a_second_job_on_the_same_column_is_refused_while_the_first_runs():
    world, store, moved = made(WORLDS["column"], 20)
    second = store.reopen()
    with store.locked():
        store.begin(moved, JOB)
        with pytest.raises(InputError, match=r"Another job is running on column 'vector' of public\.docs"):
            second.locked().__enter__()
        fill(store)
        catch_up(store)
        store.cut_over(translate, JOB, 1000, 2.0)
        with pytest.raises(InputError, match="Another job is running"):
            open_table(world.uri).locked().__enter__()
    with second.locked():
        assert second.job() == JOB


@LAYOUTS
def test_the_not_null_of_the_old_column_goes_with_the_cut_over_and_returns(layout):
    world, store, moved = made(WORLDS[layout], 20)
    world.run("alter table docs alter column vector set not null")
    world.run("alter table docs rename constraint docs_vector_not_null to must_have")
    store.close()
    store, before = open_table(world.uri), world.schema()
    finished(store, moved)
    store.cut_over(translate, JOB, 1000, 2.0)
    world.update([3], vectors(1, D_NEW))
    result = store.roll_back(JOB, 2.0)
    assert result.n_without_old == 1
    assert "was `not null`" in result.notes[0]
    world.run("update docs set vector = %s where id = 3", str(vectors(1)[0].tolist()))
    store.clean_up()
    assert world.schema() == before


def test_the_guard_refuses_old_writers_between_equal_dimensions():
    world, store, _ = made(WORLDS["column"], 20)
    moved = migration(dim=64, layout="column")
    turn = lambda X: X[:, ::-1].copy()  # noqa: E731
    store.begin(moved, JOB)
    for unit in store.units():
        store.fill(unit, turn)
    store.catch_up(turn)
    store.cut_over(turn, {"guard": True}, 1000, 2.0)
    new = str(vectors(1, seed=4)[0].tolist())
    with pytest.raises(psycopg.errors.CheckViolation, match="a vector must come with vector_space"):
        world.run("update docs set vector = %s where id = 1", new)
    with pytest.raises(psycopg.errors.CheckViolation, match="vectors of the old space"):
        world.run("insert into docs(id, vector) values (100, %s)", new)
    upsert = "insert into docs(id, vector, vector_space) values (1, %s, 'new model') on conflict (id) do update set "
    world.run(upsert + "vector = excluded.vector, vector_space = excluded.vector_space", new)
    with pytest.raises(psycopg.errors.CheckViolation):  # though the row states the space of an earlier write
        world.run("update docs set vector = %s where id = 1", str(vectors(1, seed=5)[0].tolist()))
    world.run("update docs set body = 'x' where id = 1")
    world.run("insert into docs(id, body) values (101, 'without')")
    assert world.run("select vector_space, body from docs where id = 1") == [("new model", "x")]
    store.roll_back(JOB, 2.0)
    world.run("update docs set vector = %s where id = 2", new)
    store.clean_up()
    assert "vector_space" not in {column[1] for column in world.schema()[1]}


def test_a_cut_over_that_would_stop_readers_for_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(cutover, "BETWEEN_TRIES_SECONDS", 0.01)
    world, store, moved = made(WORLDS["column"], 20)
    finished(store, moved)
    with psycopg.connect(world.uri) as reader:
        reader.execute("select count(*) from docs")  # its transaction stays open
        with pytest.raises(InputError, match=r"must not stop writers for longer than 0\.05 s"):
            store.cut_over(translate, JOB, 1000, 0.05)
    assert world.read()[0][1].shape == (64,)
    assert store.cut_over(translate, JOB, 1000, 2.0).pause_seconds < 2


def test_an_index_is_copied_with_its_settings_and_a_broken_one_is_made_anew():
    world, store, moved = made(WORLDS["column"], 300)
    world.run("create index part on docs using hnsw (vector vector_l2_ops) with (m=5, ef_construction=30) where n < 5")
    world.run("create index lists on docs using ivfflat (vector vector_cosine_ops) with (lists=3)")
    finished(store, moved)
    assert store.index_stamp() == MISSING
    shares = []
    store.index(shares.append)
    assert shares[-1] == 1
    definitions = [text for text, valid in world.schema()[2] if valid and "vector_new" in text and "zzz" not in text]
    assert definitions == [
        "CREATE INDEX lists_new ON public.docs USING ivfflat (vector_new vector_cosine_ops) WITH (lists='3')",
        "CREATE INDEX part_new ON public.docs USING hnsw (vector_new vector_l2_ops) WITH (m='5', ef_construction='30') "
        "WHERE (n < 5)",
    ]
    stamp = store.index_stamp()
    store.index(shares.append)
    assert store.index_stamp() == stamp
    part = store.search(vectors(300) @ W, 1, "new")
    assert (part.ids[:, 0] != "").all()
    world.run("update pg_index set indisvalid = false where indexrelid = 'part_new'::regclass")
    assert store.index_stamp() != stamp
    store.index(shares.append)
    assert store.index_stamp() not in ("", stamp)
    store.cut_over(translate, JOB, 1000, 2.0)
    store.clean_up()
    assert store.session.value("select count(*) from pg_index where indexrelid = 'part_new'::regclass") == 1


def test_each_index_needs_a_counterpart_and_a_search_uses_that_of_its_metric():
    world, store, moved = made(WORLDS["column"], 300)
    for name, metric, condition in (("a_part", "cosine", " where n < 5"), ("b", "l2", ""), ("c", "cosine", "")):
        world.run(f"create index {name} on docs using hnsw (vector vector_{metric}_ops){condition}")
    world.run("update docs set n = 9 where id >= 150")
    scaled = vectors(300) * np.random.default_rng(3).uniform(0.1, 9, size=(300, 1)).astype(np.float32)
    world.update(range(300), scaled)
    finished(store, moved)
    store.index(lambda share: None)
    world.run("create index aa_other on docs using hnsw (vector_new vector_ip_ops)")
    assert store.index_stamp() not in ("", MISSING)
    columns: list[tuple[Which, np.ndarray]] = [("old", scaled), ("new", scaled @ W)]
    for which, rows in columns:
        query = rows[200:201]
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        best = {
            "cosine": np.argsort(-units[:150] @ units[200])[0],
            "l2": 200,
            "dot": np.argsort(-rows @ query[0])[0],
        }
        for metric, key in best.items():
            assert store.search(query, 1, which, metric=metric).ids[0, 0] == str(key)
        assert store.search(query, 1, which).ids[0, 0] == str(best["cosine"])
    with pytest.raises(InputError, match="`metric` must be cosine, l2, dot, l1; got 'none'"):
        store.search(scaled[:1], 1, "old", metric="none")
    world.run("drop index a_part_new")
    assert store.index_stamp() == MISSING


def test_more_than_two_thousand_dimensions_are_stored_in_half_precision_where_there_is_an_index():
    world, store, _ = made(WORLDS["column"], 30, index=True)
    moved = migration(dim=2500, layout="column")
    V = np.random.default_rng(2).normal(size=(64, 2500)).astype(np.float32)
    store.check(moved)
    store.begin(moved, JOB)
    for unit in store.units():
        store.fill(unit, lambda X: X @ V)
    store.index(lambda share: None)
    part = next(iter(store.compare()))
    assert np.allclose(part.new, part.old @ V, rtol=2e-3, atol=1e-2)
    assert "halfvec_cosine_ops" in str(world.schema()[2])
    assert (store.search(part.new[:2], 1, "new").ids[:, 0] == part.ids[:2]).all()
    with pytest.raises(InputError, match=r"takes at most 4,000 dimensions \(as halfvec\); got 5,000"):
        open_table(world.uri).check(migration(dim=5000, layout="column", new="other"))


@LAYOUTS
def test_search_finds_the_nearest_rows_in_both_columns(layout):
    _, store, moved = made(WORLDS[layout], 300, index=True)
    finished(store, moved)
    store.index(lambda share: None)
    X = vectors(300)
    columns: list[tuple[Which, np.ndarray]] = [("old", X), ("new", X @ W)]
    for which, rows in columns:
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        expected = np.argsort(-units[:5] @ units.T, axis=1)[:, :4].astype(str)
        hits = store.search(rows[:5], 4, which)
        assert (hits.ids[:, 0] == expected[:, 0]).all()
        assert (hits.seconds > 0).all()
        assert (store.search(rows[:1], 4, which, where="lang = 'de' and n < 100").ids.astype(int) % 2).all()
    assert (store.search(X[:1], 400, "old").ids[0, 300:] == "").all()
    with pytest.raises(InputError, match="`queries` must have 64 dimensions"):
        store.search(X[:1] @ W, 4, "old")


def test_readers_settings_of_the_address_hold_for_search():
    world, _, _ = made(WORLDS["column"], 20, index=True)
    settings = open_table(world.uri, options="-c%20hnsw.ef_search%3D7")
    settings.begin(migration(layout="column"), JOB)
    settings.search(vectors(1), 3, "old")
    assert settings.session.value("select current_setting('hnsw.ef_search')") == "7"


@LAYOUTS
def test_compare_reads_only_some_rows_if_asked(layout):
    _, store, moved = made(WORLDS[layout], 30)
    finished(store, moved)
    parts = list(store.compare(["3", "7", "99", "no"]))
    assert sorted(np.concatenate([part.ids for part in parts])) == ["3", "7"]


def test_a_rehearsal_runs_a_whole_job_on_a_copy_and_leaves_nothing():
    world, store, moved = made(WORLDS["side"], 300, index=True)
    before = world.schema()
    with store.rehearsal(100) as copy:
        assert copy.facts().n_rows == 100
        assert copy.facts().indexes[0].settings == {"operator_class": "vector_cosine_ops", "m": "8"}
        copy.check(moved)
        finished(copy, moved)
        before_index = copy.facts().index_bytes
        copy.index(lambda share: None)
        assert copy.states() == {"translated": 100}
        assert copy.facts().index_bytes - before_index > 8192
    assert world.schema() == before


def test_a_lost_connection_is_a_connection_error():
    world, store, moved = made(WORLDS["column"], 20)
    store.begin(moved, JOB)
    pid = store.session.connection.info.backend_pid
    world.run("select pg_terminate_backend(%s)", pid)
    with pytest.raises(ConnectionError, match="was lost"):
        store.count_rest()
    store = store.reopen()
    store.resume(moved)
    assert store.count_rest() == 20


@pytest.mark.parametrize("workers", [False, True], ids=["alone", "with workers"])
def test_a_job_whose_right_to_work_was_lost_does_not_write_on(workers):
    world, store, moved = made(WORLDS["column"], 20)
    with store.locked():
        store.begin(moved, JOB)
        worker = store.reopen() if workers else store
        worker.resume(moved)
        unit = worker.units()[0]
        world.run("select pg_terminate_backend(%s)", store.session.connection.info.backend_pid)
        other = open_table(world.uri, vector="vector")
        with other.locked(), pytest.raises(ConnectionError, match="was lost"):
            worker.fill(unit, translate)
    assert world.run("select count(vector_new) from docs") == [(0,)]


def test_a_server_that_is_away_is_a_lost_connection_for_each_step_of_a_job(monkeypatch):
    world, store, moved = made(WORLDS["column"], 20, index=True)
    finished(store, moved)
    world.run("select pg_terminate_backend(%s)", store.session.connection.info.backend_pid)
    with pytest.raises(ConnectionError, match="was lost"), store.locked():
        store.job()
    again = store.reopen()
    again.resume(moved)
    away = "host=127.0.0.1 port=1"
    monkeypatch.setattr(type(again.address), "connection", property(lambda _: away), raising=False)
    with pytest.raises(ConnectionError, match="was lost"):
        again.index(lambda share: None)
    with pytest.raises(ConnectionError, match="was lost"):
        again.reopen()


def test_a_pause_longer_than_the_server_can_wait_is_taken():
    _, store, moved = made(WORLDS["column"], 20)
    finished(store, moved)
    assert store.cut_over(translate, JOB, 1000, 3e6).n_rest == 0


def test_a_job_with_another_version_or_another_name_is_refused():
    world, store, moved = made(WORLDS["column"], 20)
    store.begin(moved, JOB)
    with pytest.raises(InputError, match="began with version 'v1'; got 'v2'"):
        store.begin(migration(version="v2", layout="column"), JOB)
    with pytest.raises(InputError, match="to another space"):
        open_table(world.uri).resume(migration(space='{"name": "other", "dim": 96}'))
    world.run("comment on column docs.vector_new is 'repstitch: broken'")
    with pytest.raises(InputError, match="not one that this version can read"):
        open_table(world.uri).job()


def test_a_view_is_replaced_by_the_cut_over_of_a_second_column():
    world, store, _ = made(WORLDS["column"], 20)
    moved = migration(layout="column", view=VIEW)
    before = world.schema()
    finished(store, moved)
    assert world._read(VIEW)[0][1].shape == (64,)
    store.cut_over(translate, JOB, 1000, 2.0)
    assert world._read(VIEW)[0][1].shape == (96,)
    assert open_table(world.uri, table=VIEW).rows().schema.metadata[b"repstitch.space"].startswith(b'{"name"')
    store.roll_back(JOB, 2.0)
    assert world._read(VIEW)[0][1].shape == (64,)
    store.clean_up()
    assert world.schema() == before


def test_the_job_does_not_fire_triggers_of_others_and_waits_for_no_writer(monkeypatch):
    monkeypatch.setattr(column, "INDEX_WAIT_SECONDS", 0.2)
    world, store, moved = made(WORLDS["column"], 20)
    world.run("create function touched() returns trigger language plpgsql as 'begin new.n := 99; return new; end'")
    world.run("create trigger touched before update on docs for each row execute function touched()")
    store.begin(moved, JOB)
    with psycopg.connect(world.uri) as writer:
        writer.execute("select from docs where id = 5 for update")
        fill(store)
        assert store.count_rest() == 1
        assert store.catch_up(translate) == 1
        assert store.count_rest() == 1
    catch_up(store)
    assert not faults(store)
    store = open_table(world.uri)
    store.resume(moved)
    store.catch_up(translate)
    assert world.run("select indisvalid from pg_index where indexrelid::regclass::text like '%_rest'") == [(True,)]
    assert world.run("select max(n) from docs") == [(0,)]


def test_a_broken_index_of_the_rest_is_made_anew():
    world, store, moved = made(WORLDS["column"], 20)
    store.begin(moved, JOB)
    fill(store)
    store.catch_up(translate)
    world.run("update pg_index set indisvalid = false where indexrelid::regclass::text like '%_rest'")
    world.update([1], vectors(1, seed=8))
    catch_up(store)
    assert not faults(store)
    assert world.run("select indisvalid from pg_index where indexrelid::regclass::text like '%_rest'") == [(True,)]


def test_the_job_waits_only_briefly_for_writers_of_the_side_table_and_keeps_what_they_write():
    world, store, moved = made(WORLDS["side"], 20)
    finished(store, moved)
    native = vectors(1, D_NEW)
    with psycopg.connect(world.uri) as writer:
        writer.execute("update docs_vector_new set vector = %s where id = 3", (str(native[0].tolist()),))
        world.update([3, 4], vectors(2, seed=2))
        start = time.perf_counter()
        assert store.catch_up(translate) == 1
        assert time.perf_counter() - start < 0.9
        assert store.count_rest() == 2
    catch_up(store)
    assert not faults(store)
    row = world.column("vector_new")[3]
    assert row is not None
    assert not np.allclose(row, native[0])  # its old vector has changed since
    world.run("update docs_vector_new set vector = %s where id = 5", str(native[0].tolist()))
    catch_up(store)
    assert store.states() == {"native": 1, "translated": 19}


@LAYOUTS
def test_a_cut_over_and_a_roll_back_are_on_the_disk_when_they_end(layout, monkeypatch):
    _, store, moved = made(WORLDS[layout], 20)
    finished(store, moved)
    setting = "select current_setting('synchronous_commit')"
    seen = []
    rename = type(store.layout).rename
    monkeypatch.setattr(
        type(store.layout), "rename", lambda self, live: (seen.append(self.session.value(setting)), rename(self, live))
    )
    assert store.session.value(setting) == "off"
    store.cut_over(translate, JOB, 1000, 2.0)
    store.roll_back(JOB, 2.0)
    assert seen == ["on", "on"]
