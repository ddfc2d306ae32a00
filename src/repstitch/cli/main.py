"""The entry point: the parser of all commands, and how a run ends. Results go to stdout, everything else to stderr."""

import argparse
import logging
import os
import sys
from io import TextIOWrapper

from repstitch import __version__
from repstitch.cli import align, demo, embed, registry, score, serve, study, train, transfer, translate
from repstitch.errors import InputError, one_line

EXIT_INPUT, EXIT_INTERRUPTED = 2, 130


def parser() -> argparse.ArgumentParser:
    """The whole command line, built without importing anything heavy."""
    top = argparse.ArgumentParser(prog="repstitch", description="Translate embeddings between models, with proof.")
    top.add_argument("--version", action="version", version=f"repstitch {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(subparsers)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on what the caller can mend, 130 when interrupted."""
    args = parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("repstitch").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "²" gets "?", not a traceback
    try:
        args.run(args)
        sys.stdout.flush()
    except InputError as error:
        print(f"repstitch {args.command}: {error}", file=sys.stderr)
        return EXIT_INPUT
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that is not the caller's
        print(f"repstitch {args.command}: {one_line(error)}", file=sys.stderr)
        return EXIT_INPUT
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        extra = "demo" if args.command == "demo" else extra
        need = f"`{args.command}` needs {error.name}"
        print(f"repstitch {args.command}: {need}; install it with: pip install 'repstitch[{extra}]'", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print(
            f"repstitch {args.command}: stopped; the output is not there yet. Run it again to go on.", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    return 0


COMMANDS = (embed, train, score, translate, transfer, align, study, registry, serve, demo)
EXTRAS = {
    "timm": "encoders",
    "torchvision": "encoders",
    "transformers": "encoders",
    "PIL": "encoders",
    "bentoml": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "orjson": "serve",
    "prometheus_client": "serve",
    "httpx": "serve",
    "matplotlib": "plot",
    "sklearn": "probes",
    "skops": "probes",
}

if __name__ == "__main__":
    sys.exit(main())
