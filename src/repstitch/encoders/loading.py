"""Load the model of a card from a local checkpoint or folder, or from the Hugging Face Hub."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repstitch.encoders import catalogue
from repstitch.encoders.catalogue import Card
from repstitch.encoders.folders import open_folder
from repstitch.encoders.sentence import weight_folders
from repstitch.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def digest(path: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file or folder of weights.

    For a folder, the hash covers all files with the first ending of `catalogue.WEIGHTS` that occurs in it, and those in
    the folders of its modules.
    """
    total = hashlib.sha256()
    for file in [path] if path.is_file() else _weight_files(path):
        _add_file(total, file)
    return total.hexdigest()[:16]


def settings_digest(path: Path) -> str | None:
    """Return the SHA-256 of the files beside the weights in a folder (config, tokenizer …); None for a file.

    Two folders with the same `digest` and the same `settings_digest` give the same vectors.
    """
    if path.is_file():
        return None
    names = {file.relative_to(path).as_posix() for pattern in SETTINGS for file in path.rglob(pattern)}
    total = hashlib.sha256()
    for name in sorted(names):
        if (path / name).is_file() and not name.startswith("."):
            total.update(f"{len(name)} {name} {(path / name).stat().st_size}\n".encode())
            _add_file(total, path / name)
    return total.hexdigest()


def _add_file(total: Any, file: Path) -> None:
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            total.update(chunk)


def _weight_files(folder: Path) -> list[Path]:
    by_ending = ([sorted(part.glob(f"*{s}")) for s in catalogue.WEIGHTS] for part in weight_folders(folder))
    return [file for endings in by_ending for file in next(filter(None, endings), [])]


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

    def download(*patterns: str) -> Path:
        return Path(snapshot_download(repo, revision=card.revision, allow_patterns=[*SETTINGS, *patterns]))

    folder = download("model*.safetensors")
    for ending in ("model*.safetensors", "pytorch_model*.bin"):
        parts = [part for part in weight_folders(folder) if not any(part.glob("model*.safetensors"))]
        if parts:
            download(*((part.relative_to(folder) / ending).as_posix() for part in parts))
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
    folder, card = _local(card) if card.checkpoint else _from_hub(card.encoder.partition(":")[2], card)
    return open_folder(folder, card)


def _open_api(card: Card) -> tuple["nn.Module", Card, Any]:
    raise InputError(
        f"`encoder` {card.name!r} must be a model that can be loaded; got an API model. Embed the items with its "
        "provider, and read the vectors from a file."
    )


SETTINGS = ("*.json", "*.txt", "*.model")  # the files of a model besides its weights
LIBRARIES = {
    "timm": _open_timm,
    "torchvision": _open_torchvision,
    "transformers": _open_transformers,
    "api": _open_api,
}
BUILDERS = {"mobilenetv1_025": _mobilenetv1_025}
