import base64
import decimal
import json
import logging
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.spaces import card, gaussian, names
from pyarrow import feather

from repstitch.embeddings.ids import NAMES, choose_id_column, column_texts, texts, type_on_the_way_out
from repstitch.embeddings.pairs import pair
from repstitch.embeddings.reading import read, scan, scan_argument
from repstitch.embeddings.rows import Embeddings
from repstitch.encoders.items import read_items
from repstitch.errors import InputError
from repstitch.transfer.labels import label
from repstitch.workflows.converting import convert

N = 30
UUIDS = [uuid.UUID(int=0x8F3A5C7E9B1D4F6082A4C6E8F0B2D4F6 + i) for i in range(N)]


def table(**columns) -> pa.Table:
    return pa.table({**columns, "vector": pa.array(list(gaussian(N, 4)))})


def saved(path, **columns):
    pq.write_table(table(**columns), path)
    return path


# --- which column -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, *(name.upper() for name in NAMES), "Id", "Doc_Id"])
def test_ids_are_read_from_a_column_with_a_usual_name_in_any_case(tmp_path, name, caplog):
    caplog.set_level(logging.INFO)
    path = saved(tmp_path / "x.parquet", title=names(N, "a b "), **{name: names(N)})
    assert list(read(path).ids) == list(names(N))  # type: ignore[arg-type]
    message_logged = f"x.parquet: the ids are those of column {name!r}." in caplog.text
    assert message_logged == (name != "id")


def test_the_named_column_goes_before_id_and_id_before_an_index_and_an_index_before_other_names():
    schema = pa.schema([(name, pa.string()) for name in ("uuid", "key", "doc_id", "id")])
    index = {b"pandas": json.dumps({"index_columns": ["key"]}).encode()}
    assert choose_id_column(schema, "x", "uuid") == "uuid"
    assert choose_id_column(schema.with_metadata(index), "x") == "id"
    schema = schema.remove(3)
    assert choose_id_column(schema.with_metadata(index), "x") == "key"
    assert choose_id_column(schema.with_metadata(index), "x", others=("key", "doc_id")) == "uuid"
    with pytest.raises(
        InputError, match=r"^x has several columns that may contain the ids: uuid, doc_id; name one with"
    ):
        choose_id_column(schema, "x")
    assert choose_id_column(schema.remove(0), "x") == "doc_id"
    assert choose_id_column(schema.remove(0).remove(1), "x") is None


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[]", b"{}", b'{"index_columns": 7}', b'{"index_columns": [{}]}', b"\xff"]
)
def test_metadata_that_is_not_that_of_pandas_is_ignored(metadata):
    schema = pa.schema([("a", pa.string())], metadata={b"pandas": metadata})
    assert choose_id_column(schema, "x") is None


def test_one_of_several_names_is_the_column_of_a_file():
    schema = pa.schema([(name, pa.string()) for name in ("id", "sku", "ean")])
    assert choose_id_column(schema, "x", ("isbn", "sku")) == "sku"
    with pytest.raises(InputError, match=r"^`id_column` must name one column of x \(id, sku, ean\); got isbn\.$"):
        choose_id_column(schema, "x", "isbn")
    with pytest.raises(InputError, match=r"must name one column of x .*; got sku, ean\.$"):
        choose_id_column(schema, "x", ["sku", "ean"])
    with pytest.raises(InputError, match=r"^x has more than one column 'id'; column names must be unique\.$"):
        choose_id_column(pa.schema([("id", pa.string()), ("id", pa.int64())]), "x")


@pytest.mark.parametrize("index", [None, "doc_id", "anything"])
def test_the_index_of_a_data_frame_contains_the_ids(tmp_path, index):
    frame = pd.DataFrame({"vector": list(gaussian(N, 4))}, index=pd.Index(names(N), name=index))
    frame.to_parquet(tmp_path / "x.parquet")
    assert list(read(tmp_path / "x.parquet").ids) == list(names(N))  # type: ignore[arg-type]
    assert list(read(frame).ids) == list(names(N))  # type: ignore[arg-type]


