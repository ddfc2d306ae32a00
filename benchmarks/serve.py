"""Measure the throughput and latency of the service: `python benchmarks/serve.py` (Linux, needs wrk).

The service is compared with a bare Starlette application that checks nothing (bare.py) and with BentoML's ndarray API
(ndarray_api.py) in the same run. All servers run at the same time, on one core and one BLAS thread, and are loaded in
turn, in several rounds, while the others are idle. A ratio compares two loads of the same round, so that other load on
the machine affects both; its median over the rounds is reported. The client uses the other cores, if there are any. Any
unexpected response ends the run. Prints the tables and writes results/serve.md; `--only` prints the chosen tables and
writes nothing.
"""

import argparse
import base64
import http.client
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import torch
from load import Connection, Failed, Load, Paced, Request, in_turn, storm, wrk
from machine import header, markdown
from servers import Server, cores, running

from repstitch.spaces import Space
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.stitcher import Stitcher

HERE = Path(__file__).parent
RESULTS = HERE / "results"
D_SOURCE, D_TARGET = 768, 1024
CONNECTIONS = (1, 16, 64)
BULK = {100: 2, 1_000: 2, 10_000: 1}  # vectors a request: connections
SMALL_RATE = 100  # requests per second of one vector each, sent together with the large ones
TAKEN, ASKING = 16, 256  # overload: the limit of concurrent requests, and the number of connections
PAUSES_S = {1.0: "as Retry-After says", 0.1: "ten times as soon"}  # seconds until a refused connection retries
KEPT = 2.0  # bar: p99 of the accepted requests under overload, as a multiple of the p99 at the limit
MEMORY_ROWS, MEMORY_WARM, MEMORY_MB = 10_000, 20, 100
GPU_ROWS = (1, 16, 64, 256, 1_000, 10_000)
MIB = 2**20
# 10,000 vectors are 92 MB as JSON numbers, above the default limits. All other settings are the defaults.
OURS = {
    "REPSTITCH_MAX_BODY_BYTES": str(256 * MIB),
    "REPSTITCH_MAX_JSON_BYTES": str(256 * MIB),
    "REPSTITCH_MAX_HELD_BYTES": str(4096 * MIB),
}
BARE, UVICORN, BENTOML, NDARRAY = "bare Starlette", "ours, uvicorn", "ours, BentoML", "BentoML's ndarray API"
OCTETS, JSON, ARROW = "application/octet-stream", "application/json", "application/vnd.apache.arrow.stream"


# --- requests ---------------------------------------------------------------------------------------------------------


@lru_cache
def rows(n: int) -> np.ndarray:
    X = np.random.default_rng(n).standard_normal((n, D_SOURCE), dtype=np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def numbers(field: str) -> Callable[[np.ndarray], bytes]:
    """Return a writer of JSON numbers with the fewest digits that preserve float32. Both services accept it."""
    return lambda X: orjson.dumps({field: X}, option=orjson.OPT_SERIALIZE_NUMPY)


def as_base64(X: np.ndarray) -> bytes:
    return orjson.dumps({"embedding": base64.b64encode(X.tobytes()).decode()})


def as_arrow(X: np.ndarray) -> bytes:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), X.shape[1])
    table = pa.table({"id": pa.array(np.arange(len(X))), "vector": vectors})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@dataclass(frozen=True)
class Format:
    """A format of the request body, also requested for the response."""

    media_type: str
    write: Callable[[np.ndarray], bytes]
    path: str = "/v1/translate?source=old&target=new"

    def request(self, n: int) -> Request:
        headers = {"Content-Type": self.media_type, "Accept": self.media_type}
        return Request(self.path, headers, self.write(rows(n)))


F32, F16, JSON_FLOATS = "raw float32", "raw float16", "JSON floats"
FORMATS = {
    F32: Format(OCTETS, np.ndarray.tobytes),
    F16: Format(f"{OCTETS}; dtype=float16", lambda X: X.astype(np.float16).tobytes()),
    JSON_FLOATS: Format(JSON, numbers("embedding")),
    "JSON base64": Format(JSON, as_base64),
    "Arrow stream": Format(ARROW, as_arrow),
}
NDARRAY_FORMAT = Format(JSON, numbers("rows"), "/translate")


