"""Transfer directions, probes and dictionaries to another space."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from repstitch.arguments import check_seed
from repstitch.cli.arguments import LABELS, add_command, add_pair_arguments, check_inputs
from repstitch.cli.output import emit
from repstitch.errors import InputError
from repstitch.files import check_carried_file, check_picture
from repstitch.lines import read_lines
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
        "transfer directions, linear probes, sparse dictionaries or class names to another space and evaluate them",
        "repstitch transfer probe.safetensors --backward models/stitchers/new-old --out transferred.safetensors\n"
        "  repstitch transfer --backward models/stitchers/new-old --source old.parquet --target new.parquet \\\n"
        "      --labels labels.parquet:kind --plot transfer.png\n"
        "  repstitch transfer sae.safetensors --subtract-b-dec --out transferred.safetensors \\\n"
        "      --forward models/stitchers/old-new --backward models/stitchers/new-old",
    )
    command.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="file with the directions, probe or dictionary to transfer (.safetensors, .npz, .npy, .pt, .pth or "
        ".skops); FILE:NAME selects one layer or array",
    )
    command.add_argument(
        "--forward",
        metavar="STITCHER",
        help="stitcher from source to target; needed for directions, dictionaries and --prompts",
    )
    command.add_argument(
        "--backward", metavar="STITCHER", help="stitcher from target to source; needed for probes and dictionaries"
    )
    command.add_argument(
        "--out",
        metavar="FILE",
        help="new file for the result: .safetensors or .npz, for directions also .npy (default: none)",
    )
    command.add_argument(
        "--renormalise",
        action="store_true",
        help="scale each transferred direction to its original length (default: keep the length that the map gives it)",
    )
    command.add_argument(
        "--jacobian",
        action="store_true",
        help="use the mean Jacobian of each stitcher, which includes normalisation, at rows of --source (forward) or "
        "--target (backward); default for MLPs, while linear stitchers use their exact map without normalisation",
    )
    _add_file_arguments(command.add_argument_group("details of FILE"))
    _add_example_arguments(command.add_argument_group("instead of FILE"))
    _add_row_arguments(command.add_argument_group("rows and evaluation"))


def _add_file_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options that state facts about FILE that it does not contain."""
    group.add_argument(
        "--directions",
        action="store_true",
        help="read the arrays as directions, whatever their names (default: their names determine the kind)",
    )
    group.add_argument(
        "--classes",
        metavar="FILE",
        help="text file with the class names of a probe, one per line, in the order of its scores; two names for a "
        "probe with one score, of which the second is predicted if the score is above 0 (default: those in FILE)",
    )
    group.add_argument(
        "--subtract-b-dec",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the dictionary subtracts b_dec from its input before encoding (default: as stated in FILE or in "
        "cfg.json next to it)",
    )


def _add_example_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options that make a concept from examples, or a probe from class names."""
    group.add_argument(
        "--concept", metavar="X", help="the concept to transfer: embeddings in the source space that show it"
    )
    group.add_argument(
        "--against", metavar="X", help="embeddings in the source space that do not show it; required with --concept"
    )
    group.add_argument(
        "--by",
        choices=CONCEPTS,
        help="how to derive the concept: `means`, the difference of the two means, gives a direction; `classifier`, a "
        "logistic classifier between the two sets, gives a probe (default: means)",
    )
    group.add_argument(
        "--prompts",
        metavar="X",
        help="embeddings of class prompts in the source space, at least one per class, to make a zero-shot probe from",
    )
    group.add_argument(
        "--names",
        metavar="FILE",
        help="the class name of each prompt, one per line; prompts of the same name are averaged (default: the ids of "
        "--prompts)",
    )


def _add_row_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options for the rows of both spaces and for the evaluation."""
    add_pair_arguments(group, needed=False)
    group.add_argument(
        "--labels",
        metavar=LABELS,
        help="classes of the target's rows, to evaluate a probe or --prompts; without FILE, --concept or --prompts, a "
        "probe of these classes is trained on the source's rows and transferred",
    )
    group.add_argument(
        "--group",
        metavar="COLUMN|TABLE:COLUMN|FILE",
        help="groups of rows: a column of --source or --target, a column of a table (matched by id if the table has "
        "ids), or a file with one group per row; rows of one group stay in the same part of the split, as in "
        "`repstitch train`",
    )
    group.add_argument(
        "--plot", metavar="FILE", help="draw the evaluation of a probe or of --prompts as .png, .svg or .pdf"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the random draws in the evaluation (default: 0)")


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
        id_column=args.id_column,
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
        id_column=args.id_column,
    )
    carried, description, proof = _carry(args, context, transferable)
    if not args.out and proof is None:
        raise InputError("Pass `out`, the file to write: without it there is no result, because nothing is evaluated.")
    notes = {"through": description} | {
        way: stitcher.version for way, stitcher in (("forward", forward), ("backward", backward)) if stitcher
    }
    if args.plot:  # before `--out`: that file is never overwritten, so an interrupted run can be repeated
        from repstitch.plots.canvas import save
        from repstitch.plots.transfer import plot_transfer

        save(plot_transfer(proof), args.plot)
    if args.out:
        files.write(args.out, carried, layout, notes)
    title = f"{describe(carried)}: {context.source.name} -> {context.target.name}"
    title += f", written to {args.out}" if args.out else ""
    emit(
        {"out": args.out, "carried": describe(carried), **notes, "proof": proof and proof.to_dict()},
        "\n".join([title, *description.split("; ")]) + (f"\n\n{proof}" if proof else ""),
        args.json,
    )


def _carry(
    args: argparse.Namespace, context: TransferContext, transferable: Transferable | None
) -> tuple[Transferable, str, AnyProof | None]:
    """Return the result in the target space, a description of the maps that were used, and its proof."""
    from repstitch.transfer import run as whole

    if args.prompts:
        probe, proof = whole.probe_from_names(context, args.prompts, args.names, seed=args.seed)
        return probe, f"{whole.FROM_NAMES}; {whole.describe_rows(context, 'forward')}", proof
    if args.concept:
        transferable = whole.concept_from_examples(context, args.concept, args.against, args.by)
    transferable, proof = whole.evaluate(context, transferable, seed=args.seed)
    return *whole.transfer(transferable, context, args.renormalise), proof


def _check_arguments(args: argparse.Namespace) -> None:
    """Check that the arguments can be combined, before anything is loaded."""
    check_seed(args.seed)
    sources = [name for name in ("file", "concept", "prompts") if getattr(args, name)]
    if len(sources) > 1:
        raise InputError("Pass only one of FILE, --concept (with --against) and --prompts.")
    if not sources and not args.labels:
        raise InputError(
            "Nothing to transfer: pass FILE, --concept with --against, --prompts, or --labels to train a probe."
        )
    for flag, needs, is_useful in (
        ("against", "--concept", args.concept),
        ("by", "--concept", args.concept),
        ("names", "--prompts", args.prompts),
        ("classes", "the FILE of a probe", args.file),
        ("subtract_b_dec", "the FILE of a dictionary", args.file),
        ("directions", "FILE", args.file),
        ("renormalise", "FILE or --concept", args.file or args.concept),
        ("plot", "--labels", args.labels),
        ("labels", "--target", args.target),
        ("group", "--labels, or the FILE of a dictionary with rows", args.labels or args.file),
        ("jacobian", "--source or --target", args.source or args.target),
        ("source_space", "--source", args.source),
        ("source_ids", "--source", args.source),
        ("target_space", "--target", args.target),
        ("target_ids", "--target", args.target),
        ("id_column", "--source or --target", args.source or args.target),
        ("drop_invalid", "--source or --target", args.source or args.target),
    ):
        if getattr(args, flag) not in (None, False) and not is_useful:
            raise InputError(f"`{flag}` requires {needs}; pass that too, or leave the option out.")
    for flag in ("backward", "source", "jacobian") if args.prompts else ():
        if getattr(args, flag):
            raise InputError(f"`{flag}` cannot be combined with --prompts; leave it out.")
    if args.concept and not args.against:
        raise InputError("`concept` needs `against`: embeddings of examples that do not show the concept.")
    if args.out:
        check_carried_file(args.out, _are_directions(args))
    if args.plot:
        check_picture(args.plot)
    check_inputs(args)


def _are_directions(args: argparse.Namespace) -> bool | None:
    """Return whether directions are transferred; None if only reading FILE can tell."""
    if args.file:
        return True if args.directions else None
    return bool(args.concept) and args.by != "classifier"
