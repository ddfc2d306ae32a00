"""The limits on bytes, rows, time and concurrent requests."""

import asyncio
import logging
import threading
import time

import httpx
import numpy as np
from helpers.server_calls import LOCAL, URL, b64, client_of, post_rows, refused
from helpers.serving import make_rows

from repstitch.server import compute, listing
from repstitch.server.app import create_app
from repstitch.server.negotiation import OCTETS
from repstitch.server.settings import Settings
from repstitch.stitchers.pipeline import Pipeline


def test_a_large_body_is_refused_by_its_content_length(registry):
    client = client_of(registry, max_body_bytes=100)
    assert post_rows(client, make_rows(4)).status_code == 200
    refused(post_rows(client, make_rows(5)), 413, "A request body may have at most 100 bytes; got 120")


def test_a_large_body_is_refused_while_it_streams(registry):
    sent = []

    def stream():
        for _ in range(50):
            sent.append(1)
            yield bytes(24)

    response = client_of(registry, max_body_bytes=100).post(URL, content=stream(), headers={"content-type": OCTETS})
    refused(response, 413, "A request body may have at most 100 bytes; got more")


def test_too_many_rows_are_refused_in_every_format(registry):
    client = client_of(registry, max_rows=2)
    rows = make_rows(3)
    for response in (
        post_rows(client, rows),
        client.post(URL, json={"embedding": rows.tolist()}),
        client.post(URL, json={"embedding": b64(rows)}),
    ):
        refused(
            response, 413, "A request may contain at most 2 rows; got 3. Send them in several requests", "embedding"
        )


def test_requests_above_the_concurrency_limit_get_429(registry, monkeypatch):
    app = create_app(registry, Settings(max_concurrency=2))
    release, real = threading.Event(), Pipeline.run

    def blocked(self, rows):
        if len(rows) > 1:
            release.wait(10)
        return real(self, rows)

    monkeypatch.setattr(Pipeline, "run", blocked)

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
    refused(response, 429, "already answering 2 requests")
    assert response.headers["retry-after"] == "1"
    assert [health.status_code, *done, after.status_code] == [200, 200, 200, 200]


def test_slow_uploads_do_not_count_as_concurrent_requests(registry):
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
            meanwhile = await client.post(URL, content=make_rows(1).tobytes(), headers=headers)
            release.set()
            return meanwhile, [(await task).status_code for task in waiting]

    meanwhile, slow = asyncio.run(scenario())
    assert meanwhile.status_code == 200
    assert 200 in slow
    assert set(slow) <= {200, 429}


def test_bodies_that_together_exceed_the_byte_limit_get_429(registry):
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
    refused(second, 429, "The requests in progress have reserved 72 bytes, and 48 more would exceed")
    assert first == 200
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
    refused(late, 504, "The request took longer than 0.1 s")
    assert late.headers["connection"] == "close"
    assert after.status_code == 200


def test_a_translation_that_is_timed_out_stops_at_the_next_chunk(registry, monkeypatch):
    calls, real = [], Pipeline.run

    def slowly(self, rows):
        calls.append(len(rows))
        time.sleep(0.1)
        return real(self, rows)

    monkeypatch.setattr(Pipeline, "run", slowly)
    refused(
        post_rows(client_of(registry, timeout_s=0.15), make_rows(10_000)), 504, "The request took longer than 0.15 s"
    )
    time.sleep(0.3)
    assert len(calls) <= 3


def test_small_requests_are_answered_while_a_large_one_runs(registry, monkeypatch):
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
        error = refused(post_rows(client, rows), 500, "The service failed to answer")
    assert "0.125" not in error["message"] + caplog.text
    assert "RuntimeError" in caplog.text
    assert "in fail" in caplog.text


def test_an_uncaught_error_in_another_route_is_a_json_500(client, monkeypatch):
    monkeypatch.setattr(listing, "summary", lambda *_: 1 / 0)
    refused(client.get("/v1/stitchers"), 500, "The service failed to answer")
