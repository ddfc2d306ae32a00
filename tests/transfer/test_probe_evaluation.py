"""The evaluation of a transferred probe, on spaces for which the right result is known."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.contexts import mlp, rotating, stitcher, task_of, two_views, unit
from helpers.spaces import gaussian, pairs_of, unrelated

from repstitch.embeddings.splitting import split
from repstitch.stitchers.maps import AffineMap
from repstitch.transfer import probe_evaluation
from repstitch.transfer.kinds import Probe
from repstitch.transfer.linear import affine_part
from repstitch.transfer.probe_evaluation import (
    compare_accuracies,
    compare_class_directions,
    frequency_scores,
    shuffled_map,
)
from repstitch.transfer.task import make_task

evaluate_probe: Any = probe_evaluation.evaluate_probe  # typed Any because parts of a proof may be None
OLD, NEW, LABELS, R = two_views()
SPLIT = split(pairs_of(NEW.vectors, OLD.vectors))
BACKWARD = rotating(R.T.copy(), "new", "old")


def task(**changes) -> Any:
    return task_of(OLD, NEW, **{"labels": LABELS} | changes)


PROOF = evaluate_probe(BACKWARD, task())


def test_over_an_exact_map_the_transferred_probe_scores_the_same_as_on_its_source():
    for measure in ("accuracy", "balanced_accuracy", "auroc"):
        carried, home = (PROOF.measure(measure, name) for name in ("carried", "home"))
        assert carried.score == pytest.approx(home.score)
        assert carried.interval == pytest.approx(home.interval)
    assert PROOF.accuracy("carried").score > 0.9
    assert PROOF.retention.score == pytest.approx(1, abs=0.03)
    low, high = PROOF.retention.interval
    assert low <= 1 <= high


def test_over_a_rotation_native_and_transferred_directions_are_equal():
    """The penalty on the weights is invariant to rotation, so the native probe equals the transferred one."""
    assert PROOF.cosine.mean > 0.999
    assert min(PROOF.cosine.by_class) > 0.999
    assert PROOF.score_correlation > 0.999
    assert abs(PROOF.cosine.shuffled) < 0.9


def test_shuffled_random_and_majority_controls_score_at_chance():
    test_labels = LABELS[task().test]
    share = max(np.mean(test_labels == name) for name in set(LABELS))
    for name in ("shuffled", "random", "majority"):
        assert PROOF.accuracy(name).score < share + 0.15
    assert PROOF.accuracy("majority").score == pytest.approx(np.mean(test_labels == "class 0"), abs=0.2)
    assert PROOF.auroc("majority").score == 0.5
    assert PROOF.auroc("random").score == pytest.approx(0.5, abs=0.1)
    assert PROOF.above_shuffled.interval[0] > 0.3
    low, high = PROOF.accuracy("random").interval
    assert low < PROOF.accuracy("random").score < high


def test_between_unrelated_spaces_a_transferred_probe_scores_at_chance():
    X, Y = unrelated(600, 8, 8)
    from repstitch.workflows.training import train

    made = train(unit(X), unit(Y), method="ridge", objective="reconstruction", source_space="new", target_space="old")
    y = np.array([f"c{k}" for k in (Y[:, 0] > 0).astype(int)], dtype=object)
    pairs = pairs_of(unit(X).astype(np.float32), unit(Y).astype(np.float32))
    proof = evaluate_probe(made, make_task(pairs.X, pairs.Y, y, split(pairs)))
    low, high = proof.auroc("carried").interval
    assert low < 0.5 < high
    assert proof.auroc("home").score > 0.95


def test_a_proof_is_plain_json_and_reproducible():
    again = evaluate_probe(BACKWARD, task())
    assert json.dumps(PROOF.to_dict(), sort_keys=True) == json.dumps(again.to_dict(), sort_keys=True)


def test_a_probe_from_the_caller_is_transferred_instead_of_a_trained_one():
    worthless = Probe(gaussian(3, 8, 5), np.zeros(3), tuple(sorted(set(LABELS))))
    proof = evaluate_probe(BACKWARD, task(), worthless)
    assert proof.accuracy("carried").score == pytest.approx(proof.accuracy("home").score)
    assert proof.accuracy("carried").score < 0.8
    assert proof.accuracy("native") == PROOF.accuracy("native")


def test_the_order_of_a_probes_classes_does_not_matter():
    trained: Any = task().fit_probe(OLD.vectors)
    turned = Probe(trained.coef[::-1], trained.intercept[::-1], trained.classes[::-1])
    proof = evaluate_probe(BACKWARD, task(classes=turned.classes), turned)
    assert proof.accuracy("carried") == PROOF.accuracy("carried")


def test_a_probe_of_two_classes_is_evaluated():
    two = np.where(LABELS == "class 0", "yes", "no").astype(object)
    proof = evaluate_probe(BACKWARD, task(labels=two))
    assert proof.classes == ["no", "yes"]
    assert proof.accuracy("carried").score > 0.9
    assert proof.cosine.mean > 0.99
    assert len(proof.cosine.by_class) == 1


def test_a_probe_is_evaluated_through_the_jacobian_and_the_whole_mlp():
    bent = mlp(8, 8)
    nearly_linear = stitcher(
        replace(bent, weight=torch.from_numpy(R.T.copy()).float(), out_weight=bent.out_weight * 0.02), "new", "old"
    )
    proof = evaluate_probe(nearly_linear, task())
    assert f"Jacobian averaged over {len(SPLIT.train)} rows" in proof.through  # the training rows only
    assert proof.accuracy("carried").score > 0.9
    assert proof.accuracy("whole").score > 0.9


def test_a_probe_is_scored_on_all_its_classes_even_those_without_rows():
    """If the probe has a class that no row has, predicting that class counts as wrong."""
    trained: Any = task().fit_probe(OLD.vectors)
    with_another = Probe(
        np.vstack([trained.coef, trained.coef[0]]),
        np.r_[trained.intercept, trained.intercept[0] + 1e3],
        (*trained.classes, "class 9"),
    )
    proof = evaluate_probe(BACKWARD, task(classes=with_another.classes), with_another)
    assert proof.accuracy("carried").score == proof.accuracy("home").score == 0
    assert proof.accuracy("native").score == pytest.approx(PROOF.accuracy("native").score)
    assert proof.to_dict()["other_classes"] == ["class 9"]
    assert proof.classes == list(trained.classes)


def test_the_first_of_equally_frequent_classes_is_the_majority():
    assert list(frequency_scores(np.array([3, 5, 5])).argsort()[::-1]) == [1, 2, 0]


def test_the_majority_class_is_counted_on_training_rows():
    labels = np.array(["common"] * 600, dtype=object)
    labels[SPLIT.test] = "rare"
    labels[SPLIT.test[:40]] = "common"
    labels[SPLIT.train[:20]] = "rare"
    proof = evaluate_probe(BACKWARD, task(labels=labels))
    assert proof.accuracy("majority").score == pytest.approx(40 / len(SPLIT.test))


def test_scores_of_a_probe_of_intercepts_only_do_not_correlate():
    flat = Probe(np.zeros((3, 8)), np.array([-2.0, 0.0, 2.0]), tuple(sorted(set(LABELS))))
    assert abs(evaluate_probe(BACKWARD, task(), flat).score_correlation) < 1e-6


def test_differences_of_accuracies_are_paired_within_each_resample():
    wobble = np.random.default_rng(0).permutation(np.linspace(-0.2, 0.2, 500))
    scores = (("carried", 0.6), ("native", 0.7), ("shuffled", 0.3))
    differences = compare_accuracies({name: (score, score + wobble) for name, score in scores}, 100)
    # The differences are the same in every resample, so only the room for 3 of 100 rows is left.
    assert differences["below_native"]["interval"] == pytest.approx([0.1 - 0.03 * 1.1, 0.1 + 0.03 * 0.9])
    assert differences["above_shuffled"]["interval"] == pytest.approx([0.3 - 0.03 * 1.3, 0.3 + 0.03 * 0.7])
    low, high = differences["retention"]["interval"]
    assert low < 6 / 7 < high


def test_random_probes_are_centred_on_the_mean_so_rows_far_from_the_origin_stay_at_chance():
    assert PROOF.auroc("random").score == pytest.approx(0.5, abs=0.1)
    far = task(target=NEW.vectors + 40)
    balanced = evaluate_probe(replace(BACKWARD, input_norm="none"), far).balanced_accuracy("random")
    assert balanced.interval[1] > 1 / 3 + 0.1


# --- directions and controls ------------------------------------------------------------------------------------------


def test_over_an_exact_map_class_directions_match_those_of_the_target():
    directions = compare_class_directions(affine_part(rotating(R).map), task())
    assert directions.cosine.mean > 0.98
    assert directions.others < 0
    turned = AffineMap(torch.from_numpy(np.roll(R, 3, axis=0)).float(), torch.zeros(8))
    assert compare_class_directions(affine_part(turned), task()).cosine.mean < 0.7


def test_class_directions_of_the_source_use_training_rows_only():
    spoiled = OLD.vectors.copy()
    spoiled[SPLIT.test] = gaussian(len(SPLIT.test), 8)
    forward = affine_part(rotating(R).map)
    assert compare_class_directions(forward, task(source=spoiled)) == compare_class_directions(forward, task())


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"penalty": 1.0, "gain": 2.0}, "ridge"),
        ({"centred": True, "gain": 1.0}, "procrustes"),
        ({"start": {"method": "ridge", "penalty": 0.1, "gain": None}, "epoch": 3}, "mlp"),
        ({}, "ridge"),
    ],
)
def test_the_shuffled_control_is_fitted_with_the_stitchers_method(settings, method):
    X, Y = torch.from_numpy(NEW.vectors), torch.from_numpy(OLD.vectors)
    control = shuffled_map(replace(BACKWARD, method=method, settings=settings), X, Y, 0)
    assert (control.d_source, control.d_target) == (8, 8)
    translated = control(X)
    assert torch.nn.functional.cosine_similarity(translated - translated.mean(0), Y - Y.mean(0)).mean() < 0.2
