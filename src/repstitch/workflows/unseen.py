"""Similarities of own pairs by maps that were fitted to neither of the two rows that are compared.

A map that is fitted to a pair moves the translations of similar rows towards the target of that pair. So the
translations of two folds, each by a map without its own fold only, are too similar to the targets of the other fold:
the counterpart is found less often than in use, and neighbours more often.
"""

from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.normalising import normalise
from repstitch.fit.closed_form import fit_closed
from repstitch.fit.selection import Candidate, Problem
from repstitch.metrics.neighbours import unit
from repstitch.precision import exact_products
from repstitch.workflows.preparing import PreparedPairs

LEAST_FOLDS = 4  # from which on enough pairs are left without two folds
FOLDS = 10  # 55 fits; with 5 folds, maps are fitted to too few pairs, and scores are up to .02 lower


def scored_rows(prepared: PreparedPairs) -> np.ndarray:
    """Return the positions among the pairs in folds of those that are scored."""
    return np.searchsorted(prepared.parts.select, prepared.held_out)


@exact_products()
@torch.no_grad()
def unseen_similarities(prepared: PreparedPairs, chosen: Candidate, problem: Problem) -> dict[str, Tensor] | None:
    """Return the similarities (n, n) of each query with each gallery row that is scored, by use, on the CPU.

    A query and a gallery row of two folds are compared with a map that is fitted without both. The similarity of a row
    with its counterpart is the mean over the maps that were fitted without it. None with fewer than 4 folds and no
    general pairs, since too few pairs would be left.
    """
    folds = torch.from_numpy(prepared.proof_folds).to(problem.X.device)
    folds = torch.where(folds < 0, folds, folds % FOLDS)
    without = replace(problem, folds=folds).decompose_without
    rows_in = torch.from_numpy(scored_rows(prepared))
    fold_of, X, Y = folds[folds >= 0][rows_in], problem.objective.X[rows_in], unit(problem.objective.Y[rows_in])
    n, names = len(X), fold_of.unique().tolist()
    if len(names) < LEAST_FOLDS and not problem.has_general:
        return None
    similar = {use: X.new_zeros(n, n) for use in ("corpus", "query")}
    own, n_maps = X.new_zeros(n), X.new_zeros(n)
    for pair in combinations_with_replacement(names, 2):
        map = fit_closed(without(pair, chosen.settings.get("own_share")), chosen.method, chosen.settings)
        rows = [(fold_of == fold).nonzero()[:, 0] for fold in pair]
        translated = [unit(normalise(map(X[part]), prepared.output_norm, "the translation")) for part in rows]
        for a, b in ((0, 1), (1, 0)):
            similar["corpus"][rows[a][:, None], rows[b]] = Y[rows[a]] @ translated[b].T
            similar["query"][rows[a][:, None], rows[b]] = translated[a] @ Y[rows[b]].T
        for part, moved in zip(rows, translated, strict=True):
            own[part] += (Y[part] * moved).sum(1)
            n_maps[part] += 1
    for matrix in similar.values():
        matrix.diagonal().copy_(own / n_maps)
    return {use: matrix.cpu() for use, matrix in similar.items()}
