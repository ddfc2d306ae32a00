"""Move a table of a store to another space: plan, run, status, verify, cut over, roll back, clean up."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repstitch.addresses import Address, is_address, parse_address
from repstitch.cli.arguments import add_command
from repstitch.cli.migrate_arguments import (
    add_cost_arguments,
    add_cut_over_arguments,
    add_discard_arguments,
    add_names_arguments,
    add_native_arguments,
    add_pause_arguments,
    add_share_arguments,
    add_speed_arguments,
    add_verify_arguments,
    add_yes_argument,
)
from repstitch.cli.output import emit
from repstitch.errors import InputError
from repstitch.files import check_new, check_picture, check_stitcher_exists, written_whole

if TYPE_CHECKING:
    from repstitch.bulk.settings import JobSettings
    from repstitch.stitchers.held_out_rows import HeldOutRows
    from repstitch.stitchers.stitcher import Stitcher
    from repstitch.stores.store import Store

TABLE = ".lance"  # the ending of the folder of a table of LanceDB
EXAMPLE = "'lancedb://data/db?table=docs&vector=vector&id=id'"


def register(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser(
        "migrate",
        help="move a table of a vector store to the target space of a stitcher",
        description="Move a table of a vector store to the target space of a stitcher, while others read and write it.",
        epilog=f"example:\n  repstitch migrate plan {EXAMPLE}{STITCHER}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = command.add_subparsers(
        dest="step", required=True, metavar="STEP", help="step of the migration, in this order"
    )
    for name, (run, description, example, groups) in STEPS.items():
        step = add_command(steps, name, run, description, f"repstitch migrate {name} {EXAMPLE}{example}")
        step.add_argument(
            "address",
            nargs="?",
            metavar="ADDRESS",
            help="table to move: lancedb://PATH?table=T&vector=V&id=ID, "
            "postgresql://HOST/DATABASE?table=T&vector=V&id=ID, or a folder of Parquet files",
        )
        step.add_argument("--stitcher", metavar="S", help="folder of the stitcher, or hf://OWNER/NAME")
        step.add_argument(
            "--job", metavar="FILE.toml", help="file with the address, the stitcher and any of the settings"
        )
        step.set_defaults(steps=steps.choices.values())  # a message of one step may name the option of another
        for group in groups:
            group(step)


def _choose(store: "Store", stitcher: "Stitcher", settings: "JobSettings", out: str) -> dict[str, Any]:
    """Write the ids of the rows to embed anew, one per line."""
    from repstitch.bulk.choosing import choose_ids
    from repstitch.bulk.translation import Translation
    from repstitch.embeddings.reading import read

    assert settings.share is not None
    queries = None if settings.queries is None else read(settings.queries).vectors
    ids = choose_ids(store, Translation(stitcher, settings.max_rows_per_second), settings.share, queries)
    if any("\n" in key or "\r" in key for key in ids):
        raise InputError("`ids_out` cannot contain the ids, because one has a line break.")
    with written_whole(check_new(out)) as temporary:
        temporary.write_text("".join(f"{key}\n" for key in ids), encoding="utf-8")
    return {"share": settings.share, "rows": len(ids), "ids_out": out}


def _draw_shares(curve: list[dict[str, Any]] | None, settings: "JobSettings", path: str) -> None:
    from repstitch.plots.canvas import save
    from repstitch.plots.mixing import plot_shares

    assert settings.share is not None
    save(plot_shares(curve, settings.share), path)


def plan(args: argparse.Namespace) -> None:
    from repstitch.bulk.planning import make_plan
    from repstitch.bulk.report import plan_text

    address, stitcher_path, settings = _read(args)
    if (settings.share is None) != (args.ids_out is None):
        raise InputError(
            "`share` and `ids_out` must be passed together: how many rows to choose, and where to write ids."
        )
    if args.ids_out is not None:
        check_new(args.ids_out)
    if args.plot:
        if settings.share is None:
            raise InputError("`plot` draws what a share of the rows gains, so it requires `share`.")
        check_picture(args.plot)
    stitcher = _load(stitcher_path)
    with _opened(address) as store:
        result = make_plan(store, stitcher, settings, _held_out(stitcher_path, stitcher))
        if args.plot:  # before the file of ids, which is never overwritten, so that the command can be repeated
            _draw_shares(result["share_curve"], settings, args.plot)
        if settings.share is not None:
            result["chosen"] = _choose(store, stitcher, settings, str(args.ids_out))
    emit(result, plan_text(result), args.json)


def run(args: argparse.Namespace) -> None:
    from repstitch.bulk.finishing import status as status_of
    from repstitch.bulk.job import job_of
    from repstitch.bulk.native_rows import open_native
    from repstitch.bulk.planning import make_plan
    from repstitch.bulk.report import plan_text, state_line
    from repstitch.bulk.running import run as run_job

    address, stitcher_path, settings = _read(args)
    stitcher = _load(stitcher_path)
    with _opened(address) as store:
        natives = open_native(store, stitcher, settings)
        if job_of(store) is None:
            print(plan_text(make_plan(store, stitcher, settings, _held_out(stitcher_path, stitcher))), file=sys.stderr)
            _ask(args, "Begin?")
        run_job(store, stitcher, settings, natives)
    if not sys.stderr.isatty():
        print(file=sys.stderr)  # a bar of progress has no end of line, and the result may go to the same file
    with _opened(address) as store:  # the connection of the job may have been lost, and replaced by another one
        state = status_of(store)
    result = {name: state[name] for name in ("address", "phase", "states", "rest")}
    counts = ", ".join(f"{n_rows:,} {word}" for word, n_rows in state["states"].items() if word and n_rows)
    text = f"{address.label}: {state['phase']}; {counts or 'no rows'}; {state['rest']:,} written meanwhile."
    if natives is not None:
        result["reembedded"] = natives.counts.to_dict()
        text += f"\nEmbedded anew: {natives.counts}."
    emit(result, f"{text}\n{state_line(state['phase'])}", args.json)


def status(args: argparse.Namespace) -> None:
    from repstitch.bulk.finishing import status as status_of
    from repstitch.bulk.report import status_text

    address, stitcher_path, _ = _read(args, needs_stitcher=False)
    held_out = None if stitcher_path is None else _held_out(stitcher_path, _load(stitcher_path))
    with _opened(address) as store:
        result = status_of(store, held_out)
    emit(result, status_text(result), args.json)


def verify(args: argparse.Namespace) -> int:
    from repstitch.bulk.report import verification_text
    from repstitch.bulk.verification import verify as verify_job

    address, stitcher_path, settings = _read(args)
    stitcher = _load(stitcher_path)
    with _opened(address) as store:
        job, result = verify_job(store, stitcher, settings, _held_out(stitcher_path, stitcher))
    emit(result | {"phase": job.phase}, verification_text(result, job.phase), args.json)
    return 0 if result["passed"] else 1


def cutover(args: argparse.Namespace) -> None:
    from repstitch.bulk.finishing import cut_over
    from repstitch.bulk.job import required_job
    from repstitch.bulk.report import state_line

    address, stitcher_path, settings = _read(args)
    stitcher = _load(stitcher_path)
    with _opened(address) as store:
        required_job(store)
        _ask(args, f"Show readers of {address.label} the new vectors?")
        job, done = cut_over(store, stitcher, settings, without_search=args.without_search)
    result = {"phase": job.phase, "rest": done.n_rest, "pause_seconds": done.pause_seconds, "repaired": done.repaired}
    lines = [
        f"{address.label}: cut over in {done.pause_seconds:.3f} s, with {done.n_rest:,} rows caught up inside.",
        *([f"{done.repaired:,} rows were written at that moment and have been repaired."] if done.repaired else []),
        *done.notes,
        state_line(job.phase),
    ]
    emit(result | {"notes": list(done.notes)}, "\n".join(lines), args.json)


def rollback(args: argparse.Namespace) -> None:
    from repstitch.bulk.finishing import roll_back
    from repstitch.bulk.report import state_line

    address, _, settings = _read(args, needs_stitcher=False)
    with _opened(address) as store:
        job, done = roll_back(store, settings)
    lines = [
        f"{address.label}: rolled back in {done.pause_seconds:.3f} s; {done.n_without_old:,} rows have no old vector, "
        "because they were written since the cut-over.",
        *done.notes,
        state_line(job.phase),
    ]
    result = {"phase": job.phase, "without_old": done.n_without_old, "pause_seconds": done.pause_seconds}
    emit(result | {"notes": list(done.notes)}, "\n".join(lines), args.json)


def cleanup(args: argparse.Namespace) -> None:
    from repstitch.bulk.finishing import clean_up
    from repstitch.bulk.job import CUT_OVER, job_of

    address, _, _ = _read(args, needs_stitcher=False)
    with _opened(address) as store:
        try:
            job = job_of(store)
            phase = "" if job is None else job.phase
        except InputError:
            phase = "damaged"
        if phase:
            loses = "the old vectors" if phase == CUT_OVER else "the new vectors"
            _ask(args, f"End the migration of {address.label} ({phase}) and remove {loses}?")
        phase = clean_up(store, discard=args.discard)
    text = (
        f"{address.label}: cleaned up."
        if phase
        else f"{address.label}: there was no migration; nothing is left of one."
    )
    emit({"address": address.label, "phase_before": phase or None}, text, args.json)


def _read(args: argparse.Namespace, needs_stitcher: bool = True) -> tuple[Address, Any, "JobSettings"]:
    """Return the address, the path of the stitcher and the settings, of the command line and of the job's file."""
    from dataclasses import fields

    from repstitch.bulk.settings import JobSettings, merged, read_settings

    file = {} if args.job is None else read_settings(args.job)
    address = args.address or file.get("address")
    stitcher = args.stitcher or file.get("stitcher")
    settings = merged(file, {field.name: getattr(args, field.name, None) for field in fields(JobSettings)})
    if address is None:
        raise InputError("An address of the table to move is required, as an argument or in the file of `job`.")
    if needs_stitcher and stitcher is None:
        is_cut = "table=" in address and "&" not in address
        raise InputError(
            "`stitcher` is required, as an option or in the file of `job`."
            + (" Put an address with & in single quotes: a shell ends a command at &." if is_cut else "")
        )
    if stitcher is not None:
        check_stitcher_exists(stitcher)
    return _parsed(address), stitcher, settings


