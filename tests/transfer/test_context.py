import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.contexts import dictionary, directions, mlp, probe, rotating, stitcher, two_views, unit
from helpers.spaces import card, embeddings, gaussian, names

from repstitch.embeddings.fingerprints import id_fingerprints, row_fingerprints
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError
from repstitch.transfer import run
from repstitch.transfer.context import build
from repstitch.transfer.kinds import Directions, Probe

transfer: Any = run.transfer  # a thing of the kind that it was given
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
    made, found = run.prove_probe(bridge())
    assert found["accuracy"]["carried"]["score"] > 0.9
    assert found["probe"] == "trained on the source's rows"
    assert found["label_efficiency"]["sizes"][0] == 10
    assert found["class_directions"]["cosine"]["mean"] > 0.98
    carried, _ = transfer(made, bridge())
    np.testing.assert_allclose(carried.scores(NEW.vectors), made.scores(OLD.vectors), atol=1e-4)


def test_rows_pair_by_id_whatever_their_order():
    order = np.random.default_rng(1).permutation(600)
    shuffled = bridge(target=NEW.take(order), labels=LABELS[order])
    _, found = run.prove_probe(shuffled, curve=False)
    assert found["accuracy"]["carried"]["score"] > 0.9


def test_rows_that_either_stitcher_saw_are_not_tested_on():
    test = bridge().parts.test
    known = np.unique(id_fingerprints(IDS[test[:30]]))
    for side in ("forward", "backward"):
        held = bridge(**{side: replace({"forward": FORWARD, "backward": BACKWARD}[side], seen=known)})
        made = run.task_over(held)
        assert len(made.test) == len(test) - 30
        assert not set(IDS[test[:30]]) & set(held.pairs.ids[made.test])


def test_rows_of_the_stitchers_own_split_test_here_too():
    from repstitch.workflows.training import train

    made = train(NEW, OLD, method="ridge", objective="reconstruction", split_shares=(0.5, 0.2, 0.3), split_seed=4)
    held = bridge(backward=made, forward=None)
    unseen = np.flatnonzero(~held.seen)
    assert set(run.task_over(held).test) == set(unseen) == set(held.parts.test)


def test_heads_without_classes_take_labels_that_number_them():
    numbers = np.array([one.removeprefix("class ") for one in LABELS], dtype=object)
    own = run.task_over(bridge(labels=numbers)).probe(OLD.vectors)
    head = Probe(own.coef, own.intercept)
    _, found = run.prove_probe(bridge(labels=numbers), head, curve=False)
    assert found["accuracy"]["carried"]["score"] > 0.9
    with pytest.raises(InputError, match="give `classes`, one a line in the order of the scores"):
        run.prove_probe(bridge(), head)


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


def test_a_dictionary_is_compared_on_unseen_rows(caplog):
    seen = np.unique(id_fingerprints(IDS[:400]))
    held = bridge(labels=None, paired=True, forward=replace(FORWARD, seen=seen))
    _, found = run.evaluate(held, dictionary(8))
    assert found["n_test"] == (held.parts.test >= 400).sum()
    assert found["correlation"]["mean"] > 0.999
    assert found["shuffled"] < 0.5
    everything = bridge(labels=None, paired=True, forward=replace(FORWARD, seen=np.unique(id_fingerprints(IDS))))
    assert run.evaluate(everything, dictionary(8))[1] == {}
    assert "carried without a proof" in caplog.text
    with pytest.raises(InputError, match="All items were used to train the stitchers"):
        run.prove_dictionary(everything, dictionary(8))


def test_a_dictionary_needs_stitchers_that_mean_the_same_rows():
    lengthy = replace(BACKWARD, output_norm="none")
    with pytest.raises(InputError, match="mean other rows of the source space"):
        transfer(dictionary(8), build(FORWARD, lengthy))


