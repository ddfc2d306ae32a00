"""Every function that takes a device, tested on a pretended device and, with the mark `gpu`, on a CUDA device.

The pretended device computes on the CPU, so its results must equal those of the CPU bit for bit. A real device sums
float32 numbers in another order, so its results must only be close.
"""

import ast
import contextlib
import copy
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from helpers.encoders import TEXTS, card, noise
from helpers.pretend_cuda import Pretend, pretend_cuda
from helpers.serving import make_rows, make_stitcher
from helpers.spaces import calibration, tiny_bert

import repstitch as rs
from repstitch.bulk.translation import Translation
from repstitch.cli.main import main
from repstitch.cli.migrate import _load
from repstitch.embeddings.writing import write
from repstitch.encoders import from_module, load_encoder
from repstitch.fit.calibration import calibrate, evaluate
from repstitch.fit.closed_form import FITS, decompose
from repstitch.fit.lightning_modules import RefineModule, Refiner, draw_extra
from repstitch.fit.losses import LOSSES
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.recipe import Recipe
from repstitch.fit.selection import Problem, select
from repstitch.fit.spectrum import shared_spectrum
from repstitch.metrics.alignment import METRICS
from repstitch.metrics.moments import moments
from repstitch.metrics.neighbours import BLOCK, DEVICE_TILE_ROWS, TILE_ROWS, count_repeats, graph, knn, tile_rows
from repstitch.metrics.null import random_orders
from repstitch.metrics.retrieval import ranks, search
from repstitch.server.compute import CHUNK_ROWS, PlacedRoute, Stage
from repstitch.server.service import Service
from repstitch.server.settings import Settings
from repstitch.stitchers.maps import AffineMap, ResidualMLP
from repstitch.stitchers.pipeline import Pipeline
from repstitch.stitchers.registry import Registry
from repstitch.stitchers.routing import Route

PACKAGE = Path(rs.__file__).parent
DEVICES = ["pretended", pytest.param("cuda", marks=pytest.mark.gpu)]
DERIVED = {"pwcca"}  # its standard errors need autograd, which ends the process without a real device


@pytest.fixture(params=DEVICES)
def device(request):
    """Yield the tolerance of results on the device, and the pretended device that counts waits (None if real)."""
    if request.param == "cuda":
        yield 1e-4, None
    else:
        with pretend_cuda() as pretended:
            yield 0.0, pretended


def spaces(n=400, d=24, e=32, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=random)
    Y = X @ torch.randn(d, e, generator=random) + 0.5 * torch.randn(n, e, generator=random)
    return torch.nn.functional.normalize(X, dim=1), torch.nn.functional.normalize(Y, dim=1)


