"""The HTTP door: one Starlette application with its routes and its one form of error. No maths in it."""

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from urllib.parse import parse_qsl, quote

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount, Route
from starlette.types import Receive, Scope, Send

from repstitch import wire
from repstitch.errors import ConflictError, InputError, NotFoundError
from repstitch.names import USES
from repstitch.registry import Registry, State, pair_key
from repstitch.server.guards import Refusal, Settings, check_rows, read_body
from repstitch.stitcher import Stitcher

log = logging.getLogger(__name__)

OCTETS = "application/octet-stream"
JSON = "application/json"
INLINE_ROWS = 64  # up to here a thread costs more than it frees
INLINE_JSON_BYTES = 2**18
CHUNK_ROWS = 1024  # between two chunks, the requests beside a large one get their turn
QUERY_BYTES = 4096


def create_app(registry: Registry, settings: Settings) -> Starlette:
    """The whole service over one registry, which it reads at start and follows from then on."""
    app = Starlette(
        routes=[
            Route("/v1/translate", Translate(registry, settings), methods=["POST"]),
            Route("/v1/stitchers", list_stitchers),
            Route("/v1/stitchers/{name}", show_stitcher),
            Route("/v1/spaces", list_spaces),
            Route("/healthz", live),
            Route("/livez", live),
            Route("/readyz", ready),
            # Without it a server that this application is mounted in would answer in a form of its own.
            Mount("", unknown),
        ],
        exception_handlers=dict.fromkeys((Refusal, InputError, HTTPException, Exception), on_error),
        lifespan=lifespan,
    )
    app.state.registry, app.state.settings = registry, settings
    return app


@asynccontextmanager
async def lifespan(app: Starlette):
    """Follow the registry's folder for as long as the application runs."""
    if app.state.settings.workers > 1:
        import torch

        torch.set_num_threads(1)  # the workers are the parallelism
    task = asyncio.create_task(follow(app.state.registry, app.state.settings.reload_s))
    yield
    task.cancel()


async def follow(registry: Registry, seconds: float) -> None:
    """Read the registry's folder now and every `seconds`, in a thread; whatever fails, what was served stays."""
    while True:
        try:
            await asyncio.to_thread(refresh, registry)
        except Exception:
            log.exception("The folder %s could not be read; what was served before stays.", registry.folder)
        await asyncio.sleep(seconds)


def refresh(registry: Registry) -> None:
    """Read what changed, and hash what is new here, where no request waits for it."""
    for name, event in registry.refresh().items():
        served = registry.state.stitchers.get(name)
        log.info("Stitcher %s (version %s): %s", name, served.version if served else "none", event)


# --- translate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Served:
    """A stitcher as requests meet it: its name and version, the headers that every reply of it carries, and what
    its confidence measures (nothing, where it was not calibrated)."""

    name: str
    stitcher: Stitcher
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    measures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """What the headers of a request say: the formats of its body and of its reply, and the body's stated length."""

    body: str
    reply: str
    length: bytes | None


