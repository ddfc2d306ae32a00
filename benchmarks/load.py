"""HTTP clients for serve.py: wrk for many small requests, and plain sockets for what wrk cannot measure.

wrk cuts off the requests in flight when its time is up, cannot send at a fixed rate, and mixes refused requests into
its percentiles. Any unexpected response ends the benchmark.
"""

import heapq
import json
import math
import random
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
PATIENCE_S = 600
STEP = 2**18
SPREAD_S = 0.25
READY = b"ready\n"
SCRIPT = """local file = io.open({file}, "rb")
wrk.method = "POST"
wrk.body = file:read("*all")
{headers}
file:close()
"""


class Failed(Exception):
    """A failure that ends the benchmark, such as a request that was not answered with 200."""


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    def raw(self) -> bytes:
        headers = {"Host": "127.0.0.1", **self.headers, "Content-Length": str(len(self.body))}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body


@dataclass(frozen=True)
class Load:
    """The result of a load: answered requests, seconds in all, and the 50th and 99th percentile of latency in ms."""

    requests: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def wrk(port: int, request: Request, connections: int, seconds: int, folder: Path) -> Load:
    """Load the server with wrk: each of `connections` sends one request after the other for `seconds`."""
    body, script = folder / "body", folder / "request.lua"
    body.write_bytes(request.body)
    headers = "\n".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in request.headers.items())
    script.write_text(SCRIPT.format(file=json.dumps(str(body)), headers=headers))
    output = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "--latency", "-s", str(script),
         f"http://127.0.0.1:{port}{request.path}"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    counted = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", output)
    if counted is None or "Non-2xx" in output or "Socket errors" in output or counted[1] == "0":
        raise Failed(f"{request.path} with {connections} connections:\n{output}")
    percentiles = dict(re.findall(r"^ +(50|99)% +(.+?) *$", output, re.MULTILINE))
    return Load(int(counted[1]), _ms(counted[2] + counted[3]) / 1e3, _ms(percentiles["50"]), _ms(percentiles["99"]))


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS_MS[unit]


