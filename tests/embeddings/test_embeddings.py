import logging
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.spaces import card, embeddings, folder_of, gaussian, names, pairs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from repstitch.embeddings.fingerprints import id_fingerprints
from repstitch.embeddings.pairs import pair
from repstitch.embeddings.reading import read, scan
from repstitch.embeddings.rows import SPACE_KEY, Embeddings
from repstitch.embeddings.splitting import split
from repstitch.embeddings.writing import write, write_stream
from repstitch.errors import InputError
from repstitch.spaces import Space

DTYPES = ("float16", "float32")


def save_parquet(path, rows: Embeddings):
    write(path, rows)


def arrow_table(rows: Embeddings) -> pa.Table:
    """The rows as an Arrow table with lists of no fixed size."""
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
    """A function that saves embeddings in one of the formats and returns the path and the format's name."""
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
def test_batches_from_any_row_are_the_rows_from_there_on(saved, start, size):
    rows = embeddings(40, 4)
    path, form = saved(rows)
    parts = list(scan(path).batches(size, start))
    assert all(0 < len(part) <= size for part in parts)
    together = np.concatenate([np.zeros((0, 4), dtype="float32"), *(part.vectors for part in parts)])
    np.testing.assert_array_equal(together, rows.vectors[start:])
    if form != "npy":
        ids = [key for part in parts if part.ids is not None for key in part.ids]
        assert ids == list(rows.ids[start:])  # type: ignore[index]


def test_a_scan_says_what_is_in_a_file_without_reading_it(saved):
    path, form = saved(embeddings(40, 4))
    opened = scan(path)
    assert (opened.n_rows, opened.space.dim, opened.has_ids) == (40, 4, form != "npy")


def test_a_written_file_is_plain_parquet_with_the_card_in_its_metadata(tmp_path):
    rows = embeddings(40, 4, dtype="float16")
    write(tmp_path / "x.parquet", rows)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.field("id").type == pa.string()
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 4)
    assert Space.from_json(table.schema.metadata[SPACE_KEY]) == rows.space
    assert table.column("id").to_pylist() == list(rows.ids)  # type: ignore[arg-type]


def test_rows_without_ids_are_written_with_their_numbers(tmp_path):
    write(tmp_path / "x.parquet", embeddings(25, 4, ids=None))
    assert list(read(tmp_path / "x.parquet").ids) == [str(i) for i in range(25)]  # type: ignore[arg-type]


def test_float64_is_written_as_float32_and_read_from_arrays_as_float32(tmp_path):
    wide = gaussian(30, 4).astype("float64")
    write(tmp_path / "x.parquet", Embeddings(wide, card()))
    assert read(tmp_path / "x.parquet").vectors.dtype == np.float32
    for same in (wide, np.asfortranarray(wide), wide.astype(">f8")):
        np.testing.assert_array_equal(read(same).vectors, wide.astype("float32"))


def test_a_folder_of_files_is_read_in_the_order_of_their_names(tmp_path):
    rows = embeddings(40, 4)
    parts = [rows.take(slice(0, 15)), rows.take(slice(15, 16)), rows.take(slice(16, 40))]
    path = folder_of(tmp_path / "many", parts)
    back = read(path)
    np.testing.assert_array_equal(back.vectors, rows.vectors)
    np.testing.assert_array_equal(back.ids, rows.ids)
    assert back.space == rows.space
    np.testing.assert_array_equal(np.concatenate([b.vectors for b in scan(path).batches(7, 16)]), rows.vectors[16:])


def test_a_folder_of_arrow_files_is_read_too(tmp_path):
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
    with pytest.raises(InputError, match=r"holds files of several spaces \(.*b.parquet differs\)"):
        scan(path)


def test_a_file_or_folder_without_rows_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    empty = arrow_table(embeddings(1, 4)).slice(0, 0)
    pq.write_table(empty, tmp_path / "x.parquet")
    (tmp_path / "zero").mkdir()
    pq.write_table(empty, tmp_path / "zero" / "a.parquet")
    np.save(tmp_path / "x.npy", np.zeros((0, 4), dtype="float32"))
    for path in ("empty", "x.parquet", "zero"):
        with pytest.raises(InputError, match=f"{path} holds no rows"):
            read(tmp_path / path)
    with pytest.raises(InputError, match=r"x\.npy"):
        read(tmp_path / "x.npy")
    with pytest.raises(InputError, match="array holds no rows"):
        read(np.zeros((0, 4)))


def test_an_empty_file_in_a_folder_does_no_harm(tmp_path):
    (tmp_path / "many").mkdir()
    table = arrow_table(embeddings(30, 4))
    pq.write_table(table.slice(0, 0), tmp_path / "many" / "a.parquet")
    pq.write_table(table, tmp_path / "many" / "b.parquet")
    assert len(read(tmp_path / "many")) == 30


