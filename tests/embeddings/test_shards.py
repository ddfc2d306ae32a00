import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.spaces import card, embeddings, gaussian, names

from repstitch.embeddings.reading import read, scan
from repstitch.embeddings.shards import natural_order
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.spaces import SPACE_KEY

ROWS = gaussian(60, 4)


def save(path, rows: slice, ids: bool = False, stream: bool = False) -> None:
    table = pa.table({"vector": pa.array(list(ROWS[rows]), pa.list_(pa.float32()))})
    if ids:
        table = table.append_column("id", pa.array(names(60)[rows], pa.string()))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".arrow":
        pq.write_table(table, path)
        return
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    "form", ["part_{}.parquet", "part_{}.arrow", "{}.parquet", "shard-{}-of-12.parquet", "{}/x.parquet"]
)
@pytest.mark.parametrize("address", ["path", "URI"])
def test_twelve_shards_are_read_in_the_order_of_their_numbers(tmp_path, form, address, caplog):
    caplog.set_level(logging.INFO)
    for i in range(12):
        save(tmp_path / "many" / form.format(i), slice(5 * i, 5 * i + 5))
    opened = scan(tmp_path / "many" if address == "path" else f"file://{tmp_path}/many")
    np.testing.assert_array_equal(opened.read().vectors, ROWS)
    first, last = form.format(0).split("/")[-1], form.format(11).split("/")[-1]
    warning = f"many: its rows have no ids and are numbered in the order of its 12 files, from {first} to {last}."
    assert caplog.text.count(warning) == 1


def test_no_order_is_warned_of_for_rows_with_ids_or_one_file(tmp_path, caplog):
    save(tmp_path / "one" / "a.parquet", slice(0, 60))
    save(tmp_path / "two" / "a.parquet", slice(0, 30), ids=True)
    save(tmp_path / "two" / "b.parquet", slice(30, 60), ids=True)
    read(tmp_path / "one")
    read(tmp_path / "two")
    assert not caplog.text


def test_names_are_sorted_by_the_numbers_in_them():
    ordered = ["a", "a1", "a2", "a2b1", "a2b10", "a10", "a10b", "b007", "b8", "b08x"]
    assert sorted({*ordered}, key=natural_order) == ordered


def test_other_files_in_a_folder_are_not_read(tmp_path):
    folder = tmp_path / "many"
    save(folder / "a.parquet", slice(0, 30))
    save(folder / "deeper" / "b.parquet", slice(30, 60))
    (folder / "README.md").write_text("# Vectors\n")
    (folder / "notes.txt").write_text("a\n")
    (folder / "_SUCCESS").write_text("")
    for other in (
        "out.parquet.partial/part-000000.parquet",
        ".c.parquet",
        "_d.parquet",
        ".git/e.parquet",
        "f.tmp/g.parquet",
    ):
        save(folder / other, slice(0, 7))
    np.testing.assert_array_equal(read(folder).vectors, ROWS)


def test_files_without_an_ending_are_read_if_a_folder_has_no_others(tmp_path):
    for i in (2, 10):
        save(tmp_path / "many" / f"part-{i}.parquet", slice(0, 30) if i == 2 else slice(30, 60))
        (tmp_path / "many" / f"part-{i}.parquet").rename(tmp_path / "many" / f"part-{i}")
    np.testing.assert_array_equal(read(tmp_path / "many").vectors, ROWS)


def test_a_folder_with_both_types_of_files_is_refused(tmp_path):
    save(tmp_path / "many" / "a.parquet", slice(0, 30))
    save(tmp_path / "many" / "b.arrow", slice(30, 60))
    with pytest.raises(
        InputError, match=r"many must contain either \.parquet or \.arrow files; it has both\. Read them"
    ):
        read(tmp_path / "many")


# --- saved by the library datasets ------------------------------------------------------------------------------------


def saved_dataset(folder, names_of_files, **state):
    for i, name in enumerate(names_of_files):
        save(folder / name, slice(20 * i, 20 * i + 20), ids=True, stream=True)
    state = {"_data_files": [{"filename": name} for name in names_of_files], "_split": None} | state
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return folder


def test_a_saved_dataset_has_the_rows_of_the_files_in_its_state(tmp_path):
    folder = saved_dataset(tmp_path / "saved", [f"data-0000{k}-of-00003.arrow" for k in range(3)])
    save(folder / "cache-1234.arrow", slice(0, 20), ids=True, stream=True)
    rows = read(folder)
    np.testing.assert_array_equal(rows.vectors, ROWS)
    assert list(rows.ids) == list(names(60))  # type: ignore[arg-type]
    parts = [part.vectors for part in scan(f"file://{folder}").batches(7, 11)]
    np.testing.assert_array_equal(np.concatenate(parts), ROWS[11:])