@dataclass(frozen=True)
class Contender:
    """A server, and the format of the requests to it."""

    server: str
    format: str

    def request(self, n: int) -> Request:
        return (NDARRAY_FORMAT if self.server == NDARRAY else FORMATS[self.format]).request(n)


BASE = Contender(BARE, F32)
RIVAL = Contender(NDARRAY, JSON_FLOATS)
OURS_RAW, OURS_JSON = Contender(UVICORN, F32), Contender(UVICORN, JSON_FLOATS)
CONTENDERS = (BASE, *(Contender(s, f) for s in (UVICORN, BENTOML) for f in FORMATS), RIVAL)


# --- servers ----------------------------------------------------------------------------------------------------------


class House:
    """A temporary folder with one stitcher, and the servers started on it. The exit stack stops and removes them."""

    def __init__(self, stack: ExitStack):
        self.stack = stack
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="repstitch-bench-")))
        self.servers, self.clients = cores()
        os.sched_setaffinity(0, self.clients)
        random = torch.Generator().manual_seed(0)
        weight = torch.randn(D_SOURCE, D_TARGET, generator=random) / D_SOURCE**0.5
        self.bias = torch.randn(D_TARGET, generator=random) / 100
        np.save(self.folder / "weight.npy", weight.numpy())
        Stitcher(
            map=AffineMap(weight, self.bias),
            source=Space("old", D_SOURCE),
            target=Space("new", D_TARGET),
            method="ridge",
            objective="match",
            input_norm="unit",
            output_norm="unit",
            source_mean=np.zeros(D_SOURCE, np.float32),
            target_mean=np.zeros(D_TARGET, np.float32),
            seen=np.arange(3),
        ).save(self.folder / "stitchers" / "old-new")
        self.up: dict[str, Server] = {}

    def start(self, name: str) -> Server:
        """Return the server of this name, which is started on the first call."""
        if name not in self.up:
            self.up[name] = self.stack.enter_context(self.serve(name))
        return self.up[name]

    @contextmanager
    def serve(self, name: str, **settings: str) -> Iterator[Server]:
        """Run a separate server, with REPSTITCH_ settings by name."""
        command, ready = COMMANDS[name]
        named = [part.replace("STITCHERS", str(self.folder / "stitchers")) for part in command]
        env = {
            "BENCH_WEIGHT": str(self.folder / "weight.npy"),
            "BENTOML_HOME": str(self.folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "REPSTITCH_DEVICE": "cpu",
            **OURS,
            **{f"REPSTITCH_{key.upper()}": value for key, value in settings.items()},
        }
        log = self.folder / f"{len(list(self.folder.iterdir()))}.log"
        with running([sys.executable, "-m", *named], env, self.servers, log, ready) as server:
            yield server

    def agree(self) -> None:
        """Check that the bare server's product, plus bias and normalised, equals the translation of the service."""
        product, ours = (
            np.frombuffer(answer(self.start(c.server), c, 3)[1], np.float32).reshape(3, D_TARGET)
            for c in (BASE, OURS_RAW)
        )
        expected = product + self.bias.numpy()
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        if not np.allclose(ours, expected, atol=1e-5):
            raise Failed("the bare server and the service return different translations")

    def products(self) -> str:
        """Return the libraries with which the bare server multiplies."""
        client = http.client.HTTPConnection("127.0.0.1", self.start(BARE).port)
        client.request("GET", "/")
        reported = json.loads(client.getresponse().read())
        client.close()
        return ", ".join(f"{size} {product.removeprefix('by_')}" for size, product in reported.items())


def answer(server: Server, contender: Contender, n: int) -> tuple[dict[str, str], bytes]:
    with Connection(server.port) as connection:
        headers, body = connection.ask(contender.request(n).raw())
    return headers, bytes(body)


def missing(server: Server, contender: Contender, n: int) -> str:
    """Return why a server does not support a format: its error, or how its response is wrong; "" if it supports it."""
    try:
        headers, body = answer(server, contender, n)
    except Failed as error:
        return str(error)[:120].replace("|", "/")
    accept = contender.request(n).headers["Accept"]
    if headers["content-type"].replace(" ", "") != accept.replace(" ", ""):
        return f"asked for {accept}, came {headers['content-type']}"
    if contender.server in (UVICORN, BENTOML) and headers.get("x-rows") != str(n):
        return f"asked for {n} rows, came {headers.get('x-rows')}"
    if accept.startswith(OCTETS) and len(body) != n * D_TARGET * (2 if contender.format == F16 else 4):
        return f"asked for {n} rows, came {len(body)} bytes"
    return ""


COMMANDS = {
    BARE: (
        ["uvicorn", "bare:app", "--app-dir", str(HERE), "--port", "{port}", "--loop", "uvloop", "--http", "httptools",
         "--ws", "none", "--lifespan", "off", "--no-access-log", "--no-server-header", "--log-level", "warning"],
        "/",
    ),
    UVICORN: (["repstitch", "serve", "--stitchers", "STITCHERS", "--port", "{port}"], "/readyz"),
    BENTOML: (
        ["repstitch", "serve", "--stitchers", "STITCHERS", "--port", "{port}", "--engine", "bentoml"],
        "/readyz",
    ),
    NDARRAY: (
        ["bentoml", "serve", "ndarray_api:NdarrayApi", "--working-dir", str(HERE), "--host", "127.0.0.1",
         "--port", "{port}"],
        "/readyz",
    ),
}  # fmt: skip


# --- rounds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The result of a load, and the server's processor seconds for each request."""

    load: Load
    cpu: float


@dataclass(frozen=True)
class Bar:
    what: str
    measured: str
    bar: str
    met: bool


@dataclass(frozen=True)
class Answer:
    title: str
    text: str
    bars: tuple[Bar, ...] = ()


class Rounds:
    """The measurements by key, one for each round."""

    def __init__(self):
        self.kept: dict[tuple, list[Measured]] = defaultdict(list)

    def measure(self, key: tuple, server: Server, load: Callable[[], Load]) -> None:
        before = server.cpu_seconds()
        got = load()
        self.kept[key].append(Measured(got, (server.cpu_seconds() - before) / got.requests))

    def median(self, key: tuple, of: Callable[[Measured], float]) -> float:
        return statistics.median(map(of, self.kept[key]))

    def ratio(self, key: tuple, base: tuple, of: Callable[[Measured], float]) -> float:
        pairs = zip(self.kept[key], self.kept[base], strict=True)
        return statistics.median(of(one) / of(other) for one, other in pairs)


def rate(measured: Measured) -> float:
    return measured.load.rate


def p50(measured: Measured) -> float:
    return measured.load.p50


def p99(measured: Measured) -> float:
    return measured.load.p99


def cpu(measured: Measured) -> float:
    return measured.cpu


def busy(measured: Measured) -> float:
    return measured.cpu * measured.load.rate


def at_least(what: str, measured: float, bar: float) -> Bar:
    return Bar(what, f"{measured:.3f}x", f"≥ {bar:g}x", measured >= bar)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the questions ----------------------------------------------------------------------------------------------------


def compare(house: House, args, counts: list[tuple[int, int]]) -> tuple[Rounds, dict[Contender, str], list[Contender]]:
    """Load every contender with every (vectors, connections) in turn.

    Return the measurements, the reasons why contenders are left out, and the contenders measured.
    """
    absent = {
        contender: why
        for contender in CONTENDERS
        for n in sorted({n for n, _ in counts})
        if (why := missing(house.start(contender.server), contender, n))
    }
    if any(contender.format == F32 for contender in absent):
        raise Failed(str(absent))
    rounds, there = Rounds(), [contender for contender in CONTENDERS if contender not in absent]
    for number in range(args.rounds):
        for n, connections in counts:
            say(f"round {number + 1} of {args.rounds}: {n} vectors, {connections} connections")
            for contender in there:
                server, request = house.start(contender.server), contender.request(n)

                def load(server=server, request=request, n=n, connections=connections) -> Load:
                    if n == 1:
                        return wrk(server.port, request, connections, args.seconds, house.folder)
                    return in_turn(server.port, request.raw(), connections, args.seconds)

                rounds.measure((contender, n, connections), server, load)
    return rounds, absent, there


def one_vector(house: House, args) -> Answer:
    house.agree()
    rounds, absent, there = compare(house, args, [(1, connections) for connections in CONNECTIONS])
    table = []
    for connections in CONNECTIONS:
        base = (BASE, 1, connections)
        for contender in there:
            key = (contender, 1, connections)
            table.append(
                [connections, contender.server, contender.format, f"{rounds.median(key, rate):,.0f}",
                 f"{rounds.median(key, p50):.2f} ms", f"{rounds.median(key, p99):.2f} ms",
                 f"{rounds.ratio(key, base, rate):.2f}x", f"{rounds.ratio(key, base, cpu):.2f}x",
                 f"{rounds.median(key, busy):.0%}"]
            )  # fmt: skip
    columns = ["connections", "server", "format", "requests/s", "p50", "p99", "requests/s, x bare", "CPU, x bare",
               "busy"]  # fmt: skip
    bars = [
        at_least(
            f"requests/s at {connections} connection{'s' * (connections > 1)}, {server}, against bare",
            rounds.ratio((Contender(server, F32), 1, connections), (BASE, 1, connections), rate),
            bar,
        )
        for server, connections, bar in ((UVICORN, 16, 0.9), (BENTOML, 1, 0.5), (BENTOML, 16, 0.5))
    ]
    text = (
        "wrk, one thread. CPU is the server's processor time for a request, all its processes together, which a busy "
        "machine changes little; busy is how much of the time it ran. The bare server multiplies with: "
        f"{house.products()}.\n\n"
    )
    return Answer("One vector a request", text + markdown(columns, table) + not_there(absent), tuple(bars))


def bulk(house: House, args) -> Answer:
    house.agree()
    rounds, absent, there = compare(house, args, list(BULK.items()))
    table, bars = [], []
    for contender in there:
        cells = []
        for n, connections in BULK.items():
            key, base, rival = ((c, n, connections) for c in (contender, BASE, RIVAL))
            cells.append(f"{n * rounds.median(key, rate):,.0f} ({rounds.ratio(key, base, rate):.2f}x)")
            if contender == OURS_RAW and n == max(BULK):
                what = f"{n:,} vectors a request, {F32}, {UVICORN}, no competing load, against bare"
                bars.append(at_least(what, rounds.ratio(key, base, rate), 0.9))
            if contender == OURS_JSON:
                what = f"{n:,} vectors a request, {JSON_FLOATS}, {UVICORN}, against {NDARRAY}"
                bars.append(at_least(what, rounds.ratio(key, rival, rate), 4))
        key, base = ((c, max(BULK), BULK[max(BULK)]) for c in (contender, BASE))
        table.append([contender.server, contender.format, *cells, f"{rounds.ratio(key, base, cpu):.2f}x"])
    counts = ", ".join(f"{n:,} by {c}" for n, c in BULK.items())
    text = (
        f"Vectors/s and, in brackets, times those of the bare server with {F32}. Whole requests only; connections: "
        f"{counts}. Settings of ours beside the defaults: {', '.join(f'{k}={v}' for k, v in OURS.items())}, because "
        f"{max(BULK):,} vectors as JSON numbers are {len(OURS_JSON.request(max(BULK)).body) / 1e6:.0f} MB.\n\n"
    )
    columns = ["server", "format", *(f"{n:,} vectors" for n in BULK), f"CPU at {max(BULK):,}, x bare"]
    return Answer("Many vectors a request", text + markdown(columns, table) + not_there(absent), tuple(bars))


def not_there(absent: dict[Contender, str]) -> str:
    lines = (f"- {contender.format}, {contender.server}: not there ({why})" for contender, why in absent.items())
    return "\n" + "\n".join(lines) + "\n" if absent else ""


def beside(house: House, args) -> Answer:
    """Measure how large and small requests slow each other down."""
    n, seconds = max(BULK), 2 * args.seconds
    rounds, both = Rounds(), (BASE, OURS_RAW)
    house.agree()
    for number in range(args.rounds):
        say(f"round {number + 1} of {args.rounds}: large beside small")
        for c in both:
            server = house.start(c.server)
            large, small = (c.request(size).raw() for size in (n, 1))
            rounds.measure(("large alone", c), server, lambda s=server, r=large: in_turn(s.port, r, 1, seconds))
            with Paced(server.port, small, SMALL_RATE) as paced:
                time.sleep(seconds)
            rounds.kept["small alone", c].append(Measured(paced.load, 0))
            with Paced(server.port, small, SMALL_RATE) as paced:
                rounds.measure(("large beside", c), server, lambda s=server, r=large: in_turn(s.port, r, 1, seconds))
            rounds.kept["small beside", c].append(Measured(paced.load, 0))
    table = [
        [c.server, f"{n * rounds.median(('large alone', c), rate):,.0f}",
         f"{n * rounds.median(('large beside', c), rate):,.0f}",
         f"{rounds.median(('small alone', c), p50):.1f} / {rounds.median(('small alone', c), p99):.1f} ms",
         f"{rounds.median(('small beside', c), p50):.1f} / {rounds.median(('small beside', c), p99):.1f} ms",
         f"{rounds.ratio(('small beside', c), ('small alone', c), p99):.1f}x"]
        for c in both
    ]  # fmt: skip
    same = rounds.ratio(("large beside", OURS_RAW), ("large beside", BASE), rate)
    alone = rounds.ratio(("large beside", OURS_RAW), ("large alone", BASE), rate)
    tail = rounds.ratio(("small beside", OURS_RAW), ("small alone", OURS_RAW), p99)
    text = (
        f"One connection with {n:,} vectors a request, {F32}, and beside it {SMALL_RATE} requests of one vector a "
        "second, at a fixed rate, each timed from when it was due. Vectors/s of the large, p50 / p99 of the small. "
        f"Ours beside small requests has {same:.2f}x of the bare server beside the same ones, and {alone:.2f}x of the "
        "bare server alone.\n\n"
    )
    columns = ["server", "large alone", "large beside", "small alone", "small beside", "p99, beside to alone"]
    return Answer(
        "Large requests beside small ones",
        text + markdown(columns, table),
        (
            at_least(f"{n:,} vectors a request beside small ones, {UVICORN}, against bare beside the same", same, 0.65),
            Bar("p99 of the small ones beside them, against their p99 alone", f"{tail:.1f}x", "≤ 5x", tail <= 5),
        ),
    )


def overload(house: House, args) -> Answer:
    table, bars = [], []
    seconds = 2 * args.seconds  # long enough for a refused connection to retry several times
    with house.serve(UVICORN, max_concurrency=str(TAKEN)) as server:
        for n in (1, min(BULK)):
            raw, kept = OURS_RAW.request(n).raw(), {pause_s: [] for pause_s in PAUSES_S}
            for number in range(args.rounds):
                say(f"round {number + 1} of {args.rounds}: overload with {n} vectors a request")
                calm = storm(server.port, raw, TAKEN, seconds, 0)
                if calm.refused:
                    raise Failed(f"{calm.refused} requests of {TAKEN} connections were refused")
                for pause_s, values in kept.items():
                    much = storm(server.port, raw, ASKING, seconds, pause_s)
                    share = much.refused / (much.refused + much.load.requests)
                    values.append((calm.load.rate, much.load.rate, share, much.served, calm.load.p99, much.load.p99,
                                   much.load.p99 / calm.load.p99))  # fmt: skip
            for pause_s, values in kept.items():
                calm_rate, much_rate, share, served, calm_p99, much_p99, ratio = map(
                    statistics.median, zip(*values, strict=True)
                )
                table.append([n, f"{pause_s:g} s", f"{calm_rate:,.0f}", f"{much_rate:,.0f}", f"{share:.0%}",
                              f"{served:.0f}", f"{calm_p99:.1f} ms", f"{much_p99:.1f} ms",
                              f"{ratio:.1f}x"])  # fmt: skip
                what = f"overload, {n} vector{'s' * (n > 1)} a request, again {PAUSES_S[pause_s]}"
                bars.append(Bar(f"{what}: refused with 429", f"{share:.0%}", "> 0", share > 0))
                bars.append(Bar(f"{what}: p99 of the accepted, against {TAKEN} connections", f"{ratio:.1f}x",
                                f"≤ {KEPT:g}x", ratio <= KEPT))  # fmt: skip
    text = (
        f"REPSTITCH_MAX_CONCURRENCY={TAKEN}, under uvicorn. {ASKING} connections ask for {seconds} s, all beginning at "
        "once, again at once after an answer, and after a pause and by chance up to a quarter of a second more when "
        f"they were refused, against {TAKEN} connections. Retry-After says 1 s. Times are those of tries that were "
        f"accepted; served are the connections of {ASKING} that had one. Any other reply than 200 and 429 ends the "
        "run.\n\n"
    )
    columns = ["vectors", "pause", f"accepted/s at {TAKEN}", f"accepted/s at {ASKING}", f"refused at {ASKING}",
               "served", f"p99 at {TAKEN}", f"p99 of the accepted at {ASKING}", "ratio"]  # fmt: skip
    return Answer("Overload", text + markdown(columns, table), tuple(bars))


def memory(house: House, args) -> Answer:
    raw = OURS_RAW.request(MEMORY_ROWS).raw()
    say(f"memory: {args.memory_requests} requests")
    with house.serve(UVICORN) as server:
        began = server.memory_mb()
        in_turn(server.port, raw, 1, requests=MEMORY_WARM)
        warm = server.memory_mb()
        in_turn(server.port, raw, 1, requests=args.memory_requests)
        after, peak = server.memory_mb(), server.memory_mb("VmHWM")
    columns = ["at start", f"after {MEMORY_WARM} requests", f"after {args.memory_requests:,} more", "growth", "peak"]
    cells = [f"{mb:,.0f} MB" for mb in (began, warm, after, after - warm, peak)]
    what = f"growth of memory over {args.memory_requests:,} requests of {MEMORY_ROWS:,} vectors"
    return Answer(
        "Memory",
        f"Resident memory of the server under uvicorn, {MEMORY_ROWS:,} vectors a request, {F32}.\n\n"
        + markdown(columns, [cells]),
        (Bar(what, f"{after - warm:.0f} MB", f"< {MEMORY_MB} MB", after - warm < MEMORY_MB),),
    )


def gpu(house: House, args) -> Answer:
    title = "On a GPU"
    if not torch.cuda.is_available():
        return Answer(title, "Not measured: torch finds no CUDA device here.\n")
    rounds, devices = Rounds(), ("cpu", "cuda")
    with ExitStack() as stack:
        up = {device: stack.enter_context(house.serve(UVICORN, device=device)) for device in devices}
        for n in GPU_ROWS:
            raw = OURS_RAW.request(n).raw()
            for server in up.values():
                in_turn(server.port, raw, 1, requests=5)  # the first requests of a size load and choose kernels
            for _ in range(args.rounds):
                for device, server in up.items():
                    rounds.measure((device, n), server, lambda s=server, r=raw: in_turn(s.port, r, 1, args.seconds))
    table = [
        [f"{n:,}", *(f"{n * rounds.median((device, n), rate):,.0f}" for device in devices),
         *(f"{rounds.median((device, n), p50):.2f} ms" for device in devices),
         f"{rounds.ratio(('cuda', n), ('cpu', n), rate):.2f}x"]
        for n in GPU_ROWS
    ]  # fmt: skip
    columns = ["vectors", "vectors/s, CPU", "vectors/s, CUDA", "p50, CPU", "p50, CUDA", "CUDA, x CPU"]
    text = f"Under uvicorn, {F32}, one connection, one process on one core, with REPSTITCH_DEVICE cpu and cuda.\n\n"
    return Answer(title, text + markdown(columns, table))


QUESTIONS = {"one": one_vector, "bulk": bulk, "beside": beside, "overload": overload, "memory": memory, "gpu": gpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=2, help="seconds of each load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--memory-requests", type=int, default=1_000)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("serve.py needs wrk; install it (apt-get install wrk).")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    with ExitStack() as stack:
        house = House(stack)
        answers = [QUESTIONS[name](house, args) for name in args.only or QUESTIONS]
        where = f"Servers on core {sorted(house.servers)}, clients on {sorted(house.clients)}"
    bars = [[b.what, b.measured, b.bar, "yes" if b.met else "**no**"] for a in answers for b in a.bars]
    text = (
        header("Serving", "python benchmarks/serve.py", ("starlette", "uvicorn", "uvloop", "httptools", "orjson"))
        + f"\n{where}; {args.rounds} rounds of {args.seconds} s, medians. Figures per second are of this machine and "
        "this hour; the ratios are what to read.\n"
        + f"\n## Bars\n\n{markdown(['what', 'measured', 'bar', 'met'], bars)}"
        + "".join(f"\n## {a.title}\n\n{a.text}" for a in answers)
    )
    if not args.only:
        (RESULTS / "serve.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
