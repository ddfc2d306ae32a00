"""TODO alignment.layout."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from repstitch.alignment.lineage import layers_by_encoder
from repstitch.spaces import Space

NEAREST = 10
BEST_PAIRS = 10  # that are followed over sizes unless the caller names some


def best_pairs(found: Mapping, metric: str | None = None, count: int = BEST_PAIRS) -> list[tuple[str, str]]:
    """The pairs of names of different encoders that score highest in an atlas, best first."""
    spaces = [Space.from_dict(card) for card in found["spaces"]]
    scores = np.array(found["metrics"][metric or next(iter(found["metrics"]))]["score"], dtype=float)
    best = best_index_pairs(scores, list(layers_by_encoder(spaces).values()), count)
    return [(spaces[i].name, spaces[j].name) for i, j in best]


def score_distances(S: np.ndarray) -> np.ndarray:
    distances = np.clip(1 - (S + S.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    return distances


def cluster_order(distances: np.ndarray) -> list[int]:
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
    own = {i: set(part) for part in encoders for i in part}
    return {
        name: [
            {"name": names[j], "score": float(S[i, j])} for j in np.argsort(-S[i], kind="stable") if j not in own[i]
        ][:NEAREST]
        for i, name in enumerate(names)
    }


def best_index_pairs(S: np.ndarray, encoders: list[list[int]], count: int = BEST_PAIRS) -> list[tuple[int, int]]:
    """The best pairs (i, j), i < j, of spaces of different encoders; of the same where there is but one encoder."""
    own = {i: at for at, part in enumerate(encoders) for i in part}
    pairs = list(combinations(range(len(S)), 2))
    pairs = [(i, j) for i, j in pairs if own[i] != own[j]] or pairs
    return sorted(pairs, key=lambda pair: -(S[pair] + S[pair[::-1]]))[:count]
