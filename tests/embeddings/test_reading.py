import os
import zipfile
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.spaces import card, embeddings, folder_of, gaussian, names

from repstitch.embeddings.pairs import pair
from repstitch.embeddings.reading import place_group, read, scan
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.spaces import SPACE_KEY, Space

DTYPES = ("float16", "float32")


def save_parquet(path, rows: Embeddings):
    write(path, rows)


def arrow_table(rows: Embeddings) -> pa.Table:
    """Return the rows as an Arrow table, with the vectors as lists of variable size."""
    columns = {"id": pa.array(rows.ids, pa.string()), "vector": pa.array(list(rows.vectors))}
    if rows.groups is not None:
        columns["photo"] = pa.array(rows.groups, pa.string())
    return pa.table(columns).replace_schema_metadata({SPACE_KEY: rows.space.to_json()})


def save_arrow_file(path, rows: Embeddings):
    table = arrow_table(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def save_arrow_stream(path, rows: Embeddings):
    table = arrow_table(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def save_npz(path, rows: Embeddings):
    assert rows.ids is not None
    np.savez(path, old=rows.vectors, ids=rows.ids.astype(str))


def save_npy(path, rows: Embeddings):
    np.save(path, rows.vectors)


SAVES = {
    "parquet": ("x.parquet", save_parquet),
    "arrow file": ("x.arrow", save_arrow_file),
    "arrow stream": ("x.arrow", save_arrow_stream),
    "npz": ("x.npz", save_npz),
    "npy": ("x.npy", save_npy),
}


@pytest.fixture(params=SAVES)
def saved(request, tmp_path):
    """Return a function that saves embeddings in one of the formats and returns the path and the name of the format."""
    name, save = SAVES[request.param]

    def run(rows: Embeddings):
        save(tmp_path / name, rows)
        return tmp_path / name, request.param

    return run


# --- the formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_ids_and_card_survive_every_format(saved, dtype):
    rows = embeddings(40, 4, dtype=dtype)
    path, form = saved(rows)
    back = read(path)
    assert back.vectors.dtype == dtype
    np.testing.assert_array_equal(back.vectors, rows.vectors)
    if form == "npy":
        assert back.ids is None
    else:
        np.testing.assert_array_equal(back.ids, rows.ids)
    if form.startswith("np"):
        assert (back.space, back.declared) == (Space("x" if form == "npy" else "old", 4), False)
    else:
        assert (back.space, back.declared) == (rows.space, True)


@pytest.mark.parametrize("start", [0, 1, 7, 20, 39, 40, 99])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_can_start_at_any_row(saved, start, size):
    rows = embeddings(40, 4)
    path, form = saved(rows)
    parts = list(scan(path).batches(size, start))
    assert all(0 < len(part) <= size for part in parts)
    together = np.concatenate([np.zeros((0, 4), dtype="float32"), *(part.vectors for part in parts)])
    np.testing.assert_array_equal(together, rows.vectors[start:])
    if form != "npy":
        ids = [key for part in parts if part.ids is not None for key in part.ids]
        assert ids == list(rows.ids[start:])  # type: ignore[index]


def test_a_scan_reports_the_rows_dimensions_and_ids_of_a_file(saved):
    path, form = saved(embeddings(40, 4))
    opened = scan(path)
    assert (opened.n_rows, opened.space.dim, opened.has_ids) == (40, 4, form != "npy")


def test_a_folder_of_files_is_read_in_the_order_of_the_file_names(tmp_path):
    rows = embeddings(40, 4)
    parts = [rows.take(slice(0, 15)), rows.take(slice(15, 16)), rows.take(slice(16, 40))]
    path = folder_of(tmp_path / "many", parts)
    back = read(path)
    np.testing.assert_array_equal(back.vectors, rows.vectors)
    np.testing.assert_array_equal(back.ids, rows.ids)
    assert back.space == rows.space
    np.testing.assert_array_equal(np.concatenate([b.vectors for b in scan(path).batches(7, 16)]), rows.vectors[16:])


def test_a_folder_of_arrow_files_is_read(tmp_path):
    rows = embeddings(40, 4)
    (tmp_path / "many").mkdir()
    save_arrow_file(tmp_path / "many" / "a.arrow", rows.take(slice(0, 15)))
    save_arrow_file(tmp_path / "many" / "b.arrow", rows.take(slice(15, 40)))
    np.testing.assert_array_equal(read(tmp_path / "many").vectors, rows.vectors)


@pytest.mark.parametrize("other", [card("new", 4), card("old", 4, revision="other"), None])
def test_a_folder_that_mixes_spaces_is_refused(tmp_path, other):
    path = folder_of(tmp_path / "many", [embeddings(20, 4)])
    if other is None:
        pq.write_table(arrow_table(embeddings(20, 4)).replace_schema_metadata(None), path / "b.parquet")
    else:
        write(path / "b.parquet", embeddings(20, 4, space=other))
    with pytest.raises(InputError, match=r"has files of several spaces \(.*b.parquet differs\)"):
        scan(path)


def test_a_file_or_folder_without_rows_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    empty = arrow_table(embeddings(1, 4)).slice(0, 0)
    pq.write_table(empty, tmp_path / "x.parquet")
    (tmp_path / "zero").mkdir()
    pq.write_table(empty, tmp_path / "zero" / "a.parquet")
    np.save(tmp_path / "x.npy", np.zeros((0, 4), dtype="float32"))
    for path in ("empty", "x.parquet", "zero"):
        with pytest.raises(InputError, match=f"{path} has no rows; it must have at least one vector"):
            read(tmp_path / path)
    with pytest.raises(InputError, match=r"x\.npy"):
        read(tmp_path / "x.npy")
    with pytest.raises(InputError, match="The array has no rows"):
        read(np.zeros((0, 4)))


def test_an_empty_file_in_a_folder_is_skipped(tmp_path):
    (tmp_path / "many").mkdir()
    table = arrow_table(embeddings(30, 4))
    pq.write_table(table.slice(0, 0), tmp_path / "many" / "a.parquet")
    pq.write_table(table, tmp_path / "many" / "b.parquet")
    assert len(read(tmp_path / "many")) == 30


def test_a_vector_column_named_in_the_path_does_not_get_the_card_of_the_default_column(tmp_path):
    rows = embeddings(30, 4)
    other = gaussian(30, 6, 9)
    pq.write_table(arrow_table(rows).append_column("wide", pa.array(list(other))), tmp_path / "x.parquet")
    back = read(f"{tmp_path}/x.parquet:wide")
    np.testing.assert_array_equal(back.vectors, other)
    assert (back.space, back.declared) == (Space("x", 6), False)
    assert read(tmp_path / "x.parquet").space == rows.space


def test_one_of_several_arrays_in_an_npz_is_named_in_the_path(tmp_path):
    a, b = gaussian(30, 4, 1), gaussian(30, 5, 2)
    np.savez(tmp_path / "x.npz", a=a, b=b, ids=names(30).astype(str))
    np.testing.assert_array_equal(read(f"{tmp_path}/x.npz:b").vectors, b)
    assert read(f"{tmp_path}/x.npz:b").space.name == "b"
    with pytest.raises(
        InputError, match=r"x.npz has several arrays: a, b, ids\. Name the array of vectors, e\.g\. .*x.npz:a\."
    ):
        scan(tmp_path / "x.npz")
    with pytest.raises(InputError, match="has no array 'c'; its arrays are: a, b, ids"):
        scan(f"{tmp_path}/x.npz:c")
    for arrays, listed in (({"ids": a}, "ids"), ({}, "none")):
        np.savez(tmp_path / "y.npz", **arrays)  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match=f"y.npz has no array of vectors; its arrays are: {listed}"):
            scan(tmp_path / "y.npz")


def test_embeddings_and_arrays_are_returned_unchanged():
    rows = embeddings(30, 4)
    assert read(rows) is rows
    np.testing.assert_array_equal(read(rows.vectors).vectors, rows.vectors)
    assert not read(rows.vectors).declared


# --- arguments of the caller ------------------------------------------------------------------------------------------


def test_a_space_from_the_caller_declares_the_space(tmp_path):
    np.save(tmp_path / "x.npy", gaussian(30, 4))
    named = read(tmp_path / "x.npy", space="old")
    assert (named.space, named.declared) == (Space("old", 4), True)
    whole = read(tmp_path / "x.npy", space=card("old", 4))
    assert (whole.space, whole.declared) == (card("old", 4), True)
    with pytest.raises(InputError, match=r"x.npy has 4 dimensions but `space` 'old' has 5"):
        scan(tmp_path / "x.npy", space=card("old", 5))


def test_a_name_from_the_caller_replaces_only_the_name_in_the_card(tmp_path):
    write(tmp_path / "x.parquet", embeddings(30, 4))
    assert read(tmp_path / "x.parquet", space="mine").space == replace(card("old", 4), name="mine")


def test_integer_ids_are_converted_to_text(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(30))
    back = read(gaussian(30, 4), ids=tmp_path / "ids.npy")
    assert list(back.ids) == [str(i) for i in range(30)]  # type: ignore[arg-type]
    numbered = Embeddings(gaussian(30, 4), card(), ids=np.arange(30))
    assert len(pair(back, numbered)) == 30
    write(tmp_path / "x.parquet", numbered)
    assert list(read(tmp_path / "x.parquet").ids) == list(back.ids)  # type: ignore[arg-type]
    table = pa.table({"id": pa.array(range(30)), "vector": pa.array(list(gaussian(30, 4)))})
    pq.write_table(table, tmp_path / "numbers.parquet")
    assert list(read(tmp_path / "numbers.parquet").ids) == list(back.ids)  # type: ignore[arg-type]


def test_ids_from_the_caller_replace_those_of_the_file(tmp_path):
    write(tmp_path / "x.parquet", embeddings(30, 4))
    assert list(read(tmp_path / "x.parquet", ids=names(30, "other")).ids) == list(names(30, "other"))  # type: ignore[arg-type]


def test_an_npz_must_have_one_id_per_row(tmp_path):
    for bad in (names(29).astype(str), np.full((30, 2), "a")):
        np.savez(tmp_path / "x.npz", old=gaussian(30, 4), ids=bad)
        with pytest.raises(InputError, match=r"`ids` of .*x.npz must have one entry per row \(30\); got shape"):
            scan(tmp_path / "x.npz")


def test_groups_are_read_from_a_column_or_a_file(tmp_path):
    groups = np.array([f"photo{i // 5}" for i in range(40)], dtype=object)
    table = arrow_table(embeddings(40, 4, groups=groups))
    pq.write_table(table, tmp_path / "x.parquet")
    np.save(tmp_path / "groups.npy", groups.astype(str))
    every: list[Any] = ["photo", tmp_path / "groups.npy", str(tmp_path / "groups.npy"), groups]
    for source in every:
        opened = scan(tmp_path / "x.parquet", group=source)
        assert list(opened.read().groups) == list(groups)  # type: ignore[arg-type]
        assert [g for part in opened.batches(7, 3) for g in part.groups] == list(groups[3:])  # type: ignore[arg-type]
    assert list(read(tmp_path / "x.parquet", group="id").groups) == list(names(40))  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["group", "ids"])
