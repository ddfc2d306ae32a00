import csv
import json
import logging
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from helpers.spaces import card, gaussian, names

from repstitch.embeddings.exporting import WRITTEN_FORMATS
from repstitch.embeddings.reading import read, scan
from repstitch.embeddings.rows import Embeddings, Scan
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.names import CONVERTIBLE
from repstitch.workflows.converting import convert

N = 30
X = gaussian(N, 4)
PAYLOAD = {
    "title": [f"a title, {i}" for i in range(N)],
    "year": [1990 + i % 7 for i in range(N)],
    "seen": [True, None] * 15,
}


@pytest.fixture
def source(tmp_path):
    """Write a Parquet file with whole numbers as ids, a payload and a card, and return its path."""
    write(tmp_path / "source.parquet", Embeddings(X, card("old", 4), np.arange(7, 37), payload=pa.table(PAYLOAD)))
    table = pq.read_table(tmp_path / "source.parquet")
    pq.write_table(table.set_column(0, "id", table["id"].cast(pa.int64())), tmp_path / "source.parquet")
    return tmp_path / "source.parquet"


def check_rows(path, columns) -> None:
    convert(path, path.with_name("back.parquet"), columns=columns)
    back = read(path.with_name("back.parquet"))
    np.testing.assert_array_equal(back.vectors, X)
    assert back.vectors.dtype == np.float32
    assert list(back.ids) == [str(i) for i in range(7, 37)]  # type: ignore[arg-type]
    if columns:
        table = pq.read_table(path.with_name("back.parquet"))
        assert {name: table[name].to_pylist() for name in PAYLOAD} == PAYLOAD


@pytest.mark.parametrize("ending", WRITTEN_FORMATS)
def test_every_format_keeps_vectors_and_ids_exactly_and_further_columns_if_it_can(tmp_path, source, ending, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / f"out{ending}"
    assert convert(source, out) == N
    array = ending in (".npy", ".npz")
    assert ("source.parquet: not copied: title, year, seen." in caplog.text) == array
    check_rows(out, () if array else "all")
    if ending == ".npy":
        assert (tmp_path / "out.ids.txt").read_text().splitlines() == [str(i) for i in range(7, 37)]


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_card_is_kept_or_stated_and_never_guessed(tmp_path, source, ending):
    convert(source, tmp_path / f"a{ending}")
    assert (read(tmp_path / f"a{ending}").space, read(tmp_path / f"a{ending}").declared) == (card("old", 4), True)
    np.save(tmp_path / "x.npy", X)
    convert(tmp_path / "x.npy", tmp_path / f"b{ending}")
    assert read(tmp_path / f"b{ending}").declared is False
    assert read(tmp_path / f"b{ending}").ids is None
    convert(tmp_path / "x.npy", tmp_path / f"c{ending}", space="mine")
    assert (read(tmp_path / f"c{ending}").space.name, read(tmp_path / f"c{ending}").declared) == ("mine", True)


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".jsonl"])
def test_whole_numbers_stay_whole_numbers(tmp_path, source, ending):
    convert(source, tmp_path / f"out{ending}")
    convert(tmp_path / f"out{ending}", tmp_path / "back.parquet")
    assert pq.read_schema(tmp_path / "back.parquet").field("id").type == pa.int64()


@pytest.mark.parametrize("form", ["[{}]", "{{{}}}", " [ {} ] "], ids=["pgvector", "array", "spaces"])
def test_vectors_of_postgres_are_read_from_csv(tmp_path, form):
    texts = [form.format(", ".join(map(str, row))) for row in X]
    table = pa.table({"sku": [f"00{i}" for i in range(N)], "embedding": texts, "title": PAYLOAD["title"]})
    pacsv.write_csv(table, tmp_path / "x.csv")
    assert convert(f"{tmp_path}/x.csv:embedding", tmp_path / "y.parquet", id_column="sku") == N
    rows = read(tmp_path / "y.parquet")
    np.testing.assert_array_equal(rows.vectors, X)
    assert list(rows.ids) == [f"00{i}" for i in range(N)]  # type: ignore[arg-type]
    assert pq.read_table(tmp_path / "y.parquet")["title"].to_pylist() == PAYLOAD["title"]


