"""A folder of stitchers: list them, promote one, select the one for a pair of spaces, detect changes."""

import errno
import json
import logging
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic, sleep

from repstitch.errors import ConflictError, InputError, NotFoundError, one_line
from repstitch.files import locked, read_json, stitchers_folder, writing, written_whole
from repstitch.stitchers.routing import Route, best_route, pair_key
from repstitch.stitchers.stitcher import Stitcher, load
from repstitch.text import nearest

log = logging.getLogger(__name__)
PROMOTED = "promoted.json"
SECOND_LOOK_S = 0.1
RETRY_S = 60.0  # seconds after which folders that could not be read are read again


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

    @cached_property
    def serving(self) -> dict[str, str]:
        """The name of the stitcher that serves each pair: the promoted one, else the one that was created first.

        Stitchers of releases that did not record when they were created count as older than all others; the name
        decides between equals. The other stitchers of a pair are candidates.
        """
        pairs: dict[str, list[str]] = {}
        for name, stitcher in self.stitchers.items():
            pairs.setdefault(pair_key(stitcher.source.name, stitcher.target.name), []).append(name)
        return {
            pair: self.promoted[pair]
            if self.promoted.get(pair) in names
            else min(names, key=lambda name: (self.stitchers[name].created_at, name))
            for pair, names in pairs.items()
        }

    def serves(self, name: str) -> bool:
        """Whether requests that name no stitcher use this one for its pair."""
        stitcher = self.stitchers[name]
        return self.serving[pair_key(stitcher.source.name, stitcher.target.name)] == name


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
        self._unreadable: str | None = None  # the error message of the whole folder, which is logged once
        self._retry_at = 0.0

    def refresh(self) -> dict[str, str]:
        """Read the changes in the folder.

        A stitcher that cannot be read, for whatever reason, is reported and left out, and read again when it changes or
        after a minute. If an earlier version of it was loaded, that version stays in use. A stitcher is removed only if
        its folder is also missing 0.1 s later, because a folder may be missing for a moment while it is replaced. If
        the whole folder is missing or cannot be read, all stitchers stay in use.

        Returns:
            The change of each changed stitcher, by name: `loaded`, `removed` or an error message.
        """
        old = self.state
        try:
            paths = _stitcher_folders(self.folder)
            if old.stitchers.keys() - paths.keys():
                # A folder that is replaced by two renames has no name between them, so look again before it is removed.
                sleep(SECOND_LOOK_S)
                paths = _stitcher_folders(self.folder)
        except OSError as error:
            self._keep_all(error)
            return {}
        self._unreadable = None
        stitchers, problems, stamps, report = self._read(paths)
        report |= dict.fromkeys(old.stitchers.keys() - stitchers.keys(), "removed")
        try:
            promoted = _read_promoted(self.folder)
        except InputError as error:
            promoted, problems[PROMOTED] = old.promoted, str(error)
            if old.problems.get(PROMOTED) != str(error):  # logged once, not at every refresh
                log.error("%s", error)
        self.state = State(stitchers, promoted, problems, stamps)
        _log_who_serves(old, self.state)
        return report

    def _read(self, paths: Mapping[str, Path]) -> tuple[dict[str, Stitcher], dict[str, str], dict[str, tuple], dict]:
        """Return the stitchers, the problems and the stamps of the folder, and the report of `refresh`."""
        old, report = self.state, {}
        stitchers, problems, stamps = {}, {}, {}
        # A problem may also end without a change of the files, for example a lack of memory or a lost connection.
        retry = monotonic() >= self._retry_at
        if retry:
            self._retry_at = monotonic() + RETRY_S
        for name, path in paths.items():
            stamps[name] = stamp = _stamp(path)
            if name in old.stitchers:
                stitchers[name] = old.stitchers[name]
            if old.stamps.get(name) == stamp and not (retry and name in old.problems):
                if name in old.problems:
                    problems[name] = old.problems[name]
                continue
            try:
                stitchers[name] = _load(path)
                report[name] = "loaded"
            except Exception as error:  # whatever is wrong with one folder must not stop the others
                problems[name] = problem = str(error) if isinstance(error, InputError) else f"{path}: {one_line(error)}"
                if old.problems.get(name) != problem or old.stamps.get(name) != stamp:
                    report[name] = problem
                    log.error("Not loaded: %s", problem)
        return stitchers, problems, stamps, report

    def _keep_all(self, error: OSError) -> None:
        """Keep the state although the whole folder cannot be read, and log the reason once."""
        problem = (
            f"There is no folder {self.folder} yet; create it to load stitchers."
            if isinstance(error, FileNotFoundError | NotADirectoryError)
            else f"The folder {self.folder} cannot be read: {one_line(error)}"
        )
        if self._unreadable != problem:
            log.warning("%s", problem)
        self._unreadable = problem
        if not self.state.stitchers:
            self.state = State(problems={str(self.folder): problem})

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
        """Select the stitcher for a pair of spaces: the named one, else the promoted one, else the one created first.

        Args:
            source: The name of the source space.
            target: The name of the target space.
            name: The name of the stitcher to use. Default: None, select it by the pair.

        Returns:
            The stitcher's name and the stitcher.

        Raises:
            NotFoundError: If no stitcher has this name, or none translates this pair.
            ConflictError: If the named stitcher translates another pair.
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
        serving = state.serving.get(pair_key(source, target))
        if serving is not None:
            return serving, state.stitchers[serving]
        spaces = {x for s in state.stitchers.values() for x in (s.source.name, s.target.name)}
        for side, space in (("source", source), ("target", target)):
            if space not in spaces:
                raise NotFoundError(f"There is no space {space!r} (`{side}`).{_suggestion(space, spaces)}")
        raise NotFoundError(
            f"No stitcher translates {source} -> {target}.{_suggestion(pair_key(source, target), state.serving)}"
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
        """
        state = self.state
        try:
            name, stitcher = self.resolve(source, target)
            return Route((name,), (stitcher,))
        except NotFoundError as error:
            served = {name: state.stitchers[name] for name in state.serving.values()}
            names = best_route(served, source, target)
            if not names:
                raise NotFoundError(f"{error} There is no route through other spaces either.") from None
            return Route(names, tuple(state.stitchers[name] for name in names))

    def promote(self, name: str) -> str:
        """Make a stitcher the one to use for its pair of spaces.

        The folder's `promoted.json` is replaced atomically. Promotions at the same time are made one after another.

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
        target = self.folder / PROMOTED
        with writing(target, self.folder, argument=None), locked(self.folder, wait=True):
            promoted = dict(_read_promoted(self.folder)) | {pair: name}
            with written_whole(target, argument=None) as path:
                path.write_text(json.dumps(promoted, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        self.refresh()
        return pair


def _log_who_serves(old: State, new: State) -> None:
    """Log the pairs that another stitcher serves now, and the new candidates."""
    for pair, name in new.serving.items():
        if old.serving.get(pair, name) != name:
            log.info("%s is now served by %s; before, it was %s.", pair, name, old.serving[pair])
    for name, stitcher in new.stitchers.items():
        if not new.serves(name) and old.stitchers.get(name) is not stitcher:
            pair = pair_key(stitcher.source.name, stitcher.target.name)
            log.info(
                "Stitcher %s is a candidate for %s, which %s serves; promote it to use it.",
                name,
                pair,
                new.serving[pair],
            )


def _stitcher_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of stitchers by name, sorted. Raises OSError if the folder cannot be read."""
    os.stat(os.path.join(folder, os.curdir))  # raises an error if nothing in the folder can be reached
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return {name: folder / name for name in names if _may_be_folder(folder / name)}


