import os
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import D_SOURCE, D_TARGET, FAST, TRAIN_REFUSALS, N, bad_files, result, run
from helpers.spaces import affine_image, gaussian, names
from helpers.spaces import card as card_of

from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.stitchers.held_out_rows import read_held_out
from repstitch.stitchers.stitcher import load
from repstitch.workflows.scoring import score


@pytest.mark.parametrize("use", ["query", "corpus", "both"])
def test_score_leaves_out_the_seen_pairs_and_says_so(capsys, files, stitcher, use):
    seen = len(load(stitcher).seen) // 2
    status, printed, _ = run(capsys, "score", stitcher, *files, "--use", use)
    assert status == 0
    assert printed.startswith(f"{seen} pairs were left out, because training used them.\n\n")
    assert f"\n{N - seen} unseen pairs, pool of {N - seen}" in printed
    output = result(capsys, "score", stitcher, *files, "--use", use)
    expected = score(load(stitcher), files[1], files[3], uses=("query", "corpus") if use == "both" else (use,))
    assert output == expected.to_dict()


def judged_queries(folder: Path, n: int = 40, last: int = N) -> list:
    """Write queries near the last documents with their judgements, and return the flags that pass them."""
    X, Y, _, _ = affine_image(N, D_SOURCE, D_TARGET, noise=0.2)
    flags: list = ["--qrels", folder / "rel.tsv"]
    for side, rows in (("source", X), ("target", Y)):
        np.save(folder / f"{side}.npy", rows[-n:] + 0.01)
        flags += [f"--{side}-queries", folder / f"{side}.npy", f"--{side}-query-ids", folder / "ids.txt"]
    (folder / "ids.txt").write_text("\n".join(f"q{i}" for i in range(n)))
    (folder / "rel.tsv").write_text("\n".join(f"q{i} 0 item{last - n + i} 1" for i in range(n)))
    return flags


def test_score_passes_on_judgements_and_thresholds(capsys, tmp_path, files, stitcher):
    flags = [*judged_queries(tmp_path), "--retention", 0.8, "--first-stage", 0.85]
    output = result(capsys, "score", stitcher, *files, *flags)
    assert output["relevance"]["query"]["queries"] == 40
    assert output["query"]["verdict"]["thresholds"] == {"retention": 0.8, "first_stage": 0.85, "old_model": "available"}
    status, _, err = run(capsys, "score", stitcher, *files, "--qrels", tmp_path / "rel.tsv")
    message = "`--source-queries`, `--target-queries` and `--qrels` must be passed together: all three, or none."
    assert (status, err) == (2, [f"repstitch score: {message}"])


@pytest.mark.parametrize(
    "flag", ["--source-queries", "--target-queries", "--source-query-ids", "--target-query-ids", "--out"]
)
def test_query_flags_are_refused_without_judgements(capsys, files, stitcher, flag):
    status, _, err = run(capsys, "score", stitcher, *files, flag, "nope.txt")
    message = f"`{flag}` requires `--qrels`; add it, or remove `{flag}`."
    assert (status, err) == (2, [f"repstitch score: {message}"])


def test_score_writes_a_copy_of_the_stitcher_whose_thresholds_are_those_of_the_queries(capsys, tmp_path, files):
    old, copy = tmp_path / "old", tmp_path / "copy"
    assert run(capsys, "train", *files, "--out", old, "--folds", 3, *FAST)[0] == 0
    threshold = ["--threshold", 0.5]
    by_rows = run(capsys, "show", old, *threshold)[1].splitlines()
    assert by_rows[0].startswith("query use, searched by 120 held-out rows: results above 0.5 with new are as many as")
    warning = (
        "warning: thresholds of held-out rows are for searches by rows; short questions need `repstitch score` with "
        "queries and --out"
    )
    assert by_rows[-1] == warning
    others, queries = other_files(tmp_path), judged_queries(tmp_path, 50, last=2 * N)
    scores = result(capsys, "score", old, *others, *queries, "--out", copy, "--use", "corpus")
    scale = scores["score_scale"]["corpus"]
    n_queries = scores["relevance"]["corpus"]["queries"]
    assert (scale["queried_by"], scale["queries"]) == ("queries", n_queries)
    card = load(copy).scorecard.to_dict()
    assert card["score_scale"] == load(old).scorecard.to_dict()["score_scale"] | {"corpus": scale}
    assert {**card, "score_scale": None} == {**load(old).scorecard.to_dict(), "score_scale": None}
    assert load(copy).version != load(old).version
    assert load(copy).created_at > load(old).created_at
    rows = [read_held_out(folder, load(folder).version, D_TARGET) for folder in (old, copy)]
    assert rows[0] is not None
    assert rows[1] is not None
    assert np.array_equal(rows[0].ids, rows[1].ids)
    assert np.array_equal(rows[0].vectors, rows[1].vectors)
    shown = run(capsys, "show", copy, *threshold)[1].splitlines()
    assert any(
        line.startswith(f"corpus use, searched by {n_queries} queries: results above 0.5 with old") for line in shown
    )
    assert shown[-1] == warning  # of query use only rows are known
    output = result(capsys, "show", copy, *threshold)
    assert output["queried_by"] == {"query": "rows", "corpus": "queries"}
    both = tmp_path / "both"
    assert run(capsys, "score", copy, *others, *queries, "--out", both)[0] == 0
    assert "warning" not in run(capsys, "show", both, *threshold)[1]


