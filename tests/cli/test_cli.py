import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.spaces import affine_image, card, gaussian, names

from repstitch import __version__
from repstitch.cli.main import main, parser
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.evaluation.report import table
from repstitch.metrics.alignment import METRICS, align
from repstitch.stitchers.registry import Registry
from repstitch.stitchers.stitcher import load
from repstitch.workflows.scoring import score

COMMANDS = ("embed", "train", "score", "translate", "align", "list", "promote", "show", "serve", "demo")
FAST = ("--method", "ridge", "--device", "cpu")
D_SOURCE, D_TARGET, N = 6, 4, 120


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """Two carded Parquet files, their bare arrays, and a stitcher learned from them."""
    folder = tmp_path_factory.mktemp("shelf")
    X, Y, _, _ = affine_image(N, D_SOURCE, D_TARGET, noise=0.2)
    for name, rows, dim in (("old", X, D_SOURCE), ("new", Y, D_TARGET)):
        write(folder / f"{name}.parquet", Embeddings(rows, card(name, dim), names(N)))
        np.save(folder / f"{name}.npy", rows)
    files = ("--source", str(folder / "old.parquet"), "--target", str(folder / "new.parquet"))
    assert main(["train", *files, "--out", str(folder / "stitchers" / "old-new"), *FAST]) == 0
    return folder


@pytest.fixture
def files(shelf) -> list[str]:
    return ["--source", str(shelf / "old.parquet"), "--target", str(shelf / "new.parquet")]


@pytest.fixture
def stitcher(shelf) -> str:
    return str(shelf / "stitchers" / "old-new")


def run(capsys, *argv) -> tuple[int, str, list[str]]:
    """The exit status, what is on stdout, and the lines on stderr, log lines among them as on a terminal."""
    capsys.readouterr()
    root, package = logging.getLogger(), logging.getLogger("repstitch")
    handlers, level = root.handlers[:], package.level
    root.handlers.clear()
    try:
        status = main([str(part) for part in argv])
    finally:
        root.handlers[:] = handlers
        package.setLevel(level)
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def result(capsys, *argv) -> dict[str, Any]:
    """What `--json` prints: one line, strict JSON."""
    status, out, _ = run(capsys, *argv, "--json")
    assert status == 0
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# --- what works -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ridge", "mlp", "auto"])
def test_train_writes_a_stitcher_and_prints_its_scores(capsys, tmp_path, files, method):
    out = tmp_path / "deep" / "s"
    fast = ("--method", method, "--epochs", 2, "--width", 8, "--batch-size", 32, "--learning-rate", 0.05)
    status, printed, _ = run(capsys, "train", *files, "--out", out, "--device", "cpu", *fast)
    stitcher = load(out)
    assert status == 0
    expected = f"old -> new, {stitcher.method}, in {out}\n\n{table(stitcher.scorecard)}\n"
    assert sorted(printed.splitlines()) == sorted(expected.splitlines())


def test_train_gives_the_result_as_json(capsys, tmp_path, files):
    found = result(capsys, "train", *files, "--out", tmp_path / "s", *FAST)
    stitcher = load(tmp_path / "s")
    assert found == {
        "out": str(tmp_path / "s"),
        "version": stitcher.version,
        "source": "old",
        "target": "new",
        "method": "ridge",
        "objective": "match",
        "scorecard": stitcher.scorecard,
    }


def test_train_passes_every_flag_on(capsys, tmp_path, shelf):
    ids, groups = tmp_path / "ids.txt", tmp_path / "groups.txt"
    ids.write_text("\n".join(names(N, "doc")))
    groups.write_text("\n".join(f"photo{i // 3}" for i in range(N)))
    given = ["--source", shelf / "old.npy", "--target", shelf / "new.npy", "--source-ids", ids, "--target-ids", ids]
    given += ["--source-space", "first", "--target-space", "second", "--group", groups, "--split", "0.7,0.3,0"]
    given += ["--split-seed", 3, "--seed", 4, "--objective", "reconstruction", "--output-norm", "none", "--refit"]
    given += ["--method", "canonical", "--device", "cpu", "--drop-invalid"]
    result(capsys, "train", *given, "--out", tmp_path / "s")
    stitcher = load(tmp_path / "s")
    assert (stitcher.source.name, stitcher.target.name) == ("first", "second")
    assert (stitcher.method, stitcher.objective, stitcher.output_norm) == ("canonical", "reconstruction", "none")
    assert stitcher.split == {"shares": [0.7, 0.3, 0.0], "seed": 3, "group": "groups.txt"}
    assert stitcher.settings["seed"] == 4
    assert stitcher.provenance["paired_by"] == "id"
    assert stitcher.scorecard["refit"]
    assert len(stitcher.seen) == 2 * N