def test_another_vector_column_is_named_and_does_not_get_the_card_of_the_first(tmp_path):
    rows = embeddings(30, 4)
    other = gaussian(30, 6, 9)
    pq.write_table(arrow_table(rows).append_column("wide", pa.array(list(other))), tmp_path / "x.parquet")
    back = read(f"{tmp_path}/x.parquet:wide")
    np.testing.assert_array_equal(back.vectors, other)
    assert (back.space, back.declared) == (Space("x", 6), False)
    assert read(tmp_path / "x.parquet").space == rows.space


def test_an_array_of_several_in_an_npz_is_named(tmp_path):
    a, b = gaussian(30, 4, 1), gaussian(30, 5, 2)
    np.savez(tmp_path / "x.npz", a=a, b=b, ids=names(30).astype(str))
    np.testing.assert_array_equal(read(f"{tmp_path}/x.npz:b").vectors, b)
    assert read(f"{tmp_path}/x.npz:b").space.name == "b"
    with pytest.raises(InputError, match=r"holds several arrays; name one as .*x.npz:KEY out of a, b, ids"):
        scan(tmp_path / "x.npz")
    with pytest.raises(InputError, match="has no array 'c'; it holds a, b, ids"):
        scan(f"{tmp_path}/x.npz:c")


def test_embeddings_and_arrays_pass_through():
    rows = embeddings(30, 4)
    assert read(rows) is rows
    np.testing.assert_array_equal(read(rows.vectors).vectors, rows.vectors)
    assert not read(rows.vectors).declared


# --- what the caller states beside a file -----------------------------------------------------------------------------


def test_a_stated_name_declares_the_space(tmp_path):
    np.save(tmp_path / "x.npy", gaussian(30, 4))
    named = read(tmp_path / "x.npy", space="old")
    assert (named.space, named.declared) == (Space("old", 4), True)
    whole = read(tmp_path / "x.npy", space=card("old", 4))
    assert (whole.space, whole.declared) == (card("old", 4), True)
    with pytest.raises(InputError, match=r"`space` 'old' has 5 dimensions, .*x.npy has 4"):
        scan(tmp_path / "x.npy", space=card("old", 5))


def test_a_stated_name_keeps_the_identity_of_the_card(tmp_path):
    write(tmp_path / "x.parquet", embeddings(30, 4))
    assert read(tmp_path / "x.parquet", space="mine").space == replace(card("old", 4), name="mine")


@pytest.mark.parametrize("kind", ["txt", "npy", "npz", "npz:key", "array", "list"])
def test_ids_are_read_from_every_kind_of_column_and_reach_every_batch(tmp_path, kind):
    ids = names(40, "photo ä")
    np.save(tmp_path / "x.npy", gaussian(40, 4))
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    np.save(tmp_path / "ids.npy", ids.astype(str))
    np.savez(tmp_path / "ids.npz", key=ids.astype(str))
    stated = {"npz:key": f"{tmp_path}/ids.npz:key", "array": ids, "list": list(ids)}
    opened = scan(tmp_path / "x.npy", ids=stated.get(kind, tmp_path / f"ids.{kind}"))
    assert opened.has_ids
    assert list(opened.read().ids) == list(ids)  # type: ignore[arg-type]
    assert list(next(opened.batches(7, 5)).ids) == list(ids[5:12])  # type: ignore[arg-type]


def test_whole_numbers_as_ids_are_taken_as_text(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(30))
    back = read(gaussian(30, 4), ids=tmp_path / "ids.npy")
    assert list(back.ids) == [str(i) for i in range(30)]  # type: ignore[arg-type]
    given = Embeddings(gaussian(30, 4), card(), ids=np.arange(30))
    assert len(pair(back, given)) == 30
    write(tmp_path / "x.parquet", given)
    assert list(read(tmp_path / "x.parquet").ids) == list(back.ids)  # type: ignore[arg-type]
    table = pa.table({"id": pa.array(range(30)), "vector": pa.array(list(gaussian(30, 4)))})
    pq.write_table(table, tmp_path / "numbers.parquet")
    assert list(read(tmp_path / "numbers.parquet").ids) == list(back.ids)  # type: ignore[arg-type]


