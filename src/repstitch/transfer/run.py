"""What is carried over a bridge, and whether it works there: the whole of `repstitch transfer` in two calls."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from repstitch.embeddings.columns import read_column
from repstitch.errors import InputError
from repstitch.metrics.classification import hits
from repstitch.names import CONCEPTS
from repstitch.spaces import adopt
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.carry import carry
from repstitch.transfer.context import TransferContext
from repstitch.transfer.dictionary_evaluation import compare_features
from repstitch.transfer.kinds import Dictionary, Directions, Probe, Thing, name_of
from repstitch.transfer.linear import Linear, bare
from repstitch.transfer.probe_evaluation import Task, label_efficiency, make_task, prove, prove_directions, shuffled_map
from repstitch.transfer.probes import concept
from repstitch.transfer.zero_shot import name_classes, prove_names

log = logging.getLogger(__name__)


def transfer(thing: Thing, bridge: TransferContext, renormalise: bool = False) -> tuple[Thing, str]:
    """The thing as it is in the target space, and through what it went, in words.

    What is carried is of rows as the stitcher normalises them, and so is what comes out; the words say how. Raises
    InputError where a stitcher is missing that this thing needs, and where it is of another space.
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
    through = {way: bridge.onward if way == "forward" else bridge.back for way in needs}
    carried = carry(thing, through.get("forward"), through.get("backward"), renormalise)
    how = "; ".join(f"{way}: {map.how}" for way, map in through.items() if map is not None)
    return replace(carried, space=bridge.away), f"{how}; {rows_meant(bridge, needs[-1])}"


def rows_meant(bridge: TransferContext, way: str) -> str:
    """Which rows a thing is of before and after it is carried by the `forward` or `backward` stitcher, in words."""
    words = {"unit": "unit length", "none": "the length they have"}
    home, away = (words[how] for how in bridge.norms(way))
    return f"rows: of {bridge.home.name} at {home}, of {bridge.away.name} at {away}"


def task_over(bridge: TransferContext, probe: Probe | None = None, seed: int = 0) -> Task:
    """The labelled rows of a bridge as a task to prove a probe on; InputError where they are missing."""
    if bridge.backward is None or bridge.pairs is None or bridge.pairs.labels is None:
        raise InputError("To prove a probe, a `backward` stitcher, `labels` and the rows of both spaces are needed.")
    X, Y = bridge.target_rows(bridge.pairs.X, "backward"), bridge.source_rows(bridge.pairs.Y, "backward")
    return make_task(X, Y, bridge.pairs.labels, bridge.parts, bridge.seen, probe and probe.classes, seed)


def prove_probe(
    bridge: TransferContext, probe: Probe | None = None, curve: bool = True, seed: int = 0
) -> tuple[Probe, dict]:
    """A probe of the source, trained there where none is given, and how well it does on the target: see `proof.prove`.

    With a `curve` also how many labelled target rows a native probe needs for as much; with a forward stitcher also
    whether the classes' mean directions are carried to where the target has them.
    """
    probe = None if probe is None else _with_classes(probe, bridge)
    task = task_over(bridge, probe, seed)
    if probe is not None:
        _check_scale(bridge, probe, task)
    assert bridge.backward is not None
    made = probe or task.probe(task.source)
    found = prove(bridge.backward, task, made, bridge.back, seed)
    found["probe"] = "trained on the source's rows" if probe is None else "given"
    if curve:
        found["label_efficiency"] = label_efficiency(task, found["accuracy"]["carried"]["score"], seed)
    if bridge.onward is not None and bridge.norms("forward") == bridge.norms("backward"):
        found["class_directions"] = prove_directions(bridge.onward, task)
    return made, found


def _check_scale(bridge: TransferContext, probe: Probe, task: Task) -> None:
    """Warn of a probe that does better on rows as they are than on those that the stitcher knows."""
    if bridge.norms("backward")[0] == "none" or bridge.pairs is None:
        return
    y = task.y[task.test]
    at_home = [hits(task.scores(probe, rows[task.test]), y).mean() for rows in (task.source, bridge.pairs.Y)]
    if at_home[1] > at_home[0] + NOTICED:
        log.warning(
            "The probe is right on %.1f %% of the source's rows as they are, on %.1f %% at unit length, which the "
            "stitcher knows them by; train it on unit rows.",
            100 * at_home[1],
            100 * at_home[0],
        )


def _with_classes(probe: Probe, bridge: TransferContext) -> Probe:
    """A probe that does not say what its scores speak for takes labels that number them from 0, as torch's heads do."""
    if probe.classes is not None or bridge.target is None or bridge.target.labels is None:
        return probe
    numbered = tuple(str(i) for i in range(len(probe.coef)))
    found = set(bridge.target.labels) - {None}
    if len(probe.coef) == 1:
        raise InputError(
            "The probe's file holds one score and does not say which two classes it tells apart; give `classes`: two "
            "lines, the second what a score above 0 says."
        )
    if not found <= set(numbered):
        some = ", ".join(sorted(found - set(numbered))[:4])
        raise InputError(
            f"The probe's file does not say what its {len(probe.coef)} scores speak for, and the labels ({some} …) do "
            "not number them from 0; give `classes`, one a line in the order of the scores."
        )
    return replace(probe, classes=numbered)


