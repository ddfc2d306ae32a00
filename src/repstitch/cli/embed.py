"""Turn images or texts into embeddings."""

import argparse

from repstitch.arguments import check_positive
from repstitch.cli.arguments import add_command, add_id_column_argument, read_json_object, split_numbers
from repstitch.cli.output import emit
from repstitch.files import check_embeddings_file, check_items_exist, check_layers_folder
from repstitch.names import MODALITIES, POOLINGS, ROLES


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "embed",
        run,
        "turn images or texts into embeddings with an encoder",
        "repstitch embed --encoder timm:resnet50 --data photos/ --out resnet50.parquet",
    )
    command.add_argument(
        "--encoder",
        required=True,
        metavar="ID|PATH|CARD.toml",
        help="name in the catalogue, card (CARD.toml or CARD.toml:NAME), timm:MODEL, torchvision:MODEL, "
        "transformers:MODEL, Hub id, folder of a model, or file of weights",
    )
    command.add_argument(
        "--data",
        required=True,
        metavar="PATH[:COLUMN]",
        help="items to embed: a folder or .zip of images, a .txt with one text per line, or a column of a .parquet, "
        ".csv or .tsv table with texts, image bytes or image paths",
    )
    command.add_argument(
        "--out",
        required=True,
        metavar="X.parquet",
        help="file to write, or folder if --layers is set; it must not exist",
    )
    add_id_column_argument(command)
    _add_card_arguments(command)
    _add_model_arguments(command)
    _add_run_arguments(command)


def _add_card_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options that replace settings of the card."""
    command.add_argument("--name", help="name of the space (default: the name of the card or model)")
    command.add_argument(
        "--pooling",
        choices=POOLINGS,
        help="how an item's vector is computed from its tokens: cls = the first (class) token, mean = the mean of all "
        "tokens, last = the last token, max = the maximum of each column, mean_sqrt_len = the sum over the root of the "
        "number of tokens, weighted_mean = the mean with the positions as weights, gap = the mean of the patches "
        "or of the feature map (images only), none = no pooling, the vector that the model returns (default: as the "
        "card or the model states)",
    )
    command.add_argument(
        "--layer",
        type=int,
        help="block whose output is used, counted from 1; negative numbers count from the end; 0 is the input of the "
        "first block (texts only) (default: the card's layer, else the output of the model)",
    )
    command.add_argument(
        "--role",
        choices=ROLES,
        help="role of the texts, which selects the prompt of the card or the model: query = search queries, document = "
        "texts that are searched, none = neither (default: the role of the card)",
    )
    command.add_argument(
        "--prompt", help="text to put before each text (default: the prompt of the card or the model for the role)"
    )
    command.add_argument(
        "--normalise",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="scale vectors to unit length, or do not (default: as the card or the model states)",
    )
    command.add_argument(
        "--skip-first",
        action="store_const",
        const=True,
        help="leave the first token out of the mean (default: as the card states)",
    )
    command.add_argument(
        "--max-length",
        type=int,
        help="truncate texts to this number of tokens (default: the limit of the card or the model)",
    )


def _add_model_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options for the model and its weights."""
    command.add_argument(
        "--modality",
        choices=MODALITIES[:2],
        help="kind of the items, for a model that reads both or is on the Hub: image or text (default: as the card or "
        "the model's folder states, else text for a model of transformers)",
    )
    command.add_argument(
        "--input-size",
        type=int,
        help="side, in pixels, of the square that images are resized to (default: as the card or the model states)",
    )
    command.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="file or folder with the weights (default: those of the card or the Hub)",
    )
    command.add_argument(
        "--architecture",
        help="timm model that the weights belong to; required if --encoder is a file of weights (default: none)",
    )
    command.add_argument(
        "--model-args",
        metavar="JSON",
        help="arguments of the model's constructor as a JSON object (default: the card's)",
    )


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options for computing and storing the embeddings."""
    command.add_argument(
        "--layers",
        metavar="all|1,6,12",
        help="write one file per layer to the folder --out, with one forward pass per batch: all layers, or the "
        "numbers of some (default: one file, of a single layer)",
    )
    command.add_argument(
        "--batch-size", type=int, default=64, help="number of items per forward pass (default: %(default)s)"
    )
    command.add_argument(
        "--device",
        default="auto",
        help="device to compute on: cpu, cuda, cuda:1, mps ...; auto is a GPU if one is available, else the CPU "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="arithmetic of the forward pass (weights stay float32): auto = bfloat16 on a CUDA GPU, else float32; "
        "float32 = full precision; bfloat16, float16 = half precision by autocast (default: %(default)s)",
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="type of the vectors in the file; float16 takes half the space (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    layers = _layers(args.layers)
    check_embeddings_file(args.out) if layers is None else check_layers_folder(args.out)
    settings = {name: getattr(args, name) for name in CARD_SETTINGS if getattr(args, name) is not None}
    if args.model_args is not None:
        settings["model_args"] = read_json_object(args.model_args, "model_args")
    check_items_exist(args.data)
    check_positive(args.batch_size, "`batch_size`")
    from repstitch.encoders.encoder import embed, n_truncated

    rows = embed(
        args.encoder,
        args.data,
        args.out,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
        dtype=args.dtype,
        layers=layers,
        id_column=args.id_column,
        **settings,
    )
    truncated = n_truncated(args.out)
    result = {"out": args.out, "rows": rows} | ({} if truncated is None else {"truncated": truncated})
    emit(result, f"{rows} rows in {args.out}" + (f" (truncated: {truncated})" if truncated else ""), args.json)


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
    "modality",
    "input_size",
    "checkpoint",
    "architecture",
)
