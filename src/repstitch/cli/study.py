"""Embed many encoders and report whether they converge."""

from repstitch.cli.arguments import add_command
from repstitch.cli.output import emit


def register(subparsers) -> None:
    c = add_command(
        subparsers,
        "study",
        run,
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


def run(args) -> None:
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
    emit(results, summary(results), args.json)
