"""Load the model of a card from a local checkpoint or folder, or from the Hugging Face Hub."""

import hashlib
import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repstitch.encoders import catalogue
from repstitch.encoders.catalogue import Card
from repstitch.errors import InputError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


def digest(path: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file or folder of weights.

    For a folder, the hash covers all files with the first ending of `catalogue.WEIGHTS` that occurs in it.
    """
    files = (
        [path] if path.is_file() else next(filter(None, (sorted(path.glob(f"*{s}")) for s in catalogue.WEIGHTS)), [])
    )
    total = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()[:16]


def _local(card: Card) -> tuple[Path, Card]:
    """Return the path of a card's local weights, and the card with their digest as its revision.

    Raises InputError if the card states another revision.
    """
    path = catalogue.weights(card)
    revision = digest(path)
    if card.revision is not None and revision != card.revision[:16]:
        raise InputError(
            f"`checkpoint` {path.name} must be revision {card.revision}, which the card states; got {revision}. Pass "
            "the right file, or correct the card."
        )
    return path, replace(card, revision=revision)


def _from_hub(repo: str, card: Card) -> tuple[Path, Card]:
    """Download a Hub repository. Return its local folder, and the card with the commit as its revision."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "model*.safetensors", "*_Dense/*"]
    folder = Path(snapshot_download(repo, revision=card.revision, allow_patterns=patterns))
    if not any(folder.glob("model*.safetensors")):
        folder = Path(snapshot_download(repo, revision=card.revision, allow_patterns=[*patterns, "pytorch_model*.bin"]))
    return folder, replace(card, revision=folder.name)


def _load_weights(model: "nn.Module", path: Path) -> None:
    """Load a checkpoint into a model. A classifier in the checkpoint is ignored if the model was built without one."""
    from timm.models import load_state_dict

    state = load_state_dict(str(path), weights_only=True)
    mismatch = model.load_state_dict(state, strict=False)
    heads = getattr(model, "default_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    unexpected = [key for key in mismatch.unexpected_keys if not key.startswith(tuple(f"{head}." for head in heads))]
    missing = [key for key in mismatch.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise InputError(
            f"`checkpoint` {path.name} must fit its architecture; {len(missing)} tensors are missing {missing[:1]}, "
            f"{len(unexpected)} are unexpected {unexpected[:1]}. Check the architecture and `model_args`."
        )


def _open_timm(card: Card) -> tuple["nn.Module", Card, None]:
    import timm

    name = card.encoder.partition(":")[2]
    channels = {"in_chans": card.input_size[0]} if card.input_size and card.input_size[0] != 3 else {}
    args: dict[str, Any] = {"num_classes": 0} | channels | card.model_args
    if card.checkpoint:
        path, card = _local(card)
        if path.is_file():
            model = BUILDERS.get(name, partial(timm.create_model, name))(**args)
            _load_weights(model, path)
            return model, card, None
    elif "/" in name:
        path, card = _from_hub(name, card)
    else:
        return _open_timm_by_name(name, card, args)
    model: Any = timm.create_model(f"local-dir:{path}", pretrained=True, **args)
    return model, replace(card, architecture=card.architecture or model.pretrained_cfg.get("architecture")), None


def _open_timm_by_name(name: str, card: Card, args: dict[str, Any]) -> tuple["nn.Module", Card, None]:
    import timm

    pretrained = timm.get_pretrained_cfg(name)
    if pretrained is None or not pretrained.hf_hub_id:
        raise InputError(f"`encoder` {card.encoder} must be a model that timm has weights for; pass a `checkpoint`.")
    folder, card = _from_hub(pretrained.hf_hub_id, card)
    # The file is loaded into the named architecture, because two of OpenAI's CLIP models share one repository.
    file = next(folder.glob("model*.safetensors"), None) or next(folder.glob("pytorch_model*.bin"))
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **args)
    return model, replace(card, encoder=f"timm:{pretrained.architecture}.{pretrained.tag}"), None


def _mobilenetv1_025(**args: Any) -> "nn.Module":
    from timm.models.efficientnet import _gen_mobilenet_v1  # timm has names for the widths 1.0 and 1.25 only

    return _gen_mobilenet_v1("mobilenetv1_100", 0.25, **args)


def _open_torchvision(card: Card) -> tuple["nn.Module", Card, None]:
    import torchvision

    if not card.checkpoint:
        raise InputError(
            f"`checkpoint` of {card.encoder} must be a local file, because torchvision's weights are pickles; got None."
        )
    path, card = _local(card)
    model = torchvision.models.get_model(card.encoder.partition(":")[2], weights=None, **card.model_args)
    if not hasattr(model, "features"):
        raise InputError(f"`encoder` {card.encoder} has no module `features` to pool; use the timm model of this name.")
    _load_weights(model, path)
    return model, replace(card, pooling=card.pooling or "gap"), None


def _open_transformers(card: Card) -> tuple["nn.Module", Card, Any]:
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

    class TextTower(CLIPTextModelWithProjection):
        """The text tower of a CLIP model. The image tower is loaded by timm."""

        _keys_to_ignore_on_load_unexpected = ["^vision_model", "^visual_projection", "^logit_scale"]  # noqa: RUF012

    folder, card = _local(card) if card.checkpoint else _from_hub(card.encoder.partition(":")[2], card)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    clip = AutoConfig.from_pretrained(folder).model_type == "clip"
    kind: Any = TextTower if clip else AutoModel
    model, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    # Sentence encoders omit an unused pooler or decoder. Any other missing weight would stay random.
    missing = [key for key in report["missing_keys"] if not key.startswith(("pooler.", "decoder."))]
    if missing:
        raise InputError(f"`checkpoint` {folder.name} must contain all weights of its model; {missing[0]} is missing.")
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    card = replace(card, architecture=card.architecture or model.config.model_type)
    card = replace(card, pooling=card.pooling or ("none" if clip and card.layer is None else None))
    steps = [(step["type"].rpartition(".")[2], folder / step["path"]) for step in _json(folder / "modules.json") or []]
    dense = [_dense(path) for kind, path in steps if kind == "Dense"]
    if dense:
        model.sentence_head = torch.nn.Sequential(*dense)  # a submodule, so that it moves to the device with the model
    return model, _sentence_settings(folder, dict(steps), card), tokenizer


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _dense(folder: Path) -> "nn.Module":
    """Load the dense step of a Sentence Transformers model: a linear layer and an activation that follow pooling."""
    import torch
    from timm.models import load_state_dict

    config = _json(folder / "config.json")
    activation = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise InputError(
            f"`checkpoint` step {folder.name} must have the activation {' or '.join(ACTIVATIONS)}; got {activation}."
        )
    linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    file = next((f for f in (folder / "model.safetensors", folder / "pytorch_model.bin") if f.is_file()), None)
    if file is None:
        raise InputError(f"`checkpoint` step {folder.name} must contain its weights; there is no model.safetensors.")
    state = load_state_dict(str(file), weights_only=True)
    linear.load_state_dict({key.removeprefix("linear."): value.float() for key, value in state.items()})
    return torch.nn.Sequential(linear, getattr(torch.nn, activation)())


def _sentence_settings(folder: Path, steps: dict[str, Path], card: Card) -> Card:
    """Return the card, with unstated pooling, maximum length and normalisation from a Sentence Transformers folder."""
    unknown = sorted(set(steps) - {"Transformer", "Pooling", "Dense", "Normalize"})
    if unknown:
        log.warning(
            "%s also has a step %s, which is not supported; its vectors are computed without it.", card.name, unknown[0]
        )
    modes = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
    pooling = _json(steps.get("Pooling", folder / "1_Pooling") / "config.json")
    chosen = [mode for name, mode in modes.items() if pooling.get(f"pooling_mode_{name}")]
    settings = {
        "pooling": chosen[0] if chosen else "mean",
        "normalised": "Normalize" in steps,
        "max_length": _json(folder / "sentence_bert_config.json").get("max_seq_length"),
    }
    return replace(card, **{key: value for key, value in settings.items() if getattr(card, key) is None})


def _open_api(card: Card) -> tuple["nn.Module", Card, Any]:
    raise InputError(
        f"`encoder` {card.name!r} must be a model that can be loaded; got an API model. Embed the items with its "
        "provider, and read the vectors from a file."
    )


LIBRARIES = {
    "timm": _open_timm,
    "torchvision": _open_torchvision,
    "transformers": _open_transformers,
    "api": _open_api,
}
BUILDERS = {"mobilenetv1_025": _mobilenetv1_025}
ACTIVATIONS = ("Identity", "Tanh")
