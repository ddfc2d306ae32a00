"""Sections of gpu.py: the peak rates of the GPU, and translating rows."""

from collections.abc import Callable
from pathlib import Path

import torch
from gpu_run import (
    CROSSOVER,
    Run,
    affine_map,
    brief,
    mlp_map,
    once,
    pairs,
    placed,
    rate,
    seconds,
    stitcher,
    tera,
    unit_rows,
)
from torch import Tensor

from repstitch.server.compute import PlacedRoute
from repstitch.stitchers.maps import Map, ResidualMLP
from repstitch.stitchers.routing import Route

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


# --- ceiling ----------------------------------------------------------------------------------------------------------


def ceiling(run: Run) -> None:
    table = run.table("Products and copies", "what", "size", "time", "rate")
    n = run.size("matrix")
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(n, n, device=run.device, dtype=dtype) for _ in range(2))
        taken = seconds(lambda a=a, b=b: a @ b, run.repeats)
        flops = 2 * n**3 / taken
        run.keep_ceiling(name, flops)
        table.row(f"product, {name}", f"{n:,}³", brief(taken), f"{tera(flops)} TFLOP/s")
        del a, b
    size = run.size("copy_mb") * 2**18
    x, y = (torch.ones(size, device=run.device) for _ in range(2))
    taken = seconds(lambda x=x, y=y: y.copy_(x), run.repeats)
    run.keep_ceiling("copy", 8 * size / taken)
    table.row("copy on the device, read + written", _mb(4 * size), brief(taken), f"{tera(8 * size / taken)} TB/s")
    del x, y
    size = run.size("host_mb") * 2**18
    there = torch.ones(size, device=run.device)
    for kind, pinned in (("pinned", run.gpu), ("pageable", False)):
        here = torch.ones(size, pin_memory=pinned)
        ways = {"to device": (there, here), "to host": (here, there)}
        for way, (into, from_) in ways.items():
            taken = seconds(lambda into=into, from_=from_: into.copy_(from_, non_blocking=True), run.repeats)
            run.keep_ceiling(f"{kind} copy {way}", 4 * size / taken)
            table.row(f"copy {way}, {kind}", _mb(4 * size), brief(taken), f"{4 * size / taken / 1e9:.3g} GB/s")
    a, b = torch.randn(max(1, n // 10), n), torch.randn(n, n)
    taken = seconds(lambda a=a, b=b: a @ b, run.repeats)
    flops = 2 * len(a) * n * n / taken
    run.keep_ceiling("CPU float32", flops)
    table.row("CPU: product, float32", f"{len(a):,} × {n:,}², a tenth", brief(taken), f"{tera(flops)} TFLOP/s")


def _mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


# --- translate --------------------------------------------------------------------------------------------------------


def translate(run: Run) -> None:
    d, e, width = run.size("d_source"), run.size("d_target"), run.size("width")
    maps: dict[str, Map] = {"affine": affine_map(d, e), f"MLP of {width}": mlp_map(d, e, width)}
    on_device(run, maps)
    streamed(run, maps)
    crossover(run, maps["affine"])
    pinned_memory(run, d, e)


def flops_a_row(map: Map) -> int:
    """Return the number of multiplications and additions for one row."""
    total = map.d_source * map.d_target
    if isinstance(map, ResidualMLP):
        total += map.hidden_weight.numel() + map.out_weight.numel()
    return 2 * total


def on_device(run: Run, maps: dict[str, Map]) -> None:
    table = run.table(
        "Rows that lie on the device",
        "map",
        "weights",
        "rows",
        "vectors/s",
        "TFLOP/s",
        "share",
        "1 − cosine to float32, worst",
        "mean",
        "device memory",
        note="Normalisations and map, float32 rows in; what comes out has the precision of the weights.",
    )
    X, _ = pairs(run.size("device_rows"), run.size("d_source"), 8, run.device)
    for name, map in maps.items():
        pipeline = stitcher(map).pipeline
        exact = pipeline.to(run.device)
        sample = X[:16_384]
        for precision in ("float32", "bfloat16", "float16"):
            there = pipeline.to(run.device, getattr(torch, precision))
            with torch.inference_mode():
                taken = seconds(lambda there=there: there.run(X), run.repeats)
                worst, mean = _loss(there.run(sample).translated, exact.run(sample).translated)
                memory = run.peak(lambda there=there: there.run(X))
            flops = flops_a_row(map) * len(X) / taken
            against = "float32" if precision == "float32" else "bfloat16"  # bfloat16 and float16 run at the same speed
            table.row(name, precision, f"{len(X):,}", rate(len(X) / taken), tera(flops), run.share(flops, against),
                      f"{worst:.1e}", f"{mean:.1e}", memory)  # fmt: skip
        x = X[: max(1, len(X) // 10)].cpu()
        with torch.inference_mode():
            taken = seconds(lambda x=x, pipeline=pipeline: pipeline.run(x), run.repeats)
        flops = flops_a_row(map) * len(x) / taken
        table.row(name, "float32, CPU", f"{len(x):,}, a tenth", rate(len(x) / taken), tera(flops),
                  run.share(flops, "CPU float32"), "-", "-", "-")  # fmt: skip


def _loss(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the largest and the mean 1 − cosine, in float64 because float32 rounds small values to zero."""
    loss = 1 - torch.nn.functional.cosine_similarity(actual.double(), expected.double(), dim=1)
    return float(loss.max()), float(loss.mean())


def streamed(run: Run, maps: dict[str, Map]) -> None:
    table = run.table(
        "Rows of the host, through the pinned buffers of the service",
        "map",
        "weights",
        "rows",
        "vectors/s",
        "GB/s in + out",
        "share of the slower copy",
        note="NumPy in, NumPy out: `PlacedRoute.translate`. Copies either way overlap, so the slower one is the bound.",
    )
    X = unit_rows(run.size("streamed_rows"), run.size("d_source"))
    for name, map in maps.items():
        into, out = X.nbytes, 4 * len(X) * map.d_target
        for precision in ("float32", "bfloat16"):
            route = placed(run, stitcher(map), precision=precision)
            taken = seconds(lambda route=route: route.translate(X), run.repeats)
            ways = (run.ceiling("pinned copy to device"), run.ceiling("pinned copy to host"))
            bound = max(into / ways[0], out / ways[1]) if ways[0] and ways[1] else None
            table.row(name, precision, f"{len(X):,}", rate(len(X) / taken), f"{(into + out) / taken / 1e9:.3g}",
                      f"{bound / taken:.0%}" if bound else "-")  # fmt: skip
        x = X[: max(1, len(X) // 10)]
        here = PlacedRoute(Route(("old-new",), (stitcher(map),)))
        taken = seconds(lambda x=x, here=here: here.translate(x), run.repeats)
        table.row(name, "float32, CPU", f"{len(x):,}, a tenth", rate(len(x) / taken), "-", "-")


def crossover(run: Run, map: Map) -> None:
    table = run.table("From how many rows the device is sooner", "rows", "CPU", "device", "ratio")
    here = PlacedRoute(Route(("old-new",), (stitcher(map),)))
    there = placed(run, stitcher(map))
    chose, there.cpu_rows = there.cpu_rows, 0  # so that every batch goes to the device, whatever its size
    sooner: int | None = None
    for n in CROSSOVER:
        X = unit_rows(n, map.d_source)
        on_cpu = seconds(lambda X=X: here.translate(X), 4 * run.repeats, 1)
        on_device = seconds(lambda X=X: there.translate(X), 4 * run.repeats, 1)
        sooner = (n if sooner is None else sooner) if on_device < on_cpu else None
        table.row(f"{n:,}", brief(on_cpu), brief(on_device), f"{on_cpu / on_device:.2f}x")
    summary = "The CPU is sooner at all of them" if sooner is None else f"The device is sooner from {sooner:,} rows on"
    table.note(f"{summary}; `PlacedRoute.cpu_rows` chose the CPU for up to {chose:,}.")


def pinned_memory(run: Run, d: int, e: int) -> None:
    note = "Pinned memory of the process. All routes go through the buffers of one `Stage`."
    table = run.table(
        "Host memory of placed routes", "routes", "pinned", "resident, grown by", "placing one", note=note
    )
    kept: list[PlacedRoute] = []
    resident = _resident()

    def place(count: int) -> None:
        kept.extend(placed(run, stitcher(affine_map(d, e, i))) for i in range(len(kept), count))

    for count in (1, 10):
        new = count - len(kept)
        taken = once(lambda count=count: place(count))
        pinned = pinned_bytes()
        table.row(count, "-" if pinned is None else _mb(pinned), _mb(_resident() - resident), brief(taken / new))


def pinned_bytes() -> int | None:
    """Return the pinned memory in use by this process, or None if torch does not report it."""
    stats: Callable[[], dict] | None = getattr(torch.cuda, "host_memory_stats", None)
    if stats is None or not torch.cuda.is_available():
        return None
    values = stats()
    return next((values[name] for name in ("active_bytes.current", "allocated_bytes.current") if name in values), None)


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024
