"""Transfer directions, probes and dictionaries to another space, and evaluate how well they work there."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from repstitch.embeddings.columns import read_column
from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.rows import EmbeddingsLike
from repstitch.errors import InputError
from repstitch.metrics.classification import hits
from repstitch.names import CONCEPTS
from repstitch.spaces import adopt
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.context import PairedRows, TransferContext, Way, unseen_labelled_rows
from repstitch.transfer.dictionary_evaluation import compare_features
from repstitch.transfer.kinds import Dictionary, Directions, Kind, Probe, Transferable, describe
from repstitch.transfer.label_curve import label_efficiency
from repstitch.transfer.linear import affine_part
from repstitch.transfer.probe_evaluation import compare_class_directions, evaluate_probe, shuffled_map
from repstitch.transfer.probes import concept
from repstitch.transfer.proof import DictionaryProof, Proof, ZeroShotProof
from repstitch.transfer.rules import carry
from repstitch.transfer.task import Task, make_task
from repstitch.transfer.zero_shot import evaluate_names, probe_from_prompts

log = logging.getLogger(__name__)

NEEDED: dict[type, tuple[Way, ...]] = {
    Directions: ("forward",),
    Probe: ("backward",),
    Dictionary: ("forward", "backward"),
}
KINDS = {Directions: "directions", Probe: "a probe", Dictionary: "a dictionary"}
FROM_NAMES = (
    "forward: mapped prompts (no output normalisation) minus their mean over classes, target rows minus their mean"
)
NOTICEABLE = 0.02  # warn if normalisation lowers the accuracy by more than this


def transfer(transferable: Kind, context: TransferContext, renormalise: bool = False) -> tuple[Kind, str]:
    """Transfer an object to the target space. Returns the result and a description of the maps that were used.

    The original and the result apply to rows as the stitchers normalise them; the description states how. `renormalise`
    scales each transferred direction to its original length. Raises InputError if a stitcher that this kind needs is
    missing, and if the transferable is in another space than the context's source.
    """
    if transferable.space is not None:
        adopt(transferable.space, True, context.source, "The object to transfer", opposite=context.target)
    ways = NEEDED[type(transferable)]
    for way in ways:
        context.stitcher(way, f" to transfer {KINDS[type(transferable)]}")
    if isinstance(transferable, Dictionary):
        _check_same_norms(context.forward, context.backward)
    maps = {way: context.forward_map if way == "forward" else context.backward_map for way in ways}
    carried = carry(transferable, maps.get("forward"), maps.get("backward"), renormalise)
    descriptions = [f"{way}: {map.description}" for way, map in maps.items() if map is not None]
    return replace(carried, space=context.target), "; ".join([*descriptions, describe_rows(context, ways[-1])])


def describe_rows(context: TransferContext, way: Way) -> str:
    """Describe how the `forward` or `backward` stitcher normalises source and target rows."""
    lengths = {"unit": "unit length", "none": "none"}
    source, target = (lengths[norm] for norm in context.norms(way))
    return f"row normalisation: {source} for {context.source.name}, {target} for {context.target.name}"


def evaluate(
    context: TransferContext, transferable: Transferable | None = None, seed: int = 0
) -> tuple[Transferable, Proof | DictionaryProof | None]:
    """Evaluate how well a probe or a dictionary of the source works on the target's rows after its transfer.

    With labels, a probe is scored on the target's labelled test rows, see `prove_probe`. Without a `transferable`, a
    probe is first trained on the source's rows. With paired rows, the features of a dictionary are compared on test
    items, see `prove_dictionary`. Returns the transferable in the source space and its proof. The proof is None for
    directions, and if the rows for an evaluation are missing.
    """
    if transferable is None or (isinstance(transferable, Probe) and context.labels is not None):
        return prove_probe(context, transferable, seed=seed)
    if context.labels is not None:
        raise InputError(f"`labels` are used to evaluate probes, not {describe(transferable)}; leave them out.")
    if isinstance(transferable, Dictionary) and context.paired_rows is not None:
        if len(context.paired_rows.unseen_test_rows):
            return transferable, prove_dictionary(context, transferable, seed)
        log.warning(
            "All test items were used to train a stitcher, so the dictionary is transferred without being evaluated."
        )
    return transferable, None


def prove_probe(
    context: TransferContext, probe: Probe | None = None, curve: bool = True, seed: int = 0
) -> tuple[Probe, Proof]:
    """Evaluate a probe of the source on labelled target rows. Returns the probe and its proof.

    Without a `probe`, one is trained on the source's rows. See `probe_evaluation.evaluate_probe`. With `curve`, the
    proof includes how many labelled target rows a native probe needs to be as accurate. If there is a forward stitcher
    and it normalises rows like the backward one, the proof also compares transferred and target class directions.
    """
    if probe is not None:
        probe = _with_numbered_classes(probe, context.labels)
    task = labelled_task(context, probe and probe.classes, seed)
    backward, paired = context.stitcher("backward"), context.paired_rows
    if probe is not None and backward.output_norm != "none" and paired is not None:
        _warn_of_scale(probe, task, paired.source)
    trained = probe or task.fit_probe(task.source)
    proof = evaluate_probe(backward, task, trained, context.backward_map, seed)
    values = proof.to_dict() | {"probe": "trained on the source's rows" if probe is None else "given"}
    if curve:
        values["label_efficiency"] = label_efficiency(task, proof.accuracy("carried").score, seed).to_dict()
    if context.forward_map is not None and context.norms("forward") == context.norms("backward"):
        values["class_directions"] = compare_class_directions(context.forward_map, task).to_dict()
    return trained, Proof(values)


def labelled_task(context: TransferContext, classes: tuple[str, ...] | None = None, seed: int = 0) -> Task:
    """Make a task for a probe from the context's labelled rows. Raises InputError if they are missing."""
    backward, paired = context.backward, context.paired_rows
    if backward is None or paired is None or paired.pairs.labels is None:
        raise InputError("To evaluate a probe, a `backward` stitcher, `labels` and the rows of both spaces are needed.")
    target, source = _normalised_pairs(paired, backward)
    return make_task(target, source, paired.pairs.labels, paired.split, paired.seen_in_training, classes, seed)


