"""Embed many encoders and report whether they converge."""

import argparse

from repstitch.arguments import check_positive
from repstitch.cli.arguments import add_command
from repstitch.cli.output import emit


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "study",
        run,
        "embed many encoders, align them all and report whether they converge",
        "repstitch study prh --data pictures-and-captions --out results --skip-missing",
    )
    command.add_argument(
        "study", metavar="FILE", help="a study's .toml, or the name of one that comes along: prh, local"
    )
    command.add_argument(
        "--out", required=True, metavar="DIR", help="results, a folder an experiment; run again to go on"
    )
    command.add_argument(
        "--data", metavar="DIR", help="what the study's paths are relative to; default: REPSTITCH_DATA"
    )
    command.add_argument("--only", metavar="NAME", help="one experiment of the study")
    command.add_argument("--skip-missing", action="store_true", help="go on without encoders that cannot be loaded")
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")


def run(args: argparse.Namespace) -> None:
    from repstitch.workflows.study_file import read_study

    check_positive(args.batch_size, "`batch_size`")
    read_study(args.study).chosen(args.only)  # what is wrong with it shows before anything heavy is imported
    from repstitch.workflows.study import run
    from repstitch.workflows.study_report import summary

    results = run(
        args.study,
        args.out,
        data=args.data,
        only=args.only,
        skip_missing=args.skip_missing,
        batch_size=args.batch_size,
        device=args.device,
    )
    emit({name: result.to_dict() for name, result in results.items()}, summary(results), args.json)
