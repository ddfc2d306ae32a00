"""Studies on encoders with random weights: the study file, the files that a run writes, and how a run resumes."""

import json
import os
import re
import shutil

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import timm
import torch
from helpers.encoders import DATA, needs_data, read
from helpers.sentence_models import save_reader
from PIL import Image

from repstitch import encoders
from repstitch.alignment.result import Atlas
from repstitch.cli.main import main
from repstitch.encoders import catalogue
from repstitch.encoders.catalogue import Card
from repstitch.errors import InputError, NotFoundError
from repstitch.workflows import study
from repstitch.workflows.study_file import read_study
from repstitch.workflows.study_report import findings, summary

N = 24


def fake_atlas(experiment, paths, against, folder):
    """Return an atlas without computing a metric: a pair's score depends on the lengths of the two names."""
    spaces = [read(path).space for path in paths]
    pairs = [
        {"source": a.name, "target": b.name, "metric": metric, "score": 1 / (1 + abs(len(a.name) - len(b.name)))}
        | {"null": 0.1, "p": 0.01, "q": 0.02, "calibrated": 0.3, "se": 0.01}
        for metric in experiment.metrics
        for i, a in enumerate(spaces)
        for b in spaces[i + 1 :]
    ]
    values = {
        "n": N,
        "k": experiment.k,
        "spaces": [space.to_dict() for space in spaces],
        "metrics": {metric: {"symmetric": True} for metric in experiment.metrics},
        "pairs": pairs,
        "against": against,
    }
    return Atlas(values)


@pytest.fixture(scope="module")
def made_data(tmp_path_factory):
    """Return a data folder with images, the cards of two encoders, and existing vectors of the same images."""
    root = tmp_path_factory.mktemp("study") / "data"
    for folder in ("images", "cards", "vectors"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "images" / f"{i:02d}.png")
    ids = [f"{i:02d}.png" for i in range(N)]
    for i, name in enumerate(("small", "large")):
        torch.manual_seed(i)
        model = timm.create_model("test_vit", num_classes=0, img_size=32)
        args = {"input_size": (3, 32, 32), "model_args": {"img_size": 32}, "pooling": "cls", "parameters": 10 + i}
        card = Card(name, "timm:test_vit", **args, family="vit", objective=name)
        encoders.save(encoders.from_module(model, card, device="cpu"), root / "cards")
    np.save(root / "vectors" / "mine.npy", random.standard_normal((N, 5)).astype(np.float16))
    (root / "vectors" / "ids.txt").write_text("\n".join(ids))
    return root


@pytest.fixture
def data(made_data, tmp_path):
    """Return a copy of that folder, which a test may change."""
    return shutil.copytree(made_data, tmp_path / "data")


STUDY = """
about = "Are they alike?"
[[experiment]]
name = "first"
metrics = ["mutual_knn"]
k = 3
trend = "parameters"
against = "files"
control = ["family"]
[[experiment.group]]
name = "vision"
data = "images"
layers = "all"
encoders = ["cards/small.toml", { encoder = "cards/large.toml", name = "big", family = "vast" }]
[[experiment.group]]
name = "files"
files = [{ file = "vectors/mine.npy", ids = "vectors/ids.txt", name = "mine", family = "none", modality = "image" }]
"""


MINE, BIG = 'file = "vectors/mine.npy"', 'encoder = "cards/large.toml"'


def write(tmp_path, text=STUDY):
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    return tmp_path / "s.toml"


@pytest.fixture
def faked(monkeypatch):
    monkeypatch.setattr(study, "_align", fake_atlas)
    monkeypatch.setattr(study, "_draw", lambda atlas, folder: [folder / "map.png"])


