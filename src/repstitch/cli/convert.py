"""Convert a file of embeddings to another format."""

import argparse

from repstitch.cli.arguments import add_command, add_copy_arguments, check_inputs
from repstitch.cli.output import emit
from repstitch.files import check_new


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "convert",
        run,
        "convert a file of embeddings to another format",
        "repstitch convert items.csv:embedding --id-column sku --out items.parquet\n"
        "  repstitch convert items.parquet --out items.npy",
    )
    command.add_argument(
        "path",
        metavar="X",
        help="embeddings: .parquet, .arrow, .npy or .npz:KEY, a folder, the address of a table, .csv or .tsv with "
        "vectors such as [0.1,0.2] or one number per column, .jsonl or .ndjson, or .json with the reply to a scroll "
        "request of Qdrant; X:COLUMN names the column of the vectors (default: vector)",
    )
    command.add_argument(
        "--out",
        required=True,
        metavar="Y",
        help="file to write, which must not exist: .parquet, .arrow, .npy (with NAME.ids.txt beside it), .npz, .csv, "
        ".jsonl or .ndjson",
    )
    add_copy_arguments(command, columns="all")
    command.add_argument(
        "--space",
        metavar="NAME",
        help="name of the space, to be stated in a .parquet or .arrow file (default: the card of X; without one, none)",
    )


def run(args: argparse.Namespace) -> None:
    check_new(args.out)
    check_inputs(args)
    from repstitch.workflows.converting import convert

    rows = convert(
        args.path,
        args.out,
        space=args.space,
        ids=args.ids,
        id_column=args.id_column,
        columns=args.columns,
    )
    emit({"out": args.out, "rows": rows}, f"{rows:,} rows in {args.out}", args.json)
