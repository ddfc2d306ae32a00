"""Vision models of transformers, with random weights, compared with a computation by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.encoders import noise, read

from repstitch import encoders
from repstitch.encoders.catalogue import Card
from repstitch.errors import InputError

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SIZES |= {"image_size": 32, "patch_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "vit": SIZES,
    "dinov2": SIZES,
    "dinov2_with_registers": SIZES | {"num_register_tokens": 3},
    "deit": SIZES,
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 1],
        "window_size": 4,
    },
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}
PREFIX = {"vit": 1, "dinov2": 1, "dinov2_with_registers": 4, "deit": 2, "swin": 0, "resnet": 0, "convnext": 0}


def save(folder, kind, **settings):
    from transformers import AutoConfig, AutoModel, ViTImageProcessor

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **KINDS[kind] | settings)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def outputs(folder, images):
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        return model(
            **processor([image.convert("RGB") for image in images], return_tensors="pt"), output_hidden_states=True
        )


def tokens(state):
    return state.flatten(2).transpose(1, 2).numpy() if state.ndim == 4 else state.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_a_vision_model_gives_its_class_token_or_else_the_mean_of_its_map(tmp_path, kind):
    folder = save(tmp_path / kind, kind)
    state = tokens(outputs(folder, noise()).last_hidden_state)
    encoder = encoders.load_encoder(str(folder))
    assert (encoder.space.modality, encoder.space.architecture) == ("image", kind)
    assert encoder.space.pooling == ("cls" if PREFIX[kind] else "gap")
    np.testing.assert_allclose(encoder.encode(noise()), state[:, 0] if PREFIX[kind] else state.mean(1), atol=1e-5)
    patches = encoders.load_encoder(str(folder), pooling="gap").encode(noise())
    np.testing.assert_allclose(patches, state[:, PREFIX[kind] :].mean(1), atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_without_pooling_a_vision_model_gives_its_own_vector(tmp_path, kind):
    folder = save(tmp_path / kind, kind)
    expected = outputs(folder, noise()).pooler_output.flatten(1).numpy()
    np.testing.assert_allclose(encoders.load_encoder(str(folder), pooling="none").encode(noise()), expected, atol=1e-5)


def test_a_pooler_without_weights_is_not_used(tmp_path):
    from transformers import ViTConfig, ViTModel

    folder = save(tmp_path / "vit", "vit")
    ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).save_pretrained(folder)
    assert encoders.load_encoder(str(folder)).space.pooling == "cls"
    with pytest.raises(InputError, match="`pooling` of 'vit' must not be none, because the model returns no vector"):
        encoders.load_encoder(str(folder), pooling="none")


def test_layers_of_a_vision_model_are_its_hidden_states(tmp_path):
    folder, photos = save(tmp_path / "vit", "vit"), tmp_path / "photos"
    photos.mkdir()
    for i, image in enumerate(noise()):
        image.save(photos / f"{i}.png")
    encoders.embed(str(folder), photos, tmp_path / "x", layers="all")
    states = outputs(folder, noise()).hidden_states
    for layer, path in enumerate(sorted((tmp_path / "x").iterdir())):
        np.testing.assert_allclose(read(path).vectors, states[layer][:, 0].numpy(), atol=1e-5)


def test_a_hub_model_embeds_images_if_the_modality_says_so(tmp_path, monkeypatch):
    folder = save(tmp_path / "vit", "vit")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(folder))
    hub, local = (encoders.load_encoder(name, modality="image").encode(noise()) for name in ("owner/vit", str(folder)))
    np.testing.assert_array_equal(hub, local)


def test_data_of_the_other_modality_say_how_to_choose_it(tmp_path):
    with pytest.raises(
        InputError, match=r"must contain texts, .* If the encoder embeds images, set `modality` to image"
    ):
        encoders.embed("owner/vit", tmp_path, tmp_path / "x.parquet")


def test_a_vision_model_that_cannot_be_read_is_refused_by_name(tmp_path, bert, clip):
    from transformers import SiglipConfig, SiglipModel, ViTMAEConfig, ViTMAEModel

    folder = save(tmp_path / "vit", "vit")
    with pytest.raises(
        InputError, match="`input_size` of 'vit' must not be set, because a model of transformers states"
    ):
        encoders.load_encoder(str(folder), input_size=16)
    with pytest.raises(InputError, match="`pooling` of 'resnet' must be gap, mean or none"):
        encoders.load_encoder(str(save(tmp_path / "resnet", "resnet")), pooling="cls")
    ViTMAEModel(ViTMAEConfig(**SIZES)).save_pretrained(folder)
    with pytest.raises(InputError, match="must be a vision model that reads whole images; vit_mae is not supported"):
        encoders.load_encoder(str(folder))
    text: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    SiglipModel(SiglipConfig(text_config=text, vision_config=SIZES)).save_pretrained(folder)
    with pytest.raises(InputError, match="a siglip with several towers is not supported"):
        encoders.load_encoder(str(folder))
    with pytest.raises(InputError, match=r"tiny-bert must contain a preprocessor_config\.json"):
        encoders.load_encoder(str(bert), modality="image")


def test_a_vision_model_and_its_processor_make_an_encoder(tmp_path):
    from transformers import AutoImageProcessor, AutoModel

    folder = save(tmp_path / "vit", "vit")
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    made = encoders.from_module(model, Card("vit", "transformers:vit", modality="image"), processor)
    np.testing.assert_array_equal(made.encode(noise()), encoders.load_encoder(str(folder)).encode(noise()))


def test_the_modality_of_a_model_that_reads_images_only_is_not_changed():
    with pytest.raises(InputError, match="`modality` of timm:resnet50 must be image; got text"):
        encoders.load_encoder("timm:resnet50", modality="text")
