"""Open the folder of a transformers or Sentence Transformers model: its weights, and its tokenizer or processor.

What would change the vectors and is not supported, such as an adapter, is refused by name. Code that comes with a model
is never run.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repstitch.encoders import catalogue
from repstitch.encoders.catalogue import Card, modality
from repstitch.encoders.sentence import load_state, read_json, read_sentence_model
from repstitch.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def open_folder(folder: Path, card: Card) -> tuple["nn.Module", Card, Any]:
    """Open the model in a folder. Return it with its card and its tokenizer, or its image processor.

    Settings that the card does not state are those of the folder.
    """
    import torch

    if not (folder / "modules.json").is_file():
        return _open_reader(folder, card)
    sentence = read_sentence_model(folder, card.role, modality(card))
    fields = sentence.fields | {"prompts": sentence.fields["prompts"] | card.prompts}
    kept = {key for key in ("pooling", "max_length", "truncate_dim", "normalised") if getattr(card, key) is not None}
    filled = replace(card, **{key: value for key, value in fields.items() if key not in kept})
    if sentence.reader.kind == "StaticEmbedding":
        model, filled, tokenizer = _open_static(sentence.reader.folder, filled)
    else:
        model, filled, tokenizer = _open_reader(sentence.reader.folder, filled)
        if modality(filled) == "text":
            _check_encoder_output(folder, model)
            if sentence.lower_case:
                _read_lower_case(tokenizer)
            if "max_length" not in kept:
                tokenizer.model_max_length = filled.max_length or tokenizer.model_max_length
    if sentence.head:  # a submodule, so that it moves to the device with the model
        model.sentence_head = torch.nn.Sequential(*sentence.head)
    return model, filled, tokenizer


def _open_reader(folder: Path, card: Card) -> tuple["nn.Module", Card, Any]:
    """Open a model of transformers with its tokenizer or its image processor."""
    _check_folder(folder)
    return _open_vision(folder, card) if modality(card) == "image" else _open_text(folder, card)


def _check_folder(folder: Path) -> None:
    """Raise InputError if the vectors of a model depend on an adapter or on code of its own, which is never run."""
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"`checkpoint` {folder.name} must be a whole model; adapter_config.json states an adapter, which is not "
            "supported. Merge it into its model with peft's merge_and_unload, and save that."
        )
    config = read_json(folder / "config.json")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        for kind, reference in (read_json(folder / name).get("auto_map") or {}).items():
            if kind in CUSTOM and config.get("model_type") not in PORTED:
                raise InputError(
                    f"`checkpoint` {folder.name} must be a model of transformers; {name} names the class {reference}, "
                    "whose code is part of the model and is never run. Embed with its own library, and read the "
                    "vectors from a file. If transformers' own class gives the same vectors, remove its 'auto_map'."
                )


def _open_text(folder: Path, card: Card) -> tuple["nn.Module", Card, Any]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModelWithProjection

    class TextTower(CLIPTextModelWithProjection):
        _keys_to_ignore_on_load_unexpected = ["^vision_model", "^visual_projection", "^logit_scale"]  # noqa: RUF012

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    clip = config.model_type in ("clip", "clip_text_model")
    _check_towers(folder, config)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = _load_model(TextTower if clip else AutoModel, folder)
    model = model.get_encoder() if hasattr(model, "encoder") and hasattr(model, "decoder") else model
    card = replace(card, architecture=card.architecture or model.config.model_type)
    return model, replace(card, pooling=card.pooling or ("none" if clip and card.layer is None else None)), tokenizer


def _open_vision(folder: Path, card: Card) -> tuple["nn.Module", Card, Any]:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPVisionModelWithProjection

    class ImageTower(CLIPVisionModelWithProjection):
        _keys_to_ignore_on_load_unexpected = ["^text_model", "^text_projection", "^logit_scale"]  # noqa: RUF012

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _check_towers(folder, config)
    if not any((folder / name).is_file() for name in catalogue.IMAGE_SETTINGS):
        raise InputError(
            f"`checkpoint` {folder.name} must contain a preprocessor_config.json, which states how images are read."
        )
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    model = _load_model(ImageTower if config.model_type in ("clip", "clip_vision_model") else AutoModel, folder)
    if model.main_input_name != "pixel_values" or getattr(model.config, "mask_ratio", 0):
        raise InputError(
            f"`checkpoint` {folder.name} must be a vision model that reads whole images; {model.config.model_type} is "
            "not supported. Use the timm model of this name."
        )
    return model, replace(card, modality="image", architecture=card.architecture or model.config.model_type), processor


def _check_towers(folder: Path, config: Any) -> None:
    if hasattr(config, "vision_config") and hasattr(config, "text_config") and config.model_type != "clip":
        raise InputError(
            f"`checkpoint` {folder.name} must be a text model, a vision model or a CLIP; a {config.model_type} with "
            "several towers is not supported. For its image tower, use the timm model of this name."
        )


def _check_encoder_output(folder: Path, model: "nn.Module") -> None:
    """Raise InputError if Sentence Transformers pools the output of the decoder; only the encoder is loaded."""
    config: Any = model.config
    if config.is_encoder_decoder and config.model_type not in ENCODERS:
        raise InputError(
            f"`checkpoint` {folder.name} must not pool the output of a decoder; got the model type {config.model_type}."
        )


def _load_model(kind: Any, folder: Path) -> Any:
    """Load the weights of a model. Raise InputError if some are missing or belong to an adapter."""
    import torch

    model, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False)
    # Sentence encoders omit an unused pooler or decoder. Any other missing weight would stay random.
    missing = [key for key in report["missing_keys"] if not key.startswith(("pooler.", "decoder."))]
    if missing:
        raise InputError(f"`checkpoint` {folder.name} must contain all weights of its model; {missing[0]} is missing.")
    adapter = next((key for key in report["unexpected_keys"] if "lora_" in key or "adapter" in key), None)
    if adapter is not None:
        raise InputError(f"`checkpoint` {folder.name} must contain no adapter; {adapter} is not a weight of its model.")
    model.has_pooler = getattr(model, "pooler", None) is not None and not report["missing_keys"]
    return model


def _read_lower_case(tokenizer: Any) -> None:
    """Make the tokenizer convert texts to lower case before it does anything else."""
    from tokenizers.normalizers import Lowercase, Sequence

    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])


def _open_static(folder: Path, card: Card) -> tuple["nn.Module", Card, Any]:
    """Open a table of token vectors, of Sentence Transformers or of model2vec, with its tokenizer."""
    import torch
    from tokenizers import Tokenizer

    state = load_state(folder)
    table = state["embedding.weight"] if "embedding.weight" in state else state["embeddings"].float()
    if "mapping" in state:
        table = table[state["mapping"].long()]
    if "weights" in state:
        table = table * state["weights"][:, None]
    model = torch.nn.EmbeddingBag.from_pretrained(table.float(), mode="mean")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return model, replace(card, architecture=card.architecture or "StaticEmbedding"), tokenizer


CUSTOM = ("AutoModel", "AutoTokenizer", "AutoImageProcessor")
PORTED = ("nomic_bert",)  # model types whose own code transformers has taken over
# Types of encoder-decoders of which Sentence Transformers, too, loads the encoder only.
ENCODERS = (
    "blenderbot",
    "blenderbot-small",
    "longt5",
    "m2m_100",
    "marian",
    "mt5",
    "pegasus",
    "pegasus_x",
    "prophetnet",
    "switch_transformers",
    "t5",
    "t5gemma",
    "umt5",
)