def test_row_numbers_and_an_index_of_several_levels_are_not_ids(tmp_path, caplog):
    frame = pd.DataFrame({"vector": list(gaussian(N, 4))})
    frame.to_parquet(tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet").ids is None
    assert not caplog.text
    levels = pd.MultiIndex.from_arrays([list(range(N)), list(names(N))])
    frame.set_axis(levels).to_parquet(tmp_path / "y.parquet")
    assert read(tmp_path / "y.parquet").ids is None
    assert "y.parquet: its rows have no ids and are numbered, but column '__index_level_0__' or" in caplog.text


def test_frames_and_tables_in_memory_have_the_ids_of_their_files(tmp_path):
    X = gaussian(N, 4)
    numbers = pd.DataFrame(X, columns=list("abcd"), index=pd.Index(names(N)))
    back = read(numbers)
    np.testing.assert_array_equal(back.vectors, X)
    assert list(back.ids) == list(names(N))  # type: ignore[arg-type]
    assert (back.space.name, back.declared) == ("array", False)
    assert read(pd.DataFrame(X)).ids is None
    assert list(read(numbers.assign(doc_id=names(N, "d")).reset_index(drop=True)).ids)[:1] == ["d0"]  # type: ignore[arg-type]
    arrow = table(_id=names(N), photo=pa.array([i // 2 for i in range(N)]))
    assert list(read(arrow).ids) == list(names(N))  # type: ignore[arg-type]
    assert list(read(arrow, group="photo", id_column="photo").ids)[:3] == ["0", "0", "1"]  # type: ignore[arg-type]
    assert list(read(arrow, group="photo").groups)[:3] == ["0", "0", "1"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("columns", "listed"),
    [
        ({"productId": names(N)}, "'productId'"),
        ({"primary key": names(N, "two words ")}, "'primary key'"),
        ({"isbn": names(N)}, "'isbn'"),
        ({"number": list(range(100, 100 + N))}, "'number'"),
        ({"which": pa.array([key.bytes for key in UUIDS], pa.uuid())}, "'which'"),
        ({"isbn": names(N), "ean": list(range(N))}, "'isbn' or 'ean'"),
    ],
)
def test_a_warning_names_columns_that_look_like_ids_if_rows_are_numbered(tmp_path, caplog, columns, listed):
    path = saved(tmp_path / "x.parquet", **columns)
    assert scan(path).has_ids is False
    warning = f"{path}: its rows have no ids and are numbered, but column {listed} may contain ids; if so, name it with"
    assert caplog.text.count(warning) == 1
    caplog.clear()
    read(path, ids=names(N))
    assert not caplog.text


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"title": names(N, "two words ")},
        {"year": [2000 + i % 9 for i in range(N)]},
        {"score": [i / 7 for i in range(N)]},
        {"tags": [["a"]] * N},
    ],
)
def test_other_columns_are_not_warned_of(tmp_path, caplog, columns):
    assert read(saved(tmp_path / "x.parquet", **columns)).ids is None
    assert not caplog.text


def test_a_column_of_lists_is_never_chosen_for_its_name(tmp_path):
    path = saved(tmp_path / "x.parquet", ids=[[i, i] for i in range(N)])
    assert read(path).ids is None
    path = saved(tmp_path / "y.parquet", ids=[[i, i] for i in range(N)], doc_id=names(N))
    assert list(read(path).ids) == list(names(N))  # type: ignore[arg-type]


def test_repeated_ids_are_refused_with_the_way_to_name_another_column(tmp_path):
    chunks = saved(tmp_path / "x.parquet", doc_id=names(N // 2).repeat(2), chunk=names(N, "chunk"))
    with pytest.raises(InputError, match=r"repeated ids in the source: 15 .*, or name another column of ids"):
        pair(read(chunks), read(chunks, space="other"))
    rows = read(chunks, id_column="chunk")
    assert len(pair(rows, read(chunks, space="other", id_column="chunk"))) == N


def test_files_of_a_folder_with_different_columns_of_ids_are_refused(tmp_path):
    saved(tmp_path / "a.parquet", doc_id=names(N))
    saved(tmp_path / "b.parquet", id=names(N), doc_id=names(N))
    with pytest.raises(
        InputError, match=r"has files with different columns of ids \(.*b\.parquet differs\); read each"
    ):
        read(tmp_path)
    assert len(read(tmp_path, id_column="doc_id")) == 2 * N


def test_an_array_of_an_archive_may_contain_the_ids(tmp_path):
    X = gaussian(N, 4)
    np.savez(tmp_path / "x.npz", X=X, doc_id=names(N).astype(str))
    assert list(read(tmp_path / "x.npz").ids) == list(names(N))  # type: ignore[arg-type]
    np.savez(tmp_path / "y.npz", X=X, sku=names(N).astype(str))
    assert list(read(f"{tmp_path}/y.npz:X", id_column="sku").ids) == list(names(N))  # type: ignore[arg-type]
    np.save(tmp_path / "z.npy", X)
    with pytest.raises(
        InputError, match=r"`id_column` must name a column, and .*z\.npy has none; pass its ids with `ids`"
    ):
        read(tmp_path / "z.npy", id_column="sku")


# --- as text ----------------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Any, list[str]]] = {
    "text": (pa.array(["a", "ä"]), ["a", "ä"]),
    "large text": (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    "text view": (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
    "categories": (pa.array(["b", "a"]).dictionary_encode(), ["b", "a"]),
    "integers": (pa.array([7, -1]), ["7", "-1"]),
    "64 bits": (pa.array([2**64 - 1, 0], pa.uint64()), ["18446744073709551615", "0"]),
    "floats": (pa.array([7.0, 0.1]), ["7.0", "0.1"]),
    "single floats": (pa.array([7.0, 0.1], pa.float32()), ["7.0", "0.1"]),
    "large floats": (pa.array([1e16, 1e-7]), ["1e+16", "1e-07"]),
    "bytes": (pa.array([b"ab", "ä".encode()]), ["ab", "ä"]),
    "fixed bytes": (pa.array([b"ab", b"cd"], pa.binary(2)), ["ab", "cd"]),
    "UUIDs": (pa.array([key.bytes for key in UUIDS[:2]], pa.uuid()), [str(key) for key in UUIDS[:2]]),
    "decimals": (pa.array([decimal.Decimal("1.10"), decimal.Decimal("-3.00")]), ["1.10", "-3.00"]),
    "booleans": (pa.array([True, False]), ["true", "false"]),
    "dates": (pa.array(np.array(["2020-01-02", "1999-12-31"], "M8[D]")), ["2020-01-02", "1999-12-31"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_reading_embedding_and_labels_agree_on_the_text_of_an_id(tmp_path, kind):
    column, expected = KINDS[kind]
    pq.write_table(pa.table({"id": column, "vector": [[1.0], [2.0]], "text": ["x", "y"]}), tmp_path / "x.parquet")
    back = read(tmp_path / "x.parquet")
    assert list(back.ids) == expected  # type: ignore[arg-type]
    assert read_items(f"{tmp_path}/x.parquet:text", "text").ids == expected
    assert list(label(back, f"{tmp_path}/x.parquet:text").labels) == ["x", "y"]  # type: ignore[arg-type]
    assert list(column_texts(column, "ids")) == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "UUIDs"])
def test_the_text_of_an_id_is_cast_to_its_type_without_a_change(kind):
    column, _ = KINDS[kind]
    out = type_on_the_way_out(column.type)
    assert out == column.type
    assert pa.array(column_texts(column, "ids"), pa.string()).cast(out).equals(column)


def test_ids_of_other_types_are_written_as_text():
    for kind in (None, pa.uuid(), pa.time64("us"), pa.duration("s"), pa.null()):
        assert type_on_the_way_out(kind) == pa.string()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7, "7", 7.0, b"7"], ["7", "7", "7.0", "7"]),
        (np.array([7.0, 0.5]), ["7.0", "0.5"]),
        (np.array([7, 2**70], dtype=object), ["7", str(2**70)]),
        (np.array([b"a", b"b"]), ["a", "b"]),
        (UUIDS[:2], [str(key) for key in UUIDS[:2]]),
        ([decimal.Decimal("1.10"), decimal.Decimal("1.1")], ["1.10", "1.1"]),
        (np.array(["2020-01-02"], "M8[D]"), ["2020-01-02"]),
        (pd.Series(["a", "b"]), ["a", "b"]),
        (np.array([True, False]), ["true", "false"]),
    ],
)
def test_values_in_memory_have_the_text_of_a_column(values, expected):
    array = np.array(values, dtype=object) if isinstance(values, list) else values
    assert list(texts(array, "ids")) == expected


def test_a_number_pairs_with_its_text_and_not_with_another_number():
    whole = Embeddings(gaussian(N, 4), card("old", 4), np.arange(N))
    text = Embeddings(gaussian(N, 4), card("new", 4), np.arange(N).astype(str))
    floats = Embeddings(gaussian(N, 4), card("new", 4), np.arange(N).astype(float))
    assert len(pair(whole, text)) == N
    with pytest.raises(InputError, match=r"source has e\.g\. '0', target '0\.0'"):
        pair(whole, floats)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            pa.array(["a", None]),
            r"Column 'id' of .*x\.parquet must have an entry in every row; (row 1 has none|1 .*first: row 1\))\.$",
        ),
        (pa.array([1.0, float("nan")]), r"Column 'id' of .* in every row; (row 1 has none|1 are missing)"),
        (pa.array([None, None]), r"Column 'id' of .* in every row; (row 0 has none|2 are missing)"),
        (pa.array([b"a", b"\xff"]), r"Column 'id' of .* must contain text; its bytes are not UTF-8\.$"),
        (
            pa.array([b"\xff" * 16, b"\xfe" * 16], pa.binary(16)),
            r"its bytes are not UTF-8\. Store 16 bytes as a UUID\.$",
        ),
        (pa.array([[1], [2]]), r"Column 'id' of .* must contain text or numbers; got list<"),
    ],
)
def test_ids_that_are_missing_or_no_text_are_refused_by_reading_and_embedding(tmp_path, column, message):
    pq.write_table(pa.table({"id": column, "vector": [[1.0], [2.0]], "text": ["x", "y"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message.replace("of .*x", "of x")):
        read_items(f"{tmp_path}/x.parquet:text", "text")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([b"a", b"\xff"]), "must contain text; its bytes are not UTF-8"),
        (np.array([b"a", b"\xff"], dtype=object), "must contain text; its bytes are not UTF-8"),
        (["a", "\udc80"], "must contain text in Unicode; .*is not"),
        (["a", None], "must have an entry in every row"),
        ([1, None], "must have an entry in every row; row 1 has none"),
        ([float("nan"), "a"], "must have an entry in every row"),
        ([1.0, float("nan")], "must have an entry in every row"),
        (np.array([1j, 2j]), "must contain text or numbers; got complex128"),
        ([{"a": 1}, {"a": 2}], "must contain text or numbers; got"),
    ],
)
@pytest.mark.parametrize("argument", ["ids", "groups"])
def test_ids_in_memory_that_are_missing_or_no_text_are_refused(ids, message, argument):
    column = np.array(ids, dtype=object) if isinstance(ids, list) else ids
    with pytest.raises(InputError, match=f"^`{argument}` {message}"):
        Embeddings(gaussian(2, 3), card("old", 3), **{argument: column})  # type: ignore[arg-type]


