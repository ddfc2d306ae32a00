import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.serving import make_rows, make_stitcher
from helpers.spaces import calibration

from repstitch.errors import InputError
from repstitch.server.compute import CHUNK_ROWS, CROSSOVER_ROWS, PlacedRoute, Stage, Stopped, _crossover
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.routing import Route

SURE = make_stitcher(calibration=calibration(6, pool=500))
SIZES = (1, 64, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS + 7)


def placed(*stitchers, staged=False, **settings) -> PlacedRoute:
    route = Route(tuple(str(i) for i in range(len(stitchers))), stitchers)
    return PlacedRoute(route, Stage("cpu") if staged else None, **settings)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_translating_in_chunks_equals_translating_at_once(n, staged):
    rows = make_rows(n)
    vectors, measures = placed(SURE, staged=staged).translate(rows, with_measures=True)
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, SURE.translate(rows), atol=1e-6)
    expected = np.column_stack(list(SURE.confidence(rows).to_dict().values()))
    assert measures is not None
    assert np.allclose(measures, expected, rtol=1e-3)
    assert placed(SURE, staged=staged).translate(rows)[1] is None


@pytest.mark.parametrize("staged", [False, True])
def test_reused_buffers_leak_nothing_from_earlier_requests(staged):
    one = placed(make_stitcher(), staged=staged)
    for n in (2500, 3, 1700, 1):
        rows = make_rows(n, seed=n)
        assert np.allclose(one.translate(rows)[0], make_stitcher().translate(rows), atol=1e-6)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("at", [0, CHUNK_ROWS, 2 * CHUNK_ROWS + 5])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_invalid_row_is_refused_at_any_position(staged, at, value):
    rows, one = make_rows(3 * CHUNK_ROWS), placed(make_stitcher(), staged=staged)
    rows[at] = value
    with pytest.raises(InputError):
        one.translate(rows)
    rows[at] = 1.0  # the next request is answered normally
    assert np.allclose(one.translate(rows)[0], make_stitcher().translate(rows), atol=1e-6)


@pytest.mark.parametrize("staged", [False, True])
def test_rows_of_tiny_norm_are_translated_accurately(staged):
    rows = make_rows(5) * np.float32(1e-25)
    vectors, _ = placed(make_stitcher(), staged=staged).translate(rows)
    assert np.allclose(vectors, make_stitcher().translate(make_rows(5)), atol=1e-5)


def test_routes_of_different_dimensions_share_the_buffers_of_one_stage():
    stage = Stage("cpu", slot_floats=2**12)
    memory = [slot.memory.numel() for slot in stage.slots]
    for d_source, d_target in ((3, 2), (700, 30), (40, 2000), (6, 4)):
        stitcher = make_stitcher(d_source=d_source, d_target=d_target, calibration=calibration(d_source, pool=500))
        route = PlacedRoute(Route(("one",), (stitcher,)), stage)
        for n in (1, 2, 300):
            rows = make_rows(n, d_source)
            vectors, measures = route.translate(rows, with_measures=True)
            assert np.allclose(vectors, stitcher.translate(rows), atol=1e-5)
            assert measures is not None
            assert np.allclose(measures, np.column_stack(list(stitcher.confidence(rows).to_dict().values())), rtol=1e-3)
    assert [slot.memory.numel() for slot in stage.slots] == memory


def test_a_stage_whose_device_failed_is_free_for_the_next_call(monkeypatch):
    stage = Stage("cpu")
    route = PlacedRoute(Route(("one",), (make_stitcher(),)), stage)
    waited = []

    def fail(slot) -> None:
        waited.append(slot)
        raise RuntimeError("CUDA error: unspecified launch failure")

    with monkeypatch.context() as patch:
        patch.setattr(type(stage.slots[0]), "wait", fail)
        with pytest.raises(RuntimeError, match="unspecified launch failure"):
            route.translate(make_rows(3 * CHUNK_ROWS))
    assert set(waited) == set(stage.slots)
    assert not stage.lock.locked()
    assert np.allclose(route.translate(make_rows(9))[0], make_stitcher().translate(make_rows(9)), atol=1e-6)