def other_files(folder: Path) -> list:
    """Write pairs with new ids and vectors that training did not use, and return the flags that pass them."""
    X, Y, _, _ = affine_image(N, D_SOURCE, D_TARGET, noise=0.2)
    for name, rows, dim in (("old", X, D_SOURCE), ("new", Y, D_TARGET)):
        shifted = rows + 0.1 * gaussian(N, dim, 5)
        write(folder / f"{name}.parquet", Embeddings(shifted, card_of(name, dim), names(2 * N)[N:]))
    return ["--source", folder / "old.parquet", "--target", folder / "new.parquet"]


def test_too_few_queries_for_thresholds_write_no_copy(capsys, tmp_path, files, stitcher):
    flags = [*judged_queries(tmp_path, 39), "--out", tmp_path / "copy"]
    status, _, err = run(capsys, "score", stitcher, *files, *flags)
    message = "Thresholds need at least 40 queries that training did not use; pass more queries, or omit `--out`."
    assert (status, err[-1]) == (2, f"repstitch score: {message}")
    assert not (tmp_path / "copy").exists()


def test_judgements_may_be_read_from_a_pipe(capsys, tmp_path, files, stitcher):
    X, Y, _, _ = affine_image(N, D_SOURCE, D_TARGET, noise=0.2)
    for side, rows in (("source", X), ("target", Y)):
        np.save(tmp_path / f"{side}.npy", rows[-40:] + 0.01)
    queries = [part for side in ("source", "target") for part in (f"--{side}-queries", tmp_path / f"{side}.npy")]
    (tmp_path / "ids.txt").write_text("\n".join(f"q{i}" for i in range(40)))
    ids = ["--source-query-ids", tmp_path / "ids.txt", "--target-query-ids", tmp_path / "ids.txt"]
    read_end, write_end = os.pipe()
    os.write(write_end, "\n".join(f"q{i} 0 item{N - 40 + i} 1" for i in range(40)).encode())
    os.close(write_end)
    try:
        scores = result(capsys, "score", stitcher, *files, *queries, *ids, "--qrels", f"/dev/fd/{read_end}")
    finally:
        os.close(read_end)
    assert scores["relevance"]["query"]["queries"] == 40


@pytest.mark.parametrize("what", ["NaN", "Inf", "zero", "other ids", "few pairs", "torn file"])
def test_score_refuses_unusable_files_in_one_line(capsys, tmp_path, shelf, stitcher, what):
    x, y = bad_files(tmp_path, shelf, what)
    status, out, err = run(capsys, "score", stitcher, "--source", x, "--target", y)
    assert (status, out, len(err)) == (2, "", 1)
    assert TRAIN_REFUSALS[what] in err[0]


@pytest.mark.parametrize("kind", ["cards", "dimensions"])
def test_score_refuses_swapped_files(capsys, shelf, stitcher, kind):
    end = "parquet" if kind == "cards" else "npy"
    status, out, err = run(
        capsys, "score", stitcher, "--source", shelf / f"new.{end}", "--target", shelf / f"old.{end}"
    )
    assert (status, out, len(err)) == (2, "", 1)
    assert "translates in one direction only" in err[0]
