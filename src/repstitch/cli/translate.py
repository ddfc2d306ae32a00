"""Translate a file of embeddings."""

from repstitch.cli.arguments import add_command
from repstitch.cli.output import emit
from repstitch.files import check_embeddings_exist, check_embeddings_file


def register(subparsers) -> None:
    c = add_command(
        subparsers,
        "translate",
        run,
        "translate a file of embeddings into the stitcher's target space",
        "repstitch translate models/stitchers/old-new old.parquet --out translated.parquet",
    )
    c.add_argument("stitcher", metavar="STITCHER")
    c.add_argument("embeddings", metavar="X")
    c.add_argument("--out", required=True, metavar="Y.parquet")
    c.add_argument("--source-space", metavar="NAME", help="state the space of a file without a card")
    c.add_argument("--ids", metavar="FILE", help="one id a row, for a file without ids")
    c.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    c.add_argument("--confidence", action="store_true", help="add a column for each measure of how far to trust a row")
    c.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(args) -> None:
    check_embeddings_file(args.out)
    check_embeddings_exist(args.embeddings)
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
    said = f"{rows} rows of {stitcher.source.name} translated to {stitcher.target.name} in {args.out}"
    emit({"out": args.out, "rows": rows, "stitcher": stitcher.version}, said, args.json)
