"""Items to embed: images and texts from folders, archives, text files and tables."""

import hashlib
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.encoders import read, vit
from PIL import Image

from repstitch import encoders
from repstitch.encoders import items
from repstitch.encoders.images import open_image
from repstitch.errors import InputError


def test_a_zip_holds_the_same_images_as_its_folder(tmp_path, photos):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in photos.rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(photos))
    folder, packed = items.read_items(photos, "image"), items.read_items(tmp_path / "p.zip", "image")
    assert folder.ids == packed.ids
    for a, b in zip(folder.values, packed.values, strict=True):
        np.testing.assert_array_equal(np.asarray(open_image(a)), np.asarray(open_image(b)))


def test_lines_of_a_text_file_are_numbered_from_zero(tmp_path):
    (tmp_path / "t.txt").write_bytes("ein\r\nzwei \u2028 drei\n".encode())
    loaded = items.read_items(tmp_path / "t.txt", "text")
    assert (loaded.ids, loaded.values) == (["0", "1"], ["ein", "zwei \u2028 drei"])


def test_tables_contain_texts_with_their_ids(tmp_path):
    ids, texts = ["007", "1e3"], ['say "a", b', "12"]
    pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text('id,text\n007,"say ""a"", b"\n1e3,12\n')
    (tmp_path / "t.tsv").write_text('id\ttext\n007\tsay "a", b\n1e3\t12\n')
    (tmp_path / "bare.tsv").write_text('007\tsay "a", b\n1e3\t12\n')
    for name in ("t.parquet", "t.csv", "t.tsv"):
        loaded = items.read_items(f"{tmp_path / name}:text", "text")
        assert (loaded.ids, loaded.values) == (ids, texts)
    loaded = items.read_items(f"{tmp_path / 'bare.tsv'}:1", "text")
    assert (loaded.ids, loaded.values) == (["0", "1"], texts)


def test_tables_contain_images_as_bytes_or_as_paths_relative_to_the_table(tmp_path, photos):
    names = ["0.png", "b/1.png"]
    raw = [(photos / name).read_bytes() for name in names]
    table = pa.table({"bytes": raw, "path": names, "hf": [{"bytes": data, "path": None} for data in raw]})
    pq.write_table(table, photos / "t.parquet")
    for column in ("bytes", "path", "hf"):
        loaded = items.read_items(f"{photos / 't.parquet'}:{column}", "image")
        assert [image.read() for image in loaded.values] == raw


