"""Train a stitcher on paired embeddings."""

import argparse
from typing import TYPE_CHECKING, Any

from repstitch.arguments import check_seed, check_shares
from repstitch.cli.arguments import (
    LABELS,
    LABELS_HELP,
    add_command,
    add_device_argument,
    add_full_argument,
    add_pair_arguments,
    add_threshold_arguments,
    check_inputs,
)
from repstitch.cli.output import emit, scorecard_text
from repstitch.errors import InputError
from repstitch.files import check_new_folder, check_picture
from repstitch.names import METHODS, NORMALISATIONS, OBJECTIVES, USES

if TYPE_CHECKING:
    from repstitch.evaluation.scorecard_parts import LearningCurve
    from repstitch.stitchers.stitcher import Stitcher

RECIPE = ("epochs", "width", "batch_size", "learning_rate", "devices", "strategy", "checkpoints")


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "train",
        run,
        "train a stitcher on paired embeddings and score it on held-out pairs",
        "repstitch train --source old.parquet --target new.parquet --out models/stitchers/old-new",
    )
    add_pair_arguments(command)
    command.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write the stitcher to; it must not exist"
    )
    _add_choice_arguments(command)
    command.add_argument(
        "--output-norm",
        choices=NORMALISATIONS,
        help="unit: translations have unit length; none: they have the length that the map computes (default: unit, "
        "but none if the target's card states that its rows are not normalised)",
    )
    command.add_argument(
        "--refit", action="store_true", help="after scoring, fit the chosen map again on all pairs (default: off)"
    )
    command.add_argument(
        "--learning-curve",
        metavar="FILE",
        help="draw scores against the number of training pairs (.png, .svg or .pdf), and report whether twice as many "
        "would help",
    )
    command.add_argument("--labels", metavar=LABELS, help=LABELS_HELP)
    command.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="train on N pairs drawn at random with --seed; of a store, only their rows are read (default: all pairs)",
    )
    add_device_argument(command)
    add_threshold_arguments(command)
    add_full_argument(command)
    _add_split_arguments(command)
    _add_fit_arguments(command)


def _add_choice_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="match",
        help="what the map is optimised for. match: find the same item in the other space; neighbours: keep the "
        "neighbours that a re-embedded query would have; reconstruction: least squared error, best for probes and "
        "steering (default: match)",
    )
    command.add_argument(
        "--use",
        choices=(*USES, "both"),
        help="use that the objective neighbours is judged by. query: translated queries search native rows; corpus: "
        "native queries search translated rows; both: the mean of these (default: both)",
    )
    command.add_argument(
        "--method",
        choices=(*METHODS, "auto"),
        default="auto",
        help="how the map is learned. ridge: penalised least squares; procrustes: rotation and scale; canonical: "
        "whitening and canonical correlations, in seconds; linear: the best of these, refined by gradient descent; "
        "mlp: linear plus a small neural network; auto: try all, and use the simplest one within one standard error of "
        "the best on validation pairs (default: auto)",
    )


def _add_split_arguments(command: argparse.ArgumentParser) -> None:
    split = command.add_argument_group("split into training, validation and test pairs")
    split.add_argument(
        "--split",
        default="0.6,0.15,0.25",
        metavar="SHARES",
        help="shares of training, validation and test pairs (default: 0.6,0.15,0.25)",
    )
    split.add_argument(
        "--folds",
        type=int,
        metavar="N",
        help="divide the pairs into N folds instead, and train on all of them: each is scored by a map that is fitted "
        "without its fold; better with fewer than about 3,000 pairs, with closed forms only (default: no folds)",
    )
    split.add_argument(
        "--own",
        metavar="COLUMN|FILE[=SHARE]",
        help="the pairs from where the stitcher will be used; all others are general pairs that are only trained on. A "
        "column of --source or --target that says true or false, a file with the ids of these pairs, or TABLE:COLUMN; "
        "SHARE is their share of the total weight (default: selected with the settings). Implies --folds 5",
    )
    split.add_argument(
        "--corpus",
        metavar="ADDRESS|FILE",
        help="source rows from where the stitcher will be used, such as the table to move. A sample of them is "
        "compared with the pairs, and nothing is judged if they are unlike. A column own of --source or --target says "
        "which pairs are own, if --own does not",
    )
    split.add_argument(
        "--weight",
        metavar="COLUMN|TABLE:COLUMN|FILE",
        help="weight of each pair: a column of --source or --target, a column of a table, or a file with one number "
        "per row (default: all equal)",
    )
    split.add_argument("--split-seed", type=int, default=0, metavar="N", help="seed of the split (default: 0)")
    split.add_argument(
        "--group",
        metavar="COLUMN|TABLE:COLUMN|FILE",
        help="group of each row, such as the photo of a caption: a column of --source or --target, a column of a table "
        "(matched by id if the table has ids), or a file with one group per row; all pairs of a group are put in the "
        "same part of the split",
    )