def test_stated_ids_stand_in_for_those_of_the_file(tmp_path):
    write(tmp_path / "x.parquet", embeddings(30, 4))
    assert list(read(tmp_path / "x.parquet", ids=names(30, "other")).ids) == list(names(30, "other"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.txt", "`ids`: there is no file .*missing.txt; give a file with one entry a row"),
        ("short.txt", r"`ids` must have one entry a row \(30\); got \(3,\)"),
        ("two.npz", "`ids`: .*two.npz cannot be read: .*name one array as .*two.npz:KEY out of a, b"),
        ("two.npz:c", "`ids`: .*two.npz cannot be read: .*c is not a file in the archive"),
        ("pickled.npy", "`ids`: .*pickled.npy cannot be read: .*allow_pickle"),
        ("broken.npz", "`ids`: .*broken.npz cannot be read: "),
        ("square.npy", r"`ids` must have one entry a row \(30\); got \(30, 2\)"),
        ("latin.txt", "`ids`: .*latin.txt cannot be read: .*utf-8"),
    ],
)
def test_ids_that_cannot_be_used_are_refused(tmp_path, file, message):
    (tmp_path / "short.txt").write_text("a\nb\nc\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\n" * 30)
    np.savez(tmp_path / "two.npz", a=np.arange(30), b=np.arange(30))
    np.save(tmp_path / "pickled.npy", names(30), allow_pickle=True)
    np.save(tmp_path / "square.npy", np.zeros((30, 2)))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match=message):
        read(gaussian(30, 4), ids=f"{tmp_path}/{file}")


def test_ids_in_an_npz_must_be_one_a_row(tmp_path):
    for bad in (names(29).astype(str), np.full((30, 2), "a")):
        np.savez(tmp_path / "x.npz", old=gaussian(30, 4), ids=bad)
        with pytest.raises(InputError, match=r"`ids` of .*x.npz must have one entry a row \(30\)"):
            scan(tmp_path / "x.npz")


def test_groups_are_read_from_a_column_or_a_file(tmp_path):
    groups = np.array([f"photo{i // 5}" for i in range(40)], dtype=object)
    table = arrow_table(embeddings(40, 4, groups=groups))
    pq.write_table(table, tmp_path / "x.parquet")
    np.save(tmp_path / "groups.npy", groups.astype(str))
    every: list[Any] = ["photo", tmp_path / "groups.npy", str(tmp_path / "groups.npy"), groups]
    for stated in every:
        opened = scan(tmp_path / "x.parquet", group=stated)
        assert list(opened.read().groups) == list(groups)  # type: ignore[arg-type]
        assert [g for part in opened.batches(7, 3) for g in part.groups] == list(groups[3:])  # type: ignore[arg-type]
    assert list(read(tmp_path / "x.parquet", group="id").groups) == list(names(40))  # type: ignore[arg-type]


def test_groups_and_ids_stated_beside_embeddings_and_arrays_are_used():
    rows, groups = embeddings(30, 4), np.arange(30) // 5
    assert list(read(rows, group=groups).groups) == list(groups.astype(str))  # type: ignore[arg-type]
    assert list(read(rows, ids=names(30, "x")).ids) == list(names(30, "x"))  # type: ignore[arg-type]
    assert read(rows, space="other").space.name == "other"
    assert list(read(rows.vectors, group=groups).groups) == list(groups.astype(str))  # type: ignore[arg-type]


def test_a_vector_column_is_no_group(tmp_path):
    write(tmp_path / "x.parquet", embeddings(30, 4))
    with pytest.raises(InputError, match=r"x.parquet cannot be read to its end: Unsupported cast"):
        read(tmp_path / "x.parquet", group="vector")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_not_there_or_has_another_extension_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no file .*none.parquet; give the path of embeddings \(.parquet"):
        scan(tmp_path / "none.parquet")
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(InputError, match=r"x.csv must be one of .parquet, .arrow, .npy, .npz or a folder"):
        scan(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(30, dtype="float32"), r"must be a table of floats, \(n, dim\); got float32 of shape \(30,\)"),
        (np.zeros((3, 4, 5), dtype="float32"), r"got float32 of shape \(3, 4, 5\)"),
        (np.zeros((30, 4), dtype="bool"), "got bool"),
        (np.zeros((30, 4), dtype="complex64"), "got complex64"),
        (np.zeros((30, 0), dtype="float32"), r"of shape \(30, 0\)"),
        (np.full((30, 4), "a"), "got <U1"),
    ],
)
def test_arrays_that_are_no_table_of_floats_are_refused(tmp_path, array, message):
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
        with pytest.raises(InputError, match=r"whole numbers beyond 16,777,216, which float32 would round"):
            read(rows)


def test_whole_numbers_in_a_file_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((30, 4), dtype="int64"))
    with pytest.raises(InputError, match=r"must be a table of floats.*got int64"):
        read(tmp_path / "x.npy")


def test_a_list_of_rows_of_different_lengths_is_refused():
    with pytest.raises(InputError, match="its rows have different lengths"):
        read([[1.0, 2.0], [3.0]])


