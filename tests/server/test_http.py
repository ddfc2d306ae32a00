import asyncio
import base64
import logging
import os
import shutil
import threading
import time

import httpx
import numpy as np
import pytest
from helpers.scorecards import scorecard_of
from helpers.server_calls import LOCAL, URL, client_of, post_rows, read_rows, refused
from helpers.serving import eventually, make_rows, make_stitcher
from helpers.spaces import confidence
from starlette.testclient import TestClient

from repstitch.server import compute, listing
from repstitch.server.app import create_app
from repstitch.server.negotiation import OCTETS, MediaType, reply_type
from repstitch.server.responses import JSON
from repstitch.server.service import INLINE_ROWS
from repstitch.server.settings import Settings
from repstitch.stitchers.pipeline import Pipeline
from repstitch.stitchers.registry import Registry
from repstitch.stitchers.stitcher import Stitcher


def b64(rows) -> str:
    return base64.b64encode(np.asarray(rows, "<f4").tobytes()).decode()


# --- translating ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, INLINE_ROWS, INLINE_ROWS + 1, 2500])
def test_rows_come_back_translated_by_the_stitcher(client, n):
    rows = make_rows(n)
    response = post_rows(client, rows)
    assert np.allclose(read_rows(response), make_stitcher().translate(rows), atol=1e-6)
    assert response.headers["content-type"] == OCTETS
    assert response.headers["x-rows"] == str(n)
    assert response.headers["x-dim"] == "4"
    assert response.headers["x-stitcher"] == "old-to-new"
    assert response.headers["x-stitcher-version"] == make_stitcher().version


def test_one_vector_in_json_gives_one_vector(client):
    rows = make_rows(1)
    body = {"embedding": rows[0].tolist(), "source": "old", "target": "new"}
    response = client.post("/v1/translate", json=body)
    assert response.status_code == 200
    answer = response.json()
    assert np.allclose(answer.pop("embedding"), make_stitcher().translate(rows)[0], atol=1e-6)
    assert answer == {
        "source": "old",
        "target": "new",
        "stitcher": "old-to-new",
        "version": make_stitcher().version,
        "rows": 1,
        "dim": 4,
    }
    assert response.headers["x-stitcher-version"] == answer["version"]


@pytest.mark.parametrize("n", [1, 2, 5000])
def test_a_list_of_vectors_in_json_gives_a_list(client, n):
    rows = make_rows(n)
    answer = client.post(URL, json={"embedding": rows.tolist()}).json()
    assert np.allclose(answer["embedding"], make_stitcher().translate(rows), atol=1e-6)
    assert answer["rows"] == n


def test_base64_answers_base64_unless_floats_are_asked_for(client):
    rows = make_rows(2)
    expected = make_stitcher().translate(rows)
    answer = client.post(URL, json={"embedding": b64(rows)}).json()
    assert np.allclose(np.frombuffer(base64.b64decode(answer["embedding"]), "<f4"), expected.reshape(-1), atol=1e-6)
    answer = client.post(URL, json={"embedding": b64(rows), "encoding_format": "float"}).json()
    assert np.allclose(answer["embedding"], expected, atol=1e-6)
    answer = client.post(URL, json={"embedding": rows[0].tolist(), "encoding_format": "base64"}).json()
    assert np.allclose(np.frombuffer(base64.b64decode(answer["embedding"]), "<f4"), expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("accept", "body", "reply"),
    [
        ("", JSON, JSON),
        ("*/*", OCTETS, OCTETS),
        ("application/json", OCTETS, JSON),
        ("application/octet-stream", JSON, OCTETS),
        ("application/*", JSON, JSON),
        ("application/json;q=0.5, application/octet-stream", JSON, OCTETS),
        ("application/json;q=0, */*", JSON, OCTETS),
        ("text/html, */*;q=0.1", OCTETS, OCTETS),
        ("APPLICATION/JSON", OCTETS, JSON),
        ("application/json;q=nan, application/octet-stream;q=0.1", JSON, OCTETS),
    ],
)
def test_accept_chooses_the_reply(accept, body, reply):
    form = reply_type(accept.encode(), MediaType(body))
    assert (body if form is None else form.kind) == reply