def run(tmp_path, data, text=STUDY, **options):
    return study.run(write(tmp_path, text), tmp_path / "out", data=data, device="cpu", **options)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_included_studies_name_encoders_of_the_catalogue():
    cards = catalogue.cards()
    prh, local = read_study("prh"), read_study("local")
    vision, pairs = prh.experiments
    assert [len(group.encoders) for group in (*vision.group, *pairs.group)] == [17, 17, 20]
    assert {name for experiment in prh.experiments for group in experiment.group for name in group.encoders} <= set(
        cards
    )
    assert [group.layers for group in pairs.group] == ["all", "all"]
    assert [experiment.name for experiment in local.experiments] == ["vision", "vision-language"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'about = "Are they alike?"',
            'title = "x"',
            "must have .*experiment.* tables and no other key than 'about'; got title, experiment",
        ),
        ("k = 3", "neighbours = 3", "has the unknown key 'neighbours'; allowed keys are name, group, metrics"),
        ("k = 3", 'k = "3"', "'k' must be int; got '3'"),
        ('name = "first"', "", "must have 'name' in each experiment"),
        ('name = "first"', 'name = "a/b"', "must use plain names without slashes, .* got 'a/b'"),
        ('"mutual_knn"', '"cosine"', "'first', 'metrics' must be one of mutual_knn, .*; got 'cosine'"),
        ('"parameters"', '"colour"', "'trend' must be one of parameters; got 'colour'"),
        ('against = "files"', 'against = "text"', "'against' must be one of vision, files; got 'text'"),
        ('["family"]', '["size"]', "'control' must be one of family, architecture, .*; got 'size'"),
        ('data = "images"\n', "", "group 'vision' must have 'data', the items that its encoders read"),
        ('layers = "all"', 'layers = "last"', r"'layers' must be all, or a list such as \[1, 6, 12\]; got 'last'"),
        ('name = "files"', 'name = "vision"', "has the name 'vision' twice"),
        ('name = "files"\nfiles', 'name = "files"\nfile', "has the unknown key 'file'"),
        ("[[experiment.group]]", "[[experiment.group]", "cannot be read"),
        ('"Are they alike?"', "[" * 100_000, "cannot be read: s.toml must be nested less deeply"),
        ("k = 3", "k = true", "'k' must be int; got True"),
        ("k = 3", "k = -3", "'k' must be at least 1; got -3"),
        ("k = 3", "permutations = -1", "'permutations' must be from 0 to 100,000; got -1"),
        ("k = 3", "seed = 99999999999", "'seed' must be a whole number from 0 to 4294967295; got 99999999999"),
        ("k = 3", "permutations = 1000000000000", "'permutations' must be from 0 to 100,000; got 1000000000000"),
        ('"parameters"', '""', "'trend' must be one of parameters; got ''"),
        ('name = "first"', 'name = "a\\u0000b"', "must use plain names"),
        ('["mutual_knn"]', "[]", "'metrics' must name at least one of mutual_knn"),
        ('layers = "all"', "layers = []", r"'layers' must be all, or a list such as \[1, 6, 12\]; got \[\]"),
        ('layers = "all"', "layers = [true]", "'layers' must be all, or a list"),
        ('name = "files"\nfiles', 'name = "files"\nlimit = -5\nfiles', "'limit' must be at least 1; got -5"),
    ],
)
def test_an_invalid_study_file_is_refused(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        read_study(write(tmp_path, STUDY.replace(old, new, 1)))


def test_a_group_without_members_is_refused(tmp_path):
    text = re.sub("files = .*", "", STUDY)
    with pytest.raises(InputError, match="group 'files' must have 'encoders' or 'files'; it has neither"):
        read_study(write(tmp_path, text))


def test_an_unknown_study_name_is_refused_with_a_list_of_studies(tmp_path):
    with pytest.raises(NotFoundError, match=r"There is no study 'phr'; pass a \.toml file, or one of local, prh"):
        read_study("phr")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "big"', 'name = "mine"', "has the name 'mine' twice"),
        ('name = "big"', "layer = 1", "'layer' of .* and 'layers' of its group cannot be combined"),
        ('name = "big"', 'poling = "cls"', "'poling' is not a setting of an encoder"),
        ('name = "big"', 'device = "cpu"', "'device' is not a setting of an encoder"),
        ('encoder = "cards/large.toml", ', "", "'encoders' of group 'vision' must list encoder names"),
        (MINE, "file = 3", "'file' in 'files' of group 'files' must be str; got 3"),
        (MINE, 'file = "vectors/no.npy"', "'file' in 'files' of group 'files' must be a file"),
        (MINE, MINE + ', card = "nope"', "There is no card 'nope'"),
        (MINE, MINE + ", parameters = true", "'parameters' in 'files' .* got True"),
        (MINE, MINE + ", parameters = -1", "'parameters' in .* must not be negative"),
        (MINE, 'path = "x"', "'files' of group 'files' must list tables with 'file'"),
        (BIG, BIG + ", parameters = true", "'parameters' in 'encoders' .* got True"),
        (BIG, BIG + ", checkpoint = 1", "'checkpoint' in 'encoders' .* got 1"),
        ("encoders = [", "encoders = [1, ", "must list encoder names, or tables with 'encoder'; got 1"),
    ],
)
def test_an_invalid_member_is_refused_before_anything_runs(tmp_path, data, old, new, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, data, STUDY.replace(old, new))
    assert not (tmp_path / "out").exists()