class Translate:
    """`POST /v1/translate`: a bare ASGI endpoint, because per request the map is cheaper than a Request object.

    Small requests are answered in the event loop; larger ones go through one thread, one after the other.
    """

    def __init__(self, registry: Registry, settings: Settings):
        self.registry, self.settings = registry, settings
        self.in_flight = 0
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="translate")
        self._served: dict[tuple, Served] = {}
        self._state: State | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.in_flight >= self.settings.max_concurrency:
            raise Refusal(
                429,
                f"{self.in_flight} translations are under way, as many as are taken at once; try again.",
                headers={"Retry-After": "1"},
            )
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                headers, body = await self._answer(scope, receive)
        except TimeoutError:
            # What is left of the body would be read as the next request, so the connection goes too.
            close = {"Connection": "close"}
            raise Refusal(504, f"Not done within {self.settings.timeout_s:g} s; send less.", headers=close) from None
        except ConnectionError:
            return
        except (Refusal, InputError):
            raise
        except Exception as error:
            # The message is left out: it may quote the numbers of a vector.
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("A translation failed with %s:\n%s", type(error).__name__, frames)
            raise Refusal(500, FAILED) from None
        finally:
            self.in_flight -= 1
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[list[tuple[bytes, bytes]], bytes]:
        check_loaded(self.registry)
        ask = read_headers(scope["headers"])
        query = read_query(scope["query_string"])
        if ask.body == OCTETS:
            served = self._resolve(query)  # before the body, so that a misspelt name costs no upload
            measures = wanted(served, query)
            body = await read_body(receive, ask.length, self.settings.max_body_bytes)
            rows, single, encoding = wire.rows_from_bytes(body, served.stitcher.source.dim), False, "float"
        else:
            body = await read_body(receive, ask.length, self.settings.max_body_bytes)
            inline = len(body) <= INLINE_JSON_BYTES
            fields = await self._run(inline, wire.read_json, body)
            names = merge(query, fields)
            served = self._resolve(names)
            measures = wanted(served, names)
            embedding = fields["embedding"]
            encoding = fields.get("encoding_format") or ("base64" if isinstance(embedding, str) else "float")
            rows, single = await self._run(inline, wire.read_embedding, embedding, served.stitcher.source.dim)
        check_rows(len(rows), self.settings.max_rows)
        stop = threading.Event()
        try:
            asked = (served, rows, measures, single, encoding, ask.reply, stop)
            return await self._run(len(rows) <= INLINE_ROWS, reply, *asked)
        finally:
            stop.set()

    async def _run(self, inline: bool, work: Callable, *args) -> Any:
        if inline:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *args)

    def _resolve(self, names: dict[str, Any]) -> Served:
        """The stitcher for these names; remembered until the registry changes."""
        if self.registry.state is not self._state:
            self._state = self.registry.state
            self._served.clear()
        key = (names.get("source"), names.get("target"), names.get("stitcher"))
        served = self._served.get(key)
        if served is None:
            served = self._served[key] = resolve(self.registry, *key)
        return served


def resolve(registry: Registry, source: str | None, target: str | None, name: str | None) -> Served:
    """Find who serves a pair. 400 when a side is not named, 404 with the nearest names, 409 with the choice."""
    if source is None or target is None:
        missing = "source" if source is None else "target"
        raise wire.MalformedError(f"`{missing}` is missing; name the space, see /v1/spaces.", missing)
    try:
        name, stitcher = registry.resolve(source, target, name)
    except NotFoundError as error:
        spaces = {s.source.name for s in registry.state.stitchers.values()}
        param = "stitcher" if name is not None else "target" if source in spaces else "source"
        raise Refusal(404, str(error), param) from None
    except ConflictError as error:
        raise Refusal(409, str(error), "stitcher") from None
    headers = (
        (b"x-dim", b"%d" % stitcher.target.dim),
        (b"x-stitcher", quote(name).encode()),
        (b"x-stitcher-version", stitcher.version.encode()),
    )
    measures = () if stitcher.calibration is None else stitcher.calibration.names
    return Served(name, stitcher, stitcher.version, headers, measures)


def wanted(served: Served, names: dict[str, Any]) -> tuple[str, ...]:
    """The measures of confidence to give; 409 when they are asked of a stitcher that was not calibrated."""
    if not names.get("confidence"):
        return ()
    if not served.measures:
        message = f"The stitcher {served.name!r} has no calibration, so it cannot tell confidence; ask without it."
        raise Refusal(409, message, "confidence")
    return served.measures


