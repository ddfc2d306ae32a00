"""The entry point: the parser of all commands, and how a run ends. Results go to stdout, everything else to stderr."""

import argparse
import logging
import os
import re
import sys
from io import TextIOWrapper

from repstitch import __version__
from repstitch.cli import align, demo, embed, registry, score, serve, study, train, transfer, translate
from repstitch.errors import InputError, one_line

EXIT_INPUT, EXIT_INTERRUPTED = 2, 130


def parser() -> argparse.ArgumentParser:
    """The parser of all commands, built without importing anything heavy."""
    top = argparse.ArgumentParser(prog="repstitch", description="Translate embeddings between models, with proof.")
    top.add_argument("--version", action="version", version=f"repstitch {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(subparsers)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on an error that the caller can mend, 130 when interrupted."""
    args = parser().parse_args(argv)
    _prepare_streams(args.parser)
    try:
        args.run(args)
        sys.stdout.flush()
    except InputError as error:
        return _fail(args, with_flags(str(error), args.parser))
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that the caller may not write to
        return _fail(args, one_line(error))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        extra = "demo" if args.command == "demo" else extra
        return _fail(args, f"`{args.command}` needs {error.name}; install it with: pip install 'repstitch[{extra}]'")
    except KeyboardInterrupt:
        return _fail(args, "stopped; the output is not there yet. Run it again to go on.", EXIT_INTERRUPTED)
    return 0


def with_flags(message: str, command: argparse.ArgumentParser) -> str:
    """The message with each argument in backticks that a flag of the command sets replaced by that flag."""
    flags = {action.dest: action.option_strings[0] for action in command._actions if action.option_strings}
    return re.sub(r"`(\w+)`", lambda quoted: f"`{flags.get(quoted[1], quoted[1])}`", message)


class FlagFormatter(logging.Formatter):
    """Log lines that name arguments by the flags of a command."""

    def __init__(self, command: argparse.ArgumentParser):
        super().__init__("%(levelname)s: %(message)s")
        self.command = command

    def format(self, record: logging.LogRecord) -> str:
        return with_flags(super().format(record), self.command)


def _prepare_streams(command: argparse.ArgumentParser) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FlagFormatter(command))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("repstitch").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "²" gets "?", not a traceback


def _fail(args: argparse.Namespace, message: str, status: int = EXIT_INPUT) -> int:
    print(f"repstitch {args.command}: {message}", file=sys.stderr)
    return status


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