def test_groups_and_ids_are_read_from_a_named_pipe(tmp_path, argument):
    rows = embeddings(30, 4)
    np.save(tmp_path / "x.npy", rows.vectors)
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=(tmp_path / "pipe").write_text, args=("\n".join(f"a{i}" for i in range(30)),))
    writer.start()
    options: dict[str, Any] = {argument: str(tmp_path / "pipe")}
    rows_read = read(tmp_path / "x.npy", **options)
    writer.join()
    assert list({"group": rows_read.groups, "ids": rows_read.ids}[argument]) == [f"a{i}" for i in range(30)]  # type: ignore[arg-type]


def test_groups_and_ids_from_the_caller_are_used_for_embeddings_and_arrays():
    rows, groups = embeddings(30, 4), np.arange(30) // 5
    assert list(read(rows, group=groups).groups) == list(groups.astype(str))  # type: ignore[arg-type]
    assert list(read(rows, ids=names(30, "x")).ids) == list(names(30, "x"))  # type: ignore[arg-type]
    assert read(rows, space="other").space.name == "other"
    assert list(read(rows.vectors, group=groups).groups) == list(groups.astype(str))  # type: ignore[arg-type]


def test_a_vector_column_is_refused_as_a_group(tmp_path):
    write(tmp_path / "x.parquet", embeddings(30, 4))
    with pytest.raises(
        InputError, match=r"`group` must be another column of .*x\.parquet than its vectors; got 'vector'"
    ):
        read(tmp_path / "x.parquet", group="vector")