def test_the_arguments_of_a_run_are_checked(tmp_path, data):
    with pytest.raises(InputError, match=r"`data` must be the folder .*; there is no nowhere"):
        run(tmp_path, "nowhere")
    with pytest.raises(InputError, match=r"`only` must be one of the experiments of s \(first\); got 'second'"):
        run(tmp_path, data, only="second")


def test_missing_items_are_reported_for_the_group_not_the_data_folder(tmp_path, data):
    with pytest.raises(InputError, match="Group 'vision': 'data' must be"):
        run(tmp_path, data, STUDY.replace('data = "images"', 'data = "nowhere.txt"'))


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_run_writes_embeddings_an_atlas_and_a_report(tmp_path, data, faked):
    result = run(tmp_path, data)["first"]

    place = tmp_path / "out" / "first"
    depth = len(list((place / "embeddings" / "small").glob("*.parquet")))
    assert depth == len(list((place / "embeddings" / "big").glob("*.parquet"))) > 1
    layer = read(place / "embeddings" / "big" / "big.layer02.parquet")
    single = encoders.load_encoder(str(data / "cards" / "large.toml"), layer=2, device="cpu")
    np.testing.assert_allclose(layer.vectors, single.encode(sorted((data / "images").iterdir())), atol=1e-5)
    assert (layer.space.layer, layer.space.family, layer.space.parameters) == (2, "vast", 11)
    mine = read(place / "embeddings" / "mine.parquet")
    np.testing.assert_array_equal(mine.vectors, np.load(data / "vectors" / "mine.npy"))
    assert (mine.space.name, mine.space.family, mine.ids[3]) == ("mine", "none", "03.png")

    atlas = json.loads((place / "atlas.json").read_text())
    assert atlas == result.atlas.to_dict()
    assert atlas["against"] == ["mine"]
    assert len(atlas["spaces"]) == 2 * depth + 1
    assert pq.read_table(place / "pairs.parquet").to_pylist() == atlas["pairs"]
    assert pyarrow.csv.read_csv(place / "pairs.csv").to_pylist() == atlas["pairs"]
    report = (place / "REPORT.md").read_text()
    for line in ("# first", "Are they alike?", f"{2 * depth + 1} spaces, {N} items", *result.findings):
        assert line in report
    assert "![map](map.png)" in report
    assert "left out" not in report


def test_a_second_run_embeds_nothing_again(tmp_path, data, faked, monkeypatch):
    first = run(tmp_path, data)
    monkeypatch.setattr(study, "load_encoder", lambda *_, **__: pytest.fail("the embeddings exist already"))
    assert run(tmp_path, data) == first


def test_an_interrupted_run_resumes(tmp_path, data, faked, monkeypatch):
    def stop(path, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study, "_copy", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, data)
    loaded = []
    monkeypatch.setattr(study, "load_encoder", lambda *args, **_: loaded.append(args))
    assert run(tmp_path, data)["first"].missing == {}
    assert loaded == []