@pytest.mark.parametrize("use", ["query", "corpus", "both"])
def test_score_leaves_out_the_seen_pairs_and_says_so(capsys, files, stitcher, use):
    seen = len(load(stitcher).seen) // 2
    status, printed, _ = run(capsys, "score", stitcher, *files, "--use", use)
    assert status == 0
    assert printed.startswith(f"{seen} pairs left out: the stitcher was trained on them.\n\n{N - seen} unseen pairs")
    found = result(capsys, "score", stitcher, *files, "--use", use)
    expected = score(load(stitcher), files[1], files[3], uses=("query", "corpus") if use == "both" else (use,))
    assert found == expected


def test_translate_writes_the_translated_rows(capsys, tmp_path, shelf, stitcher):
    out = tmp_path / "y.parquet"
    found = result(capsys, "translate", stitcher, shelf / "old.parquet", "--out", out, "--device", "cpu")
    assert found == {"out": str(out), "rows": N, "stitcher": load(stitcher).version}
    expected = load(stitcher).translate(read(shelf / "old.parquet").vectors)
    np.testing.assert_allclose(read(out).vectors, expected, atol=1e-6)


def test_translate_adds_confidence_when_asked(capsys, tmp_path):
    X, Y, _, _ = affine_image(400, D_SOURCE, D_TARGET, noise=0.2)
    for name, rows, dim in (("old", X, D_SOURCE), ("new", Y, D_TARGET)):
        write(tmp_path / f"{name}.parquet", Embeddings(rows, card(name, dim), names(400)))
    old, made, out = tmp_path / "old.parquet", tmp_path / "old-new", tmp_path / "y.parquet"
    result(capsys, "train", "--source", old, "--target", tmp_path / "new.parquet", "--out", made, *FAST)
    result(capsys, "translate", made, old, "--out", out, "--confidence", "--device", "cpu")
    expected = load(made).confidence(X)
    table = pq.read_table(out)
    assert table.column_names == ["id", "vector", *expected]
    for name, values in expected.items():
        np.testing.assert_allclose(table[name].to_numpy(), values, rtol=1e-3)


def test_translate_refuses_confidence_of_a_stitcher_without_calibration(capsys, tmp_path, shelf, stitcher):
    flags = ("--out", tmp_path / "y.parquet", "--confidence", "--device", "cpu")
    status, _, err = run(capsys, "translate", stitcher, shelf / "old.parquet", *flags)
    assert status == 2
    assert err == [
        "repstitch translate: `confidence` needs a stitcher with a calibration; this one has none. "
        "Train it again on more pairs."
    ]
    assert list(tmp_path.iterdir()) == []


def test_translate_says_what_it_did(capsys, tmp_path, shelf, stitcher):
    out = tmp_path / "y.parquet"
    flags = ("--source-space", "old", "--dtype", "float16")
    status, printed, _ = run(capsys, "translate", stitcher, shelf / "old.npy", "--out", out, *flags)
    assert (status, printed) == (0, f"{N} rows of old translated to new in {out}\n")
    assert read(out).vectors.dtype == np.float16


