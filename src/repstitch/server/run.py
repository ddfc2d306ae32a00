"""Start the service: one process or several under uvicorn, or BentoML over the same application."""

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
from repstitch.server.app import create_app
from repstitch.server.settings import Settings, choose_device
from repstitch.server.telemetry import shared_by_workers
from repstitch.stitchers.registry import Registry

BACKLOG = 2048
KEEP_ALIVE_S = 65  # longer than the idle time of common load balancers, so that they close first
SHOWN = 5
LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"


def serve(
    stitchers: str | os.PathLike | None = None,
    host: str = "127.0.0.1",
    port: int = 3000,
    workers: int | None = None,
    engine: str = "uvicorn",
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight and leave with exit status 0.

    The environment gives all settings (see `Settings`); `stitchers` and `workers`, where given, override it. Writes one
    line to stderr: the address, what is served, and a call that works. `port` 0 takes a free port. `engine` "bentoml"
    replaces this process by `bentoml serve` on the working folder if that is a bento or a checkout, else on the
    checkout that holds this package. Raises InputError when the address is not available.
    """
    check_choice("engine", engine, tuple(ENGINES))
    settings = Settings.from_env()
    if stitchers is not None:
        settings = replace(settings, stitchers=Path(stitchers).absolute())
    if workers is not None:
        settings = replace(settings, workers=workers)
    settings.check_exposure(host)
    choose_device(settings)
    # For a signal before uvicorn handles them, and for the one that uvicorn raises again when it has finished.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    registry = Registry(settings.stitchers)
    registry.refresh()
    listener = listen(host, port)
    sys.stderr.write(announce(registry, listener) + "\n")
    sys.stderr.flush()
    ENGINES[engine](settings, registry, listener)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; InputError when the address is taken or is not one of this machine."""
    check_port(port)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(f"`port` {port} on {host} cannot be had: {error.strerror}. Give another `port`.") from None
    return listener


def announce(registry: Registry, listener: socket.socket) -> str:
    """One line for the operator: the address, the stitchers, and a call that works."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    stitchers = registry.state.stitchers
    if not stitchers:
        return f"repstitch: {address} serves nothing yet: {registry.folder} holds no stitcher that can be read."
    pairs = [f"{name} ({s.source.name} -> {s.target.name})" for name, s in stitchers.items()]
    more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    first = next(iter(stitchers.values()))
    call = (
        f"curl -X POST '{address}/v1/translate?source={first.source.name}&target={first.target.name}' "
        f"-H 'Content-Type: application/octet-stream' --data-binary @ROWS -o TRANSLATED "
        f"(little-endian float32 rows of {first.source.dim})"
    )
    return f"repstitch: {address} serves {', '.join(pairs[:SHOWN])}{more}; try: {call}"


def app_from_env() -> Starlette:
    """The application as the environment describes it, built by each worker process."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    settings = Settings.from_env()
    return create_app(Registry(settings.stitchers), settings)


def _run_uvicorn(settings: Settings, registry: Registry, listener: socket.socket) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from repstitch.server.protocol import BoundedProtocol

    several = settings.workers > 1
    if several:
        os.environ.update(settings.to_env())
    config = uvicorn.Config(
        f"{__name__}:{app_from_env.__name__}" if several else create_app(registry, settings),
        factory=several,
        workers=settings.workers,
        loop="auto",  # uvloop where it is installed
        http=BoundedProtocol,
        ws="none",
        access_log=False,
        log_level=logging.WARNING,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(2 * settings.timeout_s) + 1,  # to answer, then to send
    )
    with contextlib.suppress(KeyboardInterrupt):
        if several:
            with shared_by_workers():
                Multiprocess(config, [listener]).run()
        else:
            uvicorn.Server(config).run([listener])


def _run_bentoml(settings: Settings, registry: Registry, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    folder = _service_folder()
    listener.close()  # it was opened to prove that the address is free
    command = [sys.executable, "-m", "bentoml", "serve", str(folder), "--host", host, "--port", str(port)]
    os.execve(sys.executable, command, os.environ | settings.to_env() | {"BENTOML_DO_NOT_TRACK": "True"})


def _service_folder() -> Path:
    """The folder from which BentoML serves: the working folder, or the checkout that holds this package."""
    for folder in (Path.cwd(), *Path(__file__).resolve().parents[2:4]):
        if (folder / "bento.yaml").is_file() or (folder / "service" / "service.py").is_file():
            return folder
    raise InputError(
        "`engine` bentoml needs the service to run: start it in a checkout of repstitch or in a built bento's folder."
    )


ENGINES = {"uvicorn": _run_uvicorn, "bentoml": _run_bentoml}
