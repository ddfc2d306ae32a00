"""A migration in LanceDB from begin to clean-up, and what it refuses."""

import json
from dataclasses import replace
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from helpers.lance_jobs import (
    CARD,
    D_NEW,
    D_OLD,
    MIGRATION,
    W,
    assert_translated,
    begun,
    catch_up,
    cut,
    fill,
    open_table,
    translate,
    vectors,
)
from helpers.lance_world import LanceWorld, vectors_of

from repstitch.errors import InputError


def ids_of(world: LanceWorld, name: str) -> int:
    return {field.name(): field.id() for field in world.latest.lance_schema.fields()}[name]


def test_the_new_column_has_the_card_of_its_space_and_the_state_of_the_job(tmp_path):
    world, store = begun(tmp_path)
    assert store.job() == {"phase": "filling"}
    store.save_job({"phase": "filled", "text": "ä"})
    assert store.reopen().job() == {"phase": "filled", "text": "ä"}
    metadata = world.latest.schema.field("vector_new").metadata
    assert json.loads(metadata[b"repstitch.space"]) == json.loads(CARD)
    assert world.latest.schema.metadata is None


def test_begin_can_be_repeated_and_refuses_another_job_on_the_same_column(tmp_path):
    world, store = begun(tmp_path)
    version = world.latest.version
    store.begin(MIGRATION, {"phase": "another"})
    assert (store.job(), world.latest.version) == ({"phase": "filling"}, version)
    for other in (replace(MIGRATION, version="v2"), replace(MIGRATION, new="other"), replace(MIGRATION, dim=8)):
        with pytest.raises(InputError, match=r"Another job moves column 'vector' \(.*clean it up first"):
            store.begin(other, {})


def test_the_states_of_rows_tell_translated_native_and_skipped_ones(tmp_path):
    world = LanceWorld(tmp_path)
    rows = vectors(50)
    rows[4] = np.nan  # becomes null
    rows[5, 0] = 1000  # has no translation
    store = open_table(world.create(range(50), rows))
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    assert fill(store) == 49
    assert store.states() == {"translated": 48, "skipped": 1, "": 1}
    assert store.count_rest() == 0
    assert world.column("vector_new")[5] is None
    assert not store.units()
    states = world.latest.to_table(columns=["id", "vector_new_state"]).to_pydict()["vector_new_state"]
    assert states[0].startswith("translated@v1:")
    assert states[5].startswith("skipped:")
    assert states[4] is None
    parts = list(store.compare())
    assert sum(len(part.ids) for part in parts) == 49
    assert all(part.intact.all() for part in parts)


def test_cut_over_swaps_the_names_with_the_index_and_readers_find_the_new_vectors(tmp_path):
    world, store = begun(tmp_path, 600, index=True)
    fill(store)
    store.index(lambda share: None)
    names = ("name", "index_type", "field_names")
    new_index = world.latest.describe_indices()[1]
    assert [getattr(new_index, name) for name in names] == ["vector_new_idx", "IVF_HNSW_SQ", ["vector_new"]]
    assert new_index.details["hnsw"] == world.latest.describe_indices()[0].details["hnsw"]
    stamp = store.index_stamp()
    assert stamp
    done = cut(store)
    assert (done.n_rest, done.repaired, done.notes) == (0, 0, ())
    assert store.job() == {"phase": "cut over"}
    assert_translated(world, "vector_old", "vector")
    assert store.index_stamp() == stamp
    table = lancedb.connect(str(world.database)).open_table("docs")
    query = vectors(600)[7] @ W
    search = table.search(query).limit(3)
    assert search.to_arrow()["id"][0].as_py() == 7
    plan = world.latest.scanner(nearest={"column": "vector", "q": query, "k": 3}).explain_plan()
    assert "ANNSubIndex: name=vector_new_idx" in plan
    with pytest.raises(OSError, match="fixed_size_list"):
        world.insert([900], vectors(1))  # an old writer


