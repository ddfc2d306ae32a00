"""The service in a separate process: slow clients, overload, and failures."""

import asyncio
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers.server_calls import LOCAL, URL
from helpers.serving import eventually, free_port, get, make_rows, make_stitcher, post, running, serve_command

from repstitch.server.negotiation import OCTETS
from repstitch.stitchers.stitcher import Stitcher

HEADERS = {"content-type": OCTETS}
WIDE = 768
WIDE_STITCHER = make_stitcher("wide", "out", WIDE, 1024)


@pytest.fixture
def wide(tmp_path) -> Path:
    """A folder with one stitcher of ordinary size."""
    make_stitcher(d_source=WIDE, d_target=1024).save(tmp_path / "stitchers" / "old-to-new")
    return tmp_path / "stitchers"


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """Start a service with low limits, a small stitcher and one of ordinary size; yield its port, log and process."""
    folder = tmp_path_factory.mktemp("limited")
    make_stitcher().save(folder / "stitchers" / "old-to-new")
    WIDE_STITCHER.save(folder / "stitchers" / "wide")
    port, log = free_port(), folder / "log"
    env = {"REPSTITCH_TIMEOUT_S": "4", "REPSTITCH_MAX_CONCURRENCY": "4", "REPSTITCH_MAX_BODY_BYTES": "1000000"}
    with running(serve_command(folder / "stitchers", port), port, log, env=env | {"OMP_NUM_THREADS": "1"}) as process:
        yield port, log, process
    assert "Traceback" not in log.read_text()


def right(response: httpx.Response, rows: np.ndarray, stitcher: Stitcher) -> bool:
    """Return whether a response contains the translation of the rows by the stitcher."""
    vectors = np.frombuffer(response.content, "<f4").reshape(-1, stitcher.target.dim)
    return vectors.shape[0] == len(rows) and np.allclose(vectors, stitcher.translate(rows), atol=1e-5)


def head(n_bytes: int, path: str = URL) -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {OCTETS}",
        f"Content-Length: {n_bytes}",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


# --- slow clients -----------------------------------------------------------------------------------------------------


def test_slow_uploads_block_nobody_and_time_out(limited):
    port, _, _ = limited
    rows = make_rows(2)
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for i, connection in enumerate(slow):
        connection.sendall(head(48) + rows.tobytes()[: 24 * (i % 2)])  # headers, and half of the body or none
    for _ in range(10):
        response = post(f"{LOCAL}:{port}{URL}", content=rows.tobytes(), headers=HEADERS)
        assert right(response, rows, make_stitcher())
    for connection in slow:
        connection.settimeout(20)
        answer = b""
        while part := connection.recv(4096):  # until the service closes the connection
            answer += part
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"The request took longer than 4 s" in answer
        connection.close()


@pytest.mark.slow
def test_clients_that_do_not_read_their_replies_block_nobody_and_time_out(wide, tmp_path):
    port, log, rows = free_port(), tmp_path / "log", make_rows(4000, WIDE)
    stitcher = make_stitcher(d_source=WIDE, d_target=1024)
    env = {"REPSTITCH_TIMEOUT_S": "2", "OMP_NUM_THREADS": "1"}
    with running(serve_command(wide, port), port, log, env=env) as process:
        lazy = []
        for _ in range(8):
            each = socket.socket()
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            each.connect(("127.0.0.1", port))
            each.sendall(head(rows.nbytes) + rows.tobytes())
            lazy.append(each)
        for _ in range(5):
            small = make_rows(1, WIDE)
            response = post(f"{LOCAL}:{port}{URL}", content=small.tobytes(), headers=HEADERS, timeout=10)
            assert right(response, small, stitcher)
        most, until = 0.0, time.monotonic() + 6
        while time.monotonic() < until:
            most = max(most, memory_mb(process.pid))
            time.sleep(0.02)
        replies_mb = len(lazy) * len(rows) * 1024 * 4 / 2**20
        assert memory_mb(process.pid) < most - replies_mb / 4  # the memory of unread replies is released
        for each in lazy:
            each.settimeout(10)
            received = 0
            while part := each.recv(2**20):
                received += len(part)
            assert received < 4000 * 1024 * 4  # cut off
            each.close()
    assert "Traceback" not in log.read_text()


# --- overload ---------------------------------------------------------------------------------------------------------


