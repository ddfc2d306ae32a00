"""TODO alignment.scores."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain, combinations, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from repstitch.embeddings.matching import MatchedSpaces
from repstitch.embeddings.normalising import normalise
from repstitch.errors import InputError
from repstitch.metrics.alignment import METRICS, Measured, check_metrics, measure
from repstitch.metrics.cache import kept_graph
from repstitch.metrics.neighbours import Graph, graph
from repstitch.metrics.null import adjust

log = logging.getLogger(__name__)

MEASURES = ("score", "null", "p", "q", "calibrated", "se")
SECONDS = 5  # of one move of the progress bar, about


def unit_rows(held: MatchedSpaces) -> list[Tensor]:
    """Each space's rows at unit length, (n, d) float32."""
    return [
        normalise(torch.from_numpy(np.require(X, requirements=("C", "W"))), "unit", name)
        for X, name in zip(held.rows, held.names, strict=True)
    ]


def metric_names(metrics: Sequence[str] | str) -> list[str]:
    names = list(METRICS) if metrics == "all" else [metrics] if isinstance(metrics, str) else list(metrics)
    if not names:
        raise InputError(f"`metrics` must name at least one of {', '.join(METRICS)}.")
    check_metrics(names, "metrics")
    return list(dict.fromkeys(names))


def pairs_to_score(order: list[int], symmetric: bool) -> list[tuple[int, int]]:
    """Every two spaces, once where the metric is symmetric; the second, whose rows the null permutes, changes last."""
    firsts = (order[:at] if symmetric else order[:at] + order[at + 1 :] for at in range(len(order)))
    return [(a, b) for b, others in zip(order, firsts, strict=True) for a in others]


def score_all(
    metrics: Sequence[str],
    rows: Sequence[Tensor],
    names: Sequence[str],
    pairs: Mapping[str, list[tuple[int, int]]],
    prepare: Callable[..., list],
    draws: int,
    seed: int,
    skip: bool = False,
) -> Iterator[tuple[str, Measured]]:
    """The numbers of each metric's pairs; metrics of one form share spaces that were prepared once.

    With `skip`, a metric that refuses these spaces is left out with a warning, unless that leaves none.
    """
    forms: dict[Callable, list[str]] = {}
    for metric in metrics:
        forms.setdefault(METRICS[metric].prepare, []).append(metric)
    refused = 0
    for form, group in forms.items():
        prepared: list = []
        for metric in group:
            try:
                prepared = prepared or prepare(form, rows, names)
                measured = score_in_batches(metric, prepared, names, pairs[metric], draws, seed)
            except InputError as error:
                refused += 1
                if not skip or refused == len(metrics):
                    raise
                log.warning("%s is left out: %s", metric, error)
                continue
            yield metric, measured


def prepare_spaces(
    form: Callable, rows: Sequence[Tensor], names: Sequence[str], k: int, device: str, cache, tied=None
) -> list:
    found = []
    for X, name in zip(tqdm(rows, desc="prepare", unit="space", delay=1, leave=False), names, strict=True):
        X = X.to(device)
        made = kept_graph(X, k, name, cache) if cache is not None and form is graph else form(X, k, name)
        if isinstance(made, Graph):  # made where products are fast; compared by the processor
            made = made.to("cpu")
            if tied is not None:
                tied[name] = made.tied
        found.append(made)
    return found


def score_in_batches(
    metric: str, prepared: list, names: Sequence[str], pairs: list[tuple[int, int]], draws, seed
) -> Measured:
    """`measure` of all pairs, in few parts, each of all pairs of some second spaces, between which a bar can move."""
    groups = [list(group) for _, group in groupby(pairs, key=lambda pair: pair[1])]
    parts, at, step = [], 0, 1
    with tqdm(total=len(pairs), desc=metric, unit="pair", delay=1, leave=False) as bar:
        while at < len(groups):
            some = list(chain.from_iterable(groups[at : at + step]))
            started = time.monotonic()
            try:
                parts.append(measure(metric, prepared, some, draws, seed))
            except InputError as error:
                raise InputError(f"{metric} refuses {_refused(metric, prepared, names, some)}: {error}") from None
            bar.update(len(some))
            at += step
            step *= 4 if time.monotonic() - started < SECONDS else 1
    joined = {}
    for name in (f.name for f in fields(Measured)):
        columns = [getattr(part, name) for part in parts]
        joined[name] = None if columns[0] is None else np.concatenate(columns)
    return Measured(**joined)


def _refused(metric: str, prepared: list, names: Sequence[str], pairs: list[tuple[int, int]]) -> str:
    """Which spaces it was, of all those that were measured together."""
    for i, j in pairs:
        try:
            METRICS[metric].compare(prepared[i], prepared[j])
        except InputError:
            return f"{names[i]} with {names[j]}"
    return "these spaces"


def score_matrices(measured: Measured, pairs: list[tuple[int, int]], N: int, symmetric: bool) -> dict:
    """Lists of lists by measure, None where there is no number."""
    columns = {m: getattr(measured, m) for m in MEASURES if m != "q"}
    if measured.p is not None:
        columns["q"] = adjust(measured.p)
    firsts, seconds = np.array(pairs).T
    found: dict[str, Any] = {"symmetric": symmetric}
    for name in MEASURES:
        if columns.get(name) is None:
            continue
        matrix = np.full((N, N), None, dtype=object)
        matrix[firsts, seconds] = columns[name].astype(float)
        if symmetric:
            matrix[seconds, firsts] = matrix[firsts, seconds]
        if name == "score":
            np.fill_diagonal(matrix, 1.0)
        found[name] = matrix.tolist()
    return found


def list_pairs(names: list[str], results: Mapping[str, dict]) -> list[dict]:
    listed = []
    for i, j in combinations(range(len(names)), 2):
        for metric, result in results.items():
            for a, b in [(i, j)] if result["symmetric"] else [(i, j), (j, i)]:
                numbers = {m: result[m][a][b] for m in MEASURES if m in result}
                listed.append({"source": names[a], "target": names[b], "metric": metric} | numbers)
    return listed
