import subprocess
import sys
import tomllib
from functools import partial
from typing import Any

import pytest

from repstitch.encoders import catalogue, load_encoder
from repstitch.encoders.catalogue import Card
from repstitch.errors import InputError, NotFoundError
from repstitch.files import data_folder

# Checkpoint names of the models in Huh et al. 2024: 17 vision models, 12 language models, and 8 later language models.
VISION = (
    "vit_tiny_patch16_224.augreg_in21k",
    "vit_small_patch16_224.augreg_in21k",
    "vit_base_patch16_224.augreg_in21k",
    "vit_large_patch16_224.augreg_in21k",
    "vit_base_patch16_224.mae",
    "vit_large_patch16_224.mae",
    "vit_huge_patch14_224.mae",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_large_patch14_dinov2.lvd142m",
    "vit_giant_patch14_dinov2.lvd142m",
    "vit_base_patch16_clip_224.laion2b",
    "vit_large_patch14_clip_224.laion2b",
    "vit_huge_patch14_clip_224.laion2b",
    "vit_base_patch16_clip_224.laion2b_ft_in12k",
    "vit_large_patch14_clip_224.laion2b_ft_in12k",
    "vit_huge_patch14_clip_224.laion2b_ft_in12k",
)
LANGUAGE = (
    *(f"bigscience/bloomz-{size}" for size in ("560m", "1b1", "1b7", "3b", "7b1")),
    *(f"openlm-research/open_llama_{size}" for size in ("3b", "7b", "13b")),
    *(f"huggyllama/llama-{size}" for size in ("7b", "13b", "30b", "65b")),
)
LATER = (
    *("allenai/OLMo-1B-hf", "allenai/OLMo-7B-hf", "google/gemma-2b", "google/gemma-7b"),
    *("mistralai/Mistral-7B-v0.1", "mistralai/Mixtral-8x7B-v0.1"),
    *("NousResearch/Meta-Llama-3-8B", "NousResearch/Meta-Llama-3-70B"),
)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def tables(path):
    return tomllib.loads(path.read_text(encoding="utf-8"))["space"]