def test_align_scores_every_pair_of_files_by_every_metric(capsys, tmp_path, shelf):
    write(tmp_path / "third.parquet", Embeddings(gaussian(N, 5, 9), card("third", 5), names(N)))
    paths = (shelf / "old.parquet", shelf / "new.parquet", tmp_path / "third.parquet")
    found = result(capsys, "align", *paths, "--metric", "mutual_knn,cka", "--k", 5, "--permutations", 20)
    assert [(r["source"], r["target"], r["metric"]) for r in found["pairs"]] == [
        (a, b, metric)
        for a, b in (("old", "new"), ("old", "third"), ("new", "third"))
        for metric in ("mutual_knn", "cka")
    ]
    assert (found["n"], found["k"]) == (N, 5)
    X, Y = (read(path).vectors for path in paths[:2])
    X, Y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (X, Y))
    assert found["pairs"][0]["score"] == pytest.approx(align(X, Y, "mutual_knn", 5, 20)["score"])
    status, printed, _ = run(capsys, "align", *paths[:2], "--permutations", 20)
    assert status == 0
    assert printed.startswith(f"old - new, n = {N}: mutual_knn@10 0.")
    assert "null" in printed


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_align_does_not_mind_the_length_of_rows(capsys, tmp_path, shelf, scale):
    np.save(tmp_path / "scaled.npy", (np.load(shelf / "old.npy").astype(np.float64) * scale).astype(np.float32))
    found = result(capsys, "align", tmp_path / "scaled.npy", shelf / "new.npy", "--permutations", 0)
    plain = result(capsys, "align", shelf / "old.npy", shelf / "new.npy", "--permutations", 0)
    for one, other in zip(found["pairs"], plain["pairs"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)


def test_align_without_permutations_gives_the_bare_scores(capsys, shelf):
    found = result(capsys, "align", shelf / "old.parquet", shelf / "new.parquet", "--permutations", 0)
    assert all("p" not in r for r in found["pairs"])


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Six files: four models of one origin, the larger the nearer to it, and two with nothing in common."""
    folder = tmp_path_factory.mktemp("models")
    Z, random = gaussian(60, 6, 1), np.random.default_rng(2)
    for i in range(6):
        rows = Z @ random.standard_normal((6, 8)) + (2 - 0.5 * i) * random.standard_normal((60, 8))
        if i > 3:
            rows = random.standard_normal((60, 8))
        space = card(f"m{i}", 8, parameters=10**i, family="f" if i < 4 else "g")
        write(folder / f"m{i}.parquet", Embeddings(rows.astype(np.float32), space, names(60)))
    return [str(path) for path in sorted(folder.iterdir())]


def test_align_prints_the_atlas_it_writes(capsys, tmp_path, models):
    from repstitch.alignment import report

    flags = ["--metric", "mutual_knn", "--permutations", 19, "--sizes", "30,60", "--cache", tmp_path / "graphs"]
    found = result(capsys, "align", *models, *flags, "--out", tmp_path / "atlas")
    assert found == report.read(tmp_path / "atlas")
    assert found["sizes"]["sizes"] == [30, 60]
    assert len(found["pairs"]) == 15
    assert set(found["pairs"][0]) == {"source", "target", "metric", "score", "null", "p", "q", "calibrated", "se"}
    assert len(list((tmp_path / "graphs").iterdir())) == 6
    assert not {"trend", "control", "asymmetry", "layers"} & set(found)
    status, printed, err = run(capsys, "align", *models, *flags, "--out", tmp_path / "again")
    assert (status, err) == (0, [])
    assert printed == f"{report.table(found)}\n\natlas.json, pairs.csv and pairs.parquet in {tmp_path / 'again'}\n"


def test_align_by_all_metrics_gives_a_line_each(capsys, shelf):
    status, printed, err = run(
        capsys, "align", shelf / "old.parquet", shelf / "new.parquet", "--metric", "all", "--permutations", 2
    )
    assert (status, err) == (0, [])
    named = [line.partition(": ")[2].replace("@", " ").split()[0] for line in printed.splitlines()]
    assert list(dict.fromkeys(named)) == list(METRICS)


def test_align_asks_for_trend_lineage_and_asymmetry(capsys, models):
    from repstitch.alignment.asymmetry import asymmetry
    from repstitch.alignment.layers import by_encoder
    from repstitch.alignment.lineage_control import control
    from repstitch.alignment.scores import unit_rows
    from repstitch.alignment.trend import trend
    from repstitch.embeddings.matching import match

    flags = ["--metric", "mutual_knn", "--permutations", 19, "--seed", 4]
    found = result(capsys, "align", *models, *flags, "--trend", "parameters", "--control", "family", "--asymmetry")
    numbers = by_encoder(found, "mutual_knn")
    labels = [[space.get(field) for space in found["spaces"]] for field in ("parameters", "family")]
    called = [space["name"] for space in found["spaces"]]
    asked = {"metric": "mutual_knn", "seed": 4}
    assert found["trend"] == trend(
        numbers["score"], labels[0], called, column="parameters", families=labels[1], **asked
    )
    assert found["control"] == control(
        numbers["score"], {"family": labels[1]}, called, null=numbers["null"], q=numbers["q"], **asked
    )
    assert len(found["asymmetry"]) == 10
    first = found["asymmetry"][0]
    X = dict(zip(called, unit_rows(match([read(path) for path in models])), strict=True))
    a, b = first.pop("source"), first.pop("target")
    assert first == asymmetry(X[a], X[b], source=a, target=b, seed=4)
    status, printed, _ = run(capsys, "align", *models, *flags, "--trend", "parameters", "--control", "family")
    assert status == 0
    assert printed.endswith(f"\n\ntrend: {found['trend']['verdict']}\n\ncontrol: {found['control']['verdict']}\n")


def test_align_takes_columns_of_a_table_and_models_to_compare_with(capsys, tmp_path, models):
    rows = [f"m{i}\t{i * i}\t{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "t.tsv").write_text("\n".join(["name\tleaderboard\tmaker", *rows]))
    flags = ["--metric", "cka", "--permutations", 0, "--table", tmp_path / "t.tsv"]
    asked = ["--trend", "leaderboard", "--control", "maker", "--against", "m5"]
    found = result(capsys, "align", *models, *flags, *asked)
    assert [model["value"] for model in found["trend"]["models"]] == [0, 1, 4, 9, 16]
    assert found["trend"]["against"] == ["m5"]
    assert found["control"]["factors"]["maker"]["groups"] == {"a": 3, "b": 3}


def test_align_draws_all_to_a_folder_and_what_was_asked_for_to_a_file(capsys, tmp_path, models, monkeypatch):
    pytest.importorskip("matplotlib")
    import repstitch.plots.alignment

    flags = ["--metric", "cka", "--permutations", 19]
    status, _, err = run(capsys, "align", *models, *flags, "--plot", tmp_path / "all", "--out", tmp_path / "atlas")
    assert (status, err) == (0, [])
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"heatmap_cka.png", "map_cka.png"}
    drawn = {}
    plot = repstitch.plots.alignment.plot_atlas
    monkeypatch.setattr(repstitch.plots.alignment, "plot_atlas", lambda found: drawn.update(plot(found)) or drawn)
    monkeypatch.setattr("repstitch.plots.canvas.save", lambda made, path: drawn.setdefault(str(path), made))
    for name, asked in (("heatmap_cka", []), ("trend", ["--trend", "parameters", "--sizes", "30"])):
        path = tmp_path / f"{name}.svg"
        assert run(capsys, "align", *models, *flags, *asked, "--plot", path)[0] == 0
        assert drawn[str(path)] is drawn[name]
        drawn.clear()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--trend", "beauty"], "There is no column 'beauty'; a card has"),
        (["--trend", "family"], "Column 'family' must hold numbers; m0 has 'f'"),
        (["--trend", "layer"], "`values` must be known for at least 5 models"),
        (["--trend", "parameters", "--against", "m9"], "`against` must name some of `names`; got 'm9'"),
        (["--control", "modality"], "modality: all models are of one group"),
        (["--against", "m0"], "`--against` is of use with --trend only"),
        (["--table", "t.csv"], "`--table` is of use with --trend or --control only"),
        (["--trend", "parameters", "--table", "gone.csv"], "`table` gone.csv cannot be read"),
        (["--sizes", "64;128"], "`--sizes` must be auto or numbers of rows like 64,256,1024; got '64;128'"),
        (["--sizes", "61"], "`sizes` must be auto or numbers of rows from 20 to 60; got 61"),
        (["--plot", "gone/atlas.png"], "`plot` must lie in a folder that exists"),
        (["--plot", "atlas.jpg"], "`plot` must end in .png, .svg or .pdf"),
        (["--plot", "gone/atlas"], "`--plot` must be a picture's name or a folder, in a folder that exists"),
        (["--out", ".atlas"], "`out` must name a folder to create"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_align_refuses_what_it_is_asked_before_anything_is_computed(capsys, tmp_path, models, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("repstitch.alignment.atlas.score_all", None)
    status, out, err = run(capsys, "align", *models, *flags)
    assert (status, out, len(err)) == (2, "", 1)
    assert says in err[0]
    assert list(tmp_path.iterdir()) == []


def test_align_that_is_stopped_leaves_nothing(capsys, tmp_path, models, monkeypatch):
    def stopped(*_given):
        raise KeyboardInterrupt

    monkeypatch.setattr("repstitch.alignment.report.pq.write_table", stopped)
    status, out, err = run(capsys, "align", *models, "--permutations", 0, "--out", tmp_path / "atlas")
    assert (status, out, len(err)) == (130, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_align_says_how_many_rows_were_left_out(capsys, tmp_path, shelf):
    x, y = bad_files(tmp_path, shelf, "NaN")
    status, printed, err = run(capsys, "align", x, y, "--drop-invalid", "--permutations", 0)
    assert (status, err) == (0, ["WARNING: Left out of old: 1 NaN or Inf."])
    assert f"n = {N - 1}" in printed


def test_list_promote_and_show_speak_of_one_folder(capsys, tmp_path, files, monkeypatch):
    for name in ("a", "b"):
        main(["train", *files, "--out", str(tmp_path / name), "--split-seed", str(ord(name)), *FAST])
    (tmp_path / "torn").mkdir()
    monkeypatch.setenv("REPSTITCH_STITCHERS", str(tmp_path))
    assert result(capsys, "promote", "b") == {"pair": "old->new", "promoted": "b"}
    registry = Registry(tmp_path)
    registry.refresh()
    assert registry.resolve("old", "new")[0] == "b"
    found = result(capsys, "list")
    assert [(r["name"], r["promoted"], r["version"]) for r in found["stitchers"]] == [
        ("a", False, load(tmp_path / "a").version),
        ("b", True, load(tmp_path / "b").version),
    ]
    assert found["stitchers"][0]["dims"] == [D_SOURCE, D_TARGET]
    assert "is not a whole stitcher" in found["problems"]["torn"]
    status, printed, err = run(capsys, "list", "--stitchers", tmp_path)
    assert status == 0
    assert "b *: old (6) -> new (4), ridge" in printed
    assert any("torn is not a whole stitcher" in line for line in err)
    assert run(capsys, "promote", "a")[1] == "old->new is now served by a\n"
    for named in ("a", tmp_path / "a"):
        assert result(capsys, "show", named)["version"] == load(tmp_path / "a").version
    status, printed, _ = run(capsys, "show", "a")
    assert printed.startswith(f"old (6) -> new (4)\nridge for match, version {load(tmp_path / 'a').version}\n\n")


def test_an_empty_folder_lists_nothing(capsys, tmp_path):
    assert run(capsys, "list", "--stitchers", tmp_path) == (0, f"No stitchers in {tmp_path}.\n", [])
    assert result(capsys, "list", "--stitchers", tmp_path)["stitchers"] == []


def test_show_draws_the_scorecard(capsys, tmp_path, stitcher):
    pytest.importorskip("matplotlib")
    status, _, _ = run(capsys, "show", stitcher, "--plot", tmp_path / "card.png")
    assert status == 0
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")


def test_embed_hands_its_flags_to_the_encoder(capsys, monkeypatch):
    import repstitch.encoders

    calls = []

    def embed(*args, **settings) -> int:
        calls.append((args, settings))
        return 7

    monkeypatch.setattr(repstitch.encoders, "embed", embed)
    flags = ["--pooling", "mean", "--layer", -2, "--role", "query", "--no-normalise", "--model-args", '{"depth": 2}']
    found = result(capsys, "embed", "--encoder", "E", "--data", "D", "--out", "X.parquet", "--batch-size", 3, *flags)
    assert found == {"out": "X.parquet", "rows": 7}
    assert calls == [
        (
            ("E", "D", "X.parquet"),
            {
                "batch_size": 3,
                "device": "auto",
                "precision": "auto",
                "dtype": "float32",
                "layers": None,
                "pooling": "mean",
                "layer": -2,
                "role": "query",
                "normalise": False,
                "model_args": {"depth": 2},
            },
        )
    ]
    status, _, err = run(capsys, "embed", "--encoder", "E", "--data", "D", "--out", "X", "--model-args", "[1]")
    assert (status, err) == (2, ["repstitch embed: `--model-args` must be a JSON object; got '[1]'."])
    for layers, handed in (("all", "all"), ("1,6,-1", [1, 6, -1])):
        result(capsys, "embed", "--encoder", "E", "--data", "D", "--out", "X", "--layers", layers)
        assert calls[-1][1]["layers"] == handed
    status, _, err = run(capsys, "embed", "--encoder", "E", "--data", "D", "--out", "X", "--layers", "first")
    assert (status, err) == (2, ["repstitch embed: `--layers` must be all, or numbers like 1,6,12; got 'first'."])


def test_serve_and_demo_hand_their_flags_on(capsys, monkeypatch):
    import repstitch.server.run
    import repstitch.workflows.demo

    calls = []
    monkeypatch.setattr(repstitch.server.run, "serve", lambda *args: calls.append(args))
    monkeypatch.setattr(repstitch.workflows.demo, "demo", lambda *args, **more: calls.append((*args, more)))
    assert run(capsys, "serve", "--stitchers", "s", "--port", 0, "--workers", 2)[0] == 0
    assert run(capsys, "demo", "--out", "d", "--seed", 3)[0] == 0
    assert calls == [("s", "127.0.0.1", 0, 2, "uvicorn"), (Path("d"), {"seed": 3})]


# --- what is refused --------------------------------------------------------------------------------------------------


def bad_files(where: Path, shelf: Path, what: str) -> tuple[Path, Path]:
    """Source and target that cannot be trained on, in a folder of their own."""
    old, new = (read(shelf / f"{name}.parquet") for name in ("old", "new"))
    x, y = where / "x.parquet", where / "y.parquet"
    vectors = old.vectors.copy()
    if what in ("NaN", "Inf", "zero"):
        vectors[5] = {"NaN": np.nan, "Inf": np.inf, "zero": 0}[what]
    ids = {"other ids": names(N, "other"), "twice the id": np.array(["item0", *names(N - 1)], dtype=object)}
    few = 12 if what == "few pairs" else N
    write(x, Embeddings(vectors[:few], old.space, ids.get(what, old.ids)[:few]))  # type: ignore[index]
    write(y, new)
    if what == "no file":
        x.unlink()
    if what == "torn file":
        x.write_bytes(x.read_bytes()[:-20])
    if what == "text file":
        x.write_text("hello")
    return x, y


TRAIN_REFUSALS = {
    "NaN": "1 with source NaN or Inf (first: id 'item5'). Leave them out with --drop-invalid.",
    "Inf": "1 with source NaN or Inf (first: id 'item5')",
    "zero": "1 with source all zeros (first: id 'item5')",
    "other ids": "No id is in both files",
    "twice the id": "Ids must be unique; the source has 1 repeated (first: 'item0')",
    "few pairs": "At least 20 pairs are needed; got 12",
    "no file": "There is no file",
    "torn file": "cannot be read as embeddings",
    "text file": "cannot be read as embeddings",
}


@pytest.mark.parametrize("what", TRAIN_REFUSALS)
def test_train_refuses_files_that_cannot_be_paired_in_one_line(capsys, tmp_path, shelf, what):
    x, y = bad_files(tmp_path, shelf, what)
    before = sorted(p.name for p in tmp_path.iterdir())
    status, out, err = run(capsys, "train", "--source", x, "--target", y, "--out", tmp_path / "s", *FAST)
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith("repstitch train: ")
    assert TRAIN_REFUSALS[what] in err[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("what", ["NaN", "Inf", "zero", "other ids", "few pairs", "torn file"])
def test_score_refuses_the_same_files(capsys, tmp_path, shelf, stitcher, what):
    x, y = bad_files(tmp_path, shelf, what)
    status, out, err = run(capsys, "score", stitcher, "--source", x, "--target", y)
    assert (status, out, len(err)) == (2, "", 1)
    assert TRAIN_REFUSALS[what].removesuffix(" Leave them out with --drop-invalid.") in err[0]


ALIGN_REFUSALS = {
    "NaN": "old holds rows that cannot be used: 1 with NaN or Inf (first: id 'item5'). Leave them out with",
    "Inf": "old holds rows that cannot be used: 1 with NaN or Inf (first: id 'item5')",
    "zero": "old holds rows that cannot be used: 1 with all zeros (first: id 'item5')",
    "other ids": "No id is in every file (old has e.g. 'other0', new has e.g. 'item0')",
    "twice the id": "Ids must be unique; the old has 1 repeated (first: 'item0')",
    "few pairs": "At least 20 items must be in every space; got 12",
    "no file": "There is no file",
    "torn file": "cannot be read as embeddings",
    "text file": "cannot be read as embeddings",
}


@pytest.mark.parametrize("what", ALIGN_REFUSALS)
def test_align_refuses_files_that_cannot_be_matched_in_one_line(capsys, tmp_path, shelf, what):
    status, out, err = run(capsys, "align", *bad_files(tmp_path, shelf, what))
    assert (status, out, len(err)) == (2, "", 1)
    assert ALIGN_REFUSALS[what] in err[0]


@pytest.mark.parametrize("what", ["NaN", "Inf", "zero"])
def test_drop_invalid_goes_on_without_the_bad_rows(capsys, tmp_path, shelf, what):
    x, y = bad_files(tmp_path, shelf, what)
    given = ("train", "--source", x, "--target", y, "--out", tmp_path / "s", *FAST, "--drop-invalid")
    status, _, err = run(capsys, *given)
    assert status == 0
    assert err == [f"WARNING: Left out: 1 source {'all zeros' if what == 'zero' else 'NaN or Inf'}."]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--split", "0.5,0.5"], "three shares that sum to 1"),
        (["--split", "a,b,c"], "`--split` must be three shares like 0.6,0.15,0.25; got 'a,b,c'"),
        (["--group", "photo"], "`group` must be a column of either side"),
        (["--epochs", "0", "--method", "mlp"], "`epochs` must be a whole number, at least 1"),
        (["--width", "0", "--method", "mlp"], "`width` of an mlp must be at least 1"),
        (["--learning-rate", "-1", "--method", "mlp"], "`learning_rate` must be a positive number"),
        (["--strategy", "magic", "--method", "mlp"], "must suit the Lightning Trainer"),
        (["--devices", "0", "--method", "mlp"], "must suit the Lightning Trainer"),
        (["--seed", "-1"], "`seed` must be a whole number from 0"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_train_refuses_settings_in_one_line_and_writes_nothing(capsys, tmp_path, files, flags, says):
    status, out, err = run(capsys, "train", *files, "--out", tmp_path / "s", *FAST, *flags)
    assert (status, out, len(err)) == (2, "", 1)
    assert says in err[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "under a file"])
def test_train_refuses_an_out_that_cannot_be_made_before_it_reads_anything(capsys, tmp_path, kind):
    out = tmp_path / "s"
    if kind == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        out.write_text("mine")
    said = "is not a folder that can be written to" if kind == "under a file" else "exists and a stitcher is never"
    where = out / "deeper" if kind == "under a file" else out
    status, _, err = run(capsys, "train", "--source", "no.npy", "--target", "no.npy", "--out", where)
    assert (status, len(err)) == (2, 1)
    assert said in err[0]
    assert (out / "notes.txt" if kind == "folder" else out).read_text() == "mine"


def test_two_files_of_one_stem_are_refused(capsys, tmp_path, shelf):
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        np.save(tmp_path / side / "rows.npy", gaussian(40, 4))
    given = ("--source", tmp_path / "a" / "rows.npy", "--target", tmp_path / "b" / "rows.npy")
    status, _, err = run(capsys, "train", *given, "--out", tmp_path / "s", *FAST)
    assert (status, len(err)) == (2, 1)
    assert "Both sides would be called 'rows'" in err[0]
    assert "--source-space" in err[0]


def translate_refusals(shelf: Path, where: Path) -> dict[str, tuple[Path, str]]:
    """Files that the stitcher cannot translate, and what is said of them."""
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
        "space": (where / "space.parquet", "its card says another identity (revision 'def' against 'abc')"),
        "dimension": (where / "wide.npy", "must have 6 dimensions, those of space 'old'; got 9"),
        "ints": (where / "ints.npy", "must be a table of floats"),
        "backwards": (shelf / "new.parquet", "a stitcher works one way only"),
        "torn": (where / "torn.parquet", "cannot be read as embeddings"),
        "csv": (where / "rows.csv", "must be one of .parquet, .arrow, .npy, .npz"),
        "absent": (where / "absent.parquet", "There is no file"),
    }


REFUSED = ("NaN", "Inf", "zero", "space", "dimension", "ints", "backwards", "torn", "csv", "absent")


@pytest.mark.parametrize("what", REFUSED)
def test_translate_refuses_in_one_line_and_writes_nothing(capsys, tmp_path, shelf, stitcher, what):
    path, says = translate_refusals(shelf, tmp_path)[what]
    before = sorted(p.name for p in tmp_path.iterdir())
    status, out, err = run(capsys, "translate", stitcher, path, "--out", tmp_path / "y.parquet")
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith("repstitch translate: ")
    assert says in err[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_translate_refuses_an_out_that_exists(capsys, tmp_path, shelf, stitcher):
    (tmp_path / "y.parquet").write_text("mine")
    status, _, err = run(capsys, "translate", stitcher, shelf / "old.parquet", "--out", tmp_path / "y.parquet")
    assert (status, len(err)) == (2, 1)
    assert "exists and is never overwritten" in err[0]
    assert (tmp_path / "y.parquet").read_text() == "mine"


@pytest.mark.parametrize("kind", ["cards", "dimensions"])
def test_score_refuses_swapped_files(capsys, shelf, stitcher, kind):
    end = "parquet" if kind == "cards" else "npy"
    status, out, err = run(
        capsys, "score", stitcher, "--source", shelf / f"new.{end}", "--target", shelf / f"old.{end}"
    )
    assert (status, out, len(err)) == (2, "", 1)
    assert "a stitcher works one way only" in err[0]


@pytest.mark.parametrize("command", ["score", "translate", "show", "promote"])
def test_an_unknown_stitcher_is_one_line(capsys, tmp_path, shelf, files, command):
    rest = {
        "score": ["old-nwe", *files],
        "translate": ["old-nwe", shelf / "old.parquet", "--out", tmp_path / "y.parquet"],
        "show": ["old-nwe", "--stitchers", shelf / "stitchers"],
        "promote": ["old-nwe", "--stitchers", shelf / "stitchers"],
    }[command]
    status, out, err = run(capsys, command, *rest)
    assert (status, out, len(err)) == (2, "", 1)
    assert "There is no stitcher" in err[0]
    assert "old-nwe" in err[0]
    if command in ("show", "promote"):
        assert "Nearest: old-new" in err[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["list"], ["promote", "x"], ["show", "x"]], ids=lambda c: c[0])
def test_a_folder_of_stitchers_that_is_not_there_is_one_line(capsys, tmp_path, command):
    status, out, err = run(capsys, *command, "--stitchers", tmp_path / "no")
    assert (status, out, len(err)) == (2, "", 1)
    assert "There is no folder" in err[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--metric", "magic"], "`--metric` must be all or among mutual_knn, cycle_knn, lcs_knn"),
        (["--permutations", "-1"], "`--permutations` must be from 0 to 100,000"),
        (["--k", "0"], "`k` must be at least 1"),
        (["--seed", "99999999999999999999"], "`--seed` must be a whole number from 0 to 4294967295"),
        (["--seed", "-1"], "`--seed` must be a whole number from 0"),
        (["--control", ","], "`--control` must be names with commas between them; got ','"),
        (["--trend", "parameters", "--against", ""], "`--against` must be names with commas between them; got ''"),
        (["--metric", "cka,"], "`--metric` must be names with commas between them"),
    ],
)
def test_align_refuses_settings_in_one_line(capsys, shelf, flags, says):
    status, out, err = run(capsys, "align", shelf / "old.parquet", shelf / "new.parquet", *flags)
    assert (status, out, len(err)) == (2, "", 1)
    assert says in err[0]


def test_align_refuses_a_single_file(capsys, shelf):
    status, _, err = run(capsys, "align", shelf / "old.parquet")
    assert (status, len(err)) == (2, 1)
    assert "at least two files" in err[0]


def test_show_refuses_a_picture_of_another_kind_and_draws_nothing(capsys, tmp_path, stitcher):
    status, _, err = run(capsys, "show", stitcher, "--plot", tmp_path / "card.txt")
    assert (status, len(err)) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_operating_systems_refusal_is_one_line(capsys, tmp_path, files, monkeypatch):
    from repstitch.stitchers.stitcher import Stitcher

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Stitcher, "save", full)
    status, _, err = run(capsys, "train", *files, "--out", tmp_path / "s", *FAST)
    assert (status, err) == (2, ["repstitch train: [Errno 28] No space left on device"])


@pytest.mark.parametrize(
    ("module", "extra", "argv"),
    [
        ("matplotlib", "plot", ["show", "STITCHER", "--plot", "card.png"]),
        ("uvicorn", "serve", ["serve"]),
        ("sklearn.datasets", "demo", ["demo"]),
        ("transformers", "encoders", ["embed", "--encoder", "E", "--data", "D", "--out", "X.parquet"]),
    ],
)
def test_what_is_not_installed_is_named_with_the_extra_that_installs_it(capsys, monkeypatch, module, extra, argv):
    def missing(_args):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(f"repstitch.cli.{argv[0]}.run", missing)
    status, out, err = run(capsys, *argv)
    said = f"`{argv[0]}` needs {module}; install it with: pip install 'repstitch[{extra}]'"
    assert (status, out, err) == (2, "", [f"repstitch {argv[0]}: {said}"])


def test_a_picture_without_matplotlib_says_how_to_install_it(capsys, tmp_path, stitcher, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run(capsys, "show", stitcher, "--plot", tmp_path / "card.png")
    assert (status, len(err)) == (2, 1)
    assert err[0].endswith("install it with: pip install 'repstitch[plot]'")


def test_a_module_of_our_own_that_is_missing_is_not_hidden(monkeypatch):
    def missing(_args):
        raise ModuleNotFoundError("No module named 'repstitch.gone'", name="repstitch.gone")

    monkeypatch.setattr("repstitch.cli.registry.run_list", missing)
    with pytest.raises(ModuleNotFoundError, match=r"repstitch\.gone"):
        main(["list"])


def test_control_c_exits_130_in_one_line(capsys, monkeypatch):
    def stopped(_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("repstitch.cli.train.run", stopped)
    status, out, err = run(capsys, "train", "--source", "x", "--target", "y", "--out", "z")
    assert (status, out) == (130, "")
    assert err == ["repstitch train: stopped; the output is not there yet. Run it again to go on."]


def test_control_c_during_a_fit_exits_130_and_leaves_nothing(capsys, tmp_path, files, monkeypatch):
    from repstitch.fit.lightning_modules import RefineModule

    def stopped(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(RefineModule, "training_step", stopped)
    out = tmp_path / "s"
    status, printed, err = run(capsys, "train", *files, "--out", out, "--method", "linear", "--device", "cpu")
    assert (status, printed, len(err)) == (130, "", 1)
    assert list(tmp_path.iterdir()) == []


# --- the parser -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_a_command_that_parses(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert left.value.code == 0
    examples = lines[lines.index("example:") + 1 :]
    assert examples
    for words in map(str.split, examples):
        assert words[:2] == ["repstitch", command]
        assert parser().parse_args(words[1:]).command == command


def test_help_names_every_command_and_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n    {command}" in printed for command in COMMANDS)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"repstitch {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["magic"], ["train"], ["train", "--method", "magic"]], ids=" ".join)
def test_a_command_line_that_does_not_parse_exits_2(argv):
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from repstitch.cli.main import main\n"
        f"for command in {COMMANDS!r}:\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'numpy', 'pyarrow', 'transformers', 'timm', 'matplotlib', 'bentoml'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_refusal_comes_without_a_traceback_and_with_exit_status_2(tmp_path):
    command = [sys.executable, "-m", "repstitch", "promote", "x", "--stitchers", str(tmp_path / "no")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_a_terminal_without_the_signs_gets_the_scores_all_the_same(stitcher):
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "repstitch", "show", stitcher]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "recall@1" in done.stdout


def test_score_hands_on_judgements_and_thresholds(capsys, tmp_path, files, stitcher):
    X, Y, _, _ = affine_image(N, D_SOURCE, D_TARGET, noise=0.2)
    flags = []
    for side, rows in (("source", X), ("target", Y)):
        np.save(tmp_path / f"{side}.npy", rows[-40:] + 0.01)
        flags += [f"--{side}-queries", tmp_path / f"{side}.npy", f"--{side}-query-ids", tmp_path / "ids.txt"]
    (tmp_path / "ids.txt").write_text("\n".join(f"q{i}" for i in range(40)))
    (tmp_path / "rel.tsv").write_text("\n".join(f"q{i} 0 item{N - 40 + i} 1" for i in range(40)))
    flags += ["--qrels", tmp_path / "rel.tsv", "--retention", 0.8, "--first-stage", 0.85]
    found = result(capsys, "score", stitcher, *files, *flags)
    assert found["relevance"]["query"]["queries"] == 40
    assert found["query"]["verdict"]["thresholds"] == {"retention": 0.8, "first_stage": 0.85}
    status, _, said = run(capsys, "score", stitcher, *files, "--qrels", tmp_path / "rel.tsv")
    assert status == 2
    assert "belong together" in said[-1]


def test_train_states_its_thresholds(capsys, tmp_path, files):
    card = result(capsys, "train", *files, "--out", tmp_path / "s", *FAST, "--retention", 0.5)["scorecard"]
    assert card["query"]["verdict"]["thresholds"] == {"retention": 0.5, "first_stage": 0.95}
    assert 1 <= card["spectrum"]["above"] <= card["spectrum"]["directions"] == D_TARGET
    status, _, said = run(capsys, "train", *files, "--out", tmp_path / "t", *FAST, "--retention", 2)
    assert status == 2
    assert "`retention` must lie above 0" in said[-1]
