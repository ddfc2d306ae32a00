"""Vectors of models with random weights, compared with a computation by hand."""

import numpy as np
import pytest
import torch
from helpers.encoders import TEXTS, build, card, cosines, hidden_states, noise, read, vit, with_dense
from PIL import Image

from repstitch import encoders
from repstitch.encoders import vectors
from repstitch.errors import InputError

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
    rows_by_pooling = {}
    for pooling in ("cls", "mean", "last", "gap"):
        encoder, model = vit(pooling=pooling)
        x = torch.stack([encoder.load(image) for image in noise()])
        with torch.inference_mode():
            tokens = model.forward_features(x).numpy()
        by_hand = {"cls": tokens[:, 0], "mean": tokens.mean(1), "last": tokens[:, -1], "gap": tokens[:, 1:].mean(1)}
        rows_by_pooling[pooling] = encoder.encode(noise())
        np.testing.assert_allclose(rows_by_pooling[pooling], by_hand[pooling], atol=1e-5)
        torch.manual_seed(0)
    assert len({rows.tobytes() for rows in rows_by_pooling.values()}) == 4


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


def test_channels_last_features_are_pooled_over_positions():
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


def test_a_model_with_one_channel_reads_images_as_grey():
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


def test_texts_are_truncated_at_max_length(bert):
    cut = encoders.load_encoder(str(bert), max_length=4)
    np.testing.assert_allclose(cut.encode(["a b c d e f g"]), cut.encode(["a b"]), atol=1e-6)


def test_the_linear_step_of_a_sentence_encoder_applies_to_its_mean_but_not_to_a_layer(bert, tmp_path):
    plain = encoders.load_encoder(str(bert)).encode(TEXTS)
    layer = encoders.load_encoder(str(bert), layer=1).encode(TEXTS)
    linear = with_dense(bert)
    encoder = encoders.load_encoder(str(bert))
    with torch.inference_mode():
        expected = torch.tanh(linear(torch.from_numpy(plain))).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
    assert encoder.space.dim == 6
    np.testing.assert_allclose(encoders.load_encoder(str(bert), layer=1).encode(TEXTS), layer, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "cls"}, "`pooling` of 'tiny' must be gap, mean or none, because the model has no class token"),
        ({"dim": 95}, r"must return vectors of `dim` 95; got shape \(96,\)"),
        ({"layer": 9}, "`layer` of 'tiny' must be from 1 to 5"),
        ({"layer": 1, "pooling": "none"}, "`layer` of 'tiny' must be .* other than none"),
        ({"mean": (0.5,)}, "`input_size` of 'tiny' must have 1 or 3 channels, and `mean` and `std` must have as many"),
    ],
)
def test_a_card_that_does_not_fit_its_model_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        encoders.from_module(build("test_resnet", num_classes=0), card(**fields))


def test_a_layer_or_pooling_that_a_text_encoder_lacks_is_refused(bert):
    with pytest.raises(InputError, match="`layer` of 'tiny-bert' must be from 0 to 2"):
        encoders.load_encoder(str(bert), layer=3)
    with pytest.raises(
        InputError, match=r"`pooling` of a text encoder must be one of cls, mean, last, max, .*; got 'gap'"
    ):
        encoders.load_encoder(str(bert), pooling="gap")


def test_pooling_ignores_padding():
    tokens = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    garbage = tokens.masked_fill(mask[:, :, None] == 0, 1e6)
    for pooling in vectors.POOLS:
        torch.testing.assert_close(vectors.pool(tokens, mask, pooling), vectors.pool(garbage, mask, pooling))
