"""How fast and how small fitting is: `python benchmarks/fit.py`. Prints the table and keeps it in results/.

Ratios are of times taken side by side in this one run, each the best of several; memory is the peak of a process of
its own that streams its rows.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from machine import header, markdown

from repstitch.fit.closed_form import fit_ridge
from repstitch.moments import moments

RESULTS = Path(__file__).parent / "results"
D_SOURCE, D_TARGET, BATCH = 768, 1024, 16_384


def rows(n: int, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A stream of n unit rows with a mean and a decaying spectrum, as embeddings have, and noisy affine images."""
    random = torch.Generator().manual_seed(seed)
    spread = torch.linspace(1, 0.02, D_SOURCE)
    mixing = torch.randn(D_SOURCE, D_TARGET, generator=random) / D_SOURCE**0.5
    for at in range(0, n, BATCH):
        size = min(BATCH, n - at)
        x = torch.randn(size, D_SOURCE, generator=random) * spread + 0.1
        x = torch.nn.functional.normalize(x, dim=1)
        yield x, x @ mixing + 0.01 * torch.randn(size, D_TARGET, generator=random)


def times(contenders: dict[str, Callable], repeats: int) -> dict[str, float]:
    """The best wall time of each, taken in turn so that a busy spell of the machine falls on all of them."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeats):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def bare_products(X: torch.Tensor, Y: torch.Tensor) -> None:
    """The same sums with nothing around them: float32 products a batch, as a reader would write them."""
    xx, xy = torch.zeros(D_SOURCE, D_SOURCE), torch.zeros(D_SOURCE, D_TARGET)
    for at in range(0, len(X), BATCH):
        x, y = X[at : at + BATCH], Y[at : at + BATCH]
        xx += x.T @ x
        xy += x.T @ y


def lstsq(X: torch.Tensor, Y: torch.Tensor) -> None:
    ones = torch.ones(len(X), 1)
    torch.linalg.lstsq(torch.cat([X, ones], dim=1), Y)


def sklearn_ridge(X: np.ndarray, Y: np.ndarray) -> None:
    from sklearn.linear_model import Ridge

    Ridge(alpha=1e-3).fit(X, Y)


def peak_mb(n: int) -> float:
    """Peak resident memory of a process that fits ridge to n streamed rows."""
    command = [sys.executable, __file__, "--stream", str(n)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["peak_mb"]


def stream(n: int) -> None:
    fit_ridge(moments(rows(n), yy=False))
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        return stream(args.stream)
    X, Y = (torch.cat(side) for side in zip(*rows(args.rows), strict=True))
    x, y = X.numpy(), Y.numpy()
    sums = times({"bare": lambda: bare_products(X, Y), "moments": lambda: moments((X, Y), yy=False)}, args.repeats)
    fits = times(
        {
            "ridge": lambda: fit_ridge(moments((X, Y), yy=False)),
            "lstsq": lambda: lstsq(X, Y),
            "sklearn": lambda: sklearn_ridge(x, y),
        },
        max(2, args.repeats // 2),
    )
    small, large = peak_mb(args.rows), peak_mb(10 * args.rows)
    table = markdown(
        ["what", "time or memory", "against", "ratio", "bar"],
        [
            ["moments Σxxᵀ, Σxyᵀ", f"{sums['moments']:.2f} s", f"bare float32 products, {sums['bare']:.2f} s",
             f"{sums['moments'] / sums['bare']:.2f}x", "≤ 1.25x"],
            ["whole ridge fit", f"{fits['ridge']:.2f} s", f"torch.linalg.lstsq, {fits['lstsq']:.2f} s",
             f"{fits['lstsq'] / fits['ridge']:.1f}x faster", "≥ 3x"],
            ["whole ridge fit", f"{fits['ridge']:.2f} s", f"scikit-learn Ridge, {fits['sklearn']:.2f} s",
             f"{fits['sklearn'] / fits['ridge']:.1f}x faster", "≥ 2x"],
            [f"peak memory, {10 * args.rows:,} streamed rows", f"{large:.0f} MB", f"{args.rows:,} rows, {small:.0f} MB",
             f"{large / small:.2f}x", "within 10 %"],
        ],
    )  # fmt: skip
    title = f"Fitting {args.rows:,} pairs, {D_SOURCE} → {D_TARGET}"
    text = header(title, "python benchmarks/fit.py") + "\n" + table
    if args.rows == 100_000:
        (RESULTS / "fit.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
