"""The journey from a plan with a budget to a cut-over with native rows, on the command line."""

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.command_line import result, run
from helpers.lance_world import LanceWorld
from helpers.sentence_models import WORDS, save_reader
from helpers.spaces import card, gaussian

from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write

N, D = 200, 12


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A small encoder, the texts that it has embedded, and a stitcher to its space from that of a table."""
    folder = tmp_path_factory.mktemp("shelf")
    save_reader(folder / "reader")
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS[:13], 8)) for _ in range(N)]
    pq.write_table(pa.table({"id": np.arange(N), "body": texts}), folder / "texts.parquet")
    return folder


@pytest.fixture
def made(capsys, tmp_path, shelf) -> dict[str, Any]:
    """The address of a table, a stitcher, and all native vectors."""
    native = shelf / "native.parquet"
    if not native.exists():
        result(
            capsys, "embed", "--encoder", shelf / "reader", "--data", f"{shelf / 'texts.parquet'}:body", "--out", native
        )
    vectors = read(native).vectors @ gaussian(16, D, 1)
    world = LanceWorld(tmp_path)
    rows = LanceWorld._rows(list(range(N)), vectors)
    rows = rows.set_column(1, "body", pq.read_table(shelf / "texts.parquet")["body"])
    world.database.mkdir()
    lance.write_dataset(rows, str(world.path), max_rows_per_file=40)
    address = f"lancedb://{world.database}?table=docs&vector=vector&id=id"
    stitcher = shelf / "stitcher"
    if not stitcher.exists():
        fast = ("--method", "ridge", "--device", "cpu", "--output-norm", "unit")
        result(capsys, "train", "--source", address, "--target", native, *fast, "--out", stitcher)
    return {"address": address, "stitcher": str(stitcher), "native": native, "world": world}


def planned(capsys, tmp_path, made) -> Path:
    """Return the file with the ids of a fifth of the rows."""
    command = ("migrate", "plan", made["address"], "--stitcher", made["stitcher"], "--share", "0.2")
    plan = result(capsys, *command, "--ids-out", tmp_path / "anew.txt")
    assert plan["chosen"]["rows"] == N // 5
    return tmp_path / "anew.txt"


def finished(capsys, made) -> None:
    """Verify and cut over, and check that readers see native vectors of a fifth of the rows."""
    with_stitcher = (made["address"], "--stitcher", made["stitcher"])
    checked = result(capsys, "migrate", "verify", *with_stitcher, "--target", made["native"])
    assert (checked["phase"], checked["rows"]["native"], checked["rows"]["translated"]) == ("verified", 40, 160)
    assert result(capsys, "migrate", "cutover", *with_stitcher, "--yes")["phase"] == "cut over"


def check_readers(made, ids: list[int]) -> None:
    seen, native = made["world"].read(), read(made["native"]).vectors
    unit = native / np.linalg.norm(native, axis=1, keepdims=True)
    for key in ids:
        np.testing.assert_allclose(seen[key][1], unit[key], atol=1e-5)


def test_vectors_of_the_chosen_rows_go_from_a_file_to_the_readers(capsys, tmp_path, made):
    chosen = planned(capsys, tmp_path, made)
    ids = [int(key) for key in chosen.read_text().split()]
    write(tmp_path / "some.parquet", read(made["native"]).take(ids))
    command = ("migrate", "run", made["address"], "--stitcher", made["stitcher"], "--yes")
    status, text, _ = run(capsys, *command, "--reembed", tmp_path / "some.parquet")
    assert status == 0
    assert text.splitlines()[0].endswith("indexed; 160 translated, 40 native; 0 written meanwhile.")
    assert text.splitlines()[1] == "Embedded anew: 40 native vectors written."
    again = result(capsys, *command, "--reembed", tmp_path / "some.parquet")
    assert again["reembedded"] == {"written": 0, "unchanged": 40, "left_out": 0}
    finished(capsys, made)
    check_readers(made, ids)
    status, out, errors = run(capsys, *command, "--reembed", tmp_path / "some.parquet")
    assert (status, out) == (2, "")
    assert "`--reembed` is for the time before the cut-over, and the migration of lancedb table docs" in errors[-1]


def test_an_encoder_embeds_the_chosen_rows(capsys, tmp_path, made, shelf):
    chosen = planned(capsys, tmp_path, made)
    (tmp_path / "job.toml").write_text(
        f"address = '{made['address']}'\nstitcher = '{made['stitcher']}'\nreembed = '{shelf / 'reader'}'\n"
        f"ids = '{chosen}'\ntext_column = 'body'\n"
    )
    done = result(capsys, "migrate", "run", "--job", tmp_path / "job.toml", "--yes")
    assert done["reembedded"] == {"written": 40, "unchanged": 0, "left_out": 0}
    finished(capsys, made)
    check_readers(made, [int(key) for key in chosen.read_text().split()])


def test_a_run_without_native_vectors_reports_none(capsys, made):
    done = result(capsys, "migrate", "run", made["address"], "--stitcher", made["stitcher"], "--yes")
    assert "reembedded" not in done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reembed", "READER"), "is taken for an encoder, for which `--ids` and `--text-column` must be passed too"),
        (("--reembed", "READER", "--ids", "IDS"), "for which `--ids` and `--text-column` must be passed too"),
        (("--reembed", "READER", "--ids", "IDS", "--text-column", "title"), "there is no 'title'"),
        (("--reembed", "OTHER", "--ids", "IDS", "--text-column", "body"), "its card states another identity (revision"),
        (("--reembed", "WIDE", "--ids", "IDS", "--text-column", "body"), "`--reembed` must have 16 dimensions"),
        (("--reembed", "nobody", "--ids", "IDS", "--text-column", "body"), "must be a card, a local folder or file"),
        (("--reembed", "READER", "--ids", "none.txt", "--text-column", "body"), "`--ids` none.txt cannot be read"),
        (("--ids", "IDS"), "`--ids` must be passed with `--reembed`"),
        (("--reembed", "BARE"), "`--reembed` must have ids, by which its rows belong to those of the table"),
        (("--reembed", "OLD"), "look like rows of 'docs.vector', the other side of the stitcher"),
        (("--reembed", "NAN"), "1 of 200 rows have NaN, Inf or only zeros"),
        (("--reembed", "missing.parquet"), "There is no file missing.parquet"),
    ],
)
def test_native_vectors_that_cannot_be_written_are_refused(capsys, tmp_path, made, shelf, arguments, message):
    for name, settings in {"other": {}, "wide": {"hidden_size": 32}}.items():
        if not (shelf / name / "reader").exists():
            save_reader(shelf / name / "reader", **settings)
    (tmp_path / "ids.txt").write_text("1\n2\n")
    np.save(tmp_path / "bare.npy", gaussian(5, 16, 1))
    write(tmp_path / "old.parquet", Embeddings(gaussian(5, D, 1), card("docs.vector", D), np.arange(5)))
    rows = read(made["native"])
    rows.vectors[7] = np.nan
    write(tmp_path / "nan.parquet", rows)
    words = {
        "READER": shelf / "reader",
        "OTHER": shelf / "other" / "reader",
        "WIDE": shelf / "wide" / "reader",
        "IDS": tmp_path / "ids.txt",
    }
    words |= {name: tmp_path / f"{name.lower()}.{end}" for name, end in (("BARE", "npy"), ("OLD", "parquet"))}
    words["NAN"] = tmp_path / "nan.parquet"
    before = made["world"].schema()
    options = [words.get(part, part) for part in arguments]
    command = ("migrate", "run", made["address"], "--stitcher", made["stitcher"], "--yes")
    status, out, errors = run(capsys, *command, *options)
    assert (status, out) == (2, "")
    assert message in errors[-1]
    assert made["world"].schema() == before
