import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.command_line import D_SOURCE, D_TARGET, FAST, run
from helpers.spaces import affine_image, names

from repstitch.stitchers.stitcher import load

N = 300


@pytest.fixture
def sides(tmp_path):
    """Write two files of the same items in different orders, whose ids are in the columns `sku` and `ean`."""
    X, Y, _, _ = affine_image(N, D_SOURCE, D_TARGET, noise=0.01)
    order = np.random.default_rng(0).permutation(N)
    lang = [f"l{i % 3}" for i in range(N)]
    pq.write_table(pa.table({"sku": names(N), "lang": lang, "vector": list(X)}), tmp_path / "old.parquet")
    pq.write_table(pa.table({"ean": names(N)[order], "vector": list(Y[order])}), tmp_path / "new.parquet")
    return tmp_path


def test_the_column_of_ids_is_named_for_every_command(capsys, sides):
    files = ("--source", sides / "old.parquet", "--target", sides / "new.parquet", "--id-column", "sku, ean")
    status, _, err = run(capsys, "train", *files, "--out", sides / "s", *FAST)
    assert status == 0
    assert err == [
        f"INFO: {sides / name}.parquet: the ids are those of column {column!r}."
        for name, column in (("old", "sku"), ("new", "ean"))
    ]
    stitcher = load(sides / "s")
    assert stitcher.provenance["paired_by"] == "id"
    assert stitcher.scorecard.query["recall@1"] > 0.95
    status, out, _ = run(capsys, "score", sides / "s", *files)
    assert status == 0
    assert out.startswith(f"{len(stitcher.seen) // 2} pairs were left out")
    pair = (sides / "old.parquet", sides / "new.parquet")
    status, out, _ = run(capsys, "align", *pair, "--id-column", "sku,ean", "--permutations", 0, "--metric", "cka")
    assert (status, f"n = {N}" in out) == (0, True)
    translation = (sides / "s", sides / "old.parquet", "--out", sides / "y.parquet", "--id-column", "sku")
    assert run(capsys, "translate", *translation, "--columns", "lang")[0] == 0
    table = pq.read_table(sides / "y.parquet")
    assert table.column_names == ["id", "vector", "lang"]
    assert table["id"].to_pylist() == names(N).tolist()


def test_without_it_rows_are_numbered_with_one_warning_per_file(capsys, sides):
    files = ("--source", sides / "old.parquet", "--target", sides / "new.parquet")
    _, _, err = run(capsys, "train", *files, "--out", sides / "s", *FAST)
    for name, column in (("old", "sku"), ("new", "ean")):
        warning = f"WARNING: {sides / name}.parquet: its rows have no ids and are numbered, but column {column!r} may "
        assert [line for line in err if f"{name}.parquet" in line] == [
            f"{warning}contain ids; if so, name it with `--id-column`."
        ]


def test_ids_may_be_a_column_of_a_table(capsys, sides):
    files = ("--source", sides / "old.parquet", "--target", sides / "new.parquet")
    ids = ("--source-ids", f"{sides}/old.parquet:sku", "--target-ids", f"{sides}/new.parquet:ean")
    status, _, err = run(capsys, "train", *files, *ids, "--out", sides / "s", *FAST)
    assert (status, err) == (0, [])
    assert load(sides / "s").scorecard.query["recall@1"] > 0.95


def test_the_column_that_is_named_is_that_of_tables_of_labels_and_groups_too(capsys, sides):
    kinds = [f"k{i % 12}" for i in range(N)]
    table = pa.table({"uuid": names(N)[::-1], "sku": names(N), "kind": kinds, "doc_id": names(N, "other")})
    pq.write_table(table, sides / "meta.parquet")
    files = ("--source", sides / "old.parquet", "--target", sides / "new.parquet", "--id-column", "sku,ean")
    for option in ("--labels", "--group"):
        described = (option, f"{sides}/meta.parquet:kind")
        status, _, err = run(capsys, "train", *files, *described, "--out", sides / option.strip("-"), *FAST)
        assert (status, [line for line in err if "ids are those" not in line]) == (0, [])


@pytest.mark.parametrize("command", ["train", "score", "align", "translate", "embed", "transfer", "convert"])
def test_names_of_columns_are_separated_by_commas(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        run(capsys, command, "--id-column", "a,,b")
    assert exit_.value.code == 2
    assert "argument --id-column: names must be separated by commas; got 'a,,b'." in capsys.readouterr().err
