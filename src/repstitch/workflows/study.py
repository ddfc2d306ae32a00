"""Run a study from one file: embed the same items with many encoders, align every pair of encoders, write a report.

A study file is TOML with these keys (those marked with * are required):

    about = "the question"                        the first sentence of the report

    [[experiment]]                                * one or more, independent of each other
    name = "vision-language"                      * name of its folder in the results
    metrics = ["mutual_knn"]                      names of alignment metrics; default: mutual_knn
    k = 10                                        number of neighbours
    permutations = 200                            draws of the null distribution; 0 computes none
    seed = 0
    trend = "parameters"                          test if alignment rises with this numeric field of the space cards
    against = "vision"                            the trend tests all other models, by their alignment with this group
    control = ["family", "objective"]             test if these text fields of the space cards explain the alignment

    [[experiment.group]]                          * one or more; encoders that read the same items
    name = "vision"                               *
    data = "wit/images"                           * for encoders: the items, as the argument `data` of `repstitch.embed`
    limit = 1024                                  use only this many items, evenly spaced
    layers = "all"                                all layers, or a list such as [1, 6, 12]; default: one vector per item
    drop_invalid = true                           leave out rows of files with NaN, Inf or only zeros, and repeated rows
    encoders = ["dinov2_small", { encoder = "e5-small-v2", role = "query" }]
    files = [{ file = "x.npy", ids = "ids.txt", name = "mine", family = "resnet" }]

An entry of `encoders` is an encoder, as the argument `encoder` of `repstitch.embed`, or a table with `encoder`, its
settings (name, pooling, role, input_size, checkpoint …) and its lineage (family, objective, training_data, parameters).
An entry of `files` has the path of a file of vectors. It can also have the path of their ids (required if the file has
none) and fields of a space card; `card` copies these fields from a card of the catalogue. Paths in `data`, `file`,
`ids`, `checkpoint` and `encoder` are relative to the data folder. Rows of all groups are matched by id.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from repstitch.alignment.lineage import encoder_spaces, without_layer
from repstitch.alignment.result import Atlas
from repstitch.embeddings.fingerprints import repeated_rows
from repstitch.embeddings.reading import read, scan
from repstitch.embeddings.rows import Embeddings, Scan, invalid_rows, join_ids
from repstitch.embeddings.writing import write
from repstitch.encoders import catalogue, embed, load_encoder
from repstitch.encoders.items import Items, read_items
from repstitch.encoders.loading import digest, settings_digest
from repstitch.errors import InputError
from repstitch.files import read_json, split_key, written_whole
from repstitch.spaces import Space
from repstitch.workflows.study_file import Experiment, Group, Study, check_type, check_unique_names, read_study
from repstitch.workflows.study_report import StudyResult, findings, report

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Member:
    """One encoder or file of an experiment: its name, its group, and its entry in the study file.

    `card` is the card of the encoder; None for a file.
    """

    name: str
    group: Group
    entry: dict[str, Any]
    card: catalogue.Card | None = None


def run(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    only: str | None = None,
    skip_missing: bool = False,
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, StudyResult]:
    """Run a study and return the result of each experiment by name.

    Embeddings from an earlier run are reused if the settings and the items are the same, so an interrupted study can be
    continued. `data` is the folder that paths in the study are relative to; by default the environment variable
    REPSTITCH_DATA, else the current folder. `only` is the name of the only experiment to run. With `skip_missing`,
    encoders that cannot be loaded are left out and reported. Experiments with fewer than two members left are then
    skipped with a warning, and InputError is raised if none is left. Without `skip_missing`, both raise InputError.
    """
    study, results_folder = read_study(file), Path(out)
    data_folder = Path(data if data is not None else os.environ.get("REPSTITCH_DATA") or ".")
    if not data_folder.is_dir():
        raise InputError(
            f"`data` must be the folder that the study's paths are relative to; there is no {data_folder}."
        )
    chosen = study.chosen(only)
    # All members are checked before the first one is embedded.
    planned = [(experiment, _members(experiment, data_folder)) for experiment in chosen]
    results: dict[str, StudyResult] = {}
    for experiment, members in planned:
        folder = results_folder / experiment.name
        (folder / "embeddings").mkdir(parents=True, exist_ok=True)
        make = partial(_embeddings_of, folder / "embeddings", data_folder, batch_size, device)
        paths, missing = _gather(members, make, skip_missing)
        if len(paths) < 2:
            why = f"; not loaded: {', '.join(missing)}. {next(iter(missing.values()))}" if missing else "."
            message = f"Experiment {experiment.name!r} needs at least two encoders or files; got {len(paths)}{why}"
            if not skip_missing or (experiment is planned[-1][0] and not results):
                raise InputError(message)
            log.warning("%s", message)
            continue
        against = [member.name for member in members if member.group.name == experiment.against]
        atlas = _align(experiment, [path for files in paths.values() for path in files], against, folder)
        results[experiment.name] = _write(study, experiment, atlas, members, missing, folder)
    return results


# --- the members of an experiment -------------------------------------------------------------------------------------


def _members(experiment: Experiment, data: Path) -> list[Member]:
    """Return all encoders and files of an experiment, with checked entries and with paths joined to the data folder."""
    members = []
    for group in experiment.group:
        members += [_encoder_member(entry, group, data) for entry in group.encoders]
        members += [_file_member(entry, group, data) for entry in group.files]
    check_unique_names([member.name for member in members], f"Experiment {experiment.name!r}")
    return members


def _encoder_member(entry: Any, group: Group, data: Path) -> Member:
    stated = {"encoder": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else {}
    if not isinstance(stated.get("encoder"), str):
        raise InputError(
            f"'encoders' of group {group.name!r} must list encoder names, or tables with 'encoder'; got {entry!r}."
        )
    _check_entry(stated, ENCODER_TYPES, f"'encoders' of group {group.name!r}")
    for key in ("encoder", "checkpoint"):
        if key in stated and (data / stated[key]).exists():
            stated[key] = str(data / stated[key])
    lineage: dict[str, Any] = {key: value for key, value in stated.items() if key in LINEAGE}
    settings: dict[str, Any] = {key: value for key, value in stated.items() if key not in ("encoder", *LINEAGE)}
    if group.layers is not None:
        if "layer" in settings:
            raise InputError(
                f"'layer' of {stated['encoder']!r} and 'layers' of its group cannot be combined; set one of them."
            )
        settings["layer"] = -1
    card = replace(catalogue.resolve(stated["encoder"], **settings), **lineage)
    return Member(card.name, group, stated, card)


def _file_member(entry: Any, group: Group, data: Path) -> Member:
    allowed = {"file", "ids", "card"} | SPACE_FIELDS - {"dim"}
    if not isinstance(entry, dict) or "file" not in entry or set(entry) - allowed:
        raise InputError(
            f"'files' of group {group.name!r} must list tables with 'file', which may also have "
            f"{', '.join(sorted(allowed - {'file'}))}; got {entry!r}."
        )
    types = get_type_hints(Space) | {"file": str, "ids": str, "card": str}
    _check_entry(entry, types, f"'files' of group {group.name!r}")
    if "card" in entry:
        catalogue.find(entry["card"])
    paths = {key: str(data / entry[key]) for key in ("file", "ids") if key in entry}
    for key, path in paths.items():
        if not _file_of(path).is_file():
            raise InputError(
                f"'{key}' in 'files' of group {group.name!r} must be a file; there is no {path}. Paths are relative to "
                "`data`."
            )
    stated = entry | paths
    return Member(stated.get("name") or stated.get("card") or Path(stated["file"]).stem, group, stated)


def _check_entry(entry: dict[str, Any], types: Mapping[str, Any], subject: str) -> None:
    """Raise InputError on values of the wrong type. The caller checks which keys are allowed."""
    for key, value in entry.items():
        if key in types:
            check_type(value, types[key], f"'{key}' in {subject}")
    if entry.get("parameters") is not None and entry["parameters"] < 0:
        raise InputError(f"'parameters' in {subject} must not be negative; got {entry['parameters']}.")


def _file_of(path: str) -> Path:
    """The path without a column or key after it."""
    return Path(split_key(path)[0])


# --- the embeddings of the members ------------------------------------------------------------------------------------


class UnreachableError(InputError):
    """Raised if an encoder cannot be loaded. An encoder that fails later raises another InputError."""


def _gather(
    members: list[Member], make: Callable[[Member], list[Path]], skip_missing: bool
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Return the files of embeddings by the member's name, and the reasons why members are missing, also by name."""
    paths: dict[str, list[Path]] = {}
    missing: dict[str, str] = {}
    for member in members:
        log.info("%s (%d of %d)", member.name, len(paths) + len(missing) + 1, len(members))
        try:
            paths[member.name] = make(member)
        except UnreachableError as error:
            if not skip_missing:
                raise InputError(f"{error} To continue without it, set `skip_missing`.") from None
            log.warning("%s is left out: %s", member.name, error)
            missing[member.name] = str(error)
    return paths, missing