def test_rows_can_come_back_as_json(client):
    rows = make_rows(2)
    answer = post_rows(client, rows, accept=JSON).json()
    assert np.allclose(answer["embedding"], make_stitcher().translate(rows), atol=1e-6)


def test_json_can_come_back_as_rows(client):
    rows = make_rows(2)
    response = client.post(URL, json={"embedding": rows.tolist()}, headers={"accept": OCTETS})
    assert np.allclose(read_rows(response), make_stitcher().translate(rows), atol=1e-6)


def test_a_stitcher_without_input_normalisation_takes_zeros(folder):
    make_stitcher("raw", "new", input_norm="none").save(folder / "raw-to-new")
    registry = Registry(folder)
    registry.refresh()
    zeros = np.zeros((1, 6), np.float32)
    response = post_rows(client_of(registry), zeros, "/v1/translate?source=raw&target=new")
    assert np.allclose(read_rows(response), make_stitcher(input_norm="none").translate(zeros))


def test_translating_leaves_torch_nothing_to_warn_about(client, recwarn):
    post_rows(client, make_rows(1))
    client.post(URL, json={"embedding": b64(make_rows(1))})
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


# --- confidence -------------------------------------------------------------------------------------------------------

SURE = "/v1/translate?source=sure&target=new"
MEASURES = ["p_match@500", "cosine_lower", "p_typical", "shared", "distance"]


@pytest.fixture
def sure(folder) -> tuple[TestClient, Stitcher]:
    stitcher = make_stitcher("sure", calibration=confidence(6, pool=500))
    stitcher.save(folder / "sure-to-new")
    registry = Registry(folder)
    registry.refresh()
    return client_of(registry), stitcher


@pytest.mark.parametrize("n", [1, INLINE_ROWS + 1, 2500])
def test_confidence_comes_as_columns_behind_each_row(sure, n):
    client, stitcher = sure
    rows = make_rows(n)
    response = post_rows(client, rows, SURE + "&confidence=true")
    found = read_rows(response, 4 + len(MEASURES))
    assert np.allclose(found[:, :4], stitcher.translate(rows), atol=1e-6)
    assert np.allclose(found[:, 4:].T, list(stitcher.confidence(rows).values()), rtol=1e-3)
    assert response.headers["x-confidence"].split(",") == MEASURES
    assert (response.headers["x-dim"], response.headers["x-rows"]) == ("4", str(n))


