"""The layout of an atlas: an order and a map of its spaces, their nearest spaces, the most similar pairs."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from repstitch.alignment.lineage import layers_by_encoder
from repstitch.alignment.result import Atlas

NEAREST = 10
BEST_PAIRS = 10  # pairs that are measured at several sizes unless the caller names some


def layout(scores: Mapping[str, np.ndarray], names: list[str], encoders: list[list[int]]) -> dict[str, Any]:
    """The `order`, `map` and `nearest` of an atlas, each by metric, from the scores (N, N) of each metric."""
    distances = {metric: score_distances(S) for metric, S in scores.items()}
    return {
        "order": {metric: [names[i] for i in cluster_order(D)] for metric, D in distances.items()},
        "map": {
            metric: dict(zip(names, classical_scaling(D).tolist(), strict=True)) for metric, D in distances.items()
        },
        "nearest": {metric: nearest_spaces(S, names, encoders) for metric, S in scores.items()},
    }


def best_pairs(atlas: Atlas, metric: str | None = None, count: int = BEST_PAIRS) -> list[tuple[str, str]]:
    """The pairs of names of different encoders that score highest in an atlas, best first."""
    names, encoders = atlas.names, list(layers_by_encoder(atlas.spaces).values())
    best = best_index_pairs(atlas.scores(metric or atlas.metrics[0]), encoders, count)
    return [(names[i], names[j]) for i, j in best]


def score_distances(S: np.ndarray) -> np.ndarray:
    """1 − score as distances (N, N), the mean of both directions."""
    distances = np.clip(1 - (S + S.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    return distances


def cluster_order(distances: np.ndarray) -> list[int]:
    """Average linkage, with its leaves in the optimal order."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    return leaves_list(linkage(squareform(distances), "average", optimal_ordering=True)).tolist()


def classical_scaling(distances: np.ndarray) -> np.ndarray:
    """Points (N, 2) whose distances are near these: the two leading axes of the doubly centred squares."""
    squares = distances**2
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    places = vectors[:, ::-1][:, :2] * np.sqrt(values[::-1][:2].clip(min=0))
    size = np.abs(places)
    largest = (size >= size.max(0) * (1 - 1e-9)).argmax(0)  # the first of those that are largest but for rounding
    return places * np.where(places[largest, [0, 1]] < 0, -1, 1)


def nearest_spaces(S: np.ndarray, names: list[str], encoders: list[list[int]]) -> dict[str, list[dict]]:
    """For each space the best others as source, without the layers of its own encoder."""
    same_encoder = {i: set(group) for group in encoders for i in group}
    return {
        name: [
            {"name": names[j], "score": float(S[i, j])}
            for j in np.argsort(-S[i], kind="stable")
            if j not in same_encoder[i]
        ][:NEAREST]
        for i, name in enumerate(names)
    }


def best_index_pairs(S: np.ndarray, encoders: list[list[int]], count: int = BEST_PAIRS) -> list[tuple[int, int]]:
    """The best pairs (i, j), i < j, of spaces of different encoders; of the same encoder where there is only one."""
    encoder_of = {i: at for at, group in enumerate(encoders) for i in group}
    pairs = list(combinations(range(len(S)), 2))
    pairs = [(i, j) for i, j in pairs if encoder_of[i] != encoder_of[j]] or pairs
    return sorted(pairs, key=lambda pair: -(S[pair] + S[pair[::-1]]))[:count]
