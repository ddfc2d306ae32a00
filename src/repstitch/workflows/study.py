"""A study: many encoders embedded on the same items, every pair of them aligned, and the report of it, from one file.

A study file is TOML, and all it may say is this (what is marked with * must be said):

    about = "what is asked"                       one sentence, the report's first

    [[experiment]]                                * one or more; each answers for itself
    name = "vision-language"                      * its folder in the results
    metrics = ["mutual_knn"]                      names of alignment metrics, this by default
    k = 10                                        neighbours
    permutations = 200                            draws of the null; 0 leaves it out
    seed = 0
    trend = "parameters"                          does alignment rise with it over models? a number each space states
    against = "vision"                            the trend is of all other models, by their alignment with this group
    control = ["family", "objective"]             does shared lineage explain the agreement? words each space states

    [[experiment.group]]                          * one or more; encoders that read the same items
    name = "vision"                               *
    data = "wit/images"                           * for encoders: what `repstitch embed --data` takes
    limit = 1024                                  so many of the items, evenly spread
    layers = "all"                                every layer, or some as [1, 6, 12]; without it one vector an item
    drop_invalid = true                           leave out rows of files that are NaN, all zeros or like one before
    encoders = ["dinov2_small", { encoder = "e5-small-v2", role = "query" }]
    files = [{ file = "x.npy", ids = "ids.txt", name = "mine", family = "resnet" }]

An entry of `encoders` is what `repstitch embed --encoder` takes, alone or with its settings (name, pooling, role,
input_size, checkpoint …) and its lineage (family, objective, training_data, parameters). An entry of `files` holds
vectors that are there already: the file, its ids where it has none, and the fields of a space card; `card` takes those
of a card of the catalogue. `data`, `file`, `ids`, `checkpoint` and an encoder that is a path are relative to the data
folder. Rows of all groups are matched by id.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from repstitch.alignment.lineage import without_layer
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings, invalid_rows
from repstitch.embeddings.writing import write
from repstitch.encoders import catalogue, embed, load_encoder
from repstitch.encoders.items import read_items
from repstitch.errors import InputError
from repstitch.files import written_whole
from repstitch.spaces import Space
from repstitch.workflows.study_file import Experiment, Group, Study, check_type, check_unique_names, read_study
from repstitch.workflows.study_report import findings, setting, strongest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One encoder or file of an experiment: what it is called, the group it is in, and what the study says of it."""

    name: str
    group: Group
    stated: dict
    card: catalogue.Card | None = None


def run(
    file: str | os.PathLike,
    out: str | os.PathLike,
    *,
    data: str | os.PathLike | None = None,
    only: str | None = None,
    skip_missing: bool = False,
    batch_size: int = 64,
    device: str = "auto",
) -> dict:
    """Run a study and return, by experiment, its `atlas`, the `missing` encoders with why, and its `report`'s path.

    What was embedded before, with the same settings on the same items, is taken as it is, so a stopped study goes on.
    `data` is the folder that paths in the study are relative to, REPSTITCH_DATA by default. `only` runs the experiment
    of that name. Encoders that cannot be loaded are left out and reported with `skip_missing`, as are experiments with
    fewer than two members left; without it, or where nothing is left, they are an InputError.
    """
    study, out = read_study(file), Path(out)
    root = Path(data if data is not None else os.environ.get("REPSTITCH_DATA") or ".")
    if not root.is_dir():
        raise InputError(f"`data` must be the folder that the study's paths are relative to; there is no {root}.")
    chosen = [experiment for experiment in study.experiments if only in (None, experiment.name)]
    if not chosen:
        names = ", ".join(experiment.name for experiment in study.experiments)
        raise InputError(f"`only` must be an experiment of {study.name}, {names}; got {only!r}.")
    planned = [(experiment, _members(experiment, root)) for experiment in chosen]  # all of it, before any of it runs
    results = {}
    for experiment, members in planned:
        place = out / experiment.name
        (place / "embeddings").mkdir(parents=True, exist_ok=True)
        paths, missing = _gather(members, place / "embeddings", root, skip_missing, batch_size, device)
        if len(paths) < 2:
            why = f"; not reached: {', '.join(missing)}. {next(iter(missing.values()))}" if missing else "."
            message = f"Experiment {experiment.name!r} needs at least two members that are there; got {len(paths)}{why}"
            if not skip_missing or (experiment is planned[-1][0] and not results):
                raise InputError(message)
            log.warning("%s", message)
            continue
        against = [member.name for member in members if member.group.name == experiment.against]
        atlas = _align(experiment, [path for files in paths.values() for path in files], against, place)
        written = _write(study, experiment, atlas, members, missing, place)
        results[experiment.name] = {"atlas": atlas, "missing": missing} | written
    return results


