"""Read the folder of a Sentence Transformers model: its modules in order, their settings, and its prompts.

A module or a setting that would change the vectors and is not supported is refused by name. Code that comes with a
model is never run.
"""

import ast
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from repstitch.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class Module(NamedTuple):
    """One entry of modules.json: the name of its class, and the folder with its settings and weights."""

    kind: str
    folder: Path


@dataclass(frozen=True)
class SentenceModel:
    """A model as its folder states it.

    `reader` is the module that reads items. `fields` are fields of a card. If `lower_case` is True, texts are read in
    lower case. `head` are the layers that follow pooling.
    """

    reader: Module
    fields: dict[str, Any]
    lower_case: bool
    head: list["nn.Module"]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or an empty dict if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"`checkpoint` file {path.parent.name}/{path.name} must be JSON: {error}.") from None


def weight_folders(folder: Path) -> list[Path]:
    """Return the folders that contain weights of a model: those of its modules, or `folder` itself."""
    file = folder / "modules.json"
    modules = _expand(folder, _entries(folder, read_json(file)), None) if file.is_file() else []
    return list(dict.fromkeys(module.folder for module in modules if module.kind in WEIGHTED)) or [folder]


def read_sentence_model(folder: Path, role: str, modality: str) -> SentenceModel:
    """Read the modules that embed items of a modality in a role, and the settings that fields of a card can state."""
    settings = read_json(folder / "config_sentence_transformers.json")
    kind = settings.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise InputError(f"`checkpoint` {folder.name} must be a SentenceTransformer; {kind} is not supported.")
    modules = _expand(folder, _entries(folder, read_json(folder / "modules.json")), (role, modality))
    reader = modules[0]
    if reader.kind not in READERS:
        raise _unsupported(folder, f"begins with the module {reader.kind}")
    fields, lower_case = _reader_settings(reader, role, modality)
    following = modules[1:]
    if fields["pooling"] is None:
        if not following or following[0].kind != "Pooling":
            raise _unsupported(folder, f"has no Pooling after the module {reader.kind}")
        fields |= _pooling(following[0].folder)
        following = following[1:]
    for module in following:
        if module.kind not in HEADS:
            raise _unsupported(folder, f"has the module {module.kind} after {reader.kind}")
    fields |= {"prompts": _prompts(folder, settings), "truncate_dim": settings.get("truncate_dim")}
    # A final Normalize is the setting `normalised`, unless the vectors are truncated after it.
    fields["normalised"] = bool(following) and following[-1].kind == "Normalize" and fields["truncate_dim"] is None
    head = following[:-1] if fields["normalised"] else following
    layers = [HEADS[module.kind](module.folder) for module in head]
    return SentenceModel(reader, fields, lower_case, layers)


def _unsupported(folder: Path, what: str) -> InputError:
    return InputError(
        f"`checkpoint` {folder.name} {what}, which is not supported. Embed with sentence-transformers, and read the "
        "vectors from a file."
    )


def _entries(folder: Path, listed: Any) -> list[Module]:
    if not listed or not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise InputError(f"`checkpoint` file {folder.name}/modules.json must be a list of modules.")
    return [_module(folder, str(entry.get("type")), str(entry.get("path", ""))) for entry in listed]


def _module(folder: Path, kind: str, path: str) -> Module:
    """Return a module by the name of its class. Raises InputError if the class is not one of Sentence Transformers."""
    if not kind.startswith("sentence_transformers."):
        raise _unsupported(folder, f"has the module {kind}, whose code is part of the model and is never run")
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise InputError(f"`checkpoint` {folder.name} must have its modules in its own folder; got the path {path!r}.")
    return Module(kind.rpartition(".")[2], folder / path)


def _expand(folder: Path, modules: list[Module], purpose: tuple[str, str] | None) -> list[Module]:
    """Replace each router by the modules of its route for a (role, modality), or by all modules if that is None."""
    expanded: list[Module] = []
    for module in modules:
        if module.kind not in ROUTERS:
            expanded.append(module)
            continue
        config = read_json(module.folder / "router_config.json") or read_json(module.folder / "config.json")
        routes = config["structure"]
        names = list(config["types"]) if purpose is None else routes[_route(folder, config, *purpose)]
        chosen = [_module(module.folder, config["types"][name], name) for name in names]
        expanded += _expand(folder, chosen, purpose)
    return expanded