def _add_fit_arguments(command: argparse.ArgumentParser) -> None:
    fits = command.add_argument_group("settings of the methods linear and mlp")
    fits.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    fits.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="maximum number of epochs; early stopping may end training sooner (default: 25)",
    )
    fits.add_argument("--width", type=int, metavar="N", help="hidden units of mlp (default: 512)")
    fits.add_argument("--batch-size", type=int, metavar="N", help="pairs per batch (default: 512)")
    fits.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="learning rate, relative to the size of the weights (default: depends on the objective)",
    )
    fits.add_argument("--devices", metavar="N", help="number of devices of the Lightning Trainer (default: 1)")
    fits.add_argument(
        "--strategy", metavar="NAME", help="strategy of the Lightning Trainer, such as ddp (default: auto)"
    )
    fits.add_argument(
        "--checkpoints", metavar="DIR", help="folder for checkpoints; an interrupted run continues from them"
    )


def run(args: argparse.Namespace) -> None:
    from repstitch.evaluation.thresholds import Thresholds
    from repstitch.fit.recipe import recipe_for

    check_new_folder(args.out)
    own, own_share = _own(args.own)
    shares, recipe = _shares(args.split), _recipe(args)
    check_seed(args.seed)
    recipe_for("mlp", **recipe)
    Thresholds(args.retention, args.first_stage, args.old_model)
    check_inputs(args)
    if args.learning_curve:
        check_picture(args.learning_curve, "learning_curve")
    from repstitch.workflows.training import train

    stitcher = train(
        args.source,
        args.target,
        method=args.method,
        objective=args.objective,
        use=args.use,
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
        id_column=args.id_column,
        output_norm=args.output_norm,
        device=args.device,
        learning_curve=args.learning_curve is not None,
        labels=args.labels,
        retention=args.retention,
        first_stage=args.first_stage,
        old_model=args.old_model,
        sample=args.sample,
        weight=args.weight,
        folds=args.folds,
        own=own,
        own_share=own_share,
        corpus=args.corpus,
        **recipe,
    )
    stitcher.save(args.out)
    _show(args, stitcher)


def _show(args: argparse.Namespace, stitcher: "Stitcher") -> None:
    result = {
        "out": args.out,
        "version": stitcher.version,
        "source": stitcher.source.name,
        "target": stitcher.target.name,
        "method": stitcher.method,
        "objective": stitcher.objective,
        "scorecard": stitcher.scorecard.to_dict(),
    }
    made = f"method {stitcher.method}, objective {stitcher.objective}"
    title = f"{stitcher.source.name} -> {stitcher.target.name}, {made}, saved in {args.out}"
    text = f"{title}\n\n{scorecard_text(stitcher.scorecard, ['repstitch', 'show', args.out], args.full)}"
    curve = stitcher.scorecard.learning_curve
    if curve is not None:
        _draw_curve(curve, args.learning_curve)
        text += f"\n\nLearning curve ({args.learning_curve}): {curve.verdict}"
    emit(result, text, args.json)


def _own(text: str | None) -> tuple[str | None, float | None]:
    """Split `COLUMN|FILE=SHARE` into the column or file and the share, which is None if there is none."""
    if text is None:
        return None, None
    own, _, share = text.rpartition("=")
    try:
        return (own, float(share)) if own else (text, None)
    except ValueError:
        return text, None


def _draw_curve(curve: "LearningCurve", path: str) -> None:
    from repstitch.plots.canvas import save
    from repstitch.plots.stitchers import plot_curve

    save(plot_curve(curve), path)


def _recipe(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of linear and mlp that the command line sets."""
    recipe = {name: getattr(args, name) for name in RECIPE if getattr(args, name) is not None}
    if recipe.get("devices", "").isdecimal():
        recipe["devices"] = int(recipe["devices"])
    return recipe


def _shares(text: str) -> tuple[float, float, float]:
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        raise InputError(f"`split` must be three shares such as 0.6,0.15,0.25; got {text!r}.") from None
    return check_shares(shares)