# --- refused input ----------------------------------------------------------------------------------------------------


def test_missing_files_and_unsupported_extensions_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no file .*none.parquet; pass the path of embeddings \(.parquet"):
        scan(tmp_path / "none.parquet")
    save, convert = (
        r'Save vectors .* `np\.save\("X\.npy", X\)`\.',
        r"Convert it with: repstitch convert .*x\.csv --out x\.parquet",
    )
    for name, got, advice in (
        ("x.csv", "the ending .csv", convert),
        ("x.xlsx", "the ending .xlsx", save),
        ("x", "no file ending", save),
    ):
        (tmp_path / name).write_text("1,2\n")
        formats = rf"{name} must be one of \.parquet, \.arrow, \.npy, \.npz or a folder of Parquet files"
        with pytest.raises(InputError, match=rf"{formats}; got {got}\. {advice}$"):
            scan(tmp_path / name)


def test_numpys_advice_to_run_the_code_in_a_file_is_not_repeated(tmp_path):
    (tmp_path / "text.npy").write_text("1 2 3\n")
    np.save(tmp_path / "objects.npy", np.array([{}, {}]))
    np.savez(tmp_path / "objects.npz", X=np.array([{}, {}]))
    for name in ("text.npy", "objects.npy", "objects.npz"):
        with pytest.raises(InputError, match=r"cannot be read as embeddings: .*Python objects") as caught:
            read(tmp_path / name)
        assert "pickle" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.pkl", "x.PT"])
def test_pickles_are_refused_without_reading_them_and_with_the_way_to_convert_them(tmp_path, name):
    torch.save(torch.zeros(30, 4), tmp_path / name)
    with pytest.raises(InputError, match=rf'{name} is a pickle\. .* `np\.save\("X\.npy", tensor\.numpy\(\)\)`'):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros(30, dtype="float32"),
            r"must have one vector per item, as floats of shape \(n, dim\); got float32 of shape \(30,\)\. "
            r"Pass a single vector as one row, `X\[None\]`\.$",
        ),
        (
            np.zeros((3, 4, 5), dtype="float32"),
            r"got float32 of shape \(3, 4, 5\)\. .* pool them first, e\.g\. `X\.mean\(axis=1\)`, or take one token, "
            r"`X\[:, 0\]`\.$",
        ),
        (
            np.zeros((30, 4), dtype="bool"),
            r"""got bool of shape .*\. Convert it to floats with `X\.astype\("float32"\)`""",
        ),
        (np.full(30, "a cat"), "got <U5 of shape .*Embed texts first"),
        (np.zeros((30, 4), dtype="complex64"), "got complex64"),
        (np.zeros((30, 0), dtype="float32"), r"of shape \(30, 0\)"),
        (np.full((30, 4), "a"), "got <U1"),
    ],
)
def test_arrays_that_are_not_matrices_of_floats_are_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", a=array)
    for source in (array, tmp_path / "x.npz") if array.size == 0 else (array, tmp_path / "x.npy", tmp_path / "x.npz"):
        with pytest.raises(InputError, match=message):
            read(source)