def _members(experiment: Experiment, root: Path) -> list[Member]:
    """All encoders and files of an experiment, their entries checked and their paths found."""
    members = []
    for group in experiment.group:
        for entry in group.encoders:
            stated = {"encoder": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else {}
            if not isinstance(stated.get("encoder"), str):
                raise InputError(f"`encoders` of group {group.name!r} must each name an `encoder`; got {entry!r}.")
            _check_entry(stated, OF_ENCODERS, f"`encoders` of group {group.name!r}")
            for key in ("encoder", "checkpoint"):
                if key in stated and (root / stated[key]).exists():
                    stated[key] = str(root / stated[key])
            lineage: dict[str, Any] = {key: value for key, value in stated.items() if key in LINEAGE}
            settings: dict[str, Any] = {k: v for k, v in stated.items() if k not in ("encoder", *LINEAGE)}
            if group.layers is not None:
                if "layer" in settings:
                    raise InputError(
                        f"`layer` of {stated['encoder']!r} and `layers` of its group cannot both be stated."
                    )
                settings["layer"] = -1
            card = replace(catalogue.resolve(stated["encoder"], **settings), **lineage)
            members.append(Member(card.name, group, stated, card))
        for entry in group.files:
            stated = _file_entry(entry, group, root)
            name = stated.get("name") or stated.get("card") or Path(stated["file"]).stem
            members.append(Member(name, group, stated))
    check_unique_names([member.name for member in members], f"Experiment {experiment.name!r}")
    return members


def _file_entry(entry: dict, group: Group, root: Path) -> dict:
    known = {"file", "ids", "card"} | {f.name for f in fields(Space)} - {"dim"}
    if not isinstance(entry, dict) or "file" not in entry or set(entry) - known:
        raise InputError(
            f"`files` of group {group.name!r} must each be a table with `file`, that may also state "
            f"{', '.join(sorted(known - {'file'}))}; got {entry!r}."
        )
    kinds = get_type_hints(Space) | {"file": str, "ids": str, "card": str}
    _check_entry(entry, kinds, f"`files` of group {group.name!r}")
    if "card" in entry:
        catalogue.find(entry["card"])
    placed = entry | {key: str(root / entry[key]) for key in ("file", "ids") if key in entry}
    for key in placed.keys() & {"file", "ids"}:
        if not _bare(placed[key]).is_file():
            raise InputError(f"`{key}` in `files` of group {group.name!r} must be a file; there is no {placed[key]}.")
    return placed


def _check_entry(entry: dict, kinds: dict, where: str) -> None:
    """Refuse values of the wrong type; what keys there may be is checked elsewhere."""
    for key, value in entry.items():
        if key in kinds:
            check_type(value, kinds[key], f"`{key}` in {where}")
    if entry.get("parameters") is not None and entry["parameters"] < 0:
        raise InputError(f"`parameters` in {where} must not be negative; got {entry['parameters']}.")


def _bare(path: str) -> Path:
    """The path without the column or key that may stand behind it."""
    return Path(re.sub(r"(\.\w+):[^/]*$", r"\1", path))


def _gather(members, place: Path, root: Path, skip_missing: bool, batch_size: int, device: str):
    """Embed or copy every member into `place`; the files of each by its name, and why others are missing."""
    paths: dict[str, list[Path]] = {}
    missing: dict[str, str] = {}
    for member in members:
        log.info("%s (%d of %d)", member.name, len(paths) + len(missing) + 1, len(members))
        try:
            paths[member.name] = _take(member, place, root, batch_size, device)
        except Unreachable as error:
            if not skip_missing:
                raise InputError(f"{error} To go on without it, say --skip-missing.") from None
            log.warning("%s is left out: %s", member.name, error)
            missing[member.name] = str(error)
    return paths, missing


class Unreachable(InputError):
    """An encoder that could not be loaded, as opposed to one that was and then failed."""


def _take(member: Member, place: Path, root: Path, batch_size: int, device: str) -> list[Path]:
    """The member's embeddings, made now if they are not there as they are wanted."""
    group, card = member.group, member.card
    if card is None:
        note: dict[str, Any] = member.stated | {"drop_invalid": group.drop_invalid} | _stamps(member.stated)
        make: Callable[[Path], Any] = lambda out: _copy(member, out)  # noqa: E731
    else:
        data = str(root / (group.data or ""))
        stamp = read_items(data, catalogue.modality(card), group.limit).stamp
        note = {"card": asdict(replace(card, checkpoint=None)), "data": stamp, "layers": group.layers}
        make = lambda out: _embed(member, data, out, batch_size, device)  # noqa: E731
    out = place / (member.name if card is not None and group.layers is not None else f"{member.name}.parquet")
    beside = place / f"{member.name}.json"
    wanted = json.dumps(note, sort_keys=True, default=list)
    if not out.exists():
        beside.write_text(wanted, encoding="utf-8")
        make(out)
    elif not beside.exists() or beside.read_text(encoding="utf-8") != wanted:
        raise InputError(f"{out} was made with other settings or from other items; remove it, or give another `out`.")
    return sorted(out.glob("*.parquet")) if out.is_dir() else [out]


def _embed(member: Member, data: str, out: Path, batch_size: int, device: str) -> None:
    assert member.card is not None
    try:
        encoder = load_encoder(member.card, device=device)
    except InputError as error:
        raise Unreachable(str(error)) from None
    group = member.group
    embed(encoder, data, out, batch_size=batch_size, layers=group.layers, limit=group.limit)


def _stamps(stated: dict) -> dict:
    """What changes when a file or its ids do, in the place of their paths."""
    stamps = {}
    for key in ("file", "ids"):
        path = _bare(stated.get(key, ""))
        if key in stated and path.exists():
            stamps[key] = [path.name, path.stat().st_size, path.stat().st_mtime_ns]
    return stamps


def _copy(member: Member, out: Path) -> None:
    """Vectors that are there already, with the space that the study states, as a file like the others."""
    stated = dict(member.stated)
    rows = read(stated.pop("file"), ids=stated.pop("ids", None))
    if rows.ids is None:
        raise InputError(f"`files` entry {member.name!r} must have ids, which rows are matched by; give `ids`.")
    known = {f.name for f in fields(Space)}
    card = catalogue.find(stated.pop("card")) if "card" in stated else None
    lineage = {} if card is None else {key: value for key, value in asdict(card).items() if key in known}
    lineage |= {} if card is None else {"modality": catalogue.modality(card)}
    if card is not None and card.dim not in (None, rows.space.dim):
        raise InputError(
            f"`card` of {member.name!r} must have the {rows.space.dim} dimensions of its file; {card.name} has "
            f"{card.dim}."
        )
    space = Space.from_dict(rows.space.to_dict() | lineage | stated | {"name": member.name, "dim": rows.space.dim})
    bad = {what: mask for what, mask in invalid_rows(rows.vectors).items() if mask.any()}
    if bad and not member.group.drop_invalid:
        wrong = ", ".join(f"{int(mask.sum())} {what}" for what, mask in bad.items())
        raise InputError(
            f"{member.name} holds rows that cannot be used ({wrong}); say drop_invalid = true in its group."
        )
    if member.group.drop_invalid:
        bad["repeats"] = _repeats(rows.vectors) & ~np.any([*bad.values(), np.zeros(len(rows), bool)], axis=0)
        left = ", ".join(f"{int(mask.sum())} {what}" for what, mask in bad.items() if mask.any())
        log.warning("%s: rows left out: %s.", member.name, left or "none")
    kept = rows.take(~np.any([*bad.values(), np.zeros(len(rows), bool)], axis=0))
    write(out, Embeddings(kept.vectors, space, kept.ids))


def _repeats(vectors: np.ndarray) -> np.ndarray:
    """A mask (n,) of the rows that are like one before."""
    seen: set[bytes] = set()
    mask = np.zeros(len(vectors), dtype=bool)
    for i, row in enumerate(vectors):
        key = row.tobytes()
        mask[i] = key in seen
        seen.add(key)
    return mask


def _align(experiment: Experiment, paths: list[Path], against: list[str], place: Path) -> dict:
    """The atlas of all spaces of an experiment, with the trend and the control that it asks for.

    A question that so few models cannot answer stands in `unanswered` with the reason.
    """
    from repstitch.alignment.atlas import atlas
    from repstitch.alignment.hypotheses import HypothesisTests, run_tests
    from repstitch.alignment.lineage import encoders

    e = experiment
    found = atlas([read(path) for path in paths], e.metrics, e.k, e.permutations, e.seed, cache=place / "graphs")
    names = [model.name for model in encoders([Space.from_dict(card) for card in found["spaces"]])]
    compared = [name for name in names if without_layer(name) in against] or None
    return found | run_tests(found, HypothesisTests(e.trend, compared, e.control, seed=e.seed), skip=True)


def _draw(atlas: dict, place: Path) -> list[Path]:
    """The figures of an atlas; none, with a warning, where there is nothing to draw with."""
    if find_spec("matplotlib") is None:
        log.warning("Figures are left out; to have them, install repstitch[plot] and run the study again.")
        return []
    from repstitch.plots.alignment import draw_atlas

    return draw_atlas(atlas, place)


def _write(study: Study, experiment: Experiment, atlas: dict, members, missing: dict, place: Path) -> dict:
    """Put the atlas, its table of pairs, its figures and the report into an experiment's folder."""
    from repstitch.alignment import report

    report.put(atlas, place)
    figures = _draw(atlas, place)
    found = findings(atlas, {member.name: member.group.name for member in members})
    lines = [f"# {experiment.name}", study.about, setting(atlas, experiment)]
    lines += ["## What was found", "\n".join(f"- {line}" for line in found)]
    lines += ["## The most alike", strongest(atlas)]
    if missing:
        lines += ["## Left out", "\n".join(f"- {name}: {reason}" for name, reason in missing.items())]
    lines += [f"![{path.stem}]({path.name})" for path in figures if path.suffix in (".png", ".svg")]
    text = "\n\n".join(line for line in lines if line) + "\n"
    with written_whole(place / "REPORT.md") as path:
        path.write_text(text, encoding="utf-8")
    return {"findings": found, "report": str(place / "REPORT.md")}


OF_ENCODERS: dict = {
    "encoder": str,
    "checkpoint": str,
    "name": str,
    "parameters": int,
}  # others are the card's to check
LINEAGE = ("family", "objective", "training_data", "parameters")