def test_a_column_of_ids_is_never_a_dimension(tmp_path, caplog):
    X = gaussian(N, 3)
    frame = pd.DataFrame(X, columns=list("abc"))
    with_ids = frame.assign(id=range(100, 100 + N))
    assert read(with_ids, ids=names(N)).vectors.shape == (N, 3)
    assert read(frame.iloc[1:].reset_index(), ids=names(N - 1)).vectors.shape == (N - 1, 3)
    with pytest.raises(InputError, match="column 'index' is named like ids; name the column of ids with `id_column`"):
        read(frame.iloc[1:].reset_index())
    frame.to_csv(tmp_path / "x.csv")
    with pytest.raises(InputError, match="column '' is named like ids"):
        convert(tmp_path / "x.csv", tmp_path / "y.parquet")
    convert(tmp_path / "x.csv", tmp_path / "y.parquet", id_column="")
    assert list(read(tmp_path / "y.parquet").ids) == [str(i) for i in range(N)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(read(tmp_path / "y.parquet").vectors, X)
    assert not caplog.text
    assert read(frame.assign(sku=range(100, 100 + N))).vectors.shape == (N, 4)
    assert "column 'sku' has different whole numbers and is read as a dimension" in caplog.text


def put_frame(frame: pd.DataFrame, path: Path) -> Any:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".arrow":
        feather.write_feather(pa.Table.from_pandas(frame), path, compression="uncompressed")
    else:
        return frame
    return path


LARGER = pd.DataFrame({"vector": list(gaussian(200, 4))})


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ""])
@pytest.mark.parametrize("rows", [slice(50, 150), slice(0, 200, 2), slice(149, 49, -1)])
def test_rows_of_a_larger_data_frame_are_paired_by_their_index(tmp_path, caplog, ending, rows):
    part = put_frame(LARGER.iloc[rows], tmp_path / f"x{ending}")
    whole = put_frame(LARGER, tmp_path / f"y{ending}")
    pairs = pair(read(part), read(whole))
    assert len(pairs) == 100
    np.testing.assert_array_equal(pairs.X, pairs.Y)
    numbers = list(range(200))[rows]
    assert list(read(part).ids) == [str(i) for i in numbers]  # type: ignore[arg-type]
    assert [key for b in scan_argument("x", part).batches(33, 40) for key in b.ids] == [str(i) for i in numbers[40:]]  # type: ignore[union-attr]
    assert scan_argument("x", part).id_type == pa.int64()
    assert not caplog.text
    assert list(read(part, ids=names(100)).ids) == list(names(100))  # type: ignore[arg-type]


