"""Search an index of native and translated rows: `python benchmarks/mixed.py`. Writes results/mixed.md.

Pairs are split 60/15/25 % into training, validation and test rows by hashed id or group, as `train` does. The stitcher
is a canonical map that `train` tunes for the objective `neighbours`. Test rows are the corpus, of which a share is
native; their native vectors are the queries. The length of translated rows is tuned on validation rows. To measure on
one thread, run with OMP_NUM_THREADS=1 and `--threads 1`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import header, markdown
from real_pairs import PAIRS, TEXTS, arguments, every_split
from torch import Tensor

from repstitch.addresses import Address
from repstitch.bulk.choosing import choose_ids
from repstitch.bulk.translation import Translation
from repstitch.embeddings.pairs import Pairs
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.splitting import split
from repstitch.embeddings.writing import write
from repstitch.metrics.neighbour_lists import share_contained
from repstitch.metrics.neighbours import nearest, unit
from repstitch.mixing.merging import Results, best_offset, merge_results
from repstitch.mixing.mixed_index import LENGTHS, MixedIndex
from repstitch.stitchers.stitcher import Stitcher
from repstitch.stores.opening import open_store
from repstitch.workflows.training import train

RESULTS = Path(__file__).parent / "results"
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7)
MOVED = (0.1, 0.2, 0.4)
SHOWN = 0.2
CORPUS_ROWS, TUNING_ROWS = 1_500, 150
K, PART_RESULTS, DRAWS = 10, 100, 3
MOST_LOSS, MOST_CALIBRATED = 0.006, 0.4

RAW, RANDOM, DENSE_RAW, DENSE, MOST_FOUND = (
    "random raw",
    "random + length",
    "dense raw",
    "dense + length",
    "most found + length",
)
BEST_RANDOM, BEST = "random + best length of the test rows", "most found + best length of the test rows"
WAYS = (RAW, RANDOM, DENSE_RAW, DENSE, MOST_FOUND, BEST_RANDOM, BEST)
RAW_MERGE, PLAIN_MERGE, TUNED_MERGE = "raw similarities", "`merge_results`", "`merge_results` with `best_offset`"
MERGES = (RAW_MERGE, PLAIN_MERGE, TUNED_MERGE)


class Corpus:
    """Native and translated vectors of the same rows, of which each is a query that searches all others."""

    def __init__(self, native: Tensor, translated: Tensor):
        self.native, self.translated = native @ native.T, native @ translated.T
        for similar in (self.native, self.translated):
            similar.fill_diagonal_(-torch.inf)
        self.wanted = nearest(self.native, K)

    def scores(self, masks: list[Tensor], length: float) -> tuple[float, float]:
        """Return the overlap@10 with a native corpus, and the share of native rows among ten results.

        Both are means over masks (n,) of native rows.
        """
        lists = [nearest(torch.where(mask, self.native, length * self.translated), K) for mask in masks]
        overlaps = [float(share_contained(self.wanted, rows).mean()) for rows in lists]
        shares = [float(mask[rows].double().mean()) for mask, rows in zip(masks, lists, strict=True)]
        return float(np.mean(overlaps)), float(np.mean(shares))

    def best_scores(self, masks: list[Tensor]) -> tuple[float, float]:
        """Return the scores at the length of the highest overlap."""
        return max(self.scores(masks, length) for length in LENGTHS)


def drawn(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return n of the rows, at random, or all if there are no more."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:n])


def random_masks(n: int, share: float) -> list[Tensor]:
    orders = [np.random.default_rng(seed).permutation(n) for seed in range(DRAWS)]
    return [torch.from_numpy(order < round(share * n)) for order in orders]


def chosen_masks(corpus: Pairs, stitcher: Stitcher, queries: np.ndarray | None) -> dict[float, list[Tensor]]:
    """Return masks (n,) of the rows that the product chooses to embed anew in a folder of the corpus, by share."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "corpus.parquet", Embeddings(corpus.X, corpus.source, corpus.ids))
        store = open_store(Address("folder", folder, "corpus"))
        ids = {share: choose_ids(store, Translation(stitcher), share, queries) for share in SHARES}
    return {share: [torch.from_numpy(np.isin(corpus.ids, chosen))] for share, chosen in ids.items()}