def test_embeddings_of_other_items_or_settings_are_refused(tmp_path, data, faked):
    run(tmp_path, data)
    with pytest.raises(InputError, match="small was made with other settings or from other items; remove it"):
        run(tmp_path, data, STUDY.replace('layers = "all"', "layers = [1]"))
    with pytest.raises(InputError, match=r"mine.parquet was made with other settings"):
        run(tmp_path, data, STUDY.replace('family = "none"', 'family = "some"'))
    (data / "images" / "00.png").unlink()
    with pytest.raises(InputError, match="small was made with other settings or from other items"):
        run(tmp_path, data)


@pytest.mark.parametrize("kind", ["image", "vectors", "ids"])
def test_items_replaced_at_the_same_size_and_time_are_refused(tmp_path, data, faked, kind):
    run(tmp_path, data)
    path = data / {"image": "images/03.png", "vectors": "vectors/mine.npy", "ids": "vectors/ids.txt"}[kind]
    content, times = bytearray(path.read_bytes()), path.stat()
    content[-30] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    name = "small" if kind == "image" else r"mine\.parquet"
    with pytest.raises(InputError, match=f"{name} was made with other settings or from other items"):
        run(tmp_path, data)


@pytest.mark.parametrize("ending", [".ids.txt", "ids.txt", ".ids.npy"])
def test_ids_beside_a_file_that_have_changed_are_refused(tmp_path, data, faked, ending):
    ids = (data / "vectors" / "ids.txt").read_text().split()
    (data / "vectors" / "ids.txt").unlink()
    path = data / "vectors" / (ending if ending == "ids.txt" else f"mine{ending}")

    def put(ids: list[str]) -> None:
        np.save(path, ids) if path.suffix == ".npy" else path.write_text("\n".join(ids))

    text = STUDY.replace('ids = "vectors/ids.txt", ', "")
    put(ids)
    first = run(tmp_path, data, text)
    (data / "vectors" / "other.ids.txt").write_text("of another file")
    assert run(tmp_path, data, text) == first
    put(ids[::-1])
    with pytest.raises(InputError, match=r"mine\.parquet was made with other settings or from other items"):
        run(tmp_path, data, text)


def test_embeddings_of_a_model_whose_weights_were_replaced_are_refused(tmp_path, data, faked):
    first = run(tmp_path, data)
    weights = data / "cards" / "small.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    assert run(tmp_path, data) == first  # a model that is not there any more is not needed
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="small was made with other settings or from other items"):
        run(tmp_path, data)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_embeddings_of_a_model_folder_that_has_changed_are_refused(tmp_path, data, faked, name):
    save_reader(data / "reader")
    (data / "t.txt").write_text("the cat\na dog\n" * 12)
    group = '[[experiment.group]]\nname = "words"\ndata = "t.txt"\nencoders = [{encoder = "reader", name = "words"}]\n'
    first = run(tmp_path, data, STUDY + group)
    assert run(tmp_path, data, STUDY + group) == first
    path = data / "reader" / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(InputError, match=r"words\.parquet was made with other settings or from other items"):
        run(tmp_path, data, STUDY + group)


def test_embeddings_of_an_older_version_are_used_and_those_of_an_unreadable_note_are_not(tmp_path, data, faked):
    first = run(tmp_path, data)
    for name in ("small", "mine"):
        note_file = tmp_path / "out" / "first" / "embeddings" / f"{name}.json"
        note = json.loads(note_file.read_text())
        assert len(note.pop("content")) >= 64
        assert [note.pop(key) for key in ("weights", "settings", "ids_read") if key in note]  # added later still
        note_file.write_text(json.dumps(note, sort_keys=True))
    assert run(tmp_path, data) == first
    for damaged in ("", "[]", note_file.read_text()[:20]):
        note_file.write_text(damaged)
        with pytest.raises(InputError, match=r"mine\.parquet was made with other settings"):
            run(tmp_path, data)


