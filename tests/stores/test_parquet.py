"""A migration of a folder of Parquet files from begin to clean-up, and what it refuses."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.lance_jobs import CARD, D_NEW, D_OLD, W, translate, vectors
from helpers.lance_world import LanceWorld
from helpers.parquet_world import ParquetWorld

from repstitch.addresses import Address
from repstitch.errors import InputError
from repstitch.stores.opening import open_store
from repstitch.stores.parquet.folder import ParquetFolder
from repstitch.stores.store import Migration

MIGRATION = Migration(D_NEW, "v1", CARD, "vector_new", "vector_old")


def open_folder(path: str | Path, **names: str) -> ParquetFolder:
    store = open_store(Address("folder", str(path), "", **names))
    assert isinstance(store, ParquetFolder)
    return store


def begun(folder: Path, n: int = 100, migration: Migration = MIGRATION):
    world = ParquetWorld(folder)
    store = open_folder(world.create(range(n), vectors(n)))
    store.check(migration)
    store.begin(migration, {"phase": "filling"})
    store.resume(migration)
    return world, store


def fill(store: ParquetFolder) -> int:
    n_rows = sum(store.fill(unit, translate) for unit in store.units())
    while store.catch_up(translate):
        continue
    return n_rows


def assert_translated(world: ParquetWorld, old: str = "vector", new: str = "vector_new", native=()):
    news, olds = world.column(new), world.column(old)
    assert news.keys() == olds.keys()
    for number, vector in olds.items():
        if number not in native and vector is not None:
            translated = news[number]
            assert translated is not None
            np.testing.assert_allclose(translated, vector @ W, rtol=1e-4, atol=1e-4)


def test_new_files_have_the_names_columns_and_compression_of_the_old_ones_and_the_card_of_the_space(tmp_path):
    world, store = begun(tmp_path)
    (world.path / "deep").mkdir()
    rows = LanceWorld._rows([900], vectors(1)).replace_schema_metadata({"mine": "1"})
    pq.write_table(rows, world.path / "deep" / "more.parquet", compression="zstd")
    assert fill(store) == 101
    old, new = (
        {str(file.relative_to(folder)) for file in folder.rglob("*.parquet")} for folder in (world.path, world.beside)
    )
    assert old == new
    file = pq.ParquetFile(world.beside / "deep" / "more.parquet")
    assert file.schema_arrow.names == ["id", "body", "lang", "n", "vector"]
    assert file.schema_arrow.field("vector").type == pa.list_(pa.float32(), D_NEW)
    metadata = file.schema_arrow.metadata
    assert json.loads(metadata[b"repstitch.space"]) == json.loads(CARD)
    assert (metadata[b"repstitch.translated_by"], metadata[b"mine"]) == (b"v1", b"1")
    assert {file.metadata.row_group(0).column(i).compression for i in range(5)} == {"ZSTD"}
    assert_translated(world)
    assert not list(world.beside.glob(".repstitch*"))


def test_files_that_are_changed_added_or_removed_are_noticed(tmp_path):
    world, store = begun(tmp_path)
    fill(store)
    assert (store.units(), store.count_rest()) == ([], 0)
    world.update([3], vectors(1, seed=4))
    world.insert([900, 901], vectors(2, seed=5))
    (world.path / "part-4.parquet").unlink()
    assert store.count_rest() == 20 + 2 + 20
    assert store.count_rest(1) >= 1
    assert [unit.n_rows for unit in store.units()] == [2, 20]
    fill(store)
    assert store.states() == {"translated": 82}
    assert_translated(world)


def test_a_file_that_changed_since_its_token_was_taken_is_not_filled(tmp_path):
    world, store = begun(tmp_path)
    unit = store.units()[0]
    world.update([0], vectors(1, seed=4))
    assert store.fill(unit, translate) == 0
    fill(store)
    assert_translated(world)


def test_files_that_a_dual_writer_writes_are_kept_until_only_their_source_changes(tmp_path):
    world, store = begun(tmp_path)
    new = vectors(2, D_NEW, seed=6)
    world.dual([5, 6], vectors(2, seed=5), new)
    fill(store)
    assert store.states() == {"translated": 98, "native": 2}
    kept = world.column("vector_new")[6]
    assert kept is not None
    np.testing.assert_array_equal(kept, new[1])
    assert sum(int((part.states == "native").sum()) for part in store.compare()) == 2
    world.update([5], vectors(1, seed=7))
    assert store.count_rest() == 2
    fill(store)
    assert_translated(world)


def test_rows_without_a_vector_and_rows_without_a_translation_have_none(tmp_path):
    world = ParquetWorld(tmp_path)
    rows = vectors(20)
    rows[4], rows[5, 0] = np.nan, 1000
    store = open_folder(world.create(range(20), rows))
    assert store.facts().n_without_vector == 1
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    assert fill(store) == 19
    assert store.states() == {"translated": 18, "skipped": 1, "": 1}
    new = world.column("vector_new")
    assert (new[4], new[5], store.count_rest()) == (None, None, 0)
    parts = list(store.compare())
    assert sum(len(part.ids) for part in parts) == 19
    assert all(part.intact.all() for part in parts)
    assert [part.ids.tolist() for part in store.compare(["5", "x"]) if len(part.ids)] == [["5"]]


def test_cut_over_and_roll_back_rename_the_folders(tmp_path):
    world, store = begun(tmp_path)
    before = world.schema()
    fill(store)
    world.update([3], vectors(1, seed=4))  # caught up inside
    assert store.cut_over(translate, {"phase": "cut over"}, 10, 1.0).n_rest == 20
    assert store.reopen().job() == {"phase": "cut over"}
    assert_translated(world, "vector_old", "vector")
    assert store.search(vectors(100)[:1] @ W, 1, "new").ids[0, 0] == "0"
    assert len(store.written_since(100)) == 0
    world.insert([900], vectors(1, D_NEW))
    world.update([8], vectors(1, D_NEW))
    assert len(store.written_since(100)) == 21
    back = store.roll_back({"phase": "back"}, 1.0)
    assert back.n_without_old == 1
    assert "Old vectors of rows in 1 files" in back.notes[0]
    assert store.job() == {"phase": "back"}
    with pytest.raises(InputError, match=r"files that this job has not written \(late-1.parquet\); move them away"):
        store.clean_up()
    (world.beside / "late-1.parquet").unlink()
    store.clean_up()
    assert world.schema()[1] == before[1][:1] == ["docs"]  # type: ignore[index]


def test_with_kept_names_nothing_is_renamed(tmp_path):
    world, store = begun(tmp_path, migration=replace(MIGRATION, keep_names=True))
    fill(store)
    assert "Readers must now use the folder" in store.cut_over(translate, {"phase": "cut over"}, 1, 1.0).notes[0]
    assert_translated(world)
    assert store.roll_back({"phase": "back"}, 1.0).n_without_old == 0
    store.cut_over(translate, {"phase": "cut over"}, 1, 1.0)
    assert store.job() == {"phase": "cut over"}
    store.clean_up()
    assert [path.name for path in world.parent.iterdir()] == ["docs.new"]


@pytest.mark.parametrize("state", ["begun", "half filled", "filled", "rolled back"])
def test_clean_up_before_a_cut_over_leaves_the_folder_as_found(tmp_path, state):
    world = ParquetWorld(tmp_path)
    store = open_folder(world.create(range(100), vectors(100)))
    before = world.schema()
    store.begin(MIGRATION, {})
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    if state == "half filled":
        store.fill(store.units()[0], translate)
    elif state != "begun":
        fill(store)
    if state == "rolled back":
        store.cut_over(translate, {}, 1, 1.0)
        store.roll_back({}, 1.0)
    store.clean_up()
    store.clean_up()
    assert world.schema() == before
    assert store.job() is None


def test_clean_up_after_the_cut_over_leaves_only_the_new_files(tmp_path):
    world, store = begun(tmp_path)
    fill(store)
    store.cut_over(translate, {}, 1, 1.0)
    store.clean_up()
    assert [path.name for path in world.parent.iterdir()] == ["docs"]
    assert sorted(path.suffix for path in world.path.iterdir()) == [".parquet"] * 5


@pytest.mark.parametrize("direction", ["cut-over", "roll-back"])
def test_a_rename_that_is_killed_half_way_is_repaired_when_the_folder_is_opened(tmp_path, monkeypatch, direction):
    world, store = begun(tmp_path)
    fill(store)
    if direction == "roll-back":
        store.cut_over(translate, {"phase": "cut over"}, 1, 1.0)
    rename, calls = os.rename, []

    def killed(source, target):
        if "docs" in Path(source).name:
            calls.append(source)
            if len(calls) == 2:
                raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    steps = {
        "cut-over": lambda: store.cut_over(translate, {"phase": "cut over"}, 1, 1.0),
        "roll-back": lambda: store.roll_back({"phase": "back"}, 1.0),
    }
    with pytest.raises(KeyboardInterrupt):
        steps[direction]()
    monkeypatch.undo()
    assert not world.path.exists()
    store = open_folder(world.path)
    assert store.job() == {"phase": "filling" if direction == "cut-over" else "back"}
    store.resume(MIGRATION)
    store.cut_over(translate, {"phase": "cut over"}, 1, 1.0)
    assert_translated(world, "vector_old", "vector")


def test_lists_of_any_length_and_of_float64_are_read_as_vectors(tmp_path):
    lists = [None if i == 2 else row.tolist() for i, row in enumerate(vectors(30))]
    for number, kind in enumerate((pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), D_OLD))):
        folder = tmp_path / f"lists-{number}"
        folder.mkdir()
        pq.write_table(pa.table({"id": [f"k{i}" for i in range(30)], "v": pa.array(lists, kind)}), folder / "a.parquet")
        store = open_folder(folder)
        assert (store.vector, store.facts().dim, store.facts().n_without_vector) == ("v", D_OLD, 1)
        store.begin(MIGRATION, {})
        store.resume(MIGRATION)
        assert fill(store) == 29
        rows = store.rows()
        assert rows.schema.field("v").type.list_size == D_OLD
        assert rows.count_rows() == 30
        assert rows.head(3, ["v"])["v"][0].as_py() == pytest.approx(lists[0], rel=1e-2)
        assert len(store.sample(10, 0, ["id"])) == 10
        assert len(store.sample(100, 0, ["v"])) == 29
        assert store.take(["k3", "none"], ["id"]).to_pydict() == {"id": ["k3"]}
    pq.write_table(pa.table({"id": ["a"], "v": pa.array([[1.0]])}), tmp_path / "lists-0" / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: Every vector must have 16 numbers"):
        fill(open_again(tmp_path / "lists-0"))


def open_again(path: Path) -> ParquetFolder:
    store = open_folder(path)
    store.resume(MIGRATION)
    return store


def test_a_sample_draws_each_row_with_the_same_probability(tmp_path):
    world = ParquetWorld(tmp_path)
    store = open_folder(world.create(range(50), vectors(50)))
    counts = np.zeros(50)
    for seed in range(200):
        drawn = store.sample(10, seed, ["id"])["id"].to_pylist()
        assert len(set(drawn)) == 10
        counts[drawn] += 1
    assert counts.min() > 15
    assert counts.max() < 75


def test_a_rehearsal_moves_a_copy_of_some_rows_and_leaves_nothing(tmp_path):
    world = ParquetWorld(tmp_path)
    store = open_folder(world.create(range(50), vectors(50)))
    before = world.schema()
    with store.rehearsal(20) as copy:
        assert copy.facts().n_rows == 20
        copy.begin(MIGRATION, {})
        copy.resume(MIGRATION)
        assert sum(copy.fill(unit, translate) for unit in copy.units()) == 20
    assert world.schema() == before


def test_what_a_folder_cannot_do_is_refused(tmp_path):
    world, store = begun(tmp_path)
    with pytest.raises(InputError, match="has no views"):
        store.check(replace(MIGRATION, view="v"))
    with pytest.raises(InputError, match="the layout side is not possible"):
        store.check(replace(MIGRATION, layout="side"))
    with pytest.raises(InputError, match="Files cannot refuse rows of old writers"):
        store.cut_over(translate, {"guard": True}, 1, 1.0)
    with pytest.raises(InputError, match="must have no condition"):
        open_folder(world.path, where="n = 0")
    with pytest.raises(InputError, match="cannot be searched with a condition"):
        store.search(vectors(1), 1, "old", where="n = 0")
    with pytest.raises(InputError, match=r"Another job moves .* \(version 'v1', not 'v2'\)"):
        store.begin(replace(MIGRATION, version="v2"), {})
    with store.locked(), pytest.raises(InputError, match=r"Another job on .* is running"):
        store.reopen().locked().__enter__()


def test_wrong_folders_columns_and_ids_are_refused(tmp_path):
    world = ParquetWorld(tmp_path)
    path = world.create(range(10), vectors(10))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="must have Parquet files; it has none"):
        open_folder(tmp_path / "empty")
    with pytest.raises(InputError, match="There is no folder"):
        open_folder(tmp_path / "none")
    with pytest.raises(InputError, match="no column 'vectors'; its columns are: id, body"):
        open_folder(path, vector="vectors")
    with pytest.raises(InputError, match="must have one list of floats in each row; it has string"):
        open_folder(path, vector="body")
    with pytest.raises(InputError, match="no column 'key'; name the column of ids with id="):
        open_folder(path, id="key")
    world.insert([5], vectors(1))
    with pytest.raises(InputError, match="'5' occurs more than once"):
        open_folder(path).check(MIGRATION)
    world.beside.mkdir()
    with pytest.raises(InputError, match=r"docs\.new exists and is never overwritten"):
        open_folder(path).check(MIGRATION)
    (world.path / "bad.parquet").write_bytes(b"no rows")
    with pytest.raises(InputError, match=r"bad\.parquet cannot be read"):
        open_folder(path, id="body").facts()