def translate(stitcher: Stitcher, rows: np.ndarray) -> Tensor:
    return unit(torch.from_numpy(stitcher.translate(rows)))


def measure(pairs: Pairs, seed: int) -> dict:
    """Return the scores of mixed indexes and of merged lists on one split, by way and share."""
    sides = ((pairs.X, pairs.source), (pairs.Y, pairs.target))
    source, target = (Embeddings(rows, space, pairs.ids, pairs.groups) for rows, space in sides)
    stitcher = train(source, target, method="canonical", objective="neighbours", split_seed=seed, device="cpu")
    parts = split(pairs, seed=seed)
    corpus = pairs.take(drawn(parts.test, CORPUS_ROWS, seed))
    tuning = pairs.take(drawn(parts.validation, TUNING_ROWS, seed))
    x, y = (unit(torch.from_numpy(side)) for side in (corpus.X, corpus.Y))
    t = translate(stitcher, corpus.X)
    length = MixedIndex(translate(stitcher, tuning.X), tuning.Y).best_length()
    index = Corpus(y, t)
    random = {share: random_masks(len(corpus), share) for share in SHARES}
    dense = chosen_masks(corpus, stitcher, None)
    most_found = chosen_masks(corpus, stitcher, pairs.Y[parts.train])
    ways: dict[str, Callable[[float], tuple[float, float]]] = {
        RAW: lambda share: index.scores(random[share], 1.0),
        RANDOM: lambda share: index.scores(random[share], length),
        DENSE_RAW: lambda share: index.scores(dense[share], 1.0),
        DENSE: lambda share: index.scores(dense[share], length),
        MOST_FOUND: lambda share: index.scores(most_found[share], length),
        BEST_RANDOM: lambda share: index.best_scores(random[share]),
        BEST: lambda share: index.best_scores(most_found[share]),
    }
    mixed = {way: {f"{share:g}": score(share) for share in SHARES} for way, score in ways.items()}
    moves = [(share, random[share][0]) for share in MOVED]
    old = {f"{share:g}": merged(x, t, y, tuning, stitcher, mask) for share, mask in moves}
    return {"length": length, "rows": len(corpus), "mixed": mixed, "merged": old}


def merged(x: Tensor, t: Tensor, y: Tensor, tuning: Pairs, stitcher: Stitcher, moved: Tensor) -> dict[str, float]:
    """Return the overlap@10 of old queries with the old index, when rows of a mask (n,) are moved, by way of merging.

    The offset is tuned with the old vectors of other rows as queries.
    """
    share = float(moved.double().mean())
    questions = unit(torch.from_numpy(tuning.X)) @ x.T, translate(stitcher, tuning.X) @ y.T
    offset = best_offset(*two_lists(*questions, moved), nearest(questions[0], K).tolist(), share)
    similar = x @ x.T, t @ y.T
    for side in similar:
        side.fill_diagonal_(-torch.inf)
    wanted = nearest(similar[0], K)
    raw = nearest(torch.where(moved, similar[1], similar[0]), K)
    overlaps = {RAW_MERGE: float(share_contained(wanted, raw).mean())}
    for way, at in ((PLAIN_MERGE, 0.0), (TUNED_MERGE, offset)):
        results = zip(*two_lists(*similar, moved), wanted.tolist(), strict=True)
        counts = [len({key for key, _ in merge_results(o, n, K, at, share)} & set(right)) for o, n, right in results]
        overlaps[way] = float(np.mean(counts)) / K
    return overlaps


def two_lists(old: Tensor, new: Tensor, moved: Tensor) -> tuple[list[Results], list[Results]]:
    """Return the first results of each query among the rows that are not moved, and among those that are."""
    return first_results(old, ~moved), first_results(new, moved)