TYPES = {
    pa.int32(): [pa.time32("s")],
    pa.int64(): [
        pa.timestamp("s"),
        pa.timestamp("s", "Europe/Berlin"),
        pa.timestamp("ns"),
        pa.duration("s"),
        pa.uint64(),
    ],
    pa.date32(): [pa.date32(), pa.date64()],
    pa.string(): [pa.large_string(), pa.string_view(), pa.large_binary(), pa.binary(2), pa.float16()],
}


@pytest.mark.parametrize(("base", "kind"), [(base, kind) for base in TYPES for kind in TYPES[base]], ids=str)
def test_a_parquet_file_has_the_ids_of_the_arrow_file_and_their_type(tmp_path, base, kind):
    rows = table(key=pa.array(range(10, 10 + N), pa.int32()).cast(base).cast(kind))
    pq.write_table(rows, tmp_path / "x.parquet")
    feather.write_feather(rows, tmp_path / "x.arrow", compression="uncompressed")
    (ids, ids_kind, column), other = (
        (list(s.read().ids), s.id_type, scan(path, columns="all").payload)  # type: ignore[arg-type]
        for path in (tmp_path / "x.parquet", tmp_path / "x.arrow")
        for s in [scan(path, id_column="key")]
    )
    assert (ids, ids_kind, column) == other
    assert column.field("key").type == kind
    convert(tmp_path / "x.parquet", tmp_path / "y.parquet", id_column="key")
    convert(tmp_path / "y.parquet", tmp_path / "z.parquet")
    assert scan(tmp_path / "z.parquet").id_type == ids_kind
    assert list(read(tmp_path / "z.parquet").ids) == ids  # type: ignore[arg-type]