def near(actual, expected, tolerance: float) -> bool:
    actual, expected = (
        v.detach().cpu() if isinstance(v, torch.Tensor) else torch.as_tensor(v) for v in (actual, expected)
    )
    if not tolerance:
        return torch.equal(actual, expected)
    return torch.allclose(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_on_the_device_equals_the_metric_on_the_cpu(metric, device):
    X, Y = spaces(120)
    assert near(METRICS[metric](X.to("cuda"), Y.to("cuda"), 5), METRICS[metric](X, Y, 5), device[0])


@pytest.mark.parametrize("metric", METRICS)
def test_null_distributions_and_standard_errors_on_the_device_equal_those_on_the_cpu(metric, device):
    X, Y = spaces(60)
    form, sides = METRICS[metric], []
    for where in ("cuda", "cpu"):
        prepared = [form.prepare(rows.to(where), 5, "X") for rows in (X, Y)]
        errors = device[1] is None or metric not in DERIVED
        scores = form.scores(prepared, [(0, 1)]) if errors else [form.compare(prepared[0], prepared[1])]
        sides.append([*scores, form.draws(prepared, [(0, 1)], random_orders(60, 9, seed=0))])
    for there, here in zip(*sides, strict=True):
        assert near(there, here, device[0])


def test_neighbours_and_ranks_on_the_device_equal_those_on_the_cpu(device):
    X, Y = spaces(3000, 8, 8)
    actual, expected = graph(X.to("cuda"), 10), graph(X, 10)
    assert (actual.neighbours.cpu() == expected.neighbours).float().mean() > 0.9999
    assert near(actual.similarities, expected.similarities, device[0])
    assert near(actual.mean, expected.mean, device[0])
    assert (knn(X[:50].to("cuda"), Y.to("cuda"), 7).cpu() == knn(X[:50], Y, 7)).float().mean() > 0.999
    assert near(ranks(X.to("cuda"), Y.to("cuda")), ranks(X, Y), 1e-3)
    copies = torch.arange(len(Y))
    for there, here in zip(
        search(X.to("cuda"), Y.to("cuda"), 5, copies.to("cuda")), search(X, Y, 5, copies), strict=True
    ):
        assert (there.cpu() == here).float().mean() > 0.999
    assert count_repeats(torch.cat([X, X[:40]]).to("cuda")) == 40


@pytest.mark.parametrize("method", FITS)
def test_a_closed_form_fit_on_the_device_equals_the_fit_on_the_cpu(method, device):
    X, Y = spaces()
    actual, expected = FITS[method](moments((X.to("cuda"), Y.to("cuda")))), FITS[method](moments((X, Y)))
    assert actual.weight.device.type == "cuda"
    assert near(actual(X.to("cuda")), expected(X), device[0])


@pytest.mark.parametrize("objective", LOSSES)
@pytest.mark.parametrize("gallery", [64, 4096])
@pytest.mark.parametrize("width", [0, 16])
def test_a_training_step_on_the_device_has_the_same_loss_as_on_the_cpu(width, gallery, objective, device):
    """Dropout is off, because a real device draws its own random numbers. The step must not wait for the device."""
    X, Y = spaces()
    recipe = Recipe(width=width, gallery=gallery, dropout=0.0)
    losses, rows = [], torch.arange(32)
    for where in ("cuda", "cpu"):
        x, y = X.to(where), Y.to(where)
        decomposition = decompose(moments((x, y)))
        torch.manual_seed(0)
        refiner = Refiner(FITS["canonical"](decomposition.moments), decomposition, recipe)
        validation = ValidationObjective(objective, x[:50], y[:50], y)
        module = RefineModule(refiner, x, y, validation, 0.05, recipe, LOSSES[objective])
        extra = draw_extra(rows, len(Y), gallery, seed=3)
        extra = None if extra is None else extra.to(where)
        batch = rows.to(where)
        if device[1] is not None:
            device[1].waits.clear()
        with torch.no_grad():
            loss = module.loss(refiner(module.X[batch]), batch, extra)
        assert device[1] is None or not device[1].waits
        losses.append(loss)
    assert near(losses[0], losses[1], device[0])


@pytest.mark.slow
@pytest.mark.parametrize("objective", LOSSES)
def test_training_on_the_device_chooses_the_same_map_as_on_the_cpu(objective, device):
    X, Y = (rows.numpy() for rows in spaces(500))
    settings: dict[str, Any] = {"objective": objective, "epochs": 2, "refit_on_all": True, "learning_curve": True}
    # Autograd asks the CUDA driver for the device, so with a pretended device the refinement runs on the CPU.
    refined_on: dict[str, Any] = {} if device[1] is None else {"accelerator": "cpu"}
    actual = rs.train(X, Y, device="cuda", **settings, **refined_on)
    expected = rs.train(X, Y, device="cpu", **settings)
    assert actual.map.weight.device.type == "cpu"
    if device[0]:
        assert actual.method == expected.method
        assert (actual.translate(X) * expected.translate(X)).sum(1).min() > 0.999
    else:
        assert actual.scorecard.to_dict() == expected.scorecard.to_dict()
        assert near(actual.map.weight, expected.map.weight, 0)
    assert (actual.translate(X[:5]) * actual.to("cuda").translate(X[:5])).sum(1).min() > 0.99999


def test_a_copy_from_the_pretended_device_arrives_only_when_its_stream_is_synchronised():
    with pretend_cuda():
        stream, here = torch.cuda.Stream(), torch.zeros(3)
        with torch.cuda.stream(stream):
            here.copy_(torch.ones(3).to("cuda"), non_blocking=True)
        torch.cuda.current_stream().synchronize()
        assert (here == 0).all()
        stream.synchronize()
        assert (here == 1).all()


def test_tuning_waits_for_the_device_a_few_times_per_map_and_copies_no_rows_back():
    X, Y = spaces(600)
    with pretend_cuda() as pretended:
        x, y = X.to("cuda"), Y.to("cuda")
        problem = Problem(x[:400], y[:400], ValidationObjective("match", x[400:], y[400:], y[:400]))
        pretended.waits.clear()
        _, tried = select(problem, "canonical")
    maps = len(tried[0].tried)
    assert maps > 5
    assert pretended.waits["aten::_to_copy"] == 0
    assert pretended.waits["aten::_local_scalar_dense"] < 12 * maps


def test_confidence_on_the_device_equals_confidence_on_the_cpu(device):
    X, Y = spaces(600)
    results = []
    for where in ("cuda", "cpu"):
        x, y = X.to(where), Y.to(where)
        decomposition = decompose(moments((x[:300], y[:300])))
        map = FITS["canonical"](decomposition.moments)
        calibrated = calibrate(map, decomposition, (x[300:400], y[300:400]), (x[400:500], y[400:500]), y[:300])
        assert calibrated is not None
        scores = evaluate(calibrated, map, x[500:], y[500:]).to_dict()
        results.append((calibrated.measure(x, map(x)), scores, shared_spectrum(decomposition, x[300:], y[300:])))
    for name, values in results[1][0].items():
        assert near(results[0][0][name], values, 10 * device[0])
    if not device[0]:
        assert results[0][1:] == results[1][1:]


def test_maps_and_pipelines_on_the_device_give_the_same_rows_as_on_the_cpu(device):
    random = torch.Generator().manual_seed(0)
    W, V = torch.randn(6, 4, generator=random), torch.randn(4, 5, generator=random)
    affine, second = AffineMap(W, torch.randn(4, generator=random)), AffineMap(V, torch.zeros(5))
    hidden = (
        torch.randn(6, 3, generator=random),
        torch.randn(3, generator=random),
        torch.randn(3, 4, generator=random),
    )
    mlp = ResidualMLP(W, affine.bias, *hidden)
    rows = torch.randn(9, 6, generator=random)
    for map in (affine, mlp):
        assert near(map.to("cuda")(rows.to("cuda")), map(rows), device[0])
        assert near(map.to("cuda")(rows[0].to("cuda")), map(rows[0]), device[0])
        assert near(map.to("cuda")(rows.numpy()), map(rows.numpy()), device[0])
        assert near(map.to("cuda").then(second.to("cuda"))(rows.to("cuda")), map.then(second)(rows), device[0])
        chain = Pipeline(("unit", "unit"), (map,)).then(Pipeline(("none", "unit"), (second,)))
        assert near(chain.to("cuda")(rows.to("cuda")).translated, chain(rows).translated, device[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_route_placed_on_the_device_translates_as_on_the_cpu(precision, device):
    wide = make_stitcher(d_source=96, d_target=80, calibration=calibration(96, pool=500))
    placed = PlacedRoute(Route(("one",), (wide,)), Stage("cuda"), precision)
    for n in (1, 64, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS + 7, 5000):
        rows = make_rows(n, 96)
        vectors, measures = placed.translate(rows, with_measures=True)
        assert (vectors * wide.translate(rows)).sum(1).min() > (0.99999 if precision == "float32" else 0.9995)
        assert measures is not None
        assert measures.shape == (n, 5)
    bad = make_rows(3000, 96)
    bad[2000] = np.nan
    with pytest.raises(rs.InputError, match="must be finite"):
        placed.translate(bad)


def test_all_routes_of_a_service_share_the_pinned_buffers_of_one_stage(tmp_path, device):
    stitchers = {}
    for i in range(10):
        stitcher = make_stitcher("old", f"new{i}", 24, 8 * (i + 1))
        stitcher.save(tmp_path / f"old-new{i}")
        stitchers[f"new{i}"] = stitcher
    service = Service(Registry(tmp_path), Settings(device="cuda"))
    service.refresh()
    routes = [service.resolve({"source": "old", "target": target}).placed for target in stitchers]
    assert len({id(route.stage) for route in routes}) == 1
    assert routes[0].stage is not None
    assert routes[0].pipeline.maps[0].weight.device.type == "cuda"
    assert sum(slot.memory.numel() for slot in routes[0].stage.slots) * 4 == 64 * 2**20
    rows = make_rows(300, 24)
    for route, stitcher in zip(routes, stitchers.values(), strict=True):
        route.cpu_rows = 0
        assert np.allclose(route.translate(rows)[0], stitcher.translate(rows), atol=1e-5)


@pytest.mark.parametrize("k", [1, 10, 64, 127, 512, 5000])
def test_a_tile_fits_the_free_memory_of_the_device(k, device, monkeypatch):
    rows = torch.zeros(4, 3).to("cuda")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)
    for free in (2**24, 2**27, 2**30, 2**33, 2**36):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, 2**37))
        for columns in (None, 3000, 1_000_000):
            tile = tile_rows(rows, k, columns)
            wide = columns or tile
            measured = 93 if k >= wide // BLOCK else 30  # bytes per comparison, by PyTorch's profiler on the CPU
            assert BLOCK <= tile <= DEVICE_TILE_ROWS
            assert tile.bit_count() == 1
            assert tile == BLOCK or measured * tile * wide <= free
    assert tile_rows(torch.zeros(4, 3), k, 10_000_000) == TILE_ROWS