def _route(folder: Path, config: dict, role: str, modality: str) -> str:
    """Return the name of the route that Sentence Transformers takes for a role (its task) and a modality."""
    routes, parameters = config["structure"], config.get("parameters") or {}
    mappings = {ast.literal_eval(key): name for key, name in (parameters.get("route_mappings") or {}).items()}
    task = None if role == "none" else role
    for key in ((task, modality), (task, None), (None, modality), (None, None)):
        if key in mappings:
            return mappings[key]
    for name in (task, modality):
        if name is not None and name in routes:
            return name
    default = parameters.get("default_route") or (next(iter(routes)) if parameters.get("allow_empty_key", True) else "")
    if task is not None or default not in routes:
        raise InputError(
            f"`role` must be one that the router of `checkpoint` {folder.name} has a route for ({', '.join(routes)}); "
            f"got {role}."
        )
    return default


def _reader_settings(reader: Module, role: str, modality: str) -> tuple[dict[str, Any], bool]:
    """Return `max_length` and `pooling`, which is None if a Pooling follows, and whether texts are in lower case."""
    if reader.kind == "StaticEmbedding":
        return {"pooling": "mean", "max_length": None}, False
    config: dict[str, Any] = next(map(read_json, sorted(reader.folder.glob("sentence_*_config.json"))), {})
    for key, value in config.items():
        unknown = set(value) - HARMLESS if key in ARGUMENTS and isinstance(value, dict) else {key} - SETTINGS
        if value and unknown:
            raise _unsupported(reader.folder, f"has the setting '{min(unknown)}'")
    if config.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise _unsupported(reader.folder, f"has the transformer_task '{config['transformer_task']}'")
    tokenizer_settings = config.get("processor_kwargs") or config.get("tokenizer_args") or {}
    lengths = (config.get(f"{role}_length"), tokenizer_settings.get("model_max_length"), config.get("max_seq_length"))
    fields = {"max_length": next(filter(None, lengths), None), "pooling": _output(reader, config, modality)}
    return fields, bool(config.get("do_lower_case"))


def _output(reader: Module, config: dict[str, Any], modality: str) -> str | None:
    """Return `none` if a Transformer gives the vector of an item, or None if it gives one vector for each token."""
    outputs = config.get("modality_config")
    if outputs is None:
        return "none" if reader.kind == "CLIPModel" else None
    if "message" in outputs or modality not in outputs:
        raise _unsupported(reader.folder, f"reads {', '.join(outputs)}; {modality} without a chat template")
    method, output = (outputs[modality][key] for key in ("method", "method_output_name"))
    if method == f"get_{modality}_features" and output in (None, "pooler_output"):
        return "none"
    if (method, output) != ("forward", "last_hidden_state"):
        raise _unsupported(reader.folder, f"takes {output} of the method {method}")
    return None