def test_a_folder_has_times_of_the_finest_unit(tmp_path):
    for i, unit in enumerate(("s", "ms")):
        pq.write_table(table(id=pa.array(range(N * i, N * i + N), pa.timestamp(unit))), tmp_path / f"{i}.parquet")
    assert scan(tmp_path).id_type == pa.timestamp("ms")
    assert list(read(tmp_path).ids)[:: N + 1] == ["1970-01-01 00:00:00.000", "1970-01-01 00:00:00.031"]  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", [pa.schema([("id", pa.string())]), pa.schema([("key", pa.timestamp("s"))])])
def test_a_type_in_the_metadata_that_is_not_that_of_the_column_is_ignored(tmp_path, stored):
    rows = table(id=pa.array(range(N), pa.timestamp("ms")))
    with pq.ParquetWriter(tmp_path / "x.parquet", rows.schema, store_schema=False) as writer:
        writer.add_key_value_metadata({b"ARROW:schema": base64.b64encode(stored.serialize())})
        writer.write_table(rows)
    assert scan(tmp_path / "x.parquet").id_type == pa.timestamp("ms")


def test_equally_many_rows_of_two_parts_of_a_data_frame_are_not_paired_by_position(tmp_path):
    LARGER.iloc[:100].to_parquet(tmp_path / "x.parquet")
    LARGER.iloc[50:150].to_parquet(tmp_path / "y.parquet")
    for sides in (("x", "y"), ("y", "x")):
        source, target = (read(tmp_path / f"{name}.parquet") for name in sides)
        pairs = pair(source, target)
        assert (pairs.by, list(pairs.ids)) == ("id", [str(i) for i in range(50, 100)])
        np.testing.assert_array_equal(pairs.X, pairs.Y)
    whole = read(tmp_path / "x.parquet")
    assert whole.ids is None
    assert pair(whole, whole).by == "position"
    array = read(LARGER["vector"].iloc[50:150].tolist())
    assert pair(array, read(tmp_path / "y.parquet")).by == "position"


