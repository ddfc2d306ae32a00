"""Many spaces beside one another: how alike every two are, their order, a map of them, and the best layer of each."""

import logging
import os
from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np

from repstitch.alignment.layers import best_layers
from repstitch.alignment.layout import (
    best_index_pairs,
    classical_scaling,
    cluster_order,
    nearest_spaces,
    score_distances,
)
from repstitch.alignment.lineage import layers_by_encoder
from repstitch.alignment.scores import (
    list_pairs,
    metric_names,
    pairs_to_score,
    prepare_spaces,
    score_all,
    score_matrices,
    unit_rows,
)
from repstitch.alignment.sizes import index_pairs, score_subsets, subset_sizes
from repstitch.arguments import check_draws, check_seed
from repstitch.devices import pick_device
from repstitch.embeddings.matching import MatchedSpaces, match
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError
from repstitch.metrics.alignment import METRICS
from repstitch.metrics.neighbours import count_repeats

log = logging.getLogger(__name__)
TIED = 0.1  # share of rows from which on ties are worth a word


def atlas(
    embeddings: Sequence[Embeddings] | MatchedSpaces,
    metrics: Sequence[str] | str = ("mutual_knn", "cka_unbiased"),
    k: int = 10,
    permutations: int = 200,
    seed: int = 0,
    *,
    drop_invalid: bool = False,
    sizes: Sequence[int] | str | None = None,
    size_pairs: Sequence[tuple[str, str]] | None = None,
    cache: str | os.PathLike | None = None,
    device: str = "auto",
) -> dict:
    """Score every two of N ≥ 2 spaces on the items that all of them hold, each score beside its permutation null.

    `embeddings` are N sets of rows, or what `matched.match` made of them; rows are brought to unit length. `metrics`
    are names of `METRICS`, or "all" of them that the spaces allow. All pairs see the same `permutations` orders of the
    rows. Returns plain JSON types:

    - `n`, `k`, `permutations`, `seed`, `spaces` (N cards), `left_out` (rows by space and reason),
      `repeats` (rows of each space that are copies, in direction and to float32, of another) and, where neighbours
      were looked for, `tied` (rows whose k-th neighbour is no nearer than the next);
    - `metrics`: by name, `symmetric` and the N × N matrices `score`, `null`, `p`, `q`, `calibrated`, `se`, rows the
      source, columns the target. The diagonal of `score` is 1, that of the others None. q is Benjamini and Hochberg's
      over all pairs. Without permutations there are only `score` and `se`;
    - `pairs`: the same numbers, one dict a pair (both ways where the metric is not symmetric) and metric;
    - `order`: the names so that alike ones are beside one another: average linkage on 1 − score, leaves in optimal
      order (Bar-Joseph et al. 2001, "Fast Optimal Leaf Ordering for Hierarchical Clustering");
    - `map`: [x, y] of each name by classical scaling of the distances 1 − score (Torgerson 1952, "Multidimensional
      Scaling"), the largest coordinate on each axis positive;
    - `nearest`: for each name the best ten of the others, as source, layers of its own encoder left out;
    - `layers`, where spaces share their card's `encoder` and differ in `layer`: for every two encoders the best pair of
      layers. The null is that of the maximum (the best pair of layers within each permutation), since the best of many
      is high by chance. Two layers of one encoder are never compared here;
    - `sizes`, if asked for ("auto" or numbers of rows): score, null and standard error of the ten best pairs, or of
      `size_pairs`, on nested random subsets of the rows, means over 5 draws; `se` is that of one draw.

    Where a metric is not symmetric, order and map use the mean of both directions. `cache` is a folder that keeps
    neighbour graphs, `device` (auto, cpu, cuda) is where they are computed.

    O(N n² d) for the graphs, O(N² K n k) for the null of mutual_knn. Raises InputError as `match` does, on an unknown
    metric or size, and where a metric refuses a space, which it names. Huh et al. 2024, "The Platonic Representation
    Hypothesis".
    """
    names = metric_names(metrics)
    check_draws(permutations)
    check_seed(seed)
    where = pick_device(device)
    held = embeddings if isinstance(embeddings, MatchedSpaces) else match(embeddings, drop_invalid)
    if not 1 <= k < len(held):
        raise InputError(f"`k` must be at least 1 and below the number of rows ({len(held)}); got {k}.")
    wanted_sizes = subset_sizes(sizes, len(held), k)
    index_pairs(size_pairs, held.names)
    rows = unit_rows(held)
    repeats = {name: count_repeats(X) for name, X in zip(held.names, rows, strict=True)}
    if any(repeats.values()):
        said = ", ".join(f"{count} of {name}" for name, count in repeats.items() if count)
        log.warning(
            "Of %d rows, some repeat another: %s. Where two spaces repeat the same ones, chance is higher than "
            "the null says.",
            len(held),
            said,
        )
    of_encoder = layers_by_encoder(held.spaces)
    groups = list(of_encoder.values())
    # Layers of one encoder lie together, so that of two encoders the null always permutes the same one.
    pairs = {metric: pairs_to_score(list(chain.from_iterable(groups)), METRICS[metric].symmetric) for metric in names}
    tied: dict[str, int] = {}
    prepare = partial(prepare_spaces, k=k, device=where, cache=cache, tied=tied)
    results, layers = {}, []
    for metric, measured in score_all(names, rows, held.names, pairs, prepare, permutations, seed, metrics == "all"):
        results[metric] = score_matrices(measured, pairs[metric], len(rows), METRICS[metric].symmetric)
        if len(groups) < len(rows):
            layers += best_layers(metric, measured, pairs[metric], held.spaces, of_encoder)
    if any(count > TIED * len(held) for count in tied.values()):
        said = ", ".join(f"{count} of {name}" for name, count in tied.items() if count > TIED * len(held))
        log.warning(
            "Of %d rows, some have others as near as their neighbour number %d, so that it is a matter of chance which "
            "one counts: %s.",
            len(held),
            k,
            said,
        )
    results = {metric: results[metric] for metric in names if metric in results}
    scores = {metric: np.array(result["score"], dtype=float) for metric, result in results.items()}
    apart = {metric: score_distances(S) for metric, S in scores.items()}
    label = held.names.__getitem__
    found = {
        "n": len(held),
        "k": k,
        "permutations": permutations,
        "seed": seed,
        "spaces": [space.to_dict() for space in held.spaces],
        "left_out": held.left_out,
        "repeats": repeats,
        **({"tied": tied} if tied else {}),
        "metrics": results,
        "pairs": list_pairs(held.names, results),
        "order": {metric: [label(i) for i in cluster_order(D)] for metric, D in apart.items()},
        "map": {
            metric: dict(zip(held.names, classical_scaling(D).tolist(), strict=True)) for metric, D in apart.items()
        },
        "nearest": {metric: nearest_spaces(S, held.names, groups) for metric, S in scores.items()},
    }
    if layers:
        found["layers"] = layers
    if wanted_sizes:
        followed = index_pairs(size_pairs, held.names) or best_index_pairs(next(iter(scores.values())), groups)
        prepare = partial(prepare_spaces, k=k, device=where, cache=None)
        found["sizes"] = {"k": k} | score_subsets(
            rows, held.names, results, followed, wanted_sizes, prepare, permutations, seed, sizes == "auto"
        )
    return found
