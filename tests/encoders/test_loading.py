"""Loading encoders from all sources, and refusing weights; with real weights where the data is present."""

import re
import shutil
import zipfile
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.encoders import DATA, build, card, cosines, needs_data, noise, with_dense
from safetensors.torch import load_file, save_file

from repstitch import encoders
from repstitch.encoders import catalogue, loading
from repstitch.errors import InputError


def test_a_sentence_transformers_folder_sets_the_pooling(bert):
    (bert / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        '{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},'
        '{"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]'
    )
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}'
    )
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')

    encoder = encoders.load_encoder(str(bert))

    assert (encoder.space.pooling, encoder.space.normalised, encoder.card.max_length) == ("cls", True, 7)
    assert encoders.load_encoder(str(bert), pooling="mean", normalise=False).space.normalised is False


def test_an_incomplete_or_unsupported_linear_step_is_refused(bert):
    with_dense(bert, activation="mine.GELU", bias=False)
    with pytest.raises(InputError, match=r"step 2_Dense must have an activation of torch\.nn; got mine\.GELU"):
        encoders.load_encoder(str(bert))
    (bert / "2_Dense" / "config.json").write_text('{"in_features": 16, "out_features": 6, "bias": false}')
    (bert / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"step 2_Dense must contain its weights; there is no model\.safetensors"):
        encoders.load_encoder(str(bert))


def test_a_text_folder_is_identified_by_its_weights_and_not_by_its_path(bert):
    space: Any = encoders.load_encoder(str(bert)).space
    assert space.encoder == "transformers:tiny-bert"
    assert space.architecture == "bert"
    assert space.modality == "text"
    assert re.fullmatch("[0-9a-f]{16}", space.revision)


def test_a_card_written_by_hand_loads_a_checkpoint_next_to_it(tmp_path):
    model = build("test_resnet", in_chans=1, num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "c.toml").write_text(
        '[[space]]\nname = "grey"\narchitecture = "test_resnet"\ncheckpoint = "w.safetensors"\n'
        "input_size = [1, 32, 32]\nmean = [0.5]\nstd = [0.5]\ncrop_pct = 1.0\n"
    )
    encoder = encoders.load_encoder(str(tmp_path / "c.toml"))
    x = torch.stack([encoder.load(image) for image in noise()])
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(x), pre_logits=True).numpy()
    np.testing.assert_allclose(encoder.encode(noise()), expected, atol=1e-5)


def test_a_timm_folder_sets_the_preprocessing(tmp_path):
    model = build("test_resnet").eval()
    model.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), input_size=(3, 48, 48))
    timm.models.save_for_hf(model, tmp_path / "mine", safe_serialization=True)
    encoder: Any = encoders.load_encoder(str(tmp_path / "mine"))
    assert tuple(encoder.card.mean) == (0.1, 0.2, 0.3)
    assert tuple(encoder.card.input_size) == (3, 48, 48)
    assert (encoder.space.encoder, encoder.space.architecture) == ("timm:mine", "test_resnet")
    x = torch.stack([encoder.load(image) for image in noise()])
    with torch.inference_mode():
        np.testing.assert_allclose(encoder.encode(noise()), model.global_pool(model.forward_features(x)), atol=1e-5)


def test_hub_names_are_loaded_from_the_download_folder(tmp_path, bert, monkeypatch):
    snapshots = tmp_path / "snapshots" / "c0ffee"
    model = build("test_resnet").eval()
    timm.models.save_for_hf(model, snapshots, safe_serialization=True)
    downloaded = []

    def download(repo, revision=None, allow_patterns=()):
        downloaded.append(repo)
        return str(bert if repo == "owner/bert" else snapshots)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    named = encoders.load_encoder("timm:test_resnet")
    by_id = encoders.load_encoder("timm/test_resnet.r160_in1k")
    text = encoders.load_encoder("owner/bert")

    assert downloaded == ["timm/test_resnet.r160_in1k"] * 2 + ["owner/bert"]
    assert named.space.encoder == "timm:test_resnet.r160_in1k"
    assert named.space.revision == "c0ffee"
    np.testing.assert_allclose(named.encode(noise(2)), by_id.encode(noise(2)), atol=1e-6)
    with torch.inference_mode():
        expected = model.global_pool(model.forward_features(torch.stack([named.load(i) for i in noise(2)])))
    np.testing.assert_allclose(named.encode(noise(2)), expected.numpy(), atol=1e-5)
    assert text.space.encoder == "transformers:owner/bert"