def test_a_route_can_be_placed_while_the_stage_is_locked(monkeypatch):
    stage = Stage("cpu")
    stage.device = torch.device("cuda")  # so that placing measures it against the CPU, in separate buffers
    monkeypatch.setattr("repstitch.server.compute._place", lambda pipeline, *_: pipeline)
    monkeypatch.setattr("repstitch.server.compute.Stage", lambda device, floats: Stage("cpu", floats))
    with stage.lock:
        route = PlacedRoute(Route(("one",), (make_stitcher(),)), stage)
    assert route.cpu_rows in (0, *CROSSOVER_ROWS)


def test_a_route_that_is_no_longer_served_is_freed_at_once():
    one = placed(SURE, staged=True)
    one.translate(make_rows(3 * CHUNK_ROWS))
    freed = weakref.ref(one)
    gc.disable()
    try:
        del one
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("staged", [False, True])
def test_a_cancelled_translation_stops(staged):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        placed(make_stitcher(), staged=staged).translate(make_rows(2 * CHUNK_ROWS), stop=stop)


def test_a_route_of_several_stitchers_applies_them_in_order_and_has_no_measures():
    second = make_stitcher("new", "newest", 4, 5)
    one = placed(SURE, second)
    assert one.measures == ()
    assert np.allclose(one.translate(make_rows(9))[0], second.translate(SURE.translate(make_rows(9))), atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("staged", [False, True])
def test_reduced_precision_weights_give_nearly_the_same_vectors(precision, staged):
    wide = make_stitcher(d_source=96, d_target=80)
    rows = make_rows(200, 96)
    vectors, _ = placed(wide, precision=precision, staged=staged).translate(rows)
    assert vectors.dtype == np.float32
    assert (vectors * wide.translate(rows)).sum(1).min() > 0.9995


@pytest.mark.parametrize("staged", [False, True])
def test_rows_whose_sums_overflow_float16_are_translated_in_float32(staged):
    big = make_stitcher()
    big = replace(big, map=AffineMap(torch.full((6, 4), 6e4) * big.map.weight.sign(), torch.zeros(4)))
    rows = np.vstack([big.map.weight.T.numpy(), make_rows(3)])
    assert not torch.isfinite(big.pipeline.to(dtype=torch.float16).run(torch.from_numpy(rows)).raw).all()
    vectors, _ = placed(big, precision="float16", staged=staged).translate(rows)
    assert np.allclose(vectors, big.translate(rows), atol=1e-5)


def test_weights_that_float16_cannot_represent_stay_in_float32(caplog):
    big = make_stitcher()
    big = replace(big, map=replace(big.map, weight=big.map.weight * 1e6))
    assert placed(big, precision="float16").pipeline.maps[0].weight.dtype == torch.float32
    assert "float16 cannot represent the weights of 0; they stay in float32" in caplog.text


def test_placing_on_the_cpu_copies_no_weights():
    stitcher = make_stitcher()
    assert placed(stitcher).pipeline.maps[0].weight is stitcher.map.weight


def test_the_cpu_takes_requests_of_the_sizes_for_which_it_is_faster(monkeypatch):
    one = placed(make_stitcher(), staged=True)
    times = [3.0, 1.0, 3.0, 2.0, 3.0, 4.0]  # device, cpu, device, cpu …
    calls = iter(times)
    monkeypatch.setattr("repstitch.server.compute._best_time", lambda work: next(calls))
    assert _crossover(one, "cpu", CROSSOVER_ROWS) == CROSSOVER_ROWS[1]
    never = iter([1.0, 2.0])
    monkeypatch.setattr("repstitch.server.compute._best_time", lambda work: next(never))
    assert _crossover(one, "cpu", CROSSOVER_ROWS) == 0


def test_small_requests_on_a_staged_route_bypass_the_stage(monkeypatch):
    one = placed(make_stitcher(), staged=True)
    one.cpu_rows = 4
    assert one.stage is not None
    monkeypatch.setattr(type(one.stage), "translate", lambda *_: 1 / 0)
    assert np.allclose(one.translate(make_rows(4))[0], make_stitcher().translate(make_rows(4)), atol=1e-6)
    with pytest.raises(ZeroDivisionError):
        one.translate(make_rows(5))
