"""Attacks that once succeeded against the service."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pyarrow as pa
import pytest
from helpers.server_calls import LOCAL, URL, client_of, post_rows, read_rows, refused, service_of
from helpers.serving import free_port, get, make_rows, make_stitcher, post, running, serve_command
from starlette.testclient import TestClient

from repstitch.server.app import create_app
from repstitch.server.compute import Stage
from repstitch.server.endpoint import PART_BYTES, send_reply
from repstitch.server.negotiation import OCTETS, OCTETS16
from repstitch.server.score import Score
from repstitch.server.service import MAX_SLOW_TASKS
from repstitch.server.settings import Settings
from repstitch.stitchers.registry import PROMOTED, Registry
from repstitch.wire.arrow import read_arrow
from repstitch.wire.rows import MalformedError

WIDE = 256


# --- rows of one request in the response to another -------------------------------------------------------------------


@pytest.mark.parametrize("small", [1, 16, 64])
def test_small_and_large_requests_on_a_device_each_get_their_own_rows(tmp_path, small):
    stitcher = make_stitcher(d_source=WIDE, d_target=WIDE)
    stitcher.save(tmp_path / "old-to-new")
    registry = Registry(tmp_path)
    registry.refresh()
    app = create_app(registry, Settings())
    placed = app.state.service.resolve({"source": "old", "target": "new"}).placed
    placed.stage, placed.cpu_rows = Stage("cpu"), small
    sent = [make_rows(3000 if i % 10 == 0 else min(small, 16), WIDE, seed=i) for i in range(60)]

    async def scenario():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client:
            headers = {"content-type": OCTETS}
            return await asyncio.gather(*(client.post(URL, content=r.tobytes(), headers=headers) for r in sent))

    for rows, answer in zip(sent, asyncio.run(scenario()), strict=True):
        assert np.allclose(read_rows(answer, WIDE), stitcher.translate(rows), atol=1e-5)


def test_concurrent_calls_on_one_stage_each_get_their_own_rows():
    from repstitch.server.compute import PlacedRoute
    from repstitch.stitchers.routing import Route

    stitcher = make_stitcher(d_source=WIDE, d_target=WIDE)
    placed = PlacedRoute(Route(("s",), (stitcher,)), Stage("cpu"))
    sent = [make_rows(700, WIDE, seed=i) for i in range(24)]
    with ThreadPoolExecutor(4) as threads:
        for rows, (vectors, _) in zip(sent, threads.map(placed.translate, sent), strict=True):
            assert np.allclose(vectors, stitcher.translate(rows), atol=1e-5)


# --- rows misread as another type -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameter", ["dtype =float16", "dtype*=float16", "dtype=float16;dtype=float32", "xdtype=float16", "dtype"]
)
def test_a_malformed_dtype_parameter_is_not_ignored(client, parameter):
    rows = make_rows(4).astype("<f2").tobytes()
    response = client.post(URL, content=rows, headers={"content-type": f"{OCTETS}; {parameter}"})
    if parameter == "dtype =float16":
        assert response.headers["content-type"] == OCTETS16
        assert response.headers["x-rows"] == "4"
    else:
        refused(response, 415, "The `dtype` of a `Content-Type` must be float32 or float16", "Content-Type")


def test_two_content_type_headers_are_refused(client):
    headers = [("content-type", OCTETS), ("content-type", OCTETS16)]
    refused(
        client.post(URL, content=bytes(48), headers=headers),
        415,
        "`Content-Type` must be sent only once",
        "Content-Type",
    )


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x-dim": "3"}, "The rows must have 6 numbers; got `X-Dim` 3"),
        ({"x-dim": "12"}, "The rows must have 6 numbers; got `X-Dim` 12"),
        ({"x-rows": "4"}, "The body has 2 rows of 6 numbers; got `X-Rows` 4"),
        ({"x-rows": "two", "x-dim": "6"}, "got `X-Rows` two"),
    ],
)
def test_rows_whose_shape_differs_from_x_rows_or_x_dim_are_refused(client, headers, message):
    refused(post_rows(client, make_rows(2), **headers), 422, message, "embedding")
    assert post_rows(client, make_rows(2), x_rows="2", x_dim="6").status_code == 200


# --- large replies block the event loop -------------------------------------------------------------------------------


def test_a_large_reply_yields_to_the_event_loop_between_its_parts():
    turns, sent = [], []

    async def send(message):
        sent.append(bytes(message.get("body", b"")))
        turns.append(len(turns))  # never waits, like a server whose client reads as fast as it sends

    async def others():
        turns_taken = []
        while len(b"".join(sent)) < size:
            turns_taken.append(len(turns))
            await asyncio.sleep(0)
        return turns_taken

    body = [bytes(3 * PART_BYTES + 1), memoryview(b"middle"), bytes(2 * PART_BYTES)]
    size = sum(map(len, body))

    async def scenario():
        between, _ = await asyncio.gather(others(), send_reply(send, [], body))
        return between

    between = asyncio.run(scenario())
    assert b"".join(sent) == b"".join(body)
    assert max(map(len, sent)) <= PART_BYTES
    assert np.diff(between).max() <= 2


# --- memory and time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"metadata_version": pa.ipc.MetadataVersion.V4}, {"compression": "zstd"}])
def test_an_arrow_stream_that_could_decompress_to_any_size_is_refused_unopened(options, monkeypatch):
    sink = pa.BufferOutputStream()
    table = pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(60, np.float32)), 6)})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    monkeypatch.setattr(pa.ipc, "open_stream", lambda *_: 1 / 0)
    with pytest.raises(MalformedError, match=r"metadata version 5|without compression"):
        read_arrow(bytearray(sink.getvalue().to_pybytes()), 6)


@pytest.mark.parametrize(
    "body", [b'{"embedding":[' + b"[]," * 9000 + b"[]]}", b'{"embedding":[' + b"{}," * 9000 + b"{}]}"]
)
def test_json_with_too_many_brackets_is_refused_before_parsing(registry, body, monkeypatch):
    monkeypatch.setattr("orjson.loads", lambda _: 1 / 0)
    response = client_of(registry, max_rows=100).post(URL, content=body, headers={"content-type": "application/json"})
    refused(response, 400, "must be one object with at most 100 rows; it has too many brackets")


def test_json_bodies_have_their_own_size_limit(registry):
    client = client_of(registry, max_json_bytes=100)
    body = json.dumps({"embedding": make_rows(5).tolist()})
    for path in (URL, "/v1/embeddings", "/v1/score"):
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        refused(response, 413, "A request body may have at most 100 bytes")
    assert post_rows(client, make_rows(5)).status_code == 200


def test_a_long_json_reply_written_in_parts_is_valid_json(client):
    rows = make_rows(1000)
    answer = post_rows(client, rows, accept="application/json")
    assert np.allclose(answer.json()["embedding"], make_stitcher().translate(rows), atol=1e-6)
    answer = client.post("/v1/embeddings", json={"model": "old->new", "input": rows.tolist()}).json()
    assert len(answer["data"]) == 1000


def test_slow_scores_are_limited_in_number_and_do_not_block_translations(registry, monkeypatch):
    app = create_app(registry, Settings())
    release = threading.Event()
    monkeypatch.setattr(Score, "_score", lambda self, *_: (release.wait(20), ([(b"content-length", b"0")], b""))[1])
    pairs = {"source": "old", "target": "new"}
    body = {"embedding": make_rows(30).tolist(), "counterpart": make_rows(30, 4).tolist()} | pairs

    async def scenario():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL) as client:
            scores = [asyncio.create_task(client.post("/v1/score", json=body)) for _ in range(MAX_SLOW_TASKS)]
            await asyncio.sleep(0.3)
            more = await client.post("/v1/score", json=body)
            bulk = await client.post(URL, content=make_rows(500).tobytes(), headers={"content-type": OCTETS})
            release.set()
            return (
                more,
                bulk,
                [(await score).status_code for score in scores],
                await client.post("/v1/score", json=body),
            )

    more, bulk, scores, after = asyncio.run(scenario())
    refused(more, 429, f"already processing {MAX_SLOW_TASKS} score requests")
    assert np.allclose(read_rows(bulk), make_stitcher().translate(make_rows(500)), atol=1e-6)
    assert scores == [200] * MAX_SLOW_TASKS
    assert after.status_code == 200


def test_a_disconnected_client_is_still_answered_and_its_bytes_are_released(registry):
    """A framework that mounts the application may wait for the response even after the client has disconnected."""
    app, sent = create_app(registry, Settings()), []

    async def scenario():
        messages = [{"type": "http.request", "body": b"abcd", "more_body": True}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/translate",
            "root_path": "",
            "query_string": b"source=old&target=new",
            "headers": [(b"content-type", OCTETS.encode()), (b"host", b"127.0.0.1")],
            "server": ("127.0.0.1", 3000),
        }
        await app(scope, receive, send)

    asyncio.run(scenario())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert app.state.service.gate.bytes == 0


@pytest.mark.slow
def test_clients_that_never_read_their_replies_do_not_block_others(tmp_path):
    make_stitcher(d_source=WIDE, d_target=4).save(tmp_path / "st" / "old-to-new")
    port, rows = free_port(), make_rows(4000, WIDE)
    env = {"REPSTITCH_TIMEOUT_S": "1", "REPSTITCH_MAX_HELD_BYTES": str(12 * 2**20), "OMP_NUM_THREADS": "1"}
    lines = (
        f"POST {URL} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {OCTETS}",
        f"Content-Length: {rows.nbytes}",
        "",
        "",
    )
    request = "\r\n".join(lines).encode() + rows.tobytes()
    stop = threading.Event()

    def flood():
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.connect(("127.0.0.1", port))
            lazy.settimeout(0.5)
            while not stop.is_set():
                try:
                    lazy.sendall(request)
                except TimeoutError:
                    continue
                except OSError:
                    return

    with running(serve_command(tmp_path / "st", port), port, tmp_path / "log", env=env):
        threads = [threading.Thread(target=flood, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        small = make_rows(1, WIDE).tobytes()
        codes = []
        for _ in range(20):
            codes.append(post(f"{LOCAL}:{port}{URL}", content=small, headers={"content-type": OCTETS}).status_code)
            time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join(10)
    assert codes.count(200) >= 10


# --- HTTP itself ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["path", "header", "headers"])
def test_endless_request_heads_are_cut_off(service, where):
    port, _ = service
    beginning = {"path": b"GET /", "header": b"GET / HTTP/1.1\r\nX-A: ", "headers": b"GET / HTTP/1.1\r\n"}[where]
    part = b"X-B: " + b"b" * 1000 + b"\r\n" if where == "headers" else b"b" * 1000
    with socket.create_connection(("127.0.0.1", port)) as endless:
        endless.sendall(beginning)
        cut = False
        for _ in range(50_000):  # more bytes than the socket buffers hold
            try:
                endless.sendall(part)
            except OSError:
                cut = True
                break
        assert cut
    assert get(f"{LOCAL}:{port}/livez").status_code == 200


def test_a_web_page_cannot_reach_the_service_by_dns_rebinding(registry):
    client = client_of(registry)
    refused(
        client.get("/v1/spaces", headers={"host": "rebound.example"}),
        401,
        "requests to a loopback address",
        "Authorization",
    )
    for host in ("localhost:3000", "127.0.0.1", "[::1]:3000"):
        assert client.get("/v1/spaces", headers={"host": host}).status_code == 200
    opened = TestClient(create_app(registry, Settings(open=True)), LOCAL)
    assert opened.get("/v1/spaces", headers={"host": "service.example"}).status_code == 200


# --- files in the stitchers folder ------------------------------------------------------------------------------------


def test_a_stitcher_with_a_number_beyond_64_bits_can_be_shown(folder, registry):
    path = folder / "old-to-new" / "scorecard.json"
    path.write_text("{}")
    client = client_of(registry)
    stitcher = registry.state.stitchers["old-to-new"]
    stitcher.settings["seed"] = 2**70
    assert json.loads(client.get("/v1/stitchers/old-to-new").text)["settings"]["seed"] == 2**70


def test_a_deeply_nested_promotion_file_is_reported_once(folder, registry, caplog):
    (folder / PROMOTED).write_text("[" * 100_000)
    for _ in range(3):
        registry.refresh()
    assert caplog.text.count("cannot be read") == 1
    assert service_of(client_of(registry)).state().stitchers