def _parsed(address: str) -> Address:
    """Return the address of a table, or of a folder of Parquet files by its path."""
    from repstitch.stores.parquet.folder import is_folder

    folder = Path(address)
    if is_address(address):
        return parse_address(address)
    if folder.suffix == TABLE and (folder / "_versions").is_dir():
        raise InputError(f"{address} is a table of LanceDB; pass lancedb://{folder.parent}?table={folder.stem}.")
    if folder.is_dir() and any(folder.glob(f"*{TABLE}")):
        raise InputError(f"{address} is a database of LanceDB; pass lancedb://{address}?table=NAME.")
    if is_folder(folder):
        return Address("folder", address, folder.absolute().name)
    try:
        return parse_address(address)
    except InputError as error:
        raise InputError(f"{error} There is no folder {folder.absolute()} of Parquet files either.") from None


@contextmanager
def _opened(address: Address) -> Iterator["Store"]:
    from repstitch.stores.opening import open_store

    store = open_store(address)
    try:
        yield store
    finally:
        store.close()


def _load(path: str) -> "Stitcher":
    from repstitch.devices import pick_device
    from repstitch.stitchers.stitcher import load

    return load(path).to(pick_device("auto"))


def _held_out(path: str, stitcher: "Stitcher") -> "HeldOutRows | None":
    from repstitch.stitchers.held_out_rows import read_held_out

    return None if str(path).startswith("hf://") else read_held_out(Path(path), stitcher.version, stitcher.target.dim)


