"""Flags that several commands share, and checks of what they name that need neither NumPy nor torch."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from repstitch.errors import InputError, one_line
from repstitch.files import check_embeddings_exist, check_file_exists, check_stitcher_exists

LABELS, LABELS_HELP = "TABLE:COLUMN", "classes of the source's rows: how well do probes of the target work on them?"
# What the arguments of any command name that must be there before it starts.
STITCHERS = ("stitcher", "forward", "backward")
EMBEDDINGS = ("embeddings", "source", "target", "source_queries", "target_queries")
IDS = ("ids", "source_ids", "target_ids", "source_query_ids", "target_query_ids")


def add_command(
    subparsers, name: str, run: Callable, description: str, example: str, json_flag: bool = True
) -> argparse.ArgumentParser:
    """A subcommand with its one-line description, an example and, unless `json_flag` is off, `--json`."""
    command = subparsers.add_parser(
        name,
        help=description,
        description=description[0].upper() + description[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, parser=command)
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


def check_inputs(args: argparse.Namespace) -> None:
    """Raise InputError where a stitcher, embeddings or another file that an argument names is not there."""
    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value] if value is not None else []:
            if name in STITCHERS:
                check_stitcher_exists(path)
            elif name in EMBEDDINGS:
                check_embeddings_exist(path)
            elif name in IDS:
                check_file_exists(path, name)
            elif name == "qrels":
                check_file_exists(path, name, "lines of query, document and grade")


def split_names(text: str, argument: str) -> list[str]:
    """Names between commas; InputError where one is empty."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"`{argument}` must be names with commas between them; got {text!r}.")
    return names


def split_numbers(text: str, argument: str, expected: str) -> list[int]:
    """Whole numbers between commas; InputError, saying what was `expected`, where one is none."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"`{argument}` must be {expected}; got {text!r}.") from None


def read_lines(path: str, argument: str) -> list[str]:
    """The lines of a text file."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`{argument}` {path} cannot be read: {one_line(error)}") from None


def read_json_object(text: str, argument: str) -> dict:
    """A JSON object that was written as the value of a flag."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"`{argument}` must be a JSON object; got {text!r}.")
    return value
