import copy
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.spaces import calibration, card, gaussian
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_safetensors

from repstitch.embeddings.fingerprints import pair_keys
from repstitch.embeddings.normalising import normalise
from repstitch.errors import InputError
from repstitch.evaluation.scorecard import Scorecard
from repstitch.spaces import Space
from repstitch.stitchers import stitcher as module
from repstitch.stitchers.confidence import Calibration, Confidence
from repstitch.stitchers.maps import AffineMap, ResidualMLP
from repstitch.stitchers.routing import Route
from repstitch.stitchers.stitcher import FILES, Stitcher, load

GOLDEN = Path(__file__).parents[1] / "golden"
D_SOURCE, D_TARGET = 6, 4


def affine(seed: int = 0) -> AffineMap:
    weight, bias = gaussian(D_SOURCE, D_TARGET, seed), gaussian(1, D_TARGET, seed + 1)[0]
    return AffineMap(torch.from_numpy(weight), torch.from_numpy(bias))


def mlp(seed: int = 0, width: int = 5) -> ResidualMLP:
    start = affine(seed)
    hidden, out = gaussian(D_SOURCE, width, seed + 2), gaussian(width, D_TARGET, seed + 3)
    return ResidualMLP(start.weight, start.bias, *(torch.from_numpy(t) for t in (hidden, hidden[0], out)))


def make(map=None, **changes) -> Stitcher:
    fields = {
        "map": affine() if map is None else map,
        "source": card("old", D_SOURCE),
        "target": card("new", D_TARGET, normalised=True),
        "method": "ridge",
        "objective": "match",
        "input_norm": "unit",
        "output_norm": "unit",
        "source_mean": gaussian(1, D_SOURCE, 7)[0],
        "target_mean": gaussian(1, D_TARGET, 8)[0],
        "seen": np.array([3, -5, 2**62], dtype=np.int64),
        "settings": {"penalty": 0.001, "seed": 0},
        "split": {"shares": [0.6, 0.15, 0.25], "seed": 0, "group": None},
        "provenance": {"pairs": {"train": 3}},
    }
    return Stitcher(**(fields | changes))


