"""A provider switched the old model off: a table moves by its stored vectors and new embeddings of kept texts."""

from dataclasses import dataclass
from pathlib import Path

import lancedb
import numpy as np
import pytest
from helpers.command_line import result, run
from helpers.lance_world import LanceWorld
from helpers.spaces import card, gaussian, rotation

from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.stitchers.stitcher import load

N, D_OLD, D_NEW = 600, 12, 20


@dataclass(frozen=True)
class GoneModel:
    """A table of old vectors, whose texts were kept for every second row, and queries of the new model.

    Both models put the same texts near each other, so no translation can be better than keeping the old model.
    """

    folder: Path
    address: str
    native: np.ndarray
    queries: np.ndarray

    def train(self, name: str, *options: str) -> tuple[str, ...]:
        """Return the command that trains on the stored vectors and the new embeddings."""
        sides = ("--source", self.address, "--source-space", "old", "--target", str(self.folder / "new.parquet"))
        fit = ("--folds", "5", "--objective", "neighbours", "--use", "corpus", "--method", "ridge", "--device", "cpu")
        return ("train", *sides, *fit, "--corpus", self.address, "--out", str(self.folder / name), *options)


@pytest.fixture
def world(tmp_path) -> GoneModel:
    into_new = rotation(D_NEW)[:D_OLD]
    old, queries = gaussian(N, D_OLD, 1), gaussian(40, D_OLD, 2) @ into_new
    native = (old @ into_new).astype(np.float32)
    address = LanceWorld(tmp_path).create(list(range(N)), old, index=True)
    kept = np.arange(0, N, 2)
    write(tmp_path / "new.parquet", Embeddings(native[kept], card("new", D_NEW), kept.astype(str).astype(object)))
    write(tmp_path / "queries.parquet", Embeddings(queries.astype(np.float32), card("new", D_NEW)))
    return GoneModel(tmp_path, address, native, queries.astype(np.float32))


def test_the_verdict_rests_on_re_embedding_alone_and_names_no_plan_that_needs_the_old_model(capsys, world):
    assert run(capsys, *world.train("available"))[0] == 0
    status, printed, _ = run(capsys, *world.train("gone", "--old-model", "gone"))
    assert status == 0
    available, gone = (load(world.folder / name).scorecard for name in ("available", "gone"))
    assert available.corpus.verdict.verdict in ("undecided", "keep the old model")
    assert gone.corpus.verdict == "use"
    assert "because the old model is gone" in gone.corpus.verdict.why
    assert (gone.n, gone.held_out) == (N // 2, "pairs in folds")
    line = next(line for line in printed.splitlines() if line.startswith("CORPUS USE"))
    assert line.startswith("CORPUS USE (translated old index, new queries): use. The first 10 results keep")
    assert "keeping" not in line
    before, after = (c.corpus.references for c in (available, gone))
    assert before is not None
    assert after is not None
    assert after.measures["overlap@10"].reranked is None
    assert before.measures["overlap@10"].translated == after.measures["overlap@10"].translated  # only the rule differs


def test_a_table_moves_with_native_queries_alone(capsys, world):
    assert run(capsys, *world.train("gone", "--old-model", "gone"))[0] == 0
    with_stitcher = (world.address, "--stitcher", str(world.folder / "gone"))
    plan = run(capsys, "migrate", "plan", *with_stitcher)[1]
    assert "on the held-out pairs of the scorecard; verdict: use\n" in plan
    assert "in your domain: as scored. The corpus is like the pairs" in plan
    assert result(capsys, "migrate", "run", *with_stitcher, "--yes")["phase"] == "indexed"

    of_old = world.folder / "old-queries.npy"
    np.save(of_old, gaussian(40, D_OLD, 2))
    status, _, errors = run(capsys, "migrate", "verify", *with_stitcher, "--queries", of_old)
    assert status == 2
    assert "`--queries` must have 20 dimensions, like space 'new'; got 12. These look like rows of 'old'" in errors[-1]
    queries = str(world.folder / "queries.parquet")
    verified = result(capsys, "migrate", "verify", *with_stitcher, "--queries", queries)
    assert verified["phase"] == "verified"
    assert (verified["complete"], verified["qrels"]) == (True, None)
    assert (verified["index"]["of"], verified["index"]["queries"]) == ("queries", 40)
    assert verified["map"]["queries"] == N // 2
    assert result(capsys, "migrate", "cutover", *with_stitcher, "--yes")["phase"] == "cut over"

    table = lancedb.connect(world.folder / "database").open_table("docs")
    unit = world.native / np.linalg.norm(world.native, axis=1, keepdims=True)
    shares = []
    for query in world.queries:
        searched = table.search(query, vector_column_name="vector").limit(10).to_list()
        right = np.argsort(-(unit @ query))[:10]
        shares.append(len({row["id"] for row in searched} & set(right.tolist())) / 10)
    assert np.mean(shares) > 0.85


def test_new_embeddings_of_texts_that_the_table_does_not_have_are_refused(capsys, world):
    ids = np.array([f"other {i}" for i in range(50)], dtype=object)
    (world.folder / "new.parquet").unlink()
    write(world.folder / "new.parquet", Embeddings(gaussian(50, D_NEW), card("new", D_NEW), ids))
    status, _, errors = run(capsys, *world.train("gone", "--old-model", "gone"))
    assert status == 2
    assert "has none of the 50 ids of the other side, such as 'other 0'" in errors[-1]
    assert not (world.folder / "gone").exists()