@pytest.mark.parametrize("kind", [list, np.int8, np.uint64])
def test_whole_numbers_in_memory_are_read_as_float32(kind):
    rows = np.array([[1, 2, 3], [4, 5, 2**24 if kind is np.uint64 else 6]])
    vectors = read(rows.tolist() if kind is list else rows.astype(kind)).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, rows)


def test_whole_numbers_that_float32_would_round_are_refused():
    for rows in ([[2**24 + 1, 0]], [[0, -(2**40)]], np.full((3, 2), np.iinfo(np.int64).min)):
        with pytest.raises(InputError, match=r"integers beyond 16,777,216, which float32 would round"):
            read(rows)


def test_whole_numbers_in_a_file_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((30, 4), dtype="int64"))
    with pytest.raises(InputError, match=r"must have one vector per item.*got int64.* Convert it to floats"):
        read(tmp_path / "x.npy")


def test_a_list_of_rows_of_different_lengths_is_refused():
    with pytest.raises(InputError, match="its rows have different lengths"):
        read([[1.0, 2.0], [3.0]])


def test_a_column_of_vectors_is_refused_with_the_way_to_stack_it():
    column = np.empty(30, dtype=object)
    column[:] = list(gaussian(30, 4))
    with pytest.raises(InputError, match=r"got object of shape \(30,\)\. .* with `np\.stack\(X\)`\.$"):
        read(column)
    assert len(read(np.stack(list(column)))) == 30


