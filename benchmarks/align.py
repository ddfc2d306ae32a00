"""Measure the time and memory of alignment: `python benchmarks/align.py`. Prints the tables; writes results/align.md.

Each computation is compared with its plain n × n definition, which is written out below, and with the library that a
reader might use instead, on the same rows and in the same run. Each time is the best of several runs in which the
contenders take turns. Memory is the peak of a separate process. Needs the extra `bench`.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import growth_mb, header, markdown, peak_mb, times
from torch import Tensor

from repstitch.metrics.alignment import measure
from repstitch.metrics.kernels import cka
from repstitch.metrics.nearest_kernels import cknna
from repstitch.metrics.neighbour_lists import mutual_knn, overlap
from repstitch.metrics.neighbours import graph, unit
from repstitch.metrics.null import random_orders, relabel

RESULTS = Path(__file__).parent / "results"
ROWS, D_X, D_Y, K = 10_000, 768, 1024, 10
MANY_ROWS = 100_000
SPACES, SPACE_ROWS, DRAWS = 78, 1024, 200
SAMPLE = 60  # pairs of spaces on which the slow implementations are timed


def views(n: int, *widths: int, factors: int = 128, seed: int = 0) -> list[Tensor]:
    """Return unit rows of several noisy views of the same factors.

    Like the rows of real embeddings, they have a non-zero mean and a decaying spectrum.
    """
    random = torch.Generator().manual_seed(seed)
    Z = torch.randn(n, factors, generator=random)
    made = []
    for d in widths:
        spread = torch.linspace(1, 0.05, d)
        rows = Z @ torch.randn(factors, d, generator=random) / factors**0.5 + torch.randn(n, d, generator=random)
        made.append(unit(rows * spread + 0.3))
    return made


# --- the definitions, n × n -------------------------------------------------------------------------------------------


def plain_graph(X: Tensor, k: int = K) -> Tensor:
    similar = X @ X.T
    similar.fill_diagonal_(-math.inf)
    return similar.argsort(dim=1, descending=True)[:, :k]


def plain_mutual_knn(X: Tensor, Y: Tensor, k: int = K) -> float:
    n = len(X)
    masks = [torch.zeros(n, n).scatter_(1, plain_graph(side, k), 1.0) for side in (X, Y)]
    return float((masks[0] * masks[1]).sum(1).mean() / k)


def plain_cka(X: Tensor, Y: Tensor) -> float:
    """Return tr(KHLH) / √(tr(KHKH) tr(LHLH))."""
    n = len(X)
    H = torch.eye(n) - 1 / n
    K, L = (side @ side.T for side in (X, Y))
    both, left, right = ((A @ H @ B @ H).trace().double() for A, B in ((K, L), (K, K), (L, L)))
    return float(both / (left * right).sqrt())


def centred_cka(X: Tensor, Y: Tensor) -> float:
    """Return the same CKA, with the kernels centred by subtracting row and column means instead of multiplying by H."""
    K, L = (side @ side.T for side in (X, Y))
    K, L = (kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean() for kernel in (K, L))
    return float((K * L).sum() / (K.norm() * L.norm()))


def plain_cknna(X: Tensor, Y: Tensor, k: int = K) -> float:
    n = len(X)
    kernels = [side @ side.T for side in (X, Y)]
    masks = []
    for kernel in kernels:
        hidden = kernel.clone().fill_diagonal_(-math.inf)
        masks.append(torch.zeros(n, n).scatter_(1, hidden.topk(k, dim=1).indices, 1.0))
    K, L = (kernel - kernel.mean(1, keepdim=True) for kernel in kernels)
    both, left, right = masks[0] * masks[1] * K * L, masks[0] * K * K, masks[1] * L * L
    return float(both.sum() / (left.sum() * right.sum()).sqrt())


def faiss_search(X: np.ndarray) -> None:
    faiss: Any = import_module("faiss")  # installed by the extra `bench` only
    index = faiss.IndexFlatIP(X.shape[1])
    index.add(X)
    index.search(X, K + 1)


def numpy_draw(a: np.ndarray, b: np.ndarray, order: np.ndarray) -> float:
    """Score one permutation of the null in plain NumPy, without a loop: permute, relabel, intersect the lists."""
    new = np.empty_like(order)
    new[order] = np.arange(len(order))
    permuted = new[b[order]]
    return (a[:, :, None] == permuted[:, None, :]).sum() / a.size


# --- the tables -------------------------------------------------------------------------------------------------------


def one_pair(repeats: int) -> list[list]:
    X, Y = views(ROWS, D_X, D_Y)
    x = X.numpy()
    graphs = times(
        {
            "product": lambda: X @ X.T,
            "graph": lambda: graph(X, K),
            "wide product": lambda: Y @ Y.T,
            "wide graph": lambda: graph(Y, K),
            "faiss": lambda: faiss_search(x),
        },
        repeats,
    )
    results: dict[str, float] = {}

    def keep(name: str, run: Callable[[], float]) -> Callable[[], None]:
        return lambda: results.update({name: run()})

    few = max(2, repeats // 3)
    pairs = {
        "mutual_knn": (lambda: mutual_knn(X, Y, K), lambda: plain_mutual_knn(X, Y), "≥ 4x"),
        "cka": (lambda: cka(X, Y), lambda: plain_cka(X, Y), "≥ 100x"),
        "cka, kernels centred kindly": (lambda: cka(X, Y), lambda: centred_cka(X, Y), ""),
        "cknna": (lambda: cknna(X, Y, K), lambda: plain_cknna(X, Y), "≥ 3x"),
    }
    rows = [
        [f"neighbour graph, d = {d}", f"{graphs[ours]:.2f} s", f"the bare product X Xᵀ, {graphs[bare]:.2f} s",
         f"{graphs[ours] / graphs[bare]:.2f}x", "≤ 0.8x"]
        for d, ours, bare in ((D_X, "graph", "product"), (D_Y, "wide graph", "wide product"))
    ]  # fmt: skip
    rows.append(
        [f"neighbour graph, d = {D_X}", f"{graphs['graph']:.2f} s", f"faiss IndexFlatIP, {graphs['faiss']:.2f} s",
         f"{graphs['faiss'] / graphs['graph']:.1f}x faster", "≥ 1x"]
    )  # fmt: skip
    for name, (ours, plain, bar) in pairs.items():
        spent = times({"ours": keep("ours", ours), "plain": keep("plain", plain)}, few)
        rows.append(
            [f"{name}, {D_X} against {D_Y}", f"{spent['ours']:.3f} s",
             f"n × n definition, {spent['plain']:.2f} s, {abs(results['ours'] - results['plain']):.0e} apart",
             f"{spent['plain'] / spent['ours']:.1f}x faster", bar]
        )  # fmt: skip
    peak = in_a_process("mutual", MANY_ROWS)
    return [*rows, [f"mutual_knn, {MANY_ROWS:,} rows of {D_X}", f"{peak['peak_mb'] / 1000:.2f} GB peak",
                    f"{peak['seconds']:.0f} s", "", "< 3 GB"]]  # fmt: skip


def many_pairs(repeats: int) -> list[list]:
    spaces = views(SPACE_ROWS, *([D_X] * SPACES))
    pairs = list(combinations(range(SPACES), 2))
    graphs = [graph(X, K) for X in spaces]
    lists = [space.neighbours.numpy() for space in graphs]
    orders = random_orders(SPACE_ROWS, DRAWS)
    order = orders.numpy()
    sample = pairs[:: len(pairs) // SAMPLE][:SAMPLE]

    def ours() -> None:
        measure("mutual_knn", [graph(X, K) for X in spaces], pairs, 0)

    def anew(build: Callable[[Tensor], Tensor]) -> None:
        for i, j in sample:
            float(overlap(build(spaces[i]), build(spaces[j])).mean())

    def plain_null() -> None:
        for i, j in sample:
            for draw in order[:4]:
                numpy_draw(lists[i], lists[j], draw)

    def permuted() -> None:
        for i, j in sample:
            for draw in orders[:4]:
                float(overlap(graphs[i].neighbours, relabel(graphs[j].neighbours, draw)).mean())

    spent = times(
        {
            "ours": ours,
            "anew": partial(anew, lambda X: graph(X, K).neighbours),
            "plain": partial(anew, plain_graph),
            "null": lambda: measure("mutual_knn", graphs, pairs, DRAWS),
            "plain null": plain_null,
            "permuted": permuted,
        },
        repeats,
    )
    all_pairs = len(pairs) / len(sample)
    title = f"{SPACES} spaces x {SPACE_ROWS} rows x {D_X}, all {len(pairs):,} pairs"
    rows = []
    for name, method, bar in (
        ("plain", "both graphs anew for every pair, by argsort", "≥ 30x"),
        ("anew", "both graphs anew for every pair, by our own graph", "≥ 30x"),
    ):
        theirs = spent[name] * all_pairs
        rows.append([f"{title}: scores", f"{spent['ours']:.2f} s", f"{method}, {theirs:.0f} s",
                     f"{theirs / spent['ours']:.0f}x faster", bar])  # fmt: skip
    for name, method in (
        ("plain null", "lists intersected in NumPy per permutation"),
        ("permuted", "lists intersected in torch per permutation"),
    ):
        theirs = spent[name] * all_pairs * DRAWS / 4
        rows.append([f"{title}: {DRAWS} permutations each", f"{spent['null']:.1f} s", f"{method}, {theirs:.0f} s",
                     f"{theirs / spent['null']:.1f}x faster", "≥ 5x"])  # fmt: skip
    return rows


def growth() -> tuple[list[list], float]:
    """Return the table of one graph's time and memory by n, and the exponent fitted to the times."""
    sizes = [1000 * 2**i for i in range(6)]
    measured = [in_a_process("graph", n) for n in sizes]
    seconds = [m["seconds"] for m in measured]
    slope = float(np.polyfit(np.log(sizes[2:]), np.log(seconds[2:]), 1)[0])
    rows = []
    for n, m in zip(sizes, measured, strict=True):
        kept = n * (8 * D_X + 24 * K) / 1e6  # unit rows and their padded copy, keys and neighbour lists
        rows.append([f"{n:,}", f"{m['seconds']:.3f} s", f"{m['growth_mb']:.0f} MB", f"{kept:.0f} MB",
                     f"{m['growth_mb'] - kept:.0f} MB", f"{n * n * 4 / 1e6:,.0f} MB"])  # fmt: skip
    return rows, slope


