"""The atlas of many spaces: how similar every two are, their order, a map of them, and the best layers."""

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

TIED = 0.1  # a warning names the spaces of which more than this share of rows is tied


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
    """Score how similar every two of N ≥ 2 spaces are, on the items that all of them have, compared with chance.

    Besides the matrices of scores, an `Atlas` holds:

    - `q`: Benjamini and Hochberg's q-values over all pairs;
    - `order`: average linkage on 1 − score, leaves in optimal order (Bar-Joseph et al. 2001, "Fast Optimal Leaf
      Ordering for Hierarchical Clustering");
    - `map`: classical scaling of the distances 1 − score (Torgerson 1952, "Multidimensional Scaling"), the largest
      coordinate on each axis positive;
    - `nearest`: for each space as source the ten best others, without the layers of its own encoder;
    - `layers`, where spaces share their card's `encoder` and differ in `layer`: for every two encoders the best pair of
      layers. The null is that of the maximum (the best pair of layers within each permutation), since the best of many
      is high by chance. Two layers of one encoder are never compared here;
    - `sizes`, if asked for: scores on nested random subsets of the rows, means over 5 draws; `se` is that of one draw.

    Where a metric is not symmetric, order and map use the mean of both directions. O(N n² d) for the graphs,
    O(N² K n k) for the null of mutual_knn. Huh et al. 2024, "The Platonic Representation Hypothesis".

    Args:
        embeddings: The spaces, as a list or by name: paths of embeddings, `Embeddings`, or arrays (n, d), which in a
            list are called space0, space1, …; or what `match` returned. Rows match by id where all spaces have ids, by
            position otherwise. They are brought to unit length.
        metrics: Names of `repstitch.metrics.METRICS`, or "all": every metric that the spaces allow.
        k: Neighbours of each row, for the metrics of neighbours.
        permutations: Draws of the null: orders of the rows, the same for all pairs. With 0 there is no null, p, q and
            calibrated score.
        seed: Seed of the null and of the subsets of rows.
        drop_invalid: Leave out rows with NaN, Inf or only zeros and repeats, instead of refusing them.
        sizes: Numbers of rows to score at, or "auto" for powers of two.
        size_pairs: Pairs of names to score at these sizes; the ten best by default.
        cache: A folder that keeps neighbour graphs for the next run.
        device: Where neighbour graphs are made: auto, cpu or cuda.

    Returns:
        The atlas. `print` shows it as text, `to_dict` gives it as plain JSON types.

    Raises:
        InputError: As `match` does, on an unknown metric, size or pair, and where a metric refuses a space, which the
            message names.
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
    """All scores of an atlas: the `results` of each metric as JSON objects, the best `layers`, and the `tied` rows."""

    results: dict[str, dict[str, Any]]
    layers: list[dict[str, Any]]
    tied: dict[str, int]

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        """The scores (N, N) of each metric."""
        return {metric: np.array(result["score"], dtype=float) for metric, result in self.results.items()}


def _score(metrics: list[str], matched: MatchedSpaces, rows: list[Tensor], settings: ScoringSettings) -> Scores:
    """Score every two spaces by each metric; where spaces are layers of encoders, also find the best layers."""
    encoders = layers_by_encoder(matched.spaces)
    # Layers of one encoder are scored one after another, so that of two encoders the null always permutes the same one.
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
    """How many rows of each space are copies of another row; a warning where there are any."""
    repeats = {name: count_repeats(X) for name, X in zip(names, rows, strict=True)}
    if any(repeats.values()):
        log.warning(
            "Of %d rows, some repeat another: %s. Where two spaces repeat the same ones, chance is higher than "
            "the null says.",
            len(rows[0]),
            _listed({name: count for name, count in repeats.items() if count}),
        )
    return repeats


def _warn_of_ties(tied: Mapping[str, int], n: int, k: int) -> None:
    many = {name: count for name, count in tied.items() if count > TIED * n}
    if many:
        log.warning(
            "Of %d rows, some have others as near as their neighbour number %d, so that it is a matter of chance which "
            "one counts: %s.",
            n,
            k,
            _listed(many),
        )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {name}" for name, count in counts.items())
