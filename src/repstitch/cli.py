"""The command line: one function a command, results on stdout, everything else on stderr."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

from repstitch import __version__
from repstitch.errors import InputError, one_line
from repstitch.names import METHODS, METRICS, NORMALISATIONS, OBJECTIVES, POOLINGS, ROLES, USES

EXIT_INPUT, EXIT_INTERRUPTED = 2, 130


def run_embed(args) -> None:
    from repstitch.encoders import embed

    settings = {name: getattr(args, name) for name in CARD_SETTINGS if getattr(args, name) is not None}
    if args.model_args is not None:
        settings["model_args"] = _json_object(args.model_args, "--model-args")
    rows = embed(
        args.encoder,
        args.data,
        args.out,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
        dtype=args.dtype,
        **settings,
    )
    _emit({"out": args.out, "rows": rows}, f"{rows} rows in {args.out}", args.json)


def run_train(args) -> None:
    from repstitch.stitcher import check_out

    check_out(args.out)
    shares = _shares(args.split)
    if args.learning_curve:
        from repstitch.plots import check_picture

        check_picture(args.learning_curve, "learning_curve")
    from repstitch.scorecard import table
    from repstitch.train import train

    recipe = {
        name: getattr(args, name)
        for name in ("epochs", "width", "batch_size", "learning_rate", "strategy", "checkpoints")
        if getattr(args, name) is not None
    }
    if args.devices is not None:
        recipe["devices"] = int(args.devices) if args.devices.isdecimal() else args.devices
    stitcher = train(
        args.source,
        args.target,
        method=args.method,
        objective=args.objective,
        split_shares=shares,
        split_seed=args.split_seed,
        seed=args.seed,
        group=args.group,
        drop_invalid=args.drop_invalid,
        refit_on_all=args.refit,
        source_space=args.source_space,
        target_space=args.target_space,
        source_ids=args.source_ids,
        target_ids=args.target_ids,
        output_norm=args.output_norm,
        device=args.device,
        learning_curve=args.learning_curve is not None,
        retention=args.retention,
        first_stage=args.first_stage,
        **recipe,
    )
    stitcher.save(args.out)
    curve = stitcher.scorecard.get("learning_curve")
    if curve:
        from repstitch.plots import plot_curve, save

        save(plot_curve(curve), args.learning_curve)
    result = {
        "out": args.out,
        "version": stitcher.version,
        "source": stitcher.source.name,
        "target": stitcher.target.name,
        "method": stitcher.method,
        "objective": stitcher.objective,
        "scorecard": stitcher.scorecard,
    }
    title = f"{stitcher.source.name} -> {stitcher.target.name}, {stitcher.method}, in {args.out}"
    told = f"\n\nlearning curve, in {args.learning_curve}: {curve['verdict']}" if curve else ""
    _emit(result, f"{title}\n\n{table(stitcher.scorecard)}{told}", args.json)


def run_score(args) -> None:
    from repstitch.apply import score
    from repstitch.scorecard import table
    from repstitch.stitcher import load

    card = score(
        load(args.stitcher),
        args.source,
        args.target,
        uses=USES if args.use == "both" else (args.use,),
        source_space=args.source_space,
        target_space=args.target_space,
        source_ids=args.source_ids,
        target_ids=args.target_ids,
        drop_invalid=args.drop_invalid,
        source_queries=args.source_queries,
        target_queries=args.target_queries,
        qrels=args.qrels,
        source_query_ids=args.source_query_ids,
        target_query_ids=args.target_query_ids,
        retention=args.retention,
        first_stage=args.first_stage,
    )
    note = f"{card['left_out']} pairs left out: the stitcher was trained on them.\n\n" if card["left_out"] else ""
    _emit(card, note + table(card), args.json)


def run_translate(args) -> None:
    from repstitch.apply import translate_file
    from repstitch.stitcher import load

    stitcher = load(args.stitcher).to(_device(args.device))
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
    _emit({"out": args.out, "rows": rows, "stitcher": stitcher.version}, said, args.json)


def run_align(args) -> None:
    from itertools import combinations

    import torch

    from repstitch.embeddings import read
    from repstitch.metrics.table import align
    from repstitch.pairs import pair
    from repstitch.stitcher import normalise

    metrics = args.metric.split(",")
    unknown = [m for m in metrics if m not in METRICS]
    if unknown:
        raise InputError(f"`--metric` must be among {', '.join(METRICS)}; got {unknown[0]!r}.")
    if args.permutations < 0:
        raise InputError(f"`--permutations` must not be negative; got {args.permutations}.")
    if len(args.embeddings) < 2:
        raise InputError("Give at least two files of embeddings to align.")
    spaces = [read(path) for path in args.embeddings]
    results, n = [], []
    for a, b in combinations(spaces, 2):
        pairs = pair(a, b, args.drop_invalid)
        X, Y = (normalise(torch.from_numpy(side), "unit").numpy() for side in (pairs.X, pairs.Y))
        n.append(len(pairs))
        for metric in metrics:
            scored = align(X, Y, metric, args.k, args.permutations)
            results.append({"source": a.space.name, "target": b.space.name, "n": len(pairs)} | scored)
    lines = [f"{r['source']} - {r['target']}, n = {r['n']}: {_alignment(r, args.k)}" for r in results]
    _emit({"n": n[0] if len(set(n)) == 1 else n, "k": args.k, "pairs": results}, "\n".join(lines), args.json)


def run_list(args) -> None:
    from repstitch.registry import pair_key

    registry = _registry(args.stitchers)
    state = registry.state
    rows = [
        {
            "name": name,
            "source": s.source.name,
            "target": s.target.name,
            "dims": [s.source.dim, s.target.dim],
            "method": s.method,
            "version": s.version,
            "promoted": state.promoted.get(pair_key(s.source.name, s.target.name)) == name,
            "recall@1": s.scorecard.get("query", {}).get("recall@1"),
        }
        for name, s in state.stitchers.items()
    ]
    lines = [
        f"{r['name']}{' *' if r['promoted'] else ''}: "
        f"{r['source']} ({r['dims'][0]}) -> {r['target']} ({r['dims'][1]}), "
        f"{r['method']}, version {r['version']}"
        + (f", recall@1 {r['recall@1']:.3f}" if r["recall@1"] is not None else "")
        for r in rows
    ]
    for problem in state.problems.values():
        print(problem, file=sys.stderr)
    text = "\n".join(lines) or f"No stitchers in {registry.folder}."
    _emit({"folder": str(registry.folder), "stitchers": rows, "problems": dict(state.problems)}, text, args.json)


def run_promote(args) -> None:
    pair = _registry(args.stitchers).promote(args.name)
    _emit({"pair": pair, "promoted": args.name}, f"{pair} is now served by {args.name}", args.json)


def run_show(args) -> None:
    from repstitch.scorecard import table
    from repstitch.stitcher import load

    path = Path(args.stitcher)
    stitcher = load(path) if path.is_dir() else _registry(args.stitchers).get(args.stitcher)
    if args.plot:
        from repstitch.plots import plot_scorecard, save

        save(plot_scorecard(stitcher.scorecard, f"{stitcher.source.name} → {stitcher.target.name}"), args.plot)
    title = f"{stitcher.source.name} ({stitcher.source.dim}) -> {stitcher.target.name} ({stitcher.target.dim})"
    made = f"{stitcher.method} for {stitcher.objective}, version {stitcher.version}"
    result = {
        "source": stitcher.source.to_dict(),
        "target": stitcher.target.to_dict(),
        "method": stitcher.method,
        "objective": stitcher.objective,
        "settings": stitcher.settings,
        "version": stitcher.version,
        "provenance": stitcher.provenance,
        "scorecard": stitcher.scorecard,
    }
    scores = table(stitcher.scorecard) if stitcher.scorecard else "no scorecard"
    _emit(result, f"{title}\n{made}\n\n{scores}", args.json)


def run_serve(args) -> None:
    from repstitch.server.run import serve

    serve(args.stitchers, args.host, args.port, args.workers, args.engine)


def run_demo(args) -> None:
    from repstitch.demo import demo

    demo(Path(args.out), seed=args.seed)


# --- the parser -------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The whole command line, built without importing anything heavy."""
    top = argparse.ArgumentParser(prog="repstitch", description="Translate embeddings between models, with proof.")
    top.add_argument("--version", action="version", version=f"repstitch {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, what: str, example: str, json_flag: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(
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
        run_embed,
        "turn images or texts into embeddings with an encoder",
        "repstitch embed --encoder timm:resnet50 --data photos/ --out resnet50.parquet",
    )
    c.add_argument("--encoder", required=True, metavar="ID|PATH|CARD.toml", help="a card, Hub id, folder or checkpoint")
    c.add_argument("--data", required=True, metavar="PATH[:COLUMN]", help="a folder or zip of images, .txt, or a table")
    c.add_argument("--out", required=True, metavar="X.parquet")
    c.add_argument("--name", help="what to call the space")
    c.add_argument("--pooling", choices=POOLINGS)
    c.add_argument("--layer", type=int, help="block whose output is taken, from 1; negative from the end")
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
        run_train,
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
    _threshold_arguments(c)

    c = command(
        "score",
        run_score,
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
    _threshold_arguments(c)

    c = command(
        "translate",
        run_translate,
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
        "align",
        run_align,
        "measure how alike spaces are, with the permutation null beside each score",
        "repstitch align a.parquet b.parquet --metric mutual_knn,cka_unbiased",
    )
    c.add_argument("embeddings", nargs="+", metavar="X")
    c.add_argument("--metric", default="mutual_knn,cka_unbiased", help=f"of {', '.join(METRICS)}")
    c.add_argument("--k", type=int, default=10)
    c.add_argument("--permutations", type=int, default=200, help="draws of the null; 0 leaves it out")
    c.add_argument("--drop-invalid", action="store_true", help="leave out rows that cannot be used, and say how many")

    c = command("list", run_list, "list the stitchers of a folder", "repstitch list --stitchers models/stitchers")
    _folder_argument(c)
    c = command("promote", run_promote, "choose the stitcher that serves its pair", "repstitch promote old-new-2")
    c.add_argument("name", metavar="NAME")
    _folder_argument(c)
    c = command("show", run_show, "show a stitcher's scorecard", "repstitch show old-new --plot card.png")
    c.add_argument("stitcher", metavar="STITCHER", help="a folder, or a name in --stitchers")
    c.add_argument("--plot", metavar="FILE", help="also draw it, as .png or .svg")
    _folder_argument(c)

    c = command(
        "serve",
        run_serve,
        "serve translations over HTTP",
        "repstitch serve --stitchers models/stitchers --port 3000",
        json_flag=False,
    )
    _folder_argument(c)
    c.add_argument("--host", default="127.0.0.1")
    c.add_argument("--port", type=int, default=3000)
    c.add_argument("--workers", type=int, help="processes; default: REPSTITCH_WORKERS, else 1")
    c.add_argument("--engine", choices=("uvicorn", "bentoml"), default="uvicorn")

    c = command("demo", run_demo, "run the whole job on small real data", "repstitch demo --out demo", json_flag=False)
    c.add_argument("--out", default="demo", metavar="DIR", help="where the demo keeps what it makes")
    c.add_argument("--seed", type=int, default=0)
    return top


def _pair_arguments(c: argparse.ArgumentParser) -> None:
    c.add_argument("--source", required=True, metavar="X", help=".parquet, .arrow, .npy or .npz:key")
    c.add_argument("--target", required=True, metavar="Y")
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


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        raise InputError(f"`--split` must be three shares like 0.6,0.15,0.25; got {text!r}.") from None


def _json_object(text: str, flag: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"`{flag}` must be a JSON object; got {text!r}.")
    return value


def _alignment(result: dict, k: int) -> str:
    name = f"{result['metric']}@{k}" if result["metric"] == "mutual_knn" else result["metric"]
    if "p" not in result:
        return f"{name} {result['score']:.3f}"
    return (
        f"{name} {result['score']:.3f} (null {result['null']:.3f}, p = {result['p']:.3f}, "
        f"calibrated {result['calibrated']:.3f})"
    )


def _device(name: str) -> str:
    from repstitch.train import pick_device

    return pick_device(name)


def _registry(folder: str | None):
    from repstitch.registry import Registry

    registry = Registry(folder)
    if not registry.folder.is_dir():
        raise InputError(f"There is no folder {registry.folder}; give the stitchers' folder with --stitchers.")
    registry.refresh()
    return registry


def _emit(result: dict, text: str, as_json: bool) -> None:
    print(json.dumps(result, ensure_ascii=False) if as_json else text)


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
        need = f"`{args.command}` needs {error.name}"
        print(f"repstitch {args.command}: {need}; install it with: pip install 'repstitch[{extra}]'", file=sys.stderr)
        return EXIT_INPUT
    except KeyboardInterrupt:
        print(
            f"repstitch {args.command}: stopped; the output is not there yet. Run it again to go on.", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    return 0


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
    "sklearn": "demo",
}

if __name__ == "__main__":
    sys.exit(main())