def test_a_translation_on_the_device_does_not_wait_before_the_copy_back(device):
    pipeline = make_stitcher(d_source=96, d_target=80).pipeline.to("cuda")
    rows = torch.randn(100, 96).to("cuda")
    with no_waiting(device[1]):
        pipeline.run(rows)


def test_an_atlas_made_on_the_device_equals_one_made_on_the_cpu(device):
    rows = [space.numpy() for seed in (0, 1) for space in spaces(150, seed=seed)]
    metrics = [metric for metric in METRICS if device[1] is None or metric not in DERIVED]
    actual, expected = (
        rs.atlas(rows, metrics=metrics, k=5, permutations=5, device=where).to_dict() for where in ("cuda", "cpu")
    )
    for metric, result in expected["metrics"].items():
        for name in ("score", "null", "se"):
            there, here = (np.array(r[name], dtype=float) for r in (actual["metrics"][metric], result))
            assert np.allclose(there, here, atol=10 * device[0], rtol=0, equal_nan=True), (metric, name)


@pytest.mark.parametrize("pooling", ["mean", "cls", "none"])
def test_an_encoder_on_the_device_gives_the_same_vectors_as_on_the_cpu(pooling, device):
    model = timm.create_model("test_vit", num_classes=0, img_size=32)
    steps = [
        from_module(copy.deepcopy(model), card("test_vit", pooling=pooling), device=where, precision="float32")
        for where in ("cuda", "cpu")
    ]
    pictures, convolutions = noise(7), cast(Any, torch.backends.cudnn).conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"  # PyTorch's default is TF32
    try:
        there, here = (encoder.encode(pictures, batch_size=3) for encoder in steps)
    finally:
        convolutions.fp32_precision = before
    assert np.allclose(there, here, atol=device[0] or 1e-6)