def plain_translation(stitcher: Stitcher, rows: np.ndarray) -> np.ndarray:
    """Compute the translation in float64, for an affine map that normalises its input and its output to unit length."""
    x = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    y = x @ stitcher.map.weight.double().numpy() + stitcher.map.bias.double().numpy()
    return y / np.linalg.norm(y, axis=1, keepdims=True)


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("map", [affine(), mlp()], ids=["affine", "residual_mlp"])
def test_a_loaded_stitcher_equals_the_saved_one_in_every_value(tmp_path, map):
    saved = make(map)
    loaded = load(saved.save(tmp_path / "s"))
    assert type(loaded.map) is type(map)
    for name, tensor in map.tensors().items():
        assert torch.equal(getattr(loaded.map, name), tensor)
    for name in ("source", "target", "method", "objective", "input_norm", "output_norm", "settings", "split"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert loaded.provenance == saved.provenance
    assert loaded.scorecard == saved.scorecard
    for name in ("source_mean", "target_mean", "seen"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
    rows = gaussian(9, D_SOURCE, 4)
    np.testing.assert_array_equal(loaded.translate(rows), saved.translate(rows))


def test_a_calibration_survives_saving_bit_for_bit(tmp_path):
    saved = make(calibration=calibration(D_SOURCE, pool=972))
    loaded = load(saved.save(tmp_path / "s"))
    assert loaded.calibration is not None
    assert (loaded.calibration.pool, loaded.calibration.level) == (972, 0.9)
    for name, tensor in saved.calibration.tensors().items():  # type: ignore[union-attr]
        assert torch.equal(getattr(loaded.calibration, name), tensor)
    rows = gaussian(9, D_SOURCE, 4)
    for name, values in saved.confidence(rows).to_dict().items():
        np.testing.assert_array_equal(loaded.confidence(rows).to_dict()[name], values)
    assert json.loads((tmp_path / "s" / "config.json").read_text())["confidence"] == {"level": 0.9, "pool": 972}


def test_the_keys_of_the_seen_rows_survive_saving_and_are_part_of_the_version(tmp_path):
    saved = make(seen_rows=pair_keys(gaussian(20, D_SOURCE), gaussian(20, D_TARGET)))
    loaded = load(saved.save(tmp_path / "s"))
    np.testing.assert_array_equal(loaded.seen_rows, saved.seen_rows)
    assert loaded.version == saved.version != make().version
    assert load(make().save(tmp_path / "plain")).seen_rows is None


def test_the_version_depends_on_the_calibration(tmp_path):
    plain, one, other = (make(calibration=c) for c in (None, calibration(D_SOURCE), calibration(D_SOURCE, seed=1)))
    assert len({plain.version, one.version, other.version}) == 3
    assert load(one.save(tmp_path / "s")).version == one.version


def test_the_files_of_a_stitcher_without_calibration_have_no_confidence_part(tmp_path):
    folder = make().save(tmp_path / "s")
    assert "confidence" not in json.loads((folder / "config.json").read_text())
    assert not [name for name in load_file(folder / "model.safetensors") if name.startswith("confidence")]
    assert load(folder).calibration is None


@pytest.mark.parametrize("map", [affine(), mlp()], ids=["affine", "residual_mlp"])
def test_the_version_survives_saving_and_depends_on_the_content(tmp_path, map):
    saved = make(map)
    assert load(saved.save(tmp_path / "s")).version == saved.version == make(map).version
    others = [
        make(replace(map, bias=map.bias + 1e-3)),
        make(map, output_norm="none"),
        make(map, settings={"penalty": 0.01, "seed": 0}),
        make(map, seen=np.array([3], dtype=np.int64)),
        make(map, source=card("old", D_SOURCE, revision="other")),
    ]
    assert len({saved.version, *(other.version for other in others)}) == 1 + len(others)


def test_a_saved_folder_contains_the_four_files_and_no_pickle(tmp_path):
    folder = make().save(tmp_path / "s")
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert all(not path.read_bytes().startswith((b"\x80", b"PK")) for path in folder.iterdir())
    assert "# old → new" in (folder / "README.md").read_text(encoding="utf-8")


def test_missing_parent_folders_are_created(tmp_path):
    assert load(make().save(tmp_path / "a" / "b" / "s")).version == make().version


@pytest.mark.parametrize("broken", ["to_safetensors", "model_card"])
def test_a_save_that_fails_half_way_leaves_no_files(tmp_path, monkeypatch, broken):
    def fail(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, broken, fail)
    with pytest.raises(KeyboardInterrupt):
        make().save(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_every_file_has_the_permissions_of_the_umask(tmp_path):
    """Another user, such as that of a container, can then read what was trained."""
    before = os.umask(0o027)
    try:
        folder = make().save(tmp_path / "s")
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == dict.fromkeys(FILES, "0o640")


def test_a_full_disk_is_an_input_error_and_leaves_no_files(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "to_safetensors", full)
    with pytest.raises(InputError, match=r"cannot be written: .*No space left"):
        make().save(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_an_existing_output_is_refused_and_not_changed(tmp_path, kind):
    out = tmp_path / "s"
    if kind == "file":
        out.write_text("mine")
    elif kind == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        if kind == "folder":
            (out / "notes.txt").write_text("mine")
    before = {p: p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="exists and a stitcher is never overwritten"):
        make().save(out)
    assert {p: p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_folder_that_appears_while_saving_is_not_overwritten(tmp_path, monkeypatch):
    out = tmp_path / "s"

    def meanwhile(tensors):
        out.mkdir()
        return to_safetensors(tensors)

    monkeypatch.setattr(module, "to_safetensors", meanwhile)
    with pytest.raises(InputError, match="never overwritten"):
        make().save(out)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", "must name a folder"),
        (".", "must name a folder"),
        ("..", "must name a folder"),
        (".hidden", "must name a folder"),
        ("file.txt/s", "is not a writable folder"),
        ("file.txt/deeper/s", "is not a writable folder"),
        ("n" * 300, "cannot be created"),
    ],
)
def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(InputError, match=message):
        make().save(out)
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_means_that_share_one_array_can_be_saved(tmp_path):
    mean = np.zeros(3, dtype=np.float32)
    square = AffineMap(torch.eye(3), torch.zeros(3))
    fields = {"source": Space("a", 3), "target": Space("b", 3), "source_mean": mean, "target_mean": mean}
    assert load(make(square, **fields).save(tmp_path / "s")).version == make(square, **fields).version


def edit_config(**changes):
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not DROP}))

    return edit