def test_excess_requests_get_429_and_accepted_ones_are_answered_correctly(limited):
    port, _, _ = limited
    rows = make_rows(300, WIDE)
    expected = WIDE_STITCHER.translate(rows)
    url = f"{LOCAL}:{port}/v1/translate?source=wide&target=out"

    async def scenario():
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(limits=limits, timeout=60, verify=False) as client:
            posts = (client.post(url, content=rows.tobytes(), headers=HEADERS) for _ in range(80))
            return await asyncio.gather(*posts)

    answers = asyncio.run(scenario())
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 200:
            assert np.allclose(np.frombuffer(answer.content, "<f4").reshape(-1, 1024), expected, atol=1e-5)
        else:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "too_many_requests"
    assert post(url, content=rows.tobytes(), headers=HEADERS).status_code == 200


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(wide, tmp_path):
    port, rows = free_port(), make_rows(10_000, WIDE)
    with (
        running(serve_command(wide, port), port, tmp_path / "log", env={"OMP_NUM_THREADS": "1"}) as process,
        httpx.Client(timeout=60) as client,
    ):
        body, before = rows.tobytes(), math.inf
        for i in range(60):
            assert client.post(f"{LOCAL}:{port}{URL}", content=body, headers=HEADERS).status_code == 200
            if i == 9:
                before = memory_mb(process.pid)
        assert memory_mb(process.pid) - before < 100


def test_an_endless_body_is_refused_at_the_limit(limited):
    port, _, process = limited
    sent = 0
    with socket.create_connection(("127.0.0.1", port)) as endless:
        endless.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        endless.settimeout(10)
        before = memory_mb(process.pid)
        with suppress(OSError):  # the service closes the connection
            while sent < 50 * 2**20:
                endless.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
                sent += 2**16
        assert memory_mb(process.pid) - before < 20
    assert get(f"{LOCAL}:{port}/livez").status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST " + URL.encode() + b" HTTP/1.1\r\nContent-Length: 10\r\nContent-Length: 20\r\n\r\n",
        b"POST " + URL.encode() + b" HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST " + URL.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"\x00" * 1000,
    ],
    ids=["url", "header", "lengths", "length", "chunk", "tls", "zeros"],
)
def test_invalid_http_ends_only_its_own_connection(service, sent):
    port, log = service
    with socket.create_connection(("127.0.0.1", port)) as strange:
        strange.sendall(sent)
        strange.settimeout(3)
        try:
            answer = strange.recv(4096)
        except (TimeoutError, ConnectionResetError):
            answer = b""
        assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))
    assert get(f"{LOCAL}:{port}/livez").status_code == 200
    assert "Traceback" not in log.read_text()


# --- failures and restarts --------------------------------------------------------------------------------------------


class Load(threading.Thread):
    """Sends requests one after another, each on a new connection, until stopped; counts the outcomes."""

    def __init__(self, port: int, stitchers: list[Stitcher], seed: int):
        super().__init__(daemon=True)
        self.port, self.stitchers, self.rows = port, stitchers, make_rows(3, seed=seed)
        self.counts = {"right": 0, "wrong": 0, "refused": 0, "unanswered": 0}
        self.stopped = threading.Event()

    def run(self):
        by_version = {stitcher.version: stitcher for stitcher in self.stitchers}
        url, body = f"{LOCAL}:{self.port}{URL}", self.rows.tobytes()
        while not self.stopped.is_set():
            try:
                response = post(url, content=body, headers=HEADERS, timeout=10)
            except httpx.TransportError:
                self.counts["unanswered"] += 1
                continue
            if response.status_code != 200:
                self.counts["refused"] += 1
                continue
            stitcher = by_version.get(response.headers["x-stitcher-version"])
            fits = stitcher is not None and right(response, self.rows, stitcher)
            self.counts["right" if fits else "wrong"] += 1


class Loads:
    """Runs several loads during a `with` block; `loads[outcome]` is the sum of their counts."""

    def __init__(self, port: int, *stitchers: Stitcher, n: int = 3):
        self.loads = [Load(port, list(stitchers), seed) for seed in range(n)]

    def __enter__(self):
        for load in self.loads:
            load.start()
        return self

    def __exit__(self, *_):
        for load in self.loads:
            load.stopped.set()
        for load in self.loads:
            load.join(20)

    def __getitem__(self, outcome: str) -> int:
        return sum(load.counts[outcome] for load in self.loads)

    def wait_for(self, more: int) -> None:
        """Wait until this many more correct responses have arrived."""
        goal = self["right"] + more
        eventually(lambda: self["right"] >= goal, 30, 0.02)


def workers_of(pid: int) -> list[int]:
    """Return the process ids of the workers of a service."""
    import psutil

    alive = [p for p in psutil.Process(pid).children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p.pid for p in alive if "resource_tracker" not in " ".join(p.cmdline())]


def publish(stitcher: Stitcher, folder: Path, name: str = "old-to-new") -> None:
    """Replace one stitcher with another by a rename."""
    stitcher.save(folder.parent / "published")
    if (folder / name).exists():
        os.rename(folder / name, folder.parent / f"gone-{time.monotonic_ns()}")
    os.rename(folder.parent / "published", folder / name)


