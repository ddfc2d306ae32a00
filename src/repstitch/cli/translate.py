"""Translate a file of embeddings."""

import argparse

from repstitch.cli.arguments import (
    FORMATS_HELP,
    add_command,
    add_copy_arguments,
    add_device_argument,
    check_inputs,
)
from repstitch.cli.output import emit
from repstitch.files import check_translated_file


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "translate",
        run,
        "translate a file of embeddings into the target space of a stitcher",
        "repstitch translate models/stitchers/old-new old.parquet --out translated.parquet",
    )
    command.add_argument("stitcher", metavar="STITCHER", help="folder of the stitcher, or hf://OWNER/NAME")
    command.add_argument("embeddings", metavar="X", help=f"embeddings to translate: {FORMATS_HELP}, or a folder")
    command.add_argument(
        "--out",
        required=True,
        metavar="Y",
        help="file to write: .parquet, .arrow, or .npy (with NAME.ids.txt beside it); it must not exist, and appears "
        "only when it is complete",
    )
    command.add_argument(
        "--source-space",
        metavar="NAME",
        help="name of the space of X (default: the name on its card, else the stitcher's source space)",
    )
    add_copy_arguments(command, columns=None)
    command.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="type of the translated vectors (default: float32)",
    )
    command.add_argument(
        "--confidence", action="store_true", help="add a column for each confidence measure, such as p_match@1000"
    )
    add_device_argument(command)


def run(args: argparse.Namespace) -> None:
    check_translated_file(args.out, "confidence" if args.confidence else "columns" if args.columns else None)
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
        id_column=args.id_column,
        columns=args.columns or (),
        dtype=args.dtype,
        confidence=args.confidence,
    )
    text = f"Translated {rows:,} rows from {stitcher.source.name} to {stitcher.target.name}: {args.out}"
    emit({"out": args.out, "rows": rows, "stitcher": stitcher.version}, text, args.json)
