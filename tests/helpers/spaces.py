"""Pairs of spaces with known answers, and small embeddings to read, write and pair."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repstitch.embeddings.pairs import Pairs
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.splitting import Split
from repstitch.spaces import Space
from repstitch.stitchers.confidence import Calibration


def gaussian(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return rows (n, d) of independent standard normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def rotation(d: int, seed: int = 0) -> np.ndarray:
    """Return an orthogonal matrix (d, d), float64."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def rotated(n: int = 300, d: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return X, its rotated copy Y = X R, and R."""
    X, R = gaussian(n, d, seed), rotation(d, seed + 1)
    return X, (X @ R).astype(np.float32), R


def affine_image(
    n: int = 400, d_source: int = 8, d_target: int = 5, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return X, Y = X W + b + noise, W and b."""
    random = np.random.default_rng(seed)
    X = gaussian(n, d_source, seed + 1)
    W, b = random.standard_normal((d_source, d_target)), random.standard_normal(d_target)
    return X, (X @ W + b + noise * random.standard_normal((n, d_target))).astype(np.float32), W, b


def unrelated(n: int = 300, d_source: int = 8, d_target: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two independent spaces."""
    return gaussian(n, d_source, 2 * seed), gaussian(n, d_target, 2 * seed + 1)


def cone(n: int = 300, d: int = 16, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    """Return unit rows in a narrow cone, with a mean cosine of about 1 / (1 + spread²)."""
    rows = np.random.default_rng(seed).standard_normal((n, d)) * spread / np.sqrt(d) + np.eye(1, d)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def shared_latent(
    n: int = 400, rank: int = 3, d_source: int = 12, d_target: int = 10, noise: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return two noisy linear views of the same `rank` latent numbers per row."""
    random = np.random.default_rng(seed)
    Z = random.standard_normal((n, rank))
    X, Y = (
        Z @ random.standard_normal((rank, d)) + noise * random.standard_normal((n, d)) for d in (d_source, d_target)
    )
    return X.astype(np.float32), Y.astype(np.float32)


def card(name: str = "old", dim: int = 4, **stated) -> Space:
    """Return a space with an encoder, so that it has an identity."""
    fields: dict[str, Any] = {"encoder": f"timm:{name}", "revision": "abc", "pooling": "cls"} | stated
    return Space(name, dim, **fields)


def names(n: int, prefix: str = "item") -> np.ndarray:
    """Return ids (n,) as text."""
    return np.array([f"{prefix}{i}" for i in range(n)], dtype=object)


def embeddings(n: int = 40, dim: int = 4, name: str = "old", seed: int = 0, dtype: str = "float32", **columns):
    """Return `Embeddings` of n random rows with the ids item0, item1, …; `columns` replace fields."""
    fields: dict[str, Any] = {
        "vectors": gaussian(n, dim, seed).astype(dtype),
        "space": card(name, dim),
        "ids": names(n),
    } | columns
    return Embeddings(**fields)


def pairs_of(X: np.ndarray, Y: np.ndarray, ids=None, groups=None) -> Pairs:
    """Return `Pairs` of these rows without the checks of `pair`."""
    ids = names(len(X)) if ids is None else np.asarray(ids, dtype=object)
    return Pairs(X, Y, card("old", X.shape[1]), card("new", Y.shape[1]), ids, "id", groups, {})


def split_at(n: int, train: int, validation: int) -> Split:
    """Return a split: the first rows for training, the next for validation (halved), the rest for testing."""
    middle = train + validation // 2
    edges = np.split(np.arange(n), [train, middle, train + validation])
    return Split(*edges)


def folder_of(path: Path, parts: list[Embeddings]) -> Path:
    """Write a folder of Parquet files, one for each part, and return its path."""
    from repstitch.embeddings.writing import write

    path.mkdir()
    for i, part in enumerate(parts):
        write(path / f"{i:03d}.parquet", part)
    return path


def calibration(d_source: int, pool: int = 1000, seed: int = 0) -> Calibration:
    """Return a calibration of random numbers, which is not fitted to any rows."""
    number = partial(torch.rand, generator=torch.Generator().manual_seed(seed))
    return Calibration(
        pool=pool,
        level=0.9,
        mean=number(d_source) / 10,
        project=number(d_source, d_source),
        shared=number(d_source),
        centre=number(4) / 10,
        scale=number(4) + 0.5,
        low=-number(3) - 2,
        high=number(3) + 2,
        match=number(4),
        cosine=number(4) / 10,
        precision=torch.eye(2),
        atypical=number(30).sort().values * 5,
    )


def tiny_bert(folder: Path) -> Path:
    """Write a two-layer BERT of 16 dimensions with random weights, and a tokenizer of a few words, to the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefg:", "the", "cat", "dog", "sat", "on", "mat", "with", "query"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder
