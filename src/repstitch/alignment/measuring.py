"""The atlas of many spaces: the scores of all pairs, an order, a map, and the best layers."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from repstitch.alignment.inputs import Spaces, read_matched, unit_rows
from repstitch.alignment.layers import best_layers
from repstitch.alignment.layout import best_index_pairs, layout
from repstitch.alignment.lineage import layers_by_encoder
from repstitch.alignment.result import Atlas
from repstitch.alignment.scores import (
    ScoringSettings,
    list_pairs,
    metric_names,
    pairs_to_score,
    score_all,
    score_matrices,
)
from repstitch.alignment.sizes import index_pairs, score_subsets, subset_sizes
from repstitch.arguments import check_draws, check_neighbours, check_seed, check_whole, names_keywords
from repstitch.devices import pick_device
from repstitch.embeddings.matching import MatchedSpaces
from repstitch.metrics.alignment import METRICS
from repstitch.metrics.neighbours import count_repeats

log = logging.getLogger(__name__)

TIED = 0.1  # warn of each space in which more than this share of the rows has a tie


@names_keywords
def atlas(  # noqa: PLR0913 - the whole job in one call
    embeddings: Spaces,
    metrics: Sequence[str] | str = ("mutual_knn", "cka_unbiased"),
    k: int = 10,
    permutations: int = 200,
    seed: int = 0,
    *,
    drop_invalid: bool = False,
    sizes: Sequence[int] | str | None = None,
    size_pairs: Sequence[tuple[str, str]] | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Atlas:
    """Score how similar all pairs of N ≥ 2 spaces are, on the items that all spaces contain, and compare with chance.

    Next to the matrices of scores, an `Atlas` contains:

    - `q`: Benjamini and Hochberg's q-values over all pairs;
    - `order`: average linkage on 1 − score, leaves in optimal order (Bar-Joseph et al. 2001, "Fast Optimal Leaf
      Ordering for Hierarchical Clustering");
    - `map`: classical scaling of the distances 1 − score (Torgerson 1952, "Multidimensional Scaling"), the largest
      coordinate on each axis positive;
    - `nearest`: for each space as source, the ten most similar other spaces, without layers of its own encoder;
    - `layers`, where spaces have the same `encoder` on their cards and differ in `layer`: the best pair of layers for
      each pair of encoders. Its null is the null of the maximum (the best pair of layers within each permutation),
      because the best of many scores is high by chance. Layers of one encoder are not compared with each other here;
    - `sizes`, if `sizes` are passed: scores on nested random subsets of the rows, as means over 5 draws. The standard
      error `se` is that of a single draw.

    Where a metric is not symmetric, order and map use the mean of both directions. The neighbour graphs take O(N n² d)
    time and the null of mutual_knn takes O(N² K n k) for K permutations. See Huh et al. 2024, "The Platonic
    Representation Hypothesis".

    Args:
        embeddings: The spaces, as a list, as a mapping from names to spaces, or as returned by `match`. Each space is a
            path of embeddings, `Embeddings` or an array (n, d); arrays in a list are called space0, space1, …. Rows are
            matched by id if all spaces have ids, otherwise by position, and are scaled to unit length.
        metrics: Names from `repstitch.metrics.METRICS`, or "all" for every metric that these spaces allow.
        k: Number of neighbours of each row, for the metrics that use neighbours.
        permutations: Number of draws of the null. A draw is an order of the rows, the same for all pairs. With 0, there
            are no null, p, q and calibrated score.
        seed: Seed of the null and of the subsets of rows.
        drop_invalid: Leave out rows with NaN, Inf or only zeros instead of raising InputError. Also leave out items
            whose rows repeat those of an earlier item in every space.
        sizes: Numbers of rows to score at, or "auto" for powers of two and the number of rows.
        size_pairs: Pairs of names to score at these sizes. By default, the ten most similar pairs.
        cache: A folder in which neighbour graphs are stored and reused by later calls.
        device: Where neighbour graphs are computed: auto, cpu or cuda.

    Returns:
        The atlas. `print` shows it as text, and `to_dict` returns it as plain JSON types.

    Raises:
        InputError: For the same reasons as `match`; on an unknown metric, size or pair; and if a metric cannot be
            computed for a space. The message names the space.
    """
    checked_metrics = metric_names(metrics)
    k, permutations, seed = check_whole(k, "`k`"), check_draws(permutations), check_seed(seed)
    settings = ScoringSettings(k, permutations, seed, pick_device(device), cache, skip_refused=metrics == "all")
    matched = read_matched(embeddings, drop_invalid)
    check_neighbours(k, len(matched))
    subsets, followed = subset_sizes(sizes, len(matched), k), index_pairs(size_pairs, matched.names)
    rows = unit_rows(matched)
    repeats = _count_repeats(matched.names, rows)
    scores = _score(checked_metrics, matched, rows, settings)
    encoders = list(layers_by_encoder(matched.spaces).values())
    values = {
        "n": len(matched),
        "k": k,
        "permutations": permutations,
        "seed": seed,
        "spaces": [space.to_dict() for space in matched.spaces],
        "left_out": matched.left_out,
        "repeats": repeats,
        **({"tied": scores.tied} if scores.tied else {}),
        "metrics": scores.results,
        "pairs": list_pairs(matched.names, scores.results),
        **layout(scores.matrices, matched.names, encoders),
    }
    if scores.layers:
        values["layers"] = scores.layers
    if subsets:
        followed = followed or best_index_pairs(next(iter(scores.matrices.values())), encoders)
        by_automatic_size = replace(settings, skip_refused=sizes == "auto")
        values["sizes"] = score_subsets(rows, matched.names, scores.results, followed, subsets, by_automatic_size)
    return Atlas(values)


@dataclass(frozen=True)
class Scores:
    """The scores of an atlas: `results` by metric as JSON objects, the best `layers`, and `tied` rows by space."""

    results: dict[str, dict[str, Any]]
    layers: list[dict[str, Any]]
    tied: dict[str, int]

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        """The scores (N, N) of each metric."""
        return {metric: np.array(result["score"], dtype=float) for metric, result in self.results.items()}


def _score(metrics: list[str], matched: MatchedSpaces, rows: list[Tensor], settings: ScoringSettings) -> Scores:
    """Score all pairs of spaces by each metric. Where spaces are layers of encoders, also find the best layers."""
    encoders = layers_by_encoder(matched.spaces)
    # Layers of one encoder follow each other, so that the null of a pair of encoders always permutes the same encoder.
    order = list(chain.from_iterable(encoders.values()))
    pairs = {metric: pairs_to_score(order, METRICS[metric].symmetric) for metric in metrics}
    results, layers, tied = {}, [], {}
    for metric, measured in score_all(metrics, rows, matched.names, pairs, settings, tied):
        results[metric] = score_matrices(measured, pairs[metric], len(rows), METRICS[metric].symmetric)
        if len(encoders) < len(rows):
            layers += best_layers(metric, measured, pairs[metric], matched.spaces, encoders)
    _warn_of_ties(tied, len(matched), settings.k)
    return Scores({metric: results[metric] for metric in metrics if metric in results}, layers, tied)


def _count_repeats(names: list[str], rows: list[Tensor]) -> dict[str, int]:
    """Count the rows of each space that are copies of another row, and warn if there are any."""
    repeats = {name: count_repeats(X) for name, X in zip(names, rows, strict=True)}
    if any(repeats.values()):
        log.warning(
            "Some of the %d rows are copies of another row: %s. Where two spaces repeat the same rows, the chance "
            "level is higher than the null.",
            len(rows[0]),
            _listed({name: count for name, count in repeats.items() if count}),
        )
    return repeats


def _warn_of_ties(tied: Mapping[str, int], n: int, k: int) -> None:
    many = {name: count for name, count in tied.items() if count > TIED * n}
    if many:
        log.warning(
            "For some of the %d rows, several rows are equally near as neighbour number %d, so that the choice of this "
            "neighbour is arbitrary: %s.",
            n,
            k,
            _listed(many),
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in counts.items())
