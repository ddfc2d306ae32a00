import json

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from helpers.embedding_sets import known_spaces

from repstitch.alignment import Atlas, atlas, files
from repstitch.errors import InputError


@pytest.fixture(scope="module")
def measured() -> Atlas:
    return atlas(known_spaces(), ("mutual_knn", "cycle_knn"), k=6, permutations=9, sizes=[30, 120])


def test_an_atlas_is_read_back_as_it_was(tmp_path, measured):
    assert files.write(measured, tmp_path / "deep" / "er") == tmp_path / "deep" / "er"
    assert files.read(tmp_path / "deep" / "er") == measured
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["er"]


def test_the_tables_of_pairs_hold_the_same_numbers_in_long_form(tmp_path, measured):
    files.write(measured, tmp_path / "a")
    rows = pq.read_table(tmp_path / "a" / "pairs.parquet").to_pylist()
    assert rows == measured.to_dict()["pairs"]
    assert len(rows) == 10 + 20
    assert pacsv.read_csv(tmp_path / "a" / "pairs.csv").to_pylist() == rows


def test_an_atlas_without_permutations_has_tables_without_them(tmp_path):
    files.write(atlas(known_spaces(), "mutual_knn", permutations=0), tmp_path / "a")
    table = pq.read_table(tmp_path / "a" / "pairs.parquet")
    assert table.column_names == ["source", "target", "metric", "score", "se"]


@pytest.mark.parametrize("kind", ["folder", "file", "hidden"])
def test_refuses_a_folder_that_cannot_be_made(tmp_path, measured, kind):
    if kind == "folder":
        (tmp_path / "a").mkdir()
    if kind == "file":
        (tmp_path / "a").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / (".a" if kind == "hidden" else "a")
    says = "`out` must name a folder" if kind == "hidden" else "`out` .* exists and an atlas is never overwritten"
    with pytest.raises(InputError, match=says):
        files.write(measured, out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_stopped_while_writing_leaves_nothing(tmp_path, measured, monkeypatch, error):
    def stopped(_rows, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(pq, "write_table", stopped)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else InputError):
        files.write(measured, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.parquet"])
def test_a_failed_write_names_the_folder_that_was_asked_for(tmp_path, measured, monkeypatch, name):
    def full_disk(_rows, path):
        assert path.name == name  # written plainly, for the folder itself appears whole
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((pacsv, "write_csv") if name == "pairs.csv" else (pq, "write_table")), full_disk)
    with pytest.raises(InputError, match=rf"^`out` {tmp_path}/a cannot be written: .*No space left on device$"):
        files.write(measured, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read: atlas.json must be nested less deeply"),
        ("[1]", "does not contain a JSON object"),
        ("{}", "is not an atlas: An Atlas must have the key 'n'"),
    ],
)
def test_refuses_a_folder_that_holds_no_atlas(tmp_path, text, says):
    if text is not None:
        (tmp_path / "atlas.json").write_text(text)
    with pytest.raises(InputError, match=f"must be the folder of an atlas; .*{says}"):
        files.read(tmp_path)


def test_json_is_what_the_file_holds(tmp_path, measured):
    files.write(measured, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "atlas.json").read_text(encoding="utf-8")) == measured.to_dict()
