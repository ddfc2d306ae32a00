from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.command_line import D_SOURCE, D_TARGET, FAST, N, result, run
from helpers.spaces import affine_image, card, gaussian, names

from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.stitchers.stitcher import load


def test_translate_writes_the_translated_rows(capsys, tmp_path, shelf, stitcher):
    out = tmp_path / "y.parquet"
    output = result(capsys, "translate", stitcher, shelf / "old.parquet", "--out", out, "--device", "cpu")
    assert output == {"out": str(out), "rows": N, "stitcher": load(stitcher).version}
    expected = load(stitcher).translate(read(shelf / "old.parquet").vectors)
    np.testing.assert_allclose(read(out).vectors, expected, atol=1e-6)


def test_translate_adds_confidence_with_the_flag(capsys, tmp_path):
    X, Y, _, _ = affine_image(400, D_SOURCE, D_TARGET, noise=0.2)
    for name, rows, dim in (("old", X, D_SOURCE), ("new", Y, D_TARGET)):
        write(tmp_path / f"{name}.parquet", Embeddings(rows, card(name, dim), names(400)))
    old, made, out = tmp_path / "old.parquet", tmp_path / "old-new", tmp_path / "y.parquet"
    result(capsys, "train", "--source", old, "--target", tmp_path / "new.parquet", "--out", made, *FAST)
    result(capsys, "translate", made, old, "--out", out, "--confidence", "--device", "cpu")
    expected = load(made).confidence(X).to_dict()
    table = pq.read_table(out)
    assert table.column_names == ["id", "vector", *expected]
    for name, values in expected.items():
        np.testing.assert_allclose(table[name].to_numpy(), values, rtol=1e-3)


def test_translate_reads_the_ids_of_bare_rows_from_another_file(capsys, tmp_path, shelf, stitcher):
    np.save(tmp_path / "old.npy", read(shelf / "old.parquet").vectors)
    (tmp_path / "ids.txt").write_text("\n".join(names(N, "row ")))
    flags = ("--source-space", "old", "--ids", tmp_path / "ids.txt", "--device", "cpu")
    result(capsys, "translate", stitcher, tmp_path / "old.npy", "--out", tmp_path / "y.parquet", *flags)
    assert list(read(tmp_path / "y.parquet").ids) == list(names(N, "row "))  # type: ignore[arg-type]


def test_translate_refuses_confidence_of_a_stitcher_without_calibration(capsys, tmp_path, shelf, stitcher):
    flags = ("--out", tmp_path / "y.parquet", "--confidence", "--device", "cpu")
    status, _, err = run(capsys, "translate", stitcher, shelf / "old.parquet", *flags)
    assert status == 2
    assert err == [
        "repstitch translate: `--confidence` requires a stitcher with a calibration; this one has none. "
        "Train it again on more pairs."
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["y.npy", "y.arrow"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_translate_writes_the_format_that_the_name_asks_for(capsys, tmp_path, shelf, stitcher, name, dtype):
    out = tmp_path / name
    output = result(capsys, "translate", stitcher, shelf / "old.parquet", "--out", out, "--dtype", dtype)
    assert output == {"out": str(out), "rows": N, "stitcher": load(stitcher).version}
    expected, written = load(stitcher).translate(read(shelf / "old.parquet").vectors), read(out)
    np.testing.assert_allclose(written.vectors, expected, atol=1e-6 if dtype == "float32" else 1e-3)
    assert list(written.ids) == list(read(shelf / "old.parquet").ids)  # type: ignore[arg-type]
    if name == "y.npy":
        assert np.load(out).dtype == dtype
    else:
        assert written.space == load(stitcher).target
    assert {path.name for path in tmp_path.iterdir()} == {name} | ({"y.ids.txt"} if name == "y.npy" else set())


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        ("y.csv", (), "`--out` must end in .parquet, .arrow or .npy; got 'y.csv'"),
        ("y.npy", ("--confidence",), "`--out` must end in .parquet or .arrow with `--confidence`, because an array"),
        ("y.npy", ("--columns", "all"), "`--out` must end in .parquet or .arrow with `--columns`, because an array"),
    ],
)
def test_translate_refuses_a_format_that_cannot_contain_the_result(
    capsys, tmp_path, shelf, stitcher, out, flags, message
):
    status, _, err = run(capsys, "translate", stitcher, shelf / "old.parquet", "--out", tmp_path / out, *flags)
    assert status == 2
    assert message in err[0]
    assert list(tmp_path.iterdir()) == []


