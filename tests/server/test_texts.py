"""Texts in `/v1/embeddings`: loading encoders, the queue of texts, what is counted, and what is refused."""

import asyncio
import logging
import signal
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import httpx
import numpy as np
import pytest
from helpers.server_calls import LOCAL, client_of, refused, registry_of, service_of
from helpers.serving import ROOT, eventually, free_port, make_rows, make_stitcher, running, serve_command
from helpers.spaces import tiny_bert

from repstitch.encoders.encoder import load_encoder
from repstitch.server.responses import Refusal
from repstitch.server.texts import (
    BATCH_S,
    BATCH_TEXTS,
    BYTES_PER_TOKEN,
    MAX_BYTES_PER_TOKEN,
    TEXT_COST,
    TextQueue,
    encoder_differs,
    text_costs,
)
from repstitch.spaces import Space

TEXTS = ["the cat sat on the mat", "a dog", "b"]
PLENTY_S = 1e6


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert") / "tiny-bert")


@pytest.fixture(scope="module")
def encoder(bert):
    return load_encoder(str(bert), device="cpu", max_length=6)


@pytest.fixture
def queue():
    thread = ThreadPoolExecutor(1)
    yield TextQueue(thread)
    thread.shutdown()


class Gate:
    """Lets an encoder run one batch at a time, and notes the number of texts in each."""

    def __init__(self, encoder):
        self.sizes, self.open, self._run = [], threading.Semaphore(0), encoder.run
        self.encoder = replace(encoder, run=self.run)

    def run(self, batch):
        self.sizes.append(len(batch))
        self.open.acquire()
        if "a dog" in batch:
            raise ValueError("no dogs")
        return self._run(batch)

    def release(self, n=100):
        self.open.release(n)


def posts(client, **body):
    return client.post("/v1/embeddings", json={"model": "words->new", **body})


def service_with(folder, bert, source=None, **settings):
    """Return a client of a service whose source space `words` has this encoder, and the encoder."""
    loaded = load_encoder(str(bert), device="cpu", **settings)
    stitcher = replace(make_stitcher("words", "new", 16), source=replace(source or loaded.space, name="words"))
    registry = registry_of(folder, **{"words-to-new": stitcher})
    return client_of(registry, encoders=(f"words={bert}",), device="cpu"), loaded, stitcher


# --- the queue --------------------------------------------------------------------------------------------------------


def test_sixteen_requests_of_eight_texts_are_all_encoded(queue, encoder):
    requests = [[f"{text} {n}" for text in TEXTS * 3][:8] for n in range(16)]
    futures = [queue.submit(encoder, texts, PLENTY_S) for texts in requests]
    for texts, future in zip(requests, futures, strict=True):
        assert np.allclose(future.result(60).vectors, encoder.encode(texts), atol=1e-5)


def test_waiting_requests_share_batches_of_a_bounded_number_of_texts(queue, encoder):
    gate = Gate(encoder)
    futures = [queue.submit(gate.encoder, ["b"] * 8, PLENTY_S)]
    eventually(lambda: gate.sizes == [8])  # the first batch has begun, so the others wait
    futures += [queue.submit(gate.encoder, ["b"] * 8, PLENTY_S) for _ in range(8)]
    gate.release()
    assert [len(future.result(60).vectors) for future in futures] == [8] * 9
    assert gate.sizes == [8, BATCH_TEXTS, BATCH_TEXTS]


def test_a_batch_has_no_more_texts_than_fit_into_its_time(queue, encoder):
    gate = Gate(encoder)
    queue.pace[gate.encoder] = BATCH_S / (3.5 * (TEXT_COST + 1))
    future = queue.submit(gate.encoder, ["b"] * 8, PLENTY_S)
    eventually(lambda: gate.sizes == [3])
    gate.release()
    assert len(future.result(60).vectors) == 8


def test_an_abandoned_request_is_not_encoded_further(queue, encoder):
    gate = Gate(encoder)
    abandoned = queue.submit(gate.encoder, ["b"] * (3 * BATCH_TEXTS), PLENTY_S)
    eventually(lambda: gate.sizes == [BATCH_TEXTS])
    assert abandoned.cancel()
    after = queue.submit(gate.encoder, ["c"], PLENTY_S)
    gate.release()
    assert len(after.result(60).vectors) == 1
    assert gate.sizes == [BATCH_TEXTS, 1]