def test_pickled_arrays_are_refused_without_unpickling_them(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[1.0, "a"]] * 30, dtype=object))
    np.savez(tmp_path / "x.npz", a=np.array([[1.0, "a"]] * 30, dtype=object))
    for file in ("x.npy", "x.npz:a"):
        with pytest.raises(InputError, match=r"cannot be read as embeddings: .*Python objects"):
            read(f"{tmp_path}/{file}")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0, 3.0]] + [[1.0, 2.0]] * 29), r"must have 3 numbers in every row; 29 rows have another"),
        (
            pa.array([None, [1.0, 2.0], [1.0], [1.0, 2.0, 3.0]]),
            r"must have 2 numbers in every row; 2 rows have another number of them \(first: row 2 with 1\)\.$",
        ),
        (pa.array([[1, 2], [3, 4]]), "must have one list of floats per row; got list<.*int64>"),
        (
            pa.array([[[1.0, 2.0], [3.0, 4.0]]]),
            "must have one list of floats per row; got list<.*Pool the vectors of each row",
        ),
        (pa.array([1.0, 2.0]), "must have one list of floats per row; got double"),
        (pa.array(["a", "b"]), "must have one list of floats per row; got string"),
        (pa.array([[], []], pa.list_(pa.float32())), "has no vectors; at least one row must have one"),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_columns_that_are_not_vectors_of_floats_are_refused(tmp_path, column, message, form):
    table = pa.table({"vector": column})
    if form == "parquet":
        pq.write_table(table, tmp_path / "x.parquet")
    else:
        with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match=message):
        read(tmp_path / f"x.{form}")


def test_a_missing_column_is_refused_with_the_columns_of_the_file(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "x.parquet")
    with pytest.raises(
        InputError, match=r"has no column 'vector'; its columns are: a, b\. .*path: .*x.parquet:COLUMN\.$"
    ):
        scan(tmp_path / "x.parquet")
    pq.write_table(pa.table({"text": ["a"], "embedding": [[1.0, 2.0]]}), tmp_path / "y.parquet")
    with pytest.raises(InputError, match=r"its columns are: text, embedding\. .*path: .*y.parquet:embedding\.$"):
        scan(tmp_path / "y.parquet")


@pytest.mark.parametrize("row", [1, 25])
def test_the_row_without_an_id_or_a_group_is_named_by_its_number_in_the_file(tmp_path, row):
    holes = np.array(names(30), object)
    holes[row:] = None
    table = pa.table({"id": pa.array(holes, pa.string()), "vector": list(gaussian(30, 4))})
    for name in ("id", "photo"):
        pq.write_table(table.rename_columns([name, "vector"]), tmp_path / f"{name}.parquet")
    np.save(tmp_path / "x.npy", gaussian(30, 4))
    message = rf"must have an entry in every row; row {row} has none\.$"
    with pytest.raises(InputError, match=rf"Column 'id' of .*id\.parquet {message}"):
        list(scan(tmp_path / "id.parquet").batches(10))
    with pytest.raises(InputError, match=rf"Column 'photo' of .*photo\.parquet {message}"):
        list(scan(tmp_path / "photo.parquet", group="photo").batches(10))
    with pytest.raises(InputError, match=f"`group` {message}"):
        list(scan(tmp_path / "x.npy", group=holes).batches(10))


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet"])
def test_groups_may_be_an_array_beside_every_kind_of_file(tmp_path, ending):
    groups = np.arange(30) // 3
    np.save(tmp_path / "x.npy", gaussian(30, 4))
    np.savez(tmp_path / "x.npz", vectors=gaussian(30, 4), ids=names(30).astype(str))
    pq.write_table(pa.table({"vector": list(gaussian(30, 4))}), tmp_path / "x.parquet")
    assert list(read(tmp_path / f"x{ending}", group=groups).groups) == [str(group) for group in groups]  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [".", "./", "../e.v2", "{absolute}"])
def test_a_folder_is_named_by_its_whole_name_wherever_one_stands(tmp_path, monkeypatch, place):
    folder = tmp_path / "e.v2"
    folder.mkdir()
    pq.write_table(pa.table({"vector": list(gaussian(30, 4))}), folder / "0.parquet")
    (tmp_path / "e.ids.txt").write_text("\n".join(names(30, "other")))  # of e.npy
    monkeypatch.chdir(folder)
    rows = read(place.format(absolute=folder))
    assert (rows.space.name, rows.ids) == ("e.v2", None)
    (tmp_path / "e.v2.ids.txt").write_text("\n".join(names(30)))
    assert list(read(place.format(absolute=folder)).ids) == list(names(30))  # type: ignore[arg-type]


@pytest.mark.parametrize("meta", [b"{", b"[]", b'{"name": "a"}', b'{"name": "a", "dim": 4, "later": 1}'])
def test_a_card_that_cannot_be_parsed_is_refused(tmp_path, meta):
    table = arrow_table(embeddings(30, 4)).replace_schema_metadata({SPACE_KEY: meta})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="space card"):
        scan(tmp_path / "x.parquet")


