"""What the service tells about itself."""

import re

import httpx
import numpy as np
from helpers.server_calls import LOCAL, URL, client_of, post_rows, service_of
from helpers.serving import eventually, free_port, make_rows, make_stitcher, running, serve_command
from helpers.spaces import confidence
from prometheus_client.parser import text_string_to_metric_families

from repstitch.server.negotiation import OCTETS
from repstitch.server.telemetry import CONTENT_TYPE
from repstitch.stitchers.registry import Registry


def numbers(text: str) -> dict[tuple, float]:
    """Every sample of a page of metrics by its name and its labels, in the order of their names."""
    return {
        (sample.name.removeprefix("repstitch_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


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
    found = metrics_of(client)
    # code, encoding, pair, route
    assert found["requests_total", "200", "f32", "old->new", "translate"] == 2
    assert found["requests_total", "200", "json", "old->new", "translate"] == 1
    assert found["requests_total", "422", "f32", "old->new", "translate"] == 1
    assert found["requests_total", "404", "f32", "none", "translate"] == 1
    assert found["requests_total", "200", "json", "old->new", "embeddings"] == 1
    assert found["vectors_total", "old->new"] == 4 * 3
    assert found["request_seconds_count", "translate"] == 5
    for step in ("decode", "compute", "encode"):
        assert 0 < found["step_seconds_total", step] < 10


def test_what_is_asked_for_without_being_known_makes_no_series(client):
    post_rows(client, make_rows(1), "/v1/translate?source=nobody0&target=new")
    client.post("/v1/embeddings", json={"model": "nobody", "input": [1.5]})
    before = len(metrics_of(client))
    for i in range(50):
        post_rows(client, make_rows(1), f"/v1/translate?source=nobody{i}&target=new")
        client.get(f"/junk{i}")
        client.post("/v1/embeddings", json={"model": f"nobody{i}", "input": [1.5]})
    assert len(metrics_of(client)) == before
    assert not any("nobody" in str(key) or "junk" in str(key) for key in metrics_of(client))


def test_reloads_and_what_is_loaded_are_counted(folder, registry):
    client = client_of(registry)
    service = service_of(client)
    service.metrics.count_reloads(service.refresh(), len(registry.state.stitchers))
    make_stitcher("old", "other").save(folder / "second")
    (folder / "broken").mkdir()
    service.metrics.count_reloads(service.refresh(), len(registry.state.stitchers))
    found = metrics_of(client)
    assert found["reloads_total", "loaded"] == 1
    assert found["reloads_total", "refused"] == 1
    assert found["stitchers_loaded",] == 2


def test_rows_unlike_those_of_the_calibration_show(tmp_path):
    stitcher = make_stitcher("sure", calibration=confidence(6, pool=500))
    stitcher.save(tmp_path / "sure-to-new")
    registry = Registry(tmp_path)
    registry.refresh()
    client = client_of(registry)
    post_rows(client, make_rows(200), "/v1/translate?source=sure&target=new")
    found = metrics_of(client)
    seen = make_rows(200)[:: -(-200 // 16)]
    assert found["checked_vectors_total", "sure->new"] == len(seen)
    expected = (stitcher.confidence(np.ascontiguousarray(seen))["p_typical"] < 0.05).sum()
    assert found["unusual_vectors_total", "sure->new"] == expected
    for _ in range(20):  # at most one look a second
        post_rows(client, make_rows(200), "/v1/translate?source=sure&target=new")
    assert metrics_of(client)["checked_vectors_total", "sure->new"] <= 3 * len(seen)


def test_the_metrics_of_worker_processes_are_added_up(folder, tmp_path):
    port, log = free_port(), tmp_path / "log"
    with running(serve_command(folder, port, workers=2), port, log, env={"REPSTITCH_RELOAD_S": "0.1"}):
        for _ in range(40):  # a connection each, so that both workers get some
            httpx.post(f"{LOCAL}:{port}{URL}", content=make_rows(2).tobytes(), headers={"content-type": OCTETS})

        def said() -> str:
            return httpx.get(f"{LOCAL}:{port}/metrics").text

        eventually(lambda: numbers(said()).get(("requests_total", "200", "f32", "old->new", "translate")) == 40)
        text = said()
        found = numbers(text)
        assert found["requests_total", "200", "f32", "old->new", "translate"] == 40
        assert found["vectors_total", "old->new"] == 80
        assert found["request_seconds_count", "translate"] == 40
        assert found["stitchers_loaded",] == 1
        assert found["reloads_total", "loaded"] == 2  # each worker reads the folder for itself
        assert not re.search(r"pid=", text)
