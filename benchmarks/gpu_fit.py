"""Sections of gpu.py: fitting, neighbours and alignment, and DDP."""

import os
import socket
from typing import Any

import numpy as np
import torch
from gpu_run import Run, Table, brief, once, pairs, rate, seconds, tera
from torch import Tensor

import repstitch
from repstitch.fit.closed_form import canonical, decompose, fit_ridge
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.recipe import recipe_for
from repstitch.fit.selection import Problem, tune_canonical
from repstitch.metrics.moments import moments
from repstitch.metrics.neighbour_lists import mutual_knn
from repstitch.metrics.neighbours import count_repeats, graph, unit
from repstitch.precision import exact_products

K = 10
TILE = 8192  # rows of a tile of the bare product; large enough to keep the GPU busy
BATCH = 512


# --- fit --------------------------------------------------------------------------------------------------------------


def fit(run: Run) -> None:
    d, e = run.size("d_source"), run.size("d_target")
    note = f"Pairs {d} → {e}. “CPU” rows have a tenth of the pairs, on the CPU cores beside the card."
    table = run.table("Fitting", "what", "pairs", "time", "rate", "TFLOP/s", "share", "device memory", note=note)
    _moments(run, table, d, e)
    _solutions(run, table, d, e)
    for beside in (False, True):  # the GPU first, because the CPU may use up the time left
        _grid(run, table, beside, d, e)
        _infonce(run, table, beside, d, e)
        _auto(run, table, beside, d, e)


