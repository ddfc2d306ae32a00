"""Read a study file: TOML with groups of encoders and the hypotheses to test. `study` describes its keys."""

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from repstitch.arguments import check_draws, check_seed
from repstitch.errors import InputError, NotFoundError
from repstitch.files import data_folder, read_toml
from repstitch.names import METRICS


@dataclass(frozen=True, eq=False)
class Group:
    """Encoders that read the same items, and files of vectors of the same items."""

    name: str
    data: str | None = None
    limit: int | None = None
    layers: str | list | None = None
    drop_invalid: bool = False
    encoders: list = field(default_factory=list)
    files: list = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Experiment:
    """One experiment: the groups to align, the metrics, and the hypotheses to test on the alignment scores."""

    name: str
    group: list
    metrics: list = field(default_factory=lambda: ["mutual_knn"])
    k: int = 10
    permutations: int = 200
    seed: int = 0
    trend: str | None = None
    against: str | None = None
    control: list = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Study:
    """The content of a study file, checked."""

    name: str
    about: str
    experiments: list[Experiment]

    def chosen(self, name: str | None) -> list[Experiment]:
        """Return the experiment of this name, or all if it is None. Raises InputError if none has the name."""
        chosen = [experiment for experiment in self.experiments if name in (None, experiment.name)]
        if not chosen:
            names = ", ".join(experiment.name for experiment in self.experiments)
            raise InputError(f"`only` must be one of the experiments of {self.name} ({names}); got {name!r}.")
        return chosen


def read_study(file: str | os.PathLike[str]) -> Study:
    """Read a study from a path, or by the name of a study that comes with the package.

    Raises InputError if the file does not follow the format, NotFoundError if the name is unknown.
    """
    path = Path(file)
    if not path.is_file():
        path = data_folder("studies") / f"{file}.toml"
        if not path.is_file():
            available = ", ".join(sorted(study.stem for study in path.parent.glob("*.toml")))
            raise NotFoundError(f"There is no study {str(file)!r}; pass a .toml file, or one of {available}.")
    try:
        table = read_toml(path)
    except (OSError, ValueError) as error:
        raise InputError(f"The study {path} cannot be read: {error}") from None
    unknown = sorted(set(table) - {"about", "experiment"})
    if unknown or not isinstance(table.get("experiment"), list) or not table["experiment"]:
        raise InputError(
            f"The study {path.name} must have [[experiment]] tables and no other key than 'about'; got "
            f"{', '.join(table) or 'nothing'}."
        )
    experiments = [_experiment(entry, f"The study {path.name}") for entry in table["experiment"]]
    check_unique_names([experiment.name for experiment in experiments], f"The study {path.name}")
    return Study(path.stem, str(table.get("about", "")), experiments)


def _experiment(table: Any, study: str) -> Experiment:
    experiment = _build(Experiment, table, study)
    subject = f"{study}, experiment {experiment.name!r},"
    groups = [_build(Group, entry, subject) for entry in experiment.group]
    names = [group.name for group in groups]
    check_unique_names(names, subject)
    for group in groups:
        _check_group(group, subject)
    _check_at_least("k", experiment.k, 1, subject)
    check_draws(experiment.permutations, f"{subject} 'permutations'")
    check_seed(experiment.seed, f"{subject} 'seed'")
    if not experiment.metrics:
        raise InputError(f"{subject} 'metrics' must name at least one of {', '.join(METRICS)}; got none.")
    for key, values, allowed in (
        ("metrics", experiment.metrics, METRICS),
        ("against", [experiment.against], [None, *names]),
        ("trend", [experiment.trend], [None, *NUMERIC_FIELDS]),
        ("control", experiment.control, TEXT_FIELDS),
    ):
        wrong = [value for value in values if value not in allowed]
        if wrong:
            listed = ", ".join(name for name in allowed if name is not None)
            raise InputError(f"{subject} '{key}' must be one of {listed}; got {wrong[0]!r}.")
    return replace(experiment, group=groups)


def _check_group(group: Group, subject: str) -> None:
    if not group.encoders and not group.files:
        raise InputError(f"{subject} group {group.name!r} must have 'encoders' or 'files'; it has neither.")
    if group.encoders and group.data is None:
        raise InputError(f"{subject} group {group.name!r} must have 'data', the items that its encoders read.")
    layers = group.layers
    numbers = isinstance(layers, list) and layers and all(type(layer) is int for layer in layers)
    if layers not in (None, "all") and not numbers:
        raise InputError(f"{subject} 'layers' must be all, or a list such as [1, 6, 12]; got {layers!r}.")
    _check_at_least("limit", group.limit, 1, subject)


def _build(kind: type, table: Any, subject: str) -> Any:
    """Build a `Group` or `Experiment` from its table. Raises InputError on unknown keys and wrong types."""
    types = get_type_hints(kind)
    if not isinstance(table, dict):
        raise InputError(f"{subject} must contain tables; got {table!r}.")
    unknown = sorted(set(table) - set(types))
    if unknown:
        raise InputError(f"{subject} has the unknown key '{unknown[0]}'; allowed keys are {', '.join(types)}.")
    for key in (f.name for f in fields(kind)):
        if key in ("name", "group") and not table.get(key):
            raise InputError(f"{subject} must have '{key}' in each {kind.__name__.lower()}.")
        if key in table:
            check_type(table[key], types[key], f"{subject} '{key}'")
    return kind(**table)


def check_type(value: Any, kind: Any, subject: str) -> None:
    """Raise InputError unless the value has the type `kind`; true and false do not count as whole numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in (kind, *get_args(kind))):
        raise InputError(f"{subject} must be {getattr(kind, '__name__', None) or kind}; got {value!r}.")


def _check_at_least(key: str, value: int | None, least: int, subject: str) -> None:
    if value is not None and value < least:
        raise InputError(f"{subject} '{key}' must be at least {least}; got {value}.")


def check_unique_names(names: list[str], subject: str) -> None:
    """Raise InputError unless the names are unique and can be folder names."""
    for name in names:
        if "/" in name or name.startswith(".") or not name.isprintable():
            raise InputError(
                f"{subject} must use plain names without slashes, because they become folder names; got {name!r}."
            )
        if names.count(name) > 1:
            raise InputError(f"{subject} has the name {name!r} twice; use a different 'name' for each.")


NUMERIC_FIELDS = ("parameters",)
TEXT_FIELDS = ("family", "architecture", "objective", "training_data", "modality")
