"""Section of gpu.py: compare every result on the device with the result on the CPU, in the same run."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from gpu_run import Run, Table, affine_map, mlp_map, pairs, placed, stitcher, unit_rows
from torch import Tensor

import repstitch
from repstitch.fit.calibration import calibrate
from repstitch.fit.closed_form import FITS, decompose
from repstitch.metrics.alignment import METRICS, measure
from repstitch.metrics.moments import Moments, moments
from repstitch.metrics.neighbours import graph, knn, unit
from repstitch.metrics.retrieval import ranks
from repstitch.precision import exact_products
from repstitch.stitchers.confidence import Calibration
from repstitch.stitchers.maps import Map
from repstitch.stitchers.pipeline import Pipeline
from repstitch.stitchers.routing import best_route
from repstitch.stitchers.stitcher import Stitcher

SMALL, FITTED, LISTS, STATISTIC = 1e-5, 1e-3, 3e-3, 1e-4
TIE = 2.0**-22
K = 10
OF_LISTS = ("mutual_knn", "cycle_knn", "lcs_knn", "edit_knn", "cknna", "cknna_released")
PRECISIONS = {"float32": 1e-6, "bfloat16": 1e-3, "float16": 1e-3}


@dataclass
class Checks:
    """Add the rows of the table. A check that is above its tolerance or raises an error marks the run as inexact."""

    run: Run
    table: Table

    def near(self, what: str, difference: Callable[[], float], tolerance: float, of: str = "") -> None:
        try:
            value = difference()
            ok, result = value <= tolerance, f"{value:.1e}"
        except Exception as error:
            ok, result = False, f"{type(error).__name__}: {str(error).strip()[:200]}".replace("\n", " ")
        self.add(what, result, f"{tolerance:.1e}{of}", ok)

    def add(self, what: str, result: str, tolerance: str, ok: bool) -> None:
        self.table.row(what, result, tolerance, "yes" if ok else "**no**")
        if not ok:
            self.run.write(inexact=what)


def relative(actual: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """Return the largest difference relative to the largest expected value; infinity if shapes differ or on NaN.

    For matrices: the largest distance of two rows relative to the length of the expected row.
    """
    a, b = (torch.as_tensor(side).detach().cpu().double() for side in (actual, expected))
    if not bool(torch.isfinite(a).all()) or a.shape != b.shape:
        return float("inf")
    if a.ndim == 2:
        return float(((a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-30)).max())
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def of_norm(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm of the expected values."""
    a, b = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((a - b).norm() / b.norm())


def right(run: Run) -> None:
    n, d, e = run.size("right_rows"), run.size("right_source"), run.size("right_target")
    X, Y = pairs(n, d, e, "cpu", noise=1.0)
    columns = ("what", "largest relative difference", "tolerance", "ok")
    note = f"{n:,} rows, {d} → {e}, the same on both sides."
    checks = Checks(run, run.table("Against the CPU in the same run", *columns, note=note))
    calibration = _calibration(X, Y, "cpu")
    _maps(checks, run, X, d, e)
    _pipelines(checks, run, X, d, e)
    _confidence(checks, run, X, Y, calibration)
    _neighbours(checks, run, X, Y)
    _metrics(checks, run, X, Y)
    _fits(checks, run, X, Y)
    _placed(checks, run, calibration, d, e)
    _trained(checks, run, X, Y)


def _maps(checks: Checks, run: Run, X: Tensor, d: int, e: int) -> None:
    forms: dict[str, Map] = {"affine map": affine_map(d, e), "residual MLP": mlp_map(d, e, 2 * d)}
    for name, map in forms.items():
        there = map.to(run.device)
        for rows, x in (("rows", X), ("one vector", X[0])):
            checks.near(
                f"{name}, {rows}",
                lambda map=map, there=there, x=x: relative(there(x.to(run.device)), map(x)),
                SMALL,
            )
        checks.near(
            f"{name}, NumPy rows", lambda map=map, there=there: relative(there(X.numpy()), map(X.numpy())), SMALL
        )


def _pipelines(checks: Checks, run: Run, X: Tensor, d: int, e: int) -> None:
    def same(pipeline: Pipeline, x: Tensor) -> float:
        here, there = pipeline(x), pipeline.to(run.device)(x.to(run.device))
        norms = zip(there.norms, here.norms, strict=True)
        return max(relative(there.translated, here.translated), relative(there.raw, here.raw),
                   *(relative(a.reshape(-1), b.reshape(-1)) for a, b in norms))  # fmt: skip

    first, second, third = affine_map(d, e), affine_map(e, d, 1), mlp_map(d, e, d, 2)
    chains = {
        "Pipeline, both sides unit": Pipeline(("unit", "unit"), (first,)),
        "Pipeline without norms": Pipeline(("none", "none"), (third,)),
        "Pipeline.then, joined in one map": Pipeline(("unit", "none"), (first,)).then(
            Pipeline(("none", "unit"), (second,))
        ),
        "Pipeline.then, a norm between": Pipeline(("unit", "unit"), (first,)).then(
            Pipeline(("unit", "unit"), (second,))
        ),
    }
    for name, pipeline in chains.items():
        checks.near(name, lambda pipeline=pipeline: same(pipeline, 3 * X), SMALL)
    steps = _three_spaces(d, e)
    names = best_route(steps, "a", "c")
    pipeline = reduce(Pipeline.then, (steps[name].pipeline for name in names))
    checks.near(f"route over three spaces ({', '.join(names)})", lambda: same(pipeline, X), SMALL)