@pytest.mark.parametrize("where", ["query", "body", "both"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_confidence_comes_as_lists_in_json(sure, where, encoding):
    client, stitcher = sure
    rows = make_rows(3)
    body = {"embedding": rows.tolist(), "encoding_format": encoding}
    body |= {} if where == "query" else {"confidence": True}
    answer = client.post(SURE + ("" if where == "body" else "&confidence=true"), json=body).json()
    assert list(answer["confidence"]) == MEASURES
    for name, values in stitcher.confidence(rows).items():
        assert np.allclose(answer["confidence"][name], values, rtol=1e-3)
    found = answer["embedding"]
    vectors = np.frombuffer(base64.b64decode(found), "<f4").reshape(3, 4) if encoding == "base64" else found
    assert np.allclose(vectors, stitcher.translate(rows), atol=1e-6)
    assert answer["dim"] == 4


def test_confidence_of_one_vector_is_one_number_a_measure(sure):
    client, stitcher = sure
    rows = make_rows(1)
    answer = client.post(SURE, json={"embedding": rows[0].tolist(), "confidence": True}).json()
    expected = {name: pytest.approx(float(values[0]), rel=1e-3) for name, values in stitcher.confidence(rows).items()}
    assert answer["confidence"] == expected
    assert len(answer["embedding"]) == 4


@pytest.mark.parametrize("asked", ["", "&confidence=false"])
def test_confidence_is_left_out_unless_it_is_asked_for(sure, asked):
    client, _ = sure
    response = post_rows(client, make_rows(3), SURE + asked)
    assert read_rows(response).shape == (3, 4)
    assert "x-confidence" not in response.headers
    assert "confidence" not in client.post(SURE + asked, json={"embedding": [1.0] * 6}).json()


def test_confidence_of_a_stitcher_without_calibration_is_409(client):
    message = "The stitcher 'old-to-new' has no calibration, so it cannot tell confidence; ask without it"
    refused(post_rows(client, make_rows(1), URL + "&confidence=true"), 409, message, "confidence")
    refused(client.post(URL, json={"embedding": [1.0] * 6, "confidence": True}), 409, message, "confidence")
    assert post_rows(client, make_rows(1), URL + "&confidence=false").status_code == 200


@pytest.mark.parametrize("value", ["1", "True", "", "yes", "true%20"])
def test_a_confidence_that_is_neither_true_nor_false_is_400(sure, value):
    response = post_rows(sure[0], make_rows(1), f"{SURE}&confidence={value}")
    refused(response, 400, "`confidence` must be true or false; got", "confidence")


@pytest.mark.parametrize("value", [1, "true", None, [True]])
def test_a_confidence_in_json_that_is_no_boolean_is_400(sure, value):
    response = sure[0].post(SURE, json={"embedding": [1.0] * 6, "confidence": value})
    refused(response, 400, "`confidence` must be true or false; got", "confidence")


def test_confidence_asked_for_in_the_query_and_not_in_the_body_is_refused(sure):
    response = sure[0].post(SURE + "&confidence=true", json={"embedding": [1.0] * 6, "confidence": False})
    refused(response, 400, "`confidence` is True in the query and False in the body; give it once", "confidence")


def test_rows_that_cannot_be_translated_have_no_confidence_either(sure):
    response = post_rows(sure[0], np.zeros((2, 6)), SURE + "&confidence=true")
    refused(response, 422, "must have a direction; 2 of 2 rows", "embedding")


# --- refusing what cannot be read or used -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("embedding", "status", "message"),
    [
        (["0.1"] * 6, 400, "at position 0 came text"),
        ([None] * 6, 400, "at position 0 came null"),
        ([[1, 2, 3], [4, 5, 6]], 422, "The rows of `embedding` must have 6 numbers; got 3"),
        ([0.0] * 6, 422, "must have a direction; 1 of 1 rows (first: row 0) hold only zeros"),
        ([[1.0] * 6, [1e39] * 6], 422, "must be finite float32 numbers; 1 of 2 rows (first: row 1) hold NaN or Inf"),
        ("AAA", 400, "must be standard base64 of float32 bytes"),
        (b64([np.nan] * 6), 422, "must be finite float32 numbers"),
        ([], 400, "it is empty"),
    ],
)
def test_an_embedding_that_cannot_be_translated_is_refused(client, embedding, status, message):
    refused(client.post(URL, json={"embedding": embedding}), status, message, "embedding")


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"[1, 2]", "The body must be a JSON object", None),
        (b"", "The body must be JSON", None),
        (b"{", "The body must be JSON", None),
        (b'{"vector": []}', "`embedding` is missing", "embedding"),
        (b'{"embedding": [NaN]}', "The body must be JSON", None),
    ],
)
def test_a_body_that_is_no_request_is_400(client, body, message, param):
    response = client.post(URL, content=body, headers={"content-type": JSON})
    refused(response, 400, message, param)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "The body must hold at least one row of 6 float32 numbers; it is empty"),
        (b"x" * 25, 400, "a multiple of 4 bytes long; got 25"),
        (b"x" * 28, 422, "a multiple of 24 bytes; got 28"),
    ],
)
def test_bytes_that_are_no_rows_are_refused(client, content, status, message):
    response = client.post(URL, content=content, headers={"content-type": OCTETS})
    refused(response, status, message, "embedding")


@pytest.mark.parametrize("n", [1, 3000])
def test_rows_that_cannot_be_translated_are_counted_over_the_whole_body(client, n):
    rows = np.concatenate([make_rows(n), np.full((2, 6), np.nan, np.float32)])
    message = f"2 of {n + 2} rows (first: row {n}) hold NaN or Inf"
    refused(post_rows(client, rows), 422, message, "embedding")


