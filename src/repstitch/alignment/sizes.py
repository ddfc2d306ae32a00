"""How scores depend on the number of rows: the scores of pairs on random subsets of the rows."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from repstitch.alignment.scores import ScoringSettings, score_all
from repstitch.embeddings.pairs import MIN_PAIRS
from repstitch.errors import InputError
from repstitch.metrics.alignment import Measured

log = logging.getLogger(__name__)

SIZE_DRAWS = 5
SIZE_PERMUTATIONS = 20  # per draw of rows; few are enough, because only the mean of the null over all draws is reported


def subset_sizes(sizes: Sequence[int] | str | None, n: int, k: int) -> list[int]:
    """Check the numbers of rows to score at and return them in increasing order; "auto" gives powers of two and n."""
    if sizes is None:
        return []
    if sizes == "auto":
        powers = [2**power for power in range(5, n.bit_length()) if 2**power > 2 * k]
        return sorted({*powers, n})
    wanted: list = [sizes] if isinstance(sizes, str) else sorted(set(sizes))
    least = max(MIN_PAIRS, k + 1)
    wrong = [size for size in wanted if not isinstance(size, int) or not least <= size <= n]
    if wrong or not wanted:
        raise InputError(
            f"`sizes` must be auto or numbers of rows from {least} to {n}; got {wrong[0] if wrong else 'none'!r}."
        )
    return wanted


def index_pairs(pairs: Sequence[tuple[str, str]] | None, names: list[str]) -> list[tuple[int, int]]:
    """Return pairs of names as pairs of positions; InputError on an unknown name or equal names."""
    unknown = [name for pair in pairs or () for name in pair if name not in names]
    if unknown:
        raise InputError(f"`size_pairs` must be pairs of names from {', '.join(names)}; got {unknown[0]!r}.")
    if any(source == target for source, target in pairs or ()):
        raise InputError("`size_pairs` must be pairs of two different spaces; got a space with itself.")
    return [(names.index(source), names.index(target)) for source, target in pairs or ()]


def score_subsets(
    rows: list[Tensor],
    names: list[str],
    results: Mapping[str, Mapping[str, Any]],
    pairs: list[tuple[int, int]],
    sizes: list[int],
    settings: ScoringSettings,
) -> dict[str, Any]:
    """Score each pair on random subsets of the rows; within a draw, smaller subsets are part of the larger ones.

    `results` are the matrices for all rows by metric. With `skip_refused`, a size at which a metric cannot be computed
    is left out with a warning.
    """
    n = len(rows[0])
    curves: list[dict[str, Any]] = [
        {"source": names[i], "target": names[j], "metric": metric}
        | {measure: [] for measure in AVERAGED if measure in result}
        for metric, result in results.items()
        for i, j in pairs
    ]
    kept = []
    for size in tqdm(sizes, desc="sizes", unit="size", delay=1, leave=False):
        try:
            draws = {} if size == n else _score_draws(rows, names, list(results), pairs, size, settings)
        except InputError as error:
            if not settings.skip_refused:
                raise InputError(f"`sizes`: {size} rows are too few. {error}") from None
            log.warning("The size of %d rows is left out: %s", size, error)
            continue
        kept.append(size)
        for at, curve in enumerate(curves):
            metric, pair = curve["metric"], at % len(pairs)
            i, j = pairs[pair]
            for measure in AVERAGED.keys() & curve.keys():
                if size == n:
                    curve[measure].append(results[metric][measure][i][j])
                else:
                    values = np.array([getattr(draw, measure)[pair] for draw in draws[metric]])
                    curve[measure].append(float(AVERAGED[measure](values)))
    return {
        "k": settings.k,
        "sizes": kept,
        "draws": [1 if size == n else SIZE_DRAWS for size in kept],
        "curves": curves,
    }


def _score_draws(
    rows: list[Tensor],
    names: list[str],
    metrics: list[str],
    pairs: list[tuple[int, int]],
    size: int,
    settings: ScoringSettings,
) -> dict[str, list[Measured]]:
    """Score the pairs by each metric, once for each random draw of `size` rows."""
    in_pairs = sorted({i for pair in pairs for i in pair})
    local_pairs = [(in_pairs.index(i), in_pairs.index(j)) for i, j in pairs]
    random = torch.Generator().manual_seed(settings.seed)
    orders = [torch.randperm(len(rows[0]), generator=random) for _ in range(SIZE_DRAWS)]
    permutations = min(settings.permutations, SIZE_PERMUTATIONS)
    draws: dict[str, list[Measured]] = {metric: [] for metric in metrics}
    for at, order in enumerate(orders):
        subset, subset_names = [rows[i][order[:size]] for i in in_pairs], [names[i] for i in in_pairs]
        of_draw = replace(settings, permutations=permutations, seed=settings.seed + at, cache=None, skip_refused=False)
        for metric, measured in score_all(metrics, subset, subset_names, dict.fromkeys(metrics, local_pairs), of_draw):
            draws[metric].append(measured)
    return draws


def _root_mean_square(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(values**2))


# How each measure is combined over draws of rows. The root mean square of `se` is the standard error of one draw.
AVERAGED: dict[str, Callable[[np.ndarray], Any]] = {"score": np.mean, "null": np.mean, "se": _root_mean_square}
