"""Translate a file of embeddings."""

import argparse

from repstitch.cli.arguments import add_command, check_inputs
from repstitch.cli.output import emit
from repstitch.files import check_embeddings_file


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "translate",
        run,
        "translate a file of embeddings into the stitcher's target space",
        "repstitch translate models/stitchers/old-new old.parquet --out translated.parquet",
    )
    command.add_argument("stitcher", metavar="STITCHER")
    command.add_argument("embeddings", metavar="X")
    command.add_argument("--out", required=True, metavar="Y.parquet")
    command.add_argument("--source-space", metavar="NAME", help="state the space of a file without a card")
    command.add_argument("--ids", metavar="FILE", help="one id a row, for a file without ids")
    command.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    command.add_argument(
        "--confidence", action="store_true", help="add a column for each measure of how far to trust a row"
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(args: argparse.Namespace) -> None:
    check_embeddings_file(args.out)
    check_inputs(args)
    from repstitch.devices import pick_device
    from repstitch.stitchers.stitcher import load
    from repstitch.workflows.translating import translate_file

    stitcher = load(args.stitcher).to(pick_device(args.device))
    rows = translate_file(
        stitcher,
        args.embeddings,
        args.out,
        source_space=args.source_space,
        ids=args.ids,
        dtype=args.dtype,
        confidence=args.confidence,
    )
    text = f"{rows} rows of {stitcher.source.name} translated to {stitcher.target.name} in {args.out}"
    emit({"out": args.out, "rows": rows, "stitcher": stitcher.version}, text, args.json)