def _side(run: Run, beside: bool, full: int) -> tuple[str, int, str]:
    """Return the device of a row, its size (all on the device, a tenth on the CPU) and the suffix of its name."""
    return ("cpu", max(1, full // 10), ", CPU") if beside else (run.device, full, "")


def _sized(n: int, full: int) -> str:
    return f"{n:,}" if n == full else f"{n:,}, a tenth"


def _moments(run: Run, table: Table, d: int, e: int) -> None:
    full = run.size("moments_rows")
    for beside in (False, True):
        device, n, suffix = _side(run, beside, full)
        X, Y = pairs(n, d, e, device)
        taken = seconds(lambda X=X, Y=Y: moments((X, Y)), run.repeats)
        flops = n * (2 * d * e + d * (d + 1) + e * (e + 1)) / taken  # upper halves of the symmetric products
        memory = "-" if beside else run.peak(lambda X=X, Y=Y: moments((X, Y)))
        table.row(f"moments{suffix}", _sized(n, full), brief(taken), f"{rate(n / taken)} pairs/s", tera(flops),
                  run.share(flops, "CPU float32" if beside else "float32"), memory)  # fmt: skip
        del X, Y


def _solutions(run: Run, table: Table, d: int, e: int) -> None:
    """Time the steps after the moments. They are in float64, and their size does not depend on the number of pairs."""
    X, Y = pairs(8 * (d + e), d, e, run.device)
    for beside in (False, True):
        sums = moments((X.cpu(), Y.cpu()) if beside else (X, Y))
        parts = decompose(sums)
        works = {
            "decompose: two eigendecompositions": lambda sums=sums: decompose(sums),
            "canonical: one SVD": lambda parts=parts: canonical(parts),
        }
        for what, work in works.items():
            taken = seconds(work, 3)
            memory = "-" if beside else run.peak(work)
            table.row(what + ", CPU" * beside, "any", brief(taken), "-", "-", "-", memory)


def _problem(device: str, n: int, held: int, d: int, e: int) -> Problem:
    X, Y = pairs(n + held, d, e, device, noise=1.0)
    return Problem(X[:n], Y[:n], ValidationObjective("match", X[n:], Y[n:], Y[:n]))


def _grid(run: Run, table: Table, beside: bool, d: int, e: int) -> None:
    device, n, suffix = _side(run, beside, run.size("pairs"))
    held = _side(run, beside, run.size("validation"))[1]
    problem = _problem(device, n, held, d, e)
    tried: list[int] = []
    spent: list[float] = []

    def tune() -> None:
        tried.append(len(tune_canonical(problem).tried))

    memory = run.peak(lambda: spent.append(once(tune)))
    what = f"the grid of canonical{suffix}: moments to choice, {tried[0]} maps tried on {held:,} validation rows"
    table.row(what, _sized(n, run.size("pairs")), f"{brief(spent[0])}, once", f"{rate(tried[0] / spent[0])} maps/s",
              "-", "-", "-" if beside else memory)  # fmt: skip


def _infonce(run: Run, table: Table, beside: bool, d: int, e: int) -> None:
    """Time InfoNCE steps against all training targets, as the difference of a long and a short run.

    The fixed costs of a run cancel in this difference.
    """
    from repstitch.fit.contrastive import refine  # not at the top: Lightning imports slowly, `neighbours` needs none

    device, n, suffix = _side(run, beside, run.size("pairs"))
    problem = _problem(device, n, 200, d, e)
    start = fit_ridge(problem.decomposition.moments)
    epochs, batch = run.size("infonce_epochs"), min(BATCH, max(8, n // 4))
    accelerator = "gpu" if device == "cuda" else "cpu"

    def train(epochs: int) -> None:
        recipe = recipe_for("linear", epochs=epochs, stop_after=epochs, gallery=n, batch_size=batch,
                            temperatures=(1.0,), accelerator=accelerator)  # fmt: skip
        refine(problem.X, problem.Y, start, problem.decomposition, problem.objective, recipe)

    if not beside:
        train(1)  # warm up Lightning and the kernels
    short = once(lambda: train(1))
    long: list[float] = []
    memory = run.peak(lambda: long.append(once(lambda: train(1 + epochs))))
    step = (long[0] - short) / (epochs * (n // batch))
    what = f"InfoNCE, batches of {batch} against all targets{suffix}"
    if step <= 0:  # the steps are too few to show above the fixed costs
        table.row(what, _sized(n, run.size("pairs")), "too short to tell", *["-"] * 4)
        return
    flops = 3 * 2 * batch * (n * e + 2 * d * d) / step  # the forward pass and both gradients
    table.row(what, _sized(n, run.size("pairs")), f"{brief(step)} a step, once", f"{rate(1 / step)} steps/s",
              tera(flops), run.share(flops, "CPU float32" if beside else "float32"),
              "-" if beside else memory)  # fmt: skip


def _auto(run: Run, table: Table, beside: bool, d: int, e: int) -> None:
    """Time the whole of `repstitch.train`, from NumPy arrays to the scorecard, if there is time left."""
    full, epochs = run.size("pairs"), run.size("auto_epochs")
    device, n, suffix = _side(run, beside, full)
    if run.gpu and run.left() < 10:
        table.note(f"All of `auto` on {device} was left out: {run.left():.0f} s were left.")
        return
    X, Y = (side.cpu().numpy() for side in pairs(n, d, e, device, noise=1.0))
    made: list[Any] = []
    spent: list[float] = []
    fewer = epochs if run.left() > 60 else max(1, epochs // 5)
    memory = run.peak(
        lambda: spent.append(once(lambda: made.append(repstitch.train(X, Y, device=device, epochs=fewer))))
    )
    recall = made[0].scorecard.query_recall
    what = f"all of `auto`{suffix}, at most {fewer} epochs: chose {made[0].method}, recall@1 {recall:.3f}"
    table.row(what, _sized(n, full), f"{brief(spent[0])}, once", f"{rate(n / spent[0])} pairs/s", "-", "-",
              "-" if beside else memory)  # fmt: skip


# --- neighbours -------------------------------------------------------------------------------------------------------


def neighbours(run: Run) -> None:
    d = run.size("d_source")
    table = run.table(
        "Exact neighbour graphs",
        "what",
        "rows",
        "time",
        "row pairs/s",
        "TFLOP/s of n² d",
        "share",
        "bare X Xᵀ",
        "times the bare product",
        "device memory",
        note=f"k = {K}, d = {d}. The graph computes half of the 2 n² d operations that X Xᵀ takes; its TFLOP/s count "
        f"that half. The bare product is all of X Xᵀ by tiles of {TILE:,} rows that nothing reads.",
    )
    n = run.size("graph_rows")
    X, Y = pairs(n, d, d, run.device)
    taken = _graph_row(run, table, "graph", X)
    copies = once(lambda: count_repeats(unit(X)))
    table.row("of it the search for copies, on the CPU", f"{n:,}", f"{brief(copies)}, once", *["-"] * 6)
    if run.left() > 4 * taken + 15:
        pair = once(lambda X=X, Y=Y: mutual_knn(X, Y, K))
        table.row("mutual_knn: two graphs", f"{n:,}", f"{brief(pair)}, once", rate(2 * n * n / pair), *["-"] * 5)
    else:
        table.note("`mutual_knn` was left out for want of time; it is two graphs.")
    _graph_row(run, table, "graph, CPU", X[: n // 10].cpu(), "a tenth")
    del X, Y
    atlases(run)
    # The large graph comes last, with as many rows as the time left allows; its time is quadratic in the rows.
    large = run.size("large_graph_rows")
    allowed = int(n * (max(0.0, 0.6 * run.left()) / taken) ** 0.5)
    if allowed < large:
        whole = taken * (large / n) ** 2
        done = f"the largest that fits is {allowed:,}" if allowed > n else "left out"
        table.note(f"A graph of {large:,} rows would take about {whole:,.0f} s at this pace: {done}.")
    if min(large, allowed) > n:
        X, _ = pairs(min(large, allowed), d, 8, run.device)
        _graph_row(run, table, "graph", X, warm=False)


def _graph_row(run: Run, table: Table, what: str, X: Tensor, size_note: str = "", warm: bool = True) -> float:
    n, d = X.shape
    U = unit(X)
    block = U[: 4 * TILE]
    bare = seconds(lambda: _bare(block, U), 2) * n / len(block)
    memory = run.peak(lambda: graph(X, K)) if warm else "-"  # also warms up
    taken = once(lambda: graph(X, K))
    flops = n * n * d / taken
    against = "CPU float32" if what.endswith("CPU") else "float32"
    table.row(what, f"{n:,}{', ' * bool(size_note)}{size_note}", f"{brief(taken)}, once", rate(n * n / taken),
              tera(flops), run.share(flops, against), brief(bare), f"{taken / bare:.2f}x",
              "-" if what.endswith("CPU") else memory)  # fmt: skip
    return taken


def _bare(queries: Tensor, U: Tensor) -> None:
    with exact_products():
        for rows in queries.split(TILE):
            for columns in U.split(TILE):
                torch.mm(rows, columns.T)


def atlases(run: Run) -> None:
    many, n, draws = run.size("spaces"), run.size("space_rows"), run.size("draws")
    note = f"Spaces of {n:,} rows, mutual_knn and cka_unbiased, {draws} permutations; NumPy in, the whole atlas out."
    table = run.table(
        "Alignment of small spaces", "what", "spaces", "time", "pairs of spaces/s", "device memory", note=note
    )
    widths = (256, 384, 512, 768)
    spaces = {}
    for i in range(0, many, 2):
        for side in pairs(n, widths[i % 4], widths[i // 2 % 4], run.device, seed=i // 4):
            spaces[f"space{len(spaces):02d}"] = side.cpu().numpy()
    names = list(spaces)
    for device, count in ((run.device, many), ("cpu", max(3, many // 10))):
        what = device if run.gpu else "CPU"
        two = {name: spaces[name] for name in names[:2]}
        taken = seconds(lambda device=device, two=two: repstitch.atlas(two, permutations=draws, device=device), 2, 4)
        table.row(f"`atlas`, {what}", 2, brief(taken), rate(1 / taken), "-")
        if run.gpu and run.left() < 15:
            table.note(f"The `atlas` of all on {what} was left out for want of time.")
            continue
        some = {name: spaces[name] for name in names[:count]}

        def whole(some=some, device=device) -> None:
            repstitch.atlas(some, permutations=draws, device=device)

        spent: list[float] = []
        memory = run.peak(lambda spent=spent, whole=whole: spent.append(once(whole)))
        table.row(f"`atlas`, {what}", f"{len(some)}{', about a tenth' if count < many else ''}",
                  f"{brief(spent[0])}, once", rate(len(some) * (len(some) - 1) / 2 / spent[0]),
                  memory if device == run.device else "-")  # fmt: skip


# --- ddp --------------------------------------------------------------------------------------------------------------


def ddp(run: Run) -> None:
    """Compare maps trained by one process with and without the strategy `ddp` (NCCL on the GPU, Gloo on the CPU)."""
    n, d, e = run.size("ddp_pairs"), run.size("right_source"), run.size("right_target")
    X, Y = (side.cpu().numpy() for side in pairs(n, d, e, run.device, noise=1.0))
    columns = ("strategy", "pairs", "epochs", "time", "backend", "largest difference of the weights, of their norm")
    table = run.table('`repstitch.train(method="linear")`', *columns, note="One device. Each of one call.")
    epochs = run.size("ddp_epochs")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    made: dict[str, Any] = {}
    few = {"epochs": 1, "temperatures": (1.0,)}
    repstitch.train(X[: n // 2], Y[: n // 2], method="linear", device=run.device, **few)  # warm up
    for strategy in ("auto", "ddp"):

        def train(strategy=strategy) -> None:
            made[strategy] = repstitch.train(
                X,
                Y,
                method="linear",
                strategy=strategy,
                devices=1,
                device=run.device,
                temperatures=(1.0,),
                stop_after=epochs,  # keep the map after these epochs even if the closed form is better
            )

        taken = once(train)
        backend, difference = "-", "-"
        if strategy == "ddp":
            started = torch.distributed.is_available() and torch.distributed.is_initialized()
            backend = torch.distributed.get_backend() if started else "none was started"
            weights = [made[name].map.weight.double() for name in ("ddp", "auto")]
            difference = f"{float((weights[0] - weights[1]).norm() / weights[1].norm()):.1e}"
        table.row("none" if strategy == "auto" else strategy, f"{n:,}", epochs, brief(taken), backend, difference)
    recall = [made[name].scorecard.query_recall for name in ("auto", "ddp")]
    table.note(f"Recall@1 without: {recall[0]:.4f}; with: {recall[1]:.4f}. {_kept(made)}")


def _kept(made: dict[str, Any]) -> str:
    """State which epochs the two maps come from, and whether the maps are equal."""
    epochs = [made[name].settings.get("epoch") for name in ("auto", "ddp")]
    same = np.array_equal(*(made[name].map.weight.numpy() for name in ("auto", "ddp")))
    return (
        f"They are of epochs {epochs[0]} and {epochs[1]}; the maps are {'' if same else 'not '}equal to the last bit."
    )
