"""Each setting of a dictionary is applied, ignored because it changes nothing, or refused by its name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.contexts import content, dictionary
from helpers.spaces import gaussian
from safetensors.numpy import save_file

from repstitch.errors import InputError
from repstitch.transfer import files, settings
from repstitch.transfer.kinds import describe

ROWS = gaussian(50, 6, seed=9)


def save_dictionary(folder: Path, config: object = None, name="cfg.json", threshold=None, metadata=None, **changed):
    """Write a dictionary of 6 dimensions and 10 features, and a config next to it; return the dictionary's path."""
    arrays = {name: getattr(dictionary(), name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")} | changed
    if threshold is not None:
        arrays["threshold"] = np.full(10, threshold)
    save_file(
        {name: np.asarray(array, np.float32) for name, array in arrays.items()}, folder / "sae.safetensors", metadata
    )
    if config is not None:
        (folder / name).write_text(json.dumps(config))
    return folder / "sae.safetensors"


def encoded(path: Path, **options) -> np.ndarray:
    return content(path, **options).encode(ROWS)


ELEUTHER = {
    "expansion_factor": 2,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": 4,
    "multi_topk": False,
    "d_in": 6,
}


def test_a_config_that_states_only_k_is_read_as_topk(tmp_path):
    path = save_dictionary(tmp_path, ELEUTHER)
    read_back = content(path, subtract_b_dec=True)
    assert (read_back.activation, read_back.k) == ("topk", 4)
    pre = np.maximum((ROWS - read_back.b_dec) @ read_back.W_enc + read_back.b_enc, 0)
    largest = np.sort(pre, axis=1)[:, [-4]]
    np.testing.assert_allclose(read_back.encode(ROWS), np.where(pre >= largest, pre, 0))
    assert (read_back.encode(ROWS) > 0).sum(1).max() == 4


@pytest.mark.parametrize("name", list(settings.STEPS))
def test_a_step_that_is_off_changes_nothing_and_one_that_is_on_is_refused_by_its_name(tmp_path, name):
    expected = encoded(save_dictionary(tmp_path), subtract_b_dec=True)
    for off in settings.STEPS[name][0]:
        np.testing.assert_array_equal(encoded(save_dictionary(tmp_path, {name: off}), subtract_b_dec=True), expected)
    for on in (True, "layer_norm"):
        shown = json.dumps(on)
        with pytest.raises(
            InputError, match=f"`{name}` must be .*; got {shown} in cfg.json. With it, {settings.STEPS[name][1]}"
        ):
            content(save_dictionary(tmp_path, {name: on}), subtract_b_dec=True)


def test_settings_that_change_nothing_are_ignored_each_for_a_reason(tmp_path):
    names = [name for names in settings.IGNORED.values() for name in names.split()]
    assert len(set(names)) == len(names)
    assert not set(names) & (set(settings.STEPS) | settings.APPLIED)
    expected = encoded(save_dictionary(tmp_path), subtract_b_dec=True)
    path = save_dictionary(tmp_path, dict.fromkeys(names, "layer_norm"))
    np.testing.assert_array_equal(encoded(path, subtract_b_dec=True), expected)


SOMETHING = {"input_unit_norm": True}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SOMETHING, "cfg.json"),
        (SOMETHING, "config.json"),
        (SOMETHING, "hyperparams.json"),
        (SOMETHING, "sae_cfg.json"),
        ({"trainer": SOMETHING}, "config.json"),
        ({"sae": SOMETHING}, "cfg.json"),
        ({"metadata": SOMETHING}, "cfg.json"),
        ({"activation_fn_kwargs": SOMETHING}, "cfg.json"),
    ],
)
def test_a_setting_that_is_not_known_is_refused_by_its_name_wherever_it_is_stated(tmp_path, config, name):
    message = f"`input_unit_norm` must be a setting that is known; got true in {name}. Remove it if the features do not"
    with pytest.raises(InputError, match=message):
        content(save_dictionary(tmp_path, config, name), subtract_b_dec=True)


