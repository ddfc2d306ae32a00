"""Serve translations over HTTP."""

from repstitch.cli.arguments import add_command, add_folder_argument


def register(subparsers) -> None:
    c = add_command(
        subparsers,
        "serve",
        run,
        "serve translations over HTTP",
        "repstitch serve --stitchers models/stitchers --port 3000",
        json_flag=False,
    )
    add_folder_argument(c)
    c.add_argument("--host", default="127.0.0.1")
    c.add_argument("--port", type=int, default=3000)
    c.add_argument("--workers", type=int, help="processes; default: REPSTITCH_WORKERS, else 1")
    c.add_argument("--engine", choices=("uvicorn", "bentoml"), default="uvicorn")


def run(args) -> None:
    from repstitch.server.run import serve

    serve(args.stitchers, args.host, args.port, args.workers, args.engine)
