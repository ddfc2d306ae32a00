import numpy as np
import pytest
from helpers.spaces import gaussian
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from repstitch.errors import InputError
from repstitch.metrics.classification import evaluate, hits, margins


def problem(n: int = 200, c: int = 4, seed: int = 0, tied: bool = False):
    y = np.random.default_rng(seed).integers(c, size=n)
    scores = gaussian(n, c, seed + 1) + 1.5 * np.eye(c)[y]
    return (np.round(scores) if tied else scores), y


@pytest.mark.parametrize("c", [2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_values_are_those_of_scikit_learn(c, tied):
    scores, y = problem(c=c, tied=tied)
    measured = {name: values["a"][0] for name, values in evaluate({"a": scores}, y).items()}
    distances = margins(scores)
    assert measured["auroc"] == pytest.approx(np.mean([roc_auc_score(y == k, distances[:, k]) for k in range(c)]))
    if not tied:
        assert measured["accuracy"] == pytest.approx((scores.argmax(1) == y).mean())
        assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, scores.argmax(1)))


def test_the_auroc_of_two_classes_is_that_of_the_difference_of_their_scores():
    scores, y = problem(c=2)
    auroc = evaluate({"a": scores}, y)["auroc"]["a"][0]
    assert auroc == pytest.approx(roc_auc_score(y, scores[:, 1] - scores[:, 0]))


@pytest.mark.parametrize("tied", [False, True])
def test_draws_equal_the_values_on_the_resampled_rows(tied):
    from repstitch.metrics.resample import resample_counts

    scores, y = problem(60, tied=tied)
    results = evaluate({"a": scores}, y, seed=3, top=(2,), draws=20)
    for i, counts in enumerate(np.concatenate(list(resample_counts(60, 20, 3)))):
        rows = np.repeat(np.arange(60), counts)
        again = evaluate({"a": scores[rows]}, y[rows], top=(2,), draws=0)
        for measure, values in again.items():
            assert results[measure]["a"][1][i] == pytest.approx(values["a"][0]), measure


def test_all_contenders_are_scored_on_the_same_resampled_rows():
    scores, y = problem()
    results = evaluate({"a": scores, "same": 3 * scores + 1, "other": gaussian(200, 4, 9)}, y)
    for values in results.values():
        np.testing.assert_allclose(values["a"][1], values["same"][1])
        assert np.abs(values["a"][1] - values["other"][1]).max() > 0.05


def test_uninformative_scores_are_no_better_than_chance():
    y = np.random.default_rng(0).integers(4, size=4000)
    results = evaluate({"flat": np.zeros((4000, 4)), "noise": gaussian(4000, 4)}, y, draws=50)
    assert results["accuracy"]["flat"][0] == 0  # a tie counts against the row
    assert results["auroc"]["flat"][0] == 0.5
    assert results["accuracy"]["noise"][0] == pytest.approx(0.25, abs=0.03)
    assert results["auroc"]["noise"][0] == pytest.approx(0.5, abs=0.02)
    assert results["balanced_accuracy"]["noise"][0] == pytest.approx(0.25, abs=0.03)


def test_predicting_one_class_for_all_rows_has_a_balanced_accuracy_of_one_over_the_classes():
    y = np.array([0] * 90 + [1] * 10)
    results = evaluate({"majority": np.tile([1.0, 0.0], (100, 1))}, y)
    assert results["accuracy"]["majority"][0] == 0.9
    assert results["balanced_accuracy"]["majority"][0] == 0.5


def test_hits_are_labels_among_the_highest_scores():
    scores = np.tile(np.arange(6.0), (6, 1))
    assert list(hits(scores, np.arange(6), 5)) == [False, True, True, True, True, True]
    assert list(hits(scores, np.arange(6))) == [False] * 5 + [True]


def test_a_margin_ignores_a_constant_added_to_a_row():
    scores = gaussian(50, 5)
    np.testing.assert_allclose(margins(scores + gaussian(50, 1, 3)), margins(scores), atol=1e-6)
    np.testing.assert_allclose(margins(np.array([[3.0, 1.0, 2.0]])), [[1.0, -2.0, -1.0]])


def test_a_class_that_does_not_occur_is_left_out_of_means():
    scores, y = problem(c=3)
    wider = np.hstack([scores, np.full((200, 1), -9.0)])
    for measure, values in evaluate({"a": wider}, y, draws=5).items():
        assert values["a"][0] == pytest.approx(evaluate({"a": scores}, y, draws=5)[measure]["a"][0])


def test_a_class_without_drawn_rows_is_left_out_of_the_draw():
    y = np.array([0] * 40 + [1] * 40 + [2])
    results = evaluate({"a": np.eye(3)[y]}, y)
    for values in results.values():
        assert np.isfinite(values["a"][1]).all()


def test_rows_of_one_class_are_refused():
    with pytest.raises(InputError, match="Scoring requires rows of at least two classes; got 1"):
        evaluate({"a": np.ones((5, 2))}, np.zeros(5, dtype=int))
