"""Run the whole job on small real data."""

from pathlib import Path

from repstitch.cli.arguments import add_command


def register(subparsers) -> None:
    c = add_command(
        subparsers, "demo", run, "run the whole job on small real data", "repstitch demo --out demo", json_flag=False
    )
    c.add_argument("--out", default="demo", metavar="DIR", help="where the demo keeps what it makes")
    c.add_argument("--seed", type=int, default=0)


def run(args) -> None:
    from repstitch.workflows.demo import demo

    demo(Path(args.out), seed=args.seed)
