"""Many spaces beside one another: how alike every two are, their order, a map of them, and the best layer of each."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain, combinations, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from repstitch.devices import pick_device
from repstitch.embeddings.matching import Matched, match
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pairs import MIN_PAIRS
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError, check_draws, check_seed
from repstitch.lineage import encoders, layers_by_encoder, same_encoder
from repstitch.metrics.alignment import METRICS, Measured, check_metrics, measure
from repstitch.metrics.cache import kept_graph
from repstitch.metrics.neighbours import Graph, count_repeats, graph
from repstitch.metrics.null import adjust, calibrate
from repstitch.spaces import Space

log = logging.getLogger(__name__)

MEASURES = ("score", "null", "p", "q", "calibrated", "se")
NEAREST = 10
BEST_PAIRS = 10  # that are followed over sizes unless the caller names some
SIZE_DRAWS = 5
SIZE_PERMUTATIONS = 20  # a draw of rows: only the null's mean is asked for, and the draws add up
TIED = 0.1  # share of rows from which on ties are worth a word
SECONDS = 5  # of one move of the progress bar, about


def atlas(
    embeddings: Sequence[Embeddings] | Matched,
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
    names = _metrics(metrics)
    check_draws(permutations)
    check_seed(seed)
    where = pick_device(device)
    held = embeddings if isinstance(embeddings, Matched) else match(embeddings, drop_invalid)
    if not 1 <= k < len(held):
        raise InputError(f"`k` must be at least 1 and below the number of rows ({len(held)}); got {k}.")
    wanted_sizes = _sizes(sizes, len(held), k)
    _chosen(size_pairs, held.names)
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
    pairs = {metric: _pairs(list(chain.from_iterable(groups)), METRICS[metric].symmetric) for metric in names}
    tied: dict[str, int] = {}
    prepare = partial(_prepared, k=k, device=where, cache=cache, tied=tied)
    results, layers = {}, []
    for metric, measured in _score_all(names, rows, held.names, pairs, prepare, permutations, seed, metrics == "all"):
        results[metric] = _matrices(measured, pairs[metric], len(rows), METRICS[metric].symmetric)
        if len(groups) < len(rows):
            layers += _best_layers(metric, measured, pairs[metric], held.spaces, of_encoder)
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
    apart = {metric: _distances(S) for metric, S in scores.items()}
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
        "pairs": _listed(held.names, results),
        "order": {metric: [label(i) for i in _clustered(D)] for metric, D in apart.items()},
        "map": {metric: dict(zip(held.names, _scaled(D).tolist(), strict=True)) for metric, D in apart.items()},
        "nearest": {metric: _nearest(S, held.names, groups) for metric, S in scores.items()},
    }
    if layers:
        found["layers"] = layers
    if wanted_sizes:
        followed = _chosen(size_pairs, held.names) or _best(next(iter(scores.values())), groups)
        prepare = partial(_prepared, k=k, device=where, cache=None)
        found["sizes"] = {"k": k} | _over_sizes(
            rows, held.names, results, followed, wanted_sizes, prepare, permutations, seed, sizes == "auto"
        )
    return found


def unit_rows(held: Matched) -> list[Tensor]:
    """Each space's rows at unit length, (n, d) float32."""
    return [
        normalise(torch.from_numpy(np.require(X, requirements=("C", "W"))), "unit", name)
        for X, name in zip(held.rows, held.names, strict=True)
    ]


def best_pairs(found: Mapping, metric: str | None = None, count: int = BEST_PAIRS) -> list[tuple[str, str]]:
    """The pairs of names of different encoders that score highest in an atlas, best first."""
    spaces = [Space.from_dict(card) for card in found["spaces"]]
    scores = np.array(found["metrics"][metric or next(iter(found["metrics"]))]["score"], dtype=float)
    best = _best(scores, list(layers_by_encoder(spaces).values()), count)
    return [(spaces[i].name, spaces[j].name) for i, j in best]


def by_encoder(found: Mapping, metric: str) -> dict[str, np.ndarray]:
    """The matrices of an atlas by measure, (N, N) for the N `encoders` of its spaces, NaN where there is no number.

    Where spaces are layers, the score of two encoders is that of their best layers.
    """
    result = found["metrics"][metric]
    if "layers" not in found:
        return {m: np.array(result[m], dtype=float) for m in MEASURES if m in result}
    names = [space.name for space in encoders([Space.from_dict(card) for card in found["spaces"]])]
    place = {name: i for i, name in enumerate(names)}
    lines = [line for line in found["layers"] if line["metric"] == metric]
    matrices = {m: np.full((len(place), len(place)), np.nan) for m in MEASURES if any(m in line for line in lines)}
    np.fill_diagonal(matrices["score"], 1.0)
    for line in lines:
        i, j = place[line["source"]], place[line["target"]]
        for m, matrix in matrices.items():
            matrix[i, j] = line[m]
            if result["symmetric"]:
                matrix[j, i] = line[m]
    return matrices


# --- scores -----------------------------------------------------------------------------------------------------------


def _metrics(metrics: Sequence[str] | str) -> list[str]:
    names = list(METRICS) if metrics == "all" else [metrics] if isinstance(metrics, str) else list(metrics)
    if not names:
        raise InputError(f"`metrics` must name at least one of {', '.join(METRICS)}.")
    check_metrics(names, "metrics")
    return list(dict.fromkeys(names))