def in_a_process(what: str, n: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what, str(n)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_here(what: str, n: int) -> None:
    """Print the seconds and memory that this process takes for a graph (best of three) or for one `mutual_knn`."""
    random = torch.Generator().manual_seed(0)
    X = torch.randn(n, D_X, generator=random)
    Y = X + torch.randn(n, D_X, generator=random) if what == "mutual" else X
    run: Callable = partial(mutual_knn, X, Y, K) if what == "mutual" else partial(graph, X, K)
    graph(X[:2000], K)  # so that neither time nor memory includes what the first call loads
    grown = growth_mb()
    spent = []
    for _ in range(1 if what == "mutual" else 3):
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    print(json.dumps({"seconds": min(spent), "peak_mb": peak_mb(), "growth_mb": grown()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure_here(args.measure[0], int(args.measure[1]))
    columns = ["what", "time or memory", "against", "ratio", "bar"]
    one, many = one_pair(args.repeats), many_pairs(max(2, args.repeats // 3))
    grown, slope = growth()
    text = (
        header("Alignment", "python benchmarks/align.py", ("faiss-cpu", "scipy"))
        + f"\n## One pair, {ROWS:,} rows, k = {K}\n\n{markdown(columns, one)}"
        + f"\n## An atlas\n\nThe slow ways are timed on {SAMPLE} pairs (4 permutations each) and multiplied.\n\n"
        + markdown(columns, many)
        + f"\n## One graph against n, d = {D_X}\n\nTime grows as n^{slope:.2f} from 4,000 rows on. Memory is the "
        "growth of the peak over the rows given; what is kept is the unit rows and the lists.\n\n"
        + markdown(["n", "time", "memory", "of which grows with n", "the rest", "n × n in float32"], grown)
    )
    (RESULTS / "align.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