def test_a_file_whose_copy_was_killed_is_copied_again(tmp_path, data, faked, monkeypatch):
    def killed(out, rows):
        left = out.parent / ".repstitch-0123456789ab.tmp"
        left.mkdir()
        (left / out.name).write_bytes(b"PAR1 half of it")
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(study, "write", killed)
        with pytest.raises(SystemExit):
            run(tmp_path, data)
    run(tmp_path, data)
    folder = tmp_path / "out" / "first" / "embeddings"
    assert {path.name for path in folder.iterdir()} == {
        "small",
        "small.json",
        "big",
        "big.json",
        "mine.parquet",
        "mine.json",
    }


def test_parts_that_are_left_beside_whole_embeddings_are_not_read(tmp_path, data, faked, monkeypatch):
    text = STUDY.replace('layers = "all"\n', "")
    with monkeypatch.context() as patch:
        patch.setattr("repstitch.embeddings.parts.remove_whole", lambda folder: None)  # as if it was killed before
        first = run(tmp_path, data, text)
    folder = tmp_path / "out" / "first" / "embeddings"
    assert sorted(path.name for path in folder.glob("*.partial")) == ["big.parquet.partial", "small.parquet.partial"]
    monkeypatch.setattr(study, "_embed", lambda *args: pytest.fail("the embeddings are whole"))
    assert run(tmp_path, data, text) == first


def test_a_limit_takes_evenly_spaced_items(tmp_path, data, faked):
    run(tmp_path, data, STUDY.replace('layers = "all"', "limit = 6"))
    small = read(tmp_path / "out" / "first" / "embeddings" / "small.parquet")
    assert list(small.ids) == [f"{i:02d}.png" for i in range(0, N, 4)]
    assert small.space.layer is None


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [("timm:test_resnet", "cannot be loaded: no network"), ("text-embedding-3-small", "got an API model")],
)
def test_an_unavailable_encoder_is_named_and_left_out_only_with_skip_missing(
    tmp_path, data, faked, monkeypatch, encoder, reason
):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    (data / "t.txt").write_text("a\nb\n")
    items = "t.txt" if encoder.startswith("text") else "images"
    text = STUDY + f'[[experiment.group]]\nname = "far"\ndata = "{items}"\nencoders = ["{encoder}"]\n'
    name = encoder.removeprefix("timm:")
    with pytest.raises(InputError, match=f"{reason}.* To continue without it, set `skip_missing`"):
        run(tmp_path, data, text)

    result = run(tmp_path, data, text, skip_missing=True)["first"]

    assert list(result.missing) == [name]
    assert reason in result.missing[name]
    assert f"- {name}: `encoder`" in (tmp_path / "out" / "first" / "REPORT.md").read_text()
    assert f"left out: {name}: `encoder`" in summary({"first": result})
    alone = '[[experiment]]\nname = "alone"\n' + text[text.rindex("[[experiment.group]]") :]
    with pytest.raises(InputError, match=f"'alone' needs at least two .*; got 0; not loaded: {name}. `encoder`"):
        run(tmp_path, data, alone, skip_missing=True)


def test_a_file_takes_the_metadata_of_a_card_with_the_same_dimensions(tmp_path, data, faked):
    np.save(data / "vectors" / "api.npy", np.ones((N, 1536), dtype=np.float16))
    entry = '{ file = "vectors/api.npy", ids = "vectors/ids.txt", card = "CARD" }'
    text = re.sub(r"files = .*", f"files = [{entry}]", STUDY)
    run(tmp_path, data, text.replace("CARD", "text-embedding-3-small"))
    space = read(tmp_path / "out" / "first" / "embeddings" / "text-embedding-3-small.parquet").space
    assert (space.dim, space.encoder, space.modality) == (1536, "api:openai/text-embedding-3-small", "text")
    with pytest.raises(InputError, match="must have the 1536 dimensions of its file; text-embedding-3-large has 3072"):
        run(tmp_path, data, text.replace("CARD", "text-embedding-3-large"))