def _embeddings_of(folder: Path, data: Path, batch_size: int, device: str, member: Member) -> list[Path]:
    """Return the files of embeddings of a member. Create them unless an earlier run did."""
    group, card = member.group, member.card
    if card is None:
        files = {key: _file_of(member.entry[key]) for key in ("file", "ids") if key in member.entry}
        stamps = {key: [path.name, path.stat().st_size, path.stat().st_mtime_ns] for key, path in files.items()}
        note: dict[str, Any] = member.entry | {"drop_invalid": group.drop_invalid} | stamps
        opened = scan(member.entry["file"], ids=member.entry.get("ids"))
        note["ids_read"] = None if "ids" in files else _ids_hash(opened)
        content = "".join(_file_hash(path) for path in files.values())
        make: Callable[[Path], None] = partial(_copy, member, opened)
    else:
        with _group_named(group):
            items = read_items(data / (group.data or ""), catalogue.modality(card), group.limit)
            [content] = items.hashes([len(items.ids)])
        note = {"card": asdict(replace(card, checkpoint=None)), "data": items.stamp, "layers": group.layers}
        note |= _model_hashes(card)
        make = partial(_embed, card, group, items, batch_size, device)
    out = folder / (member.name if card is not None and group.layers is not None else f"{member.name}.parquet")
    note_file = folder / f"{member.name}.json"
    note = json.loads(json.dumps(note | {"content": content}, default=list))
    if not out.exists():
        with written_whole(note_file) as path:
            path.write_text(json.dumps(note, sort_keys=True), encoding="utf-8")
        make(out)
    elif not _is_same(note_file, note):
        raise InputError(f"{out} was made with other settings or from other items; remove it, or pass another `out`.")
    return sorted(out.glob("*.parquet")) if out.is_dir() else [out]


