"""The transfer context: spaces, pairing, splits, labels and affine maps of stitchers and rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.contexts import mlp, probe, rotating, stitcher, two_views, unit
from helpers.spaces import card, gaussian, names, pairs_of

from repstitch.embeddings.fingerprints import id_fingerprints, pair_keys, row_fingerprints
from repstitch.embeddings.rows import Embeddings
from repstitch.errors import InputError
from repstitch.stitchers.held_out import seen_in_training
from repstitch.transfer import run
from repstitch.transfer.context import build_context, read_rows, unseen_labelled_rows
from repstitch.transfer.run import concept_from_examples, labelled_task, transfer

probe_from_names: Any = run.probe_from_names
OLD, NEW, LABELS, R = two_views()
IDS = np.asarray(NEW.ids)
FORWARD, BACKWARD = rotating(R), rotating(R.T.copy(), "new", "old")


def context(**changes) -> Any:
    fields = {"forward": FORWARD, "backward": BACKWARD, "source": OLD, "target": NEW, "labels": LABELS} | changes
    return build_context(**fields)


def test_rows_seen_by_either_stitcher_are_not_test_rows():
    test = context().paired_rows.split.test
    known = np.unique(id_fingerprints(IDS[test[:30]]))
    for side in ("forward", "backward"):
        built = context(**{side: replace({"forward": FORWARD, "backward": BACKWARD}[side], seen=known)})
        made = labelled_task(built)
        assert len(made.test) == len(test) - 30
        assert not set(IDS[test[:30]]) & set(built.paired_rows.pairs.ids[made.test])


def test_the_test_rows_of_the_stitchers_split_are_the_test_rows_here():
    from repstitch.workflows.training import train

    made = train(NEW, OLD, method="ridge", objective="reconstruction", split_shares=(0.5, 0.2, 0.3), split_seed=4)
    built = context(backward=made, forward=None)
    unseen = np.flatnonzero(~built.paired_rows.seen_in_training)
    assert set(labelled_task(built).test) == set(unseen) == set(built.paired_rows.split.test)


def test_an_mlp_is_linearised_at_training_rows():
    bent = stitcher(mlp(8, 8), "new", "old")
    built = context(backward=bent, forward=None)
    assert f"averaged over {len(built.paired_rows.split.train)} rows" in built.backward_map.description
    with pytest.raises(InputError, match="An MLP is not a single matrix"):
        transfer(probe(8), build_context(None, bent))
    # The rows are not paired: each side is used alone.
    alone: Any = build_context(None, bent, source=OLD, target=NEW.take([3]))
    assert "at one point" in transfer(probe(8), alone)[1]


def test_the_jacobian_uses_at_most_two_thousand_rows():
    rows = Embeddings(unit(gaussian(4500, 8)), card("new", 8))
    built: Any = build_context(None, stitcher(mlp(8, 8), "new", "old"), target=rows)
    assert "averaged over 1,500 rows" in built.backward_map.description


def test_swapped_files_without_cards_are_refused():
    old, new = (
        replace(rows, vectors=unit(rows.vectors + shift).astype(np.float32), declared=False, space=card(name, 8))
        for rows, shift, name in ((OLD, np.eye(8)[0] * 3, "old"), (NEW, np.eye(8)[4] * 3, "new"))
    )
    backward = replace(BACKWARD, source_mean=new.vectors.mean(0), target_mean=old.vectors.mean(0))
    guessed = [replace(rows, space=replace(rows.space, name="rows", encoder=None)) for rows in (old, new)]
    build_context(None, backward, guessed[0], guessed[1])
    with pytest.raises(InputError, match=r"`target` looks like rows of 'old'.*are in 'new' with `target_space`"):
        build_context(None, backward, guessed[1], guessed[0])
    with pytest.raises(InputError, match="`against` looks like rows of 'new'"):
        concept_from_examples(build_context(None, backward), guessed[0], guessed[1], by="classifier")


def test_messages_name_the_side_with_the_error():
    spoiled = OLD.vectors.copy()
    spoiled[3] = np.nan
    with pytest.raises(InputError, match="1 with source NaN or Inf"):
        assert context(source=replace(OLD, vectors=spoiled)).paired_rows
    with pytest.raises(InputError, match=r"No id is in both files \(target has e.g. 'item0', source 'other0'\)"):
        assert context(source=replace(OLD, ids=names(600, "other"))).paired_rows
    assert context(source=replace(OLD, vectors=spoiled), drop_invalid=True).paired_rows


def test_rows_of_one_group_stay_on_one_side_of_the_split():
    groups = np.array([f"g{i // 5}" for i in range(600)], dtype=object)
    source, target = read_rows(OLD, NEW, group=groups)
    paired = context(source=source, target=target).paired_rows
    train, validation, test = (
        set(paired.pairs.groups[part]) for part in (paired.split.train, paired.split.validation, paired.split.test)
    )
    assert not train & test
    assert not validation & test


def test_omitting_the_groups_that_the_stitcher_was_trained_with_warns(caplog):
    built = context(backward=replace(BACKWARD, split={"shares": [0.6, 0.15, 0.25], "seed": 0, "group": "photo"}))
    assert len(built.paired_rows.split.test)
    assert "The stitcher was trained with groups (photo); pass `group` here too" in caplog.text


def test_rows_without_ids_seen_by_the_forward_stitcher_are_recognised_by_their_vectors():
    known = np.unique(row_fingerprints(OLD.vectors, NEW.vectors))
    built = context(forward=replace(FORWARD, seen=known), source=replace(OLD, ids=None), target=replace(NEW, ids=None))
    assert built.paired_rows.seen_in_training.all()


def test_rows_without_ids_are_recognised_after_they_were_scaled_and_rounded():
    rounded = [replace(side, ids=None, vectors=(3 * side.vectors).astype(np.float16)) for side in (OLD, NEW)]
    forward = replace(FORWARD, seen_rows=pair_keys(OLD.vectors, NEW.vectors))
    built = context(forward=forward, source=rounded[0], target=rounded[1])
    assert built.paired_rows.seen_in_training.all()


def test_rows_without_a_label_are_not_test_rows_for_class_names():
    labels = LABELS.copy()
    labels[:100] = None
    built = build_context(FORWARD, None, None, NEW, labels)
    assert len(unseen_labelled_rows(FORWARD, built.target_rows)) == 500
    prompts = Embeddings(OLD.vectors[:2], card("old", 8), np.array(["class 0", "class 1"], dtype=object))
    assert probe_from_names(built, prompts)[1].left_out["without a label, or seen by the stitcher"] == 100


def test_groups_may_be_a_column_of_either_side(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from repstitch.embeddings.writing import write

    write(tmp_path / "old.parquet", OLD)
    write(tmp_path / "new.parquet", NEW)
    table = pq.read_table(tmp_path / "old.parquet")
    grouped = table.append_column("photo", pa.array([f"g{i // 5}" for i in range(600)]))
    pq.write_table(grouped, tmp_path / "grouped.parquet")
    source, target = read_rows(tmp_path / "grouped.parquet", tmp_path / "new.parquet", group="photo")
    assert context(source=source, target=target).paired_rows.pairs.groups[7] == "g1"
    with pytest.raises(InputError, match="`group` must be a column of either side"):
        read_rows(tmp_path / "old.parquet", tmp_path / "new.parquet", group="photo")


def test_seen_rows_are_recognised_by_id():
    backward = replace(BACKWARD, seen=np.unique(id_fingerprints(IDS)[:100]))
    assert seen_in_training(backward, pairs_of(NEW.vectors, OLD.vectors, IDS))[:100].all()


@pytest.mark.parametrize(
    ("target", "seen", "message"),
    [
        (None, IDS[:0], "`labels` and the `target` rows that they belong to are needed"),
        (NEW, IDS[:0], "`labels` and the `target` rows that they belong to are needed"),
        (replace(NEW, labels=LABELS), IDS, "All usable labelled target rows were used to train the stitcher"),
    ],
)
def test_class_names_cannot_be_evaluated_without_unseen_labelled_rows(target, seen, message):
    with pytest.raises(InputError, match=message):
        unseen_labelled_rows(replace(FORWARD, seen=np.unique(id_fingerprints(seen))), target)


def test_invalid_rows_are_not_test_rows_for_class_names_with_drop_invalid():
    spoiled = NEW.vectors.copy()
    spoiled[3] = np.nan
    rows = replace(NEW, vectors=spoiled, labels=LABELS)
    assert len(unseen_labelled_rows(FORWARD, rows, drop_invalid=True)) == 599
    assert len(unseen_labelled_rows(FORWARD, rows)) == 600
