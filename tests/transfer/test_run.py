"""Directions, probes and dictionaries transferred by whole stitchers, and their evaluation."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.contexts import dictionary, directions, mlp, probe, rotating, stitcher, two_views
from helpers.spaces import card, embeddings

from repstitch.embeddings.fingerprints import id_fingerprints
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError
from repstitch.transfer import run
from repstitch.transfer.context import build_context
from repstitch.transfer.kinds import Directions, Probe
from repstitch.transfer.probes import fit_probe
from repstitch.transfer.run import concept_from_examples, labelled_task, transfer

prove_probe: Any = run.prove_probe  # typed Any because parts of a proof may be None
prove_dictionary: Any = run.prove_dictionary
probe_from_names: Any = run.probe_from_names
evaluate: Any = run.evaluate
OLD, NEW, LABELS, R = two_views()
IDS = np.asarray(NEW.ids)
FORWARD, BACKWARD = rotating(R), rotating(R.T.copy(), "new", "old")


def context(**changes) -> Any:
    fields = {"forward": FORWARD, "backward": BACKWARD, "source": OLD, "target": NEW, "labels": LABELS} | changes
    return build_context(**fields)


def test_each_kind_uses_the_stitcher_it_needs_and_ends_in_the_target_space():
    for transferable, needed in ((directions(8), "forward"), (probe(8), "backward")):
        carried, description = transfer(
            transferable, build_context(FORWARD) if needed == "forward" else build_context(None, BACKWARD)
        )
        assert carried.space == card("new", 8)
        assert description == (
            f"{needed}: the stitcher's exact affine map, without output normalisation; "
            "row normalisation: unit length for old, unit length for new"
        )
    carried, description = transfer(dictionary(8), build_context(FORWARD, BACKWARD))
    assert carried.space == card("new", 8)
    assert "forward: " in description
    assert "backward: " in description


def test_a_transferred_probe_can_be_transferred_back_but_not_transferred_again():
    there, _ = transfer(probe(8), build_context(None, BACKWARD))
    again, _ = transfer(there, build_context(None, FORWARD))
    np.testing.assert_allclose(again.coef, probe(8).coef, atol=1e-5)
    with pytest.raises(
        InputError, match="The object to transfer must be in space 'old', but its card states another identity"
    ):
        transfer(there, build_context(None, BACKWARD))


def test_a_probe_is_trained_transferred_and_evaluated():
    made, proof = prove_probe(context())
    assert proof.accuracy("carried").score > 0.9
    assert proof.to_dict()["probe"] == "trained on the source's rows"
    assert proof.label_efficiency.sizes[0] == 10
    assert proof.class_directions.cosine.mean > 0.98
    carried, _ = transfer(made, context())
    np.testing.assert_allclose(carried.scores(NEW.vectors), made.scores(OLD.vectors), atol=1e-4)


def test_rows_are_paired_by_id_whatever_their_order():
    order = np.random.default_rng(1).permutation(600)
    shuffled = context(target=NEW.take(order), labels=LABELS[order])
    _, proof = prove_probe(shuffled, curve=False)
    assert proof.accuracy("carried").score > 0.9


def test_a_head_without_classes_can_be_evaluated_with_labels_that_number_its_scores():
    numbers = np.array([label.removeprefix("class ") for label in LABELS], dtype=object)
    trained = labelled_task(context(labels=numbers)).fit_probe(OLD.vectors)
    head = Probe(trained.coef, trained.intercept)
    _, proof = prove_probe(context(labels=numbers), head, curve=False)
    assert proof.accuracy("carried").score > 0.9
    with pytest.raises(InputError, match="pass `classes`, one name per score, in their order"):
        prove_probe(context(), head)


def test_a_tangent_can_be_requested_for_an_affine_map():
    assert "Jacobian" in transfer(probe(8), context(tangent=True))[1]
    with pytest.raises(InputError, match="A Jacobian is taken at rows"):
        transfer(probe(8), build_context(None, BACKWARD, tangent=True))


def test_a_dictionary_is_compared_on_unseen_rows(caplog):
    seen = np.unique(id_fingerprints(IDS[:400]))
    built = context(labels=None, paired=True, forward=replace(FORWARD, seen=seen))
    _, proof = evaluate(built, dictionary(8))
    assert proof.n_test == (built.paired_rows.split.test >= 400).sum()
    assert proof.correlation.mean > 0.999
    assert proof.shuffled < 0.5
    everything = context(labels=None, paired=True, forward=replace(FORWARD, seen=np.unique(id_fingerprints(IDS))))
    assert evaluate(everything, dictionary(8))[1] is None
    assert "transferred without being evaluated" in caplog.text
    with pytest.raises(InputError, match="At least two test items that the stitchers were not trained on are needed"):
        prove_dictionary(everything, dictionary(8))


def test_a_dictionary_needs_stitchers_with_the_same_normalisation():
    lengthy = replace(BACKWARD, output_norm="none")
    with pytest.raises(InputError, match="must normalise rows of the source space in the same way"):
        transfer(dictionary(8), build_context(FORWARD, lengthy))


def test_a_concept_is_transferred_as_directions_by_means_and_as_a_probe_by_classifier():
    sets: Any = [OLD.take(np.flatnonzero(name == LABELS)) for name in ("class 0", "class 1")]
    made: Any = concept_from_examples(context(labels=None), *sets)
    carried, _ = transfer(made, context(labels=None))
    expected = NEW.vectors[LABELS == "class 0"].mean(0) - NEW.vectors[LABELS == "class 1"].mean(0)
    np.testing.assert_allclose(carried.values[0], expected, atol=1e-5)
    by_classifier: Any = concept_from_examples(context(labels=None), *sets, by="classifier")
    by_probe, _ = transfer(by_classifier, context(labels=None))
    assert (by_probe.scores(NEW.vectors[LABELS == "class 0"]) > 0).mean() > 0.95


def test_class_names_are_evaluated_on_rows_the_stitcher_has_not_seen(caplog):
    centres = np.stack([OLD.vectors[f"class {k}" == LABELS].mean(0) for k in range(3)])
    prompts = Embeddings(centres, card("old", 8), np.array([f"class {k}" for k in range(3)], dtype=object))
    seen = np.unique(id_fingerprints(IDS[:400]))
    forward = replace(FORWARD, seen=seen, target_mean=NEW.vectors.mean(0))
    _, proof = probe_from_names(context(forward=forward, backward=None, source=None), prompts)
    assert proof.n_test == 200
    assert proof.accuracy("carried").score > 0.9
    with caplog.at_level(logging.WARNING):
        probe_from_names(build_context(forward, None, None, replace(NEW, ids=None), LABELS), prompts)
        by_position = replace(forward, seen=np.empty(0, np.int64), provenance={"paired_by": "position"})
        probe_from_names(build_context(by_position, None, None, NEW, LABELS), prompts)
    assert caplog.text.count("all labelled rows are used as test rows") == 2
    probe, without_labels = probe_from_names(build_context(forward), prompts, ["a", "b", "a"])
    assert probe.classes == ("a", "b")
    assert without_labels is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_context(), "`forward`, a stitcher from source to target, or `backward`"),
        (
            lambda: build_context(FORWARD, FORWARD),
            "must map the target space of `forward` to its source space; the source spaces differ",
        ),
        (lambda: build_context(FORWARD, labels=LABELS), "`labels` are the classes of the target's rows; pass `target`"),
        (
            lambda: build_context(FORWARD, source=NEW),
            "`source` must be in space 'old'.*look like rows of 'new', the other side",
        ),
        (lambda: build_context(FORWARD, target=embeddings(30, 4)), "`target` must have 8 dimensions"),
        (
            lambda: transfer(directions(8), build_context(None, BACKWARD)),
            "`forward`, a stitcher from source to target, is",
        ),
        (lambda: transfer(probe(8), build_context(FORWARD)), "`backward`, a stitcher from target to source, is needed"),
        (lambda: transfer(dictionary(8), build_context(FORWARD)), "needed to transfer a dictionary"),
        (lambda: prove_probe(context(backward=None)), "To evaluate a probe, a `backward` stitcher"),
        (lambda: prove_probe(context(source=None)), "`labels` and the rows of both spaces are needed"),
        (lambda: evaluate(context(), directions(8)), "`labels` are used to evaluate probes, not 3 directions"),
        (lambda: prove_dictionary(context(source=None), dictionary(8)), "To compare features, both stitchers"),
        (lambda: probe_from_names(build_context(None, BACKWARD), OLD), "a stitcher from the prompts' space"),
        (lambda: probe_from_names(build_context(FORWARD), replace(OLD, ids=None)), "`prompts` must have ids"),
    ],
)
def test_stitchers_rows_and_objects_that_do_not_fit_together_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_directions_are_transferred_without_evaluation():
    transferable, proof = evaluate(context(labels=None), Directions(np.eye(8)))
    assert proof is None
    assert isinstance(transferable, Directions)


def test_a_probe_trained_on_unnormalised_rows_warns(caplog):
    lengths = 1 + 4 * np.random.default_rng(0).random((600, 1)).astype(np.float32)
    labels = np.where(lengths[:, 0] > 3, "long", "short").astype(object)
    raw = replace(OLD, vectors=OLD.vectors * lengths, space=replace(OLD.space, normalised=None))
    y = (labels == "long").astype(int)
    made, _ = fit_probe(np.abs(raw.vectors), y, ("short", "long"), (np.abs(raw.vectors), y))
    raw = replace(raw, vectors=np.abs(raw.vectors))
    prove_probe(context(source=raw, labels=labels), made, curve=False)
    assert "without normalisation" in caplog.text
    assert "train the probe on rows of unit length" in caplog.text


def test_a_concept_is_computed_from_rows_normalised_as_its_stitcher_normalises_them():
    """The backward stitcher returns source rows without normalisation; the forward stitcher takes unit rows."""
    long = replace(OLD, vectors=5 * OLD.vectors)
    back = replace(BACKWARD, output_norm="none")
    sets: Any = [long.take(np.flatnonzero(name == LABELS)) for name in ("class 0", "class 1")]
    alone, both = build_context(FORWARD), build_context(FORWARD, back)
    for built in (alone, both):
        made: Any = concept_from_examples(built, *sets)
        carried, description = transfer(made, built)
        assert description.endswith("row normalisation: unit length for old, unit length for new")
        np.testing.assert_allclose(np.linalg.norm(carried.values), np.linalg.norm(made.values), atol=1e-5)
        assert np.linalg.norm(made.values) < 2
    assert transfer(probe(8), both)[1].endswith("row normalisation: none for old, unit length for new")
    made = concept_from_examples(both, *sets, by="classifier")
    assert (made.scores(long.vectors[LABELS == "class 0"]) > 0).mean() > 0.95
    task = labelled_task(build_context(FORWARD, back, long, NEW, LABELS))
    np.testing.assert_allclose(np.linalg.norm(task.source, axis=1), 5, rtol=1e-5)
    assert "class_directions" not in prove_probe(build_context(FORWARD, back, long, NEW, LABELS), curve=False)[1]


def test_target_rows_are_normalised_to_unit_length():
    long = replace(NEW, vectors=3 * NEW.vectors)
    np.testing.assert_allclose(np.linalg.norm(labelled_task(context(target=long)).target, axis=1), 1, rtol=1e-5)
    prompts = Embeddings(
        np.stack([OLD.vectors[f"class {k}" == LABELS].mean(0) for k in range(3)]), card("old", 8),
        np.array([f"class {k}" for k in range(3)], dtype=object),
    )  # fmt: skip
    lengths = np.random.default_rng(0).uniform(1, 50, (600, 1)).astype(np.float32)
    forward = replace(FORWARD, target_mean=NEW.vectors.mean(0))
    accuracies = [
        probe_from_names(build_context(forward, None, None, rows, LABELS), prompts)[1].accuracy("carried")
        for rows in (NEW, replace(NEW, vectors=NEW.vectors * lengths))
    ]
    assert accuracies[0] == accuracies[1]


def test_drop_invalid_excludes_invalid_rows_from_the_jacobian():
    spoiled = NEW.vectors.copy()
    spoiled[3] = np.nan
    rows = replace(NEW, vectors=spoiled)
    bent = stitcher(mlp(8, 8), "new", "old")
    assert "over 599 rows" in transfer(probe(8), build_context(None, bent, target=rows, drop_invalid=True))[1]
    with pytest.raises(InputError, match="contain NaN or Inf"):
        transfer(probe(8), build_context(None, bent, target=rows))


def test_with_a_tangent_the_evaluation_uses_the_jacobian_too():
    assert "Jacobian" in prove_probe(context(tangent=True), curve=False)[1].through


def test_a_dictionary_through_an_mlp_uses_one_point_of_each_side():
    forward, backward = stitcher(mlp(8, 8)), stitcher(mlp(8, 8, seed=1), "new", "old")
    built = build_context(forward, backward, OLD.take([3]), NEW.take([9]), paired=True)
    transferable, proof = evaluate(built, dictionary(8))
    assert proof is None
    assert transfer(transferable, built)[1].count("at one point") == 2