def first_results(similar: Tensor, mask: Tensor) -> list[Results]:
    best = similar.masked_fill(~mask, -torch.inf).topk(min(PART_RESULTS, int(mask.sum())), dim=1)
    return [
        [(row, score) for row, score in zip(rows, scores, strict=True) if score > -np.inf]
        for rows, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


class Runs:
    """All measurements: for each pair, the results of `measure` by split seed."""

    def __init__(self, runs: dict[str, list[dict]]):
        self.runs = runs

    def mixed(self, pair: str, way: str, share: float, column: int = 0) -> float:
        """Return the mean overlap@10 over the seeds; with column 1, the mean share of native results."""
        return float(np.mean([run["mixed"][way][f"{share:g}"][column] for run in self.runs[pair]]))

    def mean(self, way: str, share: float, column: int = 0) -> float:
        return float(np.mean([self.mixed(pair, way, share, column) for pair in self.runs]))

    def merged(self, pairs: list[str], way: str, share: float) -> float:
        return float(np.mean([run["merged"][f"{share:g}"][way] for pair in pairs for run in self.runs[pair]]))

    def gains(self, way: str, over: str, share: float = SHOWN) -> dict[str, float]:
        """Return by how much the overlap of a way is above that of another one, by pair."""
        return {pair: self.mixed(pair, way, share) - self.mixed(pair, over, share) for pair in self.runs}

    def lengths(self, pair: str) -> str:
        return ", ".join(f"{run['length']:g}" for run in self.runs[pair])


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def means_table(runs: Runs) -> str:
    rows = [
        [way, *(f"{runs.mean(way, share):.3f} ({runs.mean(way, share, 1):.2f})" for share in SHARES)] for way in WAYS
    ]
    return markdown(["native rows", *map(percent, SHARES)], rows)


def pairs_table(runs: Runs) -> str:
    shown = (RAW, RANDOM, DENSE, MOST_FOUND)
    rows = []
    for pair in runs.runs:
        scores = [runs.mixed(pair, RAW, 0.0), *(runs.mixed(pair, way, SHOWN) for way in shown)]
        rows.append([pair, *(f"{score:.3f}" for score in scores), runs.lengths(pair)])
    means = [runs.mean(RAW, 0.0), *(runs.mean(way, SHOWN) for way in shown)]
    return markdown(["pair", "none native", *shown, "lengths"], [*rows, ["mean", *(f"{m:.3f}" for m in means), ""]])


def merges_table(runs: Runs) -> str:
    families = {"": list(PAIRS), ", texts": list(TEXTS)}
    rows = [
        [way + name, *(f"{runs.merged(pairs, way, share):.3f}" for share in MOVED)]
        for name, pairs in families.items()
        for way in MERGES
    ]
    return markdown(["merged by", *map(percent, MOVED)], rows)


def yes(met: bool) -> str:
    return "yes" if met else "**no**"


def bars(runs: Runs) -> str:
    """Return the table of the bars: whether each is met, and how near it is."""
    rows = []
    for way in (DENSE, MOST_FOUND):
        for over, least in ((RAW, 0.075), (RANDOM, 0.045)):
            gains = runs.gains(way, over)
            mean, worst = float(np.mean(list(gains.values()))), min(gains, key=lambda pair: gains[pair])
            rows.append([f"{way}: at least {least} above {over} in the mean", yes(mean >= least), f"{mean:+.3f}"])
            if over == RAW:
                detail = f"least: {gains[worst]:+.3f}, {worst}"
                rows.append([f"{way}: above {over} on every pair", yes(gains[worst] > 0), detail])
    for way in (RAW, RANDOM, DENSE, MOST_FOUND):
        changes = {
            (pair, share): runs.mixed(pair, way, share) - runs.mixed(pair, way, 0.0)
            for pair in runs.runs
            for share in SHARES[1:]
        }
        pair, share = min(changes, key=lambda case: changes[case])
        below = sum(change < 0 for change in changes.values())
        detail = (
            f"{below} of {len(changes)} cases below; least: {changes[pair, share]:+.3f}, {pair} at {percent(share)}"
        )
        name = f"{way}: never below an index without native rows"
        rows.append([name if way != RAW else f"(no bar) {name}", yes(not below), detail])
    losses = {
        (pair, share): runs.mixed(pair, BEST_RANDOM, share) - runs.mixed(pair, RANDOM, share)
        for pair in runs.runs
        for share in SHARES
        if share <= MOST_CALIBRATED
    }
    pair, share = max(losses, key=lambda case: losses[case])
    beyond = sum(loss > MOST_LOSS for loss in losses.values())
    detail = f"{beyond} of {len(losses)} cases beyond; most: {losses[pair, share]:.3f}, {pair} at {percent(share)}"
    name = f"{RANDOM}: at most {MOST_LOSS} below {BEST_RANDOM}, to {percent(MOST_CALIBRATED)}"
    rows.append([name, yes(not beyond), detail])
    for share, least in zip(MOVED, (0.913, 0.829, 0.679), strict=True):
        overlap = runs.merged(list(PAIRS), TUNED_MERGE, share)
        rows.append(
            [f"{TUNED_MERGE}: at least {least} with {percent(share)} moved", yes(overlap >= least), f"{overlap:.3f}"]
        )
    return markdown(["bar", "met", "how near"], rows)


def main() -> None:
    real = PAIRS | TEXTS
    args = arguments(__doc__, seeds=2, real=real).parse_args()
    torch.set_num_threads(args.threads)
    runs = Runs(every_split(args, measure))
    text = header("Indexes of native and translated rows", "python benchmarks/mixed.py")
    text += f"\nSplit seeds: {args.seeds}. {ABOUT}\n\n{ABOUT_MEANS}\n\n{means_table(runs)}"
    text += f"\n## Every pair, {percent(SHOWN)} native\n\n{ABOUT_PAIRS}\n\n{pairs_table(runs)}"
    if args.pairs == list(real):
        text += f"\n## Old queries while rows are moved\n\n{ABOUT_MERGES}\n\n{merges_table(runs)}"
        text += f"\n## Bars\n\n{ABOUT_BARS}\n\n{bars(runs)}"
        (RESULTS / "mixed.md").write_text(text, encoding="utf-8")
    print(text)


ABOUT = f"""Each pair: a canonical map that `train` tunes for the objective `neighbours`. The corpus is {CORPUS_ROWS:,}
test rows, or all if there are fewer. Every row's native vector is a query, which searches all other rows. Overlap@10 is
the share of the ten nearest rows of a fully native corpus that the search finds. `raw`: native and translated rows of
length 1. `length`: translated rows of the length that `MixedIndex.best_length` finds on {TUNING_ROWS} validation rows.
Native rows are random (the mean of {DRAWS} draws), or those that `choose_ids` chooses in a folder of the corpus: the
`dense` ones, or the ones `most found` by native queries, which are the target rows of the training pairs."""
ABOUT_MEANS = """Mean over pairs of overlap@10, and in brackets of the share of native rows among the first ten results.
The last two rows are upper bounds, because they choose the length of each share on the queries that are scored."""
ABOUT_PAIRS = "Overlap@10, and the lengths by split seed."
ABOUT_MERGES = f"""A random share of the rows is moved. An old query searches the rows that are not moved by their old
vectors, and its translation searches native vectors of the others. Overlap@10 with the old index before any row was
moved. `merge_results` merges the first {PART_RESULTS} results of either part and knows the share that is moved;
`best_offset` is tuned with {TUNING_ROWS} validation rows as queries. Means over the {len(PAIRS)} pairs of other
benchmarks, and over the {len(TEXTS)} pairs of texts."""
ABOUT_BARS = """Cases are pairs and shares of native rows, means over the split seeds. Two choices in the product were
made with test rows of the fashion, cifar and emoji pairs in view: that five neighbours tune the length, and that lists
are standardised by the same share of either part. The remaining pairs are untouched."""


if __name__ == "__main__":
    main()