def test_concepts_go_as_directions_by_means_and_as_probes_by_a_classifier():
    sets: Any = [OLD.take(np.flatnonzero(one == LABELS)) for one in ("class 0", "class 1")]
    made: Any = run.concept_of(bridge(labels=None), *sets)
    carried, _ = transfer(made, bridge(labels=None))
    own = NEW.vectors[LABELS == "class 0"].mean(0) - NEW.vectors[LABELS == "class 1"].mean(0)
    np.testing.assert_allclose(carried.values[0], own, atol=1e-5)
    by_probe, _ = transfer(run.concept_of(bridge(labels=None), *sets, by="classifier"), bridge(labels=None))
    assert (by_probe.scores(NEW.vectors[LABELS == "class 0"]) > 0).mean() > 0.95


def test_names_are_proven_on_rows_the_stitcher_has_not_seen(caplog):
    centres = np.stack([OLD.vectors[f"class {k}" == LABELS].mean(0) for k in range(3)])
    prompts = Embeddings(centres, card("old", 8), np.array([f"class {k}" for k in range(3)], dtype=object))
    seen = np.unique(id_fingerprints(IDS[:400]))
    forward = replace(FORWARD, seen=seen, target_mean=NEW.vectors.mean(0))
    _, found = run.from_names(bridge(forward=forward, backward=None, source=None), prompts)
    assert found["n_test"] == 200
    assert found["accuracy"]["carried"]["score"] > 0.9
    with caplog.at_level(logging.WARNING):
        run.from_names(build(forward, None, None, replace(NEW, ids=None), LABELS), prompts)
        by_position = replace(forward, seen=np.empty(0, np.int64), provenance={"paired_by": "position"})
        run.from_names(build(by_position, None, None, NEW, LABELS), prompts)
    assert caplog.text.count("known by ids, and there are none: all rows test") == 2
    probe, none = run.from_names(build(forward), prompts, ["a", "b", "a"])
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
        (lambda: run.prove_probe(bridge(backward=None)), "To prove a probe, a `backward` stitcher"),
        (lambda: run.prove_probe(bridge(source=None)), "`labels` and the rows of both spaces are needed"),
        (lambda: run.evaluate(bridge(), directions(8)), "`labels` prove probes, and this is 3 directions"),
        (lambda: run.prove_dictionary(bridge(source=None), dictionary(8)), "To compare features, both stitchers"),
        (lambda: run.from_names(build(None, BACKWARD), OLD), "a stitcher from the prompts' space"),
        (lambda: run.from_names(build(FORWARD), replace(OLD, ids=None)), "`prompts` must have ids"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_directions_without_a_proof_are_only_carried():
    thing, found = run.evaluate(bridge(labels=None), Directions(np.eye(8)))
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
    with pytest.raises(InputError, match=r"`target` looks like rows of 'old'.*a card of 'new' \(--target-space new\)"):
        build(None, backward, bare[1], bare[0])
    with pytest.raises(InputError, match="`against` looks like rows of 'new'"):
        run.concept_of(build(None, backward), bare[0], bare[1], by="classifier")


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
    run.prove_probe(bridge(source=raw, labels=labels), made, curve=False)
    assert "as they are" in caplog.text
    assert "train it on unit rows" in caplog.text


def test_a_thing_is_of_rows_as_the_stitcher_it_goes_by_knows_them():
    """Where the source's rows are not normalised, the stitcher back gives them as they are; the one forth reads unit
    rows."""
    long = replace(OLD, vectors=5 * OLD.vectors)
    back = replace(BACKWARD, output_norm="none")
    sets: Any = [long.take(np.flatnonzero(one == LABELS)) for one in ("class 0", "class 1")]
    alone, both = build(FORWARD), build(FORWARD, back)
    for held in (alone, both):
        made: Any = run.concept_of(held, *sets)
        carried, how = transfer(made, held)
        assert how.endswith("rows: of old at unit length, of new at unit length")
        np.testing.assert_allclose(np.linalg.norm(carried.values), np.linalg.norm(made.values), atol=1e-5)
        assert np.linalg.norm(made.values) < 2
    assert transfer(probe(8), both)[1].endswith("rows: of old at the length they have, of new at unit length")
    made = run.concept_of(both, *sets, by="classifier")
    assert (made.scores(long.vectors[LABELS == "class 0"]) > 0).mean() > 0.95
    task = run.task_over(build(FORWARD, back, long, NEW, LABELS))
    np.testing.assert_allclose(np.linalg.norm(task.source, axis=1), 5, rtol=1e-5)
    assert "class_directions" not in run.prove_probe(build(FORWARD, back, long, NEW, LABELS), curve=False)[1]


def test_the_target_is_read_at_unit_length_whatever_length_its_rows_have():
    long = replace(NEW, vectors=3 * NEW.vectors)
    np.testing.assert_allclose(np.linalg.norm(run.task_over(bridge(target=long)).target, axis=1), 1, rtol=1e-5)
    prompts = Embeddings(
        np.stack([OLD.vectors[f"class {k}" == LABELS].mean(0) for k in range(3)]), card("old", 8),
        np.array([f"class {k}" for k in range(3)], dtype=object),
    )  # fmt: skip
    lengths = np.random.default_rng(0).uniform(1, 50, (600, 1)).astype(np.float32)
    forward = replace(FORWARD, target_mean=NEW.vectors.mean(0))
    found = [
        run.from_names(build(forward, None, None, rows, LABELS), prompts)[1]["accuracy"]["carried"]
        for rows in (NEW, replace(NEW, vectors=NEW.vectors * lengths))
    ]
    assert found[0] == found[1]


def test_rows_seen_by_the_forward_stitcher_are_known_by_their_contents_too():
    known = np.unique(row_fingerprints(OLD.vectors, NEW.vectors))
    held = bridge(forward=replace(FORWARD, seen=known), source=replace(OLD, ids=None), target=replace(NEW, ids=None))
    assert held.seen.all()


def test_rows_that_cannot_be_used_make_no_jacobian_where_they_may_be_dropped():
    spoiled = NEW.vectors.copy()
    spoiled[3] = np.nan
    rows = replace(NEW, vectors=spoiled)
    bent = stitcher(mlp(8, 8), "new", "old")
    assert "over 599 rows" in transfer(probe(8), build(None, bent, target=rows, drop_invalid=True))[1]
    with pytest.raises(InputError, match="hold NaN or Inf"):
        transfer(probe(8), build(None, bent, target=rows))


def test_rows_without_a_label_do_not_test_names():
    labels = LABELS.copy()
    labels[:100] = None
    held = build(FORWARD, None, None, NEW, labels)
    assert len(held.unseen_target()) == 500
    prompts = Embeddings(OLD.vectors[:2], card("old", 8), np.array(["class 0", "class 1"], dtype=object))
    assert run.from_names(held, prompts)[1]["left_out"]["without a label, or seen by the stitcher"] == 100


def test_the_proof_is_of_what_is_carried_also_by_a_tangent():
    assert "Jacobian" in run.prove_probe(bridge(tangent=True), curve=False)[1]["through"]


def test_groups_may_be_a_column_of_either_side(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from repstitch.embeddings.writing import write

    write(tmp_path / "old.parquet", OLD)
    write(tmp_path / "new.parquet", NEW)
    table = pq.read_table(tmp_path / "old.parquet")
    grouped = table.append_column("photo", pa.array([f"g{i // 5}" for i in range(600)]))
    pq.write_table(grouped, tmp_path / "grouped.parquet")
    held = bridge(source=tmp_path / "grouped.parquet", target=tmp_path / "new.parquet", group="photo")
    assert held.pairs.groups[7] == "g1"
    with pytest.raises(InputError, match="`group` must be a column of either file"):
        bridge(source=tmp_path / "old.parquet", target=tmp_path / "new.parquet", group="photo")


def test_a_dictionary_through_an_mlp_takes_a_point_of_either_side():
    forward, backward = stitcher(mlp(8, 8)), stitcher(mlp(8, 8, seed=1), "new", "old")
    held = build(forward, backward, OLD.take([3]), NEW.take([9]), paired=True)
    thing, found = run.evaluate(held, dictionary(8))
    assert found == {}
    assert transfer(thing, held)[1].count("at one point") == 2