def test_cut_over_can_be_repeated(tmp_path):
    world, store = begun(tmp_path)
    fill(store)
    cut(store)
    again = store.cut_over(translate, {"phase": "again"}, 1000, 2.0)
    assert again.notes[0] == "The new vectors were cut over before."
    assert store.job() == {"phase": "again"}
    assert_translated(world, "vector_old", "vector")


def test_cut_over_gives_up_if_others_write_all_the_time(tmp_path, monkeypatch):
    world, store = begun(tmp_path)
    fill(store)
    n = iter(range(1000, 2000))

    def written(rows):
        world.insert([next(n)], vectors(1))
        return translate(rows)

    world.insert([999], vectors(1))
    with pytest.raises(InputError, match="rows remain after 30 tries, more than `max_rest`"):
        store.cut_over(written, {}, 0, 2.0)
    assert store.job() == {"phase": "filling"}


def test_readers_of_an_open_table_never_see_two_spaces(tmp_path):
    world, store = begun(tmp_path)
    fill(store)
    reader = lance.dataset(str(world.path))
    cut(store)
    assert {len(vector) for vector in reader.to_table(columns=["vector"])["vector"].to_pylist()} == {D_OLD}
    reader.checkout_latest()
    assert {len(vector) for vector in world.latest.to_table(columns=["vector"])["vector"].to_pylist()} == {D_NEW}


def test_rows_updated_after_the_cut_over_have_no_old_vector_after_a_roll_back(tmp_path):
    world, store = begun(tmp_path)
    fill(store)
    cut(store)
    late = vectors(3, D_NEW, seed=4)
    world.insert([900, 901], late[:2])
    world.update([5], late[2:])
    store.catch_up(translate)  # does not hide what was written since
    np.testing.assert_allclose(np.sort(store.written_since(10), axis=0), np.sort(late, axis=0))
    assert len(store.written_since(2)) == 2
    back = store.roll_back({"phase": "rolled back"}, 2.0)
    assert back.n_without_old == 3
    assert store.job() == {"phase": "rolled back"}
    old = world.column("vector")
    assert [number for number, vector in old.items() if vector is None] in ([5, 900, 901], [900, 901, 5])
    assert_translated(world, native=[5, 900, 901])
    catch_up(store)
    assert store.states() == {"translated": 199, "native": 3}
    cut(store)
    assert store.roll_back({}, 2.0).n_without_old == 3


def test_a_row_that_was_not_caught_up_when_readers_wrote_it_has_no_old_vector_after_a_roll_back(tmp_path, monkeypatch):
    from repstitch.stores.lancedb import swapping

    world, store = begun(tmp_path)
    fill(store)
    swap, late = swapping._swap, vectors(3, D_NEW, seed=4)

    def written(*arguments):
        world.update([5], vectors(1, seed=5))
        world.insert([900], vectors(1, seed=6))
        world.dual([6], vectors(1, seed=5), vectors(1, D_NEW))
        done = swap(*arguments)
        world.update([5, 900, 6], late)
        return done

    monkeypatch.setattr(swapping, "_swap", written)
    cut(store)
    monkeypatch.undo()
    assert len(store.written_since(10)) == 3
    assert store.count_rest() == 0
    assert store.roll_back({}, 2.0).n_without_old == 3
    assert [number for number, vector in sorted(world.column("vector").items()) if vector is None] == [5, 6, 900]


def test_a_row_that_a_dual_writer_updated_after_the_cut_over_keeps_its_old_vector(tmp_path):
    world, store = begun(tmp_path)
    fill(store)
    cut(store)
    old, new = vectors(1, seed=5), vectors(1, D_NEW, seed=6)
    rows = {"id": pa.array([5]), "vector_old": vectors_of(old), "vector": vectors_of(new)}
    world.latest.merge_insert("id").when_matched_update_all().execute(pa.table(rows))
    assert store.roll_back({}, 2.0).n_without_old == 0
    np.testing.assert_array_equal(world.column("vector")[5], old[0])