def test_a_failing_request_does_not_fail_the_others_of_its_batch(queue, encoder):
    gate = Gate(encoder)
    first = queue.submit(gate.encoder, ["c"], PLENTY_S)
    bad, good = (queue.submit(gate.encoder, [text], PLENTY_S) for text in ("a dog", "b"))
    gate.release()
    assert len(first.result(60).vectors) == 1
    assert np.allclose(good.result(60).vectors, encoder.encode(["b"]), atol=1e-5)
    with pytest.raises(ValueError, match="no dogs"):
        bad.result(60)
    assert len(queue.submit(gate.encoder, ["c"], PLENTY_S).result(60).vectors) == 1


def test_more_texts_than_can_be_encoded_in_time_are_refused_with_the_number_that_can(queue, encoder):
    queue.pace[encoder] = 1 / (TEXT_COST + 1)  # one second per text
    with pytest.raises(Refusal, match=r"about 20 s for these 20 texts, .* send at most 8 of them") as caught:
        queue.submit(encoder, ["b"] * 20, 10)
    assert caught.value.status == 413
    assert len(queue.submit(encoder, ["b"], 0.1).result(60).vectors) == 1


def test_a_rate_that_was_measured_in_a_bad_moment_does_not_refuse_requests_for_good(queue, encoder):
    queue.pace[encoder] = 1e3
    with pytest.raises(Refusal, match="send at most 1 of them"):
        queue.submit(encoder, ["b"] * 20, 10)
    eventually(lambda: queue.pace[encoder] < 1e-3)
    assert len(queue.submit(encoder, ["b"] * 20, 10).result(60).vectors) == 20


def test_a_request_that_must_wait_too_long_is_refused_with_the_time_after_which_it_fits(queue, encoder):
    gate = Gate(encoder)
    queue.pace[gate.encoder] = 1 / (TEXT_COST + 1)  # one second per text
    waiting = queue.submit(gate.encoder, ["b"] * 6, 10)
    expected = ["3", "8", "13"]  # 6 + 5 - 8 seconds; those that are refused later return after those before them
    for seconds in expected:
        with pytest.raises(Refusal, match=f"retry in {seconds} s") as caught:
            queue.submit(gate.encoder, ["b"] * 5, 10)
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": seconds})
    waiting.cancel()
    fits = queue.submit(gate.encoder, ["b"] * 5, 10)
    gate.release()
    assert len(fits.result(60).vectors) == 5


