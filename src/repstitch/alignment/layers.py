"""TODO alignment.layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repstitch.alignment.lineage import encoders, same_encoder
from repstitch.alignment.scores import MEASURES
from repstitch.metrics.alignment import Measured
from repstitch.metrics.null import adjust, calibrate
from repstitch.spaces import Space


def by_encoder(found: Mapping, metric: str) -> dict[str, np.ndarray]:
    """The matrices of an atlas by measure, (N, N) for the N `encoders` of its spaces, NaN where there is no number.

    Where spaces are layers, the score of two encoders is that of their best layers.
    """
    result = found["metrics"][metric]
    if "layers" not in found:
        return {m: np.array(result[m], dtype=float) for m in MEASURES if m in result}
    names = [space.name for space in encoders([Space.from_dict(card) for card in found["spaces"]])]
    place = {name: i for i, name in enumerate(names)}
    lines = [line for line in found["layers"] if line["metric"] == metric]
    matrices = {m: np.full((len(place), len(place)), np.nan) for m in MEASURES if any(m in line for line in lines)}
    np.fill_diagonal(matrices["score"], 1.0)
    for line in lines:
        i, j = place[line["source"]], place[line["target"]]
        for m, matrix in matrices.items():
            matrix[i, j] = line[m]
            if result["symmetric"]:
                matrix[j, i] = line[m]
    return matrices


def best_layers(
    metric: str,
    measured: Measured,
    pairs: list[tuple[int, int]],
    spaces: Sequence[Space],
    encoders: dict[str, list[int]],
) -> list[dict]:
    """For every two encoders their best pair of layers, beside the null of the best."""
    owner = {i: name for name, own in encoders.items() for i in own}
    groups: dict[tuple[str, str], list[int]] = {}
    for at, (i, j) in enumerate(pairs):
        if owner[i] != owner[j] and not same_encoder(spaces[i], spaces[j]):
            groups.setdefault((owner[i], owner[j]), []).append(at)
    found = []
    for (source, target), at in groups.items():
        best = at[int(measured.score[at].argmax())]
        i, j = pairs[best]
        line: dict[str, Any] = {"source": source, "target": target, "metric": metric}
        line |= {"source_layer": spaces[i].layer, "target_layer": spaces[j].layer}
        line |= {"source_space": spaces[i].name, "target_space": spaces[j].name, "score": float(measured.score[best])}
        if measured.draws is not None:
            placed = calibrate(line["score"], measured.draws[at].max(0))
            line |= {"null": placed.null, "p": placed.p, "calibrated": placed.calibrated}
        found.append(line)
    if measured.draws is not None:
        for line, q in zip(found, adjust(np.array([line["p"] for line in found])), strict=True):
            line["q"] = float(q)
    return found