@pytest.mark.parametrize(
    ("query", "status", "message", "param"),
    [
        ("", 400, "`source` is missing; name the space, see /v1/spaces", "source"),
        ("?source=old", 400, "`target` is missing", "target"),
        ("?source=old&target=new&sticher=x", 400, "`sticher` is not a parameter; known are source", None),
        ("?source=old&source=new&target=new", 400, "`source` must be given once", "source"),
        ("?source=&target=new", 400, "`source` must have 1 to 256 characters; got 0", "source"),
        ("?source=%ff&target=new", 400, "The query must be percent-encoded UTF-8", None),
        (f"?source={'x' * 5000}", 400, "The query may have at most 4096 bytes", None),
        ("?source=ol&target=new", 404, "There is no space 'ol' (`source`). Nearest: old", "source"),
        ("?source=old&target=nwe", 404, "There is no space 'nwe' (`target`). Nearest: new", "target"),
        ("?source=new&target=old", 404, "No stitcher goes new -> old. Nearest: old->new", "source"),
        (
            "?source=old&target=new&stitcher=old-to",
            404,
            "There is no stitcher 'old-to'. Nearest: old-to-new",
            "stitcher",
        ),
        ("?source=new&target=old&stitcher=old-to-new", 409, "goes old -> new, not new -> old", "stitcher"),
    ],
)
def test_a_pair_that_nobody_serves_is_refused(client, query, status, message, param):
    refused(post_rows(client, make_rows(1), f"/v1/translate{query}"), status, message, param)
    names = dict(part.split("=") for part in query[1:].split("&") if part)
    if status != 400:
        refused(client.post("/v1/translate", json={"embedding": [1.0] * 6} | names), status, message, param)


def test_a_name_in_the_query_and_another_in_the_body_is_refused(client):
    response = client.post(URL, json={"embedding": [1.0] * 6, "source": "other"})
    refused(response, 400, "`source` is 'old' in the query and 'other' in the body; give it once", "source")


def test_of_several_stitchers_one_must_be_promoted_or_named(folder, registry, client):
    make_stitcher(seed=7).save(folder / "second")
    registry.refresh()
    rows = make_rows(1)
    message = "Several stitchers go old -> new (old-to-new, second) and none is promoted"
    refused(post_rows(client, rows), 409, message, "stitcher")
    assert post_rows(client, rows, URL + "&stitcher=second").headers["x-stitcher"] == "second"
    registry.promote("second")
    response = post_rows(client, rows)
    assert response.headers["x-stitcher"] == "second"
    assert np.allclose(read_rows(response), make_stitcher(seed=7).translate(rows), atol=1e-6)
    registry.promote("old-to-new")
    assert np.allclose(read_rows(post_rows(client, rows)), make_stitcher().translate(rows), atol=1e-6)


@pytest.mark.parametrize(
    "content_type",
    ["application/vnd.bentoml+pickle", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain", ""],
)
def test_another_content_type_is_415_pickle_too(client, content_type):
    response = client.post(URL, content=b"x" * 24, headers={"content-type": content_type})
    refused(response, 415, "`Content-Type` must be application/octet-stream, application/json or", "Content-Type")


def test_a_compressed_body_is_not_taken_for_rows(client):
    refused(post_rows(client, make_rows(1), content_encoding="gzip"), 415, "A body must come uncompressed")


def test_an_accept_that_allows_neither_format_is_406(client):
    message = "`Accept` must allow application/octet-stream, application/json or application/vnd.apache.arrow.stream"
    refused(post_rows(client, make_rows(1), accept="text/html"), 406, message, "Accept")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/translate/", "/v2/translate", "/v1/stitchers/"])
def test_an_unknown_route_is_404_in_our_form(client, path):
    refused(client.get(path), 404, "There is no such route")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/translate", "POST"),
        ("PUT", "/v1/translate", "POST"),
        ("DELETE", "/v1/stitchers/old-to-new", "GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
    ],
)
def test_a_method_a_route_does_not_take_is_405(client, method, path, allow):
    response = client.request(method, path)
    refused(response, 405, "This route does not take that method")
    assert response.headers["allow"] == allow


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_large_body_is_refused_by_its_stated_length(registry):
    client = client_of(registry, max_body_bytes=100)
    assert post_rows(client, make_rows(4)).status_code == 200
    refused(post_rows(client, make_rows(5)), 413, "A body may have at most 100 bytes; got 120")


