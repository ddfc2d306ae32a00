import numpy as np
import pytest
from helpers.command_line import D_TARGET, FAST, TRAIN_REFUSALS, N, bad_files, result, run
from helpers.spaces import gaussian, names

from repstitch.stitchers.stitcher import load


@pytest.mark.parametrize("method", ["ridge", "auto"])
def test_train_writes_a_stitcher_and_prints_its_scores(capsys, tmp_path, files, method):
    out = tmp_path / "deep" / "s"
    fast = ("--method", method, "--epochs", 2, "--width", 8, "--batch-size", 32, "--learning-rate", 0.05)
    status, printed, _ = run(capsys, "train", *files, "--out", out, "--device", "cpu", *fast)
    stitcher = load(out)
    assert status == 0
    made = f"method {stitcher.method}, objective match"
    hint = f"Every score: repstitch show {out} --full"
    assert printed == f"old -> new, {made}, saved in {out}\n\n{stitcher.scorecard}\n\n{hint}\n"


def test_train_prints_every_score_with_full(capsys, tmp_path, files):
    printed = run(capsys, "train", *files, "--out", tmp_path / "s", "--full", *FAST)[1]
    assert printed.endswith(f"\n\n{load(tmp_path / 's').scorecard.table()}\n")


def test_train_prints_the_result_as_json(capsys, tmp_path, files):
    output = result(capsys, "train", *files, "--out", tmp_path / "s", *FAST)
    stitcher = load(tmp_path / "s")
    assert output == {
        "out": str(tmp_path / "s"),
        "version": stitcher.version,
        "source": "old",
        "target": "new",
        "method": "ridge",
        "objective": "match",
        "scorecard": stitcher.scorecard.to_dict(),
    }


def test_train_passes_every_flag_on(capsys, tmp_path, shelf):
    ids, groups = tmp_path / "ids.txt", tmp_path / "groups.txt"
    ids.write_text("\n".join(names(N, "doc")))
    groups.write_text("\n".join(f"photo{i // 3}" for i in range(N)))
    arguments = ["--source", shelf / "old.npy", "--target", shelf / "new.npy", "--source-ids", ids, "--target-ids", ids]
    arguments += ["--source-space", "first", "--target-space", "second", "--group", groups, "--split", "0.7,0.3,0"]
    arguments += ["--split-seed", 3, "--seed", 4, "--objective", "reconstruction", "--output-norm", "none", "--refit"]
    arguments += ["--method", "canonical", "--device", "cpu", "--drop-invalid"]
    result(capsys, "train", *arguments, "--out", tmp_path / "s")
    stitcher = load(tmp_path / "s")
    assert (stitcher.source.name, stitcher.target.name) == ("first", "second")
    assert (stitcher.method, stitcher.objective, stitcher.output_norm) == ("canonical", "reconstruction", "none")
    assert stitcher.split == {"shares": [0.7, 0.3, 0.0], "seed": 3, "group": "groups.txt"}
    assert stitcher.settings["seed"] == 4
    assert stitcher.provenance["paired_by"] == "id"
    assert stitcher.scorecard.refit
    assert len(stitcher.seen) == 2 * N


def test_train_records_its_thresholds(capsys, tmp_path, files):
    card = result(capsys, "train", *files, "--out", tmp_path / "s", *FAST, "--retention", 0.5)["scorecard"]
    assert card["query"]["verdict"]["thresholds"] == {"retention": 0.5, "first_stage": 0.95, "old_model": "available"}
    assert 1 <= card["spectrum"]["above"] <= card["spectrum"]["directions"] == D_TARGET
    status, _, err = run(capsys, "train", *files, "--out", tmp_path / "t", *FAST, "--retention", 2)
    assert status == 2
    assert "`--retention` must be above 0" in err[-1]


@pytest.mark.parametrize("what", TRAIN_REFUSALS)
def test_train_refuses_files_that_cannot_be_paired_in_one_line(capsys, tmp_path, shelf, what):
    x, y = bad_files(tmp_path, shelf, what)
    before = sorted(p.name for p in tmp_path.iterdir())
    status, out, err = run(capsys, "train", "--source", x, "--target", y, "--out", tmp_path / "s", *FAST)
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith("repstitch train: ")
    assert TRAIN_REFUSALS[what] in err[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("what", ["NaN", "Inf", "zero"])
def test_drop_invalid_trains_without_the_invalid_rows(capsys, tmp_path, shelf, what):
    x, y = bad_files(tmp_path, shelf, what)
    arguments = ("train", "--source", x, "--target", y, "--out", tmp_path / "s", *FAST, "--drop-invalid")
    status, _, err = run(capsys, *arguments)
    assert status == 0
    assert err == [f"WARNING: Left out: 1 source {'all zeros' if what == 'zero' else 'NaN or Inf'}."]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "0.5,0.5"], "must be three shares (train,validation,test) that sum to 1"),
        (["--split", "a,b,c"], "`--split` must be three shares such as 0.6,0.15,0.25; got 'a,b,c'"),
        (["--group", "photo"], "`--group` must be a column of either side"),
        (["--epochs", "0", "--method", "mlp"], "`--epochs` must be a whole number, at least 1"),
        (["--width", "0", "--method", "mlp"], "`--width` of an mlp must be at least 1"),
        (["--learning-rate", "-1", "--method", "mlp"], "`--learning-rate` must be a positive number"),
        (["--strategy", "magic", "--method", "mlp"], "must suit the Lightning Trainer"),
        (["--devices", "0", "--method", "mlp"], "must suit the Lightning Trainer"),
        (["--seed", "-1"], "`--seed` must be a whole number from 0"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_train_refuses_invalid_settings_in_one_line_and_writes_nothing(capsys, tmp_path, files, flags, message):
    status, out, err = run(capsys, "train", *files, "--out", tmp_path / "s", *FAST, *flags)
    assert (status, out, len(err)) == (2, "", 1)
    assert message in err[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "under a file"])
def test_train_refuses_an_out_that_cannot_be_created_before_it_reads_anything(capsys, tmp_path, kind):
    out = tmp_path / "s"
    if kind == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        out.write_text("mine")
    message = "cannot be created:" if kind == "under a file" else "exists and a stitcher is never"
    where = out / "deeper" if kind == "under a file" else out
    status, _, err = run(capsys, "train", "--source", "no.npy", "--target", "no.npy", "--out", where)
    assert (status, len(err)) == (2, 1)
    assert message in err[0]
    assert (out / "notes.txt" if kind == "folder" else out).read_text() == "mine"


def test_two_files_with_the_same_stem_are_refused(capsys, tmp_path, shelf):
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        np.save(tmp_path / side / "rows.npy", gaussian(40, 4))
    arguments = ("--source", tmp_path / "a" / "rows.npy", "--target", tmp_path / "b" / "rows.npy")
    status, _, err = run(capsys, "train", *arguments, "--out", tmp_path / "s", *FAST)
    assert (status, len(err)) == (2, 1)
    assert "Both spaces would be named 'rows'" in err[0]
    assert "set different names with `--source-space` and `--target-space`" in err[0]


def test_control_c_during_a_fit_exits_130_and_leaves_no_files(capsys, tmp_path, files, monkeypatch):
    from repstitch.fit.lightning_modules import RefineModule

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(RefineModule, "training_step", interrupt)
    out = tmp_path / "s"
    status, printed, err = run(capsys, "train", *files, "--out", out, "--method", "linear", "--device", "cpu")
    assert (status, printed, len(err)) == (130, "", 1)
    assert list(tmp_path.iterdir()) == []
