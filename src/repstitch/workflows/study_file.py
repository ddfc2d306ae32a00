"""TODO workflows.study_file."""

import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from repstitch.arguments import check_draws, check_seed
from repstitch.errors import InputError, NotFoundError
from repstitch.files import data_folder
from repstitch.names import METRICS


@dataclass(frozen=True)
class Group:
    """Encoders that read the same items, and vectors of those items that are there already."""

    name: str
    data: str | None = None
    limit: int | None = None
    layers: str | list | None = None
    drop_invalid: bool = False
    encoders: list = field(default_factory=list)
    files: list = field(default_factory=list)


@dataclass(frozen=True)
class Experiment:
    """One question: which groups are aligned, by which metrics, and what is asked of the alignments."""

    name: str
    group: list
    metrics: list = field(default_factory=lambda: ["mutual_knn"])
    k: int = 10
    permutations: int = 200
    seed: int = 0
    trend: str | None = None
    against: str | None = None
    control: list = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """A study file, read and checked."""

    name: str
    about: str
    experiments: list[Experiment]


def read_study(file: str | os.PathLike) -> Study:
    """A study by its path, or by the name of one that comes with the package.

    Raises InputError on anything the format does not know, NotFoundError on a name that is not there.
    """
    path = Path(file)
    if not path.is_file():
        path = data_folder("studies") / f"{file}.toml"
        if not path.is_file():
            available = ", ".join(sorted(study.stem for study in path.parent.glob("*.toml")))
            raise NotFoundError(f"There is no study {str(file)!r}; give a .toml file, or one of {available}.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The study {path} cannot be read: {error}") from None
    unknown = sorted(set(table) - {"about", "experiment"})
    if unknown or not isinstance(table.get("experiment"), list) or not table["experiment"]:
        raise InputError(
            f"The study {path.name} must hold `about` and [[experiment]] tables; got {', '.join(table) or 'nothing'}."
        )
    experiments = [_experiment(entry, f"The study {path.name}") for entry in table["experiment"]]
    check_unique_names([experiment.name for experiment in experiments], f"The study {path.name}")
    return Study(path.stem, str(table.get("about", "")), experiments)


def _experiment(table: dict, where: str) -> Experiment:
    experiment = _build(Experiment, table, where)
    where = f"{where}, experiment {experiment.name!r},"
    groups = [_build(Group, entry, where) for entry in experiment.group]
    names = [group.name for group in groups]
    check_unique_names(names, where)
    for group in groups:
        if not group.encoders and not group.files:
            raise InputError(f"{where} group {group.name!r} must name `encoders` or `files`; it names neither.")
        if group.encoders and group.data is None:
            raise InputError(f"{where} group {group.name!r} must say what `data` its encoders read.")
        layers = group.layers
        some = isinstance(layers, list) and layers and all(type(at) is int for at in layers)
        if layers not in (None, "all") and not some:
            raise InputError(f"{where} `layers` must be all, or a list like [1, 6, 12]; got {layers!r}.")
        _check_least(where, limit=(group.limit, 1))
    _check_least(where, k=(experiment.k, 1))
    check_draws(experiment.permutations, f"{where} `permutations`")
    check_seed(experiment.seed, f"{where} `seed`")
    if not experiment.metrics:
        raise InputError(f"{where} `metrics` must name at least one of {', '.join(METRICS)}.")
    for what, given, known in (
        ("metrics", experiment.metrics, METRICS),
        ("against", [] if experiment.against is None else [experiment.against], names),
        ("trend", [] if experiment.trend is None else [experiment.trend], NUMBERS),
        ("control", experiment.control, WORDS),
    ):
        wrong = [value for value in given if value not in known]
        if wrong:
            raise InputError(f"{where} `{what}` must be among {', '.join(known)}; got {wrong[0]!r}.")
    return replace(experiment, group=groups)


def _build(kind: type, table: Any, where: str) -> Any:
    """One of the dataclasses above from its table: unknown keys and wrong types are refused."""
    known = get_type_hints(kind)
    if not isinstance(table, dict):
        raise InputError(f"{where} must hold tables; got {table!r}.")
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise InputError(f"{where} holds the unknown key `{unknown[0]}`; known are {', '.join(known)}.")
    for key in (f.name for f in fields(kind)):
        if key in ("name", "group") and not table.get(key):
            raise InputError(f"{where} must state `{key}` of each {kind.__name__.lower()}.")
        if key in table:
            check_type(table[key], known[key], f"{where} `{key}`")
    return kind(**table)


def check_type(value: Any, kind: Any, what: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in (kind, *get_args(kind))):
        raise InputError(f"{what} must be {getattr(kind, '__name__', None) or kind}; got {value!r}.")


def _check_least(where: str, **given: tuple[int | None, int]) -> None:
    for key, (value, least) in given.items():
        if value is not None and value < least:
            raise InputError(f"{where} `{key}` must be at least {least}; got {value}.")


def check_unique_names(names: list[str], where: str) -> None:
    for name in names:
        if "/" in name or name.startswith(".") or not name.isprintable():
            raise InputError(f"{where} must give plain names, without slashes, for they name folders; got {name!r}.")
        if names.count(name) > 1:
            raise InputError(f"{where} has the name {name!r} twice; give each a `name` of its own.")


NUMBERS = ("parameters",)
WORDS = ("family", "architecture", "objective", "training_data", "modality")