def reply(
    served: Served,
    rows: np.ndarray,
    measures: tuple[str, ...],
    single: bool,
    encoding: str,
    form: str,
    stop: threading.Event,
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Translate rows and write them down: the headers and the body of the answer."""
    try:
        translated = translate(served.stitcher, rows, measures, stop)
    except InputError as error:
        raise wire.UnusableError(wire.faults(rows) or str(error)) from None
    if form == OCTETS:
        body = wire.rows_to_bytes(translated)
    else:
        dim = served.stitcher.target.dim
        answer = {
            "embedding": wire.write_embedding(translated[:, :dim], single, encoding),
            "source": served.stitcher.source.name,
            "target": served.stitcher.target.name,
            "stitcher": served.name,
            "version": served.version,
            "rows": len(rows),
            "dim": dim,
        }
        if measures:
            columns = dict(zip(measures, translated.T[dim:], strict=True))
            answer["confidence"] = {k: v[0] if single else np.ascontiguousarray(v) for k, v in columns.items()}
        body = wire.write_json(answer)
    headers = [
        (b"content-type", form.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"x-rows", b"%d" % len(rows)),
        *served.headers,
    ]
    if measures and form == OCTETS:
        headers.append((b"x-confidence", ",".join(measures).encode()))
    return headers, body


def translate(stitcher: Stitcher, rows: np.ndarray, measures: tuple[str, ...], stop: threading.Event) -> np.ndarray:
    """Rows through a stitcher, a column for each measure behind them, in chunks.

    Between two chunks, a request that nobody waits for any more is given up.
    """
    work = partial(measured, stitcher) if measures else stitcher.translate
    if len(rows) <= CHUNK_ROWS:
        return np.asarray(work(rows))
    translated = np.empty((len(rows), stitcher.target.dim + len(measures)), dtype=np.float32)
    for start in range(0, len(rows), CHUNK_ROWS):
        if stop.is_set():
            break
        here = slice(start, start + CHUNK_ROWS)
        translated[here] = work(rows[here])
    return translated


def measured(stitcher: Stitcher, rows: np.ndarray) -> np.ndarray:
    """Translated rows with their confidence: one float32 column a measure, behind the vectors."""
    translated, confidence = stitcher.translate_with_confidence(rows)
    return np.column_stack([translated, *confidence.values()])


# --- what a request says ----------------------------------------------------------------------------------------------


def read_headers(headers: list[tuple[bytes, bytes]]) -> Ask:
    """The headers that matter, refused with 415 or 406 when this service does not speak what they name."""
    content_type, accept, length = b"", b"", None
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name == b"accept":
            accept = accept + b"," + value if accept else value
        elif name == b"content-length":
            length = value
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Refusal(415, "A body must come uncompressed, without a Content-Encoding.")
    body = body_format(content_type)
    return Ask(body, reply_format(accept, body), length)


@lru_cache(maxsize=64)
def body_format(content_type: bytes) -> str:
    """The format a Content-Type names; 415 when it is none of ours."""
    form = content_type.decode("latin-1").partition(";")[0].strip().lower()
    if form not in FORMATS:
        raise Refusal(415, f"`Content-Type` must be {' or '.join(FORMATS)}; got {form[:100] or 'none'}.")
    return form


@lru_cache(maxsize=64)
def reply_format(accept: bytes, body: str) -> str:
    """The format of the reply: the body's own, unless Accept prefers the other; 406 when it takes neither."""
    if not accept:
        return body
    wanted = dict(_parse_accept(accept.decode("latin-1")))
    quality = {form: _quality(form, wanted) for form in FORMATS}
    best = max(quality.values())
    if not best:
        raise Refusal(406, f"`Accept` must allow {' or '.join(FORMATS)}; it allows neither.")
    return body if quality[body] == best else next(form for form in FORMATS if quality[form] == best)


def _parse_accept(accept: str):
    for part in accept.lower().split(","):
        kind, *params = (piece.strip() for piece in part.split(";"))
        q = next((p[2:] for p in params if p.startswith("q=")), "1")
        try:
            quality = float(q)
        except ValueError:
            quality = 0.0
        yield kind, quality if 0 <= quality <= 1 else 0.0


def _quality(form: str, wanted: dict[str, float]) -> float:
    ranges = (form, form.partition("/")[0] + "/*", "*/*")
    return next((wanted[r] for r in ranges if r in wanted), 0.0)


@lru_cache(maxsize=1024)
def read_query(query: bytes) -> dict[str, Any]:
    """The names and flags in a query string, not to be changed; 400 on what is unknown, repeated or of no sense."""
    if len(query) > QUERY_BYTES:
        raise wire.MalformedError(f"The query may have at most {QUERY_BYTES} bytes; got {len(query)}.")
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise wire.MalformedError("The query must be percent-encoded UTF-8.") from None
    names: dict[str, Any] = {}
    for param, value in pairs:
        if param not in PARAMS:
            raise wire.MalformedError(f"`{param}` is not a parameter; known are {', '.join(PARAMS)}.")
        if param in names:
            raise wire.MalformedError(f"`{param}` must be given once.", param)
        if param in wire.FLAGS:
            names[param] = wire.read_flag(param, value)
        else:
            wire.check_name(param, value)
            names[param] = value
    return names


def merge(query: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The names and flags of a JSON request, given in its body or its query; 400 when the two disagree."""
    names = dict(query)
    for param in PARAMS:
        if param in fields and names.setdefault(param, fields[param]) != fields[param]:
            raise wire.MalformedError(
                f"`{param}` is {names[param]!r} in the query and {fields[param]!r} in the body; give it once.", param
            )
    return names


# --- the other routes -------------------------------------------------------------------------------------------------


async def list_stitchers(request: Request) -> Response:
    state = loaded_state(request)
    return _json({"stitchers": [summary(name, state) for name in sorted(state.stitchers)]})


async def show_stitcher(request: Request) -> Response:
    state = loaded_state(request)
    name = request.path_params["name"]
    wire.check_name("name", name)
    try:
        stitcher = request.app.state.registry.get(name)
    except NotFoundError as error:
        raise Refusal(404, str(error), "name") from None
    whole = {
        "settings": stitcher.settings,
        "split": stitcher.split,
        "scorecard": stitcher.scorecard,
        "source": stitcher.source.to_dict(),
        "target": stitcher.target.to_dict(),
    }
    return _json(summary(name, state) | whole)


async def list_spaces(request: Request) -> Response:
    spaces: dict[str, dict] = {}
    for stitcher in loaded_state(request).stitchers.values():
        source, target = stitcher.source, stitcher.target
        for space in (source, target):
            spaces.setdefault(space.name, {**space.to_dict(), "to": set(), "from": set()})
        spaces[source.name]["to"].add(target.name)
        spaces[target.name]["from"].add(source.name)
    listed = [{**card, "to": sorted(card["to"]), "from": sorted(card["from"])} for _, card in sorted(spaces.items())]
    return _json({"spaces": listed})


def summary(name: str, state: State) -> dict:
    """One line of the list: what a stitcher translates, how it was made, and whether its pair is served by it."""
    stitcher = state.stitchers[name]
    source, target = stitcher.source, stitcher.target
    rivals = [n for n, s in state.stitchers.items() if (s.source.name, s.target.name) == (source.name, target.name)]
    return {
        "name": name,
        "source": source.name,
        "target": target.name,
        "source_dim": source.dim,
        "target_dim": target.dim,
        "version": stitcher.version,
        "method": stitcher.method,
        "objective": stitcher.objective,
        "serves": rivals == [name] or state.promoted.get(pair_key(source.name, target.name)) == name,
        "scores": headline(stitcher.scorecard),
    }


def headline(card: dict) -> dict:
    """The few scores of a scorecard that a list shows, each use beside chance; empty where nothing was scored."""
    parts = {part: card[part] for part in (*USES, "chance") if part in card}
    return {part: {score: found[score] for score in HEADLINE if score in found} for part, found in parts.items()}


async def live(request: Request) -> Response:
    return _json({"status": "ok"})


async def ready(request: Request) -> Response:
    return _json({"status": "ready", "stitchers": len(loaded_state(request).stitchers)})


async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
    """Everything else, whatever the method: 405 for a known path, otherwise 404."""
    for route in scope["app"].routes:
        if isinstance(route, Route) and route.matches(scope)[0] is Match.PARTIAL:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(route.methods or ()))})
    raise HTTPException(404)


def loaded_state(request: Request) -> State:
    check_loaded(request.app.state.registry)
    return request.app.state.registry.state


def check_loaded(registry: Registry) -> None:
    """503 while there is nothing to serve."""
    if not registry.state.stitchers:
        raise Refusal(503, "No stitcher is loaded yet; try again.", headers={"Retry-After": "1"})


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(wire.write_json(content), status, headers, media_type=JSON)


# --- errors -----------------------------------------------------------------------------------------------------------


async def on_error(request: Request, error: Exception) -> Response:
    """Every error in one form: `{"error": {"code", "message", "param"}}`."""
    headers = getattr(error, "headers", None)
    if isinstance(error, Refusal):
        status, message = error.status, error.message
    elif isinstance(error, HTTPException):
        status, message = error.status_code, MESSAGES.get(error.status_code, error.detail)
    else:
        status = next((code for kind, code in STATUSES.items() if isinstance(error, kind)), 500)
        message = FAILED if status == 500 else str(error)
    code = CODES.get(status, "error")
    return _json({"error": {"code": code, "message": message, "param": getattr(error, "param", None)}}, status, headers)


FORMATS = (OCTETS, JSON)
PARAMS = (*wire.NAMES, *wire.FLAGS)
HEADLINE = ("recall@1", "recall@10")
FAILED = "The request failed in the service, not because of what was sent; its log says where."
STATUSES = {wire.MalformedError: 400, NotFoundError: 404, ConflictError: 409, InputError: 422}
MESSAGES = {404: "There is no such route; see /v1/stitchers.", 405: "This route does not take that method."}
CODES = {
    400: "malformed",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "unusable",
    429: "too_many_requests",
    500: "failed",
    503: "not_ready",
    504: "timed_out",
}