@pytest.mark.parametrize(
    "state", ["{", "[]", "{}", '{"_data_files": 7}', '{"_data_files": [{}]}', '{"_data_files": []}']
)
def test_a_state_of_another_program_is_ignored(tmp_path, state):
    folder = saved_dataset(tmp_path / "saved", [f"data-{k}.arrow" for k in range(3)])
    (folder / "state.json").write_text(state)
    np.testing.assert_array_equal(read(folder).vectors, ROWS)


def test_a_saved_dataset_whose_rows_have_another_order_is_refused(tmp_path):
    folder = saved_dataset(tmp_path / "saved", ["a.arrow"], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(
        InputError, match=r"saved has its rows in another order than its files; save it after `flatten_ind"
    ):
        read(folder)


def test_several_saved_datasets_are_refused_with_their_names(tmp_path):
    for split in ("train", "test"):
        saved_dataset(tmp_path / "saved" / split, ["data.arrow"])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"saved contains several datasets; pass one of them: test, train\.$"):
        read(tmp_path / "saved")
    assert len(read(tmp_path / "saved" / "test")) == 20


def test_files_of_both_layouts_are_read_together(tmp_path):
    save(tmp_path / "many" / "a.arrow", slice(0, 30))
    save(tmp_path / "many" / "b.arrow", slice(30, 60), stream=True)
    np.testing.assert_array_equal(read(tmp_path / "many").vectors, ROWS)


def test_a_folder_that_embed_or_write_filled_is_read(tmp_path):
    rows = embeddings(40, 4)
    (tmp_path / "many").mkdir()
    write(tmp_path / "many" / "2.parquet", rows.take(slice(0, 20)))
    write(tmp_path / "many" / "10.parquet", rows.take(slice(20, 40)))
    assert list(read(tmp_path / "many").ids) == list(rows.ids)  # type: ignore[arg-type]


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path, caplog):
    save(tmp_path / "many" / "a.parquet", slice(0, 30))
    save(tmp_path / "many" / "b.PARQUET", slice(30, 60))
    for name in ("c.parq", "d.pq"):
        save(tmp_path / "many" / name, slice(0, 7))
    np.save(tmp_path / "many" / "e.npy", ROWS)
    np.testing.assert_array_equal(read(tmp_path / "many").vectors, ROWS)
    assert "not read, because its other files are read: c.parq, d.pq, e.npy." in caplog.text


@pytest.mark.parametrize("first", ["old", None])
def test_streams_of_several_spaces_are_refused(tmp_path, first):
    for name, space in (("a", first), ("b", "new")):
        metadata = {SPACE_KEY: card(space, 4).to_json()} if space else None
        table = pa.table({"vector": pa.array(list(ROWS), pa.list_(pa.float32()))}).replace_schema_metadata(metadata)
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match="has files of several spaces"):
        read(tmp_path)


def save_ids(folder, *ids) -> None:
    for i, column in enumerate(ids):
        pq.write_table(pa.table({"id": column, "vector": [[1.0]] * len(column)}), folder / f"{i}.parquet")


UUIDS = pa.array([bytes(15) + b"\x05"], pa.uuid())


@pytest.mark.parametrize(
    ("one", "other"), [([1, 2], ["007", "8"]), ([1, 2], [7.0]), (["1"], [7.0]), (["1"], UUIDS), ([True], ["true1"])]
)
def test_ids_of_different_kinds_in_a_folder_are_refused(tmp_path, one, other):
    save_ids(tmp_path, one, other)
    with pytest.raises(InputError, match="must have one type of column 'id' in all files; got"):
        read(tmp_path)


def test_a_folder_has_types_that_represent_the_values_of_all_files(tmp_path):
    save_ids(tmp_path, pa.array([1], pa.int8()), pa.array([2**40], pa.int64()))
    assert list(read(tmp_path).ids) == ["1", str(2**40)]  # type: ignore[arg-type]
    save_ids(tmp_path, pa.array(["a"]).dictionary_encode(), pa.array(["b"], pa.large_string()))
    assert list(read(tmp_path).ids) == ["a", "b"]  # type: ignore[arg-type]
    for i, kind in enumerate((pa.float16(), pa.float32())):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.array([1, 10.0 ** (6 * i)]), kind), 2)
        pq.write_table(pa.table({"vector": vectors}), tmp_path / f"{i}.parquet")
    assert read(tmp_path).vectors.tolist() == [[1, 1], [1, 1e6]]
