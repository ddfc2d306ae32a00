"""Shared parts of the benchmarks: a header with the machine and versions, Markdown tables, timing, and memory."""

import gc
import os
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("repstitch", "torch", "numpy", "scikit-learn", "lightning", "bentoml")


def header(title: str, command: str, packages: tuple[str, ...] = ()) -> str:
    """Return a Markdown title with the command, the machine and the versions."""
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in (*PACKAGES, *packages))
    return (
        f"# {title}\n\n`{command}`\n\n{platform.machine()}{_processor()}, {os.cpu_count()} cores, {where}, "
        f"Python {platform.python_version()}, {versions}\n"
    )


def _processor() -> str:
    """Return the name of the processor in brackets, as far as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((f" ({line.partition(':')[2].strip()})" for line in lines if line.startswith("model name")), "")


def markdown(columns: list[str], rows: list[list]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in lines) + "\n"


def times(contenders: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Return the best wall time of each contender. They take turns, so that other load affects all of them."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeats):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def peak_mb() -> float:
    """Return the peak resident memory of this process.

    Linux reports it in /proc. Elsewhere it is `ru_maxrss`, which is at least the size of the parent process.
    """
    try:
        return _status("VmHWM")
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def growth_mb() -> Callable[[], float]:
    """Return a function that returns by how much the peak has risen above the memory in use now."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the memory in use now
        before = _status("VmRSS")
    except (OSError, StopIteration):
        before = peak_mb()
    return lambda: peak_mb() - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
