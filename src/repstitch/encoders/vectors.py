"""Preprocess images and texts, run the model, and pool its output to one vector per item."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from repstitch.encoders.catalogue import Card
from repstitch.encoders.images import open_image
from repstitch.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Steps(NamedTuple):
    """The functions that turn items into vectors with a model.

    `card` has all settings resolved, `layers` are the numbers of the model's layers, and `sample` is an item to test
    the model with. `load` preprocesses one item. `forward` takes a batch of preprocessed items and some layers, and
    returns one tensor (n, d) per layer. The layer None means the model's final output. For texts, `count_tokens`
    returns the number of tokens of each preprocessed text before truncation.
    """

    card: Card
    layers: range
    sample: Any
    load: Callable[[Any], Any]
    forward: Callable[[list, Sequence[int | None]], list["Tensor"]]
    count_tokens: Callable[[list[str]], list[int]] | None = None


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


def vision_steps(model: "nn.Module", card: Card, processor: Any, device: "torch.device") -> Steps:
    """Return the steps of an image encoder of transformers. Its image `processor` has all preprocessing settings."""
    import torch
    from PIL import Image

    net: Any = model
    stated = [name for name in PREPROCESSING if getattr(card, name) is not None]
    if stated:
        raise InputError(
            f"`{stated[0]}` of {card.name!r} must not be set, because a model of transformers states its own "
            "preprocessing; use the timm model of this name."
        )
    sizes = {name.rpartition(".")[2]: weight for name, weight in net.named_parameters()}
    net.has_class_token = "cls_token" in sizes or "class_embedding" in sizes
    net.num_prefix_tokens = net.has_class_token + ("distillation_token" in sizes)
    net.num_prefix_tokens += sizes["register_tokens"].shape[1] if "register_tokens" in sizes else 0
    projected = hasattr(net, "visual_projection")
    default = "none" if projected and card.layer is None else "cls" if _has_class(net) else "gap"
    card = replace(card, pooling=card.pooling or default)
    layers = _layers_of(net)
    card = replace(card, layer=_layer(card, layers))
    if card.pooling == "none" and not projected and not getattr(net, "has_pooler", hasattr(net, "pooler")):
        raise InputError(
            f"`pooling` of {card.name!r} must not be none, because the model returns no vector of its own."
        )

    def load(item: Any) -> "Tensor":
        return processor(images=open_image(item).convert("RGB"), return_tensors="pt")["pixel_values"][0]

    def forward(batch: list, chosen: Sequence[int | None]) -> list["Tensor"]:
        output = net(pixel_values=_to_device(torch.stack(batch), device), output_hidden_states=chosen != (None,))
        if card.pooling == "none":
            return [_finish(net, card, output.image_embeds if projected else output.pooler_output.flatten(1))]
        states = zip(_states(output, chosen), chosen, strict=True)
        rows = [(_pool_image(net, _flat(tokens), card), layer) for tokens, layer in states]
        return [_finish(net, card, row) if layer is None else row for row, layer in rows]

    return Steps(card, layers, Image.new("RGB", (64, 64)), load, forward)


def text_steps(model: "nn.Module", card: Card, tokenizer: Any, device: "torch.device") -> Steps:
    """Return the steps of a text encoder. Texts are truncated at the smallest limit of card, tokenizer and model."""
    net: Any = model
    layers = _layers_of(net)
    card = replace(card, pooling=card.pooling or "mean")
    card = replace(card, layer=_layer(card, layers))
    # With "none", the vector is the projection that CLIP compares with images.
    projected = hasattr(net, "text_projection")
    if not set(str(card.pooling).split("+")) <= set(POOLS) and not (projected and card.pooling == "none"):
        poolings = (*POOLS, "none") if projected else tuple(POOLS)
        raise InputError(f"`pooling` of a text encoder must be one of {', '.join(poolings)}; got {card.pooling!r}.")
    lengths = (card.max_length, tokenizer.model_max_length, _positions(net))
    limit = min((n for n in lengths if n is not None and 0 < n < NO_LIMIT), default=None)
    card = replace(card, max_length=limit)
    tokenizer.padding_side = "right"  # position 0 is then the first token, and a causal model never attends to padding
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token  # any token works, because padding is masked
    whole = copy.deepcopy(tokenizer)  # truncation is a state of a tokenizer, which several threads may use at once
    n_prompt = _prompt_length(tokenizer, card.prompt) if card.skip_prompt and card.prompt else 0
    inputs = {"input_ids", "attention_mask", *inspect.signature(net.forward).parameters}

    def forward(texts: list, chosen: Sequence[int | None]) -> list["Tensor"]:
        batch = tokenizer(
            texts, padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt", **QUIET
        )
        tensors = {name: _to_device(batch[name], device) for name in batch if name in inputs}
        output = net(**tensors, output_hidden_states=chosen != (None,))
        if card.pooling == "none":
            return [_finish(net, card, output.text_embeds)]
        mask = _to_device(batch["attention_mask"], device)
        states = zip(_states(output, chosen), chosen, strict=True)
        pooling = card.pooling or "mean"
        rows = [(pool(tokens, mask, pooling, card.skip_first, n_prompt), layer) for tokens, layer in states]
        return [_finish(net, card, row) if layer is None else row for row, layer in rows]

    def count_tokens(texts: list[str]) -> list[int]:
        return [len(ids) for ids in whole(texts, **QUIET)["input_ids"]]

    return Steps(card, layers, "a", partial(_with_prompt, card.prompt or ""), forward, count_tokens)


def static_steps(model: "nn.Module", card: Card, tokenizer: Any, device: "torch.device") -> Steps:
    """Return the steps of a table of token vectors, whose mean over the tokens of a text is the vector of the text."""
    import torch

    net: Any = model
    card = replace(card, pooling=card.pooling or "mean")
    card = replace(card, layer=_layer(card, range(0)))
    if card.pooling != "mean" or card.skip_first:
        raise InputError(
            f"`pooling` of {card.name!r} must be mean over all tokens, because its token vectors are a table; got "
            f"{card.pooling!r}."
        )
    limits = (card.max_length, (tokenizer.truncation or {}).get("max_length"))
    card = replace(card, max_length=min((n for n in limits if n), default=None))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def forward(texts: list, chosen: Sequence[int | None]) -> list["Tensor"]:
        ids = [encoding.ids[: card.max_length] for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        starts = torch.tensor([0, *map(len, ids)][:-1]).cumsum(0)
        flat = torch.tensor([token for text in ids for token in text], dtype=torch.long)
        return [_finish(net, card, net(_to_device(flat, device), _to_device(starts, device)))]

    def count_tokens(texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return Steps(card, range(0), "a", partial(_with_prompt, card.prompt or ""), forward, count_tokens)


def _layers_of(net: Any) -> range:
    """Return the numbers of the hidden states of a model of transformers, or an empty range if it states none."""
    n_blocks = getattr(net.config, "num_hidden_layers", None)
    return range(n_blocks + 1) if isinstance(n_blocks, int) else range(0)


def _states(output: Any, chosen: Sequence[int | None]) -> list["Tensor"]:
    return [output.last_hidden_state if layer is None else output.hidden_states[layer] for layer in chosen]


def _finish(net: Any, card: Card, rows: "Tensor") -> "Tensor":
    """Apply the layers that follow pooling to the final output. They do not apply to the output of a layer."""
    head = getattr(net, "sentence_head", None)
    return (rows if head is None else head(rows))[:, : card.truncate_dim]


def _positions(net: Any) -> int | None:
    """Return the largest number of tokens that the model has positions for, or None if it does not limit them."""
    from torch import nn

    for module in net.modules():  # RoBERTa and its kin count positions from the one after the padding index
        table, padding = getattr(module, "position_embeddings", None), getattr(module, "padding_idx", None)
        if isinstance(table, nn.Embedding) and isinstance(padding, int):
            return table.num_embeddings - padding - 1
    return getattr(net.config, "max_position_embeddings", None)


def _prompt_length(tokenizer: Any, prompt: str) -> int:
    """Return the number of tokens of a prompt, without a special token that ends it."""
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _with_prompt(prompt: str, text: str) -> str:
    return prompt + text


def pool(tokens: "Tensor", mask: "Tensor", pooling: str, skip_first: bool = False, n_prompt: int = 0) -> "Tensor":
    """Pool `tokens` (n, t, d) to vectors (n, d). `mask` (n, t) is 1 on tokens and 0 on padding, which is on the right.

    `cls` is the first token, `last` the last token that is not padding, and `mean` the mean of all tokens that are not
    padding. `max` is the maximum of each column, `mean_sqrt_len` the sum over the square root of the number of tokens,
    and `weighted_mean` a mean in which the weight of token i is i, counted from 1. The vectors of several poolings, as
    in `cls+mean`, are joined. With `skip_first`, the mean leaves out the first token. All poolings leave out the first
    `n_prompt` tokens.
    """
    import torch

    if n_prompt:
        mask = mask.clone()
        mask[:, :n_prompt] = 0
    rows = [POOLS[part](tokens.float(), mask, skip_first) for part in pooling.split("+")]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def _pool_cls(tokens, mask, skip_first):
    return tokens[range(len(tokens)), mask.long().argmax(1)]


def _pool_mean(tokens, mask, skip_first):
    weight = mask.to(tokens.dtype)
    if skip_first:
        weight = weight.clone()
        weight[:, 0] = 0
    return _weighted(tokens, weight)


def _pool_last(tokens, mask, skip_first):
    return tokens[range(len(tokens)), mask.shape[1] - 1 - mask.long().flip(1).argmax(1)]


def _pool_max(tokens, mask, skip_first):
    return tokens.masked_fill(mask[:, :, None] == 0, float("-inf")).amax(1)


def _pool_mean_sqrt_len(tokens, mask, skip_first):
    return _pool_mean(tokens, mask, False) * mask.sum(1, keepdim=True).sqrt()


def _pool_weighted_mean(tokens, mask, skip_first):
    positions = mask.new_ones(mask.shape).cumsum(1)
    return _weighted(tokens, (mask * positions).to(tokens.dtype))


def _weighted(tokens, weight):
    return (tokens * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)


def _to_device(batch: "Tensor", device: "torch.device") -> "Tensor":
    """Move the batch to the device. Pinned memory makes the copy to a CUDA device asynchronous."""
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


POOLS = {
    "cls": _pool_cls,
    "mean": _pool_mean,
    "last": _pool_last,
    "max": _pool_max,
    "mean_sqrt_len": _pool_mean_sqrt_len,
    "weighted_mean": _pool_weighted_mean,
}
QUIET: dict[str, Any] = {"return_attention_mask": True, "verbose": False}
NO_LIMIT = 10**9  # a tokenizer without a limit states 10 to the power of 30
PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
MODES = {1: "L", 3: "RGB"}
