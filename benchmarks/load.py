"""Clients for serve.py: wrk for many small requests, and sockets where wrk cannot tell what is asked.

wrk cuts off the requests under way when its time is up, has no fixed rate, and mixes refused requests into its
percentiles. Whatever is not answered as it should be ends the benchmark.
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
    """A request that was not answered with 200."""


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
    """What a load got: requests answered, the seconds that took, and milliseconds that half and 99 % stayed below."""

    requests: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def wrk(port: int, request: Request, connections: int, seconds: int, folder: Path) -> Load:
    """As many requests as `connections` can ask one after the other."""
    body, script = folder / "body", folder / "request.lua"
    body.write_bytes(request.body)
    headers = "\n".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in request.headers.items())
    script.write_text(SCRIPT.format(file=json.dumps(str(body)), headers=headers))
    said = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "--latency", "-s", str(script),
         f"http://127.0.0.1:{port}{request.path}"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    counted = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", said)
    if counted is None or "Non-2xx" in said or "Socket errors" in said or counted[1] == "0":
        raise Failed(f"{request.path} with {connections} connections:\n{said}")
    percentiles = dict(re.findall(r"^ +(50|99)% +(.+?) *$", said, re.MULTILINE))
    return Load(int(counted[1]), _ms(counted[2] + counted[3]) / 1e3, _ms(percentiles["50"]), _ms(percentiles["99"]))


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS_MS[unit]


def summary(latencies: list[float], seconds: float) -> Load:
    ordered = sorted(latencies)
    at = (len(ordered) // 2, min(len(ordered) - 1, int(0.99 * len(ordered))))
    return Load(len(ordered), seconds, *(ordered[i] * 1e3 for i in at))


class Connection:
    """One kept connection that asks and waits."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.room = bytearray()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()

    def ask(self, raw: bytes) -> tuple[dict[str, str], memoryview]:
        """The headers, names in lower case, and the body of the reply, which is there until the next one."""
        self.socket.sendall(raw)
        got = bytearray()
        while (end := got.find(b"\r\n\r\n")) < 0:
            part = self.socket.recv(STEP)
            if not part:
                raise Failed("the server closed the connection")
            got += part
        status, headers = parse_head(bytes(got[:end]))
        length = int(headers["content-length"])
        if length > len(self.room):  # made once, since to fill it with zeros takes time
            self.room = bytearray(length)
        body = memoryview(self.room)[:length]
        at = len(got) - end - 4
        body[:at] = got[end + 4 :]
        while at < length:
            read = self.socket.recv_into(body[at:], flags=socket.MSG_WAITALL)
            if not read:
                raise Failed("the server closed the connection within a reply")
            at += read
        if status != 200:
            raise Failed(f"{status} {bytes(body[:300]).decode(errors='replace')}")
        return headers, body


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


def in_turn(port: int, raw: bytes, connections: int, seconds: float = 0, requests: int = 1) -> Load:
    """`connections` that each ask one request after the other, whole ones, for `seconds` and at least `requests`."""
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
    """Requests at a fixed rate beside whatever runs in the `with` block; `load` tells of them afterwards.

    They are asked by a process of their own, since a thread of this one would wait for whatever else this one does.
    """

    def __init__(self, port: int, raw: bytes, rate: float, connections: int = 10):
        self.command = [sys.executable, __file__, str(port), str(rate), str(connections), str(len(raw))]
        self.raw = raw

    def __enter__(self) -> "Paced":
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdin.write(self.raw)  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        if self.process.stdout.readline() != READY:  # type: ignore[union-attr]
            raise Failed("the requests at a fixed rate did not begin")
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        said, _ = self.process.communicate()  # the end of its input ends it
        if self.process.returncode:
            raise Failed("a request at a fixed rate was not answered")
        self.load = summary(json.loads(said), time.perf_counter() - self.began)


class Stop(threading.Event):
    """An event that knows when it was set."""

    at = math.inf

    def set(self) -> None:
        self.at = time.perf_counter()
        super().set()


def paced(connections: list[Connection], raw: bytes, rate: float, stop: Stop) -> list[float]:
    """Latencies of the requests at a fixed rate that were due before `stop` was set.

    Each connection has its own times. A latency counts from when the request was due, so one that had to wait for the
    one before it is late by that wait too.
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
    """What came of a storm: the load of the accepted requests, how many were refused with 429, and how many of the
    connections had a request accepted."""

    load: Load
    refused: int
    served: int


def storm(port: int, raw: bytes, connections: int, seconds: float, pause_s: float) -> Storm:
    """More connections than are taken at once, all beginning at once.

    One thread asks for all of them. Who is refused asks again after `pause_s` and by chance up to a quarter of a second
    more, as the client of this package does; others at once. What is under way when the time is up is waited for, so
    that nothing of it is left in the server.
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
                        raise Failed(f"{caller.status} under overload")
        finally:
            for caller in callers:
                caller.socket.close()
    if not accepted:
        raise Failed("nothing was accepted under overload")
    return Storm(summary(accepted, time.perf_counter() - began), refused, len(served))


class _Caller:
    """One connection of a storm: sends and reads as far as it can without waiting."""

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
        """What to wait for next; 0 when the reply is there and the request is sent."""
        try:
            if mask & selectors.EVENT_WRITE and self.sent < len(self.raw):
                self.sent += self.socket.send(self.raw[self.sent : self.sent + STEP])
            if mask & selectors.EVENT_READ:
                self._read(self.socket.recv(STEP))
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            if self.left != 0:
                raise Failed("the server closed the connection within a reply") from None
            self.last = True
        if self.left == 0 and (self.last or self.sent == len(self.raw)):
            if self.last:
                self.socket.close()
            return 0
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.sent < len(self.raw) else 0)

    def _read(self, part: bytes) -> None:
        if not part:
            if self.left != 0:
                raise Failed("the server closed the connection within a reply")
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
    """What `Paced` starts: the request comes on standard input, whose end ends it; latencies go to standard output."""
    port, rate, connections, length = sys.argv[1:]
    raw = sys.stdin.buffer.read(int(length))
    asking = [Connection(int(port)) for _ in range(int(connections))]
    for connection in asking:  # to begin with what is there, not with its making
        connection.ask(raw)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    stop = Stop()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), stop.set()), daemon=True).start()
    print(json.dumps(paced(asking, raw, float(rate), stop)))


if __name__ == "__main__":
    _paced_beside()