def test_metadata_in_the_study_takes_precedence_over_the_card_of_a_file(tmp_path, data, faked):
    np.save(data / "vectors" / "api.npy", np.ones((N, 1536), dtype=np.float16))
    entry = '{ file = "vectors/api.npy", ids = "vectors/ids.txt", card = "text-embedding-3-small", family = "mine" }'
    run(tmp_path, data, re.sub(r"files = .*", f"files = [{entry}]", STUDY))
    space = read(tmp_path / "out" / "first" / "embeddings" / "text-embedding-3-small.parquet").space
    named = catalogue.find("text-embedding-3-small")
    assert named.family not in (None, "mine")
    assert (space.family, space.encoder) == ("mine", named.encoder)


def test_a_warning_about_the_items_or_the_file_of_a_member_is_logged_once(tmp_path, data, faked, caplog):
    Image.new("RGB", (32, 32)).save(data / "images" / "x.gif")
    (data / "vectors" / "x.ids.txt").write_text((data / "vectors" / "ids.txt").read_text())
    shutil.copy(data / "vectors" / "mine.npy", data / "vectors" / "x.npy")
    caplog.set_level("INFO")
    text = STUDY.replace('file = "vectors/mine.npy", ids = "vectors/ids.txt"', 'file = "vectors/x.npy"')
    text = text.replace(', { encoder = "cards/large.toml", name = "big", family = "vast" }', "")
    run(tmp_path, data, text)
    assert caplog.text.count("images that are not read and have no vectors (first: x.gif)") == 1
    assert caplog.text.count("x.npy: the ids are those in") == 1


def test_invalid_rows_of_files_are_refused_or_left_out(tmp_path, data, faked, caplog):
    rows = np.load(data / "vectors" / "mine.npy")
    rows[3], rows[4], rows[6] = 0, np.nan, rows[5]
    np.save(data / "vectors" / "mine.npy", rows)
    with pytest.raises(InputError, match=r"mine has rows that cannot be used \(1 NaN or Inf, 1 all zeros\)"):
        run(tmp_path, data)
    run(tmp_path, data, STUDY.replace('name = "files"', 'name = "files"\ndrop_invalid = true'))
    kept = read(tmp_path / "out" / "first" / "embeddings" / "mine.parquet")
    assert list(kept.ids) == [f"{i:02d}.png" for i in range(N) if i not in (3, 4, 6)]
    assert "mine: rows left out: 1 NaN or Inf, 1 all zeros, 1 repeats" in caplog.text
    with pytest.raises(InputError, match=r"mine\.parquet was made with other settings"):
        run(tmp_path, data)  # without drop_invalid again


def test_a_file_without_ids_is_refused(tmp_path, data, faked):
    (data / "vectors" / "ids.txt").rename(data / "names.txt")  # ids beside the file would be read
    with pytest.raises(InputError, match="'files' entry 'mine' must have ids, because rows are matched by id"):
        run(tmp_path, data, STUDY.replace('ids = "vectors/ids.txt", ', ""))


def test_an_experiment_with_unavailable_encoders_does_not_stop_the_others(tmp_path, data, faked, caplog):
    far = '[[experiment]]\nname = "far"\n[[experiment.group]]\nname = "api"\ndata = "t.txt"\nencoders = ["api:a/b"]\n'
    (data / "t.txt").write_text("a\n")
    text = STUDY.replace("[[experiment]]", far + "[[experiment]]", 1)
    assert list(run(tmp_path, data, text, skip_missing=True)) == ["first"]
    assert "Experiment 'far' needs at least two encoders or files; got 0; not loaded: b." in caplog.text


# --- the results ------------------------------------------------------------------------------------------------------


def pair(source, target, score, **more):
    return {"source": source, "target": target, "metric": "m", "score": score, "null": 0.1, "q": 0.04} | more


