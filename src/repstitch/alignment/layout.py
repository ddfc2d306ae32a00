"""The layout of an atlas: order and map of its spaces, the nearest spaces of each, and the most similar pairs."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from repstitch.alignment.lineage import layers_by_encoder
from repstitch.alignment.result import Atlas

NEAREST = 10
BEST_PAIRS = 10  # the number of pairs that are scored at several sizes unless the caller names pairs


def layout(scores: Mapping[str, np.ndarray], names: list[str], encoders: list[list[int]]) -> dict[str, Any]:
    """Compute `order`, `map` and `nearest` of an atlas, each by metric, from the scores (N, N) of each metric."""
    distances = {metric: score_distances(S) for metric, S in scores.items()}
    return {
        "order": {metric: [names[i] for i in cluster_order(D)] for metric, D in distances.items()},
        "map": {
            metric: dict(zip(names, classical_scaling(D).tolist(), strict=True)) for metric, D in distances.items()
        },
        "nearest": {metric: nearest_spaces(S, names, encoders) for metric, S in scores.items()},
    }


def best_pairs(atlas: Atlas, metric: str | None = None, count: int = BEST_PAIRS) -> list[tuple[str, str]]:
    """Return the most similar pairs of spaces of different encoders as pairs of names, best first."""
    names, encoders = atlas.names, list(layers_by_encoder(atlas.spaces).values())
    best = best_index_pairs(atlas.scores(metric or atlas.metrics[0]), encoders, count)
    return [(names[i], names[j]) for i, j in best]


def score_distances(S: np.ndarray) -> np.ndarray:
    """Return the distances 1 − score (N, N), with the mean score of both directions."""
    distances = np.clip(1 - (S + S.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    return distances


def cluster_order(distances: np.ndarray) -> list[int]:
    """Cluster by average linkage and return the leaves in their optimal order."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    return leaves_list(linkage(squareform(distances), "average", optimal_ordering=True)).tolist()


def classical_scaling(distances: np.ndarray) -> np.ndarray:
    """Return points (N, 2) whose distances approximate `distances`: the two leading axes of classical scaling."""
    squares = distances**2
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    places = vectors[:, ::-1][:, :2] * np.sqrt(values[::-1][:2].clip(min=0))
    size = np.abs(places)
    # The first of the coordinates that are largest up to rounding.
    largest = (size >= size.max(0) * (1 - 1e-9)).argmax(0)
    return places * np.where(places[largest, [0, 1]] < 0, -1, 1)


def nearest_spaces(S: np.ndarray, names: list[str], encoders: list[list[int]]) -> dict[str, list[dict]]:
    """Return, for each space as source, the most similar other spaces, without the layers of its own encoder."""
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
    """Return the best pairs (i, j), i < j, of spaces of different encoders; if there is one encoder, of its layers."""
    encoder_of = {i: at for at, group in enumerate(encoders) for i in group}
    pairs = list(combinations(range(len(S)), 2))
    pairs = [(i, j) for i, j in pairs if encoder_of[i] != encoder_of[j]] or pairs
    return sorted(pairs, key=lambda pair: -(S[pair] + S[pair[::-1]]))[:count]
