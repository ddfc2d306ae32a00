import numpy as np
import pytest
from helpers.command_line import N, bad_files, result, run
from helpers.spaces import card, gaussian, names

from repstitch.alignment.pair import align
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.metrics.alignment import METRICS


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Create six files: four models that share an origin, the larger with less noise, and two that share nothing."""
    folder = tmp_path_factory.mktemp("models")
    Z, random = gaussian(60, 6, 1), np.random.default_rng(2)
    for i in range(6):
        rows = Z @ random.standard_normal((6, 8)) + (2 - 0.5 * i) * random.standard_normal((60, 8))
        if i > 3:
            rows = random.standard_normal((60, 8))
        space = card(f"m{i}", 8, parameters=10**i, family="f" if i < 4 else "g")
        write(folder / f"m{i}.parquet", Embeddings(rows.astype(np.float32), space, names(60)))
    return [str(path) for path in sorted(folder.iterdir())]


def test_align_scores_every_pair_of_files_by_every_metric(capsys, tmp_path, shelf):
    write(tmp_path / "third.parquet", Embeddings(gaussian(N, 5, 9), card("third", 5), names(N)))
    paths = (shelf / "old.parquet", shelf / "new.parquet", tmp_path / "third.parquet")
    output = result(capsys, "align", *paths, "--metric", "mutual_knn,cka", "--k", 5, "--permutations", 20)
    assert [(r["source"], r["target"], r["metric"]) for r in output["pairs"]] == [
        (a, b, metric)
        for a, b in (("old", "new"), ("old", "third"), ("new", "third"))
        for metric in ("mutual_knn", "cka")
    ]
    assert (output["n"], output["k"]) == (N, 5)
    pair = align(*paths[:2], "mutual_knn", k=5, permutations=20).to_dict()
    assert {key: value for key, value in output["pairs"][0].items() if key != "q"} == pair
    status, printed, _ = run(capsys, "align", *paths[:2], "--permutations", 20)
    assert status == 0
    assert printed.startswith(f"old - new, n = {N}: mutual_knn@10 0.")
    assert "null" in printed


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_align_scores_do_not_depend_on_the_norm_of_rows(capsys, tmp_path, shelf, scale):
    np.save(tmp_path / "scaled.npy", (np.load(shelf / "old.npy").astype(np.float64) * scale).astype(np.float32))
    output = result(capsys, "align", tmp_path / "scaled.npy", shelf / "new.npy", "--permutations", 0)
    plain = result(capsys, "align", shelf / "old.npy", shelf / "new.npy", "--permutations", 0)
    for one, other in zip(output["pairs"], plain["pairs"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)


def test_align_without_permutations_gives_the_bare_scores(capsys, shelf):
    output = result(capsys, "align", shelf / "old.parquet", shelf / "new.parquet", "--permutations", 0)
    assert all("p" not in r for r in output["pairs"])


def test_align_prints_the_atlas_it_writes(capsys, tmp_path, models):
    from repstitch.alignment import files

    flags = ["--metric", "mutual_knn", "--permutations", 19, "--sizes", "30,60", "--cache", tmp_path / "graphs"]
    output = result(capsys, "align", *models, *flags, "--out", tmp_path / "atlas")
    atlas = files.read(tmp_path / "atlas")
    assert output == atlas.to_dict()
    assert output["sizes"]["sizes"] == [30, 60]
    assert len(output["pairs"]) == 15
    assert set(output["pairs"][0]) == {"source", "target", "metric", "score", "null", "p", "q", "calibrated", "se"}
    assert len(list((tmp_path / "graphs").iterdir())) == 6
    assert not {"trend", "control", "asymmetry", "layers"} & set(output)
    status, printed, err = run(capsys, "align", *models, *flags, "--out", tmp_path / "again")
    assert (status, err) == (0, [])
    assert printed == f"{atlas}\n\nWritten to {tmp_path / 'again'}: atlas.json, pairs.csv, pairs.parquet\n"


def test_align_with_all_metrics_prints_a_line_for_each(capsys, shelf):
    status, printed, err = run(
        capsys, "align", shelf / "old.parquet", shelf / "new.parquet", "--metric", "all", "--permutations", 2
    )
    assert (status, err) == (0, [])
    named = [line.partition(": ")[2].replace("@", " ").split()[0] for line in printed.splitlines()]
    assert list(dict.fromkeys(named)) == list(METRICS)


def test_align_reports_trend_control_and_asymmetry(capsys, models):
    from repstitch.alignment.asymmetry import asymmetry
    from repstitch.alignment.inputs import unit_rows
    from repstitch.alignment.layers import by_encoder
    from repstitch.alignment.lineage_control import control
    from repstitch.alignment.model_scores import Resampling
    from repstitch.alignment.result import Atlas
    from repstitch.alignment.trend import trend
    from repstitch.embeddings.matching import match

    flags = ["--metric", "mutual_knn", "--permutations", 19, "--seed", 4]
    output = result(capsys, "align", *models, *flags, "--trend", "parameters", "--control", "family", "--asymmetry")
    numbers = by_encoder(Atlas(output), "mutual_knn")
    labels = [[space.get(field) for space in output["spaces"]] for field in ("parameters", "family")]
    model_names = [space["name"] for space in output["spaces"]]
    settings = {"metric": "mutual_knn", "resampling": Resampling(seed=4)}
    rises = trend(numbers["score"], labels[0], model_names, column="parameters", families=labels[1], **settings)
    assert output["trend"] == rises.to_dict()
    shared = control(
        numbers["score"], {"family": labels[1]}, model_names, null=numbers["null"], q=numbers["q"], **settings
    )
    assert output["control"] == shared.to_dict()
    assert len(output["asymmetry"]) == 10
    first = output["asymmetry"][0]
    X = dict(zip(model_names, unit_rows(match([read(path) for path in models])), strict=True))
    a, b = first["source"], first["target"]
    assert first == asymmetry(X[a], X[b], source=a, target=b, seed=4).to_dict()
    status, printed, _ = run(capsys, "align", *models, *flags, "--trend", "parameters", "--control", "family")
    assert status == 0
    assert printed.endswith(f"\n\ntrend: {output['trend']['verdict']}\n\ncontrol: {output['control']['verdict']}\n")


def test_align_reads_columns_of_a_table_and_models_to_compare_against(capsys, tmp_path, models):
    rows = [f"m{i}\t{i * i}\t{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "t.tsv").write_text("\n".join(["name\tleaderboard\tmaker", *rows]))
    flags = ["--metric", "cka", "--permutations", 0, "--table", tmp_path / "t.tsv"]
    more_flags = ["--trend", "leaderboard", "--control", "maker", "--against", "m5"]
    output = result(capsys, "align", *models, *flags, *more_flags)
    assert [model["value"] for model in output["trend"]["models"]] == [0, 1, 4, 9, 16]
    assert output["trend"]["against"] == ["m5"]
    assert output["control"]["factors"]["maker"]["groups"] == {"a": 3, "b": 3}


def test_align_plots_everything_to_a_folder_and_one_plot_to_a_file(capsys, tmp_path, models, monkeypatch):
    pytest.importorskip("matplotlib")
    import repstitch.plots.alignment

    flags = ["--metric", "cka", "--permutations", 19]
    status, _, err = run(capsys, "align", *models, *flags, "--plot", tmp_path / "all", "--out", tmp_path / "atlas")
    assert (status, err) == (0, [])
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"heatmap_cka.png", "map_cka.png"}
    drawn = {}
    plot = repstitch.plots.alignment.plot_atlas
    monkeypatch.setattr(repstitch.plots.alignment, "plot_atlas", lambda atlas: drawn.update(plot(atlas)) or drawn)
    monkeypatch.setattr("repstitch.plots.canvas.save", lambda made, path: drawn.setdefault(str(path), made))
    for name, more_flags in (("heatmap_cka", []), ("trend", ["--trend", "parameters", "--sizes", "30"])):
        path = tmp_path / f"{name}.svg"
        assert run(capsys, "align", *models, *flags, *more_flags, "--plot", path)[0] == 0
        assert drawn[str(path)] is drawn[name]
        drawn.clear()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trend", "beauty"], "There is no column 'beauty'; cards have"),
        (["--trend", "family"], "Column 'family' must contain numbers; m0 has 'f'"),
        (["--trend", "layer"], "A trend with 'layer' requires at least 5 models"),
        (["--trend", "parameters", "--against", "m9"], "`--against` must be one or more of "),
        (["--control", "modality"], "modality: all models belong to one group"),
        (["--against", "m0"], "`--against` requires --trend; add it, or remove"),
        (["--table", "t.csv"], "`--table` requires --trend or --control; add it, or remove"),
        (["--trend", "parameters", "--table", "gone.csv"], "`--table` gone.csv cannot be read"),
        (["--sizes", "64;128"], "`--sizes` must be auto or numbers of rows like 64,256,1024; got '64;128'"),
        (["--sizes", "61"], "`--sizes` must be auto or numbers of rows from 20 to 60; got 61"),
        (["--plot", "gone/atlas.png"], "`--plot` must be in an existing folder"),
        (["--plot", "atlas.jpg"], "`--plot` must end in .png, .svg or .pdf"),
        (["--plot", "gone/atlas"], "`--plot` must be a picture or a folder, in an existing folder"),
        (["--out", ".atlas"], "`--out` must name a folder to create"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_align_refuses_invalid_flags_before_it_computes_anything(capsys, tmp_path, models, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("repstitch.alignment.measuring.score_all", None)
    status, out, err = run(capsys, "align", *models, *flags)
    assert (status, out, len(err)) == (2, "", 1)
    assert message in err[0]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_align_leaves_no_files(capsys, tmp_path, models, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("repstitch.alignment.files.pq.write_table", interrupt)
    status, out, err = run(capsys, "align", *models, "--permutations", 0, "--out", tmp_path / "atlas")
    assert (status, out, len(err)) == (130, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_align_reports_how_many_rows_were_left_out(capsys, tmp_path, shelf):
    x, y = bad_files(tmp_path, shelf, "NaN")
    status, printed, err = run(capsys, "align", x, y, "--drop-invalid", "--permutations", 0)
    assert (status, err) == (0, ["WARNING: Left out of old: 1 NaN or Inf."])
    assert f"n = {N - 1}" in printed


ALIGN_REFUSALS = {
    "NaN": "old has rows that cannot be used: 1 with NaN or Inf (first: id 'item5'). Leave them out with",
    "Inf": "old has rows that cannot be used: 1 with NaN or Inf (first: id 'item5')",
    "zero": "old has rows that cannot be used: 1 with all zeros (first: id 'item5')",
    "other ids": "No id is in every space (old has e.g. 'other0', new has e.g. 'item0')",
    "twice the id": "Ids must be unique; repeated ids in old: 1 (first: 'item0')",
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric", "magic"], "`--metric` must be all, or some of mutual_knn, cycle_knn, lcs_knn"),
        (["--permutations", "-1"], "`--permutations` must be from 0 to 100,000"),
        (["--k", "0"], "`--k` must be at least 1"),
        (["--seed", "99999999999999999999"], "`--seed` must be a whole number from 0 to 4294967295"),
        (["--seed", "-1"], "`--seed` must be a whole number from 0"),
        (["--control", ","], "`--control` must be names separated by commas; got ','"),
        (["--trend", "parameters", "--against", ""], "`--against` must be names separated by commas; got ''"),
        (["--metric", "cka,"], "`--metric` must be names separated by commas"),
    ],
)
def test_align_refuses_invalid_settings_in_one_line(capsys, shelf, flags, message):
    status, out, err = run(capsys, "align", shelf / "old.parquet", shelf / "new.parquet", *flags)
    assert (status, out, len(err)) == (2, "", 1)
    assert message in err[0]


def test_align_refuses_a_single_file(capsys, shelf):
    status, _, err = run(capsys, "align", shelf / "old.parquet")
    assert (status, len(err)) == (2, 1)
    assert "at least two files" in err[0]
