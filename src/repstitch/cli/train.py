"""Learn a stitcher from paired embeddings."""

from repstitch.arguments import check_seed, check_shares
from repstitch.cli.arguments import LABELS, LABELS_HELP, add_command, add_pair_arguments, add_threshold_arguments
from repstitch.cli.output import emit
from repstitch.errors import InputError
from repstitch.evaluation.thresholds import Thresholds
from repstitch.files import check_embeddings_exist, check_new_folder, check_picture
from repstitch.names import METHODS, NORMALISATIONS, OBJECTIVES


def register(subparsers) -> None:
    c = add_command(
        subparsers,
        "train",
        run,
        "learn a stitcher from paired embeddings and prove it on pairs it never saw",
        "repstitch train --source old.parquet --target new.parquet --out models/stitchers/old-new",
    )
    add_pair_arguments(c)
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
    c.add_argument("--labels", metavar=LABELS, help=LABELS_HELP)
    add_threshold_arguments(c)


def run(args) -> None:
    check_new_folder(args.out)
    shares = _shares(args.split)
    check_seed(args.seed)
    Thresholds(args.retention, args.first_stage)
    check_embeddings_exist(args.source)
    check_embeddings_exist(args.target)
    if args.learning_curve:
        check_picture(args.learning_curve, "learning_curve")
    from repstitch.evaluation.report import table
    from repstitch.workflows.training import train

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
        labels=args.labels,
        retention=args.retention,
        first_stage=args.first_stage,
        **recipe,
    )
    stitcher.save(args.out)
    curve = stitcher.scorecard.get("learning_curve")
    if curve:
        from repstitch.plots.canvas import save
        from repstitch.plots.stitchers import plot_curve

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
    emit(result, f"{title}\n\n{table(stitcher.scorecard)}{told}", args.json)


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        raise InputError(f"`--split` must be three shares like 0.6,0.15,0.25; got {text!r}.") from None
    return check_shares(shares)
