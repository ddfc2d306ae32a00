"""Measure the cost of detours and of low precision: `python benchmarks/served.py`. Writes results/served.md.

Detours: a pair of spaces without a stitcher is translated through a third space, the one with the highest expected
recall@1 (`Route.score`). A stitcher is trained for every ordered pair of a family of real spaces, and every detour is
compared with the direct stitcher and with its expected recall@1. Precision: weights in bfloat16 or float16, and vectors
sent as float16.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import torch
from machine import header, markdown
from real_pairs import CLIP, DATA, FASHION
from scipy.stats import rankdata

from repstitch.embeddings.fingerprints import id_fingerprints
from repstitch.embeddings.pairs import pair
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings, invalid_rows
from repstitch.embeddings.splitting import split
from repstitch.errors import InputError
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import ranks, recall, search
from repstitch.server.compute import PlacedRoute
from repstitch.stitchers.routing import Route
from repstitch.stitchers.stitcher import Stitcher
from repstitch.workflows.training import train

RESULTS = Path(__file__).parent / "results"
WORDS = "words/aligned_glove50_glove200_word2vec300.npz"
MANY_ROWS = 5000  # rows used of each family, so that the whole benchmark takes minutes


@dataclass(frozen=True)
class Family:
    """Spaces that share ids.

    `path` is the pattern of the files, `spaces` the file of each space by name, and `served` the pair whose precision
    is measured.
    """

    ids: str
    path: str
    spaces: dict[str, str]
    served: tuple[str, str]

    def read(self) -> dict[str, Embeddings]:
        """Read the rows that are valid and unique in every space, so that the split is the same for all pairs."""
        if not DATA.is_dir():
            raise InputError(f"There is no folder {DATA}; set REPSTITCH_DATA to the folder of real paired embeddings.")
        paths = {name: DATA / self.path.format(file) for name, file in self.spaces.items()}
        spaces = {name: read(path, ids=DATA / self.ids, space=name) for name, path in paths.items()}
        keep = np.ones(len(spaces[self.served[0]]), dtype=bool)
        for rows in spaces.values():
            keep &= ~np.any(list(invalid_rows(rows.vectors).values()), axis=0)
            first = np.unique(rows.vectors, axis=0, return_index=True)[1]
            keep &= np.isin(np.arange(len(rows)), first)
        return {name: rows.take(np.flatnonzero(keep)[:MANY_ROWS]) for name, rows in spaces.items()}


@dataclass(frozen=True)
class Trained:
    """A family's stitchers by pair, and its test rows (float32) by space, which no stitcher was trained on."""

    stitchers: dict[tuple[str, str], Stitcher]
    test: dict[str, np.ndarray]

    def route(self, *spaces: str) -> Route:
        steps = list(pairwise(spaces))
        return Route(tuple("-".join(step) for step in steps), tuple(self.stitchers[step] for step in steps))

    def recall(self, route: Route) -> float:
        """Return recall@1 in query use on the test rows, computed as in a scorecard."""
        source, target = (torch.from_numpy(self.test[route.spaces[end]]) for end in (0, -1))
        return recall(ranks(route.pipeline(source).translated, target), 1)


def train_pairs(spaces: dict[str, Embeddings], wanted: list[tuple[str, str]]) -> Trained:
    a, b = wanted[0]
    pairs = pair(spaces[a], spaces[b])
    rows = split(pairs).test
    test = {name: space.vectors[rows].astype(np.float32) for name, space in spaces.items()}
    trained = Trained({}, test)
    for a, b in wanted:
        trained.stitchers[a, b] = stitcher = train(spaces[a], spaces[b], method="canonical")
        unseen = np.flatnonzero(~np.isin(id_fingerprints(pairs.ids), stitcher.seen))
        again = trained.recall(trained.route(a, b))
        scored = stitcher.scorecard.query.recall_at(1).score
        if not np.array_equal(unseen, rows) or abs(again - scored) > 1.5 / len(rows):
            raise SystemExit(f"{a} -> {b} was not scored on the same test rows as the other pairs.")
        print(f"{a} -> {b}: {again:.3f}", file=sys.stderr, flush=True)
    return trained


def measure_detours(trained: Trained) -> list[np.ndarray]:
    """Return recall@1 as an array (detours, 3) for each pair: of the direct stitcher, of the detour, and expected."""
    scores: dict[tuple[str, str], list] = {}
    for a, b, c in permutations(trained.test, 3):
        detour = trained.route(a, b, c)
        direct = trained.recall(trained.route(a, c))
        scores.setdefault((a, c), []).append((direct, trained.recall(detour), detour.score))
    return [np.array(detours) for detours in scores.values()]


def estimates(measured: dict[str, list[np.ndarray]]) -> str:
    rows, lines = [], []
    for name, pairs in measured.items():
        direct, found, expected = np.concatenate(pairs).T
        off = found - expected
        means = (f"{scores.mean():.3f}" for scores in (direct, found, expected, abs(off)))
        order = np.corrcoef(rankdata(expected), rankdata(found))[0, 1]
        rows.append([name, len(found), *means, f"{(off >= 0).mean():.2f}", f"{order:.2f}"])
        lines.append(
            f"- {name}: measured minus expected has the mean {off.mean():+.3f} ({off.min():+.3f} to {off.max():+.3f}), "
            f"so on average the product promises too {'little' if off.mean() > 0 else 'much'}."
        )
    columns = ["family", "triples", "direct", "over the detour", "expected", "mean absolute difference"]
    return markdown([*columns, "measured ≥ expected", "Spearman"], rows) + "\n" + "\n".join(lines) + "\n"


