"""Recognise repeated rows: `python benchmarks/repeats.py`. Prints tables; writes results/repeats.md.

The first table has pairs of random rows, 384 dimensions a side; 60 % are training pairs, and every fiftieth pair of the
others nearly repeats one in both spaces. Up to 50,000 rows the result is compared with that of all pairs of rows. The
second table has the keys of random halves of real pairs: how many pairs of that half are recognised by their keys after
their rows were scaled or rounded, and how many of the other half are recognised as rows of the first.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from machine import header, markdown, peak_mb
from real_pairs import PAIRS, load

from repstitch.embeddings.cells import directions
from repstitch.embeddings.fingerprints import have_keys, pair_keys
from repstitch.embeddings.near_duplicates import _Side, find_near_duplicates
from repstitch.embeddings.pairs import Pairs
from repstitch.spaces import Space

RESULTS = Path(__file__).parent / "results"
DIM, NOISE = 384, 0.12  # the gap of a row with this noise is 0.7 of the largest gap of near rows
COMPARED = 50_000


def bfloat16(X: np.ndarray) -> np.ndarray:
    return torch.from_numpy(X).bfloat16().float().numpy()


FORMS = {
    "unit": directions,
    "x 2": lambda X: 2 * X,
    "float16": lambda X: X.astype(np.float16).astype(np.float32),
    "bfloat16": bfloat16,
    "unit, bfloat16": lambda X: bfloat16(directions(X)),
}


def repeated(n: int) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """Return n pairs, the training rows and the other rows."""
    random = np.random.default_rng(0)
    order = random.permutation(n)
    train, others = np.sort(order[: 6 * n // 10]), np.sort(order[6 * n // 10 :])
    X, Y = (random.standard_normal((n, DIM), dtype=np.float32) for _ in range(2))
    near = others[::20]
    for side in (X, Y):
        noise = np.float32(NOISE) * random.standard_normal((len(near), DIM), dtype=np.float32)
        side[near] = side[train[: len(near)]] + noise
    pairs = Pairs(X, Y, Space("old", DIM), Space("new", DIM), np.arange(n), "id", None, {})
    return pairs, train, others


def by_all_pairs(pairs: Pairs, train: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the mask of near duplicates by comparing each row with each training row."""
    near = np.zeros(len(pairs), dtype=bool)
    sides = [_Side.of(X, train, others) for X in (pairs.X, pairs.Y)]
    references = [side.centred(train) for side in sides]
    for rows in np.array_split(others, -(-len(others) // 1024)):
        gaps = [1 - side.centred(rows) @ to.T for side, to in zip(sides, references, strict=True)]
        near[rows] = np.all([gap <= side.limit for gap, side in zip(gaps, sides, strict=True)], axis=0).any(1)
    return near


def near_duplicates(sizes: list[int]) -> str:
    rows: list[list] = []
    seconds: list[float] = []
    for n in sizes:
        pairs, train, others = repeated(n)
        began = time.process_time()
        near = find_near_duplicates(pairs, train)
        seconds.append(time.process_time() - began)
        share = "-"
        if n <= COMPARED:
            exact = by_all_pairs(pairs, train, others)
            share = f"{(near & exact).sum() / exact.sum():.4f}"
        growth = "-"
        if len(seconds) > 1:
            growth = f"{math.log(seconds[-1] / seconds[-2]) / math.log(n / sizes[len(seconds) - 2]):.2f}"
        rows.append([f"{n:,}", f"{seconds[-1]:.1f}", growth, f"{near.sum():,}", share, f"{peak_mb():.0f}"])
    return markdown(["rows", "CPU s", "exponent", "near duplicates", "share of all near duplicates", "peak MB"], rows)


def recognised() -> str:
    rows = []
    for name, real in PAIRS.items():
        pairs = load(real)
        order = np.random.default_rng(0).permutation(len(pairs))
        train, others = pairs.take(order[: len(order) // 2]), pairs.take(order[len(order) // 2 :])
        keys = pair_keys(train.X, train.Y)
        shares = [f"{have_keys(keys, form(train.X), form(train.Y)).mean():.4f}" for form in FORMS.values()]
        rows.append([f"{name} ({len(train)})", *shares, have_keys(keys, others.X, others.Y).sum()])
    return markdown(["pairs (in keys)", *FORMS, "recognised of the other half"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 200_000, 1_000_000])
    args = parser.parse_args()
    text = header("Repeated rows", "python benchmarks/repeats.py")
    text += f"\nNear duplicates, {torch.get_num_threads()} thread(s):\n\n{near_duplicates(args.sizes)}"
    text += f"\nTraining pairs recognised in another form:\n\n{recognised()}"
    (RESULTS / "repeats.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
