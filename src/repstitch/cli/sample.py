"""Draw rows of a corpus to embed with the new model."""

import argparse

from repstitch.cli.arguments import add_command, add_id_column_argument, names_or_all
from repstitch.cli.output import emit
from repstitch.files import check_new


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "sample",
        run,
        "draw rows of a corpus to embed with the new model, so that a stitcher is trained where it will be used",
        "repstitch sample 'postgresql://HOST/DATABASE?table=docs' --n 2000 --columns text --out own.old.parquet",
    )
    command.add_argument(
        "source",
        metavar="ADDRESS|FILE",
        help="corpus in the old space: the address of a table, or a file or folder of embeddings with ids",
    )
    command.add_argument(
        "--out", required=True, metavar="Y.parquet", help="file to write, which must not exist, with ids and vectors"
    )
    command.add_argument("--n", type=int, default=2_000, metavar="N", help="number of rows (default: 2000)")
    command.add_argument(
        "--spread",
        action="store_true",
        help="draw rows that are far from each other, which trains better maps; scores and confidence on them do not "
        "hold for the corpus (default: each row with the same probability)",
    )
    command.add_argument(
        "--columns",
        type=names_or_all,
        metavar="all|NAME,…",
        help="further columns to copy, such as that of the texts to embed (default: none)",
    )
    add_id_column_argument(command)
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draw (default: 0)")


def run(args: argparse.Namespace) -> None:
    check_new(args.out)
    from repstitch.workflows.drawing import draw

    rows = draw(
        args.source,
        args.out,
        n=args.n,
        spread=args.spread,
        columns=args.columns or (),
        id_column=args.id_column,
        seed=args.seed,
    )
    emit({"out": args.out, "rows": rows}, f"{rows:,} rows in {args.out}", args.json)
