"""Two spaces with exact stitchers between them, and directions, probes and dictionaries to transfer."""

from typing import Any

import numpy as np
import torch

from helpers.spaces import card, gaussian, names, pairs_of, rotation
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.splitting import split
from repstitch.stitchers.maps import AffineMap, Map, ResidualMLP
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer import files
from repstitch.transfer.files import Layout
from repstitch.transfer.kinds import Dictionary, Directions, Probe
from repstitch.transfer.linear import LinearMap
from repstitch.transfer.task import Task, make_task


def linear(d_source: int, d_target: int, seed: int = 0) -> LinearMap:
    """Return a random, well-conditioned affine map in float64."""
    random = np.random.default_rng(seed)
    W = random.standard_normal((d_source, d_target)) / np.sqrt(d_source)
    return LinearMap(AffineMap(torch.from_numpy(W), torch.from_numpy(random.standard_normal(d_target))), "a test's")


def inverse(map: LinearMap) -> LinearMap:
    """Return the inverse of a square affine map."""
    back = np.linalg.inv(map.weight)
    return LinearMap(AffineMap(torch.from_numpy(back), torch.from_numpy(-map.bias @ back)), "a test's")


def through(map: LinearMap, rows: np.ndarray) -> np.ndarray:
    return rows @ map.weight + map.bias


def probe(d: int = 6, k: int = 3, seed: int = 0) -> Probe:
    classes = tuple(f"c{i}" for i in range(max(k, 2)))
    return Probe(gaussian(k, d, seed).astype(float), gaussian(1, k, seed + 1)[0].astype(float), classes)


def directions(d: int = 6, k: int = 3, seed: int = 0) -> Directions:
    return Directions(gaussian(k, d, seed), tuple(f"v{i}" for i in range(k)))


def dictionary(d: int = 6, m: int = 10, subtract: bool = True, seed: int = 0, **fields) -> Dictionary:
    defaults: dict[str, Any] = {
        "W_enc": gaussian(d, m, seed),
        "b_enc": gaussian(1, m, seed + 1)[0] / 2,
        "W_dec": gaussian(m, d, seed + 2),
        "b_dec": gaussian(1, d, seed + 3)[0],
        "subtract_b_dec": subtract,
    }
    return Dictionary(**defaults | fields)


def mlp(d_source: int = 6, d_target: int = 4, width: int = 5, seed: int = 0) -> ResidualMLP:
    random = torch.Generator().manual_seed(seed)

    def number(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    return ResidualMLP(
        number(d_source, d_target),
        number(d_target) / 5,
        number(d_source, width),
        number(width),
        number(width, d_target),
    )


def stitcher(map: Map, source: str = "old", target: str = "new", **fields) -> Stitcher:
    """Return a stitcher with this map between spaces with cards, and no rows seen in training."""
    defaults: dict[str, Any] = {
        "source": card(source, map.d_source),
        "target": card(target, map.d_target),
        "method": "ridge",
        "objective": "reconstruction",
        "input_norm": "unit",
        "output_norm": "unit",
        "source_mean": np.zeros(map.d_source, np.float32),
        "target_mean": np.zeros(map.d_target, np.float32),
        "seen": np.empty(0, np.int64),
    }
    return Stitcher(map=map, **defaults | fields)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def two_views(n: int = 600, d: int = 8, classes: int = 3, noise: float = 0.3, seed: int = 0):
    """Make clusters on the sphere in two spaces, the second an exact rotation R of the first.

    Returns the `Embeddings` of both, with ids, the labels of the rows, and R.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=n)
    centres = 1.5 * rotation(d, seed)[:classes]
    X = unit(centres[labels] + noise * random.standard_normal((n, d))).astype(np.float32)
    R = rotation(d, seed + 1)
    Y = (X @ R).astype(np.float32)
    old, new = (Embeddings(rows, card(name, d), names(n)) for rows, name in ((X, "old"), (Y, "new")))
    return old, new, np.array([f"class {k}" for k in labels], dtype=object), R


def task_of(old: Embeddings, new: Embeddings, labels: np.ndarray, **changes) -> Task:
    """Return a probe task with `old` as source and `new` as target, which contain the same items in the same order."""
    fields: dict[str, Any] = {
        "target": new.vectors,
        "source": old.vectors,
        "labels": labels,
        "split": split(pairs_of(new.vectors, old.vectors)),
    }
    return make_task(**fields | changes)


def rotating(R: np.ndarray, source: str = "old", target: str = "new", **fields) -> Stitcher:
    """Return the stitcher of an exact rotation."""
    weight = torch.from_numpy(R).float()
    return stitcher(AffineMap(weight, torch.zeros(len(R))), source, target, **fields)


def content_and_layout(path, **options) -> tuple[Any, Layout]:
    """Read the directions, probe or dictionary in a file, and its layout."""
    return files.read(path, **options)


def content(path, **options) -> Any:
    """Read the directions, probe or dictionary in a file."""
    return content_and_layout(path, **options)[0]
