"""Attack a running service with trailers and silent connections, promote stitchers at the same time; write a table."""

import argparse
import json
import multiprocessing
import select
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psutil
from machine import header, markdown
from servers import Server, _family, cores, running

from repstitch.stitchers.registry import PROMOTED, Registry

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
RESULT = ROOT / "benchmarks/results/attacks.md"
ENGINES = ("uvicorn", "bentoml")
SENT_MB = 50
CLIENTS, DESCRIPTORS = 400, 256
PROMOTES = 30
KEY = {"REPSTITCH_API_KEYS": "secret"}
HEAD = (
    b"POST /v1/translate?source=old&target=new HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: application/octet-stream\r\n"
)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
AUTHORISED = HEAD + b"Authorization: Bearer secret\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--seconds", type=float, default=75, help="how long slow clients are observed")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        stitchers = save_stitchers(Path(folder))
        for engine in args.engines.split(","):
            for attack in (trailers, silent_clients, slow_clients):
                for what, value in attack(engine, stitchers, args.seconds):
                    rows.append([engine, what, value])
                    print(*rows[-1], flush=True)
        rows.append(["-", f"{PROMOTES} promotions at the same time, for a pair each", promotions(stitchers)])
        print(*rows[-1], flush=True)
    args.out.write_text(
        header("Attacks", "python benchmarks/attacks.py", ("uvicorn", "httptools", "uvloop"))
        + "\n"
        + markdown(["engine", "attack", "outcome"], rows)
    )


def save_stitchers(folder: Path) -> Path:
    from helpers.serving import make_stitcher  # pyright: ignore[reportMissingImports]

    make_stitcher().save(folder / "old-to-new")
    for i in range(PROMOTES):
        make_stitcher(f"from{i}", "to").save(folder / f"s{i}")
    return folder


def serving(engine: str, stitchers: Path, env: dict[str, str], descriptors: int | None = None):
    """Start the service on a core; `descriptors` limits the files that it may open."""
    serve = [sys.executable, "-m", "repstitch", "serve", "--stitchers", str(stitchers), "--engine", engine]
    limit = "" if descriptors is None else f"ulimit -n {descriptors}; "
    command = ["bash", "-c", f'{limit}exec "$@"', "-", *serve, "--port", "{port}"]
    return running(command, env, cores()[0], Path(tempfile.gettempdir()) / f"attacks-{engine}.log", "/healthz")


def memory_mb(server: Server) -> float:
    return sum(Server(server.port, pid).memory_mb() for pid, *_ in _family(server.pid))


def health_seconds(server: Server, patience: float = 10) -> float:
    """Return the seconds until a new connection is answered by /healthz; infinite if it is not."""
    began = time.perf_counter()
    while time.perf_counter() - began < patience:
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=patience) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            if connection.recv(4096).startswith(b"HTTP/1.1 200"):
                return time.perf_counter() - began
        time.sleep(0.02)
    return float("inf")


def trailers(engine: str, stitchers: Path, _seconds: float):
    """Send 50 MB of trailer fields, and 50 MB of one trailer's value, without a key."""
    field, value = b"a:b\r\n" * 200, b"a" * 1000
    for what, start, part in (("fields", b"", field), ("one value", b"X-Trailer: ", value)):
        with serving(engine, stitchers, KEY) as server, ThreadPoolExecutor(1) as thread:
            before = memory_mb(server)
            most = waited = 0.0
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(CHUNKED + b"1\r\na\r\n0\r\n" + start)
                connection.settimeout(20)
                sent, health = 0, thread.submit(health_seconds, server)
                with suppress(OSError):
                    while sent < SENT_MB * 2**20:
                        connection.sendall(part * 1000)
                        sent += 1000 * len(part)
                        if health.done():
                            waited = max(waited, health.result())
                            health = thread.submit(health_seconds, server)
                            most = max(most, memory_mb(server) - before)
                most, waited = max(most, memory_mb(server) - before), max(waited, health.result())
            yield (
                f"{SENT_MB} MB of trailers, {what}",
                f"{sent / 2**20:.1f} MB sent, {most:.1f} MB of growth, /healthz within {waited:.2f} s",
            )