def test_a_csv_with_a_number_per_column_is_read(tmp_path):
    table = pa.table({"id": names(N)} | {f"x{i}": X[:, i] for i in range(4)})
    pacsv.write_csv(table, tmp_path / "x.csv")
    convert(tmp_path / "x.csv", tmp_path / "y.npz")
    np.testing.assert_array_equal(read(f"{tmp_path}/y.npz:vector").vectors, X)
    assert list(read(tmp_path / "y.npz").ids) == list(names(N))  # type: ignore[arg-type]


def qdrant_points(vector) -> list[dict]:
    keys = [i if i % 2 else f"5c56c793-69f3-4fbf-87e6-c4bf54c280{i:02d}" for i in range(N)]
    payload = [{"title": title, "id": i} for i, title in enumerate(PAYLOAD["title"])]
    return [{"id": key, "payload": payload[i], "vector": vector(X[i].tolist())} for i, key in enumerate(keys)]


@pytest.mark.parametrize("form", ["reply", "points", "list", "lines"])
@pytest.mark.parametrize("named", [False, True])
def test_a_scroll_of_qdrant_is_read(tmp_path, form, named):
    points = qdrant_points((lambda row: {"image": row, "text": [0.0]}) if named else lambda row: row)
    content = {"reply": {"result": {"points": points, "next_page_offset": None}}, "points": {"points": points}}.get(
        form, points
    )
    path = tmp_path / ("x.jsonl" if form == "lines" else "x.json")
    path.write_text("\n".join(map(json.dumps, points)) if form == "lines" else json.dumps(content))
    convert(f"{path}:image" if named else path, tmp_path / "y.parquet")
    rows = read(tmp_path / "y.parquet")
    np.testing.assert_array_equal(rows.vectors, X)
    assert list(rows.ids) == [str(point["id"]) for point in points]  # type: ignore[arg-type]
    table = pq.read_table(tmp_path / "y.parquet")
    assert table["title"].to_pylist() == PAYLOAD["title"]
    assert table["payload.id"].to_pylist() == list(range(N))
    if named:
        with pytest.raises(InputError, match=r"Row 0 of .* has several vectors \(image, text\); name one after"):
            convert(path, tmp_path / "z.parquet")


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(ending, marks=pytest.mark.slow if ending == ".ndjson" else ())  # another name of .jsonl
        for ending in WRITTEN_FORMATS
        if ending != ".npz"
    ],
)
def test_files_are_written_a_batch_at_a_time(tmp_path, ending, monkeypatch):
    n = 40_000
    rows = Embeddings(gaussian(n, 2), card("old", 2), names(n), payload=pa.table({"n": range(n)}))
    write(tmp_path / "x.parquet", rows)
    with monkeypatch.context() as patch:
        patch.setattr(Scan, "read", lambda self: pytest.fail("all rows are in memory"))
        assert convert(tmp_path / "x.parquet", tmp_path / f"y{ending}") == n
    if ending == ".npy":
        np.save(tmp_path / "z.npy", rows.vectors)
        assert (tmp_path / "y.npy").read_bytes() == (tmp_path / "z.npy").read_bytes()
    convert(tmp_path / f"y{ending}", tmp_path / "back.parquet")
    back = scan(tmp_path / "back.parquet", columns="all").read()
    np.testing.assert_array_equal(back.vectors, rows.vectors)
    assert list(back.ids) == list(names(n))  # type: ignore[arg-type]
    assert back.payload is None if ending == ".npy" else back.payload["n"].to_pylist() == list(range(n))  # type: ignore[index]