def _pairs(order: list[int], symmetric: bool) -> list[tuple[int, int]]:
    """Every two spaces, once where the metric is symmetric; the second, whose rows the null permutes, changes last."""
    firsts = (order[:at] if symmetric else order[:at] + order[at + 1 :] for at in range(len(order)))
    return [(a, b) for b, others in zip(order, firsts, strict=True) for a in others]


def _score_all(
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
                measured = _measured(metric, prepared, names, pairs[metric], draws, seed)
            except InputError as error:
                refused += 1
                if not skip or refused == len(metrics):
                    raise
                log.warning("%s is left out: %s", metric, error)
                continue
            yield metric, measured


def _prepared(
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


def _measured(metric: str, prepared: list, names: Sequence[str], pairs: list[tuple[int, int]], draws, seed) -> Measured:
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


def _matrices(measured: Measured, pairs: list[tuple[int, int]], N: int, symmetric: bool) -> dict:
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


def _listed(names: list[str], results: Mapping[str, dict]) -> list[dict]:
    listed = []
    for i, j in combinations(range(len(names)), 2):
        for metric, result in results.items():
            for a, b in [(i, j)] if result["symmetric"] else [(i, j), (j, i)]:
                numbers = {m: result[m][a][b] for m in MEASURES if m in result}
                listed.append({"source": names[a], "target": names[b], "metric": metric} | numbers)
    return listed


# --- where spaces lie among the others --------------------------------------------------------------------------------


def _distances(S: np.ndarray) -> np.ndarray:
    distances = np.clip(1 - (S + S.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    return distances


def _clustered(distances: np.ndarray) -> list[int]:
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    return leaves_list(linkage(squareform(distances), "average", optimal_ordering=True)).tolist()


def _scaled(distances: np.ndarray) -> np.ndarray:
    """Points (N, 2) whose distances are near these: the two leading axes of the doubly centred squares."""
    squares = distances**2
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    places = vectors[:, ::-1][:, :2] * np.sqrt(values[::-1][:2].clip(min=0))
    size = np.abs(places)
    largest = (size >= size.max(0) * (1 - 1e-9)).argmax(0)  # the first of those that are largest but for rounding
    return places * np.where(places[largest, [0, 1]] < 0, -1, 1)


def _nearest(S: np.ndarray, names: list[str], encoders: list[list[int]]) -> dict[str, list[dict]]:
    own = {i: set(part) for part in encoders for i in part}
    return {
        name: [
            {"name": names[j], "score": float(S[i, j])} for j in np.argsort(-S[i], kind="stable") if j not in own[i]
        ][:NEAREST]
        for i, name in enumerate(names)
    }


def _best(S: np.ndarray, encoders: list[list[int]], count: int = BEST_PAIRS) -> list[tuple[int, int]]:
    """The best pairs (i, j), i < j, of spaces of different encoders; of the same where there is but one encoder."""
    own = {i: at for at, part in enumerate(encoders) for i in part}
    pairs = list(combinations(range(len(S)), 2))
    pairs = [(i, j) for i, j in pairs if own[i] != own[j]] or pairs
    return sorted(pairs, key=lambda pair: -(S[pair] + S[pair[::-1]]))[:count]


# --- layers -----------------------------------------------------------------------------------------------------------


def _best_layers(
    metric: str,
    measured: Measured,
    pairs: list[tuple[int, int]],
    spaces: Sequence[Space],
    encoders: dict[str, list[int]],
) -> list[dict]:
    """For every two encoders their best pair of layers, beside the null of the best."""
    owner = {i: name for name, own in encoders.items() for i in own}
    groups: dict[tuple[str, str], list[int]] = {}
    for at, (i, j) in enumerate(pairs):
        if owner[i] != owner[j] and not same_encoder(spaces[i], spaces[j]):
            groups.setdefault((owner[i], owner[j]), []).append(at)
    found = []
    for (source, target), at in groups.items():
        best = at[int(measured.score[at].argmax())]
        i, j = pairs[best]
        line: dict[str, Any] = {"source": source, "target": target, "metric": metric}
        line |= {"source_layer": spaces[i].layer, "target_layer": spaces[j].layer}
        line |= {"source_space": spaces[i].name, "target_space": spaces[j].name, "score": float(measured.score[best])}
        if measured.draws is not None:
            placed = calibrate(line["score"], measured.draws[at].max(0))
            line |= {"null": placed.null, "p": placed.p, "calibrated": placed.calibrated}
        found.append(line)
    if measured.draws is not None:
        for line, q in zip(found, adjust(np.array([line["p"] for line in found])), strict=True):
            line["q"] = float(q)
    return found


# --- sizes ------------------------------------------------------------------------------------------------------------


def _sizes(sizes: Sequence[int] | str | None, n: int, k: int) -> list[int]:
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


def _chosen(pairs: Sequence[tuple[str, str]] | None, names: list[str]) -> list[tuple[int, int]]:
    unknown = [name for pair in pairs or () for name in pair if name not in names]
    if unknown:
        raise InputError(f"`size_pairs` must be pairs of {', '.join(names)}; got {unknown[0]!r}.")
    if any(a == b for a, b in pairs or ()):
        raise InputError("`size_pairs` must be pairs of two spaces; got one with itself.")
    return [(names.index(a), names.index(b)) for a, b in pairs or ()]


def _over_sizes(
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
            for metric, measured in _score_all(
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
