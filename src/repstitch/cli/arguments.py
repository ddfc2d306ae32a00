"""Options that several commands share, and checks of their values that need neither NumPy nor torch."""

import argparse
import json
from collections.abc import Callable
from typing import NoReturn

from repstitch.errors import InputError
from repstitch.files import check_embeddings_exist, check_file_exists, check_stitcher_exists
from repstitch.names import OLD_MODELS

LABELS = "TABLE:COLUMN"
LABELS_HELP = (
    "class labels of the source rows; the scorecard then has the accuracy of a linear probe that is trained on target "
    "rows and transferred to the source space"
)
FORMATS_HELP = ".parquet, .arrow, .npy, .npz:KEY, or the address of a table (lancedb://, postgresql://)"
# Arguments of all commands that name files. The files must exist before the command starts.
STITCHERS = ("stitcher", "forward", "backward")
EMBEDDINGS = ("embeddings", "source", "target", "source_queries", "target_queries")
IDS = ("ids", "source_ids", "target_ids", "source_query_ids", "target_query_ids")


class Parser(argparse.ArgumentParser):
    """A parser whose errors have one line, without the usage, which would take half a terminal."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_command(
    subparsers, name: str, run: Callable, description: str, example: str, json_flag: bool = True
) -> argparse.ArgumentParser:
    """Add a subcommand with its description, an example and, if `json_flag`, the option `--json`."""
    command = subparsers.add_parser(
        name,
        help=description,
        description=description[0].upper() + description[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, parser=command)
    if json_flag:
        command.add_argument("--json", action="store_true", help="print the result as one line of JSON instead of text")
    return command


def add_pair_arguments(command: argparse._ActionsContainer, needed: bool = True) -> None:
    """Add the options that name the embeddings of both sides."""
    command.add_argument(
        "--source", required=needed, metavar="X", help=f"embeddings of the source model: {FORMATS_HELP}"
    )
    command.add_argument(
        "--target",
        required=needed,
        metavar="Y",
        help="embeddings of the same items by the target model; rows are paired by id, or by position without ids",
    )
    command.add_argument(
        "--source-space",
        metavar="NAME",
        help="name of the source space (default: the name on the file's card, else the file's name)",
    )
    command.add_argument(
        "--target-space", metavar="NAME", help="name of the target space (default: as for --source-space)"
    )
    command.add_argument("--source-ids", metavar="FILE", help="text file with one id per row, for a source without ids")
    command.add_argument("--target-ids", metavar="FILE", help="text file with one id per row, for a target without ids")
    add_id_column_argument(command)
    command.add_argument(
        "--drop-invalid",
        action="store_true",
        help="leave out rows with NaN, Inf or only zeros, and repeated pairs, and report how many (default: stop with "
        "an error)",
    )


def add_id_column_argument(command: argparse._ActionsContainer) -> None:
    """Add the option that names the column of ids."""
    command.add_argument(
        "--id-column",
        type=_names,
        metavar="NAME,…",
        help="column that contains the ids, or its names in the different files (default: id, else the index of a "
        "pandas data frame, else the only column with a usual name such as doc_id, _id or uuid)",
    )


def add_copy_arguments(command: argparse._ActionsContainer, columns: str | None) -> None:
    """Add the options that name the ids and the columns of a file whose rows are copied to another one.

    `columns` is the default of the columns.
    """
    command.add_argument("--ids", metavar="FILE", help="text file with one id per row, for a file without ids")
    add_id_column_argument(command)
    command.add_argument(
        "--columns",
        type=names_or_all,
        default=columns,
        metavar="all|NAME,…",
        help=f"further columns of X to copy to the output (default: {columns or 'none'})",
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"names must be separated by commas; got {text!r}.")
    return names


def names_or_all(text: str) -> tuple[str, ...] | str:
    """Parse the value of an option: names separated by commas, or all."""
    return text if text == "all" else _names(text)


def add_threshold_arguments(command: argparse.ArgumentParser) -> None:
    """Add the thresholds of the verdicts."""
    command.add_argument(
        "--retention",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="share of the score of full re-embedding that the verdict `use` requires "
        "of the whole 95 %% interval (default: 0.9)",
    )
    command.add_argument(
        "--first-stage",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="share of the shortlist recall of full re-embedding that the verdict `use as first stage` requires "
        "of the whole 95 %% interval (default: 0.95)",
    )
    command.add_argument(
        "--old-model",
        choices=OLD_MODELS,
        default="available",
        help="gone: judge against re-embedding alone, because the old model cannot be kept (default: available)",
    )


def add_device_argument(command: argparse.ArgumentParser) -> None:
    """Add the option that chooses where to compute."""
    command.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device to compute on; auto uses a CUDA GPU if there is one (default: auto)",
    )


def add_full_argument(command: argparse.ArgumentParser) -> None:
    """Add the option that prints the whole scorecard."""
    command.add_argument(
        "--full", action="store_true", help="print every score (default: the verdicts and the five numbers behind them)"
    )


def add_folder_argument(command: argparse.ArgumentParser) -> None:
    """Add the option that names the folder of stitchers."""
    command.add_argument(
        "--stitchers",
        metavar="DIR",
        help="folder that contains the stitchers (default: REPSTITCH_STITCHERS, else models/stitchers)",
    )


def check_inputs(args: argparse.Namespace) -> None:
    """Raise InputError if a stitcher, embeddings or another file that an argument names does not exist."""
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
    """Split names at commas. Raises InputError if one is empty."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"`{argument}` must be names separated by commas; got {text!r}.")
    return names


def split_numbers(text: str, argument: str, expected: str) -> list[int]:
    """Split integers at commas. If one is not an integer, raises InputError with the text `expected`."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"`{argument}` must be {expected}; got {text!r}.") from None


def read_json_object(text: str, argument: str) -> dict:
    """Parse a JSON object that is the value of an option. Raises InputError if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"`{argument}` must be a JSON object; got {text!r}.")
    return value