def test_a_row_that_text_cannot_contain_is_named_by_its_number_in_the_file(tmp_path):
    X = gaussian(20_000, 2)
    X[17_000, 1] = np.inf
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(InputError, match=r"cannot contain NaN or Inf \(first: row 17000\)"):
        convert(tmp_path / "x.npy", tmp_path / "y.csv")


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_a_file_that_loses_rows_meanwhile_is_not_converted(tmp_path, monkeypatch, ending):
    write(tmp_path / "x.parquet", Embeddings(gaussian(50, 2), card("old", 2), names(50)))
    batches = Scan.batches

    def fewer(self, *sizes):
        return (batch.take(slice(0, 49)) for batch in batches(self, *sizes))

    monkeypatch.setattr(Scan, "batches", fewer)
    with pytest.raises(InputError, match="must have 50 rows, but 49 were read; it has changed"):
        convert(tmp_path / "x.parquet", tmp_path / f"y{ending}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_rows_without_a_vector_stay_so(tmp_path, ending):
    rows = X.copy()
    rows[[0, 7]] = np.nan
    write(tmp_path / "x.parquet", Embeddings(rows, card("old", 4), names(N)))
    convert(tmp_path / "x.parquet", tmp_path / f"y{ending}")
    convert(tmp_path / f"y{ending}", tmp_path / "z.parquet")
    np.testing.assert_array_equal(read(tmp_path / "z.parquet").vectors, rows)
    rows[3, 1] = np.inf
    write(tmp_path / "w.parquet", Embeddings(rows, card("old", 4), names(N)))
    with pytest.raises(InputError, match=r"`out` is a text file, which cannot contain NaN or Inf \(first: row 3\)"):
        convert(tmp_path / "w.parquet", tmp_path / f"v{ending}")
    assert not (tmp_path / f"v{ending}").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "id,vector\na,[1;2]\n", r"x\.csv must have vectors such as \[0\.1,0\.2\]"),
        ("x.csv", 'id,vector\na,"[1,2]"\nb,"[1]"\n', "must have 2 numbers in every row; 1 rows have another"),
        ("x.csv", "id,vector\n", "has no rows"),
        ("x.csv", "", r"x\.csv cannot be read"),
        ("x.csv:other", "id,vector\na,[1]\n", r"x\.csv has no column 'other'; its columns are: id, vector"),
        ("x.jsonl", '{"id": 1}\n', r"Row 0 of .*x\.jsonl has no 'vector'; its fields are: id"),
        ("x.jsonl", '{"vector": [1]}\n[1]\n', r"Row 1 of .*x\.jsonl must be a JSON object; got list"),
        ("x.jsonl", '{"vector": [1]}\n\n{"vector": \n', r"line 3 of .*x\.jsonl is not JSON"),
        ("x.jsonl", '{"vector": ["a"]}\n', "Row 0 of .* must have a list of numbers in 'vector'"),
        ("x.jsonl", '{"vector": [[1]]}\n', "Row 0 of .* must have a list of numbers in 'vector'"),
        ("x.jsonl", '{"vector": ' + "[" * 100_000 + "\n", r"line 1 of .*x\.jsonl is not JSON"),
        ("x.json", '{"result": {}}', r"x\.json must contain a list of points, or the reply to a scroll request"),
        ("x.json", "{", r"x\.json is not JSON"),
        ("x.jsonl", b'{"vector": [1], "a": "\xff"}\n', r"x\.jsonl cannot be read: .*utf-8"),
    ],
)
def test_text_files_that_are_no_vectors_are_refused_with_their_name(tmp_path, name, content, message):
    path = tmp_path / name.split(":")[0]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        convert(tmp_path / name, tmp_path / "y.parquet")
    assert not (tmp_path / "y.parquet").exists()


def test_outputs_that_exist_or_cannot_contain_the_rows_are_refused(tmp_path, source):
    (tmp_path / "y.ids.txt").write_text("mine")
    with pytest.raises(InputError, match=r"`out` .*y\.ids\.txt exists and is never overwritten"):
        convert(source, tmp_path / "y.npy")
    assert not (tmp_path / "y.npy").exists()
    with pytest.raises(InputError, match=r"`out` must end in \.parquet, .* or \.ndjson; got 'y\.pt'"):
        convert(source, tmp_path / "y.pt")
    with pytest.raises(InputError, match="exists and is never overwritten"):
        convert(source, source)
    write(tmp_path / "w.parquet", Embeddings(X, card("old", 4), [f"a\n{i}" for i in range(N)]))  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"must not end in \.npy, because the id 'a\\n0' has a line break; use \.parquet\."
    ):
        convert(tmp_path / "w.parquet", tmp_path / "w.npy")
    assert convert(tmp_path / "w.parquet", tmp_path / "w.jsonl") == N


