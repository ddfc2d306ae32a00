"""The rows on which probes are trained, validated and tested."""

from typing import Any

import numpy as np
import pytest
from helpers.contexts import task_of, two_views
from helpers.spaces import names, pairs_of

from repstitch.embeddings.splitting import split
from repstitch.errors import InputError

OLD, NEW, LABELS, _ = two_views()
PAIRS = pairs_of(NEW.vectors, OLD.vectors)
SPLIT = split(PAIRS)


def task(**changes) -> Any:
    return task_of(OLD, NEW, **{"labels": LABELS} | changes)


def test_rows_seen_by_a_stitcher_are_never_test_rows():
    seen_in_training = np.zeros(600, dtype=bool)
    seen_in_training[SPLIT.test[:40]] = True
    made = task(seen_in_training=seen_in_training)
    assert not seen_in_training[made.test].any()
    assert len(made.test) == len(SPLIT.test) - 40
    assert made.left_out["test rows that a stitcher has seen"] == 40
    everything = np.ones(600, dtype=bool)
    with pytest.raises(InputError, match="pass rows that no stitcher was trained on"):
        task(seen_in_training=everything)


def test_training_validation_and_test_rows_are_disjoint():
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


def test_rows_of_classes_that_a_probe_does_not_have_are_left_out_and_counted():
    made = task(classes=("class 2", "class 0", "class 9"))
    assert made.kept_classes == ("class 2", "class 0")
    assert made.classes == ("class 2", "class 0", "class 9")
    assert made.left_out["of a class that the probe does not know"] == (LABELS == "class 1").sum()


def test_classes_without_training_rows_score_below_all_others():
    made = task(classes=("class 0", "class 1", "class 2", "class 9"))
    scores = made.scores(made.fit_probe(NEW.vectors), NEW.vectors)
    assert (scores[:, 3] < scores[:, :3].min()).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (names(600), "must be classes that repeat; got 600 different labels"),
        (np.full(600, "one", dtype=object), "at least two classes with 5 training rows and 2 unseen test rows"),
        (np.full(600, None), "training and test rows per class: none"),
    ],
)
def test_labels_that_do_not_form_classes_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        task(labels=labels)


def test_labels_without_any_of_the_probes_classes_are_refused():
    with pytest.raises(InputError, match=r"two of the probe's classes \(cat, dog\); got class 0, class 1"):
        task(classes=("cat", "dog"))


def test_a_split_without_test_rows_is_refused():
    with pytest.raises(InputError, match="the split has none; pass a test share above 0"):
        task(split=split(PAIRS, (0.7, 0.3, 0.0)))


def test_the_number_of_test_rows_is_limited(monkeypatch):
    monkeypatch.setattr("repstitch.transfer.task.MOST_ROWS", 50)
    made = task()
    assert len(made.test) == 50
    assert made.left_out["test rows beyond 50"] == len(SPLIT.test) - 50
    assert set(made.test) <= set(SPLIT.test)
