"""How many labels a transferred probe saves."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.contexts import task_of, two_views, unit
from helpers.spaces import pairs_of

from repstitch.embeddings.splitting import split
from repstitch.transfer import label_curve
from repstitch.transfer.kinds import Probe
from repstitch.transfer.label_curve import first_match, label_efficiency
from repstitch.transfer.task import LEAST_TRAIN, make_task

OLD, NEW, LABELS, _ = two_views()


def task(**changes) -> Any:
    return task_of(OLD, NEW, **{"labels": LABELS} | changes)


def test_native_probes_improve_with_more_labels_up_to_all_training_rows():
    made = task()
    curve = label_efficiency(made, 0.5)
    assert curve.sizes == [10, 20, 50, 100, 200, len(made.train)]
    means = [np.mean(draws) for draws in curve.accuracy]
    assert means[0] < means[-1]
    predicted = made.scores(made.fit_probe(made.target), made.target[made.test]).argmax(1)
    assert means[-1] == pytest.approx((predicted == made.y[made.test]).mean(), abs=0.02)
    assert curve.matches == 10


@pytest.mark.parametrize(
    ("carried", "wanted"), [(0.4, 10), (0.5, 10), (0.6, 100), (0.7, 1000), (0.65, 317), (0.71, None)]
)
def test_the_number_of_labels_is_interpolated_between_sizes(carried, wanted):
    assert first_match([10, 100, 1000], [[0.4, 0.6], [0.6], [0.7]], carried) == wanted


def test_a_class_with_few_rows_still_gives_a_curve():
    labels = np.where(np.arange(600) < 20, "few", "many").astype(object)
    made = task(labels=labels)
    assert (labels[made.train] == "few").sum() >= LEAST_TRAIN
    curve = label_efficiency(made)
    assert all(len(draws) >= 1 for draws in curve.accuracy)
    assert curve.matches is None
    assert "matches" not in curve


def test_probes_of_the_label_curve_are_tuned_on_validation_and_scored_on_test_rows(monkeypatch):
    made, validations = task(), []
    fit = label_curve.fit_probe

    def watched(X, y, classes, validation, **options):
        validations.append(validation)
        return fit(X, y, classes, validation, **options)

    monkeypatch.setattr(label_curve, "fit_probe", watched)
    label_efficiency(made)
    for rows, wanted in validations:
        np.testing.assert_array_equal(rows, NEW.vectors[made.validation])
        np.testing.assert_array_equal(wanted, made.y[made.validation])
    y = made.y.copy()
    y[made.test] = (y[made.test] + 1) % 3
    wrong = label_efficiency(replace(made, y=y))
    assert np.mean(wrong.accuracy[-1]) < 0.1


def test_many_classes_and_few_validation_rows_still_give_a_curve():
    random = np.random.default_rng(0)
    y = random.integers(20, size=500)
    rows = unit(random.standard_normal((20, 12))[y] + 0.3 * random.standard_normal((500, 12))).astype(np.float32)
    parts = split(pairs_of(rows, rows), (0.7, 0.008, 0.292))
    made = make_task(rows, rows, np.array([f"c{k}" for k in y], dtype=object), parts)
    assert len(made.validation) < 10
    assert len(label_efficiency(made).accuracy) > 5


def test_validation_and_test_rows_are_the_same_for_all_draws(monkeypatch):
    made, validations, tested = task(), [], []
    fit, class_scores = label_curve.fit_probe, Probe.class_scores

    def watched(X, y, classes, validation, **options):
        validations.append(validation[0])
        return fit(X, y, classes, validation, **options)

    def scored(probe, rows):
        tested.append(rows)
        return class_scores(probe, rows)

    monkeypatch.setattr(label_curve, "fit_probe", watched)
    monkeypatch.setattr(Probe, "class_scores", scored)
    label_efficiency(made)
    assert len(validations) > 5
    assert all(rows is validations[0] for rows in validations)
    of_test_size = [rows for rows in tested if len(rows) == len(made.test)]
    assert all(rows is of_test_size[0] for rows in of_test_size)
    np.testing.assert_array_equal(of_test_size[0], NEW.vectors[made.test])
