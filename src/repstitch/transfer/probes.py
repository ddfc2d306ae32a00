"""Train linear probes on a space, and derive concepts from two sets of examples."""

import warnings
from collections.abc import Sequence

import numpy as np

from repstitch.errors import InputError
from repstitch.transfer.kinds import Directions, Probe

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
DEFAULT_STRENGTH = 1e-2
MAX_STEPS = 500
TINY = 1e-12


def fit_probe(
    X: np.ndarray,
    y: np.ndarray,
    classes: Sequence[str],
    validation: tuple[np.ndarray, np.ndarray],
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Probe, float]:
    """Train a logistic probe on rows X (n, d) for y (n,), positions in `classes`. Returns it and its inverse penalty.

    The probe is scikit-learn's multinomial logistic regression on rows that are centred and divided by one number, so
    that their mean variance is 1. Of the inverse penalties `strengths` (scikit-learn's C), the one with the highest
    likelihood on the `validation` rows is chosen; the search stops after two in a row that are not better. A single
    strength needs no validation rows. The probe has the classes that occur in y. Raises InputError if fewer than two
    occur.
    """
    from sklearn.linear_model import LogisticRegression

    present = np.unique(y)
    if len(present) < 2:
        raise InputError(f"A probe needs rows of at least two classes; got {len(present)} in {len(y)} rows.")
    mean = X.mean(0, dtype=np.float64)
    spread = float(np.sqrt(np.square(X - mean).sum(1).mean() / X.shape[1]))
    if not spread > 0:
        raise InputError("A probe needs rows that differ; all the rows are identical.")
    usable = np.isin(validation[1], present)
    if not usable.any() and len(strengths) > 1:
        raise InputError("A probe needs validation rows of its classes to choose the penalty; there are none.")
    rows, validation_rows = (((part - mean) / spread).astype(np.float32) for part in (X, validation[0][usable]))
    basis = None
    if len(rows) < X.shape[1]:  # exact: the penalised weights lie in the span of the rows
        basis = np.linalg.svd(rows, full_matrices=False)[2]
        rows, validation_rows = rows @ basis.T, validation_rows @ basis.T
    columns = np.searchsorted(present, validation[1][usable])
    model = LogisticRegression(max_iter=MAX_STEPS, warm_start=True)
    best, best_score, worse = None, -np.inf, 0
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit that did not converge is scored like any other
            model.set_params(C=strength).fit(rows, y)
        score = 0.0
        if len(strengths) > 1:
            likelihood = model.predict_proba(validation_rows)[np.arange(len(columns)), columns]
            score = float(np.log(np.maximum(likelihood, TINY)).mean())
        if best is None or score > best_score:
            best, best_score, worse = (strength, np.array(model.coef_), np.array(model.intercept_)), score, 0
        else:
            worse += 1
            if worse == 2:
                break
    assert best is not None
    strength, coef, intercept = best
    coef = (coef if basis is None else coef @ basis).astype(np.float64) / spread
    return Probe(coef, intercept - coef @ mean, tuple(str(classes[k]) for k in present)), strength


def concept(positive: np.ndarray, negative: np.ndarray, by: str = "means", name: str = "concept") -> Directions | Probe:
    """Derive a concept from rows that show it (n, d) and rows that do not (m, d).

    With `by="means"` it is the difference of their means, a direction. Adding it to a point increases the concept there
    (a steering vector; the pattern of Haufe et al. 2014). With `by="classifier"` it is the normal of a logistic
    classifier between the two sets, the concept activation vector of Kim et al. 2018. That is a covector, so it is
    returned as a probe. Raises InputError on sets of different widths, on fewer than two rows in either, and on equal
    means.
    """
    A, B = (np.asarray(rows, dtype=np.float64) for rows in (positive, negative))
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1] or min(len(A), len(B)) < 2:
        raise InputError(
            f"`positive` and `negative` must have at least two rows each, of one width; got {A.shape} and {B.shape}."
        )
    if not np.linalg.norm(A.mean(0) - B.mean(0)) > 1e-12 * max(np.abs(A).max(), np.abs(B).max()):
        raise InputError("The two sets of examples have the same mean, so there is no direction between them.")
    if by not in BY:
        raise InputError(f"`by` must be one of {', '.join(BY)}; got {by!r}.")
    return BY[by](A, B, name)


def _by_means(A: np.ndarray, B: np.ndarray, name: str) -> Directions:
    return Directions((A.mean(0) - B.mean(0))[None], (name,))


def _by_classifier(A: np.ndarray, B: np.ndarray, name: str) -> Probe:
    """Choose the penalty on a fifth of each set, then fit on all rows of both."""
    X, y = np.vstack([A, B]), np.r_[np.ones(len(A), dtype=int), np.zeros(len(B), dtype=int)]
    classes, random = (f"not {name}", name), np.random.default_rng(0)
    fifth = np.concatenate([random.permutation(len(rows)) < max(1, len(rows) // 5) for rows in (A, B)])
    _, strength = fit_probe(X[~fifth], y[~fifth], classes, (X[fifth], y[fifth]))
    return fit_probe(X, y, classes, (X, y), (strength,))[0]


BY = {"means": _by_means, "classifier": _by_classifier}