def _three_spaces(d: int, e: int) -> dict[str, Stitcher]:
    return {"a-b": stitcher(affine_map(d, e), "a", "b"), "b-c": stitcher(mlp_map(e, d, d, 3), "b", "c")}


def _calibration(X: Tensor, Y: Tensor, device: str) -> Calibration:
    """Fit a map on the first half of the pairs and calibrate it on the two quarters of the second half."""
    X, Y = X.to(device), Y.to(device)
    half, quarter = len(X) // 2, len(X) // 4
    d = decompose(moments((X[:half], Y[:half])))
    parts = [(X[at : at + quarter], Y[at : at + quarter]) for at in (half, half + quarter)]
    made = calibrate(FITS["ridge"](d.moments), d, parts[0], parts[1], Y[:half])
    assert made is not None
    return made


def _measures(calibration: Calibration, X: Tensor) -> dict[str, Tensor]:
    map = affine_map(X.shape[1], X.shape[1] + 8).to(X.device)
    return calibration.measure(X, map(X))


def _confidence(checks: Checks, run: Run, X: Tensor, Y: Tensor, calibration: Calibration) -> None:
    """Compare the confidence measures. `p_typical` is a share of calibration rows and may differ by a few of them."""
    expected = _measures(calibration, X)
    steps = 2 / (1 + len(calibration.atypical))
    ways = {
        "Calibration.measure": (lambda: calibration.to(run.device), STATISTIC),
        "calibrate, then measure": (lambda: _calibration(X.to(run.device), Y.to(run.device), run.device), FITTED),
    }
    for way, (make, tolerance) in ways.items():
        actual: dict[str, Tensor] = {}
        for name, values in expected.items():
            loose = name == "p_typical"

            def difference(make=make, name=name, values=values, actual=actual) -> float:
                if not actual:
                    actual.update(_measures(make(), X.to(run.device)))
                return relative(actual[name], values)

            most = max(tolerance, (1 if way.endswith("measure") and "," not in way else 3) * steps)
            checks.near(f"{way}: {name}", difference, most if loose else tolerance, " (whole rows)" if loose else "")


def _neighbours(checks: Checks, run: Run, X: Tensor, Y: Tensor) -> None:
    x = X.to(run.device)
    here, there = graph(X, K), graph(x, K)
    _same_lists(checks, "graph", there.neighbours, here.neighbours, unit(X), unit(X))
    checks.near(
        "graph, similarities", lambda: relative(there.similarities.reshape(-1), here.similarities.reshape(-1)), SMALL
    )
    checks.near("graph, mean similarity", lambda: relative(there.mean, here.mean), SMALL)
    actual, expected = knn(x[::3] + x[1].clone(), x, K), knn(X[::3] + X[1], X, K)
    _same_lists(checks, "knn", actual, expected, unit(X[::3] + X[1]), unit(X))
    actual, expected = knn(x, x, K, exclude_self=True), knn(X, X, K, exclude_self=True)
    _same_lists(checks, "knn without the row itself", actual, expected, unit(X), unit(X))
    queries = FITS["ridge"](moments((X, Y), yy=False))(X)
    actual, expected = ranks(queries.to(run.device), Y.to(run.device)).cpu(), ranks(queries, Y)
    similar = unit(queries).double() @ unit(Y).double().T
    close = ((similar - similar.diagonal()[:, None]).abs() < TIE).sum(1) - 1
    ties = bool(((actual - expected).abs() <= close).all())
    differ = int((actual != expected).sum())
    checks.add("ranks", f"{differ} of {len(actual):,} differ", "none but ties within 2⁻²²", ties)


def _same_lists(checks: Checks, what: str, actual: Tensor, expected: Tensor, Q: Tensor, G: Tensor) -> None:
    """Check that two sets of neighbours differ only by ties: by neighbours that are equally near in float64."""
    actual, expected = actual.cpu(), expected.cpu()
    same = (actual.sort(1).values == expected.sort(1).values).all(1)
    at = (~same).nonzero()[:, 0]
    near = [(Q[at].double()[:, None] * G[lists[at]].double()).sum(2).sort(1).values for lists in (actual, expected)]
    tied = (near[0] - near[1]).abs().amax(1) < TIE if len(at) else torch.zeros(0, dtype=torch.bool)
    share, rest = float(same.double().mean()), int((~tied).sum())
    ok = 1 - rest / len(same) >= 0.9999
    result = f"{share:.5f} of the sets equal, {int(tied.sum())} differ by ties, {rest} otherwise"
    checks.add(f"{what}, sets of neighbours", result, "≥ 0.9999 but for ties within 2⁻²²", ok)