def test_a_setting_in_the_metadata_or_beside_a_state_dict_is_refused_by_its_name_too(tmp_path):
    with pytest.raises(InputError, match=r'`input_unit_norm` must be .*; got "yes" in the file'):
        content(save_dictionary(tmp_path, metadata={"input_unit_norm": "yes"}), subtract_b_dec=True)
    with pytest.raises(InputError, match=r'`normalize_activations` must be .* got "layer_norm" in the file'):
        content(save_dictionary(tmp_path, metadata={"normalize_activations": "layer_norm"}), subtract_b_dec=True)
    fields = {name: torch.from_numpy(np.asarray(getattr(dictionary(), name))) for name in ("W_enc", "W_dec")}
    torch.save({"state_dict": fields, "epoch": 3}, tmp_path / "trained.pt")
    assert content(tmp_path / "trained.pt", subtract_b_dec=True).activation == "relu"
    torch.save({"state_dict": fields, "normalise": True}, tmp_path / "normalised.pt")
    with pytest.raises(InputError, match="`normalise` must be a setting that is known; got true in the file"):
        content(tmp_path / "normalised.pt", subtract_b_dec=True)
    torch.save(fields | {"activation": "TopK"}, tmp_path / "openai.pt")
    with pytest.raises(InputError, match="named tensors; 'activation' is str"):
        content(tmp_path / "openai.pt", subtract_b_dec=True)


LENS = {
    "d_in": 6, "d_sae": 10, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
    "normalize_activations": "none", "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.12.1", "hook_name": "blocks.3.hook_resid_post", "context_size": 128},
    "logger": {"log_to_wandb": True, "wandb_project": "saes", "run_name": None},
}  # fmt: skip
OLD_LENS = {
    "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8,
    "hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "is_dataset_tokenized": False,
    "context_size": 128, "use_cached_activations": False, "d_in": 6, "n_batches_in_buffer": 128,
    "total_training_tokens": 300_000_000, "store_batch_size": 32, "device": "mps", "seed": 42, "dtype": "torch.float32",
    "b_dec_init_method": "geometric_median", "expansion_factor": 32, "from_pretrained_path": None,
    "l1_coefficient": 8e-05, "lr": 0.0004, "lr_scheduler_name": None, "lr_warm_up_steps": 5000,
    "train_batch_size": 4096, "use_ghost_grads": False, "feature_sampling_window": 1000, "resample_batches": 1028,
    "feature_reinit_scale": 0.2, "dead_feature_window": 5000, "dead_feature_estimation_method": "no_fire",
    "dead_feature_threshold": 1e-06, "log_to_wandb": True, "wandb_project": "saes", "wandb_log_frequency": 100,
    "n_checkpoints": 10, "checkpoint_path": "checkpoints", "d_sae": 10, "tokens_per_buffer": 67_108_864,
    "run_name": "10-L1-8e-05", "normalize_activations": False, "activation_fn_kwargs": {}, "finetuning_method": None,
    "finetuning_tokens": 0, "prepend_bos": True, "apply_b_dec_to_input": False,
}  # fmt: skip
TRAINER = {
    "trainer_class": "StandardTrainer", "activation_dim": 6, "dict_size": 10, "lr": 1e-3, "l1_penalty": 0.1,
    "warmup_steps": 1000, "resample_steps": None, "sparsity_warmup_steps": 2000, "steps": 9, "decay_start": None,
    "seed": 0, "device": "cuda:0", "layer": 8, "lm_name": "EleutherAI/pythia-70m", "wandb_name": "x",
    "submodule_name": "resid_post_layer_8",
}  # fmt: skip
BUFFER = {
    "d_submodule": 6, "io": "out", "n_ctxs": 244, "ctx_len": 128, "refresh_batch_size": 32, "out_batch_size": 2048,
    "device": "cuda",
}  # fmt: skip


def trained(dict_class: str, **changed) -> dict[str, Any]:
    return {"trainer": TRAINER | {"dict_class": dict_class} | changed, "buffer": BUFFER}


