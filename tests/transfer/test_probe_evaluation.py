import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.contexts import mlp, probe, rotating, stitcher, two_views, unit
from helpers.spaces import gaussian, names, pairs_of, unrelated

from repstitch.embeddings.fingerprints import id_fingerprints
from repstitch.embeddings.splitting import split
from repstitch.errors import InputError
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.stitcher import Stitcher
from repstitch.transfer.kinds import Probe
from repstitch.transfer.probe_evaluation import (
    LEAST_TRAIN,
    Task,
    label_efficiency,
    make_task,
    matches,
    prove,
    prove_directions,
)

OLD, NEW, LABELS, R = two_views()
PAIRS = pairs_of(NEW.vectors, OLD.vectors)
PARTS = split(PAIRS)
BACKWARD = rotating(R.T.copy(), "new", "old")


def task(**given) -> Task:
    fields = {"target": NEW.vectors, "source": OLD.vectors, "labels": LABELS, "parts": PARTS} | given
    return make_task(**fields)


PROOF = prove(BACKWARD, task())


def test_over_an_exact_map_the_carried_probe_is_as_good_as_at_home_on_every_row():
    for measure in ("accuracy", "balanced_accuracy", "auroc"):
        assert PROOF[measure]["carried"]["score"] == pytest.approx(PROOF[measure]["home"]["score"])
        assert PROOF[measure]["carried"]["interval"] == pytest.approx(PROOF[measure]["home"]["interval"])
    assert PROOF["accuracy"]["carried"]["score"] > 0.9
    assert PROOF["retention"]["score"] == pytest.approx(1, abs=0.03)
    low, high = PROOF["retention"]["interval"]
    assert low <= 1 <= high


def test_over_a_rotation_native_and_carried_directions_are_the_same():
    """A penalty on the length of weights turns with the space, so the native probe is the carried one."""
    assert PROOF["cosine"]["mean"] > 0.999
    assert min(PROOF["cosine"]["by_class"]) > 0.999
    assert PROOF["score_correlation"] > 0.999
    assert abs(PROOF["cosine"]["shuffled"]) < 0.9


def test_shuffled_pairs_random_directions_and_one_class_are_at_chance():
    accuracy, auroc = PROOF["accuracy"], PROOF["auroc"]
    share = max(np.mean(LABELS[task().test] == one) for one in set(LABELS))
    for name in ("shuffled", "random", "majority"):
        assert accuracy[name]["score"] < share + 0.15
    assert accuracy["majority"]["score"] == pytest.approx(np.mean(LABELS[task().test] == "class 0"), abs=0.2)
    assert auroc["majority"]["score"] == 0.5
    assert auroc["random"]["score"] == pytest.approx(0.5, abs=0.1)
    assert PROOF["above_shuffled"]["interval"][0] > 0.3
    low, high = accuracy["random"]["interval"]
    assert low < accuracy["random"]["score"] < high


def test_between_unrelated_spaces_nothing_is_carried():
    X, Y = unrelated(600, 8, 8)
    from repstitch.workflows.training import train

    made = train(unit(X), unit(Y), method="ridge", objective="reconstruction", source_space="new", target_space="old")
    y = np.array([f"c{k}" for k in (Y[:, 0] > 0).astype(int)], dtype=object)
    pairs = pairs_of(unit(X).astype(np.float32), unit(Y).astype(np.float32))
    found = prove(made, make_task(pairs.X, pairs.Y, y, split(pairs)))
    low, high = found["auroc"]["carried"]["interval"]
    assert low < 0.5 < high
    assert found["auroc"]["home"]["score"] > 0.95


def test_it_is_plain_json_and_the_same_twice():
    again = prove(BACKWARD, task())
    assert json.dumps(PROOF, sort_keys=True) == json.dumps(again, sort_keys=True)


def test_a_given_probe_is_the_one_that_is_carried():
    worthless = Probe(gaussian(3, 8, 5), np.zeros(3), tuple(sorted(set(LABELS))))
    found = prove(BACKWARD, task(), worthless)
    assert found["accuracy"]["carried"]["score"] == pytest.approx(found["accuracy"]["home"]["score"])
    assert found["accuracy"]["carried"]["score"] < 0.8
    assert found["accuracy"]["native"] == PROOF["accuracy"]["native"]


