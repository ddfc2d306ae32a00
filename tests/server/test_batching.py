"""Small requests that arrive together are translated in one batch."""

import asyncio
from typing import Any, cast

import httpx
import numpy as np
import pytest
from helpers.server_calls import LOCAL, URL, read_rows, refused, registry_of
from helpers.serving import make_rows, make_stitcher
from helpers.spaces import calibration

from repstitch.server.app import create_app
from repstitch.server.batching import BATCH_PROBE_INTERVAL, BATCH_ROWS
from repstitch.server.negotiation import OCTETS
from repstitch.server.settings import Settings
from repstitch.stitchers.pipeline import Pipeline


@pytest.fixture
def batches(monkeypatch):
    """Record the number of rows in every batch that the pipeline computes."""
    counted, real = [], Pipeline.run

    def run(self, rows):
        counted.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(Pipeline, "run", run)
    return counted


def at_once(registry, requests: list[tuple[str, bytes]], **settings) -> list[httpx.Response]:
    """Send all requests before any of them is answered, and return the responses."""

    async def scenario():
        transport = httpx.ASGITransport(create_app(registry, Settings(**settings)))
        async with httpx.AsyncClient(transport=transport, base_url=LOCAL) as client:
            headers = {"content-type": OCTETS}
            return await asyncio.gather(*(client.post(url, content=body, headers=headers) for url, body in requests))

    return asyncio.run(scenario())


def test_requests_that_arrive_together_share_batches_and_keep_their_rows(registry, batches):
    sent = [make_rows(1 + i % 3, seed=i) for i in range(20)]
    answers = at_once(registry, [(URL, rows.tobytes()) for rows in sent])
    for rows, answer in zip(sent, answers, strict=True):
        assert np.allclose(read_rows(answer), make_stitcher().translate(rows), atol=1e-6)
    assert max(batches[:-20]) > 3  # the last 20 come from the assertion above
    assert len(batches[:-20]) < 12


def test_an_invalid_request_in_a_batch_is_refused_alone(registry):
    sent = [make_rows(2, seed=i) for i in range(6)]
    sent[2] = np.zeros((1, 6), np.float32)
    sent[4] = np.full((1, 6), np.nan, np.float32)
    answers = at_once(registry, [(URL, rows.tobytes()) for rows in sent])
    assert [answer.status_code for answer in answers] == [200, 200, 422, 200, 422, 200]
    refused(answers[2], 422, "must have a direction; 1 of 1 rows (first: row 0)", "embedding")
    refused(answers[4], 422, "must be finite float32 numbers; 1 of 1 rows (first: row 0)", "embedding")
    for i in (0, 1, 3, 5):
        assert np.allclose(read_rows(answers[i]), make_stitcher().translate(sent[i]), atol=1e-6)


def test_requests_for_different_pairs_or_measures_are_never_mixed(tmp_path):
    sure = make_stitcher("sure", calibration=calibration(6, pool=500))
    other = make_stitcher("old", "other", 6, 5, seed=3)
    registry = registry_of(tmp_path, a=make_stitcher(), b=other, c=sure)
    kinds = [
        (URL, make_stitcher(), 4),
        ("/v1/translate?source=old&target=other", other, 5),
        ("/v1/translate?source=sure&target=new", sure, 4),
        ("/v1/translate?source=sure&target=new&confidence=true", sure, 9),
    ]
    sent = [(*kinds[i % 4], make_rows(1 + i % 2, seed=i)) for i in range(24)]
    answers = at_once(registry, [(url, rows.tobytes()) for url, _, _, rows in sent])
    for (_, stitcher, width, rows), answer in zip(sent, answers, strict=True):
        expected = np.asarray(stitcher.translate(rows))
        assert np.allclose(read_rows(answer, width)[:, : expected.shape[1]], expected, atol=1e-6)
        if width == 9:
            measures = np.column_stack(list(stitcher.confidence(rows).to_dict().values()))
            assert np.allclose(read_rows(answer, width)[:, 4:], measures, rtol=1e-3)


def test_a_request_cancelled_while_it_waits_does_not_block_the_others(registry):
    sent = [make_rows(1, seed=i) for i in range(BATCH_PROBE_INTERVAL + 4)]

    async def scenario():
        service = create_app(registry, Settings()).state.service
        served = service.resolve({"source": "old", "target": "new"})
        tasks = [asyncio.create_task(service.translate(served, rows, False)) for rows in sent]
        await asyncio.sleep(0)  # the last five now wait in one batch
        given_up = tasks[-3]
        assert given_up.cancel()
        others = [task for task in tasks if task is not given_up]
        return await asyncio.wait_for(asyncio.gather(*others), timeout=5)

    answers = asyncio.run(scenario())
    for rows, answer in zip([*sent[:-3], *sent[-2:]], answers, strict=True):
        assert np.allclose(answer.vectors, make_stitcher().translate(rows), atol=1e-6)


def test_no_batch_exceeds_the_row_limit(registry, batches):
    answers = at_once(registry, [(URL, make_rows(40, seed=i).tobytes()) for i in range(30)])
    assert all(answer.status_code == 200 for answer in answers)
    assert 40 < max(batches) <= BATCH_ROWS
    assert sum(batches) == 30 * 40


def test_requests_sent_one_by_one_do_not_wait_for_a_batch(registry, batches):
    async def scenario():
        app = create_app(registry, Settings())
        service, loop = app.state.service, cast(Any, asyncio.get_running_loop())
        served, turns = service.resolve({"source": "old", "target": "new"}), []
        monitor = loop.call_soon
        loop.call_soon = lambda *args, **more: turns.append(args[0]) or monitor(*args, **more)
        for _ in range(BATCH_PROBE_INTERVAL * 3):
            await service.translate(served, make_rows(1), False)
        return sum(getattr(turn, "__name__", "") == "_answer_pending" for turn in turns)

    assert asyncio.run(scenario()) == 3  # one request in BATCH_PROBE_INTERVAL checks for others
    assert batches == [1] * BATCH_PROBE_INTERVAL * 3


def test_an_error_in_a_batch_reaches_every_request_in_it(registry, monkeypatch):
    def fail(self, rows):
        raise RuntimeError("broken")

    monkeypatch.setattr(Pipeline, "run", fail)
    answers = at_once(registry, [(URL, make_rows(1).tobytes())] * 5)
    assert [answer.status_code for answer in answers] == [500] * 5
