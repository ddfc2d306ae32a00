"""The command line: the parser, and how a run ends. Results go to stdout, everything else to stderr."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper

from repstitch import __version__, commands
from repstitch.errors import InputError, one_line
from repstitch.names import CONCEPTS, METHODS, METRICS, NORMALISATIONS, OBJECTIVES, POOLINGS, ROLES, USES

EXIT_INPUT, EXIT_INTERRUPTED = 2, 130


def parser() -> argparse.ArgumentParser:
    """The whole command line, built without importing anything heavy."""
    top = argparse.ArgumentParser(prog="repstitch", description="Translate embeddings between models, with proof.")
    top.add_argument("--version", action="version", version=f"repstitch {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, what: str, example: str, json_flag: bool = True) -> argparse.ArgumentParser:
        made = subparsers.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        if json_flag:
            made.add_argument("--json", action="store_true", help="print the result as JSON")
        return made

    c = command(
        "embed",
        commands.run_embed,
        "turn images or texts into embeddings with an encoder",
        "repstitch embed --encoder timm:resnet50 --data photos/ --out resnet50.parquet",
    )
    c.add_argument("--encoder", required=True, metavar="ID|PATH|CARD.toml", help="a card, Hub id, folder or checkpoint")
    c.add_argument("--data", required=True, metavar="PATH[:COLUMN]", help="a folder or zip of images, .txt, or a table")
    c.add_argument("--out", required=True, metavar="X.parquet", help="with --layers a folder")
    c.add_argument("--name", help="what to call the space")
    c.add_argument("--pooling", choices=POOLINGS)
    c.add_argument("--layer", type=int, help="block whose output is taken, from 1; negative from the end")
    c.add_argument("--layers", metavar="all|1,6,12", help="one file a layer, from one pass; --out is then a folder")
    c.add_argument("--role", choices=ROLES, help="which of the card's prompts to put before each text")
    c.add_argument("--prompt", help="text to put before each item")
    c.add_argument("--normalise", action=argparse.BooleanOptionalAction, default=None, help="rows to unit length")
    c.add_argument("--skip-first", action="store_const", const=True, help="leave the first token out of the mean")
    c.add_argument("--max-length", type=int, help="tokens a text is cut at")
    c.add_argument("--input-size", type=int, help="side of the square that images are resized to")
    c.add_argument("--checkpoint", metavar="FILE", help="the weights of a card that names only a file")
    c.add_argument("--architecture", help="what a bare weights file is a checkpoint of")
    c.add_argument("--model-args", metavar="JSON", help="arguments for the architecture's constructor")
    c.add_argument("--batch-size", type=int, default=64)
    c.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    c.add_argument("--precision", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    c.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="type of the vectors written")

    c = command(
        "train",
        commands.run_train,
        "learn a stitcher from paired embeddings and prove it on pairs it never saw",
        "repstitch train --source old.parquet --target new.parquet --out models/stitchers/old-new",
    )
    _pair_arguments(c)
    c.add_argument("--out", required=True, metavar="DIR", help="the stitcher's folder; must not exist yet")
    c.add_argument("--method", choices=(*METHODS, "auto"), default="auto")
    c.add_argument("--objective", choices=OBJECTIVES, default="match", help="what the map is chosen for")
    c.add_argument("--split", default="0.6,0.15,0.25", help="shares of train, validation and test")
    c.add_argument("--split-seed", type=int, default=0)
    c.add_argument("--seed", type=int, default=0, help="seed of the contrastive fits")
    c.add_argument("--group", metavar="COLUMN|FILE", help="pairs of one group stay on one side of the split")
    c.add_argument("--refit", action="store_true", help="fit the chosen map once more on all pairs, after scoring")
    c.add_argument("--output-norm", choices=NORMALISATIONS, help="unit rows out, or lengths as the map gives them")
    c.add_argument("--learning-curve", metavar="FILE.png", help="draw score against number of training pairs (or .svg)")
    c.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    c.add_argument("--epochs", type=int, help="of the contrastive fits")
    c.add_argument("--width", type=int, help="hidden width of the mlp")
    c.add_argument("--batch-size", type=int)
    c.add_argument("--learning-rate", type=float)
    c.add_argument("--devices", help="passed to the Lightning Trainer")
    c.add_argument("--strategy", help="passed to the Lightning Trainer, e.g. ddp")
    c.add_argument("--checkpoints", metavar="DIR", help="keep checkpoints here, and go on from them when run again")
    c.add_argument("--labels", metavar=LABELS, help=LABELS_HELP)
    _threshold_arguments(c)

    c = command(
        "score",
        commands.run_score,
        "score a stitcher on pairs it was not trained on",
        "repstitch score models/stitchers/old-new --source old.parquet --target new.parquet --use corpus",
    )
    c.add_argument("stitcher", metavar="STITCHER")
    _pair_arguments(c)
    c.add_argument("--use", choices=(*USES, "both"), default="both")
    c.add_argument("--qrels", metavar="FILE", help="relevance judgements: query, document, grade, between tabs")
    c.add_argument("--source-queries", metavar="X", help="with --qrels, where --source and --target are the documents")
    c.add_argument("--target-queries", metavar="Y")
    c.add_argument("--source-query-ids", metavar="FILE", help="one id a row, for a file without ids")
    c.add_argument("--target-query-ids", metavar="FILE")
    c.add_argument("--labels", metavar=LABELS, help=LABELS_HELP)
    _threshold_arguments(c)

    c = command(
        "translate",
        commands.run_translate,
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

    c = command(
        "transfer",
        commands.run_transfer,
        "carry directions, probes, dictionaries or class names to the other space, and prove that they work there",
        "repstitch transfer probe.safetensors --backward models/stitchers/new-old --out carried.safetensors\n"
        "  repstitch transfer --backward models/stitchers/new-old --source old.parquet --target new.parquet \\\n"
        "      --labels labels.parquet:kind --plot transfer.png\n"
        "  repstitch transfer sae.safetensors --subtract-b-dec --out carried.safetensors \\\n"
        "      --forward models/stitchers/old-new --backward models/stitchers/new-old",
    )
    c.add_argument(
        "given", nargs="?", metavar="FILE", help="what is carried: .safetensors, .npz, .npy, .pt, .pth or .skops"
    )
    c.add_argument("--forward", metavar="STITCHER", help="source to target: for directions, dictionaries, prompts")
    c.add_argument("--backward", metavar="STITCHER", help="target to source: for probes, dictionaries")
    c.add_argument("--out", metavar="FILE", help=".safetensors or .npz, for directions also .npy; must not exist yet")
    c.add_argument("--renormalise", action="store_true", help="give each direction the length back that it had")
    c.add_argument(
        "--jacobian", action="store_true", help="act by the mean Jacobian at the rows given, as MLPs always do"
    )
    g = c.add_argument_group("what a FILE does not say")
    g.add_argument("--directions", action="store_true", help="its arrays are directions, whatever their names")
    g.add_argument("--classes", metavar="FILE", help="what a probe's scores speak for, one a line")
    g.add_argument(
        "--subtract-b-dec",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether a dictionary subtracts b_dec before it encodes",
    )
    g = c.add_argument_group("in place of a FILE")
    g.add_argument("--concept", metavar="X", help="carry the concept that these embeddings of the source show …")
    g.add_argument("--against", metavar="X", help="… and these do not")
    g.add_argument("--by", choices=CONCEPTS, help="as the difference of means, a direction (default), or as a probe")
    g.add_argument("--prompts", metavar="X", help="classify by names: embeddings of one prompt a class, called by id")
    g.add_argument("--names", metavar="FILE", help="with --prompts: one class name a prompt, which may repeat")
    g = c.add_argument_group("rows, and proof")
    _pair_arguments(g, needed=False)
    g.add_argument("--labels", metavar=LABELS, help="classes of the target's rows, to prove a probe or names on")
    g.add_argument(
        "--group", metavar="COLUMN|FILE", help="rows of one group stay on one side of the split, as in train"
    )
    g.add_argument("--plot", metavar="FILE", help="draw the proof, as .png, .svg or .pdf")
    g.add_argument("--seed", type=int, default=0, help="seed of the resampled rows and of the controls")

    c = command(
        "align",
        commands.run_align,
        "measure how alike spaces are, with the permutation null beside each score",
        "repstitch align a.parquet b.parquet --metric mutual_knn,cka_unbiased\n"
        "  repstitch align *.parquet --sizes auto --cache graphs --out atlas\n"
        "  repstitch align *.parquet --trend parameters --control family,objective --plot trend.png",
    )
    c.add_argument("embeddings", nargs="+", metavar="X", help="two or more: .parquet, .arrow, .npy or .npz:key")
    c.add_argument("--metric", default="mutual_knn,cka_unbiased", help=f"all, or of {', '.join(METRICS)}")
    c.add_argument("--k", type=int, default=10, help="neighbours of each row, for the metrics of neighbours")
    c.add_argument("--permutations", type=int, default=200, help="draws of the null; 0 leaves it out")
    c.add_argument("--seed", type=int, default=0, help="seed of the null and of the subsets of rows")
    c.add_argument("--drop-invalid", action="store_true", help="leave out rows that cannot be used, and say how many")
    c.add_argument("--sizes", metavar="auto|N,…", help="how the ten best pairs' scores depend on the number of rows")
    c.add_argument("--trend", metavar="COLUMN", help="does alignment rise with this number of each model's card?")
    c.add_argument("--against", metavar="NAME,…", help="with --trend: alignment with these models, not with all")
    c.add_argument(
        "--control", metavar="COLUMN,…", help="do models of one family, objective or training_data agree more?"
    )
    c.add_argument(
        "--table", metavar="FILE", help=".csv, .tsv or .parquet with a column name, for --trend and --control"
    )
    c.add_argument(
        "--asymmetry", action="store_true", help="of the ten best pairs, which side predicts the other (slow)"
    )
    c.add_argument("--out", metavar="DIR", help="write atlas.json, pairs.csv and pairs.parquet to a new folder")
    c.add_argument("--plot", metavar="FILE|DIR", help="a folder for all pictures, or .png, .svg or .pdf for one")
    c.add_argument("--cache", metavar="DIR", help="keep neighbour graphs here for the next run")
    c.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    c = command(
        "study",
        commands.run_study,
        "embed many encoders, align them all and report whether they converge",
        "repstitch study prh --data pictures-and-captions --out results --skip-missing",
    )
    c.add_argument("study", metavar="FILE", help="a study's .toml, or the name of one that comes along: prh, local")
    c.add_argument("--out", required=True, metavar="DIR", help="results, a folder an experiment; run again to go on")
    c.add_argument("--data", metavar="DIR", help="what the study's paths are relative to; default: REPSTITCH_DATA")
    c.add_argument("--only", metavar="NAME", help="one experiment of the study")
    c.add_argument("--skip-missing", action="store_true", help="go on without encoders that cannot be loaded")
    c.add_argument("--batch-size", type=int, default=64)
    c.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")

    c = command(
        "list", commands.run_list, "list the stitchers of a folder", "repstitch list --stitchers models/stitchers"
    )
    _folder_argument(c)
    c = command(
        "promote", commands.run_promote, "choose the stitcher that serves its pair", "repstitch promote old-new-2"
    )
    c.add_argument("name", metavar="NAME")
    _folder_argument(c)
    c = command("show", commands.run_show, "show a stitcher's scorecard", "repstitch show old-new --plot card.png")
    c.add_argument("stitcher", metavar="STITCHER", help="a folder, or a name in --stitchers")
    c.add_argument("--plot", metavar="FILE", help="also draw it, as .png or .svg")
    _folder_argument(c)

    c = command(
        "serve",
        commands.run_serve,
        "serve translations over HTTP",
        "repstitch serve --stitchers models/stitchers --port 3000",
        json_flag=False,
    )
    _folder_argument(c)
    c.add_argument("--host", default="127.0.0.1")
    c.add_argument("--port", type=int, default=3000)
    c.add_argument("--workers", type=int, help="processes; default: REPSTITCH_WORKERS, else 1")
    c.add_argument("--engine", choices=("uvicorn", "bentoml"), default="uvicorn")

    c = command(
        "demo", commands.run_demo, "run the whole job on small real data", "repstitch demo --out demo", json_flag=False
    )
    c.add_argument("--out", default="demo", metavar="DIR", help="where the demo keeps what it makes")
    c.add_argument("--seed", type=int, default=0)
    return top


def _pair_arguments(c: argparse._ActionsContainer, needed: bool = True) -> None:
    c.add_argument("--source", required=needed, metavar="X", help=".parquet, .arrow, .npy or .npz:key")
    c.add_argument("--target", required=needed, metavar="Y")
    c.add_argument("--source-space", metavar="NAME", help="name the space of a file without a card")
    c.add_argument("--target-space", metavar="NAME")
    c.add_argument("--source-ids", metavar="FILE", help="one id a row, for a file without ids")
    c.add_argument("--target-ids", metavar="FILE")
    c.add_argument("--drop-invalid", action="store_true", help="leave out rows that cannot be used, and say how many")


def _threshold_arguments(c: argparse.ArgumentParser) -> None:
    c.add_argument("--retention", type=float, default=0.9, help="share of re-embedding's score for the verdict `use`")
    c.add_argument("--first-stage", type=float, default=0.95, help="the same of its shortlist, `use as first stage`")


def _folder_argument(c: argparse.ArgumentParser) -> None:
    c.add_argument("--stitchers", metavar="DIR", help="default: REPSTITCH_STITCHERS, else models/stitchers")


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on what the caller can mend, 130 when interrupted."""
    args = parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("repstitch").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "²" gets "?", not a traceback
    try:
        args.run(args)
        sys.stdout.flush()
    except InputError as error:
        print(f"repstitch {args.command}: {error}", file=sys.stderr)
        return EXIT_INPUT
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that is not the caller's
        print(f"repstitch {args.command}: {one_line(error)}", file=sys.stderr)
        return EXIT_INPUT
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        extra = "demo" if args.command == "demo" else extra
        need = f"`{args.command}` needs {error.name}"
        print(f"repstitch {args.command}: {need}; install it with: pip install 'repstitch[{extra}]'", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print(
            f"repstitch {args.command}: stopped; the output is not there yet. Run it again to go on.", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    return 0


LABELS, LABELS_HELP = "TABLE:COLUMN", "classes of the source's rows: how well do probes of the target work on them?"
EXTRAS = {
    "timm": "encoders",
    "torchvision": "encoders",
    "transformers": "encoders",
    "PIL": "encoders",
    "bentoml": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "orjson": "serve",
    "prometheus_client": "serve",
    "httpx": "serve",
    "matplotlib": "plot",
    "sklearn": "probes",
    "skops": "probes",
}

if __name__ == "__main__":
    sys.exit(main())
