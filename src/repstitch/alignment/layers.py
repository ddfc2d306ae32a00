"""The best pair of layers for each pair of encoders, and score matrices per encoder instead of per layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repstitch.alignment.lineage import encoder_spaces, same_encoder
from repstitch.alignment.report import MEASURES
from repstitch.alignment.result import Atlas
from repstitch.metrics.alignment import Measured
from repstitch.metrics.null import adjust, calibrate
from repstitch.spaces import Space


def by_encoder(atlas: Atlas, metric: str) -> dict[str, np.ndarray]:
    """Return the matrix (N, N) of each measure, by name, for the N `encoder_spaces`; NaN where there is no number.

    If spaces are layers, the score of two encoders is the score of their best pair of layers.
    """
    if not atlas.layers:
        return {measure: atlas.matrix(metric, measure) for measure in atlas.measures(metric)}
    position = {space.name: i for i, space in enumerate(encoder_spaces(atlas.spaces))}
    pairs = [pair for pair in atlas.layers if pair.metric == metric]
    measures = [measure for measure in MEASURES if any(measure in pair for pair in pairs)]
    matrices = {measure: np.full((len(position), len(position)), np.nan) for measure in measures}
    np.fill_diagonal(matrices["score"], 1.0)
    for pair in pairs:
        i, j = position[pair.source], position[pair.target]
        for measure, matrix in matrices.items():
            matrix[i, j] = getattr(pair, measure)
            if atlas.symmetric(metric):
                matrix[j, i] = matrix[i, j]
    return matrices


def best_layers(
    metric: str,
    measured: Measured,
    pairs: list[tuple[int, int]],
    spaces: Sequence[Space],
    encoders: Mapping[str, list[int]],
) -> list[dict[str, Any]]:
    """Find the best pair of layers for each pair of encoders, with the null of the maximum over pairs of layers.

    `pairs` are the pairs of spaces in `measured`, and `encoders` has the positions of each encoder's layers.
    """
    encoder_of = {i: name for name, positions in encoders.items() for i in positions}
    groups: dict[tuple[str, str], list[int]] = {}
    for at, (i, j) in enumerate(pairs):
        if encoder_of[i] != encoder_of[j] and not same_encoder(spaces[i], spaces[j]):
            groups.setdefault((encoder_of[i], encoder_of[j]), []).append(at)
    best_pairs = []
    for (source, target), positions in groups.items():
        best = positions[int(measured.score[positions].argmax())]
        i, j = pairs[best]
        pair: dict[str, Any] = {"source": source, "target": target, "metric": metric}
        pair |= {"source_layer": spaces[i].layer, "target_layer": spaces[j].layer}
        pair |= {"source_space": spaces[i].name, "target_space": spaces[j].name, "score": float(measured.score[best])}
        if measured.draws is not None:
            null = calibrate(pair["score"], measured.draws[positions].max(0))
            pair |= {"null": null.null, "p": null.p, "calibrated": null.calibrated}
        best_pairs.append(pair)
    if measured.draws is not None:
        for pair, q in zip(best_pairs, adjust(np.array([pair["p"] for pair in best_pairs])), strict=True):
            pair["q"] = float(q)
    return best_pairs