def edit_tensors(**changes):
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        for name, change in changes.items():
            name = name.replace("__", ".")
            tensors[name] = change(tensors.get(name))
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)

    return edit


def edit_bytes(name: str, change):
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return edit


def set_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = float("nan")
    return tensor


def test_a_loaded_stitcher_does_not_change_when_its_files_are_overwritten(tmp_path):
    folder = make().save(tmp_path / "s")
    loaded, rows = load(folder), gaussian(5, D_SOURCE, 4)
    before = loaded.translate(rows)
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    np.testing.assert_array_equal(loaded.translate(rows), before)
    assert loaded.version == make().version


DROP = object()
TAMPERED = {
    "no config": (lambda f: (f / "config.json").unlink(), "not a complete stitcher: config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "not a complete stitcher"),
    "no scorecard": (lambda f: (f / "scorecard.json").unlink(), "not a complete stitcher: scorecard.json"),
    "empty config": (edit_bytes("config.json", lambda b: b""), "not a complete stitcher: config.json"),
    "empty weights": (edit_bytes("model.safetensors", lambda b: b""), "header too small"),
    "cut config": (edit_bytes("config.json", lambda b: b[:-40]), "not a complete stitcher: config.json"),
    "cut weights": (edit_bytes("model.safetensors", lambda b: b[:-9]), "not fully covered"),
    "cut scorecard": (edit_bytes("scorecard.json", lambda b: b[:1]), "not a complete stitcher: scorecard.json"),
    "binary config": (edit_bytes("config.json", lambda b: b"\xff\xfe\n\n\x00"), "can't decode"),
    "binary weights": (edit_bytes("model.safetensors", lambda b: b"\xff" * 99), "header too large"),
    "deeply nested scorecard": (edit_bytes("scorecard.json", lambda b: b"[" * 10**5), "must be nested less deeply"),
    "scorecard that is a list": (edit_bytes("scorecard.json", lambda b: b"[]"), "must be a JSON object"),
    "scorecard with one key": (
        edit_bytes("scorecard.json", lambda b: b'{"n": 1}'),
        "A Scorecard must have the key 'pool'; it has n",
    ),
    "scorecard without a pool": (
        edit_bytes("scorecard.json", lambda b: b'{"k": 1, "n": 1, "query": 3}'),
        "must have the key 'pool'",
    ),
    "newer format": (edit_config(format_version=2), "has format_version 2; this release reads 1"),
    "no format": (edit_config(format_version=DROP), "has format_version None"),
    "format as text": (edit_config(format_version="1"), "has format_version '1'"),
    "no method": (edit_config(method=DROP), "'method' is missing"),
    "unknown method": (edit_config(method="magic"), "`method` must be one of"),
    "unknown norm": (edit_config(input_norm=["unit"]), "`input_norm` must be one of"),
    "unknown form": (edit_config(form="spline"), "`form` of a map must be one of"),
    "other form": (edit_config(form="affine"), "'affine' must have the tensors"),
    "form that is a list": (edit_config(form=["affine"]), "unhashable"),
    "wider source": (edit_config(source={"name": "old", "dim": 7}), "must have 7 input and 4 output dimensions"),
    "wider target": (edit_config(target={"name": "new", "dim": 5}), "must have 6 input and 5 output dimensions"),
    "space that is text": (edit_config(source="old"), "unknown field"),
    "space that is null": (edit_config(source=None), "not a complete stitcher"),
    "space with an unknown field": (
        edit_config(source={"name": "old", "dim": 6, "tomorrow": 1}),
        "unknown field 'tomorrow'",
    ),
    "settings that are text": (edit_config(settings="x"), "`settings` must be a dict"),
    "NaN weight": (edit_tensors(map__weight=set_nan), "`weight` of a map must be finite"),
    "NaN hidden weight": (edit_tensors(map__out_weight=set_nan), "`out_weight` of a map must be finite"),
    "NaN mean": (edit_tensors(target_mean=set_nan), "must be finite"),
    "one-dimensional weight": (edit_tensors(map__weight=lambda t: t[:, 0].clone()), "`weight` must be"),
    "one-dimensional hidden weight": (
        edit_tensors(map__hidden_weight=lambda t: t[:, 0].clone()),
        "not a complete stitcher",
    ),
    "narrow hidden bias": (edit_tensors(map__hidden_bias=lambda t: t[:-1].clone()), "their shapes differ"),
    "no bias": (edit_tensors(map__bias=lambda t: None), "must have the tensors"),
    "no seen": (edit_tensors(seen=lambda t: None), "'seen' is missing"),
    "seen as floats": (edit_tensors(seen=lambda t: t.float()), "`seen` must be an int64 array"),
    "seen rows as floats": (edit_tensors(seen_rows=lambda t: torch.ones(3, 16)), "`seen_rows` must be a uint8 array"),
    "narrow seen rows": (
        edit_tensors(seen_rows=lambda t: torch.ones(3, 8).byte()),
        r"`seen_rows` must be a uint8 array \(m, 16\); got uint8 of shape \(3, 8\)",
    ),
    "short mean": (edit_tensors(source_mean=lambda t: t[:-1].clone()), "must have the dimensions"),
    "NaN in a confidence": (edit_tensors(confidence__project=set_nan), "`project` of a calibration must be finite"),
    "one-dimensional confidence": (
        edit_tensors(confidence__project=lambda t: t[0].clone()),
        "`project` of a calibration must be",
    ),
    "confidence with a scalar mean": (
        edit_tensors(confidence__mean=lambda t: torch.tensor(1.0)),
        "not a complete stitcher",
    ),
    "confidence with a missing tensor": (edit_tensors(confidence__match=lambda t: None), "missing .* 'match'"),
    "confidence with an extra tensor": (edit_tensors(confidence__more=lambda t: torch.ones(1)), "'more'"),
    "confidence of another width": (
        edit_tensors(
            **{
                f"confidence__{k}": lambda t: torch.eye(7) if t.ndim > 1 else torch.ones(7)
                for k in ("mean", "project", "shared")
            }
        ),
        "`calibration` must have",
    ),
    "confidence without its settings": (
        edit_config(confidence=DROP),
        "disagree on whether the stitcher has a confidence",
    ),
    "confidence that is text": (edit_config(confidence="x"), "not a complete stitcher"),
    "confidence without a pool": (edit_config(confidence={"level": 0.9}), "'pool'"),
    "confidence with a pool of zero": (edit_config(confidence={"pool": 0, "level": 0.9}), "`pool` of a calibration"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(mlp(), method="mlp", calibration=calibration(D_SOURCE)).save(tmp_path_factory.mktemp("whole") / "s")


@pytest.mark.parametrize("name", TAMPERED)
def test_an_incomplete_or_invalid_folder_is_refused_in_one_line(tmp_path, whole, name):
    tamper, message = TAMPERED[name]
    folder = Path(shutil.copytree(whole, tmp_path / "s"))
    tamper(folder)
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "scorecard.json"])
def test_a_folder_in_place_of_a_file_is_refused(tmp_path, whole, name):
    folder = Path(shutil.copytree(whole, tmp_path / "s"))
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(InputError, match="is not a complete stitcher"):
        load(folder)


def test_a_path_without_a_saved_stitcher_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"\x89PNG")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"photos is not a complete stitcher: config\.json"):
        load(tmp_path / "photos")
    for nothing in ("file", "absent"):
        with pytest.raises(InputError, match=r"There is no stitcher .*; pass the folder of a saved stitcher\.$"):
            load(tmp_path / nothing)