def test_findings_describe_groups_and_their_best_layers():
    atlas = {
        "metrics": {"m": {"symmetric": True}},
        "pairs": [pair("a.layer01", "b", 0.9)],
        "layers": [
            pair("a", "b", 0.5, source_layer=7, target_layer=None),
            pair("b", "a", 0.5, source_layer=None, target_layer=7),
            pair("a", "c", 0.3, source_layer=2, target_layer=4, q=0.2),
            pair("b", "c", 0.2, source_layer=None, target_layer=None),
        ],
        "trend": {"verdict": "it rises."},
        "unanswered": {"control": "Too few."},
    }
    assert findings(Atlas(atlas), {"a": "vision", "c": "language", "b": "vision"}) == [
        "m, within vision: 0.500 (a layer 7 – b); expected by chance 0.100; 1 of 1 above chance (q ≤ 0.05).",
        "m, between vision and language: mean 0.250 over 2 pairs, highest 0.300 (a layer 2 – c layer 4); expected by "
        "chance 0.100; 1 of 2 above chance (q ≤ 0.05).",
        "trend: it rises.",
        "control: not tested. Too few.",
    ]


def test_findings_without_a_null_do_not_mention_chance():
    atlas = {"metrics": {"m": {"symmetric": False}}, "pairs": [], "layers": None}
    plain = {"source": "a", "target": "b", "metric": "m", "score": 0.25}
    atlas["pairs"] = [plain, plain | {"source": "b", "target": "a", "score": -0.0001}, plain | {"metric": "other"}]
    assert findings(Atlas(atlas), {"a": "x", "b": "x"}) == [
        "m, within x: mean 0.125 over 2 pairs, highest 0.250 (a – b)."
    ]


def test_the_command_prints_the_findings_and_exits_with_2_if_a_file_is_missing(
    tmp_path, data, faked, monkeypatch, capsys
):
    command = ["study", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--data", str(data), "--device", "cpu"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("first\n  mutual_knn, within vision: ")
    assert f"report: {tmp_path / 'out' / 'first' / 'REPORT.md'}" in printed
    assert main([*command, "--json", "--only", "first"]) == 0
    assert json.loads(capsys.readouterr().out)["first"]["missing"] == {}

    (data / "cards" / "small.safetensors").rename(data / "elsewhere")
    assert main([*command[:3], str(tmp_path / "again"), *command[4:]]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("repstitch study")]
    assert "'checkpoint' of card 'small' must be an existing file or folder" in line
    assert line.endswith("To continue without it, set `--skip-missing`.")


def test_a_study_without_matplotlib_logs_that_no_figures_are_drawn(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(study, "find_spec", lambda name: None)
    assert study._draw(Atlas({}), tmp_path) == []
    assert "no figures are drawn" in caplog.text


def test_an_experiment_writes_its_atlas_figures_and_findings(tmp_path, data, monkeypatch):
    result = run(tmp_path, data)["first"]
    place = tmp_path / "out" / "first"
    atlas = json.loads((place / "atlas.json").read_text())
    assert {(line["source"], line["target"]) for line in atlas["layers"]} == {
        ("small", "big"),
        ("small", "mine"),
        ("big", "mine"),
    }
    assert "at least 5 models" in atlas["unanswered"]["trend"]
    assert len(result.findings) == 4
    assert (place / "heatmap_mutual_knn.png").is_file()
    assert "![heatmap_mutual_knn](heatmap_mutual_knn.png)" in (place / "REPORT.md").read_text()
    monkeypatch.setattr(study, "_draw", lambda atlas, folder: [])
    assert run(tmp_path, data)["first"].findings == result.findings


@pytest.mark.slow
@needs_data
def test_the_local_study_shows_effects_of_lineage_and_agreement_beyond_it(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSTITCH_WEIGHTS", str(DATA / "vision_weights"))
    results = study.run("local", tmp_path, data=DATA)
    vision, both = (results[name].atlas.to_dict() for name in ("vision", "vision-language"))
    assert (vision["n"], len(vision["spaces"]), len(both["spaces"])) == (1000, 10, 12)
    assert vision["trend"]["n_models"] == 9
    assert all(pair["q"] <= 0.05 for pair in both["pairs"] if pair["metric"] == "mutual_knn")
    scores = {frozenset((p["source"], p["target"])): p["score"] for p in vision["pairs"] if p["metric"] == "mutual_knn"}
    related = scores[frozenset(("mobilenetv1_slim_imagenet", "mobilenetv1_025_imagenet"))]
    assert related > 2 * scores[frozenset(("mobilenetv1_slim_imagenet", "autoencoder"))]