def test_importing_encoders_and_the_catalogue_imports_no_model_library():
    code = (
        "import sys, repstitch.encoders; from repstitch.encoders import catalogue; catalogue.cards();"
        "sys.exit(' '.join({'torch', 'torchvision', 'timm', 'transformers', 'PIL'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_card_states_its_library_dim_and_lineage():
    cards = catalogue.cards()
    assert {"mobilenetv2_slim_imagenet", "all-MiniLM-L6-v2", "dinov2_base"} <= set(cards)
    for name, card in cards.items():
        assert card.name == name
        assert card.encoder.partition(":")[0] in catalogue.LIBRARIES
        assert card.dim
        assert card.pooling
        assert card.family
        assert card.objective


def test_every_encoder_has_one_card():
    names = [table["name"] for path in data_folder("spaces").glob("*.toml") for table in tables(path)]
    encoders = [card.encoder for card in catalogue.cards().values() if card.checkpoint is None and not card.model_args]
    assert len(set(names)) == len(names)
    assert len(set(encoders)) == len(encoders)


def test_the_catalogue_contains_the_models_of_the_platonic_study():
    cards = {card.encoder: card for card in catalogue.cards().values()}
    assert (len(VISION), len(LANGUAGE), len(LATER)) == (17, 12, 8)
    for encoder, pooling in (
        *((f"timm:{name}", "cls") for name in VISION),
        *((f"transformers:{name}", "mean") for name in LANGUAGE + LATER),
    ):
        card = cards[encoder]
        assert (card.pooling, card.role, card.layer, card.skip_first) == (pooling, "none", None, False)
        assert all((card.family, card.architecture, card.objective, card.training_data, card.parameters))


def test_the_two_towers_of_each_clip_have_the_same_dim():
    cards = catalogue.cards()
    images = [name for name in cards if name.startswith("clip_vit_") and name.endswith("_image")]
    assert len(images) == 7
    for name in images:
        image, text = cards[name], cards[name.replace("_image", "_text")]
        assert (image.dim, image.training_data) == (text.dim, text.training_data)
        assert (catalogue.modality(image), catalogue.modality(text)) == ("image", "text")


@pytest.mark.parametrize("name", [name for name, card in catalogue.cards().items() if card.encoder[:5] == "timm:"])
def test_a_timm_card_states_the_width_and_the_parameters_of_its_model(name):
    import timm
    import torch

    from repstitch.encoders.loading import BUILDERS

    card = catalogue.find(name)
    architecture = card.encoder.partition(":")[2].partition(".")[0]
    settings = {"num_classes": 0} | ({"weight_init": "skip"} if architecture.startswith("vit_") else {})
    with torch.device("meta"):  # allocates no weights, so that large models take no time to initialise
        make = BUILDERS.get(architecture, partial(timm.create_model, architecture))
        model: Any = make(**settings | card.model_args)
    assert card.dim == (model.num_classes or model.num_features)
    assert card.parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(("name", "dim"), [("text-embedding-3-large", 3072), ("embed-english-v3.0", 1024)])
def test_an_api_model_has_a_card_but_cannot_be_loaded(name, dim):
    card = catalogue.find(name)
    assert (card.dim, catalogue.modality(card)) == (dim, "text")
    with pytest.raises(InputError, match=f"`encoder` '{name}' must be a model that can be loaded; got an API model"):
        load_encoder(name)


def test_a_card_has_a_revision_exactly_when_it_has_a_checkpoint():
    for card in catalogue.cards().values():
        assert (card.checkpoint is None) == (card.revision is None), card.name


def test_an_e5_card_has_a_prompt_for_each_role():
    card = catalogue.find("e5-base-v2")
    assert card.prompts == {"query": "query: ", "document": "passage: "}
    assert card.prompt == "passage: "
    assert catalogue.resolve("e5-base-v2", role="query").prompt == "query: "


def test_cards_round_trip_through_a_file(tmp_path):
    cards = [
        *catalogue.cards().values(),
        Card("odd", "timm:test_resnet", model_args={"a": [1, 2.5], "b": True}, prompts={"query": 'say "ä"\n'}),
    ]
    catalogue.write(tmp_path / "all.toml", cards)
    assert list(catalogue.read(tmp_path / "all.toml").values()) == cards


def test_a_written_card_is_never_overwritten(tmp_path):
    catalogue.write(tmp_path / "a.toml", [])
    with pytest.raises(InputError, match=r"`path` .*a\.toml exists and is never overwritten"):
        catalogue.write(tmp_path / "a.toml", [])


def test_an_architecture_alone_means_a_timm_model(tmp_path):
    path = write(tmp_path / "a.toml", '[[space]]\nname = "a"\narchitecture = "test_resnet"\n')
    assert catalogue.read(path)["a"].encoder == "timm:test_resnet"


def test_a_checkpoint_is_loaded_from_the_folder_of_its_card_or_of_the_weights(tmp_path, monkeypatch):
    monkeypatch.delenv("REPSTITCH_WEIGHTS", raising=False)
    (tmp_path / "cards").mkdir()
    (tmp_path / "weights").mkdir()
    path = write(
        tmp_path / "cards" / "a.toml",
        '[[space]]\nname = "a"\nencoder = "timm:test_resnet"\ncheckpoint = "a.safetensors"\n',
    )
    with pytest.raises(
        InputError, match=r"'checkpoint' of card 'a' must be an existing file or folder.*REPSTITCH_WEIGHTS"
    ):
        catalogue.weights(catalogue.read(path)["a"])

    in_weights = tmp_path / "weights" / "a.safetensors"
    in_weights.touch()
    monkeypatch.setenv("REPSTITCH_WEIGHTS", str(tmp_path / "weights"))
    assert catalogue.weights(catalogue.read(path)["a"]) == in_weights

    next_to_card = tmp_path / "cards" / "a.safetensors"
    next_to_card.touch()
    assert catalogue.weights(catalogue.read(path)["a"]) == next_to_card


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[space]]\nname = "a"\nencoder = "timm:x"\npoling = "cls"\n',
            "unknown field 'poling'; allowed fields are name, encoder",
        ),
        ('[[space]]\nname = "a"\n', "must state 'name' and 'encoder'"),
        ('[[space]]\nname = "a"\nencoder = "timm:x"\ndim = "wide"\n', "'dim' of card 'a' must be int"),
        (
            '[[space]]\nname = "a"\nencoder = "timm:x"\npooling = "median"\n',
            "'pooling' of card 'a' must be one of cls, mean",
        ),
        (
            '[[space]]\nname = "a"\nencoder = "timm:x"\npooling = "cls+median"\n',
            "'pooling' of card 'a' must be one of cls, mean",
        ),
        (
            '[[space]]\nname = "a"\nencoder = "timm:x"\nchannels = "GBR"\n',
            "'channels' of card 'a' must be one of RGB, BGR",
        ),
        ('[[space]]\nname = "a"\nencoder = "timm:x"\ninput_size = [32, 32]\n', "must be \\[channels, height, width\\]"),
        (
            '[[space]]\nname = "a"\nencoder = "timm:x"\nprompts = { answer = "a: " }\n',
            "'prompts' .* must have roles as keys",
        ),
        ('[[space]]\nname = "a"\nencoder = "timm:x"\n' * 2, "has two cards named 'a'"),
        (
            '[[space]]\nname = "a"\nencoder = "x:y"\nmax_length = 0\n',
            "'max_length' of card 'a' must be at least 1; got 0",
        ),
        (
            '[[space]]\nname = "a"\nencoder = "x:y"\ntruncate_dim = -1\n',
            "'truncate_dim' of card 'a' must be at least 1",
        ),
        ('[spaces]\nname = "a"\n', "must contain \\[\\[space\\]\\] tables"),
        ("not toml", "cannot be read"),
        ("a = " + "[" * 100_000, "cannot be read: a.toml must be nested less deeply"),
    ],
)
def test_an_invalid_card_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        catalogue.read(write(tmp_path / "a.toml", text))