def silent_clients(engine: str, stitchers: Path, _seconds: float):
    with serving(engine, stitchers, {}, DESCRIPTORS) as server, ExitStack() as opened:
        for _ in range(CLIENTS):
            connection = opened.enter_context(socket.socket())
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.connect(("127.0.0.1", server.port))
        seconds = [health_seconds(server) for _ in range(10)]
        yield (
            f"{CLIENTS} silent clients at {DESCRIPTORS} descriptors",
            f"/healthz within {seconds[0]:.2f} s, ten times within {max(seconds):.2f} s",
        )


def slow_clients(engine: str, stitchers: Path, seconds: float):
    """Return how long the service keeps connections open whose clients do not do their part."""
    body = AUTHORISED + b"Content-Length: 240000\r\n\r\n"
    refused = HEAD + b"Content-Length: 240000\r\n\r\n"
    many = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100
    clients: dict[str, tuple[bytes, float, bytes]] = {  # the first bytes; then every so many seconds these
        "no byte": (b"", 0, b""),
        "CRLF every 10 s": (b"", 10, b"\r\n"),
        "a byte of a head every second": (b"GET / HTTP/1.1\r\nX-A: ", 1, b"a"),
        "nothing after a reply": (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 0, b""),
        "a byte of the body every second after a 401": (refused, 1, b"a"),
        "a body at 100 bytes/s": (body, 1, b"a" * 100),
        "a body at 2 KB/s": (body, 0.5, b"a" * 1000),
        "a reply that is never read": (many, 0, b""),
    }
    with serving(engine, stitchers, KEY | {"REPSTITCH_TIMEOUT_S": "600"}) as server, ThreadPoolExecutor(16) as threads:
        ended = [threads.submit(open_seconds, server, *client, seconds) for client in clients.values()]
        for what, end in zip(clients, ended, strict=True):
            open_for = end.result()
            yield what, f"open after {seconds:g} s" if open_for == float("inf") else f"closed after {open_for:.0f} s"


def open_seconds(server: Server, first: bytes, every: float, part: bytes, most: float) -> float:
    """Return after how many seconds the service closes the connection; infinite if it is open after `most`."""
    reads = first.count(b"GET") < 2
    with socket.socket() as connection:
        if not reads:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        began = sent = time.monotonic()
        with suppress(OSError):
            connection.sendall(first)
            while (now := time.monotonic()) - began < most:
                if every and now - sent >= every:
                    connection.sendall(part)
                    sent = now
                if not reads:  # then the end of the connection shows only on the other side
                    time.sleep(1)
                    if connection.getsockname() not in remote_addresses(server):
                        break
                elif select.select([connection], [], [], 0.1)[0] and not connection.recv(65536):
                    break
            else:
                return float("inf")
        return time.monotonic() - began


def remote_addresses(server: Server) -> set[tuple]:
    """Return the addresses of the clients that are connected to a server."""
    processes = [psutil.Process(pid) for pid, *_ in _family(server.pid)]
    return {tuple(each.raddr) for process in processes for each in process.net_connections("tcp")}


def promotions(stitchers: Path) -> str:
    """Promote stitchers in processes that start together. Return how many promotions the file contains afterwards."""
    context = multiprocessing.get_context("fork")
    registry = Registry(stitchers)
    registry.refresh()
    start = context.Barrier(PROMOTES)
    processes = [context.Process(target=promote, args=(registry, f"s{i}", start)) for i in range(PROMOTES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    kept = len(json.loads((stitchers / PROMOTED).read_text()))
    return f"{kept} kept, {sum(process.exitcode == 0 for process in processes)} exits with 0"


def promote(registry: Registry, name: str, start: Barrier) -> None:
    start.wait()
    registry.promote(name)


if __name__ == "__main__":
    main()
