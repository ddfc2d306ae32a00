"""Measure the alignment of spaces."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from repstitch.arguments import check_draws, check_seed
from repstitch.cli.arguments import (
    FORMATS_HELP,
    add_command,
    add_device_argument,
    add_id_column_argument,
    check_inputs,
    split_names,
    split_numbers,
)
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
        "measure how similar spaces are, with a permutation test for each score",
        "repstitch align a.parquet b.parquet --metric mutual_knn,cka_unbiased\n"
        "  repstitch align *.parquet --sizes auto --cache graphs --out atlas\n"
        "  repstitch align *.parquet --trend parameters --control family,objective --plot trend.png",
    )
    command.add_argument(
        "embeddings", nargs="+", metavar="X", help=f"embeddings of the same items, two or more files: {FORMATS_HELP}"
    )
    command.add_argument(
        "--metric",
        default="mutual_knn,cka_unbiased",
        metavar="NAME,…",
        help=f"alignment metrics: all, or some of {', '.join(METRICS)} (default: mutual_knn,cka_unbiased)",
    )
    command.add_argument(
        "--k",
        type=int,
        default=10,
        metavar="N",
        help="neighbours of each row, for metrics that use neighbours (default: 10)",
    )
    command.add_argument(
        "--permutations",
        type=int,
        default=200,
        metavar="N",
        help="permutations of the null distribution; 0 computes no p-values (default: 200)",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of permutations and of subsets of rows (default: 0)"
    )
    command.add_argument(
        "--drop-invalid",
        action="store_true",
        help="leave out rows with NaN, Inf or only zeros and report how many (default: stop with an error)",
    )
    add_id_column_argument(command)
    add_device_argument(command)
    command.add_argument("--cache", metavar="DIR", help="folder in which neighbour graphs are stored for later runs")
    command.add_argument("--out", metavar="DIR", help="write atlas.json, pairs.csv and pairs.parquet to a new folder")
    command.add_argument(
        "--plot", metavar="FILE|DIR", help="draw one plot to a file (.png, .svg or .pdf), or all plots to a folder"
    )
    _add_questions(command)


def _add_questions(command: argparse.ArgumentParser) -> None:
    questions = command.add_argument_group("further measurements and tests")
    questions.add_argument(
        "--sizes",
        metavar="auto|N,…",
        help="also score the ten most similar pairs on fewer rows, because scores depend on the number of rows",
    )
    questions.add_argument(
        "--trend",
        metavar="COLUMN",
        help="test whether alignment rises with a numeric column, such as parameters",
    )
    questions.add_argument(
        "--against",
        metavar="NAME,…",
        help="with --trend: measure alignment with these models only (default: with all other models)",
    )
    questions.add_argument(
        "--control",
        metavar="COLUMN,…",
        help="test whether models with the same label in a column, such as family or training_data, are more similar",
    )
    questions.add_argument(
        "--table",
        metavar="FILE",
        help="with --trend or --control: .csv, .tsv or .parquet file with a column `name` and the columns of these "
        "options (default: the cards of the files)",
    )
    questions.add_argument(
        "--asymmetry",
        action="store_true",
        help="measure how well each space of the ten most similar pairs predicts the other (slow)",
    )


def run(args: argparse.Namespace) -> None:
    metrics, sizes = _metrics(args.metric), _sizes(args.sizes)
    check_draws(args.permutations)
    check_seed(args.seed)
    against = None if args.against is None else split_names(args.against, "against")
    control = [] if args.control is None else split_names(args.control, "control")
    if len(args.embeddings) < 2:
        raise InputError("`X` must be at least two files of embeddings; got one.")
    for flag, needs, ok in (
        ("against", "--trend", args.trend),
        ("table", "--trend or --control", args.trend or control),
    ):
        if getattr(args, flag) and not ok:
            raise InputError(f"`{flag}` requires {needs}; add it, or remove `{flag}`.")
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

    matched = match([read(path, id_column=args.id_column) for path in args.embeddings], args.drop_invalid)
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
        text += f"\n\nWritten to {args.out}: atlas.json, pairs.csv, pairs.parquet"
    if args.plot:
        _draw(atlas, args.plot)
    emit(atlas.to_dict, text, args.json)


def _check_plot(plot: str) -> None:
    if Path(plot).suffix:
        check_picture(plot)
    elif Path(plot).is_file() or not Path(plot).parent.is_dir():
        raise InputError(f"`plot` must be a picture or a folder, in an existing folder; got {plot!r}.")


def _draw(atlas: "Atlas", plot: str) -> None:
    """Draw all plots into a folder. If `plot` is a file, draw the plot of the test options, else the heat map."""
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
        raise InputError(f"`metric` must be all, or some of {', '.join(METRICS)}; got {unknown[0]!r}.")
    return metrics


def _sizes(text: str | None) -> list[int] | str | None:
    if text is None or text == "auto":
        return text
    return split_numbers(text, "sizes", "auto or numbers of rows like 64,256,1024")
