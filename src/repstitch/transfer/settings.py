"""Read the settings of a dictionary: the metadata of its file and the config that a trainer wrote next to it.

Every setting is applied, ignored for a stated reason, or refused by its name, since a step that is left out makes
another dictionary. The names are those of SAELens, of EleutherAI's sparsify (formerly sae), of dictionary_learning and
of others.
"""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from repstitch.errors import InputError, one_line
from repstitch.transfer.formats import SPACE, TRANSFER

CONFIGS = ("cfg.json", "config.json", "hyperparams.json", "{stem}_cfg.json")
# Settings that contain settings.
NESTED = ("trainer", "buffer", "sae", "metadata", "logger", "activation_fn_kwargs", "checkpoint")
FUNCTIONS = ("activation", "activation_fn", "activation_fn_str")
SUBTRACTS = ("subtract_b_dec", "apply_b_dec_to_input")
# OpenAI's "TopK" is missing on purpose: with it, rows are normalised before they are encoded.
ACTIVATIONS = {
    "relu": "relu", "ReLU": "relu", "topk": "topk", "jumprelu": "jumprelu", "jump_relu": "jumprelu",
    "none": "none", "identity": "none", "Identity": "none",
}  # fmt: skip
ARCHITECTURES = {"standard": None, "topk": "topk", "jumprelu": "jumprelu", "jump_relu": "jumprelu"}
# Of dictionary_learning: the activation, and whether b_dec is subtracted before encoding.
DICT_CLASSES = {
    "AutoEncoder": ("relu", True), "AutoEncoderNew": ("relu", False), "AutoEncoderTopK": ("topk", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
}  # fmt: skip
WIDTHS = ("d_in", "activation_dim", "act_size")
COUNTS = ("d_sae", "dict_size", "num_latents")
APPLIED = {*FUNCTIONS, *SUBTRACTS, *WIDTHS, *COUNTS, "architecture", "dict_class", "k"}

# Steps that are not supported: the values with which a step is off, and what the step does.
_ELSEWHERE = "features of one activation are decoded to another"
STEPS: dict[str, tuple[tuple[Any, ...], str]] = {
    "normalize_activations": (("none", False), "rows are normalised before they are encoded"),
    "reshape_activations": (("none", "hook_z"), "rows are reshaped before they are encoded"),
    "rescale_acts_by_decoder_norm": ((False,), "features are scaled by the lengths of the rows of W_dec"),
    "finetuning_scaling_factor": ((False,), "features are scaled by another array"),
    "signed": ((False,), "features are kept by their absolute values, without relu"),
    "skip_connection": ((False,), "a linear map of the row is added to the decoded row"),
    "affine_connection": ((False,), "a linear map of the row is added to the decoded row"),
    "transcode": ((False,), _ELSEWHERE),
    "is_transcoder": ((False,), _ELSEWHERE),
    "io": (("in", "out"), _ELSEWHERE),
    "use_error_term": ((False,), "the error of the decoded row is added to it"),
}

# Settings that are ignored, by the reason why they do not change the features of a row.
IGNORED = {
    "describes the rows that the dictionary was trained on": """
        model_name model_class_name model_class model_kwargs model_from_pretrained_kwargs lm_name tokenizer_name
        hook_name hook_layer hook_point hook_point_in hook_point_layer hook_head_index hook_point_head_index
        hook_eval hook_point_eval layer submodule_name d_submodule site act_name act_store_device prepend_bos
        context_size ctx_len n_ctxs seqpos_slice start_pos_offset end_pos_offset exclude_special_tokens
        exclude_bos_between_sequences dataset_path dataset_name dataset_trust_remote_code is_dataset_tokenized
        streaming disable_concat_sequences sequence_separator_token begin_batch_token begin_sequence_token
        use_cached_activations cached_activations_path refresh_batch_size out_batch_size neuronpedia_id""",
    "was used in training only; the arrays are its result": """
        trainer_class expansion_factor dict_mult normalize_decoder normalize_sae_decoder multi_topk seed lr lr_end
        lr_scheduler_name lr_warm_up_steps lr_warmup_steps lr_decay_steps n_restart_cycles adam_beta1 adam_beta2
        beta1 beta2 l1_coefficient l1_coeff l1_penalty l1_warm_up_steps l1_warmup_steps l0_coefficient
        l0_warm_up_steps lp_norm steps warmup_steps resample_steps sparsity_warmup_steps sparsity_penalty
        sparsity_function sparsity_queue_length n_sparsity_updates decay_start p_start p_end anneal_start bandwidth
        target_l0 auxk_alpha top_k_aux threshold_beta threshold_start_step k_anneal_steps noise_scale use_ghost_grads
        mse_loss_normalization scale_sparsity_penalty_by_decoder_norm init_encoder_as_decoder_transpose
        decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm
        b_dec_init_method jumprelu_init_threshold jumprelu_bandwidth aux_loss_coefficient use_sparse_activations
        feature_sampling_method feature_sampling_window feature_reinit_scale resample_batches dead_feature_window
        dead_feature_threshold dead_feature_estimation_method training_tokens total_training_tokens finetuning_tokens
        num_tokens batch_size train_batch_size train_batch_size_tokens store_batch_size store_batch_size_prompts
        model_batch_size n_batches_in_buffer tokens_per_buffer buffer_mult buffer_size buffer_batches seq_len
        from_pretrained_path resume epoch step global_step optimizer optimizer_states lr_schedulers callbacks loops
        pytorch-lightning_version""",
    "says where or how the dictionary was run and logged": """
        device dtype enc_dtype autocast autocast_lm compile_llm compile_sae llm_compilation_mode sae_compilation_mode
        checkpoint_path n_checkpoints output_path save_path verbose run_name log_to_wandb wandb_project
        wandb_id wandb_entity wandb_name wandb_log_frequency eval_every_n_wandb_logs n_eval_batches n_eval_seqs
        eval_batch_size_prompts log_activations_store_to_wandb log_optimizer_state_to_wandb sae_lens_version
        sae_lens_training_version""",
    "belongs to the file, not to the dictionary": f"format names classes {SPACE} {TRANSFER}",
}
_HARMLESS = {name for names in IGNORED.values() for name in names.split()}


def read_settings(file: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings to apply, by name, from the metadata of a dictionary's file and from the configs next to it.

    The metadata that repstitch writes is complete, so configs next to such a file are ignored. Raises InputError on a
    setting that is not recognised, on a step that is not supported, and on two values of one setting.
    """
    sources = {"the file": metadata} | ({} if "subtract_b_dec" in metadata else _configs(file))
    settings: dict[str, Any] = {}
    for source, config in sources.items():
        for name, value in _flat(source, config):
            if name in STEPS and value not in STEPS[name][0]:
                off = " or ".join(map(_shown, STEPS[name][0]))
                raise InputError(
                    f"`{name}` must be {off}; got {_shown(value)} in {source}. With it, {STEPS[name][1]}, which is not "
                    "supported. Fold the step into the arrays, or transfer another dictionary."
                )
            if name in STEPS or name in _HARMLESS:
                continue
            if name not in APPLIED:
                raise InputError(
                    f"`{name}` must be a setting that is known; got {_shown(value)} in {source}. Remove it if the "
                    "features do not depend on it."
                )
            if str(settings.setdefault(name, value)) != str(value):
                raise InputError(f"`{name}` must have one value; got {_shown(settings[name])} and {_shown(value)}.")
    return settings


def unknown_settings(metadata: Mapping[str, Any]) -> list[str]:
    """Return the names in the metadata of a probe's file that are neither read nor known to change nothing."""
    return [name for name, _ in _flat("the file", metadata) if name not in _HARMLESS]


def check_sizes(settings: Mapping[str, Any], d: int, m: int) -> None:
    """Raise InputError if a setting states another number of dimensions than `d`, or of features than `m`."""
    for names, size, axis in ((WIDTHS, d, "dimensions"), (COUNTS, m, "features")):
        for name in names:
            if settings.get(name, size) not in (size, str(size)) and (name, settings[name]) != ("num_latents", 0):
                raise InputError(
                    f"`{name}` must be the number of {axis} of the arrays ({size}); got {_shown(settings[name])}. The "
                    "config may belong to another dictionary."
                )


def subtracts_b_dec(settings: Mapping[str, Any], argument: bool | None) -> bool:
    """Return whether b_dec is subtracted before encoding, as the settings or the caller state.

    It must be stated even if b_dec is 0, because the b_dec of the transferred dictionary is usually not 0.
    """
    stated = {name: settings[name] for name in SUBTRACTS if name in settings}
    if "dict_class" in settings:
        stated["dict_class"] = _choice(settings, "dict_class", DICT_CLASSES)[1]
    for name, value in stated.items():
        if not isinstance(value, bool):
            raise InputError(f"`{name}` must be true or false; got {_shown(value)}.")
    if not stated and argument is None:
        raise InputError("The file does not state whether b_dec is subtracted before encoding; pass `subtract_b_dec`.")
    if len(set(stated.values())) > 1:
        raise InputError(f"{_listed(stated)} must agree on whether b_dec is subtracted before encoding.")
    if stated and argument not in (None, *stated.values()):
        raise InputError(f"{_listed(stated)} states `subtract_b_dec` as {str(not argument).lower()}; leave it out.")
    return bool(argument if argument is not None else next(iter(stated.values())))


def activation_of(settings: Mapping[str, Any], threshold: bool) -> tuple[str, int | None]:
    """Return the activation, and the k of topk. It is relu if the settings and the arrays state none.

    A `k` states topk, and a `threshold` array states jumprelu.
    """
    stated = {name: _choice(settings, name, ACTIVATIONS) for name in FUNCTIONS if name in settings}
    architecture = _choice(settings, "architecture", ARCHITECTURES) if "architecture" in settings else None
    if architecture:  # SAELens also writes relu as the function of topk and jumprelu
        stated = {name: value for name, value in stated.items() if value != "relu"} | {"architecture": architecture}
    if "dict_class" in settings:
        stated["dict_class"] = _choice(settings, "dict_class", DICT_CLASSES)[0]
    if "k" in settings:
        stated["k"] = "topk"
    if threshold:
        stated["an array `threshold`"] = "jumprelu"
    if len(set(stated.values())) > 1:
        raise InputError(f"A dictionary must have one activation; got {_listed(stated)}.")
    activation = next(iter(stated.values()), "relu")
    return activation, _whole(settings["k"]) if "k" in settings else None


def _configs(file: Path) -> dict[str, Mapping[str, Any]]:
    """Return the configs next to a dictionary's file, or next to the folder `checkpoints` that contains it, by name."""
    folder = file.absolute().parent
    folders = (folder, folder.parent) if folder.name == "checkpoints" else (folder,)
    configs = {}
    for folder, pattern in product(folders, CONFIGS):
        path = folder / pattern.format(stem=file.stem)
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path.name} cannot be read: {one_line(error)}") from None
        if not isinstance(config, dict):
            raise InputError(f"{path.name} must contain a JSON object.")
        configs[os.path.relpath(path, file.parent)] = config
    return configs


def _flat(source: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a config and of the settings nested in it. Empty settings state nothing."""
    for name, value in config.items():
        if value is None or (isinstance(value, Mapping | list) and not value):
            continue
        if name not in NESTED:
            # Metadata is text, so a true value is the text "true" there.
            yield name, {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
        elif isinstance(value, Mapping):
            yield from _flat(f"`{name}` in {source}", value)
        else:
            raise InputError(f"`{name}` in {source} must be a JSON object; got {_shown(value)}.")


def _choice(settings: Mapping[str, Any], name: str, choices: Mapping[str, Any]) -> Any:
    value = settings[name]
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"`{name}` must be one of {', '.join(choices)}; got {_shown(value)}.")
    return choices[value]


def _whole(k: Any) -> int:
    try:
        number = float(k)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(k, bool) or not number.is_integer():
        raise InputError(f"`k` must be a whole number; got {_shown(k)}.")
    return int(number)


def _listed(stated: Mapping[str, Any]) -> str:
    return ", ".join(f"{name if ' ' in name else f'`{name}`'} ({_shown(value)})" for name, value in stated.items())


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:80]
