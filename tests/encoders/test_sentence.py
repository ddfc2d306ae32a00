"""Folders of Sentence Transformers: the vectors are those of the library, or the folder is refused by name."""

import json
import logging
import shutil
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.sentence_models import (
    POSITIONS,
    TEXTS,
    age,
    check_same,
    move_reader,
    reader,
    reference,
    rewrite,
    save_model,
    save_reader,
    word_tokenizer,
)

from repstitch.encoders import load_encoder
from repstitch.encoders.loading import digest
from repstitch.errors import InputError

models: Any = pytest.importorskip("sentence_transformers.sentence_transformer.modules", reason="needs the extra dev")

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
NAMES = ("cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last")
PROMPTS = {"query": "query : ", "document": "passage : ", "other": "find "}


@pytest.fixture(autouse=True)
def quiet():
    """Sentence Transformers changes the log level of transformers."""
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def make(tmp_path):
    """Return a function that saves a BERT, a pooling and further modules as a model."""

    def save(*modules, pooling="mean", kind="bert", settings=None, **options):
        transformer = reader(tmp_path, kind, **(settings or {}))
        pooled = models.Pooling(16, pooling, **options.pop("pool", {}))
        return save_model(tmp_path / "model", transformer, pooled, *modules, **options)

    return save


@pytest.mark.parametrize(("mode", "name"), [*zip(MODES, NAMES, strict=True)])
def test_each_pooling_gives_the_vectors_of_the_library(make, mode, name):
    assert check_same(make(pooling=mode)).space.pooling == name


@pytest.mark.parametrize(("mode", "name"), [*zip(MODES, NAMES, strict=True)])
def test_each_pooling_is_read_in_the_format_before_release_5_4(make, mode, name):
    encoder = check_same(age(make(pooling=mode)))
    assert (encoder.space.pooling, encoder.card.max_length) == (name, 12)


@pytest.mark.parametrize("modes", [*pairwise(MODES), MODES, ("lasttoken", "cls")])
def test_several_poolings_are_joined(make, modes):
    encoder = check_same(make(pooling=modes))
    assert encoder.space.pooling == "+".join(NAMES[MODES.index(mode)] for mode in modes)
    assert encoder.space.dim == 16 * len(modes)


def test_several_poolings_of_the_older_format_are_joined_in_the_order_of_the_library(make):
    assert check_same(age(make(pooling=("cls", "max", "lasttoken")))).space.pooling == "cls+max+last"


def test_a_pooling_that_does_not_exist_is_refused_by_name(make):
    folder = make()
    rewrite(folder / "1_Pooling" / "config.json", pooling_mode="median")
    with pytest.raises(InputError, match="has the pooling 'median', which is not supported"):
        load_encoder(str(folder))
    age_flags = {"word_embedding_dimension": 16, "pooling_mode": None, "pooling_mode_top_tokens": True}
    rewrite(folder / "1_Pooling" / "config.json", **age_flags)
    with pytest.raises(InputError, match="has the pooling 'pooling_mode_top_tokens'"):
        load_encoder(str(folder))


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["query", "document", "none"])
@pytest.mark.parametrize("default", [None, "other"])
@pytest.mark.parametrize("included", [True, False])
def test_the_prompts_of_a_folder_are_put_before_each_text(make, role, default, included):
    folder = make(prompts=PROMPTS, default_prompt_name=default, pool={"include_prompt": included})
    encoder = check_same(folder, role=role)
    prompt = PROMPTS["other"] if role == "none" and default else PROMPTS.get(role)
    assert (encoder.space.role, encoder.space.prompt) == (role, prompt)
    assert encoder.space.pooling == ("mean" if included else "mean, prompt left out")


@pytest.mark.parametrize("mode", MODES)
def test_each_pooling_leaves_out_the_prompt_if_the_folder_says_so(make, mode):
    check_same(make(prompts=PROMPTS, pooling=mode, pool={"include_prompt": False}), role="query")