@pytest.mark.parametrize("state", ["begun", "half filled", "filled", "indexed", "rolled back"])
def test_clean_up_before_a_cut_over_leaves_the_table_as_found(tmp_path, state):
    world = LanceWorld(tmp_path)
    store = open_table(world.create(range(300), vectors(300), index=True))
    before, rows = world.schema(), world.latest.to_table()
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    if state == "half filled":
        unit = store.units()[0]
        store.fill(replace(unit, token=unit.token[:2]), translate)
    if state in ("filled", "indexed", "rolled back"):
        fill(store)
    if state in ("indexed", "rolled back"):
        store.index(lambda share: None)
    if state == "rolled back":
        cut(store)
        store.roll_back({}, 2.0)
    store.clean_up()
    store.clean_up()
    assert world.schema() == before
    assert world.latest.to_table().equals(rows)
    assert store.job() is None
    store.begin(MIGRATION, {})  # a new job can begin
    store.resume(MIGRATION)
    assert fill(store) == 300


def test_clean_up_after_the_cut_over_leaves_the_new_column_with_its_card_and_index(tmp_path):
    world, store = begun(tmp_path, 300, index=True)
    fill(store)
    store.index(lambda share: None)
    cut(store)
    store.clean_up()
    store.clean_up()
    field = world.latest.schema.field("vector")
    assert world.latest.schema.names == ["id", "body", "lang", "n", "vector"]
    assert list(field.metadata) == [b"repstitch.space"]
    assert [index.name for index in world.latest.describe_indices()] == ["vector_new_idx"]
    assert not world.latest.tags.list()
    read: Any = world.read()[3][1]
    np.testing.assert_allclose(read, vectors(300)[3] @ W, rtol=1e-4)


def test_with_kept_names_the_cut_over_renames_nothing(tmp_path):
    migration = replace(MIGRATION, keep_names=True)
    world, store = begun(tmp_path, migration=migration)
    fill(store)
    names = world.latest.schema.names
    assert cut(store).notes == ("Readers must now use column 'vector_new'.",)
    assert world.latest.schema.names == names
    assert store.job() == {"phase": "cut over"}
    world.latest.merge_insert("id").when_matched_update_all().execute(
        pa.table({"id": pa.array([5]), "vector_new": vectors_of(vectors(1, D_NEW))})
    )
    assert len(store.written_since(10)) == 1
    assert store.roll_back({"phase": "back"}, 2.0).n_without_old == 1
    assert store.job() == {"phase": "back"}
    cut(store)
    store.clean_up()
    assert world.latest.schema.names == ["id", "body", "lang", "n", "vector_new"]


def test_a_column_that_accepts_no_nulls_does_so_after_the_cut_over_and_no_more_after_a_roll_back(tmp_path):
    world = LanceWorld(tmp_path)
    world.database.mkdir()
    fields = [pa.field("id", pa.int64(), False), pa.field("vector", pa.list_(pa.float32(), D_OLD), False)]
    rows = pa.table([pa.array(range(50)), vectors_of(vectors(50))], schema=pa.schema(fields))
    lance.write_dataset(rows, str(world.path))
    before = world.schema()
    store = open_table(f"lancedb://{world.database}?table=docs")
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    fill(store)
    cut(store)
    late = pa.table({"id": pa.array([99]), "vector": vectors_of(vectors(1, D_NEW))})
    lance.write_dataset(late, str(world.path), mode="append")
    back = store.roll_back({}, 2.0)
    assert back.notes == ("Column 'vector' accepts nulls now, because some rows have no old vector.",)
    world.delete([99])
    cut(store)
    assert not store.roll_back({}, 2.0).notes
    store.clean_up()
    assert world.schema() == before