@pytest.mark.parametrize(
    ("name", "content", "data", "message"),
    [
        ("t.txt", "a\n\nb\n", "t.txt", "line 2 of t.txt is ''"),
        ("t.csv", "id,text\n1,a\n1,b\n", "t.csv:text", "repeated ids in `data`: 1 \\(first: '1'\\)"),
        ("t.csv", "id,text\n1,a\n2,\n", "t.csv:text", "row 1 of t.csv:text is ''"),
        (
            "t.csv",
            "id,text\n1,a\n",
            "t.csv:body",
            "must name a column as t.csv:COLUMN, where COLUMN is one of text; got body",
        ),
        ("t.csv", "id,text\n1,a\n", "t.csv", "must name a column as t.csv:COLUMN"),
        ("t.csv", "id,text\n1\n", "t.csv:text", "cannot be read"),
        ("t.pdf", "", "t.pdf", "must be a folder or a file of type .zip, .txt"),
        ("t.zip", "", "t.zip", "t.zip must contain texts, which the encoder embeds"),
        ("t.txt", "", "none.txt", "there is no .*none.txt"),
    ],
)
def test_data_without_usable_texts_is_refused(tmp_path, name, content, data, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        items.read_items(tmp_path / data, "text")


def test_data_without_usable_images_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must contain at least one item .*; got none"):
        items.read_items(tmp_path, "image")
    (tmp_path / "t.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"t\.txt must contain images, which the encoder embeds"):
        items.read_items(tmp_path / "t.txt", "image")
    (tmp_path / "bad.zip").write_text("no zip")
    with pytest.raises(InputError, match=r"bad\.zip cannot be read"):
        items.read_items(tmp_path / "bad.zip", "image")


def test_bytes_that_are_not_an_image_are_refused():
    with pytest.raises(InputError, match=r"an image of 7 bytes must be an image .* its format is unknown"):
        open_image(b"no jpeg")


def test_the_stamp_of_images_changes_with_their_content(tmp_path, photos):
    def stamps() -> list[str]:
        names = ["0.png", "b/1.png"]
        raw = [(photos / name).read_bytes() for name in names]
        columns = {"bytes": raw, "path": names, "hf": [{"bytes": None, "path": name} for name in names]}
        pq.write_table(pa.table(columns), photos / "t.parquet")
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            archive.write(photos / "0.png", "0.png")
        data = (photos, tmp_path / "p.zip", *(f"{photos / 't.parquet'}:{column}" for column in columns))
        return [items.read_items(one, "image").stamp for one in data]

    before = stamps()
    assert stamps() == before
    Image.new("RGB", (32, 32), "red").save(photos / "0.png")
    assert not set(stamps()) & set(before)


def test_the_stamp_of_texts_changes_with_their_words_ids_and_order(tmp_path):
    def stamp(text: str) -> str:
        (tmp_path / "t.csv").write_text("id,text\n" + text)
        return items.read_items(f"{tmp_path / 't.csv'}:text", "text").stamp

    assert stamp("1,a\n2,b\n") == stamp("1,a\n2,b\n")
    assert len({stamp(text) for text in ("1,a\n2,b\n", "1,a\n2,c\n", "1,a\n3,b\n", "2,b\n1,a\n", "1,a\n")}) == 5


def test_the_hash_of_items_tells_ids_apart_that_are_equal_when_joined():
    contents = [b"1", b"2"]
    lists = (["a\0b", "c"], ["a", "b\0c"], ["a\1\2b", "c"], ["a\1", "b\0c"], ["a\nb", "c"], ["a", "b\nc"])
    assert len({items.hash_items(ids, contents) for ids in lists}) == len(lists)
    plain = hashlib.sha256(b"a\0b" + b"12").hexdigest()  # as in the notes of older versions
    assert items.hash_items(["a", "b"], contents) == plain


def test_a_limit_takes_evenly_spaced_items(tmp_path, photos):
    encoder, _ = vit(pooling="cls")
    encoders.embed(encoder, photos, tmp_path / "all.parquet")
    encoders.embed(encoder, photos, tmp_path / "some.parquet", limit=3)
    whole, some = read(tmp_path / "all.parquet"), read(tmp_path / "some.parquet")
    assert list(some.ids) == [whole.ids[i] for i in (0, 2, 4)]
    np.testing.assert_allclose(some.vectors, whole.vectors[[0, 2, 4]], atol=1e-5)
    assert items.read_items(photos, "image", 99).ids == list(whole.ids)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("column", ["doc_id", "_id", "ID", "uuid", "sku"])
def test_the_ids_of_a_table_are_in_a_usual_column_or_the_named_one(tmp_path, suffix, column):
    rows = {"text": ["a b", "c d"], column: ["007", "1e3"]}
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table(rows), path)
    else:
        between = "\t" if suffix == ".tsv" else ","
        lines = [between.join(rows), *(between.join(row) for row in zip(*rows.values(), strict=True))]
        path.write_text("\n".join(lines))
    assert items.read_items(f"{path}:text", "text", id_column="sku" if column == "sku" else None).ids == ["007", "1e3"]
    if column == "sku":
        assert items.read_items(f"{path}:text", "text").ids == ["0", "1"]


def test_numbered_items_of_a_table_are_warned_of_if_a_column_looks_like_ids(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("text,sku\na b,x1\nc d,x2\n")
    items.read_items(f"{tmp_path}/t.csv:text", "text")
    warning = (
        f"{tmp_path}/t.csv: its rows have no ids and are numbered, but column 'sku' may contain ids; if so, name it"
    )
    assert caplog.text.count(warning) == 1