def evaluate(bridge: TransferContext, thing: Thing | None, seed: int = 0) -> tuple[Thing, dict]:
    """The thing, and its proof where the bridge has rows for one; without a thing a probe is trained by the labels."""
    if isinstance(thing, Probe) or thing is None:
        if thing is not None and (bridge.target is None or bridge.target.labels is None):
            return thing, {}
        return prove_probe(bridge, thing, seed=seed)
    if bridge.target is not None and bridge.target.labels is not None:
        raise InputError(f"`labels` prove probes, and this is {name_of(thing)}; leave them out.")
    if isinstance(thing, Dictionary) and bridge.pairs is not None:
        if bridge.seen[bridge.parts.test].all():
            log.warning("No item is left that no stitcher has seen, so the dictionary is carried without a proof.")
            return thing, {}
        return thing, prove_dictionary(bridge, thing, seed)
    return thing, {}


def prove_dictionary(bridge: TransferContext, dictionary: Dictionary, seed: int = 0) -> dict:
    """Whether the carried dictionary says of unseen target rows what it said of the source's: `fidelity`."""
    _check_joined(bridge)
    pairs, onward, back = bridge.pairs, bridge.onward, bridge.back
    if pairs is None or onward is None or back is None or bridge.forward is None or bridge.backward is None:
        raise InputError("To compare features, both stitchers and rows of the same items in both spaces are needed.")
    unseen = bridge.parts.test[~bridge.seen[bridge.parts.test]]
    if len(unseen) < 2:
        raise InputError(
            "All items were used to train the stitchers; give some that they have not seen, to compare on."
        )
    X, Y = bridge.target_rows(pairs.X, "backward"), bridge.source_rows(pairs.Y, "backward")
    train = bridge.parts.train
    controls = (
        _shuffled(bridge.forward, Y[train], X[train], seed),
        _shuffled(bridge.backward, X[train], Y[train], seed),
    )
    return compare_features(dictionary, onward, back, X[unseen], Y[unseen], controls)


def concept_of(bridge: TransferContext, positive, negative, by: str | None = None) -> Directions | Probe:
    """A concept of the source space from two sets of embeddings there, see `probes.concept`."""
    sets, way = [], "backward" if by == "classifier" else "forward"
    for what, given in (("concept", positive), ("against", negative)):
        sets.append(bridge.source_rows(bridge.read_source(given, what).vectors, way))
    return concept(*sets, by=by or CONCEPTS[0], name=Path(str(positive)).stem)


def from_names(bridge: TransferContext, prompts, names=None, seed: int = 0) -> tuple[Probe, dict]:
    """A probe of the target space from prompts in the source space, see `zero_shot`; and how well it does.

    `prompts` are embeddings, one a class, called by `names` (one a prompt, which may repeat) or else by their ids. The
    proof is on the labelled target rows that the stitcher has not seen; it is empty without labels.
    """
    if bridge.forward is None:
        raise InputError("`forward`, a stitcher from the prompts' space to the target, is needed.")
    rows = bridge.read_source(prompts, "prompts")
    called = rows.ids if names is None else read_column(names, len(rows), "names")
    if called is None:
        raise InputError("`prompts` must have ids, the names of the classes; or give `names`, one a prompt.")
    probe = name_classes(bridge.forward, rows.vectors, list(called))
    if bridge.target is None or bridge.target.labels is None:
        return probe, {}
    unseen = bridge.unseen_target()
    found = prove_names(probe, bridge.target_rows(unseen.vectors, "forward"), np.asarray(unseen.labels), seed)
    found["left_out"] |= {"without a label, or seen by the stitcher": len(bridge.target) - len(unseen)}
    return probe, {"source": bridge.home.name, "target": bridge.away.name} | found


def _shuffled(stitcher: Stitcher, X: np.ndarray, Y: np.ndarray, seed: int) -> Linear:
    return bare(shuffled_map(stitcher, torch.from_numpy(X), torch.from_numpy(Y), seed))


def _check_joined(bridge: TransferContext) -> None:
    """A dictionary reads and writes both spaces, so both stitchers must mean the same rows by them."""
    if bridge.forward is None or bridge.backward is None:
        return
    for end, a, b in (
        ("source", bridge.forward.input_norm, bridge.backward.output_norm),
        ("target", bridge.forward.output_norm, bridge.backward.input_norm),
    ):
        if a != b:
            raise InputError(
                f"The stitchers mean other rows of the {end} space, normalised to {a!r} and {b!r}, so no dictionary "
                "can go through both; train them with --output-norm unit."
            )


NEEDS: dict[type, tuple[str, ...]] = {
    Directions: ("forward",),
    Probe: ("backward",),
    Dictionary: ("forward", "backward"),
}
NAMES_HOW = "forward: the bare map of each prompt, less the mean of all, with rows about the target's mean"
NOTICED = 0.02  # of accuracy
WORDS = {Directions: "directions", Probe: "a probe", Dictionary: "a dictionary"}
