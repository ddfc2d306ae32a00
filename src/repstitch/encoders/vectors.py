"""From prepared items to vectors: how images and texts are made ready, run through a model and pooled."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from repstitch.encoders.catalogue import Card
from repstitch.encoders.items import open_image
from repstitch.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def image_steps(model: "nn.Module", card: Card, _: None, device: "torch.device"):
    """The card with the model's own preprocessing put under it, the layers there are, a blank image, and how to load
    and run images."""
    import torch
    from PIL import Image
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    own = resolve_data_config(
        {}, pretrained_cfg=getattr(model, "pretrained_cfg", None) or {"input_size": (3, 224, 224)}
    )
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
    card = replace(card, **{key: value for key, value in own.items() if getattr(card, key) is None})
    card = replace(
        card, pooling=card.pooling or ("none" if card.layer is None else "cls" if _has_class(model) else "gap")
    )
    there = range(1, len(getattr(model, "feature_info", ())) + 1)
    card = replace(card, layer=_layer(card, there))
    size: Any = card.input_size
    mean, std = (torch.tensor(value, dtype=torch.float32)[:, None, None] for value in (card.mean, card.std))
    if size[0] not in MODES or not len(mean) == len(std) == size[0]:
        raise InputError(
            f"`input_size` of {card.name!r} must have 1 or 3 channels, and `mean` and `std` as many; got {size[0]}, "
            f"{len(mean)} and {len(std)}."
        )
    fit: Any = create_transform(
        size, interpolation=card.interpolation or "", crop_pct=card.crop_pct, crop_mode=card.crop_mode, normalize=False
    )

    def load(item: Any) -> "Tensor":
        pixels = fit(open_image(item).convert(MODES[size[0]]))
        pixels = pixels.flip(0) if card.channels == "BGR" else pixels
        return (pixels.float() * (card.scale / 255) - mean) / std

    def forward(batch: list, layers: Sequence[int | None]) -> list["Tensor"]:
        x = torch.stack(batch).to(device)
        if card.pooling == "none":
            return [model(x)]
        return [_pool_image(model, tokens, card) for tokens in image_tokens(model, x, layers)]

    return card, there, Image.new("RGB", (64, 64)), load, forward


def _pool_image(model: "nn.Module", tokens: "Tensor", card: Card) -> "Tensor":
    import torch

    if card.pooling == "gap":
        return tokens[:, getattr(model, "num_prefix_tokens", 0) :].float().mean(1)
    if card.pooling == "cls" and not _has_class(model):
        raise InputError(f"`pooling` of {card.name!r} must be gap, mean or none, for it has no class token; got cls.")
    return pool(tokens, torch.ones(tokens.shape[:2], device=tokens.device), card.pooling or "mean", card.skip_first)


def _has_class(model: "nn.Module") -> bool:
    return bool(getattr(model, "has_class_token", getattr(model, "num_prefix_tokens", 0)))


def image_tokens(model: "nn.Module", x: "Tensor", layers: Sequence[int | None] = (None,)) -> list["Tensor"]:
    """The positions (n, t, d) of a batch of images after each of the blocks `layers`, or at the end where it is None.

    One forward pass gives all blocks; the end is asked for alone. A map of a convolutional network counts as h · w
    tokens. After a block means before any norm that follows it.
    """
    import torch

    net: Any = model
    if None in layers:
        tokens = net.forward_features(x) if hasattr(model, "forward_features") else net.features(x)
        return [_flat(tokens, str(getattr(model, "output_fmt", "")).endswith("NHWC"))]
    indices = [layer - 1 for layer in layers if layer is not None]
    if not getattr(model, "num_prefix_tokens", 0):
        return [_flat(tokens) for tokens in net.forward_intermediates(x, indices=indices, intermediates_only=True)]
    found = net.forward_intermediates(
        x, indices=indices, intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
    )
    return [torch.cat([prefix, patches], 1) for patches, prefix in found]


def _flat(tokens: "Tensor", channels_last: bool = False) -> "Tensor":
    if tokens.ndim != 4:
        return tokens
    return tokens.flatten(1, 2) if channels_last else tokens.flatten(2).transpose(1, 2)


def _layer(card: Card, there: range) -> int | None:
    """The layer counted from the start, whichever end the card counts from."""
    if card.layer is None:
        return None
    [layer] = pick_layers(card, [card.layer], there)
    return layer


def pick_layers(card: Card, layers: Sequence[int], there: range) -> list[int]:
    """Layers counted from the start, whichever end they are counted from; InputError when one is not there."""
    if not there:
        raise InputError(f"`layer` of {card.name!r} must be left out: which blocks its model has is not known.")
    found = [layer + (there.stop if layer < 0 else 0) for layer in layers]
    for layer, asked in zip(found, layers, strict=True):
        if layer not in there or card.pooling == "none":
            raise InputError(
                f"`layer` of {card.name!r} must be from {there.start} to {there.stop - 1}, with a `pooling` other than "
                f"none; got {asked} with {card.pooling}."
            )
    return found


def text_steps(model: "nn.Module", card: Card, tokenizer: Any, device: "torch.device"):
    """The card with the model's own limits put under it, the layers there are, a short text, and how to load and run
    texts."""
    import torch

    net: Any = model
    there = range(net.config.num_hidden_layers + 1)
    card = replace(card, pooling=card.pooling or "mean")
    card = replace(card, layer=_layer(card, there))
    own = ("none",) if hasattr(net, "text_projection") else ()  # the one vector that CLIP compares with images
    if card.pooling not in (*POOLS, *own):
        raise InputError(
            f"`pooling` of a text encoder must be one of {', '.join((*POOLS, *own))}; got {card.pooling!r}."
        )
    lengths = (card.max_length, tokenizer.model_max_length, getattr(net.config, "max_position_embeddings", None))
    limit = min((n for n in lengths if n), default=None)
    card = replace(card, max_length=limit)
    tokenizer.padding_side = "right"  # so that position 0 is the first token, and a causal model never sees padding
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # masked, so any token will do

    # What a sentence encoder has after pooling belongs to its last vectors, not to a layer's.
    head = getattr(net, "sentence_head", torch.nn.Identity())

    def forward(texts: list, layers: Sequence[int | None]) -> list["Tensor"]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device)
        mask = batch["attention_mask"]
        given = net(input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=layers != (None,))
        if card.pooling == "none":
            return [given.text_embeds]
        states = [given.last_hidden_state if layer is None else given.hidden_states[layer] for layer in layers]
        rows = [pool(tokens, mask, card.pooling or "mean", card.skip_first) for tokens in states]
        return [head(row) if layer is None else row for row, layer in zip(rows, layers, strict=True)]

    return card, there, "a", partial(_with_prompt, card.prompt or ""), forward


def _with_prompt(prompt: str, text: str) -> str:
    return prompt + text


def pool(tokens: "Tensor", mask: "Tensor", pooling: str, skip_first: bool = False) -> "Tensor":
    """One vector (n, d) a row out of `tokens` (n, t, d), where `mask` (n, t) is 1 on tokens and 0 on padding.

    `cls` is the first token, `last` the last that is not padding, `mean` the average of those that are not padding,
    with `skip_first` without the first.
    """
    return POOLS[pooling](tokens.float(), mask, skip_first)


def _pool_cls(tokens, mask, skip_first):
    return tokens[:, 0]


def _pool_mean(tokens, mask, skip_first):
    weight = mask.to(tokens.dtype)
    if skip_first:
        weight = weight.clone()
        weight[:, 0] = 0
    return (tokens * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)


def _pool_last(tokens, mask, skip_first):
    return tokens[range(len(tokens)), mask.sum(1).long() - 1]


POOLS = {"cls": _pool_cls, "mean": _pool_mean, "last": _pool_last}
MODES = {1: "L", 3: "RGB"}
