"""Turn images or texts into embeddings."""

import argparse

from repstitch.arguments import check_positive
from repstitch.cli.arguments import add_command, read_json_object, split_numbers
from repstitch.cli.output import emit
from repstitch.files import check_embeddings_file, check_items_exist, check_layers_folder
from repstitch.names import POOLINGS, ROLES


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "embed",
        run,
        "turn images or texts into embeddings with an encoder",
        "repstitch embed --encoder timm:resnet50 --data photos/ --out resnet50.parquet",
    )
    command.add_argument(
        "--encoder", required=True, metavar="ID|PATH|CARD.toml", help="a card, Hub id, folder or checkpoint"
    )
    command.add_argument(
        "--data", required=True, metavar="PATH[:COLUMN]", help="a folder or zip of images, .txt, or a table"
    )
    command.add_argument("--out", required=True, metavar="X.parquet", help="with --layers a folder")
    command.add_argument("--name", help="what to call the space")
    command.add_argument("--pooling", choices=POOLINGS)
    command.add_argument("--layer", type=int, help="block whose output is taken, from 1; negative from the end")
    command.add_argument(
        "--layers", metavar="all|1,6,12", help="one file a layer, from one pass; --out is then a folder"
    )
    command.add_argument("--role", choices=ROLES, help="which of the card's prompts to put before each text")
    command.add_argument("--prompt", help="text to put before each item")
    command.add_argument("--normalise", action=argparse.BooleanOptionalAction, default=None, help="rows to unit length")
    command.add_argument("--skip-first", action="store_const", const=True, help="leave the first token out of the mean")
    command.add_argument("--max-length", type=int, help="tokens a text is cut at")
    command.add_argument("--input-size", type=int, help="side of the square that images are resized to")
    command.add_argument("--checkpoint", metavar="FILE", help="the weights of a card that names only a file")
    command.add_argument("--architecture", help="what a bare weights file is a checkpoint of")
    command.add_argument("--model-args", metavar="JSON", help="arguments for the architecture's constructor")
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    command.add_argument("--precision", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    command.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="type of the vectors written"
    )


def run(args: argparse.Namespace) -> None:
    layers = _layers(args.layers)
    check_embeddings_file(args.out) if layers is None else check_layers_folder(args.out)
    settings = {name: getattr(args, name) for name in CARD_SETTINGS if getattr(args, name) is not None}
    if args.model_args is not None:
        settings["model_args"] = read_json_object(args.model_args, "model_args")
    check_items_exist(args.data)
    check_positive(args.batch_size, "`batch_size`")
    from repstitch.encoders import embed

    rows = embed(
        args.encoder,
        args.data,
        args.out,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
        dtype=args.dtype,
        layers=layers,
        **settings,
    )
    emit({"out": args.out, "rows": rows}, f"{rows} rows in {args.out}", args.json)


def _layers(text: str | None) -> str | list[int] | None:
    if text is None or text == "all":
        return text
    return split_numbers(text, "layers", "all, or numbers like 1,6,12")


CARD_SETTINGS = (
    "name",
    "pooling",
    "layer",
    "role",
    "prompt",
    "normalise",
    "skip_first",
    "max_length",
    "input_size",
    "checkpoint",
    "architecture",
)
