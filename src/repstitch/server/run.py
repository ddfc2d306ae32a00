"""Start the service: one or several processes under uvicorn, or the same application under BentoML."""

import contextlib
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette

from repstitch.arguments import check_choice, check_port
from repstitch.errors import InputError
from repstitch.redaction import log_handler
from repstitch.server.app import create_app
from repstitch.server.protocol import BoundedProtocol, install
from repstitch.server.settings import Settings, choose_device, warn_of_unknown
from repstitch.server.telemetry import shared_by_workers
from repstitch.stitchers.registry import Registry
from repstitch.text import LOG_FORMAT

BACKLOG = 2048
SHOWN = 5
KEY_HEADER = "-H 'Authorization: Bearer KEY' "


def serve(
    stitchers: str | os.PathLike | None = None,
    host: str = "127.0.0.1",
    port: int = 3000,
    workers: int | None = None,
    engine: str = "uvicorn",
) -> None:
    """Serve until SIGTERM or SIGINT. Then finish the requests in progress and exit with status 0.

    All settings come from the environment (see `Settings`); `stitchers` and `workers` override it if passed. Writes one
    line to stderr: the address, the stitchers, and an example call. `port` 0 picks a free port. `engine` "uvicorn" runs
    the application directly. "bentoml" replaces this process by `bentoml serve` on the working folder if that is a
    built bento or a checkout of repstitch, else on the checkout that contains this package. Raises InputError if a
    setting is invalid, if the address is not available, or if other machines can reach it and no API keys are set.
    """
    check_choice("engine", engine, tuple(ENGINES))
    settings = Settings.from_env()
    if stitchers is not None:
        settings = replace(settings, stitchers=Path(stitchers).absolute())
    if workers is not None:
        settings = replace(settings, workers=workers)
    settings.check_exposure(host)
    choose_device(settings)
    # For signals that arrive before uvicorn handles them, and for the one that uvicorn raises again after shutdown.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    hang_up_as_terminate()
    logging.basicConfig(level=logging.INFO, handlers=[log_handler(LOG_FORMAT)])
    warn_of_unknown()
    registry = Registry(settings.stitchers)
    registry.refresh()
    listener = listen(host, port)
    sys.stderr.write(announce(registry, listener, settings.requires_key) + "\n")
    sys.stderr.flush()
    ENGINES[engine](settings, registry, listener)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raise InputError if the address is in use or does not belong to this machine."""
    check_port(port)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"`port` {port} on {host} is not available: {error.strerror}. Choose another `port`."
        ) from None
    return listener


def announce(registry: Registry, listener: socket.socket, with_key: bool = False) -> str:
    """Return one line for the operator: the address, the stitchers, and an example call, with or without a key."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    stitchers = registry.state.stitchers
    if not stitchers:
        return f"repstitch: {address} serves nothing yet: {registry.folder} contains no readable stitcher."
    serving = {name: stitchers[name] for name in sorted(registry.state.serving.values())}
    pairs = [f"{name} ({s.source.name} -> {s.target.name})" for name, s in serving.items()]
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    first = next(iter(serving.values()))
    call = (
        f"curl -X POST '{address}/v1/translate?source={first.source.name}&target={first.target.name}' "
        f"{KEY_HEADER if with_key else ''}-H 'Content-Type: application/octet-stream' --data-binary @ROWS "
        f"-o TRANSLATED "
        f"(ROWS: a file of little-endian float32 rows of {first.source.dim} numbers)"
    )
    return f"repstitch: {address} serves {', '.join(pairs[:SHOWN])}{more}; try: {call}"


def hang_up_as_terminate() -> None:
    """Make this process treat SIGHUP, which ends a process at once by default, as SIGTERM, unless it ignores SIGHUP."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` makes a process ignore it
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def app_from_env() -> Starlette:
    """Build the application from the settings in the environment; each worker process calls this."""
    logging.basicConfig(level=logging.INFO, handlers=[log_handler(LOG_FORMAT)])
    hang_up_as_terminate()
    settings = Settings.from_env()
    install(settings)
    return create_app(Registry(settings.stitchers), settings, owns_process=True)


def _run_uvicorn(settings: Settings, registry: Registry, listener: socket.socket) -> None:
    import uvicorn

    from repstitch.server.workers import Workers

    several = settings.workers > 1
    if several:
        os.environ.update(settings.to_env())
    install(settings)
    config = uvicorn.Config(
        f"{__name__}:{app_from_env.__name__}" if several else create_app(registry, settings, owns_process=True),
        factory=several,
        workers=settings.workers,
        loop="auto",  # uvloop if it is installed
        http=BoundedProtocol,
        ws="none",
        access_log=False,
        log_config=None,  # uvicorn's loggers then use this process's format, which contains the time
        log_level=logging.WARNING,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(2 * settings.timeout_s) + 1,  # once to answer, once to send the response
    )
    with contextlib.suppress(KeyboardInterrupt):
        if several:
            with shared_by_workers():
                on_hang_up = signal.getsignal(signal.SIGHUP)
                workers = Workers(config, [listener])
                signal.signal(signal.SIGHUP, on_hang_up)  # uvicorn's own handler restarts the workers
                workers.run()
        else:
            uvicorn.Server(config).run([listener])


def _run_bentoml(settings: Settings, registry: Registry, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    folder = _service_folder()
    listener.close()  # it was opened only to check that the address is free
    command = [sys.executable, "-m", "bentoml", "serve", str(folder), "--host", host, "--port", str(port)]
    os.execve(sys.executable, command, os.environ | settings.to_env() | {"BENTOML_DO_NOT_TRACK": "True"})


def _service_folder() -> Path:
    """Return the folder that BentoML serves: the working folder, or the checkout that contains this package."""
    for folder in (Path.cwd(), *Path(__file__).resolve().parents[2:4]):
        if (folder / "bento.yaml").is_file() or (folder / "service" / "service.py").is_file():
            return folder
    raise InputError(
        "`engine` bentoml requires service/service.py; start it in a checkout of repstitch or in the folder of a built "
        "bento."
    )


ENGINES = {"uvicorn": _run_uvicorn, "bentoml": _run_bentoml}
