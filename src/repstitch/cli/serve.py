"""Serve translations over HTTP."""

import argparse

from repstitch.arguments import check_port, check_positive
from repstitch.cli.arguments import add_command, add_folder_argument


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "serve",
        run,
        "serve translations over HTTP",
        "repstitch serve --stitchers models/stitchers --port 3000",
        json_flag=False,
    )
    add_folder_argument(command)
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=3000)
    command.add_argument("--workers", type=int, help="processes; default: REPSTITCH_WORKERS, else 1")
    command.add_argument("--engine", choices=("uvicorn", "bentoml"), default="uvicorn")


def run(args: argparse.Namespace) -> None:
    check_port(args.port)
    if args.workers is not None:
        check_positive(args.workers, "`workers`")
    from repstitch.server.run import serve

    serve(args.stitchers, args.host, args.port, args.workers, args.engine)
