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
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; one that other machines can reach requires REPSTITCH_API_KEYS or "
        "REPSTITCH_OPEN=true (default: 127.0.0.1)",
    )
    command.add_argument(
        "--port", type=int, default=3000, help="port to listen on, 0 for any free port (default: 3000)"
    )
    command.add_argument(
        "--workers", type=int, help="number of worker processes, 1 on CUDA (default: REPSTITCH_WORKERS, else 1)"
    )
    command.add_argument(
        "--engine",
        choices=("uvicorn", "bentoml"),
        default="uvicorn",
        help="`uvicorn` runs the application directly; `bentoml` runs it under `bentoml serve`, from a checkout of "
        "repstitch or a built bento (default: uvicorn)",
    )


def run(args: argparse.Namespace) -> None:
    check_port(args.port)
    if args.workers is not None:
        check_positive(args.workers, "`workers`")
    from repstitch.server.run import serve

    serve(args.stitchers, args.host, args.port, args.workers, args.engine)