@pytest.mark.parametrize("ending", WRITTEN_FORMATS)
def test_an_output_that_appears_meanwhile_is_kept(tmp_path, source, ending, monkeypatch):
    out, beside = tmp_path / f"y{ending}", tmp_path / "y.ids.txt"
    batches = Scan.batches

    def late(self, *args):
        yield from batches(self, *args)
        out.write_text("of another")
        beside.write_text("of another")

    monkeypatch.setattr(Scan, "batches", late)
    with pytest.raises(InputError, match="exists and is never overwritten"):
        convert(source, out)
    assert (out.read_text(), beside.read_text()) == ("of another", "of another")
    assert {path.name for path in tmp_path.iterdir()} == {source.name, out.name, beside.name}


def test_a_link_to_nothing_is_not_replaced(tmp_path, source):
    (tmp_path / "y.parquet").symlink_to(tmp_path / "unmounted")
    with pytest.raises(InputError, match="exists and is never overwritten"):
        convert(source, tmp_path / "y.parquet")


@pytest.mark.parametrize(
    ("ending", "column"),
    [
        (".parquet", pa.array([{}] * 2, pa.struct([]))),
        (".parquet", pa.array([None] * 2, pa.month_day_nano_interval())),
        (".csv", pa.array([None] * 2, pa.month_day_nano_interval())),
    ],
)
def test_columns_that_a_format_cannot_contain_are_refused(tmp_path, ending, column):
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file:
        table = pa.table({"id": ["1", "2"], "vector": [[1.0], [2.0]], "p": column})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match=rf"`out` y{ending} cannot contain all of the columns: .* Name the `columns`"):
        convert(tmp_path / "x.arrow", tmp_path / f"y{ending}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]
    assert convert(tmp_path / "x.arrow", tmp_path / f"y{ending}", columns=()) == 2
    assert convert(tmp_path / "x.arrow", tmp_path / "y.arrow") == 2


def test_times_in_nanoseconds_are_written_without_pandas(tmp_path):
    times = pa.array([7, None], pa.timestamp("ns"))
    table = pa.table(
        {"id": ["1", "2"], "vector": [[1.0], [2.0]], "t": times, "l": pa.array([[7], []], pa.list_(times.type))}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    code = """
import sys
from importlib.abc import MetaPathFinder

class WithoutPandas(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pandas":
            raise ImportError(name)

sys.meta_path.insert(0, WithoutPandas())
from repstitch.workflows.converting import convert
convert("x.parquet", "y.jsonl")
convert("x.parquet", "y.csv")
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    first, second = map(json.loads, (tmp_path / "y.jsonl").read_text().splitlines())
    assert (first["t"], first["l"]) == ("1970-01-01 00:00:00.000000007", ["1970-01-01 00:00:00.000000007"])
    assert (second["t"], second["l"]) == (None, [])
    assert "000000007" in (tmp_path / "y.csv").read_text()


def test_the_formats_that_are_read_and_written_are_known_endings():
    assert set(CONVERTIBLE) - {".json", ".tsv"} < set(WRITTEN_FORMATS)


def rows_of(tmp_path, name, content, **how) -> list[dict]:
    """Convert a text file and return its rows."""
    (tmp_path / name.split(":")[0]).write_text(content)
    convert(tmp_path / name, tmp_path / "rows.parquet", **how)
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    (tmp_path / "rows.parquet").unlink()
    return rows


def test_a_row_never_gets_another_vector_than_the_one_that_is_named(tmp_path):
    lines = '{"id": 1, "emb": [1, 0], "vector": [9, 9]}\n{"id": 2, "vector": [8, 8]}\n'
    with pytest.raises(InputError, match=r"Row 1 of .*x\.jsonl has no 'emb'; its fields are: id, vector"):
        rows_of(tmp_path, "x.jsonl:emb", lines)
    points = [{"id": 1, "vector": {"title": [1, 0], "body": [5, 5]}}, {"id": 2, "vector": {"body": [6, 6]}}]
    rows = rows_of(tmp_path, "x.json:title", json.dumps(points))
    assert rows[0]["vector"] == [1, 0]
    assert np.isnan(rows[1]["vector"]).all()
    points = [{"id": 1, "vector": {"title": [1, 0]}}, {"id": 2, "vector": {"body": [6, 6]}}]
    with pytest.raises(InputError, match=r"has vectors of several names \('title' in row 0, 'body' in row 1\); name"):
        rows_of(tmp_path, "x.json", json.dumps(points))
    with pytest.raises(InputError, match="has no vector 'titel'"):
        rows_of(tmp_path, "x.json:titel", json.dumps(points))
    point = {"id": 1, "vector": {"title": [1, 0]}, "payload": {"title": "a title", "vector": "text"}}
    rows = rows_of(tmp_path, "x.json:title", json.dumps([point]))
    assert rows == [{"id": 1, "vector": [1, 0], "title": "a title", "payload.vector": "text"}]


@pytest.mark.parametrize("form", [lambda page: {"result": page}, lambda page: page], ids=["reply", "points"])
def test_one_page_of_several_is_refused(tmp_path, form):
    page = {"points": [{"id": 1, "vector": [1, 0]}], "next_page_offset": 3}
    with pytest.raises(InputError, match="is one page of them: the next begins at `next_page_offset` 3"):
        rows_of(tmp_path, "x.json", json.dumps(form(page)))


def test_the_texts_of_a_csv_file_are_kept(tmp_path):
    content = 'id,zip,state,n,price,day,vector\n001,01234,NA,7,0.5,2020-01-02,"[1,0]"\n002,00007,CA,,1.25,,"[0,1]"\n'
    first, second = rows_of(tmp_path, "x.csv", content)
    assert (first["zip"], first["state"], first["n"], first["price"]) == ("01234", "NA", 7, 0.5)
    assert (first["day"].isoformat(), second["n"], second["day"]) == ("2020-01-02", None, None)


def test_a_second_column_called_vector_or_id_is_left_out_with_a_warning(tmp_path, caplog):
    assert rows_of(tmp_path, "x.jsonl:emb", '{"vector": [9], "emb": [1], "id": 3}\n') == [{"id": 3, "vector": [1]}]
    assert rows_of(tmp_path, "x.csv:emb", 'vector,emb,id\n9,"[1]",a\n') == [{"id": "a", "vector": [1]}]
    assert caplog.text.count("its column 'vector' is not copied") == 2
    table = pa.table({"id": ["1"], "sku": ["a"], "emb": [[1.0]], "vector": [[9.0]], "n": [5]})
    pq.write_table(table, tmp_path / "x.parquet")
    convert(f"{tmp_path}/x.parquet:emb", tmp_path / "y.parquet", id_column="sku")
    assert pq.read_table(tmp_path / "y.parquet").to_pylist() == [{"id": "a", "vector": [1], "n": 5}]
    assert "its column 'id' is not copied" in caplog.text


def test_ids_of_the_caller_replace_several_columns_of_a_csv_file(tmp_path):
    content = 'doc_id,uuid,vector\n7,u1,"[1,0]"\n8,u2,"[0,1]"\n'
    assert [row["id"] for row in rows_of(tmp_path, "x.csv", content, ids=["a", "b"])] == ["a", "b"]


def test_values_of_several_types_are_kept(tmp_path):
    lines = '{"id": 1, "vector": [1], "n": 9007199254740993}\n{"id": 2.5, "vector": [2], "n": 0.5}\n'
    rows = rows_of(tmp_path, "x.jsonl", lines)
    assert [(row["id"], row["n"]) for row in rows] == [("1", "9007199254740993"), ("2.5", "0.5")]
    assert rows_of(tmp_path, "x.jsonl", '{"vector": [1], "payload": "text"}\n')[0]["payload"] == "text"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", '{"vector": [1e39]}'),
        ("x.csv", 'id,vector\na,"[1e39]"\n'),
        ("x.csv", "a,b\n1.5,1e39\n"),
        ("x.csv", "a,b\n1.5,1e400\n"),
    ],
)
def test_numbers_beyond_float32_are_refused(tmp_path, name, content):
    with pytest.raises(InputError, match="must have finite numbers that float32 can represent"):
        rows_of(tmp_path, name, content)


@pytest.mark.parametrize("number", ["1e400", "-1E+400", f"1{'0' * 309}.5"])
@pytest.mark.parametrize("row", ['{"vector": [%s]}', '{"vector": [1], "p": %s}', '{"vector": [1], "p": {"q": [%s]}}'])
def test_numbers_of_json_beyond_the_range_of_floats_are_refused(tmp_path, number, row):
    with pytest.raises(InputError, match=r"^line 1 of .*x\.jsonl must have numbers that floats can represent; got -?1"):
        rows_of(tmp_path, "x.jsonl", row % number)
    with pytest.raises(InputError, match=r"x\.json must have numbers that floats can represent; got -?1"):
        rows_of(tmp_path, "x.json", f"[{row % number}]")


@pytest.mark.parametrize("value", ["1e300", '"1e400"', "1e-400", "1.5e+100"])
def test_numbers_and_texts_that_only_look_too_large_are_kept(tmp_path, value):
    (row,) = rows_of(tmp_path, "x.jsonl", f'{{"id": "a", "vector": [1], "p": {value}}}')
    assert row["p"] == json.loads(value)


UUID = "00000000-0000-0000-0000-000000000005"
PLAIN = {
    "bytes": (pa.array([b"\xc3\xa9", None]), ["é", None], ["é", ""]),
    "uuid": (pa.array([bytes(15) + b"\x05", None], pa.uuid()), [UUID, None], [UUID, ""]),
    "view": (pa.array(["m", "n"], pa.string_view()), ["m", "n"], ["m", "n"]),
    "nan": (pa.array([float("nan"), 1.5]), [None, 1.5], ["nan", "1.5"]),
    "lists of bytes": (pa.array([[b"a"], [b"b"]]), [["a"], ["b"]], ['["a"]', '["b"]']),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_text_files_contain_columns_of_every_type(tmp_path, kind):
    column, expected, cells = PLAIN[kind]
    table = pa.table({"id": ["1", "2"], "vector": [[1.0], [2.0]], "p": column})
    pq.write_table(table, tmp_path / "x.parquet")
    convert(tmp_path / "x.parquet", tmp_path / "y.jsonl")
    lines = (tmp_path / "y.jsonl").read_text().splitlines()
    refuse = pytest.fail  # of NaN, which is not JSON
    assert [json.loads(line, parse_constant=refuse)["p"] for line in lines] == expected
    convert(tmp_path / "x.parquet", tmp_path / "y.csv")
    with (tmp_path / "y.csv").open(encoding="utf-8", newline="") as file:
        assert [row["p"] for row in csv.DictReader(file)] == cells


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_bytes_that_are_not_text_are_refused_in_text_files(tmp_path, ending):
    pq.write_table(pa.table({"id": ["1"], "vector": [[1.0]], "p": [b"\xff"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="cannot contain bytes that are not UTF-8"):
        convert(tmp_path / "x.parquet", tmp_path / f"y{ending}")
    assert not (tmp_path / f"y{ending}").exists()


def test_ids_with_a_byte_order_mark_or_a_nul_character_are_kept_or_refused(tmp_path):
    rows = Embeddings(X[:2], card("old", 4), np.array(["\ufeffa", "b\0"], object))
    write(tmp_path / "x.parquet", rows)
    convert(tmp_path / "x.parquet", tmp_path / "y.npy")
    assert list(read(tmp_path / "y.npy").ids) == ["\ufeffa", "b\0"]  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"must not end in \.npz, because the id 'b\\x00' ends with a NUL"):
        convert(tmp_path / "x.parquet", tmp_path / "y.npz")