def _pooling(folder: Path) -> dict[str, Any]:
    """Return the fields `pooling` and `skip_prompt`. Several modes are joined by +, in the order of their columns."""
    config = read_json(folder / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        flags = [key for key in config if key.startswith("pooling_mode_") and config[key]]
        unknown = set(flags) - {f"pooling_mode_{flag}" for flag in FLAGS}
        if unknown:
            raise _unsupported(folder, f"has the pooling '{min(unknown)}'")
        modes = [mode for flag, mode in FLAGS.items() if f"pooling_mode_{flag}" in flags] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    for mode in modes:
        if mode not in POOLING_MODES:
            raise _unsupported(folder, f"has the pooling '{mode}'")
    unknown = {key for key in config if not key.startswith("pooling_mode")} - POOLING_KEYS
    if unknown:
        raise _unsupported(folder, f"has the setting '{min(unknown)}'")
    return {
        "pooling": "+".join(POOLING_MODES[mode] for mode in modes),
        "skip_prompt": not config.get("include_prompt", True),
    }


def _prompts(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Return the prompt of each role, where the folder states one. The default prompt is that of the role `none`."""
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise InputError(f"`checkpoint` {folder.name} must state a prompt for its default_prompt_name '{default}'.")
    names = {
        "query": "query",
        "document": next((name for name in ("document", "passage", "corpus") if name in prompts), None),
        "none": default,
    }
    return {role: prompts[name] for role, name in names.items() if prompts.get(name)}


def load_state(folder: Path) -> dict[str, Any]:
    """Return the weights of a module by name. A pickled file runs no code."""
    from timm.models import load_state_dict

    file = next((f for f in (folder / "model.safetensors", folder / "pytorch_model.bin") if f.is_file()), None)
    if file is None:
        raise InputError(f"`checkpoint` step {folder.name} must contain its weights; there is no model.safetensors.")
    return load_state_dict(str(file), weights_only=True)


def _check_place(folder: Path, config: dict[str, Any]) -> None:
    """Check that a layer of the head reads and writes the pooled vector."""
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise _unsupported(folder, f"has the {key} '{config[key]}'")


def _dense(folder: Path) -> "nn.Module":
    """Load a linear layer and its activation, with a residual connection if the folder states one."""
    import torch

    config = read_json(folder / "config.json")
    _check_place(folder, config)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    kind: Any = getattr(torch.nn, str(activation).rpartition(".")[2], None)
    is_layer = isinstance(kind, type) and issubclass(kind, torch.nn.Module)
    if not str(activation).startswith("torch.nn.") or not is_layer:
        raise InputError(f"`checkpoint` step {folder.name} must have an activation of torch.nn; got {activation}.")
    widths = (config["in_features"], config["out_features"])
    layers = torch.nn.ModuleDict({"linear": torch.nn.Linear(*widths, bias=config.get("bias", True))})
    if config.get("use_residual") and widths[0] != widths[1]:
        layers["residual"] = torch.nn.Linear(*widths, bias=False)
    layers.load_state_dict({name: value.float() for name, value in load_state(folder).items()})
    dense = torch.nn.Sequential(layers["linear"], kind())
    if not config.get("use_residual"):
        return dense
    return _residual(dense, layers["residual"] if "residual" in layers else torch.nn.Identity())


def _residual(layer: "nn.Module", shortcut: "nn.Module") -> "nn.Module":
    """Return a layer whose output is the sum of the outputs of two layers."""
    import torch

    class Sum(torch.nn.ModuleList):
        def forward(self, rows):
            return self[0](rows) + self[1](rows)

    return Sum([layer, shortcut])


def _layer_norm(folder: Path) -> "nn.Module":
    import torch

    config = read_json(folder / "config.json")
    layer = torch.nn.LayerNorm(config["dimension"])
    layer.load_state_dict({name.removeprefix("norm."): value.float() for name, value in load_state(folder).items()})
    return layer


def _normalise(folder: Path) -> "nn.Module":
    import torch

    class Normalise(torch.nn.Module):
        def forward(self, rows):
            return torch.nn.functional.normalize(rows, dim=-1)

    _check_place(folder, read_json(folder / "config.json"))
    return Normalise()


def _dropout(folder: Path) -> "nn.Module":
    import torch

    return torch.nn.Identity()  # dropout is for training only


READERS = ("Transformer", "CLIPModel", "StaticEmbedding")
ROUTERS = ("Router", "Asym")
HEADS = {"Dense": _dense, "LayerNorm": _layer_norm, "Normalize": _normalise, "Dropout": _dropout}
WEIGHTED = (*READERS, "Dense", "LayerNorm")
POOLING_MODES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# The words after `pooling_mode_` in the format of before release 5.4, in the order of the columns of the vectors.
FLAGS = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}
POOLING_KEYS = {"word_embedding_dimension", "embedding_dimension", "include_prompt"}
# Settings of a Transformer module that are applied, or that do not change the vectors.
SETTINGS = {
    "max_seq_length",
    "do_lower_case",
    "query_length",
    "document_length",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
}
ARGUMENTS = {"model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs"}
HARMLESS = {
    "add_pooling_layer",
    "attn_implementation",
    "dtype",
    "model_max_length",
    "padding_side",
    "torch_dtype",
    "trust_remote_code",  # never followed
}
