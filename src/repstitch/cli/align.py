"""Measure how alike spaces are."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from repstitch.arguments import check_draws, check_seed
from repstitch.cli.arguments import add_command, check_inputs, split_names, split_numbers
from repstitch.cli.output import emit
from repstitch.errors import InputError
from repstitch.files import check_new_folder, check_picture
from repstitch.names import METRICS

if TYPE_CHECKING:
    from repstitch.alignment.result import Atlas


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "align",
        run,
        "measure how alike spaces are, with the permutation null beside each score",
        "repstitch align a.parquet b.parquet --metric mutual_knn,cka_unbiased\n"
        "  repstitch align *.parquet --sizes auto --cache graphs --out atlas\n"
        "  repstitch align *.parquet --trend parameters --control family,objective --plot trend.png",
    )
    command.add_argument("embeddings", nargs="+", metavar="X", help="two or more: .parquet, .arrow, .npy or .npz:key")
    command.add_argument("--metric", default="mutual_knn,cka_unbiased", help=f"all, or of {', '.join(METRICS)}")
    command.add_argument("--k", type=int, default=10, help="neighbours of each row, for the metrics of neighbours")
    command.add_argument("--permutations", type=int, default=200, help="draws of the null; 0 leaves it out")
    command.add_argument("--seed", type=int, default=0, help="seed of the null and of the subsets of rows")
    command.add_argument(
        "--drop-invalid", action="store_true", help="leave out rows that cannot be used, and say how many"
    )
    command.add_argument(
        "--sizes", metavar="auto|N,…", help="how the ten best pairs' scores depend on the number of rows"
    )
    command.add_argument("--trend", metavar="COLUMN", help="does alignment rise with this number of each model's card?")
    command.add_argument("--against", metavar="NAME,…", help="with --trend: alignment with these models, not with all")
    command.add_argument(
        "--control", metavar="COLUMN,…", help="do models of one family, objective or training_data agree more?"
    )
    command.add_argument(
        "--table", metavar="FILE", help=".csv, .tsv or .parquet with a column name, for --trend and --control"
    )
    command.add_argument(
        "--asymmetry", action="store_true", help="of the ten best pairs, which side predicts the other (slow)"
    )
    command.add_argument("--out", metavar="DIR", help="write atlas.json, pairs.csv and pairs.parquet to a new folder")
    command.add_argument("--plot", metavar="FILE|DIR", help="a folder for all pictures, or .png, .svg or .pdf for one")
    command.add_argument("--cache", metavar="DIR", help="keep neighbour graphs here for the next run")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(args: argparse.Namespace) -> None:
    metrics, sizes = _metrics(args.metric), _sizes(args.sizes)
    check_draws(args.permutations)
    check_seed(args.seed)
    against = None if args.against is None else split_names(args.against, "against")
    control = [] if args.control is None else split_names(args.control, "control")
    if len(args.embeddings) < 2:
        raise InputError("Give at least two files of embeddings to align.")
    for flag, needs, ok in (
        ("against", "--trend", args.trend),
        ("table", "--trend or --control", args.trend or control),
    ):
        if getattr(args, flag) and not ok:
            raise InputError(f"`{flag}` is of use with {needs} only; give that too.")
    if args.out:
        check_new_folder(args.out, "an atlas")
    if args.plot:
        _check_plot(args.plot)
    check_inputs(args)
    from repstitch.alignment import files, hypotheses
    from repstitch.alignment.lineage import read_models
    from repstitch.alignment.measuring import atlas as measure_atlas
    from repstitch.embeddings.matching import match
    from repstitch.embeddings.reading import read

    matched = match([read(path) for path in args.embeddings], args.drop_invalid)
    table = read_models(args.table) if args.table else None
    tests = hypotheses.HypothesisTests(args.trend, against, control, args.asymmetry, table, args.seed)
    hypotheses.check(matched.spaces, tests)
    atlas = measure_atlas(
        matched, metrics, args.k, args.permutations, args.seed, sizes=sizes, cache=args.cache, device=args.device
    )
    atlas = hypotheses.run_tests(atlas, tests, matched)
    text = str(atlas)
    if args.out:
        files.write(atlas, args.out)
        text += f"\n\natlas.json, pairs.csv and pairs.parquet in {args.out}"
    if args.plot:
        _draw(atlas, args.plot)
    emit(atlas.to_dict, text, args.json)


def _check_plot(plot: str) -> None:
    if Path(plot).suffix:
        check_picture(plot)
    elif Path(plot).is_file() or not Path(plot).parent.is_dir():
        raise InputError(f"`plot` must be a picture's name or a folder, in a folder that exists; got {plot!r}.")


def _draw(atlas: "Atlas", plot: str) -> None:
    """Draw all pictures to a folder; to a file, the one of what the flags ask for, otherwise the matrix of scores."""
    from repstitch.plots.alignment import draw_atlas, plot_atlas
    from repstitch.plots.canvas import save

    if not Path(plot).suffix:
        Path(plot).mkdir(exist_ok=True)
        draw_atlas(atlas, plot)
        return
    pictures = plot_atlas(atlas)
    kinds = ("trend", "sizes", "asymmetry", "layers")
    requested = [name for kind in kinds for name in pictures if name.startswith(kind)]
    save(pictures[(requested or list(pictures))[0]], plot)


def _metrics(text: str) -> list[str] | str:
    if text == "all":
        return text
    metrics = split_names(text, "metric")
    unknown = [m for m in metrics if m not in METRICS]
    if unknown:
        raise InputError(f"`metric` must be all or among {', '.join(METRICS)}; got {unknown[0]!r}.")
    return metrics


def _sizes(text: str | None) -> list[int] | str | None:
    if text is None or text == "auto":
        return text
    return split_numbers(text, "sizes", "auto or numbers of rows like 64,256,1024")
