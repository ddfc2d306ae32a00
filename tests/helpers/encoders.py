"""Encoders with random weights, their inputs, and reference computations of their vectors."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from repstitch import encoders
from repstitch.embeddings import reading
from repstitch.encoders.catalogue import Card

DATA = Path(os.environ.get("REPSTITCH_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")


TEXTS = ["a cat", "the dog sat on a mat with a cat", "dog", "a b c d e f g", "sat"]


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data; set REPSTITCH_DATA to its folder")


def build(architecture, **args) -> Any:
    return timm.create_model(architecture, **args)


def read(path) -> Any:
    return reading.read(path)


def noise(n=6, size=40, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size, size + i, 3), dtype=np.uint8)) for i in range(n)]


def card(architecture="test_resnet", **fields):
    fields = {"input_size": (3, 32, 32), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"} | fields
    return Card("tiny", f"timm:{architecture}", **fields)


def vit(**fields):
    model = build("test_vit", num_classes=0, img_size=32)
    return encoders.from_module(model, card("test_vit", **fields), device="cpu"), model


@cache
def model_and_tokenizer(folder):
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def hidden_states(folder, text):
    model, tokenizer = model_and_tokenizer(folder)
    with torch.inference_mode():
        out = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    return [state[0].numpy() for state in out.hidden_states]


def cosines(A, B):
    A, B = A.astype(np.float64), B.astype(np.float64)
    return (A * B).sum(1) / np.linalg.norm(A, axis=1) / np.linalg.norm(B, axis=1)


def with_dense(
    folder: Path, activation: str = "torch.nn.modules.activation.Tanh", bias: bool = True
) -> torch.nn.Linear:
    """Add a linear layer after the mean pooling, as GTR and LaBSE have."""
    (folder / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        '{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},'
        '{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]'
    )
    (folder / "2_Dense").mkdir()
    linear = torch.nn.Linear(16, 6, bias=bias)
    config = {"in_features": 16, "out_features": 6, "bias": bias, "activation_function": activation}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    save_file({f"linear.{k}": v for k, v in linear.state_dict().items()}, folder / "2_Dense" / "model.safetensors")
    return linear


def interrupted(encoder, after):
    """Return the encoder, which raises KeyboardInterrupt after `after` batches."""
    left = iter(range(after))

    def stoppable(run):
        def stop_or_run(*args):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return run(*args)

        return stop_or_run

    return replace(encoder, run=stoppable(encoder.run), run_layers=stoppable(encoder.run_layers))
