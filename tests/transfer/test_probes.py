from typing import Any

import numpy as np
import pytest
from helpers.contexts import two_views
from helpers.spaces import gaussian

from repstitch.errors import InputError
from repstitch.transfer import probes
from repstitch.transfer.kinds import Directions, Probe
from repstitch.transfer.probes import fit_probe

concept: Any = probes.concept  # directions or a probe
OLD, _, LABELS, _ = two_views(300)
CLASSES = tuple(sorted(set(LABELS)))
Y = np.array([CLASSES.index(one) for one in LABELS])
X = OLD.vectors


def right(probe: Any, rows, wanted) -> float:
    return float(np.mean([probe.classes[k] for k in probe.class_scores(rows).argmax(1)] == wanted))


def test_a_probe_learns_well_separated_classes():
    made, strength = fit_probe(X[:200], Y[:200], CLASSES, (X[200:], Y[200:]))
    assert right(made, X[200:], LABELS[200:]) > 0.95
    assert strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def test_a_probe_of_two_classes_has_one_row_and_predicts_the_second_above_zero():
    rows = Y < 2
    made, _ = fit_probe(X[rows], Y[rows], CLASSES[:2], (X[rows], Y[rows]))
    assert made.coef.shape == (1, 8)
    assert right(made, X[rows], LABELS[rows]) > 0.95


def test_a_probe_has_only_the_classes_of_its_training_rows():
    rows = Y != 1
    made, _ = fit_probe(X[rows], Y[rows], CLASSES, (X[rows], Y[rows]))
    assert made.classes == (CLASSES[0], CLASSES[2])


def test_the_scale_and_centre_of_rows_do_not_matter():
    a, _ = fit_probe(X, Y, CLASSES, (X, Y), (0.1,))
    moved = 50 * X + 7
    b, _ = fit_probe(moved, Y, CLASSES, (moved, Y), (0.1,))
    np.testing.assert_allclose(b.scores(moved), a.scores(X), atol=1e-2)


def test_a_fit_with_fewer_rows_than_dimensions_equals_the_full_fit():
    from sklearn.linear_model import LogisticRegression

    wide = np.hstack([X[:30], gaussian(30, 60)])
    made, _ = fit_probe(wide, Y[:30], CLASSES, (wide, Y[:30]), (0.1,))
    centred = wide - wide.mean(0)
    standard = centred / np.sqrt(np.square(centred).sum(1).mean() / wide.shape[1])
    exact = LogisticRegression(C=0.1, tol=1e-6).fit(standard, Y[:30])
    np.testing.assert_allclose(made.scores(wide), exact.decision_function(standard), atol=2e-2)


def test_on_noise_a_strong_penalty_is_chosen():
    noise = gaussian(300, 40)
    _, strength = fit_probe(noise[:150], Y[:150], CLASSES, (noise[150:], Y[150:]))
    assert strength <= 1e-2


def test_a_concept_by_means_is_the_difference_of_the_means():
    made = concept(X[Y == 0], X[Y == 1], name="zero")
    assert isinstance(made, Directions)
    assert made.names == ("zero",)
    np.testing.assert_allclose(made.values[0], X[Y == 0].mean(0) - X[Y == 1].mean(0), atol=1e-6)


def test_a_concept_by_classifier_is_a_probe_that_separates_the_examples():
    made = concept(X[Y == 0], X[Y == 1], by="classifier", name="zero")
    assert isinstance(made, Probe)
    assert made.classes == ("not zero", "zero")
    assert (made.scores(X[Y == 0])[:, 0] > 0).mean() > 0.95
    assert (made.scores(X[Y == 1])[:, 0] < 0).mean() > 0.95


def test_a_concept_by_classifier_is_fitted_to_all_examples():
    made = concept(X[Y == 0], X[Y == 1], by="classifier", name="zero")
    rows, shows = np.vstack([X[Y == 0], X[Y == 1]]), np.repeat([1, 0], [(Y == 0).sum(), (Y == 1).sum()])
    fits = [fit_probe(rows, shows, made.classes, (rows, shows), (strength,))[0] for strength in probes.STRENGTHS]
    assert sum(np.allclose(made.coef, fit.coef) for fit in fits) == 1


def test_a_classifier_corrects_for_a_distractor_and_a_mean_difference_does_not():
    """The classifier's normal corrects for a distractor that varies with the concept; the mean difference does not."""
    random = np.random.default_rng(0)
    signal, distractor = np.repeat([1.0, -1.0], 400), 3 * random.standard_normal(800)
    rows = np.column_stack([signal + distractor + 0.3 * random.standard_normal(800), distractor])
    means, normal = concept(rows[:400], rows[400:]).values[0], concept(rows[:400], rows[400:], by="classifier").coef[0]
    assert abs(means[1] / means[0]) < 0.5
    assert normal[1] / normal[0] < -0.8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: concept(X[:5], gaussian(5, 3)), "at least two rows each, of one width"),
        (lambda: concept(X[:1], X[:5]), "at least two rows each"),
        (lambda: concept(X[:5], X[:5]), "have the same mean"),
        (lambda: concept(X[:5], X[5:9], by="magic"), "`by` must be one of means, classifier"),
        (lambda: fit_probe(X, np.zeros(300, int), CLASSES, (X, Y)), "rows of at least two classes; got 1 in 300"),
        (lambda: fit_probe(np.ones((300, 2)), Y, CLASSES, (X, Y)), "rows that differ; all the rows are identical"),
        (lambda: fit_probe(X[Y < 2], Y[Y < 2], CLASSES, (X[Y == 2], Y[Y == 2])), "validation rows of its classes"),
    ],
)
def test_data_from_which_no_probe_can_be_learned_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
