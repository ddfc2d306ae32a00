import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bridges import dictionary, directions, mlp, probe, rotating, stitcher, two_views, unit
from helpers import card, embeddings, gaussian, names

from repstitch.embeddings import Embeddings
from repstitch.errors import InputError
from repstitch.pairs import id_fingerprints
from repstitch.transfer import job
from repstitch.transfer.bridge import build
from repstitch.transfer.kinds import Directions, Probe

transfer: Any = job.transfer  # a thing of the kind that it was given
OLD, NEW, LABELS, R = two_views()
IDS = np.asarray(NEW.ids)
FORWARD, BACKWARD = rotating(R), rotating(R.T.copy(), "new", "old")


def bridge(**given) -> Any:
    fields = {"forward": FORWARD, "backward": BACKWARD, "source": OLD, "target": NEW, "labels": LABELS} | given
    return build(**fields)


def test_each_kind_goes_by_the_stitcher_it_needs_and_arrives_in_the_target_space():
    for thing, needed in ((directions(8), "forward"), (probe(8), "backward")):
        carried, how = transfer(thing, build(FORWARD) if needed == "forward" else build(None, BACKWARD))
        assert carried.space == card("new", 8)
        assert how == (
            f"{needed}: the bare map, exactly: without the normalisation after it; "
            "rows: of old at unit length, of new at unit length"
        )
    carried, how = transfer(dictionary(8), build(FORWARD, BACKWARD))
    assert carried.space == card("new", 8)
    assert "forward: " in how
    assert "backward: " in how


def test_what_was_carried_comes_back_and_is_refused_where_it_is_not_from():
    there, _ = transfer(probe(8), build(None, BACKWARD))
    again, _ = transfer(there, build(None, FORWARD))
    np.testing.assert_allclose(again.coef, probe(8).coef, atol=1e-5)
    with pytest.raises(InputError, match="What is carried must be in space 'old', but its card says another identity"):
        transfer(there, build(None, BACKWARD))


def test_a_probe_is_trained_carried_and_proven():
    made, found = job.prove_probe(bridge())
    assert found["accuracy"]["carried"]["score"] > 0.9
    assert found["probe"] == "trained on the source's rows"
    assert found["label_efficiency"]["sizes"][0] == 10
    assert found["class_directions"]["cosine"]["mean"] > 0.98
    carried, _ = transfer(made, bridge())
    np.testing.assert_allclose(carried.scores(NEW.vectors), made.scores(OLD.vectors), atol=1e-4)


def test_rows_pair_by_id_whatever_their_order():
    order = np.random.default_rng(1).permutation(600)
    shuffled = bridge(target=NEW.take(order), labels=LABELS[order])
    _, found = job.prove_probe(shuffled, curve=False)
    assert found["accuracy"]["carried"]["score"] > 0.9


def test_rows_that_either_stitcher_saw_are_not_tested_on():
    test = bridge().parts.test
    known = np.unique(id_fingerprints(IDS[test[:30]]))
    for side in ("forward", "backward"):
        held = bridge(**{side: replace({"forward": FORWARD, "backward": BACKWARD}[side], seen=known)})
        made = job.task_over(held)
        assert len(made.test) == len(test) - 30
        assert not set(IDS[test[:30]]) & set(held.pairs.ids[made.test])


def test_rows_of_the_stitchers_own_split_test_here_too():
    from repstitch.train import train

    made = train(NEW, OLD, method="ridge", objective="reconstruction", split_shares=(0.5, 0.2, 0.3), split_seed=4)
    held = bridge(backward=made, forward=None)
    unseen = np.flatnonzero(~held.seen)
    assert set(job.task_over(held).test) == set(unseen) == set(held.parts.test)


def test_heads_without_classes_take_labels_that_number_them():
    numbers = np.array([one.removeprefix("class ") for one in LABELS], dtype=object)
    own = job.task_over(bridge(labels=numbers)).probe(OLD.vectors)
    head = Probe(own.coef, own.intercept)
    _, found = job.prove_probe(bridge(labels=numbers), head, curve=False)
    assert found["accuracy"]["carried"]["score"] > 0.9
    with pytest.raises(InputError, match="give `classes`, one a line in the order of the scores"):
        job.prove_probe(bridge(), head)