@pytest.mark.parametrize("name", ["My Vectors", "select", "vec'tor", 'vec"tor', "größe", "a-b"])
def test_names_that_need_quoting_work(tmp_path, name):
    path = tmp_path / "a.b c.lance"
    rows = pa.table({"The Id": pa.array([f"it's {i}" for i in range(30)]), name: vectors_of(vectors(30))})
    lance.write_dataset(rows, str(path))
    from repstitch.addresses import Address

    store = open_table(Address("lancedb", str(tmp_path), '"a.b c"', name, "The Id").to_text())
    migration = replace(MIGRATION, new=f"{name} New", old=f"{name} Old")
    store.check(migration)
    store.begin(migration, {"a": 1})
    store.resume(migration)
    fill(store)
    cut(store)
    assert lance.dataset(str(path)).schema.names == ["The Id", f"{name} Old", name, f"{name} New_state"]
    assert store.take(["it's 3", "none"], ["The Id"]).to_pydict() == {"The Id": ["it's 3"]}
    assert store.search(vectors(30)[:1] @ W, 1, "new").ids[0, 0] == "it's 0"
    assert store.roll_back({}, 2.0).n_without_old == 0
    store.clean_up()
    assert lance.dataset(str(path)).schema.names == ["The Id", name]


def test_a_table_with_1500_columns_is_moved(tmp_path):
    columns = {f"c{i}": pa.array(np.zeros(20)) for i in range(1500)}
    rows = pa.table({"id": pa.array(range(20)), **columns, "vector": vectors_of(vectors(20))})
    lance.write_dataset(rows, str(tmp_path / "wide.lance"))
    store = open_table(f"lancedb://{tmp_path}?table=wide")
    store.check(MIGRATION)
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    assert fill(store) == 20
    cut(store)
    assert len(lance.dataset(str(tmp_path / "wide.lance")).schema.names) == 1504


def test_vectors_of_float16_are_moved_and_keep_their_type_when_rolled_back(tmp_path):
    rows = pa.table({"id": pa.array(range(40)), "vector": vectors_of(vectors(40), pa.list_(pa.float16(), D_OLD))})
    path = tmp_path / "half.lance"
    lance.write_dataset(rows, str(path))
    store = open_table(f"lancedb://{tmp_path}?table=half")
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    fill(store)
    cut(store)
    new = lance.dataset(str(path)).to_table(columns=["vector"])["vector"].to_pylist()
    np.testing.assert_allclose(new[3], vectors(40)[3].astype(np.float16).astype(np.float32) @ W, rtol=1e-3)
    update = pa.table({"id": pa.array([3]), "vector": vectors_of(vectors(1, D_NEW))})
    lance.dataset(str(path)).merge_insert("id").when_matched_update_all().execute(update)
    assert store.roll_back({}, 2.0).n_without_old == 1
    after = lance.dataset(str(path)).to_table(columns=["id", "vector"]).sort_by("id")["vector"]
    assert after.type == pa.list_(pa.float16(), D_OLD)
    assert after[3].as_py() is None
    assert after[4].as_py() == rows["vector"][4].as_py()


def test_a_table_with_stable_row_ids_is_moved_while_it_is_written(tmp_path):
    world = LanceWorld(tmp_path)
    world.database.mkdir()
    lance.write_dataset(
        world._rows(range(100), vectors(100)), str(world.path), max_rows_per_file=20, enable_stable_row_ids=True
    )
    store = open_table(f"lancedb://{world.database}?table=docs")
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    world.delete([3])
    store.fill(store.units()[0], translate)
    world.update([5], vectors(1, seed=3))
    world.compact()
    fill(store)
    assert_translated(world)
    assert len(world.column("vector_new")) == 99


def test_a_second_process_is_refused_while_a_job_is_running(tmp_path):
    world, store = begun(tmp_path)
    second = store.reopen().locked()
    with store.locked(), pytest.raises(InputError, match=r"Another job on .* is running"):
        second.__enter__()
    with store.locked():
        assert "docs" in lancedb.connect(str(world.database)).table_names()
    assert [file.name for file in world.database.iterdir()] == ["docs.lance"]


