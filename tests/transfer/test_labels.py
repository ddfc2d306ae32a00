from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.spaces import embeddings

from repstitch.errors import InputError
from repstitch.transfer import labels as room

label: Any = room.label
ROWS = embeddings(4)
IDS = [f"item{i}" for i in range(4)]


def table(tmp_path, suffix: str, rows: dict):
    path = tmp_path / f"labels{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table(rows), path)
    else:
        between = "\t" if suffix == ".tsv" else ","
        lines = [between.join(rows), *(between.join(str(v) for v in row) for row in zip(*rows.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv"])
def test_labels_are_matched_by_id(tmp_path, suffix):
    path = table(tmp_path, suffix, {"id": [IDS[2], "other", IDS[0]], "kind": ["c", "x", "a"]})
    assert list(label(ROWS, f"{path}:kind").labels) == ["a", None, "c", None]


def test_ids_and_labels_of_a_table_are_kept_as_text(tmp_path):
    path = table(tmp_path, ".csv", {"id": ["007", "1e3", "08", "9"], "kind": ["01", "1.0", "nan", ""]})
    rows = embeddings(4, ids=np.array(["007", "1e3", "08", "9"], dtype=object))
    assert list(label(rows, f"{path}:kind").labels) == ["01", "1.0", "nan", None]


def test_labels_without_ids_are_matched_by_position(tmp_path):
    assert list(label(ROWS, ["a", "b", "a", "b"]).labels) == ["a", "b", "a", "b"]
    np.save(tmp_path / "y.npy", np.array([1, 0, 1, 2]))
    assert list(label(ROWS, str(tmp_path / "y.npy")).labels) == ["1", "0", "1", "2"]
    assert list(label(ROWS, tmp_path / "y.npy").labels) == ["1", "0", "1", "2"]
    assert list(label(ROWS, [1.0, np.inf, 2.5, True]).labels) == ["1", "inf", "2.5", "True"]
    (tmp_path / "y.txt").write_text("a\n\nb\na\n")
    assert list(label(ROWS, str(tmp_path / "y.txt")).labels) == ["a", None, "b", "a"]
    assert list(label(ROWS, f"{table(tmp_path, '.tsv', {'kind': list('abcd')})}:kind").labels) == list("abcd")


def test_rows_without_ids_are_not_matched_by_position_to_a_table_with_ids(tmp_path):
    path = table(tmp_path, ".csv", {"id": list("wxyz"), "kind": list("abcd")})
    with pytest.raises(InputError, match="has a column of ids, but the rows have no ids; pass the ids of the rows"):
        label(embeddings(4, ids=None), f"{path}:kind")


def test_missing_labels_are_not_a_class(tmp_path):
    assert list(label(ROWS, ["a", None, float("nan"), " "]).labels) == ["a", None, None, None]
    pq.write_table(pa.table({"id": [*IDS, None], "kind": [1.0, None, float("nan"), 2.5, 3.0]}), tmp_path / "l.parquet")
    assert list(label(ROWS, f"{tmp_path}/l.parquet:kind").labels) == ["1", None, None, "2.5"]
    np.save(tmp_path / "y.npy", np.array([b"a", b"b", b"a", b""]))
    assert list(label(ROWS, str(tmp_path / "y.npy")).labels) == ["a", "b", "a", None]
    with pytest.raises(InputError, match="must contain a label for at least one of the rows"):
        label(ROWS, ["", None, " ", float("nan")])


def test_a_table_with_a_duplicate_column_or_without_rows_is_refused(tmp_path):
    for name, text, message in (
        ("twice.csv", "id,kind,kind\nitem0,a,b\n", "more than one column 'kind'"),
        ("ids.csv", "id,id,kind\nitem0,item1,b\n", "more than one column 'id'"),
        ("bare.csv", "id,kind\n", "has none of the rows' ids"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            label(ROWS, f"{tmp_path}/{name}:kind")


@pytest.mark.parametrize(
    ("suffix", "rows", "column", "message"),
    [
        (
            ".csv",
            {"id": ["x"], "kind": ["a"]},
            ":kind",
            r"has none of the rows' ids \(the table has e.g. 'x', the rows 'item0'",
        ),
        (".csv", {"id": ["item0", "item0"], "kind": ["a", "b"]}, ":kind", "repeated ids in the table of labels: 1"),
        (
            ".csv",
            {"id": ["item0"], "kind": ["a"]},
            ":sort",
            r"name a column as labels.csv:COLUMN, where COLUMN is one of kind; got sort",
        ),
        (".parquet", {"id": ["item0"], "kind": ["a"]}, "", "one of kind; got None"),
        (
            ".parquet",
            {"kind": ["a", "b"]},
            ":kind",
            r"`labels` .*labels.parquet must have one entry per row \(4\); got 2 entries\.$",
        ),
    ],
)
def test_labels_that_cannot_be_matched_are_refused(tmp_path, suffix, rows, column, message):
    with pytest.raises(InputError, match=message):
        label(ROWS, f"{table(tmp_path, suffix, rows)}{column}")


def test_missing_files_and_labels_of_the_wrong_length_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        label(ROWS, f"{tmp_path}/none.csv:kind")
    with pytest.raises(InputError, match=r"`labels` must have one entry per row \(4\)"):
        label(ROWS, ["a"])


def test_labels_stay_with_their_rows_when_rows_are_paired():
    from repstitch.embeddings.pairs import pair

    rows = label(embeddings(40), [f"label {i}" for i in range(40)])
    other = embeddings(40, 3, "new").take(np.arange(39, -1, -1)[:30])
    pairs: Any = pair(other, rows)
    assert [f"label {key.removeprefix('item')}" for key in pairs.ids] == list(pairs.labels)
    assert list(pairs.take([2, 0]).labels) == [pairs.labels[2], pairs.labels[0]]
