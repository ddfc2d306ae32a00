"""Carry probes, directions and dictionaries to another space."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from repstitch.arguments import check_seed
from repstitch.cli.arguments import LABELS, add_command, add_pair_arguments, check_inputs, read_lines
from repstitch.cli.output import emit
from repstitch.errors import InputError
from repstitch.files import check_carried_file, check_picture
from repstitch.names import CONCEPTS

if TYPE_CHECKING:
    from repstitch.transfer.context import TransferContext
    from repstitch.transfer.kinds import Transferable
    from repstitch.transfer.proof import AnyProof


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "transfer",
        run,
        "carry directions, probes, dictionaries or class names to the other space, and prove that they work there",
        "repstitch transfer probe.safetensors --backward models/stitchers/new-old --out carried.safetensors\n"
        "  repstitch transfer --backward models/stitchers/new-old --source old.parquet --target new.parquet \\\n"
        "      --labels labels.parquet:kind --plot transfer.png\n"
        "  repstitch transfer sae.safetensors --subtract-b-dec --out carried.safetensors \\\n"
        "      --forward models/stitchers/old-new --backward models/stitchers/new-old",
    )
    command.add_argument(
        "file", nargs="?", metavar="FILE", help="what is carried: .safetensors, .npz, .npy, .pt, .pth or .skops"
    )
    command.add_argument(
        "--forward", metavar="STITCHER", help="source to target: for directions, dictionaries, prompts"
    )
    command.add_argument("--backward", metavar="STITCHER", help="target to source: for probes, dictionaries")
    command.add_argument(
        "--out", metavar="FILE", help=".safetensors or .npz, for directions also .npy; must not exist yet"
    )
    command.add_argument("--renormalise", action="store_true", help="give each direction the length back that it had")
    command.add_argument(
        "--jacobian", action="store_true", help="act by the mean Jacobian at the rows given, as MLPs always do"
    )
    group = command.add_argument_group("what a FILE does not say")
    group.add_argument("--directions", action="store_true", help="its arrays are directions, whatever their names")
    group.add_argument("--classes", metavar="FILE", help="what a probe's scores speak for, one a line")
    group.add_argument(
        "--subtract-b-dec",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether a dictionary subtracts b_dec before it encodes",
    )
    group = command.add_argument_group("in place of a FILE")
    group.add_argument("--concept", metavar="X", help="carry the concept that these embeddings of the source show …")
    group.add_argument("--against", metavar="X", help="… and these do not")
    group.add_argument(
        "--by", choices=CONCEPTS, help="as the difference of means, a direction (default), or as a probe"
    )
    group.add_argument(
        "--prompts", metavar="X", help="classify by names: embeddings of one prompt a class, called by id"
    )
    group.add_argument("--names", metavar="FILE", help="with --prompts: one class name a prompt, which may repeat")
    group = command.add_argument_group("rows, and proof")
    add_pair_arguments(group, needed=False)
    group.add_argument("--labels", metavar=LABELS, help="classes of the target's rows, to prove a probe or names on")
    group.add_argument(
        "--group", metavar="COLUMN|FILE", help="rows of one group stay on one side of the split, as in train"
    )
    group.add_argument("--plot", metavar="FILE", help="draw the proof, as .png, .svg or .pdf")
    group.add_argument("--seed", type=int, default=0, help="seed of the resampled rows and of the controls")


def run(args: argparse.Namespace) -> None:
    _check_arguments(args)
    from repstitch.stitchers.stitcher import load
    from repstitch.transfer import files
    from repstitch.transfer.context import build_context, check_stitchers, read_rows
    from repstitch.transfer.kinds import Dictionary, Directions, describe

    transferable, layout = None, files.Layout()
    if args.file:
        classes = None if args.classes is None else read_lines(args.classes, "classes")
        transferable, layout = files.read(
            args.file, subtract_b_dec=args.subtract_b_dec, classes=classes, directions=args.directions
        )
    if args.out and args.file:
        check_carried_file(args.out, isinstance(transferable, Directions))
    forward, backward = (None if path is None else load(path) for path in (args.forward, args.backward))
    check_stitchers(forward, backward)
    source, target = read_rows(
        args.source,
        args.target,
        source_space=args.source_space,
        target_space=args.target_space,
        source_ids=args.source_ids,
        target_ids=args.target_ids,
        group=args.group,
    )
    context = build_context(
        forward,
        backward,
        source,
        target,
        args.labels,
        paired=isinstance(transferable, Dictionary),
        drop_invalid=args.drop_invalid,
        tangent=args.jacobian,
    )
    carried, description, proof = _carry(args, context, transferable)
    if not args.out and proof is None:
        raise InputError("Give `out`, the file to write; there is nothing to prove this on.")
    notes = {"through": description} | {
        way: stitcher.version for way, stitcher in (("forward", forward), ("backward", backward)) if stitcher
    }
    if args.plot:  # before `--out`, which is never overwritten, so that an interrupted run can be repeated
        from repstitch.plots.canvas import save
        from repstitch.plots.transfer import plot_transfer

        save(plot_transfer(proof), args.plot)
    if args.out:
        files.write(args.out, carried, layout, notes)
    title = f"{describe(carried)}: {context.source.name} -> {context.target.name}"
    title += f", in {args.out}" if args.out else ""
    emit(
        {"out": args.out, "carried": describe(carried), **notes, "proof": proof and proof.to_dict()},
        "\n".join([title, *description.split("; ")]) + (f"\n\n{proof}" if proof else ""),
        args.json,
    )


def _carry(
    args: argparse.Namespace, context: TransferContext, transferable: Transferable | None
) -> tuple[Transferable, str, AnyProof | None]:
    """The result in the target space, what it was carried through in words, and its proof."""
    from repstitch.transfer import run as whole

    if args.prompts:
        probe, proof = whole.probe_from_names(context, args.prompts, args.names, seed=args.seed)
        return probe, f"{whole.FROM_NAMES}; {whole.describe_rows(context, 'forward')}", proof
    if args.concept:
        transferable = whole.concept_from_examples(context, args.concept, args.against, args.by)
    transferable, proof = whole.evaluate(context, transferable, seed=args.seed)
    return *whole.transfer(transferable, context, args.renormalise), proof


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments that do not go together before anything is loaded."""
    check_seed(args.seed)
    sources = [name for name in ("file", "concept", "prompts") if getattr(args, name)]
    if len(sources) > 1:
        raise InputError("Give one thing to carry: a FILE, or --concept with --against, or --prompts.")
    if not sources and not args.labels:
        raise InputError(
            "Give what is carried: a FILE, --concept with --against, --prompts, or --labels to train a probe by."
        )
    for flag, needs, is_useful in (
        ("against", "--concept", args.concept),
        ("by", "--concept", args.concept),
        ("names", "--prompts", args.prompts),
        ("classes", "a probe's FILE", args.file),
        ("subtract_b_dec", "a dictionary's FILE", args.file),
        ("directions", "a FILE", args.file),
        ("renormalise", "a FILE or --concept", args.file or args.concept),
        ("plot", "--labels", args.labels),
        ("labels", "--target", args.target),
        ("group", "--labels, or a dictionary's FILE and rows", args.labels or args.file),
        ("jacobian", "--source or --target", args.source or args.target),
        ("source_space", "--source", args.source),
        ("source_ids", "--source", args.source),
        ("target_space", "--target", args.target),
        ("target_ids", "--target", args.target),
        ("drop_invalid", "--source or --target", args.source or args.target),
    ):
        if getattr(args, flag) not in (None, False) and not is_useful:
            raise InputError(f"`{flag}` is of use with {needs} only; give that too, or leave it out.")
    for flag in ("backward", "source", "jacobian") if args.prompts else ():
        if getattr(args, flag):
            raise InputError(f"`{flag}` has no part in what --prompts does; leave it out.")
    if args.concept and not args.against:
        raise InputError("`concept` needs `against`: embeddings of examples that do not show the concept.")
    if args.out:
        check_carried_file(args.out, _are_directions(args))
    if args.plot:
        check_picture(args.plot)
    check_inputs(args)


def _are_directions(args: argparse.Namespace) -> bool | None:
    """Whether directions are carried; None where the FILE has to be read to know."""
    if args.file:
        return True if args.directions else None
    return bool(args.concept) and args.by != "classifier"
