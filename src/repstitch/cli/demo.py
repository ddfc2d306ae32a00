"""Run every step on small real data."""

import argparse

from repstitch.arguments import check_seed
from repstitch.cli.arguments import add_command
from repstitch.files import check_demo_folder


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers, "demo", run, "run every step on small real data", "repstitch demo --out demo", json_flag=False
    )
    command.add_argument("--out", default="demo", metavar="DIR", help="folder to write to (default: demo)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")


def run(args: argparse.Namespace) -> None:
    check_seed(args.seed)
    out = check_demo_folder(args.out)
    from repstitch.workflows.demo import demo

    demo(out, seed=args.seed)