def test_a_large_body_is_refused_while_it_streams(registry):
    sent = []

    def stream():
        for _ in range(50):
            sent.append(1)
            yield bytes(24)

    response = client_of(registry, max_body_bytes=100).post(URL, content=stream(), headers={"content-type": OCTETS})
    refused(response, 413, "A body may have at most 100 bytes; got more")


def test_too_many_rows_are_refused_in_every_format(registry):
    client = client_of(registry, max_rows=2)
    rows = make_rows(3)
    for response in (
        post_rows(client, rows),
        client.post(URL, json={"embedding": rows.tolist()}),
        client.post(URL, json={"embedding": b64(rows)}),
    ):
        refused(response, 413, "A request may hold at most 2 rows; got 3. Send them in parts", "embedding")


def test_more_at_once_than_allowed_are_told_to_come_back(registry, monkeypatch):
    app = create_app(registry, Settings(max_concurrency=2))
    release, real = threading.Event(), Pipeline.run

    def held(self, rows):
        if len(rows) > 1:
            release.wait(10)
        return real(self, rows)

    monkeypatch.setattr(Pipeline, "run", held)

    async def scenario():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client:
            headers = {"content-type": OCTETS}
            large = make_rows(100).tobytes()
            first = [asyncio.create_task(client.post(URL, content=large, headers=headers)) for _ in range(2)]
            await asyncio.sleep(0.05)
            refused = await client.post(URL, content=make_rows(1).tobytes(), headers=headers)
            health = await client.get("/livez")
            release.set()
            done = [(await task).status_code for task in first]
            return refused, health, done, await client.post(URL, content=make_rows(1).tobytes(), headers=headers)

    response, health, done, after = asyncio.run(scenario())
    refused(response, 429, "2 requests are under way")
    assert response.headers["retry-after"] == "1"
    assert [health.status_code, *done, after.status_code] == [200, 200, 200, 200]


def test_clients_that_send_slowly_take_no_place(registry):
    app = create_app(registry, Settings(max_concurrency=1))

    async def scenario():
        release = asyncio.Event()

        async def slow():
            yield make_rows(1).tobytes()
            await release.wait()

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client:
            headers = {"content-type": OCTETS}
            waiting = [asyncio.create_task(client.post(URL, content=slow(), headers=headers)) for _ in range(5)]
            await asyncio.sleep(0.05)
            beside = await client.post(URL, content=make_rows(1).tobytes(), headers=headers)
            release.set()
            return beside, [(await task).status_code for task in waiting]

    beside, slow = asyncio.run(scenario())
    assert beside.status_code == 200
    assert 200 in slow
    assert set(slow) <= {200, 429}


def test_bodies_that_together_hold_too_much_are_told_to_come_back(registry):
    app = create_app(registry, Settings(max_held_bytes=100))

    async def scenario():
        release = asyncio.Event()

        async def slow():
            yield make_rows(3).tobytes()
            await release.wait()

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client:
            headers = {"content-type": OCTETS}
            first = asyncio.create_task(client.post(URL, content=slow(), headers=headers))
            await asyncio.sleep(0.05)
            second = await client.post(URL, content=make_rows(2).tobytes(), headers=headers)
            release.set()
            return second, (await first).status_code, await client.post(URL, content=bytes(24 * 4), headers=headers)

    second, first, alone = asyncio.run(scenario())
    refused(second, 429, "Requests under way hold 72 bytes and this needs 48 more; try again")
    assert first == 200  # alone it may hold more than all may together: its own limits bound it
    assert alone.status_code == 422
    assert app.state.service.gate.bytes == 0


