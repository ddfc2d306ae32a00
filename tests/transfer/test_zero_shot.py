from typing import Any

import numpy as np
import pytest
import torch
from helpers.contexts import mlp, stitcher, two_views, unit
from helpers.spaces import card, gaussian

from repstitch.errors import InputError
from repstitch.stitchers.maps import AffineMap
from repstitch.transfer import zero_shot
from repstitch.transfer.zero_shot import probe_from_prompts

evaluate_names: Any = zero_shot.evaluate_names  # typed Any because intervals of a proof may be None
OLD, NEW, LABELS, R = two_views()
CLASSES = sorted(set(LABELS))
PROMPTS = np.stack([OLD.vectors[name == LABELS][:20].mean(0) for name in CLASSES])
MAP = AffineMap(torch.from_numpy(R).float(), torch.full((8,), 0.7))
FORWARD = stitcher(MAP, target_mean=NEW.vectors.mean(0))


def test_prompts_transferred_by_an_exact_map_classify_rows():
    proof = evaluate_names(probe_from_prompts(FORWARD, PROMPTS, CLASSES), NEW.vectors, LABELS)
    assert proof.accuracy("carried").score > 0.9
    assert proof.accuracy("carried").interval[0] > proof.accuracy("majority").interval[1]
    assert proof.accuracy("shuffled").score == pytest.approx(1 / 3, abs=0.1)
    assert proof.chance("balanced_accuracy") == pytest.approx(1 / 3)


def test_the_bias_of_the_map_and_a_shift_of_all_prompts_do_not_matter():
    plain = stitcher(AffineMap(MAP.weight, torch.zeros(8)), target_mean=NEW.vectors.mean(0))
    a, b = (probe_from_prompts(one, PROMPTS, CLASSES) for one in (FORWARD, plain))
    np.testing.assert_allclose(a.coef, b.coef, atol=1e-6)
    unnormed = stitcher(MAP, input_norm="none", target_mean=NEW.vectors.mean(0))
    moved = [probe_from_prompts(unnormed, PROMPTS + shift, CLASSES) for shift in (0.0, 5.0)]
    np.testing.assert_allclose(moved[0].coef, moved[1].coef, atol=1e-5)


def test_scores_are_projections_on_unit_directions_centred_on_the_targets_mean():
    probe = probe_from_prompts(FORWARD, PROMPTS, CLASSES)
    np.testing.assert_allclose(np.linalg.norm(probe.coef, axis=1), 1)
    np.testing.assert_allclose(probe.scores(FORWARD.target_mean[None]), 0, atol=1e-7)


def test_prompts_of_one_name_are_averaged():
    twice = np.vstack([PROMPTS, PROMPTS + 0.1 * gaussian(3, 8)])
    probe = probe_from_prompts(FORWARD, twice, [*CLASSES, *CLASSES])
    assert probe.classes == tuple(CLASSES)
    carried = (unit(twice.astype(float)) @ R + 0.7).reshape(2, 3, 8).mean(0)
    apart = unit(carried - carried.mean(0))
    np.testing.assert_allclose(probe.coef, apart, atol=1e-6)


def test_two_names_make_a_probe_of_one_row_and_an_mlp_needs_no_jacobian():
    two = probe_from_prompts(stitcher(mlp(8, 4)), PROMPTS[:2], CLASSES[:2])
    assert two.coef.shape == (1, 4)
    assert two.space == card("new", 4)


def test_rows_of_no_named_class_are_left_out_and_counted():
    proof = evaluate_names(probe_from_prompts(FORWARD, PROMPTS[:2], CLASSES[:2]), NEW.vectors, LABELS)
    assert proof.left_out == {"of no named class": int((CLASSES[2] == LABELS).sum())}
    assert proof.n_test == (CLASSES[2] != LABELS).sum()


def test_top_five_accuracy_is_reported_if_there_are_more_than_five_names():
    names = [f"n{i}" for i in range(7)]
    labels = np.array([names[i % 7] for i in range(600)], dtype=object)
    proof = evaluate_names(probe_from_prompts(FORWARD, gaussian(7, 8), names), NEW.vectors, labels)
    assert proof.measure("top5", "carried").score > proof.accuracy("carried").score
    assert proof.measure("top5", "shuffled").score == pytest.approx(5 / 7, abs=0.1)
    assert "top5" not in evaluate_names(probe_from_prompts(FORWARD, PROMPTS, CLASSES), NEW.vectors, LABELS)


def test_the_chance_level_is_a_guess_among_all_names():
    names = [*CLASSES, *(f"never {i}" for i in range(7))]
    proof = evaluate_names(probe_from_prompts(FORWARD, gaussian(10, 8), names), NEW.vectors, LABELS)
    assert proof.chance() == proof.chance("balanced_accuracy") == 0.1
    assert proof.measure("balanced_accuracy", "shuffled").score == pytest.approx(0.1, abs=0.05)


def test_the_number_of_test_rows_is_limited(monkeypatch):
    monkeypatch.setattr("repstitch.transfer.zero_shot.MOST_ROWS", 100)
    proof = evaluate_names(probe_from_prompts(FORWARD, PROMPTS, CLASSES), NEW.vectors, LABELS)
    assert proof.n_test == 100
    assert proof.left_out == {"beyond 100": 500}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: probe_from_prompts(FORWARD, PROMPTS, CLASSES[:2]),
            r"`names` must have one entry per prompt \(3\); got 2",
        ),
        (lambda: probe_from_prompts(FORWARD, PROMPTS[:1], ["a"]), "At least two classes are needed"),
        (
            lambda: probe_from_prompts(FORWARD, PROMPTS[:, :5], CLASSES),
            r"`prompts` must be \(m, 8\), rows of the space 'old'",
        ),
        (
            lambda: probe_from_prompts(FORWARD, np.ones((2, 8)), ["a", "b"]),
            "The map takes the prompt of 'a' to the mean over classes",
        ),
        (lambda: probe_from_prompts(FORWARD, np.zeros((2, 8)), ["a", "b"]), "contain only zeros"),
        (
            lambda: evaluate_names(probe_from_prompts(FORWARD, PROMPTS, ["x", "y", "z"]), NEW.vectors, LABELS),
            "`labels` must name at least two of the classes",
        ),
    ],
)
def test_prompts_and_labels_that_do_not_define_classes_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