def test_a_prompt_of_the_caller_replaces_that_of_the_folder(make):
    folder = make(prompts=PROMPTS)
    encoder = load_encoder(str(folder), role="query", prompt="find ")
    expected = load_encoder(str(folder)).encode([f"find {text}" for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_a_prompt_named_passage_is_that_of_documents(make):
    folder = make()
    rewrite(folder / "config_sentence_transformers.json", prompts={"query": "query : ", "passage": "passage : "})
    assert load_encoder(str(folder), role="document").space.prompt == "passage : "


def test_a_default_prompt_that_does_not_exist_is_refused(make):
    folder = make()
    rewrite(folder / "config_sentence_transformers.json", prompts={}, default_prompt_name="web")
    with pytest.raises(InputError, match="must state a prompt for its default_prompt_name 'web'"):
        load_encoder(str(folder))


# --- the reader of texts ----------------------------------------------------------------------------------------------


def test_texts_are_read_in_lower_case_if_the_folder_says_so(make):
    folder = age(make())
    rewrite(folder / "sentence_bert_config.json", do_lower_case=True)
    check_same(folder)
    lower = load_encoder(str(folder)).encode(["the cat", "The Cat"])
    np.testing.assert_array_equal(lower[0], lower[1])


def test_the_layout_with_a_folder_for_each_module_is_read(make):
    folder = move_reader(age(make(models.Dense(16, 6))))
    encoder = check_same(folder)
    assert encoder.space.revision != digest(folder / "2_Dense")


def test_the_revision_depends_on_the_weights_of_every_module(make):
    folder = make(models.Dense(16, 6))
    before = digest(folder)
    shutil.copytree(folder, folder.parent / "other")
    state = models.Dense(16, 6).state_dict()
    torch.save(state, folder.parent / "other" / "2_Dense" / "pytorch_model.bin")
    (folder.parent / "other" / "2_Dense" / "model.safetensors").unlink()
    assert digest(folder.parent / "other") != before
    check_same(folder.parent / "other")


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_a_text_is_cut_at_the_last_position_of_a_model_that_counts_from_its_padding(tmp_path, kind):
    folder = save_reader(tmp_path / "m", kind, pad_token_id=1, model_max_length=int(1e30))
    encoder = load_encoder(str(folder))
    assert encoder.card.max_length == POSITIONS - 2
    n_words = POSITIONS - 4  # beside the first and the last token
    np.testing.assert_allclose(encoder.encode(["dog " * 80]), encoder.encode(["dog " * n_words]), atol=1e-5)


def test_a_roberta_gives_the_vectors_of_the_library_up_to_its_last_position(make):
    texts = [*TEXTS[:3], "dog " * (POSITIONS - 4)]
    check_same(make(kind="roberta", settings={"pad_token_id": 1}), texts)


def test_a_t5_without_a_limit_reads_texts_of_any_length(make):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "max_position_embeddings": None}
    folder = make(kind="t5", settings=sizes | {"model_max_length": int(1e30)})
    encoder = check_same(folder, [*TEXTS, "cat " * 700])
    assert encoder.card.max_length is None
    assert encoder.count_tokens(["cat " * 700]).tolist() == [702]


def test_an_xlnet_whose_texts_end_with_the_class_token_gives_the_vectors_of_the_library(make):
    sizes = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "max_position_embeddings": None}
    check_same(make(kind="xlnet", settings=sizes), TEXTS[:3])


@pytest.mark.parametrize("stated", [{"max_seq_length": 30}, {"max_seq_length": 8}])
def test_the_maximum_length_of_the_folder_replaces_that_of_the_tokenizer(make, stated):
    folder = age(make(settings={"max_position_embeddings": 64}))
    rewrite(folder / "sentence_bert_config.json", **stated)
    assert check_same(folder).card.max_length == stated["max_seq_length"]


def test_the_length_of_queries_and_of_documents_is_that_of_the_folder(make):
    folder = make()
    rewrite(folder / "sentence_bert_config.json", query_length=5, document_length=9)
    assert [check_same(folder, role=role).card.max_length for role in ("query", "document", "none")] == [5, 9, 24]


def test_a_decoder_that_pads_on_the_left_gives_the_vectors_of_the_library(tmp_path):
    folder = save_reader(tmp_path / "reader", "qwen2", num_key_value_heads=1)
    rewrite(folder / "tokenizer_config.json", padding_side="left")
    model = save_model(tmp_path / "model", models.Transformer(str(folder)), models.Pooling(16, "lasttoken"))
    check_same(model)


# --- the modules that follow ------------------------------------------------------------------------------------------

