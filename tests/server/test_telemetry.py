"""The metrics of the service for Prometheus."""

import asyncio

import numpy as np
from helpers.metrics import numbers
from helpers.server_calls import URL, client_of, post_rows, service_of
from helpers.serving import make_rows, make_stitcher
from helpers.spaces import calibration

from repstitch.server.telemetry import CONTENT_TYPE, POST_ROUTES
from repstitch.server.translate import ENCODINGS
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
    client.get("/junk")
    metrics_of(client)
    before = len(metrics_of(client))
    for i in range(10):
        post_rows(client, make_rows(1), f"/v1/translate?source=nobody{i}&target=new")
        client.get(f"/junk{i}")
        client.post("/v1/embeddings", json={"model": f"nobody{i}", "input": [1.5]})
    assert len(metrics_of(client)) == before
    assert not any("nobody" in str(key) or "junk" in str(key) for key in metrics_of(client))


def test_reads_refused_keys_and_unknown_paths_are_counted(registry):
    client = client_of(registry, api_keys=("key",))
    client.headers["authorization"] = "Bearer key"
    for path in ("/v1/stitchers", "/v1/stitchers/old-to-new", "/v1/stitchers/nothing", "/docs", "/docs", "/no"):
        client.get(path)
    client.get("/v1/translate")
    refused = {"authorization": "Bearer other"}
    client.get("/v1/stitchers", headers=refused)
    post_rows(client, make_rows(1), **refused)
    metrics = metrics_of(client)
    expected = {
        ("200", "stitchers"): 1,
        ("200", "stitchers/{name}"): 1,
        ("404", "stitchers/{name}"): 1,
        ("200", "docs"): 2,
        ("404", "none"): 1,
        ("405", "none"): 1,
        ("401", "none"): 2,
        ("200", "metrics"): 0,  # the request that is being answered
        ("200", "spaces"): 0,
    }
    assert {key: metrics["requests_total", key[0], "none", "none", key[1]] for key in expected} == expected
    assert metrics_of(client)["requests_total", "200", "none", "none", "metrics"] == 1


def test_the_requests_of_a_served_pair_start_at_0(folder, registry):
    client = client_of(registry)
    asyncio.run(service_of(client).reload())
    make_stitcher("x", "y").save(folder / "more")
    asyncio.run(service_of(client).reload())
    metrics = metrics_of(client)
    for pair in ("old->new", "x->y"):
        for route, encodings in POST_ROUTES.items():
            assert [metrics["requests_total", "200", encoding, pair, route] for encoding in encodings] == [0] * len(
                encodings
            )
    assert {*ENCODINGS.values(), "base64"} == set(POST_ROUTES["translate"])


def test_reloads_loaded_stitchers_and_candidates_are_counted(folder, registry):
    client = client_of(registry)
    service = service_of(client)
    asyncio.run(service.reload())
    make_stitcher("old", "other").save(folder / "second")
    make_stitcher("old", "other", seed=1).save(folder / "third")
    (folder / "broken").mkdir()
    asyncio.run(service.reload())
    metrics = metrics_of(client)
    assert metrics["reloads_total", "loaded"] == 2
    assert metrics["reloads_total", "refused"] == 1
    assert metrics["stitchers_loaded",] == 3
    assert metrics["stitchers_candidates",] == 1


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