def prove_dictionary(context: TransferContext, dictionary: Dictionary, seed: int = 0) -> DictionaryProof:
    """Compare a transferred dictionary's features of unseen target rows with the original's; see `compare_features`."""
    _check_same_norms(context.forward, context.backward)
    forward, backward, paired = context.forward, context.backward, context.paired_rows
    forward_map, backward_map = context.forward_map, context.backward_map
    if paired is None or forward is None or backward is None or forward_map is None or backward_map is None:
        raise InputError("To compare features, both stitchers and rows of the same items in both spaces are needed.")
    test, train = paired.unseen_test_rows, paired.split.train
    if len(test) < 2:
        raise InputError(
            "At least two test items that the stitchers were not trained on are needed; pass more such items."
        )
    target, source = _normalised_pairs(paired, backward)
    target_train, source_train = torch.from_numpy(target[train]), torch.from_numpy(source[train])
    controls = (
        affine_part(shuffled_map(forward, source_train, target_train, seed)),
        affine_part(shuffled_map(backward, target_train, source_train, seed)),
    )
    return compare_features(dictionary, forward_map, backward_map, target[test], source[test], controls)


def concept_from_examples(
    context: TransferContext, positive: EmbeddingsLike, negative: EmbeddingsLike, by: str | None = None
) -> Directions | Probe:
    """Derive a concept from source embeddings that show it and source embeddings that do not; see `probes.concept`."""
    norm, _ = context.norms("backward" if by == "classifier" else "forward")
    examples = [
        _normalised(context.read_source_rows(rows, argument).vectors, norm, "source rows")
        for argument, rows in (("concept", positive), ("against", negative))
    ]
    return concept(*examples, by=by or CONCEPTS[0], name=Path(str(positive)).stem)