ACTIVATIONS = (
    "Identity",
    "Tanh",
    "ReLU",
    "GELU",
    "Sigmoid",
    "SiLU",
    "LeakyReLU",
    "ELU",
    "Softplus",
    "Mish",
    "Hardtanh",
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_dense_module_applies_its_activation(make, name):
    assert check_same(make(models.Dense(16, 6, activation_function=getattr(torch.nn, name)()))).space.dim == 6


def test_a_dense_module_without_a_stated_activation_applies_tanh(make):
    folder = make(models.Dense(16, 6))
    rewrite(folder / "2_Dense" / "config.json", activation_function=None)
    check_same(folder)


@pytest.mark.parametrize("width", [16, 6])
def test_a_dense_module_may_have_a_residual_connection(make, width):
    check_same(make(models.Dense(16, width, bias=False, use_residual=True)))


def test_modules_are_applied_in_the_order_of_the_folder(make):
    norm = models.LayerNorm(16)
    torch.nn.init.normal_(norm.norm.weight)
    torch.nn.init.normal_(norm.norm.bias)
    encoder = check_same(make(models.Normalize(), norm, models.Dropout(0.5), models.Dense(16, 6), models.Normalize()))
    assert encoder.space.normalised is True


@pytest.mark.parametrize("modules", [(), (models.Normalize(),), (models.Dense(16, 12), models.Normalize())])
def test_vectors_are_cut_to_the_dimensions_that_the_folder_states(make, modules):
    folder = make(*modules, truncate_dim=5)
    encoder = check_same(folder)
    assert (encoder.space.dim, encoder.space.normalised) == (5, False)
    lengths = np.linalg.norm(load_encoder(str(folder), normalise=True).encode(TEXTS), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_the_layers_of_a_model_are_those_before_its_dense_module(make):
    folder = make(models.Dense(16, 6), models.Normalize(), truncate_dim=3)
    rows = load_encoder(str(folder), layer=-1, normalise=False).encode(TEXTS)
    assert rows.shape == (len(TEXTS), 16)


# --- other readers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 3])
def test_a_table_of_token_vectors_gives_the_vectors_of_the_library(tmp_path, limit):
    tokenizer = word_tokenizer().backend_tokenizer
    if limit:
        tokenizer.enable_truncation(limit)
    tokenizer.enable_padding()
    folder = save_model(tmp_path / "m", models.StaticEmbedding(tokenizer, embedding_dim=8), models.Normalize())
    encoder = check_same(folder, [*TEXTS, "  "])
    assert (encoder.space.pooling, encoder.space.architecture) == ("mean", "StaticEmbedding")
    assert encoder.card.max_length == limit
    assert encoder.count_tokens(TEXTS[:2]).tolist() == [3, 2]
    with pytest.raises(InputError, match="`pooling` of 'm' must be mean over all tokens"):
        load_encoder(str(folder), pooling="max")
    with pytest.raises(InputError, match="`layer` of 'm' must not be set"):
        load_encoder(str(folder), layer=1)


def test_a_table_of_model2vec_with_a_mapping_and_weights_gives_the_vectors_of_the_library(tmp_path):
    from safetensors.torch import save_file

    tokenizer = word_tokenizer(special=False).backend_tokenizer
    n = tokenizer.get_vocab_size()
    folder = save_model(tmp_path / "m", models.StaticEmbedding(tokenizer, embedding_dim=8))
    state = {"embeddings": torch.randn(5, 8).half(), "mapping": torch.randint(0, 5, (n,)), "weights": torch.rand(n)}
    save_file(state, folder / "model.safetensors")
    check_same(folder)


def two_routes(tmp_path, names, **settings):
    query = models.StaticEmbedding(word_tokenizer(special=False), embedding_dim=16)
    document = [reader(tmp_path), models.Pooling(16, "cls"), models.Dense(16, 16)]
    router = models.Router({names[0]: [query], names[1]: document}, **settings)
    return save_model(tmp_path / "m", router, models.Normalize())


@pytest.mark.parametrize("role", ["query", "document", "none"])
def test_a_router_takes_the_route_of_the_role(tmp_path, role):
    folder = two_routes(tmp_path, ("query", "document"), default_route="document")
    encoder = check_same(folder, role=role)
    assert encoder.space.architecture == ("StaticEmbedding" if role == "query" else "bert")
    assert encoder.space.normalised is True


@pytest.mark.parametrize("role", ["query", "document", "none"])
def test_a_router_follows_its_mappings(tmp_path, role):
    mappings = {("query", "text"): "light", ("document", None): "heavy", (None, None): "light"}
    check_same(two_routes(tmp_path, ("light", "heavy"), route_mappings=mappings), role=role)


def test_an_asym_of_older_releases_is_read(tmp_path):
    folder = two_routes(tmp_path, ("query", "document"))
    shutil.move(folder / "router_config.json", folder / "config.json")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.models.Asym"
    (folder / "modules.json").write_text(json.dumps(modules))
    for role in ("query", "document", "none"):
        check_same(folder, role=role)


def test_a_role_without_a_route_is_refused(tmp_path):
    folder = two_routes(tmp_path, ("query", "doc"), allow_empty_key=False)
    for role in ("document", "none"):
        with pytest.raises(InputError, match=rf"`role` must be one .* has a route for \(query, doc\); got {role}"):
            load_encoder(str(folder), role=role)


def test_a_clip_gives_the_vectors_of_the_library_for_texts_and_for_images(tmp_path, clip):
    from helpers.encoders import noise

    save_processor(clip)
    folder = save_model(tmp_path / "m", models.Transformer(str(clip)))
    texts = ["a cat", "the dog sat on a mat", "sat"]
    assert check_same(folder, texts).space.modality == "text"
    encoder = check_same(folder, noise(3), modality="image")
    assert (encoder.space.modality, encoder.space.pooling) == ("image", "none")


def test_a_clip_of_older_releases_is_read(tmp_path, clip):
    from helpers.encoders import noise

    save_processor(clip)
    folder = tmp_path / "m"
    shutil.copytree(clip, folder / "0_CLIPModel")
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    check_same(folder, ["a cat", "the dog sat on a mat"])
    check_same(folder, noise(3), modality="image")


def save_processor(folder):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPProcessor

    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 12
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sentence_transformers.models.WordWeights", "has the module WordWeights after Transformer"),
        ("sentence_transformers.sparse_encoder.models.SpladePooling", "has the module SpladePooling after Transformer"),
        ("custom_st.Head", "has the module custom_st.Head, whose code is part of the model and is never run"),
    ],
)
def test_a_module_that_is_not_supported_is_refused_by_name(make, kind, message):
    folder = make(models.Normalize())
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "custom_st.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(InputError, match=message):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("2_Dense/config.json", {"activation_function": "os.system"}, r"must have an activation of torch.nn; got os"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Parameter"}, "must have an activation of torch.nn"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "has the module_input_name 'token_emb"),
        ("1_Pooling/config.json", {"pooling_top_k": 3}, "has the setting 'pooling_top_k'"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, "has the setting 'query_expansion'"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 3}}}, "'processing_kwargs'"),
        ("sentence_bert_config.json", {"model_args": {"lora_alpha": 3}}, "has the setting 'lora_alpha'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "has the transformer_task 'fill-mask'"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}},
            "reads message; text without a chat template",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            "takes pooler_output of the method forward",
        ),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder is not supported"),
        ("adapter_config.json", {"peft_type": "LORA"}, "states an adapter, which is not supported"),
        ("config.json", {"auto_map": {"AutoModel": "modeling_x.X"}}, "names the class modeling_x.X, whose code"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tok.T", None]}}, "tokenizer_config.json names the"),
    ],
)
def test_a_setting_that_is_not_supported_is_refused_by_name(make, file, changes, message):
    folder = make(models.Dense(16, 6))
    rewrite(folder / file, **changes)
    (folder / "modeling_x.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(InputError, match=message):
        load_encoder(str(folder))


def test_a_folder_that_contains_only_an_adapter_is_refused(tmp_path):
    rewrite(tmp_path / "adapter_config.json", peft_type="LORA", base_model_name_or_path="owner/base")
    with pytest.raises(InputError, match=r"must be a whole model; adapter_config\.json states an adapter"):
        load_encoder(str(tmp_path))


def test_weights_of_an_adapter_inside_a_checkpoint_are_refused(make):
    from safetensors.torch import load_file, save_file

    folder = make()
    state = load_file(folder / "model.safetensors") | {"encoder.layer.0.lora_A.weight": torch.ones(2, 2)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"must contain no adapter; encoder\.layer\.0\.lora_A\.weight is not a weight"):
        load_encoder(str(folder))


def test_a_model_without_pooling_is_refused(make):
    folder = make()
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(InputError, match="has no Pooling after the module Transformer"):
        load_encoder(str(folder))
    modules[1]["path"] = "../1_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="must have its modules in its own folder"):
        load_encoder(str(folder))


def test_a_decoder_whose_output_the_library_pools_is_refused(make):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    with pytest.raises(InputError, match="must not pool the output of a decoder; got the model type bart"):
        load_encoder(str(make(kind="bart", settings=sizes)))


def test_modules_that_are_not_a_list_are_refused(make):
    folder = make()
    (folder / "modules.json").write_text("{}")
    with pytest.raises(InputError, match=r"file model/modules\.json must be a list of modules"):
        load_encoder(str(folder))


@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_a_setting_that_is_not_json_is_named(make, content):
    folder = make()
    (folder / "1_Pooling" / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"`checkpoint` file 1_Pooling/config.json must be JSON"):
        load_encoder(str(folder))


def test_reference_vectors_differ_between_roles_and_poolings(make):
    """The comparisons above are of no use on a model whose vectors are all alike."""
    folder = make(prompts=PROMPTS)
    plain, query = reference(folder, TEXTS), reference(folder, TEXTS, "query")
    assert np.abs(plain - query).max() > 0.1
    assert np.linalg.matrix_rank(plain) > 3
