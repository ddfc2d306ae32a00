import numpy as np
import pytest
from helpers.spaces import gaussian, names

from repstitch.embeddings.columns import read_column
from repstitch.embeddings.reading import read, scan
from repstitch.errors import InputError
from repstitch.transfer.labels import label


@pytest.mark.parametrize("kind", ["txt", "npy", "npz", "npz:key", "array", "list"])
def test_ids_are_read_from_every_kind_of_column_and_reach_every_batch(tmp_path, kind):
    ids = names(40, "photo ä")
    np.save(tmp_path / "x.npy", gaussian(40, 4))
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    np.save(tmp_path / "ids.npy", ids.astype(str))
    np.savez(tmp_path / "ids.npz", key=ids.astype(str))
    sources = {"npz:key": f"{tmp_path}/ids.npz:key", "array": ids, "list": list(ids)}
    opened = scan(tmp_path / "x.npy", ids=sources.get(kind, tmp_path / f"ids.{kind}"))
    assert opened.has_ids
    assert list(opened.read().ids) == list(ids)  # type: ignore[arg-type]
    assert list(next(opened.batches(7, 5)).ids) == list(ids[5:12])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.txt", "`ids`: there is no file .*missing.txt; pass a file with one entry per row"),
        ("short.txt", r"`ids` .*short.txt must have one entry per row of The array \(30\); got 3 entries\.$"),
        ("two.npz", r"`ids`: .*two.npz cannot be read: name one of its arrays \(a, b\) as .*two.npz:KEY$"),
        ("two.npz:c", "`ids`: .*two.npz cannot be read: .*c is not a file in the archive"),
        ("pickled.npy", "`ids`: .*pickled.npy cannot be read: .*Python objects"),
        ("broken.npz", "`ids`: .*broken.npz cannot be read: "),
        ("square.npy", r"`ids` .*square.npy must have one entry per row of The array \(30\); got shape \(30, 2\)\.$"),
        ("latin.txt", "`ids` .*latin.txt cannot be read as UTF-8 text: .*utf-8"),
    ],
)
def test_ids_that_cannot_be_used_are_refused(tmp_path, file, message):
    (tmp_path / "short.txt").write_text("a\nb\nc\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\n" * 30)
    np.savez(tmp_path / "two.npz", a=np.arange(30), b=np.arange(30))
    np.save(tmp_path / "pickled.npy", names(30))
    np.save(tmp_path / "square.npy", np.zeros((30, 2)))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match=message):
        read(gaussian(30, 4), ids=f"{tmp_path}/{file}")


def test_ids_beside_a_file_that_are_one_number_are_not_used(tmp_path, caplog):
    np.save(tmp_path / "x.npy", gaussian(3, 4))
    np.save(tmp_path / "ids.npy", np.float32(3))
    assert read(tmp_path / "x.npy").ids is None
    assert "is not used, because it has 1 ids for 3 rows" in caplog.text


def test_ids_are_read_from_a_table_with_several_columns_of_ids(tmp_path):
    (tmp_path / "x.csv").write_text("doc_id,uuid,label\n07,u1,x\nb,u2,y\n")
    assert list(read(gaussian(2, 4), ids=f"{tmp_path}/x.csv:doc_id").ids) == ["07", "b"]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["groups", "labels"])
def test_a_table_with_several_columns_of_ids_is_matched_by_the_one_that_is_named(tmp_path, kind):
    (tmp_path / "x.csv").write_text("doc_id,uuid,kind\nb,u1,y\na,u2,x\n")

    def entries(id_column):
        if kind == "groups":
            return read(gaussian(2, 4), ids=["a", "b"], group=f"{tmp_path}/x.csv:kind", id_column=id_column).groups
        return label(read(gaussian(2, 4), ids=["a", "b"]), f"{tmp_path}/x.csv:kind", id_column).labels

    with pytest.raises(InputError, match="may contain the ids: doc_id, uuid; name one with `id_column`"):
        entries(None)
    assert list(entries("doc_id")) == list(entries(("sku", "doc_id"))) == ["x", "y"]  # type: ignore[arg-type]
    with pytest.raises(InputError, match="may contain the ids: doc_id, uuid; name one with `id_column`"):
        entries("sku")  # which is in another file
    with pytest.raises(InputError, match=r"`id_column` must name one column of .*x\.csv .*; got doc_id, uuid"):
        entries(("doc_id", "uuid"))


def test_the_column_that_is_named_goes_before_id_in_a_table_of_labels(tmp_path):
    (tmp_path / "x.csv").write_text("id,sku,kind\na,b,1\nb,a,2\n")
    rows = read(gaussian(2, 4), ids=["a", "b"])
    assert list(label(rows, f"{tmp_path}/x.csv:kind").labels) == ["1", "2"]  # type: ignore[arg-type]
    assert list(label(rows, f"{tmp_path}/x.csv:kind", "sku").labels) == ["2", "1"]  # type: ignore[arg-type]


def test_names_of_a_table_are_in_the_order_of_the_rows_whatever_its_ids(tmp_path):
    (tmp_path / "x.csv").write_text("id,name\nb,y\na,x\n")
    assert list(read_column(f"{tmp_path}/x.csv:name", 2, "names")) == ["y", "x"]