def test_pickled_arrays_are_refused_unread(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[1.0, "a"]] * 30, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", allow_pickle=True, a=np.array([[1.0, "a"]] * 30, dtype=object))
    for file in ("x.npy", "x.npz:a"):
        with pytest.raises(InputError, match=r"cannot be read as embeddings: .*(allow_pickle|Python objects)"):
            read(f"{tmp_path}/{file}")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0, 3.0]] + [[1.0, 2.0]] * 29), "must hold rows of 3 numbers throughout"),
        (pa.array([[1.0, 2.0], [1.0], [1.0, 2.0, 3.0]]), "must hold rows of 2 numbers throughout"),
        (pa.array([[1.0, 2.0], None, [1.0, 2.0]]), "holds 1 rows without a vector"),
        (
            pa.array([[1.0, 2.0], [1.0, None]]),
            "must hold rows of 2 numbers throughout; some are shorter, longer or null",
        ),
        (pa.array([[1.0, 2.0], None, [1.0, 2.0]], pa.list_(pa.float32(), 2)), "holds 1 rows without a vector"),
        (pa.array([[1.0, 2.0], [None, 1.0]], pa.list_(pa.float32(), 2)), "must hold rows of 2 numbers throughout"),
        (pa.array([[1, 2], [3, 4]]), "must hold lists of floats; it holds list<.*int64>"),
        (pa.array([1.0, 2.0]), "must hold lists of floats; it holds double"),
        (pa.array(["a", "b"]), "must hold lists of floats; it holds string"),
        (pa.array([[], []], pa.list_(pa.float32())), "holds empty lists"),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_columns_that_are_no_table_of_floats_are_refused(tmp_path, column, message, form):
    table = pa.table({"vector": column})
    if form == "parquet":
        pq.write_table(table, tmp_path / "x.parquet")
    else:
        with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match=message):
        read(tmp_path / f"x.{form}")


def test_a_missing_column_is_refused_with_those_that_are_there(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"has no column 'vector'; it holds a, b. Name one as .*x.parquet:COLUMN"):
        scan(tmp_path / "x.parquet")


def test_rows_without_an_id_or_a_group_are_refused(tmp_path):
    vectors = pa.array(list(gaussian(30, 4)))
    holes = pa.array(["a", None, *names(28)])
    pq.write_table(pa.table({"id": holes, "vector": vectors}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"photo": holes, "vector": vectors}), tmp_path / "y.parquet")
    with pytest.raises(InputError, match=r"x.parquet holds 1 rows without an entry in column 'id'"):
        read(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"y.parquet holds 1 rows without an entry in column 'photo'"):
        read(tmp_path / "y.parquet", group="photo")


@pytest.mark.parametrize("meta", [b"{", b"[]", b'{"name": "a"}', b'{"name": "a", "dim": 4, "later": 1}'])
def test_a_card_that_cannot_be_understood_is_refused(tmp_path, meta):
    table = arrow_table(embeddings(30, 4)).replace_schema_metadata({SPACE_KEY: meta})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="space card"):
        scan(tmp_path / "x.parquet")


def test_a_card_of_another_dimension_is_refused(tmp_path):
    table = arrow_table(embeddings(30, 4)).replace_schema_metadata({SPACE_KEY: card("old", 5).to_json()})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="says 5 dimensions but its vectors have 4"):
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


def test_a_stream_cut_short_gives_no_wrong_rows(tmp_path):
    rows = embeddings(400, 8)
    save_arrow_stream(tmp_path / "x.arrow", rows)
    whole = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "x.arrow")


def test_damage_in_the_middle_of_a_file_is_refused_and_not_a_crash(tmp_path):
    write(tmp_path / "x.parquet", embeddings(400, 8))
    bytes_ = bytearray((tmp_path / "x.parquet").read_bytes())
    bytes_[40:2000] = bytes(1960)
    (tmp_path / "x.parquet").write_bytes(bytes_)
    with pytest.raises(InputError, match=r"x.parquet cannot be read"):
        read(tmp_path / "x.parquet")


def test_embeddings_must_have_the_shape_and_kind_they_say():
    with pytest.raises(InputError, match=r"`vectors` of space 'old' must be \(n, 4\); got \(30, 5\)"):
        Embeddings(gaussian(30, 5), card("old", 4))
    with pytest.raises(InputError, match=r"`vectors` of space 'old' must be \(n, 4\); got \(4,\)"):
        Embeddings(gaussian(30, 4)[0], card("old", 4))
    with pytest.raises(InputError, match="`vectors` of space 'old' must be floats; got int64"):
        Embeddings(np.zeros((30, 4), dtype="int64"), card("old", 4))
    short: Any = names(29)
    square: Any = names(30)[:, None]
    for field in ("ids", "groups"):
        with pytest.raises(InputError, match=rf"`{field}` must have one entry a row \(30\); got \(29,\)"):
            embeddings(30, 4, **{field: short})
        with pytest.raises(InputError, match=rf"`{field}` must have one entry a row \(30\); got \(30, 1\)"):
            embeddings(30, 4, **{field: square})