def test_what_lancedb_cannot_do_is_refused(tmp_path):
    world, store = begun(tmp_path)
    address = f"lancedb://{world.database}?table=docs"
    with pytest.raises(InputError, match="LanceDB has no views"):
        store.check(replace(MIGRATION, view="v"))
    with pytest.raises(InputError, match="the layout side is not possible"):
        store.check(replace(MIGRATION, layout="side"))
    with pytest.raises(InputError, match="cannot refuse rows of old writers"):
        store.cut_over(translate, {"guard": True}, 10, 1.0)
    with pytest.raises(InputError, match="must have no condition"):
        open_table(f"{address}&where=n=0&vector=vector").check(MIGRATION)
    with pytest.raises(InputError, match="remote databases are not supported"):
        open_table("lancedb://db://cloud?table=docs")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("lancedb://{}?table=dosc", "no table 'dosc' in .*; did you mean docs. Its tables are: docs"),
        ("lancedb://{}/none?table=docs", "there is no folder"),
        ("lancedb://{}?table=a.docs", "Put a name that contains a dot into double quotes"),
        ("lancedb://{}?table=docs&vector=vectors", "no column 'vectors'; its columns are: id, body"),
        ("lancedb://{}?table=docs&vector=body", "must have fixed-size lists of float32 or float16; it has string"),
        ("lancedb://{}?table=docs&id=key", "no column 'key'; name another with id="),
        ("lancedb://{}?table=docs&id=vector", "must have whole numbers or text as ids"),
        ("lancedb://{}?table=docs&where=nn=3", "The condition 'nn=3' cannot be used"),
    ],
)
def test_a_wrong_address_is_refused_with_what_to_do(tmp_path, address, message):
    world = LanceWorld(tmp_path)
    world.create(range(10), vectors(10))
    with pytest.raises(InputError, match=message):
        open_table(address.format(world.database))


def test_names_that_are_taken_and_ids_that_are_doubled_or_missing_are_refused(tmp_path):
    world = LanceWorld(tmp_path)
    store = open_table(world.create(range(10), vectors(10)))
    with pytest.raises(InputError, match="has a column 'body' already; name another one"):
        store.check(replace(MIGRATION, new="body"))
    with pytest.raises(InputError, match=r"no dot and no backtick; got 'a\.b'"):
        store.check(replace(MIGRATION, new="a.b"))
    world.insert([5], vectors(1))
    with pytest.raises(InputError, match="another id in each row; '5' occurs more than once"):
        store.check(MIGRATION)
    by_text = open_table(f"lancedb://{world.database}?table=docs&id=body")
    with pytest.raises(InputError, match="'text 5' occurs more than once"):
        by_text.check(MIGRATION)
    rows = pa.table({"id": pa.array([1, None]), "vector": vectors_of(vectors(2))})
    lance.write_dataset(rows, str(world.database / "null.lance"))
    with pytest.raises(InputError, match="must have an id in every row"):
        open_table(f"lancedb://{world.database}?table=null").check(MIGRATION)


def test_a_stitcher_of_another_dimension_is_refused_and_leaves_no_file(tmp_path):
    world, store = begun(tmp_path)
    files = set((world.path / "data").iterdir())
    with pytest.raises(InputError, match="must translate to 24 dimensions, like the new column"):
        store.fill(store.units()[0], lambda rows: rows)
    assert set((world.path / "data").iterdir()) == files
    with pytest.raises(InputError, match="must have 8 dimensions for this job"):
        store.reopen().resume(replace(MIGRATION, dim=8, version="v3"))


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    import os

    world = LanceWorld(tmp_path)
    store = open_table(world.create(range(10), vectors(10)))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    with pytest.raises(InputError, match="must be writable; change the permissions"):
        store.check(MIGRATION)


def test_a_job_whose_columns_are_gone_is_refused(tmp_path):
    world, store = begun(tmp_path)
    world.latest.drop_columns(["vector_new_state"])
    with pytest.raises(InputError, match=r"'vector_new_state' of .* is gone; clean up and begin"):
        store.reopen().resume(MIGRATION)
    store.clean_up()
    with pytest.raises(InputError, match="There is no job on column 'vector'"):
        store.save_job({})
    assert world.latest.schema.names == ["id", "body", "lang", "n", "vector"]
