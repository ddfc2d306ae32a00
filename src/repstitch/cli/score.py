"""Score a stitcher on pairs that training did not use."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from repstitch.cli.arguments import (
    LABELS,
    LABELS_HELP,
    add_command,
    add_full_argument,
    add_pair_arguments,
    add_threshold_arguments,
    check_inputs,
)
from repstitch.cli.output import emit
from repstitch.errors import InputError
from repstitch.files import check_new_folder
from repstitch.names import USES

if TYPE_CHECKING:
    from repstitch.evaluation.scorecard import Scorecard
    from repstitch.stitchers.stitcher import Stitcher


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "score",
        run,
        "score a stitcher on pairs that training did not use",
        "repstitch score models/stitchers/old-new --source old.parquet --target new.parquet --use corpus",
    )
    command.add_argument("stitcher", metavar="STITCHER", help="folder of the stitcher, or hf://OWNER/NAME")
    add_pair_arguments(command)
    command.add_argument(
        "--use",
        choices=(*USES, "both"),
        default="both",
        help="query: translated queries search the old index; corpus: new queries search the translated index "
        "(default: both)",
    )
    command.add_argument(
        "--qrels",
        metavar="FILE",
        help="relevance judgements, one per line: query, document and grade, separated by tabs; --source and --target "
        "are then the documents",
    )
    command.add_argument("--source-queries", metavar="X", help="with --qrels: embeddings of the queries, source model")
    command.add_argument("--target-queries", metavar="Y", help="with --qrels: embeddings of the queries, target model")
    command.add_argument("--source-query-ids", metavar="FILE", help="one id per row, for source queries without ids")
    command.add_argument("--target-query-ids", metavar="FILE", help="one id per row, for target queries without ids")
    command.add_argument(
        "--out",
        metavar="DIR",
        help="with --qrels: write a copy of the stitcher to this folder, which must not exist. Its thresholds, which "
        "`show --threshold` prints, are those for searches by these queries",
    )
    command.add_argument("--labels", metavar=LABELS, help=LABELS_HELP)
    add_threshold_arguments(command)
    add_full_argument(command)


def run(args: argparse.Namespace) -> None:
    from repstitch.evaluation.relevance_data import RelevanceData
    from repstitch.evaluation.thresholds import Thresholds

    Thresholds(args.retention, args.first_stage, args.old_model)
    relevance = None
    if args.qrels is None:
        for flag in ("source_queries", "target_queries", "source_query_ids", "target_query_ids", "out"):
            if getattr(args, flag) is not None:
                raise InputError(f"`{flag}` requires `qrels`; add it, or remove `{flag}`.")
    else:
        relevance = RelevanceData(
            args.qrels, args.source_queries, args.target_queries, args.source_query_ids, args.target_query_ids
        )
    check_inputs(args)
    if args.out is not None:
        check_new_folder(args.out)
    from repstitch.stitchers.stitcher import load
    from repstitch.workflows.scoring import score

    stitcher = load(args.stitcher)
    card = score(
        stitcher,
        args.source,
        args.target,
        uses=USES if args.use == "both" else (args.use,),
        source_space=args.source_space,
        target_space=args.target_space,
        source_ids=args.source_ids,
        target_ids=args.target_ids,
        id_column=args.id_column,
        drop_invalid=args.drop_invalid,
        relevance=relevance,
        labels=args.labels,
        retention=args.retention,
        first_stage=args.first_stage,
        old_model=args.old_model,
    )
    if args.out is not None:
        _save_copy(stitcher, card, args)
    note = f"{card.left_out} pairs were left out, because training used them.\n\n" if card.left_out else ""
    emit(card.to_dict, f"{note}{card.table() if args.full else card}", args.json)


def _save_copy(stitcher: "Stitcher", card: "Scorecard", args: argparse.Namespace) -> None:
    """Save the stitcher with the score scales of the card, and with the held-out rows beside its folder."""
    from repstitch.stitchers.held_out_rows import read_held_out
    from repstitch.workflows.scoring import with_score_scales

    copy = with_score_scales(stitcher, card)
    is_local = not args.stitcher.startswith("hf://")
    held_out = read_held_out(Path(args.stitcher), stitcher.version, stitcher.target.dim) if is_local else None
    replace(copy, held_out=held_out).save(args.out)