@pytest.mark.parametrize(
    ("config", "threshold", "expected"),
    [
        (LENS | {"architecture": "standard"}, None, ("relu", None, True)),
        (LENS | {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": False}, None, ("topk", 4, True)),
        (LENS | {"architecture": "jumprelu"}, 0.5, ("jumprelu", None, True)),
        (OLD_LENS, None, ("relu", None, False)),
        (OLD_LENS | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4, "signed": False}}, None,
         ("topk", 4, False)),
        (ELEUTHER | {"activation": "topk", "skip_connection": False, "transcode": False, "subtract_b_dec": True}, None,
         ("topk", 4, True)),
        (trained("AutoEncoder"), None, ("relu", None, True)),
        (trained("AutoEncoderNew"), None, ("relu", None, False)),
        (trained("AutoEncoderTopK", k=4, auxk_alpha=1 / 32, threshold_beta=0.999), None, ("topk", 4, True)),
        (trained("JumpReluAutoEncoder", bandwidth=0.001, target_l0=20), 0.5, ("jumprelu", None, False)),
    ],
)  # fmt: skip
def test_the_configs_that_public_trainers_write_are_read(tmp_path, config, threshold, expected):
    read_back = content(
        save_dictionary(tmp_path, config, "config.json" if "trainer" in config else "cfg.json", threshold)
    )
    assert (read_back.activation, read_back.k, read_back.subtract_b_dec) == expected
    bias = "b_dec subtracted" if expected[2] else "b_dec not subtracted"
    assert f"({expected[0]}, {bias} before encoding)" in describe(read_back)


STANDARD = {"apply_b_dec_to_input": True}


@pytest.mark.parametrize(
    ("config", "activation", "k"),
    [
        ({}, "relu", None),
        ({"activation_fn": "identity"}, "none", None),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}, "topk", 4),
        ({"architecture": "topk", "activation_fn": "relu", "k": 3}, "topk", 3),
        ({"k": 4.0, "activation": None}, "topk", 4),
    ],
)
def test_the_activation_is_read_from_the_config(tmp_path, config, activation, k):
    read_back = content(save_dictionary(tmp_path, STANDARD | config))
    assert (read_back.activation, read_back.k) == (activation, k)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"cfg": ' * 100_000, "{", "\udcff"])
def test_a_config_that_is_not_json_is_refused_in_one_line(tmp_path, text):
    path = save_dictionary(tmp_path, STANDARD)
    (tmp_path / "cfg.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"^[^\n]*cfg\.json cannot be read: [^\n]*$"):
        content(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "cfg.json must contain a JSON object"),
        ({"architecture": "gated", "activation_fn": "relu"}, '`architecture` must be one of standard, .*; got "gated"'),
        ({"architecture": "jumprelu", "activation_fn": "relu"}, "must have a `threshold` if its `activation` is"),
        ({"architecture": "topk", "activation_fn": "tanh", "k": 3}, '`activation_fn` must be one of relu, .* "tanh"'),
        ({"activation": "TopK", "k": 3}, '`activation` must be one of relu, .*; got "TopK"'),
        ({"activation": "groupmax", "k": 3}, '`activation` must be one of relu, .*; got "groupmax"'),
        ({"activation_fn": ["topk"]}, "`activation_fn` must be one of relu"),
        ({"activation_fn": "relu", "k": 4}, r'one activation; got `activation_fn` \("relu"\), `k` \("topk"\)'),
        ({"activation_fn": "topk"}, "`k` of a topk dictionary"),
        (
            {"activation_fn": "topk", "activation_fn_kwargs": [3]},
            "`activation_fn_kwargs` in cfg.json must be a JSON obj",
        ),
        ({"k": "many"}, '`k` must be a whole number; got "many"'),
        ({"k": 4.5}, "`k` must be a whole number; got 4.5"),
        ({"k": True}, "`k` must be a whole number; got true"),
        ({"k": 11}, r"`k` of a topk dictionary must be between 1 and its number of features \(10\); got 11"),
        ({"k": 0}, "`k` of a topk dictionary must be between 1"),
        ({"k": 4, "activation_fn_kwargs": {"k": 5}}, "`k` must have one value; got 4 and 5"),
        ({"trainer": {"dict_class": "GatedAutoEncoder"}}, '`dict_class` must be one of AutoEncoder, .*; got "Gated'),
        (
            {"trainer": {"dict_class": "AutoEncoderNew"}},
            "`apply_b_dec_to_input` .true., `dict_class` .false. must agree",
        ),
        ({"apply_b_dec_to_input": "maybe"}, '`apply_b_dec_to_input` must be true or false; got "maybe"'),
        ({"apply_b_dec_to_input": 3}, "`apply_b_dec_to_input` must be true or false; got 3"),
        ({"d_in": 768}, r"`d_in` must be the number of dimensions of the arrays \(6\); got 768. The config may belong"),
        ({"d_sae": 24}, r"`d_sae` must be the number of features of the arrays \(10\); got 24"),
        ({"num_latents": 24}, "`num_latents` must be the number of features"),
    ],
)
def test_a_config_that_is_contradictory_or_not_supported_is_refused_by_its_name(tmp_path, config, message):
    config = STANDARD | config if isinstance(config, dict) else config
    with pytest.raises(InputError, match=message) as refused:
        content(save_dictionary(tmp_path, config))
    assert "\n" not in str(refused.value)


