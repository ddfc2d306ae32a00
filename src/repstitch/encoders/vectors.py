"""Preprocess images and texts, run the model, and pool its output to one vector per item."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from repstitch.encoders.catalogue import Card
from repstitch.encoders.items import open_image
from repstitch.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Steps(NamedTuple):
    """The functions that turn items into vectors with a model.

    `card` has all settings resolved, `layers` are the numbers of the model's layers, and `sample` is an item to test
    the model with. `load` preprocesses one item. `forward` takes a batch of preprocessed items and some layers, and
    returns one tensor (n, d) per layer. The layer None means the model's final output.
    """

    card: Card
    layers: range
    sample: Any
    load: Callable[[Any], Any]
    forward: Callable[[list, Sequence[int | None]], list["Tensor"]]


def image_steps(model: "nn.Module", card: Card, _: None, device: "torch.device") -> Steps:
    """Return the steps of an image encoder. Unstated preprocessing settings of the card are taken from the model."""
    import torch
    from PIL import Image
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    defaults = resolve_data_config(
        {}, pretrained_cfg=getattr(model, "pretrained_cfg", None) or {"input_size": (3, 224, 224)}
    )
    defaults = {key: tuple(value) if isinstance(value, list) else value for key, value in defaults.items()}
    card = replace(card, **{key: value for key, value in defaults.items() if getattr(card, key) is None})
    card = replace(
        card, pooling=card.pooling or ("none" if card.layer is None else "cls" if _has_class(model) else "gap")
    )
    layers = range(1, len(getattr(model, "feature_info", ())) + 1)
    card = replace(card, layer=_layer(card, layers))
    size: Any = card.input_size
    mean, std = (torch.tensor(value, dtype=torch.float32)[:, None, None] for value in (card.mean, card.std))
    if size[0] not in MODES or not len(mean) == len(std) == size[0]:
        raise InputError(
            f"`input_size` of {card.name!r} must have 1 or 3 channels, and `mean` and `std` must have as many numbers; "
            f"got {size[0]}, {len(mean)} and {len(std)}."
        )
    fit: Any = create_transform(
        size, interpolation=card.interpolation or "", crop_pct=card.crop_pct, crop_mode=card.crop_mode, normalize=False
    )

    def load(item: Any) -> "Tensor":
        pixels = fit(open_image(item).convert(MODES[size[0]]))
        pixels = pixels.flip(0) if card.channels == "BGR" else pixels
        return (pixels.float() * (card.scale / 255) - mean) / std

    def forward(batch: list, chosen: Sequence[int | None]) -> list["Tensor"]:
        x = _to_device(torch.stack(batch), device)
        if card.pooling == "none":
            return [model(x)]
        return [_pool_image(model, tokens, card) for tokens in image_tokens(model, x, chosen)]

    return Steps(card, layers, Image.new("RGB", (64, 64)), load, forward)


def _pool_image(model: "nn.Module", tokens: "Tensor", card: Card) -> "Tensor":
    import torch

    if card.pooling == "gap":
        return tokens[:, getattr(model, "num_prefix_tokens", 0) :].float().mean(1)
    if card.pooling == "cls" and not _has_class(model):
        raise InputError(
            f"`pooling` of {card.name!r} must be gap, mean or none, because the model has no class token; got cls."
        )
    return pool(tokens, torch.ones(tokens.shape[:2], device=tokens.device), card.pooling or "mean", card.skip_first)


def _has_class(model: "nn.Module") -> bool:
    return bool(getattr(model, "has_class_token", getattr(model, "num_prefix_tokens", 0)))


def image_tokens(model: "nn.Module", x: "Tensor", layers: Sequence[int | None] = (None,)) -> list["Tensor"]:
    """Return the tokens (n, t, d) of a batch of images after each block in `layers`, or at the end for (None,).

    All blocks are computed in one forward pass. A feature map of a convolutional network becomes h · w tokens. The
    tokens after a block are taken before any norm that follows it.
    """
    import torch

    net: Any = model
    if None in layers:
        tokens = net.forward_features(x) if hasattr(model, "forward_features") else net.features(x)
        return [_flat(tokens, str(getattr(model, "output_fmt", "")).endswith("NHWC"))]
    indices = [layer - 1 for layer in layers if layer is not None]
    if not getattr(model, "num_prefix_tokens", 0):
        return [_flat(tokens) for tokens in net.forward_intermediates(x, indices=indices, intermediates_only=True)]
    blocks = net.forward_intermediates(
        x, indices=indices, intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
    )
    return [torch.cat([prefix, patches], 1) for patches, prefix in blocks]


def _flat(tokens: "Tensor", channels_last: bool = False) -> "Tensor":
    if tokens.ndim != 4:
        return tokens
    return tokens.flatten(1, 2) if channels_last else tokens.flatten(2).transpose(1, 2)


def _layer(card: Card, layers: range) -> int | None:
    """Return the layer of the card, counted from the start, or None if the card does not state a layer."""
    if card.layer is None:
        return None
    [layer] = pick_layers(card, [card.layer], layers)
    return layer


def pick_layers(card: Card, chosen: Sequence[int], layers: range) -> list[int]:
    """Return the `chosen` layers, counted from the start. Negative ones are counted from the end.

    Raises InputError if a layer is not in `layers`, the layers of the model.
    """
    if not layers:
        raise InputError(f"`layer` of {card.name!r} must not be set, because its model does not list its blocks.")
    picked = [layer + (layers.stop if layer < 0 else 0) for layer in chosen]
    for layer, stated in zip(picked, chosen, strict=True):
        if layer not in layers or card.pooling == "none":
            raise InputError(
                f"`layer` of {card.name!r} must be from {layers.start} to {layers.stop - 1}, with a `pooling` other "
                f"than none; got {stated} with {card.pooling}."
            )
    return picked


def text_steps(model: "nn.Module", card: Card, tokenizer: Any, device: "torch.device") -> Steps:
    """Return the steps of a text encoder. Texts are truncated at the smallest limit of card, tokenizer and model."""
    import torch

    net: Any = model
    layers = range(net.config.num_hidden_layers + 1)
    card = replace(card, pooling=card.pooling or "mean")
    card = replace(card, layer=_layer(card, layers))
    # With "none", the vector is the projection that CLIP compares with images.
    poolings = (*POOLS, "none") if hasattr(net, "text_projection") else tuple(POOLS)
    if card.pooling not in poolings:
        raise InputError(f"`pooling` of a text encoder must be one of {', '.join(poolings)}; got {card.pooling!r}.")
    lengths = (card.max_length, tokenizer.model_max_length, getattr(net.config, "max_position_embeddings", None))
    limit = min((n for n in lengths if n), default=None)
    card = replace(card, max_length=limit)
    tokenizer.padding_side = "right"  # position 0 is then the first token, and a causal model never attends to padding
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # any token works, because padding is masked

    # The dense step of a sentence encoder applies to the final output only, not to the output of a layer.
    head = getattr(net, "sentence_head", torch.nn.Identity())

    def forward(texts: list, chosen: Sequence[int | None]) -> list["Tensor"]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        ids, mask = (_to_device(batch[name], device) for name in ("input_ids", "attention_mask"))
        output = net(input_ids=ids, attention_mask=mask, output_hidden_states=chosen != (None,))
        if card.pooling == "none":
            return [output.text_embeds]
        states = [output.last_hidden_state if layer is None else output.hidden_states[layer] for layer in chosen]
        rows = [pool(tokens, mask, card.pooling or "mean", card.skip_first) for tokens in states]
        return [head(row) if layer is None else row for row, layer in zip(rows, chosen, strict=True)]

    return Steps(card, layers, "a", partial(_with_prompt, card.prompt or ""), forward)


def _with_prompt(prompt: str, text: str) -> str:
    return prompt + text


def pool(tokens: "Tensor", mask: "Tensor", pooling: str, skip_first: bool = False) -> "Tensor":
    """Pool `tokens` (n, t, d) to vectors (n, d). `mask` (n, t) is 1 on tokens and 0 on padding.

    `cls` is the first token, `last` the last token that is not padding, and `mean` the mean of all tokens that are not
    padding. With `skip_first`, the mean leaves out the first token.
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


def _to_device(batch: "Tensor", device: "torch.device") -> "Tensor":
    """Move the batch to the device. Pinned memory makes the copy to a CUDA device asynchronous."""
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


POOLS = {"cls": _pool_cls, "mean": _pool_mean, "last": _pool_last}
MODES = {1: "L", 3: "RGB"}