def test_a_body_that_never_ends_is_timed_out(registry):
    app = create_app(registry, Settings(timeout_s=0.1, max_concurrency=1))

    async def scenario():
        async def endless():
            yield b"1234"
            await asyncio.sleep(60)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client:
            late = await client.post(URL, content=endless(), headers={"content-type": OCTETS})
            return late, await client.post(URL, content=make_rows(1).tobytes(), headers={"content-type": OCTETS})

    late, after = asyncio.run(scenario())
    refused(late, 504, "Not done within 0.1 s")
    assert late.headers["connection"] == "close"
    assert after.status_code == 200


def test_a_translation_that_is_timed_out_stops_at_the_next_chunk(registry, monkeypatch):
    calls, real = [], Pipeline.run

    def slowly(self, rows):
        calls.append(len(rows))
        time.sleep(0.1)
        return real(self, rows)

    monkeypatch.setattr(Pipeline, "run", slowly)
    refused(post_rows(client_of(registry, timeout_s=0.15), make_rows(10_000)), 504, "Not done within 0.15 s")
    time.sleep(0.3)
    assert len(calls) <= 3


def test_small_requests_are_answered_beside_a_large_one(registry, monkeypatch):
    monkeypatch.setattr(compute, "CHUNK_ROWS", 10)
    real = Pipeline.run

    def slowly(self, rows):
        if len(rows) > 1:
            time.sleep(0.05)
        return real(self, rows)

    monkeypatch.setattr(Pipeline, "run", slowly)
    app = create_app(registry, Settings())

    async def scenario():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client:
            headers = {"content-type": OCTETS}
            large = asyncio.create_task(client.post(URL, content=make_rows(100).tobytes(), headers=headers))
            await asyncio.sleep(0.05)
            small = await client.post(URL, content=make_rows(1).tobytes(), headers=headers)
            done_first = not large.done()
            return small, done_first, await large

    small, done_first, large = asyncio.run(scenario())
    assert small.status_code == large.status_code == 200
    assert done_first


def test_an_uncaught_error_is_500_and_neither_answer_nor_log_shows_the_vector(registry, client, monkeypatch, caplog):
    def fail(self, rows):
        raise RuntimeError(f"bad number {rows[0, 0]:.3f}")

    monkeypatch.setattr(Pipeline, "run", fail)
    rows = np.full((1, 6), 0.125, np.float32)
    with caplog.at_level(logging.DEBUG):
        error = refused(post_rows(client, rows), 500, "The request failed in the service")
    assert "0.125" not in error["message"] + caplog.text
    assert "RuntimeError" in caplog.text
    assert "in fail" in caplog.text


def test_an_uncaught_error_of_another_route_is_500_in_our_form(client, monkeypatch):
    monkeypatch.setattr(listing, "summary", lambda *_: 1 / 0)
    refused(client.get("/v1/stitchers"), 500, "The request failed in the service")


# --- listing, health and reloading ------------------------------------------------------------------------------------


def test_stitchers_are_listed_with_what_they_do(client):
    assert client.get("/v1/stitchers").json() == {
        "stitchers": [
            {
                "name": "old-to-new",
                "source": "old",
                "target": "new",
                "source_dim": 6,
                "target_dim": 4,
                "version": make_stitcher().version,
                "method": "ridge",
                "objective": "match",
                "confidence": [],
                "serves": True,
                "scores": {},
            }
        ]
    }


def test_a_pair_is_served_by_the_promoted_stitcher(folder, registry, client):
    make_stitcher(seed=7).save(folder / "second")
    registry.refresh()
    assert [s["serves"] for s in client.get("/v1/stitchers").json()["stitchers"]] == [False, False]
    registry.promote("second")
    assert [s["serves"] for s in client.get("/v1/stitchers").json()["stitchers"]] == [False, True]


def test_the_list_shows_scores_beside_chance_and_one_stitcher_its_whole_scorecard(folder, registry, client):
    X, Y = make_rows(40), make_rows(40, 4)
    translated = np.asarray(make_stitcher().translate(X))
    scorecard = scorecard_of(X, Y, translated)
    card = scorecard.to_dict()
    make_stitcher("old", "scored", scorecard=scorecard).save(folder / "scored")
    registry.refresh()
    listed = client.get("/v1/stitchers").json()["stitchers"][1]["scores"]
    assert set(listed) == {"query", "corpus", "chance"}
    assert listed["query"] == {name: card["query"][name] for name in ("recall@1", "recall@10")}
    assert client.get("/v1/stitchers/scored").json()["scorecard"] == card