def test_the_error_on_a_missing_owner_slash_name_path_suggests_the_hub_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"There is no stitcher owner/name; .*, or hf://owner/name for one on the Hug"):
        load("owner/name")
    for path in ("name", "/owner/name", "./owner", "a/b/c", "owner/"):
        with pytest.raises(InputError, match="There is no stitcher") as error:
            load(path)
        assert "hf://" not in str(error.value)


@pytest.mark.parametrize("form", ["affine", "residual_mlp"])
def test_a_stitcher_of_format_1_still_gives_the_same_translations(form):
    """The expected rows were computed in float64 from the stored weights, without this package."""
    expected = np.load(GOLDEN / "format-1.npz")
    stitcher = load(GOLDEN / f"format-1-{form}")
    np.testing.assert_allclose(stitcher.translate(expected["rows"]), expected[form], atol=1e-6)
    assert stitcher.version == {"affine": "5f152536d74a", "residual_mlp": "7bdd14308422"}[form]
    assert (stitcher.source.name, stitcher.source.prompt, stitcher.target.name) == ("old", "query: ", "new")
    assert stitcher.calibration is None
    assert len(stitcher.seen) == sum(stitcher.provenance["pairs"][part] for part in ("train", "select", "calibrate"))
    assert 0 < stitcher.scorecard.query.recall_at(1).score <= 1