def summary(latencies: list[float], seconds: float) -> Load:
    ordered = sorted(latencies)
    at = (len(ordered) // 2, min(len(ordered) - 1, int(0.99 * len(ordered))))
    return Load(len(ordered), seconds, *(ordered[i] * 1e3 for i in at))


class Connection:
    """A persistent connection that sends one request at a time and waits for its response."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.room = bytearray()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def ask(self, raw: bytes) -> tuple[dict[str, str], memoryview]:
        """Send a request. Return the headers of the response, with lower-case names, and its body.

        The body is valid only until the next call.
        """
        self.socket.sendall(raw)
        got = bytearray()
        while (end := got.find(b"\r\n\r\n")) < 0:
            part = self.socket.recv(STEP)
            if not part:
                raise Failed("the server closed the connection")
            got += part
        status, headers = parse_head(bytes(got[:end]))
        length = int(headers["content-length"])
        if length > len(self.room):  # reused, because filling a new one with zeros takes time
            self.room = bytearray(length)
        body = memoryview(self.room)[:length]
        at = len(got) - end - 4
        body[:at] = got[end + 4 :]
        while at < length:
            read = self.socket.recv_into(body[at:], flags=socket.MSG_WAITALL)
            if not read:
                raise Failed("the server closed the connection within a response")
            at += read
        if status != 200:
            raise Failed(f"{status} {bytes(body[:300]).decode(errors='replace')}")
        return headers, body


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


def in_turn(port: int, raw: bytes, connections: int, seconds: float = 0, requests: int = 1) -> Load:
    """Send one request after the other over each of `connections`, for `seconds` and at least `requests` of them.

    Requests in flight when the time is up are completed.
    """
    began = time.perf_counter()

    def ask() -> list[float]:
        latencies: list[float] = []
        with Connection(port) as connection:
            while len(latencies) < requests or time.perf_counter() - began < seconds:
                sent = time.perf_counter()
                connection.ask(raw)
                latencies.append(time.perf_counter() - sent)
        return latencies

    with ThreadPoolExecutor(connections) as threads:
        parts = [threads.submit(ask) for _ in range(connections)]
        latencies = [latency for part in parts for latency in part.result()]
    return summary(latencies, time.perf_counter() - began)


class Paced:
    """Send requests at a fixed rate while the `with` block runs; afterwards `load` has the result.

    A separate process sends them, because the work in the block would delay a thread of this process.
    """

    def __init__(self, port: int, raw: bytes, rate: float, connections: int = 10):
        self.command = [sys.executable, __file__, str(port), str(rate), str(connections), str(len(raw))]
        self.raw = raw

    def __enter__(self) -> "Paced":
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdin.write(self.raw)  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        if self.process.stdout.readline() != READY:  # type: ignore[union-attr]
            raise Failed("the process that sends requests at a fixed rate did not start")
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        output, _ = self.process.communicate()  # closes its standard input, which stops it
        if self.process.returncode:
            raise Failed("a request at a fixed rate was not answered")
        self.load = summary(json.loads(output), time.perf_counter() - self.began)


class Stop(threading.Event):
    """An event that records when it was set."""

    at = math.inf

    def set(self) -> None:
        self.at = time.perf_counter()
        super().set()


def paced(connections: list[Connection], raw: bytes, rate: float, stop: Stop) -> list[float]:
    """Send requests at a fixed rate. Return the latencies of those that were due before `stop` was set.

    Each connection has its own schedule. A latency counts from when the request was due, so it includes the time that
    the request waited for the previous one on its connection.
    """
    began = time.perf_counter()

    def ask(i: int) -> list[float]:
        latencies: list[float] = []
        due = began + i / rate
        while not stop.wait(max(0.0, due - time.perf_counter())) or due < stop.at:
            connections[i].ask(raw)
            latencies.append(time.perf_counter() - due)
            due += len(connections) / rate
        return latencies

    with ThreadPoolExecutor(len(connections)) as threads:
        parts = [threads.submit(ask, i) for i in range(len(connections))]
    return [latency for part in parts for latency in part.result()]


@dataclass(frozen=True)
class Storm:
    """The result of `storm`.

    Fields: the load of the accepted requests, the number of requests refused with 429, and the number of connections
    that had a request accepted.
    """

    load: Load
    refused: int
    served: int


def storm(port: int, raw: bytes, connections: int, seconds: float, pause_s: float) -> Storm:
    """Overload the server: send requests over more connections than it accepts, all starting at once.

    One thread drives all connections. A connection whose request was refused retries after `pause_s` plus a random
    delay of up to a quarter of a second, as the client of this package does; the others send their next request at
    once. Requests in flight when the time is up are completed, so that none remains in the server.
    """
    accepted: list[float] = []
    refused, served = 0, set()
    waiting: list[tuple[float, int]] = []
    callers = [_Caller(port, raw) for _ in range(connections)]
    chance = random.Random(0)
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:

        def ask(i: int) -> None:
            mask = callers[i].begin()
            selector.register(callers[i].socket, mask, i)

        try:
            for i in range(connections):
                ask(i)
            while (more := time.perf_counter() - began < seconds) or selector.get_map():
                while more and waiting and waiting[0][0] <= time.perf_counter():
                    ask(heapq.heappop(waiting)[1])
                for key, mask in selector.select(0.01):
                    i, caller = key.data, callers[key.data]
                    wanted = caller.go_on(mask)
                    if wanted:
                        if wanted != key.events:
                            selector.modify(key.fileobj, wanted, i)
                        continue
                    selector.unregister(key.fileobj)
                    if caller.status == 200:
                        accepted.append(caller.ended - caller.began)
                        served.add(i)
                        if more:
                            ask(i)
                    elif caller.status == 429:
                        refused += 1
                        heapq.heappush(waiting, (time.perf_counter() + pause_s + chance.uniform(0, SPREAD_S), i))
                    else:
                        raise Failed(f"a request was answered with status {caller.status} under overload")
        finally:
            for caller in callers:
                caller.socket.close()
    if not accepted:
        raise Failed("no request was accepted under overload")
    return Storm(summary(accepted, time.perf_counter() - began), refused, len(served))


class _Caller:
    """One connection of `storm`, which sends and receives without blocking."""

    def __init__(self, port: int, raw: bytes):
        self.port, self.raw = port, memoryview(raw)
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        return made

    def begin(self) -> int:
        if self.socket.fileno() < 0:
            self.socket = self._connect()
        self.sent, self.head, self.left, self.status, self.last = 0, bytearray(), -1, 0, False
        self.began = time.perf_counter()
        return selectors.EVENT_READ | selectors.EVENT_WRITE

    def go_on(self, mask: int) -> int:
        """Send and receive as far as possible. Return the events to wait for, or 0 once the exchange is complete."""
        try:
            if mask & selectors.EVENT_WRITE and self.sent < len(self.raw):
                self.sent += self.socket.send(self.raw[self.sent : self.sent + STEP])
            if mask & selectors.EVENT_READ:
                self._read(self.socket.recv(STEP))
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            if self.left != 0:
                raise Failed("the server closed the connection within a response") from None
            self.last = True
        if self.left == 0 and (self.last or self.sent == len(self.raw)):
            if self.last:
                self.socket.close()
            return 0
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.sent < len(self.raw) else 0)

    def _read(self, part: bytes) -> None:
        if not part:
            if self.left != 0:
                raise Failed("the server closed the connection within a response")
            self.last = True
        elif self.left < 0:
            self.head += part
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            self.status, headers = parse_head(bytes(self.head[:end]))
            self.last = headers.get("connection", "").lower() == "close"
            self.left = int(headers["content-length"]) - (len(self.head) - end - 4)
        else:
            self.left -= len(part)
        if self.left == 0 and part:
            self.ended = time.perf_counter()


def _paced_beside() -> None:
    """Run the process that `Paced` starts.

    It reads the request from standard input, sends it at a fixed rate until standard input ends, and prints the
    latencies.
    """
    port, rate, connections, length = sys.argv[1:]
    raw = sys.stdin.buffer.read(int(length))
    asking = [Connection(int(port)) for _ in range(int(connections))]
    for connection in asking:  # warm up, so that connecting is not measured
        connection.ask(raw)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    stop = Stop()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), stop.set()), daemon=True).start()
    print(json.dumps(paced(asking, raw, float(rate), stop)))


if __name__ == "__main__":
    _paced_beside()
