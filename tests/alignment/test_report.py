import json
from dataclasses import replace

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from helpers.embedding_sets import known_spaces, layered_spaces
from helpers.spaces import embeddings

from repstitch.alignment import report
from repstitch.alignment.atlas import atlas
from repstitch.errors import InputError


@pytest.fixture(scope="module")
def found() -> dict:
    return atlas(known_spaces(), ("mutual_knn", "cycle_knn"), k=6, permutations=99, sizes=[30, 120])


def test_an_atlas_is_read_back_as_it_was(tmp_path, found):
    assert report.write(found, tmp_path / "deep" / "er") == tmp_path / "deep" / "er"
    assert report.read(tmp_path / "deep" / "er") == found
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["er"]


def test_the_tables_of_pairs_hold_the_same_numbers_in_long_form(tmp_path, found):
    report.write(found, tmp_path / "a")
    rows = pq.read_table(tmp_path / "a" / "pairs.parquet").to_pylist()
    assert rows == found["pairs"]
    assert len(rows) == 10 + 20
    assert pacsv.read_csv(tmp_path / "a" / "pairs.csv").to_pylist() == rows


def test_an_atlas_without_permutations_has_tables_without_them(tmp_path):
    bare = atlas(known_spaces(), "mutual_knn", permutations=0)
    report.write(bare, tmp_path / "a")
    table = pq.read_table(tmp_path / "a" / "pairs.parquet")
    assert table.column_names == ["source", "target", "metric", "score", "se"]


@pytest.mark.parametrize("kind", ["folder", "file", "hidden"])
def test_refuses_a_folder_that_cannot_be_made(tmp_path, found, kind):
    if kind == "folder":
        (tmp_path / "a").mkdir()
    if kind == "file":
        (tmp_path / "a").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / (".a" if kind == "hidden" else "a")
    says = "`out` must name a folder" if kind == "hidden" else "`out` .* exists and an atlas is never overwritten"
    with pytest.raises(InputError, match=says):
        report.write(found, out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_stopped_while_writing_leaves_nothing(tmp_path, found, monkeypatch, error):
    def stopped(_rows, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(pq, "write_table", stopped)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else InputError):
        report.write(found, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "cannot be read"), ("{", "cannot be read"), ("[1]", "holds something else"), ("{}", "else")],
)
def test_refuses_a_folder_that_holds_no_atlas(tmp_path, text, says):
    if text is not None:
        (tmp_path / "atlas.json").write_text(text)
    with pytest.raises(InputError, match=f"must be the folder of an atlas; .*{says}"):
        report.read(tmp_path)


# --- as text ----------------------------------------------------------------------------------------------------------


def numbers_of(line: str) -> list[float]:
    return [float(word.strip("*()")) for word in line.split() if word.strip("*()").replace(".", "").isdigit()]


def test_two_spaces_are_a_line_a_metric():
    pair = atlas(known_spaces()[:2], ("mutual_knn", "cka"), permutations=19)
    lines = report.table(pair).splitlines()
    assert [line.split(" (null ")[0] for line in lines] == [
        f"rot0 - un0, n = 120: {name} {found['score']:.3f}"
        for name, found in zip(("mutual_knn@10", "cka"), pair["pairs"], strict=True)
    ]
    assert all(", p = " in line and ", calibrated " in line for line in lines)
    bare = report.table(atlas(known_spaces()[:2], "cka", permutations=0))
    assert bare == f"rot0 - un0, n = 120: cka {pair['pairs'][1]['score']:.3f}"


def test_few_spaces_are_a_matrix_with_its_level_of_chance(found):
    said = report.table(found)
    lines = said.splitlines()
    assert lines[0] == "5 spaces, n = 120, 99 permutations"
    at = lines.index(next(line for line in lines if line.startswith("mutual_knn@6  ")))
    assert lines[at].split()[1:] == ["rot0", "un0", "rot1", "un1", "rot2"]
    for i, line in enumerate(lines[at + 1 : at + 6]):
        np.testing.assert_allclose(numbers_of(line), found["metrics"]["mutual_knn"]["score"][i], atol=5e-4)
        assert line.count("*") == sum((q or 1) <= 0.05 for q in found["metrics"]["mutual_knn"]["q"][i])
    assert lines[at + 6].startswith("by chance 0.05")
    assert lines[at + 6].endswith("; * where q ≤ 0.05")
    assert "cycle_knn@6, from row to column" in said
    assert "rot1: rot0 1.000, rot2 1.000, un" in said


def test_many_spaces_are_the_best_pairs_first():
    spaces = [embeddings(40, 4, f"s{i}", seed=i) for i in range(9)]
    many = atlas(spaces, "cka_unbiased", permutations=9)
    lines = report.table(many).splitlines()
    assert lines[2].split() == ["cka_unbiased", "score", "null", "p", "q", "calibrated", "se"]
    best = sorted((pair["score"] for pair in many["pairs"]), reverse=True)
    np.testing.assert_allclose([float(line.split()[2]) for line in lines[3:23]], best[:20], atol=5e-4)
    assert lines[23] == "and 16 pairs that score less (all with --json or --out)"
    assert lines[24] == "0 of 36 pairs beyond chance (* where q ≤ 0.05)"
    assert lines[25] == "(with 9 permutations a single pair among 36 cannot have q ≤ 0.05; 719 would do)"


def test_long_names_make_no_matrix(found):
    long = [one.space.name + "-of-a-long-name" for one in known_spaces()]
    spaces = [replace(one, space=replace(one.space, name=name)) for one, name in zip(known_spaces(), long, strict=True)]
    lines = report.table(atlas(spaces, "cka", permutations=0)).splitlines()
    assert lines[2].split() == ["cka", "score", "se"]


def test_as_many_permutations_as_are_asked_for_let_one_pair_pass(found):
    said = report.table(found)
    assert "(with 99 permutations a single pair among 10 cannot have q ≤ 0.05; 199 would do)" in said
    assert "(with 99 permutations a single pair among 20 cannot have q ≤ 0.05; 399 would do)" in said
    enough = atlas(known_spaces(), "mutual_knn", permutations=199)
    assert "cannot have" not in report.table(enough)


def test_sizes_layers_and_verdicts_are_said(found):
    said = report.table(found)
    at = next(line for line in said.splitlines() if line.startswith("mutual_knn@6 by number of rows"))
    assert at.split()[-2:] == ["30", "120"]
    with_layers = atlas([*layered_spaces("a", 2, 40, 1), *layered_spaces("b", 3, 40, 2)], "mutual_knn", permutations=9)
    (line,) = with_layers["layers"]
    answers = {"trend": {"verdict": "it rises."}, "control": {"verdict": "monoculture."}}
    answers["asymmetry"] = [{"verdict": "a predicts b."}, {"verdict": "b predicts c."}]  # type: ignore[assignment]
    lines = [" ".join(line.split()) for line in report.table(with_layers | answers).splitlines()]
    layers = f"a, layer {line['source_layer']} b, layer {line['target_layer']} {line['score']:.3f} {line['null']:.3f}"
    assert any(said.startswith(layers) for said in lines)
    said = ["trend: it rises.", "", "control: monoculture.", "", "asymmetry: a predicts b.", "asymmetry: b predicts c."]
    assert lines[-6:] == said


def test_json_is_what_the_file_holds(tmp_path, found):
    report.write(found, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "atlas.json").read_text(encoding="utf-8")) == found