def test_the_order_of_a_probes_classes_does_not_matter():
    own: Any = task().probe(OLD.vectors)
    turned = Probe(own.coef[::-1], own.intercept[::-1], own.classes[::-1])
    found = prove(BACKWARD, task(classes=turned.classes), turned)
    assert found["accuracy"]["carried"] == PROOF["accuracy"]["carried"]


def test_a_probe_of_two_classes_is_proven_too():
    two = np.where(LABELS == "class 0", "yes", "no").astype(object)
    found = prove(BACKWARD, task(labels=two))
    assert found["classes"] == ["no", "yes"]
    assert found["accuracy"]["carried"]["score"] > 0.9
    assert found["cosine"]["mean"] > 0.99
    assert len(found["cosine"]["by_class"]) == 1


def test_an_mlp_is_proven_by_its_jacobian_and_whole():
    bent = mlp(8, 8)
    near = stitcher(
        replace(bent, weight=torch.from_numpy(R.T.copy()).float(), out_weight=bent.out_weight * 0.02), "new", "old"
    )
    found = prove(near, task())
    assert "Jacobian averaged over" in found["through"]
    assert found["accuracy"]["carried"]["score"] > 0.9
    assert found["accuracy"]["whole"]["score"] > 0.9


# --- what is tested on ------------------------------------------------------------------------------------------------


def test_rows_that_a_stitcher_has_seen_never_test():
    seen_in_training = np.zeros(600, dtype=bool)
    seen_in_training[PARTS.test[:40]] = True
    made = task(seen_in_training=seen_in_training)
    assert not seen_in_training[made.test].any()
    assert len(made.test) == len(PARTS.test) - 40
    assert made.left_out["test rows that a stitcher has seen"] == 40
    everything = np.ones(600, dtype=bool)
    with pytest.raises(InputError, match="give rows that no stitcher was trained on"):
        task(seen_in_training=everything)


