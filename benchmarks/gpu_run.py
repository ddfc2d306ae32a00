"""Shared parts of the sections of gpu.py: sizes, timing, tables written row by row, synthetic pairs and stitchers."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repstitch.server.compute import PlacedRoute, Stage
from repstitch.spaces import Space
from repstitch.stitchers.confidence import Calibration
from repstitch.stitchers.maps import AffineMap, Map, ResidualMLP
from repstitch.stitchers.routing import Route
from repstitch.stitchers.stitcher import Stitcher

FULL_S = 360  # with a smaller budget, in seconds, the sizes shrink
# The full and the smallest size of everything that is measured. A run on the CPU uses the smallest.
SIZES = {
    "d_source": (768, 48),
    "d_target": (1024, 64),
    "width": (512, 32),  # hidden units of a residual MLP
    "matrix": (8192, 256),
    "copy_mb": (4096, 8),
    "host_mb": (1024, 8),
    "right_rows": (4096, 300),
    "right_source": (256, 24),
    "right_target": (320, 32),
    "device_rows": (262_144, 2_000),
    "streamed_rows": (262_144, 2_000),
    "moments_rows": (1_000_000, 4_000),
    "pairs": (100_000, 600),
    "validation": (5_000, 100),
    "infonce_epochs": (3, 2),
    "auto_epochs": (25, 1),
    "graph_rows": (100_000, 1_500),
    "large_graph_rows": (1_000_000, 3_000),
    "spaces": (78, 4),
    "space_rows": (2_000, 120),
    "draws": (200, 10),
    "images": (2_048, 8),
    "texts": (8_192, 32),
    "batch": (256, 4),
    "ddp_pairs": (20_000, 400),
    "ddp_epochs": (5, 1),
}
WIDTHS = ("d_source", "d_target", "width", "right_source", "right_target")  # a smaller budget never shrinks these
CROSSOVER = (1, 4, 16, 64, 256, 1_024, 4_096)


@dataclass
class Run:
    """One section: its device, its time limit, and the files to which it writes its rows and the ceilings."""

    device: str
    budget: float
    limit: float
    rows: Path
    ceilings: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def repeats(self) -> int:
        return 5 if self.gpu else 2

    def size(self, name: str) -> int:
        full, smallest = SIZES[name]
        if not self.gpu:
            return smallest
        return full if name in WIDTHS else max(smallest, round(full * min(1.0, self.budget / FULL_S)))

    def left(self) -> float:
        """Seconds until this section is stopped."""
        return self.limit - (time.monotonic() - self.began)

    def write(self, **line) -> None:
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def table(self, title: str, *columns: str, note: str = "") -> "Table":
        self.write(table=title, columns=columns, note=note)
        return Table(self, title)

    def keep_ceiling(self, name: str, rate: float) -> None:
        """Store a ceiling (floating-point operations or bytes per second) for the sections that follow."""
        kept = self._ceilings() | {name: rate}
        self.ceilings.write_text(json.dumps(kept), encoding="utf-8")

    def ceiling(self, name: str) -> float | None:
        return self._ceilings().get(name)

    def share(self, rate: float, name: str) -> str:
        """Format a rate as a share of the peak rate that the section `ceiling` measured."""
        most = self.ceiling(name)
        return f"{rate / most:.0%} of {name}" if most else "-"

    def _ceilings(self) -> dict[str, float]:
        return json.loads(self.ceilings.read_text(encoding="utf-8")) if self.ceilings.exists() else {}

    def peak(self, work: Callable[[], object]) -> str:
        """Return the most device memory that was allocated during `work`, including what was allocated before it."""
        if not self.gpu:
            work()
            return "-"
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB"


@dataclass
class Table:
    run: Run
    title: str

    def row(self, *cells: object) -> None:
        self.run.write(table=self.title, row=[str(cell) for cell in cells])

    def note(self, text: str) -> None:
        """Add a line below the table."""
        self.run.write(table=self.title, below=text)


def sync() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def once(work: Callable[[], object]) -> float:
    """Return the wall seconds of one call, including the work that it started on the device."""
    sync()
    began = time.perf_counter()
    work()
    sync()
    return time.perf_counter() - began


def seconds(work: Callable[[], object], repeats: int = 5, most_s: float = 3) -> float:
    """Return the median time of several calls after a warm-up call; stop early once they have taken `most_s` in all."""
    once(work)
    taken: list[float] = []
    while len(taken) < repeats and sum(taken) < most_s:
        taken.append(once(work))
    return statistics.median(taken)


def pairs(n: int, d: int, e: int, device: str, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return unit rows (n, d) and (n, e): noisy views of the same factors, with a mean and a decaying spectrum."""
    random = torch.Generator(device).manual_seed(seed)
    factors = max(4, min(d, e) // 4)
    sides = []
    mixing = [torch.randn(factors, width, generator=random, device=device) / factors**0.5 for width in (d, e)]
    for _ in range(0, n, 2**16):
        size = min(2**16, n - 2**16 * len(sides))
        Z = torch.randn(size, factors, generator=random, device=device)
        made = []
        for mix in mixing:
            rows = Z @ mix + noise * torch.randn(size, mix.shape[1], generator=random, device=device)
            rows = rows * torch.linspace(1, 0.2, mix.shape[1], device=device) + 0.2
            made.append(torch.nn.functional.normalize(rows, dim=1))
        sides.append(made)
    return torch.cat([x for x, _ in sides]), torch.cat([y for _, y in sides])


def affine_map(d: int, e: int, seed: int = 0) -> AffineMap:
    random = torch.Generator().manual_seed(seed)
    return AffineMap(torch.randn(d, e, generator=random) / d**0.5, torch.randn(e, generator=random) / 100)


def mlp_map(d: int, e: int, width: int, seed: int = 0) -> ResidualMLP:
    random = torch.Generator().manual_seed(seed + 1)
    plain = affine_map(d, e, seed)
    return ResidualMLP(
        plain.weight,
        plain.bias,
        torch.randn(d, width, generator=random),
        torch.randn(width, generator=random) / 10,
        torch.randn(width, e, generator=random) / width**0.5,
    )


def stitcher(map: Map, source: str = "old", target: str = "new", calibration: Calibration | None = None) -> Stitcher:
    return Stitcher(
        map=map,
        source=Space(source, map.d_source),
        target=Space(target, map.d_target),
        method="mlp" if isinstance(map, ResidualMLP) else "ridge",
        objective="match",
        input_norm="unit",
        output_norm="unit",
        source_mean=np.zeros(map.d_source, np.float32),
        target_mean=np.zeros(map.d_target, np.float32),
        seen=np.arange(3),
        calibration=calibration,
    )


@cache
def stage(device: str) -> Stage:
    """Return the buffers of this process for a device, which all its routes share."""
    return Stage(device)


def placed(run: Run, *stitchers: Stitcher, precision: str = "float32") -> PlacedRoute:
    """Return a route on the run's device that uses the shared buffers, also if the device is the CPU."""
    names = tuple(f"{each.source.name}-{each.target.name}" for each in stitchers)
    return PlacedRoute(Route(names, stitchers), stage(str(run.device)), precision)


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    X = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def rate(value: float) -> str:
    """Format a number, such as a rate per second, with at least three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def tera(value: float) -> str:
    return f"{value / 1e12:.3g}"


def brief(value: float) -> str:
    """Format seconds as s, ms or µs."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"
