"""A folder of stitchers: list them, promote one, select the one for a pair of spaces, detect changes."""

import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep

from repstitch.errors import ConflictError, InputError, NotFoundError, one_line
from repstitch.files import stitchers_folder, written_whole
from repstitch.stitchers.routing import Route, best_route, pair_key
from repstitch.stitchers.stitcher import Stitcher, load
from repstitch.text import nearest

log = logging.getLogger(__name__)
PROMOTED = "promoted.json"
SECOND_LOOK_S = 0.1


@dataclass(frozen=True)
class State:
    """The content of the folder when it was last read. It is replaced as a whole, so readers need no lock.

    `stitchers` has the stitchers by name, `promoted` the name of the promoted stitcher of each pair, `problems` the
    error messages by name, and `stamps` the state of the files by name.
    """

    stitchers: Mapping[str, Stitcher] = field(default_factory=dict)
    promoted: Mapping[str, str] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    stamps: Mapping[str, tuple] = field(default_factory=dict)


class Registry:
    """The stitchers in one folder. A stitcher's name is the name of its subfolder.

    A new registry is empty: call `refresh` to read the folder, and again to read changes. Other threads can use the
    registry during a refresh without waiting, because `refresh` builds a new state and then replaces the old one.

    Args:
        folder: The folder that contains the stitchers' folders. Default: the environment variable REPSTITCH_STITCHERS,
            else `models/stitchers`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        self.folder = stitchers_folder() if folder is None else Path(folder)
        self.state = State()

    def refresh(self) -> dict[str, str]:
        """Read the changes in the folder.

        A stitcher that cannot be read is reported and left out. If an earlier version of it was loaded, that version
        stays in use. A stitcher is removed only if its folder is also missing 0.1 s later, because a folder may be
        missing for a moment while it is replaced. If the whole folder is missing, all stitchers stay in use.

        Returns:
            The change of each changed stitcher, by name: `loaded`, `removed` or an error message.
        """
        old, report = self.state, {}
        paths = _stitcher_folders(self.folder)
        if paths is not None and old.stitchers.keys() - paths.keys():
            # A folder that is replaced by two renames has no name between them, so look again before it is removed.
            sleep(SECOND_LOOK_S)
            paths = _stitcher_folders(self.folder)
        if paths is None:
            missing = {str(self.folder): f"There is no folder {self.folder} yet; create it to load stitchers."}
            if not old.stitchers and old.problems != missing:  # logged once, not at every refresh
                log.warning("%s", missing[str(self.folder)])
                self.state = State(problems=missing)
            return report
        stitchers, problems, stamps = {}, {}, {}
        for name, path in paths.items():
            stamps[name] = stamp = _stamp(path)
            if old.stamps.get(name) == stamp:
                if name in old.stitchers:
                    stitchers[name] = old.stitchers[name]
                if name in old.problems:
                    problems[name] = old.problems[name]
                continue
            try:
                stitchers[name] = load(path)
                report[name] = "loaded"
            except InputError as error:
                problems[name] = report[name] = str(error)
                if name in old.stitchers:
                    stitchers[name] = old.stitchers[name]
                log.error("Not loaded: %s", error)
        for name in old.stitchers:
            if name not in stitchers:
                report[name] = "removed"
        try:
            promoted = _read_promoted(self.folder)
        except InputError as error:
            promoted, problems[PROMOTED] = old.promoted, str(error)
            if old.problems.get(PROMOTED) != str(error):  # logged once, not at every refresh
                log.error("%s", error)
        self.state = State(stitchers, promoted, problems, stamps)
        return report

    def get(self, name: str) -> Stitcher:
        """Return a stitcher by its name.

        Args:
            name: The name of the stitcher.

        Returns:
            The stitcher.

        Raises:
            NotFoundError: If no stitcher has this name. The message lists the most similar names.
        """
        stitcher = self.state.stitchers.get(name)
        if stitcher is None:
            raise NotFoundError(f"There is no stitcher {name!r}.{_suggestion(name, self.state.stitchers)}")
        return stitcher

    def resolve(self, source: str, target: str, name: str | None = None) -> tuple[str, Stitcher]:
        """Select the stitcher for a pair of spaces: the named one, the only one, or the promoted one.

        Args:
            source: The name of the source space.
            target: The name of the target space.
            name: The name of the stitcher to use. Default: None, select it by the pair.

        Returns:
            The stitcher's name and the stitcher.

        Raises:
            NotFoundError: If no stitcher has this name, or none translates this pair.
            ConflictError: If the named stitcher translates another pair, or if several stitchers translate this pair
                and none is promoted.
        """
        state = self.state
        if name is not None:
            stitcher = self.get(name)
            if (stitcher.source.name, stitcher.target.name) != (source, target):
                raise ConflictError(
                    f"Stitcher {name!r} translates "
                    f"{stitcher.source.name} -> {stitcher.target.name}, not {source} -> {target}."
                )
            return name, stitcher
        fits = [n for n, s in state.stitchers.items() if (s.source.name, s.target.name) == (source, target)]
        if len(fits) == 1:
            return fits[0], state.stitchers[fits[0]]
        promoted = state.promoted.get(pair_key(source, target))
        if promoted in fits:
            return promoted, state.stitchers[promoted]
        if fits:
            raise ConflictError(
                f"Several stitchers translate {source} -> {target} ({', '.join(sorted(fits))}) and none is promoted; "
                "name one, or promote one with `repstitch promote NAME`."
            )
        spaces = {x for s in state.stitchers.values() for x in (s.source.name, s.target.name)}
        for side, space in (("source", source), ("target", target)):
            if space not in spaces:
                raise NotFoundError(f"There is no space {space!r} (`{side}`).{_suggestion(space, spaces)}")
        pairs = [pair_key(s.source.name, s.target.name) for s in state.stitchers.values()]
        raise NotFoundError(
            f"No stitcher translates {source} -> {target}.{_suggestion(pair_key(source, target), pairs)}"
        )

    def route(self, source: str, target: str) -> Route:
        """Select the stitcher for a pair of spaces, or else the best route through other spaces.

        Each step of a route uses the stitcher that `resolve` selects for its pair. Two steps are joined only if the
        cards of the space between them agree. Routes are compared by their number of stitchers without a score (fewer
        is better), then by expected recall@1, then by the number of steps.

        Args:
            source: The name of the source space.
            target: The name of the target space.

        Returns:
            The route: one stitcher, or several to apply in sequence.

        Raises:
            NotFoundError: If there is no route.
            ConflictError: If several stitchers translate this pair and none is promoted.
        """
        state = self.state
        try:
            name, stitcher = self.resolve(source, target)
            return Route((name,), (stitcher,))
        except NotFoundError as error:
            names = best_route(_served(state), source, target)
            if not names:
                raise NotFoundError(f"{error} There is no route through other spaces either.") from None
            return Route(names, tuple(state.stitchers[name] for name in names))

    def promote(self, name: str) -> str:
        """Make a stitcher the one to use for its pair of spaces. The folder's `promoted.json` is replaced atomically.

        Args:
            name: The name of the stitcher.

        Returns:
            The pair, as `source->target`.

        Raises:
            NotFoundError: If no stitcher has this name.
            InputError: If `promoted.json` cannot be read or written.
        """
        stitcher = self.get(name)
        pair = pair_key(stitcher.source.name, stitcher.target.name)
        promoted = dict(_read_promoted(self.folder)) | {pair: name}
        with written_whole(self.folder / PROMOTED, argument=None) as path:
            path.write_text(json.dumps(promoted, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        self.refresh()
        return pair


def _served(state: State) -> dict[str, Stitcher]:
    """Return the stitchers to use: for each pair the only stitcher, or the promoted one."""
    fits: dict[str, list[str]] = {}
    for name, stitcher in state.stitchers.items():
        fits.setdefault(pair_key(stitcher.source.name, stitcher.target.name), []).append(name)
    chosen = {pair: names[0] if len(names) == 1 else state.promoted.get(pair) for pair, names in fits.items()}
    return {name: state.stitchers[name] for pair, name in chosen.items() if name in fits[pair]}


def _stitcher_folders(folder: Path) -> dict[str, Path] | None:
    """Return the folders of stitchers by name, sorted; None if `folder` is missing."""
    if not folder.is_dir():
        return None
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}


def _read_promoted(folder: Path) -> dict[str, str]:
    path = folder / PROMOTED
    if not path.exists():
        return {}
    try:
        promoted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}. Remove it and promote again.") from None
    if not isinstance(promoted, dict) or not all(isinstance(v, str) for v in promoted.values()):
        raise InputError(f"{path} must be a JSON object of pairs and stitcher names. Remove it and promote again.")
    return promoted


def _stamp(path: Path) -> tuple:
    """Return the name, size, time and inode of each file of a folder, to detect changes without reading the files.

    The stamp is empty if the folder is missing or changes at this moment.
    """
    try:
        stats = [(f.name, f.stat()) for f in sorted(path.iterdir()) if f.is_file()]
    except OSError:
        return ()
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats)


def _suggestion(name: str, names: Collection[str]) -> str:
    alike = nearest(name, names)
    if alike:
        return f" Nearest: {', '.join(alike)}."
    return f" Available: {', '.join(sorted(names)[:5])}." if names else " The folder contains no stitchers."
