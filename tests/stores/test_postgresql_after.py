"""What writers do after the cut-over, and what the readers' column has after the clean-up."""

from pathlib import Path

import numpy as np
import psycopg
import pytest
from helpers.postgresql_jobs import JOB, WORLDS, catch_up, faults, fill, finished, made, migration, open_table
from helpers.postgresql_rows import D_NEW, translate, vectors
from helpers.postgresql_server import OLDER, new_database
from helpers.postgresql_world import VIEW, literal

from repstitch.errors import InputError

SETTINGS = "select attnotnull, attstorage::text, attstattarget from pg_attribute where attrelid = 'docs'::regclass "
CHECKS = "select conname from pg_constraint where conrelid = 'docs'::regclass and contype in ('n', 'c')"
WAYS = {
    "names swapped": ("column", {}, "docs", "vector", "vector_old"),
    "names kept": ("column", {"keep_names": True}, "docs", "vector_new", "vector"),
    "view of a column": ("column", {"view": VIEW}, "docs", "vector_new", "vector"),
    "view of a side table": ("side", {"view": VIEW}, "docs_vector_new", "vector", "vector"),
    "side table": ("side", {"keep_names": True}, "docs_vector_new", "vector", "vector"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_an_older_server_moves_a_table_and_back(way):
    layout, options, *_ = WAYS[way]
    world = WORLDS[layout](new_database(version=OLDER))
    world.create(range(100), vectors(100), index=True)
    world.run("alter table docs alter column vector set not null")
    store, before = open_table(world.uri), world.schema()
    store.check(moved := migration(layout=layout, **options))
    with store.rehearsal(20) as copy:
        assert copy.rows().count_rows() == 20
    store.begin(moved, JOB)
    fill(store)
    world.update([1], vectors(1, seed=3))
    world.delete([2])
    catch_up(store)
    store.index(lambda share: None)
    assert not faults(store)
    assert store.search(translate(vectors(1, seed=3)), 1, "new").ids == "1"
    store.cut_over(translate, JOB, 1000, 2.0)
    assert not store.count_rest()
    assert store.roll_back(JOB, 2.0).notes == ()
    store.clean_up()
    assert world.schema() == before


def cut_over(way: str, n: int = 20, index: bool = False):
    """Return a world and its store after a cut-over."""
    layout, options, *_ = WAYS[way]
    world, store, _ = made(WORLDS[layout], n, index)
    finished(store, migration(layout=layout, **options))
    store.cut_over(translate, JOB, 1000, 2.0)
    return world, store


@pytest.mark.parametrize("way", ["names swapped", "view of a column", "view of a side table"])
def test_prepared_statements_are_made_anew_after_a_swap_of_names_and_go_on_through_a_view(way):
    layout, options, *_ = WAYS[way]
    world, store, _ = made(WORLDS[layout], 20)
    finished(store, migration(layout=layout, **options))
    query = f"select vector_dims(vector), vector from {VIEW if options else 'docs'} where id = 1".encode()
    with psycopg.connect(world.uri, autocommit=True, prepare_threshold=0) as reader:

        def dims() -> int:
            (row,) = reader.execute(query).fetchall()
            return row[0]

        assert dims() == 64
        for step, expected in (
            (lambda: store.cut_over(translate, JOB, 1000, 2.0), 96),
            (lambda: store.roll_back(JOB, 2.0), 64),
        ):
            step()
            if not options:
                for _ in range(3):
                    with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan must not change"):
                        dims()
                reader.execute("deallocate all")
            assert dims() == expected


@pytest.mark.parametrize("way", ["view of a column", "view of a side table"])
def test_a_search_through_the_view_uses_the_index_of_the_vectors_that_it_shows(way):
    layout, options, *_ = WAYS[way]
    world, store, _ = made(WORLDS[layout], 300, index=True)
    finished(store, migration(layout=layout, **options))
    store.index(lambda share: None)

    def plan(d: int) -> str:
        query = f"select id from {VIEW} order by vector <=> %s::vector limit 3"
        with psycopg.connect(world.uri) as reader:
            reader.execute("set enable_seqscan = off")
            lines = reader.execute(f"explain {query}".encode(), (literal(vectors(1, d)[0]),)).fetchall()
        return "".join(line for (line,) in lines)

    assert "Index Scan using docs_vector_idx " in plan(64)
    store.cut_over(translate, JOB, 1000, 2.0)
    assert "Index Scan using docs_vector_idx_new " in plan(D_NEW)


@pytest.mark.parametrize("way", WAYS)
def test_a_new_vector_that_others_empty_is_not_filled_again_with_the_old_one(way):
    world, store = cut_over(way)
    *_, target, new, old = WAYS[way]
    world.run("update docs set body = 'another text' where id in (3, 4)")
    world.run(f"update {target} set {new} = null where id in (3, 4)")
    world.run(f"insert into {target}(id, {new}) values (5, null) on conflict (id) do update set {new} = excluded.{new}")
    assert store.count_rest() == 0
    catch_up(store)
    assert not faults(store)
    emptied = f"select count(*) from docs d join {target} s on s.id = d.id where d.{old} is null and s.{new} is null"
    assert world.run(emptied) == [(3,)]
    fresh = vectors(1, D_NEW)[0]
    world.run(f"update {target} set {new} = %s where id = 4", literal(fresh))
    catch_up(store)
    assert np.allclose(world.column(new if target == "docs" else "vector_new")[4], fresh, atol=1e-6)
    assert not faults(store)
    assert store.roll_back(JOB, 2.0).n_without_old == 3
    world.update([3], vectors(1, seed=4))  # the old model has embedded the new text
    catch_up(store)
    assert store.states()["translated"] == 18
    assert not faults(store)


def test_a_row_that_is_removed_from_the_side_table_is_not_filled_again_with_the_old_vector():
    world, store = cut_over("view of a side table")
    world.run("delete from docs_vector_new where id = 3")
    world.delete([4])
    world.run("update docs set id = 105 where id = 5")
    assert world.column("vector")[3] is None
    assert world.column("vector")[105] is not None
    catch_up(store)
    assert not faults(store)
    assert store.states() == {"translated": 18}


@pytest.mark.parametrize("way", ["names kept", "side table"])
def test_an_old_vector_that_comes_with_an_emptied_new_one_is_translated(way):
    world, store = cut_over(way)
    *_, target, new, _ = WAYS[way]
    with world.connection.transaction():
        world.run(f"update {target} set {new} = null where id = 3")
        world.run("update docs set vector = %s where id = 3", literal(vectors(1, seed=4)[0]))
    world.run(f"update {target} set {new} = null where id = 4")
    world.run("update docs set vector = %s where id = 4", literal(vectors(1, seed=5)[0]))
    world.run(f"update {target} set {new} = {new} where id = 4")
    catch_up(store)
    assert not faults(store)
    assert store.states() == {"translated": 20}


def test_a_row_of_a_side_table_keeps_the_vector_that_others_wrote_when_its_id_changes():
    world, store = cut_over("view of a side table")
    native = vectors(1, D_NEW)
    world.update([3], native)
    world.run("update docs set id = 103 where id = 3")
    catch_up(store)
    assert np.allclose(world._read(VIEW)[103][1], native[0], atol=1e-6)
    assert not faults(store)
    with world.connection.transaction():
        world.run("update docs set id = 203 where id = 103")
        world.run("update docs set vector = %s where id = 203", literal(vectors(1)[0]))
    assert world._read(VIEW)[203][1] is None
    catch_up(store)
    assert not faults(store)
    assert store.states() == {"translated": 20}


@pytest.mark.parametrize("layout", WORLDS)
@pytest.mark.parametrize(
    "check",
    [
        "vector is not null",
        "vector is not null and n >= 0",
        "num_nonnulls(vector, url) > 0",
        "n > 5 or vector is not null",
    ],
)
def test_a_check_that_rows_without_an_old_vector_break_is_refused(layout, check):
    world = WORLDS[layout](Path())
    world.create(range(20), vectors(20))
    world.run("alter table docs add url text")
    world.run("update docs set url = 'a'")
    world.run("alter table docs add constraint must check (vector_dims(vector) = 64)")
    store, moved = open_table(world.uri), migration(layout=layout, keep_names=True)
    store.check(moved)
    world.run(f"alter table docs add constraint complete check ({check})")
    with pytest.raises(InputError, match=r"complete of public\.docs .* drop it.*`not null`"):
        store.check(moved)
    world.run("alter table docs drop constraint complete")
    finished(store, moved)
    store.cut_over(translate, JOB, 1000, 2.0)
    world.dual([1], vectors(1), vectors(1, D_NEW))


@pytest.mark.parametrize("way", ["names swapped", "names kept"])
def test_the_new_column_has_the_storage_the_statistics_target_and_the_not_null_of_the_old_one(way, caplog):
    layout, options, *_ = WAYS[way]
    for has_gap in (False, True):
        world, store, _ = made(WORLDS[layout], 20)
        world.run(
            "alter table docs alter vector set not null, alter vector set storage main, alter vector set statistics 7"
        )
        store.close()
        store = open_table(world.uri, vector="vector")
        finished(store, migration(layout=layout, **options))
        store.cut_over(translate, JOB, 1000, 2.0)
        after = "vector" if way == "names swapped" else "vector_new"
        if has_gap:
            world.run(f"update docs set {after} = null where id = 1")
        store.clean_up()
        assert world.run(f"{SETTINGS} and attname = '{after}'") == [(not has_gap, "m", 7)]
        constraints = world.run(CHECKS)
        assert ("docs_vector_not_null",) in constraints or has_gap
        assert len(constraints) == 3 - has_gap
    assert "was `not null` before the job and is not now" in caplog.text


def test_a_side_table_has_the_storage_of_the_old_column():
    world, store, moved = made(WORLDS["side"], 20)
    world.run("alter table docs alter vector set storage main")
    store.begin(moved, JOB)
    storage = (
        "select attstorage::text from pg_attribute where attrelid = 'docs_vector_new'::regclass and attname = 'vector'"
    )
    assert world.run(storage) == [("m",)]


@pytest.mark.parametrize("way", ["names swapped", "view of a side table"])
def test_clean_up_names_what_others_have_made_on_the_old_column_and_waits(way):
    world, store = cut_over(way)
    old = WAYS[way][-1]
    world.run(f"create view shown as select {old} from docs")
    world.run(f"alter table docs add norm float8 generated always as (vector_norm({old})) stored")
    before = world.schema()
    with pytest.raises(InputError, match=r"view shown depends on .*; column norm of .* new vectors.* clean up"):
        store.clean_up()
    assert world.schema() == before
    world.run("drop view shown")
    world.run("alter table docs drop column norm")
    store.clean_up()


@pytest.mark.parametrize(
    ("layout", "shown"), [("column", "vector_new from docs"), ("side", "vector from docs_vector_new")]
)
def test_clean_up_before_a_cut_over_names_what_others_have_made_on_the_new_vectors(layout, shown):
    world, store, moved = made(WORLDS[layout], 20)
    finished(store, moved)
    world.run(f"create view canary as select {shown}")
    with pytest.raises(InputError, match=r"view canary depends on .* clean up again"):
        store.clean_up()
    world.run("drop view canary")
    store.clean_up()


@pytest.mark.parametrize(
    ("options", "kept"), [({"view": VIEW}, "view docs_current shows them"), ({}, "readers join it")]
)
def test_the_plan_of_a_side_table_says_where_the_vectors_stay(options, kept):
    world, store, _ = made(WORLDS["side"], 20, index=True)
    moved = migration(**({"keep_names": True} | options))
    text = store.describe_cut_over(moved)
    assert f"stay in table docs_vector_new, and {kept}" in text
    assert "the clean-up drops column vector" in text
    finished(store, moved)
    store.cut_over(translate, JOB, 1000, 2.0)
    store.clean_up()
    world.run("insert into docs(id, body) values (30, 'new')")
    world.run(
        "insert into docs_vector_new (id, vector) values (30, %s) "
        "on conflict (id) do update set vector = excluded.vector",
        literal(vectors(1, D_NEW)[0]),
    )
    assert world.column("vector_new")[30] is not None
    store.close()
    with pytest.raises(InputError, match=r"docs has no column of vectors; tables with vectors are .*docs_vector_new"):
        open_table(world.uri)


def test_a_partition_can_be_moved_once_it_is_detached_and_is_then_attached_to_another_table():
    world = WORLDS["column"](Path())
    X = vectors(20)
    world.run("create table docs(id bigint primary key, vector vector(64)) partition by range (id)")
    world.run("create table part partition of docs for values from (0) to (100)")
    for key, vector in enumerate(X):
        world.run("insert into docs values (%s, %s)", key, literal(vector))
    store = open_table(world.uri, table="part")
    for layout in WORLDS:
        with pytest.raises(InputError, match=r"detach it \(alter table … detach partition …\), move it"):
            store.check(migration(layout=layout, keep_names=True))
    world.run("alter table docs detach partition part")
    finished(store, migration(layout="column"))
    store.cut_over(translate, JOB, 1000, 2.0)
    store.clean_up()
    world.run(f"create table docs_96(id bigint primary key, vector vector({D_NEW})) partition by range (id)")
    world.run("alter table docs_96 attach partition part for values from (0) to (100)")
    assert world.run("select count(vector) from docs_96") == [(20,)]


def test_a_table_whose_inheritance_has_ended_can_be_moved():
    world, store, moved = made(WORLDS["column"], 10)
    world.run("create table parent(id bigint, vector vector(64))")
    world.run("alter table docs inherit parent")
    with pytest.raises(InputError, match=r"Column 'vector' of public\.docs is inherited.*alter table … no inherit …"):
        store.check(moved)
    world.run("alter table docs no inherit parent")
    finished(store, moved)
    store.cut_over(translate, JOB, 1000, 2.0)
    store.clean_up()
