"""What is carried over a bridge, and whether it works there: the whole of `repstitch transfer` in two calls."""

from dataclasses import replace

import numpy as np
import torch

from repstitch.errors import InputError
from repstitch.spaces import adopt
from repstitch.stitcher import Stitcher
from repstitch.transfer.bridge import Bridge
from repstitch.transfer.carry import carry
from repstitch.transfer.fidelity import compare_features
from repstitch.transfer.kinds import Dictionary, Directions, Probe, Thing
from repstitch.transfer.linear import Linear, bare
from repstitch.transfer.proof import Task, label_efficiency, make_task, prove, prove_directions, shuffled_map


def transfer(thing: Thing, bridge: Bridge, renormalise: bool = False) -> tuple[Thing, str]:
    """The thing as it is in the target space, and through what it went, in words.

    What is carried is of rows as the stitchers normalise them, and so is what comes out: unit rows, unless the card of a
    space says that its rows are not normalised. Raises InputError where a stitcher is missing that this thing needs, and
    where it is of another space.
    """
    if thing.space is not None:
        adopt(thing.space, True, bridge.home, "What is carried", opposite=bridge.away)
    needs = NEEDS[type(thing)]
    for way in needs:
        if getattr(bridge, way) is None:
            there = "source to target" if way == "forward" else "target to source"
            raise InputError(f"`{way}`, a stitcher from {there}, is needed to carry {WORDS[type(thing)]}.")
    if isinstance(thing, Dictionary):
        _check_joined(bridge)
    through = {"forward": bridge.onward if "forward" in needs else None, "backward": None}
    through["backward"] = bridge.back if "backward" in needs else None
    carried = carry(thing, through["forward"], through["backward"], renormalise)
    how = "; ".join(f"{way}: {through[way].how}" for way in needs)
    return replace(carried, space=bridge.away), how


def task_over(bridge: Bridge, probe: Probe | None = None, seed: int = 0) -> Task:
    """The labelled rows of a bridge as a task to prove a probe on; InputError where they are missing."""
    if bridge.backward is None or bridge.pairs is None or bridge.pairs.labels is None:
        raise InputError("To prove a probe, a `backward` stitcher, `labels` and the rows of both spaces are needed.")
    X, Y = bridge.target_rows(bridge.pairs.X), bridge.source_rows(bridge.pairs.Y)
    return make_task(X, Y, bridge.pairs.labels, bridge.parts, bridge.seen, probe and probe.classes, seed)


def prove_probe(bridge: Bridge, probe: Probe | None = None, curve: bool = True, seed: int = 0) -> tuple[Probe, dict]:
    """A probe of the source, trained there where none is given, and how well it does on the target: see `proof.prove`.

    With a `curve` also how many labelled target rows a native probe needs for as much; with a forward stitcher also
    whether the classes' mean directions are carried to where the target has them.
    """
    task = task_over(bridge, probe, seed)
    assert bridge.backward is not None and bridge.back is not None
    made = probe or task.probe(task.source)
    found = prove(bridge.backward, task, made, bridge.back, seed)
    found["probe"] = "trained on the source's rows" if probe is None else "given"
    if curve:
        found["label_efficiency"] = label_efficiency(task, found["accuracy"]["carried"]["score"], seed)
    if bridge.onward is not None:
        found["class_directions"] = prove_directions(bridge.onward, task)
    return made, found


def prove_dictionary(bridge: Bridge, dictionary: Dictionary, seed: int = 0) -> dict:
    """Whether the carried dictionary says of unseen target rows what it said of the source's: `fidelity`."""
    _check_joined(bridge)
    pairs, onward, back = bridge.pairs, bridge.onward, bridge.back
    if pairs is None or onward is None or back is None or bridge.forward is None or bridge.backward is None:
        raise InputError("To compare features, both stitchers and rows of the same items in both spaces are needed.")
    unseen = np.flatnonzero(~bridge.seen)
    if len(unseen) < 2:
        raise InputError(
            "All items were used to train the stitchers; give some that they have not seen, to compare on."
        )
    X, Y = bridge.target_rows(pairs.X), bridge.source_rows(pairs.Y)
    train = bridge.parts.train
    controls = (
        _shuffled(bridge.forward, Y[train], X[train], seed),
        _shuffled(bridge.backward, X[train], Y[train], seed),
    )
    return compare_features(dictionary, onward, back, X[unseen], Y[unseen], controls)


def _shuffled(stitcher: Stitcher, X: np.ndarray, Y: np.ndarray, seed: int) -> Linear:
    return bare(shuffled_map(stitcher, torch.from_numpy(X), torch.from_numpy(Y), seed))


def _check_joined(bridge: Bridge) -> None:
    """A dictionary reads and writes both spaces, so both stitchers must mean the same rows by them."""
    if bridge.forward is None or bridge.backward is None:
        return
    for end, a, b in (
        ("source", bridge.forward.input_norm, bridge.backward.output_norm),
        ("target", bridge.forward.output_norm, bridge.backward.input_norm),
    ):
        if a != b:
            raise InputError(
                f"The stitchers mean other rows of the {end} space, normalised to {a!r} and {b!r}, so no dictionary can "
                "go through both; train them with --output-norm unit."
            )


NEEDS: dict[type, tuple[str, ...]] = {
    Directions: ("forward",),
    Probe: ("backward",),
    Dictionary: ("forward", "backward"),
}
WORDS = {Directions: "directions", Probe: "a probe", Dictionary: "a dictionary"}