def test_a_card_of_another_dimension_is_refused(tmp_path):
    table = arrow_table(embeddings(30, 4)).replace_schema_metadata({SPACE_KEY: card("old", 5).to_json()})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="states 5 dimensions but its vectors have 4"):
        scan(tmp_path / "x.parquet")


@pytest.mark.parametrize("form", [form for form in SAVES if form != "arrow stream"])
def test_a_file_cut_short_is_refused(tmp_path, form):
    name, save = SAVES[form]
    save(tmp_path / name, embeddings(400, 8))
    whole = (tmp_path / name).read_bytes()
    for kept in (0, 4, len(whole) // 2, len(whole) - 5):
        (tmp_path / name).write_bytes(whole[:kept])
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path / name)


def test_an_arrow_stream_cut_short_is_refused(tmp_path):
    rows = embeddings(400, 8)
    save_arrow_stream(tmp_path / "x.arrow", rows)
    whole = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "x.arrow")


def test_damage_in_the_middle_of_a_file_is_refused_without_a_crash(tmp_path):
    write(tmp_path / "x.parquet", embeddings(400, 8))
    bytes_ = bytearray((tmp_path / "x.parquet").read_bytes())
    bytes_[40:2000] = bytes(1960)
    (tmp_path / "x.parquet").write_bytes(bytes_)
    with pytest.raises(InputError, match=r"x.parquet cannot be read"):
        read(tmp_path / "x.parquet")


def test_tensors_with_gradients_or_other_float_types_are_read_as_arrays():
    rows = torch.from_numpy(gaussian(30, 4))
    for tensor in (rows, rows.clone().requires_grad_(), torch.nn.Parameter(rows), rows.double()):
        np.testing.assert_array_equal(read(tensor).vectors, rows.numpy())
    assert read(rows.half()).vectors.dtype == np.float16
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        back = read(rows.to(dtype).requires_grad_()).vectors
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, rows.to(dtype).float().numpy())


def test_a_tensor_on_another_device_is_moved_to_the_cpu():
    class Elsewhere(torch.Tensor):
        moved = 0

        def cpu(self, memory_format=torch.preserve_format):
            Elsewhere.moved += 1
            return torch.from_numpy(gaussian(30, 4))

    np.testing.assert_array_equal(read(torch.zeros(30, 4).as_subclass(Elsewhere)).vectors, gaussian(30, 4))
    assert Elsewhere.moved == 1


def test_values_that_numpy_cannot_convert_are_refused_in_one_line():
    with pytest.raises(
        InputError,
        match=r"^The array must have one vector per item.*; it cannot be converted: Cannot copy out of meta",
    ):
        read([torch.ones(4, device="meta")])


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(gaussian(30, 4), gaussian(30, 4) > 1)
    with pytest.raises(
        InputError, match=r"^The array must not be a masked array, because .* lost; remove the masked rows first\.$"
    ):
        read(masked)
    with pytest.raises(InputError, match=r"^`vectors` of space 'old' must not be a masked array"):
        Embeddings(masked, card("old", 4))


# --- rows without a vector --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float16())])
@pytest.mark.parametrize("size", [2, 100])
def test_a_row_without_a_vector_is_read_as_nan(tmp_path, kind, size):
    column = pa.array([None, [1.0, 2.0], None, [3.0, 4.0], [5.0, None]], kind)
    pq.write_table(pa.table({"vector": column, "id": list("abcde")}), tmp_path / "x.parquet")
    nan = np.nan
    expected = [[nan, nan], [1, 2], [nan, nan], [3, 4], [5, nan]]
    for start in range(5):
        parts = [part.vectors for part in scan(tmp_path / "x.parquet").batches(size, start)]
        np.testing.assert_array_equal(np.concatenate(parts), expected[start:])
    assert read(tmp_path / "x.parquet").vectors.dtype == (np.float16 if kind.value_type == pa.float16() else np.float32)


