"""Learn a stitcher from paired embeddings."""

import argparse
from typing import TYPE_CHECKING, Any

from repstitch.arguments import check_seed, check_shares
from repstitch.cli.arguments import (
    LABELS,
    LABELS_HELP,
    add_command,
    add_pair_arguments,
    add_threshold_arguments,
    check_inputs,
)
from repstitch.cli.output import emit
from repstitch.errors import InputError
from repstitch.files import check_new_folder, check_picture
from repstitch.names import METHODS, NORMALISATIONS, OBJECTIVES

if TYPE_CHECKING:
    from repstitch.evaluation.scorecard_parts import LearningCurve

RECIPE = ("epochs", "width", "batch_size", "learning_rate", "devices", "strategy", "checkpoints")


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "train",
        run,
        "learn a stitcher from paired embeddings and prove it on pairs it never saw",
        "repstitch train --source old.parquet --target new.parquet --out models/stitchers/old-new",
    )
    add_pair_arguments(command)
    command.add_argument("--out", required=True, metavar="DIR", help="the stitcher's folder; must not exist yet")
    command.add_argument("--method", choices=(*METHODS, "auto"), default="auto")
    command.add_argument("--objective", choices=OBJECTIVES, default="match", help="what the map is chosen for")
    command.add_argument("--split", default="0.6,0.15,0.25", help="shares of train, validation and test")
    command.add_argument("--split-seed", type=int, default=0)
    command.add_argument("--seed", type=int, default=0, help="seed of the contrastive fits")
    command.add_argument("--group", metavar="COLUMN|FILE", help="pairs of one group stay on one side of the split")
    command.add_argument(
        "--refit", action="store_true", help="fit the chosen map once more on all pairs, after scoring"
    )
    command.add_argument(
        "--output-norm", choices=NORMALISATIONS, help="unit rows out, or lengths as the map gives them"
    )
    command.add_argument(
        "--learning-curve", metavar="FILE.png", help="draw score against number of training pairs (or .svg)"
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--epochs", type=int, help="of the contrastive fits")
    command.add_argument("--width", type=int, help="hidden width of the mlp")
    command.add_argument("--batch-size", type=int)
    command.add_argument("--learning-rate", type=float)
    command.add_argument("--devices", help="passed to the Lightning Trainer")
    command.add_argument("--strategy", help="passed to the Lightning Trainer, e.g. ddp")
    command.add_argument(
        "--checkpoints", metavar="DIR", help="keep checkpoints here, and go on from them when run again"
    )
    command.add_argument("--labels", metavar=LABELS, help=LABELS_HELP)
    add_threshold_arguments(command)


def run(args: argparse.Namespace) -> None:
    from repstitch.evaluation.thresholds import Thresholds
    from repstitch.fit.recipe import recipe_for

    check_new_folder(args.out)
    shares, recipe = _shares(args.split), _recipe(args)
    check_seed(args.seed)
    recipe_for("mlp", **recipe)
    Thresholds(args.retention, args.first_stage)
    check_inputs(args)
    if args.learning_curve:
        check_picture(args.learning_curve, "learning_curve")
    from repstitch.workflows.training import train

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
        labels=args.labels,
        retention=args.retention,
        first_stage=args.first_stage,
        **recipe,
    )
    stitcher.save(args.out)
    result = {
        "out": args.out,
        "version": stitcher.version,
        "source": stitcher.source.name,
        "target": stitcher.target.name,
        "method": stitcher.method,
        "objective": stitcher.objective,
        "scorecard": stitcher.scorecard.to_dict(),
    }
    title = f"{stitcher.source.name} -> {stitcher.target.name}, {stitcher.method}, in {args.out}"
    text = f"{title}\n\n{stitcher.scorecard}"
    curve = stitcher.scorecard.learning_curve
    if curve is not None:
        _draw_curve(curve, args.learning_curve)
        text += f"\n\nlearning curve, in {args.learning_curve}: {curve.verdict}"
    emit(result, text, args.json)


def _draw_curve(curve: "LearningCurve", path: str) -> None:
    from repstitch.plots.canvas import save
    from repstitch.plots.stitchers import plot_curve

    save(plot_curve(curve), path)


def _recipe(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the contrastive fits that were written on the command line."""
    recipe = {name: getattr(args, name) for name in RECIPE if getattr(args, name) is not None}
    if recipe.get("devices", "").isdecimal():
        recipe["devices"] = int(recipe["devices"])
    return recipe


def _shares(text: str) -> tuple[float, float, float]:
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        raise InputError(f"`split` must be three shares like 0.6,0.15,0.25; got {text!r}.") from None
    return check_shares(shares)