def _may_be_folder(path: Path) -> bool:
    """Return whether a path is a folder, or cannot be examined at present, for example because a disk fails."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _load(path: Path) -> Stitcher:
    if not path.name.isprintable():  # such a name could not be shown, logged or sent
        raise InputError(f"The name of the folder {str(path)!r} must consist of printable characters; rename it.")
    stitcher = load(path)
    _ = stitcher.version  # computed here, since nothing that a folder contains may raise an error later
    return stitcher


def _read_promoted(folder: Path) -> dict[str, str]:
    path = folder / PROMOTED
    try:
        promoted = read_json(path)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise InputError(
            f"{path} cannot be read: {one_line(error).rstrip('.')}. Remove it and promote again."
        ) from None
    if not isinstance(promoted, dict) or not all(isinstance(v, str) for v in promoted.values()):
        raise InputError(f"{path} must be a JSON object of pairs and stitcher names. Remove it and promote again.")
    return promoted


def _stamp(path: Path) -> tuple:
    """Return the name, size, times and inode of each file of a folder, to detect changes without reading the files.

    The time of the last change of the inode shows a change of permissions. The stamp is empty if the folder is missing
    or changes at this moment.
    """
    try:
        stats = [(f.name, f.stat()) for f in sorted(path.iterdir()) if f.is_file()]
    except OSError:
        return ()
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stats)


def _suggestion(name: str, names: Collection[str]) -> str:
    alike = nearest(name, sorted(names))
    if alike:
        return f" Nearest: {', '.join(alike)}."
    return f" Available: {', '.join(sorted(names)[:5])}." if names else " The folder contains no stitchers."