def test_translate_refuses_to_overwrite_ids(capsys, tmp_path, shelf, stitcher):
    (tmp_path / "y.ids.txt").write_text("mine", encoding="utf-8")
    status, _, err = run(capsys, "translate", stitcher, shelf / "old.parquet", "--out", tmp_path / "y.npy")
    assert (status, [path.name for path in tmp_path.iterdir()]) == (2, ["y.ids.txt"])
    assert "y.ids.txt exists" in err[0]


def test_translate_prints_a_summary(capsys, tmp_path, shelf, stitcher):
    out = tmp_path / "y.parquet"
    flags = ("--source-space", "old", "--dtype", "float16")
    status, printed, _ = run(capsys, "translate", stitcher, shelf / "old.npy", "--out", out, *flags)
    assert (status, printed) == (0, f"Translated {N} rows from old to new: {out}\n")
    assert read(out).vectors.dtype == np.float16


def translate_refusals(shelf: Path, where: Path) -> dict[str, tuple[Path, str]]:
    """Create files that the stitcher cannot translate; return each with its error message."""
    rows = read(shelf / "old.parquet")
    for what, value in (("NaN", np.nan), ("Inf", np.inf), ("zero", 0)):
        vectors = rows.vectors.copy()
        vectors[5] = value
        write(where / f"{what}.parquet", Embeddings(vectors, rows.space, rows.ids))
    write(where / "space.parquet", Embeddings(rows.vectors, card("old", D_SOURCE, revision="def"), rows.ids))
    np.save(where / "wide.npy", gaussian(30, 9))
    np.save(where / "ints.npy", np.ones((30, D_SOURCE), int))
    (where / "torn.parquet").write_bytes((shelf / "old.parquet").read_bytes()[:-20])
    (where / "rows.csv").write_text("1,2,3")
    return {
        "NaN": (where / "NaN.parquet", "id 'item5' is NaN or Inf"),
        "Inf": (where / "Inf.parquet", "id 'item5' is NaN or Inf"),
        "zero": (where / "zero.parquet", "id 'item5' is all zeros"),
        "space": (where / "space.parquet", "its card states another identity (revision 'def' against 'abc')"),
        "dimension": (where / "wide.npy", "must have 6 dimensions, like space 'old'; got 9"),
        "ints": (where / "ints.npy", "must have one vector per item"),
        "backwards": (shelf / "new.parquet", "translates in one direction only"),
        "torn": (where / "torn.parquet", "cannot be read as embeddings"),
        "csv": (where / "rows.csv", "must be one of .parquet, .arrow, .npy, .npz"),
        "absent": (where / "absent.parquet", "There is no file"),
    }


REFUSED = ("NaN", "Inf", "zero", "space", "dimension", "ints", "backwards", "torn", "csv", "absent")


@pytest.mark.parametrize("what", REFUSED)
def test_translate_refuses_unusable_files_in_one_line_and_writes_nothing(capsys, tmp_path, shelf, stitcher, what):
    path, message = translate_refusals(shelf, tmp_path)[what]
    before = sorted(p.name for p in tmp_path.iterdir())
    status, out, err = run(capsys, "translate", stitcher, path, "--out", tmp_path / "y.parquet")
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith("repstitch translate: ")
    assert message in err[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_translate_refuses_an_out_that_exists(capsys, tmp_path, shelf, stitcher):
    (tmp_path / "y.parquet").write_text("mine")
    status, _, err = run(capsys, "translate", stitcher, shelf / "old.parquet", "--out", tmp_path / "y.parquet")
    assert (status, len(err)) == (2, 1)
    assert "exists and is never overwritten" in err[0]
    assert (tmp_path / "y.parquet").read_text() == "mine"