def test_an_mlp_acts_by_its_jacobian_at_training_rows():
    bent = stitcher(mlp(8, 8), "new", "old")
    held = bridge(backward=bent, forward=None)
    assert f"averaged over {len(held.parts.train)} rows" in held.back.how
    with pytest.raises(InputError, match="An MLP has no one matrix"):
        transfer(probe(8), build(None, bent))
    alone: Any = build(None, bent, source=OLD, target=NEW.take([3]))  # not paired: each side stands for itself
    assert "at one point" in transfer(probe(8), alone)[1]


def test_at_most_two_thousand_rows_make_a_jacobian():
    rows = Embeddings(unit(gaussian(4500, 8)), card("new", 8))
    held: Any = build(None, stitcher(mlp(8, 8), "new", "old"), target=rows)
    assert "averaged over 1,500 rows" in held.back.how


def test_a_tangent_can_be_asked_for_of_an_affine_map():
    assert "Jacobian" in transfer(probe(8), bridge(tangent=True))[1]
    with pytest.raises(InputError, match="A Jacobian is taken at rows"):
        transfer(probe(8), build(None, BACKWARD, tangent=True))


def test_a_dictionary_is_compared_on_unseen_rows():
    seen = np.unique(id_fingerprints(IDS[:400]))
    held = bridge(labels=None, paired=True, forward=replace(FORWARD, seen=seen))
    _, found = job.prove_thing(held, dictionary(8))
    assert found["n_test"] == (held.parts.test >= 400).sum()
    assert found["correlation"]["mean"] > 0.999
    assert found["shuffled"] < 0.5
    everything = np.unique(id_fingerprints(IDS))
    with pytest.raises(InputError, match="All items were used to train the stitchers"):
        job.prove_thing(bridge(labels=None, paired=True, forward=replace(FORWARD, seen=everything)), dictionary(8))


def test_a_dictionary_needs_stitchers_that_mean_the_same_rows():
    lengthy = replace(BACKWARD, output_norm="none")
    with pytest.raises(InputError, match="mean other rows of the source space"):
        transfer(dictionary(8), build(FORWARD, lengthy))


def test_concepts_go_as_directions_by_means_and_as_probes_by_a_classifier():
    sets: Any = [OLD.take(np.flatnonzero(one == LABELS)) for one in ("class 0", "class 1")]
    made: Any = job.concept_of(bridge(labels=None), *sets)
    carried, _ = transfer(made, bridge(labels=None))
    own = NEW.vectors[LABELS == "class 0"].mean(0) - NEW.vectors[LABELS == "class 1"].mean(0)
    np.testing.assert_allclose(carried.values[0], own, atol=1e-5)
    by_probe, _ = transfer(job.concept_of(bridge(labels=None), *sets, by="classifier"), bridge(labels=None))
    assert (by_probe.scores(NEW.vectors[LABELS == "class 0"]) > 0).mean() > 0.95