def test_take_keeps_ids_and_groups_with_their_rows():
    rows = embeddings(30, 4, groups=names(30, "g"))
    picked = rows.take([5, 3])
    np.testing.assert_array_equal(picked.vectors, rows.vectors[[5, 3]])
    assert (list(picked.ids), list(picked.groups)) == (["item5", "item3"], ["g5", "g3"])  # type: ignore[arg-type]
    assert len(rows.take(np.arange(30) < 7)) == 7


# --- writing ----------------------------------------------------------------------------------------------------------


def stream(rows: Embeddings, size: int = 7, fail_at: int | None = None):
    """`produce` for write_stream; raises instead of giving the batch that starts at row `fail_at`."""

    def produce(start: int):
        for at in range(start, len(rows), size):
            if fail_at is not None and at >= fail_at:
                raise RuntimeError("the power went out")
            yield names(len(rows))[at : at + size], rows.vectors[at : at + size]

    return produce


def test_an_existing_file_is_never_overwritten(tmp_path):
    out = tmp_path / "x.parquet"
    write(out, embeddings(30, 4))
    before = out.read_bytes()
    with pytest.raises(InputError, match="exists and is never overwritten; give another name"):
        write(out, embeddings(30, 4, seed=1))
    assert out.read_bytes() == before


def test_a_file_that_appears_meanwhile_is_not_overwritten_and_no_row_is_lost(tmp_path):
    out = tmp_path / "x.parquet"
    rows = embeddings(30, 4)

    def produce(start):
        yield names(30), rows.vectors
        out.write_bytes(b"someone else's")

    with pytest.raises(InputError, match="appeared meanwhile and is not overwritten; the rows are kept in"):
        write_stream(out, rows.space, produce, {})
    assert out.read_bytes() == b"someone else's"
    out.unlink()
    assert write_stream(out, rows.space, stream(rows), {}) == 30
    np.testing.assert_array_equal(read(out).vectors, rows.vectors)


def test_only_parquet_in_a_folder_that_exists_is_written(tmp_path):
    with pytest.raises(InputError, match=r"`out` must end in .parquet.*got 'x.npy'"):
        write(tmp_path / "x.npy", embeddings(30, 4))
    with pytest.raises(InputError, match=r"`out` must lie in a folder that exists; there is no .*none"):
        write(tmp_path / "none" / "x.parquet", embeddings(30, 4))


def test_a_stream_of_no_rows_writes_nothing(tmp_path):
    with pytest.raises(InputError, match=r"There are no rows to write to .*x.parquet"):
        write_stream(tmp_path / "x.parquet", card(), lambda start: iter([]), {})
    assert not list(tmp_path.iterdir())


def test_a_stream_is_written_whole_and_leaves_nothing_else_behind(tmp_path):
    rows = embeddings(40, 4, dtype="float16")
    done = write_stream(
        tmp_path / "x.parquet", rows.space, stream(rows), {"a": 1}, dtype="float16", metadata={"made.by": "test"}
    )
    assert done == 40
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
    back = read(tmp_path / "x.parquet")
    np.testing.assert_array_equal(back.vectors, rows.vectors)
    assert back.vectors.dtype == np.float16
    assert list(back.ids) == list(rows.ids)  # type: ignore[arg-type]
    assert pq.read_schema(tmp_path / "x.parquet").metadata[b"made.by"] == b"test"


@pytest.mark.parametrize("fail_at", [0, 7, 21, 35])
def test_an_interrupted_stream_goes_on_to_an_identical_file(tmp_path, fail_at):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    with pytest.raises(RuntimeError, match="the power went out"):
        write_stream(out, rows.space, stream(rows, fail_at=fail_at), {"a": 1})
    assert not out.exists()
    asked = []

    def produce(start):
        asked.append(start)
        return stream(rows)(start)

    assert write_stream(out, rows.space, produce, {"a": 1}) == 40
    assert asked == [fail_at]
    write_stream(tmp_path / "straight.parquet", rows.space, stream(rows), {"a": 1})
    assert out.read_bytes() == (tmp_path / "straight.parquet").read_bytes()


