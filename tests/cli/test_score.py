import os

import numpy as np
import pytest
from helpers.command_line import D_SOURCE, D_TARGET, TRAIN_REFUSALS, N, bad_files, result, run
from helpers.spaces import affine_image

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


def test_score_passes_on_judgements_and_thresholds(capsys, tmp_path, files, stitcher):
    X, Y, _, _ = affine_image(N, D_SOURCE, D_TARGET, noise=0.2)
    flags = []
    for side, rows in (("source", X), ("target", Y)):
        np.save(tmp_path / f"{side}.npy", rows[-40:] + 0.01)
        flags += [f"--{side}-queries", tmp_path / f"{side}.npy", f"--{side}-query-ids", tmp_path / "ids.txt"]
    (tmp_path / "ids.txt").write_text("\n".join(f"q{i}" for i in range(40)))
    (tmp_path / "rel.tsv").write_text("\n".join(f"q{i} 0 item{N - 40 + i} 1" for i in range(40)))
    flags += ["--qrels", tmp_path / "rel.tsv", "--retention", 0.8, "--first-stage", 0.85]
    output = result(capsys, "score", stitcher, *files, *flags)
    assert output["relevance"]["query"]["queries"] == 40
    assert output["query"]["verdict"]["thresholds"] == {"retention": 0.8, "first_stage": 0.85, "old_model": "available"}
    status, _, err = run(capsys, "score", stitcher, *files, "--qrels", tmp_path / "rel.tsv")
    message = "`--source-queries`, `--target-queries` and `--qrels` must be passed together: all three, or none."
    assert (status, err) == (2, [f"repstitch score: {message}"])


@pytest.mark.parametrize("flag", ["--source-queries", "--target-queries", "--source-query-ids", "--target-query-ids"])
def test_query_flags_are_refused_without_judgements(capsys, files, stitcher, flag):
    status, _, err = run(capsys, "score", stitcher, *files, flag, "nope.txt")
    message = f"`{flag}` requires `--qrels`; add it, or remove `{flag}`."
    assert (status, err) == (2, [f"repstitch score: {message}"])


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