def _metrics(checks: Checks, run: Run, X: Tensor, Y: Tensor) -> None:
    """Compare each metric's score and, from the same permutations, its standard error and null.

    Differences are relative to the value on the CPU, or to 0.01 if that is larger, as a null may be nearly 0.
    """
    X, Y = X[:1_000], Y[:1_000]
    for name, metric in METRICS.items():

        def difference(name=name, metric=metric) -> float:
            sides = []
            for device in (run.device, "cpu"):
                spaces = [metric.prepare(rows.to(device), K, "X") for rows in (X, Y)]
                measured = measure(name, spaces, [(0, 1)], draws=3).pair(0)
                sides.append([metric.compare(*spaces), measured["score"], measured["se"], measured["null"]])
            return max(abs(a - b) / max(abs(b), 0.01) for a, b in zip(*sides, strict=True))

        lists = name in OF_LISTS
        checks.near(f"metric {name}", difference, LISTS if lists else STATISTIC, " (ties move lists)" if lists else "")


def _fits(checks: Checks, run: Run, X: Tensor, Y: Tensor) -> None:
    here, there = moments((X, Y)), moments((X.to(run.device), Y.to(run.device)))
    for name in ("x_mean", "y_mean", "cov_xx", "cov_xy", "cov_yy"):
        checks.near(f"moments, {name}", lambda name=name: of_norm(getattr(there, name), getattr(here, name)), SMALL)
    for name, fit in FITS.items():
        checks.near(
            f"fit of {name} from the moments", lambda fit=fit: _weights(fit, there, here), FITTED, " of the norm"
        )
    x_values, y_values = (lambda d: (d.x_values, d.y_values))(decompose(there))
    expected = decompose(here)
    checks.near("decompose, eigenvalues of the source", lambda: relative(x_values, expected.x_values), SMALL)
    checks.near("decompose, eigenvalues of the target", lambda: relative(y_values, expected.y_values), SMALL)


def _weights(fit: Callable[[Moments], Map], there: Moments, here: Moments) -> float:
    actual, expected = fit(there), fit(here)
    return max(of_norm(actual.weight, expected.weight), of_norm(actual.bias, expected.bias))


def _placed(checks: Checks, run: Run, calibration: Calibration, d: int, e: int) -> None:
    one = stitcher(affine_map(d, e), calibration=calibration)
    n = 10_000 if run.gpu else 600
    rows = unit_rows(n, d)
    expected, confidence = one.translate_with_confidence(rows)
    for precision, tolerance in PRECISIONS.items():

        def cosines(precision=precision) -> float:
            actual, _ = placed(run, one, precision=precision).translate(rows)
            return float(1 - (actual.astype(np.float64) * expected).sum(1).min())

        checks.near(f"PlacedRoute, {n:,} rows, {precision}: 1 − cosine", cosines, tolerance)

    def measures() -> float:
        actual = placed(run, one).translate(rows, with_measures=True)[1]
        assert actual is not None
        by_name = confidence.to_dict()
        return max(relative(actual[:, i], by_name[name]) for i, name in enumerate(by_name) if name != "p_typical")

    checks.near("PlacedRoute, measures", measures, STATISTIC)
    steps = list(_three_spaces(d, e).values())
    route = placed(run, *steps)
    route.cpu_rows = 0
    checks.near(
        "PlacedRoute over three spaces",
        lambda: relative(route.translate(rows[:300])[0], steps[1].translate(steps[0].translate(rows[:300]))),
        SMALL,
    )


def _trained(checks: Checks, run: Run, X: Tensor, Y: Tensor) -> None:
    """Train on the device, save, load on the CPU, and compare the translations of the two devices."""
    for method in ("canonical", "linear", "mlp"):

        def difference(method=method) -> float:
            recipe = {} if method == "canonical" else {"epochs": 1, "temperatures": (1.0,)}
            recipe |= {"width": 32} if method == "mlp" else {}
            made = repstitch.train(X.numpy(), Y.numpy(), method=method, device=run.device, **recipe)  # type: ignore[arg-type]
            there = made.to(run.device).translate(X.to(run.device))
            with tempfile.TemporaryDirectory() as folder:
                loaded = repstitch.load(made.save(Path(folder) / "stitcher"))
            with exact_products():
                return relative(there, loaded.translate(X.numpy()))

        checks.near(f"trained ({method}), saved, loaded on the CPU", difference, SMALL)
