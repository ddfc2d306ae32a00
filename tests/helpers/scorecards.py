"""Scorecards of synthetic translations."""

from typing import Any

import numpy as np
import torch

from repstitch.evaluation.pool import TranslatedPairs
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.scoring import score_pairs


def scorecard_of(
    X: np.ndarray,
    Y: np.ndarray,
    translated: np.ndarray,
    raw: np.ndarray | None = None,
    training_mean: np.ndarray | None = None,
    **settings: Any,
) -> Scorecard:
    """Return the scorecard of a translation of X whose counterparts are Y. `raw` defaults to the translation."""
    sides = (X, Y, translated if raw is None else raw, translated)
    rows = [torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in sides]
    pairs = TranslatedPairs(rows[0], rows[1], rows[2], rows[3])
    mean = Y.mean(0) if training_mean is None else training_mean
    return score_pairs(pairs, torch.from_numpy(np.asarray(mean, dtype=np.float32)), **{"permutations": 5, **settings})
