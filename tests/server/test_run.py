import os
import re
import signal
import socket
import subprocess
import threading
import time

import numpy as np
import pytest
from helpers.serving import ROOT, free_port, get, make_rows, make_stitcher, post, running, serve_command

from repstitch.errors import InputError
from repstitch.server.run import announce, hang_up_as_terminate, listen, serve
from repstitch.stitchers.registry import Registry

HEADERS = {"content-type": "application/octet-stream"}


@pytest.fixture
def folder(tmp_path):
    make_stitcher().save(tmp_path / "stitchers" / "old-to-new")
    return tmp_path / "stitchers"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("engine", "workers"),
    [
        ("uvicorn", 1),
        pytest.param("uvicorn", 2, marks=pytest.mark.slow),
        pytest.param("bentoml", 1, marks=pytest.mark.slow),
    ],
)
def test_the_service_answers_over_http_and_finishes_open_requests_on_a_signal(
    folder, tmp_path, number, engine, workers
):
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}/v1/translate?source=old&target=new"
    rows, replies, begun, signalled = make_rows(2), [], threading.Event(), threading.Event()

    def slow_body():
        yield rows[:1].tobytes()
        begun.set()
        signalled.wait(20)
        time.sleep(0.3)  # the signal was sent; the service must still read the rest
        yield rows[1:].tobytes()

    def post_slowly():
        replies.append(post(url, content=slow_body(), headers=HEADERS, timeout=20))

    with running(serve_command(folder, port, workers, engine), port, log, cwd=ROOT) as process:
        answer = post(url, json={"embedding": rows.tolist()}).json()
        assert np.allclose(answer["embedding"], make_stitcher().translate(rows), atol=1e-6)
        thread = threading.Thread(target=post_slowly)
        thread.start()
        begun.wait(20)
        time.sleep(0.3)  # until the service has begun to read
        os.killpg(process.pid, number)  # as a terminal does, to all processes of the service
        signalled.set()
        thread.join()
        assert process.wait(30) == 0
    vectors = np.frombuffer(replies[0].content, "<f4").reshape(-1, 4)
    assert np.allclose(vectors, make_stitcher().translate(rows), atol=1e-6)
    line = next(line for line in log.read_text().splitlines() if line.startswith("repstitch: "))
    assert f"repstitch: http://127.0.0.1:{port} serves old-to-new (old -> new); try: curl -X POST" in line
    assert "Traceback" not in log.read_text()


STUCK = "import time; from repstitch.server import score; score.Score._score = lambda *_: time.sleep(60)\n"


@pytest.mark.parametrize(
    ("engine", "workers"),
    [
        ("uvicorn", 1),
        pytest.param("uvicorn", 2, marks=pytest.mark.slow),
        pytest.param("bentoml", 1, marks=pytest.mark.slow),
    ],
)
def test_work_whose_request_has_ended_does_not_hold_the_exit(folder, tmp_path, engine, workers):
    port, log = free_port(), tmp_path / "log"
    (tmp_path / "sitecustomize.py").write_text(STUCK)  # which every process of the service imports
    env = {"REPSTITCH_TIMEOUT_S": "1", "PYTHONPATH": str(tmp_path)}
    with running(serve_command(folder, port, workers, engine), port, log, cwd=ROOT, env=env) as process:
        pairs = {"embedding": make_rows(2).tolist(), "counterpart": make_rows(2, 4).tolist(), "source": "old"}
        answer = post(f"http://127.0.0.1:{port}/v1/score", json=pairs | {"target": "new"}, timeout=20)
        assert answer.status_code == 504
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - began < 5
    assert "Traceback" not in log.read_text()


def test_a_process_that_ignores_hang_ups_keeps_ignoring_them():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        hang_up_as_terminate()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_lines_of_the_log_begin_with_the_time(folder, tmp_path):
    port, log = free_port(), tmp_path / "log"
    (folder / "broken").mkdir()
    env = {"REPSTITCH_MAX_ROW": "5"}
    with (
        running(serve_command(folder, port), port, log, env=env),
        socket.create_connection(("127.0.0.1", port)) as strange,
    ):
        strange.sendall(b"\x00\r\n\r\n")
        strange.recv(1000)
    first, *lines = [line for line in log.read_text().splitlines() if not line.startswith("repstitch: ")]
    for line in (first, *lines):
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+: ", line), line
    for text in ("REPSTITCH_MAX_ROW is no setting", "Not loaded: ", "Invalid HTTP request received"):
        assert text in log.read_text()


def test_a_port_in_use_is_refused_with_a_clear_message(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"`port` {port} on 127.0.0.1 is not available: Address already in use"):
            listen("127.0.0.1", port)


def test_an_invalid_address_worker_count_or_engine_is_refused(folder):
    with pytest.raises(InputError, match="`port` must be a number from 0 to 65535; got 70000"):
        listen("127.0.0.1", 70000)
    with pytest.raises(InputError, match="on no such host is not available"):
        listen("no such host", 0)
    with pytest.raises(InputError, match=r"\(REPSTITCH_WORKERS\) must be a whole number of at least 1; got 0"):
        serve(workers=0)
    with pytest.raises(InputError, match="`engine` must be one of uvicorn, bentoml; got 'flask'"):
        serve(engine="flask")


def test_an_address_reachable_from_other_machines_is_not_served_without_keys(folder, monkeypatch):
    with pytest.raises(
        InputError, match=r"`host` 0\.0\.0\.0 is reachable from other machines, but no API keys are set"
    ):
        serve(folder, host="0.0.0.0")
    monkeypatch.setenv("REPSTITCH_API_KEYS", "a b")
    with pytest.raises(InputError, match=r"\(REPSTITCH_API_KEYS\) must be printable ASCII without spaces"):
        serve(folder)


def test_the_announcement_names_a_few_stitchers_and_counts_the_rest(tmp_path):
    registry = Registry(tmp_path)
    with listen("127.0.0.1", 0) as listener:
        assert "serves nothing yet" in announce(registry, listener)
        for i in range(7):
            make_stitcher("old", f"new{i}").save(tmp_path / f"s{i}")
        registry.refresh()
        line = announce(registry, listener)
    assert "s0 (old -> new0), s1 (old -> new1)" in line
    assert "and 2 more" in line
    assert "\n" not in line


def test_the_example_call_has_a_key_if_the_service_requires_one(tmp_path):
    registry = Registry(tmp_path)
    make_stitcher().save(tmp_path / "s")
    registry.refresh()
    with listen("127.0.0.1", 0) as listener:
        assert "-H 'Authorization: Bearer KEY' -H 'Content-Type" in announce(registry, listener, with_key=True)
        assert "Bearer" not in announce(registry, listener)


def test_the_announcement_names_only_stitchers_that_serve(tmp_path):
    make_stitcher().save(tmp_path / "b")
    make_stitcher(seed=1).save(tmp_path / "a")
    make_stitcher("x", "y").save(tmp_path / "c")
    registry = Registry(tmp_path)
    registry.refresh()
    registry.promote("b")
    with listen("127.0.0.1", 0) as listener:
        assert "serves b (old -> new), c (x -> y); try" in announce(registry, listener)


def test_the_service_starts_without_any_stitcher_to_serve(tmp_path):
    port = free_port()
    process = subprocess.Popen(serve_command(tmp_path / "none", port), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    while "serves nothing yet" not in line:
        assert line, "the service ended before it announced itself"
        line = process.stderr.readline()
    assert get(f"http://127.0.0.1:{port}/readyz", timeout=60).status_code == 503
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