def test_a_half_written_part_is_done_again(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    with pytest.raises(RuntimeError, match="power"):
        write_stream(out, rows.space, stream(rows, fail_at=21), {})
    for torn in ("part-000003.tmp", "whole.tmp"):
        (tmp_path / "x.parquet.partial" / torn).write_bytes(b"PAR1 half of it")
    assert write_stream(out, rows.space, stream(rows), {}) == 40
    np.testing.assert_array_equal(read(out).vectors, rows.vectors)


def test_a_job_that_was_stopped_after_its_last_row_only_publishes(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    blocked = tmp_path / "x.parquet.partial"

    def produce(start):
        yield from stream(rows)(start)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stream(out, rows.space, produce, {})
    assert blocked.exists()
    assert write_stream(out, rows.space, stream(rows), {}) == 40
    np.testing.assert_array_equal(read(out).vectors, rows.vectors)


def test_the_unfinished_rows_of_another_job_are_refused(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    with pytest.raises(RuntimeError, match="power"):
        write_stream(out, rows.space, stream(rows, fail_at=21), {"a": 1})
    with pytest.raises(InputError, match="partial holds the unfinished rows of another job; remove it"):
        write_stream(out, rows.space, stream(rows), {"a": 2})
    with pytest.raises(InputError, match="unfinished rows of another job"):
        write(out, rows)
    (tmp_path / "x.parquet.partial" / "job.json").unlink()
    with pytest.raises(InputError, match="unfinished rows of another job"):
        write_stream(out, rows.space, stream(rows), {"a": 1})
    shutil.rmtree(tmp_path / "x.parquet.partial")
    assert write_stream(out, rows.space, stream(rows), {"a": 2}) == 40


# --- pairing ----------------------------------------------------------------------------------------------------------


def test_rows_pair_by_id_whatever_their_order():
    a = embeddings(40, 4)
    order = np.random.default_rng(0).permutation(40)
    b = embeddings(40, 6, "new", seed=1).take(order)
    pairs = pair(a, b)
    np.testing.assert_array_equal(pairs.X, a.vectors)
    np.testing.assert_array_equal(pairs.Y, b.vectors[np.argsort(order)])
    assert (list(pairs.ids), pairs.by) == (list(names(40)), "id")
    assert (pairs.source, pairs.target) == (a.space, b.space)
    assert pairs.dropped == {"source only": 0, "target only": 0}


def test_rows_of_one_side_only_are_left_out_and_counted():
    a = embeddings(40, 4).take(slice(0, 35))
    b = embeddings(40, 6, "new", seed=1).take(np.arange(39, 9, -1))
    pairs = pair(a, b)
    assert list(pairs.ids) == [f"item{i}" for i in range(10, 35)]
    np.testing.assert_array_equal(pairs.X, embeddings(40, 4).vectors[10:35])
    np.testing.assert_array_equal(pairs.Y, embeddings(40, 6, seed=1).vectors[10:35])
    assert pairs.dropped == {"source only": 10, "target only": 5}


@pytest.mark.parametrize("with_ids", ["neither", "source", "target"])
def test_rows_pair_by_position_unless_both_sides_have_ids(with_ids, caplog):
    a = embeddings(40, 4, ids=names(40) if with_ids == "source" else None)
    b = embeddings(40, 6, "new", seed=1, ids=names(40) if with_ids == "target" else None)
    pairs = pair(a, b)
    assert pairs.by == "position"
    np.testing.assert_array_equal(pairs.X, a.vectors)
    np.testing.assert_array_equal(pairs.Y, b.vectors)
    if with_ids == "neither":
        assert len(set(pairs.ids)) == 40
        assert not caplog.records
    else:
        assert list(pairs.ids) == list(names(40))
        assert "Only one side carries ids; the rows are paired by position" in caplog.text


def test_rows_without_ids_are_known_by_their_bytes_in_every_run_and_precision():
    a, b = embeddings(40, 4, ids=None, dtype="float16"), embeddings(40, 4, ids=None, seed=1)
    first = pair(a, b)
    wide = pair(Embeddings(a.vectors.astype("float32"), a.space), b)
    moved = pair(a.take(np.arange(39, -1, -1)), b.take(np.arange(39, -1, -1)))
    assert list(first.ids) == list(wide.ids) == list(moved.ids)[::-1]
    assert list(id_fingerprints(first.ids)) == list(id_fingerprints(moved.ids))[::-1]


@pytest.mark.parametrize("side", ["source", "target"])
def test_ids_that_occur_twice_are_refused_with_the_side_and_the_first(side):
    twice = embeddings(40, 4, ids=np.array(["a", "b", "b", "c", "c", *names(35)], dtype=object))
    sides = (twice, embeddings(40, 4)) if side == "source" else (embeddings(40, 4), twice)
    with pytest.raises(InputError, match=f"the {side} has 2 repeated \\(first: 'b'\\)"):
        pair(*sides)


def test_lengths_that_differ_without_ids_are_refused():
    with pytest.raises(InputError, match=r"must have as many; got 40 and 39. Give ids for both"):
        pair(embeddings(40, 4, ids=None), embeddings(39, 4))


def test_sides_without_a_common_id_are_refused_with_an_example_of_each():
    with pytest.raises(InputError, match=r"No id is in both files \(source has e.g. 'item0', target 'other0'\)"):
        pair(embeddings(40, 4), embeddings(40, 4, ids=names(40, "other")))


def test_a_side_without_rows_is_refused():
    none = embeddings(40, 4).take(slice(0, 0))
    with pytest.raises(InputError, match="The source has no rows; at least 20 pairs are needed"):
        pair(none, embeddings(40, 4))
    with pytest.raises(InputError, match="The target has no rows"):
        pair(embeddings(40, 4), none)


def test_twenty_pairs_are_enough_and_nineteen_are_not():
    assert len(pair(embeddings(20, 4), embeddings(20, 4, seed=1))) == 20
    with pytest.raises(InputError, match=r"At least 20 pairs are needed; got 19. Embed more items"):
        pair(embeddings(19, 4), embeddings(40, 4, seed=1))


def broken_rows():
    """Pairs of which six hold something that cannot be used, in five kinds."""
    a, b = embeddings(40, 4), embeddings(40, 6, "new", seed=1)
    a.vectors[3, 1], a.vectors[4, 0], a.vectors[5] = np.nan, np.inf, 0
    b.vectors[5, 2], b.vectors[6], b.vectors[7, 1] = -np.inf, 0, np.nan
    return a, b


def test_rows_that_cannot_be_used_are_refused_with_their_counts():
    said = "2 with source NaN or Inf, 1 with source all zeros, 2 with target NaN or Inf, 1 with target all zeros"
    with pytest.raises(InputError, match=f"{said} \\(first: id 'item3'\\). Leave them out with `drop_invalid`"):
        pair(*broken_rows())


def test_rows_that_cannot_be_used_are_left_out_and_counted_when_asked(caplog):
    a, b = broken_rows()
    with caplog.at_level(logging.WARNING):
        pairs = pair(a, b, drop_invalid=True)
    assert list(pairs.ids) == [f"item{i}" for i in range(40) if i not in (3, 4, 5, 6, 7)]
    assert np.isfinite(pairs.X).all()
    assert np.isfinite(pairs.Y).all()
    assert pairs.dropped == {
        "source only": 0,
        "target only": 0,
        "source NaN or Inf": 2,
        "source all zeros": 1,
        "target NaN or Inf": 2,
        "target all zeros": 1,
    }
    assert "Left out: 2 source NaN or Inf, 1 source all zeros" in caplog.text


def test_too_few_pairs_left_after_dropping_are_refused():
    a, b = embeddings(22, 4), embeddings(22, 4, seed=1)
    a.vectors[:3] = np.nan
    with pytest.raises(InputError, match="At least 20 pairs are needed; got 19"):
        pair(a, b, drop_invalid=True)


def test_repeats_of_an_identical_pair_are_left_out_when_asked_but_not_of_one_side():
    a, b = embeddings(40, 4), embeddings(40, 4, seed=1)
    a.vectors[[10, 20, 30]] = a.vectors[0]
    b.vectors[[10, 20]] = b.vectors[0]
    assert len(pair(a, b)) == 40
    pairs = pair(a, b, drop_invalid=True)
    assert list(pairs.ids) == [f"item{i}" for i in range(40) if i not in (10, 20)]
    assert pairs.dropped["repeats of an identical pair"] == 2


def test_float16_rows_pair_as_float32():
    pairs = pair(embeddings(40, 4, dtype="float16"), embeddings(40, 4, seed=1))
    assert (pairs.X.dtype, pairs.Y.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(pairs.X, embeddings(40, 4, dtype="float16").vectors.astype("float32"))


def test_groups_of_either_side_stay_with_their_pairs():
    order = np.arange(39, -1, -1)
    grouped = embeddings(40, 4, groups=names(40, "g"))
    plain = embeddings(40, 4, seed=1).take(order)
    assert list(pair(grouped, plain).groups) == list(names(40, "g"))  # type: ignore[arg-type]
    assert list(pair(plain, grouped).groups) == list(names(40, "g")[order])  # type: ignore[arg-type]
    assert pair(embeddings(40, 4), plain).groups is None


# --- splitting --------------------------------------------------------------------------------------------------------


def split_sides(pairs, *args) -> dict[str, str]:
    """The part that each id falls into."""
    parts = split(pairs, *args)
    return {pairs.ids[row]: name for name in ("train", "select", "calibrate", "test") for row in getattr(parts, name)}


def many(n: int = 4000, prefix: str = "item", groups=None):
    return pairs_of(np.ones((n, 1), dtype="float32"), np.ones((n, 1), dtype="float32"), names(n, prefix), groups)


def test_every_pair_falls_into_exactly_one_part():
    parts = split(many())
    rows = np.concatenate([parts.train, parts.select, parts.calibrate, parts.test])
    assert sorted(rows) == list(range(4000))
    assert list(parts.validation) == sorted([*parts.select, *parts.calibrate])


@pytest.mark.parametrize("shares", [(0.6, 0.15, 0.25), (0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.1, 0.1, 0.8)])
def test_the_parts_have_the_asked_shares(shares):
    parts = split(many(), shares)
    found = np.array([len(parts.train), len(parts.validation), len(parts.test)]) / 4000
    error = np.sqrt(np.array(shares) * (1 - np.array(shares)) / 4000)
    assert (np.abs(found - shares) <= 4 * error).all()
    assert abs(len(parts.select) - len(parts.calibrate)) <= 4 * np.sqrt(len(parts.validation))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(300)), st.integers(120, 300))
def test_an_id_falls_on_the_same_side_whatever_other_rows_are_there(order, kept):
    whole, some = many(300), many(300).take(np.array(order)[:kept])
    everywhere = split_sides(whole)
    assert all(everywhere[key] == part for key, part in split_sides(some).items())


def test_the_split_does_not_depend_on_the_vectors_or_their_width():
    a = pairs_of(gaussian(400, 4), gaussian(400, 5))
    b = pairs_of(gaussian(400, 9, 1), gaussian(400, 2, 2))
    assert split_sides(a) == split_sides(b)


def test_the_seed_changes_the_split_and_the_same_seed_does_not():
    pairs = many(400)
    assert split_sides(pairs, (0.6, 0.15, 0.25), 3) == split_sides(pairs, (0.6, 0.15, 0.25), 3)
    a, b = split_sides(pairs, (0.6, 0.15, 0.25), 0), split_sides(pairs, (0.6, 0.15, 0.25), 1)
    moved = np.mean([a[key] != b[key] for key in a])
    assert 0.4 < moved < 0.75


def test_a_larger_training_share_only_adds_to_the_training_rows():
    small, large = split(many(), (0.4, 0.3, 0.3)), split(many(), (0.6, 0.1, 0.3))
    assert set(small.train) < set(large.train)


def test_a_group_is_never_divided():
    groups = np.array([f"photo{i // 5}" for i in range(1000)], dtype=object)
    pairs = many(1000, groups=groups)
    sides = split_sides(pairs)
    for photo in range(200):
        assert len({sides[f"item{i}"] for i in range(5 * photo, 5 * photo + 5)}) == 1


def test_a_test_share_of_zero_leaves_no_test_rows():
    parts = split(many(200), (0.7, 0.3, 0.0))
    assert len(parts.test) == 0
    assert len(parts.train) + len(parts.validation) == 200


def test_too_few_rows_to_halve_validation_serve_both_uses():
    for seed in range(50):
        pairs = many(24, prefix=f"{seed}-")
        try:
            parts = split(pairs, (0.85, 0.15, 0.0))
        except InputError:
            continue
        assert min(len(parts.select), len(parts.calibrate)) >= 2
        if len(parts.validation) == len(parts.select):
            assert list(parts.select) == list(parts.calibrate)
            return
    pytest.fail("no draw had too few rows to halve")


@pytest.mark.parametrize(
    "shares",
    [(0.6, 0.4), (0.5, 0.2, 0.2), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5), ()],
)
def test_shares_that_are_no_split_are_refused(shares):
    with pytest.raises(InputError, match="`split` must be train,validation,test, three shares that sum to 1"):
        split(many(100), shares)


def test_a_part_that_comes_out_empty_is_refused():
    one_group = many(100, groups=np.full(100, "all", dtype=object))
    with pytest.raises(InputError, match=r"Only 0 pairs fell into .*; give more pairs"):
        split(one_group)
    with pytest.raises(InputError, match=r"Only . pairs fell into test"):
        split(many(30), (0.49, 0.5, 0.01))


def test_fingerprints_tell_ids_apart_and_stay_the_same():
    pairs = many(4000)
    assert len(set(id_fingerprints(pairs.ids))) == 4000
    assert id_fingerprints(pairs.ids).dtype == np.int64
    assert list(id_fingerprints(pairs.take([7, 3]).ids)) == list(id_fingerprints(pairs.ids)[[7, 3]])