def test_texts_encoded_on_the_device_have_the_same_vectors_as_on_the_cpu(tmp_path, device):
    folder = tiny_bert(tmp_path / "tiny-bert")
    there, here = (
        load_encoder(f"transformers:{folder}", pooling="mean", device=where, precision="float32").encode(TEXTS, 2)
        for where in ("cuda", "cpu")
    )
    assert np.allclose(there, here, atol=device[0] or 1e-6)


def test_a_file_translated_on_the_device_equals_one_translated_on_the_cpu(tmp_path, device):
    sure = calibration(24, pool=500)
    stitcher, measures = make_stitcher(d_source=24, d_target=32, calibration=sure), sure.names
    stitcher.save(tmp_path / "old-new")
    write(tmp_path / "old.parquet", rs.Embeddings(make_rows(700, 24), stitcher.source))
    tables = []
    for where in ("cuda", "cpu"):
        arguments = ["translate", tmp_path / "old-new", tmp_path / "old.parquet", "--confidence", "--device", where]
        assert main([str(part) for part in [*arguments, "--out", tmp_path / f"{where}.parquet"]]) == 0
        tables.append(pq.read_table(tmp_path / f"{where}.parquet"))
    there, here = tables
    assert there.schema.equals(here.schema)
    for name in here.column_names:
        if name in measures or name == "vector":
            actual, expected = (np.array(table[name].to_pylist()) for table in tables)
            assert np.allclose(actual, expected, atol=10 * device[0], rtol=0), name
        else:
            assert there[name].equals(here[name]), name


