"""A service with two worker processes."""

import os
import re
import signal
import time

import numpy as np
import pytest
from helpers.metrics import numbers
from helpers.server_calls import LOCAL, URL, read_rows
from helpers.serving import (
    eventually,
    free_port,
    get,
    make_rows,
    make_stitcher,
    post,
    running,
    serve_command,
    wait_until_ready,
)
from uvicorn.config import STARTUP_FAILURE

from repstitch.server.negotiation import OCTETS

KEYS = ("first-key", "second-key")


def with_key(key: str = KEYS[0]) -> dict[str, str]:
    return {"content-type": OCTETS, "authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Yield the address and the log of the service. It must exit with status 0 and log no traceback and no key."""
    folder = tmp_path_factory.mktemp("workers")
    make_stitcher().save(folder / "stitchers" / "old-to-new")
    make_stitcher("old", "counted").save(folder / "stitchers" / "old-to-counted")
    port, log = free_port(), folder / "log"
    env = {"REPSTITCH_API_KEYS": ", ".join(KEYS), "REPSTITCH_RELOAD_S": "0.1"}
    with running(serve_command(folder / "stitchers", port, workers=2), port, log, env=env) as process:
        yield f"{LOCAL}:{port}", log
    assert process.returncode == 0
    assert "Traceback" not in log.read_text()
    assert not any(key in log.read_text() for key in (*KEYS, "third-key"))


def test_two_workers_answer_and_announce_their_address(workers):
    address, log = workers
    rows = make_rows(5)
    assert np.allclose(
        read_rows(post(address + URL, content=rows.tobytes(), headers=with_key())),
        make_stitcher().translate(rows),
        atol=1e-6,
    )
    pickled = post(address + URL, content=b"x", headers=with_key() | {"content-type": "application/vnd.bentoml+pickle"})
    assert pickled.status_code == 415
    line = log.read_text().splitlines()[0]
    assert f"repstitch: {address} serves old-to-counted (old -> counted), old-to-new (old -> new); try: curl" in line


def test_two_workers_require_a_key(workers):
    address, _ = workers
    body = make_rows(1).tobytes()
    assert post(address + URL, content=body, headers={"content-type": OCTETS}).status_code == 401
    assert post(address + URL, content=body, headers=with_key("third-key")).status_code == 401
    for key in KEYS:
        assert post(address + URL, content=body, headers=with_key(key)).status_code == 200
    assert get(f"{address}/metrics").status_code == 401


def test_the_metrics_of_all_worker_processes_are_added_up(workers):
    address, _ = workers
    for _ in range(40):  # each on a new connection, so that both workers get some; no other test uses this pair
        url = f"{address}/v1/translate?source=old&target=counted"
        post(url, content=make_rows(2).tobytes(), headers=with_key())

    def text() -> str:
        return get(f"{address}/metrics", headers=with_key()).text

    def added_up() -> bool:
        metrics = numbers(text())
        requests = {key: n for key, n in metrics.items() if key[0] == "requests_total" and key[-1] == "translate"}
        return (
            requests.get(("requests_total", "200", "f32", "old->counted", "translate")) == 40
            and metrics["vectors_total", "old->counted"] == 80
            and metrics["request_seconds_count", "translate"] == sum(requests.values())
            and metrics["reloads_total", "loaded"] == 4  # each worker reads the folder itself
        )

    eventually(added_up)
    assert numbers(text())["stitchers_loaded",] == 2
    assert not re.search(r"pid=", text())


@pytest.fixture
def with_workers(tmp_path):
    """Return a function that starts a service whose workers run some code before they load their modules."""
    make_stitcher().save(tmp_path / "stitchers" / "old-to-new")
    port, log = free_port(), tmp_path / "log"

    def start(code: str, ready=wait_until_ready):
        lines = f"import os, sys, time\nif '--multiprocessing-fork' in sys.orig_argv: {code}\n"
        (tmp_path / "sitecustomize.py").write_text(lines)
        command = serve_command(tmp_path / "stitchers", port, workers=2)
        return running(command, port, log, env={"PYTHONPATH": str(tmp_path)}, ready=ready), log

    return start


@pytest.mark.slow
def test_workers_that_take_long_to_load_are_waited_for(with_workers):
    service, log = with_workers("time.sleep(14)")
    with service as process:
        assert "replaced" not in log.read_text()
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_service_whose_workers_still_load_ends_at_once(with_workers, number):
    def announced(process, port, log):
        eventually(lambda: "repstitch: " in log.read_text())
        time.sleep(1)  # the workers are started right after the announcement

    service, _ = with_workers("time.sleep(30)", announced)
    with service as process:
        began = time.monotonic()
        os.killpg(process.pid, number)  # as a terminal does
        assert process.wait(20) == 0
        assert time.monotonic() - began < 3


@pytest.mark.slow
def test_a_service_whose_workers_cannot_start_ends_with_their_status(with_workers):
    service, log = with_workers(f"os._exit({STARTUP_FAILURE})", lambda process, *_: process.wait(30))
    with service as process:
        assert process.returncode == STARTUP_FAILURE
    assert "A worker could not start; the service ends." in log.read_text()
    assert "Traceback" not in log.read_text()