def test_the_error_for_a_misspelt_name_suggests_the_nearest():
    with pytest.raises(NotFoundError, match="e5-base-v2"):
        catalogue.find("e5-base")
    with pytest.raises(InputError, match=r"`encoder` must be a card.*got 'e5-bse-v2'.*Nearest: e5-base-v2"):
        catalogue.resolve("e5-bse-v2")


@pytest.mark.parametrize(
    ("requested", "encoder", "name"),
    [
        ("timm:resnet50", "timm:resnet50", "resnet50"),
        ("timm/resnet18.a1_in1k", "timm:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("transformers:gpt2", "transformers:gpt2", "gpt2"),
        ("owner/model", "transformers:owner/model", "model"),
        ("gte-base", "transformers:thenlper/gte-base", "gte-base"),
    ],
)
def test_the_form_of_an_encoders_name_selects_its_library(requested, encoder, name):
    card = catalogue.resolve(requested)
    assert (card.encoder, card.name) == (encoder, name)


def test_settings_override_the_card():
    card = catalogue.resolve(
        "bge-small-en-v1.5",
        name="mine",
        pooling="mean",
        layer=3,
        role="query",
        prompt="Q: ",
        normalise=False,
        max_length=8,
    )
    fields = (card.name, card.pooling, card.layer, card.role, card.prompt)
    assert fields == ("mine", "mean", 3, "query", "Q: ")
    assert card.normalised is False
    assert card.max_length == 8


def test_the_dim_of_a_card_applies_only_to_its_own_pooling_and_layer():
    assert catalogue.resolve("clip_vit_b32_openai_image", name="mine").dim == 512
    assert catalogue.resolve("clip_vit_b32_openai_image", pooling="cls", layer=3).dim is None
    assert catalogue.resolve("mobilenetv2_slim_imagenet", pooling="gap").dim == 1280
    assert catalogue.resolve("mobilenetv2_slim_imagenet", layer=-1).dim is None


def test_another_checkpoint_drops_the_revision():
    assert catalogue.resolve("mobilenetv2_slim_imagenet", checkpoint="mine.safetensors").revision is None


def test_an_unknown_setting_is_refused():
    with pytest.raises(InputError, match=r"'poling' is not a setting of an encoder; did you mean 'pooling'\?"):
        catalogue.resolve("gte-base", poling="cls")
    with pytest.raises(InputError, match=r"'promt' is not a setting of an encoder; did you mean 'prompt'\?"):
        catalogue.resolve("gte-base", promt="query: ")
    with pytest.raises(
        InputError, match="'qqq' is not a setting of an encoder; the settings are architecture, checkpoint, "
    ):
        catalogue.resolve("gte-base", qqq=1)


def test_one_card_of_several_is_selected_by_a_colon_and_its_name(tmp_path):
    path = tmp_path / "two.toml"
    catalogue.write(path, [Card("a", "timm:x"), Card("b", "timm:y")])
    assert catalogue.resolve(f"{path}:b").encoder == "timm:y"
    with pytest.raises(InputError, match=r"must name a card of .*two.toml:NAME; the names are a, b"):
        catalogue.resolve(str(path))


def test_a_file_of_weights_needs_its_architecture(tmp_path):
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(InputError, match="`architecture` must name the timm model"):
        catalogue.resolve(str(tmp_path / "w.safetensors"))
    assert catalogue.resolve(str(tmp_path / "w.safetensors"), architecture="test_vit").encoder == "timm:test_vit"


def test_an_architecture_is_refused_unless_the_encoder_is_a_file_of_weights():
    with pytest.raises(InputError, match="`architecture` requires an `encoder` that is a file of weights; gte-base is"):
        catalogue.resolve("gte-base", architecture="test_vit")


def test_the_library_of_a_folder_is_read_from_its_config(tmp_path):
    with pytest.raises(InputError, match=r"must be the folder of a model, with a config.json"):
        catalogue.resolve(str(tmp_path))
    write(tmp_path / "config.json", "{}")
    with pytest.raises(InputError, match=r"must have a config.json with 'architecture' \(timm\) or 'model_type'"):
        catalogue.resolve(str(tmp_path))
    write(tmp_path / "config.json", '{"model_type": "bert"}')
    assert catalogue.resolve(str(tmp_path)).encoder == f"transformers:{tmp_path.name}"
    write(tmp_path / "config.json", '{"architecture": "test_vit"}')
    assert catalogue.resolve(str(tmp_path)).encoder == f"timm:{tmp_path.name}"