def _is_same(note_file: Path, note: dict[str, Any]) -> bool:
    """Return whether the note of an earlier run is this one. Hashes that one of them lacks are not compared.

    Notes of older versions lack some. This one lacks those of a model whose files are not there any more.
    """
    try:
        stored = read_json(note_file)
    except (FileNotFoundError, ValueError):  # it is missing, or not the file that was written
        return False
    if not isinstance(stored, dict):
        return False
    lacking = {key for key in HASHES if key not in stored or key not in note}
    ours, theirs = ({key: value for key, value in of.items() if key not in lacking} for of in (note, stored))
    return ours == theirs


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ids_hash(opened: Scan) -> str | None:
    """Return a hash of the ids that are read with a file, which may be in another file beside it; None without ids."""
    total = hashlib.sha256()
    for batch in opened.batches() if opened.has_ids else ():
        total.update(join_ids(() if batch.ids is None else batch.ids) + b"\0")  # the same for batches of any size
    return total.hexdigest() if opened.has_ids else None


def _model_hashes(card: catalogue.Card) -> dict[str, str | None]:
    """Return hashes of the local files of a model; none if it is on the Hub, or if its files do not exist."""
    if card.checkpoint is None:
        return {}
    try:
        path = catalogue.weights(card)
    except InputError:  # its vectors may have been made before
        return {}
    return {"weights": digest(path), "settings": settings_digest(path)}


def _embed(card: catalogue.Card, group: Group, items: Items, batch_size: int, device: str, out: Path) -> None:
    try:
        encoder = load_encoder(card, device=device)
    except InputError as error:
        raise UnreachableError(str(error)) from None
    with _group_named(group):
        embed(encoder, items, out, batch_size=batch_size, layers=group.layers)


@contextmanager
def _group_named(group: Group) -> Iterator[None]:
    """Make errors about the items name the group's key 'data', because the argument `data` is another folder."""
    try:
        yield
    except InputError as error:
        message = str(error).replace("`data`", "'data'")
        raise InputError(f"Group {group.name!r}: {message}") from None