def _ask(args: argparse.Namespace, question: str) -> None:
    """Ask before anything is written. Raises InputError if the answer is no, or if nobody can answer."""
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise InputError("Nothing was written. Nobody can be asked here; pass `yes` to go on without a question.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Nothing was written.") from None
    if answer.strip().lower() not in ("y", "yes"):
        raise InputError("Nothing was written.")


Group = Callable[[argparse.ArgumentParser], None]
STITCHER = " --stitcher models/stitchers/old-new"
STEPS: dict[str, tuple[Callable, str, str, tuple[Group, ...]]] = {
    "plan": (
        plan,
        "estimate the space, the time and the cost of a migration; nothing is written to the table",
        STITCHER,
        (add_names_arguments, add_speed_arguments, add_cost_arguments, add_share_arguments),
    ),
    "run": (
        run,
        "fill the new vectors beside the old ones and build their index; run again to go on after an interruption",
        STITCHER,
        (add_names_arguments, add_speed_arguments, add_cost_arguments, add_native_arguments, add_yes_argument),
    ),
    "status": (status, "show how far a migration has come", "", ()),
    "verify": (
        verify,
        "check every row, the index and the map by search in the store; exit status 1 if a check fails",
        STITCHER,
        (add_verify_arguments,),
    ),
    "cutover": (
        cutover,
        "make the new vectors those that readers see, in one step",
        STITCHER,
        (add_cut_over_arguments, add_yes_argument),
    ),
    "rollback": (
        rollback,
        "make the old vectors those that readers see again, in one step",
        "",
        (add_pause_arguments,),
    ),
    "cleanup": (
        cleanup,
        "end a migration: before the cut-over the table becomes as it was, after it the old vectors are removed",
        "",
        (add_discard_arguments,),
    ),
}
