import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from helpers.spaces import card, gaussian, names

from repstitch.embeddings.exchange import READ_FORMATS, WRITTEN_FORMATS
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
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
    with pytest.raises(InputError, match=r"must not end in \.npy, because the id 'a\\n0' has a line break; use \.npz"):
        convert(tmp_path / "w.parquet", tmp_path / "w.npy")
    assert convert(tmp_path / "w.parquet", tmp_path / "w.jsonl") == N


def test_the_formats_that_are_read_and_written_are_known_endings():
    assert set(READ_FORMATS) - {".json", ".tsv"} < set(WRITTEN_FORMATS)