def test_one_stitcher_is_shown_whole(client):
    shown = client.get("/v1/stitchers/old-to-new").json()
    assert shown["scorecard"] == {}
    assert shown["source"] == make_stitcher().source.to_dict()
    assert {"settings", "split", "version"} <= set(shown)
    refused(client.get("/v1/stitchers/old-to-ne"), 404, "There is no stitcher 'old-to-ne'. Nearest: old-to-new", "name")
    refused(client.get(f"/v1/stitchers/{'x' * 300}"), 400, "`name` must have 1 to 256 characters", "name")


def test_spaces_say_where_they_lead(folder, registry, client):
    make_stitcher("new", "newest", 4, 5).save(folder / "again")
    registry.refresh()
    spaces = client.get("/v1/spaces").json()["spaces"]
    assert [(s["name"], s["dim"], s["from"], s["to"]) for s in spaces] == [
        ("new", 4, ["old"], ["newest"]),
        ("newest", 5, ["new"], []),
        ("old", 6, [], ["new"]),
    ]


def test_a_name_outside_ascii_is_quoted_in_the_header(tmp_path):
    make_stitcher("alt", "neü").save(tmp_path / "ältere→neue")
    registry = Registry(tmp_path)
    registry.refresh()
    response = post_rows(client_of(registry), make_rows(1), "/v1/translate?source=alt&target=ne%C3%BC")
    assert response.headers["x-stitcher"] == "%C3%A4ltere%E2%86%92neue"


def test_nothing_but_health_answers_until_a_stitcher_is_loaded(folder):
    client = client_of(Registry(folder))  # without its lifespan, so that nothing is read yet
    for path in ("/livez", "/healthz"):
        assert client.get(path).json() == {"status": "ok"}
    for response in (
        client.get("/readyz"),
        post_rows(client, make_rows(1)),
        client.get("/v1/stitchers"),
        client.get("/v1/spaces"),
    ):
        refused(response, 503, "No stitcher is loaded yet; try again")
        assert response.headers["retry-after"] == "1"


def test_a_started_service_loads_what_is_there_and_then_what_is_published(folder, tmp_path):
    app = create_app(Registry(folder), Settings(reload_s=0.05))
    with TestClient(app, LOCAL) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        make_stitcher("old", "other").save(folder / "old-to-other")
        eventually(lambda: post_rows(client, make_rows(1), "/v1/translate?source=old&target=other").is_success)


def test_a_corrupt_stitcher_is_refused_and_the_old_one_stays(folder):
    app = create_app(Registry(folder), Settings(reload_s=0.05))
    with TestClient(app, LOCAL) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        broken = folder / ".broken"
        shutil.copytree(folder / "old-to-new", broken)
        (broken / "model.safetensors").write_bytes(b"not weights")
        os.rename(folder / "old-to-new", folder / ".before")
        os.rename(broken, folder / "old-to-new")
        make_stitcher("old", "other").save(folder / "old-to-other")  # its arrival shows that the folder was read
        eventually(lambda: len(client.get("/v1/stitchers").json()["stitchers"]) == 2)
        assert np.allclose(
            read_rows(post_rows(client, make_rows(1))), make_stitcher().translate(make_rows(1)), atol=1e-6
        )


def test_a_folder_that_cannot_be_read_for_a_while_changes_nothing(folder, monkeypatch, caplog):
    registry = Registry(folder)
    real, failures = Registry.refresh, [OSError("gone"), OSError("gone")]

    def refresh(self):
        if failures:
            raise failures.pop()
        return real(self)

    monkeypatch.setattr(Registry, "refresh", refresh)
    with TestClient(create_app(registry, Settings(reload_s=0.02)), LOCAL) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
    assert "could not be read; what was served before stays" in caplog.text