def test_a_stitcher_of_format_1_still_gives_the_same_confidence():
    stitcher = load(GOLDEN / "format-1-confidence")
    with np.load(GOLDEN / "format-1-confidence.npz") as file:
        expected = dict(file)
    rows = expected.pop("rows")
    np.testing.assert_allclose(stitcher.translate(rows), expected.pop("translated"), atol=1e-6)
    measured = stitcher.confidence(rows).to_dict()
    assert set(measured) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("form", ["affine", "residual_mlp", "confidence"])
def test_saving_a_loaded_stitcher_of_format_1_gives_identical_files(tmp_path, form):
    old = GOLDEN / f"format-1-{form}"
    new = load(old).save(tmp_path / "s")
    for name in ("config.json", "scorecard.json", "model.safetensors"):
        assert (new / name).read_bytes() == (old / name).read_bytes()


# --- construction and repr --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": Space("old", 5)}, "must have 5 input and 4 output dimensions, like its spaces; got 6 and 4"),
        ({"target_mean": np.zeros(3, np.float32)}, "must have the dimensions of their spaces"),
        ({"method": "magic"}, "`method` must be one of"),
        ({"objective": "cosine"}, "`objective` must be one of"),
        ({"output_norm": "l1"}, "`output_norm` must be one of unit, none; got 'l1'"),
        ({"seen": np.zeros((1, 2), np.int64)}, "`seen` must be an int64 array"),
        ({"calibration": calibration(5)}, "`calibration` must have the source's 6 dimensions; got 5"),
    ],
)
def test_parts_that_do_not_match_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_a_stitcher_is_shown_in_one_line():
    values = json.loads((GOLDEN / "format-1-confidence" / "scorecard.json").read_text(encoding="utf-8"))
    scored = make(scorecard=Scorecard.from_dict(values))
    assert repr(make()) == "Stitcher(old[6] -> new[4], method='ridge')"
    assert repr(scored) == ("Stitcher(old[6] -> new[4], method='ridge', recall@1=0.205, verdict query='re-embed')")
    long = make(source=card("x" * 256, D_SOURCE), target=card("y" * 256, D_TARGET), scorecard=scored.scorecard)
    assert "\n" not in repr(long)
    assert len(repr(long)) < 200
    markdown = scored._repr_markdown_()
    assert markdown == f"`{scored!r}`\n\n{scored.scorecard._repr_markdown_()}"


def test_a_stitcher_and_its_parts_are_compared_by_identity():
    stitcher = make(calibration=calibration(D_SOURCE))
    again = copy.deepcopy(stitcher)
    assert again.calibration is not None
    pairs = [(stitcher, again), (stitcher.map, again.map), (stitcher.calibration, again.calibration)]
    for one, other in [*pairs, (stitcher.pipeline, again.pipeline)]:
        assert one == one
        assert one != other
        assert len({one, other, one}) == 2
    assert again.version == stitcher.version


def test_the_parts_of_a_stitcher_are_shown_without_their_values():
    stitcher = make(mlp(), calibration=calibration(D_SOURCE, pool=500))
    assert repr(stitcher.map) == "ResidualMLP(6 -> 4)"
    assert repr(stitcher.pipeline) == "Pipeline(unit, ResidualMLP(6 -> 4), unit)"
    assert repr(stitcher.calibration) == "Calibration(pool=500, level=0.9)"
    assert repr(Route(("a",), (stitcher,))) == "Route(old -> new through a)"


def test_a_scorecard_that_is_a_plain_dictionary_is_refused():
    with pytest.raises(InputError, match="`scorecard` must be a Scorecard; got dict"):
        make(scorecard={})