def test_a_frame_of_numbers_has_its_range_index_as_ids():
    frame = pd.DataFrame(gaussian(N, 3), columns=list("abc"))
    assert list(read(frame.iloc[5:]).ids) == [str(i) for i in range(5, N)]  # type: ignore[arg-type]
    assert read(frame.iloc[5:]).vectors.shape == (N - 5, 3)
    assert read(frame.iloc[:5]).ids is None
    assert "105" in read(frame.assign(doc_id=range(100, 100 + N)).iloc[5:]).ids  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "numbers"),
    [
        ([slice(100, 200), slice(0, 100)], [*range(100, 200), *range(100)]),
        ([slice(20, 40), slice(40, 60)], list(range(20, 60))),
        ([slice(0, 100), slice(100, 200)], None),  # they are the numbers of the rows
        ([slice(0, 100), slice(0, 100)], None),  # two frames of their own
    ],
)
def test_files_of_a_folder_have_the_range_indices_of_all_parts(tmp_path, parts, numbers):
    for i, rows in enumerate(parts):
        LARGER.iloc[rows].to_parquet(tmp_path / f"{i}.parquet")
    ids = read(tmp_path).ids
    assert (None if ids is None else list(ids)) == (numbers and [str(i) for i in numbers])


def test_a_range_index_of_other_rows_is_not_read(tmp_path):
    saved_part = pa.Table.from_pandas(LARGER.iloc[50:150])
    pq.write_table(saved_part.slice(0, 30), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet").ids is None


def test_ids_beside_a_file_go_before_its_range_index(tmp_path):
    LARGER.iloc[50:53].to_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.ids.txt").write_text("a\nb\nc\n")
    assert list(read(tmp_path / "x.parquet").ids) == ["a", "b", "c"]  # type: ignore[arg-type]


def test_items_to_embed_have_the_ids_of_their_range_index(tmp_path):
    pd.DataFrame({"text": names(200, "text ")}).iloc[50:150].to_parquet(tmp_path / "x.parquet")
    assert read_items(f"{tmp_path}/x.parquet:text", "text").ids == [str(i) for i in range(50, 150)]


def test_numbered_rows_are_warned_of_whatever_contains_them(tmp_path, caplog):
    warning = "its rows have no ids and are numbered, but column 'sku' may contain ids"
    path = saved(tmp_path / "x.parquet", sku=names(N))
    scan(path, columns="all")
    read(pq.read_table(path))
    np.savez(tmp_path / "x.npz", vector=gaussian(N, 4), sku=names(N).astype(str), phase=np.ones(N, complex))
    read(f"{tmp_path}/x.npz:vector")
    assert caplog.text.count(warning) == 3
    caplog.clear()
    for kind in (pa.float64(), pa.decimal128(19, 0)):
        scan(saved(tmp_path / "x.parquet", user_id=pa.array(range(N)).cast(kind)))
    assert caplog.text.count("column 'user_id' may contain ids") == 2


def test_ids_of_the_other_byte_order_are_read_and_numbers_too_long_to_print_are_refused():
    assert list(texts(np.array([1, 2], ">i8"), "ids")) == ["1", "2"]
    with pytest.raises(InputError, match="ids must contain text or numbers; got object: Exceeds the limit"):
        texts(np.array([10**5000, "a"], object), "ids")


@pytest.mark.parametrize("ids", [["a\ud800", "b"], np.array(["a\ud800", "b"])])
def test_half_a_surrogate_pair_is_refused(ids):
    with pytest.raises(InputError, match=r"`ids` must contain text in Unicode; .*is not"):
        read(gaussian(2, 3), ids=ids)
    with pytest.raises(InputError, match=r"`ids` must contain text in Unicode; .*is not"):
        Embeddings(gaussian(2, 3), card("old", 3), np.asarray(ids))


def test_categories_have_room_for_the_ids_of_several_files():
    kind = type_on_the_way_out(pa.dictionary(pa.int8(), pa.string()))
    assert len(pa.array(names(300), pa.string()).cast(kind).dictionary) == 300
