import io
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from helpers.command_line import D_SOURCE, D_TARGET, FAST, result, run

from repstitch.cli.main import main
from repstitch.evaluation.scorecard import Scorecard
from repstitch.stitchers.registry import Registry
from repstitch.stitchers.stitcher import load


def test_list_promote_and_show_use_the_same_folder(capsys, tmp_path, files, monkeypatch):
    for name in ("a", "b"):
        main(["train", *files, "--out", str(tmp_path / name), "--split-seed", str(ord(name)), *FAST])
    (tmp_path / "torn").mkdir()
    monkeypatch.setenv("REPSTITCH_STITCHERS", str(tmp_path))
    assert result(capsys, "promote", "b") == {"pair": "old->new", "promoted": "b"}
    registry = Registry(tmp_path)
    registry.refresh()
    assert registry.resolve("old", "new")[0] == "b"
    listed = result(capsys, "list")
    assert [(r["name"], r["promoted"], r["version"]) for r in listed["stitchers"]] == [
        ("a", False, load(tmp_path / "a").version),
        ("b", True, load(tmp_path / "b").version),
    ]
    assert listed["stitchers"][0]["dims"] == [D_SOURCE, D_TARGET]
    assert "is not a complete stitcher" in listed["problems"]["torn"]
    status, printed, err = run(capsys, "list", "--stitchers", tmp_path)
    assert status == 0
    assert "b *: old (6) -> new (4), ridge" in printed
    assert [line.endswith(", candidate: b serves") for line in printed.splitlines()] == [True, False]
    assert [(row["serves"], row["created"]) for row in listed["stitchers"]] == [
        (name == "b", load(tmp_path / name).created) for name in "ab"
    ]
    assert datetime.now(UTC) - timedelta(hours=1) < load(tmp_path / "a").created_at < load(tmp_path / "b").created_at
    assert any("torn is not a complete stitcher" in line for line in err)
    assert run(capsys, "promote", "a")[1] == "old->new is now served by a\n"
    for named in ("a", tmp_path / "a"):
        assert result(capsys, "show", named)["version"] == load(tmp_path / "a").version
    status, printed, _ = run(capsys, "show", "a")
    made = f"method ridge, objective match, version {load(tmp_path / 'a').version}"
    assert printed.startswith(f"old (6) -> new (4), {made}\n\nQUERY USE (old queries, new index): ")
    assert printed.endswith("\n\nEvery score: repstitch show a --full\n")
    assert len([line for line in printed.splitlines() if line]) <= 11
    monkeypatch.delenv("REPSTITCH_STITCHERS")
    (tmp_path / "a").rename(tmp_path / "an a")
    printed = run(capsys, "show", "an a", "--stitchers", tmp_path)[1]
    words = shlex.split(printed.splitlines()[-1].removeprefix("Every score: "))
    assert words == ["repstitch", "show", "an a", "--stitchers", str(tmp_path), "--full"]
    (tmp_path / "an a").rename(tmp_path / "a")
    every = run(capsys, "show", tmp_path / "a", "--full")[1]
    assert load(tmp_path / "a").scorecard.table() in every


def test_an_empty_folder_lists_nothing(capsys, tmp_path):
    assert run(capsys, "list", "--stitchers", tmp_path) == (0, f"No stitchers in {tmp_path}.\n", [])
    assert result(capsys, "list", "--stitchers", tmp_path)["stitchers"] == []


def test_show_draws_the_scorecard(capsys, tmp_path, stitcher):
    pytest.importorskip("matplotlib")
    status, _, _ = run(capsys, "show", stitcher, "--plot", tmp_path / "card.png")
    assert status == 0
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")


def test_show_refuses_an_unknown_picture_format_and_writes_nothing(capsys, tmp_path, stitcher):
    status, _, err = run(capsys, "show", stitcher, "--plot", tmp_path / "card.txt")
    assert (status, len(err)) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_has_equivalents_in_the_uses_in_whose_range_it_is(capsys, tmp_path, stitcher):
    trained = load(stitcher)
    lists = {"similarity": [0.1, 0.9], "low": [0.1, 0.8], "high": [0.2, 0.9], "same_items": [1.0, 0.5]}
    scale = {"new": {"translated": lists}, "queries": 50, "results": 100}
    scales = {"query": scale | {"old": [0.6, 0.8]}, "corpus": scale | {"old": [0.0, 0.4]}}
    values = trained.scorecard.to_dict() | {"score_scale": scales}
    replace(trained, scorecard=Scorecard(values)).save(tmp_path / "scaled")
    output = result(capsys, "show", tmp_path / "scaled", "--threshold", 0.2)
    assert output["queried_by"] == {"corpus": "rows"}
    assert output["equivalents"]["corpus"]["translated"]["similarity"] == pytest.approx(0.5)
    status, printed, _ = run(capsys, "show", tmp_path / "scaled", "--threshold", 0.2)
    outside = "must be from 0.600 to 0.800, the range of the first 100 results of 50 held-out rows; got 0.2"
    assert (status, outside in printed.splitlines()[0]) == (0, True)
    status, _, err = run(capsys, "show", tmp_path / "scaled", "--threshold", 0.5)
    assert (status, len(err)) == (2, 1)
    assert "corpus use: `--threshold` must be from 0.000 to 0.400" in err[0]


def test_a_plot_without_matplotlib_says_how_to_install_it(capsys, tmp_path, stitcher, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run(capsys, "show", stitcher, "--plot", tmp_path / "card.png")
    assert (status, len(err)) == (2, 1)
    assert err[0].endswith("install it with: pip install 'repstitch[plot]'")


@pytest.mark.parametrize("command", [["list"], ["promote", "x"], ["show", "x"]], ids=lambda c: c[0])
def test_a_missing_stitchers_folder_is_reported_in_one_line(capsys, tmp_path, command):
    status, out, err = run(capsys, *command, "--stitchers", tmp_path / "no")
    assert (status, out, len(err)) == (2, "", 1)
    assert "does not exist; pass the folder of stitchers with `--stitchers`" in err[0]


def test_scores_are_printed_on_a_terminal_that_supports_only_ascii(stitcher, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["show", stitcher, "--full"]) == 0
    printed = terminal.buffer.getvalue().decode("ascii")
    assert "recall@1" in printed
    assert "R? " in printed
