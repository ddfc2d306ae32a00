"""TODO workflows.proving."""

import numpy as np
import torch

from repstitch.embeddings.normalising import normalise
from repstitch.evaluation.scoring import MAX_POOL, score_pairs
from repstitch.evaluation.thresholds import Thresholds
from repstitch.fit.closed_form import fit_shuffled
from repstitch.fit.select import Candidate, Problem
from repstitch.metrics.retrieval import ranks, recall
from repstitch.stitchers.maps import Map


def score_held_out(
    map: Map,
    X: torch.Tensor,
    Y: torch.Tensor,
    train_targets: torch.Tensor,
    output_norm: str,
    thresholds: Thresholds,
    near: np.ndarray,
) -> dict:
    with torch.inference_mode():
        bare = map(X)
        translated = normalise(bare, output_norm, "the translation")
    floor = train_targets.mean(0).numpy()
    near_rows = near if near.any() else None
    return score_pairs(
        X.numpy(), Y.numpy(), translated.numpy(), bare.numpy(), floor, thresholds=thresholds, near=near_rows
    )


def shuffled_control(problem: Problem, chosen: Candidate, X: torch.Tensor, Y: torch.Tensor, seed: int) -> dict:
    """Recall of a closed form fitted to shuffled training pairs: what the method finds where there is nothing."""
    closed = chosen.settings.get("start", chosen.settings)
    method = closed.get("method", chosen.method)
    map = fit_shuffled(problem.X, problem.Y, method, closed, seed)
    found = ranks(map(X[:MAX_POOL]), Y[:MAX_POOL])
    return {"method": method, "recall@1": recall(found, 1), "recall@10": recall(found, 10)}