def choices(measured: dict[str, list[np.ndarray]]) -> str:
    rows = []
    for name, pairs in measured.items():
        each = []
        for _, found, expected in (scores.T for scores in pairs if len(scores) > 1):
            chosen, best = found[expected.argmax()], found.max()
            each.append((chosen == best, (found == best).mean(), chosen, best, found.mean(), found.min()))
        if each:
            rows.append([name, len(each), len(pairs[0]), *(f"{mean:.3f}" for mean in np.mean(each, axis=0))])
    columns = ["family", "pairs", "detours each", "best is chosen", "by chance", "chosen", "best", "random", "worst"]
    return markdown(columns, rows)


def precision(name: str, trained: Trained, served: tuple[str, str]) -> list[list]:
    """Return a table row for each precision of one stitcher: float32, narrower weights, narrower vectors."""
    route = trained.route(*served)
    rows = unit(trained.test[served[0]])
    native = torch.from_numpy(trained.test[served[1]])
    copies = torch.unique(native, dim=0, return_inverse=True)[1]
    own = knn(native, native, 10, exclude_self=True)
    placed = {kind: PlacedRoute(route, precision=kind) for kind in ("float32", "bfloat16", "float16")}
    ways = {}
    for one in placed.values():  # named by the actual dtype: weights that a dtype cannot represent stay in float32
        ways[f"weights in {str(one.pipeline.maps[0].weight.dtype).removeprefix('torch.')}"] = one.translate(rows)[0]
    exact = ways["weights in float32"]
    sent = placed["float32"].translate(rows.astype(np.float16).astype(np.float32))[0]
    ways["vectors sent as float16"] = sent.astype(np.float16).astype(np.float32)
    table = []
    for way, translated in ways.items():
        away = 1 - (unit(exact.astype(np.float64)) * unit(translated.astype(np.float64))).sum(1)
        placings, lists = search(torch.from_numpy(translated), native, 10, copies)
        far = ["-", "-"] if translated is exact else [f"{away.mean():.1e}", f"{away.max():.1e}"]
        scores = (recall(placings, 1), float(overlap(lists, own).mean()))
        table.append([f"{name} {'→'.join(served)}", way, *far, *(f"{score:.4f}" for score in scores)])
    return table


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    measured, served, sizes = {}, [], []
    for name, family in FAMILIES.items():
        spaces = family.read()
        many = len(spaces) > 2
        trained = train_pairs(spaces, list(permutations(spaces, 2)) if many else [family.served])
        sizes.append(f"{name} {len(trained.test[family.served[0]])}")
        if many:
            measured[name] = measure_detours(trained)
        served += precision(name, trained, family.served)
    text = (
        header("What two choices of the service cost", "python benchmarks/served.py", ("scipy",))
        + f"\nMethod `canonical`, one split by hashed id, at most {MANY_ROWS} rows of a family. Test rows, also the "
        f"pool: {', '.join(sizes)}. Recall@1 and overlap@10 in query use.\n\n## Detours\n\nEvery ordered triple "
        "a → b → c: recall@1 of the stitcher a → c, of the two stitchers one after the other, and what is expected of "
        "these, the product of their scorecards' recall@1. Triples share stitchers, so they are not independent.\n\n"
        + estimates(measured)
        + "\nDoes the highest expected score choose well among the detours of a pair: share of pairs where it finds "
        "the best one, by chance too (a tie with the best counts), and mean recall@1 over the pairs.\n\n"
        + choices(measured)
        + "\n## Precision\n\nOn the CPU, of rows of unit length in float32: the files hold float16, so of rows as they "
        "are, sending float16 would round nothing on the way in. Cosines are with what float32 throughout gives.\n\n"
        + markdown(["stitcher", "served with", "1 − cosine, mean", "largest", "recall@1", "overlap@10"], served)
    )
    (RESULTS / "served.md").write_text(text, encoding="utf-8")
    print(text)


FAMILIES = {
    "fashion": Family(
        FASHION, "fashion/{}.npy", {
            "mnv1": "mobilenetv1_slim_imagenet_embed", "mnv2": "mobilenetv2_slim_imagenet",
            "squeeze": "squeezenet1_0_deepcomp", "mnv1-.25": "mobilenetv1_025_224_imagenet",
        }, ("mnv1-.25", "mnv2"),
    ),
    "cifar10": Family(
        "cifar10/files.txt", "cifar10/{}.npy", {
            "r20": "resnet20_aka", "r56": "resnet56_aka", "googlenet": "googlenet_uva", "densenet": "densenet_uva",
            "ae128": "autoencoder128_uva",
        }, ("r20", "r56"),
    ),
    "words": Family(
        f"{WORDS}:words", WORDS + ":{}", {"glove50": "glove50", "glove200": "glove200", "w2v": "word2vec300"},
        ("glove50", "w2v"),
    ),
    "clip text": Family(f"{CLIP}:names", CLIP + ":{}", {"rn50": "clip_rn50", "b32": "clip_vitb32"}, ("rn50", "b32")),
}  # fmt: skip

if __name__ == "__main__":
    main()