# --- translate --------------------------------------------------------------------------------------------------------


def test_a_single_vector_is_translated_like_a_row():
    stitcher, rows = make(), gaussian(5, D_SOURCE, 4)
    translated = stitcher.translate(rows)
    assert translated.dtype == np.float32
    assert translated.shape == (5, D_TARGET)
    np.testing.assert_allclose(translated, plain_translation(stitcher, rows), atol=1e-6)
    single = stitcher.translate(rows[3])
    assert single.shape == (D_TARGET,)
    np.testing.assert_allclose(single, translated[3], atol=1e-6)


def test_torch_in_gives_torch_out_and_numpy_in_gives_numpy_out():
    stitcher, rows = make(), gaussian(5, D_SOURCE, 4)
    translated = stitcher.translate(torch.from_numpy(rows))
    assert isinstance(translated, torch.Tensor)
    assert type(stitcher.translate(rows)) is np.ndarray
    np.testing.assert_array_equal(translated.numpy(), stitcher.translate(rows))


def test_a_probe_can_be_trained_on_translated_torch_rows():
    translated = make().translate(torch.from_numpy(gaussian(5, D_SOURCE, 4)))
    probe = torch.zeros(D_TARGET, requires_grad=True)
    (translated @ probe).sum().backward()
    assert torch.allclose(probe.grad, translated.sum(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_every_float_type_is_translated(dtype, kind):
    stitcher = make()
    rows = gaussian(5, D_SOURCE, 4).astype(dtype)
    values = torch.from_numpy(rows) if kind == "torch" else rows
    translated = np.asarray(stitcher.translate(values))
    assert translated.dtype == np.float32
    np.testing.assert_allclose(translated, plain_translation(stitcher, rows), atol=2e-6)


def test_translate_does_not_change_the_rows_passed_to_it():
    rows = gaussian(5, D_SOURCE, 4)
    rows.flags.writeable = False
    before = rows.copy()
    make().translate(rows)
    make().translate(rows[:, ::-1])
    np.testing.assert_array_equal(rows, before)


def test_the_memory_layout_of_the_rows_does_not_matter():
    stitcher, rows = make(), gaussian(10, D_SOURCE, 4)
    expected = stitcher.translate(rows[::2])
    np.testing.assert_allclose(stitcher.translate(np.asfortranarray(rows)[::2]), expected, atol=1e-6)
    np.testing.assert_allclose(stitcher.translate(rows[::2].tolist()), expected, atol=1e-6)


def test_no_rows_are_translated_to_no_rows():
    assert make().translate(np.empty((0, D_SOURCE), np.float32)).shape == (0, D_TARGET)


@pytest.mark.parametrize("scale", [1e30, 3e37, 1e-15, 1e-18, 1e-20, 1e-21, 1e-22, 1e-23, 1e-30, 1e-37])
def test_rows_too_large_or_small_to_square_keep_their_direction(scale):
    stitcher, rows = make(), gaussian(5, D_SOURCE, 4)
    expected = plain_translation(stitcher, rows)
    scaled = (rows.astype(np.float64) * scale).astype(np.float32)
    np.testing.assert_allclose(stitcher.translate(scaled), expected, atol=2e-6)
    mixed = np.where(np.arange(5)[:, None] % 2, scaled, rows)
    np.testing.assert_allclose(stitcher.translate(mixed), expected, atol=2e-6)


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_float64_rows_beyond_float32_keep_their_direction(scale):
    stitcher, rows = make(), gaussian(5, D_SOURCE, 4).astype(np.float64)
    np.testing.assert_allclose(stitcher.translate(rows * scale), plain_translation(stitcher, rows), atol=1e-6)


def test_without_input_normalisation_the_length_of_a_row_matters():
    stitcher, rows = make(input_norm="none", output_norm="none"), gaussian(5, D_SOURCE, 4)
    weight, bias = stitcher.map.weight.numpy(), stitcher.map.bias.numpy()
    np.testing.assert_allclose(stitcher.translate(3 * rows), 3 * rows @ weight + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stitcher.translate(0 * rows), np.tile(bias, (5, 1)), atol=1e-6)


@pytest.mark.parametrize("map", [affine(), mlp()], ids=["affine", "residual_mlp"])
def test_output_norm_determines_the_length_of_the_translations(map):
    rows = gaussian(50, D_SOURCE, 4)
    unit = make(map, output_norm="unit").translate(rows)
    plain = make(map, output_norm="none").translate(rows)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert lengths.std() > 0.1
    np.testing.assert_allclose(plain / lengths, unit, atol=1e-6)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_booleans_and_complex_numbers_are_refused(kind, dtype):
    rows = np.ones((2, D_SOURCE), dtype)
    with pytest.raises(InputError, match=rf"`X` must contain floats or integers; got (torch\.)?{dtype}"):
        make().translate(torch.from_numpy(rows) if kind == "torch" else rows)


@pytest.mark.parametrize("rows", [[["a"] * D_SOURCE], [[None] * D_SOURCE], [[2**70] * D_SOURCE], "text", None])
def test_values_that_are_not_numbers_are_refused(rows):
    with pytest.raises(InputError, match=r"`X` must contain floats or integers; got (object|<U)"):
        make().translate(rows)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", ">i4", "uint32", "int64", "uint64"])
def test_integers_are_translated_like_floats_of_the_same_value(dtype):
    stitcher, rows = make(), np.arange(2 * D_SOURCE).reshape(2, -1)
    expected = stitcher.translate(rows.astype(np.float64))
    np.testing.assert_array_equal(stitcher.translate(rows.astype(dtype)), expected)
    np.testing.assert_array_equal(stitcher.translate(rows.tolist()), expected)
    if not dtype.startswith(">"):
        translated = stitcher.translate(torch.from_numpy(rows.astype(dtype)))
        assert isinstance(translated, torch.Tensor)
        np.testing.assert_array_equal(translated.numpy(), expected)


@pytest.mark.parametrize("kind", ["numpy", "torch", "list"])
def test_integers_that_float64_cannot_represent_exactly_are_refused(kind):
    rows = np.ones((2, D_SOURCE), np.int64)
    rows[1, 2] = -(2**53)
    values = {"numpy": rows, "torch": torch.from_numpy(rows), "list": rows.tolist()}[kind]
    with pytest.raises(InputError, match=r"must contain integers below 2\*\*53, which float64 represents exactly"):
        make().translate(values)
    rows[1, 2] += 1
    assert make().translate(rows).shape == (2, D_TARGET)


def test_an_integer_array_without_rows_is_translated_to_no_rows():
    assert make().translate(np.empty((0, D_SOURCE), np.int64)).shape == (0, D_TARGET)


@pytest.mark.parametrize("shape", [(2, 5), (2, 7), (5,), (), (2, 2, 6), (6, 2)])
def test_rows_of_another_width_are_refused(shape):
    with pytest.raises(InputError, match=r"`X` must be \(n, 6\) or \(6,\), the dimensions of space 'old'"):
        make().translate(np.ones(shape, np.float32))


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(InputError, match="its rows have different lengths"):
        make().translate([[1.0, 2.0], [3.0]])  # type: ignore[call-overload]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_that_are_not_finite_are_refused_with_their_row_number(value, dtype):
    rows = gaussian(5, D_SOURCE, 4).astype(dtype)
    rows[3, 1] = value
    with pytest.raises(InputError, match=r"X must be finite; 1 of 5 rows \(first: row 3\) contain NaN or Inf"):
        make().translate(rows)
    with pytest.raises(InputError, match="contain NaN or Inf"):
        make(input_norm="none").translate(rows)


def test_rows_that_are_all_zeros_are_refused_with_their_row_number():
    rows = gaussian(5, D_SOURCE, 4)
    rows[[2, 4]] = 0
    with pytest.raises(InputError, match=r"2 of 5 rows \(first: row 2\) contain only zeros"):
        make().translate(rows)


def test_a_translation_that_is_all_zeros_is_refused():
    map = AffineMap(torch.zeros(D_SOURCE, D_TARGET), torch.zeros(D_TARGET))
    with pytest.raises(InputError, match="the translation must have a direction"):
        make(map).translate(gaussian(2, D_SOURCE))


def test_a_translation_that_overflows_is_refused():
    map = AffineMap(torch.full((D_SOURCE, D_TARGET), 3e38), torch.zeros(D_TARGET))
    with pytest.raises(InputError, match="the translation must be finite"):
        make(map, input_norm="none").translate(np.full((2, D_SOURCE), 9.0, np.float32))


def test_normalising_no_rows_gives_no_rows():
    assert normalise(torch.empty(0, 3), "unit").shape == (0, 3)


def test_a_failed_download_from_the_hub_is_an_input_error(monkeypatch):
    import huggingface_hub

    def refuse(*_args, **_kwargs):
        raise OSError("no such\nrepository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="hf://o/n could not be downloaded from the Hub: no such repository"):
        load("hf://o/n")


def test_a_stitcher_pushed_to_the_hub_can_be_loaded_from_there(tmp_path, monkeypatch):
    import huggingface_hub

    class Api:
        def __init__(self, token):
            assert token == "secret"

        def create_repo(self, repo_id, exist_ok):
            assert (repo_id, exist_ok) == ("o/n", True)

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, tmp_path / "hub")
            return "address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_kwargs: os.fspath(tmp_path / "hub"))
    assert make().push_to_hub("o/n", token="secret") == "address"
    assert load("hf://o/n").version == make().version


# --- confidence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("map", [affine(), mlp()], ids=["affine", "residual_mlp"])
def test_confidence_is_computed_from_the_normalised_rows_and_the_raw_map_output(map):
    stitcher, rows = make(map, calibration=calibration(D_SOURCE)), gaussian(9, D_SOURCE, 4) * 7
    unit = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    expected = stitcher.calibration.measure(unit, map(unit))  # type: ignore[union-attr]
    translated, confidence = stitcher.translate_with_confidence(rows)
    np.testing.assert_array_equal(translated, stitcher.translate(rows))
    measures = confidence.to_dict()
    assert list(measures) == list(expected)
    for name, values in measures.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=1e-4)
        np.testing.assert_array_equal(stitcher.confidence(rows).to_dict()[name], values)


def test_the_name_of_p_match_contains_the_pool_in_the_dictionary_and_not_in_the_record():
    confidence = make(calibration=calibration(D_SOURCE, pool=972)).confidence(gaussian(3, D_SOURCE))
    assert isinstance(confidence, Confidence)
    assert confidence.pool == 972
    measures = confidence.to_dict()
    assert list(measures) == ["p_match@972", "cosine_lower", "p_typical", "shared", "distance"]
    assert measures["p_match@972"] is confidence.p_match
    for name in list(measures)[1:]:
        assert measures[name] is getattr(confidence, name)
    assert repr(confidence) == "Confidence(3 rows, p_match in a pool of 972)"


def test_tensors_lists_and_arrays_have_the_same_confidence():
    stitcher, rows = make(calibration=calibration(D_SOURCE)), gaussian(3, D_SOURCE)
    expected = stitcher.confidence(rows).p_match
    np.testing.assert_array_equal(stitcher.confidence(torch.from_numpy(rows)).p_match, expected)
    np.testing.assert_allclose(stitcher.confidence(rows.tolist()).p_match, expected, rtol=1e-5)


def test_a_single_vector_has_one_number_for_each_measure():
    stitcher, rows = make(calibration=calibration(D_SOURCE)), gaussian(2, D_SOURCE, 4)
    for name, value in stitcher.confidence(rows[0]).to_dict().items():
        assert value.shape == ()
        assert value == pytest.approx(stitcher.confidence(rows).to_dict()[name][0], rel=1e-4)


def test_moving_a_stitcher_to_a_device_moves_its_calibration(monkeypatch):
    stitcher, moved = make(calibration=calibration(D_SOURCE)), []
    monkeypatch.setattr(Calibration, "to", lambda self, device: moved.append((self, device)) or self)
    assert stitcher.to("cpu").calibration is stitcher.calibration
    assert moved == [(stitcher.calibration, "cpu")]


def test_confidence_is_refused_without_a_calibration_and_for_bad_rows():
    with pytest.raises(InputError, match="has no calibration, so it cannot compute confidence; train it again"):
        make().confidence(gaussian(2, D_SOURCE))
    with pytest.raises(InputError, match="X must be finite"):
        make(calibration=calibration(D_SOURCE)).confidence(np.full((1, D_SOURCE), np.nan, np.float32))
