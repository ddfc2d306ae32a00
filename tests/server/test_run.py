import signal
import socket
import subprocess
import threading
import time

import httpx
import numpy as np
import pytest
from helpers.serving import free_port, make_rows, make_stitcher, running, serve_command

from repstitch.errors import InputError
from repstitch.server.run import announce, listen, serve
from repstitch.stitchers.registry import Registry

HEADERS = {"content-type": "application/octet-stream"}


@pytest.fixture
def folder(tmp_path):
    make_stitcher().save(tmp_path / "stitchers" / "old-to-new")
    return tmp_path / "stitchers"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_answers_over_http_and_leaves_on_sigterm(folder, tmp_path, workers):
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}/v1/translate?source=old&target=new"
    rows = make_rows(5)
    with running(serve_command(folder, port, workers=workers), port, log) as process:
        response = httpx.post(url, content=rows.tobytes(), headers=HEADERS)
        assert np.allclose(
            np.frombuffer(response.content, "<f4").reshape(-1, 4), make_stitcher().translate(rows), atol=1e-6
        )
        answer = httpx.post(url, json={"embedding": rows.tolist()}).json()
        assert np.allclose(answer["embedding"], make_stitcher().translate(rows), atol=1e-6)
        pickled = httpx.post(url, content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"})
        assert pickled.status_code == 415
    assert process.returncode == 0
    lines = log.read_text().splitlines()
    assert f"repstitch: http://127.0.0.1:{port} serves old-to-new (old -> new); try: curl -X POST" in lines[0]
    assert "Traceback" not in log.read_text()


def test_sigterm_finishes_what_is_in_flight(folder, tmp_path):
    port = free_port()
    rows, replies = make_rows(2), []

    def slow_body():
        yield rows[:1].tobytes()
        time.sleep(1)
        yield rows[1:].tobytes()

    def post():
        url = f"http://127.0.0.1:{port}/v1/translate?source=old&target=new"
        replies.append(httpx.post(url, content=slow_body(), headers=HEADERS, timeout=20))

    with running(serve_command(folder, port), port, tmp_path / "log") as process:
        thread = threading.Thread(target=post)
        thread.start()
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        thread.join()
    assert replies[0].headers["x-rows"] == "2"
    assert process.returncode == 0


def test_a_port_in_use_is_one_clear_line(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"`port` {port} on 127.0.0.1 cannot be had: Address already in use"):
            listen("127.0.0.1", port)


def test_an_address_that_makes_no_sense_is_refused(folder):
    with pytest.raises(InputError, match="`port` must be a number from 0 to 65535; got 70000"):
        listen("127.0.0.1", 70000)
    with pytest.raises(InputError, match="on no such host cannot be had"):
        listen("no such host", 0)
    with pytest.raises(InputError, match=r"\(REPSTITCH_WORKERS\) must be a whole number of at least 1; got 0"):
        serve(workers=0)
    with pytest.raises(InputError, match="`engine` must be one of uvicorn, bentoml; got 'flask'"):
        serve(engine="flask")


def test_an_address_that_others_reach_is_not_served_without_keys(folder, monkeypatch):
    with pytest.raises(InputError, match=r"`host` 0\.0\.0\.0 can be reached from elsewhere, and no key is asked for"):
        serve(folder, host="0.0.0.0")
    monkeypatch.setenv("REPSTITCH_API_KEYS", "a b")
    with pytest.raises(InputError, match=r"\(REPSTITCH_API_KEYS\) must be plain words with commas between"):
        serve(folder)


def test_the_announcement_names_a_few_and_counts_the_rest(tmp_path):
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


def test_the_service_starts_without_a_traceback_where_there_is_nothing_to_serve(tmp_path):
    port = free_port()
    process = subprocess.Popen(serve_command(tmp_path / "none", port), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    while "serves nothing yet" not in line:
        assert line, "it ended without saying so"
        line = process.stderr.readline()
    time.sleep(0.5)
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 503
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
