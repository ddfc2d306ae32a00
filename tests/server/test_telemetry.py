"""The metrics of the service for Prometheus."""

import numpy as np
from helpers.metrics import numbers
from helpers.server_calls import URL, client_of, post_rows, service_of
from helpers.serving import make_rows, make_stitcher
from helpers.spaces import calibration

from repstitch.server.telemetry import CONTENT_TYPE
from repstitch.stitchers.registry import Registry


def metrics_of(client) -> dict[tuple, float]:
    response = client.get("/metrics")
    assert response.headers["content-type"] == CONTENT_TYPE
    return numbers(response.text)


def test_requests_are_counted_by_pair_encoding_and_status(client):
    rows = make_rows(3)
    for _ in range(2):
        post_rows(client, rows)
    client.post(URL, json={"embedding": rows.tolist()})
    post_rows(client, np.zeros((1, 6)))
    post_rows(client, rows, "/v1/translate?source=nobody&target=new")
    client.post("/v1/embeddings", json={"model": "old->new", "input": rows.tolist()})
    metrics = metrics_of(client)
    # code, encoding, pair, route
    assert metrics["requests_total", "200", "f32", "old->new", "translate"] == 2
    assert metrics["requests_total", "200", "json", "old->new", "translate"] == 1
    assert metrics["requests_total", "422", "f32", "old->new", "translate"] == 1
    assert metrics["requests_total", "404", "f32", "none", "translate"] == 1
    assert metrics["requests_total", "200", "json", "old->new", "embeddings"] == 1
    assert metrics["vectors_total", "old->new"] == 4 * 3
    assert metrics["request_seconds_count", "translate"] == 5
    for step in ("decode", "compute", "encode"):
        assert 0 < metrics["step_seconds_total", step] < 10


def test_unknown_names_in_requests_create_no_new_series(client):
    post_rows(client, make_rows(1), "/v1/translate?source=nobody0&target=new")
    client.post("/v1/embeddings", json={"model": "nobody", "input": [1.5]})
    before = len(metrics_of(client))
    for i in range(10):
        post_rows(client, make_rows(1), f"/v1/translate?source=nobody{i}&target=new")
        client.get(f"/junk{i}")
        client.post("/v1/embeddings", json={"model": f"nobody{i}", "input": [1.5]})
    assert len(metrics_of(client)) == before
    assert not any("nobody" in str(key) or "junk" in str(key) for key in metrics_of(client))


def test_reloads_and_loaded_stitchers_are_counted(folder, registry):
    client = client_of(registry)
    service = service_of(client)
    service.metrics.count_reloads(service.refresh(), len(registry.state.stitchers))
    make_stitcher("old", "other").save(folder / "second")
    (folder / "broken").mkdir()
    service.metrics.count_reloads(service.refresh(), len(registry.state.stitchers))
    metrics = metrics_of(client)
    assert metrics["reloads_total", "loaded"] == 1
    assert metrics["reloads_total", "refused"] == 1
    assert metrics["stitchers_loaded",] == 2


def test_rows_unlike_the_calibration_rows_are_counted_as_unusual(tmp_path):
    stitcher = make_stitcher("sure", calibration=calibration(6, pool=500))
    stitcher.save(tmp_path / "sure-to-new")
    registry = Registry(tmp_path)
    registry.refresh()
    client = client_of(registry)
    post_rows(client, make_rows(200), "/v1/translate?source=sure&target=new")
    metrics = metrics_of(client)
    sample = make_rows(200)[:: -(-200 // 16)]
    assert metrics["checked_vectors_total", "sure->new"] == len(sample)
    expected = (stitcher.confidence(np.ascontiguousarray(sample)).p_typical < 0.05).sum()
    assert metrics["unusual_vectors_total", "sure->new"] == expected
    for _ in range(20):  # at most one check per second
        post_rows(client, make_rows(200), "/v1/translate?source=sure&target=new")
    assert metrics_of(client)["checked_vectors_total", "sure->new"] <= 3 * len(sample)
