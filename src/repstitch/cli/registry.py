"""The commands list, promote and show: the stitchers of a folder."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repstitch.cli.arguments import add_command, add_folder_argument, add_full_argument
from repstitch.cli.output import emit, scorecard_text
from repstitch.errors import InputError
from repstitch.files import check_picture, stitchers_folder
from repstitch.text import num

if TYPE_CHECKING:
    from repstitch.stitchers.registry import Registry
    from repstitch.stitchers.stitcher import Stitcher


def register(subparsers: argparse._SubParsersAction) -> None:
    command = add_command(
        subparsers,
        "list",
        run_list,
        "list the stitchers of a folder; * marks promoted ones, and candidates do not serve their pair",
        "repstitch list --stitchers models/stitchers",
    )
    add_folder_argument(command)
    command = add_command(
        subparsers,
        "promote",
        run_promote,
        "choose the stitcher that the service uses for its pair of spaces",
        "repstitch promote old-new-2",
    )
    command.add_argument("name", metavar="NAME", help="name of the stitcher: its folder in --stitchers")
    add_folder_argument(command)
    command = add_command(
        subparsers, "show", run_show, "show the scorecard of a stitcher", "repstitch show old-new --plot card.png"
    )
    command.add_argument("stitcher", metavar="STITCHER", help="folder of the stitcher, or its name in --stitchers")
    command.add_argument("--plot", metavar="FILE", help="also draw the scorecard, as .png, .svg or .pdf")
    command.add_argument(
        "--threshold",
        type=float,
        metavar="SIMILARITY",
        help="show which similarities in the new space let as many results through as this one did in the old space; "
        "for short questions after `score` with queries",
    )
    add_full_argument(command)
    add_folder_argument(command)


def run_list(args: argparse.Namespace) -> None:
    registry = _registry(args.stitchers)
    from repstitch.stitchers.routing import pair_key

    state = registry.state
    rows = [
        {
            "name": name,
            "source": stitcher.source.name,
            "target": stitcher.target.name,
            "dims": [stitcher.source.dim, stitcher.target.dim],
            "method": stitcher.method,
            "version": stitcher.version,
            "promoted": state.promoted.get(pair_key(stitcher.source.name, stitcher.target.name)) == name,
            "recall@1": stitcher.scorecard.query_recall,
            "serves": state.serves(name),
            "created": stitcher.created,
        }
        for name, stitcher in state.stitchers.items()
    ]
    lines = [
        f"{row['name']}{' *' if row['promoted'] else ''}: "
        f"{row['source']} ({row['dims'][0]}) -> {row['target']} ({row['dims'][1]}), "
        f"{row['method']}, version {row['version']}"
        + (f", recall@1 {num(row['recall@1'])}" if row["recall@1"] is not None else "")
        + ("" if row["serves"] else f", candidate: {state.serving[pair_key(row['source'], row['target'])]} serves")
        for row in rows
    ]
    for problem in state.problems.values():
        print(problem, file=sys.stderr)
    text = "\n".join(lines) or f"No stitchers in {registry.folder}."
    emit({"folder": str(registry.folder), "stitchers": rows, "problems": dict(state.problems)}, text, args.json)


def run_promote(args: argparse.Namespace) -> None:
    pair = _registry(args.stitchers).promote(args.name)
    emit({"pair": pair, "promoted": args.name}, f"{pair} is now served by {args.name}", args.json)


def run_show(args: argparse.Namespace) -> None:
    if args.plot:
        check_picture(args.plot)
    folder = Path(args.stitcher)
    if folder.is_dir():
        from repstitch.stitchers.stitcher import load

        stitcher = load(folder)
    else:
        stitcher = _registry(args.stitchers).get(args.stitcher)
    if args.plot:
        from repstitch.plots.canvas import save
        from repstitch.plots.stitchers import plot_scorecard

        save(plot_scorecard(stitcher.scorecard, f"{stitcher.source.name} → {stitcher.target.name}"), args.plot)
    if args.threshold is not None:
        _show_threshold(args, stitcher)
        return
    title = f"{stitcher.source.name} ({stitcher.source.dim}) -> {stitcher.target.name} ({stitcher.target.dim})"
    made = f"method {stitcher.method}, objective {stitcher.objective}, version {stitcher.version}"
    result = {
        "source": stitcher.source.to_dict(),
        "target": stitcher.target.to_dict(),
        "method": stitcher.method,
        "objective": stitcher.objective,
        "settings": stitcher.settings,
        "version": stitcher.version,
        "provenance": stitcher.provenance,
        "scorecard": stitcher.scorecard.shown(),
    }
    command = ["repstitch", "show", args.stitcher, *(["--stitchers", args.stitchers] if args.stitchers else [])]
    emit(result, f"{title}, {made}\n\n{scorecard_text(stitcher.scorecard, command, args.full)}", args.json)


def _show_threshold(args: argparse.Namespace, stitcher: "Stitcher") -> None:
    """Show the equivalents of an old threshold, for each use in whose range it is; InputError if there is none."""
    scales = stitcher.scorecard.score_scales
    if not scales:
        raise InputError(
            "The scorecard has no score scale, because an earlier release wrote it or it has fewer than 40 held-out "
            "pairs; train again."
        )
    roles = {
        "corpus": (stitcher.source.name, stitcher.target.name),
        "query": (stitcher.target.name, stitcher.source.name),
    }
    result: dict[str, Any] = {}
    lines: list[str] = []
    for use, scale in scales.items():
        old, new = roles[use]
        try:
            equivalents = scale.equivalents(args.threshold)
        except InputError as error:
            lines.append(f"{use} use: {error}")
            continue
        result[use] = {kind: equivalent.to_dict() for kind, equivalent in equivalents.items()}
        lines.append(
            f"{use} use, searched by {scale.queries} {scale.query_kind}: results above {args.threshold:g} with {old} "
            f"are as many as with {new} above"
        )
        for kind, equivalent in equivalents.items():
            rows = {
                "native": "native rows",
                "translated": "translated rows" if use == "corpus" else "translated queries",
            }
            lines.append(
                f"  {equivalent.similarity} for {rows[kind]} ({equivalent.same_items:.0%} of them the same items)"
            )
    if not result:
        raise InputError(" ".join(lines))
    queried_by = {use: scales[use].queried_by for use in result}
    if "rows" in queried_by.values():
        lines.append(
            "warning: thresholds of held-out rows are for searches by rows; short questions need `repstitch score` "
            "with queries and --out"
        )
    emit({"threshold": args.threshold, "queried_by": queried_by, "equivalents": result}, "\n".join(lines), args.json)


def _registry(named: str | None) -> "Registry":
    folder = stitchers_folder() if named is None else Path(named)
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist; pass the folder of stitchers with `stitchers`.")
    from repstitch.stitchers.registry import Registry

    registry = Registry(folder)
    registry.refresh()
    return registry
