import numpy as np
from helpers.command_line import N, run

from repstitch.embeddings.reading import read


def test_convert_writes_a_file_and_prints_its_rows(capsys, shelf, tmp_path):
    status, out, _ = run(capsys, "convert", shelf / "old.parquet", "--out", tmp_path / "old.csv")
    assert (status, out) == (0, f"{N} rows in {tmp_path / 'old.csv'}\n")
    status, out, err = run(capsys, "convert", tmp_path / "old.csv", "--out", tmp_path / "back.npy", "--space", "old")
    assert status == 0, err
    np.testing.assert_array_equal(read(tmp_path / "back.npy").vectors, read(shelf / "old.parquet").vectors)
    assert list(read(tmp_path / "back.npy").ids) == list(read(shelf / "old.parquet").ids)  # type: ignore[arg-type]


def test_convert_refuses_in_one_line(capsys, shelf, tmp_path):
    for argv, message in (
        ((shelf / "old.parquet", "--out", tmp_path / "x.pt"), "`--out` must end in .parquet"),
        (
            (shelf / "old.parquet", "--out", tmp_path / "x.csv", "--id-column", "sku"),
            "`--id-column` must name one column",
        ),
        (
            (shelf / "old.parquet", "--out", tmp_path / "x.csv", "--columns", "sku"),
            "`--columns` must be all, or some of",
        ),
        ((tmp_path / "none.csv", "--out", tmp_path / "x.parquet"), "none.csv cannot be read"),
    ):
        status, out, err = run(capsys, "convert", *argv)
        assert (status, out) == (2, "")
        assert message in err[-1]
