"""The command `transfer`: typical uses, and calls that are refused in one line without writing anything."""

import json
import re

import numpy as np
import pytest
from helpers.contexts import content, dictionary, directions, mlp, rotating, stitcher, two_views
from helpers.spaces import card, names
from PIL import Image

from repstitch.cli.main import main
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.transfer import files
from repstitch.transfer.kinds import Directions, Probe

OLD, NEW, LABELS, R = two_views(400)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    rotating(R).save(folder / "old-new")
    rotating(R.T.copy(), "new", "old").save(folder / "new-old")
    stitcher(mlp(8, 8), "new", "old").save(folder / "bent")
    for rows in (OLD, NEW):
        write(folder / f"{rows.space.name}.parquet", rows)
    lines = ["id,kind", *(f"{key},{one}" for key, one in zip(names(400), LABELS, strict=True))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    centres = [OLD.vectors[f"class {k}" == LABELS].mean(0) for k in range(3)]
    prompts = np.array([f"class {k}" for k in range(3)], dtype=object)
    write(folder / "prompts.parquet", Embeddings(np.stack(centres).astype(np.float32), card("old", 8), prompts))
    for k in range(2):
        write(folder / f"kind{k}.parquet", OLD.take(np.flatnonzero(f"class {k}" == LABELS)))
    files.write(folder / "v.safetensors", directions(8))
    files.write(folder / "sae.safetensors", dictionary(8))
    np.savez(folder / "head.npz", coef=np.eye(8)[:3], intercept=np.zeros(3))
    np.savez(folder / "one.npz", coef=np.eye(8)[:1], intercept=np.zeros(1))
    (folder / "classes.txt").write_text("class 0\nclass 1\nclass 2\n")
    return folder


def run(shelf, capsys, line: str) -> tuple[int, str, str]:
    """Run the command; `@` stands for the folder `shelf`. Return its status, output and errors."""
    status = main(["transfer", *(part.replace("@", f"{shelf}/") for part in line.split())])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


BOTH = "--forward @old-new --backward @new-old"
ROWS = "--source @old.parquet --target @new.parquet"
PROVEN = f"{ROWS} --labels @labels.csv:kind"


def test_directions_are_transferred_and_keep_their_names(shelf, capsys, tmp_path):
    out = tmp_path / "carried.safetensors"
    status, text, _ = run(shelf, capsys, f"@v.safetensors --forward @old-new --out {out}")
    assert status == 0
    assert text.splitlines() == [
        f"3 directions: old -> new, written to {out}",
        "forward: the stitcher's exact affine map, without output normalisation",
        "row normalisation: unit length for old, unit length for new",
    ]
    carried = content(out)
    np.testing.assert_allclose(carried.values, directions(8).values @ R, atol=1e-5)
    assert carried.names == ("v0", "v1", "v2")


def test_a_probe_is_trained_evaluated_transferred_and_plotted(shelf, capsys, tmp_path):
    out, plot = tmp_path / "probe.npz", tmp_path / "proof.png"
    status, text, _ = run(shelf, capsys, f"{BOTH} {PROVEN} --out {out} --plot {plot}")
    assert status == 0
    for part in (
        "a probe of 3 classes: old -> new",
        "transferred probe",
        "transferred, map fitted to shuffled pairs",
        "accuracy as a share of the native probe's: 1.0",
        "class directions (class mean minus overall mean), transferred to the target: mean cosine 0.9",
        "labels saved: a native probe needs",
    ):
        assert part in text
    probe = content(out)
    best = np.array([probe.classes[k] for k in probe.class_scores(NEW.vectors).argmax(1)])
    assert (best == LABELS).mean() > 0.95
    assert Image.open(plot).size[0] > 1000


def test_json_contains_the_whole_proof(shelf, capsys):
    status, text, _ = run(shelf, capsys, f"{BOTH} {PROVEN} --json --seed 1")
    printed = json.loads(text)
    assert status == 0
    assert printed["proof"]["accuracy"]["carried"]["score"] > 0.9
    assert printed["proof"]["label_efficiency"]["matches"]
    assert printed["out"] is None
    assert len(printed["forward"]) == len(printed["backward"]) == 12


def test_the_seed_changes_only_the_controls(shelf, capsys):
    def proof(seed: int) -> dict:
        return json.loads(run(shelf, capsys, f"--backward @new-old {PROVEN} --json --seed {seed}")[1])["proof"]

    one, other = proof(1), proof(2)
    assert one["accuracy"]["carried"]["score"] == other["accuracy"]["carried"]["score"]
    assert one["accuracy"]["random"] != other["accuracy"]["random"]
    assert one["accuracy"]["shuffled"] != other["accuracy"]["shuffled"]


def test_a_head_with_classes_from_the_caller_is_evaluated(shelf, capsys, tmp_path):
    line = f"@head.npz --backward @new-old {PROVEN} --classes @classes.txt --out {tmp_path / 'head.safetensors'}"
    status, text, _ = run(shelf, capsys, line)
    assert status == 0
    assert "transferred probe" in text
    assert content(tmp_path / "head.safetensors").classes == ("class 0", "class 1", "class 2")


def test_a_dictionary_needs_both_stitchers_and_is_evaluated_on_rows_if_there_are_any(shelf, capsys, tmp_path):
    status, text, _ = run(shelf, capsys, f"@sae.safetensors {BOTH} {ROWS} --out {tmp_path / 'sae.safetensors'}")
    assert status == 0
    assert "correlation of transferred with original features: mean 1.000" in text
    assert content(tmp_path / "sae.safetensors").subtract_b_dec is True
    assert run(shelf, capsys, f"@sae.safetensors {BOTH} --out {tmp_path / 'again.safetensors'}")[0] == 0


def test_a_concept_is_made_from_two_files(shelf, capsys, tmp_path):
    concept = "--concept @kind0.parquet --against @kind1.parquet"
    assert run(shelf, capsys, f"{concept} --forward @old-new --out {tmp_path / 'v.npz'}")[0] == 0
    directions_read = content(tmp_path / "v.npz")
    assert isinstance(directions_read, Directions)
    assert directions_read.names == ("kind0",)
    line = f"{concept} --by classifier --backward @new-old --out {tmp_path / 'w.npz'}"
    assert run(shelf, capsys, line)[0] == 0
    assert isinstance(content(tmp_path / "w.npz"), Probe)


def test_class_names_make_a_probe_that_is_evaluated(shelf, capsys, tmp_path):
    line = "--prompts @prompts.parquet --forward @old-new --target @new.parquet --labels @labels.csv:kind"
    status, text, _ = run(shelf, capsys, f"{line} --out {tmp_path / 'names.safetensors'} --plot {tmp_path / 'p.svg'}")
    assert status == 0
    assert "probe from class names" in text
    assert "balanced accuracy of guessing: 0.333" in text
    assert content(tmp_path / "names.safetensors").classes == ("class 0", "class 1", "class 2")
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


def test_an_mlp_reports_that_its_jacobian_is_used(shelf, capsys, tmp_path):
    line = f"@head.npz --backward @bent --target @new.parquet --out {tmp_path / 'head.npz'}"
    status, text, _ = run(shelf, capsys, line)
    assert status == 0
    assert "Jacobian averaged over 400 rows, including normalisation: a linear approximation" in text


REFUSED = {
    "": "Nothing to transfer: pass FILE, --concept with --against, --prompts, or --labels",
    "@v.safetensors": "`--forward`, a stitcher from source to target, or `--backward`",
    "@v.safetensors --out OUT.npz": "`--forward`, a stitcher from source to target, or `--backward`",
    "@v.safetensors --backward @new-old --out OUT.npz": "`--forward`, a stitcher from source to target, is needed",
    "@v.safetensors --forward @new-old --backward @new-old --out OUT.npz": "must map the target space of `--forward`",
    "@v.safetensors --forward @old-new --out OUT.txt": r"end in .safetensors or .npz \(or .npy for directions\); got",
    "--concept x --against y --forward @none --out OUT.txt": "`--out` must end in .safetensors, .npz or .npy; got",
    "--concept x --against y --by classifier --backward @none --out OUT.npy": "must end in .safetensors or .npz; got",
    "--prompts x --forward @none --out OUT.npy": "`--out` must end in .safetensors or .npz; got",
    "@none.npz --directions --forward @none --out OUT.txt": "`--out` must end in .safetensors, .npz or .npy; got",
    "@v.safetensors --forward @old-new --out nowhere/OUT.npz": "must be in an existing folder",
    "@v.safetensors --forward @old-new --out @v.safetensors": "exists and is never overwritten",
    "@v.safetensors --prompts @prompts.parquet --forward @old-new --out OUT.npz": "Pass only one of FILE",
    "@none.npz --forward @old-new --out OUT.npz": "There is no file",
    "@labels.csv --forward @old-new --out OUT.npz": "labels.csv must end in one of .npz",
    "@v.safetensors --forward @none --out OUT.npz": "There is no stitcher",
    "@head.npz --backward @bent --out OUT.npz": "An MLP is not a single matrix",
    "@head.npz --backward @new-old --renormalise --out OUT.npz": "`--renormalise` applies only to directions",
    "@head.npz --backward @new-old --jacobian --out OUT.npz": "`--jacobian` requires --source or --target",
    f"@head.npz --backward @new-old {PROVEN}": "pass `--classes`, one name per score",
    "@v.safetensors --forward @old-new --classes @classes.txt --out OUT.npz": "`--classes` applies only to a probe",
    "@head.npz --backward @new-old --classes @none --out OUT.npz": "`--classes` .*none cannot be read",
    f"@v.safetensors {BOTH} {PROVEN}": "`--labels` are used to evaluate probes, not 3 directions",
    "--concept @kind0.parquet --forward @old-new --out OUT.npz": "`--concept` needs `--against`",
    "--concept @kind0.parquet --against @new.parquet --forward @old-new --out OUT.npz": "`--against` must be in space",
    "--against @kind0.parquet --labels x.csv:y": "`--against` requires --concept",
    f"--by means {BOTH} {PROVEN}": "`--by` requires --concept",
    f"--names x.txt {BOTH} {PROVEN}": "`--names` requires --prompts",
    "@v.safetensors --forward @old-new --out OUT.npz --plot p.png": "`--plot` requires --labels",
    f"{BOTH} --labels @labels.csv:kind": "`--labels` requires --target",
    f"@v.safetensors --forward @old-new {ROWS}": "nothing is evaluated",
    "@v.safetensors --forward @old-new --seed -1 --out OUT.npz": "`--seed` must be a whole number",
    "@v.safetensors --forward @old-new --source-ids x.txt --out OUT.npz": "`--source-ids` requires --source",
    f"--prompts @prompts.parquet {BOTH} --out OUT.npz": "`--backward` cannot be combined with --prompts",
    "--concept @kind0.parquet --against @kind0.parquet --backward @new-old --by classifier --out OUT.npz": "same mean",
    f"@head.npz --backward @new-old {PROVEN} --out OUT.npy": "`--out` must end in .safetensors or .npz",
    f"{BOTH} {PROVEN} --out OUT.npy": "`--out` must end in .safetensors or .npz",
    f"@one.npz --backward @new-old {PROVEN}": "pass `--classes`, two names, of which the second",
    f"{BOTH} --target @new.parquet --labels @labels.csv:kind": "and the rows of both spaces are needed",
    f"{BOTH} {ROWS} --labels @labels.csv:other": "`--labels` must name a column as labels.csv:COLUMN, where",
    f"{BOTH} {ROWS} --labels @labels.csv:id": "labels.csv:id names the ids",
    f"{BOTH} {PROVEN} --plot p.bmp": "`--plot` must end in .png, .svg or .pdf",
    f"{BOTH} --source @new.parquet --target @old.parquet --labels @labels.csv:kind": "`--target` must be in space",
    "--prompts @prompts.parquet --backward @new-old --out OUT.npz": "`--backward` cannot be combined with --prompts",
    "--prompts @new.parquet --forward @old-new --out OUT.npz": "`--prompts` must be in space 'old'",
    f"@sae.safetensors {BOTH} --no-subtract-b-dec --out OUT.safetensors": "states `--subtract-b-dec` as true",
}  # fmt: skip


@pytest.mark.parametrize("line", list(REFUSED))
def test_invalid_combinations_are_refused_in_one_line_and_nothing_is_written(
    shelf, capsys, tmp_path, monkeypatch, line
):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in shelf.iterdir())
    status, text, errors = run(shelf, capsys, line)
    lines = [one for one in errors.splitlines() if one.startswith("repstitch transfer: ")]
    assert (status, text) == (2, "")
    assert len(lines) == 1
    assert re.search(REFUSED[line], lines[0]), lines[0]
    assert not list(tmp_path.iterdir())
    assert sorted(path.name for path in shelf.iterdir()) == before


def test_help_shows_the_flags_and_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["transfer", "--help"])
    text = capsys.readouterr().out
    for flag in ("--forward", "--backward", "--labels", "--concept", "--prompts", "--subtract-b-dec", "--jacobian"):
        assert flag in text
    assert "example:" in text


def test_an_interrupted_plot_leaves_no_files(shelf, capsys, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def stopped(self, path, **kwargs):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", stopped)
    line = f"--backward @new-old {PROVEN} --out {tmp_path / 'p.npz'} --plot {tmp_path / 'p.png'}"
    assert run(shelf, capsys, line)[0] == 130
    assert not list(tmp_path.iterdir())


def test_incompatible_stitchers_are_refused_before_any_rows_are_read(shelf, capsys, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("rows were read")

    monkeypatch.setattr("repstitch.transfer.context.read", never)
    status, _, error = run(shelf, capsys, f"--forward @old-new --backward @old-new {PROVEN}")
    assert status == 2
    assert "must map the target space of `--forward`" in error
