"""Encoders against by-hand computation, on models with random weights; and on real ones where there is data."""

import json
import os
import re
import zipfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from helpers.spaces import tiny_bert
from PIL import Image
from safetensors.torch import save_file

from repstitch import encoders
from repstitch.embeddings import reading
from repstitch.encoders import catalogue, items, loading, vectors
from repstitch.encoders.catalogue import Card
from repstitch.errors import InputError

DATA = Path(os.environ.get("REPSTITCH_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
TEXTS = ["a cat", "the dog sat on a mat with a cat", "dog", "a b c d e f g", "sat"]

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data; set REPSTITCH_DATA to its folder")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def build(architecture, **args) -> Any:
    return timm.create_model(architecture, **args)


def read(path) -> Any:
    return reading.read(path)


def noise(n=6, size=40, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size, size + i, 3), dtype=np.uint8)) for i in range(n)]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for i, image in enumerate(noise()):
        image.save(folder / ("b" if i % 2 else ".") / f"{i}.png")
    (folder / "notes.md").write_text("not an image")
    return folder


def card(architecture="test_resnet", **fields):
    fields = {"input_size": (3, 32, 32), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"} | fields
    return Card("tiny", f"timm:{architecture}", **fields)


def vit(**fields):
    model = build("test_vit", num_classes=0, img_size=32)
    return encoders.from_module(model, card("test_vit", **fields), device="cpu"), model


@pytest.fixture
def bert(tmp_path):
    """A folder with a two-layer BERT of random weights and a tokenizer of a dozen words."""
    return tiny_bert(tmp_path / "tiny-bert")


@pytest.fixture
def clip(tmp_path):
    """A folder with a small CLIP of random weights, both towers, and a tokenizer of a dozen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = ["[UNK]", *"abcdefg", "the", "cat", "dog", "sat", "on", "mat", "with", "<start>", "<end>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = len(words) - 2, len(words) - 1
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    folder = tmp_path / "tiny-clip"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<end>").save_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    small["projection_dim"] = 8
    text = small | {"vocab_size": len(words), "max_position_embeddings": 12, "bos_token_id": start, "eos_token_id": end}
    vision = small | {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return folder


@cache
def model_and_tokenizer(folder):
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def hidden_states(folder, text):
    model, tokenizer = model_and_tokenizer(folder)
    with torch.inference_mode():
        out = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    return [state[0].numpy() for state in out.hidden_states]


def cosines(A, B):
    A, B = A.astype(np.float64), B.astype(np.float64)
    return (A * B).sum(1) / np.linalg.norm(A, axis=1) / np.linalg.norm(B, axis=1)


# --- images -----------------------------------------------------------------------------------------------------------


def test_a_convolutional_network_is_pooled_over_its_last_map():
    model = build("test_resnet", num_classes=0)
    encoder = encoders.from_module(model, card(pooling="gap", mean=(0.5,) * 3, std=(0.25,) * 3))
    [image] = noise(1)
    x = torch.tensor(np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) / 255.0, dtype=torch.float32)
    with torch.inference_mode():
        expected = model.forward_features(((x - 0.5) / 0.25).permute(2, 0, 1)[None]).mean((2, 3))[0].numpy()

    vectors = encoder.encode([image])

    assert vectors.shape == (1, encoder.space.dim) == (1, 96)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], expected, atol=1e-5)


def test_without_a_pooling_a_timm_model_gives_its_own_vector():
    model = build("test_convnext", num_classes=0)
    encoder = encoders.from_module(model, card("test_convnext"))
    x = torch.stack([encoder.load(image) for image in noise()])
    with torch.inference_mode():
        np.testing.assert_allclose(encoder.encode(noise()), model(x).numpy(), atol=1e-5)
    assert encoder.space.pooling == "none"


def test_poolings_of_a_vision_transformer_differ_and_match_a_computation_by_hand():
    found = {}
    for pooling in ("cls", "mean", "last", "gap"):
        encoder, model = vit(pooling=pooling)
        x = torch.stack([encoder.load(image) for image in noise()])
        with torch.inference_mode():
            tokens = model.forward_features(x).numpy()
        by_hand = {"cls": tokens[:, 0], "mean": tokens.mean(1), "last": tokens[:, -1], "gap": tokens[:, 1:].mean(1)}
        found[pooling] = encoder.encode(noise())
        np.testing.assert_allclose(found[pooling], by_hand[pooling], atol=1e-5)
        torch.manual_seed(0)
    assert len({rows.tobytes() for rows in found.values()}) == 4


def test_a_layer_of_a_vision_transformer_is_the_class_token_after_that_block():
    encoder, model = vit(layer=2)
    states = []
    model.blocks[1].register_forward_hook(lambda block, inputs, output: states.append(output))

    vectors = encoder.encode(noise())

    np.testing.assert_allclose(vectors, states[0][:, 0].numpy(), atol=1e-6)
    assert (encoder.space.layer, encoder.space.pooling) == (2, "cls")


def test_a_layer_may_be_counted_from_the_end():
    encoder, model = vit(layer=-1)
    assert encoder.space.layer == len(model.blocks)


def test_a_layer_of_a_convolutional_network_is_a_stage_pooled():
    model = build("test_resnet", num_classes=0)
    encoder = encoders.from_module(model, card(layer=1))
    x = torch.stack([encoder.load(image) for image in noise()])
    with torch.inference_mode():
        expected = model.forward_intermediates(x, indices=[0], intermediates_only=True)[0].mean((2, 3)).numpy()
    np.testing.assert_allclose(encoder.encode(noise()), expected, atol=1e-5)


def test_channels_kept_last_are_pooled_over_positions():
    class Last(torch.nn.Module):
        output_fmt = "NHWC"

        def forward_features(self, x):
            return x.permute(0, 2, 3, 1)

    encoder = encoders.from_module(Last(), card(pooling="gap"))
    loaded = [encoder.load(image) for image in noise()]
    np.testing.assert_allclose(encoder.encode_loaded(loaded), torch.stack(loaded).mean((2, 3)).numpy(), atol=1e-5)


def test_bgr_equals_rgb_with_flipped_channels():
    model = torch.nn.Flatten()
    plain = {"scale": 255, "mean": (104, 117, 123), "std": (1, 1, 1)}
    bgr = encoders.from_module(model, card(channels="BGR", **plain))
    rgb = encoders.from_module(model, card(**plain))
    flipped = [Image.fromarray(np.asarray(image)[:, :, ::-1]) for image in noise()]
    np.testing.assert_array_equal(bgr.encode(noise()), rgb.encode(flipped))
    assert not np.array_equal(bgr.encode(noise()), rgb.encode(noise()))

    white = bgr.encode([np.full((32, 32, 3), 255, dtype=np.uint8)]).reshape(3, 32, 32)
    np.testing.assert_allclose(white[:, 0, 0], [151, 138, 132])


def test_one_channel_reads_images_as_grey():
    model = build("test_resnet", num_classes=0, in_chans=1)
    encoder = encoders.from_module(model, card(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,)))
    np.testing.assert_array_equal(encoder.encode(noise()), encoder.encode([image.convert("L") for image in noise()]))


def test_normalised_rows_have_length_one():
    encoder, _ = vit(pooling="cls", normalised=True)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(noise()), axis=1), 1, atol=1e-6)
    assert encoder.space.normalised is True


def test_bfloat16_stays_close_to_float32():
    model = build("test_resnet", num_classes=0)
    exact = encoders.from_module(model, card(), device="cpu").encode(noise())
    mixed = encoders.from_module(model, card(), device="cpu", precision="bfloat16").encode(noise())
    assert not np.array_equal(exact, mixed)
    assert cosines(exact, mixed).min() > 0.99


def test_the_batch_size_does_not_change_image_vectors():
    encoder, _ = vit(pooling="cls")
    np.testing.assert_allclose(encoder.encode(noise(), 1), encoder.encode(noise(), 4), atol=1e-5)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_the_batch_size_and_padding_do_not_change_text_vectors(bert):
    encoder = encoders.load_encoder(str(bert), pooling="mean")
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS, 2), alone, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-6)


def test_text_poolings_match_a_computation_by_hand(bert):
    for pooling, by_hand in (
        ("cls", lambda tokens: tokens[0]),
        ("mean", lambda tokens: tokens.mean(0)),
        ("last", lambda tokens: tokens[-1]),
    ):
        rows = encoders.load_encoder(str(bert), pooling=pooling).encode(TEXTS)
        expected = [by_hand(hidden_states(bert, text)[-1]) for text in TEXTS]
        np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_a_mean_can_leave_out_the_first_token(bert):
    encoder = encoders.load_encoder(str(bert), skip_first=True)
    expected = [hidden_states(bert, text)[-1][1:].mean(0) for text in TEXTS]
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    assert encoder.space.pooling == "mean, first token left out"


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_of_a_text_encoder_is_that_hidden_state(bert, layer):
    encoder = encoders.load_encoder(str(bert), pooling="cls", layer=layer)
    expected = [hidden_states(bert, text)[layer][0] for text in TEXTS]
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    assert encoder.space.layer == layer


def test_the_text_tower_of_clip_gives_the_vector_that_it_compares_with_images(tmp_path, clip):
    from transformers import AutoTokenizer, CLIPModel

    encoder = encoders.load_encoder(str(clip))
    whole, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    with torch.inference_mode():
        batches = [tokenizer(text, return_tensors="pt") for text in TEXTS]
        rows = [whole.text_projection(whole.text_model(**batch).pooler_output)[0].numpy() for batch in batches]

    np.testing.assert_allclose(encoder.encode(TEXTS), rows, atol=1e-6)
    assert (encoder.space.dim, encoder.space.pooling, encoder.space.modality) == (8, "none", "text")

    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    encoders.embed(str(clip), tmp_path / "t.txt", tmp_path / "x", layers="all", pooling="last")
    assert [read(path).vectors.shape for path in sorted(tmp_path.glob("x/*"))] == [(5, 16)] * 3


def test_a_prompt_is_put_before_every_text(bert):
    prompted = encoders.load_encoder(str(bert), role="query", prompt="query: ")
    plain = encoders.load_encoder(str(bert))
    np.testing.assert_allclose(prompted.encode(TEXTS), plain.encode(["query: " + t for t in TEXTS]), atol=1e-6)
    assert (prompted.space.role, prompted.space.prompt) == ("query", "query: ")


def test_texts_are_cut_at_the_length_asked_for(bert):
    cut = encoders.load_encoder(str(bert), max_length=4)
    np.testing.assert_allclose(cut.encode(["a b c d e f g"]), cut.encode(["a b"]), atol=1e-6)


def test_a_folder_of_sentence_transformers_says_how_to_pool(bert):
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


def with_dense(
    folder: Path, activation: str = "torch.nn.modules.activation.Tanh", bias: bool = True
) -> torch.nn.Linear:
    """Put a linear step after the mean, as GTR and LaBSE have one."""
    (folder / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        '{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},'
        '{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]'
    )
    (folder / "2_Dense").mkdir()
    linear = torch.nn.Linear(16, 6, bias=bias)
    said = {"in_features": 16, "out_features": 6, "bias": bias, "activation_function": activation}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(said))
    save_file({f"linear.{k}": v for k, v in linear.state_dict().items()}, folder / "2_Dense" / "model.safetensors")
    return linear


def test_the_linear_step_of_a_sentence_encoder_follows_the_mean_but_not_a_layers(bert, tmp_path):
    plain = encoders.load_encoder(str(bert)).encode(TEXTS)
    layer = encoders.load_encoder(str(bert), layer=1).encode(TEXTS)
    linear = with_dense(bert)
    encoder = encoders.load_encoder(str(bert))
    with torch.inference_mode():
        expected = torch.tanh(linear(torch.from_numpy(plain))).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
    assert encoder.space.dim == 6
    np.testing.assert_allclose(encoders.load_encoder(str(bert), layer=1).encode(TEXTS), layer, atol=1e-6)


def test_a_linear_step_that_is_not_whole_or_not_known_is_refused(bert):
    with_dense(bert, activation="torch.nn.GELU", bias=False)
    with pytest.raises(InputError, match="step 2_Dense must end in Identity or Tanh; it has GELU"):
        encoders.load_encoder(str(bert))
    (bert / "2_Dense" / "config.json").write_text('{"in_features": 16, "out_features": 6, "bias": false}')
    (bert / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"step 2_Dense must hold its weights; there is no model\.safetensors"):
        encoders.load_encoder(str(bert))


def test_a_text_folder_is_identified_by_its_weights_and_not_by_its_place(bert):
    space: Any = encoders.load_encoder(str(bert)).space
    assert space.encoder == "transformers:tiny-bert"
    assert space.architecture == "bert"
    assert space.modality == "text"
    assert re.fullmatch("[0-9a-f]{16}", space.revision)


# --- where encoders come from -----------------------------------------------------------------------------------------


def test_a_saved_encoder_comes_back_from_its_card(tmp_path, photos):
    model = build("test_convnext", num_classes=10)
    made = encoders.from_module(
        model, card("test_convnext", pooling="gap", mean=(0.4,) * 3, std=(0.2,) * 3, family="tiny", objective="none")
    )
    path = encoders.save(made, tmp_path)

    n = encoders.embed(str(path), photos, tmp_path / "x.parquet")

    rows = read(tmp_path / "x.parquet")
    assert n == 6
    assert list(rows.ids) == ["0.png", "2.png", "4.png", "b/1.png", "b/3.png", "b/5.png"]
    np.testing.assert_allclose(rows.vectors, made.encode([photos / i for i in rows.ids]), atol=1e-5)
    assert rows.space.encoder == "timm:test_convnext"
    assert rows.space.family == "tiny"
    assert rows.space.revision == loading.digest(tmp_path / "tiny.safetensors")
    with pytest.raises(InputError, match="never overwritten"):
        encoders.save(made, tmp_path)


def test_a_card_written_by_hand_loads_a_checkpoint_beside_it(tmp_path):
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


def test_a_timm_folder_brings_its_own_preprocessing(tmp_path):
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


def test_hub_names_load_from_the_folder_they_are_downloaded_to(tmp_path, bert, monkeypatch):
    snapshots = tmp_path / "snapshots" / "c0ffee"
    model = build("test_resnet").eval()
    timm.models.save_for_hf(model, snapshots, safe_serialization=True)
    asked = []

    def download(repo, revision=None, allow_patterns=()):
        asked.append(repo)
        return str(bert if repo == "owner/bert" else snapshots)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    named = encoders.load_encoder("timm:test_resnet")
    by_id = encoders.load_encoder("timm/test_resnet.r160_in1k")
    text = encoders.load_encoder("owner/bert")

    assert asked == ["timm/test_resnet.r160_in1k"] * 2 + ["owner/bert"]
    assert named.space.encoder == "timm:test_resnet.r160_in1k"
    assert named.space.revision == "c0ffee"
    np.testing.assert_allclose(named.encode(noise(2)), by_id.encode(noise(2)), atol=1e-6)
    with torch.inference_mode():
        own = model.global_pool(model.forward_features(torch.stack([named.load(i) for i in noise(2)])))
    np.testing.assert_allclose(named.encode(noise(2)), own.numpy(), atol=1e-5)
    assert text.space.encoder == "transformers:owner/bert"


def test_a_download_that_fails_says_what_to_do_in_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("cannot reach the host\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    for name in ("owner/model", "timm:test_resnet", "timm/none"):
        with pytest.raises(InputError, match="cannot be loaded: cannot reach the host and more") as caught:
            encoders.load_encoder(name)
        assert "local folder or checkpoint" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_libraries_of_the_catalogue_are_those_that_load():
    assert tuple(loading.LIBRARIES) == catalogue.LIBRARIES


def test_catalogue_vision_cards_fit_their_architectures():
    """Builds every convolutional model of the catalogue with random weights; transformers are too large for a test."""
    for name in ("mobilenetv2_slim_imagenet", "mobilenetv1_slim_imagenet", "mobilenetv1_025_imagenet"):
        found = replace(catalogue.find(name), checkpoint=None, revision=None)
        architecture = found.encoder.partition(":")[2]
        make = loading.BUILDERS.get(architecture, partial(build, architecture))
        model = make(num_classes=0, **found.model_args)
        encoder = encoders.from_module(model, replace(found, input_size=(3, 64, 64)))
        assert encoder.space.dim == found.dim


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "cls"}, "`pooling` of 'tiny' must be gap, mean or none, for it has no class token"),
        ({"dim": 95}, r"must give vectors of `dim` 95; it gives \(96,\)"),
        ({"layer": 9}, "`layer` of 'tiny' must be from 1 to 5"),
        ({"layer": 1, "pooling": "none"}, "`layer` of 'tiny' must be .* other than none"),
        ({"mean": (0.5,)}, "`input_size` of 'tiny' must have 1 or 3 channels, and `mean` and `std` as many"),
    ],
)
def test_a_card_that_does_not_fit_its_model_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        encoders.from_module(build("test_resnet", num_classes=0), card(**fields))


def test_a_layer_or_pooling_that_a_text_encoder_lacks_is_refused(bert):
    with pytest.raises(InputError, match="`layer` of 'tiny-bert' must be from 0 to 2"):
        encoders.load_encoder(str(bert), layer=3)
    with pytest.raises(InputError, match="`pooling` of a text encoder must be one of cls, mean, last; got 'gap'"):
        encoders.load_encoder(str(bert), pooling="gap")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_file(build("test_vit").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        InputError, match=r"`checkpoint` w.safetensors must fit its architecture; missing are \d+ tensors"
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


def test_a_text_folder_with_weights_left_out_is_refused(bert):
    from safetensors.torch import load_file

    state = load_file(bert / "model.safetensors")
    state.pop("encoder.layer.1.output.dense.weight")
    save_file(state, bert / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"must hold all weights of its model; encoder\.layer\.1\.output\.dense"):
        encoders.load_encoder(str(bert))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:no_such_model", "`encoder` timm:no_such_model must be a model that timm has weights for"),
        ("torchvision:squeezenet1_0", "`checkpoint` of torchvision:squeezenet1_0 must name a local file"),
    ],
)
def test_an_encoder_without_weights_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        encoders.load_encoder(name)


def test_settings_of_the_run_are_checked(tmp_path, photos):
    model = encoders.from_module(build("test_resnet", num_classes=0), card())
    out = tmp_path / "x.parquet"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"dtype": "int8"}, "`dtype` must be one of float32, float16; got 'int8'"),
        ({"precision": "half"}, "`precision` must be one of auto, float32"),
    ]
    for settings, message in wrong:
        with pytest.raises(InputError, match=message):
            encoders.embed(model, photos, out, **settings)
    with pytest.raises(InputError, match=r"`out` must end in \.parquet"):
        encoders.embed(model, photos, tmp_path / "x.npy")
    with pytest.raises(InputError, match="`device` must be auto, cpu, cuda or mps"):
        encoders.from_module(model.model, card(), device="abacus")


def test_nan_vectors_are_never_written(tmp_path, photos):
    model = encoders.from_module(build("test_resnet", num_classes=0), card())
    for weight in model.model.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="`encoder` 'tiny' gave NaN or Inf for 6 of 6 items"):
        encoders.embed(model, photos, tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


# --- what is embedded -------------------------------------------------------------------------------------------------


def test_a_zip_holds_the_same_images_as_its_folder(tmp_path, photos):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in photos.rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(photos))
    folder, packed = items.read_items(photos, "image"), items.read_items(tmp_path / "p.zip", "image")
    assert folder.ids == packed.ids
    for a, b in zip(folder.values, packed.values, strict=True):
        np.testing.assert_array_equal(np.asarray(items.open_image(a)), np.asarray(items.open_image(b)))


def test_lines_of_a_text_file_are_numbered_from_zero(tmp_path):
    (tmp_path / "t.txt").write_bytes("ein\r\nzwei \u2028 drei\n".encode())
    found = items.read_items(tmp_path / "t.txt", "text")
    assert (found.ids, found.values) == (["0", "1"], ["ein", "zwei \u2028 drei"])


def test_tables_give_texts_with_their_ids(tmp_path):
    ids, texts = ["007", "1e3"], ['say "a", b', "12"]
    pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text('id,text\n007,"say ""a"", b"\n1e3,12\n')
    (tmp_path / "t.tsv").write_text('id\ttext\n007\tsay "a", b\n1e3\t12\n')
    (tmp_path / "bare.tsv").write_text('007\tsay "a", b\n1e3\t12\n')
    for name in ("t.parquet", "t.csv", "t.tsv"):
        found = items.read_items(f"{tmp_path / name}:text", "text")
        assert (found.ids, found.values) == (ids, texts)
    found = items.read_items(f"{tmp_path / 'bare.tsv'}:1", "text")
    assert (found.ids, found.values) == (["0", "1"], texts)


def test_tables_give_images_as_bytes_or_as_paths_beside_them(tmp_path, photos):
    names = ["0.png", "b/1.png"]
    raw = [(photos / name).read_bytes() for name in names]
    table = pa.table({"bytes": raw, "path": names, "hf": [{"bytes": data, "path": None} for data in raw]})
    pq.write_table(table, photos / "t.parquet")
    for column in ("bytes", "path", "hf"):
        found = items.read_items(f"{photos / 't.parquet'}:{column}", "image")
        assert [image.read() for image in found.values] == raw


@pytest.mark.parametrize(
    ("name", "content", "data", "message"),
    [
        ("t.txt", "a\n\nb\n", "t.txt", "line 2 of t.txt is ''"),
        ("t.csv", "id,text\n1,a\n1,b\n", "t.csv:text", "the data has 1 repeated \\(first: '1'\\)"),
        ("t.csv", "id,text\n1,a\n2,\n", "t.csv:text", "row 1 of t.csv:text is ''"),
        (
            "t.csv",
            "id,text\n1,a\n",
            "t.csv:body",
            "must name a column of t.csv as t.csv:COLUMN, out of id, text; got body",
        ),
        ("t.csv", "id,text\n1,a\n", "t.csv", "must name a column of t.csv"),
        ("t.csv", "id,text\n1\n", "t.csv:text", "cannot be read"),
        ("t.pdf", "", "t.pdf", "must be a folder or a file of .zip, .txt"),
        ("t.zip", "", "t.zip", "t.zip must hold texts, which the encoder reads"),
        ("t.txt", "", "none.txt", "there is no .*none.txt"),
    ],
)
def test_data_without_usable_texts_is_refused(tmp_path, name, content, data, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        items.read_items(tmp_path / data, "text")


def test_data_without_usable_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="must hold at least one item; it holds none"):
        items.read_items(tmp_path, "image")
    (tmp_path / "t.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"t\.txt must hold images, which the encoder reads"):
        items.read_items(tmp_path / "t.txt", "image")
    (tmp_path / "bad.zip").write_text("no zip")
    with pytest.raises(InputError, match=r"bad\.zip cannot be read"):
        items.read_items(tmp_path / "bad.zip", "image")


def test_an_unreadable_image_is_named_and_finished_batches_are_kept(tmp_path, photos):
    encoder = encoders.from_module(build("test_resnet", num_classes=0), card())
    bad = photos / "b" / "3.png"
    bad.write_bytes(bad.read_bytes()[:100])
    out = tmp_path / "x.parquet"

    with pytest.raises(InputError, match=r"b.3\.png must be an image that can be read"):
        encoders.embed(encoder, photos, out, batch_size=2)

    assert not out.exists()
    assert len(list((tmp_path / "x.parquet.partial").glob("part-*.parquet"))) == 2
    bad.unlink()
    with pytest.raises(InputError, match="unfinished rows of another job"):
        encoders.embed(encoder, photos, out, batch_size=2)


def test_bytes_that_are_no_image_are_refused():
    with pytest.raises(InputError, match=r"an image of 7 bytes must be an image .* its format is unknown"):
        items.open_image(b"no jpeg")


# --- every layer in one pass ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_convnext"])
def test_every_layer_of_an_image_encoder_equals_a_run_for_that_layer(tmp_path, photos, architecture):
    args = {"img_size": 32} if architecture == "test_vit" else {}
    model = build(architecture, num_classes=0, **args)
    encoder = encoders.from_module(model, card(architecture, layer=-1), device="cpu")
    layers = range(1, len(model.feature_info) + 1)

    assert encoders.embed(encoder, photos, tmp_path / "x", batch_size=4, layers="all") == 6

    assert sorted(p.name for p in tmp_path.glob("x/*")) == [f"tiny.layer{layer:02d}.parquet" for layer in layers]
    assert not list(tmp_path.glob("*.partial"))
    for layer in layers:
        alone = encoders.from_module(model, card(architecture, layer=layer), device="cpu")
        encoders.embed(alone, photos, tmp_path / f"{layer}.parquet", batch_size=4)
        together, single = read(tmp_path / "x" / f"tiny.layer{layer:02d}.parquet"), read(tmp_path / f"{layer}.parquet")
        np.testing.assert_array_equal(together.vectors, single.vectors)
        assert list(together.ids) == list(single.ids)
        assert together.space == replace(single.space, name=f"tiny.layer{layer:02d}")


def test_every_layer_of_a_text_encoder_equals_a_run_for_that_layer(tmp_path, bert):
    (tmp_path / "t.txt").write_text("\n".join(TEXTS * 9))
    encoders.embed(str(bert), tmp_path / "t.txt", tmp_path / "x", batch_size=2, layers="all", skip_first=True)
    assert len(list(tmp_path.glob("x/*"))) == 3
    for layer in range(3):
        out = tmp_path / f"{layer}.parquet"
        encoders.embed(str(bert), tmp_path / "t.txt", out, batch_size=2, layer=layer, skip_first=True)
        together, single = read(tmp_path / "x" / f"tiny-bert.layer{layer:02d}.parquet"), read(out)
        np.testing.assert_array_equal(together.vectors, single.vectors)
        assert together.space == replace(single.space, name=f"tiny-bert.layer{layer:02d}")


def test_layer_0_of_a_text_encoder_is_what_enters_its_first_block(tmp_path, bert):
    encoder = encoders.load_encoder(str(bert))
    entered = []
    encoder.model.encoder.layer[0].register_forward_hook(lambda block, inputs, output: entered.append(inputs[0]))
    [space] = encoder.layer_spaces([0])
    [rows] = encoder.encode_layers([TEXTS[1]], [space])
    np.testing.assert_allclose(rows[0], entered[-1][0].mean(0).numpy(), atol=1e-6)


def test_some_layers_are_counted_from_either_end_and_written_once(tmp_path, photos):
    encoder, model = vit(layer=-1, normalised=True)
    encoders.embed(encoder, photos, tmp_path / "x", layers=[-1, 2, len(model.blocks)], dtype="float16")
    files = sorted(tmp_path.glob("x/*"))
    assert [read(path).space.layer for path in files] == [2, len(model.blocks)]
    np.testing.assert_allclose(np.linalg.norm(read(files[0]).vectors.astype(np.float32), axis=1), 1, atol=1e-3)
    assert read(files[0]).vectors.dtype == np.float16


def test_layers_that_were_interrupted_go_on_to_the_same_files(tmp_path, photos):
    encoder, _ = vit(layer=-1)
    with pytest.raises(KeyboardInterrupt):
        encoders.embed(interrupted(encoder, 3), photos, tmp_path / "x", batch_size=2, layers="all")
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="unfinished rows of another job"):
        encoders.embed(encoder, photos, tmp_path / "x", batch_size=2, layers=[1])

    assert encoders.embed(interrupted(encoder, 2), photos, tmp_path / "x", batch_size=2, layers="all") == 6

    encoders.embed(encoder, photos, tmp_path / "y", batch_size=2, layers="all")
    files = sorted(tmp_path.glob("x/*"))
    assert [p.name for p in files] == sorted(p.name for p in tmp_path.glob("y/*"))
    for path in files:
        x, y = read(path), read(tmp_path / "y" / path.name)
        np.testing.assert_array_equal(x.vectors, y.vectors)
        assert (list(x.ids), x.space) == (list(y.ids), y.space)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "x", "y"]


def test_layers_that_were_stopped_while_published_are_published_again(tmp_path, photos, monkeypatch):
    encoder, _ = vit(layer=-1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            encoders.embed(encoder, photos, tmp_path / "x", layers=[1, 2])
    assert not (tmp_path / "x").exists()
    encoders.embed(interrupted(encoder, 1), photos, tmp_path / "x", layers=[1, 2])
    assert [read(path).space.layer for path in sorted(tmp_path.glob("x/*"))] == [1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": [9]}, "`layer` of 'tiny-bert' must be from 0 to 2, .* got 9"),
        ({"layers": []}, r"`layers` must be all, or numbers of layers; got \[\]"),
        ({"layers": "last"}, "`layers` must be all, or numbers of layers; got 'last'"),
        ({"layers": "all", "layer": 1}, "`layer` and `layers` cannot both be given"),
        ({"layers": "all", "limit": 0}, "`limit` must be at least 1; got 0"),
    ],
)
def test_layers_that_cannot_be_taken_are_refused(tmp_path, bert, given, message):
    (tmp_path / "t.txt").write_text("a\n")
    with pytest.raises(InputError, match=message):
        encoders.embed(str(bert), tmp_path / "t.txt", tmp_path / "x", **given)


def test_stages_may_be_wider_or_narrower_than_their_card_says_of_the_end(tmp_path, photos):
    torch.manual_seed(0)
    made = encoders.from_module(build("test_resnet", num_classes=0), card(pooling="gap"))
    assert made.card.dim == 96
    path = encoders.save(made, tmp_path)
    encoders.embed(str(path), photos, tmp_path / "x", layers="all")
    widths = [read(file).space.dim for file in sorted(tmp_path.glob("x/*"))]
    assert widths == [info["num_chs"] for info in made.model.feature_info]


def test_layers_need_a_folder_that_is_not_there(tmp_path, photos):
    encoder, _ = vit(layer=-1)
    with pytest.raises(InputError, match=r"`out` must be a folder, for it gets a file a layer; got 'x\.parquet'"):
        encoders.embed(encoder, photos, tmp_path / "x.parquet", layers="all")
    with pytest.raises(InputError, match=r"`out` .* exists and is never overwritten"):
        encoders.embed(encoder, photos, photos, layers="all")


def test_layers_of_a_pooled_vector_or_an_unknown_network_are_refused(tmp_path, photos):
    pooled, _ = vit(pooling="none")
    with pytest.raises(InputError, match="with a `pooling` other than none"):
        encoders.embed(pooled, photos, tmp_path / "x", layers="all")
    flat = encoders.from_module(torch.nn.Flatten(), card())
    with pytest.raises(InputError, match="`layer` of 'tiny' must be left out: which blocks its model has is not known"):
        encoders.embed(flat, photos, tmp_path / "x", layers="all")


def test_a_limit_takes_items_evenly_spread(tmp_path, photos):
    encoder, _ = vit(pooling="cls")
    encoders.embed(encoder, photos, tmp_path / "all.parquet")
    encoders.embed(encoder, photos, tmp_path / "some.parquet", limit=3)
    whole, some = read(tmp_path / "all.parquet"), read(tmp_path / "some.parquet")
    assert list(some.ids) == [whole.ids[i] for i in (0, 2, 4)]
    np.testing.assert_allclose(some.vectors, whole.vectors[[0, 2, 4]], atol=1e-5)
    assert items.read_items(photos, "image", 99).ids == list(whole.ids)


# --- stopping and going on --------------------------------------------------------------------------------------------


def interrupted(encoder, after):
    """The same encoder, with a hand on Ctrl-C after so many batches."""
    left = iter(range(after))

    def stoppable(run):
        def stop_or_run(*given):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return run(*given)

        return stop_or_run

    return replace(encoder, run=stoppable(encoder.run), run_layers=stoppable(encoder.run_layers))


def test_an_embed_that_was_interrupted_goes_on_to_the_same_file(tmp_path, photos):
    encoder = encoders.from_module(build("test_resnet", num_classes=0), card())
    with pytest.raises(KeyboardInterrupt):
        encoders.embed(interrupted(encoder, 2), photos, tmp_path / "x.parquet", batch_size=2)
    assert not (tmp_path / "x.parquet").exists()

    assert encoders.embed(interrupted(encoder, 1), photos, tmp_path / "x.parquet", batch_size=2) == 6

    encoders.embed(encoder, photos, tmp_path / "y.parquet", batch_size=2)
    x, y = read(tmp_path / "x.parquet"), read(tmp_path / "y.parquet")
    assert list(x.ids) == list(y.ids)
    np.testing.assert_array_equal(x.vectors, y.vectors)
    assert x.space == y.space


def test_texts_are_written_in_their_order_at_any_batch_size(tmp_path, bert):
    (tmp_path / "t.txt").write_text("\n".join(TEXTS * 9))
    encoder = encoders.load_encoder(str(bert))
    for size in (1, 2, 64):
        encoders.embed(str(bert), tmp_path / "t.txt", tmp_path / f"{size}.parquet", batch_size=size)
        rows = read(tmp_path / f"{size}.parquet")
        assert list(rows.ids) == [str(i) for i in range(45)]
        np.testing.assert_allclose(rows.vectors, encoder.encode(TEXTS * 9), atol=1e-5)


def test_other_weights_are_another_job(tmp_path, photos):
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoder = encoders.from_module(build("test_resnet", num_classes=0), card())
        with pytest.raises(InputError if seed else KeyboardInterrupt):
            encoders.embed(interrupted(encoder, 1), photos, tmp_path / "x.parquet", batch_size=2)


# --- real encoders ----------------------------------------------------------------------------------------------------


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
        found = encoder.encode([archive.read(files[row]) for row in rows])
    assert cosines(found, np.load(DATA / "cifar10" / reference)[::20]).min() > 0.999


@needs_data
def test_a_small_llama_reproduces_the_vectors_of_captions(tmp_path):
    folder = DATA / "text_encoders" / "stories260K"
    captions = (DATA / "captions" / "captions.tsv").read_text(encoding="utf-8").splitlines()[:100]
    (tmp_path / "c.tsv").write_text("\n".join(captions), encoding="utf-8")
    encoders.embed(str(folder), f"{tmp_path / 'c.tsv'}:2", tmp_path / "c.parquet", skip_first=True)
    found = read(tmp_path / "c.parquet").vectors
    assert cosines(found, np.load(DATA / "captions" / "stories260K_meanpool.npy")[:100]).min() > 0.999


@needs_data
@pytest.mark.parametrize("name", ["squeezenet1_0_deepcomp", "mobilenetv1_slim_imagenet", "mobilenetv2_inat_bird"])
def test_the_other_checkpoints_load_and_run(monkeypatch, name):
    monkeypatch.setenv("REPSTITCH_WEIGHTS", str(DATA / "vision_weights"))
    encoder = encoders.load_encoder(name, input_size=64)
    rows = encoder.encode(noise(2))
    assert rows.shape == (2, catalogue.find(name).dim)
    assert rows.any(axis=1).all()


def test_a_pooling_law_holds_for_any_padding():
    tokens = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    garbage = tokens.masked_fill(mask[:, :, None] == 0, 1e6)
    for pooling in vectors.POOLS:
        torch.testing.assert_close(vectors.pool(tokens, mask, pooling), vectors.pool(garbage, mask, pooling))
