import signal
import socket
import subprocess
import threading
import time

import numpy as np
import pytest
from helpers.serving import free_port, get, make_rows, make_stitcher, post, running, serve_command

from repstitch.errors import InputError
from repstitch.server.run import announce, listen, serve
from repstitch.stitchers.registry import Registry

HEADERS = {"content-type": "application/octet-stream"}


@pytest.fixture
def folder(tmp_path):
    make_stitcher().save(tmp_path / "stitchers" / "old-to-new")
    return tmp_path / "stitchers"


def test_the_service_answers_over_http_and_finishes_open_requests_on_sigterm(folder, tmp_path):
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}/v1/translate?source=old&target=new"
    rows, replies, begun, signalled = make_rows(2), [], threading.Event(), threading.Event()

    def slow_body():
        yield rows[:1].tobytes()
        begun.set()
        signalled.wait(20)
        time.sleep(0.3)  # SIGTERM was sent; the service must still read the rest
        yield rows[1:].tobytes()

    def post_slowly():
        replies.append(post(url, content=slow_body(), headers=HEADERS, timeout=20))

    with running(serve_command(folder, port), port, log) as process:
        answer = post(url, json={"embedding": rows.tolist()}).json()
        assert np.allclose(answer["embedding"], make_stitcher().translate(rows), atol=1e-6)
        thread = threading.Thread(target=post_slowly)
        thread.start()
        begun.wait(20)
        time.sleep(0.3)  # until the service has begun to read
        process.send_signal(signal.SIGTERM)
        signalled.set()
        thread.join()
    vectors = np.frombuffer(replies[0].content, "<f4").reshape(-1, 4)
    assert np.allclose(vectors, make_stitcher().translate(rows), atol=1e-6)
    assert process.returncode == 0
    line = log.read_text().splitlines()[0]
    assert f"repstitch: http://127.0.0.1:{port} serves old-to-new (old -> new); try: curl -X POST" in line
    assert "Traceback" not in log.read_text()


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