@pytest.fixture
def stitchers(tmp_path) -> Path:
    make_stitcher().save(tmp_path / "stitchers" / "old-to-new")
    return tmp_path / "stitchers"


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_no_wrong_response_is_sent(stitchers, tmp_path):
    port, log = free_port(), tmp_path / "log"
    with (
        running(serve_command(stitchers, port, workers=2), port, log) as process,
        Loads(port, make_stitcher()) as loads,
    ):
        loads.wait_for(20)
        for _ in range(2):
            before = workers_of(process.pid)
            os.kill(before[0], signal.SIGKILL)
            eventually(lambda gone=before[0]: len(workers_of(process.pid)) == 2 and gone not in workers_of(process.pid))
            loads.wait_for(20)
        text = get(f"{LOCAL}:{port}/metrics").text
    assert loads["wrong"] == loads["refused"] == 0
    assert loads["unanswered"] <= 2 * 3 * 3  # requests that the killed worker had accepted or that were waiting for it
    assert "repstitch_requests_total" in text
    assert process.returncode == 0


@pytest.mark.slow
def test_published_stitchers_are_served_and_corrupt_ones_are_not(stitchers, tmp_path):
    port, log, old, new = free_port(), tmp_path / "log", make_stitcher(), make_stitcher(seed=7)
    env = {"REPSTITCH_RELOAD_S": "0.1"}

    def served() -> set[str]:
        return {get(f"{LOCAL}:{port}/v1/stitchers").json()["stitchers"][0]["version"] for _ in range(10)}

    with (
        running(serve_command(stitchers, port, workers=2), port, log, env=env),
        Loads(port, old, new) as loads,
    ):
        loads.wait_for(20)
        for stitcher in (new, old, new):
            publish(stitcher, stitchers)
            eventually(lambda stitcher=stitcher: served() == {stitcher.version})
            loads.wait_for(20)
        weights = stitchers / "old-to-new" / "model.safetensors"
        whole = weights.read_bytes()
        for broken in (b"", b"not weights", whole[: len(whole) // 2], bytes(len(whole))):
            weights.write_bytes(broken)  # overwritten in place, which is the worst case
            time.sleep(0.4)
            loads.wait_for(20)
            assert served() == {new.version}
        os.rename(stitchers, tmp_path / "away")  # the whole folder disappears in one step
        time.sleep(0.4)
        loads.wait_for(20)
        publish_folder(stitchers, old)
        eventually(lambda: served() == {old.version})
        loads.wait_for(20)
    assert loads["wrong"] == loads["refused"] == loads["unanswered"] == 0
    assert "Not loaded" in log.read_text()


def publish_folder(folder: Path, stitcher: Stitcher) -> None:
    """Restore the deleted folder by a rename."""
    stitcher.save(folder.parent / "restored" / "old-to-new")
    os.rename(folder.parent / "restored", folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_accepted_request(stitchers, tmp_path, workers):
    port, log = free_port(), tmp_path / "log"
    rows, answers = make_rows(2), []

    def half_sent():
        yield rows[:1].tobytes()
        time.sleep(1.5)
        yield rows[1:].tobytes()

    def post_slowly():
        answers.append(post(f"{LOCAL}:{port}{URL}", content=half_sent(), headers=HEADERS, timeout=20))

    with running(serve_command(stitchers, port, workers), port, log) as process, Loads(port, make_stitcher()) as loads:
        loads.wait_for(20)
        accepted = [threading.Thread(target=post_slowly) for _ in range(5)]
        for thread in accepted:
            thread.start()
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        for thread in accepted:
            thread.join()
        assert process.wait(30) == 0
    assert [right(answer, rows, make_stitcher()) for answer in answers] == [True] * 5
    assert loads["wrong"] == loads["refused"] == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_full_disk_during_training_leaves_no_partial_files_and_does_not_affect_the_service(stitchers, tmp_path):
    """A limit on the file size stands in for the full disk: the same writes fail with the same kind of error."""
    port, log = free_port(), tmp_path / "log"
    X = make_rows(400, 64)
    Y = X @ make_rows(64, 48, seed=2)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "Y.npy", Y)
    command = [sys.executable, "-m", "repstitch", "train", "--source", str(tmp_path / "X.npy"), "--target"]
    command += [str(tmp_path / "Y.npy"), "--out", str(stitchers / "trained"), "--method", "ridge"]
    with running(serve_command(stitchers, port), port, log, env={"REPSTITCH_RELOAD_S": "0.1"}):
        limited = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); {IGNORE}; {RUN}"
        short = [sys.executable, "-c", limited, *command[3:]]
        full = subprocess.run(short, capture_output=True, text=True, timeout=120)
        assert full.returncode == 2, full.stderr
        assert "cannot be written" in full.stderr.strip().splitlines()[-1]
        assert "Traceback" not in full.stderr
        assert os.listdir(stitchers) == ["old-to-new"]
        assert len(get(f"{LOCAL}:{port}/v1/stitchers").json()["stitchers"]) == 1
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        eventually(lambda: len(get(f"{LOCAL}:{port}/v1/stitchers").json()["stitchers"]) == 2)
    assert "Traceback" not in log.read_text()


IGNORE = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
RUN = "from repstitch.cli.main import main; sys.exit(main(sys.argv[1:]))"
