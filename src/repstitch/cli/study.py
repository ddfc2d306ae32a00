"""Run a study: embed items with many encoders and report whether the encoders converge."""

import argparse

from repstitch.arguments import check_positive
from repstitch.cli.arguments import add_command
from repstitch.cli.output import emit


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "study",
        run,
        "embed items with many encoders, align all pairs and report whether the encoders converge",
        "repstitch study prh --data pictures-and-captions --out results --skip-missing",
    )
    command.add_argument(
        "study", metavar="STUDY", help="a .toml file that describes the study, or a built-in study: prh, local"
    )
    command.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for the results, one subfolder per experiment; run the same command again to continue an "
        "interrupted study",
    )
    command.add_argument(
        "--data",
        metavar="DIR",
        help="folder that the paths of the study are relative to (default: REPSTITCH_DATA, else the current folder)",
    )
    command.add_argument("--only", metavar="NAME", help="run only this experiment of the study")
    command.add_argument(
        "--skip-missing", action="store_true", help="skip encoders that cannot be loaded, and list them (default: stop)"
    )
    command.add_argument("--batch-size", type=int, default=64, metavar="N", help="items per batch (default: 64)")
    command.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1 …; auto uses a CUDA GPU if there is one (default: auto)",
    )


def run(args: argparse.Namespace) -> None:
    from repstitch.workflows.study_file import read_study

    check_positive(args.batch_size, "`batch_size`")
    read_study(args.study).chosen(args.only)  # reports errors in the study before anything heavy is imported
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
