"""The journey of a table whose old model was switched off: stored vectors, kept texts and the new model are left."""

from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import result, run
from helpers.lance_world import LanceWorld
from helpers.spaces import gaussian, rotation

from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.spaces import Space

ROWS, KEPT, QUERIES = 700, 400, 40
D_OLD, D_NEW = 16, 24


@pytest.fixture
def table(tmp_path) -> str:
    """Write what is left, and return the address of the table.

    Both models find the same neighbours, so a translation cannot beat the old model. The texts of the first 400 rows
    are kept: `new.parquet`. Query i is nearly row 500 + i, which is judged relevant; queries exist in the new model
    only.
    """
    items = gaussian(ROWS, D_OLD, 1)
    asked = items[500 : 500 + QUERIES] + 0.05 * gaussian(QUERIES, D_OLD, 2)
    old = items @ rotation(D_OLD, 3)
    new, queries = ((rows @ rotation(D_NEW, 4)[:D_OLD]).astype(np.float32) for rows in (items, asked))
    space, ids = Space("new", D_NEW), np.arange(ROWS).astype(str).astype(object)
    write(tmp_path / "new.parquet", Embeddings(new[:KEPT], space, ids[:KEPT]))
    write(tmp_path / "queries.parquet", Embeddings(queries, space, np.array([f"q{i}" for i in range(QUERIES)])))
    lines = [f"q{i}\t{500 + i}\t1\n" for i in range(QUERIES)]
    (tmp_path / "relevance.tsv").write_text("".join(lines))
    return LanceWorld(tmp_path).create(list(range(ROWS)), old.astype(np.float32), index=True)


def train(capsys, table: str, folder: Path, name: str, *options: str) -> dict:
    """Train on the stored vectors and the new embeddings of kept texts, and return the scorecard."""
    sides = ("--source", table, "--target", folder / "new.parquet", "--source-space", "old", "--corpus", table)
    goal = ("--folds", "5", "--use", "corpus", "--objective", "neighbours", "--method", "ridge", "--device", "cpu")
    return result(capsys, "train", *sides, *goal, "--out", folder / name, *options)["scorecard"]


def test_the_verdict_rests_on_re_embedding_alone(capsys, tmp_path, table):
    available = train(capsys, table, tmp_path, "available")["corpus"]
    gone = train(capsys, table, tmp_path, "gone", "--old-model", "gone")["corpus"]
    for name in ("translated", "keep_old", "retention"):
        first = "overlap@10"
        assert gone["references"][first][name] == available["references"][first][name]
    assert available["verdict"]["verdict"] in ("undecided", "keep the old model")
    assert gone["verdict"]["verdict"] in ("probably use", "use", "use as first stage")
    assert gone["verdict"]["why"].startswith("judged against re-embedding alone, because the old model is gone")
    assert available["references"]["overlap@10"]["reranked"]["score"] > 0.9
    assert "reranked" not in gone["references"]["overlap@10"]
    assert gone["verdict"]["numbers"]["reranked"] is None


def test_the_table_is_moved_and_verified_with_queries_of_the_new_model_alone(capsys, tmp_path, table):
    card = train(capsys, table, tmp_path, "gone", "--old-model", "gone")
    assert card["corpus_sample"]["unlike"] is False
    moved = (table, "--stitcher", tmp_path / "gone")
    plan = result(capsys, "migrate", "plan", *moved)
    assert (plan["rows"], plan["fits"], plan["phase"]) == (ROWS, True, None)
    assert run(capsys, "migrate", "run", *moved, "--yes")[0] == 0
    judged = ("--queries", tmp_path / "queries.parquet", "--qrels", tmp_path / "relevance.tsv")
    verified = result(capsys, "migrate", "verify", *moved, *judged)
    assert (verified["phase"], verified["complete"], verified["map"]["passed"]) == ("verified", True, True)
    assert (verified["qrels"]["queries"], verified["qrels"]["ndcg@10"] > 0.95) == (QUERIES, True)
    assert result(capsys, "migrate", "cutover", *moved, "--yes")["phase"] == "cut over"
    assert {len(vector) for _, vector in LanceWorld(tmp_path).read().values() if vector is not None} == {D_NEW}