def probe_from_names(
    context: TransferContext, prompts: EmbeddingsLike, names=None, seed: int = 0
) -> tuple[Probe, ZeroShotProof | None]:
    """Make a probe of the target space from class prompts in the source space, and evaluate it. See `zero_shot`.

    `prompts` are embeddings, at least one per class. `names` are the class names of the prompts; by default, the ids of
    the prompts. Returns the probe and its proof on the labelled target rows that were not used to train the stitcher.
    The proof is None without labels.
    """
    if context.forward is None:
        raise InputError("`forward`, a stitcher from the prompts' space to the target space, is needed.")
    rows = context.read_source_rows(prompts, "prompts")
    classes = rows.ids if names is None else read_column(names, len(rows), "names")
    if classes is None:
        raise InputError("`prompts` must have ids, which are used as class names; or pass `names`, one per prompt.")
    probe = probe_from_prompts(context.forward, rows.vectors, list(classes))
    if context.target_rows is None or context.labels is None:
        return probe, None
    unseen_rows = unseen_labelled_rows(context.forward, context.target_rows, context.drop_invalid)
    target = _normalised(unseen_rows.vectors, context.forward.output_norm, "target rows")
    values = evaluate_names(probe, target, np.asarray(unseen_rows.labels), seed).to_dict()
    values["left_out"] |= {"without a label, or seen by the stitcher": len(context.target_rows) - len(unseen_rows)}
    return probe, ZeroShotProof({"source": context.source.name, "target": context.target.name} | values)


def _normalised(rows: np.ndarray, norm: str, argument: str) -> np.ndarray:
    return normalise(torch.from_numpy(rows.astype(np.float32)), norm, argument).numpy()


def _normalised_pairs(paired: PairedRows, backward: Stitcher) -> tuple[np.ndarray, np.ndarray]:
    """Normalise target rows like the input, and source rows like the output, of the backward stitcher."""
    target = _normalised(paired.target, backward.input_norm, "target rows")
    return target, _normalised(paired.source, backward.output_norm, "source rows")


def _warn_of_scale(probe: Probe, task: Task, raw_source: np.ndarray) -> None:
    """Warn if a probe is more accurate on the original source rows than on the stitcher's normalised ones."""
    y = task.y[task.test]
    normalised, raw = (hits(task.scores(probe, rows[task.test]), y).mean() for rows in (task.source, raw_source))
    if raw > normalised + NOTICEABLE:
        log.warning(
            "The probe's accuracy on the source's test rows is %.1f %% without normalisation, but %.1f %% at unit "
            "length, which the stitcher uses; train the probe on rows of unit length.",
            100 * raw,
            100 * normalised,
        )


def _with_numbered_classes(probe: Probe, labels: np.ndarray | None) -> Probe:
    """Return the probe, with classes 0, 1, 2 … if it has no class names and the labels are these numbers."""
    if probe.classes is not None or labels is None:
        return probe
    numbers = tuple(str(i) for i in range(len(probe.coef)))
    names = set(labels) - {None}
    if len(probe.coef) == 1:
        raise InputError(
            "The probe has one score and no class names; pass `classes`, two names, of which the second is predicted "
            "if the score is above 0."
        )
    if not names <= set(numbers):
        some = ", ".join(sorted(names - set(numbers))[:4])
        raise InputError(
            f"The probe has {len(probe.coef)} scores and no class names, and the labels ({some} …) are not the "
            f"numbers 0 to {len(numbers) - 1}; pass `classes`, one name per score, in their order."
        )
    return replace(probe, classes=numbers)


def _check_same_norms(forward: Stitcher | None, backward: Stitcher | None) -> None:
    """Check that both stitchers normalise each space in the same way; a dictionary reads and writes both spaces."""
    if forward is None or backward is None:
        return
    for end, forward_norm, backward_norm in (
        ("source", forward.input_norm, backward.output_norm),
        ("target", forward.output_norm, backward.input_norm),
    ):
        if forward_norm != backward_norm:
            raise InputError(
                f"`forward` and `backward` must normalise rows of the {end} space in the same way to transfer a "
                f"dictionary; got {forward_norm!r} and {backward_norm!r}. Train both with `output_norm` unit."
            )