def test_a_text_that_is_much_longer_than_the_encoder_reads_is_refused(queue, encoder):
    """A tokenizer reads all of it, in one call that nothing can stop."""
    longest = MAX_BYTES_PER_TOKEN * encoder.card.max_length
    for text in ("a" * longest, "中" * (longest // 3)):
        assert len(queue.submit(encoder, [text], PLENTY_S).result(60).vectors) == 1
        with pytest.raises(Refusal, match=rf"at position 1 of `input` is too long; send at most {longest} ") as caught:
            queue.submit(encoder, ["b", text + "ab中"], PLENTY_S)
        assert caught.value.status == 413


def test_texts_cost_their_bytes_up_to_the_limit_of_tokens(encoder):
    most = TEXT_COST + BYTES_PER_TOKEN * encoder.card.max_length
    assert text_costs(encoder, ["b" * 9, "中" * 3, "b" * 99, "中" * 99]).tolist() == [TEXT_COST + 9] * 2 + [most] * 2


def test_closing_refuses_what_waits_and_ends_the_thread(queue, encoder):
    gate = Gate(encoder)
    futures = [queue.submit(gate.encoder, ["b"] * 100, PLENTY_S) for _ in range(3)]
    eventually(lambda: gate.sizes)
    queue.close()
    gate.release(1)
    queue.thread.shutdown()
    assert len(gate.sizes) == 1
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)


def test_a_slow_call_may_end_after_the_event_loop_has_closed(registry, caplog):
    service, begun, released = service_of(client_of(registry)), threading.Event(), threading.Event()

    def work():
        begun.set()
        released.wait(60)

    async def abandon():
        task = asyncio.create_task(service.run_slow(work))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()

    asyncio.run(abandon())
    released.set()
    with caplog.at_level(logging.DEBUG):
        service.slow_thread.shutdown()
    assert "closed" not in caplog.text
    assert caplog.records == []


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_service_is_ready_when_its_encoders_are_loaded(bert, tmp_path):
    client, loaded, stitcher = service_with(tmp_path, bert)
    message = "The text encoder of space 'words' is not loaded: it is still being loaded"
    refused(client.get("/readyz"), 503, message)
    response = posts(client, input="b")
    refused(response, 503, message)
    assert response.headers["retry-after"] == "1"
    assert posts(client, input=make_rows(1, 16).tolist()).status_code == 200
    service_of(client).texts.load()
    assert client.get("/readyz").json() == {"status": "ready", "stitchers": 1}
    vectors = [each["embedding"] for each in posts(client, input=TEXTS).json()["data"]]
    assert np.allclose(vectors, stitcher.translate(loaded.encode(TEXTS)), atol=1e-5)


def test_a_service_with_an_encoder_that_cannot_be_loaded_is_not_ready_and_says_why(registry, caplog, tmp_path):
    client = client_of(registry, encoders=(f"old={tmp_path}/none",), device="cpu")
    service_of(client).texts.load()
    refused(client.get("/readyz"), 503, "The text encoder of space 'old' is not loaded: it could not be loaded: ")
    assert str(tmp_path) in client.get("/readyz").json()["error"]["message"]
    assert "The text encoder of space old could not be loaded" in caplog.text
    response = client.post("/v1/embeddings", json={"model": "old->new", "input": "b"})
    refused(response, 503, "it could not be loaded")


def test_an_encoder_is_loaded_with_the_role_and_the_prompt_of_the_space(bert, tmp_path):
    client, loaded, stitcher = service_with(tmp_path, bert, role="query", prompt="the cat ")
    service_of(client).texts.load()
    vectors = [each["embedding"] for each in posts(client, input=TEXTS).json()["data"]]
    assert np.allclose(vectors, stitcher.translate(loaded.encode(TEXTS)), atol=1e-5)
    plain = load_encoder(str(bert), device="cpu")
    assert not np.allclose(vectors, stitcher.translate(plain.encode(TEXTS)), atol=1e-2)


@pytest.mark.parametrize(("field", "value"), [("role", "document"), ("prompt", "a ")])
def test_an_encoder_of_another_role_or_prompt_is_refused(bert, tmp_path, field, value):
    client, _, stitcher = service_with(tmp_path, bert, role="query", prompt="the cat ")
    service_of(client).texts.load()
    another = replace(stitcher, source=replace(stitcher.source, **{field: value}))
    another.save(tmp_path / "another")
    service_of(client).registry.refresh()
    response = client.post("/v1/embeddings", json={"model": "another", "input": "b"})
    refused(response, 409, f"differs from the one that the stitcher was trained for ({field} ", "input")


def test_the_role_is_compared_only_if_the_stitcher_states_its_encoder():
    encoder = Space("a", 3, encoder="timm:x", role="query", prompt="q: ")
    assert encoder_differs(encoder, Space("words", 3)) is None
    assert encoder_differs(encoder, Space("words", 3, encoder="timm:x")) == "role 'query' against 'none'"
    assert encoder_differs(encoder, Space("words", 3, encoder="timm:x", role="query", prompt="q: ")) is None


@pytest.mark.parametrize("input_type", ["document", "search_document", "passage"])
def test_an_input_type_that_contradicts_the_role_is_refused(bert, tmp_path, input_type):
    client, _, _ = service_with(tmp_path, bert, role="query", prompt="q ")
    service_of(client).texts.load()
    response = posts(client, input="b", input_type=input_type)
    refused(response, 422, f"`input_type` must be query, the role of space 'words'; got {input_type}", "input_type")
    for agreeing in ("query", "search_query", "classification"):
        assert posts(client, input="b", input_type=agreeing).status_code == 200


# --- requests ---------------------------------------------------------------------------------------------------------


def test_too_many_rows_of_texts_are_refused_before_they_are_encoded(bert, tmp_path):
    client, loaded, stitcher = service_with(tmp_path, bert)
    gate = Gate(loaded)
    for count, status in ((4, 200), (5, 413)):
        client = client_of(registry_of(tmp_path / str(count), **{"words-to-new": stitcher}), max_rows=4)
        service_of(client).texts.encoders = {"words": gate.encoder}
        if status == 200:
            gate.release()
        assert posts(client, input=["b"] * count).status_code == status
    assert gate.sizes == [4]


def test_texts_that_wait_for_the_encoder_leave_room_for_other_requests(bert, tmp_path):
    client, loaded, _ = service_with(tmp_path, bert)
    service, gate = service_of(client), Gate(loaded)
    service.gate.max_requests = 2
    with client, ThreadPoolExecutor(5) as threads:
        eventually(lambda: client.get("/readyz").status_code == 200)
        service.texts.encoders = {"words": gate.encoder}
        waiting = [threads.submit(posts, client, input="b") for _ in range(5)]
        eventually(lambda: gate.sizes and len(service.text_queue._waiting) == 5)
        assert posts(client, input=make_rows(1, 16).tolist()).status_code == 200
        gate.release()
        assert [each.result(60).status_code for each in waiting] == [200] * 5
    assert service.gate.requests == 0


@pytest.fixture(scope="module")
def with_texts(bert, tmp_path_factory):
    """Return a command of a service that takes texts for `words->new`, its port, its log and its environment."""
    folder, port = tmp_path_factory.mktemp("texts"), free_port()
    space = replace(load_encoder(str(bert), device="cpu").space, name="words")
    replace(make_stitcher("words", "new", 16), source=space).save(folder / "stitchers" / "words-to-new")
    env = {"REPSTITCH_ENCODERS": f"words={bert}", "REPSTITCH_TIMEOUT_S": "3", "REPSTITCH_DEVICE": "cpu"}
    return serve_command(folder / "stitchers", port), port, folder / "log", ROOT, env


def send_texts(port: int, n: int, length: int = 100) -> httpx.Response:
    body = {"model": "words->new", "input": [f"{'the cat ' * (length // 8)} {i}" for i in range(n)]}
    return httpx.post(f"{LOCAL}:{port}/v1/embeddings", json=body, timeout=60)


@pytest.mark.slow
def test_texts_of_sixteen_clients_are_answered_in_time_or_told_when_they_will_be(with_texts):
    def patiently() -> list[int]:
        statuses = []
        while 200 not in statuses:
            response = send_texts(with_texts[1], 8)
            statuses.append(response.status_code)
            if response.status_code == 429:
                time.sleep(float(response.headers["retry-after"]))
        return statuses

    with running(*with_texts), ThreadPoolExecutor(16) as threads:
        for statuses in threads.map(lambda _: patiently(), range(16)):
            assert set(statuses) <= {200, 429}
            assert len(statuses) <= 3


@pytest.mark.slow
def test_work_on_texts_does_not_hold_the_exit(with_texts):
    """Neither many requests that wait nor one that is as long as the service accepts."""
    statuses = set()

    def client(n: int) -> None:
        with suppress(httpx.ConnectError):  # the service has ended
            while True:
                with suppress(httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                    statuses.add(send_texts(with_texts[1], n, 2000).status_code)

    with running(*with_texts) as process, ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(client, n) for n in (2000, 500, 200, 100, 50, 20, 5, 1)]
        time.sleep(4)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.wait(60)
        seconds = time.monotonic() - began
        for each in clients:
            each.result()
    assert seconds < 3 + 5  # the time limit of the requests that were accepted, and five seconds
    assert 200 in statuses


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_and_truncated_texts_are_counted(bert, tmp_path, encoder):
    client, _, _ = service_with(tmp_path, bert)
    service_of(client).texts.load()
    service_of(client).texts.encoders = {"words": encoder}
    long = "the cat sat on the mat"
    counts = encoder.count_tokens(["b", long])
    limit = encoder.card.max_length
    assert counts[0] < limit < counts[1]
    response = posts(client, input=["b", long, long])
    assert response.headers["x-truncated"] == "2"
    expected = int(counts[0]) + 2 * limit
    assert response.json()["usage"] == {"prompt_tokens": expected, "total_tokens": expected}
    assert posts(client, input="b").headers["x-truncated"] == "0"
    response = posts(client, input=make_rows(1, 16).tolist())
    assert "x-truncated" not in response.headers
    assert response.json()["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
