"""Score pairs of spaces by each metric, in batches, and return the results as matrices."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, combinations, groupby
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from repstitch.alignment.report import MEASURES
from repstitch.errors import InputError
from repstitch.metrics.alignment import METRICS, Measured, check_metrics, measure
from repstitch.metrics.cache import kept_graph
from repstitch.metrics.neighbours import Graph, graph
from repstitch.metrics.null import adjust

log = logging.getLogger(__name__)

SECONDS = 5  # the intended time between two updates of the progress bar


@dataclass(frozen=True)
class ScoringSettings:
    """How spaces are scored: `k` neighbours, `permutations` of the null, their `seed`, and the `device` of the graphs.

    `cache` is a folder in which neighbour graphs are stored. With `skip_refused`, a metric that cannot be computed for
    these spaces is left out with a warning; if no metric remains, InputError is raised.
    """

    k: int
    permutations: int
    seed: int
    device: str
    cache: str | os.PathLike[str] | None = None
    skip_refused: bool = False


def metric_names(metrics: Sequence[str] | str) -> list[str]:
    """Return the names of the metrics without repeats; InputError on an unknown name or an empty list."""
    several = isinstance(metrics, Iterable) and not isinstance(metrics, str)
    names: list = list(METRICS) if metrics == "all" else list(metrics) if several else [metrics]
    if not names:
        raise InputError(f"`metrics` must name at least one of {', '.join(METRICS)}; got none.")
    check_metrics(names, "metrics")
    return list(dict.fromkeys(names))


def pairs_to_score(order: list[int], symmetric: bool) -> list[tuple[int, int]]:
    """Return all pairs of spaces: both directions, or one if the metric is symmetric.

    Pairs are grouped by their second space, the one whose rows the null permutes.
    """
    firsts = (order[:at] if symmetric else order[:at] + order[at + 1 :] for at in range(len(order)))
    return [(i, j) for j, others in zip(order, firsts, strict=True) for i in others]


def score_all(
    metrics: Sequence[str],
    rows: Sequence[Tensor],
    names: Sequence[str],
    pairs: Mapping[str, list[tuple[int, int]]],
    settings: ScoringSettings,
    tied: dict[str, int] | None = None,
) -> Iterator[tuple[str, Measured]]:
    """Yield each metric with the scores of its pairs, one metric at a time, so that only its draws are in memory.

    Metrics that need the same form of a space, such as a neighbour graph, share the prepared spaces. When neighbour
    graphs are computed, the number of tied rows of each space is added to `tied`.
    """
    forms: dict[Callable, list[str]] = {}
    for metric in metrics:
        forms.setdefault(METRICS[metric].prepare, []).append(metric)
    refused = 0
    for form, group in forms.items():
        prepared: list = []
        for metric in group:
            try:
                prepared = prepared or prepare_spaces(form, rows, names, settings, tied)
                measured = score_in_batches(metric, prepared, names, pairs[metric], settings)
            except InputError as error:
                refused += 1
                if not settings.skip_refused or refused == len(metrics):
                    raise
                log.warning("%s is left out: %s", metric, error)
                continue
            yield metric, measured


def prepare_spaces(
    form: Callable,
    rows: Sequence[Tensor],
    names: Sequence[str],
    settings: ScoringSettings,
    tied: dict[str, int] | None = None,
) -> list:
    """Convert each space to the form that metrics compare, such as a neighbour graph."""
    prepared = []
    for X, name in zip(tqdm(rows, desc="prepare", unit="space", delay=1, leave=False), names, strict=True):
        X = X.to(settings.device)
        if settings.cache is not None and form is graph:
            space = kept_graph(X, settings.k, name, settings.cache)
        else:
            space = form(X, settings.k, name)
        if isinstance(space, Graph):  # computed on the device, where matrix products are fast, and compared on the CPU
            space = space.to("cpu")
            if tied is not None:
                tied[name] = space.tied
        prepared.append(space)
    return prepared


def score_in_batches(
    metric: str, prepared: list, names: Sequence[str], pairs: list[tuple[int, int]], settings: ScoringSettings
) -> Measured:
    """Score all pairs in batches grouped by their second space, so that the progress bar can update between batches."""
    groups = [list(group) for _, group in groupby(pairs, key=lambda pair: pair[1])]
    batches, at, step = [], 0, 1
    with tqdm(total=len(pairs), desc=metric, unit="pair", delay=1, leave=False) as bar:
        while at < len(groups):
            batch = list(chain.from_iterable(groups[at : at + step]))
            started = time.monotonic()
            try:
                batches.append(measure(metric, prepared, batch, settings.permutations, settings.seed))
            except InputError as error:
                raise InputError(
                    f"{metric} cannot be computed for {_refused_pair(metric, prepared, names, batch)}: {error}"
                ) from None
            bar.update(len(batch))
            at += step
            step *= 4 if time.monotonic() - started < SECONDS else 1
    joined = {}
    for name in (field.name for field in fields(Measured)):
        columns = [getattr(batch, name) for batch in batches]
        joined[name] = None if columns[0] is None else np.concatenate(columns)
    return Measured(**joined)


def _refused_pair(metric: str, prepared: list, names: Sequence[str], pairs: list[tuple[int, int]]) -> str:
    """Name the first pair of a batch for which the metric cannot be computed."""
    for i, j in pairs:
        try:
            METRICS[metric].compare(prepared[i], prepared[j])
        except InputError:
            return f"{names[i]} and {names[j]}"
    return "these spaces"


def score_matrices(measured: Measured, pairs: list[tuple[int, int]], N: int, symmetric: bool) -> dict[str, Any]:
    """Return a metric's JSON object: `symmetric`, and a matrix (N, N) per measure as lists, None where not scored."""
    columns = {measure: getattr(measured, measure) for measure in MEASURES if measure != "q"}
    if measured.p is not None:
        columns["q"] = adjust(measured.p)
    firsts, seconds = np.array(pairs).T
    result: dict[str, Any] = {"symmetric": symmetric}
    for name in MEASURES:
        if columns.get(name) is None:
            continue
        matrix = np.full((N, N), None, dtype=object)
        matrix[firsts, seconds] = columns[name].astype(float)
        if symmetric:
            matrix[seconds, firsts] = matrix[firsts, seconds]
        if name == "score":
            np.fill_diagonal(matrix, 1.0)
        result[name] = matrix.tolist()
    return result


def list_pairs(names: list[str], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one JSON object per pair and metric with its numbers; both directions if the metric is not symmetric."""
    pairs = []
    for i, j in combinations(range(len(names)), 2):
        for metric, result in results.items():
            for first, second in [(i, j)] if result["symmetric"] else [(i, j), (j, i)]:
                numbers = {measure: result[measure][first][second] for measure in MEASURES if measure in result}
                pairs.append({"source": names[first], "target": names[second], "metric": metric} | numbers)
    return pairs
