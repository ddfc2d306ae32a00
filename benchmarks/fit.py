"""Measure the time and memory of fitting: `python benchmarks/fit.py`. Prints the tables and writes results/fit.md.

Ratios compare times measured side by side in the same run, each the best of several. Memory is the peak of a separate
process that streams its rows. The second table, on choosing a map, needs the extra `bench`.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import header, markdown, peak_mb, times

from repstitch.fit.closed_form import fit_canonical, fit_procrustes, fit_ridge
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.selection import METHODS, Problem, select
from repstitch.metrics.moments import moments
from repstitch.metrics.retrieval import ranks, recall

RESULTS = Path(__file__).parent / "results"
D_SOURCE, D_TARGET, BATCH = 768, 1024, 16_384
PAIRS, HELD_OUT = 7_000, 875
FACTORS, NOISE = 128, 0.95
CLOSED_FORMS = ("ridge", "procrustes", "canonical")


def rows(n: int, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield n unit rows in batches, each with its noisy image under one linear map.

    Like the rows of real embeddings, the unit rows have a non-zero mean and a decaying spectrum.
    """
    random = torch.Generator().manual_seed(seed)
    spread = torch.linspace(1, 0.02, D_SOURCE)
    mixing = torch.randn(D_SOURCE, D_TARGET, generator=random) / D_SOURCE**0.5
    for at in range(0, n, BATCH):
        size = min(BATCH, n - at)
        x = torch.randn(size, D_SOURCE, generator=random) * spread + 0.1
        x = torch.nn.functional.normalize(x, dim=1)
        yield x, x @ mixing + 0.01 * torch.randn(size, D_TARGET, generator=random)


def bare_products(X: torch.Tensor, Y: torch.Tensor) -> None:
    """Compute the same sums in the simplest way: two float32 products for each batch."""
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


def streamed_mb(what: str, n: int) -> float:
    """Return the peak resident memory of a process that fits ridge, or every closed form, to n streamed rows."""
    command = [sys.executable, __file__, "--stream", what, str(n)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["peak_mb"]


def stream(what: str, n: int) -> None:
    sums = moments(rows(n), yy=what != "ridge")
    fits = (fit_ridge,) if what == "ridge" else (fit_ridge, fit_procrustes, fit_canonical)
    for fit in fits:
        fit(sums)
    print(json.dumps({"peak_mb": peak_mb()}))


def hard_pairs(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit rows of 1,024 and 1,280 dimensions: noisy, non-linear views of the same factors."""
    random = torch.Generator().manual_seed(seed)
    spread = torch.linspace(1, 0.05, FACTORS)
    factors = torch.randn(n, FACTORS, generator=random)
    sides = []
    for width in (1024, 1280):
        seen = (factors + NOISE * torch.randn(n, FACTORS, generator=random)) * spread
        bent = torch.tanh(seen @ torch.randn(FACTORS, 2 * FACTORS, generator=random) / 8)
        rows = bent @ torch.randn(2 * FACTORS, width, generator=random)
        rows = rows + rows.std() * (0.1 * torch.randn(n, width, generator=random) + 0.5)
        sides.append(torch.nn.functional.normalize(rows, dim=1))
    return sides[0], sides[1]


def choosing(repeats: int) -> str:
    """Time the closed-form grid, `auto` and one fit of isotrieve's ridge on the same rows, and return the table."""
    X, Y = hard_pairs(PAIRS + 2 * HELD_OUT)
    train, held, test = slice(PAIRS), slice(PAIRS, PAIRS + HELD_OUT), slice(PAIRS + HELD_OUT, None)
    x, y = X[train].numpy(), Y[train].numpy()

    def problem() -> Problem:
        return Problem(X[train], Y[train], ValidationObjective("match", X[held], Y[held], Y[train]))

    def grid() -> None:
        shared = problem()
        for method in CLOSED_FORMS:
            METHODS[method](shared)

    def auto() -> None:
        results["auto"] = select(problem(), "auto")[0]

    def peer() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results["peer"] = import_module("isotrieve.mapping").RidgeMapping().fit(x, y)

    results: dict[str, Any] = {}
    spent = times({"grid": grid, "auto": auto, "peer": peer}, repeats)
    chosen, fitted = results["auto"], results["peer"]
    with torch.inference_mode():
        reached = recall(ranks(chosen.map(X[test]), Y[test]), 1)
    other = recall(ranks(torch.from_numpy(fitted.transform(X[test].numpy())), Y[test]), 1)
    against = f"isotrieve RidgeMapping, one fit, {spent['peer']:.1f} s"
    return (
        f"\n## Choosing a map, {PAIRS:,} pairs, 1024 → 1280\n\n`auto` chose {chosen.method}: R@1 {reached:.3f} among "
        f"{HELD_OUT} test rows, where isotrieve's ridge has {other:.3f}.\n\n"
        + markdown(
            ["what", "time", "against", "ratio", "bar"],
            [
                ["ridge, procrustes and canonical, all their tuning and validation", f"{spent['grid']:.1f} s", against,
                 f"{spent['grid'] / spent['peer']:.2f}x", "≤ 1x"],
                ["all of `auto`", f"{spent['auto']:.1f} s", against, f"{spent['auto'] / spent['peer']:.2f}x", "≤ 4x"],
            ],
        )
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--choosing-only", action="store_true", help="print only the second table; write no file")
    parser.add_argument("--stream", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        return stream(args.stream[0], int(args.stream[1]))
    if args.choosing_only:
        return print(choosing(max(1, args.repeats // 2)))
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
    peaks = [(what, *(streamed_mb(what, n) for n in (args.rows, 10 * args.rows))) for what in ("ridge", "closed forms")]
    table = markdown(
        ["what", "time or memory", "against", "ratio", "bar"],
        [
            ["moments Σxxᵀ, Σxyᵀ", f"{sums['moments']:.2f} s", f"bare float32 products, {sums['bare']:.2f} s",
             f"{sums['moments'] / sums['bare']:.2f}x", "≤ 1.25x"],
            ["whole ridge fit", f"{fits['ridge']:.2f} s", f"torch.linalg.lstsq, {fits['lstsq']:.2f} s",
             f"{fits['lstsq'] / fits['ridge']:.1f}x faster", "≥ 3x"],
            ["whole ridge fit", f"{fits['ridge']:.2f} s", f"scikit-learn Ridge, {fits['sklearn']:.2f} s",
             f"{fits['sklearn'] / fits['ridge']:.1f}x faster", "≥ 2x"],
            *(
                [f"peak memory of {what}, {10 * args.rows:,} streamed rows", f"{large:.0f} MB",
                 f"{args.rows:,} rows, {small:.0f} MB", f"{large / small:.2f}x", "within 10 %"]
                for what, small, large in peaks
            ),
        ],
    )  # fmt: skip
    title = f"Fitting {args.rows:,} pairs, {D_SOURCE} → {D_TARGET}"
    text = (
        header(title, "python benchmarks/fit.py", ("isotrieve",)) + "\n" + table + choosing(max(1, args.repeats // 2))
    )
    if args.rows == 100_000:
        (RESULTS / "fit.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
