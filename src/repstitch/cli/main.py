"""The entry point of the command line. Results go to stdout, everything else to stderr."""

import argparse
import logging
import os
import re
import sys
import traceback
from io import TextIOWrapper
from types import TracebackType

from repstitch import __version__
from repstitch.addresses import check_no_secret
from repstitch.cli import (
    align,
    convert,
    demo,
    embed,
    migrate,
    registry,
    sample,
    score,
    serve,
    study,
    train,
    transfer,
    translate,
)
from repstitch.cli.arguments import Parser
from repstitch.errors import InputError, one_line
from repstitch.redaction import RedactingFormatter, redact
from repstitch.text import LOG_FORMAT

EXIT_INPUT, EXIT_INTERRUPTED = 2, 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. Building it imports nothing heavy."""
    top = Parser(
        prog="repstitch",
        description="Translate embeddings between models, and measure on held-out pairs what the translation keeps.",
    )
    top.add_argument(
        "--version", action="version", version=f"repstitch {__version__}", help="print the version and exit"
    )
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.register(subparsers)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0 on success, 1 if a check failed, 2 on an error in the input, 130 if interrupted."""
    sys.excepthook = _print_traceback
    try:
        for argument in sys.argv[1:] if argv is None else argv:
            check_no_secret(argument)
    except InputError as error:
        print(f"repstitch: {error}", file=sys.stderr)
        return EXIT_INPUT
    args = parser().parse_args(argv)
    _prepare_streams(args.parser, LOG_FORMAT if args.command == "serve" else "%(levelname)s: %(message)s")
    status = 0
    try:
        status = args.run(args) or 0
        sys.stdout.flush()
    except InputError as error:
        return _fail(args, with_flags(str(error), args.parser))
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ConnectionError as error:  # to a store; a step that was begun goes on, or was finished
        return _fail(args, f"{one_line(error).rstrip('.')}. Run the same command again.")
    except OSError as error:  # for example a full disk, or a folder without write permission
        return _fail(args, one_line(error))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        extra = "demo" if args.command == "demo" else extra
        return _fail(args, f"`{args.command}` needs {error.name}; install it with: pip install 'repstitch[{extra}]'")
    except KeyboardInterrupt as error:
        continues = args.command in RESUMED or getattr(args, "checkpoints", None) is not None
        hint = str(error) or ("Run the same command again to continue." if continues else "")
        return _fail(args, f"interrupted. {hint}".strip(), EXIT_INTERRUPTED)
    return status


def with_flags(message: str, command: argparse.ArgumentParser) -> str:
    """Replace each argument in backticks by the option that sets it, of the command or of another step of it."""
    parsers = [*(command.get_default("steps") or ()), command]
    actions = [action for each in parsers for action in each._actions if action.option_strings]
    flags = {action.dest: action.option_strings[0] for action in actions}
    return re.sub(r"`(\w+)`", lambda quoted: f"`{flags.get(quoted[1], quoted[1])}`", message)


class FlagFormatter(RedactingFormatter):
    """Formats log lines; replaces each argument in backticks by the option of the command that sets it."""

    def __init__(self, command: argparse.ArgumentParser, form: str):
        super().__init__(form)
        self.command = command

    def format(self, record: logging.LogRecord) -> str:
        return with_flags(super().format(record), self.command)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that nothing expected, without secrets."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _prepare_streams(command: argparse.ArgumentParser, log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FlagFormatter(command, log_format))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("repstitch").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot print "²" shows "?" instead of a traceback


def _fail(args: argparse.Namespace, message: str, status: int = EXIT_INPUT) -> int:
    print(redact(f"repstitch {args.command}: {message}"), file=sys.stderr)
    return status


RESUMED = ("embed", "translate", "study", "migrate")  # commands that keep finished parts if they are interrupted
COMMANDS = (sample, embed, train, score, translate, migrate, convert, transfer, align, study, registry, serve, demo)
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
    "lance": "lancedb",
    "psycopg": "postgresql",
}

if __name__ == "__main__":
    sys.exit(main())