def test_a_migration_translates_on_the_device_as_on_the_cpu(tmp_path, device):
    stitcher = make_stitcher(d_source=24, d_target=32)
    rows = make_rows(700, 24)
    rows[3] = 0
    here = Translation(stitcher)(rows)
    there = Translation(_load(str(stitcher.save(tmp_path / "old-new"))))(rows)
    assert np.flatnonzero(np.isnan(there).any(axis=1)).tolist() == [3]
    assert np.allclose(there, here, atol=device[0] or 1e-6, equal_nan=True)


def test_a_stitcher_on_the_device_has_the_same_scores_as_on_the_cpu(device):
    X, Y = (rows.numpy() for rows in spaces(300))
    stitcher = rs.train(X, Y, source_space="old", target_space="new", method="ridge", device="cpu")
    pairs = {"source_space": "old", "target_space": "new"}
    new = [rows.numpy() for rows in spaces(300, seed=1)]
    there, here = (rs.score(each, *new, **pairs).query_recall for each in (stitcher.to("cuda"), stitcher))
    assert there == pytest.approx(here, abs=100 * device[0])


def test_alignment_of_two_spaces_on_the_device_equals_that_on_the_cpu(device):
    X, Y = (rows.numpy() for rows in spaces(150))
    there, here = (rs.align(X, Y, k=5, permutations=5, device=where).to_dict() for where in ("cuda", "cpu"))
    assert there["score"] == pytest.approx(here["score"], abs=10 * device[0])
    assert there["null"] == pytest.approx(here["null"], abs=10 * device[0])


def test_threads_that_place_the_first_routes_together_open_one_stage(tmp_path, device, monkeypatch):
    """Here the stage takes long to open, and fails the first time."""
    for i in range(2):
        make_stitcher("old", f"new{i}", 24, 8).save(tmp_path / f"old-new{i}")
    service = Service(Registry(tmp_path), Settings(device="cuda"))
    service.registry.refresh()
    opened: list[Stage] = []
    entered = threading.Event()

    def open_slowly(device: str) -> Stage:
        if not entered.is_set():
            entered.set()
            time.sleep(0.2)
            raise RuntimeError("CUDA error: out of memory")
        opened.append(Stage(device))
        return opened[-1]

    monkeypatch.setattr("repstitch.server.service.Stage", open_slowly)

    failed = threading.Thread(target=service.refresh)  # which logs the error
    failed.start()
    assert entered.wait(10)
    routes = [service.resolve({"source": "old", "target": f"new{i}"}).placed for i in range(2)]
    failed.join()
    service.refresh()
    assert len(opened) == 1
    assert all(route.stage is opened[0] for route in routes)


def test_every_function_that_picks_a_device_is_tested_here():
    functions = set()
    for file in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                if {call.id for call in calls if isinstance(call, ast.Name)} & {"pick_device", "open_device"}:
                    functions.add(f"{file.relative_to(PACKAGE)}: {function.name}")
    assert functions == set(TESTS_BY_FUNCTION)


TESTS_BY_FUNCTION = {
    "alignment/measuring.py: atlas": test_an_atlas_made_on_the_device_equals_one_made_on_the_cpu,
    "alignment/pair.py: align": test_alignment_of_two_spaces_on_the_device_equals_that_on_the_cpu,
    "cli/migrate.py: _load": test_a_migration_translates_on_the_device_as_on_the_cpu,
    "cli/translate.py: run": test_a_file_translated_on_the_device_equals_one_translated_on_the_cpu,
    "encoders/encoder.py: from_module": test_an_encoder_on_the_device_gives_the_same_vectors_as_on_the_cpu,
    "server/settings.py: choose_device": test_all_routes_of_a_service_share_the_pinned_buffers_of_one_stage,
    "workflows/training.py: train": test_training_on_the_device_chooses_the_same_map_as_on_the_cpu,
}


@contextlib.contextmanager
def no_waiting(pretended: Pretend | None):
    """Fail if the program waits for the device inside the block."""
    if pretended is None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        pretended.waits.clear()
        yield
        assert not pretended.waits
