"""A folder of Parquet files that has other files and links, files of old writers, and files that differ."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.lance_jobs import CARD, D_NEW, D_OLD, W, translate, vectors
from helpers.parquet_world import ParquetWorld

from repstitch.addresses import Address
from repstitch.errors import InputError
from repstitch.stores.parquet.folder import ParquetFolder, is_folder
from repstitch.stores.store import Migration

MIGRATION = Migration(D_NEW, "v1", CARD, "vector_new", "vector_old")
OTHERS = ("README.md", "labels.csv", "_hidden.parquet", "x.parq", "deep/notes.txt")


def open_folder(path: str | Path, **names: str) -> ParquetFolder:
    return ParquetFolder(Address("folder", str(path), "", **names))


def filled(folder: Path, others: tuple[str, ...] = (), migration: Migration = MIGRATION):
    world = ParquetWorld(folder)
    path = Path(world.create(range(40), vectors(40)))
    for name in others:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(f"the content of {name}")
    store = open_folder(path)
    store.check(migration)
    store.begin(migration, {"phase": "filling"})
    store.resume(migration)
    fill(store)
    return world, store


def fill(store: ParquetFolder) -> None:
    for unit in store.units():
        store.fill(unit, translate)
    while store.catch_up(translate):
        continue


def cut_over(store: ParquetFolder) -> None:
    store.cut_over(translate, {"phase": "cut over"}, 10, 1.0)


def assert_has_others(folder: Path) -> None:
    assert {name: (folder / name).read_text() for name in OTHERS} == {name: f"the content of {name}" for name in OTHERS}


@pytest.mark.parametrize("keep_names", [False, True])
def test_files_that_are_not_translated_move_along_and_stay_after_the_clean_up(tmp_path, keep_names):
    world, store = filled(tmp_path, OTHERS, replace(MIGRATION, keep_names=keep_names))
    cut_over(store)
    readers = world.beside if keep_names else world.path
    assert_has_others(readers)
    store.clean_up()
    assert_has_others(readers)
    assert [path.name for path in world.parent.iterdir()] == [readers.name]


def test_files_that_are_not_translated_survive_a_roll_back_with_what_was_changed_since(tmp_path):
    world, store = filled(tmp_path, OTHERS)
    cut_over(store)
    (world.path / "added.txt").write_text("added")
    (world.path / "changed").write_text("changed")
    os.replace(world.path / "changed", world.path / "README.md")
    store.roll_back({"phase": "back"}, 1.0)
    assert [(world.path / name).read_text() for name in ("added.txt", "README.md")] == ["added", "changed"]
    store.clean_up()
    assert (world.path / "labels.csv").exists()
    assert not world.beside.exists()


@pytest.mark.parametrize("is_cut_over", [False, True])
def test_clean_up_removes_nothing_while_a_folder_has_a_file_of_which_there_is_no_copy(tmp_path, is_cut_over):
    world, store = filled(tmp_path)
    if is_cut_over:
        cut_over(store)
    removed = world.path.with_name("docs.old" if is_cut_over else "docs.new")
    (removed / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"files that this job has not written \(mine.txt\); move them away first"):
        store.clean_up()
    assert store.job() is not None
    (removed / "mine.txt").unlink()
    store.clean_up()
    assert not removed.exists()


def test_a_link_to_a_folder_is_an_address_and_links_inside_are_refused(tmp_path):
    world = ParquetWorld(tmp_path)
    path = Path(world.create(range(40), vectors(40)))
    (tmp_path / "q4").symlink_to(path)
    store = open_folder(tmp_path / "q4")
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    fill(store)
    cut_over(store)
    store.clean_up()
    assert (tmp_path / "q4").readlink() == path
    assert pq.read_table(path / "part-0.parquet").schema.field("vector").type.list_size == D_NEW
    for name, target in (("linked", tmp_path), ("linked.parquet", path / "part-0.parquet")):
        (path / name).symlink_to(target)
        with pytest.raises(InputError, match=rf"{name} must be a file or a folder, not a link"):
            open_folder(path).check(MIGRATION)
        (path / name).unlink()


def test_a_folder_between_two_renames_is_a_folder_and_is_repaired(tmp_path):
    world, _ = filled(tmp_path)
    (tmp_path / "q4").symlink_to(world.path)
    os.rename(world.path, world.path.with_name("docs.old"))
    assert is_folder(world.path)
    assert is_folder(tmp_path / "q4")
    assert not is_folder(tmp_path / "none")
    store = open_folder(tmp_path / "q4")
    assert store.job() == {"phase": "filling"}
    assert len(world.read()) == 40


def with_strays(folder: Path):
    """Return a folder after the cut-over, to which an old writer adds a file, and in which it replaces another."""
    world, store = filled(folder)
    cut_over(store)
    world.insert([900, 901], vectors(2, seed=5))
    os.replace(world.path / "late-1.parquet", world.path / "a-late.parquet")
    pq.write_table(pq.read_table(world.path.with_name("docs.old") / "part-1.parquet"), world.path / "part-1.parquet")
    store = open_folder(world.path)
    store.resume(MIGRATION)
    return world, store


def test_files_of_an_old_writer_after_the_cut_over_are_still_to_do_and_are_translated(tmp_path):
    world, store = with_strays(tmp_path)
    assert (store.states(), store.count_rest()) == ({"translated": 32, "": 10}, 10)
    parts = list(store.compare())
    assert sum(int(np.isnan(part.new).all(axis=1).sum()) for part in parts) == 10
    assert all(np.isfinite(part.old).all() for part in parts)
    assert len(store.written_since(100)) == 0
    assert len(store.search(vectors(3) @ W, 1, "new").ids) == 3
    assert len(store.sample(5, 0, ["id", "vector"])) == 5
    fill(store)
    assert store.states() == {"translated": 42}
    old, new = world.column("vector_old"), world.column("vector")
    assert old.keys() == new.keys() == {*range(40), 900, 901}
    np.testing.assert_allclose(np.stack(list(new.values())), np.stack(list(old.values())) @ W, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_files_of_an_old_writer_after_the_cut_over_are_kept_by_a_roll_back(tmp_path):
    world, store = with_strays(tmp_path)
    back = store.roll_back({"phase": "back"}, 1.0)
    assert (back.n_without_old, back.notes) == (0, ())
    assert world.read().keys() == {*range(40), 900, 901}
    store.clean_up()
    assert world.read().keys() == {*range(40), 900, 901}


def test_clean_up_after_the_cut_over_keeps_files_of_an_old_writer(tmp_path):
    world, store = with_strays(tmp_path)
    store.clean_up()
    assert {"a-late.parquet", "part-1.parquet"} <= {path.name for path in world.path.iterdir()}
    assert not world.path.with_name("docs.old").exists()


def test_files_with_other_columns_and_types_of_vectors_are_sampled_and_rehearsed(tmp_path):
    rows = vectors(10)
    kinds = [pa.list_(pa.float16(), D_OLD), pa.list_(pa.float32(), D_OLD), pa.list_(pa.float64())]
    others = [{"n": pa.array(range(10), pa.int32())}, {"n": pa.array(range(10), pa.int64())}, {"text": ["a"] * 10}]
    for number, (kind, other) in enumerate(zip(kinds, others, strict=True)):
        values = pa.array(list(rows.astype(np.float16)) if number == 0 else rows.tolist(), kind)
        table = pa.table({"id": pa.array(range(10 * number, 10 * number + 10)), "vector": values, **other})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    store = open_folder(tmp_path)
    store.check(MIGRATION)
    assert set(store.sample(30, 0, ["id"])["id"].to_pylist()) == set(range(30))
    assert len(store.take(["3", "13", "23"], ["id", "n"])) == 3
    assert store.rows().head(25).num_rows == 25
    with store.rehearsal(30) as copy:
        assert copy.facts().n_rows == 30
    pq.write_table(pa.table({"id": [99], "vector": rows[:1].tolist(), "n": ["text"]}), tmp_path / "3.parquet")
    with open_folder(tmp_path).rehearsal(31) as copy:
        assert copy.facts().n_rows == 31
        copy.begin(MIGRATION, {})
        copy.resume(MIGRATION)
        assert sum(copy.fill(unit, translate) for unit in copy.units()) == 31


def test_a_column_of_vectors_can_have_a_dot_in_its_name(tmp_path):
    values = pa.array([*vectors(9).tolist(), None], pa.list_(pa.float32(), D_OLD))
    table = pa.table({"id": range(10), "v": [[1.0]] * 10, "v.new": values, "v.n": range(10)})
    pq.write_table(table, tmp_path / "a.parquet")
    for name, n_without in (("v.new", 1), ("v", 0)):
        assert open_folder(tmp_path, vector=name).facts().n_without_vector == n_without
    store = open_folder(tmp_path, vector="v.new")
    assert store.sample(4, 0, ["v.new"]).schema.names == ["v.new"]
    store.check(MIGRATION)
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    fill(store)
    assert store.states() == {"translated": 9, "": 1}
    assert sum(len(part.ids) for part in store.compare()) == 9


@pytest.mark.parametrize("ids", [[[1], [2]], [{"a": 1}, {"a": 2}], [b"a", b"b"]], ids=["lists", "structs", "bytes"])
def test_ids_that_are_not_texts_or_whole_numbers_are_refused(tmp_path, ids):
    pq.write_table(pa.table({"id": ids, "vector": vectors(2).tolist()}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="must be texts or whole numbers; they are"):
        open_folder(tmp_path).check(MIGRATION)


@pytest.mark.parametrize("content", ["{", "[]", '{"dim": 1, "unknown": 2}', '{"dim": 1, "version": 2}'])
@pytest.mark.parametrize("is_cut_over", [False, True])
def test_a_damaged_state_is_named_without_internals_and_can_be_cleaned_up(tmp_path, content, is_cut_over):
    world, store = filled(tmp_path, OTHERS)
    if is_cut_over:
        cut_over(store)
    (world.path if is_cut_over else world.beside).joinpath("_repstitch.json").write_text(content)
    store = open_folder(world.path)
    with pytest.raises(InputError, match=r"_repstitch.json, the state of a job, is damaged; put a copy .* begin again"):
        store.job()
    store.clean_up()
    assert [path.name for path in world.parent.iterdir()] == ["docs"]
    assert_has_others(world.path)
    assert store.job() is None


def test_clean_up_with_a_damaged_state_keeps_files_that_others_wrote(tmp_path):
    world, store = filled(tmp_path)
    (world.beside / "_repstitch.json").write_text("{")
    pq.write_table(
        pq.read_table(world.beside / "part-0.parquet").replace_schema_metadata(), world.beside / "part-0.parquet"
    )
    with pytest.raises(InputError, match=r"has not written \(part-0.parquet\)"):
        store.clean_up()
    assert (world.beside / "part-0.parquet").exists()


def test_a_full_disk_during_a_rehearsal_is_named(tmp_path, monkeypatch):
    world = ParquetWorld(tmp_path)
    store = open_folder(world.create(range(20), vectors(20)))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match=r"files cannot be written: .*No space left"):
        store.rehearsal(5).__enter__()
    assert [path.name for path in world.parent.iterdir()] == ["docs"]