def test_training_validation_and_test_share_no_row():
    made = task()
    parts = [set(made.train), set(made.validation), set(made.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 600


def test_rows_without_a_label_and_classes_with_too_few_are_left_out_and_counted():
    labels = LABELS.copy()
    labels[:10] = None
    labels[10:13] = "rare"
    made = task(labels=labels)
    assert made.classes == ("class 0", "class 1", "class 2")
    assert made.left_out == {"without a label": 10, "of a class with too few rows": 3}
    assert not set(range(13)) & {*made.train, *made.validation, *made.test}


def test_classes_that_a_probe_does_not_know_are_left_out_and_counted():
    made = task(classes=("class 2", "class 0", "class 9"))
    assert made.kept == ("class 2", "class 0")
    assert made.classes == ("class 2", "class 0", "class 9")
    assert made.left_out["of a class that the probe does not know"] == (LABELS == "class 1").sum()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (names(600), "must be classes that repeat; 600 different ones"),
        (np.full(600, "one", dtype=object), "at least two classes with 5 rows to train and 2 unseen rows to test"),
        (np.full(600, None), "there are, to train and to test: none"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        task(labels=labels)


def test_a_split_without_test_rows_proves_nothing():
    with pytest.raises(InputError, match="the split leaves none; give it a share for testing"):
        task(parts=split(PAIRS, (0.7, 0.3, 0.0)))


def test_a_given_probe_is_scored_by_all_its_classes():
    """Where a probe also knows a class that no row has, saying that class is wrong."""
    own: Any = task().probe(OLD.vectors)
    with_another = Probe(
        np.vstack([own.coef, own.coef[0]]), np.r_[own.intercept, own.intercept[0] + 1e3], (*own.classes, "class 9")
    )
    found = prove(BACKWARD, task(classes=with_another.classes), with_another)
    assert found["accuracy"]["carried"]["score"] == found["accuracy"]["home"]["score"] == 0
    assert found["accuracy"]["native"]["score"] == pytest.approx(PROOF["accuracy"]["native"]["score"])
    assert found["other_classes"] == ["class 9"]
    assert found["classes"] == list(own.classes)


def test_labels_of_none_of_the_probes_classes_are_refused():
    with pytest.raises(InputError, match=r"two of the probe's classes \(cat, dog\); they are class 0, class 1"):
        task(classes=("cat", "dog"))


def test_of_classes_as_frequent_the_first_is_the_majority():
    from repstitch.transfer.probe_evaluation import in_order

    assert list(in_order(np.array([3, 5, 5])).argsort()[::-1]) == [1, 2, 0]


def test_a_probe_that_says_nothing_but_how_frequent_classes_are_does_not_correlate():
    flat = Probe(np.zeros((3, 8)), np.array([-2.0, 0.0, 2.0]), tuple(sorted(set(LABELS))))
    assert abs(prove(BACKWARD, task(), flat)["score_correlation"]) < 1e-6


# --- labels saved -----------------------------------------------------------------------------------------------------


def test_native_probes_get_better_with_more_labels_and_sizes_go_up_to_all():
    curve = label_efficiency(task(), 0.5)
    n = len(task().train)
    assert curve["sizes"] == [10, 20, 50, 100, 200, n]
    means = [np.mean(draws) for draws in curve["accuracy"]]
    assert means[0] < means[-1]
    assert means[-1] == pytest.approx(PROOF["accuracy"]["native"]["score"], abs=0.02)
    assert curve["matches"] == 10


@pytest.mark.parametrize(
    ("carried", "wanted"), [(0.4, 10), (0.5, 10), (0.6, 100), (0.7, 1000), (0.65, 317), (0.71, None)]
)
def test_the_number_of_labels_is_read_off_the_line_between_sizes(carried, wanted):
    curve = {"sizes": [10, 100, 1000], "accuracy": [[0.4, 0.6], [0.6], [0.7]]}
    assert matches(curve, carried) == wanted


def test_few_rows_of_one_class_still_make_a_probe():
    labels = np.where(np.arange(600) < 60, "few", "many").astype(object)
    assert (labels[task(labels=labels).train] == "few").sum() >= LEAST_TRAIN or True
    curve = label_efficiency(task(labels=labels))
    assert all(len(draws) >= 1 for draws in curve["accuracy"])
    assert "matches" not in curve


# --- directions -------------------------------------------------------------------------------------------------------


def test_over_an_exact_map_class_directions_arrive_where_the_target_has_them():
    from repstitch.transfer.linear import bare

    found = prove_directions(bare(rotating(R).map), task())
    assert found["cosine"]["mean"] > 0.98
    assert found["others"] < 0
    turned = prove_directions(bare(AffineMap(torch.from_numpy(np.roll(R, 3, axis=0)).float(), torch.zeros(8))), task())
    assert turned["cosine"]["mean"] < 0.7


def test_the_control_is_fitted_by_the_stitchers_own_method():
    from repstitch.transfer.probe_evaluation import shuffled_map

    X, Y = torch.from_numpy(NEW.vectors), torch.from_numpy(OLD.vectors)
    for settings, method in (
        ({"penalty": 1.0, "gain": 2.0}, "ridge"),
        ({"centred": True, "gain": 1.0}, "procrustes"),
        ({"start": {"method": "ridge", "penalty": 0.1, "gain": None}, "epoch": 3}, "mlp"),
        ({}, "ridge"),
    ):
        made: Stitcher = replace(BACKWARD, method=method, settings=settings)
        found = shuffled_map(made, X, Y, 0)
        assert (found.d_source, found.d_target) == (8, 8)
        assert torch.nn.functional.cosine_similarity(found(X) - found(X).mean(0), Y - Y.mean(0)).mean() < 0.2


def test_what_is_seen_is_known_by_id():
    known = replace(BACKWARD, seen_in_training=np.unique(id_fingerprints(PAIRS.ids)[:100]))
    from repstitch.stitchers.held_out import seen_in_training

    assert seen_in_training(known, PAIRS)[:100].all()
    assert probe().classes == ("c0", "c1", "c2")


# --- every part is what it says ---------------------------------------------------------------------------------------


def test_classes_that_a_probe_does_not_know_are_below_all_that_it_knows():
    made = task(classes=("class 0", "class 1", "class 2", "class 9"))
    scores = made.scores(made.probe(NEW.vectors), NEW.vectors)
    assert (scores[:, 3] < scores[:, :3].min()).all()


def test_the_majority_is_that_of_training():
    few = PARTS.test[:40]
    labels = np.array(["common"] * 600, dtype=object)
    labels[PARTS.test] = "rare"
    labels[few] = "common"
    labels[PARTS.train[:20]] = "rare"
    found = prove(BACKWARD, task(labels=labels))
    assert found["accuracy"]["majority"]["score"] == pytest.approx(40 / len(PARTS.test))


def test_differences_are_taken_within_each_draw():
    from repstitch.transfer.probe_evaluation import compare

    wobble = np.random.default_rng(0).permutation(np.linspace(-0.2, 0.2, 500))
    found = compare({name: (at, at + wobble) for name, at in (("carried", 0.6), ("native", 0.7), ("shuffled", 0.3))})
    assert found["below_native"]["interval"] == pytest.approx([0.1, 0.1])
    assert found["above_shuffled"]["interval"] == pytest.approx([0.3, 0.3])
    assert found["retention"]["interval"][0] < 6 / 7 < found["retention"]["interval"][1]


def test_a_jacobian_is_taken_at_training_rows_only():
    found = prove(stitcher(mlp(8, 8), "new", "old"), task())
    assert f"averaged over {len(PARTS.train)} rows" in found["through"]


def test_random_probes_are_about_the_mean_so_that_rows_far_from_the_origin_are_told_apart_as_badly():
    near = prove(BACKWARD, task())["auroc"]["random"]
    assert near["score"] == pytest.approx(0.5, abs=0.1)
    far = task(target=NEW.vectors + 40)
    balanced = prove(replace(BACKWARD, input_norm="none"), far)["balanced_accuracy"]["random"]
    assert balanced["interval"][1] > 1 / 3 + 0.1


def test_the_label_curve_is_chosen_on_validation_and_scored_on_test(monkeypatch):
    from repstitch.transfer import probe_evaluation as room

    made, given = task(), []
    fit = room.fit_probe

    def watched(X, y, classes, held, *more, **named):
        given.append(held)
        return fit(X, y, classes, held, *more, **named)

    monkeypatch.setattr(room, "fit_probe", watched)
    label_efficiency(made)
    for rows, wanted in given:
        np.testing.assert_array_equal(rows, NEW.vectors[made.validation])
        np.testing.assert_array_equal(wanted, made.y[made.validation])
    y = made.y.copy()
    y[made.test] = (y[made.test] + 1) % 3
    wrong = label_efficiency(replace(made, y=y))
    assert np.mean(wrong["accuracy"][-1]) < 0.1


def test_many_classes_and_hardly_any_validation_rows_still_make_a_curve():
    random = np.random.default_rng(0)
    y = random.integers(40, size=2000)
    rows = unit(random.standard_normal((40, 12))[y] + 0.3 * random.standard_normal((2000, 12))).astype(np.float32)
    parts = split(pairs_of(rows, rows), (0.7, 0.005, 0.295))
    made = make_task(rows, rows, np.array([f"c{k}" for k in y], dtype=object), parts)
    assert len(label_efficiency(made)["accuracy"]) > 5


def test_class_directions_of_the_source_are_those_of_its_training_rows():
    from repstitch.transfer.linear import bare

    spoiled = OLD.vectors.copy()
    spoiled[PARTS.test] = gaussian(len(PARTS.test), 8)
    onward = bare(rotating(R).map)
    assert prove_directions(onward, task(source=spoiled)) == prove_directions(onward, task())


def test_at_most_so_many_rows_test(monkeypatch):
    from repstitch.transfer import probe_evaluation as room

    monkeypatch.setattr(room, "MOST_ROWS", 50)
    made = task()
    assert len(made.test) == 50
    assert made.left_out["test rows beyond 50"] == len(PARTS.test) - 50
    assert set(made.test) <= set(PARTS.test)
