"""TODO alignment.sizes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from repstitch.alignment.scores import score_all
from repstitch.embeddings.pairs import MIN_PAIRS
from repstitch.errors import InputError
from repstitch.metrics.alignment import Measured

log = logging.getLogger(__name__)

SIZE_DRAWS = 5
SIZE_PERMUTATIONS = 20  # a draw of rows: only the null's mean is asked for, and the draws add up


def subset_sizes(sizes: Sequence[int] | str | None, n: int, k: int) -> list[int]:
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
    unknown = [name for pair in pairs or () for name in pair if name not in names]
    if unknown:
        raise InputError(f"`size_pairs` must be pairs of {', '.join(names)}; got {unknown[0]!r}.")
    if any(a == b for a, b in pairs or ()):
        raise InputError("`size_pairs` must be pairs of two spaces; got one with itself.")
    return [(names.index(a), names.index(b)) for a, b in pairs or ()]


def score_subsets(
    rows: list[Tensor],
    names: list[str],
    results: Mapping[str, dict],
    pairs: list[tuple[int, int]],
    sizes: list[int],
    prepare: Callable[..., list],
    draws: int,
    seed: int,
    skip: bool,
) -> dict:
    """Each pair's numbers on random subsets of the rows; a draw's smaller subsets are part of its larger ones."""
    n = len(rows[0])
    involved = sorted({i for pair in pairs for i in pair})
    local = [(involved.index(i), involved.index(j)) for i, j in pairs]
    random = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=random) for _ in range(SIZE_DRAWS)]

    def drawn(size: int) -> dict[str, list[Measured]]:
        found: dict[str, list[Measured]] = {metric: [] for metric in results}
        for at, order in enumerate(orders):
            part, called = [rows[i][order[:size]] for i in involved], [names[i] for i in involved]
            each = dict.fromkeys(results, local)
            for metric, measured in score_all(
                list(results), part, called, each, prepare, min(draws, SIZE_PERMUTATIONS), seed + at
            ):
                found[metric].append(measured)
        return found

    curves: list[dict[str, Any]] = [
        {"source": names[i], "target": names[j], "metric": metric} | {what: [] for what in AVERAGED if what in result}
        for metric, result in results.items()
        for i, j in pairs
    ]
    kept = []
    for size in tqdm(sizes, desc="sizes", unit="size", delay=1, leave=False):
        try:
            found = None if size == n else drawn(size)
        except InputError as error:
            if not skip:
                raise InputError(f"`sizes`: {size} rows are too few. {error}") from None
            log.warning("The size of %d rows is left out: %s", size, error)
            continue
        kept.append(size)
        for at, curve in enumerate(curves):
            metric, pair = curve["metric"], at % len(pairs)
            i, j = pairs[pair]
            for what in AVERAGED.keys() & curve.keys():
                if found is None:
                    curve[what].append(results[metric][what][i][j])
                else:
                    values = np.array([getattr(one, what)[pair] for one in found[metric]])
                    curve[what].append(float(AVERAGED[what](values)))
    return {"sizes": kept, "draws": [1 if size == n else SIZE_DRAWS for size in kept], "curves": curves}


# Over draws of rows: the mean, and the standard error that one draw has.
AVERAGED: dict[str, Callable[[np.ndarray], Any]] = {
    "score": np.mean,
    "null": np.mean,
    "se": lambda values: np.sqrt(np.mean(values**2)),
}