def test_names_are_proven_on_rows_the_stitcher_has_not_seen(caplog):
    centres = np.stack([OLD.vectors[f"class {k}" == LABELS].mean(0) for k in range(3)])
    prompts = Embeddings(centres, card("old", 8), np.array([f"class {k}" for k in range(3)], dtype=object))
    seen = np.unique(id_fingerprints(IDS[:400]))
    forward = replace(FORWARD, seen=seen, target_mean=NEW.vectors.mean(0))
    _, found = job.from_names(bridge(forward=forward, backward=None, source=None), prompts)
    assert found["n_test"] == 200
    assert found["accuracy"]["carried"]["score"] > 0.9
    with caplog.at_level(logging.WARNING):
        job.from_names(build(forward, None, None, replace(NEW, ids=None), LABELS), prompts)
        by_position = replace(forward, provenance={"paired_by": "position"})
        job.from_names(build(by_position, None, None, NEW, LABELS), prompts)
    assert caplog.text.count("known by ids, and there are none: all rows test") == 2
    probe, none = job.from_names(build(forward), prompts, ["a", "b", "a"])
    assert probe.classes == ("a", "b")
    assert none == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(), "`forward`, a stitcher from source to target, or `backward`"),
        (lambda: build(FORWARD, FORWARD), "must lead back between the spaces of `forward`; their source spaces differ"),
        (lambda: build(FORWARD, labels=LABELS), "`labels` are of the target's rows; give `target`"),
        (
            lambda: build(FORWARD, source=NEW),
            "`source` must be in space 'old'.*look like rows of 'new', the other side",
        ),
        (lambda: build(FORWARD, target=embeddings(30, 4)), "`target` must have 8 dimensions"),
        (lambda: transfer(directions(8), build(None, BACKWARD)), "`forward`, a stitcher from source to target, is"),
        (lambda: transfer(probe(8), build(FORWARD)), "`backward`, a stitcher from target to source, is needed"),
        (lambda: transfer(dictionary(8), build(FORWARD)), "needed to carry a dictionary"),
        (lambda: job.prove_probe(bridge(backward=None)), "To prove a probe, a `backward` stitcher"),
        (lambda: job.prove_probe(bridge(source=None)), "`labels` and the rows of both spaces are needed"),
        (lambda: job.prove_thing(bridge(), directions(8)), "`labels` prove probes, and this is 3 directions"),
        (lambda: job.prove_dictionary(bridge(source=None), dictionary(8)), "To compare features, both stitchers"),
        (lambda: job.from_names(build(None, BACKWARD), OLD), "a stitcher from the prompts' space"),
        (lambda: job.from_names(build(FORWARD), replace(OLD, ids=None)), "`prompts` must have ids"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_directions_without_a_proof_are_only_carried():
    thing, found = job.prove_thing(bridge(labels=None), Directions(np.eye(8)))
    assert found == {}
    assert isinstance(thing, Directions)


def test_swapped_files_without_cards_are_refused():
    old, new = (
        replace(rows, vectors=unit(rows.vectors + shift).astype(np.float32), declared=False, space=card(name, 8))
        for rows, shift, name in ((OLD, np.eye(8)[0] * 3, "old"), (NEW, np.eye(8)[4] * 3, "new"))
    )
    backward = replace(BACKWARD, source_mean=new.vectors.mean(0), target_mean=old.vectors.mean(0))
    bare = [replace(rows, space=replace(rows.space, name="rows", encoder=None)) for rows in (old, new)]
    build(None, backward, bare[0], bare[1])
    with pytest.raises(InputError, match=r"`source` looks like rows of 'new'.*or state --source-space old"):
        build(None, backward, bare[1], bare[0])
    with pytest.raises(InputError, match="`against` looks like rows of 'new'"):
        job.concept_of(build(None, backward), bare[0], bare[1])


def test_messages_name_the_side_that_is_meant():
    spoiled = OLD.vectors.copy()
    spoiled[3] = np.nan
    with pytest.raises(InputError, match="1 with source NaN or Inf"):
        assert bridge(source=replace(OLD, vectors=spoiled)).pairs
    with pytest.raises(InputError, match=r"No id is in both files \(target has e.g. 'item0', source 'other0'\)"):
        assert bridge(source=replace(OLD, ids=names(600, "other"))).pairs
    assert bridge(source=replace(OLD, vectors=spoiled), drop_invalid=True).pairs


def test_rows_of_one_group_stay_on_one_side():
    groups = np.array([f"g{i // 5}" for i in range(600)], dtype=object)
    held = bridge(group=groups)
    parts = [set(held.pairs.groups[part]) for part in (held.parts.train, held.parts.validation, held.parts.test)]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_a_stitcher_of_groups_without_groups_here_is_warned_of(caplog):
    held = bridge(backward=replace(BACKWARD, split={"shares": [0.6, 0.15, 0.25], "seed": 0, "group": "photo"}))
    assert len(held.parts.test)
    assert "The stitcher was trained with groups (photo); give `group` here too" in caplog.text


def test_a_probe_of_rows_as_they_are_is_warned_of(caplog):
    lengths = 1 + 4 * np.random.default_rng(0).random((600, 1)).astype(np.float32)
    labels = np.where(lengths[:, 0] > 3, "long", "short").astype(object)
    raw = replace(OLD, vectors=OLD.vectors * lengths, space=replace(OLD.space, normalised=None))
    from repstitch.transfer.probes import fit_probe

    y = (labels == "long").astype(int)
    made, _ = fit_probe(np.abs(raw.vectors), y, ("short", "long"), (np.abs(raw.vectors), y))
    raw = replace(raw, vectors=np.abs(raw.vectors))
    job.prove_probe(bridge(source=raw, labels=labels), made, curve=False)
    assert "as they are" in caplog.text
    assert "train it on unit rows" in caplog.text