def _copy(member: Member, opened: Scan, out: Path) -> None:
    """Write the vectors of a file as the embeddings of a member, with the space that the study states."""
    rows = opened.read()
    if rows.ids is None:
        raise InputError(f"'files' entry {member.name!r} must have ids, because rows are matched by id; add 'ids'.")
    space = _stated_space(member, rows.space)
    invalid = {reason: mask for reason, mask in invalid_rows(rows.vectors).items() if mask.any()}
    if invalid and not member.group.drop_invalid:
        reasons = ", ".join(f"{int(mask.sum())} {reason}" for reason, mask in invalid.items())
        raise InputError(
            f"{member.name} has rows that cannot be used ({reasons}); set drop_invalid = true in its group to leave "
            "them out."
        )
    if member.group.drop_invalid:
        repeats = repeated_rows(rows.vectors)
        for mask in invalid.values():
            repeats &= ~mask
        invalid["repeats"] = repeats
        reasons = ", ".join(f"{int(mask.sum())} {reason}" for reason, mask in invalid.items() if mask.any())
        log.warning("%s: rows left out: %s.", member.name, reasons or "none")
    kept = rows.take(~np.any([*invalid.values(), np.zeros(len(rows), dtype=bool)], axis=0))
    write(out, Embeddings(kept.vectors, space, kept.ids))


def _stated_space(member: Member, space: Space) -> Space:
    """Return the space of a file: fields of the study's entry, else of its catalogue card, else of the file."""
    stated = {key: value for key, value in member.entry.items() if key not in ("file", "ids", "card")}
    fields_of_card: dict[str, Any] = {}
    if "card" in member.entry:
        card = catalogue.find(member.entry["card"])
        if card.dim not in (None, space.dim):
            raise InputError(
                f"'card' of {member.name!r} must have the {space.dim} dimensions of its file; {card.name} has "
                f"{card.dim}."
            )
        fields_of_card = {key: value for key, value in asdict(card).items() if key in SPACE_FIELDS}
        fields_of_card["modality"] = catalogue.modality(card)
    return Space.from_dict(space.to_dict() | fields_of_card | stated | {"name": member.name, "dim": space.dim})


# --- the result -------------------------------------------------------------------------------------------------------


def _align(experiment: Experiment, paths: list[Path], against: list[str], folder: Path) -> Atlas:
    """Compute the atlas of all spaces of an experiment, with the tests of its trend and control.

    A test that has too few models is listed in `unanswered`, with the reason.
    """
    from repstitch.alignment.hypotheses import HypothesisTests, run_tests
    from repstitch.alignment.measuring import atlas

    result = atlas(
        [read(path) for path in paths],
        experiment.metrics,
        experiment.k,
        experiment.permutations,
        experiment.seed,
        cache=folder / "graphs",
    )
    names = [space.name for space in encoder_spaces(result.spaces)]
    compared = [name for name in names if without_layer(name) in against] or None
    tests = HypothesisTests(experiment.trend, compared, experiment.control, seed=experiment.seed)
    return run_tests(result, tests, skip=True)


def _write(
    study: Study, experiment: Experiment, atlas: Atlas, members: list[Member], missing: dict[str, str], folder: Path
) -> StudyResult:
    """Write the atlas, its table of pairs, its figures and the report to the experiment's folder."""
    from repstitch.alignment.files import put

    put(atlas, folder)
    figures = _draw(atlas, folder)
    groups = {member.name: member.group.name for member in members}
    result = StudyResult(atlas, missing, findings(atlas, groups), str(folder / "REPORT.md"))
    with written_whole(folder / "REPORT.md") as path:
        path.write_text(report(study, experiment, result, figures), encoding="utf-8")
    return result


def _draw(atlas: Atlas, folder: Path) -> list[Path]:
    """Draw the figures of an atlas. Without matplotlib, log a warning and draw none."""
    if find_spec("matplotlib") is None:
        log.warning("matplotlib is missing, so no figures are drawn; install repstitch[plot] and run the study again.")
        return []
    from repstitch.plots.alignment import draw_atlas

    return draw_atlas(atlas, folder)


ENCODER_TYPES = {"encoder": str, "checkpoint": str, "name": str, "parameters": int}  # the card checks the other keys
HASHES = ("content", "ids_read", "weights", "settings")
LINEAGE = ("family", "objective", "training_data", "parameters")
SPACE_FIELDS = {field.name for field in fields(Space)}