def test_only_the_weights_that_a_model_of_several_modules_needs_are_downloaded(tmp_path, bert, monkeypatch):
    with_dense(bert)
    (bert / "1_Pooling").mkdir()
    (bert / "onnx").mkdir()
    (bert / "onnx" / "model.onnx").touch()
    torch.save(load_file(bert / "2_Dense" / "model.safetensors"), bert / "2_Dense" / "pytorch_model.bin")
    (bert / "2_Dense" / "model.safetensors").unlink()
    snapshot = tmp_path / "c0ffee"

    def download(repo, revision=None, allow_patterns=()):
        for path in filter(Path.is_file, bert.rglob("*")):
            name = path.relative_to(bert)
            if any(fnmatch(str(name), pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    encoder = encoders.load_encoder("owner/model")
    assert encoder.space.revision == "c0ffee"
    assert not (snapshot / "onnx").exists()
    np.testing.assert_array_equal(encoder.encode(["a cat"]), encoders.load_encoder(str(bert)).encode(["a cat"]))


def test_a_download_that_fails_says_what_to_do_in_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("cannot reach the host\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    for name in ("owner/model", "timm:test_resnet", "timm/none"):
        with pytest.raises(InputError, match="cannot be loaded: cannot reach the host and more") as caught:
            encoders.load_encoder(name)
        assert "local folder or checkpoint" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_every_library_of_the_catalogue_can_be_loaded():
    assert tuple(loading.LIBRARIES) == catalogue.LIBRARIES


def test_catalogue_vision_cards_fit_their_architectures():
    """Build three MobileNets of the catalogue with random weights; vision transformers are too large for a test."""
    for name in ("mobilenetv2_slim_imagenet", "mobilenetv1_slim_imagenet", "mobilenetv1_025_imagenet"):
        catalogue_card = replace(catalogue.find(name), checkpoint=None, revision=None)
        architecture = catalogue_card.encoder.partition(":")[2]
        make = loading.BUILDERS.get(architecture, partial(build, architecture))
        model = make(num_classes=0, **catalogue_card.model_args)
        encoder = encoders.from_module(model, replace(catalogue_card, input_size=(3, 64, 64)))
        assert encoder.space.dim == catalogue_card.dim


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_file(build("test_vit").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        InputError, match=r"`checkpoint` w.safetensors must fit its architecture; \d+ tensors are missing"
    ):
        encoders.load_encoder(str(tmp_path / "w.safetensors"), architecture="test_resnet")


def test_weights_of_another_revision_are_refused(tmp_path):
    save_file(build("test_resnet").state_dict(), tmp_path / "w.safetensors")
    catalogue.write(tmp_path / "c.toml", [card(checkpoint="w.safetensors", revision="0" * 16)])
    with pytest.raises(InputError, match="must be revision 0000000000000000"):
        encoders.load_encoder(str(tmp_path / "c.toml"))


def test_a_pickled_checkpoint_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "went-off",))

    torch.save({"state_dict": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="cannot be loaded: weights_only=True blocked"):
        encoders.load_encoder(str(tmp_path / "w.pt"), architecture="test_resnet")
    assert not (tmp_path / "went-off").exists()


def test_a_text_folder_with_missing_weights_is_refused(bert):
    state = load_file(bert / "model.safetensors")
    state.pop("encoder.layer.1.output.dense.weight")
    save_file(state, bert / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"must contain all weights of its model; encoder\.layer\.1\.output\.dense"):
        encoders.load_encoder(str(bert))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:no_such_model", "`encoder` timm:no_such_model must be a model that timm has weights for"),
        ("torchvision:squeezenet1_0", "`checkpoint` of torchvision:squeezenet1_0 must be a local file"),
    ],
)
def test_an_encoder_without_weights_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        encoders.load_encoder(name)


@needs_data
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("mobilenetv2_slim_imagenet", "mobilenetv2_slim_imagenet.up128.rows500.npy"),
        ("mobilenetv1_025_imagenet", "mobilenetv1_025_imagenet.up128.rows500.npy"),
    ],
)
def test_mobilenets_reproduce_the_vectors_of_cifar_photos(monkeypatch, name, reference):
    monkeypatch.setenv("REPSTITCH_WEIGHTS", str(DATA / "vision_weights"))
    files = (DATA / "cifar10" / "files.txt").read_text().split()
    rows = np.load(DATA / "cifar10" / "up128_rows500.npy")[::20]
    encoder = encoders.load_encoder(name, input_size=128)
    with zipfile.ZipFile(DATA / "cifar10" / "images_jpeg.zip") as archive:
        vectors = encoder.encode([archive.read(files[row]) for row in rows])
    assert cosines(vectors, np.load(DATA / "cifar10" / reference)[::20]).min() > 0.999


@needs_data
@pytest.mark.parametrize("name", ["squeezenet1_0_deepcomp", "mobilenetv1_slim_imagenet", "mobilenetv2_inat_bird"])
def test_the_other_checkpoints_load_and_run(monkeypatch, name):
    monkeypatch.setenv("REPSTITCH_WEIGHTS", str(DATA / "vision_weights"))
    encoder = encoders.load_encoder(name, input_size=64)
    rows = encoder.encode(noise(2))
    assert rows.shape == (2, catalogue.find(name).dim)
    assert rows.any(axis=1).all()
