"""Flags that several commands share, and the reading of what is written on the command line."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from repstitch.errors import InputError, one_line

LABELS, LABELS_HELP = "TABLE:COLUMN", "classes of the source's rows: how well do probes of the target work on them?"


def add_command(
    subparsers, name: str, run: Callable, what: str, example: str, json_flag: bool = True
) -> argparse.ArgumentParser:
    """A subcommand with its one-line description, an example and, unless `json_flag` is off, `--json`."""
    command = subparsers.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    if json_flag:
        command.add_argument("--json", action="store_true", help="print the result as JSON")
    return command


def add_pair_arguments(command: argparse._ActionsContainer, needed: bool = True) -> None:
    """The flags that name the embeddings of both sides."""
    command.add_argument("--source", required=needed, metavar="X", help=".parquet, .arrow, .npy or .npz:key")
    command.add_argument("--target", required=needed, metavar="Y")
    command.add_argument("--source-space", metavar="NAME", help="name the space of a file without a card")
    command.add_argument("--target-space", metavar="NAME")
    command.add_argument("--source-ids", metavar="FILE", help="one id a row, for a file without ids")
    command.add_argument("--target-ids", metavar="FILE")
    command.add_argument(
        "--drop-invalid", action="store_true", help="leave out rows that cannot be used, and say how many"
    )


def add_threshold_arguments(command: argparse.ArgumentParser) -> None:
    """The thresholds of the verdicts."""
    command.add_argument(
        "--retention", type=float, default=0.9, help="share of re-embedding's score for the verdict `use`"
    )
    command.add_argument(
        "--first-stage", type=float, default=0.95, help="the same of its shortlist, `use as first stage`"
    )


def add_folder_argument(command: argparse.ArgumentParser) -> None:
    """The folder of stitchers."""
    command.add_argument("--stitchers", metavar="DIR", help="default: REPSTITCH_STITCHERS, else models/stitchers")


def split_names(text: str, flag: str) -> list[str]:
    """Names between commas; InputError where one is empty."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"`--{flag}` must be names with commas between them; got {text!r}.")
    return names


def read_lines(path: str, flag: str) -> list[str]:
    """The lines of a text file that a flag names."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`--{flag}` {path} cannot be read: {one_line(error)}") from None


def read_json_object(text: str, flag: str) -> dict:
    """A JSON object that was written as a flag's value."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"`{flag}` must be a JSON object; got {text!r}.")
    return value