def test_two_configs_next_to_a_dictionary_must_agree(tmp_path):
    path = save_dictionary(tmp_path, STANDARD | {"k": 4})
    (tmp_path / "config.json").write_text(json.dumps({"k": 4, "device": "cuda"}))
    assert content(path).k == 4
    (tmp_path / "config.json").write_text(json.dumps({"k": 5}))
    with pytest.raises(InputError, match="`k` must have one value; got 4 and 5"):
        content(path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        content(path)


def test_the_config_above_a_folder_of_checkpoints_is_read_too(tmp_path):
    """As dictionary_learning and Llama Scope store them."""
    (tmp_path / "checkpoints").mkdir()
    path = save_dictionary(tmp_path / "checkpoints")
    (tmp_path / "config.json").write_text(json.dumps(trained("AutoEncoderTopK", k=4)))
    assert (content(path).activation, content(path).k) == ("topk", 4)
    (tmp_path / "hyperparams.json").write_text(json.dumps({"norm_activation": "dataset-wise"}))
    with pytest.raises(InputError, match=r"`norm_activation` must be .*; got .dataset-wise. in \.\./hyperparams\.json"):
        content(path)


def test_a_probe_warns_of_settings_that_it_does_not_apply(tmp_path, caplog):
    layer = {"weight": torch.ones(3, 6), "bias": torch.zeros(3)}
    torch.save({"state_dict": layer, "epoch": 3, "optimizer": {"lr": 1}}, tmp_path / "p.pt")
    assert content(tmp_path / "p.pt").coef.shape == (3, 6)
    save_file({"coef": np.ones((3, 6), np.float32)}, tmp_path / "p.safetensors", metadata={"format": "pt"})
    content(tmp_path / "p.safetensors")
    assert not caplog.text
    torch.save({"state_dict": layer, "mean": torch.ones(6)}, tmp_path / "standardised.pt")
    content(tmp_path / "standardised.pt")
    assert "standardised.pt states mean, which a probe does not apply; check its scores." in caplog.text


def test_whether_b_dec_is_subtracted_must_be_stated(tmp_path):
    path = save_dictionary(tmp_path)
    with pytest.raises(InputError, match="does not state whether b_dec is subtracted before encoding"):
        files.read(path)
    assert content(path, subtract_b_dec=False).subtract_b_dec is False


@pytest.mark.parametrize("stated", [True, False])
def test_a_config_next_to_the_file_states_whether_b_dec_is_subtracted(tmp_path, stated):
    path = save_dictionary(tmp_path, {"apply_b_dec_to_input": stated, "architecture": "standard", "d_in": 6})
    assert content(path).subtract_b_dec is content(path, subtract_b_dec=stated).subtract_b_dec is stated
    with pytest.raises(InputError, match="states `subtract_b_dec` as"):
        files.read(path, subtract_b_dec=not stated)


def test_a_threshold_with_another_activation_is_refused(tmp_path):
    path = save_dictionary(tmp_path, threshold=1)
    assert content(path, subtract_b_dec=True).activation == "jumprelu"
    (tmp_path / "cfg.json").write_text(json.dumps({"activation_fn": "topk", "k": 3}))
    with pytest.raises(InputError, match=r'one activation; got .* an array `threshold` \("jumprelu"\)'):
        content(path, subtract_b_dec=True)