def test_an_empty_list_is_a_row_without_a_vector(tmp_path):
    column = pa.array([[], [1.0, 2.0], []], pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": column}), tmp_path / "x.parquet")
    assert np.isnan(read(tmp_path / "x.parquet").vectors).all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("missing", [None, [], [float("nan")] * 4])
def test_rows_without_a_vector_are_left_out_if_asked_and_else_the_first_is_named(tmp_path, missing):
    for name, gap in (("a", 7), ("b", 90)):
        rows = gaussian(300, 4).tolist()
        rows[gap] = missing
        column = pa.array(rows, pa.list_(pa.float32()))
        pq.write_table(pa.table({"id": names(300), "vector": column}), tmp_path / f"{name}.parquet")
    source, target = read(tmp_path / "a.parquet"), read(tmp_path / "b.parquet", space="other")
    pairs = pair(source, target, drop_invalid=True)
    assert len(pairs) == 298
    assert {reason: n for reason, n in pairs.dropped.items() if n} == {"source NaN or Inf": 1, "target NaN or Inf": 1}
    with pytest.raises(InputError, match=r"1 with source NaN or Inf, 1 with target NaN or Inf \(first: id 'item7'\)"):
        pair(source, target)


# --- files of ids beside a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", ["x.ids.txt", "x.ids.npy", "ids.txt", "ids.npy"])
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.parquet"])
def test_ids_beside_a_file_are_read_and_the_log_names_them(tmp_path, beside, name, caplog):
    caplog.set_level("INFO")
    X = gaussian(30, 4)
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", X=X)
    pq.write_table(pa.table({"vector": list(X)}), tmp_path / "x.parquet")
    if beside.endswith(".npy"):
        np.save(tmp_path / beside, names(30).astype(str))
    else:
        (tmp_path / beside).write_text("\n".join(names(30)) + "\n")
    assert list(read(tmp_path / name).ids) == list(names(30))  # type: ignore[arg-type]
    assert caplog.text.count(f"{name}: the ids are those in {tmp_path / beside}.") == 1
    caplog.clear()
    assert list(read(tmp_path / name, ids=names(30, "mine")).ids) == list(names(30, "mine"))  # type: ignore[arg-type]
    assert not caplog.text


def test_ids_beside_a_file_do_not_replace_its_own(tmp_path):
    write(tmp_path / "x.parquet", embeddings(30, 4))
    (tmp_path / "x.ids.txt").write_text("\n".join(names(30, "other")))
    assert list(read(tmp_path / "x.parquet").ids) == list(names(30))  # type: ignore[arg-type]


def test_ids_of_a_folder_are_read_only_if_their_number_fits_and_those_of_a_file_must_fit(tmp_path, caplog):
    np.save(tmp_path / "x.npy", gaussian(2500, 4))
    (tmp_path / "ids.txt").write_text("\n".join(names(10_000)))
    assert read(tmp_path / "x.npy").ids is None
    assert "x.npy: " in caplog.text
    assert "ids.txt is not used, because it has 10000 ids for 2500 rows." in caplog.text
    (tmp_path / "ids.txt").rename(tmp_path / "x.ids.txt")
    message = r"^`ids` .*x\.ids\.txt must have one entry per row of .*x\.npy \(2,500\); got 10,000 entries\.$"
    with pytest.raises(InputError, match=message):
        read(tmp_path / "x.npy")


def test_ids_are_read_from_a_column_of_a_table(tmp_path):
    (tmp_path / "t.csv").write_text("sku,name\n" + "".join(f"00{i},a\n" for i in range(30)))
    rows = read(gaussian(30, 4), ids=f"{tmp_path}/t.csv:sku")
    assert list(rows.ids)[:2] == ["000", "001"]  # type: ignore[arg-type]


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_column_of_groups_goes_before_a_file_of_the_same_name(tmp_path, monkeypatch):
    groups = np.array([f"photo{i // 5}" for i in range(40)], dtype=object)
    pq.write_table(arrow_table(embeddings(40, 4, groups=groups)), tmp_path / "x.parquet")
    (tmp_path / "photo").write_text("\n".join(names(40, "wrong")))
    monkeypatch.chdir(tmp_path)
    assert list(read("x.parquet", group="photo").groups) == list(groups)  # type: ignore[arg-type]
    np.save("x.npy", gaussian(40, 4))
    assert place_group(["x.npy", "x.parquet"], "photo") == [None, "photo"]
    assert list(read("x.npy", group="photo").groups) == list(names(40, "wrong"))  # type: ignore[arg-type]


SIDES = {
    "table": lambda table: table,
    "batch": lambda table: table.combine_chunks().to_batches()[0],
    "frame": lambda table: table.to_pandas(),
    "payload": lambda table: replace(read(table), payload=table.select(["photo"])),
    "archive": lambda table: np.savez("x.npz", vector=read(table).vectors, photo=table["photo"].to_numpy().astype(str)),
}


@pytest.mark.parametrize("kind", SIDES)
def test_a_column_of_groups_of_either_side_goes_before_a_file_of_the_same_name(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    groups = np.array([f"photo{i // 5}" for i in range(40)], dtype=object)
    (tmp_path / "photo").write_text("\n".join(names(40, "wrong")))
    table = arrow_table(embeddings(40, 4))
    side = SIDES[kind](table.append_column("photo", pa.array(groups)))
    side = "x.npz" if side is None else side
    assert place_group([table, side], "photo") == [None, "photo"]
    assert list(read(side, group="photo").groups) == list(groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("ids", ["id", "doc_id", None])
def test_groups_are_read_from_a_column_of_a_table(tmp_path, ending, ids):
    rows = embeddings(40, 4)
    groups = [f"g{i // 5}" for i in range(40)]
    order = list(reversed(range(40))) if ids else range(40)
    columns = {"photo": [groups[i] for i in order]} | ({ids: [names(40)[i] for i in order]} if ids else {})
    if ending == ".parquet":
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    else:
        between = "\t" if ending == ".tsv" else ","
        lines = [between.join(columns), *(between.join(row) for row in zip(*columns.values(), strict=True))]
        (tmp_path / f"t{ending}").write_text("\n".join(lines))
    write(tmp_path / "x.parquet", rows)
    back = scan(tmp_path / "x.parquet", group=f"{tmp_path}/t{ending}:photo")
    assert [group for part in back.batches(7) for group in part.groups] == groups  # type: ignore[union-attr]
    assert [group for part in back.batches(7, 9) for group in part.groups] == groups[9:]  # type: ignore[union-attr]


def test_a_table_without_the_group_of_a_row_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,photo\nitem0,a\n")
    with pytest.raises(InputError, match=r"`group` must have an entry in every row; .*"):
        read(embeddings(40, 4), group=f"{tmp_path}/t.csv:photo")
    with pytest.raises(InputError, match=r"`group` must name a column as t\.csv:COLUMN, where COLUMN is one of photo"):
        read(embeddings(40, 4), group=f"{tmp_path}/t.csv:none")
    with pytest.raises(InputError, match=r"`group` must be a column of embeddings, TABLE:COLUMN, or a file or array"):
        read(embeddings(40, 4), group="nothing")


# --- damaged and hostile files ----------------------------------------------------------------------------------------


def npy(shape, dtype: str = "<f4", content: bytes = bytes(48)) -> bytes:
    """Return a `.npy` file whose header states a shape, whatever its content is."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    "shape", [(-3, 4), (3, -4), (-1, -1), (10**12, 8), (2**62, 2**62), (2**70, 4), (3.5, 4), ("a",)]
)
@pytest.mark.parametrize("form", ["npy", "npz", "compressed"])
@pytest.mark.parametrize("argument", ["source", "ids", "group"])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_header_that_states_an_impossible_shape_is_refused(tmp_path, shape, form, argument):
    path = tmp_path / ("x.npy" if form == "npy" else "x.npz")
    if form == "npy":
        path.write_bytes(npy(shape))
    else:
        with zipfile.ZipFile(
            path, "w", zipfile.ZIP_DEFLATED if form == "compressed" else zipfile.ZIP_STORED
        ) as archive:
            archive.writestr("x.npy", npy(shape))
    options: dict[str, Any] = {argument: str(path)}
    with pytest.raises(InputError, match=r"x\.np[yz]|must have one entry per row"):
        read(path) if argument == "source" else read(gaussian(30, 4), **options)


@pytest.mark.parametrize("name", ["x" * 300 + ".npy", "x" * 5000 + ".parquet", "x\0y.npy", "x\udc80.npy"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(InputError, match="There is no file"):
        read(name)
    with pytest.raises(InputError, match="there is no file"):
        read(gaussian(30, 4), ids=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_list_of_tensors_is_read_like_their_stack(dtype):
    rows = torch.from_numpy(gaussian(30, 4)).to(getattr(torch, dtype))
    back = read(list(rows))
    np.testing.assert_array_equal(back.vectors, read(rows).vectors)
    assert len(read([rows[0].requires_grad_(), rows[1]])) == 2


@pytest.mark.parametrize("kind", ["x.npy", "x.parquet", "array"])
def test_float64_numbers_that_would_become_infinite_are_refused(tmp_path, kind):
    X = gaussian(5, 3).astype(np.float64)
    X[1, 1], X[3, 2] = np.inf, 1e39
    source: Any = X if kind == "array" else tmp_path / kind
    np.save(tmp_path / "x.npy", X)
    pq.write_table(pa.table({"vector": pa.array(list(X))}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"must have numbers that float32 can represent; row 3 has others"):
        read(source)
    assert read(X[:3]).vectors[1, 1] == np.inf
